//! Mean cross-entropy over a token set's validation tokens.

use std::path::Path;

use inheritune_domain::spec::Score;
use inheritune_lm::LmError;
use inheritune_lm::tokens::TokenSet;
use inheritune_runtime::worker::JobError;

use super::{MetricDescription, ModelFacts, Row, TaskDescription, TaskResult};
use crate::metrics::mean_loss;
use crate::scorer::{Scorer, lm_error};
use crate::windows::{block, block_count, block_range};

/// How it is listed.
pub(super) const DESCRIPTION: TaskDescription = TaskDescription {
    name: "validation_loss",
    description: "Mean cross-entropy over the validation tokens of a token set. The tokens are cut into windows of \
                  block_size inputs that do not overlap; every token but the first is predicted exactly once, from the \
                  tokens of its window before it; the last window may be shorter. loss_nats is the mean over tokens, \
                  with the standard error of the token-weighted mean over windows; perplexity is e to it.",
    input: "a token set",
    metrics: &[
        MetricDescription { name: "loss_nats", description: "mean cross-entropy a token, in nats" },
        MetricDescription { name: "perplexity", description: "e to the mean cross-entropy" },
    ],
};

/// A token set, cut into windows.
pub struct ValidationLoss {
    set: TokenSet,
    block_size: u64,
    sequences: u64,
}

impl ValidationLoss {
    /// Opens the token set in `input`; of its windows the first `max_sequences` count.
    pub(super) fn prepare(
        input: &Path,
        block_size: u32,
        max_sequences: Option<u64>,
        model: ModelFacts,
    ) -> Result<Self, JobError> {
        let set = TokenSet::open(input).map_err(lm_error)?;
        let permanent = |problem: String| Err(JobError::Permanent(problem));
        if set.meta().vocab_size > model.vocab_size {
            return Err(lm_error(LmError::VocabularyTooLarge {
                tokenizer: set.meta().vocab_size,
                embedding: model.vocab_size,
            }));
        }
        if block_size == 0 || block_size > model.max_positions {
            return permanent(format!(
                "block_size {block_size} must be 1 to {}, the longest sequence that the model takes",
                model.max_positions
            ));
        }
        let tokens = set.validation().len();
        if tokens < 2 {
            return permanent(format!(
                "the validation part holds {tokens} tokens, and at least 2 are needed to predict one; raise \
                 validation_fraction or use a longer corpus"
            ));
        }
        let block_size = u64::from(block_size);
        let sequences = block_count(tokens, block_size).min(max_sequences.unwrap_or(u64::MAX).max(1));
        Ok(Self { set, block_size, sequences })
    }

    /// Tokens that will be scored.
    pub(super) fn tokens(&self) -> u64 {
        (self.sequences * self.block_size).min(self.set.validation().len() - 1)
    }

    /// Measures.
    pub(super) fn score(&self, scorer: &mut Scorer) -> Result<TaskResult, JobError> {
        let validation = self.set.validation();
        let windows = (0..self.sequences).map(|index| {
            let range = block_range(index, validation.len(), self.block_size);
            Ok(block(index as usize, validation.read(range).map_err(lm_error)?))
        });
        let losses = scorer.score(self.sequences as usize, "sequence", windows)?;
        let mean = mean_loss(&losses).ok_or_else(|| JobError::Permanent("no token was scored".to_owned()))?;
        let score = |metric: &str, value, stderr| Score {
            task: DESCRIPTION.name.to_owned(),
            metric: metric.to_owned(),
            value,
            stderr,
            n: mean.sequences,
        };
        let rows = (0..).zip(losses).map(|(index, loss)| Row { task: DESCRIPTION.name, index, loss, length: None });
        Ok(TaskResult {
            scores: vec![
                score("loss_nats", mean.mean_nats, mean.stderr),
                score("perplexity", mean.perplexity(), mean.perplexity_stderr()),
            ],
            rows: rows.collect(),
        })
    }
}
