//! Publishes an evaluation: its rows, its scores, and the differences from another model's scores.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::benchmark::{GROUPS, HARNESS_VERSION};
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::{EvaluateSpec, Evaluated, Score, ScoreDifference};
use inheritune_runtime::worker::{JobContext, JobError};
use inheritune_store::Store;
use serde_json::json;

use crate::comparison::differences;
use crate::metrics::benchmark::group_score;
use crate::shared_units::Measured;
use crate::tasks::{Row, Task, TaskResult};

/// Results per sequence or document, one JSON object per line.
pub const ROWS_FILE: &str = "scores.jsonl";
/// The documents and requests of benchmarks, one JSON object per line and document, for users who
/// want to read the requests.
pub const DOCUMENTS_FILE: &str = "documents.jsonl.zst";
/// The tasks and their scores.
pub const SCORES_FILE: &str = "scores.json";
/// Maximum size of a [`ROWS_FILE`] to read.
const MAX_ROWS_BYTES: u64 = 1 << 30;

/// Publishes all results that there are. If some could not be measured, the job then fails
/// permanently, and its error names the artifact with the rest.
pub(crate) async fn publish(
    spec: &EvaluateSpec,
    measured: Measured,
    context: &JobContext,
) -> Result<Evaluated, JobError> {
    let failed = measured.problems.join("; ");
    if measured.results.iter().all(|result| result.rows.is_empty()) {
        return Err(JobError::Permanent(failed));
    }
    let (rows_path, documents_path) = (context.cache_dir.join(ROWS_FILE), context.cache_dir.join(DOCUMENTS_FILE));
    let paths = (rows_path.clone(), documents_path.clone());
    let written = context.run_blocking("write-scores", move || write_files(measured, paths)).await?;
    let Measured { prepared, results, problems } = written;
    let scores = all_scores(&results);
    let compared = match spec.baseline {
        Some(baseline) => compare_with(&results, baseline, &context.store).await?,
        None => Vec::new(),
    };
    let tasks = prepared
        .tasks
        .iter()
        .map(|task| json!({ "task": task.name(), "items": task.items(), "sha256": task.digest(&(0..task.items())), "is_whole_published_split": task.is_known_data() }));
    let summary = json!({
        "version": 2,
        "checkpoint": spec.checkpoint.to_string(),
        "config": prepared.config,
        "parameters": prepared.parameters,
        "spec": spec,
        "lm_eval_version": HARNESS_VERSION,
        "measured": tasks.collect::<Vec<_>>(),
        "scores": scores,
        "differences": compared,
        "problems": problems,
    });
    let mut writer = context.store.begin_artifact(ArtifactKind::Scores, context.lease);
    writer.put_file(ROWS_FILE, &rows_path).await?;
    writer.put_file(DOCUMENTS_FILE, &documents_path).await?;
    let summary =
        serde_json::to_vec_pretty(&summary).map_err(|e| JobError::Permanent(format!("{SCORES_FILE}: {e}")))?;
    writer.put_bytes(SCORES_FILE, summary.into()).await?;
    let (config, parameters) = (prepared.config, prepared.parameters);
    let mut metadata = json!({ "family": config.family, "layers": config.n_layers, "parameters": parameters });
    for score in &scores {
        metadata[format!("{}.{}", score.task, score.metric)] = json!(score.value);
    }
    let artifact = writer.publish(None, metadata).await?;
    if !failed.is_empty() {
        let found = results.iter().filter(|result| !result.scores.is_empty()).count();
        return Err(JobError::Permanent(format!("{failed}; {found} tasks were measured: artifact {}", artifact.id)));
    }
    Ok(Evaluated { scores_artifact: artifact.id, scores, config, parameters, differences: compared })
}

/// Returns the tasks' scores, and the scores of groups whose members all have one.
fn all_scores(results: &[TaskResult]) -> Vec<Score> {
    let mut scores: Vec<Score> = results.iter().flat_map(|result| result.scores.clone()).collect();
    let groups = GROUPS.iter().filter(|group| group.has_score()).filter_map(|group| {
        let member = |name: &str| scores.iter().find(|score| score.task == name && score.metric == "acc").cloned();
        let members: Option<Vec<Score>> = group.members().iter().map(|benchmark| member(benchmark.name)).collect();
        group_score(group.name, &members?)
    });
    let groups: Vec<Score> = groups.collect();
    scores.extend(groups);
    scores
}

async fn compare_with(
    results: &[TaskResult],
    baseline: ArtifactId,
    store: &Store,
) -> Result<Vec<ScoreDifference>, JobError> {
    let theirs = read_rows(store, baseline).await.map_err(|e| e.about(&format!("baseline {baseline}")))?;
    let ours: Vec<Row> = results.iter().flat_map(|result| result.rows.clone()).collect();
    Ok(differences(&ours, &theirs))
}

/// Reads the rows of a `scores` artifact.
///
/// # Errors
/// The artifact has no valid [`ROWS_FILE`], or cannot be read.
pub async fn read_rows(store: &Store, scores: ArtifactId) -> Result<Vec<Row>, JobError> {
    let folder = store.open(&Location::Artifact(scores)).await?;
    let bytes = folder.read(ROWS_FILE, MAX_ROWS_BYTES).await?;
    let text = std::str::from_utf8(&bytes).map_err(|e| JobError::Permanent(format!("{ROWS_FILE}: {e}")))?;
    let row = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| JobError::Permanent(format!("{ROWS_FILE}: line {}: {e}", number + 1)))
    };
    text.lines().enumerate().map(row).collect()
}

/// Writes the rows and the documents.
fn write_files(measured: Measured, (rows, documents): (PathBuf, PathBuf)) -> Result<Measured, JobError> {
    let named = |path: &Path, error: std::io::Error| JobError::io(path.display(), &error);
    write_rows(&rows, &measured.results).map_err(|error| named(&rows, error))?;
    write_documents(&documents, &measured.prepared.tasks).map_err(|error| named(&documents, error))?;
    Ok(measured)
}

fn write_documents(path: &Path, tasks: &[Task]) -> std::io::Result<()> {
    let mut file = zstd::Encoder::new(BufWriter::new(std::fs::File::create(path)?), zstd::DEFAULT_COMPRESSION_LEVEL)?;
    for document in tasks.iter().flat_map(Task::documents) {
        serde_json::to_writer(&mut file, &document)?;
        file.write_all(b"\n")?;
    }
    file.finish()?.into_inner()?.sync_all()
}

/// Writes one row per sequence or document, task by task.
fn write_rows(path: &Path, results: &[TaskResult]) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    for row in results.iter().flat_map(|result| &result.rows) {
        serde_json::to_writer(&mut file, row)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()
}
