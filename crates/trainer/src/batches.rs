//! The micro-batches of a training, each read while the one before it is computed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use inheritune_lm::tokens::{TokenSet, TokenSlice};
use inheritune_lm::{LmError, Tensor};
use inheritune_runtime::worker::JobError;

use crate::data_order::DataOrder;
use crate::lm_error;

/// Micro-batches that are ready before they are asked for.
const AHEAD: usize = 2;

/// Inputs and targets of one micro-batch: int64 [B, T] each, on the CPU.
#[derive(Debug)]
pub struct Batch {
    /// What the model sees.
    pub inputs: Tensor,
    /// The token after each.
    pub targets: Tensor,
    /// Where in the tokens it is from.
    pub ranges: Vec<Range<u64>>,
}

impl Batch {
    /// Sequences that are one token longer than a block.
    ///
    /// # Errors
    /// A range that the tokens do not have, or an id outside of the vocabulary.
    pub fn read(tokens: TokenSlice<'_>, ranges: Vec<Range<u64>>) -> Result<Self, LmError> {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for range in &ranges {
            let ids = tokens.read(range.clone())?;
            inputs.extend_from_slice(&ids[..ids.len() - 1]);
            targets.extend_from_slice(&ids[1..]);
        }
        let shape = [ranges.len() as i64, -1];
        let [inputs, targets] = [&inputs, &targets].map(|ids| Tensor::from_slice(ids).f_view(shape));
        Ok(Self { inputs: inputs?, targets: targets?, ranges })
    }
}

/// The training's micro-batches in their order. The thread that reads them ends when this is dropped.
#[derive(Debug)]
pub struct Batches(Receiver<Result<Batch, LmError>>);

impl Batches {
    /// Of step `first_step` and all later ones, these of each step's.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        tokens: Arc<TokenSet>,
        order: DataOrder,
        (first_step, micro_batches): (u64, impl Iterator<Item = u64> + Clone + Send + 'static),
    ) -> Result<Self, JobError> {
        let (sender, receiver) = mpsc::sync_channel(AHEAD);
        let read = move || {
            for step in first_step.. {
                for micro in micro_batches.clone() {
                    let batch = Batch::read(tokens.train(), order.micro_batch(step, micro));
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("batches".to_owned());
        thread.spawn(read).map_err(|error| JobError::io("a thread that reads tokens", &error))?;
        Ok(Self(receiver))
    }

    /// The next one, once it is read.
    ///
    /// # Errors
    /// Tokens that cannot be read.
    pub fn wait(&mut self) -> Result<Batch, JobError> {
        match self.0.recv() {
            Ok(batch) => batch.map_err(lm_error),
            Err(mpsc::RecvError) => Err(JobError::Retryable("the thread that reads tokens ended".to_owned())),
        }
    }
}
