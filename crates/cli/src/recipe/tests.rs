#![allow(clippy::unwrap_used)]

use std::path::Path;

use expect_test::{Expect, expect};

use super::*;

fn check(toml: &str, expected: Expect) {
    let text = match parse(toml, Path::new("/here")) {
        Ok(spec) => explain(&spec).text(),
        Err(violations) => violations.0.iter().map(|v| format!("{}: {}\n", v.field, v.description)).collect(),
    };
    expected.assert_eq(&text);
}

#[test]
fn every_bad_field_is_named() {
    check(
        r#"
name = ""
recipe = "half-data"
colour = "blue"
[corpus]
sources = ["http://example.org/x", "file:a.txt"]
validation_fraction = 0.9
tokenizer = { train = { vocab_size = 10 } }
[reference.architecture]
family = "bert"
n_layers = 8
d_model = 130
n_heads = 4
max_positions = 128
[target]
start_layers = 9
grow_by = "two"
grow_bye = 3
[training]
block_size = 128
steps = 10
warmup_steps = 11
lr_max = -1
betas = [0.9, 0.95]
[[controls]]
steps_factor = 100.0
"#,
        expect![[r#"
            colour: unknown field `colour`, expected one of `name`, `recipe`, `seed`, `priority`, `corpus`, `reference`, `target`, `training`, `evaluation`, `controls`, `arms` (line 4)
            controls[0].name: is missing
            recipe: unknown variant `half-data`, expected `full-data` or `low-data` (line 3)
            reference.architecture.family: unknown variant `bert`, expected one of `gpt2`, `llama`, `gpt_neox`, `opt`, `mpt`, `mosaic_gpt` (line 10)
            target.grow_by: invalid type: string "two", expected u32 (line 17)
            target.grow_bye: unknown field `grow_bye`, expected one of `start_layers`, `grow_by`, `max_rounds`, `tolerance_nats`, `match_by`, `growth_source`, `inherit`, `layer_map`, `data_fraction` (line 18)
            training.betas: unknown field `betas`, expected one of `block_size`, `micro_batch`, `gradient_accumulation`, `precision`, `activation_checkpointing`, `sampling`, `source_weights`, `document_mask`, `steps`, `epochs`, `lr_max`, `lr_min`, `warmup_steps`, `schedule`, `weight_decay`, `decay`, `beta1`, `beta2`, `adam_eps`, `clip_norm`, `log_every_steps`, `evaluate_every_steps`, `evaluate_sequences`, `checkpoint_every_steps`, `keep_newest`, `keep_best` (line 24)
            training.micro_batch: is missing
            name: must be 1 to 128 bytes without control characters, and not blank
            corpus.sources[0]: http and https locations are not supported: download the data first (for a model of the Hugging Face hub, `hf download OWNER/NAME --local-dir FOLDER`), and specify the folder or file
            corpus.validation_fraction: must be above 0 and at most 0.5
            corpus.tokenizer.train.vocab_size: must be 257 to 65536 entries
            reference.architecture.d_model: must be a multiple of n_heads (4)
            target.start_layers: 9 is more than the reference's 8 layers
            training.warmup_steps: must not exceed steps (10)
            training.lr_max: must be above 0 and at most 10
            training.lr_min: must be at least 0 and at most lr_max
            controls[0].steps_factor: must be at least 0.1 and at most 10
        "#]],
    );
}

#[test]
fn broken_toml_is_pointed_at() {
    check(
        "name = \"x\nrecipe = ",
        expect![[r#"
        line 1: invalid basic string, expected `"`
        line 2: string values must be quoted, expected literal string
    "#]],
    );
}

#[test]
fn an_empty_recipe_names_what_is_missing() {
    check(
        "",
        expect![[r#"
        name: is missing
        recipe: is missing
        corpus: is missing
        reference: is missing
        target: is missing
        training: is missing
    "#]],
    );
}

#[test]
fn a_good_recipe_is_explained() {
    check(
        r#"
name = "demo"
recipe = "full-data"
[corpus]
sources = ["file:demo/../corpus.txt"]
tokenizer = { train = { vocab_size = 2048 } }
[reference.architecture]
family = "gpt2"
n_layers = 8
d_model = 128
n_heads = 4
max_positions = 128
[target]
start_layers = 4
grow_by = 3
[training]
block_size = 128
micro_batch = 16
steps = 400
lr_max = 0.001
[[controls]]
name = "random"
steps_factor = 2.0
"#,
        expect![[r#"
            demo: 1 source, a byte-level BPE with 2048 entries trained on it, last 5 % held out for validation
              reference: 8 layers (1.86 M parameters), random; 400 steps of 2.05 K tokens = 819 K tokens
              round 1: 4 layers (1.07 M parameters), the reference's first 4 layers, embeddings, final norm and head; 400 steps of 2.05 K tokens = 819 K tokens
              round 2: 7 layers (1.67 M parameters), the reference's first 7 layers, embeddings, final norm and head; 400 steps of 2.05 K tokens = 819 K tokens
              round 3: 8 layers (1.86 M parameters), the reference's first 8 layers, embeddings, final norm and head; 400 steps of 2.05 K tokens = 819 K tokens
              random: as many layers as the target, random, 2 x the target's steps; 800 steps of 2.05 K tokens = 1.64 M tokens
              Grows by 3 layers per round until the validation loss is at most the reference's + 0 nats, for at most 8 rounds or up to 8 layers."#]],
    );
}

#[test]
fn paths_become_absolute_uris() {
    let base = Path::new("/home/ann/my project");
    for (text, absolute) in [
        ("file:demo/corpus.txt", "file:///home/ann/my%20project/demo/corpus.txt"),
        ("demo/corpus.txt", "file:///home/ann/my%20project/demo/corpus.txt"),
        ("../other/./x.jsonl.zst", "file:///home/ann/other/x.jsonl.zst"),
        ("/data/x.txt", "file:///data/x.txt"),
        ("file:/data/x.txt", "file:///data/x.txt"),
        ("file:///data/x.txt", "file:///data/x.txt"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("artifact://01900000-0000-7000-8000-000000000000", "artifact://01900000-0000-7000-8000-000000000000"),
        ("http://example.org/x", "http://example.org/x"),
        ("", ""),
    ] {
        assert_eq!(absolute_location(text, base), absolute);
    }
}

/// The paper's ablation inherits parts of the blocks.
#[test]
fn parts_are_read_and_explained() {
    let recipe = |inherit: &str| {
        format!(
            r#"
name = "parts"
recipe = "low-data"
corpus = {{ sources = ["a.txt"] }}
reference = {{ checkpoint = "m" }}
[target]
start_layers = 16
inherit = {inherit}
[training]
block_size = 128
micro_batch = 1
steps = 10
lr_max = 1e-3
"#
        )
    };
    for (inherit, words) in [
        (
            r#"["attention", "norms", "head"]"#,
            "attention and norms of the reference's first 16 layers, and its head; the rest random",
        ),
        (r#"["attention"]"#, "attention of the reference's first 16 layers; the rest random"),
        (
            r#"["attention", "mlp", "norms", "token_embedding", "final_norm"]"#,
            "the reference's first 16 layers, and its token embedding and final norm; the rest random",
        ),
        (r#"["head"]"#, "the reference's head; the rest random"),
        (r#"["norms", "attention", "mlp"]"#, "the reference's first 16 layers and nothing else"),
    ] {
        let spec = parse(&recipe(inherit), Path::new("/here")).unwrap();
        assert_eq!(explain(&spec).models[0].initialisation, words);
    }
    check(
        &recipe(r#"["attention", "norm"]"#),
        expect![[r#"
        target.inherit[1]: unknown variant `norm`, expected one of `token_embedding`, `position_embedding`, `attention`, `mlp`, `norms`, `final_norm`, `head` (line 8)
    "#]],
    );
    check(
        &recipe(r#""atention""#),
        expect![[r#"
        target.inherit: `atention` is unknown: give one of all, official-code, blocks, nothing, or a list of the parts token_embedding, position_embedding, attention, mlp, norms, final_norm, head (line 8)
    "#]],
    );
    check(
        &recipe("[]"),
        expect![[r#"
        target.inherit: lists no parts: write "nothing" to inherit nothing (line 8)
    "#]],
    );
}

/// A recipe with this source.
fn naming(source: &str) -> String {
    let training = "block_size = 8\nmicro_batch = 1\nsteps = 10\nlr_max = 1e-3";
    format!(
        "name = \"x\"\nrecipe = \"full-data\"\n[corpus]\nsources = [{source:?}]\n[reference]\ncheckpoint = \"s3://b/m\"\n[target]\n\
         [training]\n{training}\n"
    )
}

#[test]
fn u7_what_only_a_shell_would_understand_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let field = |source: &str| match read(&naming(source), &[], dir.path()) {
        Ok(read) => format!("good, {} missing", read.missing.len()),
        Err(violations) => {
            assert_eq!(violations.0.len(), 1, "{violations}");
            violations.0[0].field.clone()
        }
    };
    for bad in [
        "~/x.jsonl",
        "~",
        "~ann/x",
        "file:~/x",
        "$HOME/x",
        "${DATA}/x",
        "data/$(date)",
        "data/*.jsonl",
        "data/part-?.txt",
        "data/[ab].txt",
        "data/{a,b}.txt",
        "file:///data/*.jsonl",
        "C:\\data\\x.txt",
        "data\\x.txt",
        "",
        " ",
        "\t",
        " x.txt",
        "x.txt ",
        "s3:bucket/x",
        "s3://",
        "s3:///x",
        "http://host/x",
        "https:x",
        "hf://datasets/x",
        "artifact:7",
        "artifact://7",
        "file://data/x.txt",
        "file:///",
        "file:///a?b",
        "file:///a%00b",
    ] {
        assert_eq!(field(bad), "corpus.sources[0]", "{bad:?}");
    }
    assert_eq!(field("s3://bucket/x.jsonl"), "good, 0 missing");
    assert_eq!(field("not here.txt"), "good, 1 missing");
    // A file that exists under such a name is accepted.
    for name in ["~", "a*b.txt", "$HOME.txt", "{a}.txt", "s3:x"] {
        std::fs::write(dir.path().join(name), "text").unwrap();
        assert_eq!(field(name), "good, 0 missing", "{name}");
    }
}

#[test]
fn u7_messages_say_what_to_write() {
    let problem = |source| read(&naming(source), &[], Path::new("/here")).unwrap_err().to_string();
    let (glob, home) = (problem("data/*.jsonl"), problem("~/x.jsonl"));
    assert!(glob.contains("`*` is not expanded here; name the folder `data`"), "{glob}");
    assert!(home.contains("`~` is not expanded here; write the full path"), "{home}");
}

#[test]
fn u7_numbers_and_names_without_sense_are_refused() {
    let good = naming("a.txt");
    for (from, to, field) in [
        ("steps = 10", "steps = 9223372036854775807", "training.steps"),
        ("steps = 10", "steps = 10\nwarmup_steps = 4000000000", "training.warmup_steps"),
        ("name = \"x\"", "name = \" \\t\"", "name"),
        ("name = \"x\"", "name = \"\\u00a0\"", "name"),
        ("block_size = 8", "block_size = 4294967295", "training.block_size"),
        ("lr_max = 1e-3", "lr_max = inf", "training.lr_max"),
        ("lr_max = 1e-3", "lr_max = nan", "training.lr_max"),
        ("lr_max = 1e-3", "lr_max = 1e-3\nclip_norm = inf", "training.clip_norm"),
        ("[target]", "[target]\ntolerance_nats = inf", "target.tolerance_nats"),
        ("sources = [\"a.txt\"]", "sources = [\"a.txt\", \"./a.txt\"]", "corpus.sources[1]"),
        ("sources = [\"a.txt\"]", "sources = []", "corpus.sources"),
        ("[training]", "[evaluation]\nbatch_size = 4294967295\n[training]", "evaluation.batch_size"),
    ] {
        assert!(good.contains(from), "{from}");
        let found = parse(&good.replace(from, to), Path::new("/here")).unwrap_err();
        assert!(found.0.iter().any(|violation| violation.field == field), "{to}: {found}");
    }
}
