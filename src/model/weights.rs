//! Weights where they lie: ONNX initializers as slices of the mapped file.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::tract_hir::internal::*;

/// The weight files of one model set, each mapped once.
pub(super) struct Files<'a> {
    directory: &'a Path,
    maps: HashMap<PathBuf, Arc<Mmap>>,
}

impl<'a> Files<'a> {
    pub(super) fn new(directory: &'a Path) -> Self {
        Self { directory, maps: HashMap::new() }
    }

    /// The elements of an initializer with external data, if it has `data_type` and lies aligned in
    /// its file; else nothing, and the tensor is left to tract.
    pub(super) fn tensor<T: bytemuck::Pod>(
        &mut self,
        tensor: &TensorProto,
        data_type: DataType,
    ) -> TractResult<Option<Weights<T>>> {
        let external = tensor.data_location == Some(DataLocation::External as i32);
        if !external || tensor.data_type != data_type as i32 {
            return Ok(None);
        }
        let entry = |key: &str| {
            (tensor.external_data.iter())
                .find(|entry| entry.key == key)
                .map(|entry| entry.value.as_str())
        };
        let location = entry("location").context("external data without location")?;
        let map = self.map(location)?;
        let offset = entry("offset").unwrap_or("0").parse::<usize>()?;
        let length = tensor.dims.iter().product::<i64>() as usize * size_of::<T>();
        let range = offset..offset.saturating_add(length);
        let bytes = map.get(range.clone()).with_context(|| {
            let bytes = map.len();
            format!("'{}' lies at {range:?} of {location}, which has {bytes} bytes", tensor.name)
        })?;
        let aligned = bytemuck::try_cast_slice::<u8, T>(bytes).is_ok();
        Ok(aligned.then(|| Weights::new(map.clone(), range)))
    }

    fn map(&mut self, location: &str) -> TractResult<Arc<Mmap>> {
        let plain = Path::new(location).file_name() == Some(location.as_ref());
        ensure!(plain, "external data location '{location}' is not the name of a file in the set");
        let path = self.directory.join(location);
        if let Some(map) = self.maps.get(&path) {
            return Ok(map.clone());
        }
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        // SAFETY: the map is read only. A set is replaced by renaming, never written in place, so
        // the mapped file keeps its content and length for as long as the map lives.
        let map = unsafe { Mmap::map(&file) }.with_context(|| path.display().to_string())?;
        let map = Arc::new(map);
        self.maps.insert(path, map.clone());
        Ok(map)
    }
}

/// A slice of a mapped file, kept mapped.
pub(super) struct Weights<T> {
    map: Arc<Mmap>,
    range: Range<usize>,
    element: std::marker::PhantomData<T>,
}

impl<T: bytemuck::Pod> Weights<T> {
    fn new(map: Arc<Mmap>, range: Range<usize>) -> Self {
        let element = std::marker::PhantomData;
        Self { map, range, element }
    }

    /// The elements, in the order of the ONNX tensor.
    pub(super) fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[self.range.clone()])
    }
}
