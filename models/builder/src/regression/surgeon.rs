//! Which groups of inputs a linear layer can best do without, when the others may make up for
//! them: structured optimal brain surgeon (Hassibi and Stork 1993, for groups as in Kurtic et al.
//! 2023, ZipLM).
//!
//! With H = sum x x^T and weights W, leaving out group g and refitting the rest raises the squared
//! error by tr(W_g (H^-1_gg)^-1 W_g^T); the refitted weights are W - W_g (H^-1_gg)^-1 H^-1_g. Taking
//! out the cheapest group again and again gives an order, and what each step costs.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{DenseSolveCore, Llt, Solve};
use faer::{Accum, Mat, Par};

use super::{Statistics, factor};

/// An order of removal.
#[derive(Clone, Debug)]
pub struct Removal {
    /// Groups in the order in which they go, the least missed first; those never removed follow.
    pub order: Vec<usize>,
    /// Error after 0, 1, 2 … groups are gone, as a share of what the outputs vary by.
    pub error: Vec<f64>,
}

impl Removal {
    /// The groups that stay when `count` do, sorted.
    pub fn kept(&self, count: usize) -> Vec<usize> {
        let mut kept = self.order[self.order.len() - count..].to_owned();
        kept.sort_unstable();
        kept
    }
}

/// The most groups that go at a time.
const MOST: usize = 16;

/// Two groups that could make up for each other do not go at a time: the square of how much of one's
/// part of H^-1 is the other's too is no more than this.
const SHARED: f64 = 0.1;

/// The order in which to remove groups of `taps` columns from a layer of the given `weight`
/// (outputs x columns, row-major), down to `least` groups. Several groups go at a time where there
/// are many.
///
/// # Panics
/// If the lengths do not fit each other, or `ridge` is not positive.
pub fn removal(
    statistics: &Statistics,
    taps: usize,
    weight: &[f32],
    ridge: f64,
    least: usize,
) -> Removal {
    let inputs = statistics.columns - 1;
    let groups = inputs / taps;
    let outputs = weight.len() / inputs;
    assert!(ridge > 0.0 && groups * taps == inputs && outputs * inputs == weight.len());

    let (factor, _) = factor(statistics.gram.clone(), inputs, statistics.penalty(ridge));
    let mut surgery = Surgery {
        taps,
        inverse: factor.inverse(),
        // The constant's column is 0: biases are refitted, and cost nothing.
        weight: Mat::from_fn(outputs, inputs + 1, |o, i| {
            if i < inputs { f64::from(weight[o * inputs + i]) } else { 0.0 }
        }),
        left: (0..groups).collect(),
    };
    drop(factor);
    let variance = surgery.variance(statistics);

    let (mut order, mut error) = (Vec::new(), vec![0.0]);
    while surgery.left.len() > least {
        let step = (groups / 64).min(MOST).clamp(1, surgery.left.len() - least);
        let (gone, cost) = surgery.remove(step);
        let step = gone.len();
        let before = *error.last().expect("never empty");
        // Each of a step's groups is charged the same.
        error.extend((1..=step).map(|i| before + cost * i as f64 / (step as f64 * variance)));
        order.extend(gone);
    }
    order.extend(surgery.left);
    Removal { order, error }
}

struct Surgery {
    taps: usize,
    /// H^-1; rows and columns of what is gone are zero.
    inverse: Mat<f64>,
    weight: Mat<f64>,
    left: Vec<usize>,
}

impl Surgery {
    /// How much the outputs vary over all samples.
    fn variance(&self, statistics: &Statistics) -> f64 {
        let size = statistics.columns;
        let samples = statistics.samples.max(1) as f64;
        let mean = |i: usize| statistics.gram[(size - 1, i)];
        let mut product = Mat::<f64>::zeros(self.weight.nrows(), size);
        let covariance = Mat::from_fn(size, size, |i, j| {
            let sum = statistics.gram[(i.max(j), i.min(j))];
            sum - mean(i) * mean(j) / samples
        });
        matmul(product.as_mut(), Accum::Replace, &self.weight, &covariance, 1.0, Par::rayon(0));
        let mut variance = 0.0;
        for j in 0..size {
            for i in 0..self.weight.nrows() {
                variance += product[(i, j)] * self.weight[(i, j)];
            }
        }
        variance.max(f64::MIN_POSITIVE)
    }

    /// Takes out the `count` cheapest groups, without those that make up for one of them, and says
    /// which, and what they cost together.
    fn remove(&mut self, count: usize) -> (Vec<usize>, f64) {
        let mut costs: Vec<(f64, usize)> =
            self.left.iter().map(|&group| (self.cost(group), group)).collect();
        costs.select_nth_unstable_by(count - 1, |a, b| a.0.total_cmp(&b.0));
        costs.truncate(count);
        costs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut gone: Vec<usize> = Vec::with_capacity(count);
        for (_, group) in costs {
            let size = |a: usize, b: usize| {
                let [a, b] = [a, b].map(|group| group * self.taps);
                self.inverse.submatrix(a, b, self.taps, self.taps).squared_norm_l2()
            };
            let shares = |&other: &usize| {
                size(group, other).powi(2)
                    > SHARED.powi(2) * size(group, group) * size(other, other)
            };
            if !gone.iter().any(shares) {
                gone.push(group);
            }
        }
        self.left.retain(|group| !gone.contains(group));

        let columns: Vec<usize> = gone.iter().flat_map(|&group| self.columns(group)).collect();
        let size = self.inverse.nrows();
        let rows = Mat::from_fn(columns.len(), size, |i, j| self.inverse[(columns[i], j)]);
        let block = Mat::from_fn(columns.len(), columns.len(), |i, j| rows[(i, columns[j])]);
        let lost =
            Mat::from_fn(self.weight.nrows(), columns.len(), |i, j| self.weight[(i, columns[j])]);
        let factor = definite(block);
        // (H^-1_gg)^-1 H^-1_g
        let moved = factor.solve(&rows);
        let mut cost = 0.0;
        let solved = factor.solve(lost.transpose());
        for i in 0..lost.nrows() {
            for j in 0..lost.ncols() {
                cost += lost[(i, j)] * solved[(j, i)];
            }
        }
        let par = Par::rayon(0);
        matmul(self.weight.as_mut(), Accum::Add, &lost, &moved, -1.0, par);
        matmul(self.inverse.as_mut(), Accum::Add, rows.transpose(), &moved, -1.0, par);
        for &column in &columns {
            self.inverse.col_mut(column).fill(0.0);
            self.inverse.row_mut(column).fill(0.0);
            self.weight.col_mut(column).fill(0.0);
        }
        (gone, cost)
    }

    fn columns(&self, group: usize) -> std::ops::Range<usize> {
        group * self.taps..(group + 1) * self.taps
    }

    /// tr(W_g (H^-1_gg)^-1 W_g^T).
    fn cost(&self, group: usize) -> f64 {
        let from = group * self.taps;
        let block = self.inverse.submatrix(from, from, self.taps, self.taps);
        let weight = self.weight.subcols(from, self.taps);
        let product = Mat::from_fn(self.taps, self.taps, |i, j| {
            let (a, b) = (weight.col(i).try_as_col_major(), weight.col(j).try_as_col_major());
            let contiguous = "matrices have contiguous columns";
            let (a, b) = (a.expect(contiguous).as_slice(), b.expect(contiguous).as_slice());
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
        });
        let solved = definite(block.to_owned()).solve(&product);
        (0..self.taps).map(|i| solved[(i, i)]).sum()
    }
}

/// Cholesky factor of a block of a definite matrix, which rounding may have left a little less so.
fn definite(block: Mat<f64>) -> Llt<f64> {
    let size = block.nrows();
    let largest = (0..size).map(|i| block[(i, i)]).fold(f64::MIN_POSITIVE, f64::max);
    factor(block, size, 1e-14 * largest).0
}

#[cfg(test)]
mod tests {
    use super::super::tests::{apply, samples};
    use super::*;
    use crate::random::Random;

    #[test]
    fn what_the_others_make_up_for_goes_first_and_costs_nothing() {
        let (groups, taps, outputs) = (4, 3, 5);
        let (x, mut random) = (samples(groups, taps, 500), Random::new(6));
        let weight: Vec<f32> = (0..outputs * groups * taps).map(|_| random.normal()).collect();
        let mut statistics = Statistics::new(groups * taps, 0);
        statistics.add(&x, &[]);
        let removal = removal(&statistics, taps, &weight, 1e-9, 1);
        assert_eq!(removal.order.len(), groups);
        assert_eq!(removal.error.len(), groups);
        assert!(removal.error[1].abs() < 1e-4, "{:?}", removal.error);
        assert!(removal.error[2] > 0.01, "{:?}", removal.error);
        assert!(removal.error.is_sorted(), "{:?}", removal.error);
    }

    #[test]
    fn the_error_is_that_of_the_refitted_layer() {
        let (groups, taps, outputs, rows) = (6, 2, 3, 400);
        let (mut random, row) = (Random::new(3), groups * taps + 1);
        let x: Vec<f32> = (0..rows)
            .flat_map(|_| {
                let mut x: Vec<f32> = (1..row).map(|_| 1.0 + random.normal()).collect();
                x.push(1.0);
                x
            })
            .collect();
        let weight: Vec<f32> = (0..outputs * groups * taps).map(|_| random.normal()).collect();
        let y = apply(&weight, &[0.0; 3], &x, row);
        let mut statistics = Statistics::new(groups * taps, outputs);
        statistics.add(&x, &y);
        let removal = removal(&statistics, taps, &weight, 1e-9, 1);
        let mut variance = 0.0;
        for output in 0..outputs {
            let values = || y.iter().skip(output).step_by(outputs);
            let mean = values().sum::<f32>() / rows as f32;
            variance += values().map(|y| (y - mean).powi(2)).sum::<f32>();
        }
        for gone in 1..groups {
            let kept = removal.kept(groups - gone);
            let fit = statistics.fit(&kept, taps, &weight, 1e-9);
            let read: Vec<f32> = (x.chunks(row))
                .flat_map(|x| {
                    let kept = kept.iter().flat_map(|&group| &x[group * taps..(group + 1) * taps]);
                    kept.copied().chain([1.0]).collect::<Vec<_>>()
                })
                .collect();
            let found = apply(&fit.weight, &fit.bias, &read, kept.len() * taps + 1);
            let error: f32 = found.iter().zip(&y).map(|(a, b)| (a - b).powi(2)).sum();
            let (error, expected) = (f64::from(error / variance), removal.error[gone]);
            assert!((error - expected).abs() < 1e-2 * expected + 1e-5, "{error} {expected}");
        }
    }
}
