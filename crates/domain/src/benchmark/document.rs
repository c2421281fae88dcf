//! The rows and requests of a benchmark, as stored in the `documents.jsonl.zst` of an evaluation.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line of `documents.jsonl.zst`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AskedDocument {
    /// The task's name.
    pub task: String,
    /// The index of the document, from 0.
    pub index: u64,
    /// The row, as the harness passes it on.
    pub doc: Value,
    /// The target that the harness records.
    pub target: String,
    /// The question for the model.
    pub question: Question,
}

/// A question for a model: how likely are these continuations?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Several continuations of one context.
    Continuations {
        /// The context.
        context: String,
        /// The entries, one request each.
        continuations: Vec<String>,
    },
    /// One continuation of several contexts ("partial evaluation", Trinh and Le 2018).
    Contexts {
        /// The entries, one request each.
        contexts: Vec<String>,
        /// The continuation.
        continuation: String,
    },
    /// A whole text.
    Text(String),
}

impl Question {
    /// Returns the beginning of the first request.
    pub fn prompt(&self) -> &str {
        match self {
            Self::Continuations { context: prompt, .. } | Self::Text(prompt) => prompt,
            Self::Contexts { contexts, .. } => contexts.first().map_or("", String::as_str),
        }
    }

    /// Returns the requests, each a context and its continuation. A text has an empty context.
    pub fn requests(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Continuations { context, continuations } => {
                continuations.iter().map(|continuation| (context.as_str(), continuation.as_str())).collect()
            }
            Self::Contexts { contexts, continuation } => {
                contexts.iter().map(|context| (context.as_str(), continuation.as_str())).collect()
            }
            Self::Text(text) => vec![("", text)],
        }
    }

    /// Returns the arguments that the harness passes to a model for each request: a context and its
    /// continuation, or a text alone.
    pub fn arguments(&self) -> Vec<Vec<&str>> {
        let has_context = !matches!(self, Self::Text(_));
        let arguments =
            |(context, continuation)| if has_context { vec![context, continuation] } else { vec![continuation] };
        self.requests().into_iter().map(arguments).collect()
    }
}
