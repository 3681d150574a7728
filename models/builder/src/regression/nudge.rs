//! Layers with more inputs than there are samples.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::{Fit, factor, missing, squared};

/// Outputs whose weights are nudged at a time.
const NUDGED: usize = 256;

/// Times that a nudge is repeated for what a ReLU cuts off.
const ROUNDS: usize = 6;

/// A layer with more inputs than there are samples, and what it gives for these.
pub struct Nudge<'a> {
    /// Numbers in a row of `inputs`, the constant 1 at its end included.
    pub row: usize,
    /// Numbers in a row of `wanted` and `found`.
    pub outputs: usize,
    /// Row-major.
    pub inputs: &'a [f32],
    /// Row-major: what the layer should give.
    pub wanted: &'a [f32],
    /// Row-major: what it gives now.
    pub found: &'a [f32],
    /// How many of the samples, the last ones, no layer was fitted on.
    pub held: usize,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl Nudge<'_> {
    /// The change of weights and biases that brings the layer nearer to what is wanted: ridge
    /// regression of what is missing, in the space of the samples. How strong the ridge is, those
    /// held back decide, on which the change is tried; nothing if it helps there at no strength.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn fit(&self) -> Option<Fit> {
        let rows = self.inputs.len() / self.row;
        let x = MatRef::from_row_major_slice(self.inputs, rows, self.row);
        let mut gram = Mat::<f32>::zeros(rows, rows);
        matmul(gram.as_mut(), Accum::Replace, x, x.transpose(), 1.0, Par::rayon(0));
        let gram = Mat::from_fn(rows, rows, |i, j| f64::from(gram[(i, j)]));
        let mean = (0..rows).map(|i| gram[(i, i)]).sum::<f64>() / rows.max(1) as f64;

        let (others, held): (Vec<usize>, Vec<usize>) =
            (0..rows).partition(|row| row + self.held < rows);
        let off = |found: &[f32], rows: &[usize]| -> f64 {
            let of = |&row: &usize| {
                let at = row * self.outputs..(row + 1) * self.outputs;
                squared(missing(&self.wanted[at.clone()], &found[at], self.relu))
            };
            rows.iter().map(of).sum()
        };
        let mut best = (off(self.found, &held), None);
        for strength in (-4..=2).map(|power| 10f64.powi(power)) {
            let moves = self.moves(&gram, &others, strength * mean);
            let error = off(&self.moved(&gram, &moves), &held);
            if error < best.0 {
                best = (error, Some(strength));
            }
        }
        let all: Vec<usize> = (0..rows).collect();
        let moves = self.moves(&gram, &all, best.1? * mean);
        let mut fit =
            Fit { weight: Vec::with_capacity(self.outputs * (self.row - 1)), bias: Vec::new() };
        // Some outputs at a time: the first linear layer's weights are many.
        let mut change = vec![0.0; NUDGED * self.row];
        for from in (0..self.outputs).step_by(NUDGED) {
            let count = NUDGED.min(self.outputs - from);
            let part = Mat::from_fn(count, rows, |i, row| moves[(row, from + i)] as f32);
            let change = &mut change[..count * self.row];
            let to = MatMut::from_row_major_slice_mut(change, count, self.row);
            matmul(to, Accum::Replace, &part, x, 1.0, Par::rayon(0));
            for change in change.chunks(self.row) {
                let (bias, weight) = change.split_last().expect("a row ends with the constant");
                fit.weight.extend(weight);
                fit.bias.push(*bias);
            }
        }
        Some(fit)
    }

    /// Weights of the samples, samples x outputs, those not in `rows` 0.
    fn moves(&self, gram: &Mat<f64>, rows: &[usize], penalty: f64) -> Mat<f64> {
        let normal = Mat::from_fn(rows.len(), rows.len(), |i, j| gram[(rows[i], rows[j])]);
        let (factor, _) = factor(normal, rows.len(), penalty);
        let total = gram.nrows();
        let mut moves = Mat::<f64>::zeros(total, self.outputs);
        // What a ReLU cuts off need not be met, and what that is changes with the weights.
        for _ in 0..if self.relu { ROUNDS } else { 1 } {
            let now = self.moved(gram, &moves);
            let mut right = Mat::<f64>::zeros(rows.len(), self.outputs);
            for (i, &row) in rows.iter().enumerate() {
                let at = row * self.outputs..(row + 1) * self.outputs;
                let wanted = missing(&self.wanted[at.clone()], &now[at.clone()], self.relu);
                for (output, missing) in wanted.enumerate() {
                    let before = now[at.start + output] - self.found[at.start + output];
                    right[(i, output)] = f64::from(missing + before);
                }
            }
            factor.solve_in_place(right.as_mut());
            for (i, &row) in rows.iter().enumerate() {
                for output in 0..self.outputs {
                    moves[(row, output)] = right[(i, output)];
                }
            }
        }
        moves
    }

    /// Outputs after the weights have moved by so much of each sample.
    fn moved(&self, gram: &Mat<f64>, moves: &Mat<f64>) -> Vec<f32> {
        let mut change = Mat::<f64>::zeros(gram.nrows(), self.outputs);
        matmul(change.as_mut(), Accum::Replace, gram, moves, 1.0, Par::rayon(0));
        let at = |i: usize| change[(i / self.outputs, i % self.outputs)] as f32;
        self.found.iter().enumerate().map(|(i, found)| found + at(i)).collect()
    }
}
