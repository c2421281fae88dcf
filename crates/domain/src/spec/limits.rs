//! The limits of a recipe, and the ranges that several specs share.

/// Most rounds of growth a recipe may ask for.
pub const MAX_ROUNDS: u32 = 64;
/// Longest recipe name.
pub const MAX_NAME_LEN: usize = 128;
/// Most sources of a corpus.
pub const MAX_SOURCES: usize = 1024;
/// The column of rows that holds the text where nothing else is said.
pub const DEFAULT_TEXT_COLUMN: &str = "text";
/// Longest name of a column.
pub const MAX_COLUMN_LEN: usize = 256;
/// Most controls, and most repetition arms, of a recipe.
pub const MAX_ARMS: usize = 16;
/// Fewest entries of a trained tokenizer: 256 bytes and the end-of-text token.
pub const MIN_VOCAB: u32 = 257;
/// Most entries of a trained tokenizer: ids then fit in 16 bits.
pub const MAX_VOCAB: u32 = 65_536;
/// Longest file of a checkpoint's weights where nothing else is said: transformers' own default, 5 GB.
pub const DEFAULT_MAX_SHARD_SIZE_BYTES: u64 = 5_000_000_000;
/// Sequences a forward pass of an evaluation where nothing else is said.
pub const DEFAULT_BATCH_SIZE: u32 = 8;
/// Tokens a forward pass of a benchmark where nothing else is said.
pub const DEFAULT_MAX_BATCH_TOKENS: u32 = 2048;
/// Shortest that may be asked for: less is a slip, such as 5 for 5 GB.
pub const MIN_MAX_SHARD_SIZE_BYTES: u64 = 1 << 20;

pub(super) fn positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

pub(super) fn is_column(name: &str) -> bool {
    (1..=MAX_COLUMN_LEN).contains(&name.len()) && !name.contains(char::is_control)
}

pub(super) fn fraction(x: f64) -> bool {
    x.is_finite() && x > 0.0 && x <= 1.0
}

pub(super) fn validation_fraction(x: f64) -> bool {
    x.is_finite() && x > 0.0 && x <= 0.5
}
