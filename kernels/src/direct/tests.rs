//! Every instance against the definition in float64.

use super::*;
use crate::random::Random;
use crate::reference::{Problem, SMALLEST, Threads, compare, gamma};

#[derive(Debug, Clone, Copy)]
struct Case {
    out_channels: usize,
    in_channels: usize,
    height: usize,
    width: usize,
    weight_scale: f32,
    input_scale: f32,
    relu: bool,
    threads: usize,
    seed: u64,
}

/// A sum starts with the bias and takes one product after the other, so that no term
/// passes through more than 9 C + 1 roundings.
fn check(case: Case) {
    let Case { out_channels, in_channels, height, width, .. } = case;
    let mut random = Random(case.seed);
    let problem = Problem {
        out_channels,
        in_channels,
        height,
        width,
        weights: random.floats(out_channels * in_channels * 9, case.weight_scale),
        bias: random.floats(out_channels, case.weight_scale * case.input_scale),
        input: random.floats(in_channels * height * width, case.input_scale),
    };
    let mut exact = problem.direct(false);
    problem.add_bias(&mut exact, false);
    let mut magnitudes = problem.direct(true);
    problem.add_bias(&mut magnitudes, true);
    if case.relu {
        exact.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    let operations = 18 * in_channels;
    let bounds: Vec<f64> = magnitudes
        .iter()
        .map(|magnitude| gamma(9 * in_channels + 1) * magnitude + operations as f64 * SMALLEST)
        .collect();
    for isa in Isa::all() {
        let conv = Direct3x3::new(isa, out_channels, in_channels, &problem.weights, &problem.bias);
        let mut output = vec![f32::NAN; blocked_len(out_channels, height, width)];
        let mut scratch = vec![f32::NAN; conv.scratch_len(height, width)];
        let parallel = Threads(case.threads);
        conv.run(&parallel, &problem.input, height, width, &mut output, case.relu, &mut scratch);
        compare(&format!("{} {case:?}", conv.kernel()), out_channels, &output, &exact, &bounds);
    }
}

#[test]
fn random_shapes() {
    for seed in 0..40 {
        let mut random = Random(seed);
        check(Case {
            out_channels: 1 + random.below(70),
            in_channels: 1 + random.below(4),
            height: 1 + random.below(20),
            width: 1 + random.below(40),
            weight_scale: 1.0,
            input_scale: 1.0,
            relu: random.below(2) == 0,
            threads: 1 + random.below(3),
            seed,
        });
    }
}

#[test]
fn extreme_values_and_denormals() {
    for (weight_scale, input_scale) in [(1e18, 1e18), (1e-20, 1e-20), (1e-40, 1e20), (1.0, 1e-40)] {
        check(Case {
            out_channels: 20,
            in_channels: 3,
            height: 9,
            width: 17,
            weight_scale,
            input_scale,
            relu: false,
            threads: 1,
            seed: 5,
        });
    }
}

#[test]
#[should_panic(expected = "Direct3x3: input of 74 elements where 75 are needed")]
fn a_wrong_length_is_refused() {
    let conv = Direct3x3::new(Isa::PLAIN, 1, 3, &[0.0; 27], &[0.0]);
    let mut scratch = vec![0.0; conv.scratch_len(5, 5)];
    conv.run(&Threads(1), &[0.0; 74], 5, 5, &mut [0.0; 400], false, &mut scratch);
}
