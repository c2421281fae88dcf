//! AdamW (Loshchilov and Hutter 2019) as `torch.optim.AdamW` computes it, with a state that can be
//! saved and resumed bit for bit, and clipping by the global norm.

use std::collections::HashMap;
use std::path::Path;

use inheritune_domain::spec::DecayOn;
use tch::{Device, Tensor, no_grad};

use crate::decoder::Parameter;
use crate::error::LmError;
use crate::shim::{self, AdamWStep};
use crate::weights::{self, Snapshot};

/// AdamW's constants; the learning rate is passed to each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients, per step.
    pub beta1: f64,
    /// Decay of the mean of squared gradients, per step.
    pub beta2: f64,
    /// Term added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay: a step first multiplies a parameter by 1 - lr * weight_decay.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub decay: DecayOn,
}

/// AdamW over a fixed list of parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    slots: Vec<Slot>,
}

/// A parameter and its moments, all of the same shape.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// Key of the step count in the state file's metadata.
const STEPS_KEY: &str = "steps";
const EXP_AVG: &str = "exp_avg.";
const EXP_AVG_SQ: &str = "exp_avg_sq.";

impl AdamW {
    /// Starts at step 0 with zero moments. The parameters are shared, not copied.
    ///
    /// # Errors
    /// [`LmError::Torch`] if the moments do not fit into memory.
    pub fn new(parameters: &[Parameter], config: AdamWConfig) -> Result<Self, LmError> {
        let slots = parameters
            .iter()
            .map(|parameter| {
                let zeros = || no_grad(|| parameter.tensor.f_zeros_like());
                let shared = parameter.tensor.shallow_clone();
                Ok(Slot { name: parameter.name.clone(), parameter: shared, exp_avg: zeros()?, exp_avg_sq: zeros()? })
            })
            .collect::<Result<_, LmError>>()?;
        Ok(Self { config, steps: 0, slots })
    }

    /// Number of steps since the start, including those before a [`AdamW::load`].
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes one step along the gradients of the backward passes. Parameters without a gradient are
    /// unchanged.
    ///
    /// # Errors
    /// [`LmError::Torch`]. The parameters may then be partially updated.
    pub fn step(&mut self, lr: f64) -> Result<(), LmError> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let decays = |slot: &&Slot| match self.config.decay {
            DecayOn::Matrices => slot.parameter.dim() >= 2,
            DecayOn::All => true,
        };
        let (decayed, rest): (Vec<&Slot>, Vec<&Slot>) = self.slots.iter().partition(decays);
        for (slots, weight_decay) in [(decayed, weight_decay), (rest, 0.0)] {
            let tensors = slots.iter().map(|slot| [&slot.parameter, &slot.exp_avg, &slot.exp_avg_sq]);
            shim::adamw(tensors, &AdamWStep { lr, beta1, beta2, weight_decay, eps, step: self.steps as f64 })?;
        }
        Ok(())
    }

    /// Drops all gradients; the next backward pass stores new ones.
    ///
    /// # Errors
    /// [`LmError::Torch`].
    pub fn zero_grad(&self) -> Result<(), LmError> {
        Ok(shim::reset_gradients(self.slots.iter().map(|slot| &slot.parameter))?)
    }

    /// Copies both moments of every parameter and the step count.
    ///
    /// # Errors
    /// [`LmError::Torch`] if the copy does not fit into memory.
    pub fn snapshot(&self) -> Result<Snapshot, LmError> {
        let tensors = self.slots.iter().flat_map(|slot| {
            [
                (format!("{EXP_AVG}{}", slot.name), &slot.exp_avg),
                (format!("{EXP_AVG_SQ}{}", slot.name), &slot.exp_avg_sq),
            ]
        });
        Snapshot::of(tensors, HashMap::from([(STEPS_KEY.to_owned(), self.steps.to_string())]))
    }

    /// Restores the state that [`AdamW::snapshot`] wrote for the same parameters.
    ///
    /// # Errors
    /// The file is missing or truncated, has no step count, or its tensors do not match this
    /// optimizer's. The optimizer is then unchanged.
    pub fn load(&mut self, path: &Path) -> Result<(), LmError> {
        let mut file = weights::read_named(path)?;
        let steps = file.metadata.get(STEPS_KEY).and_then(|steps| steps.parse().ok());
        let steps =
            steps.ok_or_else(|| LmError::file(path, format!("has no step count (`{STEPS_KEY}`) in its metadata")))?;
        let mut moments = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let mut take = |prefix: &str| {
                let name = format!("{prefix}{}", slot.name);
                let moment = file.tensors.remove(&name).ok_or_else(|| LmError::tensor(path, &name, "is missing"))?;
                let (found, wanted) = (moment.size(), slot.parameter.size());
                if found != wanted {
                    return Err(LmError::tensor(
                        path,
                        &name,
                        format!("has shape {found:?}; the parameter has {wanted:?}"),
                    ));
                }
                Ok(moment.f_to_device(slot.parameter.device())?.f_to_kind(slot.parameter.f_kind()?)?)
            };
            moments.push((take(EXP_AVG)?, take(EXP_AVG_SQ)?));
        }
        if let Some(name) = file.tensors.keys().min() {
            return Err(LmError::tensor(path, name, "does not belong to any parameter of this model"));
        }
        for (slot, (exp_avg, exp_avg_sq)) in self.slots.iter_mut().zip(moments) {
            slot.exp_avg = exp_avg;
            slot.exp_avg_sq = exp_avg_sq;
        }
        self.steps = steps;
        Ok(())
    }
}

/// Scales all gradients down to a global 2-norm of at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does. Returns the norm before scaling. If it is not finite, the
/// gradients are unusable and the caller must stop.
///
/// # Errors
/// [`LmError::Torch`].
pub fn clip_grad_norm(parameters: &[Parameter], max_norm: f64) -> Result<f64, LmError> {
    Ok(shim::clip_gradients(parameters.iter().map(|parameter| &parameter.tensor), max_norm)?)
}

/// The gradient of a parameter on the CPU, if a backward pass has stored one. For tests and
/// inspection.
///
/// # Errors
/// [`LmError::Torch`].
pub fn gradient(parameter: &Parameter) -> Result<Option<Tensor>, LmError> {
    let gradient = parameter.tensor.f_grad()?;
    Ok(if gradient.defined() { Some(gradient.f_to_device(Device::Cpu)?) } else { None })
}
