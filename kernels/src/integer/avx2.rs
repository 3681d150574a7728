//! Sixteen lanes as AVX2 registers: one of int16, two of int32.

use super::{Dot, Sums, Words};
use crate::vector::{
    Vector,
    avx2::{Avx2, dot},
};
use std::arch::x86_64::*;

/// One 256-bit register of int16. Constructed only where AVX2 is enabled; that is the reason
/// of every operation on it, as on the other types here.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Words(__m256i);

impl Words for Avx2Words {
    #[inline(always)]
    unsafe fn splat(value: i16) -> Self {
        // SAFETY: the caller has AVX2.
        Avx2Words(unsafe { _mm256_set1_epi16(value) })
    }

    #[inline(always)]
    unsafe fn widen(from: *const u8) -> Self {
        // SAFETY: the caller has AVX2 and gives sixteen readable values.
        Avx2Words(unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i16) {
        // SAFETY: the value proves AVX2; the caller gives room for sixteen values.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        Avx2Words(unsafe { _mm256_add_epi16(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        Avx2Words(unsafe { _mm256_sub_epi16(self.0, other.0) })
    }
}

/// Two 256-bit registers of int32.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Sums(__m256i, __m256i);

impl Sums for Avx2Sums {
    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        // SAFETY: the caller has AVX2.
        unsafe { Avx2Sums(_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller has AVX2 and gives sixteen readable values.
        unsafe { Avx2Sums(_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the value proves AVX2; the caller gives room for sixteen values.
        unsafe {
            _mm256_storeu_si256(to.cast(), self.0);
            _mm256_storeu_si256(to.add(8).cast(), self.1);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2Sums(_mm256_add_epi32(self.0, other.0), _mm256_add_epi32(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2Sums(_mm256_sub_epi32(self.0, other.0), _mm256_sub_epi32(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe {
            Avx2Sums(_mm256_mullo_epi32(self.0, other.0), _mm256_mullo_epi32(self.1, other.1))
        }
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2Sums(_mm256_slli_epi32::<N>(self.0), _mm256_slli_epi32::<N>(self.1)) }
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2Sums(_mm256_srai_epi32::<N>(self.0), _mm256_srai_epi32::<N>(self.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2Sums(_mm256_max_epi32(self.0, other.0), _mm256_max_epi32(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn store_scaled(self, scales: *const f32, to: *mut u8) {
        // SAFETY: the value proves AVX2; the caller gives sixteen scales and room for sixteen
        // bytes. Lanes are in 0..=255, so that packing saturates nothing; both packs work on
        // halves of 128 bits, whose order is put right between them.
        unsafe {
            let (zero, most) = (_mm256_setzero_ps(), _mm256_set1_ps(255.0));
            let low = _mm256_mul_ps(_mm256_cvtepi32_ps(self.0), _mm256_loadu_ps(scales));
            let high = _mm256_mul_ps(_mm256_cvtepi32_ps(self.1), _mm256_loadu_ps(scales.add(8)));
            let low = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(low, zero), most));
            let high = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(high, zero), most));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), _mm_packus_epi16(low, high));
        }
    }

    #[inline(always)]
    fn prefetch(at: *const i16) {
        Avx2::prefetch(at.cast());
    }

    #[inline(always)]
    fn prefetch_near(at: *const i16) {
        Avx2::prefetch_near(at.cast());
    }
}

/// `vpmaddwd`: pairs of int16, exact unless both products are of the lowest int16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Pairs(__m256i, __m256i);

impl Dot for Avx2Pairs {
    const GROUP: usize = 2;
    const OFFSET: i32 = 0;
    type Weight = i16;
    type Input = i16;
    type Sums = Avx2Sums;
    type Inputs = __m256i;

    #[inline(always)]
    unsafe fn weights(from: *const i16) -> Self {
        // SAFETY: the caller has AVX2 and gives 32 readable values.
        unsafe {
            Avx2Pairs(_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()))
        }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const i16) -> __m256i {
        // SAFETY: the caller has AVX2 and gives two readable values.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn add_to(self, sums: Avx2Sums, inputs: __m256i) -> Avx2Sums {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2Sums(dot(self.0, inputs, sums.0), dot(self.1, inputs, sums.1)) }
    }
}
