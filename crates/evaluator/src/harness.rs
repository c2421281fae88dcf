//! The evaluate job: fetch, measure on a thread of its own, publish.

use std::collections::HashMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::spec::{EvaluateSpec, Evaluated, EvaluationTask, JobKind, JobOutcome, JobSpec, Score};
use inheritune_lm::{Decoder, device};
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, ProgressSender, StopSignal};
use inheritune_store::jobs::Lease;
use serde_json::json;

use crate::scorer::{Scorer, lm_error};
use crate::tasks::{ModelFacts, Task, TaskResult};

/// Per-sequence and per-document losses, one JSON object a line.
pub const ROWS_FILE: &str = "scores.jsonl";
/// What was measured and what came of it.
pub const SCORES_FILE: &str = "scores.json";
const KINDS: [JobKind; 1] = [JobKind::Evaluate];

/// Works evaluate jobs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evaluator;

impl JobHandler for Evaluator {
    fn kinds(&self) -> &[JobKind] {
        &KINDS
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        let JobSpec::Evaluate(spec) = job.spec else {
            return Err(JobError::Permanent(format!("an evaluator was given a {} job", job.spec.kind().as_str())));
        };
        let checkpoint = context.fetch(&spec.checkpoint, "checkpoint").await?;
        let inputs = fetch_inputs(&spec, &context).await?;
        let work = Measurement {
            checkpoint,
            inputs,
            spec: spec.clone(),
            threads: context.threads,
            stop: context.stop.clone(),
            progress: context.progress.clone(),
        };
        let measured = context.run_blocking("evaluate", move || work.run()).await?;
        publish(&spec, measured, &context).await.map(JobOutcome::Evaluated)
    }
}

/// Brings every task's input here, one that several tasks share only once.
async fn fetch_inputs(spec: &EvaluateSpec, context: &JobContext) -> Result<Vec<PathBuf>, JobError> {
    let mut fetched: HashMap<Location, PathBuf> = HashMap::new();
    let mut inputs = Vec::with_capacity(spec.tasks.len());
    for task in &spec.tasks {
        let location = match task {
            EvaluationTask::ValidationLoss { tokens, .. } => Location::Artifact(*tokens),
            EvaluationTask::RollingPerplexity { source } => source.clone(),
        };
        if !fetched.contains_key(&location) {
            let path = context.fetch(&location, &format!("input-{}", fetched.len())).await?;
            fetched.insert(location.clone(), path);
        }
        inputs.extend(fetched.get(&location).cloned());
    }
    Ok(inputs)
}

/// All that measuring needs, without a store: it runs on a thread of its own.
pub struct Measurement {
    /// The model's folder.
    pub checkpoint: PathBuf,
    /// A folder for each of the spec's tasks.
    pub inputs: Vec<PathBuf>,
    /// What to measure.
    pub spec: EvaluateSpec,
    /// libtorch's threads; its own choice when absent.
    pub threads: Option<usize>,
    /// Looked at before every forward pass.
    pub stop: StopSignal,
    /// Told after them.
    pub progress: ProgressSender,
}

/// What came of a measurement.
pub struct Measured {
    /// One for each of the spec's tasks.
    pub results: Vec<TaskResult>,
    /// The model's shape.
    pub config: DecoderConfig,
    /// Its parameters, tied ones counted once.
    pub parameters: u64,
}

impl Measurement {
    /// Measures; blocks.
    ///
    /// # Errors
    /// The model or an input cannot be used, or as [`Scorer::score`].
    pub fn run(self) -> Result<Measured, JobError> {
        if let Some(threads) = self.threads {
            device::set_threads(threads);
        }
        let device = device::default_device().map_err(lm_error)?;
        let decoder = Decoder::load(&self.checkpoint, device)
            .map_err(|e| lm_error(e).about(&format!("checkpoint {}", self.spec.checkpoint)))?;
        let config = decoder.config().clone();
        let parameters = decoder.parameters().iter().map(|p| p.tensor.numel() as u64).sum();
        let model =
            ModelFacts { dir: &self.checkpoint, vocab_size: config.vocab_size, max_positions: config.max_positions };
        let prepare = |(task, input): (&EvaluationTask, &PathBuf)| Task::prepare(task, input, model, &self.stop);
        let tasks: Vec<Task> = self.spec.tasks.iter().zip(&self.inputs).map(prepare).collect::<Result<_, _>>()?;
        let mut scorer = Scorer::new(decoder, self.spec.batch_size, self.stop, self.progress);
        scorer.expect_tokens(tasks.iter().map(Task::tokens).sum());
        let results = tasks.iter().map(|task| task.score(&mut scorer)).collect::<Result<_, _>>()?;
        Ok(Measured { results, config, parameters })
    }
}

async fn publish(spec: &EvaluateSpec, measured: Measured, context: &JobContext) -> Result<Evaluated, JobError> {
    let Measured { results, config, parameters } = measured;
    let rows_path = context.cache_dir.join(ROWS_FILE);
    write_rows(&rows_path, &results).map_err(|e| JobError::Retryable(format!("{}: {e}", rows_path.display())))?;
    let scores: Vec<Score> = results.into_iter().flat_map(|result| result.scores).collect();
    let summary = json!({
        "version": 1,
        "checkpoint": spec.checkpoint.to_string(),
        "config": config,
        "parameters": parameters,
        "batch_size": spec.batch_size,
        "tasks": spec.tasks,
        "scores": scores,
    });
    let mut writer = context.store.begin_artifact(ArtifactKind::Scores, context.lease);
    writer.put_file(ROWS_FILE, &rows_path).await?;
    let summary =
        serde_json::to_vec_pretty(&summary).map_err(|e| JobError::Permanent(format!("{SCORES_FILE}: {e}")))?;
    writer.put_bytes(SCORES_FILE, summary.into()).await?;
    let mut metadata = json!({ "family": config.family, "layers": config.n_layers, "parameters": parameters });
    for score in &scores {
        metadata[format!("{}.{}", score.task, score.metric)] = json!(score.value);
    }
    let artifact = writer.publish(None, metadata).await?;
    Ok(Evaluated { scores_artifact: artifact.id, scores, config, parameters })
}

/// One row a sequence; those of different tasks after one another.
fn write_rows(path: &Path, results: &[TaskResult]) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    for row in results.iter().flat_map(|result| &result.rows) {
        serde_json::to_writer(&mut file, row)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()
}
