//! From gradients to new weights: momentum of gradients that are normalised layer by layer (NovoGrad,
//! Ginsburg et al. 2019), in steps relative to the size of a layer's weights (as LARS, You et al.
//! 2017).
//!
//! It needs one number of memory per weight and no more. Weights change in place, some rows at a
//! time, so that nothing of a large layer's size is ever made.

use candle_core::{Result, Tensor};

use super::model::{Gradient, Parameter};

/// How much of the first moment remains after a step.
const FIRST: f64 = 0.9;

/// How much of the second moment remains after a step.
const SECOND: f64 = 0.99;

/// What keeps the quotient finite where a gradient is always zero.
const TINY: f64 = 1e-30;

/// Biases are stepped as if they were at least this large: some are all zero.
const LEAST: f64 = 1e-2;

/// Numbers that are computed together.
const PIECE: usize = 1 << 16;

/// What the optimizer remembers of one parameter.
pub(super) struct Moments {
    /// Mean of normalised gradients, of the parameter's shape.
    pub(super) first: Tensor,
    /// Mean of the gradient's mean squares, 1 x 1.
    pub(super) second: Tensor,
    /// Root mean square of the weights that training began with.
    size: f64,
}

impl Moments {
    /// Before the first step of `parameter`, which has the values that training begins with.
    pub(super) fn new(parameter: &Parameter) -> Result<Self> {
        let values = &parameter.values;
        let (outputs, columns) = values.dims2()?;
        let mut squares = 0.0;
        for (from, count) in pieces(outputs, columns) {
            let sum = values.narrow(0, from, count)?.sqr()?.sum_all()?;
            squares += f64::from(sum.to_scalar::<f32>()?);
        }
        let size = (squares / (outputs * columns) as f64).sqrt();
        Ok(Self {
            first: values.zeros_like()?,
            second: values.narrow(0, 0, 1)?.narrow(1, 0, 1)?.zeros_like()?,
            size: if columns == 1 { size.max(LEAST) } else { size },
        })
    }

    /// Step number `step`, counted from 1. `rate` is about how far a weight moves, as a share of
    /// the root mean square of its layer.
    pub(super) fn step(
        &self,
        parameter: &Parameter,
        gradient: &Gradient,
        step: u64,
        rate: f64,
    ) -> Result<()> {
        let [first_bias, second_bias] = [FIRST, SECOND].map(|keep| 1.0 - keep.powf(step as f64));
        let squares = ((&self.second * SECOND)? + gradient.mean_square()? * (1.0 - SECOND))?;
        self.second.slice_set(&squares, 0, 0)?;
        let squares = f64::from(squares.sum_all()?.to_scalar::<f32>()?) / second_bias;
        let gradient = gradient.scaled((1.0 - FIRST) / (squares.max(0.0) + TINY).sqrt())?;
        let length = rate * self.size / first_bias;
        let (outputs, columns) = parameter.values.dims2()?;
        for (from, count) in pieces(outputs, columns) {
            let first = self.first.narrow(0, from, count)?;
            let first = ((first * FIRST)? + gradient.rows(from, count)?)?;
            let values = parameter.values.narrow(0, from, count)?;
            let values = (values - (&first * length)?)?;
            self.first.slice_set(&first, 0, from)?;
            parameter.values.slice_set(&values, 0, from)?;
        }
        Ok(())
    }
}

/// Ranges of rows, each the first and how many.
fn pieces(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let piece = (PIECE / columns).clamp(1, rows);
    (0..rows).step_by(piece).map(move |from| (from, piece.min(rows - from)))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::random::Random;

    fn random(seed: u64, rows: usize, columns: usize) -> Tensor {
        let mut random = Random::new(seed);
        let values: Vec<f32> = (0..rows * columns).map(|_| random.normal()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn parameter(values: &Tensor) -> Parameter {
        Parameter { name: "one".to_owned(), values: values.copy().unwrap(), linear: true }
    }

    fn size(values: &Tensor) -> f32 {
        values.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_first_step_is_as_long_as_the_rate_says_however_large_the_gradient() {
        for scale in [1e-6, 1.0, 1e6] {
            let given = (random(1, 40, 30) * 0.1).unwrap();
            let parameter = parameter(&given);
            let moments = Moments::new(&parameter).unwrap();
            let gradient = Gradient::Whole((random(2, 40, 30) * scale).unwrap());
            moments.step(&parameter, &gradient, 1, 0.01).unwrap();
            let moved = size(&(&parameter.values - &given).unwrap());
            let expected = 0.01 * size(&given);
            assert!((moved / expected - 1.0).abs() < 1e-3, "{moved} {expected}");
        }
    }

    #[test]
    fn a_product_steps_like_what_it_is_a_product_of() {
        let (outputs, inputs) = (random(1, 5, 3000), random(2, 5, 700));
        let whole = outputs.t().unwrap().matmul(&inputs).unwrap();
        let given = random(3, 3000, 700);
        let gradients = [Gradient::Product { outputs, inputs }, Gradient::Whole(whole)];
        let [found, expected] = gradients.map(|gradient| {
            let parameter = parameter(&given);
            let moments = Moments::new(&parameter).unwrap();
            for step in 1..3 {
                moments.step(&parameter, &gradient, step, 0.1).unwrap();
            }
            parameter.values
        });
        assert!(size(&(&found - &given).unwrap()) > 0.1);
        assert!(size(&(&found - &expected).unwrap()) < 1e-5);
    }

    #[test]
    fn what_has_no_gradient_stays() {
        let given = random(1, 8, 4);
        let parameter = parameter(&given);
        let moments = Moments::new(&parameter).unwrap();
        let gradient = Gradient::Whole(given.zeros_like().unwrap());
        moments.step(&parameter, &gradient, 1, 0.1).unwrap();
        assert_eq!(size(&(&parameter.values - &given).unwrap()), 0.0);
    }

    #[test]
    fn finds_the_least_of_a_parabola() {
        let target = random(1, 20, 10);
        let parameter = parameter(&random(2, 20, 10));
        let moments = Moments::new(&parameter).unwrap();
        for step in 1..400 {
            let gradient = Gradient::Whole((&parameter.values - &target).unwrap());
            moments.step(&parameter, &gradient, step, 0.1 / (step as f64).sqrt()).unwrap();
        }
        let left = size(&(&parameter.values - &target).unwrap());
        assert!(left < 0.02, "{left}");
    }
}
