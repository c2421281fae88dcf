//! The tokenize job: makes a token set from text.
//!
//! It makes two passes over the corpus if the tokenizer is trained on it, or one if the tokenizer
//! is given. A pass holds only a few batches of pieces in memory. The result depends only on the
//! sources, their order and the tokenizer. It does not depend on the number of threads, because
//! pieces are encoded in parallel but written in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use inheritune_checkpoint::carried_files::{Fate, MAX_CARRIED_FILE_BYTES, fates};
use inheritune_checkpoint::tokenizer_files::{VocabularyFiles, is_tokenizer_file, no_vocabulary};
use inheritune_data::{ReadAs, Tally};
use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::job::Progress;
use inheritune_domain::spec::{CorpusFacts, TokenizeSpec, Tokenized, TokenizerSource, defaults};
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_lm::tokens::{
    HeldOut, NewTokenSet, TOKENS_FILE, TRAIN_FILE, TokenSetMeta, TokenSetWriter, VALIDATION_FILE,
};
use inheritune_runtime::worker::{JobContext, JobError};
use rayon::prelude::*;
use serde_json::json;
use tokio::runtime::Handle;

use self::training_text::TrainingText;
use crate::corpus::cutting::{Cutting, PIECE_BYTES};
use crate::corpus::{Corpus, CorpusError, Piece, Reading};
use crate::inputs::carried_of;
use crate::{file_error, lm_error};

mod training_text;

/// Size of the text that is encoded at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How often a thread that waits for text checks for a stop request.
const LOOK_FOR_STOP: Duration = Duration::from_millis(200);
/// Minimum number of tokens in each part: one input and one target.
const MIN_TOKENS: u64 = 2;

/// Runs one tokenize job.
///
/// # Errors
/// Permanent if a source is missing, empty, not UTF-8 or of an unsupported kind, or if the
/// tokenizer cannot be read.
pub async fn run(spec: TokenizeSpec, context: JobContext) -> Result<Tokenized, JobError> {
    let dir = context.cache_dir.join("tokens");
    tokio::fs::create_dir_all(&dir).await.map_err(|error| file_error(&dir, error))?;
    let text_column: Arc<str> = spec.text_column.as_deref().unwrap_or(defaults::text_column()).into();
    let corpus = Corpus::open(&context.store, &spec.sources, &text_column, &context.stop).await?;
    if let TokenizerSource::From(location) = &spec.tokenizer {
        fetch_tokenizer(&context, location, &dir).await?;
    }
    let work = Work {
        corpus,
        context: context.clone(),
        runtime: Handle::current(),
        text_column,
        max_bad_rows: spec.max_bad_rows,
        started: Instant::now(),
        dir: dir.clone(),
    };
    let (tokenizer, fraction, threads) = (spec.tokenizer.clone(), spec.validation_fraction, context.threads);
    let (meta, facts) = context
        .run_blocking("tokenize", move || {
            // 0 lets rayon choose: one thread per core.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
            let pool = pool.map_err(|error| JobError::Retryable(format!("tokenizer threads: {error}")))?;
            pool.install(|| work.tokenize(&tokenizer, fraction))
        })
        .await?;
    publish(&context, &dir, (&meta, facts), &spec).await
}

/// Fetches only the tokenizer files, because the folder may also contain weights.
async fn fetch_tokenizer(context: &JobContext, location: &Location, dir: &Path) -> Result<(), JobError> {
    let folder = context.store.open(location).await?;
    if VocabularyFiles::find(|name| folder.has(name)).is_none() {
        return Err(JobError::Permanent(format!("{location}: {}", no_vocabulary(|name| folder.has(name)))));
    }
    let files = folder.files().iter().map(|file| (file.name.as_str(), file.size_bytes));
    for (name, _) in fates(files, |_| false).into_iter().filter(|(_, fate)| *fate == Fate::Carried) {
        if is_tokenizer_file(name) {
            let path = dir.join(name);
            let bytes = folder.read(name, MAX_CARRIED_FILE_BYTES).await?;
            let parent = path.parent().unwrap_or(dir);
            tokio::fs::create_dir_all(parent).await.map_err(|error| file_error(parent, error))?;
            tokio::fs::write(&path, bytes).await.map_err(|error| file_error(&path, error))?;
        }
    }
    Ok(())
}

async fn publish(
    context: &JobContext,
    dir: &Path,
    (meta, facts): (&TokenSetMeta, CorpusFacts),
    spec: &TokenizeSpec,
) -> Result<Tokenized, JobError> {
    let mut artifact = context.store.begin_artifact(ArtifactKind::TokenSet, context.lease);
    let tokenizer = carried_of(dir).await?.into_iter().filter(|name| is_tokenizer_file(name));
    for name in [TRAIN_FILE, VALIDATION_FILE, TOKENS_FILE].map(str::to_owned).into_iter().chain(tokenizer) {
        artifact.put_file(&name, &dir.join(&name)).await?;
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
        "read": facts,
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
        corpus: Some(facts),
    })
}

/// The CPU-bound part of the job, which runs on its own threads.
struct Work {
    corpus: Corpus,
    context: JobContext,
    runtime: Handle,
    text_column: Arc<str>,
    max_bad_rows: u64,
    started: Instant,
    dir: PathBuf,
}

impl Work {
    fn tokenize(
        &self,
        source: &TokenizerSource,
        validation_fraction: f64,
    ) -> Result<(TokenSetMeta, CorpusFacts), JobError> {
        let (tokenizer, passes) = match source {
            TokenizerSource::Train { vocab_size } => {
                let tokenizer = self.train_tokenizer(*vocab_size)?;
                tokenizer.save(&self.dir).map_err(lm_error)?;
                (tokenizer, 2)
            }
            TokenizerSource::From(location) => {
                let shown = location.to_string();
                (Tokenizer::from_dir(&self.dir).map_err(|e| lm_error(e.shown_as(&self.dir, &shown)))?, 1)
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
        .map_err(lm_error)?
        .with_ids_below(tokenizer.ids());
        let read_as = self.read_as();
        let mut forced_cuts = 0;
        for source in 0..self.corpus.sources() {
            let reading =
                Reading { cutting: Cutting::By(&tokenizer), read_as: read_as.clone(), vocab_size: tokenizer.ids() };
            let done = self.encode(source, reading, passes, &mut writer)?;
            forced_cuts += done.forced_cuts;
            let held_out = match done.tokens_held_out {
                0 => HeldOut::Share(validation_fraction),
                tokens => HeldOut::Last(tokens),
            };
            writer.end_source(held_out).map_err(lm_error)?;
        }
        if writer.tokens() == 0 {
            return Err(self.empty(&read_as.tally));
        }
        let meta = writer.finish(validation_fraction).map_err(lm_error)?;
        if meta.train_tokens < MIN_TOKENS || meta.validation_tokens < MIN_TOKENS {
            return Err(JobError::Permanent(format!(
                "the corpus is too short: it has {} training and {} validation tokens, but each part needs \
                 {MIN_TOKENS}; use more text or a different validation_fraction",
                meta.train_tokens, meta.validation_tokens
            )));
        }
        let facts = self.corpus.facts(&read_as.tally, forced_cuts);
        tracing::info!(documents = meta.documents, "{}", facts.summary(meta.documents));
        Ok((meta, facts))
    }

    /// The reading options of one pass, with an empty tally.
    fn read_as(&self) -> ReadAs {
        ReadAs { text_column: self.text_column.clone(), max_bad_rows: self.max_bad_rows, tally: Arc::default() }
    }

    fn train_tokenizer(&self, vocab_size: u32) -> Result<Tokenizer, JobError> {
        if self.corpus.has_tokens() {
            return Err(JobError::Permanent(
                "the corpus contains token files: name the tokenizer that made them instead of training one".to_owned(),
            ));
        }
        let reading = Reading { cutting: Cutting::Gpt2, read_as: self.read_as(), vocab_size };
        let (texts, received) = sync_channel::<String>(1);
        let trained = train_aside(received, vocab_size)?;
        let mut enough = TrainingText::default();
        'read: for source in 0..self.corpus.sources() {
            for piece in self.corpus.pieces(source, reading.clone(), &self.runtime) {
                if self.context.stop.requested().is_some() {
                    return Err(JobError::Stopped);
                }
                if let Piece::Text { text, .. } = piece?
                    && texts.send(enough.take(text)).is_err()
                {
                    break 'read;
                }
                self.progress(2, "training the tokenizer");
                if enough.is_reached() {
                    break 'read;
                }
            }
        }
        if enough.bytes() == 0 {
            return Err(self.empty(&reading.read_as.tally));
        }
        drop(texts);
        loop {
            match trained.recv_timeout(LOOK_FOR_STOP) {
                Ok(tokenizer) => return tokenizer.map_err(lm_error),
                Err(RecvTimeoutError::Timeout) if self.context.stop.requested().is_some() => {
                    return Err(JobError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(JobError::Retryable("the thread that trains the tokenizer ended".to_owned()));
                }
            }
        }
    }

    /// Encodes one source and writes its tokens.
    fn encode(
        &self,
        source: usize,
        reading: Reading<'_>,
        passes: u64,
        writer: &mut TokenSetWriter,
    ) -> Result<Encoded, JobError> {
        let Cutting::By(tokenizer) = reading.cutting else {
            return Err(JobError::Permanent("no tokenizer to encode with".to_owned()));
        };
        let mut pieces = self.corpus.pieces(source, reading, &self.runtime);
        // At most one batch is read and decompressed while another one is encoded.
        let (sender, batches) = sync_channel(0);
        let mut text_bytes = 0;
        let mut done = Encoded::default();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                loop {
                    let batch = next_batch(&mut pieces).map(|batch| (batch, pieces.forced_cuts()));
                    let last = batch.as_ref().map_or(true, |(batch, _)| batch.is_empty());
                    if sender.send(batch).is_err() || last {
                        return;
                    }
                }
            });
            // Moved in, so that it is dropped with this closure: a reader that blocks on sending
            // then ends. A reader that waits for bytes checks for a stop request itself.
            let batches = batches;
            loop {
                if self.context.stop.requested().is_some() {
                    return Err(JobError::Stopped);
                }
                let (batch, forced_cuts) = match batches.recv_timeout(LOOK_FOR_STOP) {
                    Ok(batch) => batch?,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(JobError::Retryable("the thread that reads the corpus ended".to_owned()));
                    }
                };
                done.forced_cuts = forced_cuts;
                if batch.is_empty() {
                    return Ok(done);
                }
                done.tokens_held_out += self.write(&batch, tokenizer, (&mut text_bytes, writer))?;
                // A token takes at least two bytes.
                self.context.ceilings.check_bytes(writer.tokens() * 2).map_err(JobError::Permanent)?;
                self.progress(passes, &format!("{} tokens", writer.tokens()));
            }
        })
    }

    /// Encodes and writes a batch. Returns how many of its tokens are held out.
    fn write(
        &self,
        batch: &[Piece],
        tokenizer: &Tokenizer,
        (text_bytes, writer): (&mut u64, &mut TokenSetWriter),
    ) -> Result<u64, JobError> {
        let encode = |text: &str| match self.context.stop.requested() {
            Some(_) => Err(JobError::Stopped),
            None => tokenizer.encode(text).map_err(lm_error),
        };
        // A long piece needs as much memory as many short ones, so it is encoded on its own below.
        let encoded: Vec<Option<Vec<u32>>> = batch
            .par_iter()
            .map(|piece| match piece {
                Piece::Text { text, .. } if text.len() <= 2 * PIECE_BYTES => encode(text).map(Some),
                Piece::Text { .. } | Piece::Tokens { .. } => Ok(None),
            })
            .collect::<Result<_, JobError>>()?;
        let mut tokens_held_out = 0;
        for (piece, encoded) in batch.iter().zip(encoded) {
            let before = writer.tokens();
            let is_held_out = match piece {
                Piece::Text { text, ends_document, held_out } => {
                    let tokens = encoded.map_or_else(|| encode(text), Ok)?;
                    writer.push_part(&tokens).map_err(lm_error)?;
                    *text_bytes += text.len() as u64;
                    if *ends_document {
                        writer.end_document(std::mem::take(text_bytes)).map_err(lm_error)?;
                    }
                    *held_out
                }
                Piece::Tokens { ids, held_out } => {
                    writer.push_tokens(ids).map_err(|e| lm_error(e).about(&self.corpus.names()))?;
                    *held_out
                }
            };
            tokens_held_out += if is_held_out { writer.tokens() - before } else { 0 };
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

    fn empty(&self, tally: &Tally) -> JobError {
        let rows = match (tally.rows_without_text(), tally.first_bad_row()) {
            (0, None) => String::new(),
            (empty, None) => format!(" ({empty} rows have no text)"),
            (_, Some(first)) => format!(" ({} rows are bad, the first: {first})", tally.bad_rows()),
        };
        JobError::Permanent(format!("the corpus is empty: no text in {}{rows}", self.corpus.names()))
    }
}

/// Trains a tokenizer on the received `texts`, on a separate thread. A stopping job does not wait
/// for that thread, because the library's training cannot be interrupted.
fn train_aside(
    texts: Receiver<String>,
    vocab_size: u32,
) -> Result<Receiver<Result<Tokenizer, inheritune_lm::LmError>>, JobError> {
    let failed = |problem: String| JobError::Retryable(format!("tokenizer thread: {problem}"));
    let threads = rayon::current_num_threads();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| failed(e.to_string()))?;
    let (sender, trained) = sync_channel(1);
    let train = move || {
        let tokenizer = pool.install(|| Tokenizer::train_byte_bpe(texts.into_iter(), vocab_size));
        // The receiver is gone if the job has stopped.
        let _unwanted = sender.send(tokenizer);
    };
    std::thread::Builder::new().name("train tokenizer".to_owned()).spawn(train).map_err(|e| failed(e.to_string()))?;
    Ok(trained)
}

/// Counts from encoding one source.
#[derive(Default)]
struct Encoded {
    tokens_held_out: u64,
    forced_cuts: u64,
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
