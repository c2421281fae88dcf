//! Tokenizer files: carried over byte for byte, and held against the embedding's rows.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use inheritune_domain::artifact::Location;
use inheritune_domain::checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::checkpoint::sentencepiece_model::SentencePieceModel;
use inheritune_domain::checkpoint::slice_plan::check_tokenizer;
use inheritune_domain::checkpoint::tokenizer_files::{TOKENIZER_FILES, VocabularyFiles};
use inheritune_store::Store;
use inheritune_store::objects::Folder;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{BadCheckpoint, SlicerError};

/// The model's, not the tokenizer's; carried over with it all the same.
const GENERATION_FILE: &str = "generation_config.json";
/// Longest tokenizer file; the largest known ones have about 35 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Longest `tokens.json`.
const MAX_META_BYTES: u64 = 1 << 20;

/// Where a target's tokenizer files come from.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    folder: Arc<Folder>,
    names: Vec<&'static str>,
}

impl TokenizerFiles {
    /// The files of `checkpoint` where it has a tokenizer, else those of `token_set` with the checkpoint's own
    /// `generation_config.json`.
    pub fn choose(checkpoint: Option<&Arc<Folder>>, token_set: Option<&TokenSet>) -> Vec<Self> {
        let files = |folder: &Arc<Folder>| Self {
            folder: folder.clone(),
            names: TOKENIZER_FILES.into_iter().chain([GENERATION_FILE]).filter(|name| folder.has(name)).collect(),
        };
        match (checkpoint, token_set) {
            (Some(folder), _) if has_tokenizer(folder) => vec![files(folder)],
            (Some(folder), Some(tokens)) => {
                let own = files(folder);
                let mut theirs = files(&tokens.folder);
                theirs.names.retain(|name| !own.names.contains(name));
                vec![own, theirs]
            }
            (Some(folder), None) => vec![files(folder)],
            (None, Some(tokens)) => vec![files(&tokens.folder)],
            (None, None) => Vec::new(),
        }
    }

    /// Their names.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// One of them.
    ///
    /// # Errors
    /// It is too long or cannot be read.
    pub async fn read(&self, name: &str) -> Result<Bytes, SlicerError> {
        Ok(self.folder.read(name, MAX_FILE_BYTES).await?)
    }
}

/// A token set, as far as a slice cares.
#[derive(Debug, Clone)]
pub struct TokenSet {
    folder: Arc<Folder>,
    /// Ids of its tokenizer.
    pub vocab_size: u64,
    /// The id between documents.
    pub end_of_text_id: Option<u32>,
}

impl TokenSet {
    /// Opens the token set at `location`.
    ///
    /// # Errors
    /// It has no `tokens.json`, or one that is not valid.
    pub async fn open(store: &Store, location: &Location) -> Result<Self, SlicerError> {
        #[derive(Deserialize)]
        struct Meta {
            vocab_size: u64,
            end_of_text_id: Option<u32>,
        }
        let file = "tokens.json".to_owned();
        let folder = Arc::new(store.open(location).await?);
        if !folder.has(&file) {
            let hint = ": a token set is expected".to_owned();
            return Err(SlicerError::checkpoint(location, BadCheckpoint::MissingFile { file, hint }));
        }
        let bytes = folder.read(&file, MAX_META_BYTES).await?;
        let Meta { vocab_size, end_of_text_id } = serde_json::from_slice(&bytes)
            .map_err(|e| SlicerError::checkpoint(location, BadCheckpoint::Json { file, problem: e.to_string() }))?;
        Ok(Self { folder, vocab_size, end_of_text_id })
    }

    /// Every id of its tokenizer must have a row in a model of the shape `config`.
    ///
    /// # Errors
    /// The tokenizer is larger than the embedding.
    pub fn check(&self, location: &Location, config: &DecoderConfig) -> Result<(), SlicerError> {
        Ok(check_tokenizer(config, &format!("{location} tokens.json"), self.vocab_size)?)
    }
}

/// Every id of the tokenizer beside a checkpoint's weights must have a row: of the files that are read where there are
/// several.
///
/// # Errors
/// The tokenizer is larger than the embedding, or its file is not valid.
pub async fn check_own(location: &Location, folder: &Folder, config: &DecoderConfig) -> Result<(), SlicerError> {
    let Some(kind) = VocabularyFiles::find(|name| folder.has(name)) else { return Ok(()) };
    let file = kind.names()[0];
    let bytes = folder.read(file, MAX_FILE_BYTES).await?;
    let entries = match kind {
        VocabularyFiles::TokenizerJson => tokenizer_entries(&bytes).map_err(|error| error.to_string()),
        VocabularyFiles::VocabAndMerges => {
            serde_json::from_slice::<Ids>(&bytes).map(|ids| ids.0).map_err(|error| error.to_string())
        }
        VocabularyFiles::SentencePiece => SentencePieceModel::parse(&bytes)
            .map(|model| model.pieces().len() as u64)
            .map_err(|error| error.to_string()),
    };
    let entries = entries.map_err(|problem| {
        SlicerError::checkpoint(location, BadCheckpoint::Tokenizer { file: file.to_owned(), problem })
    })?;
    Ok(check_tokenizer(config, &format!("{location} {file}"), entries)?)
}

fn has_tokenizer(folder: &Folder) -> bool {
    VocabularyFiles::find(|name| folder.has(name)).is_some()
}

/// The highest id of a `tokenizer.json`, plus one.
fn tokenizer_entries(json: &[u8]) -> Result<u64, serde_json::Error> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
        model: Model,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u64,
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: Ids,
    }
    let file: File = serde_json::from_slice(json)?;
    let added = file.added_tokens.iter().map(|token| token.id.saturating_add(1)).max().unwrap_or(0);
    Ok(file.model.vocab.0.max(added))
}

/// The highest id of a vocabulary, plus one; `{token: id}` (BPE) or `[[token, score]]` (Unigram), not kept in memory.
struct Ids(u64);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdsVisitor;

        impl<'de> Visitor<'de> for IdsVisitor {
            type Value = Ids;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids, A::Error> {
                let mut entries = 0;
                while let Some((_, id)) = map.next_entry::<IgnoredAny, u64>()? {
                    entries = id.saturating_add(1).max(entries);
                }
                Ok(Ids(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ids, A::Error> {
                let mut entries = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    entries += 1;
                }
                Ok(Ids(entries))
            }
        }

        deserializer.deserialize_any(IdsVisitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::tokenizer_entries;

    #[test]
    fn entries_are_the_highest_id_plus_one() {
        let bpe = br#"{"version":"1.0","added_tokens":[{"id":7,"content":"<x>"}],"model":{"type":"BPE","vocab":{"a":0,"b":5},"merges":["a b"]}}"#;
        assert_eq!(tokenizer_entries(bpe).unwrap(), 8);
        let unigram = br#"{"added_tokens":[],"model":{"type":"Unigram","vocab":[["a",-1.0],["b",-2.5],["c",0]]}}"#;
        assert_eq!(tokenizer_entries(unigram).unwrap(), 3);
        assert!(tokenizer_entries(br#"{"model":{}}"#).is_err());
        assert!(tokenizer_entries(br#"{"model":{"vocab":{"a":-1}}}"#).is_err());
    }
}
