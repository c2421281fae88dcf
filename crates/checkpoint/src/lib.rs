//! The content of model files: formats, families, tokenizers, and the plan of a slice.
//!
//! Owns: parsers of untrusted files ([`safetensors_header`], [`shard_index`], PyTorch's own format
//! in [`zip_directory`], [`pickle`] and [`torch_archive`], [`sentencepiece_model`],
//! [`tokenizer_json`]), the shape of a decoder ([`decoder_config`]) and its families as tables
//! ([`families`]), and slices ([`layer_map`], [`inherit_set`], [`slice_plan`], [`config_json`] for
//! the target's `config.json`, [`carried_files`] for the other files). [`nanogpt`] and [`litgpt`]
//! read checkpoints that are not in Hugging Face's layout. Everything here is a pure function of
//! bytes and values.
//!
//! Entry point: [`decoder_config::DecoderConfig::from_hf`], then [`slice_plan::Inventory::new`].
//!
//! Must never: open a file, trust a number in one, or know about jobs.

pub mod decoder_config;
pub mod families;
pub mod layer_map;
pub mod inherit_set;
pub mod tensor_names;
pub mod slice_plan;
pub mod left_out;
pub mod config_json;
pub mod weights_files;
pub mod safetensors_header;
pub mod shard_index;
pub mod zip_directory;
pub mod other_content;
pub mod pickle;
pub mod torch_archive;
pub mod nanogpt;
pub mod litgpt;
pub mod carried_files;
pub mod carried_settings;
pub mod tokenizer_files;
pub mod needed_files;
pub mod sentencepiece_model;
pub mod tokenizer_json;
pub mod tokenizer_pattern;
pub mod vocabulary_pair;
