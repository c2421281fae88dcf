//! SentencePiece's `tokenizer.model`.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::sentencepiece::check(file));
