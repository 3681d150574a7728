//! The three transforms of F(4x4, 3x3), for the interpolation points 0, a, -a, b, -b
//! and infinity.
//!
//! With powers of a point as rows of `A`, `G` and the coefficients of the products of
//! the other points' linear factors as rows of `B^T` (Lavin and Gray 2016; Barabasz et
//! al. 2020), every choice of a and b costs the same here. Lavin and Gray's 1 and 2 let
//! the error grow; see [`A`] for ours.

use super::Fuse;
use crate::aligned::Line;
use crate::vector::{LANES, Vector};

/// Outputs of a tile, per side.
pub(super) const TILE: usize = 4;
/// Inputs of a tile, per side.
const SIDE: usize = 6;
/// Positions of a transformed tile.
pub(super) const POSITIONS: usize = SIDE * SIDE;

/// The point a. Exact in float32, as are its powers and those of b.
pub(super) const A: f32 = 0.75;
/// The point b.
pub(super) const B: f32 = 1.5;

/// `G g G^T` of one 3x3 kernel.
pub(super) fn weights(g: &[f32]) -> [f32; POSITIONS] {
    let (a, b) = (f64::from(A), f64::from(B));
    let (at_a, at_b) = (2.0 * a * a * (a * a - b * b), 2.0 * b * b * (b * b - a * a));
    let matrix = [
        [1.0 / (a * a * b * b), 0.0, 0.0],
        [1.0 / at_a, a / at_a, a * a / at_a],
        [1.0 / at_a, -a / at_a, a * a / at_a],
        [1.0 / at_b, b / at_b, b * b / at_b],
        [1.0 / at_b, -b / at_b, b * b / at_b],
        [0.0, 0.0, 1.0],
    ];
    std::array::from_fn(|position| {
        let (row, column) = (matrix[position / SIDE], matrix[position % SIDE]);
        let products = (0..9).map(|k| row[k / 3] * f64::from(g[k]) * column[k % 3]);
        products.sum::<f64>() as f32
    })
}

/// Some tiles of one block of input channels.
pub(super) struct Input {
    /// `[height, width, 16]`
    pub(super) from: *const f32,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) tiles_wide: usize,
    /// The first tile, counted row by row, and how many.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[36, stride]`, of which the first `count` times 16 elements are written.
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

/// `B^T d B` of each tile.
///
/// # Safety
///
/// The instruction set of `V`; the layouts of [`Input`].
#[inline(always)]
pub(super) unsafe fn input<V: Vector>(job: &Input) {
    let Input { height, width, .. } = *job;
    // SAFETY: the caller has the instruction set.
    let points = unsafe { Points::<V>::new() };
    let mut edge = [Line([0.0; LANES]); POSITIONS];
    let (mut tile_y, mut tile_x) = (job.first / job.tiles_wide, job.first % job.tiles_wide);
    for tile in 0..job.count {
        let (top, left) = (tile_y * TILE, tile_x * TILE);
        let inside = top > 0 && left > 0 && top + SIDE <= height + 1 && left + SIDE <= width + 1;
        let (from, row) = if inside {
            (job.from.wrapping_add(((top - 1) * width + left - 1) * LANES), width * LANES)
        } else {
            // SAFETY: the caller's.
            unsafe { copy_edge(job, top, left, &mut edge) };
            (edge.as_ptr().cast(), SIDE * LANES)
        };
        if inside {
            for y in 0..SIDE {
                for x in SIDE..SIDE + TILE {
                    V::prefetch(from.wrapping_add(y * row + (x + TILE) * LANES));
                }
            }
        }
        // SAFETY: 6x6 vectors lie at `from`, in the image or in `edge`; `to` has room
        // for `count` tiles at each position.
        unsafe {
            let zero = V::zero();
            let mut columns = [[zero; SIDE]; SIDE];
            for (x, column) in columns.iter_mut().enumerate() {
                let mut d = [zero; SIDE];
                for (y, d) in d.iter_mut().enumerate() {
                    *d = V::load(from.add(y * row + x * LANES));
                }
                *column = points.input(d);
            }
            for y in 0..SIDE {
                let mut d = [zero; SIDE];
                for (d, column) in d.iter_mut().zip(&columns) {
                    *d = column[y];
                }
                let out = points.input(d);
                for (x, out) in out.iter().enumerate() {
                    out.store(job.to.add((y * SIDE + x) * job.stride + tile * LANES));
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
unsafe fn copy_edge(job: &Input, top: usize, left: usize, edge: &mut [Line; POSITIONS]) {
    for (position, line) in edge.iter_mut().enumerate() {
        let (y, x) = (top + position / SIDE, left + position % SIDE);
        *line = if (1..=job.height).contains(&y) && (1..=job.width).contains(&x) {
            let at = ((y - 1) * job.width + x - 1) * LANES;
            // SAFETY: y - 1 < height and x - 1 < width.
            Line(unsafe { job.from.add(at).cast::<[f32; LANES]>().read_unaligned() })
        } else {
            Line([0.0; LANES])
        };
    }
}

/// Some tiles of one block of output channels.
pub(super) struct Output {
    /// `[36, stride]`, of which the first `count` times 16 elements are read.
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
pub(super) unsafe fn output<V: Vector>(job: &Output) {
    // SAFETY: the caller has the instruction set, and `bias` sixteen elements.
    let (points, bias, floor) = unsafe {
        let floor = if job.fuse.relu { 0.0 } else { f32::NEG_INFINITY };
        (Points::<V>::new(), V::load(job.bias), V::splat(floor))
    };
    let (mut tile_y, mut tile_x) = (job.first / job.tiles_wide, job.first % job.tiles_wide);
    for tile in 0..job.count {
        let mut rows = [[floor; TILE]; TILE];
        // SAFETY: `from` has `count` tiles at each position.
        unsafe {
            let mut columns = [[floor; TILE]; SIDE];
            for (x, column) in columns.iter_mut().enumerate() {
                let mut m = [floor; SIDE];
                for (y, m) in m.iter_mut().enumerate() {
                    *m = V::load(job.from.add((y * SIDE + x) * job.stride + tile * LANES));
                }
                *column = points.output(m);
            }
            for (y, row) in rows.iter_mut().enumerate() {
                let mut m = [floor; SIDE];
                for (m, column) in m.iter_mut().zip(&columns) {
                    *m = column[y];
                }
                for (to, out) in row.iter_mut().zip(&points.output(m)) {
                    *to = floor.max(out.add(bias));
                }
            }
        }
        // SAFETY: the part of the tile that is in the image is written.
        unsafe {
            if job.fuse.pool {
                let mut pooled = [[floor; TILE / 2]; TILE / 2];
                for (pair, row) in rows.chunks_exact(2).zip(&mut pooled) {
                    for (x, out) in row.iter_mut().enumerate() {
                        let upper = pair[0][2 * x].max(pair[0][2 * x + 1]);
                        *out = upper.max(pair[1][2 * x].max(pair[1][2 * x + 1]));
                    }
                }
                place(job.to, (job.height / 2, job.width / 2), (tile_y, tile_x), &pooled);
            } else {
                place(job.to, (job.height, job.width), (tile_y, tile_x), &rows);
            }
        }
        tile_x += 1;
        if tile_x == job.tiles_wide {
            (tile_y, tile_x) = (tile_y + 1, 0);
        }
    }
}

/// Stores what of tile number (`tile_y`, `tile_x`) lies in the image.
///
/// # Safety
///
/// `to` is `[height, width, 16]`.
#[inline(always)]
unsafe fn place<V: Vector, const N: usize>(
    to: *mut f32,
    (height, width): (usize, usize),
    (tile_y, tile_x): (usize, usize),
    rows: &[[V; N]; N],
) {
    let (top, left) = (tile_y * N, tile_x * N);
    let whole = top + N <= height && left + N <= width;
    for (y, row) in rows.iter().enumerate() {
        for (x, out) in row.iter().enumerate() {
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

    /// `B^T d`, four roundings deep without fused instructions, two with.
    #[inline(always)]
    fn input(&self, [d0, d1, d2, d3, d4, d5]: [V; SIDE]) -> [V; SIDE] {
        let (even_a, odd_a) =
            (d2.mul_add(self.minus_bb, d4), d1.mul_add(self.minus_bb, d3).mul(self.a));
        let (even_b, odd_b) =
            (d2.mul_add(self.minus_aa, d4), d1.mul_add(self.minus_aa, d3).mul(self.b));
        [
            d0.mul_add(self.product, d2.mul_add(self.minus_sum, d4)),
            even_a.add(odd_a),
            even_a.sub(odd_a),
            even_b.add(odd_b),
            even_b.sub(odd_b),
            d1.mul_add(self.product, d3.mul_add(self.minus_sum, d5)),
        ]
    }

    /// `A^T m`, four roundings deep without fused instructions, three with.
    #[inline(always)]
    fn output(&self, [m0, m1, m2, m3, m4, m5]: [V; SIDE]) -> [V; TILE] {
        let (even_a, odd_a) = (m1.add(m2), m1.sub(m2));
        let (even_b, odd_b) = (m3.add(m4), m3.sub(m4));
        [
            m0.add(even_a).add(even_b),
            odd_a.mul_add(self.a, odd_b.mul(self.b)),
            even_a.mul_add(self.aa, even_b.mul(self.bb)),
            odd_a.mul_add(self.aaa, odd_b.mul_add(self.bbb, m5)),
        ]
    }
}
