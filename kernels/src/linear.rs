//! Fully connected layers for one vector: `y = W x + b`, bound by the stream of `W`
//! from memory. Weights are used where they lie, row-major; nothing is packed, so they
//! may be a memory-mapped file. One thread: the caller gives each of its threads a
//! range of rows.
//!
//! Every kernel adds at least sixteen partial sums per row and combines them at the
//! end, so that no product passes through more than `columns / 16` + 8 roundings.

use crate::isa::{Isa, Kind};
#[cfg(target_arch = "aarch64")]
use crate::vector::neon::Neon;
use crate::vector::{LANES, Vector, plain::Plain};
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2::Avx2, avx512::Avx512};

#[cfg(test)]
mod tests;

/// Columns that share a scale in [`linear_i8b64`].
pub const BLOCK: usize = 64;

/// `y = W x + b` in float32.
///
/// `weights` is `[rows, columns]` row-major, of any alignment; `x` has `columns`
/// elements, `bias` and `y` have `rows`.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn linear_f32(isa: Isa, weights: &[f32], bias: &[f32], x: &[f32], y: &mut [f32]) {
    check_lengths("linear_f32", weights.len(), bias.len(), x.len(), y.len());
    // SAFETY: an `Isa` exists only where its instructions do, and the lengths fit.
    unsafe {
        match isa.kind() {
            Kind::Plain => plain_linear_f32_4x16(weights, bias, x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2_linear_f32_4x16(weights, bias, x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Vnni | Kind::Amx => avx512_linear_f32_8x16(weights, bias, x, y),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonHalf => {
                neon_linear_f32_4x16(weights, bias, x, y)
            }
            #[cfg(target_arch = "arm")]
            Kind::Neon32 => plain_linear_f32_4x16(weights, bias, x, y),
        }
    }
}

/// `y = W x + b` with weights of bfloat16, as [bits](crate::bfloat16::to_bits); products and sums
/// are float32.
///
/// `weights` is `[rows, columns]` row-major, of any alignment; `x` has `columns`
/// elements, `bias` and `y` have `rows`.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn linear_bf16(isa: Isa, weights: &[u16], bias: &[f32], x: &[f32], y: &mut [f32]) {
    check_lengths("linear_bf16", weights.len(), bias.len(), x.len(), y.len());
    // SAFETY: an `Isa` exists only where its instructions do, and the lengths fit.
    unsafe {
        match isa.kind() {
            Kind::Plain => plain_linear_bf16_4x16(weights, bias, x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2_linear_bf16_4x16(weights, bias, x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Vnni | Kind::Amx => avx512_linear_bf16_8x16(weights, bias, x, y),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonHalf => {
                neon_linear_bf16_4x16(weights, bias, x, y)
            }
            #[cfg(target_arch = "arm")]
            Kind::Neon32 => plain_linear_bf16_4x16(weights, bias, x, y),
        }
    }
}

/// `y = W x + b` with int8 weights and float32 activations: what ONNX DequantizeLinear
/// (symmetric, one scale per row and [`BLOCK`] columns) and Gemm compute, up to the
/// order of summation.
///
/// `weights` is `[rows, columns]` row-major with `columns` a multiple of 64, `scales`
/// is `[rows, columns / 64]`; `x` has `columns` elements, `bias` and `y` have `rows`.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn linear_i8b64(
    isa: Isa,
    weights: &[i8],
    scales: &[f32],
    bias: &[f32],
    x: &[f32],
    y: &mut [f32],
) {
    check_lengths("linear_i8b64", weights.len(), bias.len(), x.len(), y.len());
    assert!(
        x.len().is_multiple_of(BLOCK),
        "linear_i8b64: {} columns are not a multiple of {BLOCK}",
        x.len()
    );
    assert!(
        scales.len() == y.len() * (x.len() / BLOCK),
        "linear_i8b64: {} scales for {} rows of {} blocks",
        scales.len(),
        y.len(),
        x.len() / BLOCK
    );
    // SAFETY: an `Isa` exists only where its instructions do, and the lengths fit.
    unsafe {
        match isa.kind() {
            Kind::Plain => plain_linear_i8b64_4x64(weights, scales, bias, x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2_linear_i8b64_4x64(weights, scales, bias, x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Vnni | Kind::Amx => {
                avx512_linear_i8b64_8x64(weights, scales, bias, x, y)
            }
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonHalf => {
                neon_linear_i8b64_4x64(weights, scales, bias, x, y)
            }
            #[cfg(target_arch = "arm")]
            Kind::Neon32 => plain_linear_i8b64_4x64(weights, scales, bias, x, y),
        }
    }
}

fn check_lengths(kernel: &str, weights: usize, bias: usize, columns: usize, rows: usize) {
    assert!(bias == rows, "{kernel}: {bias} biases for {rows} rows of output");
    assert!(
        Some(weights) == rows.checked_mul(columns),
        "{kernel}: {weights} weights for {rows} rows of {columns} columns"
    );
}

/// One instance of all kernels for an instruction set.
macro_rules! instance {
    ($vector:ty, $rows:literal, $f32:ident, $bf16:ident, $i8:ident $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $f32(weights: &[f32], bias: &[f32], x: &[f32], y: &mut [f32]) {
            // SAFETY: this function has the features; the caller checked the lengths.
            unsafe { all_rows::<$vector, f32, $rows>(weights, bias, x, y) }
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn $bf16(weights: &[u16], bias: &[f32], x: &[f32], y: &mut [f32]) {
            // SAFETY: this function has the features; the caller checked the lengths.
            unsafe { all_rows::<$vector, u16, $rows>(weights, bias, x, y) }
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn $i8(weights: &[i8], scales: &[f32], bias: &[f32], x: &[f32], y: &mut [f32]) {
            // SAFETY: this function has the features; the caller checked the lengths.
            unsafe { all_rows_i8b64::<$vector, $rows>(weights, scales, bias, x, y) }
        }
    };
}

instance!(Plain, 4, plain_linear_f32_4x16, plain_linear_bf16_4x16, plain_linear_i8b64_4x64);
#[cfg(target_arch = "x86_64")]
instance!(Avx2, 4, avx2_linear_f32_4x16, avx2_linear_bf16_4x16, avx2_linear_i8b64_4x64, "avx2,fma");
#[cfg(target_arch = "x86_64")]
instance!(
    Avx512,
    8,
    avx512_linear_f32_8x16,
    avx512_linear_bf16_8x16,
    avx512_linear_i8b64_8x64,
    "avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "aarch64")]
instance!(Neon, 4, neon_linear_f32_4x16, neon_linear_bf16_4x16, neon_linear_i8b64_4x64, "neon");

/// How far ahead of its use each row of weights is asked for, in bytes. Measured:
/// 10 % over the processor's own prefetching, the same from 512 to 1024.
const AHEAD: usize = 512;

/// A weight as it is stored.
trait Weight: Copy + Default {
    /// Sixteen weights in float32.
    ///
    /// # Safety
    ///
    /// The instruction set of `V`; sixteen readable elements, of any alignment.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> V {
        // SAFETY: the caller's.
        unsafe { V::load(from) }
    }
}

/// The bits of a bfloat16.
impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u16) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_bf16(from) }
    }
}

/// # Safety
///
/// The instruction set of `V`; lengths as [`check_lengths`] has them.
#[inline(always)]
unsafe fn all_rows<V: Vector, W: Weight, const R: usize>(
    weights: &[W],
    bias: &[f32],
    x: &[f32],
    y: &mut [f32],
) {
    let columns = x.len();
    let whole = y.len() / R * R;
    for row in (0..whole).step_by(R) {
        let weights = &weights[row * columns..(row + R) * columns];
        // SAFETY: `weights` is R rows of as many columns as `x`.
        let sums = unsafe { rows::<V, W, R>(weights, x) };
        for (lane, sum) in sums.into_iter().enumerate() {
            y[row + lane] = sum + bias[row + lane];
        }
    }
    for row in whole..y.len() {
        let weights = &weights[row * columns..(row + 1) * columns];
        // SAFETY: `weights` is one row of as many columns as `x`.
        let [sum] = unsafe { rows::<V, W, 1>(weights, x) };
        y[row] = sum + bias[row];
    }
}

/// The products of `R` rows with `x`.
///
/// # Safety
///
/// The instruction set of `V`; `weights` is `[R, x.len()]`.
#[inline(always)]
unsafe fn rows<V: Vector, W: Weight, const R: usize>(weights: &[W], x: &[f32]) -> [f32; R] {
    let columns = x.len();
    let whole = columns / LANES * LANES;
    // SAFETY: the caller has the instruction set.
    let mut sums = [unsafe { V::zero() }; R];
    for column in (0..whole).step_by(LANES) {
        // SAFETY: `column + LANES <= columns`.
        let x = unsafe { V::load(x.as_ptr().add(column)) };
        for (row, sum) in sums.iter_mut().enumerate() {
            let weights = weights.as_ptr().wrapping_add(row * columns + column);
            V::prefetch_near(weights.wrapping_byte_add(AHEAD).cast());
            // SAFETY: `row < R` and `column + LANES <= columns`.
            *sum = unsafe { W::load::<V>(weights) }.mul_add(x, *sum);
        }
    }
    if whole < columns {
        let x = padded(&x[whole..]);
        // SAFETY: sixteen elements.
        let x = unsafe { V::load(x.as_ptr()) };
        for (row, sum) in sums.iter_mut().enumerate() {
            let weights = padded(&weights[row * columns + whole..(row + 1) * columns]);
            // SAFETY: sixteen elements.
            *sum = unsafe { W::load::<V>(weights.as_ptr()) }.mul_add(x, *sum);
        }
    }
    let mut totals = [0.0; R];
    for (total, sum) in totals.iter_mut().zip(&sums) {
        *total = sum.sum();
    }
    totals
}

/// Fewer than sixteen values, with zeros after them.
#[inline(always)]
fn padded<T: Copy + Default>(values: &[T]) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// # Safety
///
/// The instruction set of `V`; lengths as [`linear_i8b64`] has them.
#[inline(always)]
unsafe fn all_rows_i8b64<V: Vector, const R: usize>(
    weights: &[i8],
    scales: &[f32],
    bias: &[f32],
    x: &[f32],
    y: &mut [f32],
) {
    let columns = x.len();
    let blocks = columns / BLOCK;
    let whole = y.len() / R * R;
    for row in (0..whole).step_by(R) {
        let weights = &weights[row * columns..(row + R) * columns];
        let scales = &scales[row * blocks..(row + R) * blocks];
        // SAFETY: R rows of weights and scales for the columns of `x`.
        let sums = unsafe { rows_i8b64::<V, R>(weights, scales, x) };
        for (lane, sum) in sums.into_iter().enumerate() {
            y[row + lane] = sum + bias[row + lane];
        }
    }
    for row in whole..y.len() {
        let weights = &weights[row * columns..(row + 1) * columns];
        let scales = &scales[row * blocks..(row + 1) * blocks];
        // SAFETY: one row of weights and scales for the columns of `x`.
        let [sum] = unsafe { rows_i8b64::<V, 1>(weights, scales, x) };
        y[row] = sum + bias[row];
    }
}

/// The products of `R` rows with `x`.
///
/// # Safety
///
/// The instruction set of `V`; `weights` is `[R, x.len()]`, `scales` is
/// `[R, x.len() / 64]`, and `x.len()` is a multiple of 64.
#[inline(always)]
unsafe fn rows_i8b64<V: Vector, const R: usize>(
    weights: &[i8],
    scales: &[f32],
    x: &[f32],
) -> [f32; R] {
    let columns = x.len();
    let blocks = columns / BLOCK;
    // SAFETY: the caller has the instruction set.
    let mut sums = [unsafe { V::zero() }; R];
    for block in 0..blocks {
        // SAFETY: `block < blocks`, so 64 elements follow.
        let x = unsafe {
            let from = x.as_ptr().add(block * BLOCK);
            let mut lanes = [V::load(from); BLOCK / LANES];
            for (part, lanes) in lanes.iter_mut().enumerate().skip(1) {
                *lanes = V::load(from.add(part * LANES));
            }
            lanes
        };
        for (row, sum) in sums.iter_mut().enumerate() {
            let weights = weights.as_ptr().wrapping_add(row * columns + block * BLOCK);
            V::prefetch_near(weights.wrapping_byte_add(AHEAD).cast());
            // SAFETY: `row < R` and `block < blocks`: 64 weights and one scale.
            unsafe {
                let mut in_block = V::load_i8(weights).mul(x[0]);
                for (part, &x) in x.iter().enumerate().skip(1) {
                    in_block = V::load_i8(weights.add(part * LANES)).mul_add(x, in_block);
                }
                let scale = V::splat(*scales.get_unchecked(row * blocks + block));
                *sum = in_block.mul_add(scale, *sum);
            }
        }
    }
    let mut totals = [0.0; R];
    for (total, sum) in totals.iter_mut().zip(&sums) {
        *total = sum.sum();
    }
    totals
}
