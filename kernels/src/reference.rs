//! What the convolutions are tested against: the definition in float64, and the
//! analysis of float32 arithmetic that the bounds follow from.

use crate::layout::{CHANNEL_BLOCK, blocked_len, unblock};
use crate::parallel::Parallel;

/// Half the distance from 1 to the next float32: one rounding.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;
/// The smallest denormal: more than what one operation loses by underflow.
pub(crate) const SMALLEST: f64 = f32::from_bits(1) as f64;

/// How far a sum may be off after float32 arithmetic in which no term passes through
/// more than `roundings` operations: `n u / (1 - n u)` times the sum of the terms'
/// magnitudes, with `u` = 2^-24, whatever the order (Higham 2002, equation 3.5 and
/// lemma 3.1). A fused multiply-add rounds once where the count has two.
pub(crate) fn gamma(roundings: usize) -> f64 {
    let n = roundings as f64 * UNIT;
    n / (1.0 - n)
}

/// A 3x3 convolution with padding 1, and its input, planar.
#[derive(Clone)]
pub(crate) struct Problem {
    pub(crate) out_channels: usize,
    pub(crate) in_channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) input: Vec<f32>,
}

impl Problem {
    /// The input at `y`, `x` counted from the border, which is zero.
    pub(crate) fn bordered(&self, channel: usize, y: usize, x: usize) -> f64 {
        if (1..=self.height).contains(&y) && (1..=self.width).contains(&x) {
            f64::from(self.input[(channel * self.height + y - 1) * self.width + x - 1])
        } else {
            0.0
        }
    }

    /// The kernel from channel `i` to channel `o`.
    pub(crate) fn kernel(&self, o: usize, i: usize) -> &[f32] {
        &self.weights[(o * self.in_channels + i) * 9..][..9]
    }

    /// Planar outputs without bias, of magnitudes if `magnitudes`.
    pub(crate) fn direct(&self, magnitudes: bool) -> Vec<f64> {
        let mut outputs = Vec::new();
        for o in 0..self.out_channels {
            for pixel in 0..self.height * self.width {
                let (y, x) = (pixel / self.width, pixel % self.width);
                let mut sum = 0.0;
                for i in 0..self.in_channels {
                    for (tap, &weight) in self.kernel(o, i).iter().enumerate() {
                        let term = f64::from(weight) * self.bordered(i, y + tap / 3, x + tap % 3);
                        sum += if magnitudes { term.abs() } else { term };
                    }
                }
                outputs.push(sum);
            }
        }
        outputs
    }

    /// Adds the bias (or its magnitude) to every channel of `outputs`.
    pub(crate) fn add_bias(&self, outputs: &mut [f64], magnitudes: bool) {
        let pixels = self.height * self.width;
        for (channel, &bias) in outputs.chunks_exact_mut(pixels.max(1)).zip(&self.bias) {
            for output in channel {
                *output += f64::from(if magnitudes { bias.abs() } else { bias });
            }
        }
    }
}

/// 2x2 max-pool of planar `values`; a last odd row or column is dropped.
pub(crate) fn pool(values: &[f64], height: usize, width: usize) -> Vec<f64> {
    let mut pooled = Vec::new();
    for plane in values.chunks_exact((height * width).max(1)) {
        for y in 0..height / 2 {
            for x in 0..width / 2 {
                let at = 2 * y * width + 2 * x;
                let upper = plane[at].max(plane[at + 1]);
                pooled.push(upper.max(plane[at + width].max(plane[at + width + 1])));
            }
        }
    }
    pooled
}

/// Compares a blocked `found` with planar `exact`, and wants zeros in the lanes after
/// the last channel.
pub(crate) fn compare(what: &str, channels: usize, found: &[f32], exact: &[f64], bounds: &[f64]) {
    let pixels = exact.len() / channels.max(1);
    assert_eq!(found.len(), blocked_len(channels, pixels, 1), "{what}");
    let mut planar = vec![f32::NAN; exact.len()];
    unblock(channels, pixels, found, &mut planar);
    for (index, ((&found, &exact), &bound)) in planar.iter().zip(exact).zip(bounds).enumerate() {
        let error = (f64::from(found) - exact).abs();
        assert!(
            error <= bound,
            "{what}: channel {} pixel {}: {found} for {exact}, off by {error:e}, bound {bound:e}",
            index / pixels,
            index % pixels
        );
    }
    for (index, &value) in found.iter().enumerate() {
        let channel = index / (pixels * CHANNEL_BLOCK) * CHANNEL_BLOCK + index % CHANNEL_BLOCK;
        assert!(channel < channels || value == 0.0, "{what}: lane of channel {channel} is {value}");
    }
}

/// Real threads for the tests.
pub(crate) struct Threads(pub(crate) usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for number in 0..tasks {
                scope.spawn(move || task(number));
            }
        });
    }
}
