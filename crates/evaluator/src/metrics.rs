//! Statistics: means, standard errors and perplexities from the losses of sequences. Pure.

pub mod bootstrap;
pub mod benchmark;

use inheritune_domain::comparison::{Difference, Pair};
use serde::{Deserialize, Serialize};

/// The loss of one sequence or document.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SequenceLoss {
    /// Number of scored positions.
    pub tokens: u64,
    /// Sum of their cross-entropies, in nats.
    pub sum_nats: f64,
}

/// A mean over all tokens, with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanLoss {
    /// Nats per token.
    pub mean_nats: f64,
    /// Standard error of the mean; `None` for fewer than two sequences.
    pub stderr: Option<f64>,
    /// Number of tokens.
    pub tokens: u64,
    /// Number of sequences.
    pub sequences: u64,
}

/// Returns the token-weighted mean of `losses`: `R = Σ sᵢ / Σ nᵢ` for sequences of `nᵢ` tokens and
/// loss sums `sᵢ`. `None` if there are no tokens.
///
/// The standard error treats each sequence as one sample, because the tokens of a sequence are not
/// independent. It is that of [`Difference::of`] to a model with zero loss, without a
/// finite-population correction. For k sequences of equal length it is the sample deviation of
/// their means divided by √k.
pub fn mean_loss(losses: &[SequenceLoss]) -> Option<MeanLoss> {
    let pair = |loss: &SequenceLoss| Pair { first: loss.sum_nats, second: 0.0, weight: loss.tokens as f64 };
    let Difference { value, stderr, n } = Difference::of(&losses.iter().map(pair).collect::<Vec<_>>())?;
    let tokens = losses.iter().map(|loss| loss.tokens).sum();
    Some(MeanLoss { mean_nats: value, stderr, tokens, sequences: n })
}

impl MeanLoss {
    /// Perplexity: the exponential of the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.mean_nats.exp()
    }

    /// Standard error of the perplexity to first order (delta method): `perplexity · se`.
    pub fn perplexity_stderr(&self) -> Option<f64> {
        self.stderr.map(|stderr| self.perplexity() * stderr)
    }
}

/// The length of a text as lm-evaluation-harness counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TextLength {
    /// `len(re.split(r"\s+", text))` in Python: white space at either end adds an empty word.
    pub words: u64,
    /// Number of UTF-8 bytes.
    pub bytes: u64,
}

impl TextLength {
    /// Returns the length of `text`.
    pub fn of(text: &str) -> Self {
        let mut words = 1;
        let mut in_space = false;
        for c in text.chars() {
            let space = is_python_space(c);
            words += u64::from(space && !in_space);
            in_space = space;
        }
        Self { words, bytes: text.len() as u64 }
    }
}

/// Whether `\s` matches `c` in Python: Unicode's white space, and four ASCII separators that
/// Unicode does not include.
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Losses per word and byte of the text instead of per token, so that models with different
/// tokenizers can be compared (lm-evaluation-harness: `word_perplexity`, `byte_perplexity`,
/// `bits_per_byte`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextPerplexity {
    /// `exp(nats / words)`.
    pub word_perplexity: f64,
    /// `exp(nats / bytes)`.
    pub byte_perplexity: f64,
    /// `nats / bytes / ln 2`.
    pub bits_per_byte: f64,
}

impl TextPerplexity {
    /// Computes the metrics of documents with a total loss of `sum_nats` and a total length of
    /// `length`.
    pub fn new(sum_nats: f64, length: TextLength) -> Self {
        let nats_per_byte = sum_nats / length.bytes as f64;
        Self {
            word_perplexity: (sum_nats / length.words as f64).exp(),
            byte_perplexity: nats_per_byte.exp(),
            bits_per_byte: nats_per_byte / std::f64::consts::LN_2,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn losses(pairs: &[(u64, f64)]) -> Vec<SequenceLoss> {
        pairs.iter().map(|&(tokens, sum_nats)| SequenceLoss { tokens, sum_nats }).collect()
    }

    #[test]
    fn equal_lengths_give_the_ordinary_standard_error() {
        // Means 2, 3, 4: sample deviation 1, over √3.
        let mean = mean_loss(&losses(&[(10, 20.0), (10, 30.0), (10, 40.0)])).unwrap();
        assert_eq!(mean.mean_nats, 3.0);
        assert_eq!((mean.tokens, mean.sequences), (30, 3));
        assert!((mean.stderr.unwrap() - 1.0 / 3_f64.sqrt()).abs() < 1e-15);
        assert!((mean.perplexity() - 20.085536923187668).abs() < 1e-13);
        assert!((mean.perplexity_stderr().unwrap() - 20.085536923187668 / 3_f64.sqrt()).abs() < 1e-13);
    }

    #[test]
    fn unequal_lengths_are_weighted_by_their_tokens() {
        // Python: n=[4,4,2]; s=[8,12,7]; R=sum(s)/10; (3/2*sum((a-R*b)**2 for a,b in zip(s,n)))**.5/10
        //   = (1.5 * (7.84 + 1.44 + 2.56)) ** .5 / 10
        let mean = mean_loss(&losses(&[(4, 8.0), (4, 12.0), (2, 7.0)])).unwrap();
        assert!((mean.mean_nats - 2.7).abs() < 1e-15);
        assert!((mean.stderr.unwrap() - 0.42142615011410955).abs() < 1e-15);
    }

    #[test]
    fn one_sequence_has_no_error_and_none_has_no_mean() {
        assert_eq!(mean_loss(&losses(&[(5, 10.0)])).unwrap().stderr, None);
        assert_eq!(mean_loss(&[]), None);
        assert_eq!(mean_loss(&losses(&[(0, 0.0)])), None);
    }

    #[test]
    fn lengths_are_those_of_python() {
        // Python: len(re.split(r"\s+", text)), len(text.encode()).
        for (text, words, bytes) in [
            ("", 1, 0),
            ("one", 1, 3),
            (" two  words\n", 4, 12),
            ("a\u{a0}b\u{1c}c", 3, 6),
            ("naïve\u{2003}café", 2, 14),
        ] {
            assert_eq!(TextLength::of(text), TextLength { words, bytes }, "{text:?}");
        }
    }

    #[test]
    fn text_perplexities_follow_the_harness() {
        // Python: import math; math.exp(100/20), math.exp(100/125), 100/125/math.log(2)
        let text = TextPerplexity::new(100.0, TextLength { words: 20, bytes: 125 });
        assert!((text.word_perplexity - 148.4131591025766).abs() < 1e-10);
        assert!((text.byte_perplexity - 2.225540928492468).abs() < 1e-14);
        assert!((text.bits_per_byte - 1.1541560327111708).abs() < 1e-14);
    }
}
