//! State dicts as torch.save writes them, in both of its containers. The only user of crate zip.
//!
//! ```text
//! since 1.6: a zip archive              before: one pickle after the other, then numbers
//!   NAME/data.pkl    the state dict       a magic number; 1001, the version; a dict on the machine
//!   NAME/byteorder   little               the state dict
//!   NAME/data/KEY    the numbers of       the storages' keys, a list of texts
//!                    one storage          per key: how many numbers (8 bytes), the numbers
//! ```
//!
//! A tensor in the pickle is a view of a storage. torch has written it in several ways over time:
//!
//! ```text
//! first  torch.FloatTensor() given the state (storage, offset, size, stride)
//!        Parameter() given the state (tensor, ...)
//! then   _rebuild_tensor(storage, offset, size, stride)
//!        Parameter(tensor) given the state (...)
//! now    _rebuild_tensor_v2(storage, offset, size, stride, ...)
//!        _rebuild_parameter(tensor, ...)
//! ```
//!
//! A storage is outside of the pickle, and its identifier ('storage', type, key, device, length);
//! the old container adds None or (key, offset, length), of a part of it.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use thiserror::Error;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, PickleError, Value};
use super::{Bytes, Entries, Entry, count, plain_name};
use crate::tensor::Stored;

/// Why a file of torch.save is not a state dict that can be used.
#[derive(Debug, Error)]
pub enum TorchError {
    /// The archive is cut off or damaged.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// It is another archive.
    #[error("a zip archive without data.pkl, so torch.save did not write it")]
    NoPickle,
    /// It has a program in it.
    #[error("a TorchScript program; save model.state_dict() instead")]
    Script,
    /// Someone has packed the archive again.
    #[error("'{name}' in the archive is compressed, as torch.save does not; save it again")]
    Compressed {
        /// The file in the archive.
        name: String,
    },
    /// It is damaged, or something else than a state dict.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// It comes from a machine of another kind.
    #[error("its numbers are big-endian; save it again on a little-endian machine")]
    BigEndian,
    /// The file is cut off.
    #[error("the numbers of storage '{key}' are missing or cut off")]
    Storage {
        /// The storage.
        key: String,
    },
    /// The whole model was saved, or a list, or nothing.
    #[error("no dict with tensors in it; save model.state_dict()")]
    NoTensors,
    /// It is damaged.
    #[error("tensor '{name}' does not lie within its storage")]
    Tensor {
        /// The tensor.
        name: String,
    },
}

/// What a training loop may call the state dict, among other things that it saves.
const STATE_DICTS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// Types of storages: torch's name, the type in safetensors' words if weights do not have it, and
/// bytes per number.
const STORAGES: [(&str, Result<Stored, &str>, usize); 10] = [
    ("Float", Ok(Stored::F32), 4),
    ("Half", Ok(Stored::F16), 2),
    ("BFloat16", Ok(Stored::Bf16), 2),
    ("Double", Err("F64"), 8),
    ("Long", Err("I64"), 8),
    ("Int", Err("I32"), 4),
    ("Short", Err("I16"), 2),
    ("Char", Err("I8"), 1),
    ("Byte", Err("U8"), 1),
    ("Bool", Err("BOOL"), 1),
];

/// The most dimensions that a tensor may have.
const DIMENSIONS: usize = 8;

/// Finds the tensors of a zip archive.
pub(super) fn read_zip(file: &Bytes) -> Result<Entries, TorchError> {
    let mut archive = ZipArchive::new(Cursor::new(&file[..]))?;
    let folder = (archive.file_names())
        .filter_map(Result::ok)
        .find_map(|name| name.strip_suffix("/data.pkl").map(str::to_owned))
        .ok_or(TorchError::NoPickle)?;
    let mut part = |name: &str| part(&mut archive, file, format!("{folder}/{name}"));
    if part("constants.pkl")?.is_some() {
        return Err(TorchError::Script);
    }
    if part("byteorder")?.is_some_and(|order| order.starts_with(b"big")) {
        return Err(TorchError::BigEndian);
    }
    let pickle = part("data.pkl")?.ok_or(TorchError::NoPickle)?;
    let pickle = Pickle::read(&pickle, knows)?;
    tensors(&pickle, |key| part(&format!("data/{key}")))
}

/// Finds the tensors of pickles and numbers one after the other.
pub(super) fn read_legacy(file: &Bytes) -> Result<Entries, TorchError> {
    let mut rest = file.clone();
    let mut next = || {
        let bytes = rest.clone();
        let length = Pickle::read(&bytes, knows)?.length;
        Ok::<_, PickleError>(rest.split_to(length))
    };
    let [_magic, _version, machine, dict, keys] = [next()?, next()?, next()?, next()?, next()?];

    let machine = Pickle::read(&machine, knows)?;
    let order = item(&machine, machine.root, &["little_endian"]);
    if order.is_some_and(|order| matches!(machine.get(order), Value::Bool(false))) {
        return Err(TorchError::BigEndian);
    }
    let pickle = Pickle::read(&dict, knows)?;
    let storages = (pickle.values.iter()).filter_map(|value| match value {
        Value::Persistent(id) => Storage::of(&pickle, *id),
        _ => None,
    });
    let sizes: HashMap<&str, usize> =
        storages.map(|storage| (storage.key, STORAGES[storage.kind].2)).collect();

    let keys = Pickle::read(&keys, knows)?;
    let mut places = HashMap::new();
    for key in keys.list(keys.root).unwrap_or_default() {
        let key = keys.text(*key).unwrap_or_default();
        let Some(numbers) = numbers(&mut rest, sizes.get(key).copied()) else {
            break;
        };
        places.insert(key, numbers);
    }
    tensors(&pickle, |key| Ok(places.get(key).cloned()))
}

/// Splits the numbers of a storage off the front: how many there are, then `size` bytes of each.
fn numbers(rest: &mut Bytes, size: Option<usize>) -> Option<Bytes> {
    let length = u64::from_le_bytes(*rest.first_chunk()?);
    let length = usize::try_from(length).ok()?.checked_mul(size?)?;
    let mut numbers = rest.slice(size_of::<u64>()..);
    if length > numbers.len() {
        return None;
    }
    *rest = numbers.split_off(length);
    Some(numbers)
}

/// A file of the archive, if it is there.
fn part(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    file: &Bytes,
    name: String,
) -> Result<Option<Bytes>, TorchError> {
    let Some(index) = archive.index_for_name(&name) else {
        return Ok(None);
    };
    let entry = archive.by_index_raw(index)?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(TorchError::Compressed { name });
    }
    let start = entry.data_start().unwrap_or(u64::MAX);
    let place = usize::try_from(start).ok().zip(usize::try_from(entry.size()).ok());
    let range = place.and_then(|(start, size)| Some(start..start.checked_add(size)?));
    match range.filter(|range| range.end <= file.len()) {
        Some(range) => Ok(Some(file.slice(range))),
        None => Err(TorchError::Storage { key: name }),
    }
}

/// What a pickle of a state dict may name.
fn knows(module: &str, name: &str) -> bool {
    match module {
        "collections" => name == "OrderedDict",
        "torch._utils" => {
            matches!(name, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_parameter")
        }
        "torch.nn.parameter" => name == "Parameter",
        "torch" | "torch.cuda" => kind(name, "Storage").or(kind(name, "Tensor")).is_some(),
        _ => false,
    }
}

/// Which of [`STORAGES`] a class is of.
fn kind(class: &str, suffix: &str) -> Option<usize> {
    let name = class.strip_suffix(suffix)?;
    STORAGES.iter().position(|(known, ..)| *known == name)
}

/// The tensors of the state dict. `storage` gives the numbers behind a key.
fn tensors(
    pickle: &Pickle<'_>,
    mut storage: impl FnMut(&str) -> Result<Option<Bytes>, TorchError>,
) -> Result<Entries, TorchError> {
    let nested = item(pickle, pickle.root, &STATE_DICTS).and_then(|nested| pickle.dict(nested));
    let dict = nested.or(pickle.dict(pickle.root)).ok_or(TorchError::NoTensors)?;
    let mut entries = BTreeMap::new();
    for (key, value) in dict {
        let (Some(name), Value::Call { .. }) = (pickle.text(*key), pickle.get(*value)) else {
            continue;
        };
        let error = || TorchError::Tensor { name: name.to_owned() };
        let view = View::of(pickle, *value).ok_or_else(error)?;
        let bytes = match STORAGES[view.storage.kind].1 {
            Ok(_) => storage(view.storage.key)?
                .ok_or_else(|| TorchError::Storage { key: view.storage.key.to_owned() })?,
            Err(_) => Bytes::new(),
        };
        let entry = view.entry(name, bytes).ok_or_else(error)?;
        entries.insert(plain_name(name), entry);
    }
    if entries.is_empty() { Err(TorchError::NoTensors) } else { Ok(entries) }
}

/// The value of the first of `keys` that a dict has.
fn item(pickle: &Pickle<'_>, dict: Id, keys: &[&str]) -> Option<Id> {
    let dict = pickle.dict(dict)?;
    keys.iter().find_map(|wanted| {
        let mut items = dict.iter().rev();
        items.find(|(key, _)| pickle.text(*key) == Some(wanted)).map(|(_, value)| *value)
    })
}

/// Numbers that tensors are made of.
struct Storage<'a> {
    key: &'a str,
    /// Index in [`STORAGES`].
    kind: usize,
    /// Where the part that is meant begins, in numbers.
    offset: usize,
}

impl<'a> Storage<'a> {
    /// The storage that a persistent identifier stands for.
    fn of(pickle: &Pickle<'a>, id: Id) -> Option<Self> {
        let [what, class, key, _device, _length, rest @ ..] = pickle.list(id)? else {
            return None;
        };
        let Value::Global(_, class) = pickle.get(*class) else {
            return None;
        };
        let part = rest.first().and_then(|part| pickle.list(*part));
        let offset = match part {
            Some([_key, offset, _length]) => pickle.index(*offset)?,
            Some(_) => return None,
            None => 0,
        };
        let storage = Self { key: pickle.text(*key)?, kind: kind(class, "Storage")?, offset };
        (pickle.text(*what) == Some("storage")).then_some(storage)
    }
}

/// A tensor, as a part of a storage.
struct View<'a> {
    storage: Storage<'a>,
    /// Of the first number, in numbers.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> View<'a> {
    /// The view that a call would give.
    fn of(pickle: &Pickle<'a>, id: Id) -> Option<Self> {
        let Value::Call { of, arguments, state } = pickle.get(id) else {
            return None;
        };
        let arguments = pickle.list(*arguments)?;
        let state = state.and_then(|state| pickle.list(state));
        match of.1 {
            "Parameter" | "_rebuild_parameter" => {
                let tensor = *arguments.first().or_else(|| state?.first())?;
                let is_parameter = matches!(
                    pickle.get(tensor),
                    Value::Call { of: (_, "Parameter" | "_rebuild_parameter"), .. }
                );
                if is_parameter { None } else { Self::of(pickle, tensor) }
            }
            "_rebuild_tensor" | "_rebuild_tensor_v2" => Self::within(pickle, arguments),
            _ => Self::within(pickle, state?),
        }
    }

    fn within(pickle: &Pickle<'a>, parts: &[Id]) -> Option<Self> {
        let [storage, offset, shape, strides, ..] = parts else {
            return None;
        };
        let Value::Persistent(storage) = pickle.get(*storage) else {
            return None;
        };
        let lengths = |id: Id| -> Option<Vec<usize>> {
            let lengths = pickle.list(id).filter(|lengths| lengths.len() <= DIMENSIONS)?;
            lengths.iter().map(|length| pickle.index(*length)).collect()
        };
        Some(Self {
            storage: Storage::of(pickle, *storage)?,
            offset: pickle.index(*offset)?,
            shape: lengths(*shape)?,
            strides: lengths(*strides)?,
        })
    }

    /// The tensor among the `bytes` of its storage.
    fn entry(mut self, name: &str, bytes: Bytes) -> Option<Entry> {
        let (called, shape) = (name.to_owned(), self.shape);
        let stored = match STORAGES[self.storage.kind].1 {
            Ok(stored) => stored,
            Err(other) => {
                let stored = Err(other.to_owned());
                return Some(Entry { called, shape, strides: None, stored, bytes });
            }
        };
        if shape.len() != self.strides.len() {
            return None;
        }
        let numbers = count(&shape)?;
        let (mut expected, mut last, mut dense) = (1usize, 0usize, true);
        for (length, stride) in shape.iter().zip(&mut self.strides).rev() {
            if *length <= 1 {
                *stride = 1;
                continue;
            }
            if *stride == 0 {
                return None;
            }
            dense &= *stride == expected;
            expected = expected.checked_mul(*length)?;
            last = last.checked_add((length - 1).checked_mul(*stride)?)?;
        }
        let span = if numbers == 0 { 0 } else { last.checked_add(1)? };
        let start = self.storage.offset.checked_add(self.offset)?;
        let range = start.checked_mul(stored.size())?
            ..start.checked_add(span)?.checked_mul(stored.size())?;
        if range.end > bytes.len() || numbers > span {
            return None;
        }
        let bytes = bytes.slice(range);
        if dense || numbers == 0 {
            return Entry::dense(called, shape, stored, bytes);
        }
        Some(Entry { called, shape, strides: Some(self.strides), stored: Ok(stored), bytes })
    }
}
