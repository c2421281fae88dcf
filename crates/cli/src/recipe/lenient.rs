//! Parses a whole recipe even if fields are invalid, so that all of them can be reported at once.
//!
//! serde stops at the first invalid field. So an invalid field is recorded and removed, a missing
//! one is recorded and given a stand-in value, and the recipe is parsed again.

use std::ops::Range;

use inheritune_domain::spec::RunSpec;
use inheritune_domain::violation::Violations;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// Maximum number of invalid fields reported for one recipe.
const MAX_PROBLEMS: usize = 100;

/// Valid stand-in values for all fields without a default, by field name.
const STAND_INS: &str = r#"
name = "recipe"
recipe = "full-data"
corpus = { sources = ["file:///corpus.txt"] }
sources = ["file:///corpus.txt"]
reference = { checkpoint = "file:///reference" }
target = {}
training = { block_size = 1, micro_batch = 1, steps = 1, lr_max = 1.0 }
block_size = 1
micro_batch = 1
lr_max = 10.0
family = "gpt2"
n_layers = 1024
d_model = 2
n_heads = 1
max_positions = 1
vocab_size = 257
data_fraction = 1.0
epochs = 1
"#;

/// Parses what is valid in `text` and returns every invalid field. The recipe is `None` if it
/// cannot be parsed at all.
pub fn parse(text: &str) -> (Option<RunSpec>, Violations) {
    let mut violations = Violations::default();
    let (mut table, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        for error in syntax {
            violations.add(line(text, error.span()), error.message());
        }
        return (None, violations);
    }
    for _ in 0..MAX_PROBLEMS {
        let error = match RunSpec::deserialize(Deserializer::from(table.clone())) {
            Ok(spec) => return (Some(spec), violations),
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().next().unwrap_or_default().to_owned();
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let repaired = match missing {
            Some(field) => {
                let path = add_stand_in(&mut table, &span, field);
                // The field may be missing because an invalid value was removed.
                if let Some(path) = &path
                    && !violations.0.iter().any(|v| v.field.starts_with(path.as_str()))
                {
                    violations.add(path.clone(), "is missing");
                }
                path
            }
            None => {
                let path = take_out(table.get_mut(), &span, "");
                if let Some(path) = &path {
                    violations.add(path.clone(), describe(&message, text, &span));
                }
                path
            }
        };
        if repaired.is_none() {
            violations.add(line(text, error.span()), message);
            return (None, violations);
        }
    }
    (None, violations)
}

fn line(text: &str, span: Option<Range<usize>>) -> String {
    let start = span.map_or(0, |span| span.start).min(text.len());
    format!("line {}", text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count() + 1)
}

fn describe(message: &str, text: &str, span: &Range<usize>) -> String {
    format!("{message} ({})", line(text, Some(span.clone())))
}

/// Removes the field at `span` from the table and returns its path.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>, prefix: &str) -> Option<String> {
    let inner = table.iter_mut().find_map(|(key, value)| {
        let path = join(prefix, key.get_ref());
        // A table may be invalid in one field or as a whole.
        take_out_of_value(value, span, &path).map(Found::Inside).or_else(|| {
            let items = value.get_ref().as_array().map(|items| items.iter());
            let item = items.and_then(|mut items| items.position(|item| item.span() == *span));
            let name = key.get_ref().to_string();
            match item {
                Some(i) => Some(Found::Itself(name, format!("{path}[{i}]"))),
                None => (key.span() == *span || value.span() == *span).then_some(Found::Itself(name, path)),
            }
        })
    })?;
    match inner {
        Found::Inside(path) => Some(path),
        Found::Itself(name, path) => {
            table.remove(name.as_str());
            Some(path)
        }
    }
}

enum Found {
    Inside(String),
    Itself(String, String),
}

fn take_out_of_value(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, path: &str) -> Option<String> {
    match value.get_mut() {
        DeValue::Table(table) => take_out(table, span, path),
        DeValue::Array(items) => {
            items.iter_mut().enumerate().find_map(|(i, item)| take_out_of_value(item, span, &format!("{path}[{i}]")))
        }
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            None
        }
    }
}

/// Inserts a valid value for `field`, which is missing from the table at `span`, and returns its
/// path.
fn add_stand_in(root: &mut Spanned<DeTable<'_>>, span: &Range<usize>, field: &str) -> Option<String> {
    let mut stand_ins = DeTable::parse(STAND_INS).ok()?;
    stand_ins.get_mut().make_owned();
    let (key, value) = stand_ins.into_inner().into_iter().find(|(key, _)| key.get_ref() == field)?;
    let (prefix, table) = match find_table(root.get_mut(), span, field, "") {
        Some(path) => {
            let table = table_at(root.get_mut(), &path)?;
            (path, table)
        }
        None => (String::new(), root.get_mut()),
    };
    if table.contains_key(field) {
        return None;
    }
    // The spans must not match anything in the file.
    let nowhere = usize::MAX - 1..usize::MAX;
    let key = Spanned::new(nowhere.clone(), key.into_inner().into_owned().into());
    let value = Spanned::new(nowhere, value.into_inner());
    table.insert(key, value);
    Some(join(&prefix, field))
}

/// The path of the innermost table at `span` that does not contain `field`.
fn find_table(table: &DeTable<'_>, span: &Range<usize>, field: &str, prefix: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let path = join(prefix, key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => find_table(inner, span, field, &path)
                .or_else(|| (value.span() == *span && !inner.contains_key(field)).then_some(path)),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(i, item)| {
                let inner = item.get_ref().as_table()?;
                let path = format!("{path}[{i}]");
                find_table(inner, span, field, &path)
                    .or_else(|| (item.span() == *span && !inner.contains_key(field)).then_some(path))
            }),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => None,
        }
    })
}

fn table_at<'a, 'i>(root: &'a mut DeTable<'i>, path: &str) -> Option<&'a mut DeTable<'i>> {
    path.split('.').try_fold(root, |table, part| {
        let (name, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
            Some((name, index)) => (name, Some(index.parse::<usize>().ok()?)),
            None => (part, None),
        };
        let value = table.iter_mut().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value.get_mut())?;
        match (value, index) {
            (DeValue::Table(inner), None) => Some(inner),
            (DeValue::Array(items), Some(index)) => match items.get_mut(index)?.get_mut() {
                DeValue::Table(inner) => Some(inner),
                _ => None,
            },
            _ => None,
        }
    })
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
