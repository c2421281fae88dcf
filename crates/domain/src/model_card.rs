//! The metadata of a model card: the YAML between the two `---` lines of `README.md`, as read by
//! the Hugging Face hub (<https://huggingface.co/docs/hub/model-cards>). Unknown values are left
//! out, never guessed.

use std::fmt::Write as _;

use crate::benchmark::{self, Prompt};

/// The task and the metric whose perplexity is reported as well.
const VALIDATION_LOSS_TASK: &str = "validation_loss";
const LOSS_METRIC: &str = "loss_nats";

/// Metadata of a model for the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardMetadata {
    /// The model that it was derived from: `owner/name` for a model on the hub, else the name of
    /// its folder.
    pub base_model: Option<String>,
    /// The license of the base model, which also applies to this model.
    pub license: Option<License>,
}

/// A license in the notation of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct License {
    /// An identifier of the hub, or `other` for any other license.
    pub id: String,
    /// The name of an `other` license.
    pub name: Option<String>,
    /// Where an `other` license is found: a file of the model, or a URL.
    pub link: Option<String>,
}

impl CardMetadata {
    /// Returns the metadata as YAML, including the two `---` lines.
    pub fn to_yaml(&self) -> String {
        let mut text = String::from("---\nlibrary_name: transformers\npipeline_tag: text-generation\n");
        if let Some(name) = &self.base_model {
            line(&mut text, "base_model", name);
        }
        if let Some(License { id, name, link }) = &self.license {
            line(&mut text, "license", id);
            for (key, value) in [("license_name", name), ("license_link", link)] {
                if let Some(value) = value {
                    line(&mut text, key, value);
                }
            }
        }
        text.push_str("tags:\n- inheritune\n---\n");
        text
    }
}

fn line(text: &mut String, key: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{key}: {}", quoted(value));
}

/// Returns `text` as a double-quoted YAML scalar, with escapes where needed.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            // Printable characters of YAML, except line breaks and the byte order mark.
            ' '..='~'
            | '\u{a0}'..='\u{2027}'
            | '\u{202a}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fefe}'
            | '\u{ff00}'..='\u{fffd}' => {
                out.push(c);
            }
            '\u{10000}'.. => out.push(c),
            other => {
                let _ = write!(out, "\\u{:04x}", u32::from(other));
            }
        }
    }
    out.push('"');
    out
}

/// Returns a number that YAML 1.1 parses as a number: with a decimal point, and with a sign in its
/// exponent.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with('-') { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// Returns the name of the model at `location`: the name on the hub if it is in a cache of the hub
/// (`models--owner--name`), else the folder name if it is a valid name on the hub. Returns `None`
/// for an artifact.
pub fn base_model(location: &str) -> Option<String> {
    if location.starts_with("artifact:") {
        return None;
    }
    hub_id(location, "models--").or_else(|| {
        let name = location.trim_end_matches('/').rsplit('/').next()?;
        is_hub_name(name).then(|| name.to_owned())
    })
}

/// Returns the name on the hub of the data set at `location`, if it is in a cache of the hub
/// (`datasets--owner--name`).
pub fn dataset(location: &str) -> Option<String> {
    hub_id(location, "datasets--")
}

fn hub_id(location: &str, prefix: &str) -> Option<String> {
    let folder = location.split('/').find_map(|part| part.strip_prefix(prefix))?;
    let parts: Vec<&str> = folder.splitn(2, "--").collect();
    parts.iter().all(|part| is_hub_name(part)).then(|| parts.join("/"))
}

/// Returns whether the hub accepts `name`: at most 96 letters, digits, `-`, `_` and `.`, where
/// neither `-` nor `.` is at an end.
fn is_hub_name(name: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    (1..=96).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && is_end(name.chars().next())
        && is_end(name.chars().last())
        && !name.contains("..")
        && !name.contains("--")
}

/// Returns the base model of a card that Inheritune wrote, because an artifact has no name of its
/// own.
pub fn base_model_of_card(card: &str) -> Option<String> {
    let name = value(card, "base_model")?;
    let is_name = name.split('/').count() <= 2 && name.split('/').all(is_hub_name);
    (is_name && front_matter(card)?.contains("\n- inheritune\n")).then_some(name)
}

/// Returns a plain value of the metadata of a card.
fn value(card: &str, key: &str) -> Option<String> {
    let line = front_matter(card)?.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = line.trim().trim_matches(['"', '\'']).trim();
    let is_plain = !value.is_empty() && !value.starts_with(['[', '{', '|', '>', '&', '*', '!', '#']);
    is_plain.then(|| value.to_owned())
}

/// Returns the license stated in a model card.
pub fn license_of_card(card: &str) -> Option<License> {
    let value = |key: &str| value(card, key);
    let id = value("license")?;
    if !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')) {
        return None;
    }
    let (name, link) = (value("license_name"), value("license_link"));
    Some(if id == "other" { License { id, name, link } } else { License { id, name: None, link: None } })
}

/// Returns the license in the file `name` of a model, or `other` if its text is not recognized.
pub fn license_of_file(name: &str, text: &str) -> License {
    let start: String = text.chars().take(4000).collect::<String>().to_lowercase();
    let has = |needles: &[&str]| needles.iter().all(|needle| start.contains(needle));
    let known = [
        ("apache-2.0", &["apache license", "version 2.0"][..]),
        ("mit", &["permission is hereby granted, free of charge", "without restriction"]),
        ("gpl-3.0", &["gnu general public license", "version 3"]),
        ("cc-by-nc-4.0", &["attribution-noncommercial 4.0 international"]),
        ("cc-by-4.0", &["attribution 4.0 international"]),
    ];
    match known.iter().find(|(_, needles)| has(needles)) {
        Some((id, _)) if !start.contains("affero") && !start.contains("lesser general") => {
            License { id: (*id).to_owned(), name: None, link: None }
        }
        _ => License { id: "other".to_owned(), name: None, link: Some(name.to_owned()) },
    }
}

fn front_matter(card: &str) -> Option<&str> {
    let rest = card.trim_start_matches('\u{feff}').strip_prefix("---\n")?;
    rest.find("\n---").map(|end| &rest[..=end])
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The name of the task: `piqa`.
    pub task: String,
    /// The name of the metric: `acc`.
    pub metric: String,
    /// Its value.
    pub value: f64,
}

/// Returns `card` with the measured values of the model called `name` and the data sets that it was
/// trained on. Returns `None` if the card was not written by Inheritune or already contains
/// results.
pub fn with_results(card: &str, name: &str, measured: &[Measured], datasets: &[String]) -> Option<String> {
    let own = front_matter(card)?;
    let is_ours = own.contains("\n- inheritune\n") && !own.contains("\nmodel-index:");
    let results = results(measured);
    if !is_ours || (results.is_empty() && datasets.is_empty()) {
        return None;
    }
    let mut added = String::new();
    if !datasets.is_empty() {
        added.push_str("datasets:\n");
        datasets.iter().for_each(|id| added.push_str(&format!("- {}\n", quoted(id))));
    }
    if !results.is_empty() {
        let mut metrics: Vec<&str> = Vec::new();
        for result in results.iter().flat_map(|result| &result.metrics) {
            if !metrics.contains(&result.0.as_str()) {
                metrics.push(&result.0);
            }
        }
        added.push_str("metrics:\n");
        metrics.iter().for_each(|metric| added.push_str(&format!("- {}\n", quoted(metric))));
        added.push_str(&format!("model-index:\n- name: {}\n  results:\n", quoted(name)));
        results.iter().for_each(|result| added.push_str(&result.to_yaml()));
    }
    let at = card.find(own)? + own.len();
    Some(format!("{}{added}{}", &card[..at], &card[at..]))
}

/// The values measured on one data set.
struct ResultOfDataset {
    name: String,
    dataset: String,
    config: Option<String>,
    split: Option<&'static str>,
    /// Type, value and name of each metric.
    metrics: Vec<(String, f64, String)>,
}

impl ResultOfDataset {
    fn to_yaml(&self) -> String {
        let mut text = String::from("  - task:\n      type: text-generation\n    dataset:\n");
        let _ = writeln!(text, "      name: {}\n      type: {}", quoted(&self.name), quoted(&self.dataset));
        if let Some(config) = &self.config {
            let _ = writeln!(text, "      config: {}", quoted(config));
        }
        if let Some(split) = self.split {
            let _ = writeln!(text, "      split: {}", quoted(split));
        }
        text.push_str("    metrics:\n");
        for (kind, value, name) in &self.metrics {
            let _ = writeln!(
                text,
                "    - type: {}\n      value: {}\n      name: {}",
                quoted(kind),
                number(*value),
                quoted(name)
            );
        }
        text
    }
}

fn results(measured: &[Measured]) -> Vec<ResultOfDataset> {
    let mut results: Vec<(&str, ResultOfDataset)> = Vec::new();
    for one in measured.iter().filter(|one| one.value.is_finite()) {
        let metrics = if one.task == VALIDATION_LOSS_TASK && one.metric == LOSS_METRIC {
            let perplexity = one.value.exp();
            let is_measured = measured.iter().any(|other| other.task == one.task && other.metric == "perplexity");
            let mut both = vec![("loss".to_owned(), one.value, "loss in nats per token".to_owned())];
            if perplexity.is_finite() && !is_measured {
                both.push(("perplexity".to_owned(), perplexity, "perplexity per token".to_owned()));
            }
            both
        } else {
            vec![(one.metric.clone(), one.value, one.metric.replace('_', " "))]
        };
        match results.iter_mut().find(|(task, _)| *task == one.task) {
            Some((_, result)) => result.metrics.extend(metrics),
            None => results.push((&one.task, ResultOfDataset { metrics, ..of_task(&one.task) })),
        }
    }
    results.into_iter().map(|(_, result)| result).collect()
}

/// Returns the data set of a task, without metrics. A data set that is not on the hub is named
/// after the task, because the hub distinguishes results by their data sets.
fn of_task(task: &str) -> ResultOfDataset {
    let none = ResultOfDataset {
        name: task.to_owned(),
        dataset: task.to_owned(),
        config: None,
        split: None,
        metrics: Vec::new(),
    };
    if task == VALIDATION_LOSS_TASK {
        return ResultOfDataset { name: "held-out part of the training corpus".to_owned(), ..none };
    }
    let group = || benchmark::GROUPS.iter().find(|group| group.name == task);
    let found = benchmark::find(task).map(|found| (found, true));
    match found.or_else(|| group()?.members().first().map(|first| (*first, false))) {
        Some((found, is_whole)) => {
            let (id, config) = match found.dataset.hub.split_once(' ') {
                Some((id, config)) => (id, Some(config)),
                // A subject of MMLU is a configuration of the data set.
                None if matches!(found.prompt, Prompt::Mmlu { .. }) => {
                    (found.dataset.hub, found.name.strip_prefix("mmlu_"))
                }
                None => (found.dataset.hub, None),
            };
            ResultOfDataset {
                dataset: id.to_owned(),
                config: config.filter(|_| is_whole).map(str::to_owned),
                split: Some(found.dataset.split),
                ..none
            }
        }
        None => none,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn u10_names_are_the_hub_s_or_none() {
        for (location, expected) in [
            (
                "file:///home/me/.cache/huggingface/hub/models--openlm-research--open_llama_3b/snapshots/abc",
                Some("openlm-research/open_llama_3b"),
            ),
            ("/hub/models--gpt2/snapshots/abc/", Some("gpt2")),
            ("file:///srv/models/my-reference", Some("my-reference")),
            ("s3://bucket/my-reference/", Some("my-reference")),
            ("file:///srv/models/a%20b", None),
            ("file:///srv/models/..", None),
            ("artifact://01900000-0000-7000-8000-000000000000", None),
        ] {
            assert_eq!(base_model(location).as_deref(), expected, "{location}");
        }
        assert_eq!(dataset("/c/datasets--allenai--c4/snapshots/x/en").as_deref(), Some("allenai/c4"));
        assert_eq!(dataset("/data/c4"), None);
    }

    #[test]
    fn u10_licenses_are_read_and_never_made_up() {
        let card = |lines: &str| license_of_card(&format!("---\n{lines}\n---\n# Model\nlicense: mit\n"));
        let known = |id: &str| Some(License { id: id.to_owned(), name: None, link: None });
        assert_eq!(card("language: en\nlicense: apache-2.0"), known("apache-2.0"));
        assert_eq!(card("license: 'mit'"), known("mit"));
        let llama =
            License { id: "other".to_owned(), name: Some("llama-2".to_owned()), link: Some("LICENSE".to_owned()) };
        assert_eq!(card("license: other\nlicense_name: llama-2\nlicense_link: LICENSE"), Some(llama));
        for none in ["language: en", "license:", "license: [mit, gpl]", "license: a: b", "license: {x: y}"] {
            assert_eq!(card(none), None, "{none}");
        }
        assert_eq!(license_of_card("# no metadata\nlicense: mit\n"), None);
        let apache =
            "                                 Apache License\n                           Version 2.0, January 2004\n";
        assert_eq!(license_of_file("LICENSE", apache).id, "apache-2.0");
        let other = license_of_file("LICENSE.txt", "LLAMA 2 COMMUNITY LICENSE AGREEMENT");
        assert_eq!((other.id.as_str(), other.link.as_deref()), ("other", Some("LICENSE.txt")));
        assert_eq!(license_of_file("COPYING", "GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3").id, "other");
    }

    #[test]
    fn u10_results_go_into_our_cards_once() {
        let card =
            CardMetadata { base_model: Some("my-reference".to_owned()), license: None }.to_yaml() + "\n# Title\n";
        let one =
            |task: &str, metric: &str, value: f64| Measured { task: task.to_owned(), metric: metric.to_owned(), value };
        let measured = [
            one("validation_loss", "loss_nats", 4.0),
            one("piqa", "acc", 0.5),
            one("piqa", "acc_norm", 0.25),
            one("mmlu", "acc", 0.26),
            one("x", "y", f64::NAN),
        ];
        let with = with_results(&card, "a \"name\"\n---\n", &measured, &["allenai/c4".to_owned()]).unwrap();
        assert!(with.starts_with("---\nlibrary_name: transformers\n") && with.ends_with("---\n\n# Title\n"), "{with}");
        for line in [
            "- name: \"a \\\"name\\\"\\u000a---\\u000a\"\n",
            "- \"allenai/c4\"\n",
            "      type: \"baber/piqa\"\n      split: \"validation\"\n",
            "      value: 54.598150033144236\n      name: \"perplexity per token\"\n",
            "      name: \"mmlu\"\n      type: \"cais/mmlu\"\n      split: \"test\"\n",
        ] {
            assert!(with.contains(line), "no {line} in:\n{with}");
        }
        assert!(!with.contains("NaN"), "{with}");
        assert_eq!([1e-7, 1.5e300, 0.5, 2.0].map(number), ["1.0e-7", "1.5e+300", "0.5", "2.0"]);
        assert_eq!(with_results(&with, "n", &measured, &[]), None);
        assert_eq!(with_results("---\ntags:\n- theirs\n---\n", "n", &measured, &[]), None);
        assert_eq!(with_results(&card, "n", &[], &[]), None);
    }
}
