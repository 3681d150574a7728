//! F(4x4, 3x3) in int16 (Lavin and Gray 2016), exact.
//!
//! `Y = A^T [sum over channels of (G g G^T) * (B^T d B)] A / 900` with whole numbers in all three
//! matrices: the transforms are those of the points 0, -2, 1, -1, 1/2 and infinity, of which no two
//! are nearer than a factor 2 to each other, 2-adically, and `G` takes what divides the rows of the
//! others. Inputs become 24990 at most, weights 28800, so both are int16. Products are summed modulo
//! 2^32, which loses nothing: 900 is 4 x 225, 225 has an inverse modulo 2^32, and what is left is 4
//! Y, which fits for up to [`MOST_CHANNELS`].
//!
//! | what | layout |
//! | --- | --- |
//! | weights, packed once | int16 `[36, panels, C_in / group, panel, group]`, a group being the input channels of a step |
//! | transformed inputs | int16 `[36, C_in / 16, tiles, 16]` |
//! | products | int32 `[36, C_out / 16, tiles, 16]` |

use super::instances::Kernels;
use super::transform::{Input, Output, POSITIONS, SIDE};
use super::{Job, Parameters, QConv3x3};
use crate::aligned::{Aligned, LINE, from_first_line};
use crate::integer::{Dot, Sums};
use crate::layout::CHANNEL_BLOCK;
use crate::panels::{Panels, part};
use crate::parallel::{Parts, share};
use crate::vector::LANES;

/// With more channels, 4 x 9 x 128 x 255 for each, a sum might not fit.
pub(super) const MOST_CHANNELS: usize = i32::MAX as usize / (4 * 9 * 128 * 255);

/// Packed weights.
pub(super) struct Winograd {
    weights: Aligned<u8>,
}

/// The kernels of one instruction set.
pub(super) struct WinogradKernels {
    pub(super) name: &'static str,
    pub(super) pack: unsafe fn(&Parameters<'_>, Panels, &mut [u8]),
    pub(super) input: unsafe fn(&Input),
    /// For a panel of [`Kernels::vectors`] blocks, and of one more if there are two: for one tile, two
    /// tiles and so on.
    pub(super) product: &'static [&'static [unsafe fn(&Product)]],
    pub(super) output: unsafe fn(&Output),
}

impl WinogradKernels {
    /// A panel of `panel` channels times `count` tiles by `product`, in as few and as equal parts as
    /// possible.
    ///
    /// # Safety
    ///
    /// The layouts of [`Product`] with at least `count` tiles; these kernels are for its panel.
    #[inline(always)]
    unsafe fn multiply(product: &[unsafe fn(&Product)], job: &Product, panel: usize, count: usize) {
        let parts = count.div_ceil(product.len());
        let size = job.in_blocks * CHANNEL_BLOCK * panel;
        for part in 0..parts {
            let (first, end) = (count * part / parts, count * (part + 1) / parts);
            let job = Product {
                inputs: job.inputs.wrapping_add(first * CHANNEL_BLOCK),
                to: job.to.wrapping_add(first * CHANNEL_BLOCK),
                ahead: job.ahead.wrapping_add(size / 4 * part / parts),
                ahead_step: CHANNEL_BLOCK / 4 * panel / parts,
                ..*job
            };
            // SAFETY: the caller's, for a part of the tiles; these kernels are only handed
            // out where their instructions are.
            unsafe { product[end - first - 1](&job) }
        }
    }
}

impl Winograd {
    pub(super) fn new(kernels: &Kernels, panels: Panels, parameters: &Parameters<'_>) -> Winograd {
        let Parameters { in_channels, zero, .. } = *parameters;
        assert!(
            zero == 0 && in_channels <= MOST_CHANNELS,
            "QConv3x3: {in_channels} input channels of which byte {zero} is 0, where Winograd's \
             algorithm takes at most {MOST_CHANNELS} and byte 0"
        );
        let elements = POSITIONS * panels.blocks() * block_len(in_channels);
        let mut weights = Aligned::zeroed_bytes(elements * size_of::<i16>());
        // SAFETY: the kernels are for this machine.
        unsafe { (kernels.winograd.pack)(parameters, panels, weights.as_mut_slice()) };
        Winograd { weights }
    }

    /// Bytes, from a cache line on.
    pub(super) fn scratch_len(
        &self,
        conv: &QConv3x3,
        height: usize,
        width: usize,
        threads: usize,
    ) -> usize {
        Plan::new(conv, height, width, threads).scratch
    }

    pub(super) fn run(&self, job: &Job<'_>, output: &mut [u8], scratch: &mut [u8]) {
        let plan = Plan::new(job.conv, job.height, job.width, job.parallel.threads());
        let (output, scratch) = (Parts::new(output), Parts::new(from_first_line(scratch)));
        Run { winograd: self, job, plan: &plan, output, scratch }.all();
    }
}

/// Elements of packed weights in one block of output channels, at one position.
fn block_len(in_channels: usize) -> usize {
    in_channels.next_multiple_of(CHANNEL_BLOCK) * CHANNEL_BLOCK
}

/// Transformed input that should stay in a core's own cache, in bytes.
const CACHED: usize = 900 << 10;

/// Products that should stay there too.
const CACHED_PRODUCTS: usize = 256 << 10;

/// Fewer tiles than this are transformed once for all threads, because weights are then most of
/// the traffic and each should be read once.
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
    /// Elements from one position to the next of the transformed input, and of the products: a
    /// line more than needed, so that positions fall into different sets of the cache.
    input_stride: usize,
    product_stride: usize,
    /// Bytes of the transformed input of a batch, and of the products of a chunk.
    inputs: usize,
    products: usize,
    scratch: usize,
}

impl Plan {
    fn new(conv: &QConv3x3, height: usize, width: usize, threads: usize) -> Plan {
        let tiles = height.div_ceil(SIDE) * width.div_ceil(SIDE);
        Plan::with(conv, height, width, threads, tiles <= FEW_TILES)
    }

    fn with(conv: &QConv3x3, height: usize, width: usize, threads: usize, shared: bool) -> Plan {
        let (threads, panels) = (threads.max(1), conv.panels);
        let (tiles_high, tiles_wide) = (height.div_ceil(SIDE), width.div_ceil(SIDE));
        let tiles = tiles_high * tiles_wide;
        let group = conv.kernels.winograd.product[0].len();
        let batch = if shared {
            tiles
        } else {
            let tile = POSITIONS * conv.in_blocks().max(1) * CHANNEL_BLOCK * size_of::<i16>();
            let most = (CACHED / tile / group * group).clamp(group, 4 * group);
            let batches = tiles.div_ceil(most).next_multiple_of(threads);
            tiles.div_ceil(batches)
        };
        let one = POSITIONS * conv.kernels.vectors * CHANNEL_BLOCK * batch * size_of::<i32>();
        let fitting = (CACHED_PRODUCTS / one.max(1)).max(1);
        let chunks = panels.count().div_ceil(fitting);
        let chunks = if shared { chunks.max(threads * 2).min(panels.count()) } else { chunks };
        let input_stride = conv.in_blocks() * batch * CHANNEL_BLOCK + LINE / size_of::<i16>();
        let product_stride = panels.most(chunks) * CHANNEL_BLOCK * batch + LINE / size_of::<i32>();
        let inputs = (POSITIONS * input_stride * size_of::<i16>()).next_multiple_of(LINE);
        let products = POSITIONS * product_stride * size_of::<i32>();
        let scratch =
            if shared { inputs + threads * products } else { threads * (inputs + products) };
        Plan {
            tiles_wide,
            tiles,
            batch,
            chunks,
            shared,
            input_stride,
            product_stride,
            inputs,
            products,
            scratch,
        }
    }
}

/// One call of [`Winograd::run`].
struct Run<'a> {
    winograd: &'a Winograd,
    job: &'a Job<'a>,
    plan: &'a Plan,
    output: Parts<'a, u8>,
    scratch: Parts<'a, u8>,
}

impl Run<'_> {
    fn all(&self) {
        let Plan { tiles, batch, chunks, shared, inputs, products, .. } = *self.plan;
        let Job { conv, parallel, .. } = *self.job;
        let in_blocks = conv.in_blocks();
        if shared {
            share(parallel, in_blocks, &|_, block| {
                // SAFETY: each block is one item; the products begin after all inputs.
                unsafe { self.transform_input(block, 0, tiles, 0) }
            });
            share(parallel, chunks, &|worker, chunk| {
                // SAFETY: the inputs are only read now; each worker has its own products, and
                // each chunk, which is one item, its own output channels.
                unsafe { self.multiply(chunk, 0, tiles, 0, inputs + worker * products) }
            });
        } else {
            share(parallel, tiles.div_ceil(batch), &|worker, item| {
                let (first, at) = (item * batch, worker * (inputs + products));
                let count = batch.min(tiles - first);
                // SAFETY: each worker has its own part of the scratch, and each item its own
                // tiles of the output.
                unsafe {
                    for block in 0..in_blocks {
                        self.transform_input(block, first, count, at);
                    }
                    for chunk in 0..chunks {
                        self.multiply(chunk, first, count, at, at + inputs);
                    }
                }
            });
        }
    }

    /// Transforms a block of input channels for `count` tiles into the scratch `at`.
    ///
    /// # Safety
    ///
    /// Nobody else uses the block's transformed input at `at`.
    unsafe fn transform_input(&self, block: usize, first: usize, count: usize, at: usize) {
        let Plan { tiles_wide, batch, input_stride, inputs, .. } = *self.plan;
        let Job { conv, input, height, width, .. } = *self.job;
        // SAFETY: the caller's, for the part from this block on.
        let to = unsafe { self.scratch.at(at, inputs) }.cast::<i16>();
        let job = Input {
            from: input[block * height * width * CHANNEL_BLOCK..].as_ptr(),
            height,
            width,
            tiles_wide,
            first,
            count,
            to: to.wrapping_add(block * batch * CHANNEL_BLOCK),
            stride: input_stride,
        };
        // SAFETY: `from` is one block of the input; `to` has room for `count <= batch` tiles at
        // each position; the kernels are for this machine.
        unsafe { (conv.kernels.winograd.input)(&job) }
    }

    /// Multiplies `count` transformed tiles at `inputs` with a chunk of output channels into
    /// `products`, and transforms those into the output.
    ///
    /// # Safety
    ///
    /// Nobody writes the inputs or uses the products or these channels and tiles of the output.
    unsafe fn multiply(
        &self,
        chunk: usize,
        first: usize,
        count: usize,
        inputs: usize,
        products: usize,
    ) {
        let Plan { tiles_wide, batch, chunks, input_stride, product_stride, .. } = *self.plan;
        let Job { conv, height, width, pool, .. } = *self.job;
        let (panels, in_blocks) = (conv.panels, conv.in_blocks());
        let weights = self.winograd.weights.as_ptr().cast::<i16>();
        let block_len = block_len(conv.in_channels);
        let chunk = part(panels.count(), chunks, chunk);
        let first_block = panels.first(chunk.start);
        let place = |position, panel| position * panels.blocks() + panels.first(panel);
        // SAFETY: the caller's.
        let (inputs, products) = unsafe {
            let inputs = self.scratch.at(inputs, self.plan.inputs).cast_const();
            let products = self.scratch.at(products, self.plan.products);
            (inputs.cast::<i16>(), products.cast::<i32>())
        };
        for position in 0..POSITIONS {
            for panel in chunk.clone() {
                let block = panels.first(panel) - first_block;
                let next = if panel + 1 < chunk.end {
                    place(position, panel + 1)
                } else if position + 1 < POSITIONS {
                    place(position + 1, chunk.start)
                } else {
                    place(0, chunk.end % panels.count())
                };
                let job = Product {
                    ahead: weights.wrapping_add(next * block_len),
                    ahead_step: 0,
                    weights: weights.wrapping_add(place(position, panel) * block_len),
                    inputs: inputs.wrapping_add(position * input_stride),
                    in_blocks,
                    stride: batch * CHANNEL_BLOCK,
                    to: products
                        .wrapping_add(position * product_stride + block * batch * CHANNEL_BLOCK),
                };
                // SAFETY: one panel of the packed weights; inputs and products of one position,
                // for `count <= batch` tiles.
                unsafe {
                    let vectors = panels.vectors(panel);
                    let product = conv.kernels.winograd.product[vectors - conv.kernels.vectors];
                    WinogradKernels::multiply(product, &job, vectors * CHANNEL_BLOCK, count);
                }
            }
        }
        let pixels = if pool { (height / 2) * (width / 2) } else { height * width };
        for block in first_block..panels.first(chunk.end).min(conv.out_blocks()) {
            let held = block - first_block;
            let job = Output {
                from: products.wrapping_add(held * batch * CHANNEL_BLOCK),
                stride: product_stride,
                bias: conv.bias(block * CHANNEL_BLOCK),
                scales: conv.scales(block * CHANNEL_BLOCK),
                pool,
                height,
                width,
                tiles_wide,
                first,
                count,
                // SAFETY: the caller's.
                to: unsafe {
                    self.output.at(block * pixels * CHANNEL_BLOCK, pixels * CHANNEL_BLOCK)
                },
            };
            // SAFETY: the products were just written; `to` is one block of the output.
            unsafe { (conv.kernels.winograd.output)(&job) }
        }
    }
}

/// One panel times some tiles, at one position.
pub(super) struct Product {
    /// `[in_blocks * 16 / group, panel, group]`
    weights: *const i16,
    /// `[in_blocks, stride / 16, 16]`
    inputs: *const i16,
    in_blocks: usize,
    /// Elements from one block of channels to the next, of inputs and results.
    stride: usize,
    /// `[panel / 16, stride / 16, 16]`
    to: *mut i32,
    /// The weights to ask for meanwhile, because the next product needs them, from four places at
    /// once, and how many of each for a block of channels.
    ahead: *const i16,
    ahead_step: usize,
}

/// `T` tiles by a panel of `P` vectors.
///
/// # Safety
///
/// The instruction set of `D`; the layouts of [`Product`] with at least `T` tiles.
#[inline(always)]
pub(super) unsafe fn product<D, const P: usize, const T: usize>(job: &Product)
where
    D: Dot<Weight = i16, Input = i16>,
{
    // SAFETY: the caller has the instruction set; `inputs` and `weights` advance by a group of
    // channels each time, which ends at the end of the last block.
    unsafe {
        let mut sums = [[D::Sums::splat(0); P]; T];
        let quarter = job.in_blocks * LANES * P * LANES / 4;
        let steps = LANES / D::GROUP;
        let (mut weights, mut ahead) = (job.weights, job.ahead);
        for block in 0..job.in_blocks {
            let inputs = job.inputs.add(block * job.stride);
            let next = job.inputs.wrapping_add((block + 1) * job.stride);
            for tile in (0..T).step_by(2) {
                D::Sums::prefetch_near(next.wrapping_add(tile * LANES));
            }
            for step in 0..steps {
                let inputs = inputs.add(step * D::GROUP);
                let place = step % 4 * quarter + step / 4 * (job.ahead_step / (steps / 4));
                let mut taps = [D::weights(weights); P];
                for (vector, tap) in taps.iter_mut().enumerate() {
                    D::Sums::prefetch(ahead.wrapping_add(place + vector * LANES * D::GROUP));
                    *tap = D::weights(weights.add(vector * LANES * D::GROUP));
                }
                for (tile, sums) in sums.iter_mut().enumerate() {
                    let inputs = D::inputs(inputs.add(tile * LANES));
                    for (sum, tap) in sums.iter_mut().zip(&taps) {
                        *sum = tap.add_to(*sum, inputs);
                    }
                }
                weights = weights.add(P * LANES * D::GROUP);
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

/// Packs the transformed weights of all panels.
#[expect(clippy::needless_range_loop, reason = "lanes are the second index")]
#[inline(always)]
pub(super) fn pack<D: Dot>(parameters: &Parameters<'_>, panels: Panels, to: &mut [u8]) {
    let Parameters { out_channels, in_channels, weights, .. } = *parameters;
    let block_len = block_len(in_channels);
    let to = to.as_mut_ptr().cast::<i16>();
    for first in (0..out_channels).step_by(LANES) {
        let number = panels.of(first / LANES);
        let (begin, panel) = (panels.first(number), panels.vectors(number) * LANES);
        for i in 0..in_channels {
            let mut taps = [[0i16; LANES]; 9];
            for lane in 0..LANES.min(out_channels - first) {
                let kernel = ((first + lane) * in_channels + i) * 9;
                for (tap, &weight) in weights[kernel..kernel + 9].iter().enumerate() {
                    taps[tap][lane] = i16::from(weight);
                }
            }
            let step = begin * block_len + i / D::GROUP * panel * D::GROUP;
            let at = step + (first - begin * LANES) * D::GROUP + i % D::GROUP;
            for (position, lanes) in super::transform::weights(&taps).iter().enumerate() {
                let to = to.wrapping_add(position * panels.blocks() * block_len + at);
                for (lane, &value) in lanes.iter().enumerate() {
                    // SAFETY: `to` starts at a cache line and has room for whole panels and
                    // blocks of channels at each position.
                    unsafe { to.wrapping_add(lane * D::GROUP).write(value) };
                }
            }
        }
    }
}
