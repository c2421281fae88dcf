//! Decides, without side effects, whether and how a job attempt retries an interrupted training.

use inheritune_domain::spec::TrainingSpec;
use inheritune_runtime::worker::JobError;

use crate::data_order::StepShape;
use crate::training_loop::Interrupted;

/// The training attempts made within one attempt of a job: what was retried already, and the step
/// shape of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    shape: StepShape,
    retried_not_finite: bool,
    retried_out_of_memory: bool,
}

impl Attempts {
    /// The state before the first attempt.
    pub fn new(training: &TrainingSpec) -> Self {
        Self { shape: StepShape::of(training), retried_not_finite: false, retried_out_of_memory: false }
    }

    /// The step shape of the next attempt.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Records an interruption. The next attempt resumes from the newest training state.
    ///
    /// Non-finite values are retried once, because a hardware fault or the steps since that state
    /// may have caused them. After running out of memory, the micro-batch is halved once, with the
    /// same number of tokens per step.
    ///
    /// # Errors
    /// The interruption is not retried; returns the reason.
    pub fn after(&mut self, interrupted: Interrupted) -> Result<(), JobError> {
        match interrupted {
            Interrupted::NotFinite(problem) if !self.retried_not_finite => {
                tracing::warn!(problem, "retrying from the newest training state");
                self.retried_not_finite = true;
                Ok(())
            }
            Interrupted::OutOfMemory(problem) => match self.shape.halved() {
                Some(shape) if !self.retried_out_of_memory => {
                    tracing::warn!(
                        problem,
                        micro_batch = shape.micro_batch,
                        gradient_accumulation = shape.gradient_accumulation,
                        "out of memory: retrying with smaller micro-batches and the same number of tokens per step"
                    );
                    (self.shape, self.retried_out_of_memory) = (shape, true);
                    Ok(())
                }
                Some(_) | None => Err(JobError::Permanent(format!(
                    "out of memory with micro-batches of {} sequences: lower training.micro_batch and \
                     raise gradient_accumulation instead ({problem})",
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

    fn attempts(micro_batch: u32) -> Attempts {
        let spec = serde_json::json!({"block_size": 8, "micro_batch": micro_batch, "steps": 1, "lr_max": 1e-3});
        Attempts::new(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn numbers_are_met_twice_and_then_fail_the_job() {
        let mut attempts = attempts(4);
        let shape = attempts.shape();
        attempts.after(Interrupted::NotFinite("step 3".to_owned())).unwrap();
        assert_eq!(attempts.shape(), shape);
        let error = attempts.after(Interrupted::NotFinite("step 4".to_owned())).unwrap_err();
        assert_eq!(error, JobError::Permanent("step 4".to_owned()));
    }

    #[test]
    fn memory_is_answered_with_smaller_micro_batches_once() {
        let out = || Interrupted::OutOfMemory("tried to allocate".to_owned());
        let mut attempts = attempts(4);
        attempts.after(out()).unwrap();
        assert_eq!((attempts.shape().micro_batch, attempts.shape().gradient_accumulation), (2, 2));
        let error = attempts.after(out()).unwrap_err();
        assert!(
            matches!(&error, JobError::Permanent(text) if text.contains("micro-batches of 2 sequences")),
            "{error}"
        );
        // A micro-batch that cannot be halved is not retried.
        assert!(matches!(self::attempts(3).after(out()), Err(JobError::Permanent(_))));
        // Each kind of interruption has its own retry.
        attempts.after(Interrupted::NotFinite(String::new())).unwrap();
    }

    #[test]
    fn other_errors_are_the_worker_s() {
        for error in [JobError::Stopped, JobError::Retryable("disk".to_owned()), JobError::Permanent("bad".to_owned())]
        {
            assert_eq!(attempts(4).after(Interrupted::Job(error.clone())), Err(error));
        }
    }
}
