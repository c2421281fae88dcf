//! Standard output and standard error, without panics. A closed pipe (`| head -1`) ends the command
//! quietly; a full disk is an error.

use std::io::Write;

use terminal_size::Width;

use crate::failure::Failure;

/// Prints a reply or a result to standard output.
///
/// # Errors
/// [`Failure::Closed`] if the reader is gone, [`Failure::Local`] if writing fails otherwise.
pub fn out(text: &str) -> Result<(), Failure> {
    line(std::io::stdout().lock(), text).map_err(out_failure)
}

/// The failure for an error of standard output.
pub fn out_failure(error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Local(format!("cannot write to standard output: {error}")),
    }
}

/// Prints progress or an error to standard error.
///
/// # Errors
/// [`Failure::Closed`] if the reader is gone. Other errors of standard error cannot be reported
/// anywhere and are ignored.
pub fn err(text: &str) -> Result<(), Failure> {
    match line(std::io::stderr().lock(), text) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Closed),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a text and its newline at once, so that lines of several processes do not mix.
fn line(mut stream: impl Write, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{text}\n").as_bytes())?;
    stream.flush()
}

/// The width of standard output: that of the terminal, or else COLUMNS. Without either there is no
/// limit, so that every row of a table is one line for `grep` and `awk`.
pub fn out_columns() -> Option<usize> {
    columns(std::io::stdout(), std::env::var("COLUMNS").ok().as_deref())
}

/// The width of the terminal on standard error.
pub fn err_columns() -> usize {
    columns(std::io::stderr(), std::env::var("COLUMNS").ok().as_deref()).unwrap_or(USUAL_COLUMNS)
}

/// The width assumed for a terminal of unknown width.
const USUAL_COLUMNS: usize = 80;

fn columns<S: std::io::IsTerminal + std::os::fd::AsFd>(stream: S, variable: Option<&str>) -> Option<usize> {
    let said = variable.and_then(|text| text.trim().parse().ok()).filter(|columns| *columns > 0);
    if !stream.is_terminal() {
        return said;
    }
    let own = terminal_size::terminal_size_of(&stream).map(|(Width(columns), _)| usize::from(columns));
    own.filter(|columns| *columns > 0).or(said).or(Some(USUAL_COLUMNS))
}
