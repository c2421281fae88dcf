//! A model's answer to one request, and the stored form of answers.

use std::ops::Range;

/// A model's answer to one request: the likelihood of a continuation, a sequence or a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Natural logarithm of the probability.
    pub log_likelihood: f64,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Whether greedy decoding yields the continuation. Not computed for the texts of validation
    /// loss and rolling perplexity.
    pub is_greedy: bool,
}

/// Answers to the items in a range.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The items' indexes in the task.
    pub items: Range<usize>,
    /// The answers in order; one per request, so an item may have several.
    pub answers: Vec<Answer>,
}

const BYTES: usize = 17;

/// Encodes answers as bytes without loss.
pub fn to_bytes(answers: &[Answer]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(answers.len() * BYTES);
    for answer in answers {
        bytes.extend(answer.log_likelihood.to_le_bytes());
        bytes.extend(answer.tokens.to_le_bytes());
        bytes.push(u8::from(answer.is_greedy));
    }
    bytes
}

/// Decodes answers from [`to_bytes`]; `None` if the length is wrong.
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<Answer>> {
    let chunks = bytes.chunks_exact(BYTES);
    if !chunks.remainder().is_empty() {
        return None;
    }
    let answer = |chunk: &[u8]| {
        let (log_likelihood, rest) = chunk.split_first_chunk()?;
        let (tokens, is_greedy) = rest.split_first_chunk()?;
        Some(Answer {
            log_likelihood: f64::from_le_bytes(*log_likelihood),
            tokens: u64::from_le_bytes(*tokens),
            is_greedy: is_greedy == [1],
        })
    };
    chunks.map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_every_bit() {
        let answers = [
            Answer { log_likelihood: -0.1 - 0.2, tokens: 7, is_greedy: true },
            Answer { log_likelihood: f64::MIN_POSITIVE, tokens: 0, is_greedy: false },
        ];
        assert_eq!(from_bytes(&to_bytes(&answers)).as_deref(), Some(&answers[..]));
        assert_eq!(from_bytes(&to_bytes(&answers)[1..]), None);
    }
}
