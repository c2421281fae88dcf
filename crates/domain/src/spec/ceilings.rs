//! The limits of one service: what its machine may be used for, set by its operator. A job beyond
//! them is rejected before anything is allocated or written.

use serde::{Deserialize, Serialize};

use super::{JobSpec, RunSpec, SliceSource, TokenizerSpec};
use crate::violation::Violations;
use inheritune_checkpoint::decoder_config::{Architecture, DecoderConfig};

/// The section `ceilings` of the configuration of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ceilings {
    /// Most parameters of a model that is created, trained or measured.
    pub max_parameters: u64,
    /// Most bytes that one job may download or write: weights, tokens.
    pub max_job_bytes: u64,
    /// Most bytes of memory that a training may need according to its estimate. Defaults to the
    /// memory of the machine.
    pub max_memory_bytes: Option<u64>,
}

impl Default for Ceilings {
    fn default() -> Self {
        // More than twice a model of 70 billion parameters in 32-bit floats.
        Self { max_parameters: 200_000_000_000, max_job_bytes: 1_000_000_000_000, max_memory_bytes: None }
    }
}

impl Ceilings {
    /// Checks that the service accepts a model of this shape.
    ///
    /// # Errors
    /// The value that is too large, and the setting that limits it.
    pub fn check_model(&self, config: &DecoderConfig) -> Result<(), String> {
        let parameters: u128 = config
            .tensors()
            .iter()
            .filter(|tensor| tensor.tied_to.is_none())
            .map(|tensor| tensor.shape.iter().map(|side| u128::from(*side)).product::<u128>())
            .sum();
        check(parameters, self.max_parameters, ("the model has", "parameters", "max_parameters"))
    }

    /// Checks that a job may download or write `bytes` bytes.
    ///
    /// # Errors
    /// The value that is too large, and the setting that limits it.
    pub fn check_bytes(&self, bytes: u64) -> Result<(), String> {
        check(bytes.into(), self.max_job_bytes, ("the job needs", "bytes of disk", "max_job_bytes"))
    }

    /// Checks that a job may need `bytes` bytes of memory on a machine that has `machine_bytes`.
    ///
    /// # Errors
    /// The value that is too large, and the setting that limits it.
    pub fn check_memory(&self, bytes: u64, machine_bytes: u64) -> Result<(), String> {
        let most = self.max_memory_bytes.unwrap_or(machine_bytes);
        check(bytes.into(), most, ("the job needs an estimated", "bytes of memory", "max_memory_bytes"))
    }

    /// Checks what is known about a job before it starts: the size of a newly created model.
    ///
    /// # Errors
    /// The field, named relative to the spec of the job's kind, and the setting.
    pub fn check_job(&self, spec: &JobSpec) -> Result<(), Violations> {
        match spec {
            JobSpec::Slice(slice) => match &slice.source {
                SliceSource::Architecture { architecture, vocab_size } => {
                    self.check_architecture(architecture, *vocab_size, "source.architecture")
                }
                SliceSource::Checkpoint { .. } => Ok(()),
            },
            JobSpec::Tokenize(_) | JobSpec::Train(_) | JobSpec::Evaluate(_) => Ok(()),
        }
    }

    /// Checks a recipe, like [`Ceilings::check_job`].
    ///
    /// # Errors
    /// The field, and the setting.
    pub fn check_run(&self, spec: &RunSpec) -> Result<(), Violations> {
        let vocab_size = match spec.corpus.tokenizer {
            TokenizerSpec::Train { vocab_size } => vocab_size,
            // Only the tokenizer has the actual size; it has at least one entry.
            TokenizerSpec::Reference | TokenizerSpec::Uri(_) => 1,
        };
        match &spec.reference.architecture {
            Some(architecture) => self.check_architecture(architecture, vocab_size, "reference.architecture"),
            None => Ok(()),
        }
    }

    fn check_architecture(&self, architecture: &Architecture, vocab_size: u32, field: &str) -> Result<(), Violations> {
        let mut v = Violations::default();
        if let Err(problem) = self.check_model(&architecture.config(vocab_size)) {
            v.add(field, problem);
        }
        v.into_result()
    }
}

fn check(found: u128, most: u64, (subject, unit, setting): (&str, &str, &str)) -> Result<(), String> {
    if found <= most.into() {
        return Ok(());
    }
    Err(format!(
        "{subject} {found} {unit}; this service accepts at most {most}: raise `ceilings.{setting}` in its configuration"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn fresh(shape: serde_json::Value, vocab_size: u32) -> JobSpec {
        let source = json!({ "architecture": { "architecture": shape, "vocab_size": vocab_size } });
        serde_json::from_value(json!({ "kind": "slice", "source": source, "tokenizer": null, "seed": 1 })).unwrap()
    }

    #[test]
    fn s1_a_model_beyond_every_machine_is_refused_by_the_name_of_the_setting() {
        let llama_2_70b = json!({ "family": "llama", "n_layers": 80, "d_model": 8192, "n_heads": 64, "n_kv_heads": 8,
            "d_ff": 28672, "max_positions": 4096 });
        assert_eq!(Ceilings::default().check_job(&fresh(llama_2_70b.clone(), 32_000)), Ok(()));
        let small = Ceilings { max_parameters: 1_000_000_000, ..Ceilings::default() };
        assert_eq!(
            small.check_job(&fresh(llama_2_70b, 32_000)).unwrap_err().to_string(),
            "source.architecture: the model has 68976648192 parameters; this service accepts at most 1000000000: raise \
             `ceilings.max_parameters` in its configuration"
        );
        // The largest shape that passes validation, and larger ones that specs of an earlier
        // release may contain.
        for (d_model, vocab_size) in [(65_536, 1 << 20), (65_536, u32::MAX), (32_768, u32::MAX)] {
            let largest = json!({ "family": "llama", "n_layers": 1024, "d_model": d_model, "n_heads": 1024, "d_ff": 1 << 20,
                "max_positions": 1 << 20, "pad_vocab_to_multiple_of": 1024 });
            assert!(Ceilings::default().check_job(&fresh(largest, vocab_size)).is_err());
        }
    }

    #[test]
    fn bytes_and_memory_have_ceilings_too() {
        let ceilings = Ceilings { max_job_bytes: 10, ..Ceilings::default() };
        assert_eq!(ceilings.check_bytes(10), Ok(()));
        assert!(ceilings.check_bytes(11).unwrap_err().contains("`ceilings.max_job_bytes`"));
        assert!(ceilings.check_memory(11, 10).unwrap_err().contains("`ceilings.max_memory_bytes`"));
        assert_eq!(Ceilings { max_memory_bytes: Some(11), ..ceilings }.check_memory(11, 10), Ok(()));
    }
}
