//! Arrays of float32, borrowed from a mapped file where that is possible, owned otherwise.
//!
//! Owns how numbers are bytes, and the widening of half-precision ones. Knows no file and no network.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// How the numbers of a tensor are stored in a file, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Stored {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Types of numbers that are written, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 single precision.
    Float32,
    /// IEEE 754 half precision.
    Float16,
    /// Two's complement, one byte.
    Int8,
    /// Two's complement, four bytes.
    Int32,
}

/// A type that is written.
pub trait Number: Sized {
    /// Its name in graphs.
    const ELEMENT: Element;

    /// The numbers as they are in memory and in files.
    fn bytes(numbers: &[Self]) -> &[u8];
}

impl Number for f32 {
    const ELEMENT: Element = Element::Float32;

    fn bytes(numbers: &[Self]) -> &[u8] {
        bytemuck::cast_slice(numbers)
    }
}

impl Number for i8 {
    const ELEMENT: Element = Element::Int8;

    fn bytes(numbers: &[Self]) -> &[u8] {
        bytemuck::cast_slice(numbers)
    }
}

impl Number for i32 {
    const ELEMENT: Element = Element::Int32;

    fn bytes(numbers: &[Self]) -> &[u8] {
        bytemuck::cast_slice(numbers)
    }
}

impl Number for f16 {
    const ELEMENT: Element = Element::Float16;

    fn bytes(numbers: &[Self]) -> &[u8] {
        bytemuck::cast_slice(numbers.reinterpret_cast())
    }
}

/// The nearest half-precision numbers; what is too large for them becomes the largest.
pub fn narrow(values: &[f32]) -> Vec<f16> {
    values.iter().map(|v| f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))).collect()
}

/// A row-major array that reads as float32 whatever it is stored as.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    shape: Vec<usize>,
    data: Data<'a>,
}

#[derive(Clone, Debug)]
enum Data<'a> {
    Plain(Cow<'a, [f32]>),
    Packed(Stored, &'a [u8]),
}

impl<'a> Tensor<'a> {
    /// An array that owns its numbers.
    ///
    /// # Panics
    /// If there are not as many numbers as `shape` has places.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let data = Data::Plain(Cow::Owned(values));
        Self { shape, data }
    }

    /// An array over bytes of a file, which are copied only when they are read, and float32 at an
    /// aligned address not even then.
    ///
    /// # Panics
    /// If there are not as many bytes as `shape` needs.
    pub fn borrowed(shape: Vec<usize>, stored: Stored, bytes: &'a [u8]) -> Self {
        let length: usize = shape.iter().product();
        assert_eq!(length * stored.size(), bytes.len());
        let data = match (stored, bytemuck::try_cast_slice(bytes)) {
            (Stored::F32, Ok(values)) => Data::Plain(Cow::Borrowed(values)),
            _ => Data::Packed(stored, bytes),
        };
        Self { shape, data }
    }

    /// Length of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the numbers are in memory: equal for tensors that are the same one.
    pub fn address(&self) -> usize {
        match &self.data {
            Data::Plain(values) => values.as_ptr().addr(),
            Data::Packed(_, bytes) => bytes.as_ptr().addr(),
        }
    }

    /// All numbers.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::Plain(values) => Cow::Borrowed(values),
            Data::Packed(stored, bytes) => Cow::Owned(widen(*stored, bytes)),
        }
    }

    /// The numbers in order, `length` at a time, the last piece perhaps shorter. A tensor that is
    /// widened is in memory one piece at a time only.
    ///
    /// # Panics
    /// If `length` is 0.
    pub fn chunks(&self, length: usize) -> impl Iterator<Item = Cow<'_, [f32]>> {
        let (plain, packed): (&[f32], _) = match &self.data {
            Data::Plain(values) => (values, None),
            Data::Packed(stored, bytes) => (&[], Some((*stored, *bytes))),
        };
        let widened = packed.into_iter().flat_map(move |(stored, bytes)| {
            bytes.chunks(length * stored.size()).map(move |piece| Cow::Owned(widen(stored, piece)))
        });
        plain.chunks(length).map(Cow::Borrowed).chain(widened)
    }

    /// The rows of a matrix, or of whatever is seen as one row per outermost index.
    pub fn rows(&self) -> impl Iterator<Item = Cow<'_, [f32]>> {
        self.chunks(self.shape[1..].iter().product())
    }
}

fn widen(stored: Stored, bytes: &[u8]) -> Vec<f32> {
    match stored {
        Stored::F32 => bytemuck::pod_collect_to_vec(bytes),
        Stored::F16 => {
            let bits: Vec<u16> = bytemuck::pod_collect_to_vec(bytes);
            let values: Vec<f16> = bits.into_iter().map(f16::from_bits).collect();
            values.to_f32_vec()
        }
        Stored::Bf16 => {
            let bits: Vec<u16> = bytemuck::pod_collect_to_vec(bytes);
            bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_same_whatever_it_is_stored_as() {
        let expected = [0.5f32, -2.0, 1.0, 0.0, -0.25, 96.0];
        let f32s: Vec<u8> = expected.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s: Vec<u8> =
            (expected.iter()).flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> =
            (expected.iter()).flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        for (stored, bytes) in [(Stored::F32, f32s), (Stored::F16, f16s), (Stored::Bf16, bf16s)] {
            for misaligned in [0, 1] {
                let mut buffer = vec![0u8; 8];
                buffer.truncate(misaligned);
                buffer.extend_from_slice(&bytes);
                let tensor = Tensor::borrowed(vec![2, 3], stored, &buffer[misaligned..]);
                assert_eq!(tensor.values(), &expected[..], "{stored:?} {misaligned}");
                let rows: Vec<_> = tensor.rows().map(Cow::into_owned).collect();
                assert_eq!(rows, [&expected[..3], &expected[3..]], "{stored:?}");
                let pieces: Vec<_> = tensor.chunks(4).map(Cow::into_owned).collect();
                assert_eq!(pieces, [&expected[..4], &expected[4..]], "{stored:?}");
            }
        }
    }
}
