//! The same steps give the same bits, and a resumed training continues as if it had never stopped.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use inheritune_checkpoint::decoder_config::{Architecture, DecoderConfig, Family};
use inheritune_domain::id::LayerCount;
use inheritune_lm::optimizer::{AdamW, clip_grad_norm};
use inheritune_lm::{Decoder, Device, Tensor, device};

mod support;
use support::{ADAMW, LR, MAX_NORM, load, noise, write_checkpoint};

const VOCABULARY: u32 = 500;
/// Large enough for libtorch to split its sums over two threads.
const BATCH: i64 = 4;
const TIME: i64 = 64;

fn shape(family: Family) -> DecoderConfig {
    let (d_ff, n_heads) = match family {
        Family::Gpt2 | Family::Llama | Family::GptNeox | Family::Opt => (Some(200), 6),
        // Both support only an MLP of 4 widths, and mosaic_gpt only numbers of heads that are
        // powers of two.
        Family::Mpt => (None, 6),
        Family::MosaicGpt => (None, 8),
    };
    let architecture = Architecture {
        family,
        n_layers: LayerCount(2),
        d_model: 96,
        n_heads,
        n_kv_heads: (family == Family::Llama).then_some(2),
        d_ff,
        max_positions: 64,
        rope_theta: None,
        tied_head: None,
        inverse_layer_scale: family == Family::Gpt2,
        no_bias: false,
        pad_vocab_to_multiple_of: None,
    };
    architecture.validate_shape().unwrap();
    architecture.config(VOCABULARY)
}

/// The inputs and targets of a step.
fn batch(step: u64) -> (Tensor, Tensor) {
    let mut next = noise(100 + step);
    let ids: Vec<i64> = (0..BATCH * (TIME + 1)).map(|_| ((next() + 1.0) * 249.0) as i64).collect();
    let tokens = Tensor::from_slice(&ids).view([BATCH, TIME + 1]);
    (tokens.narrow(1, 0, TIME).contiguous(), tokens.narrow(1, 1, TIME).contiguous())
}

struct Training {
    decoder: Decoder,
    optimizer: AdamW,
}

impl Training {
    fn start(decoder: Decoder) -> Self {
        let optimizer = AdamW::new(decoder.parameters(), ADAMW).unwrap();
        Self { decoder, optimizer }
    }

    /// Resumes from what `save` wrote.
    fn resume(dir: &Path, config: DecoderConfig) -> Self {
        let mut training = Self::start(Decoder::from_weights(config, dir, Device::Cpu).unwrap());
        training.optimizer.load(&dir.join("optimizer.safetensors")).unwrap();
        training
    }

    fn save(&self, dir: &Path) {
        self.decoder.save(dir).unwrap();
        self.optimizer.snapshot().unwrap().write(&dir.join("optimizer.safetensors")).unwrap();
    }

    /// Trains until `steps` steps have been taken; returns the bits of the losses.
    fn train_to(&mut self, steps: u64) -> Vec<u64> {
        let mut losses = Vec::new();
        while self.optimizer.steps() < steps {
            self.optimizer.zero_grad().unwrap();
            // Two micro-batches per step: gradients accumulate.
            for micro_batch in 0..2 {
                let (inputs, targets) = batch(2 * self.optimizer.steps() + micro_batch);
                let loss = self.decoder.loss(&inputs, &targets).unwrap();
                (&loss / 2.0).backward();
                losses.push(loss.double_value(&[]).to_bits());
            }
            clip_grad_norm(self.decoder.parameters(), MAX_NORM).unwrap();
            self.optimizer.step(LR).unwrap();
        }
        losses
    }

    /// Weights and moments, as files.
    fn bits(&self) -> [Vec<u8>; 2] {
        let dir = tempfile::tempdir().unwrap();
        self.save(dir.path());
        ["model.safetensors", "optimizer.safetensors"].map(|name| std::fs::read(dir.path().join(name)).unwrap())
    }
}

/// A single test, since the thread count is a property of the process.
#[test]
fn five_steps_are_the_same_bits_twice_and_when_taken_up_after_three() {
    for threads in [2, 1] {
        device::set_threads(threads);
        assert_eq!(device::threads(), threads);
        // Two threads are slow on busy cores, so they are tested with the first two families and
        // one with ALiBi.
        let families = Family::ALL
            .into_iter()
            .filter(|family| threads == 1 || matches!(family, Family::Gpt2 | Family::Llama | Family::Mpt));
        for family in families {
            let dir = tempfile::tempdir().unwrap();
            write_checkpoint(dir.path(), &shape(family));

            let mut first = Training::start(load(dir.path()));
            let start = first.bits();
            let losses = first.train_to(5);
            let bits = first.bits();
            assert!(bits != start && f64::from_bits(losses[9]).is_finite());

            let mut second = Training::start(load(dir.path()));
            assert_eq!(second.train_to(5), losses, "{family:?}, {threads} threads");
            assert!(second.bits() == bits, "{family:?}, {threads} threads: two runs differ");

            let saved = tempfile::tempdir().unwrap();
            let mut third = Training::start(load(dir.path()));
            third.train_to(3);
            third.save(saved.path());
            drop(third);
            let mut resumed = Training::resume(saved.path(), shape(family));
            assert_eq!(resumed.optimizer.steps(), 3);
            assert_eq!(resumed.train_to(5), losses[6..], "{family:?}, {threads} threads");
            assert!(resumed.bits() == bits, "{family:?}, {threads} threads: a resumed run differs");
        }
    }
}
