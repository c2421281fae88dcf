//! Parses the header of an untrusted safetensors file, and writes headers.
//!
//! ```text
//! 8 bytes   length of the header, little endian
//! n bytes   JSON: { "name": { "dtype", "shape", "data_offsets": [begin, end] }, "__metadata__": {…} }
//! the rest  the tensors' bytes, without gaps
//! ```
//! Everything is validated before use. The limits below bound the work that a hostile file can
//! cause, and an accepted header describes every byte of its file exactly once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::other_content::other_content;
use super::tensor_names::DEQUANTISE;
use inheritune_ids::named;

#[cfg(test)]
mod tests;

/// Number of bytes before the JSON, which contain its length.
pub const PREFIX_BYTES: u64 = 8;
/// Maximum size of a header. With the format's own limit of 100 MB, a small file could keep a CPU
/// busy.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Maximum number of tensors in a file, and in a checkpoint.
pub const MAX_TENSORS: usize = 65_536;
/// Maximum number of metadata entries in a file.
pub const MAX_METADATA: usize = 4096;
/// Maximum length of a tensor name.
pub const MAX_NAME_BYTES: usize = 512;
/// Maximum number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// The file name of a checkpoint's weights in a single file.
pub const SINGLE_FILE: &str = "model.safetensors";

const METADATA_KEY: &str = "__metadata__";
/// Maximum number of bytes of an untrusted name or value in a message.
const MAX_QUOTED_BYTES: usize = 80;

named! {
    /// The data type of a tensor.
    #[derive(PartialOrd, Ord)]
    pub enum Dtype {
        /// IEEE double precision.
        F64 = "F64",
        /// IEEE single precision.
        F32 = "F32",
        /// IEEE half precision.
        F16 = "F16",
        /// bfloat16.
        Bf16 = "BF16",
        /// Signed, 8 bytes.
        I64 = "I64",
        /// Signed, 4 bytes.
        I32 = "I32",
        /// Signed, 2 bytes.
        I16 = "I16",
        /// Signed, 1 byte.
        I8 = "I8",
        /// Unsigned, 1 byte.
        U8 = "U8",
        /// One byte, 0 or 1.
        Bool = "BOOL",
    }
}

impl Dtype {
    /// Returns the size of one element, in bytes.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Returns whether weights may have this dtype. Quantised and double-precision weights are not
    /// supported.
    pub fn is_learned(self) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => true,
            Self::F64 | Self::I64 | Self::I32 | Self::I16 | Self::I8 | Self::U8 | Self::Bool => false,
        }
    }
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// The name, as in the file.
    pub name: String,
    /// The data type.
    pub dtype: Dtype,
    /// The dimensions.
    pub shape: Vec<u64>,
    /// The byte range of its data in the file.
    pub bytes: Range<u64>,
}

/// A validated header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsHeader {
    tensors: Vec<HeaderTensor>,
    metadata: BTreeMap<String, String>,
}

/// Why a file is not a usable safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file is too short for a length.
    #[error("is {file_bytes} bytes long, too short for a safetensors file; it may be truncated")]
    TooShort {
        /// The size of the file.
        file_bytes: u64,
    },
    /// The file is of another kind.
    #[error("{content}")]
    OtherContent {
        /// What the file is, and what to do.
        content: &'static str,
    },
    /// The header is too large.
    #[error("its header of {header_bytes} bytes is longer than the limit of {MAX_HEADER_BYTES}")]
    TooLong {
        /// The length that the file declares.
        header_bytes: u64,
    },
    /// The file ends within its header.
    #[error("its header of {header_bytes} bytes does not fit in a file of {file_bytes} bytes; it is truncated")]
    HeaderTruncated {
        /// The length that the file declares.
        header_bytes: u64,
        /// The size of the file.
        file_bytes: u64,
    },
    /// The tensors do not end at the end of the file.
    #[error(
        "its header describes {expected_bytes} bytes but the file has {file_bytes}; it is truncated or has bytes that do not belong to any tensor"
    )]
    WrongSize {
        /// The size according to the header.
        expected_bytes: u64,
        /// The size of the file.
        file_bytes: u64,
    },
    /// The header is not the expected JSON.
    #[error("its header is not valid: {problem}")]
    NotValid {
        /// The parser's message.
        problem: String,
    },
    /// A tensor is not valid.
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        /// The name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl SafetensorsHeader {
    /// Returns the length of the JSON, from the first 8 bytes of a file of `file_bytes`.
    ///
    /// # Errors
    /// The length exceeds the limit or the end of the file.
    pub fn length(prefix: &[u8], file_bytes: u64) -> Result<u64, HeaderError> {
        let prefix: [u8; 8] =
            prefix.get(..8).and_then(|p| p.try_into().ok()).ok_or(HeaderError::TooShort { file_bytes })?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > MAX_HEADER_BYTES {
            let other = other_content(&prefix).map(|content| HeaderError::OtherContent { content });
            return Err(other.unwrap_or(HeaderError::TooLong { header_bytes }));
        }
        if file_bytes < PREFIX_BYTES + header_bytes {
            return Err(HeaderError::HeaderTruncated { header_bytes, file_bytes });
        }
        Ok(header_bytes)
    }

    /// Parses the JSON that follows the length, and compares it with the file's size.
    ///
    /// # Errors
    /// [`HeaderError`] naming the tensor and the problem.
    pub fn parse(json: &[u8], file_bytes: u64) -> Result<Self, HeaderError> {
        if json.first() != Some(&b'{') {
            return Err(HeaderError::NotValid { problem: "it does not start with `{`".to_owned() });
        }
        let raw: RawHeader =
            serde_json::from_slice(json).map_err(|e| HeaderError::NotValid { problem: shortened(&e.to_string()) })?;
        let data_start = PREFIX_BYTES + json.len() as u64;
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, entry) in raw.tensors {
            tensors.push(checked_tensor(name, entry, data_start)?);
        }
        check_names(&tensors)?;
        tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
        check_offsets(&tensors, data_start, file_bytes)?;
        Ok(Self { tensors, metadata: raw.metadata })
    }

    /// Returns the tensors, by position in the file.
    pub fn tensors(&self) -> &[HeaderTensor] {
        &self.tensors
    }

    /// Returns the file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl AsRef<[HeaderTensor]> for SafetensorsHeader {
    fn as_ref(&self) -> &[HeaderTensor] {
        &self.tensors
    }
}

/// A tensor to write to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor<'a> {
    /// The name.
    pub name: &'a str,
    /// The data type.
    pub dtype: Dtype,
    /// The dimensions.
    pub shape: &'a [u64],
}

/// Returns the start of a file with `tensors` in this order: the length and the JSON, padded to 8
/// bytes. The result is deterministic. If wider dtypes come first, all tensors are aligned.
///
/// # Errors
/// A name, a rank or a size that [`SafetensorsHeader::parse`] would reject.
pub fn write_header(tensors: &[NewTensor<'_>]) -> Result<Vec<u8>, HeaderError> {
    let mut object = serde_json::Map::new();
    object.insert(METADATA_KEY.to_owned(), serde_json::json!({ "format": "pt" }));
    let mut at = 0_u64;
    for tensor in tensors {
        check_name(tensor.name)?;
        if tensor.shape.len() > MAX_RANK {
            return Err(tensor_error(
                tensor.name,
                format!("has {} dimensions; at most {MAX_RANK} are allowed", tensor.shape.len()),
            ));
        }
        let end = size_bytes(tensor.dtype, tensor.shape)
            .and_then(|size| at.checked_add(size))
            .ok_or_else(|| tensor_error(tensor.name, "is too large".to_owned()))?;
        let entry =
            serde_json::json!({ "dtype": tensor.dtype.as_str(), "shape": tensor.shape, "data_offsets": [at, end] });
        if object.insert(tensor.name.to_owned(), entry).is_some() {
            return Err(tensor_error(tensor.name, "occurs twice".to_owned()));
        }
        at = end;
    }
    let mut json = Value::Object(object).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLong { header_bytes: json.len() as u64 });
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// Returns the size of a tensor in bytes, or `None` if it does not fit in 64 bits.
pub fn size_bytes(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(dtype.size_bytes(), |size, dimension| size.checked_mul(*dimension))
}

struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

fn checked_tensor(name: String, entry: RawEntry, data_start: u64) -> Result<HeaderTensor, HeaderError> {
    check_name(&name)?;
    let RawEntry { dtype, shape, offsets: [begin, end] } = entry;
    let Some(dtype) = Dtype::parse(&dtype) else {
        let known = Dtype::ALL.map(Dtype::as_str).join(", ");
        let is_packed = ["F8", "F6", "F4", "E8", "U16", "U32", "U64"].iter().any(|start| dtype.starts_with(start));
        let hint =
            if is_packed { format!(". It is a dtype of quantised weights: {DEQUANTISE}") } else { String::new() };
        return Err(tensor_error(&name, format!("has dtype `{}`; supported are {known}{hint}", shortened(&dtype))));
    };
    let Some(size) = size_bytes(dtype, &shape) else {
        return Err(tensor_error(&name, format!("has shape {shape:?}, whose size does not fit in 64 bits")));
    };
    if end.checked_sub(begin) != Some(size) {
        let problem = format!("has offsets [{begin}, {end}], but {dtype} {shape:?} takes {size} bytes");
        return Err(tensor_error(&name, problem));
    }
    match (data_start.checked_add(begin), data_start.checked_add(end)) {
        (Some(start), Some(end)) => Ok(HeaderTensor { name, dtype, shape, bytes: start..end }),
        _ => Err(tensor_error(&name, format!("has offsets [{begin}, {end}], beyond any file"))),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), HeaderError> {
    let problem = if name.is_empty() {
        "has an empty name".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("has a name of {} bytes; at most {MAX_NAME_BYTES} are allowed", name.len())
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-')) {
        "has a name with characters other than A-Z a-z 0-9 . _ / -".to_owned()
    } else {
        return Ok(());
    };
    Err(tensor_error(name, problem))
}

fn check_names(tensors: &[HeaderTensor]) -> Result<(), HeaderError> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(tensor_error(pair[0], "occurs twice".to_owned())),
        None => Ok(()),
    }
}

/// Checks that each tensor starts where the previous one ends, and that the last one ends at the
/// end of the file. `tensors` are sorted by position.
fn check_offsets(tensors: &[HeaderTensor], data_start: u64, file_bytes: u64) -> Result<(), HeaderError> {
    let mut at = data_start;
    for tensor in tensors {
        let begin = tensor.bytes.start;
        if begin != at {
            let what =
                if begin < at { "overlaps the previous tensor" } else { "leaves a gap after the previous tensor" };
            let problem =
                format!("{what}: it starts at {} but should start at {}", begin - data_start, at - data_start);
            return Err(tensor_error(&tensor.name, problem));
        }
        at = tensor.bytes.end;
    }
    if at == file_bytes { Ok(()) } else { Err(HeaderError::WrongSize { expected_bytes: at, file_bytes }) }
}

fn tensor_error(name: &str, problem: String) -> HeaderError {
    HeaderError::Tensor { tensor: shortened(name), problem }
}

/// Formats text from a file for a message: printable and short.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().flat_map(char::escape_default).take(MAX_QUOTED_BYTES).collect();
    if short.len() == MAX_QUOTED_BYTES {
        short.push('…');
    }
    short
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            // A map type would only keep the last of two equal names. A list keeps both, so that
            // they can be rejected.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        header.metadata = map.next_value::<Metadata>()?.0;
                    } else if header.tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The file's metadata. If a key occurs twice, the last entry counts.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;

        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut notes = BTreeMap::new();
                while let Some((key, note)) = map.next_entry()? {
                    if notes.len() == MAX_METADATA {
                        return Err(A::Error::custom(format!("more than {MAX_METADATA} entries of metadata")));
                    }
                    notes.insert(key, note);
                }
                Ok(Metadata(notes))
            }
        }

        deserializer.deserialize_map(MetadataVisitor)
    }
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Entry {
            dtype: String,
            #[serde(deserialize_with = "shape")]
            shape: Vec<u64>,
            data_offsets: [u64; 2],
        }
        let Entry { dtype, shape, data_offsets } = Entry::deserialize(deserializer)?;
        Ok(Self { dtype, shape, offsets: data_offsets })
    }
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct ShapeVisitor;

    impl<'de> Visitor<'de> for ShapeVisitor {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_RANK} dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while shape.len() < MAX_RANK {
                match seq.next_element()? {
                    Some(dimension) => shape.push(dimension),
                    None => return Ok(shape),
                }
            }
            match seq.next_element::<IgnoredAny>()? {
                Some(_) => Err(A::Error::custom(format!("a tensor has more than {MAX_RANK} dimensions"))),
                None => Ok(shape),
            }
        }
    }

    deserializer.deserialize_seq(ShapeVisitor)
}
