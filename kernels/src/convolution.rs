//! 3x3 convolutions, stride 1, padding 1, of float32 with bias, ReLU and a 2x2 max-pool, computed in
//! float32 or at half the width. Activations lie in blocks of channels, see [`crate::layout`].
//!
//! - `winograd`: F(4x4, 3x3) and F(2x2, 3x3), in float32, int16 or float16.
//! - `matrix`: the definition in bfloat16, where the instruction set multiplies whole matrices.
//!
//! [`Algorithm::choose`] knows which one is faster.

use crate::aligned::from_first_line;
use crate::direct::Direct3x3;
use crate::isa::Isa;
use crate::layout::{CHANNEL_BLOCK, blocked_len};
use crate::parallel::{Parallel, Parts};
use crate::winograd::{self, Tile, Winograd};

mod matrix;

#[cfg(test)]
mod tests;

use matrix::Matrix;

/// What follows a convolution, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fuse {
    /// Maximum with zero.
    pub relu: bool,
    /// 2x2 max-pool with stride 2; a last odd row or column is dropped.
    pub pool: bool,
}

/// The numbers that products are computed with. All else is float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Float32.
    #[default]
    Single,
    /// Numbers of 16 bits: half the bytes, and up to twice as fast where [`Isa::has_half`]. Int16
    /// summed up in int32 or float16, with scales, or bfloat16 summed up in float32.
    Half,
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Winograd's, by tiles of outputs. At half precision it is plain Rust unless [`Isa::has_half`].
    Winograd(Precision, Tile),
    /// The definition in bfloat16, sixteen pixels and 32 input channels at once.
    Matrix,
}

impl Algorithm {
    /// The fastest one in this precision for `in_channels` x `height` x `width`. Matrices are faster
    /// than int16 in every layer of VGG-19 behind the first, at 224 x 224 and at 160 x 160.
    pub fn choose(
        isa: Isa,
        precision: Precision,
        in_channels: usize,
        height: usize,
        width: usize,
    ) -> Algorithm {
        let fast = precision == Precision::Half && matrix::kernels(isa).fast;
        if fast && in_channels >= CHANNEL_BLOCK {
            Algorithm::Matrix
        } else {
            Algorithm::Winograd(precision, Tile::choose(isa, height, width))
        }
    }

    /// Bytes of the packed weights from one input channel to one output channel.
    pub fn packed_bytes(self) -> usize {
        match self {
            Algorithm::Winograd(Precision::Single, tile) => 4 * tile.positions(),
            Algorithm::Winograd(Precision::Half, tile) => 2 * tile.positions(),
            Algorithm::Matrix => 2 * 9,
        }
    }
}

/// One convolution with its weights packed for an instruction set.
pub struct Conv3x3 {
    out_channels: usize,
    in_channels: usize,
    packed: Packed,
}

enum Packed {
    Winograd(Winograd),
    Matrix(Matrix),
}

impl Conv3x3 {
    /// Packs `weights` (`[out_channels, in_channels, 3, 3]`, OIHW) and `bias` (`[out_channels]`) for
    /// `isa`; takes [`Conv3x3::packed_bytes`] of memory.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit each other.
    pub fn new(
        isa: Isa,
        algorithm: Algorithm,
        out_channels: usize,
        in_channels: usize,
        weights: &[f32],
        bias: &[f32],
    ) -> Conv3x3 {
        assert!(
            weights.len() == out_channels * in_channels * 9 && bias.len() == out_channels,
            "Conv3x3: {} weights and {} biases for {out_channels} x {in_channels} x 3 x 3",
            weights.len(),
            bias.len()
        );
        let packed = match algorithm {
            Algorithm::Winograd(precision, tile) => {
                let kernels = winograd::Kernels::of(isa, precision);
                Packed::Winograd(Winograd::new(kernels, tile, in_channels, weights, bias))
            }
            Algorithm::Matrix => {
                Packed::Matrix(Matrix::new(matrix::kernels(isa), in_channels, weights, bias))
            }
        };
        Conv3x3 { out_channels, in_channels, packed }
    }

    /// The kernel that runs, by instruction set, operation, type and tile.
    pub fn kernel(&self) -> &'static str {
        match &self.packed {
            Packed::Winograd(winograd) => winograd.kernel(),
            Packed::Matrix(matrix) => matrix.kernel(),
        }
    }

    /// Output channels.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Input channels.
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// Bytes of the packed weights.
    pub fn packed_bytes(&self) -> usize {
        match &self.packed {
            Packed::Winograd(winograd) => winograd.packed_bytes(),
            Packed::Matrix(matrix) => matrix.packed_bytes(),
        }
    }

    /// How many elements of scratch memory [`Conv3x3::run`] needs for an input of this size on as
    /// many threads.
    pub fn scratch_len(&self, height: usize, width: usize, threads: usize) -> usize {
        let needed = match &self.packed {
            Packed::Winograd(winograd) => winograd.scratch_len(height, width, threads),
            Packed::Matrix(matrix) => matrix.scratch_len(height, width, threads),
        };
        needed + CHANNEL_BLOCK
    }

    /// Convolves a blocked `input` of `in_channels` x `height` x `width` into `output`,
    /// blocked too and of half the height and width, rounded down, if `fuse.pool`. Every
    /// element of `output` is written; what `scratch` holds does not matter.
    ///
    /// # Panics
    ///
    /// If `input` or `output` has another length or `scratch` is shorter than
    /// [`Conv3x3::scratch_len`] has it.
    #[expect(clippy::too_many_arguments, reason = "five of them are one tensor each")]
    pub fn run(
        &self,
        parallel: &dyn Parallel,
        input: &[f32],
        height: usize,
        width: usize,
        output: &mut [f32],
        fuse: Fuse,
        scratch: &mut [f32],
    ) {
        check_length("input", input.len(), blocked_len(self.in_channels, height, width));
        self.check_output(output.len(), height, width, fuse);
        let needed = self.scratch_len(height, width, parallel.threads());
        check_scratch(scratch.len(), needed);
        if output.is_empty() {
            return;
        }
        let job = Job { height, width, fuse, output: Parts::new(output) };
        let scratch = from_first_line(scratch);
        match &self.packed {
            Packed::Winograd(winograd) => winograd.run(&job, parallel, input, scratch),
            Packed::Matrix(matrix) => matrix.run(&job, parallel, input, scratch),
        }
    }

    /// How many elements of scratch memory [`Conv3x3::run_after`] needs for an image of
    /// this size on as many threads.
    pub fn scratch_len_after(
        &self,
        first: &Direct3x3,
        height: usize,
        width: usize,
        threads: usize,
    ) -> usize {
        let needed = match &self.packed {
            Packed::Winograd(winograd) => winograd.scratch_len_after(height, width, threads),
            Packed::Matrix(matrix) => matrix.scratch_len_after(height, width, threads),
        };
        needed + bordered_len(first, height, width) + CHANNEL_BLOCK
    }

    /// `first`, ReLU, then this convolution: the same as [`Direct3x3::run`] and
    /// [`Conv3x3::run`], without the activation between them, of which rows are made where they are
    /// about to be read and never travel to memory.
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
        check_length("input", input.len(), first.in_channels() * height * width);
        self.check_output(output.len(), height, width, fuse);
        let needed = self.scratch_len_after(first, height, width, parallel.threads());
        check_scratch(scratch.len(), needed);
        if output.is_empty() {
            return;
        }
        let job = Job { height, width, fuse, output: Parts::new(output) };
        let scratch = from_first_line(scratch);
        let (bordered, scratch) = scratch.split_at_mut(bordered_len(first, height, width));
        first.add_border(input, height, width, bordered);
        match &self.packed {
            Packed::Winograd(it) => it.run_after(&job, first, parallel, bordered, scratch),
            Packed::Matrix(it) => it.run_after(&job, first, parallel, bordered, scratch),
        }
    }

    fn check_output(&self, found: usize, height: usize, width: usize, fuse: Fuse) {
        let side = if fuse.pool { 2 } else { 1 };
        check_length("output", found, blocked_len(self.out_channels, height / side, width / side));
    }
}

/// Elements of the input of `first` with its border, up to the next cache line.
fn bordered_len(first: &Direct3x3, height: usize, width: usize) -> usize {
    first.bordered_len(height, width).next_multiple_of(CHANNEL_BLOCK)
}

fn check_length(what: &str, found: usize, needed: usize) {
    assert!(found == needed, "Conv3x3: {what} of {found} elements where {needed} are needed");
}

fn check_scratch(found: usize, needed: usize) {
    assert!(found >= needed, "Conv3x3: scratch of {found} elements where {needed} are needed");
}

/// One call of [`Conv3x3::run`], of which the lengths are right.
pub(crate) struct Job<'a> {
    /// Of the input.
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) fuse: Fuse,
    pub(crate) output: Parts<'a, f32>,
}
