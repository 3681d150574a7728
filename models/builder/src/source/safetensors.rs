//! safetensors, both ways. The only user of the crate of that name.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

pub use safetensors::SafeTensorError as SafetensorsError;

use super::{Bytes, Entries, Entry, plain_name};
use crate::tensor::{Number, Stored, Tensor};

/// Finds the tensors of a whole file.
pub(super) fn read(file: &Bytes) -> Result<Entries, SafeTensorError> {
    let (header, metadata) = SafeTensors::read_metadata(file)?;
    let start = size_of::<u64>() + header;
    let entries = (metadata.tensors().into_iter()).map(|(name, info)| {
        let (from, to) = info.data_offsets;
        let stored = match info.dtype {
            Dtype::F32 => Ok(Stored::F32),
            Dtype::F16 => Ok(Stored::F16),
            Dtype::BF16 => Ok(Stored::Bf16),
            other => Err(format!("{other:?}")),
        };
        let bytes = file.slice(start + from..start + to);
        let entry = Entry { shape: info.shape.clone(), strides: None, stored, bytes, called: name };
        (plain_name(&entry.called), entry)
    });
    Ok(entries.collect())
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
