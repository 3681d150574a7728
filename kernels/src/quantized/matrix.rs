//! The definition, as products of matrices, see [`crate::matrix`].

use super::{Job, Parameters, QConv3x3};
use crate::aligned::{Aligned, from_first_line};
use crate::integer::Sums as Integers;
use crate::layout::CHANNEL_BLOCK;
use crate::matrix::{self, BLOCK, GROUP, Kernels, Product, Sums, TILE, nothing};
use crate::panels::Panels;
use crate::parallel::Parts;
use crate::vector::LANES;

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
    pub(super) products: &'static Kernels,
    pub(super) store: unsafe fn(&Store<'_>),
}

impl Matrix {
    pub(super) fn new(panels: Panels, parameters: &Parameters<'_>) -> Matrix {
        let Parameters { in_channels, weights, zero, .. } = *parameters;
        let bytes = |weight: i8| [weight.cast_unsigned()];
        Matrix { weights: matrix::pack(panels, in_channels, weights, bytes), zero }
    }

    /// Bytes, from a cache line on.
    pub(super) fn scratch_len(
        &self,
        conv: &QConv3x3,
        height: usize,
        width: usize,
        threads: usize,
    ) -> usize {
        self.of(conv, (height, width), false).scratch_len(threads)
    }

    pub(super) fn run(&self, job: &Job<'_>, output: &mut [u8], scratch: &mut [u8]) {
        let Job { conv, parallel, input, height, width, pool } = *job;
        let copy = |_: usize, y: usize, to: &dyn Fn(usize) -> *mut u8| {
            for block in 0..conv.in_blocks() {
                let from = (block * height + y) * width * CHANNEL_BLOCK;
                let from = input[from..][..width * CHANNEL_BLOCK].as_chunks::<CHANNEL_BLOCK>().0;
                let to = to(block);
                for (pixel, from) in from.iter().enumerate() {
                    let to = to.wrapping_add(pixel * GROUP).cast::<[u8; CHANNEL_BLOCK]>();
                    // SAFETY: there is room for a row.
                    unsafe { to.write(*from) }
                }
            }
        };
        let output = Parts::new(output);
        let store = |sums: &Sums| {
            let (first, length) = sums.outputs(height, width, pool);
            // SAFETY: these rows are stored once, and their sums are there; the kernels are for this
            // machine.
            unsafe {
                (conv.kernels.matrix.store)(&Store {
                    sums,
                    bias: conv.bias(sums.block * LANES),
                    scales: conv.scales(sums.block * LANES),
                    width,
                    pool,
                    to: output.at(first, length),
                });
            }
        };
        let scratch = Parts::new(from_first_line(scratch));
        self.of(conv, (height, width), pool).run(parallel, &copy, &store, scratch);
    }

    fn of(
        &self,
        conv: &QConv3x3,
        (height, width): (usize, usize),
        pool: bool,
    ) -> matrix::Matrix<'_> {
        matrix::Matrix {
            kernels: conv.kernels.matrix.products,
            weights: &self.weights,
            in_blocks: conv.in_blocks(),
            block_bytes: CHANNEL_BLOCK,
            panels: conv.panels,
            out_blocks: conv.out_blocks(),
            height,
            width,
            pool,
            zero: self.zero,
        }
    }
}

/// Products in plain Rust.
pub(super) static PLAIN: Kernels = Kernels {
    begin: nothing,
    end: nothing,
    product: [&[plain_product::<2, 1>, plain_product::<2, 2>], &[plain_product::<3, 1>]],
};

/// `T` tiles by a panel of `P` blocks: the twin of what tile registers do.
///
/// # Safety
///
/// The layouts of [`Product`] with `T` tiles.
unsafe fn plain_product<const P: usize, const T: usize>(job: &Product) {
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
            let to = job.to.wrapping_add((pixel * P + vector) * size_of_val(sums));
            // SAFETY: the caller's.
            unsafe { to.cast::<[i32; LANES]>().write_unaligned(*sums) };
        }
    }
}

/// Some rows of one block of output channels.
pub(super) struct Store<'a> {
    sums: &'a Sums,
    /// Sixteen.
    bias: *const i32,
    /// Sixteen.
    scales: *const f32,
    width: usize,
    pool: bool,
    /// `[rows, width, 16]`, or half of both if pooled.
    to: *mut u8,
}

/// Pooling, bias and scale: a larger sum is no smaller after the others.
///
/// # Safety
///
/// The instruction set of `S`; the layouts of [`Store`].
#[inline(always)]
pub(super) unsafe fn store<S: Integers>(job: &Store<'_>) {
    let side = if job.pool { 2 } else { 1 };
    let width = job.width / side;
    // SAFETY: the caller's.
    unsafe {
        let bias = S::load(job.bias);
        for row in 0..job.sums.rows / side {
            for pixel in 0..width {
                let at = |y: usize, x: usize| job.sums.at(side * row + y, side * pixel + x).cast();
                let mut sums = S::load(at(0, 0));
                if job.pool {
                    let lower = S::load(at(1, 0)).max(S::load(at(1, 1)));
                    sums = sums.max(S::load(at(0, 1))).max(lower);
                }
                let to = job.to.add((row * width + pixel) * LANES);
                sums.add(bias).store_scaled(job.scales, to);
            }
        }
    }
}
