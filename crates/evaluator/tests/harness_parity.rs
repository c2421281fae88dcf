//! Parity of benchmarks with lm-evaluation-harness 0.4.13: token ids, log-likelihoods, metrics and
//! standard errors, from golden files that scripts/golden/make-evaluation-golden.py made with the harness
//! itself. `--nocapture` shows the largest difference.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use inheritune_domain::artifact::Location;
use inheritune_domain::benchmark::AskedDocument;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, Score};
use inheritune_evaluator::benchmarks::{self, Item, rows};
use inheritune_evaluator::encoding::{Encoder, EncodingCache};
use inheritune_evaluator::harness::{Measurement, Prepared};
use inheritune_evaluator::metrics::benchmark::group_score;
use inheritune_evaluator::metrics::bootstrap::{HARNESS_RESAMPLES, perplexity_stderr};
use inheritune_evaluator::tasks::{Task, TaskResult};
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_lm::{Device, Kind, Tensor};
use inheritune_runtime::worker::{ProgressSender, StopSignal};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{answers, assert_close, measure_as};

/// Relative tolerance of log-likelihoods, and of scores computed from them.
const RELATIVE: f64 = 1e-5;
/// Relative tolerance of accuracies and their standard errors.
const EXACT: f64 = 1e-12;

const TASKS: [&str; 22] = [
    "arc_easy",
    "boolq",
    "hellaswag",
    "lambada_openai",
    "lambada_standard",
    "logiqa",
    "mmlu_abstract_algebra",
    "mmlu_anatomy",
    "mmlu_high_school_european_history",
    "mmlu_nutrition",
    "mmlu_sociology",
    "mnli",
    "piqa",
    "qnli",
    "sciq",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "wikitext",
    "winogrande",
    "wnli",
    "wsc",
    "wsc273",
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/evaldata");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped: {} is absent", dir.display());
    None
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A spec of benchmarks, each with an optional limit on its rows.
fn spec(tasks: &[(&str, Option<u32>)]) -> EvaluateSpec {
    let data = Location::Uri("file:///data".to_owned());
    let task = |(name, limit): &(&str, Option<u32>)| EvaluationTask::Benchmark {
        name: (*name).to_owned(),
        data: data.clone(),
        limit: *limit,
    };
    EvaluateSpec::new(Location::Uri("file:///model".to_owned()), tasks.iter().map(task).collect())
}

fn prepare(model: &Path, data: &Path, spec: &EvaluateSpec) -> Prepared {
    let measurement = Measurement {
        checkpoint: model.to_owned(),
        inputs: vec![data.to_owned(); spec.tasks.len()],
        spec: spec.clone(),
        threads: Some(1),
        stop: StopSignal::default(),
        progress: ProgressSender::default(),
    };
    let prepared = measurement.prepare().unwrap();
    assert!(prepared.problems.is_empty(), "{:?}", prepared.problems);
    prepared
}

fn measured(model: &Path, data: &Path, spec: EvaluateSpec) -> Vec<TaskResult> {
    let inputs = vec![data.to_owned(); spec.tasks.len()];
    measure_as(model, inputs, spec, StopSignal::default(), ProgressSender::default()).unwrap().results
}

/// The digest of token ids, as in the golden files.
fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    hex::encode(Sha256::digest(bytes))
}

/// Compares a model's token ids, log-likelihoods and scores with the harness's `NAME.jsonl` and
/// `NAME.results.json`.
fn check(model: &Path, data: &Path, golden: &Path, tasks: &[(&str, Option<u32>)]) {
    let records = lines(&golden.with_extension("jsonl"));
    let harness = json(&golden.with_extension("results.json"));
    let prepared = prepare(model, data, &spec(tasks));
    let limit = prepared.config.max_positions as usize;
    let results = measured(model, data, spec(tasks));
    let (mut requests, mut furthest) = (0, 0.0_f64);
    for (task, result) in prepared.tasks.iter().zip(&results) {
        let Task::Benchmark(benchmark) = task else { panic!("{} is not a benchmark", task.name()) };
        let own: Vec<&Value> = records.iter().filter(|record| record["task"] == task.name()).collect();
        let sequences = benchmark.sequences(0..task.items()).unwrap();
        assert_eq!(own.len(), sequences.iter().map(Vec::len).sum::<usize>(), "{}", task.name());
        for record in own {
            let (row, request) =
                (record["doc_id"].as_u64().unwrap() as usize, record["idx"].as_u64().unwrap_or(0) as usize);
            let name = format!("{} row {row} request {request}", task.name());
            let windows = &sequences[row][request];
            if let Some(n_ctx) = record["n_ctx"].as_u64() {
                let [sequence] = &windows[..] else { panic!("{name}: {windows:?}") };
                let targets: Vec<u64> = sequence.targets.iter().map(|id| u64::from(*id)).collect();
                assert_eq!(serde_json::json!(targets), record["cont_ids"], "{name}");
                let whole = n_ctx as usize + targets.len() - 1;
                assert_eq!(sequence.input.len(), whole.min(limit), "{name}");
                if whole <= limit {
                    assert_eq!(digest(&sequence.input[..n_ctx as usize]), record["ctx_sha256"], "{name}");
                }
            } else {
                let ids: Vec<u32> = windows.iter().flat_map(|window| window.targets.clone()).collect();
                assert_eq!(digest(&ids), record["tokens_sha256"], "{name}");
                assert_eq!(windows.len() as u64, record["windows"].as_u64().unwrap(), "{name}");
            }
            let found = answers(&result.rows[row]);
            let (ours, theirs) = (found.log_likelihoods[request], record["ll"].as_f64().unwrap());
            furthest = furthest.max((ours - theirs).abs() / theirs.abs());
            assert!((ours - theirs).abs() <= RELATIVE * theirs.abs(), "{name}: {ours} {theirs}");
            if let Some(is_greedy) = record["greedy"].as_bool() {
                assert_eq!(found.is_greedy[request], is_greedy, "{name}");
            }
            requests += 1;
        }
    }
    let logged = lines(&golden.with_file_name("samples.jsonl"));
    let documents: Vec<AskedDocument> = prepared.tasks.iter().flat_map(Task::documents).collect();
    assert_eq!(logged.len(), documents.len());
    let place = |sample: &Value| (sample["task"].as_str().unwrap().to_owned(), sample["doc_id"].as_u64().unwrap());
    let logged: BTreeMap<_, _> = logged.iter().map(|sample| (place(sample), sample)).collect();
    for document in &documents {
        check_document(document, logged[&(document.task.clone(), document.index)]);
    }
    let scores: Vec<&Score> = results.iter().flat_map(|result| &result.scores).collect();
    for score in &scores {
        check_score(score, &harness["results"][&score.task]);
    }
    // Groups of the subjects in the golden files.
    for (group, members) in harness["group_subtasks"].as_object().unwrap() {
        let members = leaves(&harness["group_subtasks"], members);
        let of_group = |score: &&&Score| score.metric == "acc" && members.contains(&score.task);
        let own: Vec<Score> = scores.iter().filter(of_group).map(|score| (**score).clone()).collect();
        if !own.is_empty() {
            assert_eq!(own.len(), members.len(), "{group}");
            check_score(&group_score(group, &own).unwrap(), &harness["results"][group]);
        }
    }
    println!(
        "{}: {requests} requests, log-likelihoods within {furthest:.1e}, {} scores",
        golden.display(),
        scores.len()
    );
}

/// Checks that a document and its requests equal what the harness logs, by the harness's hashes.
fn check_document(document: &AskedDocument, sample: &Value) {
    let hash = |text: String| hex::encode(Sha256::digest(text));
    let asked: String = document.question.arguments().concat().into_iter().map(|text| format!("{text}\0")).collect();
    let prompt = document.question.prompt().to_owned();
    let found = [format!("{:#}", document.doc), prompt, document.target.clone(), asked].map(hash);
    let expected =
        ["doc_hash", "prompt_hash", "target_hash", "arguments_sha256"].map(|key| sample[key].as_str().unwrap());
    assert_eq!(found, expected, "{document:?}");
}

fn leaves(groups: &Value, members: &Value) -> Vec<String> {
    let names = members.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
    names.flat_map(|name| groups.get(&name).map_or(vec![name.clone()], |inner| leaves(groups, inner))).collect()
}

fn check_score(score: &Score, harness: &Value) {
    let name = format!("{} {}", score.task, score.metric);
    let theirs = harness[format!("{},none", score.metric)].as_f64().unwrap_or_else(|| panic!("{name}: {harness}"));
    let is_count = score.metric.starts_with("acc") && score.task != "truthfulqa_mc2";
    let near = |ours: f64, theirs: f64, relative: f64| (ours - theirs).abs() <= relative * theirs.abs();
    if is_count {
        assert!(near(score.value, theirs, EXACT), "{name}: {} {theirs}", score.value);
    } else {
        // A perplexity is exp of a mean of log-likelihoods, so its relative error is their absolute
        // error: the relative error times the mean.
        let scale = if score.metric.contains("perplexity") { theirs.ln().abs().max(1.0) } else { 1.0 };
        assert!(near(score.value, theirs, RELATIVE * scale), "{name}: {} {theirs}", score.value);
    }
    match harness[format!("{}_stderr,none", score.metric)].as_f64() {
        None => assert_eq!(score.stderr, None, "{name}"),
        Some(theirs) => {
            let relative = if is_count { EXACT } else { 1e-3 };
            assert!(near(score.stderr.unwrap(), theirs, relative), "{name}: {:?} {theirs}", score.stderr);
        }
    }
}

#[test]
fn a_gpt2_is_scored_as_by_the_harness() {
    let tasks = TASKS.map(|name| (name, None));
    check(&golden().join("models/tiny-gpt2"), &golden().join("data"), &golden().join("tiny-gpt2"), &tasks);
}

#[test]
fn a_llama_whose_tokenizer_adds_bos_is_scored_as_by_the_harness() {
    let tasks = TASKS.map(|name| (name, None));
    check(&golden().join("models/tiny-llama"), &golden().join("data"), &golden().join("tiny-llama"), &tasks);
}

/// Any model on the real data sets, if environment variables name the harness's records of it.
/// Covers the tasks and rows in the records.
#[test]
fn a_given_model_is_scored_as_by_the_harness() {
    let (Some(shared), Ok(model), Ok(records)) =
        (shared(), std::env::var("INHERITUNE_PARITY_MODEL"), std::env::var("INHERITUNE_PARITY_GOLDEN"))
    else {
        println!(
            "skipped: INHERITUNE_PARITY_MODEL=FOLDER and INHERITUNE_PARITY_GOLDEN=FOLDER/NAME are not set; \
             scripts/golden/make-evaluation-golden.py --data --model makes the records"
        );
        return;
    };
    let records = Path::new(&records);
    let limits = rows_of_tasks(&lines(&records.with_extension("jsonl")));
    let tasks: Vec<_> = limits.iter().map(|(name, rows)| (name.as_str(), Some(*rows))).collect();
    check(Path::new(&model), &shared, records, &tasks);
}

/// The tasks in the records, and the number of leading rows of each.
fn rows_of_tasks(records: &[Value]) -> BTreeMap<String, u32> {
    let mut rows = BTreeMap::new();
    for record in records {
        let task = record["task"].as_str().unwrap().trim_start_matches("local_").to_owned();
        let of_task = rows.entry(task).or_default();
        *of_task = (record["doc_id"].as_u64().unwrap() as u32 + 1).max(*of_task);
    }
    rows
}

/// Golden records of ten documents per task from the real data sets, for two random models.
#[test]
fn real_rows_are_scored_as_by_the_harness() {
    let Some(shared) = shared() else { return };
    for name in ["tiny-llama-bos", "tiny-llama-nobos"] {
        let records = lines(&shared.join(format!("golden/{name}.jsonl")));
        let limits = rows_of_tasks(&records);
        let tasks: Vec<_> = limits.iter().map(|(name, rows)| (name.as_str(), Some(*rows))).collect();
        let model = shared.join("tinymodels").join(name);
        let prepared = prepare(&model, &shared, &spec(&tasks));
        let results = measured(&model, &shared, spec(&tasks));
        let mut compared = 0;
        for (task, result) in prepared.tasks.iter().zip(&results) {
            let Task::Benchmark(benchmark) = task else { panic!("{} is not a benchmark", task.name()) };
            let sequences = benchmark.sequences(0..task.items()).unwrap();
            for record in records.iter().filter(|record| record["task"] == format!("local_{}", task.name())) {
                let row = record["doc_id"].as_u64().unwrap() as usize;
                let request = record["idx"].as_u64().unwrap_or(0) as usize;
                if record["type"] == "loglikelihood" {
                    let ids = |name: &str| -> Vec<u32> {
                        record[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
                    };
                    let [sequence] = &sequences[row][request][..] else { panic!("{record}") };
                    assert_eq!(sequence.targets, ids("cont_ids"), "{record}");
                    let mut whole = [ids("ctx_ids"), ids("cont_ids")].concat();
                    whole.pop();
                    assert!(whole.ends_with(&sequence.input), "{record}");
                    assert_eq!(sequence.input.len(), whole.len().min(prepared.config.max_positions as usize));
                }
                assert_close(answers(&result.rows[row]).log_likelihoods[request], record["ll"].as_f64().unwrap());
                compared += 1;
            }
        }
        assert_eq!(compared, records.len());
        let harness = json(&shared.join(format!("golden/{name}.results.json")));
        for score in results.iter().flat_map(|result| &result.scores) {
            check_score(score, &harness[format!("local_{}", score.task)]);
        }
    }
}

#[test]
fn all_pages_have_the_harness_s_words_and_bytes() {
    let Some(shared) = shared() else { return };
    let prepared = prepare(&shared.join("tinymodels/tiny-llama-bos"), &shared, &spec(&[("wikitext", None)]));
    assert_eq!(prepared.tasks[0].items(), 62);
    let (mut words, mut bytes) = (0, 0);
    for page in lines(&shared.join("wikitext/test.jsonl")) {
        let length = inheritune_evaluator::metrics::TextLength::of(page["page"].as_str().unwrap());
        words += length.words;
        bytes += length.bytes;
    }
    assert_eq!((words, bytes), (241_335, 1_290_527));
}

#[test]
fn bootstraps_are_the_harness_s_to_the_bit() {
    for list in json(&golden().join("bootstrap.json")).as_array().unwrap() {
        let values: Vec<f64> = list["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert_eq!(perplexity_stderr(&values, HARNESS_RESAMPLES), list["stderr"].as_f64(), "{} values", values.len());
    }
}

/// The oracle runs every request separately.
#[test]
fn sharing_prefixes_changes_no_answer() {
    let tasks = TASKS.map(|name| (name, None));
    for model in ["models/tiny-gpt2", "models/tiny-llama"] {
        let (model, data) = (golden().join(model), golden().join("data"));
        let oracle = measured(&model, &data, EvaluateSpec { one_by_one: true, ..spec(&tasks) });
        let shared = measured(&model, &data, spec(&tasks));
        for (ours, oracle) in shared.iter().zip(&oracle) {
            for (ours, oracle) in ours.rows.iter().zip(&oracle.rows) {
                let (ours, oracle) = (answers(ours), answers(oracle));
                for (a, b) in ours.log_likelihoods.iter().zip(&oracle.log_likelihoods) {
                    assert_close(*a, *b);
                }
                assert_eq!(ours.is_greedy, oracle.is_greedy);
            }
        }
    }
}

/// Whether this machine's matrix products, in the shapes of the two models, compute the same bits
/// for a row regardless of the other rows.
fn rows_are_computed_alike() -> bool {
    const MOST: i64 = 2048;
    let random = |rows: i64, columns: i64| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu));
    // Inputs and outputs of the projections of GPT-2 and Llama, and of the heads.
    let shapes =
        [(36, 108), (36, 36), (36, 144), (144, 36), (32, 32), (32, 16), (32, 80), (80, 32), (36, 512), (32, 512)];
    shapes.into_iter().all(|(inputs, outputs)| {
        let (x, w, b) = (random(MOST, inputs), random(outputs, inputs), random(1, outputs).squeeze());
        let w_transposed = w.tr().contiguous();
        // With and without a bias, with the weight in the layouts of Llama's and GPT-2's files.
        let products = |x: &Tensor| [x.linear(&w, None::<&Tensor>), x.linear(&w, Some(&b)), b.addmm(x, &w_transposed)];
        let all = products(&x);
        let few = [16, 17, 23, 31, 32, 33, 48, 64, 100, 128, 200, 255, 256, 300, 500, 512, 513, 1000, 1999];
        few.into_iter().all(|rows| {
            let all_of_these = all.each_ref().map(|product| product.narrow(0, 0, rows));
            products(&x.narrow(0, 0, rows)) == all_of_these
        })
    })
}

/// Answers are bit-identical with other pass sizes.
#[test]
fn the_size_of_a_pass_changes_no_bit() {
    if !rows_are_computed_alike() {
        return println!("skipped: this machine's matrix products depend on the number of rows");
    }
    let tasks = TASKS.map(|name| (name, None));
    for model in ["models/tiny-gpt2", "models/tiny-llama"] {
        let (model, data) = (golden().join(model), golden().join("data"));
        let [small, middle, large] = [1, 500, 20_000]
            .map(|max_batch_tokens| measured(&model, &data, EvaluateSpec { max_batch_tokens, ..spec(&tasks) }));
        assert!(small == middle && middle == large, "{}", model.display());
    }
}

/// The hub's Parquet files yield the same rows as JSON lines.
#[test]
fn parquet_gives_the_rows_of_json_lines() {
    let tasks = ["piqa", "truthfulqa_mc1", "truthfulqa_mc2", "arc_easy", "mmlu_anatomy"].map(|name| (name, None));
    let model = golden().join("models/tiny-gpt2");
    let [lines, packed] = ["data", "parquet"].map(|data| prepare(&model, &golden().join(data), &spec(&tasks)));
    for (lines, packed) in lines.tasks.iter().zip(&packed.tasks) {
        assert_eq!(lines.items(), packed.items(), "{}", lines.name());
        assert_eq!(lines.digest(&(0..lines.items())), packed.digest(&(0..lines.items())), "{}", lines.name());
    }
}

/// The names of all files in `dir` and its subfolders, relative to it.
fn files_below(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join(prefix)).unwrap();
    let names = entries.map(|entry| format!("{prefix}{}", entry.unwrap().file_name().to_string_lossy()));
    names
        .flat_map(|name| if dir.join(&name).is_dir() { files_below(dir, &format!("{name}/")) } else { vec![name] })
        .collect()
}

/// Rows in the layouts and types of the hub's repositories yield the same requests as the rows
/// here, so their scores are the same.
#[test]
fn d8_hub_layouts_yield_the_same_requests() {
    let made = tempfile::tempdir().unwrap();
    let data = golden().join("data");
    let write = |name: &str, content: String| {
        let path = made.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    let rows = |name: &str, change: &dyn Fn(&mut Value)| -> Vec<Value> {
        let mut rows = lines(&data.join(name));
        rows.iter_mut().for_each(change);
        rows
    };
    let as_lines = |rows: Vec<Value>| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    write("google/boolq/README.md", "# card".to_owned());
    let answers = |row: &mut Value| {
        let label = row["label"].as_u64().unwrap() == 1;
        *row = json!({ "question": row["question"], "answer": label, "passage": row["passage"] });
    };
    write("boolq/data/validation.jsonl", as_lines(rows("boolq/validation.jsonl", &answers)));
    let number = |row: &mut Value| row["answer"] = row["answer"].as_str().unwrap().parse::<u64>().unwrap().into();
    write("winogrande/winogrande_xl/validation.json", as_lines(rows("winogrande/validation.jsonl", &number)));
    write("winogrande/winogrande_l/validation.json", "not read".to_owned());
    let unchanged = |_: &mut Value| ();
    write(
        "baber/piqa/plain_text/validation.jsonl",
        format!("\u{feff}{}", as_lines(rows("piqa/validation.jsonl", &unchanged))),
    );
    write("ai2_arc/ARC-Easy/test.json", Value::from(rows("arc_easy/test.jsonl", &unchanged)).to_string());
    write("lambada_openai/data/lambada_test_en.jsonl", as_lines(rows("lambada_openai/test.jsonl", &unchanged)));
    let flag = |row: &mut Value| row["label"] = (row["label"].as_u64().unwrap() == 1).into();
    write("glue/wnli/validation.jsonl", as_lines(rows("wnli/validation.jsonl", &flag)));
    for split in ["dev", "test"] {
        let to = format!("mmlu/anatomy/{split}-00000-of-00001.parquet");
        write(&to, String::new());
        std::fs::copy(golden().join(format!("parquet/mmlu/{split}/anatomy.parquet")), made.path().join(to)).unwrap();
    }
    let tasks =
        ["boolq", "winogrande", "piqa", "arc_easy", "lambada_openai", "wnli", "mmlu_anatomy"].map(|name| (name, None));
    let model = golden().join("models/tiny-gpt2");
    let [own, hub] = [data.as_path(), made.path()].map(|data| prepare(&model, data, &spec(&tasks)));
    assert_eq!(own.tasks.len(), tasks.len());
    assert_eq!(hub.tasks.len(), tasks.len());
    for (own, hub) in own.tasks.iter().zip(&hub.tasks) {
        assert_eq!(own.items(), hub.items(), "{}", own.name());
        assert_eq!(own.digest(&(0..own.items())), hub.digest(&(0..hub.items())), "{}", own.name());
        let targets = |task: &Task| task.documents().map(|document| document.target).collect::<Vec<_>>();
        assert_eq!(targets(own), targets(hub), "{}", own.name());
    }
}

/// Shows that the checks above are effective: the ids alone reveal typical mistakes of a
/// reimplementation.
#[test]
fn planted_mistakes_are_found() {
    let model = golden().join("models/tiny-llama");
    let tokenizer = Tokenizer::from_dir(&model).unwrap();
    let encoder = Encoder::new(&tokenizer, 128, None).unwrap();
    let records = lines(&golden().join("tiny-llama.jsonl"));
    let of = |task: &str| -> Vec<Value> { records.iter().filter(|record| record["task"] == task).cloned().collect() };
    let items = |task: &str, change: &dyn Fn(Vec<Value>) -> Vec<Value>| {
        let benchmark = inheritune_domain::benchmark::find(task).unwrap();
        let data = golden().join("data");
        let read = |names: Vec<String>| rows::read(&data, &names, 5).unwrap();
        let files = files_below(&data, "");
        let shots = change(read(rows::shots_files(&benchmark, &files).unwrap()));
        let scored = read(rows::scored_files(&benchmark, &files).unwrap());
        benchmarks::items(&benchmark, scored, &shots).unwrap()
    };
    let first = |item: &Item, change: &dyn Fn(&str) -> String| {
        let (context, continuation) = item.question.requests()[0];
        encoder.pairs(context, &[&change(continuation)], &mut EncodingCache::new()).unwrap().remove(0)
    };
    let unchanged = |text: &str| text.to_owned();
    // A continuation without its space.
    let item = &items("piqa", &|shots| shots)[0];
    let expected: Vec<u32> = serde_json::from_value(of("piqa")[0]["cont_ids"].clone()).unwrap();
    assert_eq!(first(item, &unchanged).continuation, expected);
    assert_ne!(first(item, &|text| text.trim_start().to_owned()).continuation, expected);
    // Examples in another order.
    let context =
        |change: &dyn Fn(Vec<Value>) -> Vec<Value>| first(&items("mmlu_anatomy", change)[0], &unchanged).context;
    let expected = of("mmlu_anatomy")[0]["ctx_sha256"].clone();
    assert_eq!(digest(&context(&|shots| shots)), expected);
    let swapped = |mut shots: Vec<Value>| {
        shots.swap(0, 1);
        shots
    };
    assert_ne!(digest(&context(&swapped)), expected);
}

/// The complete data sets have the digests in the catalogue.
#[test]
fn whole_data_sets_are_known_by_their_digests() {
    let Some(shared) = shared() else { return };
    let known = inheritune_domain::benchmark::all().filter(|benchmark| benchmark.sha256().is_some());
    let names: Vec<_> = known.map(|benchmark| (benchmark.name, None)).collect();
    assert_eq!(names.len(), 14 + 57);
    let prepared = prepare(&shared.join("tinymodels/tiny-llama-nobos"), &shared, &spec(&names));
    for task in &prepared.tasks {
        let Task::Benchmark(benchmark) = task else { panic!("{} is not a benchmark", task.name()) };
        assert_eq!(task.items() as u32, benchmark.benchmark().rows, "{}", task.name());
        let digest = task.digest(&(0..task.items()));
        assert!(benchmark.is_known_data(), "{} {digest}", task.name());
    }
}
