//! Runs the checks of the fuzz targets for recipes, job files and requests on their seeds and on
//! mutated copies of the seeds.
//!
//! `make fuzz` searches further. `UPDATE_SEEDS=1 cargo test --test hostile_specs` regenerates the
//! seeds from deploy/recipes.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../checkpoint/tests/changes/mod.rs"]
mod changes;
mod readers;

use std::path::{Path, PathBuf};

use changes::{Dice, Told, change};
use inheritune_api::v1;
use inheritune_cli::{job_file, recipe};
use prost::Message as _;
use readers::READERS;

/// Mutated files per kind. A minute of `make fuzz` reads a thousand times as many.
const CHANGED_FILES: u32 = 500;

const JOBS: [(&str, &str); 6] = [
    (
        "tokenize",
        "kind = \"tokenize\"\nsources = [\"file:a.jsonl\", \"s3://bucket/b\"]\nvalidation_fraction = 0.05\nseed = 1\n\
      tokenizer = { train = { vocab_size = 512 } }\n",
    ),
    (
        "slice",
        "kind = \"slice\"\nseed = 1\n[source.checkpoint]\ncheckpoint = \"models/gpt2\"\nlayers = 4\n\
      layer_map = \"first\"\ninherit = [\"attention\", \"norms\"]\n",
    ),
    (
        "fresh",
        "kind = \"slice\"\nseed = 1\n[source.architecture]\nvocab_size = 512\n[source.architecture.architecture]\n\
      family = \"llama\"\nn_layers = 2\nd_model = 64\nn_heads = 4\nn_kv_heads = 2\nd_ff = 128\nmax_positions = 128\n",
    ),
    (
        "train",
        "kind = \"train\"\ncheckpoint = \"artifact://01900000-0000-7000-8000-000000000000\"\ndata_fraction = 1.0\n\
      tokens = \"01900000-0000-7000-8000-000000000001\"\nseed = 1\nexpect_inherited = true\n[training]\nblock_size = 32\n\
      micro_batch = 2\nsteps = 10\nlr_max = 1e-3\nprecision = \"bf16-mixed\"\nsource_weights = [0.5, 0.5]\n",
    ),
    (
        "evaluate",
        "kind = \"evaluate\"\ncheckpoint = \"artifact://01900000-0000-7000-8000-000000000000\"\nbatch_size = 8\n\
      [[tasks]]\ntask = \"rolling_perplexity\"\nsource = \"file:texts/other.txt\"\n[[tasks]]\ntask = \"validation_loss\"\n\
      tokens = \"01900000-0000-7000-8000-000000000001\"\nblock_size = 32\n",
    ),
    (
        "benchmark",
        "kind = \"evaluate\"\ncheckpoint = \"file:models/gpt2\"\nbatch_size = 8\n[[tasks]]\ntask = \"benchmark\"\n\
      name = \"piqa\"\ndata = \"file:benchmarks\"\nlimit = 10\n",
    ),
];

fn folder(reader: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(reader)
}

/// Seeds for every recipe in the repository and every kind of job, as files and as requests.
fn made_seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/recipes");
    for entry in std::fs::read_dir(recipes).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let spec = recipe::parse(&text, Path::new("/here")).unwrap();
        let request = v1::CreateRunRequest { spec: Some((&spec).into()), ..Default::default() };
        seeds.push(("recipe", format!("{name}.toml"), text.into_bytes()));
        seeds.push(("run_request", name, request.encode_to_vec()));
    }
    for (name, text) in JOBS {
        let file = format!("{name}.toml");
        seeds.push(("job_file", file.clone(), text.as_bytes().to_vec()));
        if let Ok(spec) = job_file::parse(text, Path::new(&file), Path::new("/here")) {
            let json = serde_json::to_vec_pretty(&spec).unwrap();
            let request =
                v1::SubmitJobRequest { spec: Some((&spec).into()), label: name.to_owned(), ..Default::default() };
            seeds.push(("job_file", format!("{name}.json"), json));
            seeds.push(("job_request", name.to_owned(), request.encode_to_vec()));
        } else {
            panic!("{}", job_file::parse(text, Path::new(&file), Path::new("/here")).unwrap_err());
        }
    }
    seeds
}

fn seeds(reader: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> = std::fs::read_dir(folder(reader))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    assert!(seeds.len() > 5, "the seeds of {reader} were not found");
    seeds
}

#[test]
fn s9_kept_specs_are_answered() {
    if std::env::var_os("UPDATE_SEEDS").is_some() {
        for (reader, name, bytes) in made_seeds() {
            std::fs::create_dir_all(folder(reader)).unwrap();
            std::fs::write(folder(reader).join(name), bytes).unwrap();
        }
    }
    for reader in READERS {
        for (name, bytes) in seeds(reader.name) {
            let _told = Told(format!("{}/{name}", reader.name));
            (reader.check)(&bytes);
        }
    }
}

#[test]
fn s9_changed_specs_are_answered() {
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for reader in READERS {
        let seeds = seeds(reader.name);
        for round in 0..CHANGED_FILES {
            let (name, file) = &seeds[dice.below(seeds.len())];
            let (_, other) = &seeds[dice.below(seeds.len())];
            let mut file = file.clone();
            change(&mut file, other, &mut dice);
            let _told = Told(format!("{}/{name}, round {round}", reader.name));
            (reader.check)(&file);
        }
    }
}
