//! Tokens that a model does not accept give an error that says which, never a panic or a wrong
//! loss.
#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use inheritune_lm::{Device, Kind, LmError, Tensor};

mod support;
use support::{golden_dir, load};

/// Passes tokens to a golden model and compares the error.
fn check_tokens(inputs: &Tensor, expected: Expect) {
    let decoder = load(&golden_dir().join("gpt2-inner"));
    let from_logits = decoder.logits(inputs).expect_err("expected an error").to_string();
    let good = Tensor::from_slice(&[1_i64]).view([1, 1]);
    assert_eq!(decoder.loss(inputs, &good).expect_err("expected an error").to_string(), from_logits);
    expected.assert_eq(&from_logits);
}

#[test]
fn tokens_that_the_model_cannot_take() {
    let tokens = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    check_tokens(&tokens(&[1, 61]), expect!["input token 61 is outside the model's vocabulary of 61 tokens"]);
    check_tokens(&tokens(&[1, -1]), expect!["input token -1 is outside the model's vocabulary of 61 tokens"]);
    check_tokens(&tokens(&[-100]), expect!["input token -100 is outside the model's vocabulary of 61 tokens"]);
    check_tokens(
        &tokens(&[i64::MAX]),
        expect!["input token 9223372036854775807 is outside the model's vocabulary of 61 tokens"],
    );
    check_tokens(
        &tokens(&[1; 18]),
        expect!["input tokens have shape [1, 18]; a sequence must have 1 to 17 tokens (max_positions)"],
    );
    check_tokens(
        &Tensor::zeros([1, 0], (Kind::Int64, Device::Cpu)),
        expect!["input tokens have shape [1, 0]; a sequence must have 1 to 17 tokens (max_positions)"],
    );
    check_tokens(
        &Tensor::zeros([0, 3], (Kind::Int64, Device::Cpu)),
        expect!["input tokens have shape [0, 3]; a sequence must have 1 to 17 tokens (max_positions)"],
    );
    check_tokens(&Tensor::from_slice(&[1_i64, 2]), expect!["input tokens have shape [2]; expected [batch, time]"]);
    check_tokens(&Tensor::from_slice(&[1_i32, 2]).view([1, 2]), expect!["input tokens are Int; expected Int64"]);
}

#[test]
fn targets_that_do_not_fit() {
    let decoder = load(&golden_dir().join("gpt2-inner"));
    let tokens = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    let says = |inputs: &[i64], targets: &[i64], expected: Expect| {
        let error = decoder.losses(&tokens(inputs), &tokens(targets)).expect_err("expected an error");
        assert!(matches!(error, LmError::BadTokens { .. }));
        expected.assert_eq(&error.to_string());
    };
    says(&[1, 2], &[3], expect!["inputs have shape [1, 2] but targets have shape [1, 1]; the shapes must be equal"]);
    says(&[1, 2], &[3, 61], expect!["target token 61 is outside the model's vocabulary of 61 tokens"]);
    // libtorch would interpret this one as "ignore" and return a loss of 0.
    says(&[1, 2], &[3, -100], expect!["target token -100 is outside the model's vocabulary of 61 tokens"]);
    assert!(decoder.logits(&tokens(&[0; 17])).is_ok(), "max_positions itself is allowed");
}
