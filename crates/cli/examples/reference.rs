//! Writes the reference part of the documentation: the recipe, the command line and the API, each from the definitions that
//! the programs themselves use.
//!
//! `cargo run -p inheritune-cli --example reference DIR` writes `recipe.md`, `command-line.md` and `api.md` into DIR.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Command, CommandFactory as _};
use inheritune_cli::args::Cli;
use inheritune_domain::spec::{defaults, limits};
use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};

/// Fields of a recipe that TOML writes in another way than the API, and how.
const IN_TOML: [(&str, &str); 4] = [
    ("CorpusSpec.tokenizer", "`\"reference\"`, `{ uri = \"FOLDER\" }` or `{ train = { vocab_size = N } }`"),
    ("TargetSpec.inherit", "`\"all\"`, `\"official-code\"`, `\"blocks\"`, `\"nothing\"`, or a list of parts"),
    ("TargetSpec.layer_map", "`\"first\"`, `\"first-and-last\"` or `{ list = [0, 2, 4] }`"),
    ("TargetSpec.inherit_parts", ""),
];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: reference DIR")?);
    std::fs::create_dir_all(&dir)?;
    let pool = DescriptorPool::decode(inheritune_api::FILE_DESCRIPTOR_SET)?;
    std::fs::write(dir.join("recipe.md"), recipe(&pool)?)?;
    std::fs::write(dir.join("command-line.md"), command_line())?;
    std::fs::write(dir.join("api.md"), api(&pool))?;
    Ok(())
}

fn recipe(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let spec = pool.get_message_by_name("inheritune.v1.RunSpec").ok_or("RunSpec is missing")?;
    let mut text =
        "# Recipe reference\n\nA recipe is a TOML file. `inheritune recipe check FILE` checks one without a \
                    server. This page is generated from the definitions that the programs use.\n"
            .to_owned();
    let of_field = |(fields, value): (&'static [&'static str], String)| fields.iter().map(move |f| (*f, value.clone()));
    let defaults = defaults::table().into_iter().flat_map(of_field).collect();
    add_section(&mut text, &defaults, &spec, "");
    Ok(text)
}

/// Adds the fields of `message`, which a recipe has under `path`, and then those of the tables in it.
fn add_section(text: &mut String, defaults: &BTreeMap<&str, String>, message: &MessageDescriptor, path: &str) {
    let heading = if path.is_empty() { "The recipe itself".to_owned() } else { format!("`[{path}]`") };
    let _ = writeln!(text, "\n## {heading}\n\n{}\n", comment_at(&message.parent_file(), message.path()));
    let (mut tables, mut rows) = (Vec::new(), Vec::new());
    for field in message.fields() {
        let name = format!("{}.{}", message.name(), field.name());
        let in_toml = IN_TOML.iter().find(|(field, _)| *field == name).map(|(_, written)| *written);
        let default = defaults.get(name.as_str()).map_or_else(String::new, |value| format!("`{value}`"));
        match (in_toml, field.kind()) {
            (Some(""), _) => {}
            (Some(written), _) => rows.push(row(&field, &name, written, default)),
            (None, Kind::Message(inner)) => tables.push((field, inner)),
            (None, kind) => rows.push(row(&field, &name, &kind_in_toml(&field, &kind), default)),
        }
    }
    if !rows.is_empty() {
        text.push_str("| field | value | default | bounds | meaning |\n|---|---|---|---|---|\n");
        rows.iter().for_each(|row| text.push_str(row));
    }
    for (field, inner) in tables {
        let below = match (path, field.is_list()) {
            ("", true) => format!("[{}]", field.name()),
            ("", false) => field.name().to_owned(),
            (path, _) => format!("{path}.{}", field.name()),
        };
        add_section(text, defaults, &inner, &below);
    }
}

fn row(field: &FieldDescriptor, name: &str, value: &str, default: String) -> String {
    let bounds: Vec<String> = limits::TABLE
        .iter()
        .filter(|limit| limit.fields().contains(&name))
        .map(|limit| match limit {
            limits::Limit::Whole(limit) => limit.description(),
            limits::Limit::Real(limit) => limit.description(),
            limits::Limit::Text(limit) => limit.description(),
            limits::Limit::List(limit) => limit.description(),
        })
        .collect();
    let meaning = comment_at(&field.parent_message().parent_file(), field.path());
    let cells = [format!("`{}`", field.name()), value.to_owned(), default, bounds.join("; "), meaning];
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn kind_in_toml(field: &FieldDescriptor, kind: &Kind) -> String {
    let one = match kind {
        Kind::Double | Kind::Float => "number".to_owned(),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::String => "text".to_owned(),
        Kind::Enum(of) => values(of).join(", "),
        _ => "whole number".to_owned(),
    };
    if field.is_list() { format!("list of {one}") } else { one }
}

/// The values of an enumeration as recipes write them: the API's without their prefix.
fn values(of: &EnumDescriptor) -> Vec<String> {
    let names: Vec<String> = of.values().map(|value| value.name().to_owned()).collect();
    let prefix = names.first().map_or("", |first| first.trim_end_matches("UNSPECIFIED"));
    // Families and parts are written with underscores, as Hugging Face does.
    let separator = if matches!(of.name(), "Family" | "InheritPart") { "_" } else { "-" };
    let value =
        |name: &String| format!("`\"{}\"`", name.trim_start_matches(prefix).to_lowercase().replace('_', separator));
    names.iter().skip(1).map(value).collect()
}

/// The comment before the definition at `path`, on one line.
fn comment_at(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let found = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let text = found.map_or("", |location| location.leading_comments());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn command_line() -> String {
    let mut text = "# Command line reference\n\nThis page is what `--help` prints.\n".to_owned();
    let mut command = Cli::command().name("inheritune").bin_name("inheritune").term_width(96);
    command.build();
    add_command(&mut text, &mut command, "inheritune");
    text
}

fn add_command(text: &mut String, command: &mut Command, name: &str) {
    let help = command.render_long_help().to_string();
    let _ = write!(text, "\n## `{name}`\n\n```text\n{}\n```\n", help.trim_end());
    for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
        let name = format!("{name} {}", inner.get_name());
        add_command(text, inner, &name);
    }
}

fn api(pool: &DescriptorPool) -> String {
    let mut text =
        "# API reference\n\nPackage `inheritune.v1`, from the comments in `proto/inheritune/v1`. Fields are only \
                    ever added.\n"
            .to_owned();
    for service in pool.services().filter(|service| service.package_name() == "inheritune.v1") {
        let file = service.parent_file();
        let _ = writeln!(text, "\n## {}\n\n{}\n", service.name(), comment_at(&file, service.path()));
        text.push_str("| method | request | response | meaning |\n|---|---|---|---|\n");
        for method in service.methods() {
            let stream = if method.is_server_streaming() { "stream of " } else { "" };
            let (input, output, said) = (method.input(), method.output(), comment_at(&file, method.path()));
            let _ =
                writeln!(text, "| `{}` | `{}` | {stream}`{}` | {said} |", method.name(), input.name(), output.name());
        }
    }
    text.push_str("\n## Messages\n");
    for message in pool.all_messages().filter(|message| message.package_name() == "inheritune.v1") {
        let file = message.parent_file();
        let _ = writeln!(text, "\n### {}\n\n{}\n", message.name(), comment_at(&file, message.path()));
        if message.fields().len() > 0 {
            text.push_str("| field | number | type | meaning |\n|---|---|---|---|\n");
        }
        for field in message.fields() {
            let kind = match field.kind() {
                Kind::Message(of) => of.name().to_owned(),
                Kind::Enum(of) => of.name().to_owned(),
                other => format!("{other:?}").to_lowercase(),
            };
            let kind = if field.is_list() { format!("repeated {kind}") } else { kind };
            let said = comment_at(&file, field.path()).replace('|', "\\|");
            let _ = writeln!(text, "| `{}` | {} | {kind} | {said} |", field.name(), field.number());
        }
    }
    text
}
