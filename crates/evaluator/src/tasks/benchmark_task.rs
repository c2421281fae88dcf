//! A benchmark of lm-evaluation-harness, on the rows of its data set.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use inheritune_domain::benchmark::{AskedDocument, Benchmark, Question};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::spec::EvaluateSpec;
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_runtime::worker::JobError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Found, ModelFacts, Row, TaskResult, cut};
use crate::answer::{Answer, Part};
use crate::benchmarks::{self, Item, Target, rows};
use crate::documents::relative_files;
use crate::encoding::{Encoder, EncodingCache, EncodingError, Sequence};
use crate::metrics::benchmark::{scores, shares};
use crate::prefix_tree::Plan;
use crate::scorer::{ProgressSpan, Scorer, lm_error};

/// Minimum number of characters in a unit: large enough that the overhead per unit is negligible,
/// small enough that little work is lost with one unit.
const UNIT_CHARACTERS: usize = 1 << 18;

/// A benchmark's items, and the settings for scoring them.
pub struct BenchmarkTask {
    benchmark: Benchmark,
    items: Vec<Item>,
    tokenizer: Arc<Tokenizer>,
    max_length: usize,
    add_bos_token: Option<bool>,
    max_batch_tokens: usize,
    one_by_one: bool,
}

/// The result for one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkRow {
    /// Digest of the first request's context, or of the text.
    pub prompt_sha256: Sha256Digest,
    /// Index of the correct choice, if the item has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<usize>,
    /// Log-likelihood of each request.
    pub log_likelihoods: Vec<f64>,
    /// Whether each request's continuation is the model's greedy choice.
    pub is_greedy: Vec<bool>,
    /// Words and bytes of a text.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub length: Option<crate::metrics::TextLength>,
    /// The item's value in each metric: 0 or 1, a probability, or the log-likelihood that enters a
    /// perplexity.
    pub metrics: serde_json::Map<String, serde_json::Value>,
}

impl BenchmarkTask {
    /// Reads the rows of `benchmark` in the folder `data`, and makes items from the first `limit`.
    pub(super) fn prepare(
        benchmark: Benchmark,
        (data, limit): (&Path, Option<u32>),
        model: &ModelFacts,
        tokenizer: Arc<Tokenizer>,
        spec: &EvaluateSpec,
    ) -> Result<Self, JobError> {
        let named = |e: JobError| e.about(benchmark.name);
        let files = relative_files(data)?;
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let scored =
            rows::scored_files(&benchmark, &files).and_then(|names| rows::read(data, &names, limit)).map_err(named)?;
        let shots = rows::shots_files(&benchmark, &files)?;
        let shots = rows::read(data, &shots, benchmark.prompt.shots()).map_err(named)?;
        let problem = |problem: String| Err(named(JobError::Permanent(problem)));
        if scored.is_empty() {
            return problem(format!("its {} split has no rows", benchmark.dataset.split));
        }
        if shots.len() < benchmark.prompt.shots() {
            return problem(format!(
                "{} examples are needed, but there are only {}",
                benchmark.prompt.shots(),
                shots.len()
            ));
        }
        let items = benchmarks::items(&benchmark, scored, &shots)
            .map_err(|error| named(JobError::Permanent(error.to_string())))?;
        Ok(Self {
            benchmark,
            items,
            tokenizer,
            max_length: model.max_positions as usize,
            add_bos_token: spec.add_bos_token,
            max_batch_tokens: spec.max_batch_tokens as usize,
            one_by_one: spec.one_by_one,
        })
    }

    /// The benchmark.
    pub fn benchmark(&self) -> &Benchmark {
        &self.benchmark
    }

    /// Whether the rows are the complete published split. Always `false` for benchmarks whose
    /// digest is not known.
    pub fn is_known_data(&self) -> bool {
        self.benchmark.sha256() == Some(self.digest(&(0..self.items())))
    }

    /// The documents and their requests, by row.
    pub(super) fn documents(&self) -> impl Iterator<Item = AskedDocument> {
        self.items.iter().enumerate().map(|(place, item)| AskedDocument {
            task: self.benchmark.name.to_owned(),
            index: place as u64,
            doc: item.document.clone(),
            target: item.target_text(),
            question: item.question.clone(),
        })
    }

    /// Number of rows.
    pub(super) fn items(&self) -> usize {
        self.items.len()
    }

    /// Units sized by characters, not counting the prefix shared with the previous item.
    pub(super) fn units(&self) -> Vec<Range<usize>> {
        let mut before = "";
        let sizes = self.items.iter().map(|item| {
            let requests = item.question.requests();
            let (context, _) = requests.first().copied().unwrap_or_default();
            let known = context.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
            before = context;
            let continuations = requests.iter().map(|(_, continuation)| continuation.len()).sum::<usize>();
            context.len() - known + continuations
        });
        cut(sizes, UNIT_CHARACTERS)
    }

    /// Digest of every request's context and continuation.
    pub(super) fn digest(&self, range: &Range<usize>) -> Sha256Digest {
        let mut digest = Sha256::new();
        for (context, continuation) in self.items[range.clone()].iter().flat_map(|item| item.question.requests()) {
            for text in [context, continuation] {
                digest.update((text.len() as u64).to_le_bytes());
                digest.update(text);
            }
        }
        Sha256Digest(digest.finalize().into())
    }

    /// Returns the sequences of every request of every item: one for a context and its
    /// continuation, or one per window of a text.
    ///
    /// # Errors
    /// A request cannot be tokenized; the message names its row.
    pub fn sequences(&self, range: Range<usize>) -> Result<Vec<Vec<Vec<Sequence>>>, JobError> {
        let encoder = Encoder::new(&self.tokenizer, self.max_length, self.add_bos_token).map_err(lm_error)?;
        self.items[range.clone()]
            .par_iter()
            .enumerate()
            .map_init(EncodingCache::new, |cache, (place, item)| {
                encode(&encoder, &item.question, cache).map_err(|error| {
                    let row = self.row_name(range.start + place);
                    match error {
                        EncodingError::Tokenizer(error) => lm_error(error).about(&row),
                        error => JobError::Permanent(format!("{row}: {error}")),
                    }
                })
            })
            .collect()
    }

    pub(super) fn measure(
        &self,
        range: Range<usize>,
        span: &dyn Fn(u64) -> ProgressSpan,
        scorer: &mut Scorer,
    ) -> Result<Vec<Answer>, JobError> {
        let requests = self.sequences(range.clone())?;
        // All sequences in one list, and the request and item of each.
        let (mut sequences, mut owners, mut request) = (Vec::new(), Vec::new(), 0_usize);
        for (place, item) in requests.into_iter().enumerate() {
            for windows in item {
                for sequence in windows {
                    sequences.push(sequence);
                    owners.push((request, range.start + place));
                }
                request += 1;
            }
        }
        let plan =
            if self.one_by_one { Plan::one_by_one(&sequences) } else { Plan::new(&sequences, self.max_batch_tokens) };
        scorer.expect(span(plan.tokens()));
        let found = scorer.follow(&plan, sequences.len(), &|sequence| self.row_name(owners[sequence].1))?;
        let mut answers = vec![Answer { log_likelihood: 0.0, tokens: 0, is_greedy: true }; request];
        for ((request, _), found) in owners.iter().zip(found) {
            let answer = &mut answers[*request];
            answer.log_likelihood += found.log_likelihood;
            answer.tokens += found.tokens;
            answer.is_greedy &= found.is_greedy;
        }
        Ok(answers)
    }

    pub(super) fn result(&self, parts: &[Part], resamples: u32) -> TaskResult {
        let (mut targets, mut all_shares, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let mut answers = part.answers.as_slice();
            for place in part.items.clone() {
                let item = &self.items[place];
                let (own, rest) = answers.split_at(item.question.requests().len());
                answers = rest;
                let shares = shares(&item.target, own);
                found.push(self.row(place, item, own, &shares));
                targets.push(item.target.clone());
                all_shares.push(shares);
            }
        }
        TaskResult { scores: scores(&self.benchmark, &targets, &all_shares, resamples), rows: found }
    }

    fn row(&self, place: usize, item: &Item, answers: &[Answer], shares: &[f64]) -> Row {
        let (gold, length) = match &item.target {
            Target::Choice { gold, .. } => (Some(*gold), None),
            Target::Text(length) => (None, Some(*length)),
            Target::Mass { .. } | Target::Word => (None, None),
        };
        let metrics = self.benchmark.prompt.metrics().iter().zip(shares);
        Row {
            task: self.benchmark.name.to_owned(),
            index: place as u64,
            found: Found::Answers(BenchmarkRow {
                prompt_sha256: Sha256Digest::of(item.question.prompt().as_bytes()),
                gold,
                length,
                log_likelihoods: answers.iter().map(|answer| answer.log_likelihood).collect(),
                is_greedy: answers.iter().map(|answer| answer.is_greedy).collect(),
                metrics: metrics.map(|(name, share)| ((*name).to_owned(), (*share).into())).collect(),
            }),
        }
    }

    fn row_name(&self, place: usize) -> String {
        format!("{}: {} row {place}", self.benchmark.name, self.benchmark.dataset.split)
    }
}

fn encode(
    encoder: &Encoder<'_>,
    question: &Question,
    cache: &mut EncodingCache,
) -> Result<Vec<Vec<Sequence>>, EncodingError> {
    let pairs = match question {
        Question::Continuations { context, continuations } => {
            let continuations: Vec<&str> = continuations.iter().map(String::as_str).collect();
            encoder.pairs(context, &continuations, cache)?
        }
        Question::Contexts { contexts, continuation } => {
            let pairs = contexts.iter().map(|context| encoder.pairs(context, &[continuation], cache));
            pairs.collect::<Result<Vec<_>, _>>()?.concat()
        }
        Question::Text(text) => return Ok(vec![encoder.windows(text, cache)?]),
    };
    pairs.iter().map(|pair| Ok(vec![encoder.sequence(pair)?])).collect()
}
