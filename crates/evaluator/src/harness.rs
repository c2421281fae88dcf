//! The evaluate job: fetch, measure unit by unit on a dedicated thread, publish.
//!
//! Units are rows in the database. The worker that holds the job registers them and claims one
//! after the other. Helper jobs claim units at the same time on other workers. A unit has the same
//! forward passes on every worker, and the scores are computed from all answers in the order of the
//! units. So the scores do not depend on which worker measured what, and no unit is measured twice.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;

use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::artifact::Location;
use inheritune_domain::benchmark;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, Helped, JobKind, JobOutcome, JobSpec};
use inheritune_lm::{Decoder, device};
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, ProgressSender, StopSignal};
use inheritune_store::jobs::Lease;

use crate::answer::{Answer, Part};
use crate::benchmarks::rows;
use crate::publish;
use crate::scorer::{Scorer, lm_error};
use crate::shared_units::UnitWorker;
use crate::tasks::{self, ModelFacts, Task, TaskResult};

/// The kinds of jobs that the evaluator runs.
pub const KINDS: [JobKind; 1] = [JobKind::Evaluate];

/// The handler of evaluate jobs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evaluator;

impl JobHandler for Evaluator {
    fn kinds(&self) -> &[JobKind] {
        &KINDS
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        let JobSpec::Evaluate(spec) = job.spec else {
            return Err(JobError::Permanent(format!("the evaluator does not run {} jobs", job.spec.kind().as_str())));
        };
        let (checkpoint, _) = context.fetch_checkpoint(&spec.checkpoint, "checkpoint").await?;
        let inputs = fetch_inputs(&spec, &context).await?;
        let measurement = Measurement {
            checkpoint,
            inputs,
            spec: spec.clone(),
            threads: context.threads,
            stop: context.stop.clone(),
            progress: context.progress.clone(),
        };
        let runtime = tokio::runtime::Handle::current();
        let worker = UnitWorker { spec: spec.clone(), context: context.clone(), runtime };
        if let Some(of) = spec.helps {
            let units = context.run_blocking("evaluate", move || worker.assist(measurement.prepare()?, of)).await?;
            device::release_memory();
            return Ok(JobOutcome::Helped(Helped { units }));
        }
        let label = job.label;
        let measured =
            context.run_blocking("evaluate", move || worker.coordinate(measurement.prepare()?, &label)).await?;
        let published = publish::publish(&spec, measured, &context).await;
        device::release_memory();
        published.map(JobOutcome::Evaluated)
    }
}

/// Fetches the input of every task, each location once. Of a folder of data sets, it fetches only
/// the files that the spec's benchmarks need.
async fn fetch_inputs(spec: &EvaluateSpec, context: &JobContext) -> Result<Vec<PathBuf>, JobError> {
    let mut fetched: HashMap<Location, PathBuf> = HashMap::new();
    let mut inputs = Vec::with_capacity(spec.tasks.len());
    for task in &spec.tasks {
        let location = match task {
            EvaluationTask::ValidationLoss { tokens, .. } => Location::Artifact(*tokens),
            EvaluationTask::RollingPerplexity { source } => source.clone(),
            EvaluationTask::Benchmark { data, .. } => data.clone(),
        };
        let name = format!("input-{}", fetched.len());
        let path = match (fetched.get(&location), task) {
            (Some(path), _) => path.clone(),
            (None, EvaluationTask::Benchmark { data, .. }) => fetch_data(spec, data, &name, context).await?,
            (None, _) => context.fetch(&location, &name).await?,
        };
        fetched.insert(location, path.clone());
        inputs.push(path);
    }
    Ok(inputs)
}

/// Fetches the rows of all benchmarks of `spec` whose data is in the folder `data`. Missing files
/// are reported later, when the tasks are prepared.
async fn fetch_data(
    spec: &EvaluateSpec,
    data: &Location,
    name: &str,
    context: &JobContext,
) -> Result<PathBuf, JobError> {
    let dir = context.cache_dir.join(name);
    let folder = context.store.open(data).await?;
    let names = spec.tasks.iter().filter_map(|task| match task {
        EvaluationTask::Benchmark { name, data: other, .. } if other == data => Some(name),
        _ => None,
    });
    let all: Vec<String> = folder.files().iter().map(|file| file.name.clone()).collect();
    let mut files = BTreeSet::new();
    for benchmark in names.flat_map(|name| benchmark::select(name).unwrap_or_default()) {
        files.extend(rows::needed(&benchmark, &all));
    }
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    context.ceilings.check_bytes(folder.only(&names).size_bytes()).map_err(JobError::Permanent)?;
    for file in files {
        tokio::select! {
            fetched = folder.fetch_file(&file, &dir) => fetched?,
            _ = context.stop.wait() => return Err(JobError::Stopped),
        }
    }
    Ok(dir)
}

/// The inputs of a measurement, which runs on a dedicated thread and without a store.
pub struct Measurement {
    /// The model's folder.
    pub checkpoint: PathBuf,
    /// A folder for each of the spec's tasks.
    pub inputs: Vec<PathBuf>,
    /// What to measure.
    pub spec: EvaluateSpec,
    /// Number of libtorch's threads. Without it, libtorch chooses.
    pub threads: Option<usize>,
    /// Checked before every forward pass.
    pub stop: StopSignal,
    /// Updated after forward passes.
    pub progress: ProgressSender,
}

/// A loaded model with tasks that are ready to be measured.
pub struct Prepared {
    /// The tasks to measure.
    pub tasks: Vec<Task>,
    /// Why the other tasks cannot be measured.
    pub problems: Vec<String>,
    /// The model's shape.
    pub config: DecoderConfig,
    /// Number of the model's parameters; tied ones count once.
    pub parameters: u64,
    scorer: Scorer,
}

/// A part of one task that is measured independently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The task's index in [`Prepared::tasks`].
    pub task: usize,
    /// Indexes of the items.
    pub items: Range<usize>,
}

impl Measurement {
    /// Loads the model and reads the inputs. Blocks.
    ///
    /// # Errors
    /// The model cannot be loaded; [`JobError::Stopped`].
    pub fn prepare(self) -> Result<Prepared, JobError> {
        if let Some(threads) = self.threads {
            device::set_threads(threads);
        }
        let device = device::default_device().map_err(lm_error)?;
        let decoder = Decoder::load(&self.checkpoint, device)
            .and_then(Decoder::frozen)
            .map_err(|e| lm_error(e).about(&format!("checkpoint {}", self.spec.checkpoint)))?;
        let config = decoder.config().clone();
        let parameters = decoder.parameters().iter().map(|p| p.tensor.numel() as u64).sum();
        let model = ModelFacts {
            dir: self.checkpoint,
            shown: self.spec.checkpoint.to_string(),
            vocab_size: config.vocab_size,
            max_positions: config.max_positions,
        };
        let (tasks, problems) = tasks::prepare(&self.spec, &self.inputs, &model, &self.stop)?;
        let scorer = Scorer::new(decoder, self.spec.batch_size, self.stop, self.progress);
        Ok(Prepared { tasks, problems, config, parameters, scorer })
    }
}

impl Prepared {
    /// The units of all tasks, in order.
    pub fn units(&self) -> Vec<Unit> {
        let of_task =
            |(task, prepared): (usize, &Task)| prepared.units().into_iter().map(move |items| Unit { task, items });
        self.tasks.iter().enumerate().flat_map(of_task).collect()
    }

    /// Measures a unit. `items_done` counts the items of all tasks finished before, for the
    /// progress. Blocks.
    ///
    /// # Errors
    /// See [`Task::measure`].
    pub fn measure(&mut self, unit: &Unit, items_done: u64) -> Result<Vec<Answer>, JobError> {
        let total = self.tasks.iter().map(|task| task.items() as u64).sum();
        self.tasks[unit.task].measure(unit.items.clone(), (items_done, total), &mut self.scorer)
    }

    /// Returns a task's result from the answers to its units, some of which may be missing.
    /// Bootstrapped standard errors use `resamples` resamples.
    pub fn result<'a>(
        &self,
        task: usize,
        answers: impl IntoIterator<Item = (&'a Unit, &'a [Answer])>,
        resamples: u32,
    ) -> TaskResult {
        let part = |(unit, answers): (&Unit, &[Answer])| Part { items: unit.items.clone(), answers: answers.to_vec() };
        self.tasks[task].result(&answers.into_iter().map(part).collect::<Vec<_>>(), resamples)
    }
}
