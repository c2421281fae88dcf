//! `inheritune`: the command line client, and the report.
//!
//! Owns: the commands ([`args`]), recipe files ([`recipe`]: relative paths, checking offline, explaining), sizes
//! ([`size`]), following runs and jobs ([`watch`], [`screen`]), exporting artifacts ([`export`]), exit codes ([`failure`]), and the report
//! ([`report`]: HTML, Markdown and SVG from one `ReportData`).
//!
//! Entry point: [`main`]; the report alone: [`report::render`].
//!
//! Must never: link a database, the object store or libtorch; decide what a run does next; write a file half.

pub mod args;
mod commands;
mod destination;
pub mod export;
pub mod harness_format;
pub mod failure;
pub mod job_file;
pub mod recipe;
pub mod report;
pub mod scores;
pub mod screen;
pub mod show;
pub mod size;
mod tensorboard;
pub mod watch;

use clap::Parser as _;

use args::Cli;
use failure::Failure;

/// The whole program: parses the command line, carries the command out, and says how it ended.
pub async fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // 0 for --help and --version, 2 for bad usage.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            drop(error.print());
            return code.into();
        }
    };
    match commands::run(cli).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            let word = match &failure {
                Failure::Interrupted(_) => "interrupted",
                Failure::Unsuccessful(_)
                | Failure::Invalid { .. }
                | Failure::Unreachable(_)
                | Failure::NotFound(_)
                | Failure::Server(_)
                | Failure::Local(_) => "error",
            };
            eprintln!("{word}: {failure}");
            failure.exit_code().into()
        }
    }
}
