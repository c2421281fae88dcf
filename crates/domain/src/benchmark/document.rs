//! What a benchmark read and asked, as an evaluation's `documents.jsonl.zst` keeps it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line of `documents.jsonl.zst`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AskedDocument {
    /// The task's name.
    pub task: String,
    /// The document's place, from 0.
    pub index: u64,
    /// The row, as the harness hands it on.
    pub doc: Value,
    /// What the harness writes down as its target.
    pub target: String,
    /// What was asked.
    pub question: Question,
}

/// What a model is asked: how likely continuations are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Several continuations of one context.
    Continuations {
        /// The context.
        context: String,
        /// One request each.
        continuations: Vec<String>,
    },
    /// One continuation of several contexts ("partial evaluation", Trinh and Le 2018).
    Contexts {
        /// One request each.
        contexts: Vec<String>,
        /// The continuation.
        continuation: String,
    },
    /// A whole text.
    Text(String),
}

impl Question {
    /// What the first request begins with.
    pub fn prompt(&self) -> &str {
        match self {
            Self::Continuations { context: prompt, .. } | Self::Text(prompt) => prompt,
            Self::Contexts { contexts, .. } => contexts.first().map_or("", String::as_str),
        }
    }

    /// The requests, each a context and its continuation; a text has an empty context.
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

    /// What the harness hands to a model for each request: a context and its continuation, or a text alone.
    pub fn arguments(&self) -> Vec<Vec<&str>> {
        let has_context = !matches!(self, Self::Text(_));
        let arguments =
            |(context, continuation)| if has_context { vec![context, continuation] } else { vec![continuation] };
        self.requests().into_iter().map(arguments).collect()
    }
}
