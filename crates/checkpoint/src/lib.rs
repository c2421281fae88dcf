//! Checkpoint families: shapes, tensor names and what a slice takes from where.
//!
//! Read [`decoder_config`] first (one shape for all families), then a family such as [`gpt2`] (names and
//! Hugging Face keys; [`block_parts`] is what several share), [`layer_map`], [`inherit_set`], [`tensor_names`] (what the names
//! of a file mean), [`slice_plan`], [`config_json`] (a target's from its reference's), [`left_out`], then the
//! files nobody here wrote: [`weights_files`] (which of a folder hold a model), [`safetensors_header`], [`shard_index`], and PyTorch's own format in [`zip_directory`],
//! [`pickle`] and [`torch_archive`]. [`nanogpt`] and [`litgpt`] are checkpoints that are not in Hugging Face's layout. Of
//! tokenizers: [`tokenizer_files`], [`sentencepiece_model`], [`tokenizer_json`] with [`tokenizer_pattern`], and
//! [`vocabulary_pair`]; of whole folders: [`needed_files`] (what a job fetches) and [`carried_files`] (what a target gets).

pub mod decoder_config;
pub mod gpt2;
pub mod llama;
mod block_parts;
pub mod gpt_neox;
pub mod opt;
pub mod mpt;
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
