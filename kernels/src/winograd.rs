//! 3x3 convolutions by Winograd's F(4x4, 3x3) or F(2x2, 3x3) (Lavin and Gray 2016): 36
//! multiplications where the direct form has 144, or 16 for 36.
//!
//! A tile of 4x4 outputs reads 6x6 inputs. With `d` the inputs and `g` the 3x3 weights,
//! its outputs are `A^T [sum over channels of (G g G^T) * (B^T d B)] A`: the input
//! transform gives each of 36 positions a matrix of channels by tiles, 36 matrix
//! products follow, and the output transform adds bias, ReLU and a 2x2 max-pool.
//!
//! | what | layout |
//! | --- | --- |
//! | activations | `[C / 16, H, W, 16]`, see [`crate::layout`]; no border |
//! | weights, packed once | `[36, panels, C_in, panel]`, a panel being one to three vectors of output channels |
//! | transformed inputs | `[36, C_in / 16, tiles, 16]` |
//! | products | `[36, C_out / 16, tiles, 16]` |
//!
//! With [`Precision::Half`](crate::Precision::Half) transformed weights and inputs are int16 or
//! float16, in pairs of input channels: an element is a pair, and there are half as many. How they are
//! rounded, and why no sum overflows, is said in `half`.
//!
//! Output channels are the vector lanes, and transformed inputs are broadcast: no
//! transposition anywhere.
//!
//! Packed weights grow by 36 / 9 or 16 / 9. Where an image has few tiles, reading them
//! from memory takes longer than the arithmetic, and the smaller tile wins: see
//! [`Tile::choose`].

use crate::aligned::Aligned;
use crate::convolution::Job;
use crate::isa::Isa;
use crate::layout::CHANNEL_BLOCK;
use crate::panels::{Panels, part};
use crate::parallel::{Parallel, Parts, share};

mod half;
mod instances;
#[cfg(target_arch = "arm")]
mod neon32;
mod product;
mod stem;
mod transform;

#[cfg(test)]
pub(crate) mod bounds;

use half::{RoundInputs, RoundWeights};
pub(crate) use instances::Kernels;
#[cfg(test)]
pub(crate) use instances::TWIN;
use instances::Transforms;
use transform::{Input, Output, Weights};

/// The outputs that are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tile {
    /// F(2x2, 3x3): 16 multiplications for 4 outputs, the smaller weights.
    Two,
    /// F(4x4, 3x3): 36 multiplications for 16 outputs.
    Four,
}

impl Tile {
    /// The faster one on `isa` for an image of `height` x `width`: arithmetic and reading
    /// weights go on at the same time, and the longer one counts.
    pub fn choose(isa: Isa, height: usize, width: usize) -> Tile {
        let cost = |tile: Tile| {
            let tiles = height.div_ceil(tile.side()) * width.div_ceil(tile.side());
            tile.positions() * tiles.max(size_of::<f32>() * multiplications_per_byte(isa))
        };
        if cost(Tile::Two) < cost(Tile::Four) { Tile::Two } else { Tile::Four }
    }

    /// Outputs per side.
    fn side(self) -> usize {
        match self {
            Tile::Two => 2,
            Tile::Four => 4,
        }
    }

    /// Transformed inputs of a tile.
    pub(crate) fn positions(self) -> usize {
        (self.side() + 2) * (self.side() + 2)
    }
}

/// Multiplications of float32 in the time that reading a byte of weights takes: between 3 and 8 on one core
/// of the machines measured, but with AVX2 1.7.
fn multiplications_per_byte(isa: Isa) -> usize {
    if isa.name() == "avx2" { 2 } else { 6 }
}

/// One convolution with its weights packed for an instruction set.
pub(crate) struct Winograd {
    kernels: &'static Kernels,
    tile: Tile,
    out_channels: usize,
    in_channels: usize,
    weights: Aligned<f32>,
    /// `[positions, output channels of all panels]` if weights are of half the width.
    weight_scales: Aligned<f32>,
    bias: Aligned<f32>,
}

impl Winograd {
    /// Packs `weights` (`[out_channels, in_channels, 3, 3]`, OIHW) and `bias` (`[out_channels]`).
    pub(crate) fn new(
        kernels: &'static Kernels,
        tile: Tile,
        in_channels: usize,
        weights: &[f32],
        bias: &[f32],
    ) -> Winograd {
        let out_channels = bias.len();
        let panels = Panels::new(out_channels, kernels.vectors);
        let mut padded = Aligned::zeroed(panels.blocks() * CHANNEL_BLOCK);
        padded.as_mut_slice()[..out_channels].copy_from_slice(bias);
        let mut conv = Winograd {
            kernels,
            tile,
            out_channels,
            in_channels,
            weights: Aligned::zeroed(0),
            weight_scales: Aligned::zeroed(0),
            bias: padded,
        };
        conv.pack(weights);
        conv
    }

    pub(crate) fn kernel(&self) -> &'static str {
        self.kernels.name
    }

    /// Bytes of the packed weights.
    pub(crate) fn packed_bytes(&self) -> usize {
        self.weights.len() * size_of::<f32>()
    }

    /// Elements of scratch memory, from a cache line on.
    pub(crate) fn scratch_len(&self, height: usize, width: usize, threads: usize) -> usize {
        Plan::new(self, height, width, threads).scratch
    }

    pub(crate) fn run(
        &self,
        job: &Job<'_>,
        parallel: &dyn Parallel,
        input: &[f32],
        scratch: &mut [f32],
    ) {
        let plan = Plan::new(self, job.height, job.width, parallel.threads());
        Run { conv: self, plan: &plan, job, scratch: Parts::new(scratch) }.all(parallel, input);
    }

    fn in_blocks(&self) -> usize {
        self.in_channels.div_ceil(CHANNEL_BLOCK)
    }

    fn out_blocks(&self) -> usize {
        self.out_channels.div_ceil(CHANNEL_BLOCK)
    }

    fn panels(&self) -> Panels {
        Panels::new(self.out_channels, self.kernels.vectors)
    }

    /// Elements of packed weights in one block of output channels, at one position.
    fn block_len(&self) -> usize {
        self.in_blocks() * self.kernels.elements() * CHANNEL_BLOCK
    }

    fn transforms(&self) -> &'static Transforms {
        match self.tile {
            Tile::Two => &self.kernels.two,
            Tile::Four => &self.kernels.four,
        }
    }

    fn pack(&mut self, weights: &[f32]) {
        let (panels, block_len) = (self.panels(), self.block_len());
        let (positions, blocks) = (self.tile.positions(), panels.blocks());
        let mut packed = Aligned::zeroed(positions * blocks * block_len);
        let mut scales = Aligned::zeroed(0);
        for number in 0..panels.count() {
            let (first_block, vectors) = (panels.first(number), panels.vectors(number));
            let (first, panel) = (first_block * CHANNEL_BLOCK, vectors * CHANNEL_BLOCK);
            let count = panel.min(self.out_channels - first);
            let size = vectors * block_len;
            let transform = |to: &mut [f32], stride: usize| {
                let in_channels = self.in_channels;
                let mut job =
                    Weights { from: weights, in_channels, first, count, panel, to, stride };
                // SAFETY: the kernels are for this machine.
                unsafe { (self.transforms().weights)(&mut job) }
            };
            let Some(round) = &self.kernels.round else {
                transform(
                    &mut packed.as_mut_slice()[first_block * block_len..],
                    blocks * block_len,
                );
                continue;
            };
            if number == 0 {
                scales = Aligned::zeroed(positions * blocks * CHANNEL_BLOCK);
            }
            let mut single = vec![0.0; positions * 2 * size];
            transform(&mut single, 2 * size);
            for (position, single) in single.chunks_exact(2 * size).enumerate() {
                let at = position * blocks + first_block;
                let mut job = RoundWeights {
                    from: single,
                    panel,
                    to: &mut packed.as_mut_slice()[at * block_len..][..size],
                    scales: &mut scales.as_mut_slice()[at * CHANNEL_BLOCK..][..panel],
                };
                // SAFETY: the kernels are for this machine.
                unsafe { (round.weights)(&mut job) }
            }
        }
        (self.weights, self.weight_scales) = (packed, scales);
    }
}

/// Transformed input that should stay in a core's own cache, in elements.
const CACHED: usize = 288 << 10;

/// Fewer tiles than this are transformed once for all threads, because weights are
/// then most of the traffic and each should be read once.
const FEW_TILES: usize = 64;

/// How a run is cut into parts.
struct Plan {
    tiles_wide: usize,
    tiles: usize,
    /// Tiles that go through all three stages together.
    batch: usize,
    /// Into how many parts the panels of output channels are cut. The products of a part are held
    /// together.
    chunks: usize,
    /// Whether all threads share one batch, and divide its panels among them.
    shared: bool,
    /// Tiles that are transformed together, if they are rounded then, because their scales
    /// need all channels. What is not yet rounded lies where the products will.
    group: usize,
    /// Elements from one position to the next of the transformed input, which ends with
    /// the scales, and of the products: a line more than needed, so that positions fall
    /// into different sets of the cache.
    input_stride: usize,
    product_stride: usize,
    scratch: usize,
}

impl Plan {
    fn new(conv: &Winograd, height: usize, width: usize, threads: usize) -> Plan {
        let tiles = height.div_ceil(conv.tile.side()) * width.div_ceil(conv.tile.side());
        Plan::with(conv, height, width, threads, tiles <= FEW_TILES)
    }

    fn with(conv: &Winograd, height: usize, width: usize, threads: usize, shared: bool) -> Plan {
        let threads = threads.max(1);
        let (tiles_high, tiles_wide) =
            (height.div_ceil(conv.tile.side()), width.div_ceil(conv.tile.side()));
        let (tiles, positions) = (tiles_high * tiles_wide, conv.tile.positions());
        let (product, elements) = (conv.kernels.tiles(), conv.kernels.elements());
        let batch = if shared {
            tiles
        } else {
            let most = CACHED / (positions * conv.in_blocks().max(1) * elements);
            let most = (most / product * product).clamp(product, 2 * product);
            let batches = tiles.div_ceil(most).next_multiple_of(threads);
            tiles.div_ceil(batches)
        };
        let panels = conv.panels();
        let chunks =
            if shared { panels.count().min(threads * 2) } else { panels.count().div_ceil(4) };
        let scales = if conv.kernels.round.is_some() { batch } else { 0 };
        let input_stride = (conv.in_blocks() * batch * elements + scales)
            .next_multiple_of(CHANNEL_BLOCK)
            + CHANNEL_BLOCK;
        let group = batch.div_ceil(batch.div_ceil(half::GROUP).max(1));
        let single = if conv.kernels.round.is_some() { conv.in_blocks() * group } else { 0 };
        let product_stride =
            (panels.most(chunks) * batch).max(single) * CHANNEL_BLOCK + CHANNEL_BLOCK;
        let (inputs, products) = (positions * input_stride, positions * product_stride);
        let scratch =
            if shared { inputs + threads * products } else { threads * (inputs + products) };
        Plan {
            tiles_wide,
            tiles,
            batch,
            chunks,
            shared,
            group,
            input_stride,
            product_stride,
            scratch,
        }
    }
}

/// One call of [`Winograd::run`].
struct Run<'a> {
    conv: &'a Winograd,
    plan: &'a Plan,
    job: &'a Job<'a>,
    scratch: Parts<'a, f32>,
}

impl Run<'_> {
    fn all(&self, parallel: &dyn Parallel, input: &[f32]) {
        let Plan { tiles, batch, chunks, shared, group, .. } = *self.plan;
        if tiles == 0 {
            return;
        }
        let (inputs, products) = self.scratch_parts();
        let pixels = self.job.height * self.job.width * CHANNEL_BLOCK;
        let input = |block: usize| input[block * pixels..][..pixels].as_ptr();
        let in_blocks = self.conv.in_blocks();
        if shared {
            if let Some(round) = &self.conv.kernels.round {
                share(parallel, tiles.div_ceil(group), &|worker, item| {
                    let (first, scratch) = (item * group, inputs + worker * products);
                    let count = group.min(tiles - first);
                    // SAFETY: each group of tiles is one item; each worker has its own
                    // products, which begin after all inputs.
                    unsafe { self.round_input(round, &input, (0, first), count, 0, scratch) }
                });
            } else {
                share(parallel, in_blocks, &|_, block| {
                    // SAFETY: each block is one item; the products begin after all inputs.
                    unsafe { self.transform_input(input(block), block, 0, tiles, 0) }
                });
            }
            share(parallel, chunks, &|worker, chunk| {
                // SAFETY: the inputs are only read now; each worker has its own products,
                // and each chunk, which is one item, its own output channels.
                unsafe { self.multiply(chunk, 0, tiles, 0, inputs + worker * products) }
            });
        } else {
            share(parallel, tiles.div_ceil(batch), &|worker, item| {
                let (first, at) = (item * batch, worker * (inputs + products));
                let count = batch.min(tiles - first);
                // SAFETY: each worker has its own part of the scratch, and each item its
                // own tiles of the output.
                unsafe { self.batch(&input, first, count, at) }
            });
        }
    }

    /// Elements of the transformed input of a batch, and of the products of a chunk.
    fn scratch_parts(&self) -> (usize, usize) {
        let positions = self.conv.tile.positions();
        (positions * self.plan.input_stride, positions * self.plan.product_stride)
    }

    /// All stages of `count` tiles, with scratch `at` for inputs and products.
    ///
    /// # Safety
    ///
    /// `input` gives blocks of input channels, `[height, width, 16]` with at least the
    /// rows that the tiles read; nobody else uses the scratch or these tiles of the
    /// output.
    unsafe fn batch(
        &self,
        input: &dyn Fn(usize) -> *const f32,
        first: usize,
        count: usize,
        at: usize,
    ) {
        let (inputs, _) = self.scratch_parts();
        if let Some(round) = &self.conv.kernels.round {
            for tile in (0..count).step_by(self.plan.group) {
                let group = self.plan.group.min(count - tile);
                // SAFETY: the caller's; the products are not there yet.
                unsafe { self.round_input(round, input, (first, tile), group, at, at + inputs) }
            }
        } else {
            for block in 0..self.conv.in_blocks() {
                // SAFETY: the caller's.
                unsafe { self.transform_input(input(block), block, first, count, at) }
            }
        }
        for chunk in 0..self.plan.chunks {
            // SAFETY: the caller's.
            unsafe { self.multiply(chunk, first, count, at, at + inputs) }
        }
    }

    /// Transforms a block of input channels for `count` tiles into the scratch `at`.
    ///
    /// # Safety
    ///
    /// `from` is this block, `[height, width, 16]` with at least the rows that the tiles
    /// read; nobody else uses the block's transformed input at `at`.
    unsafe fn transform_input(
        &self,
        from: *const f32,
        block: usize,
        first: usize,
        count: usize,
        at: usize,
    ) {
        let Plan { tiles_wide, batch, input_stride, .. } = *self.plan;
        let positions = self.conv.tile.positions();
        // SAFETY: the caller's, for the part from this block on.
        let to = unsafe { self.scratch.at(at, positions * input_stride) };
        let job = Input {
            from,
            height: self.job.height,
            width: self.job.width,
            tiles_wide,
            first,
            count,
            to: to.wrapping_add(block * batch * CHANNEL_BLOCK),
            stride: input_stride,
        };
        // SAFETY: `from` is one block of the input; `to` has room for `count <= batch`
        // tiles at each position; the kernels are for this machine.
        unsafe { (self.conv.transforms().input)(&job) }
    }

    /// Transforms and rounds all input channels of `count` tiles, beginning with number
    /// `tile` of the batch that begins with `first`, into the batch's scratch `at`, by way
    /// of the scratch at `single`.
    ///
    /// # Safety
    ///
    /// `input` as in [`Run::batch`]; nobody else uses these tiles' transformed input or the
    /// scratch at `single`.
    unsafe fn round_input(
        &self,
        round: &instances::Round,
        input: &dyn Fn(usize) -> *const f32,
        (first, tile): (usize, usize),
        count: usize,
        at: usize,
        single: usize,
    ) {
        let Plan { tiles_wide, batch, input_stride, product_stride, .. } = *self.plan;
        let (positions, in_blocks) = (self.conv.tile.positions(), self.conv.in_blocks());
        // SAFETY: the caller's.
        let (to, single) = unsafe {
            (
                self.scratch.at(at, positions * input_stride),
                self.scratch.at(single, positions * product_stride),
            )
        };
        for block in 0..in_blocks {
            let job = Input {
                from: input(block),
                height: self.job.height,
                width: self.job.width,
                tiles_wide,
                first: first + tile,
                count,
                to: single.wrapping_add(block * count * CHANNEL_BLOCK),
                stride: product_stride,
            };
            // SAFETY: `from` is one block of the input; `single` has room for a group of
            // all blocks at each position; the kernels are for this machine.
            unsafe { (self.conv.transforms().input)(&job) }
        }
        let job = RoundInputs {
            from: single,
            from_stride: product_stride,
            positions,
            in_blocks,
            count,
            to: to.wrapping_add(tile * half::PAIRS),
            batch,
            scales: to.wrapping_add(self.scales() + tile),
            stride: input_stride,
        };
        // SAFETY: all blocks of the group were just written; a batch has room for these
        // tiles and their scales at each position; the kernels are for this machine.
        unsafe { (round.inputs)(&job) }
    }

    /// Where the scales of a position's transformed input are.
    fn scales(&self) -> usize {
        self.conv.in_blocks() * self.plan.batch * self.conv.kernels.elements()
    }

    /// Multiplies `count` transformed tiles at `inputs` with a chunk of output channels
    /// into `products`, and transforms those into the output.
    ///
    /// # Safety
    ///
    /// Nobody writes the inputs or uses the products or these channels and tiles of the
    /// output.
    unsafe fn multiply(
        &self,
        chunk: usize,
        first: usize,
        count: usize,
        inputs: usize,
        products: usize,
    ) {
        let Plan { tiles_wide, batch, chunks, input_stride, product_stride, .. } = *self.plan;
        let Winograd { kernels, weights, weight_scales, bias, .. } = self.conv;
        let (panels, in_blocks) = (self.conv.panels(), self.conv.in_blocks());
        let (positions, block_len) = (self.conv.tile.positions(), self.conv.block_len());
        let chunk = part(panels.count(), chunks, chunk);
        let first_block = panels.first(chunk.start);
        let place = |position, panel| position * panels.blocks() + panels.first(panel);
        // SAFETY: the caller's.
        let (inputs, products) = unsafe {
            (
                self.scratch.at(inputs, positions * input_stride).cast_const(),
                self.scratch.at(products, positions * product_stride),
            )
        };
        for position in 0..positions {
            for panel in chunk.clone() {
                let block = panels.first(panel) - first_block;
                let next = if panel + 1 < chunk.end {
                    place(position, panel + 1)
                } else if position + 1 < positions {
                    place(position + 1, chunk.start)
                } else {
                    place(0, chunk.end % panels.count())
                };
                let here = place(position, panel);
                let inputs = inputs.wrapping_add(position * input_stride);
                let job = product::Product {
                    ahead: weights.as_ptr().wrapping_add(next * block_len),
                    ahead_step: 0,
                    weights: weights.as_ptr().wrapping_add(here * block_len),
                    weight_scales: weight_scales.as_ptr().wrapping_add(here * CHANNEL_BLOCK),
                    inputs,
                    input_scales: inputs.wrapping_add(self.scales()),
                    in_blocks,
                    input_stride: batch * kernels.elements(),
                    stride: batch * CHANNEL_BLOCK,
                    to: products
                        .wrapping_add(position * product_stride + block * batch * CHANNEL_BLOCK),
                };
                // SAFETY: one panel of the packed weights; inputs and products of one
                // position, for `count <= batch` tiles.
                unsafe { kernels.multiply(&job, panels.vectors(panel), count) }
            }
        }
        let (height, width) = (self.job.height, self.job.width);
        let pixels = if self.job.fuse.pool { (height / 2) * (width / 2) } else { height * width };
        for block in first_block..panels.first(chunk.end).min(self.conv.out_blocks()) {
            // SAFETY: the caller's.
            let to = unsafe {
                self.job.output.at(block * pixels * CHANNEL_BLOCK, pixels * CHANNEL_BLOCK)
            };
            let held = block - first_block;
            let job = Output {
                from: products.wrapping_add(held * batch * CHANNEL_BLOCK),
                stride: product_stride,
                bias: bias.as_ptr().wrapping_add(block * CHANNEL_BLOCK),
                fuse: self.job.fuse,
                height,
                width,
                tiles_wide,
                first,
                count,
                to,
            };
            // SAFETY: the products were just written; `to` is one block of the output.
            unsafe { (self.conv.transforms().output)(&job) }
        }
    }
}
