//! Where a benchmark's rows are in a folder of data sets, and how they are read.

use std::fs::File;
use std::path::Path;

use inheritune_domain::benchmark::Benchmark;
use inheritune_runtime::worker::JobError;
use parquet::file::reader::FileReader as _;
use parquet::file::serialized_reader::SerializedFileReader;
use serde_json::Value;

use crate::documents::{for_each_line, open};

/// The split that examples are taken from.
pub const SHOTS_SPLIT: &str = "dev";
/// What a file of rows may be called after its split, the first that is there counts.
const ENDINGS: [&str; 5] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", "-00000-of-00001.parquet"];

/// Most text of a benchmark's rows, all of which are held at once: the largest have a twentieth of it.
const MAX_ROWS_BYTES: usize = 1 << 30;

/// The file of a benchmark's scored rows among those that `exists` knows, by its name below the folder of data sets.
///
/// # Errors
/// There is none; the message names the files that were looked for.
pub fn scored_file(benchmark: &Benchmark, exists: impl Fn(&str) -> bool) -> Result<String, JobError> {
    file(benchmark, benchmark.dataset.split, exists)
}

/// The file that examples are taken from, for a benchmark that shows some.
///
/// # Errors
/// As [`scored_file`].
pub fn shots_file(benchmark: &Benchmark, exists: impl Fn(&str) -> bool) -> Result<Option<String>, JobError> {
    (benchmark.prompt.shots() > 0).then(|| file(benchmark, SHOTS_SPLIT, exists)).transpose()
}

fn file(benchmark: &Benchmark, split: &str, exists: impl Fn(&str) -> bool) -> Result<String, JobError> {
    let folder = benchmark.dataset.folder;
    let stem = match benchmark.name.strip_prefix("mmlu_") {
        Some(subject) => format!("{folder}/{split}/{subject}"),
        None => format!("{folder}/{split}"),
    };
    ENDINGS.iter().map(|ending| format!("{stem}{ending}")).find(|name| exists(name)).ok_or_else(|| {
        JobError::Permanent(format!(
            "{}: there is no {stem}.jsonl and no {stem}.parquet; they are the rows of {} on the Hugging Face hub, with its \
             columns",
            benchmark.name, benchmark.dataset.hub
        ))
    })
}

/// The first `limit` rows of a file, all without one: JSON objects a line, or Parquet.
///
/// # Errors
/// The file cannot be read; the message names it and the row.
pub fn read(path: &Path, limit: usize) -> Result<Vec<Value>, JobError> {
    if path.extension().is_some_and(|extension| extension == "parquet") {
        return read_parquet(path, limit)
            .map_err(|problem| JobError::Permanent(format!("{}: {problem}", path.display())));
    }
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for_each_line(path, open(path)?.0, |number, line| {
        if rows.len() < limit {
            bytes += line.len();
            if bytes > MAX_ROWS_BYTES {
                let problem = format!("holds more than {MAX_ROWS_BYTES} bytes of rows, the most that are read");
                return Err(JobError::Permanent(format!("{}: {problem}", path.display())));
            }
            let row = serde_json::from_str(line);
            let bad = |e| JobError::Permanent(format!("{}: line {number}: is no JSON object: {e}", path.display()));
            rows.push(row.map_err(bad)?);
        }
        Ok(())
    })?;
    Ok(rows)
}

fn read_parquet(path: &Path, limit: usize) -> Result<Vec<Value>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(|e| format!("is not a Parquet file that is read: {e}"))?;
    let rows = reader.get_row_iter(None).map_err(|e| e.to_string())?;
    rows.take(limit)
        .enumerate()
        .map(|(number, row)| row.map(|row| row.to_json_value()).map_err(|e| format!("row {number}: {e}")))
        .collect()
}
