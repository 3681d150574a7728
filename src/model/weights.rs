//! Weights where they lie: ONNX initializers as slices of the mapped file; float16 behind a `Cast`, and
//! int8 filters behind a `DequantizeLinear`, are widened when they are asked for. Or rounded to bfloat16, in
//! memory of their own.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapMut, UncheckedAdvice};
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::bfloat16;

/// What a graph's nodes are made of, by the name of what they give.
pub(super) struct Parts<'a> {
    pub(super) initializers: HashMap<&'a str, &'a TensorProto>,
    pub(super) producers: HashMap<&'a str, &'a NodeProto>,
}

impl<'a> Parts<'a> {
    pub(super) fn of(graph: &'a GraphProto) -> Self {
        let initializers = graph.initializer.iter().map(|t| (t.name.as_str(), t));
        let producers = (graph.node.iter())
            .flat_map(|node| node.output.iter().map(move |name| (name.as_str(), node)));
        Self { initializers: initializers.collect(), producers: producers.collect() }
    }

    /// The initializer that holds the weights of that name, whether a node widens them or not.
    pub(super) fn filters(&self, name: &str) -> Option<&'a TensorProto> {
        let stored = self.initializers.get(name).copied();
        stored.or_else(|| {
            let node = self.producers.get(name)?;
            self.initializers.get(node.input.first()?.as_str()).copied()
        })
    }

    /// The float32 weights of that name and their shape, if they can be used in place or are float16
    /// or int8 ones that a node widens.
    pub(super) fn floats(
        &self,
        name: &str,
        files: &mut Files,
    ) -> TractResult<Option<(Floats, &'a [i64])>> {
        if let Some(&tensor) = self.initializers.get(name) {
            let weights = files.tensor::<f32>(tensor, DataType::Float)?;
            return Ok(weights.map(|weights| (Floats::Single(weights), &*tensor.dims)));
        }
        let Some(node) = self.producers.get(name) else { return Ok(None) };
        let mut stored =
            node.input.iter().map(|name| self.initializers.get(name.as_str()).copied());
        let only = |name: &str, value: i64| {
            node.attribute.iter().all(|a: &AttributeProto| a.name == name && a.i == value)
        };
        let (tensor, weights) = match (&*node.op_type, stored.next().flatten(), stored.next()) {
            ("Cast", Some(tensor), None) if only("to", DataType::Float as i64) => {
                let halves = files.tensor::<u16>(tensor, DataType::Float16)?;
                (tensor, halves.map(Floats::Half))
            }
            ("DequantizeLinear", Some(tensor), Some(Some(scales)))
                if node.input.len() == 2
                    && only("axis", 0)
                    && Some(&*scales.dims) == tensor.dims.get(..1) =>
            {
                let filters = files.tensor::<i8>(tensor, DataType::Int8)?;
                let scales = files.tensor::<f32>(scales, DataType::Float)?;
                (
                    tensor,
                    filters.zip(scales).map(|(filters, scales)| Floats::Scaled(filters, scales)),
                )
            }
            _ => return Ok(None),
        };
        Ok(weights.map(|weights| (weights, &*tensor.dims)))
    }
}

/// float32 weights, as the file holds them.
pub(super) enum Floats {
    Single(Weights<f32>),
    /// float16.
    Half(Weights<u16>),
    /// int8 filters, and for each its scale.
    Scaled(Weights<i8>, Weights<f32>),
}

impl Floats {
    /// The elements, in the order of the ONNX tensor.
    pub(super) fn numbers(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Single(weights) => Cow::Borrowed(weights.as_slice()),
            Self::Half(halves) => halves.as_slice().iter().map(widen).collect(),
            Self::Scaled(filters, scales) => {
                scaled(filters.as_slice(), scales.as_slice()).collect()
            }
        }
    }

    /// Rounds the elements from number `first` on to bfloat16, as bits, as many as `to` has room for. What is
    /// read of a file for it does not stay in memory.
    pub(super) fn round(&self, first: usize, to: &mut [u16]) {
        match self {
            Self::Single(weights) => {
                weights.read_once(first, to, |value| bfloat16::to_bits(*value));
            }
            Self::Half(halves) => {
                halves.read_once(first, to, |bits| bfloat16::to_bits(widen(bits)));
            }
            Self::Scaled(filters, scales) => {
                let numbers = scaled(filters.as_slice(), scales.as_slice()).skip(first);
                to.iter_mut().zip(numbers).for_each(|(to, value)| *to = bfloat16::to_bits(value));
            }
        }
    }

    /// Weights that are ready to be used again and again.
    pub(super) fn ready(self) -> Weights<f32> {
        match self {
            Self::Single(weights) => weights,
            other => Weights::Widened(other.numbers().into_owned()),
        }
    }

    /// The initializers that they come from.
    pub(super) fn places(&self) -> Vec<Place> {
        let places = match self {
            Self::Single(weights) => [weights.place(), None],
            Self::Half(halves) => [halves.place(), None],
            Self::Scaled(filters, scales) => [filters.place(), scales.place()],
        };
        places.into_iter().flatten().collect()
    }
}

/// The number of a float16's bits.
fn widen(bits: &u16) -> f32 {
    f16::from_bits(*bits).to_f32()
}

/// The numbers of int8 filters, each with a scale.
fn scaled(filters: &[i8], scales: &[f32]) -> impl Iterator<Item = f32> {
    let rows = filters.chunks((filters.len() / scales.len().max(1)).max(1));
    rows.zip(scales).flat_map(|(row, scale)| row.iter().map(move |q| f32::from(*q) * scale))
}

/// The weight files of one model set, each mapped once.
pub(super) struct Files<'a> {
    directory: &'a Path,
    maps: HashMap<PathBuf, Arc<Mapped>>,
}

pub(super) struct Mapped {
    bytes: Mmap,
    content: Content,
}

/// Which bytes a file holds, for as long as files are replaced and not written in place: device,
/// inode, time of change.
type Content = (u64, u64, i64, i64);

/// Where an initializer begins. Weights of the same places are the same weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) file: Content,
    pub(super) offset: usize,
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
        let length = bytes_of::<T>(&tensor.dims)
            .with_context(|| format!("'{}' cannot be {:?}", tensor.name, tensor.dims))?;
        let range = offset..offset.saturating_add(length);
        let bytes = map.bytes.get(range.clone()).with_context(|| {
            let bytes = map.bytes.len();
            format!("'{}' lies at {range:?} of {location}, which has {bytes} bytes", tensor.name)
        })?;
        let aligned = bytemuck::try_cast_slice::<u8, T>(bytes).is_ok();
        Ok(aligned.then(|| Weights::Mapped(map, range)))
    }

    fn map(&mut self, location: &str) -> TractResult<Arc<Mapped>> {
        let plain = Path::new(location).file_name() == Some(location.as_ref());
        ensure!(plain, "external data location '{location}' is not the name of a file in the set");
        let path = self.directory.join(location);
        if let Some(map) = self.maps.get(&path) {
            return Ok(map.clone());
        }
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        // SAFETY: the map is read only. A set is replaced by renaming, never written in place, so
        // the mapped file keeps its content and length for as long as the map lives.
        let bytes = unsafe { Mmap::map(&file) }.with_context(|| path.display().to_string())?;
        let status = file.metadata()?;
        let content = (status.dev(), status.ino(), status.mtime(), status.mtime_nsec());
        let map = Arc::new(Mapped { bytes, content });
        self.maps.insert(path, map.clone());
        Ok(map)
    }
}

/// What an initializer takes in the set's files, or in the graph.
pub(super) fn stored_bytes(tensor: &TensorProto) -> u64 {
    let bytes = match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float | DataType::Int32 | DataType::Uint32) => bytes_of::<f32>(&tensor.dims),
        Ok(DataType::Int64 | DataType::Double) => bytes_of::<f64>(&tensor.dims),
        Ok(DataType::Float16) => bytes_of::<u16>(&tensor.dims),
        _ => bytes_of::<u8>(&tensor.dims),
    };
    bytes.unwrap_or(0) as u64
}

/// Bytes of a tensor, if it has a size and this machine has addresses for it.
fn bytes_of<T>(dims: &[i64]) -> Option<usize> {
    let mut dims = dims.iter().map(|&dim| usize::try_from(dim).ok());
    dims.try_fold(size_of::<T>(), |bytes, dim| bytes.checked_mul(dim?))
}

/// Weights that are ready to be used.
pub(super) enum Weights<T> {
    /// A slice of a mapped file, kept mapped.
    Mapped(Arc<Mapped>, Range<usize>),
    /// Numbers that the file holds in another form.
    Widened(Vec<T>),
}

impl<T: bytemuck::Pod> Weights<T> {
    /// The elements, in the order of the ONNX tensor.
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::Mapped(map, range) => bytemuck::cast_slice(&map.bytes[range.clone()]),
            Self::Widened(values) => values,
        }
    }

    /// Converts the elements from number `first` on into all of `to`, and lets go of them: if they are needed
    /// again, they are read from the file again.
    fn read_once<U>(&self, first: usize, to: &mut [U], convert: impl Fn(&T) -> U) {
        for (to, value) in to.iter_mut().zip(&self.as_slice()[first..]) {
            *to = convert(value);
        }
        if let Self::Mapped(map, range) = self {
            let (from, bytes) = (range.start + first * size_of::<T>(), to.len() * size_of::<T>());
            // SAFETY: a map of a file that is read only: pages that come back are what they were.
            unsafe { map.bytes.unchecked_advise_range(UncheckedAdvice::DontNeed, from, bytes) }
                .ok();
        }
    }

    /// Where they lie, if they are used in place.
    fn place(&self) -> Option<Place> {
        match self {
            Self::Mapped(map, range) => Some(Place { file: map.content, offset: range.start }),
            Self::Widened(_) => None,
        }
    }
}

/// Weights rounded to bfloat16, as bits, in memory of their own.
pub(super) struct Rounded(MmapMut);

impl Rounded {
    /// Zeros, on huge pages if Linux has them: pages come into being when they are written, and that takes
    /// longer for many small ones than to round what goes there.
    pub(super) fn zeroed(length: usize) -> Self {
        let map = MmapMut::map_anon(length * size_of::<u16>());
        let map = map.expect("there is memory for them");
        map.advise(Advice::HugePage).ok();
        Self(map)
    }

    /// The bits of each.
    pub(super) fn as_slice(&self) -> &[u16] {
        bytemuck::cast_slice(&self.0)
    }

    /// The same, to be written.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u16] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_with_more_bytes_than_addresses_is_none() {
        let check = |dims: &[i64], expected| {
            assert_eq!(bytes_of::<f32>(dims), expected, "{dims:?}");
        };
        check(&[], Some(4));
        check(&[64, 3, 3, 3], Some(64 * 27 * 4));
        check(&[1 << 32, 1 << 32], None);
        check(&[isize::MAX as i64, 3], None);
        check(&[usize::MAX as i64], None);
        check(&[-1, -4], None);
    }
}
