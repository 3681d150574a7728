//! The matrix product of one position on 32-bit ARM, in assembly: stable Rust has neither NEON's
//! intrinsics nor its target feature there. Knows what `product` knows.
//!
//! Sixteen output channels by up to three tiles are twelve registers of sums, q4 to q15. d0 to d2 hold
//! two input channels of each tile; q2 and q3 take turns at holding four weights, so that one is loaded
//! while the other is used. `vmla` rounds twice, as plain Rust does, and takes what is smaller than the
//! smallest normal number as zero.

use std::arch::naked_asm;

use super::product::Product;
use crate::vector::LANES;

/// `T` tiles, one to three, by a panel of 16 output channels.
///
/// # Safety
///
/// NEON; the layouts of [`Product`] with at least `T` tiles.
pub(super) unsafe fn product<const T: usize>(job: &Product) {
    let kernel = const { [one_tile, two_tiles, three_tiles as Kernel][T - 1] };
    let stride = job.input_stride * size_of::<f32>();
    // SAFETY: the caller's; the kernels need a block.
    unsafe {
        match job.in_blocks {
            0 => job.to.write_bytes(0, T * LANES),
            blocks => kernel(job.weights, job.inputs, blocks, stride, job.to),
        }
    }
}

/// Weights `[blocks * 16, 16]`, inputs `[blocks, stride / 64, 16]`, blocks (at least one), bytes from
/// one block of inputs to the next, sums `[tiles, 16]`.
type Kernel = unsafe extern "C" fn(*const f32, *const f32, usize, usize, *mut f32);

/// A kernel for as many tiles as there are brackets: its register of inputs, its bytes after those of
/// the first tile, its four registers of sums.
macro_rules! kernel {
    ($name:ident $([$d:literal $at:literal $q0:literal $q1:literal $q2:literal $q3:literal])*) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(_: *const f32, _: *const f32, _: usize, _: usize, _: *mut f32) {
            naked_asm!(
                ".fpu neon",
                "vpush {{d8-d15}}",
                "push {{r4, lr}}",
                "ldr r4, [sp, #72]",
                $(concat!("vmov.i32 ", $q0, ", #0"),)*
                $(concat!("vmov.i32 ", $q1, ", #0"),)*
                $(concat!("vmov.i32 ", $q2, ", #0"),)*
                $(concat!("vmov.i32 ", $q3, ", #0"),)*
                "1:",
                "mov r12, r1",
                "add r1, r1, r3",
                "mov lr, #8",
                "2:",
                $(concat!("vldr ", $d, ", [r12, #", $at, "]"),)*
                "add r12, r12, #8",
                "pld [r0, #384]",
                "pld [r0, #448]",
                "vld1.32 {{q2}}, [r0]!",
                "vld1.32 {{q3}}, [r0]!",
                $(concat!("vmla.f32 ", $q0, ", q2, ", $d, "[0]"),)*
                "vld1.32 {{q2}}, [r0]!",
                $(concat!("vmla.f32 ", $q1, ", q3, ", $d, "[0]"),)*
                "vld1.32 {{q3}}, [r0]!",
                $(concat!("vmla.f32 ", $q2, ", q2, ", $d, "[0]"),)*
                "vld1.32 {{q2}}, [r0]!",
                $(concat!("vmla.f32 ", $q3, ", q3, ", $d, "[0]"),)*
                "vld1.32 {{q3}}, [r0]!",
                $(concat!("vmla.f32 ", $q0, ", q2, ", $d, "[1]"),)*
                "vld1.32 {{q2}}, [r0]!",
                $(concat!("vmla.f32 ", $q1, ", q3, ", $d, "[1]"),)*
                "vld1.32 {{q3}}, [r0]!",
                $(concat!("vmla.f32 ", $q2, ", q2, ", $d, "[1]"),)*
                "subs lr, lr, #1",
                $(concat!("vmla.f32 ", $q3, ", q3, ", $d, "[1]"),)*
                "bne 2b",
                "subs r2, r2, #1",
                "bne 1b",
                $(
                    concat!("vst1.32 {{", $q0, "}}, [r4]!"),
                    concat!("vst1.32 {{", $q1, "}}, [r4]!"),
                    concat!("vst1.32 {{", $q2, "}}, [r4]!"),
                    concat!("vst1.32 {{", $q3, "}}, [r4]!"),
                )*
                "pop {{r4, lr}}",
                "vpop {{d8-d15}}",
                "bx lr",
                ".fpu vfpv3-d16",
            )
        }
    };
}

kernel!(one_tile ["d0" 0 "q4" "q5" "q6" "q7"]);
kernel!(two_tiles ["d0" 0 "q4" "q5" "q6" "q7"] ["d1" 64 "q8" "q9" "q10" "q11"]);
kernel!(
    three_tiles
    ["d0" 0 "q4" "q5" "q6" "q7"]
    ["d1" 64 "q8" "q9" "q10" "q11"]
    ["d2" 128 "q12" "q13" "q14" "q15"]
);
