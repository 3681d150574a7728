//! 3x3 convolutions, stride 1, padding 1, of bytes with int8 weights: ONNX's `QLinearConv`, all in
//! integers but for the last step.
//!
//! Activations are unsigned bytes in blocks of channels, as [`crate::layout`] has them: value =
//! scale x (byte - zero). An output is the sum of products plus a bias, in int32, times a float32
//! scale per output channel, rounded to the nearest integer (to the even one of two) and cut off at
//! 0 and 255. Every instance gives the same bytes.
//!
//! - `direct`: the definition. A step multiplies groups of neighbouring input channels, where the
//!   instruction set has an instruction for that.
//! - `winograd`: F(4x4, 3x3) in int16, also exact.
//! - `matrix`: the definition again, where the instruction set multiplies whole matrices.
//!
//! [`Algorithm::choose`] knows which one is faster.

use crate::aligned::{Aligned, LINE};
use crate::isa::Isa;
use crate::layout::{CHANNEL_BLOCK, blocked_len};
use crate::panels::Panels;
use crate::parallel::Parallel;

mod direct;
mod instances;
mod matrix;
mod transform;
mod winograd;

#[cfg(test)]
mod tests;

use direct::Direct;
use instances::Kernels;
use matrix::Matrix;
use winograd::Winograd;

/// How a convolution is computed; the results are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The definition, in int8 where the instruction set can: the smallest weights.
    Direct,
    /// F(4x4, 3x3) in int16: a quarter of the multiplications, weights eight times as large.
    Winograd,
    /// The definition, sixteen pixels and 64 input channels at once.
    Matrix,
}

impl Algorithm {
    /// The fastest one for images of `height` x `width`.
    pub fn choose(isa: Isa, parameters: &Parameters<'_>, height: usize, width: usize) -> Algorithm {
        let Parameters { in_channels, zero, .. } = *parameters;
        if instances::of(isa).matrix.fast && in_channels >= CHANNEL_BLOCK {
            return Algorithm::Matrix;
        }
        let tiles = height.div_ceil(4) * width.div_ceil(4);
        let direct = 9 * height * width / instances::of(isa).direct.speed;
        let exact = zero == 0 && in_channels <= winograd::MOST_CHANNELS;
        if exact && in_channels >= CHANNEL_BLOCK && direct >= 36 * tiles.max(FEW_TILES) {
            Algorithm::Winograd
        } else {
            Algorithm::Direct
        }
    }
}

/// Winograd's algorithm on fewer tiles takes as long as on so many, which is the time of reading
/// the weights.
const FEW_TILES: usize = 25;

/// What a convolution computes with.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// Output channels.
    pub out_channels: usize,
    /// Input channels.
    pub in_channels: usize,
    /// OIHW, `[out_channels, in_channels, 3, 3]`; they stand for 0 where they are 0.
    pub weights: &'a [i8],
    /// `[out_channels]`, in units of the sums.
    pub bias: &'a [i32],
    /// `[out_channels]`: output bytes per unit of the sums, at least 0.
    pub scales: &'a [f32],
    /// The byte of the input that stands for 0.
    pub zero: u8,
}

/// One convolution with its weights packed for an instruction set.
pub struct QConv3x3 {
    kernels: &'static Kernels,
    out_channels: usize,
    in_channels: usize,
    panels: Panels,
    /// `[out_channels]`, and zeros up to a whole panel.
    bias: Aligned<u8>,
    scales: Aligned<f32>,
    packed: Packed,
}

enum Packed {
    Direct(Direct),
    Winograd(Winograd),
    Matrix(Matrix),
}

impl QConv3x3 {
    /// Packs `parameters` for `isa`.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit each other, a scale is negative or no number, or `algorithm` is
    /// Winograd's for an input whose zero is not byte 0 or that has more than 1827 channels, for
    /// which it would not be exact.
    pub fn new(isa: Isa, algorithm: Algorithm, parameters: &Parameters<'_>) -> QConv3x3 {
        let Parameters { out_channels, in_channels, weights, bias, scales, zero } = *parameters;
        assert!(
            weights.len() == out_channels * in_channels * 9
                && bias.len() == out_channels
                && scales.len() == out_channels,
            "QConv3x3: {} weights, {} biases and {} scales for {out_channels} x {in_channels} x 3 x 3",
            weights.len(),
            bias.len(),
            scales.len()
        );
        let wrong = scales.iter().find(|&&scale| scale.is_nan() || scale < 0.0);
        assert!(wrong.is_none(), "QConv3x3: scale {wrong:?} where at least 0 is needed");
        let kernels = instances::of(isa);
        let vectors = match algorithm {
            Algorithm::Direct | Algorithm::Winograd => kernels.vectors,
            Algorithm::Matrix => crate::matrix::VECTORS,
        };
        let panels = Panels::new(out_channels, vectors);
        let padded = panels.blocks() * CHANNEL_BLOCK;
        let mut all_scales = Aligned::zeroed(padded);
        all_scales.as_mut_slice()[..out_channels].copy_from_slice(scales);
        let mut conv = QConv3x3 {
            kernels,
            out_channels,
            in_channels,
            panels,
            bias: Aligned::zeroed_bytes(padded * size_of::<i32>()),
            scales: all_scales,
            packed: match algorithm {
                Algorithm::Direct => Packed::Direct(Direct::new(kernels, panels, parameters)),
                Algorithm::Winograd => Packed::Winograd(Winograd::new(kernels, panels, parameters)),
                Algorithm::Matrix => Packed::Matrix(Matrix::new(panels, parameters)),
            },
        };
        let shift = match algorithm {
            Algorithm::Direct => kernels.direct.offset - i32::from(zero),
            Algorithm::Winograd => 0,
            Algorithm::Matrix => -i32::from(zero),
        };
        let slots = conv.bias.as_mut_slice().chunks_exact_mut(size_of::<i32>());
        for (o, (slot, bias)) in slots.zip(bias).enumerate() {
            let filter = &weights[o * in_channels * 9..][..in_channels * 9];
            let sum = if shift == 0 { 0 } else { filter.iter().copied().map(i32::from).sum() };
            let bias = bias.wrapping_add(shift.wrapping_mul(sum));
            slot.copy_from_slice(&bias.to_ne_bytes());
        }
        conv
    }

    /// The kernel that runs, by instruction set, operation, types and tile.
    pub fn kernel(&self) -> &'static str {
        match self.packed {
            Packed::Direct(_) => self.kernels.direct.name,
            Packed::Winograd(_) => self.kernels.winograd.name,
            Packed::Matrix(_) => self.kernels.matrix.name,
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

    /// How many bytes of scratch memory [`QConv3x3::run`] needs for an input of this size on as
    /// many threads.
    pub fn scratch_len(&self, height: usize, width: usize, threads: usize) -> usize {
        let needed = match &self.packed {
            Packed::Direct(direct) => direct.scratch_len(self, height, width, threads),
            Packed::Winograd(winograd) => winograd.scratch_len(self, height, width, threads),
            Packed::Matrix(matrix) => matrix.scratch_len(self, height, width, threads),
        };
        needed + LINE
    }

    /// Convolves a blocked `input` of `in_channels` x `height` x `width` into `output`, blocked
    /// too and of half the height and width, rounded down, if a 2x2 max-pool follows (`pool`).
    /// Every element of `output` is written, lanes after the last channel with zeros; what
    /// `scratch` holds, and the input's lanes after its last channel, does not matter.
    ///
    /// # Panics
    ///
    /// If `input` or `output` has another length or `scratch` is shorter than
    /// [`QConv3x3::scratch_len`] has it.
    #[expect(clippy::too_many_arguments, reason = "three of them are one tensor each")]
    pub fn run(
        &self,
        parallel: &dyn Parallel,
        input: &[u8],
        height: usize,
        width: usize,
        output: &mut [u8],
        pool: bool,
        scratch: &mut [u8],
    ) {
        let (out_height, out_width) = if pool { (height / 2, width / 2) } else { (height, width) };
        let needed = [
            ("input", input.len(), blocked_len(self.in_channels, height, width)),
            ("output", output.len(), blocked_len(self.out_channels, out_height, out_width)),
        ];
        for (what, found, needed) in needed {
            assert!(
                found == needed,
                "QConv3x3: {what} of {found} elements where {needed} are needed"
            );
        }
        let needed = self.scratch_len(height, width, parallel.threads());
        assert!(
            scratch.len() >= needed,
            "QConv3x3: scratch of {} elements where {needed} are needed",
            scratch.len()
        );
        if output.is_empty() {
            return;
        }
        let job = Job { conv: self, parallel, input, height, width, pool };
        match &self.packed {
            Packed::Direct(direct) => direct.run(&job, output, scratch),
            Packed::Winograd(winograd) => winograd.run(&job, output, scratch),
            Packed::Matrix(matrix) => matrix.run(&job, output, scratch),
        }
    }

    fn in_blocks(&self) -> usize {
        self.in_channels.div_ceil(CHANNEL_BLOCK)
    }

    fn out_blocks(&self) -> usize {
        self.out_channels.div_ceil(CHANNEL_BLOCK)
    }

    /// Biases from output channel `first` on.
    fn bias(&self, first: usize) -> *const i32 {
        self.bias.as_ptr().cast::<i32>().wrapping_add(first)
    }

    /// Scales from output channel `first` on.
    fn scales(&self, first: usize) -> *const f32 {
        self.scales.as_ptr().wrapping_add(first)
    }
}

/// One call of [`QConv3x3::run`], of which the lengths are right.
#[derive(Clone, Copy)]
struct Job<'a> {
    conv: &'a QConv3x3,
    parallel: &'a dyn Parallel,
    input: &'a [u8],
    height: usize,
    width: usize,
    pool: bool,
}

/// Pools two rows of one block of channels, one after the other at `rows`, to `to`.
///
/// # Safety
///
/// `rows` are two rows of `width` pixels of a block, `to` has room for one of half as many.
unsafe fn pool_rows(rows: *const u8, width: usize, to: *mut u8) {
    const PAIR: usize = 2 * CHANNEL_BLOCK;
    let (row, pooled) = (width * CHANNEL_BLOCK, width / 2 * CHANNEL_BLOCK);
    // SAFETY: the caller's.
    let (rows, to) = unsafe {
        (std::slice::from_raw_parts(rows, 2 * row), std::slice::from_raw_parts_mut(to, pooled))
    };
    let (upper, lower) = rows.split_at(row);
    let pairs = upper.as_chunks::<PAIR>().0.iter().zip(lower.as_chunks::<PAIR>().0);
    for (to, (upper, lower)) in to.as_chunks_mut::<CHANNEL_BLOCK>().0.iter_mut().zip(pairs) {
        let mut both = *upper;
        for (both, lower) in both.iter_mut().zip(lower) {
            *both = (*both).max(*lower);
        }
        let (left, right) = both.split_at(CHANNEL_BLOCK);
        for ((to, left), right) in to.iter_mut().zip(left).zip(right) {
            *to = (*left).max(*right);
        }
    }
}

/// Bytes for planar `values` (`[channels, pixels]`), in blocks: each over `scale`, rounded to the
/// nearest integer, to the even one of two, plus `zero`, and cut off at 0 and 255: ONNX's
/// `QuantizeLinear`. Lanes after the last channel become `zero`.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn quantize(
    channels: usize,
    pixels: usize,
    values: &[f32],
    scale: f32,
    zero: u8,
    to: &mut [u8],
) {
    check_lengths(channels, pixels, values.len(), to.len());
    let shift = f32::from(zero);
    to.fill(zero);
    for (channel, values) in values.chunks_exact(pixels.max(1)).enumerate() {
        let first = channel / CHANNEL_BLOCK * pixels * CHANNEL_BLOCK + channel % CHANNEL_BLOCK;
        for (to, value) in to[first..].iter_mut().step_by(CHANNEL_BLOCK).zip(values) {
            // The zero is added after rounding, which decides between two even neighbours.
            let steps = (value / scale).clamp(-shift, 255.0 - shift);
            *to = (round(steps) + shift) as u8;
        }
    }
}

/// Planar values (`[channels, pixels]`) of blocked bytes: `scale` x (byte - `zero`), ONNX's
/// `DequantizeLinear`.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn dequantize(
    channels: usize,
    pixels: usize,
    bytes: &[u8],
    scale: f32,
    zero: u8,
    to: &mut [f32],
) {
    check_lengths(channels, pixels, to.len(), bytes.len());
    for (channel, to) in to.chunks_exact_mut(pixels.max(1)).enumerate() {
        let first = channel / CHANNEL_BLOCK * pixels * CHANNEL_BLOCK + channel % CHANNEL_BLOCK;
        for (to, byte) in to.iter_mut().zip(bytes[first..].iter().step_by(CHANNEL_BLOCK)) {
            *to = scale * f32::from(i16::from(*byte) - i16::from(zero));
        }
    }
}

fn check_lengths(channels: usize, pixels: usize, planar: usize, blocked: usize) {
    assert!(
        planar == channels * pixels && blocked == blocked_len(channels, pixels, 1),
        "{planar} planar and {blocked} blocked elements for {channels} channels of {pixels} pixels"
    );
}

/// The nearest integer, the even one of two, cut off at 0 and 255; 0 if `value` is no number.
pub(crate) fn nearest_byte(value: f32) -> u8 {
    round(value.clamp(0.0, 255.0)) as u8
}

/// The nearest integer to `value`, whose magnitude is below 2^22, and the even one of two. In
/// contrast to `f32::round_ties_even` that is no call on processors without an instruction for it.
fn round(value: f32) -> f32 {
    const LAST_BIT_IS_ONE: f32 = (3 << 22) as f32;
    (value + LAST_BIT_IS_ONE) - LAST_BIT_IS_ONE
}
