//! What a target does not take over from its source, or writes differently, and why. Users see this
//! before anything is created.

use serde::Serialize;

/// The kind of something that is left out.
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
    /// Returns the name used in the API and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::ConfigKey => "config key",
            Self::File => "file",
        }
    }
}

/// Something that is not taken over unchanged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LeftOut {
    /// Its kind.
    pub kind: LeftOutKind,
    /// Its name in the source.
    pub name: String,
    /// Why, in a few words.
    pub why: String,
}

impl LeftOut {
    /// Creates an entry for a tensor.
    pub fn tensor(name: &str, why: &str) -> Self {
        Self { kind: LeftOutKind::Tensor, name: name.to_owned(), why: why.to_owned() }
    }

    /// Creates an entry for a key of `config.json`.
    pub fn key(name: &str, why: &str) -> Self {
        Self { kind: LeftOutKind::ConfigKey, name: name.to_owned(), why: why.to_owned() }
    }

    /// Creates an entry for a file.
    pub fn file(name: &str, why: &str) -> Self {
        Self { kind: LeftOutKind::File, name: name.to_owned(), why: why.to_owned() }
    }
}
