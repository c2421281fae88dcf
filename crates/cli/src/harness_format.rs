//! Writes an evaluation in the format of lm-evaluation-harness: `results.json` and
//! `samples_TASK.jsonl`, with the harness's keys.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use inheritune_api::v1;
use inheritune_domain::benchmark::{self, AskedDocument, GROUPS, HARNESS_VERSION, Question};
use inheritune_domain::id::Sha256Digest;
use serde_json::{Map, Value, json};

use crate::export::Existing;
use crate::failure::Failure;

/// The rows of a `scores` artifact.
const ROWS_FILE: &str = "scores.jsonl";
/// The documents of a `scores` artifact. Older artifacts have none; samples then lack its fields.
const DOCUMENTS_FILE: &str = "documents.jsonl.zst";

/// Writes the benchmarks of an evaluation to the folder `to` and returns the files. The files of
/// its `scores` artifact are in `from`.
///
/// # Errors
/// A file cannot be read or written, or `to` is not empty.
pub fn write(
    spec: &v1::EvaluateSpec,
    evaluated: &v1::Evaluated,
    from: &Path,
    to: &Path,
    existing: Existing,
) -> Result<Vec<PathBuf>, Failure> {
    let local = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| Failure::local(&path, e)
    };
    std::fs::create_dir_all(to).map_err(local(to))?;
    let is_empty = std::fs::read_dir(to).map_err(local(to))?.next().is_none();
    if !is_empty && existing == Existing::Refuse {
        return Err(Failure::invalid(format!("{} is not empty; choose another folder, or add --force", to.display())));
    }
    let documents = read_documents(&from.join(DOCUMENTS_FILE))?;
    let rows_path = from.join(ROWS_FILE);
    let mut samples: BTreeMap<String, String> = BTreeMap::new();
    let file = std::fs::File::open(&rows_path).map_err(local(&rows_path))?;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(local(&rows_path))?;
        let row: Value = serde_json::from_str(&line).map_err(|e| Failure::local(&rows_path, e))?;
        let task = row["task"].as_str().unwrap_or_default().to_owned();
        let document = row["index"].as_u64().and_then(|index| documents.get(&(task.clone(), index)));
        if let Some(sample) = sample(&row, document) {
            samples.entry(task).or_default().push_str(&format!("{sample}\n"));
        }
    }
    let sizes: BTreeMap<&str, usize> =
        samples.iter().map(|(task, lines)| (task.as_str(), lines.lines().count())).collect();
    let results = results(spec, evaluated, &sizes);
    let mut files = vec![(to.join("results.json"), format!("{results:#}\n"))];
    files.extend(samples.into_iter().map(|(task, lines)| (to.join(format!("samples_{task}.jsonl")), lines)));
    for (path, content) in &files {
        std::fs::write(path, content).map_err(local(path))?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// The documents of benchmarks, by task and index.
type Documents = BTreeMap<(String, u64), AskedDocument>;

/// The requests of a question, with requests and their parts numbered as in the harness.
fn arguments(question: &Question) -> Value {
    let numbered = |what: &str, parts: Vec<Value>| {
        let named = parts.into_iter().enumerate().map(|(number, part)| (format!("{what}_{number}"), part));
        Value::Object(named.collect())
    };
    let request = |parts: Vec<&str>| numbered("arg", parts.into_iter().map(Value::from).collect());
    numbered("gen_args", question.arguments().into_iter().map(request).collect())
}

fn read_documents(path: &Path) -> Result<Documents, Failure> {
    let failed = |e: std::io::Error| Failure::local(path, e);
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Documents::new()),
        file => file.map_err(failed)?,
    };
    let lines = BufReader::new(zstd::Decoder::new(file).map_err(failed)?).lines();
    let document = |line: std::io::Result<String>| {
        let document: AskedDocument =
            serde_json::from_str(&line.map_err(failed)?).map_err(|e| Failure::local(path, e))?;
        Ok(((document.task.clone(), document.index), document))
    };
    lines.map(document).collect()
}

/// A row as the harness logs a sample; `None` for a row that is not from a benchmark.
fn sample(row: &Value, document: Option<&AskedDocument>) -> Option<Value> {
    let (likelihoods, greedy) = (row["log_likelihoods"].as_array()?, row["is_greedy"].as_array()?);
    let is_text = row.get("words").is_some();
    let answers = likelihoods.iter().zip(greedy).map(|(sum, greedy)| {
        let sum = sum.to_string();
        if is_text { json!(sum) } else { json!([sum, if greedy == &json!(true) { "True" } else { "False" }]) }
    });
    let answers: Vec<Value> = answers.collect();
    let metrics = row["metrics"].as_object()?;
    let mut sample = json!({ "doc_id": row["index"] });
    match document {
        Some(document) => {
            sample["doc"] = document.doc.clone();
            sample["target"] = json!(document.target);
            sample["arguments"] = arguments(&document.question);
        }
        None => sample["target"] = json!(row["gold"].as_u64().map(|gold| gold.to_string())),
    }
    sample["resps"] = answers.iter().map(|answer| json!([answer])).collect();
    sample["filtered_resps"] = json!(answers);
    sample["filter"] = json!("none");
    sample["metrics"] = metrics.keys().cloned().collect();
    if let Some(document) = document {
        // The harness hashes `json.dumps(doc, indent=2, ensure_ascii=False)`.
        sample["doc_hash"] = json!(Sha256Digest::of(format!("{:#}", document.doc).as_bytes()));
    }
    sample["prompt_hash"] = row["prompt_sha256"].clone();
    if let Some(document) = document {
        sample["target_hash"] = json!(Sha256Digest::of(document.target.as_bytes()));
    }
    for (metric, value) in metrics {
        sample[metric] = match metric.as_str() {
            "word_perplexity" => json!([value, row["words"]]),
            "byte_perplexity" | "bits_per_byte" => json!([value, row["bytes"]]),
            _ => value.clone(),
        };
    }
    Some(sample)
}

fn results(spec: &v1::EvaluateSpec, evaluated: &v1::Evaluated, sizes: &BTreeMap<&str, usize>) -> Value {
    let (mut results, mut groups, mut versions, mut shots, mut higher, mut samples, mut subtasks) =
        (Map::new(), Map::new(), Map::new(), Map::new(), Map::new(), Map::new(), Map::new());
    for score in &evaluated.scores {
        let entry = results.entry(&score.task).or_insert_with(|| json!({ "alias": score.task }));
        entry[format!("{},none", score.metric)] = json!(score.value);
        entry[format!("{}_stderr,none", score.metric)] = score.stderr.map_or(json!("N/A"), |stderr| json!(stderr));
        if let Some(benchmark) = benchmark::find(&score.task) {
            let n = sizes.get(benchmark.name).copied().unwrap_or_default();
            versions.insert(score.task.clone(), json!(benchmark.version.parse::<f64>().unwrap_or_default()));
            shots.insert(score.task.clone(), json!(benchmark.prompt.shots()));
            samples.insert(score.task.clone(), json!({ "original": benchmark.rows, "effective": n }));
            subtasks.insert(score.task.clone(), json!([]));
            let is_better = !score.metric.contains("perplexity") && score.metric != "bits_per_byte";
            higher.entry(&score.task).or_insert_with(|| json!({}))[&score.metric] = json!(is_better);
        } else if let Some(group) = GROUPS.iter().find(|group| group.name == score.task) {
            let members: Vec<&str> = group.members().iter().map(|member| member.name).collect();
            versions.insert(score.task.clone(), json!("2"));
            subtasks.insert(score.task.clone(), json!(members));
        }
    }
    // The harness only knows benchmarks and their groups.
    results.retain(|task, _| versions.contains_key(task));
    for group in GROUPS.iter().filter(|group| results.contains_key(group.name)) {
        groups.insert(group.name.to_owned(), results[group.name].clone());
    }
    json!({
        "results": results,
        "groups": groups,
        "group_subtasks": subtasks,
        "versions": versions,
        "n-shot": shots,
        "higher_is_better": higher,
        "n-samples": samples,
        "config": {
            "model": "inheritune",
            "model_args": { "pretrained": spec.checkpoint, "add_bos_token": spec.add_bos_token, "dtype": "float32" },
            "model_num_parameters": evaluated.parameters,
            "model_dtype": "float32",
            "bootstrap_iters": 100_000,
        },
        "lm_eval_version": HARNESS_VERSION,
        "model_source": "inheritune",
        "model_name": spec.checkpoint,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn results_and_samples_have_the_harness_s_keys() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let rows = [
            json!({ "task": "piqa", "index": 0, "prompt_sha256": "ab", "gold": 1, "log_likelihoods": [-2.5, -1.0],
                    "is_greedy": [false, true], "metrics": { "acc": 1.0, "acc_norm": 0.0 } }),
            json!({ "task": "wikitext", "index": 0, "prompt_sha256": "cd", "log_likelihoods": [-9.0], "is_greedy": [false],
                    "words": 3, "bytes": 12, "metrics": { "word_perplexity": -9.0 } }),
            json!({ "task": "validation_loss", "index": 0, "tokens": 3, "sum_nats": 2.0 }),
        ];
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(from.path().join(ROWS_FILE), lines).unwrap();
        let documents = [
            json!({ "task": "piqa", "index": 0, "target": "1", "doc": { "goal": "To é.", "sol1": "a", "sol2": "b\n", "label": 1 },
                    "question": { "continuations": { "context": "Question: To é.\nAnswer:", "continuations": [" a", " b\n"] } } }),
            json!({ "task": "wikitext", "index": 0, "target": "page", "doc": { "page": " = page = " },
                    "question": { "text": "page" } }),
        ];
        let lines: String = documents.iter().map(|document| format!("{document}\n")).collect();
        std::fs::write(from.path().join(DOCUMENTS_FILE), zstd::encode_all(lines.as_bytes(), 0).unwrap()).unwrap();
        let score = |task: &str, metric: &str, stderr| v1::Score {
            task: task.into(),
            metric: metric.into(),
            value: 0.5,
            stderr,
            n: 1,
            ..v1::Score::default()
        };
        let scores = vec![
            score("piqa", "acc", Some(0.1)),
            score("mmlu", "acc", None),
            score("validation_loss", "loss_nats", None),
        ];
        let evaluated = v1::Evaluated { scores, ..v1::Evaluated::default() };
        let spec = v1::EvaluateSpec::default();
        let files = write(&spec, &evaluated, from.path(), to.path(), Existing::Refuse).unwrap();
        let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["results.json", "samples_piqa.jsonl", "samples_wikitext.jsonl"]);
        let results: Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
        assert_eq!(results["results"]["piqa"], json!({ "alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1 }));
        assert_eq!(results["results"]["mmlu"]["acc_stderr,none"], "N/A");
        assert_eq!((&results["versions"]["piqa"], &results["versions"]["mmlu"]), (&json!(1.0), &json!("2")));
        assert_eq!(results["results"].as_object().unwrap().len(), 2);
        assert_eq!(results["group_subtasks"]["mmlu"].as_array().unwrap().len(), 57);
        let sample: Value = serde_json::from_slice(&std::fs::read(&files[1]).unwrap()).unwrap();
        assert_eq!(sample["filtered_resps"], json!([["-2.5", "False"], ["-1.0", "True"]]));
        assert_eq!((&sample["target"], &sample["acc"]), (&json!("1"), &json!(1.0)));
        assert_eq!(sample["doc"], documents[0]["doc"]);
        assert_eq!(
            sample["arguments"],
            json!({ "gen_args_0": { "arg_0": "Question: To é.\nAnswer:", "arg_1": " a" },
                    "gen_args_1": { "arg_0": "Question: To é.\nAnswer:", "arg_1": " b\n" } })
        );
        // Python: hashlib.sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode()), and of "1".
        assert_eq!(sample["doc_hash"], "4c5e785be2453fd8d22052968b49ac81a923816b2fbc6db3dae0b64863da5dd3");
        assert_eq!(sample["target_hash"], "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b");
        let sample: Value = serde_json::from_slice(&std::fs::read(&files[2]).unwrap()).unwrap();
        assert_eq!((&sample["resps"], &sample["word_perplexity"]), (&json!([["-9.0"]]), &json!([-9.0, 3])));
        assert_eq!(sample["arguments"], json!({ "gen_args_0": { "arg_0": "page" } }));
        // An older artifact without documents.
        std::fs::remove_file(from.path().join(DOCUMENTS_FILE)).unwrap();
        write(&spec, &evaluated, from.path(), to.path(), Existing::Replace).unwrap();
        let sample: Value = serde_json::from_slice(&std::fs::read(&files[1]).unwrap()).unwrap();
        assert_eq!((&sample["target"], sample.get("doc_hash")), (&json!("1"), None));
        assert!(write(&spec, &evaluated, from.path(), to.path(), Existing::Refuse).is_err());
    }
}
