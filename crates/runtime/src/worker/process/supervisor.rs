//! The worker's side of a job's process: starts it, exchanges messages with it, and waits for it.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use inheritune_domain::spec::{JobKind, JobOutcome};
use inheritune_store::jobs::Lease;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::StreamExt as _;
use tokio_util::codec::{FramedRead, LinesCodec};

use super::super::{JobContext, JobError, JobHandler, StopReason};
use super::wire::{FromJob, MonotonicTime, Order, ToJob};
use super::{JobProcesses, counted, limits, this_program};
use crate::machine::memory_bytes;
use crate::telemetry::traces;

/// How often a process is checked and sent updates.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Its folder is measured on every Nth check.
const LOOKS_PER_MEASURE: u32 = 10;
/// Longest wait for a process to read a message. The first message is its request, which it reads
/// once it has started.
const TELL_LIMIT: Duration = Duration::from_secs(60);
/// How long a process may take to end after its last message.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Longest message: the outcome of an evaluation of many tasks.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A killed process counts as out of memory if its peak was at least this fraction of the limit.
const NEARLY_ALL: f64 = 0.9;
/// OpenMP's environment variable for how threads wait for each other.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

impl JobHandler for JobProcesses {
    fn kinds(&self) -> &[JobKind] {
        &self.kinds
    }

    async fn run(&self, job: Lease, mut context: JobContext) -> Result<JobOutcome, JobError> {
        let memory_max_bytes =
            Some(self.worker.job_memory_max_bytes.unwrap_or_else(memory_bytes)).filter(|bytes| *bytes < u64::MAX);
        let order = Order {
            lease: job,
            lease_until: MonotonicTime::of(context.lease_until.borrow_and_update().into_std()),
            store: self.store.clone(),
            cache_dir: context.cache_dir.clone(),
            fetched: context.fetched.clone(),
            threads: context.threads,
            ceilings: context.ceilings,
            memory_max_bytes,
            grace_ms: self.worker.shutdown_grace_ms,
            trace_parent: traces::current(),
            service: self.service.clone(),
            telemetry: self.telemetry.of_a_job(),
        };
        let mut evidence = Evidence {
            memory_max_bytes,
            memory_setting: self.settings.name("worker.job_memory_max_bytes"),
            kills_before: limits::out_of_memory_kills(),
            kills_after: None,
            peak_bytes: 0,
        };
        let mut process = Process::start(&self.arguments).await?;
        tracing::debug!(pid = process.pid, "job process started");
        process.tell(&order).await?;
        let ended = process.follow(&mut context, &mut evidence, self.disk_limit()).await?;
        let status = process.end().await?;
        evidence.kills_after = limits::out_of_memory_kills();
        match ended {
            Some(ended) => ended,
            None => Err(death(status, &evidence, context.stop.requested())),
        }
    }
}

/// A running process. Dropping it kills the process and everything that it started.
struct Process {
    pid: u32,
    input: ChildStdin,
    lines: FramedRead<ChildStdout, LinesCodec>,
    group: Arc<Group>,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// The process group of a job; `None` once its id may have been reused.
struct Group(Mutex<Option<Pid>>);

impl Group {
    fn kill(&self) {
        if let Some(group) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // An error means that the group has already ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.group.kill();
    }
}

impl Process {
    /// Starts this program again, on a thread that lives as long as the process: the kernel kills a
    /// child when the thread that started it ends.
    async fn start(arguments: &[String]) -> Result<Self, JobError> {
        let failed = |error: io::Error| JobError::io("cannot start the job's process", &error);
        let program = this_program();
        let mut command = Command::new(&program);
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        // A separate process group, so that Ctrl-C in a terminal reaches only the worker, which
        // then tells the job to save.
        command.args(arguments).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        wait_passively(&mut command, |name| std::env::var_os(name).is_some());
        let (sender, started) = oneshot::channel();
        let (end_sender, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("job-process".to_owned())
            .spawn(move || supervise(command, sender, end_sender))
            .map_err(failed)?;
        let gone = |_| io::Error::other("the thread that starts it has ended");
        let (pid, input, output, group) = started.await.map_err(gone).and_then(|started| started).map_err(failed)?;
        let process = Self {
            pid,
            input: ChildStdin::from_std(input).map_err(failed)?,
            lines: FramedRead::new(
                ChildStdout::from_std(output).map_err(failed)?,
                LinesCodec::new_with_max_length(MAX_MESSAGE_BYTES),
            ),
            group,
            ended,
        };
        Ok(process)
    }

    /// Sends a message to the process. Ignores write errors: if the process has ended, that is
    /// noticed when it is waited for.
    async fn tell(&mut self, message: &impl Serialize) -> Result<(), JobError> {
        let mut line = serde_json::to_vec(message).map_err(|error| {
            JobError::Permanent(format!("cannot serialize a message to the job's process: {error}"))
        })?;
        line.push(b'\n');
        match tokio::time::timeout(TELL_LIMIT, self.input.write_all(&line)).await {
            Ok(Ok(()) | Err(_)) => Ok(()),
            Err(_) => Err(JobError::Retryable(format!(
                "the job's process (pid {}) did not read a message within {} s; killed it",
                self.pid,
                TELL_LIMIT.as_secs()
            ))),
        }
    }

    /// Handles messages until the process has reported how the job ended. Returns `None` if the
    /// process ended without a report.
    async fn follow(
        &mut self,
        context: &mut JobContext,
        evidence: &mut Evidence,
        disk: Option<DiskLimit>,
    ) -> Result<Option<Result<JobOutcome, JobError>>, JobError> {
        let mut told = None;
        let mut looks = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = 0_u32;
        let stop = context.stop.clone();
        loop {
            tokio::select! {
                line = self.lines.next() => match line {
                    Some(Ok(line)) => match understand(&line) {
                        Some(FromJob::Progress(progress)) => context.progress.set(progress),
                        Some(FromJob::Counted(counts)) => counted::add(counts),
                        Some(FromJob::Ended(ended)) => return Ok(Some(ended)),
                        None => {}
                    },
                    Some(Err(error)) => {
                        return Err(JobError::Permanent(format!("cannot read a message of the job's process: {error}")));
                    }
                    None => return Ok(None),
                },
                _ = stop.wait(), if told.is_none() => told = self.pass_on(stop.requested(), told).await?,
                Ok(()) = context.lease_until.changed() => {
                    let until = MonotonicTime::of(context.lease_until.borrow_and_update().into_std());
                    self.tell(&ToJob::LeaseUntil(until)).await?;
                }
                _ = looks.tick() => {
                    // There may be a more severe reason than before.
                    told = self.pass_on(stop.requested(), told).await?;
                    evidence.peak_bytes = limits::peak_memory(self.pid).unwrap_or(0).max(evidence.peak_bytes);
                    looked = looked.wrapping_add(1);
                    if let Some(disk) = &disk && looked.is_multiple_of(LOOKS_PER_MEASURE) {
                        disk.check(context).await?;
                    }
                }
            }
        }
    }

    async fn pass_on(
        &mut self,
        reason: Option<StopReason>,
        told: Option<StopReason>,
    ) -> Result<Option<StopReason>, JobError> {
        if let Some(reason) = reason.filter(|_| reason != told) {
            self.tell(&ToJob::Stop(reason)).await?;
        }
        Ok(reason)
    }

    /// Waits for the process to end, and kills it if that takes too long.
    async fn end(mut self) -> Result<ExitStatus, JobError> {
        let lost = |error: String| JobError::Retryable(format!("cannot wait for the job's process: {error}"));
        let ended = match tokio::time::timeout(END_LIMIT, &mut self.ended).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!(
                    pid = self.pid,
                    "the job's process has reported its result but is still running; killing it"
                );
                self.group.kill();
                (&mut self.ended).await
            }
        };
        ended.map_err(|error| lost(error.to_string()))?.map_err(|error| lost(error.to_string()))
    }
}

impl JobProcesses {
    fn disk_limit(&self) -> Option<DiskLimit> {
        let setting = self.settings.name("worker.job_disk_max_bytes");
        self.worker.job_disk_max_bytes.map(|max_bytes| DiskLimit { max_bytes, setting })
    }
}

type Started = (u32, std::process::ChildStdin, std::process::ChildStdout, Arc<Group>);

/// Starts a process and waits for it, on one thread.
fn supervise(
    mut command: Command,
    started: oneshot::Sender<io::Result<Started>>,
    ended: oneshot::Sender<io::Result<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // The receiver is gone if the attempt was abandoned.
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    let group = Arc::new(Group(Mutex::new(pid)));
    if let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take())
        && started.send(Ok((child.id(), input, output, group.clone()))).is_err()
    {
        group.kill();
    }
    if let Some(pid) = pid {
        // The process is not reaped yet, so the id of its group cannot be reused before the group
        // is killed.
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {
        }
    }
    group.kill();
    group.forget();
    let _ = ended.send(child.wait());
}

/// Makes waiting OpenMP threads sleep: spinning threads would block others on a shared processor.
/// libgomp reads the environment once, when it is loaded. Variables that the user has set are kept.
fn wait_passively(command: &mut Command, is_set: impl Fn(&str) -> bool) {
    const SPINNING: [&str; 3] = [WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"];
    if !SPINNING.into_iter().any(is_set) {
        command.env(WAIT_POLICY, "passive");
    }
}

/// Parses a line from a process. Returns `None` if it is not a message, for example because a
/// library printed it.
fn understand(line: &str) -> Option<FromJob> {
    match serde_json::from_str(line) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::debug!(%error, "the job's process printed a line that is not a message");
            None
        }
    }
}

/// The limit on the size of a job's files, and the name of its setting.
struct DiskLimit {
    max_bytes: u64,
    setting: String,
}

impl DiskLimit {
    async fn check(&self, context: &JobContext) -> Result<(), JobError> {
        let dir = context.cache_dir.clone();
        let bytes = tokio::task::spawn_blocking(move || limits::disk_bytes(&dir)).await.unwrap_or(0);
        if bytes <= self.max_bytes {
            return Ok(());
        }
        Err(JobError::Permanent(format!(
            "the job's files use {bytes} bytes of disk, more than the {} of {}; stopped the job",
            self.max_bytes, self.setting
        )))
    }
}

/// What is known about the memory usage of a process that has died.
struct Evidence {
    memory_max_bytes: Option<u64>,
    /// Name of that setting.
    memory_setting: String,
    kills_before: Option<u64>,
    kills_after: Option<u64>,
    peak_bytes: u64,
}

impl Evidence {
    fn memory_ran_out(&self) -> bool {
        let killer_was_here =
            matches!((self.kills_before, self.kills_after), (Some(before), Some(after)) if after > before);
        killer_was_here || self.memory_max_bytes.is_some_and(|max| self.peak_bytes as f64 >= NEARLY_ALL * max as f64)
    }

    fn memory(&self) -> String {
        // A process that died immediately was never measured.
        let seen = match self.peak_bytes >> 20 {
            0 => String::new(),
            mib => format!("; its measured peak memory was {mib} MiB"),
        };
        match self.memory_max_bytes {
            Some(max) => format!("{seen}; {} allows {} MiB", self.memory_setting, max >> 20),
            None => seen,
        }
    }
}

const ENDED: &str = "the job's process was terminated by signal";
const SIGNALS: [(Signal, &str); 13] = [
    (Signal::KILL, "SIGKILL"),
    (Signal::TERM, "SIGTERM"),
    (Signal::INT, "SIGINT"),
    (Signal::HUP, "SIGHUP"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::BUS, "SIGBUS"),
    (Signal::ILL, "SIGILL"),
    (Signal::FPE, "SIGFPE"),
    (Signal::TRAP, "SIGTRAP"),
    (Signal::SYS, "SIGSYS"),
    (Signal::XFSZ, "SIGXFSZ"),
];

/// Returns the error for a process that ended without reporting a result.
fn death(status: ExitStatus, evidence: &Evidence, told: Option<StopReason>) -> JobError {
    let Some(signal) = status.signal() else {
        let code = status.code().unwrap_or_default();
        return JobError::Crashed(format!(
            "the job's process ended with exit status {code} and no result; see its log"
        ));
    };
    let signal = SIGNALS.into_iter().find(|(named, _)| named.as_raw() == signal).ok_or(signal);
    let memory = evidence.memory();
    match signal {
        Ok((Signal::KILL, _)) if evidence.memory_ran_out() => {
            JobError::Crashed(format!("{ENDED} 9 (SIGKILL): out of memory{memory}"))
        }
        // It was told to stop and then killed from outside, which is not a fault of the job.
        Ok((Signal::KILL | Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT, _)) if told.is_some() => {
            JobError::Stopped
        }
        Ok((signal @ (Signal::KILL | Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT), name)) => {
            JobError::Killed(format!("{ENDED} {} ({name}) from outside{memory}", signal.as_raw()))
        }
        Ok((signal, name)) => JobError::Crashed(format!("{ENDED} {} ({name}){memory}; see its log", signal.as_raw())),
        Err(number) => JobError::Crashed(format!("{ENDED} {number}{memory}; see its log")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn after(signal: Signal, evidence: &Evidence, told: Option<StopReason>) -> JobError {
        death(ExitStatus::from_raw(signal.as_raw()), evidence, told)
    }

    const CALM: Evidence = Evidence {
        memory_max_bytes: Some(1 << 30),
        memory_setting: String::new(),
        kills_before: Some(3),
        kills_after: Some(3),
        peak_bytes: 1 << 20,
    };

    #[test]
    fn a_death_of_its_own_is_a_crash_and_one_from_outside_is_not() {
        for (signal, name) in [(Signal::SEGV, "11 (SIGSEGV)"), (Signal::ABORT, "6 (SIGABRT)"), (Signal::BUS, "SIGBUS")]
        {
            let error = after(signal, &CALM, Some(StopReason::Shutdown));
            assert!(matches!(&error, JobError::Crashed(text) if text.contains(name)), "{error:?}");
        }
        for signal in [Signal::KILL, Signal::TERM, Signal::HUP] {
            assert_eq!(after(signal, &CALM, Some(StopReason::Pause)), JobError::Stopped);
            let error = after(signal, &CALM, None);
            assert!(matches!(&error, JobError::Killed(text) if text.contains("from outside")), "{error:?}");
        }
        let error = death(ExitStatus::from_raw(101 << 8), &CALM, None);
        assert!(matches!(&error, JobError::Crashed(text) if text.contains("exit status 101")), "{error:?}");
    }

    #[test]
    fn a_kill_for_lack_of_memory_is_a_crash() {
        let full = Evidence { peak_bytes: (1 << 30) - (1 << 20), ..CALM };
        let found = Evidence { kills_after: Some(4), ..CALM };
        for evidence in [full, found] {
            let error = after(Signal::KILL, &evidence, None);
            assert!(matches!(&error, JobError::Crashed(text) if text.contains("out of memory")), "{error:?}");
        }
    }

    #[test]
    fn what_the_user_says_of_waiting_stands() {
        let policy = |set: &str| {
            let mut command = Command::new("true");
            wait_passively(&mut command, |name| name == set);
            command.get_envs().count()
        };
        assert_eq!((policy(""), policy(WAIT_POLICY), policy("GOMP_SPINCOUNT")), (1, 0, 0));
    }
}
