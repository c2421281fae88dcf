//! The files of a tokenizer, and which of them are read if a folder contains several.

use inheritune_ids::id::Sha256Digest;

use super::sentencepiece_model::{MODEL_FILE, SentencePieceModel};
use super::tokenizer_json::TokenizerJson;
use super::vocabulary_pair::{PAIR_FILES, PairError, VocabularyPair};

/// Vocabulary files that are carried but not read. transformers has a tokenizer class for each of
/// them.
const OTHER_VOCABULARIES: [&str; 11] = [
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model.v3",
    "tekken.json",
    "tiktoken.model",
    "vocab.bpe",
    "bpe.codes",
    "source.spm",
    "encoder.json",
    "dict.txt",
];

/// Returns whether a file with this name belongs to a tokenizer rather than to a model.
pub fn is_tokenizer_file(name: &str) -> bool {
    let starts = [
        "tokenizer",
        "vocab",
        "merges",
        "special_tokens",
        "added_tokens",
        "chat_template",
        "additional_chat_templates/",
    ];
    let ends = [".model", ".tiktoken", ".spm", ".bpe", ".jinja"];
    OTHER_VOCABULARIES.contains(&name)
        || starts.iter().any(|start| name.starts_with(start))
        || ends.iter().any(|end| name.ends_with(end))
}

/// Returns a vocabulary file that is not one of [`VocabularyFiles`]. A folder with such a file is
/// not a folder without a tokenizer.
pub fn other_vocabulary(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    OTHER_VOCABULARIES.into_iter().find(|name| has(name))
}

/// Returns a message for a folder without any of [`VocabularyFiles`]. It follows the folder's name.
pub fn no_vocabulary(has: impl Fn(&str) -> bool) -> String {
    let wanted = "tokenizer.json, nor vocab.json and merges.txt, nor tokenizer.model";
    match other_vocabulary(has) {
        Some(file) => format!(
            "has no {wanted}; its {file} is not supported: convert it to a tokenizer.json with transformers, \
             AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ),
        None => format!("has no {wanted}; specify a folder that has one of these, or train a tokenizer"),
    }
}

/// The files of a vocabulary, of one of three kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabularyFiles {
    /// `tokenizer.json` of Hugging Face's tokenizers library.
    TokenizerJson,
    /// `vocab.json` and `merges.txt`: byte-level BPE, as used by GPT-2 and OPT.
    VocabAndMerges,
    /// `tokenizer.model` of SentencePiece.
    SentencePiece,
}

impl VocabularyFiles {
    /// Returns the kind to read in a folder, where `has` tells which files exist. `tokenizer.json`
    /// takes precedence over the pair, and the pair over `tokenizer.model`. transformers has the
    /// same order: it uses the converted file if there is one.
    pub fn find(has: impl Fn(&str) -> bool) -> Option<Self> {
        let all = [Self::TokenizerJson, Self::VocabAndMerges, Self::SentencePiece];
        all.into_iter().find(|kind| kind.names().iter().all(|name| has(name)))
    }

    /// Returns the names of the files.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::TokenizerJson => &["tokenizer.json"],
            Self::VocabAndMerges => &PAIR_FILES,
            Self::SentencePiece => &[MODEL_FILE],
        }
    }

    /// Returns the highest id plus one. `contents` are the contents of the files, in the order of
    /// [`VocabularyFiles::names`].
    ///
    /// # Errors
    /// A file is not valid, or may cost too much.
    pub fn entries(self, contents: &[&[u8]]) -> Result<u64, PairError> {
        let bad = |problem: String| PairError { file: self.names()[0], problem };
        match (self, contents) {
            (Self::TokenizerJson, [json]) => Ok(TokenizerJson::parse(json).map_err(|e| bad(e.to_string()))?.entries),
            (Self::SentencePiece, [model]) => {
                Ok(SentencePieceModel::parse(model).map_err(|e| bad(e.to_string()))?.pieces().len() as u64)
            }
            (Self::VocabAndMerges, [vocab, merges]) => Ok(VocabularyPair::parse(vocab, merges)?.entries),
            (Self::TokenizerJson | Self::VocabAndMerges | Self::SentencePiece, _) => Err(bad("is missing".to_owned())),
        }
    }

    /// Returns the digest that identifies a vocabulary. `contents` are the contents of the files,
    /// in the order of [`VocabularyFiles::names`]. For several files, it is the digest of the
    /// output of `sha256sum`.
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
