//! The files of a tokenizer, and which of them are read where a folder has several.

use crate::id::Sha256Digest;

use super::sentencepiece_model::MODEL_FILE;

/// What a tokenizer consists of, so far as a folder has it; carried over byte for byte wherever a tokenizer goes.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    MODEL_FILE,
    "chat_template.jinja",
];

/// The files that hold a vocabulary: one of three kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabularyFiles {
    /// `tokenizer.json` of Hugging Face's tokenizers library.
    TokenizerJson,
    /// `vocab.json` and `merges.txt`: byte-level BPE, as GPT-2's and OPT's.
    VocabAndMerges,
    /// `tokenizer.model` of SentencePiece.
    SentencePiece,
}

impl VocabularyFiles {
    /// Those that are read in a folder that `has` some files: `tokenizer.json` before the pair before
    /// `tokenizer.model`, as in transformers, where the converted file is used whenever it is there.
    pub fn find(has: impl Fn(&str) -> bool) -> Option<Self> {
        let all = [Self::TokenizerJson, Self::VocabAndMerges, Self::SentencePiece];
        all.into_iter().find(|kind| kind.names().iter().all(|name| has(name)))
    }

    /// Their names.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::TokenizerJson => &["tokenizer.json"],
            Self::VocabAndMerges => &["vocab.json", "merges.txt"],
            Self::SentencePiece => &[MODEL_FILE],
        }
    }

    /// The digest that names a vocabulary whose files, in the order of [`VocabularyFiles::names`], hold `contents`: that
    /// of the file, or of what `sha256sum` prints of several.
    pub fn sha256(self, contents: &[&[u8]]) -> Sha256Digest {
        match (self, contents) {
            (Self::TokenizerJson | Self::SentencePiece, [content]) => Sha256Digest::of(content),
            (Self::TokenizerJson | Self::VocabAndMerges | Self::SentencePiece, contents) => {
                let line = |(name, content): (&&str, &&[u8])| format!("{}  {name}\n", Sha256Digest::of(content));
                Sha256Digest::of(self.names().iter().zip(contents).map(line).collect::<String>().as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::VocabularyFiles;

    #[test]
    fn the_first_kind_that_is_whole_is_read() {
        let find = |names: &[&str]| VocabularyFiles::find(|name| names.contains(&name));
        let everything = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"];
        assert_eq!(find(&everything), Some(VocabularyFiles::TokenizerJson));
        assert_eq!(find(&everything[1..]), Some(VocabularyFiles::VocabAndMerges));
        assert_eq!(find(&everything[2..]), Some(VocabularyFiles::SentencePiece));
        assert_eq!(find(&["vocab.json", "tokenizer_config.json"]), None);
    }

    #[test]
    fn the_digest_is_what_sha256sum_says() {
        let file = VocabularyFiles::SentencePiece.sha256(&[b"abc"]);
        assert_eq!(file.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // printf '{}' > vocab.json; printf '' > merges.txt; sha256sum vocab.json merges.txt | sha256sum
        let pair = VocabularyFiles::VocabAndMerges.sha256(&[b"{}", b""]);
        assert_eq!(pair.to_string(), "ef6d942e7866248002e014009017debe9df15a1b7110e8b4858fe62ed2f64dea");
    }
}
