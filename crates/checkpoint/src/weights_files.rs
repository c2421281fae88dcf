//! Finds the files with a model's weights in a folder from their names alone, and explains what a
//! folder without weights is.

use std::collections::BTreeSet;

use super::litgpt::{LITGPT_CONFIG_FILE, LITGPT_FILE, LITGPT_YAML_FILE};
use super::nanogpt::NANOGPT_FILE;
use super::safetensors_header::{SINGLE_FILE, shortened};
use super::shard_index::ShardFormat;
use super::torch_archive::SINGLE_PICKLE_FILE;

#[cfg(test)]
mod tests;

/// Hugging Face's model settings.
pub const CONFIG_FILE: &str = "config.json";
/// Maximum number of files listed in a message.
const MAX_LISTED: usize = 8;
/// Prefixes of files that trainers leave next to a model's weights.
const NOT_WEIGHTS: [&str; 16] = [
    "optimizer",
    "scheduler",
    "training_args",
    "rng_state",
    "random_states",
    "scaler",
    "sampler",
    "trainer_state",
    "adapter",
    "consolidated",
    "tokenizer",
    "global_step",
    "zero_pp_rank",
    "mp_rank",
    "bf16_zero",
    "ema",
];

/// The location of the weights in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsFiles {
    /// A single file next to `config.json`.
    Single(ShardFormat, String),
    /// The files listed in an index.
    Indexed(ShardFormat),
    /// A complete set of numbered files without an index.
    Numbered(ShardFormat, Vec<String>),
    /// nanoGPT's file, with this name.
    NanoGpt(String),
    /// lit-gpt's file, with the name of its settings file.
    LitGpt(&'static str),
}

/// Why a folder is not a model's folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAModel(String);

/// Finds the weights in a folder with these files, whose names are relative to it. As in
/// transformers, safetensors take precedence over pickles, and a single file over an index. Other
/// names only count if there is exactly one such file.
///
/// # Errors
/// What the folder is instead, or the files that could be meant.
pub fn find(files: &[&str]) -> Result<WeightsFiles, NotAModel> {
    let has = |name: &str| files.contains(&name);
    let litgpt = || {
        let settings = [LITGPT_YAML_FILE, LITGPT_CONFIG_FILE].into_iter().find(|name| has(name));
        match settings {
            Some(settings) => Ok(WeightsFiles::LitGpt(settings)),
            None => {
                let problem = format!("{LITGPT_CONFIG_FILE}, which {LITGPT_FILE} requires, is missing");
                Err(NotAModel(format!("{problem}, and so is {LITGPT_YAML_FILE}, its name since 2024")))
            }
        }
    };
    if !has(CONFIG_FILE) {
        if has(NANOGPT_FILE) {
            return Ok(WeightsFiles::NanoGpt(NANOGPT_FILE.to_owned()));
        }
        if has(LITGPT_FILE) {
            return litgpt();
        }
        if let Some(kind) = other_kind(files) {
            return Err(kind);
        }
        return match other_names(files, &[".pt", ".pth"]).as_slice() {
            [] => Err(NotAModel(format!("{CONFIG_FILE} is missing: expected a Hugging Face checkpoint folder"))),
            [one] => Ok(WeightsFiles::NanoGpt((*one).to_owned())),
            several => Err(ambiguous(several, &format!("has no {CONFIG_FILE}, and may be a nanoGPT checkpoint"))),
        };
    }
    for (format, single) in [(ShardFormat::Safetensors, SINGLE_FILE), (ShardFormat::Pickle, SINGLE_PICKLE_FILE)] {
        if has(single) {
            return Ok(WeightsFiles::Single(format, single.to_owned()));
        }
        if has(format.index_file()) {
            return Ok(WeightsFiles::Indexed(format));
        }
    }
    if has(LITGPT_FILE) {
        return litgpt();
    }
    for format in [ShardFormat::Safetensors, ShardFormat::Pickle] {
        match numbered(files, format).as_mut_slice() {
            [] => {}
            [set] => return Ok(WeightsFiles::Numbered(format, std::mem::take(set))),
            sets => {
                let first: Vec<&str> = sets.iter().filter_map(|set| set.first()).map(String::as_str).collect();
                return Err(ambiguous(&first, "has no index and several complete sets of files"));
            }
        }
    }
    if let Some(part) = files.iter().find(|name| is_part(name) && !name.contains('/')) {
        let problem = "is one of several weight files, and not all of them exist: copy the others and their index";
        return Err(NotAModel(format!("{} {problem}", shortened(part))));
    }
    for (format, ends) in [
        (ShardFormat::Safetensors, [".safetensors"].as_slice()),
        (ShardFormat::Pickle, &[".bin", ".pt", ".pth", ".ckpt"]),
    ] {
        match other_names(files, ends).as_slice() {
            [] => {}
            [one] => return Ok(WeightsFiles::Single(format, (*one).to_owned())),
            several => return Err(ambiguous(several, &format!("has neither {SINGLE_FILE} nor its index"))),
        }
    }
    Err(other_kind(files).unwrap_or_else(|| {
        let names = [ShardFormat::Safetensors.index_file(), SINGLE_PICKLE_FILE, ShardFormat::Pickle.index_file()];
        let [index, pickle, pickle_index] = names;
        NotAModel(format!("{SINGLE_FILE} is missing, and so are {index}, {pickle} and {pickle_index}"))
    }))
}

/// Returns the files directly in the folder that have one of these extensions and could be weights.
fn other_names<'a>(files: &[&'a str], ends: &[&str]) -> Vec<&'a str> {
    let could_be = |name: &str| {
        !name.contains('/')
            && ends.iter().any(|end| name.ends_with(end))
            && !NOT_WEIGHTS.iter().any(|other| name.starts_with(other))
            && name != "emb.pt"
    };
    let mut found: Vec<&str> = files.iter().copied().filter(|name| could_be(name)).collect();
    found.sort_unstable();
    found
}

fn ambiguous(files: &[&str], why: &str) -> NotAModel {
    NotAModel(format!(
        "{why}; it is unclear which of {} is meant: keep one of them in the folder, or specify a folder with only one",
        listed(files)
    ))
}

fn listed(names: &[&str]) -> String {
    let mut shown: Vec<String> = names.iter().take(MAX_LISTED).map(|name| shortened(name)).collect();
    if names.len() > MAX_LISTED {
        shown.push(format!("{} more", names.len() - MAX_LISTED));
    }
    match shown.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        Some((only, _)) => only.clone(),
        None => String::new(),
    }
}

/// Returns every complete set of files such as `model-00001-of-00003.safetensors`.
fn numbered(files: &[&str], format: ShardFormat) -> Vec<Vec<String>> {
    let (stem, end) = match format {
        ShardFormat::Safetensors => ("model-", ".safetensors"),
        ShardFormat::Pickle => ("pytorch_model-", ".bin"),
    };
    let count = |name: &&str| {
        let numbers = name.strip_prefix(stem)?.strip_suffix(end)?;
        let (number, count) = numbers.split_once("-of-")?;
        (number.len() == 5 && count.len() == 5).then(|| count.parse::<u32>().ok())?
    };
    let counts: BTreeSet<u32> = files.iter().filter_map(count).filter(|count| *count > 0).collect();
    let set = |count: u32| -> Vec<String> {
        (1..=count.min(9999)).map(|i| format!("{stem}{i:05}-of-{count:05}{end}")).collect()
    };
    let is_whole = |set: &Vec<String>| set.iter().all(|name| files.contains(&name.as_str()));
    counts.into_iter().take(MAX_LISTED).map(set).filter(is_whole).collect()
}

/// Returns whether a name is that of one file of several.
fn is_part(name: &str) -> bool {
    (name.ends_with(".safetensors") || name.ends_with(".bin")) && name.contains("-of-0")
}

/// Explains what a folder without weights of a known name is, and what to specify instead.
fn other_kind(files: &[&str]) -> Option<NotAModel> {
    let any = |test: &dyn Fn(&str) -> bool| files.iter().copied().find(|name| test(name));
    let say = |text: String| Some(NotAModel(text));
    if any(&|name| name == "adapter_config.json" || name.starts_with("adapter_model.")).is_some() {
        return say("is a PEFT adapter, not a model: merge it into its base model first (peft: \
                    `PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(NEW)`), and specify the result"
            .to_owned());
    }
    let snapshot = |name: &str| {
        let (before, rest) = name.split_once("snapshots/")?;
        let revision = rest.split('/').next().filter(|_| rest.contains('/'))?;
        (before.is_empty() || before.ends_with('/')).then(|| format!("{before}snapshots/{revision}"))
    };
    let mut snapshots: Vec<String> = files.iter().filter_map(|name| snapshot(name)).collect();
    snapshots.sort_unstable();
    snapshots.dedup();
    if !snapshots.is_empty() {
        let names: Vec<&str> = snapshots.iter().map(String::as_str).collect();
        return say(format!(
            "is not a model but a cache of the Hugging Face hub: specify a snapshot in it: {}",
            listed(&names)
        ));
    }
    if let Some(name) = any(&|name| name.ends_with(".gguf")) {
        return say(format!(
            "contains {}, llama.cpp's format, which is not supported: specify the Hugging Face folder it was made from",
            shortened(name)
        ));
    }
    if let Some(name) = any(&|name| name.starts_with("consolidated") || name == "params.json") {
        return say(format!(
            "contains {}, the layout of weights published by Meta and Mistral, which is not supported: convert it \
             (transformers: convert_llama_weights_to_hf.py or convert_mistral_weights_to_hf.py), or specify a folder of \
             the model in Hugging Face's layout, with model.safetensors",
            shortened(name)
        ));
    }
    if any(&|name| name.ends_with(".distcp")).is_some() {
        return say("is a distributed checkpoint of PyTorch: convert it to a single file first (`python -m \
                    torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER pytorch_model.bin`)"
            .to_owned());
    }
    if any(&|name| name.contains("zero_to_fp32.py") || name.ends_with("_optim_states.pt")).is_some() {
        return say(
            "is a DeepSpeed checkpoint: convert it to a single model first (`python zero_to_fp32.py . NEW`), and specify NEW \
                    with the model's config.json in it"
                .to_owned(),
        );
    }
    let mut folders: Vec<&str> =
        files.iter().filter_map(|name| name.strip_suffix(CONFIG_FILE)?.strip_suffix('/')).collect();
    folders.sort_unstable();
    if !folders.is_empty() && !files.contains(&CONFIG_FILE) {
        return say(format!("is not a model, but contains folders of models: specify {}", either(&folders)));
    }
    if let Some(name) = any(&|name| name.ends_with(".onnx") || name.ends_with(".mlmodel") || name.ends_with(".tflite"))
    {
        return say(format!(
            "contains {}, a model compiled for another program, which is not supported: specify the Hugging Face folder \
             it was made from",
            shortened(name)
        ));
    }
    let other = |name: &str| {
        ["tf_model.h5", "flax_model.msgpack", ".ckpt.index", ".h5", ".msgpack", ".nemo"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    any(&other).and_then(|name| {
        say(format!(
            "contains {}, which is not a PyTorch format: convert it to safetensors first (transformers: `from_pretrained(FOLDER, \
             from_tf=True)` or `from_flax=True` of a version before 5, then `save_pretrained`)",
            shortened(name)
        ))
    })
}

fn either(names: &[&str]) -> String {
    if names.len() == 1 { names[0].to_owned() } else { format!("one of {}", listed(names)) }
}
