//! Every instance against the definition in float64, within a bound that follows from how it computes.

use super::*;
use crate::layout::{block, unblock};
use crate::random::Random;
use crate::reference::{Problem, Threads, compare, gamma, pool};
use crate::winograd::bounds::{self, Numbers};

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

/// An algorithm on an instruction set.
#[derive(Clone, Copy)]
enum Instance {
    Winograd(&'static winograd::Kernels, Tile),
    Matrix(&'static matrix::Kernels),
}

/// What decides how far an instance may be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    Winograd(Numbers, Tile),
    Matrix,
}

impl Instance {
    fn bound(self) -> Bound {
        match self {
            Instance::Winograd(kernels, tile) => Bound::Winograd(Numbers::of(kernels), tile),
            Instance::Matrix(_) => Bound::Matrix,
        }
    }

    /// Its name, or for Winograd's algorithm that and the tile's.
    fn name(self) -> String {
        match self {
            Instance::Winograd(kernels, tile) => format!("{} {tile:?}", kernels.name),
            Instance::Matrix(kernels) => kernels.name.to_owned(),
        }
    }

    /// With the small tile for an image of one.
    fn sized(self, side: usize) -> Instance {
        match self {
            Instance::Winograd(kernels, _) if side == 2 => Instance::Winograd(kernels, Tile::Two),
            _ => self,
        }
    }

    fn convolution(self, in_channels: usize, weights: &[f32], bias: &[f32]) -> Conv3x3 {
        let packed = match self {
            Instance::Winograd(kernels, tile) => {
                Packed::Winograd(Winograd::new(kernels, tile, in_channels, weights, bias))
            }
            Instance::Matrix(kernels) => {
                Packed::Matrix(Matrix::new(kernels, in_channels, weights, bias))
            }
        };
        Conv3x3 { out_channels: bias.len(), in_channels, packed }
    }
}

/// Those of this machine, sorted by their bounds, and the plain twin of float16; on ARM, which has the
/// original, most likely emulated, that would take too long.
fn instances() -> Vec<Instance> {
    let mut instances = vec![];
    let tiles = |kernels| [Tile::Two, Tile::Four].map(|tile| Instance::Winograd(kernels, tile));
    for isa in Isa::all() {
        for precision in [Precision::Single, Precision::Half] {
            instances.extend(tiles(winograd::Kernels::of(isa, precision)));
        }
        instances.push(Instance::Matrix(matrix::kernels(isa)));
    }
    if !cfg!(any(target_arch = "arm", target_arch = "aarch64")) {
        instances.extend(tiles(winograd::TWIN));
    }
    instances.sort_by_key(|instance| (instance.bound(), instance.name()));
    instances.dedup_by_key(|instance| instance.name());
    instances
}

fn check(case: Case) {
    check_problem(&format!("{case:?}"), &case.problem(), case.fuse, case.threads);
}

fn check_problem(what: &str, problem: &Problem, fuse: Fuse, threads: usize) {
    let exact = exact(problem, fuse);
    for alike in instances().chunk_by(|a, b| a.bound() == b.bound()) {
        let bounds = bounds(problem, alike[0].bound(), fuse);
        for instance in alike {
            let output = run(*instance, problem, fuse, threads);
            let what = format!("{} {what}", instance.name());
            compare(&what, problem.out_channels, &output, &exact, &bounds);
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
fn bounds(problem: &Problem, bound: Bound, fuse: Fuse) -> Vec<f64> {
    let bounds = match bound {
        Bound::Winograd(numbers, tile) => bounds::bounds(problem, numbers, tile),
        Bound::Matrix => matrix_bounds(problem),
    };
    if fuse.pool { pool(&bounds, problem.height, problem.width) } else { bounds }
}

/// How far each output of the definition in bfloat16 may be off, planar, before pooling.
///
/// Weights and inputs are rounded to 8 bits. Their products are exact in float32, and a term passes
/// through 16 sums in a step of 32 input channels, 1 that puts even and odd ones together, 1 for each
/// step and 1 of the bias. A factor, product or sum is flushed to zero if it is smaller than the
/// smallest normal number.
fn matrix_bounds(problem: &Problem) -> Vec<f64> {
    let unit = (-8.0f64).exp2();
    let rounded = (1.0 + unit).powi(2);
    let steps = 9 * problem.in_channels.div_ceil(32);
    let sums = gamma(16 + 1 + steps + 1);
    let ones = Problem { weights: vec![1.0; problem.weights.len()], ..problem.clone() };
    let inputs = ones.direct(true);
    let mut bounds = problem.direct(true);
    let pixels = (problem.height * problem.width).max(1);
    for (index, (bound, inputs)) in bounds.iter_mut().zip(inputs).enumerate() {
        let o = index / pixels;
        let filter = &problem.weights[o * problem.in_channels * 9..][..problem.in_channels * 9];
        let weights: f64 = filter.iter().map(|&weight| f64::from(weight.abs())).sum();
        let flushed = rounded * (inputs + weights) + 3.0 * filter.len() as f64;
        *bound *= rounded * (1.0 + sums) - 1.0;
        *bound += sums * f64::from(problem.bias[o].abs());
        *bound += f64::from(f32::MIN_POSITIVE) * flushed;
    }
    bounds
}

fn run(instance: Instance, problem: &Problem, fuse: Fuse, threads: usize) -> Vec<f32> {
    let Problem { out_channels, in_channels, height, width, .. } = *problem;
    let conv = instance.convolution(in_channels, &problem.weights, &problem.bias);
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

/// So many tiles that each thread transforms its own.
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

/// So many inputs that they are rounded to bfloat16 band by band.
#[test]
fn many_rows() {
    for seed in 0..4 {
        check(Case {
            out_channels: 5,
            in_channels: 33,
            height: 94 + seed,
            width: 91,
            weight_scale: 1.0,
            input_scale: 1.0,
            fuse: fuse(seed),
            threads: 1 + seed % 3,
            seed: seed as u64,
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
    for instance in instances() {
        let name = instance.name();
        for value in [f32::NAN, f32::INFINITY] {
            let mut problem = case.problem();
            problem.weights[9 * 20 * 9] = value;
            let output = run(instance, &problem, case.fuse, 1);
            let lane = |channel: usize| channel / 16 * 25 * 16 + 12 * 16 + channel % 16;
            assert!(!output[lane(9)].is_finite(), "{name} with a weight of {value}");
            assert!(output[lane(8)].is_finite(), "{name} with a weight of {value}");

            let mut problem = case.problem();
            problem.input[3 * 25 + 12] = value;
            let output = run(instance, &problem, case.fuse, 1);
            let lanes = (0..33).map(lane);
            let found = lanes.filter(|&lane| !output[lane].is_finite()).count();
            assert!(found == 33, "{name} with an input of {value}: {found} of 33");
        }
    }
}

/// All layers of a VGG-19 with an eighth of its channels at 32 x 32: each is checked on
/// what the one before it made, on every instruction set.
#[test]
fn a_whole_vgg_chain() {
    let blocks = [(2, 8), (2, 16), (4, 32), (4, 64), (4, 64)];
    for instance in instances() {
        if matches!(instance, Instance::Winograd(_, Tile::Two)) {
            continue;
        }
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
                let instance = instance.sized(side);
                let exact = exact(&problem, fuse);
                let bounds = bounds(&problem, instance.bound(), fuse);
                let output = run(instance, &problem, fuse, 2);
                let what = format!("{} {channels} to {out_channels} at {side}", instance.name());
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
        for instance in instances() {
            let one = run(instance, &problem, case.fuse, 1);
            for threads in [2, 3, 5] {
                let more = run(instance, &problem, case.fuse, threads);
                assert!(one == more, "{} with {threads} threads {case:?}", instance.name());
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
        for instance in instances() {
            let conv = instance.convolution(between, &weights, &bias[..out_channels]);
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
                "{} 3 to {between} to {out_channels} at {height} x {width} {fuse:?} seed {seed}",
                instance.name()
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
    for instance in instances() {
        assert!(run(instance, &case.problem(), case.fuse, 2).is_empty());
    }
}

const PLAIN: Algorithm = Algorithm::Winograd(Precision::Single, Tile::Four);

#[test]
#[should_panic(expected = "Conv3x3: output of 15 elements where 16 are needed")]
fn a_wrong_length_is_refused() {
    let conv = Conv3x3::new(Isa::PLAIN, PLAIN, 1, 1, &[0.0; 9], &[0.0]);
    let mut scratch = vec![0.0; conv.scratch_len(1, 1, 1)];
    conv.run(&Threads(1), &[0.0; 16], 1, 1, &mut [0.0; 15], Fuse::default(), &mut scratch);
}

#[test]
#[should_panic(expected = "where")]
fn too_little_scratch_is_refused() {
    let conv = Conv3x3::new(Isa::PLAIN, PLAIN, 1, 1, &[0.0; 9], &[0.0]);
    let mut output = [0.0; 16];
    conv.run(&Threads(1), &[0.0; 16], 1, 1, &mut output, Fuse::default(), &mut [0.0; 100]);
}
