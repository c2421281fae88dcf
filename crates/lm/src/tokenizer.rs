//! Reads, runs and trains tokenizers. Checkpoints contain three kinds; trained ones are byte-level
//! BPE.
//!
//! | files | ids equal those of |
//! |---|---|
//! | `tokenizer.json` | Hugging Face's tokenizers library |
//! | `vocab.json` and `merges.txt` | transformers' `GPT2Tokenizer`, with the special tokens in the files next to them |
//! | `tokenizer.model` | the SentencePiece library itself, from which converted tokenizers differ |
//!
//! The first kind that a folder contains is used, as in transformers. [`Tokenizer::encode`] adds no
//! tokens to a text; [`Tokenizer::encode_with_added`] adds the tokens that the tokenizer adds by
//! default. Tokens that `tokenizer_config.json` and its older companion files add are recognised in
//! text (`<|im_start|>` in a text is the token). Special tokens of the vocabulary itself are
//! recognised by the first two kinds (`</s>` in a text is the token), and never by SentencePiece.
//!
//! docs/tokenizers.md lists the differences between versions of transformers, and between them and
//! this module.
//!
//! A tokenizer that was read is written back byte for byte, so its digest identifies it everywhere.

mod byte_level;
mod chunks;
mod guard;
mod sentencepiece;
mod settings;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use inheritune_checkpoint::sentencepiece_model::{MAX_MODEL_BYTES, SentencePieceModel};
use inheritune_checkpoint::tokenizer_files::{VocabularyFiles, no_vocabulary};
use inheritune_checkpoint::tokenizer_json::{MAX_JSON_BYTES, TokenizerJson};
use inheritune_checkpoint::vocabulary_pair::VocabularyPair;
use inheritune_domain::id::Sha256Digest;
use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::{AddedToken, PreTokenizerWrapper};

use self::sentencepiece::{Beside, Scratch, SentencePiece};
use self::settings::Settings;
use crate::error::LmError;
use crate::files;

pub use self::chunks::Join;

/// The special token that ends a document, in GPT-2's vocabulary and in those trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The file of the tokenizer itself: vocabulary, merges, and how text is split.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The file with transformers' settings for the tokenizer.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// End-of-document tokens that are tried if the files do not name one.
const KNOWN_ENDS: [&str; 4] = [END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>"];
/// A byte is represented by one character of at most two bytes, and a space may be added before a
/// text.
const BYTE_LEVEL_GROWTH: u64 = 3;
/// Maximum number of characters from a file's patterns that a tokenizer is tested with.
const MAX_TRIAL_CHARACTERS: usize = 64;
/// Every byte and the special token: the initial vocabulary of byte-level BPE.
const SMALLEST_VOCABULARY: u32 = 257;

/// A tokenizer and its files.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    engine: Engine,
    /// Names and contents, as they are saved.
    files: Vec<(&'static str, Vec<u8>)>,
    sha256: Sha256Digest,
    vocab_size: u32,
    ids: u32,
    end_of_text_id: Option<u32>,
    prefix: Option<Prefix>,
}

/// The token from which the first token of a text is predicted if there is no other context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// The token's id.
    pub id: u32,
    /// The token's text.
    pub text: String,
}

/// Converts text into ids.
#[derive(Debug, Clone)]
enum Engine {
    /// Normalisation makes a text at most `growth` times as long.
    Library {
        inner: Box<tokenizers::Tokenizer>,
        growth: u64,
    },
    SentencePiece {
        model: Arc<SentencePiece>,
        bos: Option<u32>,
        eos: Option<u32>,
    },
}

impl Tokenizer {
    /// Reads the tokenizer of a folder: `tokenizer.json`, else `vocab.json` and `merges.txt`, else
    /// `tokenizer.model`. Also reads `tokenizer_config.json`, `special_tokens_map.json` and
    /// `added_tokens.json` if they exist.
    ///
    /// # Errors
    /// A file is missing or malformed; the error names it.
    pub fn from_dir(dir: &Path) -> Result<Self, LmError> {
        let Some(kind) = VocabularyFiles::find(|name| dir.join(name).exists()) else {
            return Err(LmError::file(dir, no_vocabulary(|name| dir.join(name).exists())));
        };
        let vocabulary = read_vocabulary(dir, kind)?;
        let sha256 = digest(kind, &vocabulary);
        let settings = Settings::read(dir)?;
        let path = dir.join(kind.names()[0]);
        let failed = |problem: String| LmError::file(&path, problem);
        match kind {
            VocabularyFiles::TokenizerJson => {
                let json = &vocabulary[0].1;
                let TokenizerJson { growth, .. } =
                    TokenizerJson::parse(json).map_err(|error| failed(error.to_string()))?;
                let inner = guard::caught(|| tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string()));
                let library = inner.and_then(|inner| Self::library((inner, growth), &settings, sha256));
                let mut tokenizer = library.map_err(failed)?;
                tokenizer.try_out(json).map_err(failed)?;
                let beside = if settings.has_config() { settings.files } else { tokenizer.made_settings() };
                tokenizer.files = vocabulary.into_iter().chain(beside).collect();
                Ok(tokenizer)
            }
            VocabularyFiles::VocabAndMerges => {
                VocabularyPair::parse(&vocabulary[0].1, &vocabulary[1].1)
                    .map_err(|error| LmError::file(&dir.join(error.file), error.problem))?;
                let inner = guard::caught(|| byte_level::from_pair(dir, &settings));
                let library = inner.and_then(|inner| Self::library((inner, BYTE_LEVEL_GROWTH), &settings, sha256));
                let mut tokenizer = library.map_err(failed)?;
                tokenizer.files = vocabulary.into_iter().chain(settings.files).collect();
                Ok(tokenizer)
            }
            VocabularyFiles::SentencePiece => {
                let model = SentencePieceModel::parse(&vocabulary[0].1).map_err(|error| failed(error.to_string()))?;
                let mut tokenizer = Self::sentencepiece(&model, &settings, sha256).map_err(failed)?;
                tokenizer.files = vocabulary.into_iter().chain(settings.files).collect();
                Ok(tokenizer)
            }
        }
    }

    /// Trains byte-level BPE (GPT-2's splitting, no prefix space) with `<|endoftext|>` as its
    /// special token. The same texts in the same order give the same tokenizer. A small corpus can
    /// give fewer than `vocab_size` tokens.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] for a vocabulary too small to contain every byte.
    pub fn train_byte_bpe<I, S>(texts: I, vocab_size: u32) -> Result<Self, LmError>
    where
        I: Iterator<Item = S> + Send,
        S: AsRef<str> + Send,
    {
        let json = byte_level::train(texts, vocab_size)?;
        let inner = json.parse().map_err(|error: tokenizers::Error| LmError::Tokenizer(error.to_string()))?;
        let sha256 = Sha256Digest::of(json.as_bytes());
        let mut tokenizer =
            Self::library((inner, BYTE_LEVEL_GROWTH), &Settings::default(), sha256).map_err(LmError::Tokenizer)?;
        tokenizer.files = tokenizer.made_settings();
        tokenizer.files.insert(0, (TOKENIZER_FILE, json.into_bytes()));
        Ok(tokenizer)
    }

    /// The ids of `text`, without added tokens.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LmError> {
        let ids = match &self.engine {
            Engine::Library { inner, growth } => guard::encode(inner, *growth, (text, false)),
            Engine::SentencePiece { model, .. } => model.encode(text, &mut Scratch::default()),
        };
        ids.map_err(LmError::Tokenizer)
    }

    /// The ids of `text` with the tokens that the tokenizer adds to every text: the result of
    /// `tokenizer(text)` in transformers. For `tokenizer.json` its post-processor decides. For the
    /// other two kinds `add_bos_token` and `add_eos_token` of `tokenizer_config.json` decide. They
    /// default to false, except for the BOS of SentencePiece (as in transformers'
    /// `LlamaTokenizer`).
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn encode_with_added(&self, text: &str) -> Result<Vec<u32>, LmError> {
        match &self.engine {
            Engine::Library { inner, growth } => {
                guard::encode(inner, *growth, (text, true)).map_err(LmError::Tokenizer)
            }
            Engine::SentencePiece { bos, eos, .. } => {
                Ok(bos.iter().copied().chain(self.encode(text)?).chain(*eos).collect())
            }
        }
    }

    /// The ids of each text, in order. Uses all cores; the result is the same as encoding one by
    /// one.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, LmError> {
        let ids = match &self.engine {
            Engine::Library { inner, growth } => {
                let mut all = Vec::with_capacity(texts.len());
                for group in guard::groups(texts, *growth) {
                    let ids = group.par_iter().map(|text| guard::encode(inner, *growth, (text.as_ref(), false)));
                    all.extend(ids.collect::<Result<Vec<_>, String>>().map_err(LmError::Tokenizer)?);
                }
                Ok(all)
            }
            Engine::SentencePiece { model, .. } => texts
                .par_iter()
                .map_init(Scratch::default, |scratch, text| model.encode(text.as_ref(), scratch))
                .collect(),
        };
        ids.map_err(LmError::Tokenizer)
    }

    /// The text of `tokens`, including special tokens. SentencePiece has no text for its own
    /// special tokens.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LmError> {
        let text = match &self.engine {
            Engine::Library { inner, .. } => {
                guard::caught(|| inner.decode(tokens, false).map_err(|error| error.to_string()))
            }
            Engine::SentencePiece { model, .. } => model.decode(tokens),
        };
        text.map_err(LmError::Tokenizer)
    }

    /// Whether cutting a text after a line feed between two non-white-space characters keeps its
    /// ids. Plain byte-level BPE never joins text across such a position. A tokenizer that
    /// normalises text or adds something before it may.
    pub fn can_cut_at_line_feeds(&self) -> bool {
        match &self.engine {
            Engine::Library { inner, .. } => {
                let is_plain = matches!(
                    inner.get_pre_tokenizer(),
                    Some(PreTokenizerWrapper::ByteLevel(split)) if !split.add_prefix_space && split.use_regex
                );
                let added = inner.get_added_tokens_decoder();
                let is_across = |content: &str| content.trim_end_matches('\n').contains('\n');
                let may_join = added.values().any(|token| token.lstrip || is_across(&token.content));
                is_plain && inner.get_normalizer().is_none() && !may_join
            }
            Engine::SentencePiece { .. } => false,
        }
    }

    /// Number of embedding rows that the tokenizer needs: the highest id of its vocabulary and of
    /// its boundary tokens (BOS and EOS), plus one.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Upper bound of all ids. Tokens that are added to the vocabulary (`pad_token`) often have no
    /// row in the model, which is fine as long as no text contains them.
    pub fn ids(&self) -> u32 {
        self.ids
    }

    /// The token that ends a document: `eos_token` of `tokenizer_config.json` or
    /// `special_tokens_map.json`, else SentencePiece's own, else a known name.
    pub fn end_of_text_id(&self) -> Option<u32> {
        self.end_of_text_id
    }

    /// The token that begins a text: `bos_token` as transformers determines it, else the token that
    /// ends a text.
    pub fn prefix(&self) -> Option<&Prefix> {
        self.prefix.as_ref()
    }

    /// Digest of the vocabulary's files, as [`vocabulary_sha256`] returns it.
    pub fn sha256(&self) -> Sha256Digest {
        self.sha256
    }

    /// Checks that a model with `embedding_rows` rows has one for every token.
    ///
    /// # Errors
    /// [`LmError::VocabularyTooLarge`].
    pub fn check_fits(&self, embedding_rows: u32) -> Result<(), LmError> {
        if self.vocab_size <= embedding_rows {
            return Ok(());
        }
        Err(LmError::VocabularyTooLarge { tokenizer: self.vocab_size, embedding: embedding_rows })
    }

    /// Writes the tokenizer's files into `dir`, for `transformers.AutoTokenizer` to read.
    ///
    /// # Errors
    /// [`LmError::Io`] with the file's path.
    pub fn save(&self, dir: &Path) -> Result<(), LmError> {
        self.files.iter().try_for_each(|(name, content)| files::write(&dir.join(name), content))
    }

    fn library(
        (mut inner, growth): (tokenizers::Tokenizer, u64),
        settings: &Settings,
        sha256: Sha256Digest,
    ) -> Result<Self, String> {
        // Other code cuts the corpus into blocks; settings from earlier use must not truncate or
        // pad it.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let highest = inner.get_vocab(true).into_values().max();
        let next = |highest: u32| highest.checked_add(1).ok_or("has a token id that does not fit in 32 bits");
        let mut vocab_size = next(highest.ok_or("has no vocabulary")?)?;
        let known: Vec<String> = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let is_gpt_2 = settings.is_of_class("GPT2Tokenizer");
        let added = settings.tokens_to_add(&known, if is_gpt_2 { &byte_level::ROLES } else { &[] });
        guard::caught(|| Ok(inner.add_tokens(&added)))?;
        let mut ids = vocab_size;
        for token in &added {
            let Some(id) = inner.token_to_id(&token.content) else { continue };
            ids = ids.max(next(id)?);
            if settings.is_boundary(&token.content) {
                vocab_size = vocab_size.max(next(id)?);
            }
        }
        inner.set_encode_special_tokens(settings.flag("split_special_tokens").unwrap_or(false));
        // These two classes take this flag from tokenizer_config.json, whatever tokenizer.json
        // says.
        if (is_gpt_2 || settings.is_of_class("GPTNeoXTokenizer"))
            && let Some(PreTokenizerWrapper::ByteLevel(split)) = inner.get_pre_tokenizer().cloned()
        {
            let add_prefix_space = settings.flag("add_prefix_space").unwrap_or(false);
            inner.with_pre_tokenizer(Some(split.add_prefix_space(add_prefix_space)));
        }
        let end_of_text_id = match settings.token("eos_token") {
            Some(token) => {
                let missing = || no_token(&token.content, "eos_token");
                Some(inner.token_to_id(&token.content).ok_or_else(missing)?)
            }
            None => KNOWN_ENDS.iter().find_map(|name| inner.token_to_id(name)),
        };
        let bos_id = settings.token("bos_token").and_then(|token| inner.token_to_id(&token.content));
        let prefix = bos_id.or(end_of_text_id).map(|id| Prefix { id, text: inner.id_to_token(id).unwrap_or_default() });
        let engine = Engine::Library { inner: Box::new(inner), growth };
        Ok(Self { engine, files: Vec::new(), sha256, vocab_size, ids, end_of_text_id, prefix })
    }

    /// Encodes texts that take long if a pattern is bad, including characters from the file's own
    /// patterns.
    fn try_out(&self, json: &[u8]) -> Result<(), String> {
        let Engine::Library { inner, .. } = &self.engine else { return Ok(()) };
        let text = String::from_utf8_lossy(json);
        if !text.contains("\"Regex\"") {
            return Ok(());
        }
        let of_patterns = text.split("\"Regex\"").skip(1).flat_map(|after| after.chars().take(1_000));
        let mut characters: Vec<char> = of_patterns.filter(|c| c.is_alphanumeric()).collect();
        characters.sort_unstable();
        characters.dedup();
        characters.truncate(MAX_TRIAL_CHARACTERS);
        guard::tried(inner, &characters)
    }

    fn sentencepiece(model: &SentencePieceModel, settings: &Settings, sha256: Sha256Digest) -> Result<Self, String> {
        let pieces: HashMap<&str, u32> = model.pieces().iter().map(|piece| piece.text.as_str()).zip(0..).collect();
        // Tokens outside the model's pieces are recognised in text. Pieces are only recognised if
        // the library itself recognises them.
        let mut added: Vec<AddedToken> = settings.tokens_to_add(&[], &[]);
        added.retain(|token| !pieces.contains_key(token.content.as_str()));
        let count = model.pieces().len() as u32;
        let id_of = |content: &str| {
            let beside = || added.iter().position(|token| token.content == content).map(|at| count + at as u32);
            pieces.get(content).copied().or_else(beside)
        };
        let role = |role: &str, own: Option<u32>| match settings.token(role) {
            Some(token) => id_of(&token.content).map(Some).ok_or_else(|| no_token(&token.content, role)),
            None => Ok(own),
        };
        let (bos, eos) = (role("bos_token", model.bos_id())?, role("eos_token", model.eos_id())?);
        let text_of = |id: u32| {
            let piece = model.pieces().get(id as usize).map(|piece| piece.text.clone());
            let beside = || added.get((id - count) as usize).map(|token| token.content.clone());
            piece.or_else(beside).unwrap_or_default()
        };
        let prefix = bos.or(eos).map(|id| Prefix { id, text: text_of(id) });
        let needed = added.iter().rposition(|token| settings.is_boundary(&token.content)).map_or(0, |at| at as u32 + 1);
        let ids = count + added.len() as u32;
        let is_split = settings.flag("split_special_tokens").unwrap_or(false);
        if is_split {
            added.iter_mut().filter(|token| token.special).for_each(|token| token.content.clear());
        }
        let beside = Beside { tokens: added, is_legacy: settings.flag("legacy").unwrap_or(true) };
        Ok(Self {
            engine: Engine::SentencePiece {
                model: Arc::new(SentencePiece::new(model, beside)?),
                bos: bos.filter(|_| settings.flag("add_bos_token").unwrap_or(true)),
                eos: eos.filter(|_| settings.flag("add_eos_token").unwrap_or(false)),
            },
            files: Vec::new(),
            sha256,
            vocab_size: count + needed,
            ids,
            end_of_text_id: eos,
            prefix,
        })
    }

    /// The `tokenizer_config.json` and `special_tokens_map.json` for a folder without them.
    fn made_settings(&self) -> Vec<(&'static str, Vec<u8>)> {
        let end = match &self.engine {
            Engine::Library { inner, .. } => self.end_of_text_id.and_then(|id| inner.id_to_token(id)),
            Engine::SentencePiece { .. } => None,
        };
        let (config, special) = (config_for(end.as_deref()), special_tokens_for(end.as_deref()));
        vec![(TOKENIZER_CONFIG_FILE, pretty(&config)), (SPECIAL_TOKENS_FILE, pretty(&special))]
    }
}

/// The digest that identifies the vocabulary of a folder, if it has one: that of `tokenizer.json`
/// or `tokenizer.model`, or of the output of `sha256sum vocab.json merges.txt`.
///
/// # Errors
/// A file cannot be read, or is too long.
pub fn vocabulary_sha256(dir: &Path) -> Result<Option<Sha256Digest>, LmError> {
    let kind = VocabularyFiles::find(|name| dir.join(name).exists());
    kind.map(|kind| Ok(digest(kind, &read_vocabulary(dir, kind)?))).transpose()
}

fn read_vocabulary(dir: &Path, kind: VocabularyFiles) -> Result<Vec<(&'static str, Vec<u8>)>, LmError> {
    let limit = match kind {
        VocabularyFiles::TokenizerJson | VocabularyFiles::VocabAndMerges => MAX_JSON_BYTES as u64,
        VocabularyFiles::SentencePiece => MAX_MODEL_BYTES as u64,
    };
    kind.names().iter().map(|name| Ok((*name, files::read(&dir.join(name), limit)?))).collect()
}

fn digest(kind: VocabularyFiles, files: &[(&'static str, Vec<u8>)]) -> Sha256Digest {
    kind.sha256(&files.iter().map(|(_, content)| content.as_slice()).collect::<Vec<_>>())
}

fn no_token(content: &str, role: &str) -> String {
    format!("has no token `{content}`, which its settings name as {role}")
}

fn config_for(end: Option<&str>) -> Value {
    let mut config = json!({
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    if let (Some(object), Value::Object(special)) = (config.as_object_mut(), special_tokens_for(end)) {
        object.extend(special);
    }
    config
}

fn special_tokens_for(end: Option<&str>) -> Value {
    match end {
        Some(end) => json!({ "bos_token": end, "eos_token": end, "unk_token": end }),
        None => json!({}),
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    // `{:#}` formats a JSON value as indented JSON and cannot fail.
    format!("{value:#}\n").into_bytes()
}
