#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};

use super::*;
use crate::artifact::Location;

pub(crate) const FULL_DATA: &str = r#"
name = "test"
recipe = "full-data"
[corpus]
sources = ["file:///corpus.txt"]
tokenizer = { train = { vocab_size = 512 } }
[reference.architecture]
family = "gpt2"
n_layers = 8
d_model = 32
n_heads = 4
max_positions = 64
[target]
start_layers = 2
grow_by = 2
[training]
block_size = 64
micro_batch = 4
steps = 100
lr_max = 1e-3
[[controls]]
name = "random"
"#;

fn check(edit: &[(&str, &str)], expected: Expect) {
    let mut text = FULL_DATA.to_owned();
    for (from, to) in edit {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let result = match toml::from_str::<RunSpec>(&text) {
        Err(e) => e.message().to_owned(),
        Ok(spec) => match spec.validate() {
            Ok(()) => "ok".to_owned(),
            Err(violations) => violations.0.iter().map(|v| format!("{}: {}\n", v.field, v.description)).collect(),
        },
    };
    expected.assert_eq(&result);
}

#[test]
fn a_good_recipe() {
    check(&[], expect!["ok"]);
}

#[test]
fn unknown_field() {
    check(
        &[("grow_by = 2", "grow_bye = 2")],
        expect![
            "unknown field `grow_bye`, expected one of `start_layers`, `grow_by`, `max_rounds`, `tolerance_nats`, `match_by`, `growth_source`, `inherit`, `layer_map`, `data_fraction`"
        ],
    );
}

#[test]
fn every_bad_field_is_named_at_once() {
    check(
        &[
            ("name = \"test\"", "name = \"\""),
            ("file:///corpus.txt", "ftp://corpus"),
            ("start_layers = 2", "start_layers = 9"),
            ("d_model = 32", "d_model = 33"),
            ("lr_max = 1e-3", "lr_max = -1.0\nbeta2 = 1.5\nwarmup_steps = 101"),
        ],
        expect![[r#"
            name: must be 1 to 128 bytes without control characters, and not blank
            corpus.sources[0]: scheme `ftp` is unknown; use file://, s3:// or artifact://
            reference.architecture.d_model: must be a multiple of n_heads (4)
            target.start_layers: 9 is more than the reference's 8 layers
            training.warmup_steps: must not exceed steps (100)
            training.lr_max: must be above 0 and at most 10
            training.lr_min: must be at least 0 and at most lr_max
            training.beta2: must be at least 0 and below 1
        "#]],
    );
}

#[test]
fn reference_is_one_of_two() {
    check(
        &[("[reference.architecture]", "[reference]\ncheckpoint = \"file:///m\"\n[reference.architecture]")],
        expect![[r#"
            reference: give either checkpoint or architecture, not both
        "#]],
    );
}

#[test]
fn layer_lists_are_checked_against_the_reference() {
    check(
        &[("start_layers = 2", "max_rounds = 1\nlayer_map = { list = [0, 8, 7] }")],
        expect![[r#"
            target.layer_map[1]: layer 8 does not exist: the reference has layers 0 to 7
        "#]],
    );
}

#[test]
fn total_steps_of_epochs_are_whole_steps() {
    let spec: RunSpec = toml::from_str(FULL_DATA).unwrap();
    let training = TrainingSpec { steps: None, epochs: Some(3), ..spec.training };
    // 1000 tokens contain 15 sequences of 64 with a next token each; 45 sequences are 11 steps of
    // 4.
    assert_eq!(training.total_steps(1000), 11);
    assert_eq!(training.total_steps(3), 1);
}

#[test]
fn source_weights_are_one_a_source() {
    check(
        &[("lr_max = 1e-3", "lr_max = 1e-3\nsource_weights = [67, 0, 15]")],
        expect![[r#"
            training.source_weights[1]: must be above 0 and at most 1000000000
            training.source_weights: must contain one weight for each of the 1 corpus.sources
        "#]],
    );
}

/// Training states store the digest of this text, so a newly added field must not appear in it.
#[test]
fn a_training_is_recognised_whatever_fields_were_added() {
    let id = "01900000-0000-7000-8000-000000000000";
    let spec = serde_json::json!({"checkpoint": {"artifact": id}, "tokens": id, "training": {
        "block_size": 8, "micro_batch": 1, "steps": 1, "lr_max": 1e-3,
    }});
    let spec: TrainSpec = serde_json::from_value(spec).unwrap();
    expect![[r#"{"checkpoint":{"artifact":"01900000-0000-7000-8000-000000000000"},"tokens":"01900000-0000-7000-8000-000000000000","training":{"block_size":8,"micro_batch":1,"gradient_accumulation":1,"steps":1,"lr_max":0.001,"lr_min":0.0,"warmup_steps":0,"schedule":"cosine","weight_decay":0.1,"decay":"matrices","beta1":0.9,"beta2":0.95,"adam_eps":1e-8,"clip_norm":1.0,"log_every_steps":10,"evaluate_every_steps":0,"evaluate_sequences":64,"checkpoint_every_steps":500},"data_fraction":1.0,"seed":0,"expect_inherited":false}"#]].assert_eq(&serde_json::to_string(&spec).unwrap());
    expect!["acdcc1a8b80e29d52d24dbd44bbcad637ba596a9a21b2ca2b746c5054e941618"].assert_eq(&spec.digest().to_string());
    let TrainSpec { training, .. } = spec.clone();
    let changed = TrainSpec { training: TrainingSpec { document_mask: true, ..training }, ..spec.clone() };
    assert_ne!(changed.digest(), spec.digest());
}

#[test]
fn fields_that_are_not_written_come_back() {
    let fields = "lr_max = 1e-3\nprecision = \"bf16-mixed\"\nsampling = \"random-offsets\"\ndocument_mask = true\n\
                  activation_checkpointing = true\nkeep_newest = 3\nkeep_best = true\nevaluate_every_steps = 5";
    let spec: RunSpec = toml::from_str(&FULL_DATA.replace("lr_max = 1e-3", fields)).unwrap();
    let again: RunSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
}

#[test]
fn specs_survive_json() {
    let spec: RunSpec = toml::from_str(FULL_DATA).unwrap();
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<RunSpec>(&json).unwrap(), spec);
}

#[test]
fn a_token_set_needs_a_given_reference() {
    let set = "artifact://01900000-0000-7000-8000-000000000000";
    check(
        &[("file:///corpus.txt", set)],
        expect![[r#"
            corpus.sources: a ready-made token set requires a given reference: use text sources, or give reference.checkpoint
        "#]],
    );
}

#[test]
fn names_of_controls_are_names() {
    check(
        &[("name = \"random\"", "name = \"a\\nb\"\n[[controls]]\nname = \"twice\"\n[[controls]]\nname = \"twice\"")],
        expect![[r#"
            controls[0].name: must be 1 to 128 bytes without control characters, and not blank
            controls[2].name: is used twice
        "#]],
    );
}

#[test]
fn what_is_inherited_is_a_preset_or_a_list_of_parts() {
    let read = |inherit: &str, expected: Expect| check(&[("grow_by = 2", &format!("inherit = {inherit}"))], expected);
    for good in ["\"official-code\"", "[\"attention\", \"norms\", \"head\"]", "\"mlp\""] {
        read(good, expect!["ok"]);
    }
    read(
        "\"everything\"",
        expect![
            "`everything` is unknown: give one of all, official-code, blocks, nothing, or a list of the parts token_embedding, position_embedding, attention, mlp, norms, final_norm, head"
        ],
    );
    read(
        "[\"attention\", \"everything\"]",
        expect![
            "unknown variant `everything`, expected one of `token_embedding`, `position_embedding`, `attention`, `mlp`, `norms`, `final_norm`, `head`"
        ],
    );
    read("[]", expect![[r#"lists no parts: write "nothing" to inherit nothing"#]]);
    let spec = |inherit: &str| {
        let text = FULL_DATA.replace("grow_by = 2", &format!("inherit = {inherit}"));
        toml::from_str::<RunSpec>(&text).unwrap().target.inherit
    };
    assert_eq!(spec("[\"norms\", \"mlp\", \"attention\"]"), spec("\"blocks\""));
}

#[test]
fn a_slice_s_files_are_not_too_short() {
    let text = r#"{"source": {"checkpoint": {"checkpoint": {"uri": "file:///m"}, "layers": 1, "layer_map": "first", "inherit": "all",
        "previous": null}}, "tokenizer": null, "seed": 1}"#;
    let spec: SliceSpec = serde_json::from_str(text).unwrap();
    assert_eq!(
        spec.max_shard_size_bytes,
        defaults::max_shard_size_bytes(),
        "specs written before this field existed lack it"
    );
    let check = |max_shard_size_bytes, expected: Expect| {
        let spec = JobSpec::Slice(SliceSpec { max_shard_size_bytes, ..spec.clone() });
        expected.assert_eq(&spec.validate().map_or_else(|e| e.to_string(), |()| "ok".to_owned()));
    };
    check(5, expect!["max_shard_size_bytes: must be at least 1048576 bytes"]);
    check(MIN_MAX_SHARD_SIZE_BYTES, expect!["ok"]);
    check(u64::MAX, expect!["ok"]);
}

#[test]
fn an_evaluation_s_curves_are_its_scores() {
    let task = EvaluationTask::Benchmark {
        name: "poster".to_owned(),
        data: Location::Uri("file:///data".to_owned()),
        limit: None,
    };
    let spec = JobSpec::Evaluate(EvaluateSpec::new(Location::Uri("file:///model".to_owned()), vec![task]));
    let curves = spec.curves();
    for name in ["piqa.acc", "piqa.acc_norm", "mmlu_anatomy.acc", "lambada_openai.perplexity"] {
        assert!(curves.iter().any(|curve| curve == name), "{name}: {curves:?}");
    }
}
