//! Times training steps: `steps train|score tiny|middle|14m fp32|bf16-mixed THREADS STEPS` prints
//! the median milliseconds per step and the last loss. `scripts/bench/bench_steps.py` runs it next to
//! busy processes and on other kinds of processors.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use inheritune_checkpoint::decoder_config::{Architecture, Family};
use inheritune_domain::id::LayerCount;
use inheritune_domain::spec::Precision;
use inheritune_lm::optimizer::{AdamW, clip_grad_norm};
use inheritune_lm::{Tensor, device};

#[path = "../tests/support/mod.rs"]
mod support;
use support::{ADAMW, LR, MAX_NORM, load, noise, write_checkpoint};

/// Layers, width, heads, vocabulary, micro-batch and block size of a GPT-2.
type Shape = (u32, u32, u32, u32, i64, i64);

const SHAPES: [(&str, Shape); 3] =
    [("tiny", (2, 64, 2, 512, 4, 64)), ("middle", (8, 128, 4, 2048, 8, 128)), ("14m", (6, 384, 6, 8192, 8, 256))];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, shape, precision, threads, steps] = arguments.as_slice() else {
        panic!("steps train|score tiny|middle|14m fp32|bf16-mixed THREADS STEPS");
    };
    let (_, shape) = SHAPES.into_iter().find(|(name, _)| name == shape).unwrap();
    let (n_layers, d_model, n_heads, vocabulary, micro_batch, block) = shape;
    let precision = match precision.as_str() {
        "fp32" => Precision::Fp32,
        "bf16-mixed" => Precision::Bf16Mixed,
        other => panic!("{other}"),
    };
    device::set_threads(threads.parse().unwrap());
    let architecture = Architecture {
        family: Family::Gpt2,
        n_layers: LayerCount(n_layers),
        d_model,
        n_heads,
        n_kv_heads: None,
        d_ff: None,
        max_positions: u32::try_from(block).unwrap(),
        rope_theta: None,
        tied_head: None,
        inverse_layer_scale: false,
        no_bias: false,
        pad_vocab_to_multiple_of: None,
    };
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), &architecture.config(vocabulary));
    let decoder = load(dir.path()).in_precision(precision).unwrap();
    let mut next = noise(1);
    let ids: Vec<i64> =
        (0..micro_batch * (block + 1)).map(|_| ((next() + 1.0) * 0.5 * (vocabulary - 1) as f32) as i64).collect();
    let tokens = Tensor::from_slice(&ids).view([micro_batch, block + 1]);
    let (inputs, targets) = (tokens.narrow(1, 0, block).contiguous(), tokens.narrow(1, 1, block).contiguous());
    let mut optimizer = AdamW::new(decoder.parameters(), ADAMW).unwrap();
    let mut loss_of_step = || {
        if mode == "score" {
            return tch::no_grad(|| decoder.loss(&inputs, &targets).unwrap().double_value(&[]));
        }
        optimizer.zero_grad().unwrap();
        let loss = decoder.loss(&inputs, &targets).unwrap();
        loss.backward();
        clip_grad_norm(decoder.parameters(), MAX_NORM).unwrap();
        optimizer.step(LR).unwrap();
        loss.double_value(&[])
    };
    // The first steps allocate memory from the system.
    for _ in 0..2 {
        loss_of_step();
    }
    let mut loss = 0.0;
    let mut times: Vec<f64> = (0..steps.parse().unwrap())
        .map(|_| {
            let start = Instant::now();
            loss = loss_of_step();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{:.2} ms, loss {loss:.6}", times[times.len() / 2]);
}
