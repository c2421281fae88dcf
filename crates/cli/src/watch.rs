//! Follows a run or a job until it ends, across restarts of the server.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use inheritune_api::client::Client;
use inheritune_api::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::failure::Failure;
use crate::screen::{Screen, is_final};
use crate::show::one_line;

/// How long to retry an unreachable server.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
/// Time between two attempts to reach the server.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// Follows a run until it ends. Ctrl-C ends the watch, not the run.
///
/// # Errors
/// The run does not exist, the server stays unreachable, or Ctrl-C. A failed run is not an error
/// here.
pub async fn run(client: &Client, id: Uuid, screen: &mut Screen) -> Result<v1::Run, Failure> {
    let again = format!("inheritune run watch {id}");
    let outcome = unless_interrupted(follow_run(client, id, screen, &again), &again, "run").await;
    screen.clear();
    outcome
}

/// Follows a job until it ends. Ctrl-C ends the watch, not the job.
///
/// # Errors
/// The job does not exist, the server stays unreachable, or Ctrl-C. A failed job is not an error
/// here.
pub async fn job(client: &Client, id: Uuid, screen: &mut Screen) -> Result<v1::Job, Failure> {
    let again = format!("inheritune job watch {id}");
    // A watch does not show metric points. A name that no metric has excludes them all.
    let request =
        v1::WatchJobRequest { id: id.to_string(), metrics: vec!["none".to_owned()], after_step: Some(u64::MAX >> 1) };
    let followed = follow_job(client, &request, (screen, &again), |_| Ok(More::Nothing));
    let outcome = unless_interrupted(followed, &again, "job").await;
    screen.clear();
    outcome
}

/// Follows a job until it ends and passes each metric point to `take` once. Ctrl-C ends the watch,
/// not the job.
///
/// # Errors
/// Those of [`job`], and those that `take` returns.
pub async fn metrics(
    client: &Client,
    id: Uuid,
    screen: &mut Screen,
    mut take: impl FnMut(Vec<v1::MetricPoint>) -> Result<(), Failure>,
) -> Result<v1::Job, Failure> {
    let again = format!("inheritune job metrics {id}");
    let request = v1::WatchJobRequest { id: id.to_string(), metrics: Vec::new(), after_step: None };
    let mut taken = HashSet::new();
    let followed = follow_job(client, &request, (screen, &again), |mut points| {
        // After a reconnect the server sends all points again.
        points.retain(|point| taken.insert((point.name.clone(), point.step)));
        take(points)?;
        Ok(More::Points)
    });
    let outcome = unless_interrupted(followed, &again, "job").await;
    screen.clear();
    outcome
}

/// What a watch still needs after the message that the job has ended.
enum More {
    Nothing,
    /// The last metric points, which may arrive later.
    Points,
}

async fn follow_run(client: &Client, id: Uuid, screen: &mut Screen, again: &str) -> Result<v1::Run, Failure> {
    let mut link = Link::new(again);
    let mut after_note_seq = 0;
    loop {
        let request = v1::WatchRunRequest { id: id.to_string(), after_note_seq };
        let problem = match client.runs().watch_run(request).await {
            Err(status) => status,
            Ok(reply) => {
                let mut changes = reply.into_inner();
                loop {
                    match changes.message().await {
                        Err(status) => break status,
                        Ok(None) => break Status::unavailable("the server ended the watch"),
                        Ok(Some(change)) => {
                            link.is_good(screen)?;
                            for note in &change.notes {
                                after_note_seq = after_note_seq.max(note.seq);
                                screen.say(&format!("» {}", one_line(&note.text)))?;
                            }
                            for job in &change.jobs {
                                screen.job(job)?;
                            }
                            if let Some(run) = change.run.filter(|run| is_final(run.status)) {
                                return Ok(run);
                            }
                        }
                    }
                }
            }
        };
        link.is_lost(problem, screen).await?;
    }
}

async fn follow_job(
    client: &Client,
    request: &v1::WatchJobRequest,
    (screen, again): (&mut Screen, &str),
    mut take: impl FnMut(Vec<v1::MetricPoint>) -> Result<More, Failure>,
) -> Result<v1::Job, Failure> {
    let mut link = Link::new(again);
    loop {
        let problem = match client.jobs().watch_job(request.clone()).await {
            Err(status) => status,
            Ok(reply) => {
                let mut changes = reply.into_inner();
                let mut ended = None;
                loop {
                    match changes.message().await {
                        Err(status) => break status,
                        Ok(None) => match ended {
                            Some(job) => return Ok(job),
                            None => break Status::unavailable("the server ended the watch"),
                        },
                        Ok(Some(change)) => {
                            link.is_good(screen)?;
                            let more = take(change.metric_points)?;
                            let Some(job) = change.job else { continue };
                            screen.job(&job)?;
                            match more {
                                More::Nothing if is_final(job.status) => return Ok(job),
                                More::Nothing => {}
                                More::Points => ended = Some(job).filter(|job| is_final(job.status)),
                            }
                        }
                    }
                }
            }
        };
        link.is_lost(problem, screen).await?;
    }
}

async fn unless_interrupted<T>(
    watch: impl Future<Output = Result<T, Failure>>,
    again: &str,
    what: &str,
) -> Result<T, Failure> {
    tokio::select! {
        // Biased, so that the Ctrl-C handler is installed before the first line is shown.
        biased;
        signal = tokio::signal::ctrl_c() => Err(match signal {
            Ok(()) => Failure::Interrupted(format!("the {what} continues; watch it again with: {again}")),
            Err(e) => Failure::Local(format!("cannot listen for Ctrl-C: {e}")),
        }),
        outcome = watch => outcome,
    }
}

/// The connection of one watch.
struct Link<'a> {
    again: &'a str,
    last_good: Instant,
    told: bool,
}

impl<'a> Link<'a> {
    fn new(again: &'a str) -> Self {
        Self { again, last_good: Instant::now(), told: false }
    }

    fn is_good(&mut self, screen: &Screen) -> Result<(), Failure> {
        self.last_good = Instant::now();
        if std::mem::take(&mut self.told) { screen.say("reconnected to the server") } else { Ok(()) }
    }

    /// Waits before the next attempt if the error may be temporary.
    ///
    /// # Errors
    /// The error is permanent, or the server has been unreachable for [`RECONNECT_FOR`].
    async fn is_lost(&mut self, status: Status, screen: &Screen) -> Result<(), Failure> {
        if !may_come_back(status.code()) {
            return Err(status.into());
        }
        if self.last_good.elapsed() >= RECONNECT_FOR {
            return Err(Failure::Unreachable(format!(
                "the server has been unreachable for {} s ({}); once it is back, watch again with: {}",
                RECONNECT_FOR.as_secs(),
                one_line(status.message()),
                self.again
            )));
        }
        if !std::mem::replace(&mut self.told, true) {
            let wait = RECONNECT_FOR.as_secs();
            screen.say(&format!(
                "lost the connection to the server ({}); retrying for {wait} s",
                one_line(status.message())
            ))?;
        }
        tokio::time::sleep(RECONNECT_EVERY).await;
        Ok(())
    }
}

/// Whether a status code may be temporary. Broken connections can produce any of these codes.
fn may_come_back(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::ResourceExhausted => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}
