//! Prefetches the micro-batches of a training on a separate thread.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use inheritune_lm::tokens::{TokenSet, TokenSlice};
use inheritune_lm::{LmError, Tensor};
use inheritune_runtime::worker::JobError;

use crate::data_order::DataOrder;
use crate::lm_error;

/// Number of micro-batches that are read ahead.
const AHEAD: usize = 2;

/// Inputs and targets of one micro-batch, each an int64 tensor [B, T] on the CPU.
#[derive(Debug)]
pub struct Batch {
    /// The tokens that the model sees.
    pub inputs: Tensor,
    /// The token that follows each input token.
    pub targets: Tensor,
    /// The token range of each sequence.
    pub ranges: Vec<Range<u64>>,
}

impl Batch {
    /// Reads the sequences at `ranges`, each one token longer than a block.
    ///
    /// # Errors
    /// A range is outside of the tokens, or an id is outside of the vocabulary.
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

/// The micro-batches of a training in order. Dropping this ends the thread that reads them.
#[derive(Debug)]
pub struct Batches(Receiver<Result<Batch, LmError>>);

impl Batches {
    /// Starts to read the given micro-batches of each step, from step `first_step` on.
    ///
    /// # Errors
    /// The thread cannot be started.
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
        thread.spawn(read).map_err(|error| JobError::io("the thread that reads tokens", &error))?;
        Ok(Self(receiver))
    }

    /// Waits for the next micro-batch.
    ///
    /// # Errors
    /// The tokens cannot be read.
    pub fn wait(&mut self) -> Result<Batch, JobError> {
        match self.0.recv() {
            Ok(batch) => batch.map_err(lm_error),
            Err(mpsc::RecvError) => Err(JobError::Retryable("the thread that reads tokens ended".to_owned())),
        }
    }
}
