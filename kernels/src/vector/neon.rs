//! Sixteen lanes as four NEON registers.

use super::{Float16, Pairs, Vector};
use std::arch::aarch64::*;
use std::arch::asm;

/// Four 128-bit registers. Constructed only where NEON is enabled; that is the
/// reason of every operation on it.
#[derive(Clone, Copy)]
pub(crate) struct Neon(pub(crate) [float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        let ([a, b, c, d], [e, g, h, i]) = (self.0, other.0);
        Neon([f(a, e), f(b, g), f(c, h), f(d, i)])
    }
}

impl Vector for Neon {
    type Quad = float32x4_t;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has NEON.
        unsafe { Self::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has NEON.
        Neon([unsafe { vdupq_n_f32(value) }; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has NEON and gives sixteen readable values.
        unsafe {
            Neon([
                vld1q_f32(from),
                vld1q_f32(from.add(4)),
                vld1q_f32(from.add(8)),
                vld1q_f32(from.add(12)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller has NEON and gives sixteen readable values.
        unsafe {
            let (low, high) = (vld1q_u16(from), vld1q_u16(from.add(8)));
            Neon([
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller has NEON and gives sixteen readable values.
        unsafe {
            let bytes = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Neon([
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the value proves NEON; the caller gives room for sixteen values.
        unsafe {
            vst1q_f32(to, self.0[0]);
            vst1q_f32(to.add(4), self.0[1]);
            vst1q_f32(to.add(8), self.0[2]);
            vst1q_f32(to.add(12), self.0[3]);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        let ([a, b, c, d], [e, g, h, i], [j, k, l, m]) = (self.0, factor.0, term.0);
        // SAFETY: the value proves NEON.
        unsafe {
            Neon([vfmaq_f32(j, a, e), vfmaq_f32(k, b, g), vfmaq_f32(l, c, h), vfmaq_f32(m, d, i)])
        }
    }

    #[inline(always)]
    unsafe fn quad(from: *const f32) -> Self::Quad {
        // SAFETY: the caller has NEON and gives four readable values.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn mul_add_quad<const L: i32>(self, factors: Self::Quad, term: Self) -> Self {
        let ([a, b, c, d], [j, k, l, m]) = (self.0, term.0);
        // SAFETY: the value proves NEON.
        unsafe {
            Neon([
                vfmaq_laneq_f32::<L>(j, a, factors),
                vfmaq_laneq_f32::<L>(k, b, factors),
                vfmaq_laneq_f32::<L>(l, c, factors),
                vfmaq_laneq_f32::<L>(m, d, factors),
            ])
        }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the value proves NEON.
        self.zip(other, |a, b| unsafe { vmaxq_f32(a, b) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        // SAFETY: the value proves NEON.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) }
    }

    #[inline(always)]
    fn larger_magnitude(self, other: Self) -> Self {
        // SAFETY: the value proves NEON. Without their sign, floats are ordered as integers.
        self.zip(other, |a, b| unsafe {
            let (a, b) = (vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(vabsq_f32(b)));
            vreinterpretq_f32_u32(vmaxq_u32(a, b))
        })
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let [a, b, c, d] = self.0;
        // SAFETY: the value proves NEON.
        unsafe {
            let (a, b) = (vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b));
            let (c, d) = (vreinterpretq_u32_f32(c), vreinterpretq_u32_f32(d));
            f32::from_bits(vmaxvq_u32(vmaxq_u32(vmaxq_u32(a, b), vmaxq_u32(c, d))))
        }
    }

    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: PRFM is part of every aarch64, never faults and changes no state.
        unsafe {
            asm!("prfm pldl2keep, [{0}]", in(reg) at, options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    fn prefetch_near(at: *const f32) {
        // SAFETY: PRFM is part of every aarch64, never faults and changes no state.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, readonly, preserves_flags));
        }
    }
}

/// Needs fp16 arithmetic besides: pairs are only made where it is enabled, which is the reason of
/// every operation on them. By assembly, because float16 is no stable type.
impl Pairs<Float16> for Neon {
    type Sums = [uint16x8_t; 2];
    /// Sixteen of the first channel, sixteen of the second.
    type Weights = [uint16x8_t; 4];
    type Inputs = uint16x8_t;

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        // SAFETY: the caller has NEON.
        unsafe { [vdupq_n_u16(0), vdupq_n_u16(0)] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const f32) -> Self::Weights {
        // SAFETY: the caller has NEON and gives sixteen readable elements.
        unsafe {
            let from = from.cast::<u16>();
            [
                vld1q_u16(from),
                vld1q_u16(from.add(8)),
                vld1q_u16(from.add(16)),
                vld1q_u16(from.add(24)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const f32) -> Self::Inputs {
        // SAFETY: the caller has NEON and gives four readable elements.
        unsafe { vld1q_u16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot<const L: usize>(
        [a, b, c, d]: Self::Weights,
        inputs: Self::Inputs,
        [mut low, mut high]: Self::Sums,
    ) -> Self::Sums {
        // SAFETY: the values prove fp16 arithmetic, which reads and writes these registers only.
        unsafe {
            asm!(
                "fmla {low:v}.8h, {a:v}.8h, {inputs:v}.h[{first}]",
                "fmla {high:v}.8h, {b:v}.8h, {inputs:v}.h[{first}]",
                low = inout(vreg) low,
                high = inout(vreg) high,
                a = in(vreg) a,
                b = in(vreg) b,
                inputs = in(vreg_low16) inputs,
                first = const 2 * L,
                options(pure, nomem, nostack, preserves_flags)
            );
            asm!(
                "fmla {low:v}.8h, {c:v}.8h, {inputs:v}.h[{second}]",
                "fmla {high:v}.8h, {d:v}.8h, {inputs:v}.h[{second}]",
                low = inout(vreg) low,
                high = inout(vreg) high,
                c = in(vreg) c,
                d = in(vreg) d,
                inputs = in(vreg_low16) inputs,
                second = const 2 * L + 1,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        [low, high]
    }

    #[inline(always)]
    fn of_sums(sums: Self::Sums) -> Self {
        let widened = sums.map(|sums| {
            let (low, high);
            // SAFETY: NEON converts; registers only.
            unsafe {
                asm!(
                    "fcvtl {low:v}.4s, {sums:v}.4h",
                    "fcvtl2 {high:v}.4s, {sums:v}.8h",
                    low = out(vreg) low,
                    high = lateout(vreg) high,
                    sums = in(vreg) sums,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            [low, high]
        });
        let [[a, b], [c, d]] = widened;
        Neon([a, b, c, d])
    }

    #[inline(always)]
    unsafe fn store_rounded(self, to: *mut u16) {
        let [a, b, c, d] = self.0;
        let (low, high): (uint16x8_t, uint16x8_t);
        // SAFETY: NEON converts, registers only; the caller gives room for sixteen values.
        unsafe {
            asm!(
                "fcvtn {low:v}.4h, {a:v}.4s",
                "fcvtn2 {low:v}.8h, {b:v}.4s",
                "fcvtn {high:v}.4h, {c:v}.4s",
                "fcvtn2 {high:v}.8h, {d:v}.4s",
                a = in(vreg) a,
                b = in(vreg) b,
                c = in(vreg) c,
                d = in(vreg) d,
                low = out(vreg) low,
                high = out(vreg) high,
                options(pure, nomem, nostack, preserves_flags)
            );
            vst1q_u16(to, low);
            vst1q_u16(to.add(8), high);
        }
    }
}
