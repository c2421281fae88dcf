//! Carries over the files next to the weights, byte for byte, and checks the tokenizer among them
//! against the rows of the embedding.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use inheritune_checkpoint::carried_files::{Fate, MAX_CARRIED_FILE_BYTES, fates};
use inheritune_checkpoint::carried_settings;
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::left_out::LeftOut;
use inheritune_checkpoint::shard_index::{INDEX_FILE, PICKLE_INDEX_FILE};
use inheritune_checkpoint::slice_plan::check_tokenizer;
use inheritune_checkpoint::tokenizer_files::{VocabularyFiles, is_tokenizer_file};
use inheritune_checkpoint::vocabulary_pair::PairError;
use inheritune_domain::artifact::Location;
use inheritune_objects::Folder;
use inheritune_store::Store;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{BadCheckpoint, SlicerError};
use crate::source::Checkpoint;

/// Longest `tokens.json`.
const MAX_META_BYTES: u64 = 1 << 20;

/// Files that are copied into a target unchanged.
#[derive(Debug, Clone)]
pub struct CarriedFiles {
    folder: Arc<Folder>,
    names: Vec<String>,
}

impl CarriedFiles {
    /// Chooses the files next to the weights of `reference`, and lists those that are left out.
    /// Takes the tokenizer of `token_set` if the reference has no supported one.
    pub fn choose(reference: Option<&Checkpoint>, token_set: Option<&TokenSet>) -> (Vec<Self>, Vec<LeftOut>) {
        let mut left_out = Vec::new();
        let Some(reference) = reference else {
            return (token_set.map(|tokens| Self::of_tokenizer(&tokens.folder)).into_iter().collect(), left_out);
        };
        let read: HashSet<&str> = reference.inventory.tensors().map(|(_, tensor)| tensor.file.as_str()).collect();
        let is_index = |name: &str| name == INDEX_FILE || name == PICKLE_INDEX_FILE;
        let sizes = reference.folder.files().iter().map(|file| (file.name.as_str(), file.size_bytes));
        let mut names = Vec::new();
        for (name, fate) in fates(sizes, |name| read.contains(name) || is_index(name)) {
            match fate {
                Fate::Carried => names.push(name.to_owned()),
                Fate::Rewritten => {}
                Fate::LeftOut(reason) => left_out.push(LeftOut::file(name, reason)),
            }
        }
        let has_tokenizer = VocabularyFiles::find(|name| reference.folder.has(name)).is_some();
        let theirs = token_set.filter(|_| !has_tokenizer).map(|tokens| Self::of_tokenizer(&tokens.folder));
        let theirs = theirs.filter(|theirs| !theirs.names.is_empty());
        if theirs.is_some() {
            let (replaced, own): (Vec<String>, Vec<String>) =
                names.into_iter().partition(|name| is_tokenizer_file(name));
            names = own;
            let reason = "replaced by the tokenizer of the corpus";
            left_out.extend(replaced.iter().map(|name| LeftOut::file(name, reason)));
        }
        let own = Self { folder: reference.folder.clone(), names };
        ([own].into_iter().chain(theirs).collect(), left_out)
    }

    /// The tokenizer files of a token set.
    fn of_tokenizer(folder: &Arc<Folder>) -> Self {
        let names = folder.files().iter().map(|file| file.name.clone()).filter(|name| is_tokenizer_file(name));
        Self { folder: folder.clone(), names: names.collect() }
    }

    /// Rewrites the JSON settings files that not every version of transformers loads unchanged.
    /// Returns for each the file, its new content and what that changes.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn rewritten(
        &self,
        config: &DecoderConfig,
    ) -> Result<Vec<(&'static str, Value, Vec<LeftOut>)>, SlicerError> {
        let mut rewritten = Vec::new();
        for file in carried_settings::files(self.names.iter().map(String::as_str)) {
            let written = carried_settings::written(file, &self.read(file).await?, config);
            rewritten.extend(written.map(|(json, changed)| (file, json, changed)));
        }
        Ok(rewritten)
    }

    /// The files' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Reads one of the files.
    ///
    /// # Errors
    /// The file is too long or cannot be read.
    pub async fn read(&self, name: &str) -> Result<Bytes, SlicerError> {
        Ok(self.folder.read(name, MAX_CARRIED_FILE_BYTES).await?)
    }
}

/// The properties of a token set that a slice needs.
#[derive(Debug, Clone)]
pub struct TokenSet {
    folder: Arc<Folder>,
    /// Number of ids of its tokenizer.
    pub vocab_size: u64,
    /// The id that separates documents.
    pub end_of_text_id: Option<u32>,
}

impl TokenSet {
    /// Opens the token set at `location`.
    ///
    /// # Errors
    /// `tokens.json` is missing or invalid.
    pub async fn open(store: &Store, location: &Location) -> Result<Self, SlicerError> {
        #[derive(Deserialize)]
        struct Meta {
            vocab_size: u64,
            end_of_text_id: Option<u32>,
        }
        let file = "tokens.json".to_owned();
        let folder = Arc::new(store.open(location).await?);
        if !folder.has(&file) {
            let hint = ": expected a token set".to_owned();
            return Err(SlicerError::checkpoint(location, BadCheckpoint::MissingFile { file, hint }));
        }
        let bytes = folder.read(&file, MAX_META_BYTES).await?;
        let Meta { vocab_size, end_of_text_id } = serde_json::from_slice(&bytes)
            .map_err(|e| SlicerError::checkpoint(location, BadCheckpoint::Json { file, problem: e.to_string() }))?;
        Ok(Self { folder, vocab_size, end_of_text_id })
    }

    /// Checks that every id of the tokenizer has a row in a model of the shape `config`.
    ///
    /// # Errors
    /// The tokenizer is larger than the embedding.
    pub fn check(&self, location: &Location, config: &DecoderConfig) -> Result<(), SlicerError> {
        Ok(check_tokenizer(config, &format!("{location} tokens.json"), self.vocab_size)?)
    }
}

/// Checks that every id of the tokenizer next to a checkpoint's weights has a row. If there are
/// several tokenizers, checks the one that is used.
///
/// # Errors
/// The tokenizer is larger than the embedding, or one of its files is invalid.
pub async fn check_own(location: &Location, folder: &Folder, config: &DecoderConfig) -> Result<(), SlicerError> {
    let Some(kind) = VocabularyFiles::find(|name| folder.has(name)) else { return Ok(()) };
    let mut contents = Vec::new();
    for name in kind.names() {
        contents.push(folder.read(name, MAX_CARRIED_FILE_BYTES).await?);
    }
    let contents: Vec<&[u8]> = contents.iter().map(Bytes::as_ref).collect();
    let entries = kind.entries(&contents).map_err(|PairError { file, problem }| {
        SlicerError::checkpoint(location, BadCheckpoint::Tokenizer { file: file.to_owned(), problem })
    })?;
    Ok(check_tokenizer(config, &format!("{location} {}", kind.names()[0]), entries)?)
}
