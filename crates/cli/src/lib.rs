//! `inheritune`: the command line client, and the report.
//!
//! Owns: the commands ([`args`]), recipe files ([`recipe`]: relative paths, checking offline, explaining), sizes
//! ([`size`]), following runs and jobs ([`watch`], [`screen`]), tables that fit the terminal ([`table`]), the two streams ([`streams`]), exporting artifacts ([`export`]), exit codes ([`failure`]), and the report
//! ([`report`]: HTML, Markdown and SVG from one `ReportData`).
//!
//! Entry point: [`main`]; the report alone: [`report::render`].
//!
//! Must never: link a database, the object store or libtorch; decide what a run does next; write a file half.

pub mod args;
pub mod bar;
mod commands;
mod destination;
pub mod export;
pub mod harness_format;
pub mod failure;
pub mod job_file;
pub mod recipe;
pub mod scores;
pub mod screen;
pub mod show;
pub mod size;
pub mod streams;
pub mod table;
mod tensorboard;
pub mod watch;

use std::ffi::OsString;
use std::io::Write as _;

use clap::Parser as _;

use args::{Cli, Output};
use failure::Failure;

/// The whole program: parses the command line, carries the command out, and says how it ended.
pub async fn main() -> std::process::ExitCode {
    let (failure, output) = match Cli::try_parse() {
        Ok(cli) => {
            let output = cli.global.output;
            match commands::run(cli).await {
                Ok(()) => return std::process::ExitCode::SUCCESS,
                Err(failure) => (failure, output),
            }
        }
        // 0 for --help and --version, 2 for bad usage.
        Err(said) => match parsed_badly(&said, std::env::args_os().skip(1)) {
            Ok(code) => return code.into(),
            Err(failure) => (failure, Output::Json),
        },
    };
    // Where standard error is closed as well, the exit code is all that is left to say.
    drop(match (&failure, output) {
        (Failure::Closed, _) => Ok(()),
        (_, Output::Json) => streams::err(&failure.to_json()),
        (Failure::Interrupted(_), Output::Table) => streams::err(&format!("interrupted: {failure}")),
        (_, Output::Table) => streams::err(&format!("error: {failure}")),
    });
    failure.exit_code().into()
}

/// Says what clap says about a command line, and gives the exit code; a failure where programs are to read it.
fn parsed_badly(said: &clap::Error, args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    if said.use_stderr() && asks_for_json(args) {
        let text = said.render().to_string();
        return Err(Failure::invalid(text.trim_start_matches("error: ").trim_end().to_owned()));
    }
    // What is still in the buffer of standard output shows its errors only when it is flushed.
    match said.print().and_then(|()| std::io::stdout().flush()) {
        Ok(()) => Ok(u8::try_from(said.exit_code()).unwrap_or(2)),
        Err(error) if said.use_stderr() => {
            drop(error);
            Ok(2)
        }
        Err(error) => {
            let failure = streams::out_failure(error);
            if !matches!(failure, Failure::Closed) {
                drop(streams::err(&format!("error: {failure}")));
            }
            Ok(failure.exit_code())
        }
    }
}

/// Whether `--output json` is among arguments that could not be understood.
fn asks_for_json(args: impl Iterator<Item = OsString>) -> bool {
    let mut last_was_output = false;
    for arg in args {
        if arg == "--output=json" || (last_was_output && arg == "json") {
            return true;
        }
        last_was_output = arg == "--output";
    }
    false
}
