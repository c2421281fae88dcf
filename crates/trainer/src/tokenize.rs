//! The tokenize job: text to a token set.
//!
//! Two passes over the corpus where the tokenizer is trained on it, one where it is given; neither holds more than a
//! batch of pieces. The result depends on the sources, their order and the tokenizer alone, not on the number of
//! threads: pieces are encoded in parallel and written in order.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvError, sync_channel};
use std::time::Instant;

use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::checkpoint::tokenizer_files::{TOKENIZER_FILES, VocabularyFiles};
use inheritune_domain::job::Progress;
use inheritune_domain::spec::{TokenizeSpec, Tokenized, TokenizerSource};
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_lm::tokens::{
    HeldOut, NewTokenSet, TOKENS_FILE, TRAIN_FILE, TokenSetMeta, TokenSetWriter, VALIDATION_FILE,
};
use inheritune_runtime::worker::{JobContext, JobError};
use serde_json::json;
use tokio::runtime::Handle;

use crate::corpus::{Corpus, CorpusError, Cutting, Piece};
use crate::{file_error, lm_error};

/// Text that is encoded at once.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// A tokenizer is trained on this much of the corpus at most: word counts settle long before.
const TOKENIZER_TRAINING_BYTES: usize = 1024 * 1024 * 1024;
/// Largest tokenizer file that is carried over.
const MAX_TOKENIZER_BYTES: u64 = 64 * 1024 * 1024;
/// Fewest tokens of either part: one input and one target.
const MIN_TOKENS: u64 = 2;

/// Carries out one tokenize job.
///
/// # Errors
/// Permanent: a source that is missing, empty, not UTF-8, or not what its name says; a tokenizer that cannot be read.
pub async fn run(spec: TokenizeSpec, context: JobContext) -> Result<Tokenized, JobError> {
    let dir = context.cache_dir.join("tokens");
    tokio::fs::create_dir_all(&dir).await.map_err(|error| file_error(&dir, error))?;
    let corpus = Corpus::open(&context.store, &spec.sources).await?;
    if let TokenizerSource::From(location) = &spec.tokenizer {
        fetch_tokenizer(&context, location, &dir).await?;
    }
    let work = Work {
        corpus,
        context: context.clone(),
        runtime: Handle::current(),
        started: Instant::now(),
        dir: dir.clone(),
    };
    let (tokenizer, fraction, threads) = (spec.tokenizer.clone(), spec.validation_fraction, context.threads);
    let meta = context
        .run_blocking("tokenize", move || {
            // 0 is rayon's own choice: one a core.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
            let pool = pool.map_err(|error| JobError::Retryable(format!("tokenizer threads: {error}")))?;
            pool.install(|| work.tokenize(&tokenizer, fraction))
        })
        .await?;
    publish(&context, &dir, &meta, &spec).await
}

/// Copies the tokenizer's files alone: weights may lie beside them.
async fn fetch_tokenizer(context: &JobContext, location: &Location, dir: &Path) -> Result<(), JobError> {
    let folder = context.store.open(location).await?;
    if VocabularyFiles::find(|name| folder.has(name)).is_none() {
        return Err(JobError::Permanent(format!(
            "{location}: has no tokenizer.json, nor vocab.json and merges.txt, nor tokenizer.model; name a folder that \
             has one of these, or train a tokenizer"
        )));
    }
    for name in TOKENIZER_FILES.into_iter().filter(|name| folder.has(name)) {
        let path = dir.join(name);
        let bytes = folder.read(name, MAX_TOKENIZER_BYTES).await?;
        tokio::fs::write(&path, bytes).await.map_err(|error| file_error(&path, error))?;
    }
    Ok(())
}

async fn publish(
    context: &JobContext,
    dir: &Path,
    meta: &TokenSetMeta,
    spec: &TokenizeSpec,
) -> Result<Tokenized, JobError> {
    let mut artifact = context.store.begin_artifact(ArtifactKind::TokenSet, context.lease);
    for name in [TRAIN_FILE, VALIDATION_FILE, TOKENS_FILE].into_iter().chain(TOKENIZER_FILES) {
        let path = dir.join(name);
        if path.exists() {
            artifact.put_file(name, &path).await?;
        }
    }
    let sources: Vec<String> = spec.sources.iter().map(Location::to_string).collect();
    let metadata = json!({
        "vocab_size": meta.vocab_size,
        "train_tokens": meta.train_tokens,
        "validation_tokens": meta.validation_tokens,
        "documents": meta.documents,
        "text_bytes": meta.text_bytes,
        "tokenizer": match &spec.tokenizer {
            TokenizerSource::Train { .. } => "trained on the sources".to_owned(),
            TokenizerSource::From(location) => location.to_string(),
        },
        "sources": sources,
    });
    let artifact = artifact.publish(None, metadata).await?;
    tracing::info!(artifact = %artifact.id, train_tokens = meta.train_tokens, documents = meta.documents, "token set published");
    Ok(Tokenized {
        tokens: artifact.id,
        train_tokens: meta.train_tokens,
        validation_tokens: meta.validation_tokens,
        vocab_size: meta.vocab_size,
        documents: meta.documents,
        text_bytes: meta.text_bytes,
    })
}

/// The part that computes, on threads of its own.
struct Work {
    corpus: Corpus,
    context: JobContext,
    runtime: Handle,
    started: Instant,
    dir: PathBuf,
}

impl Work {
    fn tokenize(&self, source: &TokenizerSource, validation_fraction: f64) -> Result<TokenSetMeta, JobError> {
        let passes = match source {
            TokenizerSource::Train { .. } => 2,
            TokenizerSource::From(_) => 1,
        };
        let (tokenizer, cutting) = match source {
            TokenizerSource::Train { vocab_size } => {
                let tokenizer = self.train_tokenizer(*vocab_size, passes)?;
                tokenizer.save(&self.dir).map_err(lm_error)?;
                (tokenizer, Cutting::AtLineFeeds)
            }
            TokenizerSource::From(_) => {
                let tokenizer = Tokenizer::from_dir(&self.dir).map_err(lm_error)?;
                let cutting = if tokenizer.can_cut_at_line_feeds() { Cutting::AtLineFeeds } else { Cutting::Never };
                (tokenizer, cutting)
            }
        };
        let mut writer = TokenSetWriter::create(
            &self.dir,
            NewTokenSet {
                vocab_size: tokenizer.vocab_size(),
                end_of_text_id: tokenizer.end_of_text_id(),
                tokenizer_sha256: Some(tokenizer.sha256()),
            },
        )
        .map_err(lm_error)?;
        for source in 0..self.corpus.sources() {
            let held_out = self.encode(source, &tokenizer, (cutting, passes), &mut writer)?;
            let held_out = if held_out == 0 { HeldOut::Share(validation_fraction) } else { HeldOut::Last(held_out) };
            writer.end_source(held_out).map_err(lm_error)?;
        }
        if writer.tokens() == 0 {
            return Err(self.empty());
        }
        let meta = writer.finish(validation_fraction).map_err(lm_error)?;
        if meta.train_tokens < MIN_TOKENS || meta.validation_tokens < MIN_TOKENS {
            return Err(JobError::Permanent(format!(
                "the corpus is too short: it gives {} training and {} validation tokens, and each part needs {MIN_TOKENS}; \
                 use more text or another validation_fraction",
                meta.train_tokens, meta.validation_tokens
            )));
        }
        Ok(meta)
    }

    fn train_tokenizer(&self, vocab_size: u32, passes: u64) -> Result<Tokenizer, JobError> {
        let mut failed: Option<JobError> = None;
        let of_source = |source| self.corpus.pieces(source, Cutting::AtLineFeeds, &self.runtime);
        let mut pieces = (0..self.corpus.sources()).flat_map(of_source);
        let mut taken = 0;
        let texts = std::iter::from_fn(|| {
            if self.context.stop.requested().is_some() {
                failed = Some(JobError::Stopped);
            }
            if failed.is_some() || taken >= TOKENIZER_TRAINING_BYTES {
                return None;
            }
            match pieces.next()? {
                Ok(Piece::Text { text, .. }) => {
                    taken += text.len();
                    self.progress(passes, "training the tokenizer");
                    Some(text)
                }
                Ok(Piece::Tokens { .. }) => {
                    failed = Some(JobError::Permanent(
                        "the corpus holds token files: name the tokenizer that made them instead of training one"
                            .to_owned(),
                    ));
                    None
                }
                Err(error) => {
                    failed = Some(error.into());
                    None
                }
            }
        });
        let trained = Tokenizer::train_byte_bpe(texts, vocab_size);
        match failed {
            Some(error) => Err(error),
            None if taken == 0 => Err(self.empty()),
            None => trained.map_err(lm_error),
        }
    }

    /// Writes one source's tokens; gives how many at its end are held out.
    fn encode(
        &self,
        source: usize,
        tokenizer: &Tokenizer,
        (cutting, passes): (Cutting, u64),
        writer: &mut TokenSetWriter,
    ) -> Result<u64, JobError> {
        let mut pieces = self.corpus.pieces(source, cutting, &self.runtime);
        // One batch is read and unpacked while another is encoded, and no more.
        let (sender, batches) = sync_channel(0);
        let mut document = Document::default();
        let mut tokens_held_out = 0;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                loop {
                    let batch = next_batch(&mut pieces);
                    let last = batch.as_ref().map_or(true, Vec::is_empty);
                    if sender.send(batch).is_err() || last {
                        return;
                    }
                }
            });
            // Dropped with the closure, which ends the thread that waits to send.
            let batches = batches;
            loop {
                if self.context.stop.requested().is_some() {
                    return Err(JobError::Stopped);
                }
                let batch = match batches.recv() {
                    Ok(batch) => batch?,
                    Err(RecvError) => {
                        return Err(JobError::Retryable("the thread that reads the corpus ended".to_owned()));
                    }
                };
                if batch.is_empty() {
                    return Ok(tokens_held_out);
                }
                tokens_held_out += self.write(&batch, tokenizer, (&mut document, writer))?;
                // Two bytes a token at least.
                self.context.ceilings.check_bytes(writer.tokens() * 2).map_err(JobError::Permanent)?;
                self.progress(passes, &format!("{} tokens", writer.tokens() + document.tokens.len() as u64));
            }
        })
    }

    /// Encodes a batch and writes the documents that end in it; gives how many of its tokens are held out.
    fn write(
        &self,
        batch: &[Piece],
        tokenizer: &Tokenizer,
        (document, writer): (&mut Document, &mut TokenSetWriter),
    ) -> Result<u64, JobError> {
        let texts: Vec<&str> = batch
            .iter()
            .filter_map(|piece| match piece {
                Piece::Text { text, .. } => Some(text.as_str()),
                Piece::Tokens { .. } => None,
            })
            .collect();
        let mut encoded = tokenizer.encode_batch(&texts).map_err(lm_error)?.into_iter();
        let mut tokens_held_out = 0;
        for piece in batch {
            match piece {
                Piece::Text { text, ends_document } => {
                    document.tokens.extend(encoded.next().unwrap_or_default());
                    document.text_bytes += text.len() as u64;
                    if *ends_document {
                        writer.push_document(&document.tokens, document.text_bytes).map_err(lm_error)?;
                        *document = Document::default();
                    }
                }
                Piece::Tokens { ids, held_out } => {
                    writer.push_tokens(ids).map_err(|e| lm_error(e).about(&self.corpus.names()))?;
                    tokens_held_out += if *held_out { ids.len() as u64 } else { 0 };
                }
            }
        }
        Ok(tokens_held_out)
    }

    fn progress(&self, passes: u64, message: &str) {
        let (done, total) = (self.corpus.bytes_read(), self.corpus.size_bytes() * passes);
        let per_second = done as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let remaining = (done > 0).then(|| total.saturating_sub(done) as f64 / per_second);
        self.context.progress.set(Progress {
            done: done.min(total),
            total,
            unit: "bytes".to_owned(),
            per_second,
            estimated_remaining_seconds: remaining,
            message: message.to_owned(),
        });
    }

    fn empty(&self) -> JobError {
        JobError::Permanent(format!("the corpus is empty: there is no text in {}", self.corpus.names()))
    }
}

/// The document that is being put together from its pieces.
#[derive(Default)]
struct Document {
    tokens: Vec<u32>,
    text_bytes: u64,
}

fn next_batch(pieces: &mut impl Iterator<Item = Result<Piece, CorpusError>>) -> Result<Vec<Piece>, JobError> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < BATCH_BYTES
        && let Some(piece) = pieces.next().transpose()?
    {
        bytes += match &piece {
            Piece::Text { text, .. } => text.len(),
            Piece::Tokens { ids, .. } => size_of_val(ids.as_slice()),
        };
        batch.push(piece);
    }
    Ok(batch)
}
