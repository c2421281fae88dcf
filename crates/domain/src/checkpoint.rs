//! Checkpoint families: shapes, tensor names and what a slice takes from where.
//!
//! Read [`decoder_config`] first (one shape for all families), then a family such as [`gpt2`] (names and
//! Hugging Face keys; [`block_parts`] is what several share), [`layer_map`], [`slice_plan`], [`safetensors_header`] and [`shard_index`] (files nobody here wrote).

pub mod decoder_config;
pub mod gpt2;
pub mod llama;
mod block_parts;
pub mod gpt_neox;
pub mod opt;
pub mod mpt;
pub mod layer_map;
pub mod slice_plan;
pub mod safetensors_header;
pub mod shard_index;
