//! The matrix product of one position: a panel of output channels by a few tiles, all
//! sums in registers. Knows no transform.

use crate::vector::{LANES, Vector};

/// One panel times some tiles.
pub(super) struct Product {
    /// `[in_blocks * 16, panel]`, or of pairs `[in_blocks * 8, panel]`
    pub(super) weights: *const f32,
    /// `[panel]`, for pairs.
    pub(super) weight_scales: *const f32,
    /// `[in_blocks, input_stride / 16, 16]`, or of pairs `[in_blocks, input_stride / 8, 8]`
    pub(super) inputs: *const f32,
    /// One for each tile, for pairs.
    pub(super) input_scales: *const f32,
    pub(super) in_blocks: usize,
    /// Elements from one block of channels to the next.
    pub(super) input_stride: usize,
    /// `[panel / 16, stride / 16, 16]`
    pub(super) to: *mut f32,
    pub(super) stride: usize,
    /// The weights to ask for meanwhile, because the next product needs them, from four places at
    /// once, and how many of each for a block of channels.
    pub(super) ahead: *const f32,
    pub(super) ahead_step: usize,
}

/// `T` tiles by a panel of `P` vectors.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Product`] with at least `T` tiles.
#[inline(always)]
pub(super) unsafe fn product<V: Vector, const P: usize, const T: usize>(job: &Product) {
    // SAFETY: the caller has the instruction set; `inputs` and `weights` advance by a
    // quad of channels each time, which ends at the end of the last block.
    unsafe {
        let mut sums = [[V::zero(); P]; T];
        let quarter = job.in_blocks * LANES * P * LANES / 4;
        let (mut weights, mut ahead) = (job.weights, job.ahead);
        for block in 0..job.in_blocks {
            let mut inputs = job.inputs.add(block * job.input_stride);
            let next = job.inputs.wrapping_add((block + 1) * job.input_stride);
            for part in 0..LANES / 4 {
                for tile in 0..T.div_ceil(4) {
                    V::prefetch_near(next.wrapping_add((part * T.div_ceil(4) + tile) * LANES));
                }
                let mut quads = [V::quad(inputs); T];
                for (tile, quad) in quads.iter_mut().enumerate() {
                    *quad = V::quad(inputs.add(tile * LANES));
                }
                let ahead = ahead.wrapping_add(part * (job.ahead_step / (LANES / 4)));
                step::<V, P, T, 0>(&mut sums, weights, &quads, ahead, quarter);
                step::<V, P, T, 1>(&mut sums, weights, &quads, ahead, quarter);
                step::<V, P, T, 2>(&mut sums, weights, &quads, ahead, quarter);
                step::<V, P, T, 3>(&mut sums, weights, &quads, ahead, quarter);
                weights = weights.add(4 * P * LANES);
                inputs = inputs.add(4);
            }
            ahead = ahead.wrapping_add(job.ahead_step);
        }
        for (tile, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                sum.store(job.to.add(vector * job.stride + tile * LANES));
            }
        }
    }
}

/// One input channel, number `L` of a quad.
///
/// # Safety
///
/// The instruction set of `V`; four channels of weights.
#[inline(always)]
unsafe fn step<V: Vector, const P: usize, const T: usize, const L: i32>(
    sums: &mut [[V; P]; T],
    weights: *const f32,
    quads: &[V::Quad; T],
    ahead: *const f32,
    quarter: usize,
) {
    let row = weights.wrapping_add(L as usize * P * LANES);
    // SAFETY: the caller's.
    let mut weights = [unsafe { V::load(row) }; P];
    for (vector, weights) in weights.iter_mut().enumerate() {
        V::prefetch(ahead.wrapping_add(L as usize * quarter + vector * LANES));
        // SAFETY: the caller's.
        *weights = unsafe { V::load(row.add(vector * LANES)) };
    }
    for (sums, quad) in sums.iter_mut().zip(quads) {
        for (sum, weights) in sums.iter_mut().zip(&weights) {
            // SAFETY: the quad is still in memory.
            *sum = unsafe { weights.mul_add_quad::<L>(*quad, *sum) };
        }
    }
}
