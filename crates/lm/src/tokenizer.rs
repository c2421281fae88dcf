//! Tokenizers in Hugging Face's format: read, run, and trained as byte-level BPE.
//!
//! A tokenizer that was read is written again byte for byte, so that its digest names it wherever it goes.

use std::path::Path;

use inheritune_domain::id::Sha256Digest;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerImpl};

use crate::error::LmError;
use crate::files;

/// The special token that ends a document, in GPT-2's vocabulary and in those trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The tokenizer itself: vocabulary, merges, and how text is split.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// How transformers is to use it.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// Ends of a document that are looked for where the files do not name one.
const KNOWN_ENDS: [&str; 4] = [END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>"];
/// Every byte, and the special token: what a byte-level vocabulary starts from.
const SMALLEST_VOCABULARY: u32 = 257;

/// A tokenizer, and its files as text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer.json`.
    json: String,
    /// `tokenizer_config.json`.
    config: String,
    /// `special_tokens_map.json`.
    special_tokens: Option<String>,
    vocab_size: u32,
    end_of_text_id: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or GPT-2's older pair of `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// A missing or malformed file; the error names it.
    pub fn from_dir(dir: &Path) -> Result<Self, LmError> {
        let path = dir.join(TOKENIZER_FILE);
        let json = if path.exists() { read_text(&path)? } else { gpt2_files(dir)? };
        let optional = |name: &str| {
            let path = dir.join(name);
            if path.exists() { read_text(&path).map(Some) } else { Ok(None) }
        };
        let config = optional(TOKENIZER_CONFIG_FILE)?;
        let parsed: Option<Value> = match &config {
            Some(text) => Some(
                serde_json::from_str(text)
                    .map_err(|e| LmError::file(&dir.join(TOKENIZER_CONFIG_FILE), e.to_string()))?,
            ),
            None => None,
        };
        let special_tokens = optional(SPECIAL_TOKENS_FILE)?;
        let mut tokenizer = Self::parse(json, parsed.as_ref()).map_err(|problem| LmError::file(&path, problem))?;
        if let Some(config) = config {
            tokenizer.config = config;
            tokenizer.special_tokens = special_tokens;
        }
        Ok(tokenizer)
    }

    /// Trains byte-level BPE (GPT-2's splitting, no prefix space) with `<|endoftext|>` as its special
    /// token. The same texts in the same order give the same tokenizer. A small corpus can give fewer
    /// than `vocab_size` tokens.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] for a vocabulary too small to hold every byte.
    pub fn train_byte_bpe<I, S>(texts: I, vocab_size: u32) -> Result<Self, LmError>
    where
        I: Iterator<Item = S> + Send,
        S: AsRef<str> + Send,
    {
        if vocab_size < SMALLEST_VOCABULARY {
            let problem = format!(
                "a vocabulary of {vocab_size} cannot hold every byte; at least {SMALLEST_VOCABULARY} is needed"
            );
            return Err(LmError::Tokenizer(problem));
        }
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab_size as usize)
            .min_frequency(MIN_PAIR_FREQUENCY)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build();
        let mut tokenizer = byte_level(BPE::default());
        tokenizer.train(&mut trainer, texts).map_err(|error| LmError::Tokenizer(error.to_string()))?;
        let json = tokenizer.to_string(true).map_err(|error| LmError::Tokenizer(error.to_string()))?;
        Self::parse(json, None).map_err(LmError::Tokenizer)
    }

    /// The ids of `text`, without any token added.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LmError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| LmError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of each text, in order; computed by all cores, with the same result as one by one.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn encode_batch<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, LmError> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let encodings =
            self.inner.encode_batch_fast(texts, false).map_err(|error| LmError::Tokenizer(error.to_string()))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The text of `tokens`, special tokens included.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LmError> {
        self.inner.decode(tokens, false).map_err(|error| LmError::Tokenizer(error.to_string()))
    }

    /// Rows that an embedding needs for it: its highest id + 1.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The token that ends a document: `eos_token` of `tokenizer_config.json`, else a known name.
    pub fn end_of_text_id(&self) -> Option<u32> {
        self.end_of_text_id
    }

    /// Digest of `tokenizer.json` as [`Tokenizer::save`] writes it.
    pub fn sha256(&self) -> Sha256Digest {
        Sha256Digest::of(self.json.as_bytes())
    }

    /// Sees to it that a model with `embedding_rows` rows has one for every token.
    ///
    /// # Errors
    /// [`LmError::VocabularyTooLarge`].
    pub fn check_fits(&self, embedding_rows: u32) -> Result<(), LmError> {
        if self.vocab_size <= embedding_rows {
            return Ok(());
        }
        Err(LmError::VocabularyTooLarge { tokenizer: self.vocab_size, embedding: embedding_rows })
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `dir`: what
    /// `transformers.AutoTokenizer` reads.
    ///
    /// # Errors
    /// [`LmError::Io`] naming the file.
    pub fn save(&self, dir: &Path) -> Result<(), LmError> {
        files::write(&dir.join(TOKENIZER_FILE), self.json.as_bytes())?;
        files::write(&dir.join(TOKENIZER_CONFIG_FILE), self.config.as_bytes())?;
        match &self.special_tokens {
            Some(text) => files::write(&dir.join(SPECIAL_TOKENS_FILE), text.as_bytes()),
            None => Ok(()),
        }
    }

    fn parse(json: String, config: Option<&Value>) -> Result<Self, String> {
        let mut inner: tokenizers::Tokenizer = json.parse().map_err(|error: tokenizers::Error| error.to_string())?;
        // A corpus is cut into blocks elsewhere; what a tokenizer was last used with must not cut or fill it.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let highest = inner.get_vocab(true).into_values().max();
        let vocab_size =
            highest.ok_or("has no vocabulary")?.checked_add(1).ok_or("has a token id that does not fit in 32 bits")?;
        let named = config
            .and_then(|config| config.get("eos_token"))
            .and_then(|eos| eos.get("content").unwrap_or(eos).as_str());
        let end_of_text_id = match named {
            Some(name) => Some(
                inner
                    .token_to_id(name)
                    .ok_or_else(|| format!("has no token `{name}`, the eos_token of {TOKENIZER_CONFIG_FILE}"))?,
            ),
            None => KNOWN_ENDS.iter().find_map(|name| inner.token_to_id(name)),
        };
        let end = end_of_text_id.and_then(|id| inner.id_to_token(id));
        Ok(Self {
            config: pretty(&config_for(end.as_deref())),
            special_tokens: Some(pretty(&special_tokens_for(end.as_deref()))),
            inner,
            json,
            vocab_size,
            end_of_text_id,
        })
    }
}

/// A pair that is seen once teaches nothing.
const MIN_PAIR_FREQUENCY: u64 = 2;

type ByteLevelBpe = TokenizerImpl<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>;

/// GPT-2's way to split text around `model`.
fn byte_level(model: BPE) -> ByteLevelBpe {
    let mut tokenizer = ByteLevelBpe::new(model);
    tokenizer
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(true, false, true)))
        .with_decoder(Some(ByteLevel::default()));
    tokenizer
}

/// `tokenizer.json` for GPT-2's older pair of files.
fn gpt2_files(dir: &Path) -> Result<String, LmError> {
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    if !vocab.exists() || !merges.exists() {
        return Err(LmError::file(dir, format!("holds neither {TOKENIZER_FILE} nor vocab.json and merges.txt")));
    }
    let failed = |error: tokenizers::Error| LmError::file(&vocab, error.to_string());
    let model = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build().map_err(failed)?;
    let mut tokenizer = byte_level(model);
    if tokenizer.token_to_id(END_OF_TEXT).is_some() {
        tokenizer.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
    }
    tokenizer.to_string(true).map_err(failed)
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

fn pretty(value: &Value) -> String {
    // `{:#}` of a JSON value is indented JSON and cannot fail.
    format!("{value:#}\n")
}

fn read_text(path: &Path) -> Result<String, LmError> {
    String::from_utf8(files::read(path, files::MAX_JSON_BYTES)?).map_err(|error| LmError::file(path, error.to_string()))
}
