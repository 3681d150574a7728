//! VGG-19 with batch norms is, once it is trained, a plain VGG-19 with other numbers.
//!
//! Behind a convolution that gives y = w x + b, a batch norm computes
//! scale (y - mean) / sqrt(variance + epsilon) + shift, per channel and with constants from the
//! training (Ioffe and Szegedy, 2015). That is a convolution again.

use crate::network::Layer;
use crate::source::Source;
use crate::tensor::Tensor;
use crate::topology::CONVOLUTIONS;

/// What torch adds to a variance unless it is told otherwise.
const EPSILON: f64 = 1e-5;

/// Constants of a batch norm, one number per channel each.
#[derive(Clone, Debug)]
pub struct BatchNorm<'a> {
    /// What torch calls `weight`.
    pub scale: Tensor<'a>,
    /// What torch calls `bias`.
    pub shift: Tensor<'a>,
    /// What torch calls `running_mean`.
    pub mean: Tensor<'a>,
    /// What torch calls `running_var`.
    pub variance: Tensor<'a>,
}

/// Whether the network in `source` has batch norms, by the place of its second convolution.
pub fn is_in(source: &Source) -> bool {
    let [second, _] = modules(1);
    source.names().any(|name| name == format!("features.{second}.weight"))
}

/// Index of convolution number `i`, and of the batch norm behind it, among torchvision's `features`
/// with batch norms.
pub fn modules(i: usize) -> [usize; 2] {
    let convolution = CONVOLUTIONS[i] + i;
    [convolution, convolution + 1]
}

impl BatchNorm<'_> {
    /// The convolution `weight`, OIHW, and `bias`, zero if it has none, with this batch norm behind
    /// it. Computed in float64.
    pub fn fold(
        &self,
        name: String,
        weight: &Tensor<'_>,
        bias: Option<&Tensor<'_>>,
        epsilon: Option<&Tensor<'_>>,
    ) -> Layer<'static> {
        let epsilon = epsilon.map_or(EPSILON, |epsilon| f64::from(epsilon.values()[0]));
        let scales: Vec<f64> = (self.scale.values().iter())
            .zip(self.variance.values().iter())
            .map(|(scale, variance)| f64::from(*scale) / (f64::from(*variance) + epsilon).sqrt())
            .collect();
        let weights = (weight.rows().zip(&scales))
            .flat_map(|(row, scale)| {
                let row: Vec<f32> = row.iter().map(|w| (scale * f64::from(*w)) as f32).collect();
                row
            })
            .collect();
        let (means, shifts) = (self.mean.values(), self.shift.values());
        let biases: Vec<f32> = (0..scales.len())
            .map(|channel| {
                let bias = bias.map_or(0.0, |bias| f64::from(bias.values()[channel]));
                let centred = bias - f64::from(means[channel]);
                (scales[channel] * centred + f64::from(shifts[channel])) as f32
            })
            .collect();
        Layer {
            name,
            weight: Tensor::new(weight.shape().to_owned(), weights),
            bias: Tensor::new(vec![biases.len()], biases),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_those_of_torchvision() {
        let convolutions: Vec<usize> = (0..16).map(|i| modules(i)[0]).collect();
        let expected = [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49];
        assert_eq!(convolutions, expected);
    }

    #[test]
    fn folding_is_normalizing_the_output() {
        let tensor = |values: &[f32]| Tensor::new(vec![values.len()], values.to_owned());
        let norm = BatchNorm {
            scale: tensor(&[2.0, -0.5]),
            shift: tensor(&[0.25, 4.0]),
            mean: tensor(&[1.0, -3.0]),
            variance: tensor(&[4.0, 0.09]),
        };
        let weight = Tensor::new(vec![2, 1, 1, 2], vec![0.5, -1.0, 3.0, 0.125]);
        for (bias, epsilon) in [(None, None), (Some(tensor(&[0.75, -1.5])), Some(tensor(&[0.01])))]
        {
            let folded = norm.fold("features.0".into(), &weight, bias.as_ref(), epsilon.as_ref());
            assert_eq!(folded.weight.shape(), [2, 1, 1, 2]);
            let input = [1.5f32, -2.25];
            for channel in 0..2 {
                let row = |weight: &Tensor<'_>| {
                    let row = weight.rows().nth(channel).unwrap().into_owned();
                    row[0] * input[0] + row[1] * input[1]
                };
                let found = row(&folded.weight) + folded.bias.values()[channel];
                let at = |tensor: &Tensor<'_>| tensor.values()[channel];
                let output = row(&weight) + bias.as_ref().map_or(0.0, at);
                let epsilon = epsilon.as_ref().map_or(1e-5, |epsilon| epsilon.values()[0]);
                let deviation = (at(&norm.variance) + epsilon).sqrt();
                let expected =
                    at(&norm.scale) * (output - at(&norm.mean)) / deviation + at(&norm.shift);
                assert!((found - expected).abs() < 1e-5, "{channel}: {found}, {expected}");
            }
        }
    }
}
