//! Conversions for jobs.

use inheritune_domain::id::{JobId, RunId};
use inheritune_domain::job::{JobRecord, JobStatus, MetricPoint, Progress, RetryPolicy};
use inheritune_domain::spec::{Helped, JobKind, JobOutcome, JobSpec, limits};
use inheritune_domain::violation::Violations;
use uuid::Uuid;

use super::fields::{Field, Notes};
use super::page::{Page, page};
use super::time::timestamp;
use super::{evaluation, slicing, training};
use crate::v1;

/// What a [`v1::SubmitJobRequest`] asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct SubmittedJob {
    /// A label for people; the name of the kind if the caller gave none.
    pub label: String,
    /// The job.
    pub spec: JobSpec,
    /// The priority; higher values run first.
    pub priority: i32,
    /// How often it is attempted.
    pub retry: RetryPolicy,
    /// A request id chosen by the caller.
    pub request_id: Option<Uuid>,
}

impl TryFrom<v1::SubmitJobRequest> for SubmittedJob {
    type Error = Violations;

    fn try_from(request: v1::SubmitJobRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let spec = field.at("spec").required(request.spec);
        let spec = job_spec(&mut field.at("spec"), spec);
        let retry = retry_policy(&mut field.at("retry"), request.retry);
        let request_id = field.at("request_id").optional_id(&request.request_id);
        field.at("label").text(limits::LABEL, &request.label);
        field.at("priority").whole(limits::PRIORITY, request.priority);
        notes.domain(spec.validate(), |path| format!("spec.{}", renamed(&spec, path)));
        let label = if request.label.is_empty() { spec.kind().as_str().to_owned() } else { request.label };
        notes.into_result(Self { label, spec, priority: request.priority, retry, request_id })
    }
}

/// Which jobs a [`v1::ListJobsRequest`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedJobs {
    /// Only jobs of this run; all jobs, with or without a run, when absent.
    pub run: Option<RunId>,
    /// Only jobs of this kind.
    pub kind: Option<JobKind>,
    /// Only jobs with this status.
    pub status: Option<JobStatus>,
    /// The requested page.
    pub page: Page,
}

impl TryFrom<&v1::ListJobsRequest> for ListedJobs {
    type Error = Violations;

    fn try_from(request: &v1::ListJobsRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let listed = Self {
            run: field.at("run_id").optional_id(&request.run_id),
            kind: field.at("kind").named(request.kind),
            status: field.at("status").named(request.status),
            page: page(&mut field, request.page_size, &request.page_token),
        };
        notes.into_result(listed)
    }
}

/// What a [`v1::WatchJobRequest`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedJob {
    /// The job.
    pub id: JobId,
    /// Names of the requested curves; all curves of the job when empty.
    pub metrics: Vec<String>,
    /// The step after which points are sent.
    pub after_step: Option<u64>,
}

impl TryFrom<v1::WatchJobRequest> for WatchedJob {
    type Error = Violations;

    fn try_from(request: v1::WatchJobRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let id = field.at("id").id(&request.id);
        let mut at = field.at("metrics");
        if !limits::WATCHED_METRICS.holds(request.metrics.len()) {
            at.bad(limits::WATCHED_METRICS.description());
        }
        for (i, name) in request.metrics.iter().enumerate().take(limits::WATCHED_METRICS.max) {
            at.index(i).text(limits::METRIC_NAME, name);
        }
        notes.into_result(Self { id, metrics: request.metrics, after_step: request.after_step })
    }
}

impl TryFrom<v1::JobSpec> for JobSpec {
    type Error = Violations;

    fn try_from(message: v1::JobSpec) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let spec = job_spec(&mut Field::root(&mut notes), message);
        notes.domain(spec.validate(), |path| renamed(&spec, path));
        notes.into_result(spec)
    }
}

impl TryFrom<v1::JobOutcome> for JobOutcome {
    type Error = Violations;

    fn try_from(message: v1::JobOutcome) -> Result<Self, Violations> {
        use v1::job_outcome::Outcome;
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let outcome = match message.outcome {
            Some(Outcome::Tokenized(made)) => Self::Tokenized(training::tokenized(&mut field.at("tokenized"), made)),
            Some(Outcome::Sliced(made)) => Self::Sliced(slicing::sliced(&mut field.at("sliced"), made)),
            Some(Outcome::Trained(made)) => Self::Trained(training::trained(&mut field.at("trained"), made)),
            Some(Outcome::Helped(v1::Helped { units })) => Self::Helped(Helped { units }),
            Some(Outcome::Evaluated(made)) => Self::Evaluated(evaluation::evaluated(&mut field.at("evaluated"), made)),
            None => {
                field.at("outcome").missing("give tokenized, sliced, trained or evaluated");
                Self::Trained(training::trained(&mut field.at("outcome"), v1::Trained::default()))
            }
        };
        notes.into_result(outcome)
    }
}

fn job_spec(field: &mut Field<'_>, message: v1::JobSpec) -> JobSpec {
    use v1::job_spec::Spec;
    match message.spec {
        Some(Spec::Tokenize(spec)) => JobSpec::Tokenize(training::tokenize_spec(&mut field.at("tokenize"), spec)),
        Some(Spec::Slice(spec)) => JobSpec::Slice(slicing::slice_spec(&mut field.at("slice"), spec)),
        Some(Spec::Train(spec)) => JobSpec::Train(training::train_spec(&mut field.at("train"), spec)),
        Some(Spec::Evaluate(spec)) => JobSpec::Evaluate(evaluation::evaluate_spec(&mut field.at("evaluate"), spec)),
        None => {
            // The placeholder needs no violations of its own: they would only repeat this one.
            field.missing("give tokenize, slice, train or evaluate");
            JobSpec::Evaluate(evaluation::evaluate_spec(&mut field.at("evaluate"), v1::EvaluateSpec::default()))
        }
    }
}

/// Returns the path in [`v1::JobSpec`] of a path reported by the domain's validation of a job spec.
pub(super) fn renamed(spec: &JobSpec, path: &str) -> String {
    match spec {
        JobSpec::Tokenize(_) => format!("tokenize.{}", path.trim_start_matches("tokenizer.")),
        JobSpec::Slice(_) => format!("slice.{}", slicing::renamed(path)),
        JobSpec::Train(_) => format!("train.{path}"),
        JobSpec::Evaluate(spec) => format!("evaluate.{}", evaluation::renamed(spec, path)),
    }
}

fn retry_policy(field: &mut Field<'_>, message: Option<v1::RetryPolicy>) -> RetryPolicy {
    let standard = RetryPolicy::default();
    let message = message.unwrap_or_default();
    let policy = RetryPolicy {
        max_attempts: message.max_attempts.unwrap_or(standard.max_attempts),
        backoff_ms: message.backoff_ms.unwrap_or(standard.backoff_ms),
        backoff_max_ms: message.backoff_max_ms.unwrap_or(standard.backoff_max_ms),
    };
    field.at("max_attempts").whole(limits::ATTEMPTS, policy.max_attempts);
    field.at("backoff_ms").whole(limits::BACKOFF_MS, policy.backoff_ms);
    field.at("backoff_max_ms").whole(limits::BACKOFF_MS, policy.backoff_max_ms);
    policy
}

impl From<&JobSpec> for v1::JobSpec {
    fn from(spec: &JobSpec) -> Self {
        use v1::job_spec::Spec;
        let spec = match spec {
            JobSpec::Tokenize(spec) => Spec::Tokenize(spec.into()),
            JobSpec::Slice(spec) => Spec::Slice(spec.into()),
            JobSpec::Train(spec) => Spec::Train(spec.into()),
            JobSpec::Evaluate(spec) => Spec::Evaluate(spec.into()),
        };
        Self { spec: Some(spec) }
    }
}

impl From<&JobOutcome> for v1::JobOutcome {
    fn from(outcome: &JobOutcome) -> Self {
        use v1::job_outcome::Outcome;
        let outcome = match outcome {
            JobOutcome::Tokenized(made) => Outcome::Tokenized(made.into()),
            JobOutcome::Sliced(made) => Outcome::Sliced(made.into()),
            JobOutcome::Trained(made) => Outcome::Trained(made.into()),
            JobOutcome::Evaluated(made) => Outcome::Evaluated(made.into()),
            JobOutcome::Helped(Helped { units }) => Outcome::Helped(v1::Helped { units: *units }),
        };
        Self { outcome: Some(outcome) }
    }
}

impl From<&Progress> for v1::Progress {
    fn from(progress: &Progress) -> Self {
        Self {
            done: progress.done,
            total: progress.total,
            unit: progress.unit.clone(),
            per_second: progress.per_second,
            progress_percentage: progress.percentage(),
            estimated_remaining_seconds: progress.estimated_remaining_seconds,
            message: progress.message.clone(),
        }
    }
}

impl From<v1::Progress> for Progress {
    fn from(progress: v1::Progress) -> Self {
        Self {
            done: progress.done,
            total: progress.total,
            unit: progress.unit,
            per_second: progress.per_second,
            estimated_remaining_seconds: progress.estimated_remaining_seconds,
            message: progress.message,
        }
    }
}

impl From<&MetricPoint> for v1::MetricPoint {
    fn from(point: &MetricPoint) -> Self {
        let MetricPoint { name, step, tokens_seen, value } = point.clone();
        Self { name, step, tokens_seen, value, time: None }
    }
}

impl From<v1::MetricPoint> for MetricPoint {
    fn from(point: v1::MetricPoint) -> Self {
        Self { step: point.step, tokens_seen: point.tokens_seen, name: point.name, value: point.value }
    }
}

impl From<&JobRecord> for v1::Job {
    fn from(job: &JobRecord) -> Self {
        Self {
            id: job.id.to_string(),
            run_id: job.run.map(|id| id.to_string()).unwrap_or_default(),
            label: job.label.clone(),
            kind: v1::JobKind::from(job.spec.kind()).into(),
            spec: Some((&job.spec).into()),
            status: v1::JobStatus::from(job.status).into(),
            priority: job.priority,
            attempts: job.attempts,
            progress: Some((&job.progress).into()),
            outcome: job.outcome.as_ref().map(Into::into),
            error: job.error.clone().unwrap_or_default(),
            worker_id: job.worker.map(|id| id.to_string()).unwrap_or_default(),
            created_at: Some(timestamp(job.created_at)),
            started_at: job.started_at.map(timestamp),
            finished_at: job.finished_at.map(timestamp),
            updated_at: Some(timestamp(job.updated_at)),
            failed_attempts: job.counts.failed,
            lost_attempts: job.counts.lost,
            crashed_attempts: job.counts.crashed,
            waits: job.counts.waits,
            waiting_since: job.counts.waiting_since.map(timestamp),
        }
    }
}
