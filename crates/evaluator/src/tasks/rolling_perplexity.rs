//! WikiText-style perplexity of whole documents.

use std::path::Path;

use inheritune_domain::spec::Score;
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_runtime::worker::{JobError, StopSignal};

use super::{MetricDescription, ModelFacts, Row, TaskDescription, TaskResult};
use crate::documents::for_each_document;
use crate::metrics::{TextLength, TextPerplexity, mean_loss};
use crate::scorer::{Scorer, lm_error};
use crate::windows::rolling;

/// How it is listed.
pub(super) const DESCRIPTION: TaskDescription = TaskDescription {
    name: "rolling_perplexity",
    description: "Perplexity of whole documents as lm-evaluation-harness measures WikiText: rolling windows of the \
                  model's longest sequence, every token predicted once, the first of a document from the end-of-text \
                  token. A text file is one document, a JSONL row with `text` or `page` another. word_perplexity and \
                  the other two do not depend on the tokenizer; loss_nats is the mean over tokens, with the standard \
                  error of the token-weighted mean over documents.",
    input: "a text or JSONL file, plain, gzip or zstd",
    metrics: &[
        MetricDescription { name: "word_perplexity", description: "e to the nats a word" },
        MetricDescription { name: "byte_perplexity", description: "e to the nats a byte of UTF-8" },
        MetricDescription { name: "bits_per_byte", description: "bits a byte of UTF-8" },
        MetricDescription { name: "loss_nats", description: "mean cross-entropy a token, in nats" },
    ],
};

/// Documents as tokens.
pub struct RollingPerplexity {
    documents: Vec<Document>,
    prefix: u32,
    max_length: usize,
}

struct Document {
    tokens: Vec<u32>,
    length: TextLength,
}

impl RollingPerplexity {
    /// Reads and tokenizes the files in `input` with the model's tokenizer.
    pub(super) fn prepare(input: &Path, model: ModelFacts, stop: &StopSignal) -> Result<Self, JobError> {
        let tokenizer = Tokenizer::from_dir(model.dir).map_err(lm_error)?;
        tokenizer.check_fits(model.vocab_size).map_err(lm_error)?;
        let prefix = tokenizer.end_of_text_id().ok_or_else(|| {
            JobError::Permanent(
                "the model's tokenizer has no end-of-text token, which the first token of a document is predicted \
                 from; name it as eos_token in tokenizer_config.json"
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
                documents.push(Document { tokens, length: document.length });
            }
            Ok(())
        })?;
        if documents.is_empty() {
            return Err(JobError::Permanent("the text is empty: there is no document with a token in it".to_owned()));
        }
        Ok(Self { documents, prefix, max_length: model.max_positions as usize })
    }

    /// Tokens that will be scored.
    pub(super) fn tokens(&self) -> u64 {
        self.documents.iter().map(|document| document.tokens.len() as u64).sum()
    }

    /// Measures.
    pub(super) fn score(&self, scorer: &mut Scorer) -> Result<TaskResult, JobError> {
        let windows = self.documents.iter().enumerate().flat_map(|(unit, document)| {
            let tokens: Vec<i64> = document.tokens.iter().copied().map(i64::from).collect();
            rolling(unit, &tokens, i64::from(self.prefix), self.max_length).into_iter().map(Ok)
        });
        let losses = scorer.score(self.documents.len(), "document", windows)?;
        let mean = mean_loss(&losses).ok_or_else(|| JobError::Permanent("no token was scored".to_owned()))?;
        let length = self.documents.iter().fold(TextLength::default(), |sum, document| TextLength {
            words: sum.words + document.length.words,
            bytes: sum.bytes + document.length.bytes,
        });
        let text = TextPerplexity::new(losses.iter().map(|loss| loss.sum_nats).sum(), length);
        let score = |metric: &str, value, stderr| Score {
            task: DESCRIPTION.name.to_owned(),
            metric: metric.to_owned(),
            value,
            stderr,
            n: mean.sequences,
        };
        let rows = (0..).zip(losses.iter().zip(&self.documents)).map(|(index, (loss, document))| Row {
            task: DESCRIPTION.name,
            index,
            loss: *loss,
            length: Some(document.length),
        });
        Ok(TaskResult {
            scores: vec![
                score("word_perplexity", text.word_perplexity, None),
                score("byte_perplexity", text.byte_perplexity, None),
                score("bits_per_byte", text.bits_per_byte, None),
                score("loss_nats", mean.mean_nats, mean.stderr),
            ],
            rows: rows.collect(),
        })
    }
}
