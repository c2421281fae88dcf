//! Runs the commands.

mod artifact;
mod asked;
mod certs;
mod eval;
mod job;
mod models;
mod run;

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use inheritune_api::client::{Client, Server, Token};
use inheritune_domain::spec::RunSpec;
use inheritune_domain::violation::Violations;
use prost::Message;

use crate::args::{CertsCommand, Cli, Command, Global, Output, RecipeCommand};
use crate::failure::Failure;
use crate::recipe::{self, Missing, ReadRecipe};
use crate::screen::Screen;
use crate::show;
use crate::streams;
use crate::streams::out as say;
use crate::table;

/// Maximum size of a recipe or job file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Runs a command.
///
/// # Errors
/// A [`Failure`], which has an exit code.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    table::fit_to(streams::out_columns());
    match cli.command {
        Command::Run(command) => run::run(global, command).await,
        Command::Job(command) => job::run(global, command).await,
        Command::Artifact(command) => artifact::run(global, command).await,
        Command::Slice(command) => models::slice(global, command).await,
        Command::Train(command) => models::train(global, command).await,
        Command::Eval(command) => eval::run(global, command).await,
        Command::Recipe(RecipeCommand::Check { recipe, explain }) => check(global, &recipe, explain),
        Command::Certs(CertsCommand::Init(command)) => certs::init(global, &command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "inheritune", &mut script);
            let script = String::from_utf8_lossy(&script);
            match global.output {
                Output::Table => say(script.trim_end()),
                Output::Json => say(&serde_json::json!({ "shell": shell.to_string(), "script": script }).to_string()),
            }
        }
    }
}

fn check(global: &Global, path: &Path, explain: bool) -> Result<(), Failure> {
    let ReadRecipe { spec, missing } = read_recipe(path, &[])?;
    let corpus = recipe::corpus_files::describe(&spec.corpus).map_err(|violations| refused(path, violations))?;
    let plan = recipe::explain(&spec);
    let with_corpus =
        |text: String| [vec![text], corpus.iter().map(|line| format!("  {line}")).collect()].concat().join("\n");
    warn_of(global, &missing);
    match global.output {
        Output::Table if explain => say_text(&with_corpus(plan.text())),
        Output::Table if missing.is_empty() => {
            say(&with_corpus(format!("{}: valid ({})", path.display(), show::one_line(&spec.name))))
        }
        Output::Table => say(&with_corpus(format!(
            "{}: every field is valid ({}), but {} not on this machine",
            path.display(),
            show::one_line(&spec.name),
            match missing.len() {
                1 => "1 file that it names is".to_owned(),
                n => format!("{n} files that it names are"),
            }
        ))),
        Output::Json => {
            let not_here: Vec<_> =
                missing.iter().map(|m| serde_json::json!({ "field": m.field, "path": m.path })).collect();
            let json = serde_json::json!({ "recipe": spec, "plan": plan, "corpus": corpus, "missing_files": not_here });
            say(&serde_json::to_string_pretty(&json).map_err(|e| Failure::local(path, e))?)
        }
    }
}

/// Reads the recipe at `path` and resolves its relative paths against the current folder. A
/// `corpus` that is not empty replaces the recipe's sources.
fn read_recipe(path: &Path, corpus: &[String]) -> Result<ReadRecipe, Failure> {
    recipe::read(&read_file(path)?, corpus, &current_dir()?).map_err(|violations| refused(path, violations))
}

/// Reads the recipe of a run that is about to be created, with [`read_recipe`].
fn read_recipe_to_run(global: &Global, path: &Path, corpus: &[String]) -> Result<RunSpec, Failure> {
    let ReadRecipe { spec, missing } = read_recipe(path, corpus)?;
    warn_of(global, &missing);
    Ok(spec)
}

fn refused(path: &Path, violations: Violations) -> Failure {
    let n = violations.0.len();
    let fields = if n == 1 { "1 invalid field".to_owned() } else { format!("{n} invalid fields") };
    Failure::Invalid { headline: format!("{}: {fields}", path.display()), violations }
}

/// Warns about missing files. They are not errors, because the server may run on another machine.
fn warn_of(global: &Global, missing: &[Missing]) {
    if global.output == Output::Json {
        return;
    }
    for Missing { field, path } in missing {
        let advice = match field.as_str() {
            "reference.checkpoint" => {
                "; a model of the Hugging Face hub is downloaded first: hf download OWNER/NAME --local-dir FOLDER"
            }
            _ => "",
        };
        // A closed standard error must not fail the command.
        let _unread = streams::err(&format!("warning: {field}: {} is not on this machine{advice}", path.display()));
    }
}

fn read_file(path: &Path) -> Result<String, Failure> {
    // Not an invalid recipe, but the command line names the file, so it is invalid usage.
    let unreadable = |problem: String| Failure::invalid(format!("{}: {problem}", path.display()));
    let size_bytes = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size_bytes > MAX_FILE_BYTES {
        return Err(unreadable(format!("has {size_bytes} bytes; the limit is {MAX_FILE_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    text_of(bytes).map_err(unreadable)
}

/// The text of a file, without a byte order mark.
fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = *bytes {
        return Err("is text in UTF-16; convert it: `iconv -f UTF-16 -t UTF-8`".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8; convert the file, as `iconv -f LATIN1 -t UTF-8` does, or leave out that character")
    })?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

fn current_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|e| Failure::Local(format!("cannot find the current folder: {e}")))
}

/// A location from the command line, with a relative path resolved against the current folder.
fn location(text: &str) -> Result<String, Failure> {
    let base = current_dir()?;
    match recipe::written::problem(text, &base) {
        Some(problem) => Err(Failure::invalid(problem)),
        None => Ok(recipe::absolute_location(text, &base)),
    }
}

async fn connect(global: &Global) -> Result<Client, Failure> {
    let read = |path: &Option<PathBuf>| path.as_deref().map(read_file).transpose();
    let server = Server {
        address: global.server.clone(),
        ca_pem: read(&global.ca_file)?,
        token: read(&global.token_file)?.as_deref().map(Token::new),
        trace_parent: std::env::var("TRACEPARENT").ok().filter(|text| !text.is_empty()),
    };
    Ok(Client::connect(&server).await?)
}

fn screen(global: &Global) -> Screen {
    if global.no_progress { Screen::silent() } else { Screen::new() }
}

/// Prints a text, folded to the width of the terminal.
fn say_text(text: &str) -> Result<(), Failure> {
    say(&table::folded(text))
}

/// Prints a reply in the chosen format: `message` of type `name` as JSON, or the text that `table`
/// returns for it.
fn print<M: Message>(
    global: &Global,
    message: &M,
    name: &str,
    table: impl FnOnce(&M) -> String,
) -> Result<(), Failure> {
    match global.output {
        Output::Table => say_text(&table(message)),
        Output::Json => say(&show::json(message, name)?),
    }
}

/// A table, and the option that shows its next page.
fn page(table: String, next_page_token: &str) -> String {
    match next_page_token {
        "" => table,
        token => format!("{table}\n\nMore entries: add --page-token {}", show::one_line(token)),
    }
}

fn absent(what: &str) -> Failure {
    Failure::Server(format!("the server's reply contains no {what}"))
}

/// The wire value of an optional enumeration; 0 (unspecified) for none.
fn on_wire<D, W: From<D> + Into<i32>>(value: Option<D>) -> i32 {
    value.map_or(0, |value| W::from(value).into())
}
