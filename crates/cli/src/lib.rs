//! `inheritune`: the command line client.
//!
//! Owns: the commands ([`args`]), recipe files ([`recipe`]: relative paths, offline checks,
//! explanations), sizes ([`size`]), following runs and jobs ([`watch`], [`screen`]), tables that
//! fit the terminal ([`table`]), standard output and standard error ([`streams`]), exporting
//! artifacts ([`export`]) and exit codes ([`failure`]). The pages of a report are in
//! [`inheritune_report`].
//!
//! Entry point: [`main`].
//!
//! Must never: link a database, the object store or libtorch; decide what a run does next; leave a
//! partially written file.

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

/// Parses the command line, runs the command, prints its error if it fails, and returns the exit
/// code.
pub async fn main() -> std::process::ExitCode {
    let (failure, output) = match Cli::try_parse() {
        Ok(cli) => {
            let output = cli.global.output;
            match commands::run(cli).await {
                Ok(()) => return std::process::ExitCode::SUCCESS,
                Err(failure) => (failure, output),
            }
        }
        // Exit code 0 for --help and --version, 2 for invalid usage.
        Err(said) => match parsed_badly(&said, std::env::args_os().skip(1)) {
            Ok(code) => return code.into(),
            Err(failure) => (failure, Output::Json),
        },
    };
    // If standard error is closed too, only the exit code can report the failure.
    drop(match (&failure, output) {
        (Failure::Closed, _) => Ok(()),
        (_, Output::Json) => streams::err(&failure.to_json()),
        (Failure::Interrupted(_), Output::Table) => streams::err(&format!("interrupted: {failure}")),
        (_, Output::Table) => streams::err(&format!("error: {failure}")),
    });
    failure.exit_code().into()
}

/// Prints clap's message and returns the exit code.
///
/// # Errors
/// The message as a [`Failure`] if it must be printed as JSON.
fn parsed_badly(said: &clap::Error, args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    if said.use_stderr() && asks_for_json(args) {
        let text = said.render().to_string();
        return Err(Failure::invalid(text.trim_start_matches("error: ").trim_end().to_owned()));
    }
    // Errors of buffered output only show when it is flushed.
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

/// Whether arguments that clap rejected contain `--output json`.
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
