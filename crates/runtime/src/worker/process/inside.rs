//! The code that runs inside the process of a job.

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
use super::wire::{FromJob, MonotonicTime, Order, ToJob};
use crate::{shutdown, telemetry};

/// How often progress and counters are reported.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How long remaining threads may take to finish after the result was reported.
const THREADS_LIMIT: Duration = Duration::from_millis(200);

type Ended = Result<JobOutcome, JobError>;

/// Runs the one job that is described on standard input, with the handler that `build` returns.
/// Blocks until the job has ended. The process must do nothing else: its resources are limited, it
/// ends with the worker that started it, and it ignores stop signals, which the worker handles.
pub fn run_job<H: JobHandler>(build: impl FnOnce(&Store) -> H) -> ExitCode {
    limits::end_with_parent();
    match begin() {
        Ok((order, pipe)) => work(order, pipe, build),
        Err(error) => {
            eprintln!("error: run-job is started by a worker, which describes the job on standard input: {error}");
            ExitCode::from(2)
        }
    }
}

/// Sets up a process that is started by a job's process: it ends with its parent, and ignores stop
/// signals, which the parent handles.
pub fn be_part_of_a_job() {
    limits::end_with_parent();
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        let _entered = runtime.enter();
        shutdown::leave_signals_to_parent();
    }
}

/// Reads the request. From here on, only messages go to the pipe of standard output: anything that
/// a library prints goes to the log.
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
        return reporter.end(Err(JobError::Retryable(format!("cannot apply worker.job_memory_max_bytes: {error}"))));
    }
    let messages = listen();
    let (lease_until, grace) = (order.lease_until, Duration::from_millis(order.grace_ms));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return reporter.end(Err(JobError::io("threads of the job's process", &error))),
    };
    // An error means that a test has already set a recorder.
    let _already_set = metrics::set_global_recorder(counted);
    let code = runtime.block_on(async {
        shutdown::leave_signals_to_parent();
        let _telemetry = telemetry::init(&order.service, &order.telemetry);
        let stopped = stop.clone();
        std::thread::spawn(move || keep_watch(&messages, &stopped, lease_until, grace));
        let span = attempt::span(&order.lease, order.trace_parent.as_deref(), "internal");
        let done = attempt(order, build, (stop, progress)).instrument(span);
        let ended = AssertUnwindSafe(done).catch_unwind().await;
        // Report the result before the last traces are exported, which may take a while.
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
        // A separate thread watches the lease, independently of the handler.
        lease_until: watch::Sender::new(tokio::time::Instant::now() + order.lease_until.remaining()).subscribe(),
    };
    handler.run(order.lease, context).await
}

/// Reads the worker's messages on a separate thread. The channel closes when the worker ends.
fn listen() -> Receiver<ToJob> {
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            let message = match serde_json::from_str(&line) {
                Ok(message) => message,
                Err(error) => {
                    tracing::warn!(%error, "cannot parse a message from the worker");
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

/// Stops the job when the worker requests it, or when the worker has not extended the lease in
/// time, for example because the worker is frozen. Kills the process when the worker ends, or when
/// the job does not stop in time.
fn keep_watch(messages: &Receiver<ToJob>, stop: &StopSignal, mut lease_until: MonotonicTime, grace: Duration) {
    loop {
        match messages.recv_timeout(lease_until.remaining()) {
            Ok(ToJob::Stop(reason)) => stop.request(reason),
            Ok(ToJob::LeaseUntil(until)) => lease_until = until,
            Err(RecvTimeoutError::Disconnected) => end_at_once(),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    tracing::warn!("the worker did not extend the lease in time; stopping the job");
    stop.request(StopReason::LeaseLost);
    let deadline = Instant::now() + grace;
    while let Ok(_too_late) = messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {}
    end_at_once()
}

/// Kills this process: a result that cannot be reported is not worth keeping. It does not use
/// `exit`, which would run the cleanup of libraries while threads are computing.
fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Reports to the worker from a separate thread, which may block.
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
        // Fails only if the thread has already ended; `join` returns its error.
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
