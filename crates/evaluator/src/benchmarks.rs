//! The benchmarks: turns rows of a data set into [`Item`]s, which hold the requests to a model and
//! the target of its answers. Prompts, targets and metrics equal those of lm-evaluation-harness
//! 0.4.13, character for character. Pure.

pub mod rows;
mod prompts;
mod row;

use inheritune_domain::benchmark::{Benchmark, Question};
use serde_json::Value;

use crate::metrics::TextLength;

/// One row of a benchmark, with its question and the correct answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The row after the harness's own processing.
    pub document: Value,
    /// The question to the model.
    pub question: Question,
    /// How answers are scored.
    pub target: Target,
}

/// How answers are scored.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The most likely choice is the answer.
    Choice {
        /// Index of the correct choice.
        gold: usize,
        /// Number of choices.
        choices: usize,
        /// Length of each choice in characters, if likelihoods are also compared per character
        /// (`acc_norm`).
        lengths: Option<Vec<usize>>,
    },
    /// The share of probability on the true choices is the score.
    Mass {
        /// Whether each choice is true.
        is_true: Vec<bool>,
    },
    /// The likelihood of the continuation is scored, and whether it is the model's greedy choice.
    Word,
    /// The likelihood of the text is scored, relative to its length.
    Text(TextLength),
}

impl Item {
    /// Returns a document's target as the harness logs it: the index of the correct choice, or the
    /// continuation.
    pub fn target_text(&self) -> String {
        match (&self.question, &self.target) {
            (Question::Text(text), _) => text.clone(),
            // The first space is `target_delimiter`, which is not part of the target.
            (Question::Contexts { continuation, .. }, _) => continuation.chars().skip(1).collect(),
            (Question::Continuations { continuations, .. }, Target::Word) => continuations.concat(),
            (Question::Continuations { .. }, Target::Choice { gold, .. }) => gold.to_string(),
            // The harness's constant label for TruthfulQA; no metric uses it.
            (Question::Continuations { .. }, Target::Mass { .. } | Target::Text(_)) => "0".to_owned(),
        }
    }
}

/// A row that is not valid for its benchmark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{split} row {row}: {problem}")]
pub struct RowError {
    /// The row's split.
    pub split: &'static str,
    /// The row's index, from 0.
    pub row: usize,
    /// The problem, with the column's name.
    pub problem: String,
}

/// Makes one item per row, in order. `shots` are the rows for few-shot examples.
///
/// # Errors
/// A row lacks a column or has an invalid value; the error names the first such row.
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
    fn invalid_rows_are_named() {
        let piqa = |label: Value| json!({ "goal": "g", "sol1": "a", "sol2": "b", "label": label });
        assert_eq!(
            problem("piqa", piqa(json!(2))),
            "validation row 0: column `label` is 2, which is not one of the labels 0 to 1"
        );
        assert!(
            problem("piqa", piqa(json!(-1))).ends_with("column `label` is -1, which is not one of the labels 0 to 1")
        );
        assert!(problem("piqa", json!({ "goal": 1 })).contains("column `goal` is not a text"));
        assert!(problem("piqa", json!("text")).contains("there is no column `goal`"));
        let winogrande = json!({ "sentence": "No blank.", "option1": "a", "option2": "b", "answer": "1" });
        assert!(problem("winogrande", winogrande).contains("column `sentence` has no blank `_`"));
        let winogrande = json!({ "sentence": "A _.", "option1": "a", "option2": "b", "answer": "" });
        assert!(problem("winogrande", winogrande).contains("which is neither"));
        let logiqa = json!({ "label": "e", "context": "", "question": "", "options": ["a", "b", "c", "d"] });
        assert!(problem("logiqa", logiqa).contains("which is not one of"));
        let mmlu = json!({ "question": "q", "choices": ["a", "b"], "answer": 0 });
        assert!(problem("mmlu_anatomy", mmlu).contains("column `choices` has 2 texts instead of 4"));
        let targets = json!({ "choices": ["a", "b"], "labels": [1] });
        let truthfulqa = json!({ "question": "q", "mc2_targets": targets });
        assert!(problem("truthfulqa_mc2", truthfulqa).contains("has 2 choices and 1 labels"));
        let truthfulqa = json!({ "question": "q", "mc1_targets": { "choices": [], "labels": [] } });
        assert!(
            problem("truthfulqa_mc1", truthfulqa)
                .contains("column `mc1_targets`: column `choices` is not a non-empty list")
        );
        let arc = json!({ "question": "q", "choices": { "text": ["a"], "label": ["A"] }, "answerKey": "B" });
        assert!(problem("arc_easy", arc).contains("which is not one of the choices' labels"));
        let wsc273 = json!({ "text": "It.", "pronoun": "they", "pronoun_loc": 1, "options": ["a", "b"], "label": 0 });
        assert!(
            problem("wsc273", wsc273).contains("column `pronoun_loc` is 1, where `they` does not fit into the text")
        );
    }

    #[test]
    fn a_bad_example_is_named_by_its_split() {
        let row = json!({ "question": "q", "choices": ["a", "b", "c", "d"], "answer": 0 });
        let shot = json!({ "question": "q", "choices": ["a", "b", "c", "d"], "answer": 4 });
        let error = items(&benchmark::find("mmlu_anatomy").unwrap(), vec![row.clone()], &[row, shot]).unwrap_err();
        assert_eq!(error.to_string(), "dev row 1: column `answer` is 4, which is not one of the labels 0 to 3");
    }
}
