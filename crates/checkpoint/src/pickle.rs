//! Reads a pickle written by `torch.save` as data: nothing is imported, called or executed.
//!
//! A pickle is a program for a stack machine. This machine implements the opcodes that checkpoints
//! use and the few globals that create tensors, and rejects everything else by name. Values are
//! small and copied. Values that contain others ([`Value::Object`]) are stored in one list and
//! referred to by index. So reading a memo a million times only creates a million small values,
//! nothing is traversed recursively, and the limits below bound memory use. Tensors are only
//! described: their storage, offset, shape and strides.
//!
//! Sources: the opcodes are in CPython's `Lib/pickletools.py`, the globals in `torch/_utils.py` and
//! `torch/_tensor.py`.

mod build;

use std::collections::BTreeMap;

use super::safetensors_header::Dtype;

#[cfg(test)]
mod tests;

/// Maximum size of a pickle.
pub const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// Maximum number of values that a pickle may push. A tensor takes about 25.
pub const MAX_VALUES: usize = 2 << 20;
/// Maximum number of objects. A tensor takes up to 12.
pub const MAX_OBJECTS: usize = 1 << 20;
/// Maximum number of values on the stack.
pub const MAX_STACK: usize = 1 << 18;
/// Maximum number of memo entries.
pub const MAX_MEMO: usize = 1 << 20;
/// Maximum nesting depth of lists, tuples and dicts.
pub const MAX_DEPTH: u32 = 64;
/// Maximum length of the name of a module or a class.
const MAX_GLOBAL_BYTES: usize = 256;

/// A value in a pickle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(&'a str),
    /// A known class or function. It is only a description.
    Global(Global),
    /// A reference to an [`Object`].
    Object(ObjectId),
}

/// The index of an object of a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectId(u32);

/// A value that contains other values.
#[derive(Debug, Clone, PartialEq)]
pub enum Object<'a> {
    /// A tuple.
    Tuple(Vec<Value<'a>>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A dict, ordered or not. Its keys are in file order, including duplicates.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// The data of one or more tensors.
    Storage(Storage<'a>),
    /// A tensor or a parameter.
    Tensor(Box<PickledTensor<'a>>),
}

/// Data in a separate entry of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage<'a> {
    /// The data type.
    pub dtype: Dtype,
    /// The name of its entry below `data/`.
    pub key: &'a str,
    /// The number of elements.
    pub numbers: u64,
}

/// A tensor, which is a part of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor<'a> {
    /// The storage.
    pub storage: Storage<'a>,
    /// Offset of the first element, in elements.
    pub offset: u64,
    /// The dimensions.
    pub shape: Vec<u64>,
    /// For each dimension, the distance between consecutive indices, in elements.
    pub strides: Vec<u64>,
}

/// The classes and functions that a pickle may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch._utils._rebuild_parameter_with_state`.
    RebuildParameterWithState,
    /// `torch._tensor._rebuild_from_type_v2`.
    RebuildFromType,
    /// `torch.Tensor` or `torch.nn.parameter.Parameter`.
    TensorType,
    /// `torch.FloatStorage` and similar classes.
    StorageType(Dtype),
}

/// A parsed pickle.
#[derive(Debug, Clone, PartialEq)]
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Value<'a>,
}

/// Why a pickle cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The pickle is too large.
    #[error("its pickle of {bytes} bytes is longer than the limit of {MAX_PICKLE_BYTES}")]
    TooLong {
        /// Its size.
        bytes: u64,
    },
    /// The pickle ends early.
    #[error("its pickle is truncated at byte {at}")]
    Truncated {
        /// The position, in bytes.
        at: usize,
    },
    /// The pickle has an opcode that checkpoints do not need.
    #[error(
        "its pickle has opcode {opcode:#04x} at byte {at}, which is not supported: checkpoints of plain tensors never use it"
    )]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// The position, in bytes.
        at: usize,
    },
    /// The pickle refers to a class or function that checkpoints do not need.
    #[error(
        "its pickle refers to `{global}` at byte {at}, which is not a known part of a tensor; it is neither loaded nor executed"
    )]
    Global {
        /// The module and the name.
        global: String,
        /// The position, in bytes.
        at: usize,
    },
    /// The pickle exceeds a limit.
    #[error("its pickle has more than {limit} {what} at byte {at}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// The position, in bytes.
        at: usize,
    },
    /// The opcodes do not fit together.
    #[error("its pickle is not valid at byte {at}: {problem}")]
    NotValid {
        /// What is wrong.
        problem: String,
        /// The position, in bytes.
        at: usize,
    },
}

impl<'a> Pickle<'a> {
    /// Parses a whole pickle.
    ///
    /// # Errors
    /// [`PickleError`] with the position at which reading stopped.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PickleError> {
        if bytes.len() as u64 > MAX_PICKLE_BYTES {
            return Err(PickleError::TooLong { bytes: bytes.len() as u64 });
        }
        let mut machine = Machine { bytes, ..Machine::default() };
        loop {
            machine.opcode_at = machine.at;
            let opcode = machine.byte()?;
            if opcode == b'.' {
                break;
            }
            machine.step(opcode)?;
        }
        let root = machine.pop()?;
        if !machine.stack.is_empty() || !machine.marks.is_empty() {
            return Err(machine.invalid("it ends with values left on its stack"));
        }
        Ok(Self { objects: machine.objects, root })
    }

    /// Returns the value of the pickle.
    pub fn root(&self) -> Value<'a> {
        self.root
    }

    /// Returns the entries of a dict, or `None` for any other value.
    pub fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.object(value)? {
            Object::Dict(entries) => Some(entries),
            Object::Tuple(_) | Object::List(_) | Object::Storage(_) | Object::Tensor(_) => None,
        }
    }

    /// Returns a tensor, or `None` for any other value.
    pub fn tensor(&self, value: Value<'a>) -> Option<&PickledTensor<'a>> {
        match self.object(value)? {
            Object::Tensor(tensor) => Some(tensor),
            Object::Tuple(_) | Object::List(_) | Object::Dict(_) | Object::Storage(_) => None,
        }
    }

    /// Returns the type of the value in Python's terms.
    pub fn kind(&self, value: Value<'a>) -> &'static str {
        match (value, self.object(value)) {
            (_, Some(Object::Tuple(_))) => "a tuple",
            (_, Some(Object::List(_))) => "a list",
            (_, Some(Object::Dict(_))) => "a dict",
            (_, Some(Object::Storage(_))) => "a storage",
            (_, Some(Object::Tensor(_))) => "a tensor",
            (Value::None, _) => "None",
            (Value::Bool(_), _) => "a bool",
            (Value::Int(_), _) => "an int",
            (Value::Float(_), _) => "a float",
            (Value::Text(_), _) => "a str",
            (Value::Global(_) | Value::Object(_), _) => "a class",
        }
    }

    fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        let Value::Object(ObjectId(id)) = value else { return None };
        self.objects.get(id as usize)
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode_at: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at which there is a MARK.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'a>>,
    objects: Vec<Object<'a>>,
    /// The nesting depth of each of `objects`.
    depths: Vec<u32>,
    pushed: usize,
    tensors: usize,
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            // PROTO
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                other => Err(self.invalid(&format!("protocol {other} is not supported; torch.save writes 2"))),
            },
            // FRAME: a hint for streaming readers.
            0x95 => self.take(8).map(drop),
            b'(' => self.mark(),
            b'N' => self.push(Value::None),
            // NEWTRUE, NEWFALSE
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, BINFLOAT
            b'J' => self.array().map(i32::from_le_bytes).and_then(|n| self.push(Value::Int(n.into()))),
            b'K' => self.byte().and_then(|n| self.push(Value::Int(n.into()))),
            b'M' => self.array().map(u16::from_le_bytes).and_then(|n| self.push(Value::Int(n.into()))),
            0x8a => self.long(),
            b'G' => self.array().map(f64::from_be_bytes).and_then(|x| self.push(Value::Float(x))),
            // BINUNICODE, SHORT_BINUNICODE
            b'X' => self.array().map(u32::from_le_bytes).and_then(|length| self.text(length as usize)),
            0x8c => self.byte().and_then(|length| self.text(length.into())),
            b']' => self.make(Object::List(Vec::new())),
            b'}' => self.make(Object::Dict(Vec::new())),
            b')' => self.make(Object::Tuple(Vec::new())),
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => self.last(usize::from(opcode - 0x84)).and_then(|items| self.make(Object::Tuple(items))),
            b't' => self.since_mark().and_then(|items| self.make(Object::Tuple(items))),
            b'a' => self.last(1).and_then(|items| self.append(items)),
            b'e' => self.since_mark().and_then(|items| self.append(items)),
            b's' => self.last(2).and_then(|items| self.set_items(&items)),
            b'u' => self.since_mark().and_then(|items| self.set_items(&items)),
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => self.byte().and_then(|index| self.remember(index.into())),
            b'r' => self.array().map(u32::from_le_bytes).and_then(|index| self.remember(index)),
            0x94 => self.remember(self.memo.len() as u32),
            // BINGET, LONG_BINGET
            b'h' => self.byte().and_then(|index| self.recall(index.into())),
            b'j' => self.array().map(u32::from_le_bytes).and_then(|index| self.recall(index)),
            b'c' => self.global(),
            // STACK_GLOBAL
            0x93 => self.stack_global(),
            // BINPERSID
            b'Q' => self.storage(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            opcode => Err(PickleError::Opcode { opcode, at: self.opcode_at }),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..length));
        let taken = taken.ok_or(PickleError::Truncated { at: self.bytes.len() })?;
        self.at += length;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn long(&mut self) -> Result<(), PickleError> {
        let length = usize::from(self.byte()?);
        let bytes = self.take(length)?;
        if length > 8 {
            return Err(self.invalid("a whole number has more than 64 bits"));
        }
        let sign = if bytes.last().is_some_and(|top| top & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.invalid("a string is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_GLOBAL_BYTES + 1).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            let ended = rest.len() <= MAX_GLOBAL_BYTES;
            return Err(if ended {
                PickleError::Truncated { at: self.bytes.len() }
            } else {
                self.limit("bytes in the name of a class", MAX_GLOBAL_BYTES)
            });
        };
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.invalid("a name is not UTF-8"))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), PickleError> {
        self.pushed += 1;
        if self.pushed > MAX_VALUES {
            return Err(self.limit("values", MAX_VALUES));
        }
        if self.stack.len() >= MAX_STACK {
            return Err(self.limit("values on its stack", MAX_STACK));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, PickleError> {
        let value = self.peek()?;
        self.stack.pop();
        Ok(value)
    }

    /// Returns the topmost value above the last MARK.
    fn peek(&self) -> Result<Value<'a>, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[_]>::last);
        top.copied().ok_or_else(|| self.invalid("its stack is empty"))
    }

    /// Removes and returns the topmost `count` values, all of which must be above the last MARK.
    fn last(&mut self, count: usize) -> Result<Vec<Value<'a>>, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= floor);
        let from = from.ok_or_else(|| self.invalid("its stack is empty"))?;
        Ok(self.stack.split_off(from))
    }

    fn mark(&mut self) -> Result<(), PickleError> {
        if self.marks.len() as u32 >= MAX_DEPTH {
            return Err(self.limit("levels", MAX_DEPTH as usize));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.invalid("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, index: u32) -> Result<(), PickleError> {
        let value = self.peek()?;
        self.memo.insert(index, value);
        if self.memo.len() > MAX_MEMO { Err(self.limit("memo entries", MAX_MEMO)) } else { Ok(()) }
    }

    fn recall(&mut self, index: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&index).copied();
        let value = value.ok_or_else(|| self.invalid(&format!("memo {index} was never set")))?;
        self.push(value)
    }

    fn invalid(&self, problem: &str) -> PickleError {
        PickleError::NotValid { problem: problem.to_owned(), at: self.opcode_at }
    }

    fn limit(&self, what: &'static str, limit: usize) -> PickleError {
        PickleError::Limit { what, limit, at: self.opcode_at }
    }
}
