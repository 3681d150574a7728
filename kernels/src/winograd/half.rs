//! Products at half the width: transformed weights and inputs rounded to numbers of 16 bits, in
//! pairs of neighbouring input channels: int16 with sums in int32, or float16 with sums in float16.
//!
//! Scales are as fine as they can be outside of a sum: transformed weights have one for
//! each position and output channel, transformed inputs one for each position and tile,
//! from the tile's largest magnitude. So the scale of a tile does not depend on how the
//! image is cut into batches.
//!
//! No sum overflows. An input is at most `MOST_INPUT` in magnitude, and the weights of the `FLUSH`
//! blocks of channels that are added up have magnitudes of at most so much together, by the choice
//! of their scale, that their products fit. Sums of more channels go on in float32.

use super::product::Product;
#[cfg(any(test, target_arch = "aarch64"))]
use crate::float16;
use crate::layout::CHANNEL_BLOCK;
#[cfg(any(test, target_arch = "aarch64"))]
use crate::vector::Float16;
use crate::vector::{Int16, LANES, Pairs};

/// Pairs in a block of channels.
pub(super) const PAIRS: usize = CHANNEL_BLOCK / 2;

/// Numbers of 16 bits that products are computed with.
pub(super) trait Number {
    /// Blocks of input channels whose products are added up before they go on in float32.
    const FLUSH: usize;
    /// The largest magnitude of a rounded input.
    const MOST_INPUT: f32;
    /// What magnitudes of weights over their scale may add up to, over `FLUSH` blocks, before they
    /// are rounded.
    const WEIGHTS: f32;
    /// The largest magnitude of one.
    const MOST_WEIGHT: f32;

    /// Weights of two input channels, rounded, in the order in which a product takes them.
    fn pairs(first: &[f32; LANES], second: &[f32; LANES]) -> [u16; 2 * LANES];
}

/// An input is at most 8191: two bits less than int16 has leave these to the weights, whose rounding
/// would else be the greater error.
impl Number for Int16 {
    const FLUSH: usize = 32;
    const MOST_INPUT: f32 = 8191.0;
    /// Of what the rounded ones may add up to, rounding takes at most one half for each, and 32 is
    /// more than float32 is off.
    const WEIGHTS: f32 =
        (i32::MAX / Self::MOST_INPUT as i32 - (Self::FLUSH * CHANNEL_BLOCK) as i32 / 2 - 32) as f32;
    const MOST_WEIGHT: f32 = 32_766.0;

    /// Channel beside channel.
    #[inline(always)]
    fn pairs(first: &[f32; LANES], second: &[f32; LANES]) -> [u16; 2 * LANES] {
        let mut pairs = [0; 2 * LANES];
        for lane in 0..LANES {
            pairs[2 * lane] = first[lane].round_ties_even() as i16 as u16;
            pairs[2 * lane + 1] = second[lane].round_ties_even() as i16 as u16;
        }
        pairs
    }
}

/// Sums are at most half of the largest number, 65504: the other half is more than rounding adds.
/// The fewer channels are added up, the less it does, and the longer it takes.
#[cfg(any(test, target_arch = "aarch64"))]
impl Number for Float16 {
    const FLUSH: usize = 4;
    const MOST_INPUT: f32 = 128.0;
    const WEIGHTS: f32 = 255.0;
    const MOST_WEIGHT: f32 = Self::WEIGHTS;

    /// Channel after channel.
    #[inline(always)]
    fn pairs(first: &[f32; LANES], second: &[f32; LANES]) -> [u16; 2 * LANES] {
        let mut pairs = [0; 2 * LANES];
        for lane in 0..LANES {
            pairs[lane] = float16::to_bits(first[lane]);
            pairs[LANES + lane] = float16::to_bits(second[lane]);
        }
        pairs
    }
}

/// Smaller magnitudes of transformed inputs are rounded as if this were the largest, so
/// that no scale is a denormal.
pub(super) const LEAST_INPUT: f32 = f32::from_bits((127 - 100) << 23);

/// The weights of one panel at one position.
pub(super) struct RoundWeights<'a> {
    /// `[channels, panel]`
    pub(super) from: &'a [f32],
    pub(super) panel: usize,
    /// `[channels / 2, panel]` of pairs.
    pub(super) to: &'a mut [f32],
    /// `[panel]`
    pub(super) scales: &'a mut [f32],
}

/// Rounds weights; those of an output channel that has one which is not finite get a
/// scale that is not a number.
#[inline(always)]
pub(super) fn round_weights<N: Number>(job: &mut RoundWeights) {
    for first in (0..job.panel).step_by(LANES) {
        let mut least = [f32::MIN_POSITIVE; LANES];
        for rows in job.from.chunks(N::FLUSH * CHANNEL_BLOCK * job.panel) {
            let (mut sum, mut most) = ([0.0; LANES], [0.0f32; LANES]);
            for row in rows.chunks_exact(job.panel) {
                for ((sum, most), weight) in sum.iter_mut().zip(&mut most).zip(&row[first..]) {
                    *sum += weight.abs();
                    *most = most.max(weight.abs());
                }
            }
            for ((least, sum), most) in least.iter_mut().zip(sum).zip(most) {
                let needed = (sum / N::WEIGHTS).max(most / N::MOST_WEIGHT);
                *least = if sum.is_finite() { least.max(needed) } else { f32::INFINITY };
            }
        }
        let mut factors = [0.0; LANES];
        for ((factor, scale), least) in factors.iter_mut().zip(&mut job.scales[first..]).zip(least)
        {
            *factor = 1.0 / least;
            *scale = if least.is_finite() { least } else { f32::NAN };
        }
        let rows = job.from.chunks_exact(2 * job.panel);
        for (rows, to) in rows.zip(job.to.chunks_exact_mut(job.panel)) {
            let mut both = [factors; 2];
            for (scaled, row) in both.iter_mut().zip(rows.chunks_exact(job.panel)) {
                for (scaled, weight) in scaled.iter_mut().zip(&row[first..]) {
                    *scaled *= weight;
                }
            }
            let numbers = N::pairs(&both[0], &both[1]);
            for (to, pair) in to[first..].iter_mut().zip(numbers.chunks_exact(2)) {
                let bytes = [pair[0].to_ne_bytes(), pair[1].to_ne_bytes()];
                *to = f32::from_ne_bytes([bytes[0][0], bytes[0][1], bytes[1][0], bytes[1][1]]);
            }
        }
    }
}

/// Tiles that are transformed before they are rounded, while they are in a near cache.
pub(super) const GROUP: usize = 16;

/// The transformed inputs of some tiles.
pub(super) struct RoundInputs {
    /// `[positions, from_stride]`, of which `[in_blocks, count, 16]` are read.
    pub(super) from: *const f32,
    pub(super) from_stride: usize,
    pub(super) positions: usize,
    pub(super) in_blocks: usize,
    /// At most [`GROUP`].
    pub(super) count: usize,
    /// `[positions, stride]`, of which `[in_blocks, batch, 8]` pairs, the first `count` of
    /// each `batch`, are written.
    pub(super) to: *mut f32,
    pub(super) batch: usize,
    /// `[positions, stride]`, of which the first `count` are written.
    pub(super) scales: *mut f32,
    pub(super) stride: usize,
}

/// Rounds inputs; those of a tile that has one which is not finite get a scale that is not
/// a number.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`RoundInputs`].
#[inline(always)]
pub(super) unsafe fn round_inputs<V: Pairs<N>, N: Number>(job: &RoundInputs) {
    for position in 0..job.positions {
        let from = job.from.wrapping_add(position * job.from_stride);
        let to = job.to.wrapping_add(position * job.stride);
        let (mut scales, mut factors) = ([0.0; GROUP], [0.0; GROUP]);
        // SAFETY: the caller has the instruction set; `from`, `to` and the scales are those
        // of one position.
        unsafe {
            for (tile, most) in scales.iter_mut().enumerate().take(job.count) {
                let mut both = [V::zero(); 2];
                for block in 0..job.in_blocks {
                    let inputs = V::load(from.add((block * job.count + tile) * LANES));
                    both[block % 2] = both[block % 2].larger_magnitude(inputs);
                }
                *most = both[0].larger_magnitude(both[1]).largest();
            }
            for (scale, factor) in scales.iter_mut().zip(&mut factors) {
                let most = if *scale > LEAST_INPUT { *scale } else { LEAST_INPUT };
                let finite = scale.is_finite();
                *scale = if finite { most * (1.0 / N::MOST_INPUT) } else { f32::NAN };
                *factor = if finite { N::MOST_INPUT / most } else { 0.0 };
            }
            for (tile, (scale, factor)) in scales.iter().zip(&factors).enumerate().take(job.count) {
                *job.scales.add(position * job.stride + tile) = *scale;
                let factor = V::splat(*factor);
                for block in 0..job.in_blocks {
                    let inputs = V::load(from.add((block * job.count + tile) * LANES));
                    let to = to.add((block * job.batch + tile) * PAIRS);
                    inputs.mul(factor).store_rounded(to.cast());
                }
            }
        }
    }
}

/// `T` tiles by a panel of `P` vectors.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Product`] with pairs, scales and at least
/// `T` tiles.
#[inline(always)]
pub(super) unsafe fn product<V, N, const P: usize, const T: usize>(job: &Product)
where
    V: Pairs<N>,
    N: Number,
{
    // SAFETY: the caller has the instruction set; `inputs` and `weights` advance by four
    // pairs of channels each time, which ends at the end of the last block.
    unsafe {
        let quarter = job.in_blocks * PAIRS * P * LANES / 4;
        let (mut weights, mut ahead) = (job.weights, job.ahead);
        let mut first = 0;
        loop {
            let end = (first + N::FLUSH).min(job.in_blocks);
            let mut sums = [[V::no_sums(); P]; T];
            for block in first..end {
                let mut inputs = job.inputs.add(block * job.input_stride);
                let next = job.inputs.wrapping_add((block + 1) * job.input_stride);
                for part in 0..PAIRS / 4 {
                    for line in 0..T.div_ceil(4) {
                        V::prefetch_near(next.wrapping_add((part * T.div_ceil(4) + line) * LANES));
                    }
                    let ahead = ahead.wrapping_add(part * (job.ahead_step / (PAIRS / 4)));
                    step::<V, N, P, T, 0>(&mut sums, weights, inputs, ahead, quarter);
                    step::<V, N, P, T, 1>(&mut sums, weights, inputs, ahead, quarter);
                    step::<V, N, P, T, 2>(&mut sums, weights, inputs, ahead, quarter);
                    step::<V, N, P, T, 3>(&mut sums, weights, inputs, ahead, quarter);
                    weights = weights.add(4 * P * LANES);
                    inputs = inputs.add(4);
                }
                ahead = ahead.wrapping_add(job.ahead_step);
            }
            let last = end == job.in_blocks;
            for vector in 0..P {
                let scale = V::load(job.weight_scales.add(vector * LANES));
                for (tile, sums) in sums.iter().enumerate() {
                    let to = job.to.add(vector * job.stride + tile * LANES);
                    let mut sum = V::of_sums(sums[vector]);
                    if first > 0 {
                        sum = sum.add(V::load(to));
                    }
                    if last {
                        sum = sum.mul(scale).mul(V::splat(*job.input_scales.add(tile)));
                    }
                    sum.store(to);
                }
            }
            if last {
                return;
            }
            first = end;
        }
    }
}

/// Pair number `L` of four.
///
/// # Safety
///
/// The instruction set of `V`; four pairs of weights.
#[inline(always)]
unsafe fn step<V: Pairs<N>, N, const P: usize, const T: usize, const L: usize>(
    sums: &mut [[V::Sums; P]; T],
    weights: *const f32,
    inputs: *const f32,
    ahead: *const f32,
    quarter: usize,
) {
    // SAFETY: the caller's; the inputs are still in memory.
    unsafe {
        let from = weights.add(L * P * LANES);
        let mut weights = [V::weights(from); P];
        for (vector, weights) in weights.iter_mut().enumerate() {
            V::prefetch(ahead.wrapping_add(L * quarter + vector * LANES));
            *weights = V::weights(from.add(vector * LANES));
        }
        for (tile, sums) in sums.iter_mut().enumerate() {
            let four = V::inputs(inputs.add(tile * PAIRS));
            for (sum, weights) in sums.iter_mut().zip(&weights) {
                *sum = V::dot::<L>(*weights, four, *sum);
            }
        }
    }
}
