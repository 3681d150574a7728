//! Sixteen int32 lanes as one AVX-512 register; sixteen int16 lanes are AVX2's.

use super::{Dot, Sums};
use crate::vector::Vector;
use crate::vector::avx512::{Avx512, dot};
use std::arch::x86_64::*;

/// One 512-bit register of int32. Constructed only where AVX-512 F, BW, DQ and VL are enabled;
/// that is the reason of every operation on it, as on the other types here.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Sums(__m512i);

impl Sums for Avx512Sums {
    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        // SAFETY: the caller has AVX-512.
        Avx512Sums(unsafe { _mm512_set1_epi32(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller has AVX-512 and gives sixteen readable values.
        Avx512Sums(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the value proves AVX-512; the caller gives room for sixteen values.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_sub_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_mullo_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(N)) })
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_sra_epi32(self.0, _mm_cvtsi32_si128(N)) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_max_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn store_scaled(self, scales: *const f32, to: *mut u8) {
        // SAFETY: the value proves AVX-512; the caller gives sixteen scales and room for
        // sixteen bytes.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(self.0), _mm512_loadu_ps(scales));
            let above = _mm512_max_ps(scaled, _mm512_setzero_ps());
            let bytes = _mm512_cvtps_epi32(_mm512_min_ps(above, _mm512_set1_ps(255.0)));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(bytes));
        }
    }

    #[inline(always)]
    fn prefetch(at: *const i16) {
        Avx512::prefetch(at.cast());
    }

    #[inline(always)]
    fn prefetch_near(at: *const i16) {
        Avx512::prefetch_near(at.cast());
    }
}

/// `vpmaddwd` and an addition: pairs of int16, exact unless both products are of the lowest
/// int16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Pairs(__m512i);

/// `vpdpwssd` of VNNI: the same in one instruction.
#[derive(Clone, Copy)]
pub(crate) struct VnniPairs(__m512i);

/// `vpdpbusd` of VNNI: four unsigned bytes times four signed ones.
#[derive(Clone, Copy)]
pub(crate) struct VnniQuads(__m512i);

impl Dot for Avx512Pairs {
    const GROUP: usize = 2;
    const OFFSET: i32 = 0;
    type Weight = i16;
    type Input = i16;
    type Sums = Avx512Sums;
    type Inputs = __m512i;

    #[inline(always)]
    unsafe fn weights(from: *const i16) -> Self {
        // SAFETY: the caller has AVX-512 and gives 32 readable values.
        Avx512Pairs(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn inputs(from: *const i16) -> __m512i {
        // SAFETY: the caller has AVX-512 and gives two readable values.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn add_to(self, sums: Avx512Sums, inputs: __m512i) -> Avx512Sums {
        // SAFETY: the value proves AVX-512.
        Avx512Sums(unsafe { _mm512_add_epi32(sums.0, _mm512_madd_epi16(self.0, inputs)) })
    }
}

impl Dot for VnniPairs {
    const GROUP: usize = 2;
    const OFFSET: i32 = 0;
    type Weight = i16;
    type Input = i16;
    type Sums = Avx512Sums;
    type Inputs = __m512i;

    #[inline(always)]
    unsafe fn weights(from: *const i16) -> Self {
        // SAFETY: the caller has VNNI and gives 32 readable values.
        VnniPairs(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn inputs(from: *const i16) -> __m512i {
        // SAFETY: the caller has VNNI and gives two readable values.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn add_to(self, sums: Avx512Sums, inputs: __m512i) -> Avx512Sums {
        // SAFETY: the value proves VNNI.
        Avx512Sums(unsafe { dot(self.0, inputs, sums.0) })
    }
}

impl Dot for VnniQuads {
    const GROUP: usize = 4;
    const OFFSET: i32 = 0;
    type Weight = i8;
    type Input = u8;
    type Sums = Avx512Sums;
    type Inputs = __m512i;

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        // SAFETY: the caller has VNNI and gives 64 readable values.
        VnniQuads(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> __m512i {
        // SAFETY: the caller has VNNI and gives four readable values.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn add_to(self, sums: Avx512Sums, inputs: __m512i) -> Avx512Sums {
        // SAFETY: the value proves VNNI.
        Avx512Sums(unsafe { _mm512_dpbusd_epi32(sums.0, inputs, self.0) })
    }
}
