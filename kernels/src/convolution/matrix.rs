//! The definition in bfloat16, as products of matrices, see [`crate::matrix`]. Weights and inputs are
//! rounded to the nearest number; sums, bias and all that follows are float32.

use super::Job;
use crate::aligned::Aligned;
use crate::bfloat16;
use crate::direct::Direct3x3;
use crate::isa::Isa;
use crate::layout::CHANNEL_BLOCK;
use crate::matrix::{self, BLOCK, GROUP, Product, Sums, TILE, VECTORS};
use crate::panels::Panels;
use crate::parallel::{Parallel, Parts};
#[cfg(target_arch = "x86_64")]
use crate::vector::avx512::Avx512;
use crate::vector::{LANES, Narrow, Vector, plain::Plain};

/// Bytes of a pixel of a block of input channels.
const BLOCK_BYTES: usize = CHANNEL_BLOCK * size_of::<u16>();

/// The kernels of one instruction set.
pub(super) struct Kernels {
    pub(super) name: &'static str,
    /// Whether it is faster than Winograd's algorithm at half precision.
    pub(super) fast: bool,
    products: &'static matrix::Kernels,
    round: unsafe fn(&Round),
    store: unsafe fn(&Store<'_>),
}

/// The kernels for `isa`.
pub(super) fn kernels(isa: Isa) -> &'static Kernels {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        crate::isa::Kind::Amx => &amx::KERNELS,
        _ => &plain::KERNELS,
    }
}

/// Packed weights.
pub(super) struct Matrix {
    kernels: &'static Kernels,
    panels: Panels,
    in_blocks: usize,
    out_blocks: usize,
    weights: Aligned<u8>,
    bias: Aligned<f32>,
}

impl Matrix {
    pub(super) fn new(
        kernels: &'static Kernels,
        in_channels: usize,
        weights: &[f32],
        bias: &[f32],
    ) -> Matrix {
        let panels = Panels::new(bias.len(), VECTORS);
        let (in_blocks, out_blocks) =
            (in_channels.div_ceil(CHANNEL_BLOCK), bias.len().div_ceil(CHANNEL_BLOCK));
        let bytes = |weight| bfloat16::to_bits(weight).to_ne_bytes();
        let weights = matrix::pack(panels, in_channels, weights, bytes);
        let mut padded = Aligned::zeroed(panels.blocks() * CHANNEL_BLOCK);
        padded.as_mut_slice()[..bias.len()].copy_from_slice(bias);
        Matrix { kernels, panels, in_blocks, out_blocks, weights, bias: padded }
    }

    pub(super) fn kernel(&self) -> &'static str {
        self.kernels.name
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.len()
    }

    /// Elements, from a cache line on.
    pub(super) fn scratch_len(&self, height: usize, width: usize, threads: usize) -> usize {
        self.of(height, width, false).scratch_len(threads) / size_of::<f32>()
    }

    pub(super) fn run(
        &self,
        job: &Job<'_>,
        parallel: &dyn Parallel,
        input: &[f32],
        scratch: &mut [f32],
    ) {
        let Job { height, width, fuse, .. } = *job;
        let copy = |_: usize, y: usize, to: &dyn Fn(usize) -> *mut u8| {
            let row = |block: usize| {
                input[(block * height + y) * width * CHANNEL_BLOCK..][..width * CHANNEL_BLOCK]
                    .as_ptr()
            };
            // SAFETY: the rows are there, and room for them.
            unsafe { self.round(width, &row, to) }
        };
        let store = |sums: &Sums| self.store(job, sums);
        self.of(height, width, fuse.pool).run(parallel, &copy, &store, bytes(scratch));
    }

    /// Elements that [`Matrix::run_after`] needs, from a cache line on.
    pub(super) fn scratch_len_after(&self, height: usize, width: usize, threads: usize) -> usize {
        self.scratch_len(height, width, threads) + threads.max(1) * self.row_len(width)
    }

    /// [`Matrix::run`] on what `first` and ReLU make of its input, row by row.
    pub(super) fn run_after(
        &self,
        job: &Job<'_>,
        first: &Direct3x3,
        parallel: &dyn Parallel,
        bordered: &[f32],
        scratch: &mut [f32],
    ) {
        let Job { height, width, fuse, .. } = *job;
        let row_len = self.row_len(width);
        let (rows, scratch) = scratch.split_at_mut(parallel.threads().max(1) * row_len);
        let rows = Parts::new(rows);
        let copy = |worker: usize, y: usize, to: &dyn Fn(usize) -> *mut u8| {
            // SAFETY: each worker has its own row of every block.
            let row = unsafe { rows.at(worker * row_len, row_len) };
            let row = |block: usize| row.wrapping_add(block * width * CHANNEL_BLOCK);
            // SAFETY: the rows have room, and are there when they are rounded.
            unsafe {
                first.row(bordered, height, width, y, true, &row);
                self.round(width, &|block| row(block).cast_const(), to);
            }
        };
        let store = |sums: &Sums| self.store(job, sums);
        self.of(height, width, fuse.pool).run(parallel, &copy, &store, bytes(scratch));
    }

    /// Elements of a row of all input channels.
    fn row_len(&self, width: usize) -> usize {
        self.in_blocks * width * CHANNEL_BLOCK
    }

    fn of(&self, height: usize, width: usize, pool: bool) -> matrix::Matrix<'_> {
        matrix::Matrix {
            kernels: self.kernels.products,
            weights: &self.weights,
            in_blocks: self.in_blocks,
            block_bytes: BLOCK_BYTES,
            panels: self.panels,
            out_blocks: self.out_blocks,
            height,
            width,
            pool,
            zero: 0,
        }
    }

    /// Rounds a row of every block of inputs, `[width, 16]` at `from(block)`, as [`matrix::Input`] has
    /// it.
    ///
    /// # Safety
    ///
    /// `from` and `to` give a row of each block.
    unsafe fn round(
        &self,
        width: usize,
        from: &dyn Fn(usize) -> *const f32,
        to: &dyn Fn(usize) -> *mut u8,
    ) {
        for block in 0..self.in_blocks {
            // SAFETY: the caller's; the kernels are for this machine.
            unsafe { (self.kernels.round)(&Round { from: from(block), width, to: to(block) }) }
        }
    }

    /// Outputs of sums.
    fn store(&self, job: &Job<'_>, sums: &Sums) {
        let (first, length) = sums.outputs(job.height, job.width, job.fuse.pool);
        // SAFETY: these rows are stored once, and their sums are there; the kernels are for this
        // machine.
        unsafe {
            (self.kernels.store)(&Store {
                sums,
                bias: self.bias.as_ptr().wrapping_add(sums.block * LANES),
                width: job.width,
                relu: job.fuse.relu,
                pool: job.fuse.pool,
                to: job.output.at(first, length),
            });
        }
    }
}

/// The same memory in bytes.
fn bytes(scratch: &mut [f32]) -> Parts<'_, u8> {
    // SAFETY: bytes need no alignment, any of them make up a float32, and the borrow goes on.
    Parts::new(unsafe {
        std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), size_of_val(scratch))
    })
}

/// A row of a block of inputs.
struct Round {
    /// `[width, 16]`
    from: *const f32,
    width: usize,
    /// `[width, 16]`, from one pixel to the next [`GROUP`] bytes.
    to: *mut u8,
}

/// Rounds inputs.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Round`].
#[inline(always)]
unsafe fn round<V: Narrow>(job: &Round) {
    for pixel in 0..job.width {
        // SAFETY: the caller's.
        unsafe {
            let inputs = V::load(job.from.add(pixel * LANES));
            inputs.store_bfloat16(job.to.add(pixel * GROUP).cast());
        }
    }
}

/// Some rows of one block of output channels.
struct Store<'a> {
    sums: &'a Sums,
    /// Sixteen.
    bias: *const f32,
    width: usize,
    relu: bool,
    pool: bool,
    /// `[rows, width, 16]`, or half of both if pooled.
    to: *mut f32,
}

/// Bias, ReLU and pooling.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Store`].
#[inline(always)]
unsafe fn store<V: Vector>(job: &Store<'_>) {
    let side = if job.pool { 2 } else { 1 };
    let width = job.width / side;
    // SAFETY: the caller's.
    unsafe {
        let (bias, floor) =
            (V::load(job.bias), V::splat(if job.relu { 0.0 } else { f32::NEG_INFINITY }));
        for row in 0..job.sums.rows / side {
            for pixel in 0..width {
                let at = |y: usize, x: usize| job.sums.at(side * row + y, side * pixel + x).cast();
                let mut sums = V::load(at(0, 0));
                if job.pool {
                    let lower = V::load(at(1, 0)).max(V::load(at(1, 1)));
                    sums = sums.max(V::load(at(0, 1))).max(lower);
                }
                floor.max(sums.add(bias)).store(job.to.add((row * width + pixel) * LANES));
            }
        }
    }
}

/// `T` tiles by a panel of `P` blocks: the twin of what tile registers do, which add up even and odd
/// channels of a step apart.
///
/// # Safety
///
/// The layouts of [`Product`] with `T` tiles.
unsafe fn plain_product<const P: usize, const T: usize>(job: &Product) {
    for pixel in 0..T * TILE {
        let mut sums = [[0f32; LANES]; P];
        for step in 0..job.groups * 9 {
            let (group, tap) = (step / 9, step % 9);
            let at = group * job.next_group + tap / 3 * job.next_row + (pixel + tap % 3) * GROUP;
            for (vector, sums) in sums.iter_mut().enumerate() {
                let weights = job.weights.wrapping_add((step * P + vector) * BLOCK);
                let mut parts = [[0f32; LANES]; 2];
                for i in 0..GROUP / 2 {
                    // SAFETY: the caller's: inputs of all taps, and a block of weights.
                    unsafe {
                        let inputs = job.inputs.wrapping_add(at).cast::<u16>();
                        let input = bfloat16::of_bits(inputs.wrapping_add(i).read_unaligned());
                        let pairs = weights.cast::<u16>().wrapping_add(i / 2 * LANES * 2 + i % 2);
                        for (lane, part) in parts[i % 2].iter_mut().enumerate() {
                            let weight = pairs.wrapping_add(2 * lane).read_unaligned();
                            *part += bfloat16::of_bits(weight) * input;
                        }
                    }
                }
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum += parts[0][lane] + parts[1][lane];
                }
            }
        }
        for (vector, sums) in sums.iter().enumerate() {
            let to = job.to.wrapping_add((pixel * P + vector) * size_of_val(sums));
            // SAFETY: the caller's.
            unsafe { to.cast::<[f32; LANES]>().write_unaligned(*sums) };
        }
    }
}

macro_rules! instance {
    ($module:ident, $vector:ty, $products:expr, $name:literal, $fast:literal $(, $features:literal)?) => {
        mod $module {
            use super::*;

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                fast: $fast,
                products: $products,
                round: round_row,
                store: store_sums,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn round_row(job: &Round) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { round::<$vector>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn store_sums(job: &Store<'_>) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { store::<$vector>(job) }
            }
        }
    };
}

instance!(
    plain,
    Plain,
    &matrix::Kernels {
        begin: matrix::nothing,
        end: matrix::nothing,
        product: [&[plain_product::<2, 1>, plain_product::<2, 2>], &[plain_product::<3, 1>]],
    },
    "plain_matrix_bf16_32x32",
    false
);
#[cfg(target_arch = "x86_64")]
instance!(
    amx,
    Avx512,
    &matrix::amx::bfloat16::KERNELS,
    "amx_matrix_bf16_32x32",
    true,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
);
