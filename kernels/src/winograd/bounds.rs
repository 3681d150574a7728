//! How far Winograd's algorithm may be off, by the numbers that products are computed with.

use super::half::{self, Number};
use super::transform::{A, B};
use super::{Kernels, Tile};
use crate::layout::CHANNEL_BLOCK;
use crate::reference::{Problem, SMALLEST, gamma};
use crate::vector::{Float16, Int16};

/// `B^T`: coefficients of the products of the other points' linear factors.
fn input_matrix(tile: Tile) -> Vec<Vec<f64>> {
    let (a, b) = (f64::from(A), f64::from(B));
    let (aa, bb) = (a * a, b * b);
    match tile {
        Tile::Two => vec![
            vec![-1.0, 0.0, 1.0, 0.0],
            vec![0.0, 1.0, 1.0, 0.0],
            vec![0.0, -1.0, 1.0, 0.0],
            vec![0.0, -1.0, 0.0, 1.0],
        ],
        Tile::Four => vec![
            vec![aa * bb, 0.0, -(aa + bb), 0.0, 1.0, 0.0],
            vec![0.0, -a * bb, -bb, a, 1.0, 0.0],
            vec![0.0, a * bb, -bb, -a, 1.0, 0.0],
            vec![0.0, -b * aa, -aa, b, 1.0, 0.0],
            vec![0.0, b * aa, -aa, -b, 1.0, 0.0],
            vec![0.0, aa * bb, 0.0, -(aa + bb), 0.0, 1.0],
        ],
    }
}

/// `G`: powers of the points over the values of those products.
fn weights_matrix(tile: Tile) -> Vec<Vec<f64>> {
    let points = points(tile);
    let of_point = |&point: &f64| {
        let others = points.iter().filter(|&&other| other != point);
        let value: f64 = others.map(|other| point - other).product();
        vec![1.0 / value, point / value, point * point / value]
    };
    let mut matrix: Vec<Vec<f64>> = points.iter().map(of_point).collect();
    matrix.push(vec![0.0, 0.0, 1.0]);
    matrix
}

/// `A^T`: powers of the points.
fn output_matrix(tile: Tile) -> Vec<Vec<f64>> {
    let row = |power: usize| {
        let mut row: Vec<f64> = points(tile).iter().map(|point| point.powi(power as i32)).collect();
        row.push(if power + 1 == tile.side() { 1.0 } else { 0.0 });
        row
    };
    (0..tile.side()).map(row).collect()
}

fn points(tile: Tile) -> Vec<f64> {
    let (a, b) = (f64::from(A), f64::from(B));
    match tile {
        Tile::Two => vec![0.0, 1.0, -1.0],
        Tile::Four => vec![0.0, a, -a, b, -b],
    }
}

/// `M X M^T` for a square X, with the magnitudes of `M` if asked for.
fn sandwich(matrix: &[Vec<f64>], inner: &[f64], magnitudes: bool) -> Vec<f64> {
    let (rows, side) = (matrix.len(), matrix[0].len());
    let entry = |row: usize, k: usize| {
        let value = matrix[row][k];
        if magnitudes { value.abs() } else { value }
    };
    let half = |index: usize| {
        let (row, column) = (index / side, index % side);
        (0..side).map(|k| entry(row, k) * inner[k * side + column]).sum()
    };
    let half: Vec<f64> = (0..rows * side).map(half).collect();
    let whole = |index: usize| {
        let (row, column) = (index / rows, index % rows);
        (0..side).map(|k| half[row * side + k] * entry(column, k)).sum()
    };
    (0..rows * rows).map(whole).collect()
}

/// What a kernel computes products with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Numbers {
    Float32,
    /// Float32 on a processor that takes what is smaller than the smallest normal number as zero.
    Normal32,
    Int16,
    Float16,
}

impl Numbers {
    /// As the kernel's name has it.
    pub(crate) fn of(kernels: &Kernels) -> Numbers {
        match kernels.name.split('_').nth(2) {
            Some("f32") if kernels.name.starts_with("neon32") => Numbers::Normal32,
            Some("f32") => Numbers::Float32,
            Some("i16") => Numbers::Int16,
            Some("f16") => Numbers::Float16,
            _ => panic!("{} does not say what it multiplies", kernels.name),
        }
    }

    fn rounding(self) -> Rounding {
        match self {
            Numbers::Float32 => Rounding::default(),
            Numbers::Normal32 => {
                Rounding { flushed: f32::MIN_POSITIVE.into(), ..Rounding::default() }
            }
            // One half, and for the float32 arithmetic that finds the nearest integer, less than
            // 2^15, 5 roundings of it.
            Numbers::Int16 => Rounding { of_scale: 0.51, ..Rounding::of::<Int16>() },
            // 2^-11 of it, or half the smallest denormal, 2^-24, and a little for the float32
            // arithmetic before. Products are not rounded, each sum is.
            Numbers::Float16 => {
                let unit = (-11.0f64).exp2();
                let sums = Rounding::of::<Float16>().flush as f64 * unit;
                Rounding {
                    of_number: 1.001 * unit,
                    of_scale: 1.001 * (-25.0f64).exp2(),
                    of_sum: sums / (1.0 - sums),
                    of_scales: (-25.0f64).exp2(),
                    ..Rounding::of::<Float16>()
                }
            }
        }
    }
}

/// How numbers of 16 bits are rounded, and very small ones of 32.
#[derive(Default)]
struct Rounding {
    /// Smaller factors, products and sums are taken as zero, besides the loss by underflow.
    flushed: f64,
    /// Channels that are added up in such numbers.
    flush: usize,
    /// The largest input, the largest weight and the largest sum of weights, over their scale.
    most_input: f64,
    most_weight: f64,
    weights: f64,
    /// How far a weight or an input may be off: so much of itself and of its scale.
    of_number: f64,
    of_scale: f64,
    /// How far a sum may be off: so much of its terms' magnitudes, and for each term of the product
    /// of both scales.
    of_sum: f64,
    of_scales: f64,
}

impl Rounding {
    fn of<N: Number>() -> Rounding {
        Rounding {
            flush: N::FLUSH * CHANNEL_BLOCK,
            most_input: N::MOST_INPUT.into(),
            most_weight: N::MOST_WEIGHT.into(),
            weights: N::WEIGHTS.into(),
            ..Rounding::default()
        }
    }

    /// The scale that the weights of one output channel need at one position.
    fn weight_scale(&self, magnitudes: &[f64]) -> f64 {
        if self.flush == 0 {
            return 0.0;
        }
        let needed = magnitudes.chunks(self.flush).map(|magnitudes| {
            let most = magnitudes.iter().copied().fold(0.0, f64::max);
            (magnitudes.iter().sum::<f64>() / self.weights).max(most / self.most_weight)
        });
        needed.fold(f32::MIN_POSITIVE.into(), f64::max)
    }

    /// The scale that the inputs of one tile need at one position, of which `largest` is the largest.
    fn input_scale(&self, largest: f64) -> f64 {
        match self.flush {
            0 => 0.0,
            _ => largest.max(half::LEAST_INPUT.into()) / self.most_input,
        }
    }
}

/// How far each output may be off, planar, before pooling.
///
/// Every output is a sum of products of an entry of `A^T`, a transformed weight, an
/// entry of `B^T`, an input, and so on again for the other dimension; its terms'
/// magnitudes add up to `|A^T| [sum of |G g G^T| * (|B^T| |d| |B|)] |A|`. The constants
/// are exact. A term passes through at most 4 roundings in each dimension of the input
/// transform, 1 of the weight, C products and sums plus 1, 4 in each dimension of the
/// output transform, and 1 of the bias: C + 19, C a multiple of 16. Underflow loses
/// less than the smallest denormal in each operation: 64 of them in an input
/// transform with what multiplies them later, 1 in a weight and 1 in a product, 128 in
/// an output transform.
///
/// Where each factor, product and sum is flushed to zero, as much as the smallest normal number is lost
/// of it, and of a factor what the other one makes of that.
///
/// At half width, besides, each transformed weight and input is off by what [`Rounding`] says, and so
/// are sums. What the conversion of sums, what further sums and both scales round is less than C
/// products and sums do in float32, but for 4 with the smallest layers.
pub(crate) fn bounds(problem: &Problem, numbers: Numbers, tile: Tile) -> Vec<f64> {
    let Problem { out_channels, in_channels, height, width, .. } = *problem;
    let (input, output, g) = (input_matrix(tile), output_matrix(tile), weights_matrix(tile));
    let (side, outputs, positions) = (tile.side() + 2, tile.side(), tile.positions());
    let relative = gamma(in_channels.next_multiple_of(CHANNEL_BLOCK) + 23);
    let rounding = numbers.rounding();
    // Of each input channel what the matrices make of it at position `p`.
    let at = |transformed: &[Vec<f64>], p: usize| -> Vec<f64> {
        transformed.iter().map(|channel| channel[p].abs()).collect()
    };
    let weights: Vec<Vec<Weights>> = (0..out_channels)
        .map(|o| {
            let kernel = |i| problem.kernel(o, i).iter().map(|&g| f64::from(g)).collect::<Vec<_>>();
            let transformed: Vec<_> =
                (0..in_channels).map(|i| sandwich(&g, &kernel(i), false)).collect();
            let of_position = |p| Weights::new(at(&transformed, p), relative, &rounding);
            (0..positions).map(of_position).collect()
        })
        .collect();
    let mut bounds = vec![0.0; out_channels * height * width];
    for top in (0..height).step_by(outputs) {
        for left in (0..width).step_by(outputs) {
            let transformed = |magnitudes: bool| -> Vec<Vec<f64>> {
                let tile = |i: usize| {
                    let value = |p| problem.bordered(i, top + p / side, left + p % side);
                    let magnitude = |p| if magnitudes { value(p).abs() } else { value(p) };
                    (0..positions).map(magnitude).collect::<Vec<_>>()
                };
                (0..in_channels).map(|i| sandwich(&input, &tile(i), magnitudes)).collect()
            };
            let (terms, exact) = (transformed(true), transformed(false));
            let inputs: Vec<Inputs> = (0..positions)
                .map(|p| Inputs::new(at(&terms, p), &at(&exact, p), relative, &rounding))
                .collect();
            for o in 0..out_channels {
                let products = inputs.iter().zip(&weights[o]);
                let sum: Vec<f64> =
                    products.map(|(inputs, weights)| inputs.bound(weights, &rounding)).collect();
                for (index, bound) in sandwich(&output, &sum, true).into_iter().enumerate() {
                    let (y, x) = (top + index / outputs, left + index % outputs);
                    if y < height && x < width {
                        let bias = relative * f64::from(problem.bias[o].abs());
                        bounds[(o * height + y) * width + x] = bound + bias + 128.0 * SMALLEST;
                    }
                }
            }
        }
    }
    bounds
}

/// What the weights of one output channel at one position do to the bound.
struct Weights {
    sum: f64,
    scale: f64,
    /// The largest magnitudes that the rounded ones may have.
    most: Vec<f64>,
    /// How far they may be off, and what float32 rounds of a product, both over the input.
    off: Vec<f64>,
}

impl Weights {
    fn new(magnitudes: Vec<f64>, relative: f64, rounding: &Rounding) -> Weights {
        let (sum, scale) = (magnitudes.iter().sum(), rounding.weight_scale(&magnitudes));
        let off = |weight| rounding.of_number * weight + rounding.of_scale * scale;
        Weights {
            sum,
            scale,
            most: magnitudes.iter().map(|weight| weight + off(weight)).collect(),
            off: magnitudes.iter().map(|weight| relative * weight + off(weight)).collect(),
        }
    }
}

/// What the inputs of one tile at one position do to the bound.
struct Inputs {
    /// What their terms' magnitudes add up to.
    terms: Vec<f64>,
    scale: f64,
    /// How far they, and sums of their products, may be off, over the rounded weight.
    off: Vec<f64>,
}

impl Inputs {
    fn new(terms: Vec<f64>, exact: &[f64], relative: f64, rounding: &Rounding) -> Inputs {
        let found = exact.iter().zip(&terms);
        let found: Vec<f64> =
            found.map(|(exact, term)| exact + relative * term + 64.0 * SMALLEST).collect();
        let scale = rounding.input_scale(found.iter().copied().fold(0.0, f64::max));
        let off = |input: &f64| {
            let off = rounding.of_number * input + rounding.of_scale * scale;
            off + rounding.of_sum * (input + off)
        };
        Inputs { scale, off: found.iter().map(off).collect(), terms }
    }

    /// How far the sum of products may be off.
    fn bound(&self, weights: &Weights, rounding: &Rounding) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let count = self.terms.len() as f64;
        let terms = self.terms.iter().sum::<f64>();
        let underflow = terms + count * self.scale + 64.0 * weights.sum + 2.0 * count;
        let flushed = terms + weights.sum + 2.0 * count;
        dot(&self.terms, &weights.off)
            + dot(&self.off, &weights.most)
            + SMALLEST * underflow
            + rounding.flushed * flushed
            + rounding.of_scales * count * self.scale * weights.scale
    }
}
