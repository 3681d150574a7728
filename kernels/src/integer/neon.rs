//! Sixteen lanes as NEON registers: two of int16, four of int32.

use super::{Dot, Sums, Words};
use crate::vector::{Vector, neon::Neon};
use std::arch::aarch64::*;

/// Two 128-bit registers of int16. Constructed only where NEON is enabled; that is the reason
/// of every operation on it, as on the other types here.
#[derive(Clone, Copy)]
pub(crate) struct NeonWords(int16x8_t, int16x8_t);

impl Words for NeonWords {
    #[inline(always)]
    unsafe fn splat(value: i16) -> Self {
        // SAFETY: the caller has NEON.
        unsafe { NeonWords(vdupq_n_s16(value), vdupq_n_s16(value)) }
    }

    #[inline(always)]
    unsafe fn widen(from: *const u8) -> Self {
        // SAFETY: the caller has NEON and gives sixteen readable values.
        unsafe {
            let bytes = vld1q_u8(from);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            NeonWords(vreinterpretq_s16_u16(low), vreinterpretq_s16_u16(high))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i16) {
        // SAFETY: the value proves NEON; the caller gives room for sixteen values.
        unsafe {
            vst1q_s16(to, self.0);
            vst1q_s16(to.add(8), self.1);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        unsafe { NeonWords(vaddq_s16(self.0, other.0), vaddq_s16(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        unsafe { NeonWords(vsubq_s16(self.0, other.0), vsubq_s16(self.1, other.1)) }
    }
}

/// Four 128-bit registers of int32.
#[derive(Clone, Copy)]
pub(crate) struct NeonSums([int32x4_t; 4]);

impl NeonSums {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(int32x4_t, int32x4_t) -> int32x4_t) -> Self {
        let ([a, b, c, d], [e, g, h, i]) = (self.0, other.0);
        NeonSums([f(a, e), f(b, g), f(c, h), f(d, i)])
    }
}

impl Sums for NeonSums {
    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        // SAFETY: the caller has NEON.
        NeonSums([unsafe { vdupq_n_s32(value) }; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller has NEON and gives sixteen readable values.
        unsafe {
            NeonSums([
                vld1q_s32(from),
                vld1q_s32(from.add(4)),
                vld1q_s32(from.add(8)),
                vld1q_s32(from.add(12)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        let [a, b, c, d] = self.0;
        // SAFETY: the value proves NEON; the caller gives room for sixteen values.
        unsafe {
            vst1q_s32(to, a);
            vst1q_s32(to.add(4), b);
            vst1q_s32(to.add(8), c);
            vst1q_s32(to.add(12), d);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vaddq_s32(a, b) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vsubq_s32(a, b) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vmulq_s32(a, b) })
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(self, |a, _| unsafe { vshlq_n_s32::<N>(a) })
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(self, |a, _| unsafe { vshrq_n_s32::<N>(a) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vmaxq_s32(a, b) })
    }

    #[inline(always)]
    unsafe fn store_scaled(self, scales: *const f32, to: *mut u8) {
        let [a, b, c, d] = self.0;
        // SAFETY: the value proves NEON; the caller gives sixteen scales and room for sixteen
        // bytes. Conversion and narrowing saturate.
        unsafe {
            let a = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(a), vld1q_f32(scales)));
            let b = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(b), vld1q_f32(scales.add(4))));
            let c = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(c), vld1q_f32(scales.add(8))));
            let d = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(d), vld1q_f32(scales.add(12))));
            let low = vqmovun_high_s32(vqmovun_s32(a), b);
            let high = vqmovun_high_s32(vqmovun_s32(c), d);
            vst1q_u8(to, vqmovn_high_u16(vqmovn_u16(low), high));
        }
    }

    #[inline(always)]
    fn prefetch(at: *const i16) {
        Neon::prefetch(at.cast());
    }

    #[inline(always)]
    fn prefetch_near(at: *const i16) {
        Neon::prefetch_near(at.cast());
    }
}

/// `smlal`: one int16 at a time.
#[derive(Clone, Copy)]
pub(crate) struct NeonLong(int16x8_t, int16x8_t);

impl Dot for NeonLong {
    const GROUP: usize = 1;
    const OFFSET: i32 = 0;
    type Weight = i16;
    type Input = i16;
    type Sums = NeonSums;
    type Inputs = int16x8_t;

    #[inline(always)]
    unsafe fn weights(from: *const i16) -> Self {
        // SAFETY: the caller has NEON and gives sixteen readable values.
        unsafe { NeonLong(vld1q_s16(from), vld1q_s16(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const i16) -> int16x8_t {
        // SAFETY: the caller has NEON and gives one readable value.
        unsafe { vld1q_dup_s16(from) }
    }

    #[inline(always)]
    fn add_to(self, sums: NeonSums, input: int16x8_t) -> NeonSums {
        let [a, b, c, d] = sums.0;
        // SAFETY: the value proves NEON.
        unsafe {
            let half = vget_low_s16(input);
            NeonSums([
                vmlal_s16(a, vget_low_s16(self.0), half),
                vmlal_high_s16(b, self.0, input),
                vmlal_s16(c, vget_low_s16(self.1), half),
                vmlal_high_s16(d, self.1, input),
            ])
        }
    }
}

/// `sdot`: four signed bytes times four. By assembly, because its intrinsic is not stable; inputs
/// are unsigned and stored as 128 less. It takes them from one element of a register, so that one load
/// is enough for four pixels.
#[derive(Clone, Copy)]
pub(crate) struct NeonQuads([int8x16_t; 4]);

impl NeonQuads {
    /// Adds to `sums` the products of `weights` with element `LANE` of `inputs`.
    #[inline(always)]
    fn add_lane<const P: usize, const LANE: usize>(
        weights: &[Self; P],
        sums: &mut [NeonSums; P],
        inputs: int8x16_t,
    ) {
        for (sums, weights) in sums.iter_mut().zip(weights) {
            for (sum, weights) in sums.0.iter_mut().zip(weights.0) {
                // SAFETY: the value proves SDOT, which reads and writes these registers only.
                unsafe {
                    std::arch::asm!(
                        "sdot {sum:v}.4s, {weights:v}.16b, {inputs:v}.4b[{lane}]",
                        sum = inout(vreg) *sum,
                        weights = in(vreg) weights,
                        inputs = in(vreg) inputs,
                        lane = const LANE,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
        }
    }
}

impl Dot for NeonQuads {
    const GROUP: usize = 4;
    const OFFSET: i32 = 128;
    type Weight = i8;
    type Input = i8;
    type Sums = NeonSums;
    type Inputs = int8x16_t;

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        // SAFETY: the caller has NEON with SDOT and gives 64 readable values.
        unsafe {
            NeonQuads([
                vld1q_s8(from),
                vld1q_s8(from.add(16)),
                vld1q_s8(from.add(32)),
                vld1q_s8(from.add(48)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const i8) -> int8x16_t {
        // SAFETY: the caller has NEON and gives four readable values.
        unsafe {
            let four = from.cast::<i32>().read_unaligned();
            vreinterpretq_s8_s32(vsetq_lane_s32::<0>(four, vdupq_n_s32(0)))
        }
    }

    #[inline(always)]
    fn add_to(self, sums: NeonSums, inputs: int8x16_t) -> NeonSums {
        let mut sums = [sums];
        Self::add_lane::<1, 0>(&[self], &mut sums, inputs);
        sums[0]
    }

    #[inline(always)]
    unsafe fn add_pixels<const P: usize, const T: usize>(
        weights: &[Self; P],
        sums: &mut [[NeonSums; P]; T],
        from: *const i8,
    ) {
        let four = |pixel: usize| {
            // SAFETY: the weights prove NEON, and the caller has four values for each pixel.
            unsafe { vld1q_s8(from.add(4 * pixel)) }
        };
        let (quads, rest) = sums.as_chunks_mut::<4>();
        for (quad, [a, b, c, d]) in quads.iter_mut().enumerate() {
            let inputs = four(4 * quad);
            Self::add_lane::<P, 0>(weights, a, inputs);
            Self::add_lane::<P, 1>(weights, b, inputs);
            Self::add_lane::<P, 2>(weights, c, inputs);
            Self::add_lane::<P, 3>(weights, d, inputs);
        }
        // Those that are left end the last four pixels.
        match rest {
            [a, b, c] if T > 4 => {
                let inputs = four(T - 4);
                Self::add_lane::<P, 1>(weights, a, inputs);
                Self::add_lane::<P, 2>(weights, b, inputs);
                Self::add_lane::<P, 3>(weights, c, inputs);
            }
            [a, b] if T > 4 => {
                let inputs = four(T - 4);
                Self::add_lane::<P, 2>(weights, a, inputs);
                Self::add_lane::<P, 3>(weights, b, inputs);
            }
            [a] if T > 4 => Self::add_lane::<P, 3>(weights, a, four(T - 4)),
            few => {
                for (pixel, sums) in few.iter_mut().enumerate() {
                    // SAFETY: as for four pixels.
                    let inputs = unsafe { Self::inputs(from.add(4 * pixel)) };
                    Self::add_lane::<P, 0>(weights, sums, inputs);
                }
            }
        }
    }
}
