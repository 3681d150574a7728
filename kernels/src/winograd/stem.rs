//! Rows of a network's first convolution are made where the second one is about to read them.

use super::{Job, Plan, Run, Winograd};
use crate::direct::Direct3x3;
use crate::layout::{CHANNEL_BLOCK, blocked_len};
use crate::parallel::{Parallel, Parts, share};

/// Rows of tiles that are made from one strip of the first convolution. Two rows of
/// each strip are computed twice, at its upper and lower edge.
const STRIP: usize = 2;

impl Winograd {
    /// Elements of scratch memory that [`Winograd::run_after`] needs, from a cache line on.
    pub(crate) fn scratch_len_after(&self, height: usize, width: usize, threads: usize) -> usize {
        let plan = Plan::with(self, height, width, threads, false);
        plan.scratch + threads.max(1) * self.strip_len(width)
    }

    /// Elements of the strip of each thread.
    fn strip_len(&self, width: usize) -> usize {
        blocked_len(self.in_channels, STRIP * self.tile.side() + 2, width)
    }

    /// [`Winograd::run`] on what `first` and ReLU make of its input with a border.
    pub(crate) fn run_after(
        &self,
        job: &Job<'_>,
        first: &Direct3x3,
        parallel: &dyn Parallel,
        bordered: &[f32],
        scratch: &mut [f32],
    ) {
        let Job { height, width, .. } = *job;
        let plan = Plan::with(self, height, width, parallel.threads(), false);
        let (scratch, strips) = scratch.split_at_mut(plan.scratch);
        let strips = Parts::new(strips);
        let run = Run { conv: self, plan: &plan, job, scratch: Parts::new(scratch) };
        let side = self.tile.side();
        let (strip_rows, strip_len) = (STRIP * side + 2, self.strip_len(width));
        let (inputs, products) = run.scratch_parts();
        share(parallel, height.div_ceil(STRIP * side), &|worker, item| {
            let top = item * STRIP * side;
            let rows = top.saturating_sub(1)..(top + strip_rows - 1).min(height);
            // SAFETY: each worker has its own strip.
            let strip = unsafe { strips.at(worker * strip_len, strip_len) };
            let row = |block: usize, y: usize| {
                strip.wrapping_add((block * strip_rows + y - rows.start) * width * CHANNEL_BLOCK)
            };
            for y in rows.clone() {
                // SAFETY: at most `strip_rows` rows of each block are written.
                unsafe { first.row(bordered, height, width, y, true, &|block| row(block, y)) }
            }
            let block = |block: usize| {
                let before = rows.start * width * CHANNEL_BLOCK;
                row(block, rows.start).wrapping_sub(before).cast_const()
            };
            let begin = item * STRIP * plan.tiles_wide;
            let end = (begin + STRIP * plan.tiles_wide).min(plan.tiles);
            for tile in (begin..end).step_by(plan.batch.max(1)) {
                let count = plan.batch.min(end - tile);
                // SAFETY: the tiles read rows of the strip; each worker has its own
                // scratch, and each item its own tiles of the output.
                unsafe { run.batch(&block, tile, count, worker * (inputs + products)) }
            }
        });
    }
}
