//! Every instance against the definition in float64, within a bound that follows from
//! the transforms.

use super::*;
use crate::direct::Direct3x3;
use crate::layout::{block, unblock};
use crate::random::Random;
use crate::reference::{Problem, SMALLEST, Threads, compare, gamma, pool};
use crate::vector::{Float16, Int16};
use half::Number;
use transform::{A, B};

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
enum Numbers {
    Float32,
    /// Float32 on a processor that takes what is smaller than the smallest normal number as zero.
    Normal32,
    Int16,
    Float16,
}

impl Numbers {
    /// As the kernel's name has it.
    fn of(kernels: &Kernels) -> Numbers {
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
fn bounds(problem: &Problem, numbers: Numbers, tile: Tile) -> Vec<f64> {
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

#[derive(Debug, Clone, Copy)]
struct Case {
    out_channels: usize,
    in_channels: usize,
    height: usize,
    width: usize,
    weight_scale: f32,
    input_scale: f32,
    fuse: Fuse,
    threads: usize,
    seed: u64,
}

impl Case {
    fn problem(&self) -> Problem {
        let Case { out_channels, in_channels, height, width, .. } = *self;
        let mut random = Random(self.seed);
        Problem {
            out_channels,
            in_channels,
            height,
            width,
            weights: random.floats(out_channels * in_channels * 9, self.weight_scale),
            bias: random.floats(out_channels, self.weight_scale * self.input_scale),
            input: random.floats(in_channels * height * width, self.input_scale),
        }
    }
}

/// The kernels of this machine, and the plain twin of float16; on ARM, which has the original, most
/// likely emulated, that would take too long.
fn kernels() -> Vec<&'static Kernels> {
    let mut kernels = vec![];
    for isa in Isa::all() {
        for precision in [Precision::Single, Precision::Half] {
            kernels.push(instances::of(isa, precision));
        }
    }
    if !cfg!(any(target_arch = "arm", target_arch = "aarch64")) {
        kernels.push(instances::TWIN);
    }
    kernels.sort_by_key(|kernels| kernels.name);
    kernels.dedup_by_key(|kernels| kernels.name);
    kernels
}

fn everything() -> impl Iterator<Item = (&'static Kernels, Tile)> {
    kernels().into_iter().flat_map(|kernels| [(kernels, Tile::Two), (kernels, Tile::Four)])
}

fn check(case: Case) {
    check_problem(&format!("{case:?}"), &case.problem(), case.fuse, case.threads);
}

fn check_problem(what: &str, problem: &Problem, fuse: Fuse, threads: usize) {
    let exact = exact(problem, fuse);
    let mut kernels = kernels();
    kernels.sort_by_key(|kernels| Numbers::of(kernels));
    for alike in kernels.chunk_by(|a, b| Numbers::of(a) == Numbers::of(b)) {
        for tile in [Tile::Two, Tile::Four] {
            let bounds = fused_bounds(problem, Numbers::of(alike[0]), tile, fuse);
            for kernels in alike {
                let output = run(kernels, problem, tile, fuse, threads);
                let what = format!("{} {tile:?} {what}", kernels.name);
                compare(&what, problem.out_channels, &output, &exact, &bounds);
            }
        }
    }
}

fn exact(problem: &Problem, fuse: Fuse) -> Vec<f64> {
    let mut exact = problem.direct(false);
    problem.add_bias(&mut exact, false);
    if fuse.relu {
        exact.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    if fuse.pool { pool(&exact, problem.height, problem.width) } else { exact }
}

/// ReLU and pooling never take two values farther apart than the farthest pair was.
fn fused_bounds(problem: &Problem, numbers: Numbers, tile: Tile, fuse: Fuse) -> Vec<f64> {
    let bounds = bounds(problem, numbers, tile);
    if fuse.pool { pool(&bounds, problem.height, problem.width) } else { bounds }
}

fn run(
    kernels: &'static Kernels,
    problem: &Problem,
    tile: Tile,
    fuse: Fuse,
    threads: usize,
) -> Vec<f32> {
    let Problem { out_channels, in_channels, height, width, .. } = *problem;
    let Problem { weights, bias, .. } = problem;
    let conv = Conv3x3::with_kernels(kernels, tile, out_channels, in_channels, weights, bias);
    let mut input = vec![f32::NAN; blocked_len(in_channels, height, width)];
    block(in_channels, height * width, &problem.input, &mut input);
    let (out_height, out_width) = if fuse.pool { (height / 2, width / 2) } else { (height, width) };
    let mut output = vec![f32::NAN; blocked_len(out_channels, out_height, out_width)];
    let mut scratch = vec![f32::NAN; conv.scratch_len(height, width, threads)];
    conv.run(&Threads(threads), &input, height, width, &mut output, fuse, &mut scratch);
    output
}

fn fuse(bits: usize) -> Fuse {
    Fuse { relu: bits & 1 == 1, pool: bits & 2 == 2 }
}

#[test]
fn random_shapes() {
    for seed in 0..40 {
        let mut random = Random(seed);
        check(Case {
            out_channels: 1 + random.below(70),
            in_channels: 1 + random.below(40),
            height: 1 + random.below(15),
            width: 1 + random.below(15),
            weight_scale: 1.0,
            input_scale: 1.0,
            fuse: fuse(random.below(4)),
            threads: 1 + random.below(3),
            seed,
        });
    }
}

/// More tiles than [`FEW_TILES`]: each thread transforms its own.
#[test]
fn many_tiles() {
    for seed in 0..6 {
        let mut random = Random(seed);
        check(Case {
            out_channels: 1 + random.below(40),
            in_channels: 1 + random.below(20),
            height: 33 + random.below(12),
            width: 33 + random.below(12),
            weight_scale: 1.0,
            input_scale: 1.0,
            fuse: fuse(random.below(4)),
            threads: 1 + random.below(3),
            seed,
        });
    }
}

#[test]
fn extreme_values_and_denormals() {
    for (weight_scale, input_scale) in [(1e17, 1e18), (1e-20, 1e-20), (1e-40, 1e20), (1.0, 1e-40)] {
        check(Case {
            out_channels: 17,
            in_channels: 18,
            height: 6,
            width: 9,
            weight_scale,
            input_scale,
            fuse: fuse(0),
            threads: 1,
            seed: 5,
        });
    }
}

/// Sums as large as they can become, one after another: at each position of a tile
/// inside the image, all products of an output channel have the same sign. Its largest
/// weight makes up more than the others together, or all are equal, over more channels than
/// are added up in numbers of 16 bits or int32.
#[test]
fn sums_at_their_limit() {
    for (in_channels, first) in [(1, 1.0), (2, 1.0), (512, 1.0), (512, 1e3), (600, 1.0), (600, 1e3)]
    {
        for sign in [1.0, -1.0] {
            let weight = |index: usize| if index < 9 { sign * first } else { sign };
            let problem = Problem {
                out_channels: 2,
                in_channels,
                height: 9,
                width: 9,
                weights: (0..2 * in_channels * 9)
                    .map(|at| weight(at % (in_channels * 9)))
                    .collect(),
                bias: vec![0.0; 2],
                input: vec![1.0; in_channels * 81],
            };
            check_problem(&format!("{in_channels} channels of {sign}"), &problem, fuse(0), 1);
        }
    }
}

/// More channels than are added up in numbers of 16 bits or int32.
#[test]
fn many_channels() {
    for (seed, in_channels) in [513, 527, 600].into_iter().enumerate() {
        check(Case {
            out_channels: [33, 5, 5][seed],
            in_channels,
            height: 6,
            width: 9,
            weight_scale: 1.0,
            input_scale: 1.0,
            fuse: fuse(seed),
            threads: 2,
            seed: seed as u64,
        });
    }
}

/// What is not finite makes everything that it has part in not finite, so that it is
/// noticed.
#[test]
fn what_is_not_finite_stays() {
    let case = Case {
        out_channels: 33,
        in_channels: 20,
        height: 5,
        width: 5,
        weight_scale: 1.0,
        input_scale: 1.0,
        fuse: fuse(0),
        threads: 1,
        seed: 1,
    };
    for (kernels, tile) in everything() {
        let kernel = kernels.name;
        for value in [f32::NAN, f32::INFINITY] {
            let mut problem = case.problem();
            problem.weights[9 * 20 * 9] = value;
            let output = run(kernels, &problem, tile, case.fuse, 1);
            let lane = |channel: usize| channel / 16 * 25 * 16 + 12 * 16 + channel % 16;
            assert!(!output[lane(9)].is_finite(), "{kernel} {tile:?} with a weight of {value}");
            assert!(output[lane(8)].is_finite(), "{kernel} {tile:?} with a weight of {value}");

            let mut problem = case.problem();
            problem.input[3 * 25 + 12] = value;
            let output = run(kernels, &problem, tile, case.fuse, 1);
            let lanes = (0..33).map(lane);
            let found = lanes.filter(|&lane| !output[lane].is_finite()).count();
            assert!(found == 33, "{kernel} {tile:?} with an input of {value}: {found} of 33");
        }
    }
}

/// All layers of a VGG-19 with an eighth of its channels at 32 x 32: each is checked on
/// what the one before it made, on every instruction set.
#[test]
fn a_whole_vgg_chain() {
    let blocks = [(2, 8), (2, 16), (4, 32), (4, 64), (4, 64)];
    for kernels in kernels() {
        let mut random = Random(3);
        let (mut channels, mut side) = (3, 32);
        let mut input = random.floats(3 * side * side, 2.0);
        for (layers, out_channels) in blocks {
            for layer in 0..layers {
                let he = (6.0 / (9.0 * channels as f32)).sqrt();
                let problem = Problem {
                    out_channels,
                    in_channels: channels,
                    height: side,
                    width: side,
                    weights: random.floats(out_channels * channels * 9, he),
                    bias: random.floats(out_channels, 0.1),
                    input,
                };
                let fuse = Fuse { relu: true, pool: layer + 1 == layers };
                let tile = Tile::choose(7 * side, 7 * side);
                let exact = exact(&problem, fuse);
                let bounds = fused_bounds(&problem, Numbers::of(kernels), tile, fuse);
                let output = run(kernels, &problem, tile, fuse, 2);
                let what = format!("{} {channels} to {out_channels} at {side}", kernels.name);
                compare(&what, out_channels, &output, &exact, &bounds);
                channels = out_channels;
                side = if fuse.pool { side / 2 } else { side };
                input = vec![0.0; channels * side * side];
                unblock(channels, side * side, &output, &mut input);
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for side in [14, 40] {
        let case = Case {
            out_channels: 70,
            in_channels: 33,
            height: side,
            width: side,
            weight_scale: 1.0,
            input_scale: 1.0,
            fuse: fuse(3),
            threads: 1,
            seed: 9,
        };
        let problem = case.problem();
        for (kernels, tile) in everything() {
            let one = run(kernels, &problem, tile, case.fuse, 1);
            for threads in [2, 3, 5] {
                let more = run(kernels, &problem, tile, case.fuse, threads);
                let kernel = kernels.name;
                assert!(one == more, "{kernel} with {threads} threads {tile:?} {case:?}");
            }
        }
    }
}

/// The first two convolutions together make exactly what they make one by one.
#[test]
fn a_stem_changes_nothing() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let (height, width) = (1 + random.below(40), 1 + random.below(40));
        let (between, out_channels) = (1 + random.below(40), 1 + random.below(40));
        let first_weights = random.floats(between * 27, 1.0);
        let weights = random.floats(out_channels * between * 9, 1.0);
        let bias = random.floats(between.max(out_channels), 1.0);
        let input = random.floats(3 * height * width, 1.0);
        let fuse = fuse(random.below(4));
        let parallel = Threads(1 + random.below(3));
        let first = Direct3x3::new(Isa::detect(), between, 3, &first_weights, &bias[..between]);
        for (kernels, tile) in everything() {
            let bias = &bias[..out_channels];
            let conv = Conv3x3::with_kernels(kernels, tile, out_channels, between, &weights, bias);
            let mut middle = vec![f32::NAN; blocked_len(between, height, width)];
            let mut scratch = vec![f32::NAN; first.scratch_len(height, width)];
            first.run(&parallel, &input, height, width, &mut middle, true, &mut scratch);
            let (out_height, out_width) =
                if fuse.pool { (height / 2, width / 2) } else { (height, width) };
            let mut one_by_one = vec![f32::NAN; blocked_len(out_channels, out_height, out_width)];
            let mut scratch = vec![f32::NAN; conv.scratch_len(height, width, parallel.threads())];
            conv.run(&parallel, &middle, height, width, &mut one_by_one, fuse, &mut scratch);
            let mut together = vec![f32::NAN; one_by_one.len()];
            let mut scratch =
                vec![f32::NAN; conv.scratch_len_after(&first, height, width, parallel.threads())];
            conv.run_after(
                &first,
                &parallel,
                &input,
                height,
                width,
                &mut together,
                fuse,
                &mut scratch,
            );
            assert!(
                one_by_one == together,
                "{} {tile:?} 3 to {between} to {out_channels} at {height} x {width} {fuse:?} seed {seed}",
                conv.kernel()
            );
        }
    }
}

#[test]
fn an_empty_image_is_no_work() {
    let case = Case {
        out_channels: 3,
        in_channels: 2,
        height: 0,
        width: 5,
        weight_scale: 1.0,
        input_scale: 1.0,
        fuse: fuse(1),
        threads: 2,
        seed: 1,
    };
    for (kernels, tile) in everything() {
        assert!(run(kernels, &case.problem(), tile, case.fuse, 2).is_empty());
    }
}

#[test]
#[should_panic(expected = "Conv3x3: output of 15 elements where 16 are needed")]
fn a_wrong_length_is_refused() {
    let conv = Conv3x3::new(Isa::PLAIN, Tile::Four, 1, 1, &[0.0; 9], &[0.0]);
    let mut scratch = vec![0.0; conv.scratch_len(1, 1, 1)];
    conv.run(&Threads(1), &[0.0; 16], 1, 1, &mut [0.0; 15], Fuse::default(), &mut scratch);
}

#[test]
#[should_panic(expected = "where")]
fn too_little_scratch_is_refused() {
    let conv = Conv3x3::new(Isa::PLAIN, Tile::Four, 1, 1, &[0.0; 9], &[0.0]);
    let mut output = [0.0; 16];
    conv.run(&Threads(1), &[0.0; 16], 1, 1, &mut output, Fuse::default(), &mut [0.0; 100]);
}
