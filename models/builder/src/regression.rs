//! Linear least squares over a stream: sums of products are kept, samples are not.
//!
//! [`Statistics`] takes rows of inputs x (with a constant 1 at the end, for the bias) and of wanted
//! outputs y, as many as there are, and keeps sum x x^T and sum y x^T in float64. From these come
//! the weights of a layer that has lost some of its inputs, by ridge regression towards a prior
//! ([`Statistics::fit`]), and the order in which inputs are best lost (`surgeon`). How strong the
//! ridge has to be, other samples decide ([`Samples::fit_relu`]): on those that it was fitted on,
//! a layer with thousands of inputs is right where it is not elsewhere. The only user of crate faer,
//! and of half for samples.

mod nudge;
mod surgeon;

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use half::bf16;
use half::slice::HalfFloatSliceExt;

pub use nudge::Nudge;
pub use surgeon::{Removal, removal};

/// How strongly weights are held to a prior where nothing tells, as a share of the variance of an
/// input.
pub const RIDGE: f64 = 0.03;

/// The same where other samples tell.
pub const RIDGES: [f64; 5] = [1e-5, 1e-3, 0.03, 0.3, 3.0];

/// Sums over all samples of a layer.
#[derive(Clone)]
pub struct Statistics {
    columns: usize,
    outputs: usize,
    samples: u64,
    /// Lower triangle of sum x x^T; the last row and column are the constant's.
    gram: Mat<f64>,
    /// Sum y x^T.
    cross: Mat<f64>,
    /// Of one batch.
    batch_gram: Mat<f32>,
    batch_cross: Mat<f32>,
}

/// Weights and bias of a layer.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Outputs x columns, row-major.
    pub weight: Vec<f32>,
    /// One number per output.
    pub bias: Vec<f32>,
}

/// X W^T for `x` of `rows` rows and a `weight` of `outputs` rows, all row-major: rows x outputs.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn times_transposed(x: &[f32], rows: usize, weight: &[f32], outputs: usize) -> Vec<f32> {
    let mut y = vec![0.0; rows * outputs];
    if rows == 0 {
        return y;
    }
    let columns = x.len() / rows;
    let x = MatRef::from_row_major_slice(x, rows, columns);
    let weight = MatRef::from_row_major_slice(weight, outputs, columns);
    let to = MatMut::from_row_major_slice_mut(&mut y, rows, outputs);
    matmul(to, Accum::Replace, x, weight.transpose(), 1.0, Par::rayon(0));
    y
}

/// Rows of `columns` numbers, each with the constant 1 behind it.
pub fn with_constant(x: &[f32], columns: usize) -> Vec<f32> {
    x.chunks(columns).flat_map(|row| row.iter().copied().chain([1.0])).collect()
}

/// X W for `x` of `rows` rows and a `weight` of `columns` columns, all row-major: rows x columns.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn times(x: &[f32], rows: usize, weight: &[f32], columns: usize) -> Vec<f32> {
    let mut y = vec![0.0; rows * columns];
    let inner = weight.len() / columns;
    let x = MatRef::from_row_major_slice(x, rows, inner);
    let weight = MatRef::from_row_major_slice(weight, inner, columns);
    let to = MatMut::from_row_major_slice_mut(&mut y, rows, columns);
    matmul(to, Accum::Replace, x, weight, 1.0, Par::rayon(0));
    y
}

/// X^T Y for `x` of `columns` and `y` of `others` columns, all row-major: columns x others.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn transposed_times(x: &[f32], columns: usize, y: &[f32], others: usize) -> Vec<f32> {
    let mut product = vec![0.0; columns * others];
    let rows = x.len() / columns;
    let x = MatRef::from_row_major_slice(x, rows, columns);
    let y = MatRef::from_row_major_slice(y, rows, others);
    let to = MatMut::from_row_major_slice_mut(&mut product, columns, others);
    matmul(to, Accum::Replace, x.transpose(), y, 1.0, Par::rayon(0));
    product
}

/// (G + `penalty` I)^-1 Y for a `gram` matrix G and `wanted` Y of `outputs` columns, all row-major:
/// ridge regression in the space of the samples.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn solve(gram: &[f32], penalty: f64, wanted: &[f32], outputs: usize) -> Vec<f32> {
    let rows = wanted.len() / outputs;
    let matrix = Mat::from_fn(rows, rows, |i, j| f64::from(gram[i * rows + j]));
    let (factor, _) = factor(matrix, rows, penalty);
    let mut right = Mat::from_fn(rows, outputs, |i, j| f64::from(wanted[i * outputs + j]));
    factor.solve_in_place(right.as_mut());
    let at = |i: usize| right[(i / outputs, i % outputs)] as f32;
    (0..rows * outputs).map(at).collect()
}

impl Statistics {
    /// No sample yet, of rows of `columns` inputs (without the constant) and `outputs` outputs.
    pub fn new(columns: usize, outputs: usize) -> Self {
        let (columns, square) = (columns + 1, columns + 1);
        Self {
            columns,
            outputs,
            samples: 0,
            gram: Mat::zeros(columns, square),
            cross: Mat::zeros(outputs, columns),
            batch_gram: Mat::zeros(columns, square),
            batch_cross: Mat::zeros(outputs, columns),
        }
    }

    /// Numbers in one row of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers in one row of inputs, the constant 1 at its end included.
    pub fn row(&self) -> usize {
        self.columns
    }

    /// How many samples were added.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Adds samples: `x` has a row of inputs for each, ending with the constant 1, `y` one of
    /// outputs. Sums within a call are in float32, so a call should bring some thousand rows.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        let rows = x.len() / self.columns;
        assert_eq!((x.len(), y.len()), (rows * self.columns, rows * self.outputs));
        if rows == 0 {
            return;
        }
        let x = MatRef::from_row_major_slice(x, rows, self.columns);
        let par = Par::rayon(0);
        triangular::matmul(
            self.batch_gram.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            x.transpose(),
            BlockStructure::Rectangular,
            x,
            BlockStructure::Rectangular,
            1.0,
            par,
        );
        for (column, (sum, batch)) in
            self.gram.col_iter_mut().zip(self.batch_gram.col_iter()).enumerate()
        {
            let (sum, batch) = (sum.try_as_col_major_mut(), batch.try_as_col_major());
            let sum = sum.expect("matrices have contiguous columns").as_slice_mut();
            let batch = batch.expect("matrices have contiguous columns").as_slice();
            for (sum, batch) in sum[column..].iter_mut().zip(&batch[column..]) {
                *sum += f64::from(*batch);
            }
        }
        if self.outputs > 0 {
            let y = MatRef::from_row_major_slice(y, rows, self.outputs);
            matmul(self.batch_cross.as_mut(), Accum::Replace, y.transpose(), x, 1.0, par);
            for column in 0..self.columns {
                for output in 0..self.outputs {
                    self.cross[(output, column)] += f64::from(self.batch_cross[(output, column)]);
                }
            }
        }
        self.samples += rows as u64;
    }

    /// The layer that reads only `kept` groups of `taps` columns each and comes nearest to the
    /// wanted outputs: minimises the mean of (y - W x - b)^2 + `ridge` s (W - P)^2 over W and b,
    /// with P the `prior` weights of these columns and s the mean variance of an input.
    ///
    /// `prior` is outputs x all columns, row-major.
    ///
    /// # Panics
    /// If the lengths do not fit each other, or `ridge` is not positive.
    pub fn fit(&self, kept: &[usize], taps: usize, prior: &[f32], ridge: f64) -> Fit {
        let columns: Vec<usize> =
            kept.iter().flat_map(|group| group * taps..(group + 1) * taps).collect();
        let normal = Normal::new(self, columns, prior, ridge);
        normal.solve(self.outputs, |output, column| self.cross[(output, column)])
    }

    /// A square matrix R, row-major, with R^T R = sum x x^T over the inputs without the constant.
    pub fn root(&self) -> Vec<f32> {
        let inputs = self.columns - 1;
        let gram = Mat::from_fn(inputs, inputs, |i, j| self.gram[(i.max(j), i.min(j))]);
        let (factor, _) = factor(gram, inputs, self.penalty(1e-9));
        let lower = factor.L();
        let at = |i: usize, j: usize| if i <= j { lower[(j, i)] as f32 } else { 0.0 };
        (0..inputs).flat_map(|i| (0..inputs).map(move |j| at(i, j))).collect()
    }

    /// What is added to the diagonal for `ridge`.
    fn penalty(&self, ridge: f64) -> f64 {
        let inputs = self.columns - 1;
        let samples = self.samples.max(1) as f64;
        let variance = |i: usize| self.gram[(i, i)] - self.gram[(inputs, i)].powi(2) / samples;
        let trace: f64 = (0..inputs).map(variance).sum();
        // An input that is always zero must not make the matrix singular.
        (ridge * trace / inputs.max(1) as f64).max(1e-9 * samples).max(f64::MIN_POSITIVE)
    }
}

/// The normal equations of a ridge regression towards a prior, factored.
struct Normal<'a> {
    /// The columns that are read, without the constant.
    columns: Vec<usize>,
    constant: usize,
    prior: &'a [f32],
    penalty: f64,
    factor: Llt<f64>,
}

impl<'a> Normal<'a> {
    fn new(statistics: &Statistics, columns: Vec<usize>, prior: &'a [f32], ridge: f64) -> Self {
        assert!(ridge > 0.0);
        let penalty = statistics.penalty(ridge);
        let constant = statistics.columns - 1;
        let all: Vec<usize> = columns.iter().copied().chain([constant]).collect();
        let mut normal = Mat::<f64>::zeros(all.len(), all.len());
        for (j, &column) in all.iter().enumerate() {
            for (i, &row) in all.iter().enumerate().skip(j) {
                normal[(i, j)] = statistics.gram[(row, column)];
            }
        }
        let (factor, penalty) = factor(normal, columns.len(), penalty);
        Self { columns, constant, prior, penalty, factor }
    }

    /// The weights for a sum of wanted outputs times inputs, `cross(output, column)`.
    fn solve(&self, outputs: usize, cross: impl Fn(usize, usize) -> f64) -> Fit {
        let size = self.columns.len();
        let mut right = Mat::<f64>::zeros(size + 1, outputs);
        for output in 0..outputs {
            let prior = &self.prior[output * self.constant..][..self.constant];
            for (i, &column) in self.columns.iter().enumerate() {
                let towards = self.penalty * f64::from(prior[column]);
                right[(i, output)] = cross(output, column) + towards;
            }
            right[(size, output)] = cross(output, self.constant);
        }
        self.factor.solve_in_place(right.as_mut());
        let mut fit = Fit { weight: Vec::new(), bias: Vec::new() };
        for output in 0..outputs {
            fit.weight.extend((0..size).map(|i| right[(i, output)] as f32));
            fit.bias.push(right[(size, output)] as f32);
        }
        fit
    }
}

/// Cholesky factor of `matrix` with `penalty` added to the first `count` numbers on the diagonal,
/// or as much more as rounding in the sums needs, and what was added.
fn factor(mut matrix: Mat<f64>, count: usize, mut penalty: f64) -> (Llt<f64>, f64) {
    let mut added = 0.0;
    loop {
        for i in 0..count {
            matrix[(i, i)] += penalty - added;
        }
        if let Ok(factor) = matrix.llt(Side::Lower) {
            return (factor, penalty);
        }
        (added, penalty) = (penalty, 10.0 * penalty);
    }
}

/// Rows of inputs, each ending with the constant 1, and of the outputs wanted for them.
pub struct Samples {
    row: usize,
    outputs: usize,
    inputs: Inputs,
    wanted: Vec<f32>,
}

enum Inputs {
    Whole(Vec<f32>),
    Short(Vec<bf16>),
}

impl Samples {
    /// None yet, of rows of `row` inputs (with the constant) and `outputs` outputs.
    pub fn new(row: usize, outputs: usize) -> Self {
        Self { row, outputs, inputs: Inputs::Whole(Vec::new()), wanted: Vec::new() }
    }

    /// The same for inputs that vary so much that bfloat16 tells them apart, in half the memory.
    pub fn short(row: usize, outputs: usize) -> Self {
        Self { inputs: Inputs::Short(Vec::new()), ..Self::new(row, outputs) }
    }

    /// Adds samples.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        assert_eq!(x.len() / self.row * self.outputs, y.len());
        match &mut self.inputs {
            Inputs::Whole(inputs) => inputs.extend(x),
            Inputs::Short(inputs) => {
                let from = inputs.len();
                inputs.resize(from + x.len(), bf16::ZERO);
                inputs[from..].convert_from_f32_slice(x);
            }
        }
        self.wanted.extend(y);
    }

    /// The layer whose outputs come nearest to the wanted ones after both went through a ReLU:
    /// minimises the mean of (y - z)^2 where y > 0 and of max(z, 0)^2 elsewhere, z = W x + b, with
    /// a ridge towards `prior` (outputs x inputs, row-major) as in [`Statistics::fit`]: the one of
    /// [`RIDGES`] that brings a linear fit nearest to what is wanted for the samples `held` back.
    ///
    /// What a ReLU cuts off need not be met: by majorisation, each of `rounds` linear fits wants
    /// there what the one before gave, if that was negative (as Zhang et al. 2016, section 3.2,
    /// alternate between responses and weights), and goes a little beyond it (Nesterov).
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn fit_relu(&self, held: &Samples, prior: &[f32], rounds: usize) -> Fit {
        let mut statistics = Statistics::new(self.row - 1, self.outputs);
        for (x, y) in self.batches() {
            statistics.add(&x, y);
        }
        let cross = std::mem::replace(&mut statistics.cross, Mat::zeros(0, 0));
        // What is added up in is as large as the sums, and the factors below are larger.
        (statistics.batch_gram, statistics.batch_cross) = (Mat::zeros(0, 0), Mat::zeros(0, 0));
        let normal = |ridge| Normal::new(&statistics, (0..self.row - 1).collect(), prior, ridge);
        let linear = |normal: &Normal<'_>| {
            normal.solve(self.outputs, |output, column| cross[(output, column)])
        };
        let judge = |ridge| (held.error(&linear(&normal(ridge)), rounds > 0), ridge);
        let ridge = match held.wanted.is_empty() {
            true => RIDGE,
            false => {
                let judged = RIDGES.into_iter().map(judge);
                judged.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are ridges").1
            }
        };
        let normal = normal(ridge);
        let mut fit = linear(&normal);
        let mut ahead = fit.clone();
        for round in 0..rounds {
            let mut sum = Mat::<f32>::zeros(self.outputs, self.row);
            for (x, y) in self.batches() {
                let mut wanted = ahead.apply(&x, self.row);
                let lacks: Vec<f32> = missing(y, &wanted, true).collect();
                wanted.iter_mut().zip(lacks).for_each(|(found, lacks)| *found += lacks);
                let rows = y.len() / self.outputs;
                let x = MatRef::from_row_major_slice(&x, rows, self.row);
                let wanted = MatRef::from_row_major_slice(&wanted, rows, self.outputs);
                matmul(sum.as_mut(), Accum::Add, wanted.transpose(), x, 1.0, Par::rayon(0));
            }
            let next =
                normal.solve(self.outputs, |output, column| f64::from(sum[(output, column)]));
            let momentum = round as f32 / (round as f32 + 3.0);
            let beyond = |next: &f32, fit: &f32| next + momentum * (next - fit);
            ahead.weight = next.weight.iter().zip(&fit.weight).map(|(a, b)| beyond(a, b)).collect();
            ahead.bias = next.bias.iter().zip(&fit.bias).map(|(a, b)| beyond(a, b)).collect();
            fit = next;
        }
        fit
    }

    /// Squared error of a layer, with `relu` where both go through one.
    fn error(&self, fit: &Fit, relu: bool) -> f64 {
        let of = |(x, wanted): (Cow<'_, [f32]>, &[f32])| {
            squared(missing(wanted, &fit.apply(&x, self.row), relu))
        };
        self.batches().map(of).sum()
    }

    fn batches(&self) -> impl Iterator<Item = (Cow<'_, [f32]>, &[f32])> {
        const ROWS: usize = 2048;
        let wanted = self.wanted.chunks(ROWS * self.outputs);
        wanted.enumerate().map(|(batch, wanted)| {
            let from = batch * ROWS * self.row;
            let places = from..from + wanted.len() / self.outputs * self.row;
            let inputs = match &self.inputs {
                Inputs::Whole(inputs) => Cow::from(&inputs[places]),
                Inputs::Short(inputs) => Cow::from(inputs[places].to_f32_vec()),
            };
            (inputs, wanted)
        })
    }
}

/// Sum of the squares.
pub fn squared(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum()
}

/// What outputs lack, with `relu` where both go through one: what that cuts off need not be met.
pub fn missing(wanted: &[f32], found: &[f32], relu: bool) -> impl Iterator<Item = f32> {
    wanted.iter().zip(found).map(move |(&wanted, &found)| {
        let wanted = if relu && wanted <= 0.0 { found.min(0.0) } else { wanted };
        wanted - found
    })
}

impl Fit {
    /// What it gives for rows of inputs that end with the constant 1.
    fn apply(&self, x: &[f32], row: usize) -> Vec<f32> {
        let outputs = self.bias.len();
        let weights = self.weight.chunks(row - 1).zip(&self.bias);
        let weight: Vec<f32> =
            weights.flat_map(|(weight, bias)| weight.iter().chain([bias]).copied()).collect();
        times_transposed(x, x.len() / row, &weight, outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Rows of inputs whose last group is a sum of the others, with the constant.
    pub(super) fn samples(groups: usize, taps: usize, rows: usize) -> Vec<f32> {
        let mut random = Random::new(5);
        let mut x = Vec::new();
        for _ in 0..rows {
            let mut row: Vec<f32> =
                (0..(groups - 1) * taps).map(|_| 0.5 + random.normal()).collect();
            let sums: Vec<f32> =
                (0..taps).map(|tap| row.iter().skip(tap).step_by(taps).sum()).collect();
            row.extend(sums);
            row.push(1.0);
            x.extend(row);
        }
        x
    }

    pub(super) fn apply(weight: &[f32], bias: &[f32], x: &[f32], row: usize) -> Vec<f32> {
        (x.chunks(row))
            .flat_map(|x| {
                (weight.chunks(row - 1).zip(bias))
                    .map(move |(w, bias)| bias + w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>())
            })
            .collect()
    }

    #[test]
    fn a_group_that_the_others_make_up_for_is_not_missed() {
        let (groups, taps, outputs) = (4, 3, 5);
        let (x, mut random) = (samples(groups, taps, 500), Random::new(6));
        let weight: Vec<f32> = (0..outputs * groups * taps).map(|_| random.normal()).collect();
        let bias = [0.3, -1.0, 0.0, 2.0, 0.5];
        let y = apply(&weight, &bias, &x, groups * taps + 1);
        let mut statistics = Statistics::new(groups * taps, outputs);
        for (x, y) in x.chunks(100 * statistics.row()).zip(y.chunks(100 * outputs)) {
            statistics.add(x, y);
        }
        assert_eq!(statistics.samples(), 500);

        let fewer = statistics.fit(&[0, 1, 2], taps, &weight, 1e-9);
        let kept: Vec<f32> = (x.chunks(groups * taps + 1))
            .flat_map(|row| row[..3 * taps].iter().copied().chain([1.0]))
            .collect();
        let found = apply(&fewer.weight, &fewer.bias, &kept, 3 * taps + 1);
        for (found, expected) in found.iter().zip(&y) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }

    #[test]
    fn a_strong_ridge_leaves_weights_as_they_were_and_corrects_the_bias() {
        let mut random = Random::new(9);
        let x: Vec<f32> =
            (0..200).flat_map(|_| [3.0 + random.normal(), random.normal(), 1.0]).collect();
        let prior = [0.5, -0.25];
        let y: Vec<f32> = x.chunks(3).map(|x| 2.0 * x[0] + x[1]).collect();
        let mut statistics = Statistics::new(2, 1);
        statistics.add(&x, &y);
        let fit = statistics.fit(&[0, 1], 1, &prior, 1e6);
        for (found, expected) in fit.weight.iter().zip(prior) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
        let mean = |values: &mut dyn Iterator<Item = f32>| values.sum::<f32>() / 200.0;
        let wanted = mean(&mut y.iter().copied());
        let got = mean(&mut apply(&fit.weight, &fit.bias, &x, 3).into_iter());
        assert!((wanted - got).abs() < 1e-3, "{wanted} {got}");
    }

    #[test]
    fn inputs_that_are_always_zero_do_no_harm() {
        let mut statistics = Statistics::new(2, 1);
        statistics.add(&[0.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[2.0, 4.0]);
        let fit = statistics.fit(&[0, 1], 1, &[1.0, 1.0], 1e-3);
        assert!((fit.bias[0] - 3.0).abs() < 1e-5, "{fit:?}");
    }
}
