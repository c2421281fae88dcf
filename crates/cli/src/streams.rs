//! Standard output and standard error, without panics: a reader that has gone away (`| head -1`) ends the command quietly,
//! a full disk is an error.

use std::io::Write;

use terminal_size::Width;

use crate::failure::Failure;

/// A reply or a result.
///
/// # Errors
/// [`Failure::Closed`] where nobody reads it any more, [`Failure::Local`] where it cannot be written.
pub fn out(text: &str) -> Result<(), Failure> {
    line(std::io::stdout().lock(), text).map_err(out_failure)
}

/// What went wrong with standard output.
pub fn out_failure(error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Local(format!("cannot write to standard output: {error}")),
    }
}

/// Progress or an error.
///
/// # Errors
/// [`Failure::Closed`] where nobody reads it any more. Whatever else is wrong with standard error has no place to be said.
pub fn err(text: &str) -> Result<(), Failure> {
    match line(std::io::stderr().lock(), text) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Closed),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// One write for short texts, so that lines of several processes stay whole.
fn line(mut stream: impl Write, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{text}\n").as_bytes())?;
    stream.flush()
}

/// Columns of standard output: the terminal's; elsewhere what COLUMNS says, or no limit, so that every row of a table is
/// one line for `grep` and `awk`.
pub fn out_columns() -> Option<usize> {
    columns(std::io::stdout(), std::env::var("COLUMNS").ok().as_deref())
}

/// Columns of the terminal that standard error is.
pub fn err_columns() -> usize {
    columns(std::io::stderr(), std::env::var("COLUMNS").ok().as_deref()).unwrap_or(USUAL_COLUMNS)
}

/// Of a terminal that does not know its width.
const USUAL_COLUMNS: usize = 80;

fn columns<S: std::io::IsTerminal + std::os::fd::AsFd>(stream: S, variable: Option<&str>) -> Option<usize> {
    let said = variable.and_then(|text| text.trim().parse().ok()).filter(|columns| *columns > 0);
    if !stream.is_terminal() {
        return said;
    }
    let own = terminal_size::terminal_size_of(&stream).map(|(Width(columns), _)| usize::from(columns));
    own.filter(|columns| *columns > 0).or(said).or(Some(USUAL_COLUMNS))
}
