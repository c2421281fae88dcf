//! The learning rate of each step, as a pure function.

use std::f64::consts::PI;

use inheritune_domain::spec::{Schedule, TrainingSpec};

/// Returns the learning rate of update `step`, counted from 0, in a training of `total_steps`
/// updates.
///
/// Same as nanoGPT's `get_lr` (karpathy/nanoGPT `train.py`), the schedule of the paper's GPT-2
/// runs:
/// - warm-up, `step < w`: `lr_max · (step + 1) / (w + 1)`, linear and greater than 0 at the first
///   update;
/// - cosine: `lr_min + ½ (1 + cos(π · (step − w) / (total − w))) · (lr_max − lr_min)`, which would
///   reach `lr_min` at `step = total_steps`, one step after the last update;
/// - constant (the released Llama code): `lr_max`.
///
/// If the warm-up is at least as long as the training, the rate stays on the linear part.
pub fn learning_rate(step: u64, spec: &TrainingSpec, total_steps: u64) -> f64 {
    if step < spec.warmup_steps {
        return spec.lr_max * (step + 1) as f64 / (spec.warmup_steps + 1) as f64;
    }
    match spec.schedule {
        Schedule::Constant => spec.lr_max,
        Schedule::Cosine if step >= total_steps => spec.lr_min,
        Schedule::Cosine => {
            let done = (step - spec.warmup_steps) as f64 / (total_steps - spec.warmup_steps) as f64;
            spec.lr_min + 0.5 * (1.0 + (PI * done).cos()) * (spec.lr_max - spec.lr_min)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn spec(warmup_steps: u64, schedule: Schedule) -> TrainingSpec {
        let mut spec: TrainingSpec = serde_json::from_value(serde_json::json!({
            "block_size": 8, "micro_batch": 1, "steps": 100, "lr_max": 3e-4, "lr_min": 1e-5,
        }))
        .unwrap();
        spec.warmup_steps = warmup_steps;
        spec.schedule = schedule;
        spec
    }

    fn check(step: u64, spec: &TrainingSpec, expected: f64) {
        let found = learning_rate(step, spec, 100);
        assert!((found - expected).abs() < 1e-15, "step {step}: {found} is not {expected}");
    }

    #[test]
    fn warm_up_is_a_straight_line_that_starts_above_zero() {
        let spec = spec(9, Schedule::Cosine);
        check(0, &spec, 3e-5);
        check(4, &spec, 1.5e-4);
        check(8, &spec, 2.7e-4);
    }

    #[test]
    fn cosine_starts_at_the_top_passes_the_middle_and_ends_at_the_floor() {
        let spec = spec(0, Schedule::Cosine);
        check(0, &spec, 3e-4);
        // A third of the way: (1 + cos 60°) / 2 = 0.75. Halfway: the mean of maximum and minimum.
        check(50, &spec, (3e-4 + 1e-5) / 2.0);
        check(100, &spec, 1e-5);
        let shifted = self::spec(10, Schedule::Cosine);
        check(10, &shifted, 3e-4);
        check(40, &shifted, 1e-5 + 0.75 * 2.9e-4);
    }

    #[test]
    fn constant_stays_at_the_top() {
        let spec = spec(10, Schedule::Constant);
        check(10, &spec, 3e-4);
        check(99, &spec, 3e-4);
    }

    #[test]
    fn a_warm_up_longer_than_the_training_never_divides_by_zero() {
        let spec = spec(1000, Schedule::Cosine);
        check(99, &spec, 3e-4 * 100.0 / 1001.0);
        let as_long = self::spec(100, Schedule::Cosine);
        check(100, &as_long, 1e-5);
    }

    proptest! {
        #[test]
        fn it_is_never_above_the_top_nor_below_the_floor_after_the_warm_up(step in 0u64..200, warmup in 0u64..150) {
            let spec = spec(warmup, Schedule::Cosine);
            let lr = learning_rate(step, &spec, 100);
            prop_assert!(lr > 0.0 && lr <= spec.lr_max);
            prop_assert!(step < warmup || lr >= spec.lr_min);
        }
    }
}
