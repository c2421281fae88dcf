//! Validation of a new model's architecture: the bounds of its fields, and which fields may be
//! combined.

use inheritune_checkpoint::decoder_config::Architecture;

use super::limits;
use crate::violation::Violations;

/// Checks every field of `architecture`.
///
/// # Errors
/// All violations, with fields named relative to `architecture`.
pub fn validate(architecture: &Architecture) -> Result<(), Violations> {
    let mut v = Violations::default();
    limits::LAYERS.check(&mut v, "n_layers", architecture.n_layers.0);
    limits::D_MODEL.check(&mut v, "d_model", architecture.d_model);
    limits::HEADS.check(&mut v, "n_heads", architecture.n_heads);
    limits::HEADS.check_optional(&mut v, "n_kv_heads", architecture.n_kv_heads);
    limits::D_FF.check_optional(&mut v, "d_ff", architecture.d_ff);
    limits::POSITIONS.check(&mut v, "max_positions", architecture.max_positions);
    if let Some(theta) = architecture.rope_theta {
        limits::ROPE_THETA.check(&mut v, "rope_theta", theta);
    }
    limits::PAD_VOCAB.check_optional(&mut v, "pad_vocab_to_multiple_of", architecture.pad_vocab_to_multiple_of);
    if let Err(shape) = architecture.validate_shape() {
        v.0.extend(shape.0);
    }
    v.into_result()
}

/// Checks every field of a model of this shape for a tokenizer with `vocab_size` entries. Fields of
/// the shape are named relative to `architecture`.
///
/// # Errors
/// All violations.
pub fn validate_with_vocabulary(architecture: &Architecture, vocab_size: u32) -> Result<(), Violations> {
    let mut v = Violations::default();
    if let Err(inner) = validate(architecture) {
        v.nest("architecture", inner);
    }
    limits::VOCAB.check(&mut v, "vocab_size", vocab_size);
    if limits::VOCAB.holds(vocab_size) && architecture.padded_vocab_size(vocab_size).is_none() {
        let problem = format!("{vocab_size} entries rounded up are more than {}", limits::VOCAB.max);
        v.add("architecture.pad_vocab_to_multiple_of", problem);
    }
    v.into_result()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_names_every_bad_field() {
        let mut architecture: Architecture = serde_json::from_value(serde_json::json!({
            "family": "gpt2", "n_layers": 0, "d_model": 10, "n_heads": 4, "n_kv_heads": 2, "d_ff": 0, "max_positions": 0,
            "rope_theta": 1.0, "tied_head": false, "inverse_layer_scale": true, "no_bias": true,
        }))
        .unwrap();
        let bad = |architecture: &Architecture| -> Vec<String> {
            validate(architecture).unwrap_err().0.into_iter().map(|v| v.field).collect()
        };
        assert_eq!(
            bad(&architecture),
            ["n_layers", "d_ff", "max_positions", "d_model", "n_kv_heads", "rope_theta", "tied_head"]
        );
        architecture.pad_vocab_to_multiple_of = Some(0);
        assert!(bad(&architecture).contains(&"pad_vocab_to_multiple_of".to_owned()));
    }
}
