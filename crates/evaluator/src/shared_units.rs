//! Sharing an evaluation between workers: claiming units, and collecting what every worker
//! measured. Runs on the thread that measures.
//!
//! The coordinator is the worker that holds the evaluate job. It registers the units, measures some
//! of them, and submits helper jobs. The workers that claim these measure units as well.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use inheritune_domain::id::JobId;
use inheritune_domain::job::{MetricPoint, RetryPolicy};
use inheritune_domain::spec::{EvaluateSpec, JobSpec};
use inheritune_runtime::worker::{JobContext, JobError};
use inheritune_store::StoreError;
use inheritune_store::evaluation_units::NewUnit;
use inheritune_store::jobs::NewJob;
use tokio::runtime::Handle;

use crate::answer::{Answer, from_bytes, to_bytes};
use crate::harness::{Prepared, Unit};
use crate::metrics::bootstrap::HARNESS_RESAMPLES;
use crate::tasks::TaskResult;

/// Interval between two checks for units that other workers finish.
const POLL: Duration = Duration::from_millis(200);
/// Minimum time between two reports of partial scores.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Skips standard errors that need resampling: for partial scores.
const NO_RESAMPLES: u32 = 0;
/// Maximum number of helper jobs per evaluation.
const MAX_HELPERS: usize = 64;

/// A worker that measures units under the lease of its job.
pub(crate) struct UnitWorker {
    pub(crate) spec: EvaluateSpec,
    pub(crate) context: JobContext,
    pub(crate) runtime: Handle,
}

/// The results of an evaluation.
pub struct Measured {
    /// The model and its tasks.
    pub prepared: Prepared,
    /// One result per task, without scores if a unit of the task failed.
    pub results: Vec<TaskResult>,
    /// Errors of tasks and units that could not be measured.
    pub problems: Vec<String>,
}

/// The units finished so far, by number.
#[derive(Default)]
struct FinishedUnits {
    answers: BTreeMap<u32, Vec<Answer>>,
    errors: BTreeMap<u32, String>,
}

impl FinishedUnits {
    fn known(&self) -> Vec<u32> {
        self.answers.keys().chain(self.errors.keys()).copied().collect()
    }

    fn count(&self) -> usize {
        self.answers.len() + self.errors.len()
    }

    /// The answered units of a task, in order.
    fn of_task<'a>(&'a self, units: &'a [Unit], task: usize) -> Vec<(&'a Unit, &'a [Answer])> {
        let unit =
            |(number, answers): (&u32, &'a Vec<Answer>)| Some((units.get(*number as usize)?, answers.as_slice()));
        self.answers.iter().filter_map(unit).filter(|(unit, _)| unit.task == task).collect()
    }
}

impl UnitWorker {
    /// Registers the units of the leased job and measures those that no helper claims. Returns when
    /// all units are finished.
    pub(crate) fn coordinate(&self, mut prepared: Prepared, label: &str) -> Result<Measured, JobError> {
        let (store, lease) = (&self.context.store, self.context.lease);
        let units = prepared.units();
        let new = |unit: &Unit| NewUnit {
            task: prepared.tasks[unit.task].name().to_owned(),
            items: unit.items.start as u64..unit.items.end as u64,
            digest: prepared.tasks[unit.task].digest(&unit.items),
        };
        let new: Vec<NewUnit> = units.iter().map(new).collect();
        self.wait(store.register_units(lease, &new))?;
        let mut helpers = HelperJobs { worker: self, label, waiting: None, submitted: 0 };
        let mut finished = FinishedUnits::default();
        let mut reports = Reports { at: Instant::now(), units: vec![0; prepared.tasks.len()] };
        loop {
            self.collect(&mut finished)?;
            self.report(&prepared, &units, &finished, &mut reports)?;
            let left = units.len() - finished.count();
            if left == 0 {
                break;
            }
            helpers.submit_if_useful(left)?;
            let done = finished.answers.keys().filter_map(|number| units.get(*number as usize));
            let done: usize = done.map(|unit| unit.items.len()).sum();
            if self.measure_next(&mut prepared, lease.job, &units, done as u64)?.is_none() {
                std::thread::sleep(POLL);
                if self.context.stop.requested().is_some() {
                    return Err(JobError::Stopped);
                }
            }
        }
        helpers.withdraw()?;
        Ok(measured(prepared, &units, finished))
    }

    /// Measures units of the job `of` until none is free. Returns how many it measured.
    pub(crate) fn assist(&self, mut prepared: Prepared, of: JobId) -> Result<u32, JobError> {
        let units = prepared.units();
        let (mut measured, mut items) = (0, 0);
        while let Some(more) = self.measure_next(&mut prepared, of, &units, items)? {
            measured += 1;
            items += more;
        }
        Ok(measured)
    }

    /// Claims the next free unit of the job `of` and measures it. `done` is the number of items
    /// finished before, for the progress. Returns the unit's number of items, or `None` if no unit
    /// is free.
    fn measure_next(
        &self,
        prepared: &mut Prepared,
        of: JobId,
        units: &[Unit],
        done: u64,
    ) -> Result<Option<u64>, JobError> {
        let (store, lease) = (&self.context.store, self.context.lease);
        let Some((number, digest)) = self.wait(store.claim_unit(lease, of))? else { return Ok(None) };
        let is_same = |unit: &&Unit| prepared.tasks[unit.task].digest(&unit.items) == digest;
        let Some(unit) = units.get(number as usize).filter(is_same) else {
            return Err(JobError::Permanent(format!(
                "unit {number} of job {of} has different requests on this worker: its data or the release has changed"
            )));
        };
        match prepared.measure(unit, done) {
            Ok(answers) => self.wait(store.finish_unit(lease, of, number, Ok(&to_bytes(&answers))))?,
            Err(JobError::Permanent(problem)) => self.wait(store.finish_unit(lease, of, number, Err(&problem)))?,
            Err(error) => return Err(error),
        }
        Ok(Some(unit.items.len() as u64))
    }

    /// Adds the units that any worker finished since the last call.
    fn collect(&self, finished: &mut FinishedUnits) -> Result<(), JobError> {
        let job = self.context.lease.job;
        for unit in self.wait(self.context.store.finished_units(job, &finished.known()))? {
            match unit.found.map(|bytes| from_bytes(&bytes)) {
                Ok(Some(answers)) => {
                    finished.answers.insert(unit.unit, answers);
                }
                Ok(None) => {
                    let problem = format!("the stored answers of unit {} of job {job} are malformed", unit.unit);
                    return Err(JobError::Permanent(problem));
                }
                Err(problem) => {
                    finished.errors.insert(unit.unit, problem);
                }
            }
        }
        Ok(())
    }

    /// Appends the scores that changed to the job's metrics, such as `piqa.acc` over documents.
    fn report(
        &self,
        prepared: &Prepared,
        units: &[Unit],
        finished: &FinishedUnits,
        reports: &mut Reports,
    ) -> Result<(), JobError> {
        if reports.at.elapsed() < REPORT_INTERVAL && finished.count() < units.len() {
            return Ok(());
        }
        reports.at = Instant::now();
        let mut points = Vec::new();
        for (task, reported) in reports.units.iter_mut().enumerate() {
            let answered = finished.of_task(units, task);
            if answered.len() > std::mem::replace(reported, answered.len()) {
                let scores = prepared.result(task, answered, NO_RESAMPLES).scores;
                points.extend(scores.into_iter().map(|score| MetricPoint {
                    name: format!("{}.{}", score.task, score.metric),
                    step: score.n,
                    tokens_seen: 0,
                    value: score.value,
                }));
            }
        }
        self.wait(self.context.store.add_metrics(self.context.lease, &points))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, JobError> {
        Ok(self.runtime.block_on(call)?)
    }
}

/// What has been reported so far.
struct Reports {
    at: Instant,
    /// Reported units of each task.
    units: Vec<usize>,
}

fn measured(prepared: Prepared, units: &[Unit], finished: FinishedUnits) -> Measured {
    let result = |task| {
        let all = units.iter().filter(|unit| unit.task == task).count();
        let answered = finished.of_task(units, task);
        if answered.len() == all {
            return prepared.result(task, answered, HARNESS_RESAMPLES);
        }
        TaskResult { scores: Vec::new(), ..prepared.result(task, answered, NO_RESAMPLES) }
    };
    let results = (0..prepared.tasks.len()).map(result).collect();
    let problems = prepared.problems.iter().cloned().chain(finished.errors.into_values()).collect();
    Measured { prepared, results, problems }
}

/// The jobs through which other workers find this evaluation. At most one of them waits in the
/// queue; once a worker claims it, the next one is submitted.
struct HelperJobs<'a> {
    worker: &'a UnitWorker,
    label: &'a str,
    waiting: Option<JobId>,
    submitted: usize,
}

impl HelperJobs<'_> {
    /// Submits a helper job if none is waiting and enough units are left for another worker.
    fn submit_if_useful(&mut self, left: usize) -> Result<(), JobError> {
        let UnitWorker { spec, context, .. } = self.worker;
        if let Some(waiting) = self.waiting
            && self.worker.wait(context.store.is_unclaimed(waiting))?
        {
            return Ok(());
        }
        self.waiting = None;
        // The coordinator measures the last unit itself.
        if left < 2 || self.submitted == MAX_HELPERS {
            return Ok(());
        }
        let job = context.lease.job;
        let new = NewJob {
            label: format!("{}: help", self.label),
            spec: JobSpec::Evaluate(EvaluateSpec { helps: Some(job), ..spec.clone() }),
            priority: self.worker.wait(context.store.job(job))?.priority,
            retry: RetryPolicy::default(),
            run: None,
        };
        self.waiting = Some(self.worker.wait(context.store.submit_job(&new, None))?.id);
        self.submitted += 1;
        Ok(())
    }

    /// Withdraws the job that no worker has claimed.
    fn withdraw(self) -> Result<(), JobError> {
        match self.waiting {
            Some(waiting) => self.worker.wait(self.worker.context.store.withdraw_job(waiting)).map(|_| ()),
            None => Ok(()),
        }
    }
}
