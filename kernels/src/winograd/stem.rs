//! The first two convolutions of a network together: rows of the first one's output are
//! made where the second one is about to read them, and never travel to memory.

use super::{Conv3x3, Fuse, Parts, Plan, Run, check_length, from_first_line, share};
use crate::direct::Direct3x3;
use crate::layout::{CHANNEL_BLOCK, blocked_len};
use crate::parallel::Parallel;

/// Rows of tiles that are made from one strip of the first convolution. Two rows of
/// each strip are computed twice, at its upper and lower edge.
const STRIP: usize = 2;

impl Conv3x3 {
    /// How many elements of scratch memory [`Conv3x3::run_after`] needs for an image of
    /// this size on as many threads.
    pub fn scratch_len_after(
        &self,
        first: &Direct3x3,
        height: usize,
        width: usize,
        threads: usize,
    ) -> usize {
        let plan = Plan::with(self, height, width, threads, false);
        let bordered = first.bordered_len(height, width).next_multiple_of(CHANNEL_BLOCK);
        plan.scratch + bordered + threads.max(1) * self.strip_len(width) + CHANNEL_BLOCK
    }

    /// Elements of the strip of each thread.
    fn strip_len(&self, width: usize) -> usize {
        blocked_len(self.in_channels, STRIP * self.tile.side() + 2, width)
    }

    /// `first`, ReLU, then this convolution: the same as [`Direct3x3::run`] and
    /// [`Conv3x3::run`], without the activation between them.
    ///
    /// `input` is planar, `[first's in_channels, height, width]`; `output` as in
    /// [`Conv3x3::run`].
    ///
    /// # Panics
    ///
    /// If the convolutions do not fit each other, `input` or `output` has another
    /// length, or `scratch` is shorter than [`Conv3x3::scratch_len_after`] has it.
    #[expect(clippy::too_many_arguments, reason = "five of them are one tensor each")]
    pub fn run_after(
        &self,
        first: &Direct3x3,
        parallel: &dyn Parallel,
        input: &[f32],
        height: usize,
        width: usize,
        output: &mut [f32],
        fuse: Fuse,
        scratch: &mut [f32],
    ) {
        assert!(
            first.out_channels() == self.in_channels,
            "Conv3x3: {} channels come, {} are taken",
            first.out_channels(),
            self.in_channels
        );
        let (out_height, out_width) =
            if fuse.pool { (height / 2, width / 2) } else { (height, width) };
        check_length("input", input.len(), first.in_channels() * height * width);
        check_length("output", output.len(), blocked_len(self.out_channels, out_height, out_width));
        let threads = parallel.threads().max(1);
        let needed = self.scratch_len_after(first, height, width, threads);
        assert!(
            scratch.len() >= needed,
            "Conv3x3: scratch of {} elements where {needed} are needed",
            scratch.len()
        );
        let plan = Plan::with(self, height, width, threads, false);
        let scratch = from_first_line(scratch);
        let (scratch, rest) = scratch.split_at_mut(plan.scratch);
        let (strips, bordered) = rest.split_at_mut(threads * self.strip_len(width));
        first.add_border(input, height, width, bordered);
        let (bordered, strips) = (&*bordered, Parts::new(strips));
        let run = Run {
            conv: self,
            plan: &plan,
            height,
            width,
            output: Parts::new(output),
            fuse,
            scratch: Parts::new(scratch),
        };
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
