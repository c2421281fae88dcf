//! Progress on standard error: bars on a terminal, few plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use inheritune_api::convert::time::from_timestamp;
use inheritune_api::v1::{self, JobStatus};

use crate::report::numbers;
use crate::show::{one_line, progress_line, status};

/// Least time between two plain lines about one job.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Steps of a bar.
const BAR_STEPS: u64 = 1000;
/// Width of a job's label before its bar.
const LABEL_WIDTH: usize = 38;

/// Where progress goes.
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
    /// What fits standard error.
    pub fn new() -> Self {
        let mode = if std::io::stderr().is_terminal() {
            Mode::Bars { all: MultiProgress::new(), jobs: HashMap::new() }
        } else {
            Mode::Lines(HashMap::new())
        };
        Self { mode }
    }

    /// Says nothing.
    pub fn silent() -> Self {
        Self { mode: Mode::Silent }
    }

    /// One line that stays.
    pub fn say(&self, text: &str) {
        match &self.mode {
            Mode::Silent => {}
            Mode::Lines(_) => eprintln!("{text}"),
            // A terminal that is gone is no reason to stop.
            Mode::Bars { all, .. } => drop(all.println(text)),
        }
    }

    /// A job as it is now.
    pub fn job(&mut self, job: &v1::Job) {
        let now = Instant::now();
        match &mut self.mode {
            Mode::Silent => {}
            Mode::Lines(shown) => {
                let last = shown.get(&job.id);
                let changed = last.is_none_or(|last| last.status != job.status);
                if changed || last.is_some_and(|last| now.duration_since(last.at) >= LINE_EVERY) {
                    eprintln!("{}", plain_line(job));
                    shown.insert(job.id.clone(), Shown { status: job.status, at: now });
                }
            }
            Mode::Bars { all, jobs } => {
                if is_final(job.status) {
                    if let Some(bar) = jobs.remove(&job.id) {
                        bar.finish_and_clear();
                    }
                    drop(all.println(plain_line(job)));
                    return;
                }
                let bar = jobs.entry(job.id.clone()).or_insert_with(|| all.add(new_bar(&job.label)));
                let progress = job.progress.clone().unwrap_or_default();
                let share = progress.progress_percentage.unwrap_or(0.0) / 100.0;
                bar.set_position((share * BAR_STEPS as f64) as u64);
                bar.set_message(match job.status() {
                    JobStatus::Running if progress.total > 0 => progress_line(&progress),
                    JobStatus::Queued => "waits for a worker".to_owned(),
                    JobStatus::Unspecified
                    | JobStatus::Running
                    | JobStatus::Pausing
                    | JobStatus::Paused
                    | JobStatus::Cancelling
                    | JobStatus::Succeeded
                    | JobStatus::Failed
                    | JobStatus::Cancelled => status(job.status).to_lowercase(),
                });
            }
        }
    }

    /// A bar over so many bytes; hidden where there is no terminal.
    pub fn bytes(&self, total: u64) -> ProgressBar {
        match &self.mode {
            Mode::Silent | Mode::Lines(_) => ProgressBar::hidden(),
            Mode::Bars { all, .. } => {
                let bar = all.add(ProgressBar::new(total));
                bar.set_style(style("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left"));
                bar
            }
        }
    }

    /// Takes the bars away.
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

fn new_bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::new(BAR_STEPS);
    bar.set_style(style("{prefix} {bar:20} {wide_msg}"));
    let label: String = one_line(label).chars().take(LABEL_WIDTH).collect();
    bar.set_prefix(format!("{label:LABEL_WIDTH$}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ")
}

/// Nothing happens any more.
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

fn plain_line(job: &v1::Job) -> String {
    let label = one_line(&job.label);
    let rest = match job.status() {
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
            format!("waits for another attempt after: {}", one_line(&job.error))
        }
        JobStatus::Queued => "waits for a worker".to_owned(),
        JobStatus::Unspecified
        | JobStatus::Pausing
        | JobStatus::Paused
        | JobStatus::Cancelling
        | JobStatus::Cancelled => status(job.status).to_lowercase(),
    };
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
