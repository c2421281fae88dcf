//! Progress on standard error: bars on a terminal, occasional plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use inheritune_api::convert::time::from_timestamp;
use inheritune_api::v1::{self, JobStatus};

use crate::bar::{self, Standing};
use crate::failure::Failure;
use crate::show::{bytes, one_line, progress_line, speed, status};
use crate::streams;
use inheritune_report::numbers;

/// Minimum time between two plain lines about the same job.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows the progress of runs, jobs and downloads.
#[derive(Debug)]
pub struct Screen {
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    Silent,
    Lines(HashMap<String, Shown>),
    Bars { all: MultiProgress, jobs: HashMap<String, ProgressBar> },
}

#[derive(Debug)]
struct Shown {
    status: i32,
    at: Instant,
}

impl Screen {
    /// Chooses bars or plain lines, depending on whether standard error is a terminal.
    pub fn new() -> Self {
        let mode = if std::io::stderr().is_terminal() {
            Mode::Bars { all: MultiProgress::new(), jobs: HashMap::new() }
        } else {
            Mode::Lines(HashMap::new())
        };
        Self { mode }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self { mode: Mode::Silent }
    }

    /// Prints one permanent line.
    ///
    /// # Errors
    /// [`Failure::Closed`] if the reader of standard error is gone.
    pub fn say(&self, text: &str) -> Result<(), Failure> {
        match &self.mode {
            Mode::Silent => {}
            Mode::Lines(_) => streams::err(text)?,
            // A lost terminal must not stop the command.
            Mode::Bars { all, .. } => drop(all.println(text)),
        }
        Ok(())
    }

    /// Shows the current state of a job.
    ///
    /// # Errors
    /// [`Failure::Closed`] if the reader of standard error is gone.
    pub fn job(&mut self, job: &v1::Job) -> Result<(), Failure> {
        let now = Instant::now();
        match &mut self.mode {
            Mode::Silent => {}
            Mode::Lines(shown) => {
                let last = shown.get(&job.id);
                let changed = last.is_none_or(|last| last.status != job.status);
                if changed || last.is_some_and(|last| now.duration_since(last.at) >= LINE_EVERY) {
                    streams::err(&plain_line(job))?;
                    shown.insert(job.id.clone(), Shown { status: job.status, at: now });
                }
            }
            Mode::Bars { all, jobs } => {
                if is_final(job.status) {
                    if let Some(bar) = jobs.remove(&job.id) {
                        bar.finish_and_clear();
                    }
                    drop(all.println(plain_line(job)));
                    return Ok(());
                }
                let standing = standing(job);
                let bar = jobs.entry(job.id.clone()).or_insert_with(|| all.add(ProgressBar::no_length()));
                // The line is rendered when it is drawn, so it follows changes of the terminal's
                // width.
                bar.set_style(style(move |_| standing.clone()));
                bar.tick();
            }
        }
        Ok(())
    }

    /// A bar for `total` bytes; hidden if there is no terminal.
    pub fn bytes(&self, label: &'static str, total: u64) -> ProgressBar {
        match &self.mode {
            Mode::Silent | Mode::Lines(_) => ProgressBar::hidden(),
            Mode::Bars { all, .. } => {
                let bar = all.add(ProgressBar::new(total));
                bar.set_style(style(move |state| Standing {
                    label: label.to_owned(),
                    share: Some(if total == 0 { 1.0 } else { state.pos() as f64 / total as f64 }),
                    left_s: Some(state.eta().as_secs_f64()),
                    message: format!("{} of {}", bytes(state.pos()), bytes(total)),
                    speed: format!("{}/s", bytes(state.per_sec() as u64)),
                }));
                bar
            }
        }
    }

    /// Removes the bars.
    pub fn clear(&mut self) {
        if let Mode::Bars { all, jobs } = &mut self.mode {
            jobs.clear();
            drop(all.clear());
        }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

/// A bar style of one line that fits the terminal's width at the time of drawing.
fn style(standing: impl Fn(&ProgressState) -> Standing + Clone + Send + Sync + 'static) -> ProgressStyle {
    let line = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // The last column stays free: some terminals wrap when it is written.
        let columns = streams::err_columns().saturating_sub(1);
        // A line that cannot be drawn now is drawn next time.
        let _drawn = out.write_str(&bar::line(&standing(state), columns));
    };
    // The template is a constant with one key, so it always parses.
    ProgressStyle::with_template("{line}").unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("line", line)
}

/// The progress of a job that has not ended.
fn standing(job: &v1::Job) -> Standing {
    let label = one_line(&job.label);
    match (job.status(), job.progress.as_ref()) {
        (JobStatus::Running, Some(progress)) if progress.total > 0 || !progress.message.is_empty() => Standing {
            label,
            share: progress.progress_percentage.map(|percentage| percentage / 100.0),
            left_s: progress.estimated_remaining_seconds,
            message: one_line(&progress.message),
            speed: speed(progress).unwrap_or_default(),
        },
        _ => Standing { label, message: rest(job), ..Standing::default() },
    }
}

/// Whether a status is final: succeeded, failed or cancelled.
pub fn is_final(status: i32) -> bool {
    match JobStatus::try_from(status).unwrap_or(JobStatus::Unspecified) {
        JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => true,
        JobStatus::Unspecified
        | JobStatus::Queued
        | JobStatus::Running
        | JobStatus::Pausing
        | JobStatus::Paused
        | JobStatus::Cancelling => false,
    }
}

/// The state of a job as text.
fn rest(job: &v1::Job) -> String {
    match job.status() {
        JobStatus::Running => match job.progress.as_ref().map(progress_line).filter(|line| !line.is_empty()) {
            Some(line) => line,
            None => "running".to_owned(),
        },
        JobStatus::Succeeded => {
            let ends = job.started_at.and_then(from_timestamp).zip(job.finished_at.and_then(from_timestamp));
            match ends {
                Some((start, end)) => format!("done in {}", numbers::duration((end - start).as_seconds_f64())),
                None => "done".to_owned(),
            }
        }
        JobStatus::Failed => format!("failed: {}", one_line(&job.error)),
        JobStatus::Queued if !job.error.is_empty() => {
            format!("waiting to retry after: {}", one_line(&job.error))
        }
        JobStatus::Queued => "waiting for a worker".to_owned(),
        JobStatus::Unspecified
        | JobStatus::Pausing
        | JobStatus::Paused
        | JobStatus::Cancelling
        | JobStatus::Cancelled => status(job.status).to_lowercase(),
    }
}

fn plain_line(job: &v1::Job) -> String {
    let (label, rest) = (one_line(&job.label), rest(job));
    let mark = match job.status() {
        JobStatus::Succeeded => "✓",
        JobStatus::Failed | JobStatus::Cancelled => "✗",
        JobStatus::Unspecified
        | JobStatus::Queued
        | JobStatus::Running
        | JobStatus::Pausing
        | JobStatus::Paused
        | JobStatus::Cancelling => "·",
    };
    format!("{mark} {label}: {rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(status: JobStatus) -> v1::Job {
        v1::Job { label: "round 2: train".to_owned(), status: status.into(), ..v1::Job::default() }
    }

    #[test]
    fn lines_say_how_a_job_stands() {
        let mut running = job(JobStatus::Running);
        running.progress = Some(v1::Progress {
            done: 30,
            total: 120,
            unit: "tokens".to_owned(),
            per_second: 12_300.0,
            progress_percentage: Some(25.0),
            estimated_remaining_seconds: Some(124.0),
            message: "step 30/120 loss 4.31".to_owned(),
        });
        assert_eq!(
            plain_line(&running),
            "· round 2: train: 25 %  12.3\u{202f}K tokens/s  2 min 04 s left  step 30/120 loss 4.31"
        );
        let mut done = job(JobStatus::Succeeded);
        done.started_at = Some(prost_types::Timestamp { seconds: 10, nanos: 0 });
        done.finished_at = Some(prost_types::Timestamp { seconds: 75, nanos: 0 });
        assert_eq!(plain_line(&done), "✓ round 2: train: done in 1 min 05 s");
        let mut failed = job(JobStatus::Failed);
        failed.error = "no\nroom".to_owned();
        assert_eq!(plain_line(&failed), "✗ round 2: train: failed: no room");
        assert_eq!(plain_line(&job(JobStatus::Paused)), "· round 2: train: paused");
    }
}
