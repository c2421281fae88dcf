//! One decoder for every family: the same pre-norm residual stream, built from the family's own
//! parts, which `families` assembles.
//!
//! Shapes: B batch, T time, N = B * T, D width of the residual stream, V vocabulary, R rows of
//! learned positions.
#![allow(non_snake_case)]

use std::collections::HashMap;
use std::path::Path;

use inheritune_checkpoint::config_json;
use inheritune_checkpoint::decoder_config::{ConfigError, DecoderConfig};
use inheritune_domain::spec::Precision;
use tch::{Device, Kind, Reduction, TchError, Tensor, no_grad};

use crate::attention::Attention;
use crate::error::LmError;
use crate::families;
use crate::files;
use crate::layers::{Mlp, Norm};
use crate::positions::{Batch, Sequences};
use crate::shim;
use crate::weights::{self, Snapshot};

/// A learned tensor and its canonical name.
#[derive(Debug)]
pub struct Parameter {
    /// Hugging Face's name of the tensor, as `save_pretrained` writes it.
    pub name: String,
    /// The values in the file's own layout. A leaf tensor that requires a gradient; fp32, or bf16
    /// in [`Precision::Bf16`].
    pub tensor: Tensor,
}

/// A decoder language model with its weights.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    device: Device,
    parameters: Vec<Parameter>,
    parts: Parts,
    /// The id that ends a document if attention stays within documents; otherwise `None`.
    document_end: Option<u32>,
    /// Whether activations are recomputed in the backward pass.
    checkpoints_activations: bool,
}

/// The parts that a decoder computes with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) token_embedding_VD: Tensor,
    /// `None` if attention itself encodes positions.
    pub(crate) position_embedding: Option<PositionEmbedding>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: Norm,
    pub(crate) head_VD: Tensor,
    /// The type that products are computed in.
    pub(crate) compute: Kind,
}

/// Learned position embeddings.
#[derive(Debug)]
pub(crate) struct PositionEmbedding {
    /// One row per position, after the rows that precede position 0.
    pub(crate) table_RD: Tensor,
    /// Row of position 0.
    pub(crate) first_row: i64,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: Mlp,
    pub(crate) residual: Residual,
}

/// How attention and MLP are added to the residual stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Residual {
    /// The MLP reads the residual stream after attention was added.
    Sequential,
    /// Both read the block's input (GPT-J; GPT-NeoX, Black et al. 2022, section 2.1).
    Parallel,
}

impl Block {
    fn forward(&self, x_ND: &Tensor, sequences: &mut impl Sequences) -> Result<Tensor, TchError> {
        let attended_ND = self.attention.forward(&self.attention_norm.forward(x_ND)?, sequences)?;
        let after_ND = x_ND.f_add(&attended_ND)?;
        let mlp_input_ND = match self.residual {
            Residual::Sequential => &after_ND,
            Residual::Parallel => x_ND,
        };
        after_ND.f_add(&self.mlp.forward(&self.mlp_norm.forward(mlp_input_ND)?)?)
    }
}

impl Decoder {
    /// Reads a checkpoint folder: `config.json`, and `model.safetensors` or the shards in its
    /// index.
    ///
    /// # Errors
    /// A file is missing, truncated or of an unknown family; a tensor is missing, unknown, of a
    /// different shape, or of a type other than F32, F16 and BF16. The error names the file and the
    /// tensor.
    pub fn load(dir: &Path, device: Device) -> Result<Self, LmError> {
        Self::from_weights(Self::read_config(dir)?, dir, device)
    }

    /// Reads the shape in the `config.json` of a checkpoint folder, without its weights.
    ///
    /// # Errors
    /// The file is missing or malformed, or the family is unknown. The error names the file.
    pub fn read_config(dir: &Path) -> Result<DecoderConfig, LmError> {
        let path = dir.join("config.json");
        let read = config_json::parse(&files::read(&path, files::MAX_JSON_BYTES)?);
        let json = read.map_err(|problem| LmError::file(&path, problem))?.json;
        DecoderConfig::from_hf(&json).map_err(|error| match error {
            ConfigError::UnknownFamily { found } => {
                LmError::file(&path, format!("model_type `{found}` is not supported"))
            }
            ConfigError::Key { key, problem } => LmError::file(&path, format!("`{key}` {problem}")),
            ConfigError::NotAnObject { found } => LmError::file(&path, format!("is {found}, not a JSON object")),
        })
    }

    /// Reads the weights in `dir`, which needs no `config.json`. Training states are resumed this
    /// way.
    ///
    /// # Errors
    /// See [`Decoder::load`].
    pub fn from_weights(config: DecoderConfig, dir: &Path, device: Device) -> Result<Self, LmError> {
        let parameters = weights::read(dir, &config, device)?;
        let parts = families::assemble(&config, &parameters, Kind::Float)?;
        Ok(Self { config, device, parameters, parts, document_end: None, checkpoints_activations: false })
    }

    /// Restricts attention to documents, which `end_of_text_id` separates. Positions still count
    /// from the start of the sequence.
    pub fn within_documents(self, end_of_text_id: u32) -> Self {
        Self { document_end: Some(end_of_text_id), ..self }
    }

    /// Enables activation checkpointing: [`Decoder::add_gradients`] stores only each block's input
    /// and recomputes the rest in the backward pass (Chen et al. 2016, arXiv 1604.06174). The
    /// activations of one block are in memory at a time, and each is computed twice. The gradients
    /// of a batch are bit-identical. Added to those of other batches, the gradients of a tied head
    /// and embedding are summed in a different order.
    pub fn with_activation_checkpointing(self) -> Self {
        Self { checkpoints_activations: true, ..self }
    }

    /// Makes the weights read-only: none of them requires a gradient. Matrix products are then
    /// libtorch's default ones. The products of trained weights may be faster and differ in their
    /// bits.
    ///
    /// # Errors
    /// [`LmError::Torch`].
    pub fn frozen(self) -> Result<Self, LmError> {
        for parameter in &self.parameters {
            // The flag is set in place, and the parts share these tensors.
            let _same = parameter.tensor.f_set_requires_grad(false)?;
        }
        Ok(self)
    }

    /// Stores and computes the model in `precision`; the default is fp32.
    ///
    /// # Errors
    /// [`LmError::Torch`] if the model does not fit into memory.
    pub fn in_precision(mut self, precision: Precision) -> Result<Self, LmError> {
        let (kept, compute) = match precision {
            Precision::Fp32 => (Kind::Float, Kind::Float),
            Precision::Bf16Mixed => (Kind::Float, Kind::BFloat16),
            Precision::Bf16 => (Kind::BFloat16, Kind::BFloat16),
        };
        for parameter in &mut self.parameters {
            if parameter.tensor.f_kind()? != kept {
                parameter.tensor = parameter.tensor.f_detach()?.f_to_kind(kept)?.f_set_requires_grad(true)?;
            }
        }
        self.parts = families::assemble(&self.config, &self.parameters, compute)?;
        Ok(self)
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The type that products are computed in.
    pub fn compute_kind(&self) -> Kind {
        self.parts.compute
    }

    /// The device that the model computes on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Every learned tensor, in the order of the forward pass. A tied head is not listed a second
    /// time.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The scores of the next token at every position: fp32 [B, T, V].
    ///
    /// # Errors
    /// [`LmError::BadTokens`] unless `tokens_BT` is int64 [B, T], T is 1 to `max_positions`, and
    /// every id is below the vocabulary. Ids are checked only on the CPU, where that is cheap. Pass
    /// tokens from the CPU; they are moved to the model's device.
    pub fn logits(&self, tokens_BT: &Tensor) -> Result<Tensor, LmError> {
        let (batch, time) = self.check_tokens("input", tokens_BT)?;
        let logits_NV = self.logits_flat(tokens_BT, (batch, time))?;
        Ok(logits_NV.f_view([batch, time, -1])?)
    }

    /// The cross-entropy at every position, in nats: fp32 [B, T].
    ///
    /// # Errors
    /// See [`Decoder::logits`], for inputs and targets; both must have the same shape.
    pub fn losses(&self, inputs_BT: &Tensor, targets_BT: &Tensor) -> Result<Tensor, LmError> {
        let (shape, targets_N) = self.check_targets(inputs_BT, targets_BT)?;
        let logits_NV = self.logits_flat(inputs_BT, shape)?;
        let each = Reduction::None;
        let losses_N = logits_NV.f_cross_entropy_loss::<&Tensor>(&targets_N, None, each, IGNORED_TARGET, 0.0)?;
        Ok(losses_N.f_view_as(targets_BT)?)
    }

    /// The mean cross-entropy over all positions, in nats: a differentiable scalar, fp32. The
    /// logits are never in memory all at once.
    ///
    /// # Errors
    /// See [`Decoder::losses`].
    pub fn loss(&self, inputs_BT: &Tensor, targets_BT: &Tensor) -> Result<Tensor, LmError> {
        let (shape, targets_N) = self.check_targets(inputs_BT, targets_BT)?;
        let x_ND = self.last_hidden(inputs_BT, shape)?;
        Ok(shim::cross_entropy(&x_ND, &self.parts.head_VD, &targets_N)?)
    }

    /// Returns the value of [`Decoder::loss`] and adds its gradient, divided by `divisor`, to the
    /// parameters' gradients. Adds nothing if the loss is not finite.
    ///
    /// # Errors
    /// See [`Decoder::losses`].
    pub fn add_gradients(&self, inputs_BT: &Tensor, targets_BT: &Tensor, divisor: f64) -> Result<f64, LmError> {
        let add = |loss: Tensor| -> Result<f64, TchError> {
            let nats = loss.f_double_value(&[])?;
            if nats.is_finite() {
                loss.f_div_scalar(divisor)?.f_backward()?;
            }
            Ok(nats)
        };
        if !self.checkpoints_activations {
            return Ok(add(self.loss(inputs_BT, targets_BT)?)?);
        }
        let (shape, targets_N) = self.check_targets(inputs_BT, targets_BT)?;
        let tokens_BT = inputs_BT.f_to_device(self.device)?;
        let mut batch = no_grad(|| Batch::new(&self.config, &tokens_BT, self.document_end))?;
        let embedded = || self.embed(&tokens_BT, self.learned_positions(shape.1)?.as_ref());
        let mut begins_with = Vec::with_capacity(self.parts.blocks.len());
        let last_ND = no_grad(|| {
            self.parts.blocks.iter().try_fold(embedded()?, |x_ND, block| {
                let next_ND = block.forward(&x_ND, &mut batch);
                begins_with.push(x_ND);
                next_ND
            })
        })?;
        // Each part is a separate graph. The gradient of its input is the gradient that the
        // backward pass of the previous part starts from.
        let last_ND = last_ND.f_set_requires_grad(true)?;
        let x_ND = self.parts.final_norm.forward(&last_ND)?;
        let nats = add(shim::cross_entropy(&x_ND, &self.parts.head_VD, &targets_N)?)?;
        if !nats.is_finite() {
            return Ok(nats);
        }
        // The gradient of `sum(y * gradient)` is `gradient` times the part's own gradient.
        let follow = |y_ND: Tensor, gradient_ND: &Tensor| y_ND.f_mul(gradient_ND)?.f_sum(y_ND.f_kind()?)?.f_backward();
        let mut gradient_ND = last_ND.f_grad()?;
        for block in self.parts.blocks.iter().rev() {
            let Some(x_ND) = begins_with.pop() else { break };
            let x_ND = x_ND.f_set_requires_grad(true)?;
            follow(block.forward(&x_ND, &mut batch)?, &gradient_ND)?;
            gradient_ND = x_ND.f_grad()?;
        }
        follow(embedded()?, &gradient_ND)?;
        Ok(nats)
    }

    /// Writes `model.safetensors` into `dir` atomically, with parameters in their stored type and
    /// tied tensors once. The caller copies `config.json` and the tokenizer.
    ///
    /// # Errors
    /// [`LmError::Io`] with the file's path.
    pub fn save(&self, dir: &Path) -> Result<(), LmError> {
        weights::write_named(&dir.join(weights::SINGLE_FILE), self.named(), metadata())
    }

    /// Copies what [`Decoder::save`] would write now.
    ///
    /// # Errors
    /// [`LmError::Torch`] if the copy does not fit into memory.
    pub fn snapshot(&self) -> Result<Snapshot, LmError> {
        Snapshot::of(self.named(), metadata())
    }

    fn named(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.parameters.iter().map(|parameter| (parameter.name.clone(), &parameter.tensor))
    }

    /// Checks inputs and targets; returns their shape [B, T], and the targets [N] on the model's
    /// device.
    fn check_targets(&self, inputs_BT: &Tensor, targets_BT: &Tensor) -> Result<((i64, i64), Tensor), LmError> {
        let shape = self.check_tokens("input", inputs_BT)?;
        if self.check_tokens("target", targets_BT)? != shape {
            let problem = format!(
                "inputs have shape {:?} but targets have shape {:?}; the shapes must be equal",
                inputs_BT.size(),
                targets_BT.size()
            );
            return Err(LmError::BadTokens { problem });
        }
        Ok((shape, targets_BT.f_to_device(self.device)?.f_reshape([-1])?))
    }

    /// Checks tokens and returns their shape [B, T].
    fn check_tokens(&self, what: &str, tokens_BT: &Tensor) -> Result<(i64, i64), LmError> {
        let bad = |problem: String| Err(LmError::BadTokens { problem });
        let size = tokens_BT.size();
        let &[batch, time] = size.as_slice() else {
            return bad(format!("{what} tokens have shape {size:?}; expected [batch, time]"));
        };
        if tokens_BT.f_kind()? != Kind::Int64 {
            return bad(format!("{what} tokens are {:?}; expected Int64", tokens_BT.f_kind()?));
        }
        if batch < 1 || time < 1 || time > i64::from(self.config.max_positions) {
            let max = self.config.max_positions;
            return bad(format!(
                "{what} tokens have shape {size:?}; a sequence must have 1 to {max} tokens (max_positions)"
            ));
        }
        if tokens_BT.device() == Device::Cpu {
            let (low, high) = no_grad(|| Ok::<_, TchError>((tokens_BT.f_min()?, tokens_BT.f_max()?)))?;
            let (low, high) = (low.f_int64_value(&[])?, high.f_int64_value(&[])?);
            if low < 0 || high >= i64::from(self.config.vocab_size) {
                let id = if low < 0 { low } else { high };
                return bad(format!(
                    "{what} token {id} is outside the model's vocabulary of {} tokens",
                    self.config.vocab_size
                ));
            }
        }
        Ok((batch, time))
    }

    fn logits_flat(&self, tokens_BT: &Tensor, shape: (i64, i64)) -> Result<Tensor, TchError> {
        let x_ND = self.last_hidden(tokens_BT, shape)?;
        x_ND.f_linear::<&Tensor>(&self.head()?, None)?.f_to_kind(Kind::Float)
    }

    /// [`Decoder::hidden`] of a batch of sequences.
    fn last_hidden(&self, tokens_BT: &Tensor, (_, time): (i64, i64)) -> Result<Tensor, TchError> {
        let tokens_BT = tokens_BT.f_to_device(self.device)?;
        let mut batch = no_grad(|| Batch::new(&self.config, &tokens_BT, self.document_end))?;
        self.hidden(&tokens_BT, self.learned_positions(time)?.as_ref(), &mut batch)
    }

    /// The learned positions [T, D] of a sequence of `time` tokens, if the model has them.
    fn learned_positions(&self, time: i64) -> Result<Option<Tensor>, TchError> {
        let of_table =
            |PositionEmbedding { table_RD, first_row }: &PositionEmbedding| table_RD.f_narrow(0, *first_row, time);
        self.parts.position_embedding.as_ref().map(of_table).transpose()
    }

    /// The head, in the type that products are computed in.
    pub(crate) fn head(&self) -> Result<Tensor, TchError> {
        self.parts.head_VD.f_to_kind(self.parts.compute)
    }

    /// The residual stream [N, D] after the final norm, in the type that products are computed in.
    /// `learned_positions` are those of the tokens, broadcast, if positions are learned.
    pub(crate) fn hidden(
        &self,
        tokens: &Tensor,
        learned_positions: Option<&Tensor>,
        sequences: &mut impl Sequences,
    ) -> Result<Tensor, TchError> {
        let mut x_ND = self.embed(tokens, learned_positions)?;
        for block in &self.parts.blocks {
            x_ND = block.forward(&x_ND, sequences)?;
        }
        self.parts.final_norm.forward(&x_ND)
    }

    /// The input of the first block, [N, D].
    fn embed(&self, tokens: &Tensor, learned_positions: Option<&Tensor>) -> Result<Tensor, TchError> {
        let mut x = Tensor::f_embedding(&self.parts.token_embedding_VD, tokens, NO_PADDING, false, false)?;
        if let Some(learned) = learned_positions {
            x = x.f_add(learned)?;
        }
        x.f_view([tokens.numel() as i64, -1])
    }

    /// The learned positions, if the model has them.
    pub(crate) fn position_embedding(&self) -> Option<&PositionEmbedding> {
        self.parts.position_embedding.as_ref()
    }
}

/// transformers rejects a file that does not state which framework wrote it.
fn metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

/// libtorch skips targets of this value; `check_tokens` rejects it.
const IGNORED_TARGET: i64 = -100;
/// No token of an embedding is padding.
const NO_PADDING: i64 = -1;
