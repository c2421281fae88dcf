//! Compares a model card with all fields, including names with special characters of YAML, with the
//! golden file that scripts/faults/cards.py checks with huggingface_hub.
#![allow(clippy::unwrap_used)]

use expect_test::expect_file;
use inheritune_domain::model_card::{CardMetadata, License, Measured, base_model, with_results};

#[test]
fn u10_a_card_with_everything_is_what_the_hub_reads() {
    let license = License {
        id: "other".to_owned(),
        name: Some("a: \"license\" # of 'ours'\n---".to_owned()),
        link: Some("LICENSE - {%}.txt".to_owned()),
    };
    let base_model = base_model("file:///c/hub/models--openlm-research--open_llama_3b/snapshots/1");
    let card = CardMetadata { base_model, license: Some(license) }.to_yaml() + "\n# 4 of 8 layers\n\n---\n\nText.\n";
    let one =
        |task: &str, metric: &str, value: f64| Measured { task: task.to_owned(), metric: metric.to_owned(), value };
    let measured = [
        one("validation_loss", "loss_nats", 4.3065),
        one("piqa", "acc", 0.485),
        one("piqa", "acc_norm", 0.47),
        one("arc_easy", "acc", 1e-7),
        one("mmlu", "acc", 0.2963),
        one("mmlu_anatomy", "acc", 1.0),
        one("wikitext", "word_perplexity", 1.5e9),
        one("rolling_perplexity", "bits_per_byte", 1.25),
        one("of: \u{7f}\u{85}\u{2028}\u{feff}\u{fffe}🦙 - [x]", "\t*&!%@`", f64::INFINITY),
        one("of: \u{7f}\u{85}\u{2028}\u{feff}\u{fffe}🦙 - [x]", "\t*&!%@`", -0.0),
    ];
    let name = "no: \"name\" # 'at' all\n---\n- *x";
    let card = with_results(&card, name, &measured, &["allenai/c4".to_owned()]).unwrap();
    expect_file!["golden/model-card.md"].assert_eq(&card);
}
