//! WikiText-style perplexity of whole documents.

use std::ops::Range;
use std::path::Path;

use inheritune_domain::id::Sha256Digest;
use inheritune_domain::spec::Score;
use inheritune_runtime::worker::{JobError, StopSignal};

use super::{LossRow, ModelFacts, TaskDescription, TaskResult, cut, loss_row, losses, places};
use crate::answer::{Answer, Part};
use crate::documents::for_each_document;
use crate::metrics::{SequenceLoss, TextLength, TextPerplexity, mean_loss};
use crate::scorer::{ProgressSpan, Scorer, lm_error};
use crate::windows::rolling;

/// The task's name in specs and scores.
pub(super) const NAME: &str = "rolling_perplexity";
/// Minimum number of tokens in a unit.
const UNIT_TOKENS: usize = 1 << 16;

/// The task's entry in the catalogue.
pub(super) fn description() -> TaskDescription {
    TaskDescription {
        name: NAME,
        description: "Perplexity of your own documents, measured as lm-evaluation-harness measures WikiText: rolling \
                      windows of the model's longest sequence, with every token predicted once and the first token \
                      of a document predicted from the end-of-text token. Each text file is one document, and each \
                      JSONL row with `text` or `page` is one document. word_perplexity, byte_perplexity and \
                      bits_per_byte do not depend on the tokenizer. loss_nats is the mean over tokens, with the \
                      standard error of the token-weighted mean over documents."
            .to_owned(),
        input: "a text or JSONL file, plain, gzip or zstd".to_owned(),
        metrics: &["word_perplexity", "byte_perplexity", "bits_per_byte", "loss_nats"],
    }
}

/// Documents as tokens.
pub struct RollingPerplexity {
    documents: Vec<Document>,
    prefix: u32,
    max_length: usize,
}

struct Document {
    tokens: Vec<u32>,
    length: TextLength,
    /// Digest of its text.
    sha256: Sha256Digest,
}

impl RollingPerplexity {
    /// Reads and tokenizes the files in `input` with the model's tokenizer.
    pub(super) fn prepare(input: &Path, model: &ModelFacts, stop: &StopSignal) -> Result<Self, JobError> {
        let tokenizer = model.tokenizer()?;
        let prefix = tokenizer.end_of_text_id().ok_or_else(|| {
            JobError::Permanent(
                "the model's tokenizer has no end-of-text token to predict the first token of a document from; set \
                 eos_token in tokenizer_config.json"
                    .to_owned(),
            )
        })?;
        let mut documents = Vec::new();
        for_each_document(input, |document| {
            if stop.requested().is_some() {
                return Err(JobError::Stopped);
            }
            let tokens = tokenizer.encode(&document.text).map_err(lm_error)?;
            if !tokens.is_empty() {
                let sha256 = Sha256Digest::of(document.text.as_bytes());
                documents.push(Document { tokens, length: document.length, sha256 });
            }
            Ok(())
        })?;
        if documents.is_empty() {
            return Err(JobError::Permanent("the text is empty: no document has any tokens".to_owned()));
        }
        Ok(Self { documents, prefix, max_length: model.max_positions as usize })
    }

    pub(super) fn items(&self) -> usize {
        self.documents.len()
    }

    pub(super) fn units(&self) -> Vec<Range<usize>> {
        cut(self.documents.iter().map(|document| document.tokens.len()), UNIT_TOKENS)
    }

    /// Digest of the documents' texts.
    pub(super) fn digest(&self, range: &Range<usize>) -> Sha256Digest {
        let digests: Vec<u8> = self.documents[range.clone()].iter().flat_map(|document| document.sha256.0).collect();
        Sha256Digest::of(&digests)
    }

    pub(super) fn measure(
        &self,
        range: Range<usize>,
        span: &dyn Fn(u64) -> ProgressSpan,
        scorer: &mut Scorer,
    ) -> Result<Vec<Answer>, JobError> {
        let documents = &self.documents[range.clone()];
        scorer.expect(span(documents.iter().map(|document| document.tokens.len() as u64).sum()));
        let windows = documents.iter().enumerate().flat_map(|(unit, document)| {
            let tokens: Vec<i64> = document.tokens.iter().copied().map(i64::from).collect();
            rolling(unit, &tokens, i64::from(self.prefix), self.max_length).into_iter().map(Ok)
        });
        scorer.score(documents.len(), &|unit| format!("document {}", range.start + unit), windows)
    }

    pub(super) fn result(&self, parts: &[Part]) -> TaskResult {
        let losses: Vec<SequenceLoss> = losses(parts).collect();
        let lengths: Vec<TextLength> = places(parts).map(|place| self.documents[place].length).collect();
        let scores = mean_loss(&losses).map(|mean| {
            let length = lengths.iter().fold(TextLength::default(), |sum, length| TextLength {
                words: sum.words + length.words,
                bytes: sum.bytes + length.bytes,
            });
            let text = TextPerplexity::new(losses.iter().map(|loss| loss.sum_nats).sum(), length);
            let score = |metric, value_and_error| Score::plain(NAME, metric, value_and_error, mean.sequences);
            vec![
                score("word_perplexity", (text.word_perplexity, None)),
                score("byte_perplexity", (text.byte_perplexity, None)),
                score("bits_per_byte", (text.bits_per_byte, None)),
                score("loss_nats", (mean.mean_nats, mean.stderr)),
            ]
        });
        let rows = places(parts).zip(losses).zip(lengths);
        let row = |((place, loss), length): ((usize, SequenceLoss), TextLength)| {
            let SequenceLoss { tokens, sum_nats } = loss;
            loss_row(
                NAME,
                place,
                LossRow { tokens, sum_nats, digest: self.documents[place].sha256, length: Some(length) },
            )
        };
        let rows = rows.map(row).collect();
        TaskResult { scores: scores.unwrap_or_default(), rows }
    }
}
