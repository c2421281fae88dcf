//! Compares the rows of two models. Two measurements of the same sequence or document form a pair.

use std::collections::{BTreeMap, HashMap};

use inheritune_domain::comparison::{Difference, Pair};
use inheritune_domain::spec::ScoreDifference;
use serde_json::Value;

use crate::metrics::TextLength;
use crate::tasks::{Found, Row};

/// Returns the differences `first` minus `second`, by task and metric. Rows are compared if task,
/// index and the digest of the request are equal.
pub fn differences(first: &[Row], second: &[Row]) -> Vec<ScoreDifference> {
    let others: HashMap<(&str, u64), &Row> = second.iter().map(|row| ((row.task.as_str(), row.index), row)).collect();
    let mut pairs: BTreeMap<(&str, String), Vec<Pair>> = BTreeMap::new();
    for row in first {
        let Some(other) = others.get(&(row.task.as_str(), row.index)) else { continue };
        for (metric, pair) in compared(&row.found, &other.found) {
            pairs.entry((&row.task, metric)).or_default().push(pair);
        }
    }
    let difference = |((task, metric), pairs): ((&str, String), Vec<Pair>)| {
        let difference = Difference::of(&pairs)?;
        Some(ScoreDifference { task: task.to_owned(), metric, difference })
    };
    pairs.into_iter().filter_map(difference).collect()
}

/// Returns the pairs of two rows, by metric.
fn compared(first: &Found, second: &Found) -> Vec<(String, Pair)> {
    match (first, second) {
        (Found::Loss(a), Found::Loss(b)) if a.digest == b.digest => match a.length {
            Some(length) => vec![("bits_per_byte".to_owned(), bits(a.sum_nats, b.sum_nats, length))],
            None if a.tokens == b.tokens => {
                let pair = Pair { first: a.sum_nats, second: b.sum_nats, weight: a.tokens as f64 };
                vec![("loss_nats".to_owned(), pair)]
            }
            None => Vec::new(),
        },
        (Found::Answers(a), Found::Answers(b)) if a.prompt_sha256 == b.prompt_sha256 => {
            let values = a.metrics.iter().filter_map(|(metric, value)| {
                let (first, second) = (value.as_f64()?, b.metrics.get(metric).and_then(Value::as_f64)?);
                match (metric.as_str(), a.length) {
                    ("perplexity", _) => {
                        Some(("nats".to_owned(), Pair { first: -first, second: -second, weight: 1.0 }))
                    }
                    ("bits_per_byte", Some(length)) => Some((metric.clone(), bits(-first, -second, length))),
                    ("word_perplexity" | "byte_perplexity" | "bits_per_byte", _) => None,
                    _ => Some((metric.clone(), Pair { first, second, weight: 1.0 })),
                }
            });
            values.collect()
        }
        (Found::Loss(_) | Found::Answers(_), _) => Vec::new(),
    }
}

fn bits(first_nats: f64, second_nats: f64, length: TextLength) -> Pair {
    let bits = |nats: f64| nats / std::f64::consts::LN_2;
    Pair { first: bits(first_nats), second: bits(second_nats), weight: length.bytes as f64 }
}
