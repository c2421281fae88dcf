//! The process of a job, from inside.

use std::fs::File;
use std::io::{self, BufRead as _, Write as _};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use inheritune_domain::spec::JobOutcome;
use inheritune_store::Store;
use rustix::process::{Signal, getpid, kill_process};
use tokio::sync::watch;
use tracing::Instrument as _;

use super::super::context::panic_error;
use super::super::{JobContext, JobError, JobHandler, ProgressSender, StopReason, StopSignal, attempt};
use super::counted::Counted;
use super::limits;
use super::wire::{FromJob, Order, ToJob};
use crate::{shutdown, telemetry};

/// How often progress and counters are told.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Threads that still run when all is told get so long.
const THREADS_LIMIT: Duration = Duration::from_millis(200);

type Ended = Result<JobOutcome, JobError>;

/// Does the one job that standard input names, with the handler that `build` makes; blocks. The process must have nothing else
/// to do: it is confined, ends with the worker that started it, and leaves signals to that.
pub fn run_job<H: JobHandler>(build: impl FnOnce(&Store) -> H) -> ExitCode {
    limits::end_with_parent();
    match begin() {
        Ok((order, pipe)) => work(order, pipe, build),
        Err(error) => {
            eprintln!("error: run-job is what a worker starts for a job, which it names on standard input: {error}");
            ExitCode::from(2)
        }
    }
}

/// For a process that a job's process starts: ends with that, and leaves signals to it.
pub fn be_part_of_a_job() {
    limits::end_with_parent();
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        let _entered = runtime.enter();
        shutdown::leave_signals_to_parent();
    }
}

/// Reads the order. From here on only messages go to standard output's pipe: what a library prints goes to the log.
fn begin() -> io::Result<(Order, File)> {
    let pipe = File::from(rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?);
    rustix::stdio::dup2_stdout(io::stderr())?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok((serde_json::from_str(&line)?, pipe))
}

fn work<H: JobHandler>(order: Order, pipe: File, build: impl FnOnce(&Store) -> H) -> ExitCode {
    let (stop, progress, counted) = (StopSignal::default(), ProgressSender::default(), Arc::new(Counted::default()));
    let reporter = Reporter::start(pipe, progress.clone(), counted.clone());
    if let Err(error) = limits::confine(order.memory_max_bytes) {
        return reporter.end(Err(JobError::Retryable(format!("worker.job_memory_max_bytes cannot be set: {error}"))));
    }
    let messages = listen();
    let (lease_until, grace) = (order.lease_until, Duration::from_millis(order.grace_ms));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return reporter.end(Err(JobError::io("threads of the job's process", &error))),
    };
    // An error says that a recorder is there already: a test's.
    let _already_set = metrics::set_global_recorder(counted);
    let code = runtime.block_on(async {
        shutdown::leave_signals_to_parent();
        let _telemetry = telemetry::init(&order.service, &order.telemetry);
        let stopped = stop.clone();
        std::thread::spawn(move || keep_watch(&messages, &stopped, lease_until, grace));
        let span = attempt::span(&order.lease, order.trace_parent.as_deref(), "internal");
        let done = attempt(order, build, (stop, progress)).instrument(span);
        let ended = AssertUnwindSafe(done).catch_unwind().await;
        // Told before the last traces leave, which may take a moment.
        reporter.end(ended.unwrap_or_else(|panic| Err(panic_error(panic.as_ref()))))
    });
    runtime.shutdown_timeout(THREADS_LIMIT);
    code
}

async fn attempt<H: JobHandler>(
    order: Order,
    build: impl FnOnce(&Store) -> H,
    (stop, progress): (StopSignal, ProgressSender),
) -> Ended {
    let store = Store::connect(&order.store).await?;
    let handler = build(&store);
    let context = JobContext {
        store,
        lease: order.lease.key,
        stop,
        progress,
        cache_dir: order.cache_dir,
        fetched: order.fetched,
        threads: order.threads,
        ceilings: order.ceilings,
        // Watched by a thread of its own, whatever the handler does.
        lease_until: watch::Sender::new(tokio::time::Instant::now() + order.lease_until.remaining()).subscribe(),
    };
    handler.run(order.lease, context).await
}

/// Reads the worker's messages, on a thread of its own. They end with the worker.
fn listen() -> Receiver<ToJob> {
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            let message = match serde_json::from_str(&line) {
                Ok(message) => message,
                Err(error) => {
                    tracing::warn!(%error, "a message of the worker makes no sense");
                    continue;
                }
            };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    messages
}

/// Stops the job as the worker says, and when it no longer says that the lease lasts: it may be frozen. Ends the process with
/// the worker, and when the job does not stop in time.
fn keep_watch(messages: &Receiver<ToJob>, stop: &StopSignal, mut lease_until: super::wire::Moment, grace: Duration) {
    loop {
        match messages.recv_timeout(lease_until.remaining()) {
            Ok(ToJob::Stop(reason)) => stop.request(reason),
            Ok(ToJob::LeaseUntil(moment)) => lease_until = moment,
            Err(RecvTimeoutError::Disconnected) => end_at_once(),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    tracing::warn!("the worker has not said in time that the lease lasts; stopping the job");
    stop.request(StopReason::LeaseLost);
    let deadline = Instant::now() + grace;
    while let Ok(_too_late) = messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {}
    end_at_once()
}

/// Nothing of a job is worth keeping that nobody will report. Not by `exit`: that would run libraries' clean-up while threads
/// compute.
fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Tells the worker how the job is doing, from a thread that may wait for it.
struct Reporter {
    end: Sender<Ended>,
    thread: JoinHandle<io::Result<()>>,
}

impl Reporter {
    fn start(pipe: File, progress: ProgressSender, counted: Arc<Counted>) -> Self {
        let (end, ended) = mpsc::channel();
        Self { end, thread: std::thread::spawn(move || report(pipe, &progress, &counted, &ended)) }
    }

    fn end(self, ended: Ended) -> ExitCode {
        // Fails only where the thread has ended, which it says itself.
        let _ = self.end.send(ended);
        match self.thread.join() {
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(_)) | Err(_) => ExitCode::FAILURE,
        }
    }
}

fn report(mut pipe: File, progress: &ProgressSender, counted: &Counted, ended: &Receiver<Ended>) -> io::Result<()> {
    let mut told = None;
    loop {
        let end = match ended.recv_timeout(REPORT_EVERY) {
            Ok(end) => Some(end),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let newest = progress.newest();
        if let Some(newest) = newest.as_ref().filter(|_| newest != told) {
            tell(&mut pipe, &FromJob::Progress(newest.clone()))?;
        }
        told = newest;
        let counts = counted.take();
        if !counts.is_empty() {
            tell(&mut pipe, &FromJob::Counted(counts))?;
        }
        if let Some(end) = end {
            return tell(&mut pipe, &FromJob::Ended(end));
        }
    }
}

fn tell(pipe: &mut File, message: &FromJob) -> io::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    pipe.write_all(line.as_bytes())
}
