//! Every instance against float64, within a bound derived from the contract.

use super::*;
use crate::bfloat16;
use crate::random::Random;

const UNIT: f64 = f32::EPSILON as f64 / 2.0;
const SMALLEST: f64 = f32::from_bits(1) as f64;

/// How far `y = sum of terms + bias` may be off after float32 arithmetic.
///
/// A sum in which no term passes through more than `n` roundings is off by at most
/// `n u / (1 - n u)` times the sum of magnitudes, with `u` = 2^-24, whatever the order
/// (Higham 2002, equation 3.5 and lemma 3.1); a fused multiply-add has one rounding
/// where multiplying and adding have two. `roundings` counts the longest way of a term
/// as the module's contract has it: one partial sum's share of the terms, the tree
/// over sixteen lanes, the bias, and what each product costs by itself. Results that
/// underflow are off by at most half the smallest denormal per operation instead,
/// times the largest factor that is applied to them later.
fn bound(magnitude: f64, roundings: usize, operations: usize, factor: f64) -> f64 {
    let n = roundings as f64 * UNIT;
    n / (1.0 - n) * magnitude + operations as f64 * SMALLEST * factor.max(1.0)
}

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    columns: usize,
    weight_scale: f32,
    x_scale: f32,
    seed: u64,
}

fn check(case: Case) {
    check_weights(case, "linear_f32", |weight| weight, |weight| weight, linear_f32);
    check_weights(case, "linear_bf16", bfloat16::to_bits, bfloat16::of_bits, linear_bf16);
    check_i8b64(Case { columns: case.columns / BLOCK * BLOCK, ..case });
}

/// A kernel whose weights are stored as `W` each.
fn check_weights<W: Copy>(
    case: Case,
    name: &str,
    store: impl Fn(f32) -> W,
    value: impl Fn(W) -> f32,
    kernel: impl Fn(Isa, &[W], &[f32], &[f32], &mut [f32]),
) {
    let Case { rows, columns, .. } = case;
    let mut random = Random(case.seed);
    // One element off, so that nothing is aligned by luck.
    let storage = random.floats(rows * columns + 1, case.weight_scale);
    let storage: Vec<W> = storage.into_iter().map(store).collect();
    let weights = &storage[1..];
    let bias = random.floats(rows, case.weight_scale * case.x_scale);
    let x = random.floats(columns, case.x_scale);
    for isa in Isa::all() {
        let mut y = vec![f32::NAN; rows];
        kernel(isa, weights, &bias, &x, &mut y);
        for row in 0..rows {
            let weight = |k| f64::from(value(weights[row * columns + k]));
            let terms = (0..columns).map(|k| weight(k) * f64::from(x[k]));
            let exact = terms.clone().sum::<f64>() + f64::from(bias[row]);
            let magnitude = terms.map(f64::abs).sum::<f64>() + f64::from(bias[row].abs());
            let limit = bound(magnitude, columns.div_ceil(LANES) + 8, 2 * columns, 1.0);
            let error = (f64::from(y[row]) - exact).abs();
            assert!(
                error <= limit,
                "{name} {isa} {case:?} row {row}: {} for {exact}, off by {error:e}, bound {limit:e}",
                y[row]
            );
        }
    }
}

fn check_i8b64(case: Case) {
    let Case { rows, columns, .. } = case;
    let blocks = columns / BLOCK;
    let mut random = Random(case.seed);
    let storage: Vec<i8> = (0..rows * columns + 1).map(|_| random.next() as i8).collect();
    let weights = &storage[1..];
    let scales = random.floats(rows * blocks, case.weight_scale / 128.0);
    let bias = random.floats(rows, case.weight_scale * case.x_scale);
    let x = random.floats(columns, case.x_scale);
    for isa in Isa::all() {
        let mut y = vec![f32::NAN; rows];
        linear_i8b64(isa, weights, &scales, &bias, &x, &mut y);
        for row in 0..rows {
            let terms = (0..columns).map(|k| {
                f64::from(weights[row * columns + k])
                    * f64::from(scales[row * blocks + k / BLOCK])
                    * f64::from(x[k])
            });
            let exact = terms.clone().sum::<f64>() + f64::from(bias[row]);
            let magnitude = terms.map(f64::abs).sum::<f64>() + f64::from(bias[row].abs());
            // Four products in a lane of a block, its scale, then one sum per block.
            let limit = bound(magnitude, blocks + 5 + 8, 2 * columns, f64::from(case.weight_scale));
            let error = (f64::from(y[row]) - exact).abs();
            assert!(
                error <= limit,
                "linear_i8b64 {isa} {case:?} row {row}: {} for {exact}, off by {error:e}, bound {limit:e}",
                y[row]
            );
        }
    }
}

#[test]
fn random_shapes() {
    for seed in 0..60 {
        let mut random = Random(seed);
        check(Case {
            rows: random.below(14),
            columns: random.below(700),
            weight_scale: 1.0,
            x_scale: 1.0,
            seed,
        });
    }
}

#[test]
fn no_row_one_row_no_column() {
    for (rows, columns) in [(0, 0), (0, 64), (1, 0), (1, 1), (1, 64), (5, 15), (4, 16), (9, 17)] {
        check(Case { rows, columns, weight_scale: 1.0, x_scale: 1.0, seed: 7 });
    }
}

#[test]
fn widths_of_vgg19() {
    for columns in [25_088, 12_800, 4_096] {
        check(Case { rows: 3, columns, weight_scale: 0.05, x_scale: 3.0, seed: 11 });
    }
}

#[test]
fn extreme_values() {
    for (weight_scale, x_scale) in [(1e18, 1e17), (1e-18, 1e18), (1e30, 1e5), (1e-5, 1e-30)] {
        check(Case { rows: 6, columns: 333, weight_scale, x_scale, seed: 13 });
    }
}

#[test]
fn denormals() {
    for (weight_scale, x_scale) in [(1e-20, 1e-20), (1e-40, 1.0), (1.0, 1e-40), (1e-40, 1e30)] {
        check(Case { rows: 6, columns: 333, weight_scale, x_scale, seed: 17 });
    }
}

#[test]
fn infinities_and_nan_come_through() {
    for isa in Isa::all() {
        let mut weights = vec![1.0; 2 * 40];
        weights[3] = f32::INFINITY;
        weights[79] = f32::NAN;
        let rounded: Vec<u16> = weights.iter().map(|weight| bfloat16::to_bits(*weight)).collect();
        let mut y = [[0.0; 2]; 2];
        linear_f32(isa, &weights, &[0.0; 2], &[1.0; 40], &mut y[0]);
        linear_bf16(isa, &rounded, &[0.0; 2], &[1.0; 40], &mut y[1]);
        assert!(y.iter().all(|y| y[0] == f32::INFINITY && y[1].is_nan()), "{isa} {y:?}");
    }
}

#[test]
#[should_panic(expected = "linear_f32: 11 weights for 2 rows of 6 columns")]
fn wrong_lengths_are_refused() {
    linear_f32(Isa::PLAIN, &[0.0; 11], &[0.0; 2], &[0.0; 6], &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "linear_bf16: 2 biases for 3 rows of output")]
fn wrong_lengths_are_refused_at_half_the_width() {
    linear_bf16(Isa::PLAIN, &[0; 18], &[0.0; 2], &[0.0; 6], &mut [0.0; 3]);
}

#[test]
#[should_panic(expected = "linear_i8b64: 65 columns are not a multiple of 64")]
fn broken_blocks_are_refused() {
    linear_i8b64(Isa::PLAIN, &[0; 65], &[0.0], &[0.0], &[0.0; 65], &mut [0.0]);
}
