//! Trained weights in a safetensors file, mapped into memory.
//!
//! Owns the file format, both ways; the only user of crates safetensors and memmap2. Knows nothing
//! of which tensors a network has.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use thiserror::Error;

use crate::tensor::{Number, Stored, Tensor};

/// An open file of named tensors.
#[derive(Debug)]
pub struct Source {
    map: Mmap,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    stored: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Why a file of weights cannot be used.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The file is not there or may not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is another format, or cut off: give the right file, or fetch it again.
    #[error("{}: not a complete safetensors file ({bytes} bytes): {error}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
        /// What does not fit.
        error: SafeTensorError,
    },
}

/// A tensor's numbers are of a type that weights do not have.
#[derive(Debug, Error)]
#[error("tensor '{name}' has numbers of type {found}, expected F32, F16 or BF16")]
pub struct TypeError {
    /// The tensor.
    pub name: String,
    /// Its type, as safetensors calls it.
    pub found: String,
}

impl Source {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// [`SourceError`] with the path.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let io = |error| SourceError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the map is private to this value and read only. Another program that cuts the
        // file short while it is mapped ends this one by SIGBUS; one that rewrites it changes
        // numbers, for which every value is valid.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            SourceError::Format { path: path.to_owned(), bytes: map.len(), error }
        })?;
        let start = size_of::<u64>() + header;
        let entries = (metadata.tensors().into_iter())
            .map(|(name, info)| {
                let (from, to) = info.data_offsets;
                let entry = Entry {
                    stored: info.dtype,
                    shape: info.shape.clone(),
                    bytes: start + from..start + to,
                };
                (name, entry)
            })
            .collect();
        Ok(Self { map, entries })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The tensor of that name, if there is one; its numbers stay in the file.
    ///
    /// # Errors
    /// [`TypeError`] if they are not floating-point numbers of 16 or 32 bits.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor<'_>>, TypeError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let stored = match entry.stored {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::Bf16,
            other => {
                return Err(TypeError { name: name.to_owned(), found: format!("{other:?}") });
            }
        };
        let bytes = &self.map[entry.bytes.clone()];
        Ok(Some(Tensor::borrowed(entry.shape.clone(), stored, bytes)))
    }
}

/// Writes tensors as float32.
///
/// # Errors
/// Whatever the file system gives.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor<'_>>) -> io::Result<()> {
    let values: Vec<_> =
        (tensors.iter()).map(|(name, tensor)| (name, tensor.shape(), tensor.values())).collect();
    let views = values.iter().map(|(name, shape, values)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), f32::bytes(values))
            .expect("a tensor has as many numbers as its shape says");
        (name, view)
    });
    safetensors::serialize_to_file(views, None, path).map_err(|error| match error {
        SafeTensorError::IoError(error) => error,
        other => io::Error::other(other),
    })
}
