//! The gradient of a 3x3 convolution's weights, by Winograd's algorithm.
//!
//! A tile of 4x4 outputs is `A^T [sum over channels of (G g G^T) * (B^T d B)] A`, with `d` its 6x6
//! inputs and `g` the weights: see crate vggd-kernels. So for gradients `y` of outputs those of the
//! weights are `G^T [sum over tiles of (A y A^T) * (B^T d B)] G`: at each of 36 positions a product
//! of outputs by tiles with tiles by inputs, a quarter of the arithmetic of nine taps.

use std::array;

use candle_core::{DType, Device, Result, Tensor};
use vggd::model::Engine;
use vggd_kernels::layout::CHANNEL_BLOCK;

use super::{Lanes, Stack, each};

/// Outputs of a tile, by side.
const TILE: usize = 4;

/// Inputs of a tile, by side.
const INPUTS: usize = TILE + 2;

/// Positions at which products are taken.
const POSITIONS: usize = INPUTS * INPUTS;

/// The points of interpolation are 0, A, -A, B, -B and infinity.
const A: f32 = 0.75;
const B: f32 = 1.5;
const AA: f32 = A * A;
const BB: f32 = B * B;

/// A sum over stacks of photos, on its way.
pub(super) struct WeightGradient<'a> {
    engine: &'a Engine,
    outputs: usize,
    inputs: usize,
    /// 36 x outputs x inputs, both filled up to multiples of sixteen.
    products: Option<Tensor>,
}

impl<'a> WeightGradient<'a> {
    pub(super) fn new(engine: &'a Engine, outputs: usize, inputs: usize) -> Self {
        Self { engine, outputs, inputs, products: None }
    }

    /// The convolution's input, and the gradient of its sums.
    pub(super) fn add(&mut self, input: &Stack, sums: &Stack) -> Result<()> {
        let input = tiles::<INPUTS>(self.engine, input, of_inputs)?;
        let sums = tiles::<TILE>(self.engine, sums, of_outputs)?;
        let products = sums.permute((1, 2, 0))?.matmul(&input.transpose(0, 1)?)?;
        self.products = Some(match self.products.take() {
            Some(before) => (before + products)?,
            None => products,
        });
        Ok(())
    }

    /// OIHW.
    pub(super) fn end(self) -> Result<Tensor> {
        let shape = (self.outputs, self.inputs, 3, 3);
        let Some(products) = self.products else {
            return Tensor::zeros(shape, DType::F32, &Device::Cpu);
        };
        let products = products.flatten_all()?.to_vec1()?;
        let weights = back(self.engine, &products, self.outputs, self.inputs);
        Tensor::from_vec(weights, shape, &Device::Cpu)
    }
}

/// Tiles x 36 x channels (a multiple of sixteen): each tile's `SIDE` x `SIDE` numbers transformed.
fn tiles<const SIDE: usize>(
    engine: &Engine,
    stack: &Stack,
    line: impl Fn([f32; SIDE]) -> [f32; INPUTS] + Copy + Sync,
) -> Result<Tensor> {
    let (height, width, blocks) = (stack.maps.rows(), stack.maps.width, stack.maps.blocks());
    let (tiles_high, tiles_wide) = (height.div_ceil(TILE), width.div_ceil(TILE));
    let channels = blocks * CHANNEL_BLOCK;
    let border = (SIDE - TILE) / 2;
    let mut transformed = vec![0.0; tiles_high * tiles_wide * POSITIONS * channels];
    let rows = transformed.chunks_mut(tiles_wide * POSITIONS * channels);
    each(engine, rows, &|tile_y, row| {
        for (tile_x, to) in row.chunks_mut(POSITIONS * channels).enumerate() {
            for block in 0..blocks {
                let pixels = stack.pixels(block * height * width, height * width);
                let mut tile = [[[0.0; CHANNEL_BLOCK]; SIDE]; SIDE];
                for (y, tile) in tile.iter_mut().enumerate() {
                    let y = (tile_y * TILE + y).wrapping_sub(border);
                    for (x, lanes) in tile.iter_mut().enumerate() {
                        let x = (tile_x * TILE + x).wrapping_sub(border);
                        if y < height && x < width {
                            *lanes = pixels[y * width + x];
                        }
                    }
                }
                let tile = both_ways(&tile, line);
                for (position, lanes) in tile.as_flattened().iter().enumerate() {
                    let at = position * channels + block * CHANNEL_BLOCK;
                    to[at..at + CHANNEL_BLOCK].copy_from_slice(lanes);
                }
            }
        }
    });
    let shape = (tiles_high * tiles_wide, POSITIONS, channels);
    Tensor::from_vec(transformed, shape, &Device::Cpu)
}

/// OIHW from 36 x outputs x inputs, both multiples of sixteen.
fn back(engine: &Engine, products: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let [rows, columns] = [outputs, inputs].map(|count| count.next_multiple_of(CHANNEL_BLOCK));
    let mut weights = vec![0.0; outputs * inputs * 9];
    each(engine, weights.chunks_mut(inputs * 9), &|output, weights| {
        for (block, weights) in weights.chunks_mut(CHANNEL_BLOCK * 9).enumerate() {
            let lanes = |position: usize| -> Lanes {
                let at = (position * rows + output) * columns + block * CHANNEL_BLOCK;
                array::from_fn(|lane| products[at + lane])
            };
            let tile: [[Lanes; INPUTS]; INPUTS] =
                array::from_fn(|y| array::from_fn(|x| lanes(y * INPUTS + x)));
            let tile = both_ways(&tile, to_weights);
            for (lane, weights) in weights.chunks_mut(9).enumerate() {
                for (weight, lanes) in weights.iter_mut().zip(tile.as_flattened()) {
                    *weight = lanes[lane];
                }
            }
        }
    });
    weights
}

/// `line` along each column, then along each row of what that gives.
fn both_ways<const FROM: usize, const TO: usize>(
    tile: &[[Lanes; FROM]; FROM],
    line: impl Fn([f32; FROM]) -> [f32; TO],
) -> [[Lanes; TO]; TO] {
    let mut columns = [[[0.0; CHANNEL_BLOCK]; FROM]; TO];
    for x in 0..FROM {
        for lane in 0..CHANNEL_BLOCK {
            let values = line(array::from_fn(|y| tile[y][x][lane]));
            for (column, value) in columns.iter_mut().zip(values) {
                column[x][lane] = value;
            }
        }
    }
    let mut transformed = [[[0.0; CHANNEL_BLOCK]; TO]; TO];
    for (row, column) in transformed.iter_mut().zip(&columns) {
        for lane in 0..CHANNEL_BLOCK {
            let values = line(array::from_fn(|x| column[x][lane]));
            for (to, value) in row.iter_mut().zip(values) {
                to[lane] = value;
            }
        }
    }
    transformed
}

/// `B^T d`
fn of_inputs([d0, d1, d2, d3, d4, d5]: [f32; INPUTS]) -> [f32; INPUTS] {
    let (even_a, odd_a) = (d4 - BB * d2, A * (d3 - BB * d1));
    let (even_b, odd_b) = (d4 - AA * d2, B * (d3 - AA * d1));
    [
        AA * BB * d0 - (AA + BB) * d2 + d4,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        AA * BB * d1 - (AA + BB) * d3 + d5,
    ]
}

/// `A y`
fn of_outputs([y0, y1, y2, y3]: [f32; TILE]) -> [f32; INPUTS] {
    let (even_a, odd_a) = (y0 + AA * y2, A * (y1 + AA * y3));
    let (even_b, odd_b) = (y0 + BB * y2, B * (y1 + BB * y3));
    [y0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y3]
}

/// `G^T s`
fn to_weights([s0, s1, s2, s3, s4, s5]: [f32; INPUTS]) -> [f32; 3] {
    const AT_ZERO: f32 = 1.0 / (AA * BB);
    const AT_A: f32 = 1.0 / (2.0 * AA * (AA - BB));
    const AT_B: f32 = 1.0 / (2.0 * BB * (BB - AA));
    let (even_a, odd_a) = (AT_A * (s1 + s2), AT_A * A * (s1 - s2));
    let (even_b, odd_b) = (AT_B * (s3 + s4), AT_B * B * (s3 - s4));
    [AT_ZERO * s0 + even_a + even_b, odd_a + odd_b, AA * even_a + BB * even_b + s5]
}
