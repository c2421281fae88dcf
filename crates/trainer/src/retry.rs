//! Whether an interrupted training is tried once more within its attempt, and how: a decision without side effects.

use inheritune_domain::spec::TrainingSpec;
use inheritune_runtime::worker::JobError;

use crate::data_order::StepShape;
use crate::training_loop::Interrupted;

/// What was tried already, and what the next try is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    shape: StepShape,
    numbers_tried_again: bool,
    memory_tried_again: bool,
}

impl Tries {
    /// Before the first.
    pub fn new(training: &TrainingSpec) -> Self {
        Self { shape: StepShape::of(training), numbers_tried_again: false, memory_tried_again: false }
    }

    /// How the next try's steps are made up.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Takes note of an interruption; the next try goes on from the newest training state.
    ///
    /// A number that is not finite is met once more: it may have come from the machine, or from steps since that state. A
    /// lack of memory is answered with micro-batches half as large, as many tokens a step, once.
    ///
    /// # Errors
    /// There is no next try: the reason, with what was tried.
    pub fn after(&mut self, interrupted: Interrupted) -> Result<(), JobError> {
        match interrupted {
            Interrupted::NotFinite(problem) if !self.numbers_tried_again => {
                tracing::warn!(problem, "trying once more from the newest training state");
                self.numbers_tried_again = true;
                Ok(())
            }
            Interrupted::OutOfMemory(problem) => match self.shape.halved() {
                Some(shape) if !self.memory_tried_again => {
                    tracing::warn!(
                        problem,
                        micro_batch = shape.micro_batch,
                        gradient_accumulation = shape.gradient_accumulation,
                        "out of memory: trying once with smaller micro-batches and the same tokens a step"
                    );
                    (self.shape, self.memory_tried_again) = (shape, true);
                    Ok(())
                }
                Some(_) | None => Err(JobError::Permanent(format!(
                    "out of memory with micro-batches of {} sequences: lower training.micro_batch, raise \
                     gradient_accumulation instead ({problem})",
                    self.shape.micro_batch
                ))),
            },
            last @ (Interrupted::NotFinite(_) | Interrupted::Job(_)) => Err(last.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tries(micro_batch: u32) -> Tries {
        let spec = serde_json::json!({"block_size": 8, "micro_batch": micro_batch, "steps": 1, "lr_max": 1e-3});
        Tries::new(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn numbers_are_met_twice_and_then_fail_the_job() {
        let mut tries = tries(4);
        let shape = tries.shape();
        tries.after(Interrupted::NotFinite("step 3".to_owned())).unwrap();
        assert_eq!(tries.shape(), shape);
        let error = tries.after(Interrupted::NotFinite("step 4".to_owned())).unwrap_err();
        assert_eq!(error, JobError::Permanent("step 4".to_owned()));
    }

    #[test]
    fn memory_is_answered_with_smaller_micro_batches_once() {
        let out = || Interrupted::OutOfMemory("tried to allocate".to_owned());
        let mut tries = tries(4);
        tries.after(out()).unwrap();
        assert_eq!((tries.shape().micro_batch, tries.shape().gradient_accumulation), (2, 2));
        let error = tries.after(out()).unwrap_err();
        assert!(
            matches!(&error, JobError::Permanent(text) if text.contains("micro-batches of 2 sequences")),
            "{error}"
        );
        // One that cannot be halved is not tried again.
        assert!(matches!(self::tries(3).after(out()), Err(JobError::Permanent(_))));
        // The two kinds do not use up each other's try.
        tries.after(Interrupted::NotFinite(String::new())).unwrap();
    }

    #[test]
    fn other_errors_are_the_worker_s() {
        for error in [JobError::Stopped, JobError::Retryable("disk".to_owned()), JobError::Permanent("bad".to_owned())]
        {
            assert_eq!(tries(4).after(Interrupted::Job(error.clone())), Err(error));
        }
    }
}
