//! What a target does not take over from its source, or writes otherwise, and why: told to users before anything is
//! made.

use serde::Serialize;

/// What kind of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutKind {
    /// A tensor of the source.
    Tensor,
    /// A key of its `config.json`.
    ConfigKey,
    /// A file of its folder.
    File,
}

impl LeftOutKind {
    /// The name used in the API and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::ConfigKey => "config key",
            Self::File => "file",
        }
    }
}

/// One thing that is not taken over as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LeftOut {
    /// What kind of thing it is.
    pub kind: LeftOutKind,
    /// Its name in the source.
    pub name: String,
    /// Why, in a few words.
    pub why: String,
}

impl LeftOut {
    /// A tensor.
    pub fn tensor(name: &str, why: &str) -> Self {
        Self { kind: LeftOutKind::Tensor, name: name.to_owned(), why: why.to_owned() }
    }

    /// A key of `config.json`.
    pub fn key(name: &str, why: &str) -> Self {
        Self { kind: LeftOutKind::ConfigKey, name: name.to_owned(), why: why.to_owned() }
    }

    /// A file.
    pub fn file(name: &str, why: &str) -> Self {
        Self { kind: LeftOutKind::File, name: name.to_owned(), why: why.to_owned() }
    }
}
