//! Mean cross-entropy over a token set's validation tokens.

use std::ops::Range;
use std::path::Path;

use inheritune_domain::id::Sha256Digest;
use inheritune_domain::spec::Score;
use inheritune_lm::LmError;
use inheritune_lm::tokens::TokenSet;
use inheritune_runtime::worker::JobError;

use super::{LossRow, ModelFacts, TaskDescription, TaskResult, cut, loss_row, losses, places};
use crate::answer::{Answer, Part};
use crate::metrics::{SequenceLoss, mean_loss};
use crate::scorer::{ProgressSpan, Scorer, lm_error};
use crate::windows::{block, block_count, block_range};

/// The task's name in specs and scores.
pub(super) const NAME: &str = "validation_loss";
/// Minimum number of tokens in a unit.
const UNIT_TOKENS: u64 = 1 << 16;

/// The task's entry in the catalogue.
pub(super) fn description() -> TaskDescription {
    TaskDescription {
        name: NAME,
        description: "Mean cross-entropy over the validation tokens of a token set. The tokens are cut into \
                      non-overlapping windows of block_size inputs; the last window may be shorter. Every token except \
                      the first is predicted exactly once, from the preceding tokens of its window. loss_nats is the \
                      mean over tokens, with the standard error of the token-weighted mean over windows; perplexity \
                      is exp(loss_nats)."
            .to_owned(),
        input: "a token set".to_owned(),
        metrics: &["loss_nats", "perplexity"],
    }
}

/// A token set, cut into windows.
pub struct ValidationLoss {
    set: TokenSet,
    block_size: u64,
    sequences: u64,
}

impl ValidationLoss {
    /// Opens the token set in `input`. Only its first `max_sequences` windows are measured.
    pub(super) fn prepare(
        input: &Path,
        block_size: u32,
        max_sequences: Option<u64>,
        model: &ModelFacts,
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
                "block_size {block_size} must be 1 to {}, the longest sequence that the model supports",
                model.max_positions
            ));
        }
        let tokens = set.validation().len();
        if tokens < 2 {
            return permanent(format!(
                "the validation part has {tokens} tokens, but at least 2 are needed; raise validation_fraction or use \
                 a longer corpus"
            ));
        }
        let block_size = u64::from(block_size);
        let sequences = block_count(tokens, block_size).min(max_sequences.unwrap_or(u64::MAX).max(1));
        Ok(Self { set, block_size, sequences })
    }

    pub(super) fn items(&self) -> usize {
        self.sequences as usize
    }

    pub(super) fn units(&self) -> Vec<Range<usize>> {
        let sizes = std::iter::repeat_n(self.block_size as usize, self.items());
        cut(sizes, UNIT_TOKENS as usize)
    }

    /// Digest of the token set and the range. The tokens need not be read, because an artifact
    /// never changes.
    pub(super) fn digest(&self, range: &Range<usize>) -> Sha256Digest {
        Sha256Digest::of(format!("{NAME} {:?} {} {range:?}", self.set.meta(), self.block_size).as_bytes())
    }

    pub(super) fn measure(
        &self,
        range: Range<usize>,
        span: &dyn Fn(u64) -> ProgressSpan,
        scorer: &mut Scorer,
    ) -> Result<Vec<Answer>, JobError> {
        let validation = self.set.validation();
        let tokens = |index: usize| block_range(index as u64, validation.len(), self.block_size);
        scorer.expect(span(range.clone().map(tokens).map(|range| range.end - range.start - 1).sum()));
        let windows = range
            .clone()
            .map(|index| Ok(block(index - range.start, validation.read(tokens(index)).map_err(lm_error)?)));
        scorer.score(range.len(), &|unit| format!("sequence {}", range.start + unit), windows)
    }

    pub(super) fn result(&self, parts: &[Part]) -> TaskResult {
        let losses: Vec<SequenceLoss> = losses(parts).collect();
        let scores = mean_loss(&losses).map(|mean| {
            let score = |metric, value_and_error| Score::plain(NAME, metric, value_and_error, mean.sequences);
            vec![
                score("loss_nats", (mean.mean_nats, mean.stderr)),
                score("perplexity", (mean.perplexity(), mean.perplexity_stderr())),
            ]
        });
        let row = |(place, SequenceLoss { tokens, sum_nats }): (usize, SequenceLoss)| {
            let digest = self.digest(&(place..place + 1));
            loss_row(NAME, place, LossRow { tokens, sum_nats, digest, length: None })
        };
        let rows = places(parts).zip(losses).map(row).collect();
        TaskResult { scores: scores.unwrap_or_default(), rows }
    }
}
