//! Sixteen lanes as an array. Multiplies and adds round separately: a fused
//! multiply-add without the instruction is a slow library call.

use super::{LANES, Pairs, Vector};

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
    fn prefetch(_at: *const f32) {}

    #[inline(always)]
    fn prefetch_near(_at: *const f32) {}
}

impl Pairs for Plain {
    type Integers = [i32; LANES];

    #[inline(always)]
    unsafe fn no_sums() -> Self::Integers {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn pairs(from: *const f32) -> Self::Integers {
        // SAFETY: the caller gives sixteen readable elements; the read is unaligned.
        unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn pair(from: *const f32) -> Self::Integers {
        // SAFETY: the caller gives a readable element.
        [unsafe { from.cast::<i32>().read_unaligned() }; LANES]
    }

    #[inline(always)]
    fn dot(pairs: Self::Integers, factors: Self::Integers, sum: Self::Integers) -> Self::Integers {
        let halves = |pair: i32| (i32::from(pair as i16), pair >> 16);
        std::array::from_fn(|lane| {
            let ((a, b), (c, d)) = (halves(pairs[lane]), halves(factors[lane]));
            sum[lane].wrapping_add(a * c).wrapping_add(b * d)
        })
    }

    #[inline(always)]
    fn of_sums(sums: Self::Integers) -> Self {
        Plain(sums.map(|sum| sum as f32))
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
    unsafe fn store_rounded(self, to: *mut i16) {
        let rounded = self.0.map(|lane| lane.round_ties_even() as i16);
        // SAFETY: the caller gives room for sixteen values; the write is unaligned.
        unsafe { to.cast::<[i16; LANES]>().write_unaligned(rounded) }
    }
}
