//! A pickle as `torch.save` writes one, read as data: nothing is imported, called or executed.
//!
//! A pickle is a program for a machine with a stack. This machine knows the opcodes that checkpoints consist of and
//! the few globals that make tensors, and stops at any other one by name. Values are small and copied; what holds
//! others ([`Value::Object`]) lies in one list, and values refer to it by number. So a memo that is read a million
//! times costs a million small values and no more, nothing is walked recursively, and every limit below bounds
//! memory. Tensors are only described: which storage, from where, in which shape and strides.
//!
//! Source of the opcodes: CPython's `Lib/pickletools.py`; of the globals: `torch/_utils.py`, `torch/_tensor.py`.

mod build;

use std::collections::BTreeMap;

use super::safetensors_header::Dtype;

#[cfg(test)]
mod tests;

/// Longest pickle.
pub const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// Most values that a pickle may push; a tensor takes about 25.
pub const MAX_VALUES: usize = 2 << 20;
/// Most objects; a tensor takes up to 12.
pub const MAX_OBJECTS: usize = 1 << 20;
/// Most values that wait on the stack at once.
pub const MAX_STACK: usize = 1 << 18;
/// Most remembered values.
pub const MAX_MEMO: usize = 1 << 20;
/// Deepest nesting of lists, tuples and dicts.
pub const MAX_DEPTH: u32 = 64;
/// Longest name of a module or a class.
const MAX_GLOBAL_BYTES: usize = 256;

/// Something that a pickle holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(&'a str),
    /// A known class or function; only a description.
    Global(Global),
    /// One of the [`Object`]s.
    Object(ObjectId),
}

/// Which object of a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectId(u32);

/// A value that holds others.
#[derive(Debug, Clone, PartialEq)]
pub enum Object<'a> {
    /// A tuple.
    Tuple(Vec<Value<'a>>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A dict, ordered or not; keys as they came, a repeated one included.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// The numbers of one or more tensors.
    Storage(Storage<'a>),
    /// A tensor or a parameter.
    Tensor(Box<PickledTensor<'a>>),
}

/// Numbers that lie in an entry of their own in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage<'a> {
    /// What the numbers are.
    pub dtype: Dtype,
    /// Its entry's name below `data/`.
    pub key: &'a str,
    /// How many there are.
    pub numbers: u64,
}

/// A tensor: a part of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor<'a> {
    /// The storage.
    pub storage: Storage<'a>,
    /// First number, counted in numbers.
    pub offset: u64,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// For each dimension, numbers from one index to the next.
    pub strides: Vec<u64>,
}

/// The classes and functions that may be named.
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
    /// `torch.FloatStorage` and its like.
    StorageType(Dtype),
}

/// A pickle that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Value<'a>,
}

/// Why a pickle cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// Longer than allowed.
    #[error("its pickle of {bytes} bytes is longer than the limit of {MAX_PICKLE_BYTES}")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// It ends early.
    #[error("its pickle is truncated at byte {at}")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// An instruction that checkpoints do not need.
    #[error(
        "its pickle has opcode {opcode:#04x} at byte {at}, which no checkpoint of plain tensors has; it is not read"
    )]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where.
        at: usize,
    },
    /// A class or function that checkpoints do not need.
    #[error("its pickle names `{global}` at byte {at}, which is not a known part of a tensor; it is not read, nor run")]
    Global {
        /// Module and name.
        global: String,
        /// Where.
        at: usize,
    },
    /// More than is allowed of something.
    #[error("its pickle has more than {limit} {what} at byte {at}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
        /// Where.
        at: usize,
    },
    /// Instructions that do not fit together.
    #[error("its pickle is not valid at byte {at}: {problem}")]
    NotValid {
        /// What is wrong.
        problem: String,
        /// Where.
        at: usize,
    },
}

impl<'a> Pickle<'a> {
    /// Reads a whole pickle.
    ///
    /// # Errors
    /// [`PickleError`] with the byte where reading stopped.
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

    /// The value it stands for.
    pub fn root(&self) -> Value<'a> {
        self.root
    }

    /// The entries of a dict; none for another value.
    pub fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.object(value)? {
            Object::Dict(entries) => Some(entries),
            Object::Tuple(_) | Object::List(_) | Object::Storage(_) | Object::Tensor(_) => None,
        }
    }

    /// A tensor; none for another value.
    pub fn tensor(&self, value: Value<'a>) -> Option<&PickledTensor<'a>> {
        match self.object(value)? {
            Object::Tensor(tensor) => Some(tensor),
            Object::Tuple(_) | Object::List(_) | Object::Dict(_) | Object::Storage(_) => None,
        }
    }

    /// What kind of value it is, in Python's words.
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
    /// Heights of the stack where a MARK is.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'a>>,
    objects: Vec<Object<'a>>,
    /// How deep each of `objects` nests.
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
                other => Err(self.invalid(&format!("protocol {other} is not read; torch.save writes 2"))),
            },
            // FRAME: a hint for readers of streams.
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

    /// The topmost value; a MARK is not crossed.
    fn peek(&self) -> Result<Value<'a>, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[_]>::last);
        top.copied().ok_or_else(|| self.invalid("its stack is empty"))
    }

    /// The topmost `count` values; a MARK is not crossed.
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
        if self.memo.len() > MAX_MEMO { Err(self.limit("remembered values", MAX_MEMO)) } else { Ok(()) }
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
