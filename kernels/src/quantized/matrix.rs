//! The definition, as products of matrices: sixteen pixels by 64 input channels of one tap, by sixteen
//! output channels, is what a tile register of AMX multiplies at once.
//!
//! Pixels are counted through the rows of the input with its border, so that a tile goes on in the next
//! row; what is computed for the two pixels between two rows is not used.
//!
//! | what | layout |
//! | --- | --- |
//! | weights, packed once | int8 `[panels, groups, 9, panel / 16, 16, 16, 4]`, a group being 64 input channels: by fours, output channels, the four |
//! | inputs, copied with a border | `[groups, H + 2, W + 2, 64]` |
//! | sums | int32 `[pixels, panel]` |

use super::{Job, Parameters, QConv3x3, pool_rows};
use crate::aligned::{Aligned, LINE, from_first_line};
use crate::integer::Sums;
use crate::layout::CHANNEL_BLOCK;
use crate::panels::Panels;
use crate::parallel::{Parts, share};
use crate::vector::LANES;

/// Input channels of a step.
pub(super) const GROUP: usize = 64;
/// Pixels of a tile.
pub(super) const TILE: usize = 16;
/// Bytes of the weights of a step for a block of output channels.
pub(super) const BLOCK: usize = GROUP * LANES;
/// Blocks of output channels of a panel. The last one may have one more.
pub(super) const VECTORS: usize = 2;
/// The sums of two tiles of a panel, or of one tile of the larger one, in bytes.
const SUMS: usize = 2 * TILE * VECTORS * LANES * size_of::<i32>();

/// Packed weights.
pub(super) struct Matrix {
    weights: Aligned<u8>,
    /// The input byte that stands for 0, of which the border is made.
    zero: u8,
}

/// The kernels of one instruction set.
pub(super) struct MatrixKernels {
    pub(super) name: &'static str,
    /// Whether it is faster than the others.
    pub(super) fast: bool,
    /// What a thread does before its first product and after its last one.
    pub(super) begin: unsafe fn(),
    pub(super) end: unsafe fn(),
    /// For a panel of [`VECTORS`] blocks one tile and two tiles, for a larger one one tile.
    pub(super) product: [&'static [unsafe fn(&Product)]; 2],
    pub(super) store: unsafe fn(&Store),
}

impl Matrix {
    pub(super) fn new(panels: Panels, parameters: &Parameters<'_>) -> Matrix {
        let groups = parameters.in_channels.div_ceil(GROUP);
        let mut weights = Aligned::zeroed_bytes(panels.blocks() * groups * 9 * BLOCK);
        pack(panels, parameters, weights.as_mut_slice());
        Matrix { weights, zero: parameters.zero }
    }

    /// Bytes, from a cache line on.
    pub(super) fn scratch_len(
        &self,
        conv: &QConv3x3,
        height: usize,
        width: usize,
        threads: usize,
    ) -> usize {
        bordered_len(conv, height, width) + threads.max(1) * (SUMS + rows_len(width))
    }

    pub(super) fn run(&self, job: &Job<'_>, output: &mut [u8], scratch: &mut [u8]) {
        let Job { conv, parallel, height, width, pool, .. } = *job;
        let bordered = bordered_len(conv, height, width);
        let scratch = Parts::new(from_first_line(scratch));
        let group_len = (height + 2) * (width + 2) * GROUP;
        share(parallel, conv.in_channels.div_ceil(GROUP), &|_, group| {
            // SAFETY: each group is one item.
            let to = unsafe {
                std::slice::from_raw_parts_mut(scratch.at(group * group_len, group_len), group_len)
            };
            self.add_border(job, group, to);
        });
        let (output, kernels) = (Parts::new(output), &conv.kernels.matrix);
        let (panels, rows) = (conv.panels, if pool { height / 2 } else { height });
        let bands = (4 * parallel.threads()).div_ceil(panels.count()).clamp(1, rows);
        share(parallel, panels.count() * bands, &|worker, item| {
            let (panel, band) = (item / bands, item % bands);
            let (first, end) = (rows * band / bands, rows * (band + 1) / bands);
            // SAFETY: inputs are only read now; each worker has its own sums and rows, and each
            // item its own channels and rows of the output; the kernels are for this machine.
            unsafe {
                let inputs = scratch.at(0, bordered).cast_const();
                let own = scratch
                    .at(bordered + worker * (SUMS + rows_len(width)), SUMS + rows_len(width));
                let block = panels.first(panel);
                let to = |vector: usize, y: usize| {
                    let at = ((block + vector) * rows + y) * (output_width(job) * CHANNEL_BLOCK);
                    output.at(at, output_width(job) * CHANNEL_BLOCK)
                };
                (kernels.begin)();
                if pool {
                    let held = own.add(SUMS);
                    let row = width * CHANNEL_BLOCK;
                    for y in first..end {
                        self.rows(job, panel, (2 * y, 2 * y + 2), inputs, own, &|vector, at| {
                            held.wrapping_add((2 * vector + at - 2 * y) * row)
                        });
                        for vector in 0..blocks_of(conv, panel) {
                            pool_rows(held.add(2 * vector * row), width, to(vector, y));
                        }
                    }
                } else {
                    self.rows(job, panel, (first, end), inputs, own, &to);
                }
                (kernels.end)();
            }
        });
    }

    /// Copies a group of channels with a border of zeros.
    fn add_border(&self, job: &Job<'_>, group: usize, to: &mut [u8]) {
        let Job { conv, input, height, width, .. } = *job;
        let row_len = (width + 2) * GROUP;
        let blocks = GROUP / CHANNEL_BLOCK;
        let first = group * blocks;
        let blocks = blocks.min(conv.in_blocks() - first);
        for (y, row) in to.chunks_exact_mut(row_len).enumerate() {
            if y == 0 || y == height + 1 {
                row.fill(self.zero);
                continue;
            }
            row[..GROUP].fill(self.zero);
            row[row_len - GROUP..].fill(self.zero);
            for block in 0..blocks {
                let from = ((first + block) * height + y - 1) * width * CHANNEL_BLOCK;
                let from = input[from..][..width * CHANNEL_BLOCK].as_chunks::<CHANNEL_BLOCK>().0;
                let to = row[GROUP..].as_chunks_mut::<GROUP>().0;
                for (to, from) in to.iter_mut().zip(from) {
                    to[block * CHANNEL_BLOCK..][..CHANNEL_BLOCK].copy_from_slice(from);
                }
            }
        }
    }

    /// Rows `first` to `end` of the output before pooling, of one panel, block by block to
    /// `[width, 16]` at `to(number, row)`.
    ///
    /// # Safety
    ///
    /// `inputs` has been written with a border; `sums` has room for [`SUMS`] bytes, at a cache line,
    /// and `to` gives room for a row; the thread has begun.
    unsafe fn rows(
        &self,
        job: &Job<'_>,
        panel: usize,
        (first, end): (usize, usize),
        inputs: *const u8,
        sums: *mut u8,
        to: &dyn Fn(usize, usize) -> *mut u8,
    ) {
        let Job { conv, height, width, .. } = *job;
        let (panels, kernels) = (conv.panels, &conv.kernels.matrix);
        let (groups, vectors) = (conv.in_channels.div_ceil(GROUP), panels.vectors(panel));
        let (block, row) = (panels.first(panel), width + 2);
        let products = kernels.product[vectors - VECTORS];
        let weights = self.weights.as_ptr().wrapping_add(block * groups * 9 * BLOCK);
        let pixels = (end - first) * row - 2;
        let mut pixel = 0;
        while pixel < pixels {
            let tiles = (pixels - pixel).div_ceil(TILE).min(products.len());
            let product = Product {
                inputs: inputs.wrapping_add((first * row + pixel) * GROUP),
                weights,
                groups,
                next_row: row * GROUP,
                next_group: (height + 2) * row * GROUP,
                to: sums.cast(),
            };
            // SAFETY: the taps of all pixels of the tiles are inputs, or lie in the line after them;
            // there is room for their sums.
            unsafe { products[tiles - 1](&product) };
            let count = (tiles * TILE).min(pixels - pixel);
            let mut done = 0;
            while done < count {
                let (y, x) = ((pixel + done) / row, (pixel + done) % row);
                let length = (row - x).min(count - done);
                for vector in 0..blocks_of(conv, panel) {
                    let store = Store {
                        sums: sums.cast::<i32>().wrapping_add((done * vectors + vector) * LANES),
                        stride: vectors * LANES,
                        bias: conv.bias((block + vector) * LANES),
                        scales: conv.scales((block + vector) * LANES),
                        count: length.min(width.saturating_sub(x)),
                        to: to(vector, first + y).wrapping_add(x * CHANNEL_BLOCK),
                    };
                    // SAFETY: the sums were just written; what is left of the row has room.
                    unsafe { (kernels.store)(&store) };
                }
                done += length;
            }
            pixel += count;
        }
    }
}

fn output_width(job: &Job<'_>) -> usize {
    if job.pool { job.width / 2 } else { job.width }
}

/// Blocks of output channels in panel number `panel`.
fn blocks_of(conv: &QConv3x3, panel: usize) -> usize {
    conv.panels.vectors(panel).min(conv.out_blocks() - conv.panels.first(panel))
}

/// Bytes of the inputs with a border, and what the last tile reads after it.
fn bordered_len(conv: &QConv3x3, height: usize, width: usize) -> usize {
    (conv.in_channels.div_ceil(GROUP) * (height + 2) * (width + 2) + TILE) * GROUP
}

/// Bytes of two rows of the largest panel.
fn rows_len(width: usize) -> usize {
    (2 * width * (2 * VECTORS - 1) * CHANNEL_BLOCK).next_multiple_of(LINE)
}

/// Packs the weights of all panels, line by line of what is packed.
fn pack(panels: Panels, parameters: &Parameters<'_>, to: &mut [u8]) {
    const FOUR: usize = 4;
    let Parameters { out_channels, in_channels, weights, .. } = *parameters;
    let (fours, groups) = (in_channels.div_ceil(FOUR), in_channels.div_ceil(GROUP));
    for block in 0..out_channels.div_ceil(LANES) {
        let panel = panels.of(block);
        let (first, vectors) = (panels.first(panel), panels.vectors(panel));
        let filters = &weights[block * LANES * in_channels * 9..];
        for four in 0..fours {
            let (group, row) = (four / (GROUP / FOUR), four % (GROUP / FOUR));
            let mut lines = [[[0; FOUR]; LANES]; 9];
            for (lane, filter) in filters.chunks_exact(in_channels * 9).take(LANES).enumerate() {
                let mut kernels = [0i8; FOUR * 9];
                let rest = &filter[four * FOUR * 9..];
                let count = rest.len().min(FOUR * 9);
                kernels[..count].copy_from_slice(&rest[..count]);
                for (tap, line) in lines.iter_mut().enumerate() {
                    line[lane] = [0, 1, 2, 3].map(|i| kernels[i * 9 + tap].cast_unsigned());
                }
            }
            for (tap, line) in lines.iter().enumerate() {
                let before = first * groups * 9 + (group * 9 + tap) * vectors + block - first;
                let at = before * BLOCK + row * LANES * FOUR;
                to[at..at + LANES * FOUR].copy_from_slice(line.as_flattened());
            }
        }
    }
}

/// Some tiles of pixels and a panel.
pub(super) struct Product {
    /// The upper left input of the first pixel.
    pub(super) inputs: *const u8,
    /// `[groups, 9, panel / 16, 16, 16, 4]`
    pub(super) weights: *const u8,
    pub(super) groups: usize,
    /// Bytes from one row of inputs to the next, and from one group of channels to the next.
    pub(super) next_row: usize,
    pub(super) next_group: usize,
    /// `[tiles * 16, panel]`
    pub(super) to: *mut i32,
}

/// `T` tiles by a panel of `P` blocks: the twin of what tile registers do.
///
/// # Safety
///
/// The layouts of [`Product`] with `T` tiles.
pub(super) unsafe fn plain_product<const P: usize, const T: usize>(job: &Product) {
    for pixel in 0..T * TILE {
        let mut sums = [[0i32; LANES]; P];
        for step in 0..job.groups * 9 {
            let (group, tap) = (step / 9, step % 9);
            let at = group * job.next_group + tap / 3 * job.next_row + (pixel + tap % 3) * GROUP;
            for (vector, sums) in sums.iter_mut().enumerate() {
                let weights = job.weights.wrapping_add((step * P + vector) * BLOCK);
                for i in 0..GROUP {
                    // SAFETY: the caller's: inputs of all taps, and a block of weights.
                    unsafe {
                        let input = i32::from(job.inputs.wrapping_add(at + i).read());
                        let weights = weights.wrapping_add(i / 4 * LANES * 4 + i % 4);
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            let weight = weights.wrapping_add(lane * 4).cast::<i8>().read();
                            *sum = sum.wrapping_add(i32::from(weight) * input);
                        }
                    }
                }
            }
        }
        for (vector, sums) in sums.iter().enumerate() {
            let to = job.to.wrapping_add((pixel * P + vector) * LANES);
            // SAFETY: the caller's.
            unsafe { to.cast::<[i32; LANES]>().write_unaligned(*sums) };
        }
    }
}

/// Some pixels of a row of one block of output channels.
pub(super) struct Store {
    /// `[count, stride]`, of which sixteen are read.
    sums: *const i32,
    stride: usize,
    /// Sixteen.
    bias: *const i32,
    /// Sixteen.
    scales: *const f32,
    count: usize,
    /// `[count, 16]`
    to: *mut u8,
}

/// Bias and scale.
///
/// # Safety
///
/// The instruction set of `S`; the layouts of [`Store`].
#[inline(always)]
pub(super) unsafe fn store<S: Sums>(job: &Store) {
    // SAFETY: the caller's.
    unsafe {
        let bias = S::load(job.bias);
        for pixel in 0..job.count {
            let sums = S::load(job.sums.add(pixel * job.stride));
            sums.add(bias).store_scaled(job.scales, job.to.add(pixel * LANES));
        }
    }
}
