//! The three transforms of F(4x4, 3x3) in whole numbers: the points 0, -2, 1, -1, 1/2 and
//! infinity. Rows of `A` are powers of a point, rows of `B^T` the coefficients of the product of the
//! other points' linear factors; what that divides is in `G`, times 30.

use crate::integer::{Sums, Words};
use crate::vector::LANES;

/// Outputs per side of a tile.
pub(super) const SIDE: usize = 4;
/// Inputs per side of a tile.
const INPUTS: usize = 6;
/// Inputs of a tile.
pub(super) const POSITIONS: usize = INPUTS * INPUTS;
/// The inverse of 225 modulo 2^32.
const INVERSE: i32 = 2_271_560_481_u32 as i32;

/// `G g G^T` of sixteen kernels, `[9, 16]` to `[36, 16]`.
#[inline(always)]
pub(super) fn weights(g: &[[i16; LANES]; 9]) -> [[i16; LANES]; POSITIONS] {
    let mut out = [[0; LANES]; POSITIONS];
    let mut columns = [[[0; LANES]; INPUTS]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = weights_of_line(&g[x], &g[3 + x], &g[6 + x]);
    }
    for y in 0..INPUTS {
        let line = weights_of_line(&columns[0][y], &columns[1][y], &columns[2][y]);
        out[y * INPUTS..][..INPUTS].copy_from_slice(&line);
    }
    out
}

/// `G g`
#[inline(always)]
fn weights_of_line(
    g0: &[i16; LANES],
    g1: &[i16; LANES],
    g2: &[i16; LANES],
) -> [[i16; LANES]; INPUTS] {
    let mut out = [[0; LANES]; INPUTS];
    for lane in 0..LANES {
        let (g0, g1, g2) = (g0[lane], g1[lane], g2[lane]);
        out[0][lane] = 15 * g0;
        out[1][lane] = g0 - 2 * g1 + 4 * g2;
        out[2][lane] = 5 * (g0 + g1 + g2);
        out[3][lane] = -5 * (g0 - g1 + g2);
        out[4][lane] = -(4 * g0 + 2 * g1 + g2);
        out[5][lane] = 15 * g2;
    }
    out
}

/// Some tiles of one block of input channels.
pub(super) struct Input {
    /// `[height, width, 16]`
    pub(super) from: *const u8,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) tiles_wide: usize,
    /// The first tile, counted row by row, and how many.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[36, stride]`, of which the first `count` times 16 elements are written.
    pub(super) to: *mut i16,
    pub(super) stride: usize,
}

/// `B^T d B` of each tile.
///
/// # Safety
///
/// The instruction set of `W`; the layouts of [`Input`].
#[inline(always)]
pub(super) unsafe fn input<W: Words>(job: &Input) {
    let Input { height, width, .. } = *job;
    let mut edge = [[0; LANES]; POSITIONS];
    let (mut tile_y, mut tile_x) = (job.first / job.tiles_wide, job.first % job.tiles_wide);
    for tile in 0..job.count {
        let (top, left) = (tile_y * SIDE, tile_x * SIDE);
        let inside =
            top > 0 && left > 0 && top + INPUTS <= height + 1 && left + INPUTS <= width + 1;
        let (from, row) = if inside {
            (job.from.wrapping_add(((top - 1) * width + left - 1) * LANES), width * LANES)
        } else {
            // SAFETY: the caller's.
            unsafe { copy_edge(job, top, left, &mut edge) };
            (edge.as_ptr().cast(), INPUTS * LANES)
        };
        // SAFETY: 6 x 6 vectors lie at `from`, in the image or in `edge`; `to` has room for
        // `count` tiles at each position.
        unsafe {
            let zero = W::splat(0);
            let mut columns = [[zero; INPUTS]; INPUTS];
            for (x, column) in columns.iter_mut().enumerate() {
                let mut d = [zero; INPUTS];
                for (y, d) in d.iter_mut().enumerate() {
                    *d = W::widen(from.add(y * row + x * LANES));
                }
                *column = input_of_line(&d);
            }
            for y in 0..INPUTS {
                let mut d = [zero; INPUTS];
                for (d, column) in d.iter_mut().zip(&columns) {
                    *d = column[y];
                }
                let out = input_of_line(&d);
                for (x, out) in out.iter().enumerate() {
                    out.store(job.to.add((y * INPUTS + x) * job.stride + tile * LANES));
                }
            }
        }
        tile_x += 1;
        if tile_x == job.tiles_wide {
            (tile_y, tile_x) = (tile_y + 1, 0);
        }
    }
}

/// `B^T d`, without multiplications: every row is made of differences at a distance of two, and of
/// their sum and difference.
#[inline(always)]
fn input_of_line<W: Words>(&[d0, d1, d2, d3, d4, d5]: &[W; INPUTS]) -> [W; INPUTS] {
    let (d3_d1, d4_d2) = (d3.sub(d1), d4.sub(d2));
    let (both, between) = (d4_d2.add(d3_d1), d4_d2.sub(d3_d1));
    let (sum, difference) = (d3.add(d2), d3.sub(d2));
    [
        twice(d0.sub(d2).add(both)).add(d3_d1),
        between.add(d4_d2),
        twice(both.add(sum)).add(sum),
        twice(between.add(difference)).add(difference),
        both.add(d3_d1),
        twice(d5.sub(d3).add(between)).add(d4_d2),
    ]
}

#[inline(always)]
fn twice<W: Words>(d: W) -> W {
    d.add(d)
}

/// The inputs of the tile at `top`, `left`, with zeros where the image ends.
///
/// # Safety
///
/// `job.from` is `[height, width, 16]`.
unsafe fn copy_edge(job: &Input, top: usize, left: usize, edge: &mut [[u8; LANES]; POSITIONS]) {
    edge.fill([0; LANES]);
    let (skip_y, skip_x) = (usize::from(top == 0), usize::from(left == 0));
    for y in skip_y..INPUTS.min(job.height + 1 - top) {
        for x in skip_x..INPUTS.min(job.width + 1 - left) {
            let at = ((top + y - 1) * job.width + left + x - 1) * LANES;
            // SAFETY: counted from the border, rows from 1 to the height and columns from 1 to
            // the width are read.
            edge[y * INPUTS + x] =
                unsafe { job.from.wrapping_add(at).cast::<[u8; LANES]>().read_unaligned() };
        }
    }
}

/// Some tiles of one block of output channels.
pub(super) struct Output {
    /// `[36, stride]`, of which the first `count` times 16 elements are read.
    pub(super) from: *const i32,
    pub(super) stride: usize,
    /// Sixteen.
    pub(super) bias: *const i32,
    /// Sixteen.
    pub(super) scales: *const f32,
    /// Whether a 2x2 max-pool follows.
    pub(super) pool: bool,
    /// Of the output before pooling.
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) tiles_wide: usize,
    /// The first tile, counted row by row, and how many.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[height, width, 16]`, or half of both if pooled.
    pub(super) to: *mut u8,
}

/// `A^T m A / 900` of each tile, then bias, pooling and scale.
///
/// # Safety
///
/// The instruction set of `S`; the layouts of [`Output`].
#[inline(always)]
pub(super) unsafe fn output<S: Sums>(job: &Output) {
    // SAFETY: the caller has the instruction set, and `bias` sixteen elements.
    let (bias, inverse) = unsafe { (S::load(job.bias), S::splat(INVERSE)) };
    let (mut tile_y, mut tile_x) = (job.first / job.tiles_wide, job.first % job.tiles_wide);
    for tile in 0..job.count {
        let mut rows = [[bias; SIDE]; SIDE];
        let mut columns = [[bias; SIDE]; INPUTS];
        for (x, column) in columns.iter_mut().enumerate() {
            let mut m = [bias; INPUTS];
            for (y, m) in m.iter_mut().enumerate() {
                let at = (y * INPUTS + x) * job.stride + tile * LANES;
                // SAFETY: `from` has `count` tiles at each position.
                *m = unsafe { S::load(job.from.add(at)) };
            }
            *column = output_of_line(&m);
        }
        for (y, row) in rows.iter_mut().enumerate() {
            let mut m = [bias; INPUTS];
            for (m, column) in m.iter_mut().zip(&columns) {
                *m = column[y];
            }
            for (to, out) in row.iter_mut().zip(output_of_line(&m)) {
                *to = out.mul(inverse).shr::<2>().add(bias);
            }
        }
        // SAFETY: the part of the tile that is in the image is written.
        unsafe {
            if job.pool {
                let mut pooled = [[bias; SIDE / 2]; SIDE / 2];
                for (y, row) in pooled.iter_mut().enumerate() {
                    for (x, out) in row.iter_mut().enumerate() {
                        let (upper, lower) = (&rows[2 * y], &rows[2 * y + 1]);
                        let upper = upper[2 * x].max(upper[2 * x + 1]);
                        *out = upper.max(lower[2 * x].max(lower[2 * x + 1]));
                    }
                }
                place(job, (job.height / 2, job.width / 2), (tile_y, tile_x), &pooled);
            } else {
                place(job, (job.height, job.width), (tile_y, tile_x), &rows);
            }
        }
        tile_x += 1;
        if tile_x == job.tiles_wide {
            (tile_y, tile_x) = (tile_y + 1, 0);
        }
    }
}

/// `A^T m`
#[inline(always)]
fn output_of_line<S: Sums>(&[m0, m1, m2, m3, m4, m5]: &[S; INPUTS]) -> [S; SIDE] {
    let (even, odd) = (m2.add(m3), m2.sub(m3));
    let (m1_twice, m4_twice) = (m1.shl::<1>(), m4.shl::<1>());
    [
        m0.add(m1).add(even).add(m4.shl::<3>()),
        odd.sub(m1_twice).add(m4_twice.shl::<1>()),
        even.add(m1_twice.shl::<1>()).add(m4_twice),
        odd.sub(m1.shl::<3>()).add(m4).add(m5),
    ]
}

/// Stores what of tile number (`tile_y`, `tile_x`), of `N` x `N` pixels, lies in the image.
///
/// # Safety
///
/// `job.to` is `[height, width, 16]`, `job.scales` has sixteen elements.
#[inline(always)]
unsafe fn place<S: Sums, const N: usize>(
    job: &Output,
    (height, width): (usize, usize),
    (tile_y, tile_x): (usize, usize),
    rows: &[[S; N]; N],
) {
    let (top, left) = (tile_y * N, tile_x * N);
    let whole = top + N <= height && left + N <= width;
    for (y, row) in rows.iter().enumerate() {
        for (x, out) in row.iter().enumerate() {
            if whole || (top + y < height && left + x < width) {
                let at = ((top + y) * width + left + x) * LANES;
                // SAFETY: the pixel is in the image.
                unsafe { out.store_scaled(job.scales, job.to.add(at)) }
            }
        }
    }
}
