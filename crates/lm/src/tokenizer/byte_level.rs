//! Byte-level BPE: reads GPT-2's older pair of files, and trains new vocabularies.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessor, TokenizerImpl};

use super::settings::Settings;
use super::{END_OF_TEXT, SMALLEST_VOCABULARY};
use crate::error::LmError;

/// Merging a pair that occurs once has no benefit.
const MIN_PAIR_FREQUENCY: u64 = 2;

/// The default tokens of transformers' `GPT2Tokenizer` for roles that no file sets.
pub(super) const ROLES: [(&str, &str); 3] =
    [("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)];

type ByteLevelBpe<P> = TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, P, ByteLevel>;

/// Trains a vocabulary on `texts` and returns its `tokenizer.json`.
pub(super) fn train<I, S>(texts: I, vocab_size: u32) -> Result<String, LmError>
where
    I: Iterator<Item = S> + Send,
    S: AsRef<str> + Send,
{
    if vocab_size < SMALLEST_VOCABULARY {
        let problem =
            format!("vocab_size {vocab_size} is too small to contain every byte; the minimum is {SMALLEST_VOCABULARY}");
        return Err(LmError::Tokenizer(problem));
    }
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size as usize)
        .min_frequency(MIN_PAIR_FREQUENCY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let mut tokenizer = byte_level::<ByteLevel>(BPE::default(), false);
    tokenizer.with_post_processor(Some(ByteLevel::new(true, false, true)));
    tokenizer.train(&mut trainer, texts).map_err(|error| LmError::Tokenizer(error.to_string()))?;
    tokenizer.to_string(true).map_err(|error| LmError::Tokenizer(error.to_string()))
}

/// Adds GPT-2's text splitting to `model`.
fn byte_level<P: PostProcessor>(model: BPE, add_prefix_space: bool) -> ByteLevelBpe<P> {
    let mut tokenizer = ByteLevelBpe::new(model);
    tokenizer
        .with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, true, true)))
        .with_decoder(Some(ByteLevel::default()));
    tokenizer
}

/// The tokenizer that transformers' `GPT2Tokenizer`, which OPT also uses, builds from `vocab.json`,
/// `merges.txt` and the files next to them.
pub(super) fn from_pair(dir: &Path, settings: &Settings) -> Result<tokenizers::Tokenizer, String> {
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    let failed = |error: tokenizers::Error| error.to_string();
    let model = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build().map_err(failed)?;
    let mut tokenizer = byte_level::<PostProcessorWrapper>(model, settings.flag("add_prefix_space").unwrap_or(false));
    // The class's default tokens are not added to other vocabularies.
    let has_end = tokenizer.token_to_id(END_OF_TEXT).is_some();
    tokenizer.add_tokens(&settings.tokens_to_add(&[], if has_end { &ROLES } else { &[] }));
    if let Some(around) = around(&tokenizer, settings)? {
        tokenizer.with_post_processor(Some(PostProcessorWrapper::Template(around)));
    }
    Ok(tokenizer.into())
}

/// Builds the template that adds `bos_token` and `eos_token` around a text, if
/// `tokenizer_config.json` requests them.
fn around(
    tokenizer: &ByteLevelBpe<PostProcessorWrapper>,
    settings: &Settings,
) -> Result<Option<TemplateProcessing>, String> {
    let wanted = |flag: &str, role: &str| {
        let content = settings.token(role).map_or_else(|| END_OF_TEXT.to_owned(), |token| token.content);
        let id = tokenizer.token_to_id(&content)?;
        settings.flag(flag).unwrap_or(false).then_some((content, id))
    };
    let (bos, eos) = (wanted("add_bos_token", "bos_token"), wanted("add_eos_token", "eos_token"));
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let name = |token: &Option<(String, u32)>| token.iter().map(|(content, _)| content.clone()).collect::<Vec<_>>();
    let single = [name(&bos), vec!["$A".to_owned()], name(&eos)].concat();
    let template = TemplateProcessing::builder()
        .try_single(single)
        .map_err(|error| error.to_string())?
        .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
        .build();
    template.map(Some).map_err(|error| error.to_string())
}
