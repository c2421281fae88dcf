//! Checkpoint families: shapes, tensor names and what a slice takes from where.
//!
//! Read [`decoder_config`] first (one shape for all families), then [`gpt2`] and [`llama`] (names and
//! Hugging Face keys), [`layer_map`], [`slice_plan`], [`safetensors_header`] and [`shard_index`] (files nobody here wrote).

pub mod decoder_config;
pub mod gpt2;
pub mod llama;
pub mod layer_map;
pub mod slice_plan;
pub mod safetensors_header;
pub mod shard_index;
