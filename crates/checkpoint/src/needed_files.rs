//! Selects the files of a model's folder that a job fetches to its machine. A repository may
//! contain the same weights in five formats, and whole training states.

use super::safetensors_header::SINGLE_FILE;
use super::shard_index::{INDEX_FILE, ShardFormat, ShardIndex};
use super::tokenizer_files::is_tokenizer_file;
use super::weights_files::CONFIG_FILE;

/// Maximum size of a file that is fetched whatever its name. The largest tokenizers have a third of
/// it.
const MAX_SMALL_BYTES: u64 = 64 << 20;
/// Maximum number of such files.
const MAX_SMALL_FILES: usize = 256;
/// Extensions of files with weights, data or optimizer states. Of these, only the safetensors that
/// are read are needed.
const WEIGHTS_ENDINGS: [&str; 16] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".npz",
    ".tflite",
    ".ot",
    ".parquet",
    ".arrow",
];

/// Returns the files of a Hugging Face folder that a model needs: its safetensors, and the small
/// files next to them. `index` is the content of `model.safetensors.index.json`, which is only read
/// if there is no `model.safetensors`.
pub fn needed_files<'a>(files: impl Iterator<Item = (&'a str, u64)> + Clone, index: Option<&[u8]>) -> Vec<&'a str> {
    // Reading the model reports an invalid index.
    let index = index.and_then(|json| ShardIndex::parse(json, ShardFormat::Safetensors).ok());
    let single = files.clone().any(|(name, _)| name == SINGLE_FILE);
    let holds_weights = |name: &str| WEIGHTS_ENDINGS.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
    let is_read = |name: &str| {
        let shard = || index.as_ref().is_some_and(|index| index.files().contains(&name)) || is_shard(name);
        name == SINGLE_FILE || (!single && shard())
    };
    let mut needed: Vec<&str> = files.clone().map(|(name, _)| name).filter(|name| is_read(name)).collect();
    let is_small =
        |(name, bytes): &(&str, u64)| *bytes <= MAX_SMALL_BYTES && !name.contains('/') && !holds_weights(name);
    // An index may be larger. Files with a known meaning come first.
    let has_meaning =
        |name: &str| matches!(name, CONFIG_FILE | INDEX_FILE) || (is_tokenizer_file(name) && !holds_weights(name));
    let mut small: Vec<&str> =
        files.filter(|file| has_meaning(file.0) || is_small(file)).map(|(name, _)| name).collect();
    small.sort_by_key(|name| (!has_meaning(name), *name));
    small.truncate(MAX_SMALL_FILES);
    needed.extend(small);
    needed
}

/// Returns whether `name` has the form `model-00001-of-00002.safetensors`. Such files are read even
/// if the index does not list them.
fn is_shard(name: &str) -> bool {
    let middle = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    middle.and_then(|middle| middle.split_once("-of-")).is_some_and(|(number, count)| {
        [number, count].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::needed_files;

    const HUGE: u64 = 1 << 40;

    fn needed(files: &[(&'static str, u64)], index: Option<&str>) -> Vec<&'static str> {
        needed_files(files.iter().copied(), index.map(str::as_bytes))
    }

    #[test]
    fn s7_other_formats_and_trainings_stay_where_they_are() {
        let files = [
            ("README.md", 10),
            ("config.json", 10),
            ("consolidated.safetensors", HUGE),
            ("checkpoint-500/optimizer.pt", HUGE),
            ("checkpoint-500/config.json", 10),
            ("flax_model.msgpack", HUGE),
            ("model.safetensors", HUGE),
            ("pytorch_model.bin", HUGE),
            ("tf_model.h5", HUGE),
            ("tokenizer.json", 10),
            ("vocab.txt", 10),
            ("wandb-export.log", HUGE),
            ("model-00001-of-00002.safetensors", HUGE),
        ];
        assert_eq!(
            needed(&files, None),
            ["model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "README.md"]
        );
    }

    #[test]
    fn s7_of_shards_those_are_brought_that_are_read() {
        let files = [
            ("config.json", 10),
            ("model.safetensors.index.json", 10),
            ("model-00001-of-00002.safetensors", HUGE),
            ("model-00002-of-00002.safetensors", HUGE),
            ("other.safetensors", HUGE),
            ("stray.safetensors", HUGE),
        ];
        let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "other.safetensors"}}"#;
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "other.safetensors"];
        let beside = ["config.json", "model.safetensors.index.json"];
        assert_eq!(needed(&files, Some(index)), [&shards[..], &beside].concat());
        assert_eq!(needed(&files, Some("broken")), [&shards[..2], &beside].concat());
    }

    #[test]
    fn s7_a_million_small_files_are_not_needed() {
        let names: Vec<String> = (0..100_000).map(|number| format!("log-{number}.txt")).collect();
        let files = names.iter().map(|name| (name.as_str(), 1)).chain([("tokenizer.json", 1), ("config.json", 1)]);
        let needed = needed_files(files, None);
        assert_eq!((needed.len(), needed[0], needed[1]), (256, "config.json", "tokenizer.json"));
    }
}
