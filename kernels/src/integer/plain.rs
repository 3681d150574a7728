//! Sixteen lanes as an array: the twin of the others, for every machine.

use super::{Dot, Sums, Words};
use crate::vector::LANES;

/// An array of int16.
#[derive(Clone, Copy)]
pub(crate) struct PlainWords([i16; LANES]);

impl PlainWords {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(i16, i16) -> i16) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        PlainWords(lanes)
    }
}

impl Words for PlainWords {
    #[inline(always)]
    unsafe fn splat(value: i16) -> Self {
        PlainWords([value; LANES])
    }

    #[inline(always)]
    unsafe fn widen(from: *const u8) -> Self {
        // SAFETY: the caller gives sixteen readable values.
        PlainWords(unsafe { from.cast::<[u8; LANES]>().read_unaligned() }.map(i16::from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i16) {
        // SAFETY: the caller gives room for sixteen values.
        unsafe { to.cast::<[i16; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, i16::wrapping_add)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, i16::wrapping_sub)
    }
}

/// An array of int32.
#[derive(Clone, Copy)]
pub(crate) struct PlainSums([i32; LANES]);

impl PlainSums {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(i32, i32) -> i32) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        PlainSums(lanes)
    }
}

impl Sums for PlainSums {
    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        PlainSums([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller gives sixteen readable values.
        PlainSums(unsafe { from.cast::<[i32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller gives room for sixteen values.
        unsafe { to.cast::<[i32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_add)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_sub)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_mul)
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        PlainSums(self.0.map(|lane| lane << N))
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        PlainSums(self.0.map(|lane| lane >> N))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, i32::max)
    }

    #[inline(always)]
    unsafe fn store_scaled(self, scales: *const f32, to: *mut u8) {
        // SAFETY: the caller gives sixteen scales.
        let scales = unsafe { scales.cast::<[f32; LANES]>().read_unaligned() };
        let mut bytes = [0; LANES];
        for ((byte, sum), scale) in bytes.iter_mut().zip(self.0).zip(scales) {
            *byte = crate::quantized::nearest_byte(sum as f32 * scale);
        }
        // SAFETY: the caller gives room for sixteen bytes.
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    fn prefetch(_at: *const i16) {}

    #[inline(always)]
    fn prefetch_near(_at: *const i16) {}
}

/// A weight and an input at a time.
#[derive(Clone, Copy)]
pub(crate) struct PlainDot([i16; LANES]);

impl Dot for PlainDot {
    const GROUP: usize = 1;
    const OFFSET: i32 = 0;
    type Weight = i16;
    type Input = i16;
    type Sums = PlainSums;
    type Inputs = i16;

    #[inline(always)]
    unsafe fn weights(from: *const i16) -> Self {
        // SAFETY: the caller gives sixteen readable values.
        PlainDot(unsafe { from.cast::<[i16; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn inputs(from: *const i16) -> i16 {
        // SAFETY: the caller gives one readable value.
        unsafe { from.read() }
    }

    #[inline(always)]
    fn add_to(self, mut sums: PlainSums, input: i16) -> PlainSums {
        for (sum, weight) in sums.0.iter_mut().zip(self.0) {
            *sum = sum.wrapping_add(i32::from(weight) * i32::from(input));
        }
        sums
    }
}
