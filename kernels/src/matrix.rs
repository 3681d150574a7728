//! 3x3 convolutions by the definition, as products of matrices: sixteen pixels by 64 bytes of input
//! channels of one tap, by sixteen output channels, is what a tile register of AMX multiplies at once.
//! Knows how numbers lie, and not which: bytes with sums in int32, or bfloat16 with sums in float32.
//!
//! Pixels are counted through the rows of the input with its border, so that a tile goes on in the next
//! row; what is computed for the two pixels between two rows is not used.
//!
//! | what | layout |
//! | --- | --- |
//! | weights, packed once | `[panels, groups, 9, panel / 16, 16, 16, 4 bytes]`, a group being 64 bytes of input channels: by four bytes, output channels, the four |
//! | inputs, copied with a border | `[groups, rows + 2, width + 2, 64 bytes]` |
//! | sums | `[pixels, panel]`, of four bytes |
//!
//! A panel of weights is multiplied with all pixels whose inputs were copied, so that it is read from
//! memory once for them and from the core's own cache for all but the first.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::layout::CHANNEL_BLOCK;
use crate::panels::{Panels, part};
use crate::parallel::{Parallel, Parts, share};
use crate::vector::LANES;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;

/// Bytes of the input channels of a step.
pub(crate) const GROUP: usize = 64;
/// Pixels of a tile.
pub(crate) const TILE: usize = 16;
/// Bytes of the weights of a step for a block of output channels.
pub(crate) const BLOCK: usize = GROUP * LANES;
/// Blocks of output channels of a panel. The last one may have one more.
pub(crate) const VECTORS: usize = 2;
/// Bytes of input channels that an instruction multiplies in one lane.
const FOUR: usize = 4;
/// Bytes of a sum.
const SUM: usize = 4;

/// Inputs that should stay in a core's own cache, in bytes.
const CACHED: usize = 1 << 20;
/// Pixels whose sums should.
const PIXELS: usize = 512;

/// What one instruction set has for one type of numbers.
pub(crate) struct Kernels {
    /// What a thread does before its first product and after its last one.
    pub(crate) begin: unsafe fn(),
    pub(crate) end: unsafe fn(),
    /// For a panel of [`VECTORS`] blocks one tile and two tiles, for a larger one one tile.
    pub(crate) product: [&'static [unsafe fn(&Product)]; 2],
}

/// Some tiles of pixels and a panel.
pub(crate) struct Product {
    /// The upper left input of the first pixel.
    pub(crate) inputs: *const u8,
    /// `[groups, 9, panel / 16, 16, 16, 4 bytes]`
    pub(crate) weights: *const u8,
    pub(crate) groups: usize,
    /// Bytes from one row of inputs to the next, and from one group of channels to the next.
    pub(crate) next_row: usize,
    pub(crate) next_group: usize,
    /// `[tiles * 16, panel]`
    pub(crate) to: *mut u8,
}

/// Sums of some rows of one block of output channels.
pub(crate) struct Sums {
    /// Sixteen of the first pixel.
    sums: *const u8,
    /// Bytes from one pixel to the next, and from one row to the next.
    next_pixel: usize,
    next_row: usize,
    pub(crate) block: usize,
    /// The first row, and how many; with pooling, both are even.
    first: usize,
    pub(crate) rows: usize,
}

impl Sums {
    /// Where the outputs of these rows lie in blocks of an image of this height and width, and how many
    /// elements they are.
    pub(crate) fn outputs(&self, height: usize, width: usize, pool: bool) -> (usize, usize) {
        let side = if pool { 2 } else { 1 };
        let row = width / side * CHANNEL_BLOCK;
        ((self.block * (height / side) + self.first / side) * row, self.rows / side * row)
    }

    /// Sixteen of one pixel, the row being counted from the first.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, pixel: usize) -> *const u8 {
        self.sums.wrapping_add(row * self.next_row + pixel * self.next_pixel)
    }
}

/// Copies a row of the input, given by number, on a worker, given by number, too. Of a block of channels
/// the pixels go to the place that is given for it, 64 bytes after each other.
pub(crate) type Input<'a> = dyn Fn(usize, usize, &dyn Fn(usize) -> *mut u8) + Sync + 'a;

/// Makes outputs of sums.
pub(crate) type Output<'a> = dyn Fn(&Sums) + Sync + 'a;

/// A convolution for inputs of one size.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) kernels: &'static Kernels,
    pub(crate) weights: &'a Aligned<u8>,
    /// Blocks of sixteen input channels, of so many bytes for a pixel.
    pub(crate) in_blocks: usize,
    pub(crate) block_bytes: usize,
    pub(crate) panels: Panels,
    pub(crate) out_blocks: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Whether a last odd row is left out.
    pub(crate) pool: bool,
    /// The byte that a border is made of.
    pub(crate) zero: u8,
}

/// Inputs with a border for some rows of outputs.
#[derive(Clone, Copy)]
struct Bordered {
    start: *mut u8,
    /// The first of these rows, and how many.
    first: usize,
    rows: usize,
}

impl Matrix<'_> {
    /// Bytes of scratch memory, from a cache line on, that [`Matrix::run`] needs.
    pub(crate) fn scratch_len(&self, threads: usize) -> usize {
        let threads = threads.max(1);
        match self.bands(threads) {
            None => self.bordered_len(self.height) + threads * self.sums_len(),
            Some(bands) => threads * self.band_len(most_rows(self.height, bands)),
        }
    }

    /// All of it; `scratch` begins at a cache line.
    pub(crate) fn run(
        &self,
        parallel: &dyn Parallel,
        input: &Input<'_>,
        output: &Output<'_>,
        scratch: Parts<'_, u8>,
    ) {
        let height = if self.pool { self.height / 2 * 2 } else { self.height };
        let pairs = height.div_ceil(2);
        let rows = |parts, number| {
            let pairs = part(pairs, parts, number);
            2 * pairs.start..height.min(2 * pairs.end)
        };
        if let Some(bands) = self.bands(parallel.threads().max(1)) {
            let length = self.band_len(most_rows(self.height, bands));
            share(parallel, bands, &|worker, band| {
                // SAFETY: each worker has its own scratch.
                unsafe {
                    let scratch = scratch.at(worker * length, length);
                    self.band(worker, rows(bands, band), input, output, scratch);
                }
            });
            return;
        }
        let bordered = self.bordered_len(self.height);
        // SAFETY: what a worker may do with them is said below.
        let inputs =
            || unsafe { Bordered { start: scratch.at(0, bordered), first: 0, rows: self.height } };
        share(parallel, self.height + 2, &|worker, y| {
            // SAFETY: each row is one item.
            unsafe { self.copy(worker, y, input, inputs()) }
        });
        let bands = (4 * parallel.threads()).div_ceil(self.panels.count()).clamp(1, pairs.max(1));
        share(parallel, self.panels.count() * bands, &|worker, item| {
            let (panel, rows) = (item / bands, rows(bands, item % bands));
            // SAFETY: inputs are only read now; each worker has its own sums.
            unsafe {
                let sums = scratch.at(bordered + worker * self.sums_len(), self.sums_len());
                (self.kernels.begin)();
                self.multiply(panel, rows, inputs(), sums, output);
                (self.kernels.end)();
            }
        });
    }

    /// Bytes of scratch memory that [`Matrix::band`] needs for as many rows.
    fn band_len(&self, rows: usize) -> usize {
        self.bordered_len(rows) + self.sums_len()
    }

    /// Some rows of all panels.
    ///
    /// # Safety
    ///
    /// Nobody else uses `scratch`.
    unsafe fn band(
        &self,
        worker: usize,
        rows: Range<usize>,
        input: &Input<'_>,
        output: &Output<'_>,
        scratch: *mut u8,
    ) {
        let sums = scratch.wrapping_add(self.bordered_len(rows.len()));
        let inputs = Bordered { start: scratch, first: rows.start, rows: rows.len() };
        // SAFETY: the caller's.
        unsafe {
            for y in rows.start..rows.end + 2 {
                self.copy(worker, y, input, inputs);
            }
            (self.kernels.begin)();
            for panel in 0..self.panels.count() {
                self.multiply(panel, rows.clone(), inputs, sums, output);
            }
            (self.kernels.end)();
        }
    }

    /// Into how many bands rows are cut whose inputs are copied one band after another, so that they
    /// stay in a core's own cache. None if all of them fit: then all threads share one copy and divide
    /// the panels, so that each weight is read once.
    fn bands(&self, threads: usize) -> Option<usize> {
        let bytes = self.bordered_len(self.height);
        let bands = bytes.div_ceil(CACHED).next_multiple_of(threads);
        (bytes > CACHED).then_some(bands.min(self.height / 2).max(1))
    }

    /// An even number of rows, which have about [`PIXELS`].
    fn rows(&self) -> usize {
        2 * (PIXELS / 2 / (self.width + 2)).max(1)
    }

    fn groups(&self) -> usize {
        groups(self.in_blocks, self.block_bytes)
    }

    /// Bytes of a row of a group with its border.
    fn row_len(&self) -> usize {
        (self.width + 2) * GROUP
    }

    /// Bytes of the inputs with a border, and of what the last tile reads after them.
    fn bordered_len(&self, rows: usize) -> usize {
        self.groups() * (rows + 2) * self.row_len() + TILE * GROUP
    }

    /// Bytes of the sums of [`Matrix::rows`] and a panel.
    fn sums_len(&self) -> usize {
        let pixels = (self.rows() * (self.width + 2)).next_multiple_of(TILE);
        pixels * (2 * VECTORS - 1) * LANES * SUM
    }

    /// Row `y` of a group, number 0 being the border above the first row of the image.
    fn row(&self, inputs: Bordered, group: usize, y: usize) -> *mut u8 {
        let before = group * (inputs.rows + 2) + y - inputs.first;
        inputs.start.wrapping_add(before * self.row_len())
    }

    /// Copies row `y` with its border.
    ///
    /// # Safety
    ///
    /// There is room for the inputs; nobody else uses this row of them.
    unsafe fn copy(&self, worker: usize, y: usize, input: &Input<'_>, to: Bordered) {
        let per_group = GROUP / self.block_bytes;
        let inside = (1..=self.height).contains(&y);
        for group in 0..self.groups() {
            let row = self.row(to, group, y);
            // SAFETY: the caller's.
            let row = unsafe { std::slice::from_raw_parts_mut(row, self.row_len()) };
            if !inside || (group + 1) * per_group > self.in_blocks {
                row.fill(self.zero);
            } else {
                row[..GROUP].fill(self.zero);
                row[self.row_len() - GROUP..].fill(self.zero);
            }
        }
        if inside {
            input(worker, y - 1, &|block| {
                let row = self.row(to, block / per_group, y);
                row.wrapping_add(GROUP + block % per_group * self.block_bytes)
            });
        }
    }

    /// Some rows of one panel.
    ///
    /// # Safety
    ///
    /// The inputs of these rows have been copied; nobody else uses `sums`, which has room for
    /// [`Matrix::sums_len`] bytes; the thread has begun.
    unsafe fn multiply(
        &self,
        panel: usize,
        rows: Range<usize>,
        inputs: Bordered,
        sums: *mut u8,
        output: &Output<'_>,
    ) {
        let (vectors, block, groups) =
            (self.panels.vectors(panel), self.panels.first(panel), self.groups());
        let (products, next_row) = (self.kernels.product[vectors - VECTORS], self.row_len());
        let (next_pixel, step) = (vectors * LANES * SUM, self.rows());
        for y in rows.clone().step_by(step) {
            let rows = step.min(rows.end - y);
            let tiles = (rows * (self.width + 2) - 2).div_ceil(TILE);
            let mut tile = 0;
            while tile < tiles {
                let together = products.len().min(tiles - tile);
                let product = Product {
                    inputs: self.row(inputs, 0, y).wrapping_add(tile * TILE * GROUP),
                    weights: self.weights.as_ptr().wrapping_add(block * groups * 9 * BLOCK),
                    groups,
                    next_row,
                    next_group: (inputs.rows + 2) * next_row,
                    to: sums.wrapping_add(tile * TILE * next_pixel),
                };
                // SAFETY: the taps of all pixels of the tiles are inputs, or lie in the lines after
                // them; there is room for their sums.
                unsafe { products[together - 1](&product) };
                tile += together;
            }
            for vector in 0..vectors.min(self.out_blocks - block) {
                output(&Sums {
                    sums: sums.wrapping_add(vector * LANES * SUM),
                    next_pixel,
                    next_row: (self.width + 2) * next_pixel,
                    block: block + vector,
                    first: y,
                    rows,
                });
            }
        }
    }
}

/// The most rows that one of `bands` bands of pairs of rows has.
fn most_rows(height: usize, bands: usize) -> usize {
    2 * height.div_ceil(2).div_ceil(bands)
}

/// Groups of input channels that lie in blocks of so many bytes for a pixel; at least one.
fn groups(in_blocks: usize, block_bytes: usize) -> usize {
    in_blocks.div_ceil(GROUP / block_bytes).max(1)
}

/// Packs `weights` (`[out_channels, in_channels, 3, 3]`, OIHW) as [`Matrix`] has them, each as `bytes` of it.
pub(crate) fn pack<W: Copy, const BYTES: usize>(
    panels: Panels,
    in_channels: usize,
    weights: &[W],
    bytes: impl Fn(W) -> [u8; BYTES],
) -> Aligned<u8> {
    let groups = groups(in_channels.div_ceil(CHANNEL_BLOCK), CHANNEL_BLOCK * BYTES);
    let mut packed = Aligned::zeroed_bytes(panels.blocks() * groups * 9 * BLOCK);
    let to = packed.as_mut_slice();
    for (channel, filter) in weights.chunks_exact((in_channels * 9).max(1)).enumerate() {
        let (block, lane) = (channel / LANES, channel % LANES);
        let panel = panels.of(block);
        let (first, vectors) = (panels.first(panel), panels.vectors(panel));
        for (channel, kernel) in filter.as_chunks::<9>().0.iter().enumerate() {
            let (group, byte) = (channel * BYTES / GROUP, channel * BYTES % GROUP);
            let within = (byte / FOUR * LANES + lane) * FOUR + byte % FOUR;
            for (tap, weight) in kernel.iter().enumerate() {
                let before = first * groups * 9 + (group * 9 + tap) * vectors + block - first;
                to[before * BLOCK + within..][..BYTES].copy_from_slice(&bytes(*weight));
            }
        }
    }
    packed
}

/// For instruction sets whose registers need nothing.
pub(crate) unsafe fn nothing() {}
