//! Decoder language models on libtorch: the forward pass, the loss, AdamW, weights, tokens,
//! tokenizers.
//!
//! Owns: everything that touches libtorch. [`Decoder`] is one decoder for every family (GPT-2,
//! Llama, GPT-NeoX, OPT and MPT), read from and written to a folder in Hugging Face's layout.
//! [`optimizer`] is AdamW with a state that can be saved and resumed bit for bit. [`tokens`] is the
//! token set that training reads through a memory map. [`tokenizer`] trains and runs the tokenizers
//! that create it. [`group`] sums gradients across processes.
//!
//! Start reading at [`Decoder::load`], then [`Decoder::loss`].
//!
//! Numbers: parameters are fp32 whatever the file contains, until [`Decoder::in_precision`] is
//! called; losses are in nats. On a CPU the same inputs with the same number of threads
//! ([`device::set_threads`]) give the same bits.
//!
//! Must never: talk to a database, an object store or a network; panic on a bad file; be linked by
//! the command line client.

pub mod device;
pub mod decoder;
pub mod trees;
pub mod optimizer;
pub mod tokens;
pub mod group;
pub mod tokenizer;
mod families;
mod attention;
mod positions;
mod layers;
mod weights;
mod shim;
mod files;
mod error;

pub use decoder::{Decoder, Parameter};
pub use error::LmError;
pub use shim::SCORE_ROWS;
pub use tch::{Device, Kind, Tensor, no_grad};
pub use weights::Snapshot;
