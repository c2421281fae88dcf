//! Finds and reads a benchmark's rows in a folder of data sets.
//!
//! The folder may contain one folder per benchmark (`piqa/validation.jsonl`), repositories of the
//! Hugging Face hub in the layout of `hf download` or of its cache
//! (`super_glue/boolq/validation-00000-of-00001.parquet`), or their Parquet revisions
//! (`piqa/plain_text/validation/0000.parquet`). It may also be one of these itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use inheritune_data::{DataError, names, values};
use inheritune_domain::benchmark::Benchmark;
use inheritune_runtime::worker::JobError;
use serde_json::Value;

use crate::documents::io_error;

/// The split with the rows for few-shot examples.
pub const SHOTS_SPLIT: &str = "dev";
/// Extensions of files with rows, in order of preference.
const ENDINGS: [&str; 9] =
    [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".json", ".json.gz", ".json.zst", ".ndjson", ".csv"];
/// Names that the hub uses for an unnamed configuration or for the folder of the only one.
const UNNAMED: [&str; 4] = ["", "plain_text", "default", "data"];

/// Why the files with the rows could not be determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoRows {
    /// No file matches.
    Absent,
    /// Several files match.
    Ambiguous(Vec<String>),
    /// Only these parts of the table exist.
    Incomplete(Vec<String>),
}

impl NoRows {
    fn error(&self, benchmark: &Benchmark, split: &str) -> JobError {
        let (folder, hub, name) = (benchmark.dataset.folder, benchmark.dataset.hub, benchmark.name);
        let stem = match name.strip_prefix("mmlu_") {
            Some(subject) => format!("{folder}/{split}/{subject}"),
            None => format!("{folder}/{split}"),
        };
        JobError::Permanent(match self {
            Self::Absent => format!(
                "{name}: found neither {stem}.jsonl nor {stem}.parquet nor a folder in the layout of `hf download`; \
                 provide the rows and columns of {hub} from the Hugging Face hub"
            ),
            Self::Incomplete(files) => {
                format!("{name}: its {split} split has only {}; fetch the other parts", files.join(", "))
            }
            Self::Ambiguous(files) => format!(
                "{name}: several files match its {split} split: {}; keep one, or rename it to {stem} and its extension",
                files.join(", ")
            ),
        })
    }
}

/// Returns the files in `files` with a benchmark's scored rows, in order. Names are relative to the
/// folder of data sets.
///
/// # Errors
/// No file matches, or the choice is ambiguous; the message names the expected or matching files.
pub fn scored_files(benchmark: &Benchmark, files: &[String]) -> Result<Vec<String>, JobError> {
    let split = benchmark.dataset.split;
    find(benchmark, split, files).map_err(|none| none.error(benchmark, split))
}

/// Returns the files with the rows for few-shot examples; empty if the benchmark has no examples.
///
/// # Errors
/// See [`scored_files`].
pub fn shots_files(benchmark: &Benchmark, files: &[String]) -> Result<Vec<String>, JobError> {
    if benchmark.prompt.shots() == 0 {
        return Ok(Vec::new());
    }
    find(benchmark, SHOTS_SPLIT, files).map_err(|none| none.error(benchmark, SHOTS_SPLIT))
}

/// Returns the files to fetch for `benchmark`: its own, or all matching files if the choice is
/// ambiguous.
pub fn needed(benchmark: &Benchmark, files: &[String]) -> Vec<String> {
    let splits = [Some(benchmark.dataset.split), (benchmark.prompt.shots() > 0).then_some(SHOTS_SPLIT)];
    let found = splits.into_iter().flatten().map(|split| match find(benchmark, split, files) {
        Ok(files) | Err(NoRows::Ambiguous(files) | NoRows::Incomplete(files)) => files,
        Err(NoRows::Absent) => Vec::new(),
    });
    found.flatten().collect()
}

fn find(benchmark: &Benchmark, split: &str, files: &[String]) -> Result<Vec<String>, NoRows> {
    let folder = benchmark.dataset.folder;
    let (repository, config) = benchmark.dataset.hub.split_once(' ').unwrap_or((benchmark.dataset.hub, ""));
    let subject = benchmark.name.strip_prefix("mmlu_");
    let config = subject.unwrap_or(config);
    let visible = |name: &&String| names::why_left_out(name).is_none_or(|why| why != "hidden");
    // The documented layout has precedence.
    let own = match subject {
        Some(subject) => format!("{folder}/{split}/{subject}"),
        None => format!("{folder}/{split}"),
    };
    if let Some(name) = ENDINGS.iter().map(|ending| format!("{own}{ending}")).find(|name| files.contains(name)) {
        return Ok(vec![name]);
    }
    let short = repository.rsplit('/').next().unwrap_or(repository);
    let cached = format!("datasets--{}", repository.replace('/', "--"));
    for place in [folder, repository, short, &cached, ""] {
        let inside: Vec<Inside> = files.iter().filter(visible).filter_map(|name| Inside::of(name, place)).collect();
        let revisions: BTreeSet<&str> = inside.iter().filter_map(|file| file.revision).collect();
        if revisions.len() > 1 {
            return Err(NoRows::Ambiguous(inside.iter().map(|file| file.name.to_owned()).collect()));
        }
        let configs: &[&[&str]] = match (config, subject) {
            ("", _) => &[&UNNAMED],
            // A folder with all subjects would need a column with the subject.
            (config, Some(_)) => &[&[config]],
            (config, None) => &[&[config], &UNNAMED],
        };
        for names in configs {
            // Files in the top folder are only accepted if a folder names the benchmark's
            // configuration.
            if place.is_empty() && !names.contains(&config) {
                continue;
            }
            let tables = tables(&inside, names, split);
            match tables.len() {
                0 => {}
                1 => {
                    let files = tables.into_values().next().unwrap_or_default();
                    let parts = files.first().and_then(|name| parts_of(name));
                    let is_whole = parts.is_none_or(|parts| parts == files.len());
                    return if is_whole { Ok(files) } else { Err(NoRows::Incomplete(files)) };
                }
                _ => {
                    let all: Vec<String> = tables.into_values().flatten().collect();
                    return preferred(&all).ok_or(NoRows::Ambiguous(all));
                }
            }
        }
    }
    Err(NoRows::Absent)
}

/// A file in a repository's folder.
struct Inside<'a> {
    name: &'a str,
    /// The path in the repository, without the snapshot of the hub's cache.
    path: &'a str,
    /// The snapshot's revision.
    revision: Option<&'a str>,
}

impl<'a> Inside<'a> {
    fn of(name: &'a str, place: &str) -> Option<Self> {
        let path = match place {
            "" => name,
            place => name.strip_prefix(place)?.strip_prefix('/')?,
        };
        let (revision, path) = match path.strip_prefix("snapshots/").and_then(|rest| rest.split_once('/')) {
            Some((revision, path)) => (Some(revision), path),
            None => (None, path),
        };
        Some(Self { name, path, revision })
    }
}

/// Returns the tables in the folders `configs` that match `split`, each as its files in order.
fn tables(inside: &[Inside<'_>], configs: &[&str], split: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, BTreeMap<u32, String>> = BTreeMap::new();
    for file in inside {
        for config in configs {
            // A configuration's folder may also be in `data/`.
            let below = [config.to_string(), format!("data/{config}")];
            let path = below.iter().find_map(|config| match config.as_str() {
                "" => Some(file.path),
                config => file.path.strip_prefix(config)?.strip_prefix('/'),
            });
            if let Some((table, shard)) = path.and_then(|path| table_of(path, config, split)) {
                tables.entry(format!("{config}/{table}")).or_default().insert(shard, file.name.to_owned());
                break;
            }
        }
    }
    tables.into_iter().map(|(table, shards)| (table, shards.into_values().collect())).collect()
}

/// Returns the table of `split` that the file at `path` in a configuration belongs to, and the
/// file's index in that table.
fn table_of(path: &str, config: &str, split: &str) -> Option<(String, u32)> {
    let stem = ENDINGS.iter().filter_map(|ending| path.strip_suffix(ending)).min_by_key(|stem| stem.len())?;
    let ending = &path[stem.len()..];
    // The Parquet revision: `validation/0000.parquet`.
    if let Some((folder, number)) = stem.split_once('/') {
        let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
        return (is_split(folder, split) && is_number).then(|| Some((folder.to_owned(), number.parse().ok()?)))?;
    }
    // `validation-00000-of-00001.parquet`
    if let Some((table, number)) = stem.split_once("-0")
        && let Some((number, _of)) = number.split_once("-of-")
    {
        return is_split(table, split).then(|| Some((table.to_owned(), number.parse().ok()?)))?;
    }
    let named = is_split(stem, split)
        || stem
            .strip_prefix(config)
            .and_then(|rest| rest.strip_prefix(['-', '_']))
            .is_some_and(|rest| is_split(rest, split))
        || stem.split_once(['-', '_', '.']).is_some_and(|_| ends_in_split(stem, split));
    named.then(|| (format!("{stem}{ending}"), 0))
}

/// Returns the number of files of a table, from a name with `-of-00002`.
fn parts_of(name: &str) -> Option<usize> {
    name.rsplit_once("-of-")?.1.split('.').next()?.parse().ok()
}

/// Whether `name` is a name of `split`.
fn is_split(name: &str, split: &str) -> bool {
    match split {
        "validation" => matches!(name, "validation" | "val" | "valid" | "dev"),
        "validation_matched" => matches!(name, "validation_matched" | "dev_matched"),
        split => name == split,
    }
}

/// Whether a word of `stem`, such as `lambada_test_en`, is a name of `split`. False if `split` has
/// several words.
fn ends_in_split(stem: &str, split: &str) -> bool {
    !split.contains('_') && stem.split(['-', '_', '.']).any(|word| is_split(word, split))
}

/// Chooses among several tables the only one whose file is named after the split alone, or is a
/// number in a folder named after the split.
fn preferred(names: &[String]) -> Option<Vec<String>> {
    let plain = |name: &&String| {
        let file = name.rsplit('/').next().unwrap_or(name);
        let stem = file.split(['.', '-']).next().unwrap_or(file);
        let is_number = stem.len() == 4 && stem.bytes().all(|b| b.is_ascii_digit());
        is_number || matches!(stem, "validation" | "test" | "dev" | "validation_matched")
    };
    let mut plain = names.iter().filter(plain);
    match (plain.next(), plain.next()) {
        (Some(only), None) => Some(vec![only.clone()]),
        _ => None,
    }
}

/// Reads the first `limit` rows of `files` in the folder `data`, in order. Files are JSON lines,
/// JSON arrays or Parquet.
///
/// # Errors
/// A file cannot be read; the message names the file and the row.
pub fn read(data: &Path, files: &[String], limit: usize) -> Result<Vec<Value>, JobError> {
    let mut rows = Vec::new();
    for name in files {
        let path = data.join(name);
        let file = File::open(&path).map_err(|e| io_error(&path, &e))?;
        let more = values(file, name, limit - rows.len()).map_err(|error| match error {
            DataError::Io(error) => io_error(&path, &error),
            error @ DataError::Bad { .. } => JobError::Permanent(error.to_string()),
        })?;
        rows.extend(more);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use inheritune_domain::benchmark;

    fn found(benchmark: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|name| (*name).to_owned()).collect();
        scored_files(&benchmark::find(benchmark).unwrap(), &files).map_err(|e| e.to_string())
    }

    #[test]
    fn d8_hub_layouts_are_found() {
        let shard = "-00000-of-00001.parquet";
        for (benchmark, file) in [
            ("piqa", "piqa/validation.jsonl".to_owned()),
            ("piqa", "piqa/validation.parquet".to_owned()),
            ("piqa", "piqa/plain_text/validation/0000.parquet".to_owned()),
            ("piqa", format!("piqa/plain_text/validation{shard}")),
            ("piqa", "baber/piqa/data/validation.json".to_owned()),
            ("piqa", "datasets--baber--piqa/snapshots/0123abc/plain_text/validation-00000-of-00001.parquet".to_owned()),
            ("boolq", format!("boolq/data/validation{shard}")),
            ("boolq", format!("super_glue/boolq/validation{shard}")),
            ("boolq", format!("aps/super_glue/boolq/validation{shard}")),
            ("boolq", "boolq/default/validation/0000.parquet".to_owned()),
            ("wsc", format!("super_glue/wsc.fixed/validation{shard}")),
            ("wsc", format!("wsc/wsc.fixed/validation{shard}")),
            ("wsc", format!("wsc.fixed/validation{shard}")),
            ("winogrande", format!("winogrande/winogrande_xl/validation{shard}")),
            ("winogrande", "winogrande/winogrande_xl/validation/0000.parquet".to_owned()),
            ("winogrande", "winogrande/winogrande_xl/winogrande-validation.parquet".to_owned()),
            ("logiqa", "logiqa/logiqa/test/0000.parquet".to_owned()),
            ("logiqa", "logiqa/logiqa/logiqa-test.parquet".to_owned()),
            ("mnli", format!("glue/mnli/validation_matched{shard}")),
            ("mnli", format!("nyu-mll/glue/mnli/validation_matched{shard}")),
            ("mnli", format!("mnli/validation_matched{shard}")),
            ("qnli", format!("glue/qnli/validation{shard}")),
            ("wnli", format!("wnli/wnli/validation{shard}")),
            ("truthfulqa_mc2", format!("truthful_qa/multiple_choice/validation{shard}")),
            ("truthfulqa_mc1", format!("truthfulqa_mc/multiple_choice/validation{shard}")),
            ("truthfulqa_mc1", format!("multiple_choice/validation{shard}")),
            ("wikitext", "wikitext/wikitext-2-raw-v1/test/0000.parquet".to_owned()),
            ("wikitext", format!("wikitext_document_level/wikitext-2-raw-v1/test{shard}")),
            ("lambada_openai", "lambada_openai/data/lambada_test_en.jsonl".to_owned()),
            ("lambada_openai", "lambada_openai/default/test/0000.parquet".to_owned()),
            ("lambada_standard", format!("lambada/plain_text/test{shard}")),
            ("arc_easy", format!("ai2_arc/ARC-Easy/test{shard}")),
            ("arc_easy", format!("ARC-Easy/test{shard}")),
            ("sciq", format!("sciq/data/test{shard}")),
            ("hellaswag", format!("hellaswag/data/validation{shard}")),
            ("hellaswag", "hellaswag/data/hellaswag_val.jsonl".to_owned()),
            ("wsc273", "winograd_wsc/wsc273/test/0000.parquet".to_owned()),
            ("mmlu_anatomy", format!("mmlu/anatomy/test{shard}")),
            ("mmlu_anatomy", format!("cais/mmlu/anatomy/test{shard}")),
            ("mmlu_anatomy", "mmlu/test/anatomy.jsonl".to_owned()),
            ("mmlu_anatomy", format!("anatomy/test{shard}")),
        ] {
            // A download also contains other splits, configurations and data sets.
            let others = [
                "README.md",
                "piqa/README.md",
                ".cache/huggingface/download/piqa/validation.jsonl.metadata",
                "boolq/data/train-00000-of-00001.parquet",
                "super_glue/copa/validation-00000-of-00001.parquet",
                "winogrande/winogrande_l/validation-00000-of-00001.parquet",
                "glue/mnli/validation_mismatched-00000-of-00001.parquet",
                "truthful_qa/generation/validation-00000-of-00001.parquet",
                "mmlu/all/test-00000-of-00001.parquet",
                "mmlu/astronomy/test-00000-of-00001.parquet",
                "ai2_arc/ARC-Challenge/test-00000-of-00001.parquet",
                "unrelated/validation-00000-of-00001.parquet",
            ];
            let files: Vec<&str> = others.into_iter().chain([file.as_str()]).collect();
            assert_eq!(found(benchmark, &files), Ok(vec![file.clone()]), "{benchmark}");
        }
        let shards =
            ["mnli/validation_matched-00001-of-00002.parquet", "mnli/validation_matched-00000-of-00002.parquet"];
        assert_eq!(found("mnli", &shards).unwrap(), [shards[1], shards[0]], "in order");
    }

    #[test]
    fn d8_ambiguous_and_incomplete_files_are_named() {
        for (benchmark, files, words) in [
            (
                "piqa",
                &["piqa/plain_text/validation/0000.parquet", "piqa/data/validation-00000-of-00001.parquet"]
                    as &[&str],
                "several files match",
            ),
            (
                "lambada_openai",
                &["lambada_openai/data/lambada_test_en.jsonl", "lambada_openai/data/lambada_test_de.jsonl"],
                "lambada_test_de.jsonl",
            ),
            (
                "mnli",
                &["mnli/validation_matched-00000-of-00002.parquet"],
                "has only mnli/validation_matched-00000-of-00002.parquet",
            ),
            (
                "winogrande",
                &["winogrande/winogrande_l/validation-00000-of-00001.parquet"],
                "found neither winogrande/validation.jsonl",
            ),
            ("wsc", &["validation-00000-of-00001.parquet"], "found neither wsc/validation.jsonl"),
            ("mmlu_anatomy", &["mmlu/all/test-00000-of-00001.parquet"], "found neither mmlu/test/anatomy.jsonl"),
        ] {
            let problem = found(benchmark, files).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
    }
}
