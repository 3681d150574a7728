//! The three transforms of F(2x2, 3x3) and F(4x4, 3x3). `S` is the side of a tile's
//! inputs, 4 or 6; its outputs have two less. The interpolation points are 0, 1, -1 and
//! infinity, or 0, a, -a, b, -b and infinity.
//!
//! With powers of a point as rows of `A`, `G` and the coefficients of the products of
//! the other points' linear factors as rows of `B^T` (Lavin and Gray 2016; Barabasz et
//! al. 2020), every choice of a and b costs the same here.

use crate::aligned::Line;
use crate::convolution::Fuse;
use crate::vector::{LANES, Vector};

/// The largest side of a tile's inputs.
const MOST: usize = 6;

/// The point a. Exact in float32, as are its powers and those of b. Lavin and Gray's 1
/// and 2 make twice the error: relative L2 1.9e-6 where these make 0.9e-6, over 128
/// channels of random inputs; 1/2 and 3/2 make 1.1e-6.
pub(super) const A: f32 = 0.75;
/// The point b.
pub(super) const B: f32 = 1.5;

/// The weights of one panel.
pub(super) struct Weights<'a> {
    /// `[out_channels, in_channels, 3, 3]`
    pub(super) from: &'a [f32],
    pub(super) in_channels: usize,
    /// The panel's first output channel, and how many there are.
    pub(super) first: usize,
    pub(super) count: usize,
    /// Lanes of the panel.
    pub(super) panel: usize,
    /// `[S * S, stride]`, of which `[in_channels, panel]` are written.
    pub(super) to: &'a mut [f32],
    pub(super) stride: usize,
}

/// Sixteen float64 lanes, for the compiler to vectorize.
type Wide = [f64; LANES];

/// `G g G^T` of each 3x3 kernel, computed in float64 and rounded once.
#[expect(clippy::needless_range_loop, reason = "lanes and rows are the second index")]
#[inline(always)]
pub(super) fn weights<const S: usize>(job: &mut Weights) {
    for i in 0..job.in_channels {
        for part in (0..job.count).step_by(LANES) {
            let mut g: [Wide; 9] = [[0.0; LANES]; 9];
            for lane in 0..LANES.min(job.count - part) {
                let kernel = ((job.first + part + lane) * job.in_channels + i) * 9;
                for (tap, &weight) in job.from[kernel..kernel + 9].iter().enumerate() {
                    g[tap][lane] = f64::from(weight);
                }
            }
            let mut columns: [[Wide; MOST]; 3] = [[[0.0; LANES]; MOST]; 3];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = weights_of_line::<S>(&g[x], &g[3 + x], &g[6 + x]);
            }
            for y in 0..S {
                let row = weights_of_line::<S>(&columns[0][y], &columns[1][y], &columns[2][y]);
                for (x, wide) in row.iter().enumerate().take(S) {
                    let at = (y * S + x) * job.stride + i * job.panel + part;
                    for (to, value) in job.to[at..at + LANES].iter_mut().zip(wide) {
                        *to = *value as f32;
                    }
                }
            }
        }
    }
}

/// `G g`
#[inline(always)]
fn weights_of_line<const S: usize>(g0: &Wide, g1: &Wide, g2: &Wide) -> [Wide; MOST] {
    let (a, b) = (f64::from(A), f64::from(B));
    let (aa, bb) = (a * a, b * b);
    let (at_a, at_b) = (1.0 / (2.0 * aa * (aa - bb)), 1.0 / (2.0 * bb * (bb - aa)));
    let at_zero = 1.0 / (aa * bb);
    let mut out = [[0.0; LANES]; MOST];
    for lane in 0..LANES {
        let (g0, g1, g2) = (g0[lane], g1[lane], g2[lane]);
        let lanes = if S == 4 {
            let (even, odd) = (0.5 * (g0 + g2), 0.5 * g1);
            [-g0, even + odd, even - odd, g2, 0.0, 0.0]
        } else {
            let (even_a, odd_a) = (at_a * (g0 + aa * g2), at_a * a * g1);
            let (even_b, odd_b) = (at_b * (g0 + bb * g2), at_b * b * g1);
            [at_zero * g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g2]
        };
        for (out, value) in out.iter_mut().zip(lanes) {
            out[lane] = value;
        }
    }
    out
}

/// Some tiles of one block of input channels.
pub(super) struct Input {
    /// `[height, width, 16]`, of which only the rows that the tiles read need be there.
    pub(super) from: *const f32,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) tiles_wide: usize,
    /// The first tile, counted row by row, and how many.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[S * S, stride]`, of which the first `count` times 16 elements are written.
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

/// `B^T d B` of each tile.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Input`].
#[inline(always)]
pub(super) unsafe fn input<V: Vector, const S: usize>(job: &Input) {
    let Input { height, width, .. } = *job;
    // SAFETY: the caller has the instruction set.
    let points = unsafe { Points::<V>::new() };
    let mut edge = [Line([0.0; LANES]); MOST * MOST];
    let (mut tile_y, mut tile_x) = (job.first / job.tiles_wide, job.first % job.tiles_wide);
    for tile in 0..job.count {
        let (top, left) = (tile_y * (S - 2), tile_x * (S - 2));
        let inside = top > 0 && left > 0 && top + S <= height + 1 && left + S <= width + 1;
        let (from, row) = if inside {
            (job.from.wrapping_add(((top - 1) * width + left - 1) * LANES), width * LANES)
        } else {
            // SAFETY: the caller's.
            unsafe { copy_edge::<S>(job, top, left, &mut edge) };
            (edge.as_ptr().cast(), S * LANES)
        };
        if inside {
            for y in 0..S {
                for x in S..2 * S - 2 {
                    V::prefetch(from.wrapping_add(y * row + (x + S - 2) * LANES));
                }
            }
        }
        // SAFETY: S x S vectors lie at `from`, in the image or in `edge`; `to` has room
        // for `count` tiles at each position.
        unsafe {
            let zero = V::zero();
            let mut columns = [[zero; MOST]; MOST];
            for (x, column) in columns.iter_mut().enumerate().take(S) {
                let mut d = [zero; MOST];
                for (y, d) in d.iter_mut().enumerate().take(S) {
                    *d = V::load(from.add(y * row + x * LANES));
                }
                *column = points.input::<S>(&d);
            }
            for y in 0..S {
                let mut d = [zero; MOST];
                for (d, column) in d.iter_mut().zip(&columns).take(S) {
                    *d = column[y];
                }
                let out = points.input::<S>(&d);
                for (x, out) in out.iter().enumerate().take(S) {
                    out.store(job.to.add((y * S + x) * job.stride + tile * LANES));
                }
            }
        }
        tile_x += 1;
        if tile_x == job.tiles_wide {
            (tile_y, tile_x) = (tile_y + 1, 0);
        }
    }
}

/// The inputs of the tile at `top`, `left`, with zeros where the image ends.
///
/// # Safety
///
/// `job.from` is `[height, width, 16]`.
unsafe fn copy_edge<const S: usize>(job: &Input, top: usize, left: usize, edge: &mut [Line]) {
    edge.fill(Line([0.0; LANES]));
    let (skip_y, skip_x) = (usize::from(top == 0), usize::from(left == 0));
    for y in skip_y..S.min(job.height + 1 - top) {
        for x in skip_x..S.min(job.width + 1 - left) {
            let at = ((top + y - 1) * job.width + left + x - 1) * LANES;
            // SAFETY: counted from the border, rows from 1 to the height and columns
            // from 1 to the width are read.
            edge[y * S + x] =
                Line(unsafe { job.from.wrapping_add(at).cast::<[f32; LANES]>().read_unaligned() });
        }
    }
}

/// Some tiles of one block of output channels.
pub(super) struct Output {
    /// `[S * S, stride]`, of which the first `count` times 16 elements are read.
    pub(super) from: *const f32,
    pub(super) stride: usize,
    /// Sixteen.
    pub(super) bias: *const f32,
    pub(super) fuse: Fuse,
    /// Of the output before pooling.
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) tiles_wide: usize,
    /// The first tile, counted row by row, and how many.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[height, width, 16]`, or half of both if pooled.
    pub(super) to: *mut f32,
}

/// `A^T m A` of each tile, then bias, ReLU and pooling.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Output`].
#[inline(always)]
pub(super) unsafe fn output<V: Vector, const S: usize>(job: &Output) {
    // SAFETY: the caller has the instruction set, and `bias` sixteen elements.
    let (points, bias, floor) = unsafe {
        let floor = if job.fuse.relu { 0.0 } else { f32::NEG_INFINITY };
        (Points::<V>::new(), V::load(job.bias), V::splat(floor))
    };
    let (mut tile_y, mut tile_x) = (job.first / job.tiles_wide, job.first % job.tiles_wide);
    for tile in 0..job.count {
        let mut rows = [[floor; MOST - 2]; MOST - 2];
        // SAFETY: `from` has `count` tiles at each position.
        unsafe {
            let mut columns = [[floor; MOST - 2]; MOST];
            for (x, column) in columns.iter_mut().enumerate().take(S) {
                let mut m = [floor; MOST];
                for (y, m) in m.iter_mut().enumerate().take(S) {
                    *m = V::load(job.from.add((y * S + x) * job.stride + tile * LANES));
                }
                *column = points.output::<S>(&m);
            }
            for (y, row) in rows.iter_mut().enumerate().take(S - 2) {
                let mut m = [floor; MOST];
                for (m, column) in m.iter_mut().zip(&columns).take(S) {
                    *m = column[y];
                }
                for (to, out) in row.iter_mut().zip(&points.output::<S>(&m)).take(S - 2) {
                    *to = floor.max(out.add(bias));
                }
            }
        }
        // SAFETY: the part of the tile that is in the image is written.
        unsafe {
            if job.fuse.pool {
                let mut pooled = [[floor; MOST - 2]; MOST - 2];
                for (y, row) in pooled.iter_mut().enumerate().take((S - 2) / 2) {
                    for (x, out) in row.iter_mut().enumerate().take((S - 2) / 2) {
                        let (upper, lower) = (&rows[2 * y], &rows[2 * y + 1]);
                        let upper = upper[2 * x].max(upper[2 * x + 1]);
                        *out = upper.max(lower[2 * x].max(lower[2 * x + 1]));
                    }
                }
                let size = (job.height / 2, job.width / 2);
                place(job.to, size, (tile_y, tile_x), (S - 2) / 2, &pooled);
            } else {
                place(job.to, (job.height, job.width), (tile_y, tile_x), S - 2, &rows);
            }
        }
        tile_x += 1;
        if tile_x == job.tiles_wide {
            (tile_y, tile_x) = (tile_y + 1, 0);
        }
    }
}

/// Stores what of tile number (`tile_y`, `tile_x`), of `n` x `n` pixels, lies in the
/// image.
///
/// # Safety
///
/// `to` is `[height, width, 16]`.
#[inline(always)]
unsafe fn place<V: Vector>(
    to: *mut f32,
    (height, width): (usize, usize),
    (tile_y, tile_x): (usize, usize),
    n: usize,
    rows: &[[V; MOST - 2]; MOST - 2],
) {
    let (top, left) = (tile_y * n, tile_x * n);
    let whole = top + n <= height && left + n <= width;
    for (y, row) in rows.iter().enumerate().take(n) {
        for (x, out) in row.iter().enumerate().take(n) {
            if whole || (top + y < height && left + x < width) {
                // SAFETY: the pixel is in the image.
                unsafe { out.store(to.add(((top + y) * width + left + x) * LANES)) }
            }
        }
    }
}

/// The constants of both transforms in vectors.
struct Points<V> {
    a: V,
    b: V,
    minus_aa: V,
    minus_bb: V,
    minus_sum: V,
    product: V,
    aa: V,
    bb: V,
    aaa: V,
    bbb: V,
}

impl<V: Vector> Points<V> {
    /// # Safety
    ///
    /// The instruction set of `V`.
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: the caller's.
        unsafe {
            Points {
                a: V::splat(A),
                b: V::splat(B),
                minus_aa: V::splat(-A * A),
                minus_bb: V::splat(-B * B),
                minus_sum: V::splat(-A * A - B * B),
                product: V::splat(A * A * B * B),
                aa: V::splat(A * A),
                bb: V::splat(B * B),
                aaa: V::splat(A * A * A),
                bbb: V::splat(B * B * B),
            }
        }
    }

    /// `B^T d`, at most four roundings deep.
    #[inline(always)]
    fn input<const S: usize>(&self, &[d0, d1, d2, d3, d4, d5]: &[V; MOST]) -> [V; MOST] {
        if S == 4 {
            return [d2.sub(d0), d1.add(d2), d2.sub(d1), d3.sub(d1), d4, d5];
        }
        let even_a = d2.mul_add(self.minus_bb, d4);
        let odd_a = d1.mul_add(self.minus_bb, d3).mul(self.a);
        let even_b = d2.mul_add(self.minus_aa, d4);
        let odd_b = d1.mul_add(self.minus_aa, d3).mul(self.b);
        [
            d0.mul_add(self.product, d2.mul_add(self.minus_sum, d4)),
            even_a.add(odd_a),
            even_a.sub(odd_a),
            even_b.add(odd_b),
            even_b.sub(odd_b),
            d1.mul_add(self.product, d3.mul_add(self.minus_sum, d5)),
        ]
    }

    /// `A^T m`, at most four roundings deep.
    #[inline(always)]
    fn output<const S: usize>(&self, &[m0, m1, m2, m3, m4, m5]: &[V; MOST]) -> [V; MOST - 2] {
        let (even_a, odd_a) = (m1.add(m2), m1.sub(m2));
        if S == 4 {
            return [m0.add(even_a), odd_a.add(m3), m4, m5];
        }
        let (even_b, odd_b) = (m3.add(m4), m3.sub(m4));
        [
            m0.add(even_a).add(even_b),
            odd_a.mul_add(self.a, odd_b.mul(self.b)),
            even_a.mul_add(self.aa, even_b.mul(self.bb)),
            odd_a.mul_add(self.aaa, odd_b.mul_add(self.bbb, m5)),
        ]
    }
}
