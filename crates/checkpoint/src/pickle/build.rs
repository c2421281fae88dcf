//! Opcodes that build values: containers, storages, tensors.

use super::{
    Global, MAX_DEPTH, MAX_GLOBAL_BYTES, MAX_OBJECTS, Machine, Object, ObjectId, PickleError, PickledTensor, Storage,
    Value,
};
use crate::safetensors_header::{Dtype, MAX_RANK, MAX_TENSORS, shortened};

/// Maximum length of a storage's name, which is a number in PyTorch.
const MAX_KEY_BYTES: usize = 32;

/// The supported globals: module, name and meaning.
const GLOBALS: [(&str, &str, Global); 17] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::RebuildParameterWithState),
    ("torch._tensor", "_rebuild_from_type_v2", Global::RebuildFromType),
    ("torch", "Tensor", Global::TensorType),
    ("torch.nn.parameter", "Parameter", Global::TensorType),
    ("torch", "DoubleStorage", Global::StorageType(Dtype::F64)),
    ("torch", "FloatStorage", Global::StorageType(Dtype::F32)),
    ("torch", "HalfStorage", Global::StorageType(Dtype::F16)),
    ("torch", "BFloat16Storage", Global::StorageType(Dtype::Bf16)),
    ("torch", "LongStorage", Global::StorageType(Dtype::I64)),
    ("torch", "IntStorage", Global::StorageType(Dtype::I32)),
    ("torch", "ShortStorage", Global::StorageType(Dtype::I16)),
    ("torch", "CharStorage", Global::StorageType(Dtype::I8)),
    ("torch", "ByteStorage", Global::StorageType(Dtype::U8)),
    ("torch", "BoolStorage", Global::StorageType(Dtype::Bool)),
];

impl<'a> Machine<'a> {
    pub(super) fn global(&mut self) -> Result<(), PickleError> {
        let (module, name) = (self.line()?, self.line()?);
        self.known(module, name)
    }

    pub(super) fn stack_global(&mut self) -> Result<(), PickleError> {
        match self.last(2)?.as_slice() {
            [Value::Text(module), Value::Text(name)] => self.known(module, name),
            _ => Err(self.invalid("the name of a class is not a string")),
        }
    }

    fn known(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        if module.len().max(name.len()) > MAX_GLOBAL_BYTES {
            return Err(self.limit("bytes in the name of a class", MAX_GLOBAL_BYTES));
        }
        match GLOBALS.iter().find(|(m, n, _)| (*m, *n) == (module, name)) {
            Some((.., global)) => self.push(Value::Global(*global)),
            None => Err(PickleError::Global { global: shortened(&format!("{module}.{name}")), at: self.opcode_at }),
        }
    }

    /// Adds an object and pushes it.
    pub(super) fn make(&mut self, object: Object<'a>) -> Result<(), PickleError> {
        let depth = match &object {
            Object::Tuple(items) | Object::List(items) => self.depth_above(items)?,
            Object::Dict(_) | Object::Storage(_) | Object::Tensor(_) => 1,
        };
        if matches!(object, Object::Tensor(_)) {
            self.tensors += 1;
            if self.tensors > MAX_TENSORS {
                return Err(self.limit("tensors", MAX_TENSORS));
            }
        }
        if self.objects.len() >= MAX_OBJECTS {
            return Err(self.limit("objects", MAX_OBJECTS));
        }
        let id = ObjectId(self.objects.len() as u32);
        self.push(Value::Object(id))?;
        self.objects.push(object);
        self.depths.push(depth);
        Ok(())
    }

    pub(super) fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), PickleError> {
        let id = self.top()?;
        self.deepen(id, &items)?;
        match self.objects.get_mut(id) {
            Some(Object::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(self.invalid("only a list can be appended to")),
        }
    }

    pub(super) fn set_items(&mut self, items: &[Value<'a>]) -> Result<(), PickleError> {
        let (pairs, rest) = items.as_chunks::<2>();
        let named = |pair: &[Value<'a>; 2]| matches!(pair[0], Value::Text(_) | Value::Int(_));
        if !rest.is_empty() || !pairs.iter().all(named) {
            return Err(self.invalid("a dict's keys must be strings or whole numbers, each with a value"));
        }
        let id = self.top()?;
        self.deepen(id, items)?;
        match self.objects.get_mut(id) {
            Some(Object::Dict(entries)) => {
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.invalid("only a dict can be given items")),
        }
    }

    /// BINPERSID: `('storage', torch.FloatStorage, '0', 'cpu', 12)`.
    pub(super) fn storage(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let [Value::Text("storage"), kind, Value::Text(key), Value::Text(_), Value::Int(numbers)] = *self.tuple(id)?
        else {
            return Err(self.invalid("a persistent id is not that of a storage"));
        };
        let Value::Global(Global::StorageType(dtype)) = kind else {
            return Err(self.invalid("a storage is not of a known type"));
        };
        if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(self.invalid(&format!("`{}` is not the name of a storage", shortened(key))));
        }
        let numbers = u64::try_from(numbers).map_err(|_| self.invalid("a storage has a negative size"))?;
        self.make(Object::Storage(Storage { dtype, key, numbers }))
    }

    pub(super) fn reduce(&mut self) -> Result<(), PickleError> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return Err(self.invalid("it calls something that is not a known function"));
        };
        let args = self.tuple(args)?.to_vec();
        self.call(function, &args)
    }

    fn call(&mut self, function: Global, args: &[Value<'a>]) -> Result<(), PickleError> {
        match (function, args) {
            (Global::OrderedDict, []) => self.make(Object::Dict(Vec::new())),
            (Global::RebuildTensor, [storage, offset, shape, strides, _grad, _hooks, rest @ ..]) => {
                match rest {
                    [] | [Value::None] => {}
                    // Flags such as `conj` and `neg` mean that the tensor's numbers differ from the
                    // storage's.
                    _ => return Err(self.invalid("a tensor has metadata that changes its numbers")),
                }
                let tensor = self.described(*storage, *offset, (*shape, *strides))?;
                self.make(Object::Tensor(Box::new(tensor)))
            }
            (Global::RebuildParameter, [tensor, _grad, _hooks])
            | (Global::RebuildParameterWithState, [tensor, _grad, _hooks, _]) => match self.object(*tensor) {
                Some(Object::Tensor(_)) => self.push(*tensor),
                _ => Err(self.invalid("a parameter is built from something that is not a tensor")),
            },
            (
                Global::RebuildFromType,
                [
                    Value::Global(inner @ (Global::RebuildTensor | Global::RebuildParameter)),
                    Value::Global(Global::TensorType),
                    args,
                    _state,
                ],
            ) => {
                let args = self.tuple(*args)?.to_vec();
                self.call(*inner, &args)
            }
            (
                Global::OrderedDict
                | Global::RebuildTensor
                | Global::RebuildParameter
                | Global::RebuildParameterWithState
                | Global::RebuildFromType,
                _,
            ) => {
                Err(self
                    .invalid(&format!("{} is called with arguments that torch.save does not write", name(function))))
            }
            (Global::TensorType | Global::StorageType(_), _) => {
                Err(self.invalid(&format!("{} is called, which torch.save does not do", name(function))))
            }
        }
    }

    /// BUILD: sets attributes of an object. A state dict has `_metadata`, the versions of its
    /// modules. No other attribute is expected.
    pub(super) fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let id = self.top()?;
        if !matches!(self.objects.get(id), Some(Object::Dict(_))) {
            return Err(self.invalid("attributes are set on something that is not a dict"));
        }
        let Some(Object::Dict(attributes)) = self.object(state) else {
            return Err(self.invalid("attributes are not a dict"));
        };
        // Do not iterate over all attributes: a long list may be set a million times.
        match attributes.as_slice() {
            [] | [(Value::Text("_metadata"), _)] => Ok(()),
            [(Value::Text("_metadata"), _), (Value::Text(key), _), ..] | [(Value::Text(key), _), ..] => {
                Err(self.invalid(&format!("attribute `{}` is set on a dict", shortened(key))))
            }
            [_, ..] => Err(self.invalid("an attribute without a name is set")),
        }
    }

    fn described(
        &self,
        storage: Value<'a>,
        offset: Value<'a>,
        (shape, strides): (Value<'a>, Value<'a>),
    ) -> Result<PickledTensor<'a>, PickleError> {
        let Some(Object::Storage(storage)) = self.object(storage) else {
            return Err(self.invalid("a tensor is built from something that is not a storage"));
        };
        let (shape, strides) = (self.numbers(shape)?, self.numbers(strides)?);
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return Err(self.invalid(&format!(
                "a tensor has {} dimensions and {} strides; at most {MAX_RANK} are allowed",
                shape.len(),
                strides.len()
            )));
        }
        let Value::Int(offset) = offset else { return Err(self.invalid("a tensor's offset is not a whole number")) };
        let offset = u64::try_from(offset).map_err(|_| self.invalid("a tensor's offset is negative"))?;
        let tensor = PickledTensor { storage: *storage, offset, shape, strides };
        // One past the last element that the tensor uses.
        let extent = if tensor.shape.contains(&0) {
            Some(offset)
        } else {
            let steps = tensor.shape.iter().zip(&tensor.strides).map(|(size, stride)| (size - 1).checked_mul(*stride));
            let last = steps.into_iter().try_fold(offset, |last, step| last.checked_add(step?));
            last.and_then(|last| last.checked_add(1))
        };
        if extent.is_none_or(|extent| extent > storage.numbers) {
            return Err(self.invalid(&format!(
                "a tensor of shape {:?} reaches beyond its storage of {} numbers",
                tensor.shape, storage.numbers
            )));
        }
        Ok(tensor)
    }

    fn numbers(&self, value: Value<'a>) -> Result<Vec<u64>, PickleError> {
        let items = self.tuple(value)?;
        if items.len() > MAX_RANK {
            return Err(
                self.invalid(&format!("a tensor has {} dimensions; at most {MAX_RANK} are allowed", items.len()))
            );
        }
        let number = |item: &Value<'a>| match item {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let numbers = items.iter().map(number).collect::<Option<Vec<u64>>>();
        numbers.ok_or_else(|| self.invalid("a dimension or a stride is not a whole number of at least 0"))
    }

    fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        let Value::Object(ObjectId(id)) = value else { return None };
        self.objects.get(id as usize)
    }

    fn tuple(&self, value: Value<'a>) -> Result<&[Value<'a>], PickleError> {
        match self.object(value) {
            Some(Object::Tuple(items)) => Ok(items),
            _ => Err(self.invalid("expected a tuple")),
        }
    }

    /// Returns the object on top of the stack without removing it.
    fn top(&self) -> Result<usize, PickleError> {
        match self.peek()? {
            Value::Object(ObjectId(id)) => Ok(id as usize),
            _ => Err(self.invalid("expected a list or a dict")),
        }
    }

    fn depth_above(&self, items: &[Value<'a>]) -> Result<u32, PickleError> {
        let depth = |item: &Value<'a>| match item {
            Value::Object(ObjectId(id)) => self.depths.get(*id as usize).copied().unwrap_or(0),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Global(_) => 0,
        };
        let depth = 1 + items.iter().map(depth).max().unwrap_or(0);
        if depth > MAX_DEPTH { Err(self.limit("levels", MAX_DEPTH as usize)) } else { Ok(depth) }
    }

    fn deepen(&mut self, id: usize, items: &[Value<'a>]) -> Result<(), PickleError> {
        let depth = self.depth_above(items)?;
        if let Some(own) = self.depths.get_mut(id) {
            *own = depth.max(*own);
        }
        Ok(())
    }
}

fn name(global: Global) -> String {
    let found = GLOBALS.iter().find(|(.., known)| *known == global);
    found.map(|(module, name, _)| format!("{module}.{name}")).unwrap_or_default()
}
