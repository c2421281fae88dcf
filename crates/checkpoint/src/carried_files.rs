//! Selects the files of a checkpoint's folder that are copied along with its weights: every small
//! file that is not known to be useless or harmful.
//!
//! Tokenizer and licence files can have any name, so a list of files to copy would never be
//! complete.

use super::tokenizer_files::is_tokenizer_file;

/// Maximum size of a carried file. The largest tokenizers have about 35 MB.
pub const MAX_CARRIED_FILE_BYTES: u64 = 64 << 20;
/// Maximum total size of the carried files.
pub const MAX_CARRIED_BYTES: u64 = 256 << 20;
/// Maximum number of carried files.
pub const MAX_CARRIED_FILES: usize = 256;
/// Maximum length of a name. Every store supports such names.
const MAX_NAME_BYTES: usize = 255;
/// The only subfolder that transformers reads.
const TEMPLATES_FOLDER: &str = "additional_chat_templates";

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is copied byte for byte.
    Carried,
    /// Its content is read and written in a new form: the weights that are read, and `config.json`.
    Rewritten,
    /// It is left out, with the reason.
    LeftOut(&'static str),
}

/// Returns the fate of each file of a folder, sorted by name. Files are given as names and sizes.
/// `is_read` returns whether the plan takes tensors from a weight file.
pub fn fates<'a>(
    files: impl IntoIterator<Item = (&'a str, u64)>,
    is_read: impl Fn(&str) -> bool,
) -> Vec<(&'a str, Fate)> {
    let mut files: Vec<(&str, u64)> = files.into_iter().collect();
    // If the limits are exceeded, tokenizer files take precedence.
    files.sort_unstable_by_key(|(name, _)| (!is_tokenizer_file(name), *name));
    let (mut count, mut bytes) = (0, 0u64);
    let mut fates: Vec<(&str, Fate)> = Vec::with_capacity(files.len());
    for (name, size_bytes) in files {
        let mut fate = if is_read(name) { Fate::Rewritten } else { fate(name, size_bytes) };
        if fate == Fate::Carried {
            if count == MAX_CARRIED_FILES || bytes.saturating_add(size_bytes) > MAX_CARRIED_BYTES {
                fate =
                    Fate::LeftOut("there are more than 256 files, or more than 256 MiB of them, besides the weights");
            } else {
                (count, bytes) = (count + 1, bytes + size_bytes);
            }
        }
        fates.push((name, fate));
    }
    fates.sort_unstable_by_key(|(name, _)| *name);
    fates
}

/// Returns the fate of a file, from its name and size.
fn fate(name: &str, size_bytes: u64) -> Fate {
    let lower = name.to_ascii_lowercase();
    let (folder, file) = lower.rsplit_once('/').unwrap_or(("", &lower));
    if lower.split('/').any(|part| part.starts_with('.')) {
        return Fate::LeftOut("hidden");
    }
    if let Some(fate) = known(file) {
        return fate;
    }
    if !folder.is_empty() && folder != TEMPLATES_FOLDER {
        return Fate::LeftOut("in a subfolder");
    }
    if let Some(reason) = by_ending(file) {
        return Fate::LeftOut(reason);
    }
    if size_bytes > MAX_CARRIED_FILE_BYTES {
        return Fate::LeftOut("longer than 64 MiB");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '=' | ' ' | '/');
    if name.len() > MAX_NAME_BYTES || !name.chars().all(plain) {
        return Fate::LeftOut("its name has characters other than letters, digits, space and . _ - + =");
    }
    Fate::Carried
}

/// Returns the fate of a file with a well-known name.
fn known(file: &str) -> Option<Fate> {
    let training = [
        "optimizer.",
        "scheduler.",
        "rng_state",
        "trainer_state",
        "training_args",
        "events.out.tfevents",
        "latest",
        "zero_to_fp32",
        "random_states_",
    ];
    let fate = match file {
        "config.json" => Fate::Rewritten,
        "inheritance.json" => Fate::LeftOut("the target has its own record"),
        "manifest.json" | "journal.json" => Fate::LeftOut("the name is reserved for the store"),
        "tokens.json" | "state.json" => Fate::LeftOut("belongs to a token set or to a training state"),
        "model_config.yaml" | "lit_config.json" | "hyperparameters.yaml" | "params.json" | "dataset_infos.json" => {
            Fate::LeftOut("describes weights in another layout")
        }
        "adapter_config.json" | "adapter_model.json" => {
            Fate::LeftOut("settings of an adapter: transformers would look for its weights")
        }
        "quantize_config.json"
        | "quant_config.json"
        | "quantization_config.json"
        | "hf_quant_config.json"
        | "quant_log.csv" => Fate::LeftOut("settings of quantised weights"),
        _ if file == "readme" || file.starts_with("readme.") => Fate::LeftOut("the target has its own model card"),
        _ if training.iter().any(|start| file.starts_with(start)) => Fate::LeftOut("part of a training state"),
        _ if file.ends_with(".index.json") => Fate::LeftOut("a shard index"),
        _ => return None,
    };
    Some(fate)
}

/// Returns the reason why a file with this extension is left out, if it is.
fn by_ending(file: &str) -> Option<&'static str> {
    let ending = file.rsplit_once('.').map(|(_, ending)| ending)?;
    match ending {
        "safetensors" | "gguf" | "ggml" | "h5" | "msgpack" | "onnx" | "onnx_data" | "tflite" | "mlmodel" | "ot"
        | "pb" | "engine" => Some("weights in an unsupported format"),
        "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle" | "joblib" | "dill" | "npy" | "npz" | "nemo" | "mar" => {
            Some("weights in an unsupported format, or a pickle, which can run code")
        }
        "py" | "pyc" | "ipynb" | "sh" | "bat" | "so" | "dll" | "exe" | "js" | "whl" => {
            Some("code; copy it yourself if the model needs it and you trust it")
        }
        "png" | "jpg" | "jpeg" | "gif" | "svg" | "webp" | "pdf" | "mp4" | "mp3" | "wav" | "ico" => {
            Some("an image, audio or video file")
        }
        "jsonl" | "parquet" | "arrow" | "zip" | "tar" | "tgz" | "gz" | "zst" | "xz" | "bz2" | "7z" | "rar" | "lock"
        | "log" | "tmp" | "partial" | "incomplete" => Some("data, an archive or a log"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Fate, MAX_CARRIED_FILES, fates};

    fn of(name: &str) -> Fate {
        fates([(name, 10)], |name| name == "model.safetensors")[0].1
    }

    #[test]
    fn c3_every_file_of_a_tokenizer_is_carried_whatever_its_name() {
        let carried = [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
            "tokenizer.model.v3",
            "tekken.json",
            "vocab.txt",
            "spiece.model",
            "sentencepiece.bpe.model",
            "source.spm",
            "bpe.codes",
            "vocab.bpe",
            "encoder.json",
            "dict.txt",
            "qwen.tiktoken",
            "chat_template.json",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "generation_config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "LICENSE",
            "LICENSE.txt",
            "LICENSE.md",
            "license",
            "NOTICE",
            "Notice.txt",
            "USE_POLICY.md",
            "COPYING",
            "THIRD_PARTY",
            "LICENSE-MODEL",
            "entity_vocab.json",
            "tokenizer.vocab",
            "emoji.json",
            "something.new",
        ];
        for name in carried {
            assert_eq!(of(name), Fate::Carried, "{name}");
        }
    }

    #[test]
    fn what_is_useless_or_harmful_stays_behind_with_a_reason() {
        let left = [
            "README.md",
            "model.fp16.safetensors",
            "pytorch_model.bin",
            "consolidated.00.pth",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.gguf",
            "model.safetensors.index.json",
            "training_args.bin",
            "optimizer.pt",
            "trainer_state.json",
            "rng_state_0.pth",
            "tokenizer.pkl",
            "modeling_x.py",
            "tokenization_x.py",
            ".gitattributes",
            ".cache/x",
            "original/tokenizer.model",
            "onnx/model.onnx",
            "a/LICENSE",
            "adapter_config.json",
            "quantize_config.json",
            "lit_config.json",
            "train.jsonl",
            "figure.png",
            "inheritance.json",
            "manifest.json",
            "tokens.json",
            "stra\u{df}e.txt",
            "a\nb",
            "checkpoint-10/tokenizer.json",
        ];
        for name in left {
            assert!(matches!(of(name), Fate::LeftOut(_)), "{name}");
        }
        assert_eq!([of("config.json"), of("model.safetensors")], [Fate::Rewritten; 2]);
    }

    #[test]
    fn files_are_few_and_small() {
        let left_out = |files: &[(&str, u64)]| {
            let fates = fates(files.iter().copied(), |_| false);
            fates
                .into_iter()
                .filter(|(_, fate)| *fate != Fate::Carried)
                .map(|(name, _)| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(left_out(&[("a.txt", 64 << 20), ("b.txt", (64 << 20) + 1), ("c", 0)]), ["b.txt"]);
        let five: Vec<String> = (0..5).map(|n| format!("{n}.txt")).collect();
        let files: Vec<(&str, u64)> =
            five.iter().map(|name| (name.as_str(), 60 << 20)).chain([("tokenizer.json", 30 << 20)]).collect();
        assert_eq!(left_out(&files), ["3.txt", "4.txt"], "the tokenizer takes precedence");
        let many: Vec<String> = (0..MAX_CARRIED_FILES + 2).map(|n| format!("{n:03}")).collect();
        let files: Vec<(&str, u64)> = many.iter().map(|name| (name.as_str(), 1)).collect();
        assert_eq!(left_out(&files), ["256", "257"]);
    }
}
