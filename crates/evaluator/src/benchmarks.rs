//! The benchmarks: rows of a data set become [`Item`]s, what a model is asked and how its answers count. Prompts, targets and
//! metrics are lm-evaluation-harness 0.4.13's, character for character. Pure.

pub mod rows;
mod prompts;
mod row;

use inheritune_domain::benchmark::{Benchmark, Question};
use serde_json::Value;

use crate::metrics::TextLength;

/// One row of a benchmark: what is asked, and what would be right.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The row, as the harness hands it on.
    pub document: Value,
    /// What is asked.
    pub question: Question,
    /// How answers count.
    pub target: Target,
}

/// How answers count.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The likeliest is the answer.
    Choice {
        /// The right one.
        gold: usize,
        /// How many there are.
        choices: usize,
        /// Length of each choice in characters, where likelihoods are also compared by the character.
        lengths: Option<Vec<usize>>,
    },
    /// The share of probability on these counts.
    Mass {
        /// Whether each choice is true.
        is_true: Vec<bool>,
    },
    /// The continuation's own likelihood counts, and whether it is what the model would say.
    Word,
    /// The text's likelihood counts, by its length.
    Text(TextLength),
}

impl Item {
    /// What the harness writes down as a document's target: the right choice's place, or the continuation.
    pub fn target_text(&self) -> String {
        match (&self.question, &self.target) {
            (Question::Text(text), _) => text.clone(),
            // Its first space is `target_delimiter`, which is no part of it.
            (Question::Contexts { continuation, .. }, _) => continuation.chars().skip(1).collect(),
            (Question::Continuations { continuations, .. }, Target::Word) => continuations.concat(),
            (Question::Continuations { .. }, Target::Choice { gold, .. }) => gold.to_string(),
            // The harness's own label of TruthfulQA, by which nothing is scored.
            (Question::Continuations { .. }, Target::Mass { .. } | Target::Text(_)) => "0".to_owned(),
        }
    }
}

/// A row that is not what its benchmark needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{split} row {row}: {problem}")]
pub struct RowError {
    /// The split it is in.
    pub split: &'static str,
    /// Its place, from 0.
    pub row: usize,
    /// What is wrong, with the column's name.
    pub problem: String,
}

/// The items of `rows`, one each and in their order. `shots` are the rows that examples are made of.
///
/// # Errors
/// The first row that lacks a column, or holds something else than its benchmark needs.
pub fn items(benchmark: &Benchmark, rows: Vec<Value>, shots: &[Value]) -> Result<Vec<Item>, RowError> {
    let at = |split: &'static str| move |(row, problem)| RowError { split, row, problem };
    let preamble = prompts::preamble(benchmark.prompt, shots).map_err(at(rows::SHOTS_SPLIT))?;
    let item = |row| {
        let document = prompts::document(benchmark.prompt, row)?;
        let (question, target) = prompts::asked(benchmark.prompt, &preamble, row::Row(&document))?;
        Ok(Item { document, question, target })
    };
    rows.into_iter()
        .enumerate()
        .map(|(number, row)| item(row).map_err(|problem| (number, problem)))
        .collect::<Result<_, _>>()
        .map_err(at(benchmark.dataset.split))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use inheritune_domain::benchmark;
    use serde_json::json;

    fn problem(name: &str, row: Value) -> String {
        items(&benchmark::find(name).unwrap(), vec![row], &[]).unwrap_err().to_string()
    }

    #[test]
    fn rows_that_lack_something_are_named() {
        let piqa = |label: Value| json!({ "goal": "g", "sol1": "a", "sol2": "b", "label": label });
        assert_eq!(
            problem("piqa", piqa(json!(2))),
            "validation row 0: column `label` is 2, which is not one of the labels 0 to 1"
        );
        assert!(
            problem("piqa", piqa(json!(-1))).ends_with("column `label` is -1, which is not one of the labels 0 to 1")
        );
        assert!(problem("piqa", json!({ "goal": 1 })).contains("column `goal` is no text"));
        assert!(problem("piqa", json!("text")).contains("there is no column `goal`"));
        let winogrande = json!({ "sentence": "No blank.", "option1": "a", "option2": "b", "answer": "1" });
        assert!(problem("winogrande", winogrande).contains("column `sentence` has no blank `_`"));
        let winogrande = json!({ "sentence": "A _.", "option1": "a", "option2": "b", "answer": "" });
        assert!(problem("winogrande", winogrande).contains("which is neither"));
        let logiqa = json!({ "label": "e", "context": "", "question": "", "options": ["a", "b", "c", "d"] });
        assert!(problem("logiqa", logiqa).contains("which is none of"));
        let mmlu = json!({ "question": "q", "choices": ["a", "b"], "answer": 0 });
        assert!(problem("mmlu_anatomy", mmlu).contains("column `choices` holds 2 texts, not 4"));
        let targets = json!({ "choices": ["a", "b"], "labels": [1] });
        let truthfulqa = json!({ "question": "q", "mc2_targets": targets });
        assert!(problem("truthfulqa_mc2", truthfulqa).contains("has 2 choices and 1 labels"));
        let truthfulqa = json!({ "question": "q", "mc1_targets": { "choices": [], "labels": [] } });
        assert!(problem("truthfulqa_mc1", truthfulqa).contains("column `mc1_targets`: column `choices` is no list"));
        let arc = json!({ "question": "q", "choices": { "text": ["a"], "label": ["A"] }, "answerKey": "B" });
        assert!(problem("arc_easy", arc).contains("which is none of the choices' labels"));
        let wsc273 = json!({ "text": "It.", "pronoun": "they", "pronoun_loc": 1, "options": ["a", "b"], "label": 0 });
        assert!(problem("wsc273", wsc273).contains("column `pronoun_loc` is 1, where no `they` stands"));
    }

    #[test]
    fn a_bad_example_is_named_by_its_split() {
        let row = json!({ "question": "q", "choices": ["a", "b", "c", "d"], "answer": 0 });
        let shot = json!({ "question": "q", "choices": ["a", "b", "c", "d"], "answer": 4 });
        let error = items(&benchmark::find("mmlu_anatomy").unwrap(), vec![row.clone()], &[row, shot]).unwrap_err();
        assert_eq!(error.to_string(), "dev row 1: column `answer` is 4, which is not one of the labels 0 to 3");
    }
}
