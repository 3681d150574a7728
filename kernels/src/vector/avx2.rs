//! Sixteen lanes as two AVX2 registers.

use super::{Int16, Pairs, Vector};
use std::arch::x86_64::*;

/// Two 256-bit registers. Constructed only where AVX2 and FMA are enabled; that is
/// the reason of every operation on it.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

impl Vector for Avx2 {
    type Quad = *const f32;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX2.
        unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has AVX2.
        unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has AVX2 and gives sixteen readable values.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller has AVX2 and gives sixteen readable values.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller has AVX2 and gives sixteen readable values.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the value proves AVX2; the caller gives room for sixteen values.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2.
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: the value proves AVX2, and FMA with it.
        unsafe {
            Avx2(
                _mm256_fmadd_ps(self.0, factor.0, term.0),
                _mm256_fmadd_ps(self.1, factor.1, term.1),
            )
        }
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
        // SAFETY: the value proves AVX2.
        unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the value proves AVX2.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn larger_magnitude(self, other: Self) -> Self {
        // SAFETY: the value proves AVX2. Without their sign, floats are ordered as integers.
        unsafe {
            let unsigned = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
            let low = _mm256_castps_si256(_mm256_and_ps(other.0, unsigned));
            let high = _mm256_castps_si256(_mm256_and_ps(other.1, unsigned));
            Avx2(
                _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(self.0), low)),
                _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(self.1), high)),
            )
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the value proves AVX2.
        unsafe {
            let (low, high) = (_mm256_castps_si256(self.0), _mm256_castps_si256(self.1));
            let eight = _mm256_max_epi32(low, high);
            let (low, high) = (_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let four = _mm_max_epi32(low, high);
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            let one = _mm_max_epi32(two, _mm_shuffle_epi32::<1>(two));
            f32::from_bits(_mm_cvtsi128_si32(one) as u32)
        }
    }

    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: SSE is part of x86-64, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn prefetch_near(at: *const f32) {
        // SAFETY: SSE is part of x86-64, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

impl Pairs<Int16> for Avx2 {
    type Sums = (__m256i, __m256i);
    type Weights = (__m256i, __m256i);
    type Inputs = *const f32;

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        // SAFETY: the caller has AVX2.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const f32) -> Self::Weights {
        // SAFETY: the caller has AVX2 and gives sixteen readable elements.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())) }
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
        // SAFETY: the values prove AVX2; the inputs are four elements.
        unsafe {
            let pair = _mm256_set1_epi32(inputs.add(L).cast::<i32>().read_unaligned());
            (dot(weights.0, pair, sums.0), dot(weights.1, pair, sums.1))
        }
    }

    #[inline(always)]
    fn of_sums(sums: Self::Sums) -> Self {
        // SAFETY: the values prove AVX2.
        unsafe { Avx2(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
    }

    #[inline(always)]
    unsafe fn store_rounded(self, to: *mut u16) {
        // SAFETY: the value proves AVX2; the caller gives room for sixteen values.
        unsafe {
            let mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed));
        }
    }
}

/// Pairs of int16 times pairs, added up and added to int32. LLVM would gather terms before it adds
/// them to the sums, for which there are no registers.
#[target_feature(enable = "avx,avx2")]
#[inline]
pub(crate) fn dot(pairs: __m256i, factors: __m256i, mut sum: __m256i) -> __m256i {
    // SAFETY: registers only.
    unsafe {
        std::arch::asm!(
            "vpmaddwd {3}, {1}, {2}",
            "vpaddd {0}, {0}, {3}",
            inout(ymm_reg) sum,
            in(ymm_reg) pairs,
            in(ymm_reg) factors,
            out(ymm_reg) _,
            options(nostack, preserves_flags),
        );
    }
    sum
}
