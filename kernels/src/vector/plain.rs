//! Sixteen lanes as an array. Multiplies and adds round separately: a fused
//! multiply-add without the instruction is a slow library call.

use super::{Int16, LANES, Narrow, Pairs, Vector};
use crate::bfloat16;

/// Sixteen lanes of portable Rust.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Plain(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl Vector for Plain {
    type Quad = *const f32;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Plain([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Plain([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives sixteen readable values; the read is unaligned.
        Plain(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller gives sixteen readable values; the read is unaligned.
        Plain(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(bfloat16::of_bits))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller gives sixteen readable values; bytes have no alignment.
        Plain(unsafe { from.cast::<[i8; LANES]>().read() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for sixteen values; the write is unaligned.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        self.mul(factor).add(term)
    }

    #[inline(always)]
    unsafe fn quad(from: *const f32) -> Self::Quad {
        from
    }

    #[inline(always)]
    unsafe fn mul_add_quad<const L: i32>(self, factors: Self::Quad, term: Self) -> Self {
        // SAFETY: the value proves the instruction set; a quad is four elements.
        self.mul_add(unsafe { Self::splat(*factors.add(L as usize)) }, term)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn larger_magnitude(self, other: Self) -> Self {
        self.zip(other, |a, b| f32::from_bits(a.to_bits().max(b.abs().to_bits())))
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        f32::from_bits(self.0.iter().fold(0, |most, lane| most.max(lane.to_bits())))
    }

    #[inline(always)]
    fn prefetch(_at: *const f32) {}

    #[inline(always)]
    fn prefetch_near(_at: *const f32) {}
}

impl Pairs<Int16> for Plain {
    type Sums = [i32; LANES];
    type Weights = [i32; LANES];
    type Inputs = *const f32;

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn weights(from: *const f32) -> Self::Weights {
        // SAFETY: the caller gives sixteen readable elements; the read is unaligned.
        unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const f32) -> Self::Inputs {
        from
    }

    #[inline(always)]
    unsafe fn dot<const L: usize>(
        weights: Self::Weights,
        inputs: Self::Inputs,
        sums: Self::Sums,
    ) -> Self::Sums {
        let halves = |pair: i32| (i32::from(pair as i16), pair >> 16);
        // SAFETY: the inputs are four elements.
        let (c, d) = halves(unsafe { inputs.add(L).cast::<i32>().read_unaligned() });
        std::array::from_fn(|lane| {
            let (a, b) = halves(weights[lane]);
            sums[lane].wrapping_add(a * c).wrapping_add(b * d)
        })
    }

    #[inline(always)]
    fn of_sums(sums: Self::Sums) -> Self {
        Plain(sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    unsafe fn store_rounded(self, to: *mut u16) {
        let rounded = self.0.map(|lane| lane.round_ties_even() as i16 as u16);
        // SAFETY: the caller gives room for sixteen values; the write is unaligned.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(rounded) }
    }
}

impl Narrow for Plain {
    #[inline(always)]
    unsafe fn store_bfloat16(self, to: *mut u16) {
        let rounded = self.0.map(bfloat16::to_bits);
        // SAFETY: the caller gives room for sixteen values; the write is unaligned.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(rounded) }
    }
}
