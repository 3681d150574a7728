//! Sixteen lanes as one AVX-512 register.

use super::{Int16, Narrow, Pairs, Vector};
use std::arch::x86_64::*;

/// One 512-bit register. Constructed only where AVX-512 F, BW, DQ and VL are
/// enabled; that is the reason of every operation on it.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Vector for Avx512 {
    type Quad = *const f32;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX-512.
        Avx512(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has AVX-512.
        Avx512(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has AVX-512 and gives sixteen readable values.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller has AVX-512 and gives sixteen readable values.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller has AVX-512 and gives sixteen readable values.
        Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the value proves AVX-512; the caller gives room for sixteen values.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: the value proves AVX-512.
        Avx512(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
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
        // SAFETY: the value proves AVX-512.
        Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the value proves AVX-512.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    fn larger_magnitude(self, other: Self) -> Self {
        // SAFETY: the value proves AVX-512. Without their sign, floats are ordered as
        // integers.
        unsafe {
            let other = _mm512_castps_si512(_mm512_abs_ps(other.0));
            Avx512(_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(self.0), other)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the value proves AVX-512.
        f32::from_bits(unsafe { _mm512_reduce_max_epi32(_mm512_castps_si512(self.0)) } as u32)
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

/// Needs VNNI besides: pairs are only made where it is enabled, which is the reason of
/// every operation on them.
impl Pairs<Int16> for Avx512 {
    type Sums = __m512i;
    type Weights = __m512i;
    type Inputs = *const f32;

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        // SAFETY: the caller has AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn weights(from: *const f32) -> Self::Weights {
        // SAFETY: the caller has AVX-512 and gives sixteen readable elements.
        unsafe { _mm512_loadu_si512(from.cast()) }
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
        // SAFETY: the values prove AVX-512 with VNNI; the inputs are four elements.
        unsafe {
            let pair = _mm512_set1_epi32(inputs.add(L).cast::<i32>().read_unaligned());
            dot(weights, pair, sums)
        }
    }

    #[inline(always)]
    fn of_sums(sums: Self::Sums) -> Self {
        // SAFETY: the values prove AVX-512.
        Avx512(unsafe { _mm512_cvtepi32_ps(sums) })
    }

    #[inline(always)]
    unsafe fn store_rounded(self, to: *mut u16) {
        // SAFETY: the value proves AVX-512; the caller gives room for sixteen values.
        unsafe {
            _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(self.0)));
        }
    }
}

impl Narrow for Avx512 {
    #[inline(always)]
    unsafe fn store_bfloat16(self, to: *mut u16) {
        // SAFETY: the caller has AVX-512 with BF16 and gives room for sixteen values.
        unsafe { to.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(self.0)) }
    }
}

/// `_mm512_dpwssd_epi32`, which LLVM 22 takes apart into a multiplication and an addition,
/// in order to shorten the chain of sums; that is two instructions for one.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
pub(crate) fn dot(pairs: __m512i, factors: __m512i, mut sum: __m512i) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {0}, {1}, {2}",
            inout(zmm_reg) sum,
            in(zmm_reg) pairs,
            in(zmm_reg) factors,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
