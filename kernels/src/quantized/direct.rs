//! The definition: a few pixels of a row and a panel of output channels in registers, for all
//! input channels and taps.
//!
//! | what | layout |
//! | --- | --- |
//! | weights, packed once | `[panels, groups, 9, panel, group]`, a group being the input channels of a step |
//! | inputs, copied with a border | `[groups, H + 2, W + 2, group]` |

use super::instances::Kernels;
use super::{Job, Parameters, QConv3x3, pool_rows};
use crate::aligned::{Aligned, LINE, from_first_line};
use crate::integer::{Dot, Sums};
use crate::layout::CHANNEL_BLOCK;
use crate::panels::Panels;
use crate::parallel::{Parts, share};
use crate::vector::LANES;

/// Packed weights.
pub(super) struct Direct {
    weights: Aligned<u8>,
    /// The input byte that stands for 0, of which the border is made.
    zero: u8,
}

/// The kernels of one instruction set.
pub(super) struct DirectKernels {
    pub(super) name: &'static str,
    /// Input channels of a step, and how much less than it is an input is stored as.
    pub(super) group: usize,
    pub(super) offset: i32,
    /// Multiplications in the time of one of Winograd's, which take 16 bits.
    pub(super) speed: usize,
    /// Bytes of a weight, and of an input.
    pub(super) element: usize,
    pub(super) pack: fn(&Parameters<'_>, Panels, &mut [u8]),
    pub(super) border: unsafe fn(&Border),
    /// For a panel of [`Kernels::vectors`] blocks, and of one more if there are two: for one pixel, two
    /// pixels and so on.
    pub(super) pixels: &'static [&'static [unsafe fn(&Pixels)]],
}

impl DirectKernels {
    /// A row of `width` pixels, in as few and as equal parts as possible.
    ///
    /// # Safety
    ///
    /// The layouts of [`Pixels`] with `width` pixels; `pixels` are those of its panel.
    unsafe fn row(&self, pixels: &[unsafe fn(&Pixels)], job: &Pixels, width: usize) {
        let parts = width.div_ceil(pixels.len());
        for part in 0..parts {
            let (first, end) = (width * part / parts, width * (part + 1) / parts);
            let from = job.from.wrapping_add(first * self.group * self.element);
            let mut job = Pixels { from, ..*job };
            for to in job.to.iter_mut().filter(|to| !to.is_null()) {
                *to = to.wrapping_add(first * CHANNEL_BLOCK);
            }
            // SAFETY: the caller's, for a part of the row; these kernels are only handed
            // out where their instructions are.
            unsafe { pixels[end - first - 1](&job) }
        }
    }
}

impl Direct {
    pub(super) fn new(kernels: &Kernels, panels: Panels, parameters: &Parameters<'_>) -> Direct {
        let Parameters { in_channels, zero, .. } = *parameters;
        let direct = &kernels.direct;
        let taps = in_channels.next_multiple_of(direct.group) * 9;
        let length = panels.blocks() * CHANNEL_BLOCK * taps * direct.element;
        let mut weights = Aligned::zeroed_bytes(length);
        (direct.pack)(parameters, panels, weights.as_mut_slice());
        Direct { weights, zero }
    }

    /// Bytes, from a cache line on.
    pub(super) fn scratch_len(
        &self,
        conv: &QConv3x3,
        height: usize,
        width: usize,
        threads: usize,
    ) -> usize {
        self.bordered_len(conv, height, width) + threads.max(1) * rows_len(conv, width)
    }

    fn bordered_len(&self, conv: &QConv3x3, height: usize, width: usize) -> usize {
        let direct = &conv.kernels.direct;
        let channels = conv.in_channels.next_multiple_of(direct.group);
        (channels * (height + 2) * (width + 2) * direct.element).next_multiple_of(LINE)
    }

    pub(super) fn run(&self, job: &Job<'_>, output: &mut [u8], scratch: &mut [u8]) {
        let Job { conv, parallel, input, height, width, pool } = *job;
        let direct = &conv.kernels.direct;
        let group_len = (height + 2) * (width + 2) * direct.group * direct.element;
        let groups_of_block = CHANNEL_BLOCK / direct.group;
        let scratch = Parts::new(from_first_line(scratch));
        share(parallel, conv.in_blocks(), &|_, block| {
            let first = block * groups_of_block;
            let groups = conv.in_channels.div_ceil(direct.group) - first;
            let groups = groups.min(groups_of_block);
            let border = Border {
                from: input[block * height * width * CHANNEL_BLOCK..].as_ptr(),
                height,
                width,
                groups,
                zero: self.zero,
                // SAFETY: each block is one item, and has its own groups.
                to: unsafe { scratch.at(first * group_len, groups * group_len) },
            };
            // SAFETY: a block of the input, and room for its groups.
            unsafe { (direct.border)(&border) }
        });
        let rows = if pool { height / 2 } else { height };
        let bands = (4 * parallel.threads()).div_ceil(conv.panels.count()).clamp(1, rows);
        let (output, bordered) = (Parts::new(output), self.bordered_len(conv, height, width));
        share(parallel, conv.panels.count() * bands, &|worker, item| {
            let (panel, band) = (item / bands, item % bands);
            for y in rows * band / bands..rows * (band + 1) / bands {
                // SAFETY: inputs are only read now; each worker has its own rows, and each item
                // its own channels and rows of the output.
                unsafe {
                    let inputs = scratch.at(0, bordered).cast_const();
                    if pool {
                        let length = rows_len(conv, width);
                        let held = scratch.at(bordered + worker * length, length);
                        self.pooled_row(job, panel, y, inputs, held, output);
                    } else {
                        self.row(job, panel, y, inputs, &|vector| {
                            let at = (conv.panels.first(panel) + vector) * height + y;
                            output.at(at * width * CHANNEL_BLOCK, width * CHANNEL_BLOCK)
                        });
                    }
                }
            }
        });
    }

    /// Row `y` of the pooled output, of one panel.
    ///
    /// # Safety
    ///
    /// `inputs` has been written with a border; nobody else uses the row of the output, nor
    /// `held`, which is two rows of a panel.
    unsafe fn pooled_row(
        &self,
        job: &Job<'_>,
        panel: usize,
        y: usize,
        inputs: *const u8,
        held: *mut u8,
        output: Parts<'_, u8>,
    ) {
        let Job { conv, height, width, .. } = *job;
        let row = width * CHANNEL_BLOCK;
        for lower in 0..2 {
            // SAFETY: the caller's.
            unsafe {
                self.row(job, panel, 2 * y + lower, inputs, &|vector| {
                    held.wrapping_add((2 * vector + lower) * row)
                });
            }
        }
        let pooled = width / 2 * CHANNEL_BLOCK;
        for vector in 0..blocks_of(conv, panel) {
            let at = (conv.panels.first(panel) + vector) * (height / 2) + y;
            // SAFETY: two rows were just written, and the caller's.
            unsafe {
                let to = output.at(at * pooled, pooled);
                pool_rows(held.add(2 * vector * row), width, to);
            }
        }
    }

    /// Row `y` of the output before pooling, of one panel, each block to `[width, 16]` at
    /// `to(number)`.
    ///
    /// # Safety
    ///
    /// `inputs` has been written with a border; `to` gives room for a row.
    unsafe fn row(
        &self,
        job: &Job<'_>,
        panel: usize,
        y: usize,
        inputs: *const u8,
        to: &dyn Fn(usize) -> *mut u8,
    ) {
        let Job { conv, height, width, .. } = *job;
        let direct = &conv.kernels.direct;
        let (groups, pixel) =
            (conv.in_channels.div_ceil(direct.group), direct.group * direct.element);
        let block_len = groups * 9 * CHANNEL_BLOCK * pixel;
        let (first, vectors) = (conv.panels.first(panel), conv.panels.vectors(panel));
        let panel_len = vectors * block_len;
        let ahead = conv.panels.first((panel + job.parallel.threads()) % conv.panels.count());
        let mut pixels = Pixels {
            weights: self.weights.as_ptr().wrapping_add(first * block_len),
            bias: conv.bias(first * CHANNEL_BLOCK),
            scales: conv.scales(first * CHANNEL_BLOCK),
            from: inputs.wrapping_add(y * (width + 2) * pixel),
            groups,
            row_taps: 3,
            ahead: self.weights.as_ptr().wrapping_add(ahead * block_len + panel_len * y / height),
            ahead_step: panel_len / (groups * 9 * height).max(1),
            next_row: (width - 1) * direct.group,
            next_group: (height - 1) * (width + 2) * direct.group,
            to: [std::ptr::null_mut(); 3],
        };
        for (vector, place) in pixels.to.iter_mut().enumerate().take(blocks_of(conv, panel)) {
            *place = to(vector);
        }
        // SAFETY: three rows of `width + 2` pixels of each group follow `from`; each `to` has
        // room for `width` pixels.
        unsafe { direct.row(direct.pixels[vectors - conv.kernels.vectors], &pixels, width) }
    }
}

/// Blocks of output channels in panel number `panel`.
fn blocks_of(conv: &QConv3x3, panel: usize) -> usize {
    conv.panels.vectors(panel).min(conv.out_blocks() - conv.panels.first(panel))
}

/// Bytes of two rows of the largest panel.
fn rows_len(conv: &QConv3x3, width: usize) -> usize {
    (2 * width * conv.panels.most(conv.panels.count()) * CHANNEL_BLOCK).next_multiple_of(LINE)
}

/// Packs the weights of all panels.
pub(super) fn pack<D: Dot>(parameters: &Parameters<'_>, panels: Panels, to: &mut [u8]) {
    let Parameters { out_channels, in_channels, weights, .. } = *parameters;
    let groups = in_channels.div_ceil(D::GROUP);
    let to = to.as_mut_ptr().cast::<D::Weight>();
    for number in 0..panels.count() {
        let (first, panel) = (panels.first(number) * LANES, panels.vectors(number) * LANES);
        for o in first..(first + panel).min(out_channels) {
            let filter = &weights[o * in_channels * 9..][..in_channels * 9];
            for (i, kernel) in filter.chunks_exact(9).enumerate() {
                let step = first * groups * 9 + i / D::GROUP * 9 * panel + o - first;
                let at = step * D::GROUP + i % D::GROUP;
                for (tap, &weight) in kernel.iter().enumerate() {
                    let to = to.wrapping_add(at + tap * panel * D::GROUP);
                    // SAFETY: `to` starts at a cache line and has room for as many channels in
                    // whole panels and groups.
                    unsafe { to.write(D::weight(i16::from(weight))) };
                }
            }
        }
    }
}

/// One block of channels.
pub(super) struct Border {
    /// `[height, width, 16]`
    from: *const u8,
    height: usize,
    width: usize,
    /// Of the block's groups, those to be written.
    groups: usize,
    zero: u8,
    /// `[groups, height + 2, width + 2, group]`
    to: *mut u8,
}

/// Copies a block of channels into groups with a border of zeros.
///
/// # Safety
///
/// The layouts of [`Border`].
#[inline(always)]
pub(super) unsafe fn border<D: Dot>(job: &Border) {
    let Border { height, width, .. } = *job;
    let (row, zero) = ((width + 2) * D::GROUP, D::input(job.zero));
    for group in 0..job.groups {
        let to = job.to.cast::<D::Input>().wrapping_add(group * (height + 2) * row);
        // SAFETY: a group has `height + 2` rows, of which the first and the last are border.
        unsafe {
            for at in 0..row {
                to.add(at).write(zero);
                to.add((height + 1) * row + at).write(zero);
            }
        }
        for y in 0..height {
            let to = to.wrapping_add((y + 1) * row);
            let from = job.from.wrapping_add(y * width * CHANNEL_BLOCK + group * D::GROUP);
            // SAFETY: `width` pixels are read, and written between two of border.
            unsafe {
                for lane in 0..D::GROUP {
                    to.add(lane).write(zero);
                    to.add(row - D::GROUP + lane).write(zero);
                }
                for x in 0..width {
                    for lane in 0..D::GROUP {
                        let input = D::input(from.add(x * CHANNEL_BLOCK + lane).read());
                        to.add((x + 1) * D::GROUP + lane).write(input);
                    }
                }
            }
        }
    }
}

/// Some pixels of a row and a panel of output channels.
pub(super) struct Pixels {
    /// `[taps, panel, group]`
    weights: *const u8,
    /// `[panel]`
    bias: *const i32,
    scales: *const f32,
    /// The upper left input of the first pixel.
    from: *const u8,
    groups: usize,
    /// Three, of which no compiler may know: one that sees the taps of a row side by side keeps too
    /// much in registers.
    row_taps: usize,
    /// The weights to ask for meanwhile, because the next panel needs them, and bytes for a tap.
    ahead: *const u8,
    ahead_step: usize,
    /// Elements from behind the last tap of a row to the first of the next one, and from behind the
    /// last row of a group to the first of the next one.
    next_row: usize,
    next_group: usize,
    /// The first pixel of each block of the panel, null where no block is left.
    to: [*mut u8; 3],
}

/// `T` pixels of a panel of `P` vectors.
///
/// # Safety
///
/// The instruction set of `D`; the layouts of [`Pixels`] with `T` pixels.
#[inline(always)]
pub(super) unsafe fn pixels<D: Dot, const P: usize, const T: usize>(job: &Pixels) {
    // SAFETY: weights advance by a tap each time; the inputs of a tap are in the three rows at
    // `from`; `to` has room for T pixels.
    unsafe {
        let mut sums = [[D::Sums::splat(0); P]; T];
        for sums in &mut sums {
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = D::Sums::load(job.bias.add(vector * LANES));
            }
        }
        let mut weights = job.weights.cast::<D::Weight>();
        let mut inputs = job.from.cast::<D::Input>();
        let mut ahead = job.ahead;
        for _ in 0..job.groups {
            for _ in 0..3 {
                for _ in 0..job.row_taps {
                    D::Sums::prefetch(ahead.cast());
                    ahead = ahead.wrapping_add(job.ahead_step);
                    let mut taps = [D::weights(weights); P];
                    for (vector, tap) in taps.iter_mut().enumerate() {
                        *tap = D::weights(weights.add(vector * LANES * D::GROUP));
                    }
                    D::add_pixels(&taps, &mut sums, inputs);
                    weights = weights.add(P * LANES * D::GROUP);
                    inputs = inputs.wrapping_add(D::GROUP);
                }
                inputs = inputs.wrapping_add(job.next_row);
            }
            inputs = inputs.wrapping_add(job.next_group);
        }
        for vector in 0..P {
            if job.to[vector].is_null() {
                break;
            }
            let scales = job.scales.add(vector * LANES);
            for (pixel, sums) in sums.iter().enumerate() {
                sums[vector].store_scaled(scales, job.to[vector].add(pixel * LANES));
            }
        }
    }
}
