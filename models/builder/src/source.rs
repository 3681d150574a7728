//! Trained weights in a file, mapped into memory: safetensors, torch's .pth, or ONNX.
//!
//! What a file is, its content says and not its name. Each format has a reader that finds where
//! the numbers of each tensor are, and calls it what torchvision's state dict does:
//!
//! ```text
//! format        which one it is
//! safetensors   names as they are
//! torch         .pth, old and new: names as they are
//!   pickle      the language that a state dict is written in; nothing of it is executed
//! onnx          names by the place in the graph; weights may be in further files
//! ```
//!
//! Numbers stay in the file, but for tensors that are not stored row by row. The only user of
//! crates memmap2 and bytes. Knows nothing of which tensors a network has.

mod format;
mod onnx;
mod pickle;
mod safetensors;
mod torch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use thiserror::Error;

pub use self::onnx::OnnxError;
pub use self::pickle::PickleError;
pub use self::safetensors::{SafetensorsError, write};
pub use self::torch::TorchError;

use self::format::Format;
use crate::tensor::{Stored, Tensor};

/// Last part of the name of a batch norm's epsilon, a tensor of one number. ONNX stores it as an
/// attribute; torch does not store it, and its default is 1e-5.
pub const EPSILON: &str = "eps";

/// An open file of named tensors. A clone has the same mapping.
#[derive(Clone, Debug)]
pub struct Source {
    entries: Entries,
}

/// What a reader finds: tensors by torchvision's names.
type Entries = BTreeMap<String, Entry>;

/// Where a tensor is, and how it is stored there.
#[derive(Clone, Debug)]
struct Entry {
    /// What the file calls it.
    called: String,
    shape: Vec<usize>,
    /// By how many numbers each dimension's neighbours are apart, unless stored row by row.
    strides: Option<Vec<usize>>,
    /// Or what safetensors calls a type that weights do not have.
    stored: Result<Stored, String>,
    /// As many as there are numbers, or from the first of them up to the last.
    bytes: Bytes,
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
    /// It is something else: give the right file.
    #[error(
        "{}: not a file of weights but {found} ({bytes} bytes); give a safetensors file, a .pth \
         of torch, or ONNX",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
        /// What it looks like.
        found: &'static str,
    },
    /// It is cut off or damaged: fetch it again.
    #[error("{}: not a complete safetensors file ({bytes} bytes): {error}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
        /// What does not fit.
        error: SafetensorsError,
    },
    /// It is damaged, or torch saved something else than a state dict.
    #[error("{}: not a usable .pth file ({bytes} bytes): {error}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
        /// What does not fit.
        error: TorchError,
    },
    /// It is damaged, or a graph of another network.
    #[error("{}: not a usable ONNX file ({bytes} bytes): {error}", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
        /// What does not fit.
        error: OnnxError,
    },
}

/// A tensor's numbers are of a type that weights do not have.
#[derive(Debug, Error)]
#[error("tensor {name} has numbers of type {found}, expected F32, F16 or BF16")]
pub struct TypeError {
    /// The tensor, as [`Source::title`] gives it.
    pub name: String,
    /// Its type, as safetensors calls it.
    pub found: String,
}

impl Source {
    /// Maps the file and finds its tensors.
    ///
    /// # Errors
    /// [`SourceError`] with the path.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let file = map(path).map_err(|error| SourceError::Io { path: path.to_owned(), error })?;
        let (path, bytes) = (path.to_owned(), file.len());
        let entries = match Format::of(&file) {
            Ok(Format::Safetensors) => self::safetensors::read(&file)
                .map_err(|error| SourceError::Safetensors { path, bytes, error })?,
            Ok(Format::TorchZip) => {
                torch::read_zip(&file).map_err(|error| SourceError::Torch { path, bytes, error })?
            }
            Ok(Format::TorchLegacy) => torch::read_legacy(&file)
                .map_err(|error| SourceError::Torch { path, bytes, error })?,
            Ok(Format::Onnx) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                onnx::read(&file, folder).map_err(|error| SourceError::Onnx {
                    path,
                    bytes,
                    error,
                })?
            }
            Err(found) => return Err(SourceError::Format { path, bytes, found }),
        };
        Ok(Self { entries })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The tensor of that name, if there is one. Its numbers stay in the file, unless they are not
    /// stored row by row.
    ///
    /// # Errors
    /// [`TypeError`] if they are not floating-point numbers of 16 or 32 bits.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor<'_>>, TypeError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let stored =
            (entry.stored.clone()).map_err(|found| TypeError { name: self.title(name), found })?;
        let shape = entry.shape.clone();
        let Some(strides) = &entry.strides else {
            return Ok(Some(Tensor::borrowed(shape, stored, &entry.bytes)));
        };
        let flat = Tensor::borrowed(vec![entry.bytes.len() / stored.size()], stored, &entry.bytes);
        let mut values = Vec::with_capacity(shape.iter().product());
        gather(&shape, strides, &flat.values(), &mut values);
        Ok(Some(Tensor::new(shape, values)))
    }

    /// The name in quotes, and what the file calls the tensor if that is something else.
    pub fn title(&self, name: &str) -> String {
        match self.entries.get(name) {
            Some(Entry { called, .. }) if called != name => {
                format!("'{name}' ('{called}' in the file)")
            }
            _ => format!("'{name}'"),
        }
    }
}

impl Entry {
    /// A tensor that is stored row by row; `None` if that is not as many bytes as `shape` needs.
    fn dense(called: String, shape: Vec<usize>, stored: Stored, bytes: Bytes) -> Option<Self> {
        let fits = count(&shape)?.checked_mul(stored.size())? == bytes.len();
        fits.then_some(Self { called, shape, strides: None, stored: Ok(stored), bytes })
    }
}

/// How many numbers there are in `shape`, unless too many to count.
fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, length| count.checked_mul(*length))
}

/// The name without the parts that torch's wrappers of modules put into it: DataParallel and
/// DistributedDataParallel `module`, torch.compile `_orig_mod`.
fn plain_name(name: &str) -> String {
    let parts = name.split('.').filter(|part| !matches!(*part, "module" | "_orig_mod"));
    parts.collect::<Vec<_>>().join(".")
}

/// Appends the numbers of `shape` row by row, out of `from`, where they are `strides` apart.
fn gather(shape: &[usize], strides: &[usize], from: &[f32], into: &mut Vec<f32>) {
    match (shape, strides) {
        ([length], [stride]) => into.extend(from.iter().step_by(*stride).take(*length)),
        ([length, shape @ ..], [stride, strides @ ..]) => {
            for i in 0..*length {
                gather(shape, strides, &from[i * stride..], into);
            }
        }
        _ => into.extend(from.first()),
    }
}

fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // SAFETY: the map is private to this program and read only. Another program that cuts the
    // file short while it is mapped ends this one by SIGBUS; one that rewrites it changes numbers,
    // for which every value is valid, or names after they were read.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Bytes::from_owner(map))
}
