//! One worker's time with an evaluation: which units it takes, and when it is over. Runs on the thread that measures.

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

/// Time between two looks at units that other workers still measure.
const POLL: Duration = Duration::from_millis(200);
/// Time between two reports of partial scores at least.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// No standard error that takes resampling: for scores that are not final.
const NO_RESAMPLES: u32 = 0;
/// Jobs that help one evaluation at most.
const MAX_HELPERS: usize = 64;

/// A worker and the evaluate job that it holds.
pub(crate) struct Shift {
    pub(crate) spec: EvaluateSpec,
    pub(crate) context: JobContext,
    pub(crate) runtime: Handle,
}

/// What came of an evaluation.
pub struct Measured {
    /// The model and its tasks.
    pub prepared: Prepared,
    /// One for each of its tasks; without scores where a part of the task is missing.
    pub results: Vec<TaskResult>,
    /// What could not be measured.
    pub problems: Vec<String>,
}

/// What was found so far, by unit.
#[derive(Default)]
struct Found {
    answers: BTreeMap<u32, Vec<Answer>>,
    errors: BTreeMap<u32, String>,
}

impl Found {
    fn known(&self) -> Vec<u32> {
        self.answers.keys().chain(self.errors.keys()).copied().collect()
    }

    fn units(&self) -> usize {
        self.answers.len() + self.errors.len()
    }

    /// The answered units of a task.
    fn of_task<'a>(&'a self, units: &'a [Unit], task: usize) -> Vec<(&'a Unit, &'a [Answer])> {
        let unit =
            |(number, answers): (&u32, &'a Vec<Answer>)| Some((units.get(*number as usize)?, answers.as_slice()));
        self.answers.iter().filter_map(unit).filter(|(unit, _)| unit.task == task).collect()
    }
}

impl Shift {
    /// Measures all that nobody else does, until everything is measured.
    pub(crate) fn lead(&self, mut prepared: Prepared, label: &str) -> Result<Measured, JobError> {
        let (store, lease) = (&self.context.store, self.context.lease);
        let units = prepared.units();
        let new = |unit: &Unit| NewUnit {
            task: prepared.tasks[unit.task].name().to_owned(),
            items: unit.items.start as u64..unit.items.end as u64,
            digest: prepared.tasks[unit.task].digest(&unit.items),
        };
        let new: Vec<NewUnit> = units.iter().map(new).collect();
        self.wait(store.register_units(lease, &new))?;
        let mut helpers = Helpers { shift: self, label, waiting: None, called: 0 };
        let mut found = Found::default();
        let mut reports = Reports { at: Instant::now(), units: vec![0; prepared.tasks.len()] };
        loop {
            self.collect(&mut found)?;
            self.report(&prepared, &units, &found, &mut reports)?;
            let left = units.len() - found.units();
            if left == 0 {
                break;
            }
            helpers.call(left)?;
            let done = found.answers.keys().filter_map(|number| units.get(*number as usize));
            let done: usize = done.map(|unit| unit.items.len()).sum();
            if self.take_one(&mut prepared, lease.job, &units, done as u64)?.is_none() {
                std::thread::sleep(POLL);
                if self.context.stop.requested().is_some() {
                    return Err(JobError::Stopped);
                }
            }
        }
        helpers.dismiss()?;
        Ok(measured(prepared, &units, found))
    }

    /// Measures units of the job `of` until none is left to take; gives their number.
    pub(crate) fn help(&self, mut prepared: Prepared, of: JobId) -> Result<u32, JobError> {
        let units = prepared.units();
        let (mut helped, mut items) = (0, 0);
        while let Some(more) = self.take_one(&mut prepared, of, &units, items)? {
            helped += 1;
            items += more;
        }
        Ok(helped)
    }

    /// Takes a unit of the job `of`, after `done` items, and measures it; gives its items, if there was one.
    fn take_one(&self, prepared: &mut Prepared, of: JobId, units: &[Unit], done: u64) -> Result<Option<u64>, JobError> {
        let (store, lease) = (&self.context.store, self.context.lease);
        let Some((number, digest)) = self.wait(store.claim_unit(lease, of))? else { return Ok(None) };
        let is_same = |unit: &&Unit| prepared.tasks[unit.task].digest(&unit.items) == digest;
        let Some(unit) = units.get(number as usize).filter(is_same) else {
            return Err(JobError::Permanent(format!(
                "unit {number} of job {of} asks something else here: its data, or this release, changed meanwhile"
            )));
        };
        match prepared.measure(unit, done) {
            Ok(answers) => self.wait(store.finish_unit(lease, of, number, Ok(&to_bytes(&answers))))?,
            Err(JobError::Permanent(problem)) => self.wait(store.finish_unit(lease, of, number, Err(&problem)))?,
            Err(error) => return Err(error),
        }
        Ok(Some(unit.items.len() as u64))
    }

    /// Brings what was found since, by whomever.
    fn collect(&self, found: &mut Found) -> Result<(), JobError> {
        let job = self.context.lease.job;
        for finished in self.wait(self.context.store.finished_units(job, &found.known()))? {
            match finished.found.map(|bytes| from_bytes(&bytes)) {
                Ok(Some(answers)) => {
                    found.answers.insert(finished.unit, answers);
                }
                Ok(None) => {
                    let problem = format!("the answers of unit {} of job {job} cannot be read", finished.unit);
                    return Err(JobError::Permanent(problem));
                }
                Err(problem) => {
                    found.errors.insert(finished.unit, problem);
                }
            }
        }
        Ok(())
    }

    /// Adds scores that changed to the job's curves, `piqa.acc` over documents.
    fn report(
        &self,
        prepared: &Prepared,
        units: &[Unit],
        found: &Found,
        reports: &mut Reports,
    ) -> Result<(), JobError> {
        if reports.at.elapsed() < REPORT_INTERVAL && found.units() < units.len() {
            return Ok(());
        }
        reports.at = Instant::now();
        let mut points = Vec::new();
        for (task, reported) in reports.units.iter_mut().enumerate() {
            let answered = found.of_task(units, task);
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

/// What the curves say by now.
struct Reports {
    at: Instant,
    /// Units of each task.
    units: Vec<usize>,
}

fn measured(prepared: Prepared, units: &[Unit], found: Found) -> Measured {
    let result = |task| {
        let all = units.iter().filter(|unit| unit.task == task).count();
        let answered = found.of_task(units, task);
        if answered.len() == all {
            return prepared.result(task, answered, HARNESS_RESAMPLES);
        }
        TaskResult { scores: Vec::new(), ..prepared.result(task, answered, NO_RESAMPLES) }
    };
    let results = (0..prepared.tasks.len()).map(result).collect();
    let problems = prepared.problems.iter().cloned().chain(found.errors.into_values()).collect();
    Measured { prepared, results, problems }
}

/// Jobs that bring other workers here: one waits for a worker as long as there is something to do, the next one as soon as it
/// has found one.
struct Helpers<'a> {
    shift: &'a Shift,
    label: &'a str,
    waiting: Option<JobId>,
    called: usize,
}

impl Helpers<'_> {
    /// Calls one where none waits, and the units that are left would keep it busy.
    fn call(&mut self, left: usize) -> Result<(), JobError> {
        let Shift { spec, context, .. } = self.shift;
        if let Some(waiting) = self.waiting
            && self.shift.wait(context.store.is_unclaimed(waiting))?
        {
            return Ok(());
        }
        self.waiting = None;
        // One that is left is this worker's own.
        if left < 2 || self.called == MAX_HELPERS {
            return Ok(());
        }
        let job = context.lease.job;
        let new = NewJob {
            label: format!("{}: help", self.label),
            spec: JobSpec::Evaluate(EvaluateSpec { helps: Some(job), ..spec.clone() }),
            priority: self.shift.wait(context.store.job(job))?.priority,
            retry: RetryPolicy::default(),
            run: None,
        };
        self.waiting = Some(self.shift.wait(context.store.submit_job(&new, None))?.id);
        self.called += 1;
        Ok(())
    }

    /// Takes back the call that nobody answered.
    fn dismiss(self) -> Result<(), JobError> {
        match self.waiting {
            Some(waiting) => self.shift.wait(self.shift.context.store.withdraw_job(waiting)).map(|_| ()),
            None => Ok(()),
        }
    }
}
