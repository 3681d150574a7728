//! The first convolution of a network, 3x3, stride 1, padding 1, from a planar image of
//! few channels to blocked activations, in float32. With three channels a product per
//! transformed position would be too thin for Winograd; this is the definition, with
//! a row of outputs in registers.

use crate::aligned::{Aligned, from_first_line};
use crate::isa::{Isa, Kind};
use crate::layout::{CHANNEL_BLOCK, blocked_len};
use crate::parallel::{Parallel, Parts, share};
#[cfg(target_arch = "aarch64")]
use crate::vector::neon::Neon;
use crate::vector::{LANES, Vector, plain::Plain};
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2::Avx2, avx512::Avx512};

#[cfg(test)]
mod tests;

/// One convolution with its weights packed for an instruction set.
pub struct Direct3x3 {
    kernels: &'static Kernels,
    out_channels: usize,
    in_channels: usize,
    /// `[panels, in_channels * 9, panel]`
    weights: Aligned<f32>,
    bias: Aligned<f32>,
}

impl Direct3x3 {
    /// Packs `weights` (`[out_channels, in_channels, 3, 3]`, OIHW) and `bias`
    /// (`[out_channels]`) for `isa`.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit each other.
    pub fn new(
        isa: Isa,
        out_channels: usize,
        in_channels: usize,
        weights: &[f32],
        bias: &[f32],
    ) -> Direct3x3 {
        assert!(
            weights.len() == out_channels * in_channels * 9 && bias.len() == out_channels,
            "Direct3x3: {} weights and {} biases for {out_channels} x {in_channels} x 3 x 3",
            weights.len(),
            bias.len()
        );
        let kernels = of(isa);
        let (panel, taps) = (kernels.panel, in_channels * 9);
        let mut packed = Aligned::zeroed(out_channels.next_multiple_of(panel) * taps);
        for (index, &weight) in weights.iter().enumerate() {
            let (o, tap) = (index / taps, index % taps);
            packed.as_mut_slice()[(o / panel * taps + tap) * panel + o % panel] = weight;
        }
        let mut padded = Aligned::zeroed(out_channels.next_multiple_of(panel));
        padded.as_mut_slice()[..out_channels].copy_from_slice(bias);
        Direct3x3 { kernels, out_channels, in_channels, weights: packed, bias: padded }
    }

    /// The kernel that runs, by instruction set, operation, type and tile.
    pub fn kernel(&self) -> &'static str {
        self.kernels.name
    }

    /// How many elements of scratch memory [`Direct3x3::run`] needs.
    pub fn scratch_len(&self, height: usize, width: usize) -> usize {
        self.bordered_len(height, width) + CHANNEL_BLOCK
    }

    /// Convolves a planar `input` (`[in_channels, height, width]`) into a blocked
    /// `output` of the same height and width, then takes the maximum with zero if
    /// `relu`. Every element of `output` is written; what `scratch` holds does not
    /// matter.
    ///
    /// # Panics
    ///
    /// If `input` or `output` has another length or `scratch` is shorter than
    /// [`Direct3x3::scratch_len`] has it.
    #[expect(clippy::too_many_arguments, reason = "three of them are one tensor each")]
    pub fn run(
        &self,
        parallel: &dyn Parallel,
        input: &[f32],
        height: usize,
        width: usize,
        output: &mut [f32],
        relu: bool,
        scratch: &mut [f32],
    ) {
        let needed = [
            ("input", input.len(), self.in_channels * height * width),
            ("output", output.len(), blocked_len(self.out_channels, height, width)),
        ];
        for (what, found, needed) in needed {
            assert!(
                found == needed,
                "Direct3x3: {what} of {found} elements where {needed} are needed"
            );
        }
        let needed = self.scratch_len(height, width);
        assert!(
            scratch.len() >= needed,
            "Direct3x3: scratch of {} elements where {needed} are needed",
            scratch.len()
        );
        if output.is_empty() {
            return;
        }
        let scratch = from_first_line(scratch);
        self.add_border(input, height, width, scratch);
        let (bordered, output) = (&*scratch, Parts::new(output));
        share(parallel, height, &|_, y| {
            // SAFETY: each item has its own row of the output.
            let to = |block: usize| unsafe {
                let pixel = (block * height + y) * width;
                output.at(pixel * CHANNEL_BLOCK, width * CHANNEL_BLOCK)
            };
            // SAFETY: a row of every block was just handed out.
            unsafe { self.row(bordered, height, width, y, relu, &to) }
        });
    }

    /// Output channels.
    pub(crate) fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Input channels.
    pub(crate) fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// Elements of [`Direct3x3::add_border`]'s result.
    pub(crate) fn bordered_len(&self, height: usize, width: usize) -> usize {
        self.in_channels * (height + 2) * (width + 2)
    }

    /// Copies `input` into `[in_channels, height + 2, width + 2]` with a zero border.
    pub(crate) fn add_border(
        &self,
        input: &[f32],
        height: usize,
        width: usize,
        bordered: &mut [f32],
    ) {
        let (row, plane) = (width + 2, (height + 2) * (width + 2));
        for channel in 0..self.in_channels {
            let bordered = &mut bordered[channel * plane..][..plane];
            bordered[..row].fill(0.0);
            bordered[plane - row..].fill(0.0);
            for y in 0..height {
                let to = &mut bordered[(y + 1) * row..][..row];
                to[0] = 0.0;
                to[1..=width].copy_from_slice(&input[(channel * height + y) * width..][..width]);
                to[width + 1] = 0.0;
            }
        }
    }

    /// Computes row `y` of every block of output channels, each into `[width, 16]` at
    /// `to(block)`.
    ///
    /// # Safety
    ///
    /// `to` gives room for a row.
    pub(crate) unsafe fn row(
        &self,
        bordered: &[f32],
        height: usize,
        width: usize,
        y: usize,
        relu: bool,
        to: &dyn Fn(usize) -> *mut f32,
    ) {
        assert!(bordered.len() >= self.bordered_len(height, width) && y < height);
        let (vectors, taps) = (self.kernels.panel / CHANNEL_BLOCK, self.in_channels * 9);
        let blocks = self.out_channels.div_ceil(CHANNEL_BLOCK);
        let (row, plane) = (width + 2, (height + 2) * (width + 2));
        for block in (0..blocks).step_by(vectors) {
            let first = block * CHANNEL_BLOCK;
            let mut job = Job {
                weights: self.weights.as_ptr().wrapping_add(first * taps),
                bias: self.bias.as_ptr().wrapping_add(first),
                floor: if relu { 0.0 } else { f32::NEG_INFINITY },
                from: bordered[y * (width + 2)..].as_ptr(),
                channels: self.in_channels,
                row_taps: 3,
                next_row: row - 3,
                next_plane: plane - 3 * row,
                to: [std::ptr::null_mut(); 2],
            };
            for (vector, place) in job.to.iter_mut().enumerate().take(vectors.min(blocks - block)) {
                *place = to(block + vector);
            }
            // SAFETY: three rows of `width + 2` pixels lie at `from` in each plane; `to`
            // is a row of `width` pixels of each block that exists.
            unsafe { self.kernels.row(&job, width) }
        }
    }
}

/// Some pixels of a row and a panel of output channels.
struct Job {
    /// `[channels * 9, panel]`
    weights: *const f32,
    /// `[panel]`
    bias: *const f32,
    floor: f32,
    /// The upper left input of the first pixel.
    from: *const f32,
    /// Of the input.
    channels: usize,
    /// Three, of which no compiler may know: one that sees the taps of a row side by side
    /// keeps too much in registers.
    row_taps: usize,
    /// Elements from behind the last tap of a row to the first of the next one, and from
    /// behind the last row of a plane to the first of the next one.
    next_row: usize,
    next_plane: usize,
    /// The first pixel of each block of the panel, null where no block is left.
    to: [*mut f32; 2],
}

/// `T` pixels of a panel of `P` vectors.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Job`] with `T` pixels.
#[inline(always)]
unsafe fn pixels<V: Vector, const P: usize, const T: usize>(job: &Job) {
    // SAFETY: weights advance by a tap each time; the inputs of a tap are in the three
    // rows at `from`; `to` has room for T pixels.
    unsafe {
        let mut sums = [[V::zero(); P]; T];
        for sums in &mut sums {
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(job.bias.add(vector * LANES));
            }
        }
        let mut weights = job.weights;
        let mut inputs = job.from;
        for _ in 0..job.channels {
            for _ in 0..3 {
                for _ in 0..job.row_taps {
                    let mut taps = [V::load(weights); P];
                    for (vector, tap) in taps.iter_mut().enumerate() {
                        *tap = V::load(weights.add(vector * LANES));
                    }
                    add_pixels(&taps, &mut sums, inputs);
                    weights = weights.add(P * LANES);
                    inputs = inputs.wrapping_add(1);
                }
                inputs = inputs.wrapping_add(job.next_row);
            }
            inputs = inputs.wrapping_add(job.next_plane);
        }
        let floor = V::splat(job.floor);
        for vector in 0..P {
            if job.to[vector].is_null() {
                break;
            }
            for (pixel, sums) in sums.iter().enumerate() {
                floor.max(sums[vector]).store(job.to[vector].add(pixel * LANES));
            }
        }
    }
}

/// Adds the products of a tap and the pixels from `inputs` on.
///
/// # Safety
///
/// The instruction set of `V`; as many readable inputs as there are sums.
#[inline(always)]
unsafe fn add_pixels<V: Vector, const P: usize>(
    taps: &[V; P],
    sums: &mut [[V; P]],
    inputs: *const f32,
) {
    let (fours, others) = sums.as_chunks_mut::<4>();
    // Four more may not be readable.
    let last = inputs.wrapping_add(4 * fours.len());
    // SAFETY: each input has a sum.
    unsafe {
        for (four, [first, second, third, fourth]) in fours.iter_mut().enumerate() {
            let quad = V::quad(inputs.add(4 * four));
            add_quad::<V, P, 0>(taps, first, quad);
            add_quad::<V, P, 1>(taps, second, quad);
            add_quad::<V, P, 2>(taps, third, quad);
            add_quad::<V, P, 3>(taps, fourth, quad);
        }
        for (pixel, sums) in others.iter_mut().enumerate() {
            let input = V::splat(*last.add(pixel));
            for (sum, tap) in sums.iter_mut().zip(taps) {
                *sum = tap.mul_add(input, *sum);
            }
        }
    }
}

/// The same for scalar number `L` of a quad.
///
/// # Safety
///
/// The instruction set of `V`; the quad is still in memory.
#[inline(always)]
unsafe fn add_quad<V: Vector, const P: usize, const L: i32>(
    taps: &[V; P],
    sums: &mut [V; P],
    quad: V::Quad,
) {
    for (sum, tap) in sums.iter_mut().zip(taps) {
        // SAFETY: the caller's.
        *sum = unsafe { tap.mul_add_quad::<L>(quad, *sum) };
    }
}

/// The kernels of one instruction set.
struct Kernels {
    name: &'static str,
    /// Output channels of a panel.
    panel: usize,
    /// For one pixel, two pixels and so on.
    pixels: &'static [unsafe fn(&Job)],
}

impl Kernels {
    /// A row of `width` pixels, in as few and as equal parts as possible.
    ///
    /// # Safety
    ///
    /// The layouts of [`Job`] with `width` pixels.
    unsafe fn row(&self, job: &Job, width: usize) {
        let parts = width.div_ceil(self.pixels.len());
        for part in 0..parts {
            let (first, end) = (width * part / parts, width * (part + 1) / parts);
            let mut job = Job { from: job.from.wrapping_add(first), ..*job };
            for to in job.to.iter_mut().filter(|to| !to.is_null()) {
                *to = to.wrapping_add(first * CHANNEL_BLOCK);
            }
            // SAFETY: the caller's, for a part of the row; these kernels are only handed
            // out where their instructions are.
            unsafe { self.pixels[end - first - 1](&job) }
        }
    }
}

fn of(isa: Isa) -> &'static Kernels {
    match isa.kind() {
        Kind::Plain => &plain::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Vnni | Kind::Amx => &avx512::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Kind::Neon | Kind::NeonDot | Kind::NeonHalf => &neon::KERNELS,
        #[cfg(target_arch = "arm")]
        Kind::Neon32 => &plain::KERNELS,
    }
}

macro_rules! instance {
    ($module:ident, $vector:ty, $panel:literal, $tiles:tt, $name:literal $(, $features:literal)?) => {
        mod $module {
            use super::*;

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                panel: $panel * CHANNEL_BLOCK,
                pixels: &instance!(@tiles $tiles),
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn some<const T: usize>(job: &Job) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { pixels::<$vector, $panel, T>(job) }
            }
        }
    };
    (@tiles [$($tiles:literal)*]) => { [$(some::<$tiles>),*] };
}

instance!(plain, Plain, 1, [1 2 3 4], "plain_direct3x3_f32_16x4");
#[cfg(target_arch = "x86_64")]
instance!(avx2, Avx2, 1, [1 2 3 4 5 6], "avx2_direct3x3_f32_16x6", "avx2,fma");
#[cfg(target_arch = "x86_64")]
instance!(
    avx512,
    Avx512,
    2,
    [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    "avx512_direct3x3_f32_32x14",
    "avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "aarch64")]
instance!(neon, Neon, 1, [1 2 3 4 5 6], "neon_direct3x3_f32_16x6", "neon");
