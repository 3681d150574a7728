//! Convolutions as int8: ranges of activations from calibration photos, weights with a scale per
//! output channel.
//!
//! Activations are unsigned, 0 to 255 for 0 to a limit, so that cutting off at 0 is the ReLU. The
//! limit is the largest activation seen, but no more than twice what nearly all photos stay below,
//! so that one odd photo does not make every step coarse. Biases make up for what the rounding of
//! the weights does to the mean of each output (Nagel et al. 2019, section 4.2).

use vggd::manifest::Preprocess;
use vggd::model::Engine;

use crate::forward::{Convolution, Map, Take, convolutions, side_of};
use crate::network::{Layer, Network};
use crate::photos::{Photos, PhotosError};
use crate::progress::{Interrupted, Progress};
use crate::quantize::round;

/// One photo in so many is odd.
const ODD: usize = 100;

/// How far beyond the other photos' largest activations those of odd ones are still met.
const HEADROOM: f32 = 2.0;

/// How numbers are bytes: value = scale x (byte - zero).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Step from one byte to the next.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: u8,
}

impl Scale {
    /// For values from 0 to `limit`.
    fn up_to(limit: f32) -> Self {
        Self { scale: (limit / 255.0).max(f32::MIN_POSITIVE), zero: 0 }
    }

    /// For every value that a normalised photo can have.
    fn of_photos(preprocess: &Preprocess) -> Self {
        let ends = (preprocess.mean.iter().zip(&preprocess.std))
            .flat_map(|(mean, std)| [-mean / std, (1.0 - mean) / std]);
        let (low, high) = ends.fold((0f32, 0f32), |(low, high), v| (low.min(v), high.max(v)));
        let scale = (high - low) / 255.0;
        Self { scale, zero: (-low / scale).round() as u8 }
    }
}

/// One convolution in integers.
#[derive(Clone, Debug)]
pub struct Int8 {
    /// Its name, such as `features.0`.
    pub name: String,
    /// OIHW, -127 to 127.
    pub weight: Vec<i8>,
    /// Output and input channels.
    pub channels: [usize; 2],
    /// One per output channel.
    pub scale: Vec<f32>,
    /// One per output channel, in steps of the input's scale times the channel's.
    pub bias: Vec<i32>,
    /// What it reads.
    pub input: Scale,
    /// What it gives, ReLU included.
    pub output: Scale,
}

/// Why convolutions were not quantized.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// Calibration photos cannot be used.
    #[error(transparent)]
    Photos(#[from] PhotosError),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Quantizes the convolutions of `network` for inputs of `side` x `side`.
///
/// # Errors
/// [`CalibrateError`].
pub fn calibrate(
    engine: &Engine,
    network: &Network<'_>,
    photos: &Photos,
    side: usize,
    progress: &mut dyn Progress,
) -> Result<Vec<Int8>, CalibrateError> {
    progress.count(photos.len() as u64);
    let layers = convolutions(engine, network, side);
    let seen = observe(engine, &layers, photos, side, progress)?;
    let mut input = Scale::of_photos(&photos.preprocess);
    let mut rounded = Vec::new();
    for (index, layer) in network.convolutions.iter().enumerate() {
        let output = Scale::up_to(limit(seen[index + 1].largest.clone()));
        let usual = seen[index].usual(side_of(index, side));
        rounded.push(Int8::new(layer, input, output, &usual));
        input = output;
    }
    Ok(rounded)
}

impl Int8 {
    /// `usual` is the mean of what each weight is multiplied with, input channels x 3 x 3.
    fn new(layer: &Layer<'_>, input: Scale, output: Scale, usual: &[f64]) -> Self {
        let (mut weight, mut scale, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for (row, bias) in layer.weight.rows().zip(layer.bias.values().iter()) {
            let from = weight.len();
            let step = round(&row, &mut weight);
            let lost: f64 = (row.iter().zip(&weight[from..]).zip(usual))
                .map(|((w, byte), usual)| {
                    (f64::from(*w) - f64::from(*byte) * f64::from(step)) * usual
                })
                .sum();
            let unit = f64::from(step) * f64::from(input.scale);
            biases.push(((f64::from(*bias) + lost) / unit).round() as i32);
            scale.push(step);
        }
        Self {
            name: layer.name.clone(),
            channels: [layer.outputs(), layer.weight.shape()[1]],
            weight,
            scale,
            bias: biases,
            input,
            output,
        }
    }
}

/// What was seen of the numbers between two convolutions.
struct Seen {
    /// The largest, for each photo.
    largest: Vec<f32>,
    /// The mean of each channel, over photos and pixels.
    mean: Vec<f64>,
}

impl Seen {
    /// The mean of what a convolution multiplies each of its weights with, channels x 3 x 3: zero
    /// beyond the border of `side` x `side` pixels.
    fn usual(&self, side: usize) -> Vec<f64> {
        let inside = |tap: usize| if tap == 1 { 1.0 } else { (side - 1) as f64 / side as f64 };
        let taps = (0..9).map(|tap| inside(tap / 3) * inside(tap % 3));
        self.mean.iter().flat_map(|mean| taps.clone().map(move |share| mean * share)).collect()
    }
}

/// Photos as each convolution reads them, and what the last one gives.
fn observe(
    engine: &Engine,
    layers: &[Convolution],
    photos: &Photos,
    side: usize,
    progress: &mut dyn Progress,
) -> Result<Vec<Seen>, CalibrateError> {
    progress.now("ranges of activations");
    let mut seen: Vec<Seen> = Vec::new();
    for photo in 0..photos.len() {
        let mut map = Map::image(photos.input(photo, side)?, side);
        for index in 0..=layers.len() {
            if index > 0 {
                map = layers[index - 1].run(engine, &map, Take::Activation);
            }
            if seen.len() == index {
                seen.push(Seen { largest: Vec::new(), mean: vec![0.0; map.channels] });
            }
            let Seen { largest, mean } = &mut seen[index];
            largest.push(map.values().iter().fold(0f32, |a, b| a.max(*b)));
            let planar = map.planar();
            for (mean, channel) in mean.iter_mut().zip(planar.chunks(map.side * map.side)) {
                let sum: f64 = channel.iter().map(|value| f64::from(*value)).sum();
                *mean += sum / (channel.len() * photos.len()) as f64;
            }
        }
        progress.advance(1)?;
    }
    Ok(seen)
}

/// The limit for photos with these largest activations.
fn limit(mut largest: Vec<f32>) -> f32 {
    largest.sort_by(|a, b| b.total_cmp(a));
    let usual = largest.get(largest.len() / ODD).copied().unwrap_or(0.0);
    largest.first().map_or(0.0, |most| most.min(HEADROOM * usual))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::tensor::Tensor;

    #[test]
    fn odd_photos_do_not_set_the_limit() {
        let mut largest: Vec<f32> = (0..200).map(|i| i as f32).collect();
        largest[17] = 1e9;
        assert_eq!(limit(largest.clone()), 2.0 * 198.0);
        largest[17] = 250.0;
        assert_eq!(limit(largest), 250.0);
        assert_eq!(limit(vec![3.0, 7.0]), 7.0);
    }

    #[test]
    fn photos_fill_the_range_of_bytes() {
        let Scale { scale, zero } = Scale::of_photos(&Preprocess::default());
        for value in [-2.117, 2.639, 0.5, -1.0, 0.0] {
            let byte = (value / scale).round() + f32::from(zero);
            assert!((-0.01..=255.01).contains(&byte), "{value} became {byte}");
        }
        assert!(255.0 * scale < 4.77, "{scale}");
    }

    #[test]
    fn weights_and_biases_come_back_within_half_a_step() {
        let mut random = Random::new(4);
        let weights: Vec<f32> = (0..8 * 2 * 9).map(|_| random.normal()).collect();
        let biases: Vec<f32> = (0..8).map(|_| random.normal()).collect();
        let layer = Layer {
            name: "features.0".to_owned(),
            weight: Tensor::new(vec![8, 2, 3, 3], weights.clone()),
            bias: Tensor::new(vec![8], biases.clone()),
        };
        let input = Scale::up_to(3.0);
        let int8 = Int8::new(&layer, input, input, &[0.0; 18]);
        for (i, (value, weight)) in int8.weight.iter().zip(weights).enumerate() {
            let step = int8.scale[i / 18];
            assert!((f32::from(*value) * step - weight).abs() <= 0.501 * step);
        }
        for ((value, bias), scale) in int8.bias.iter().zip(biases).zip(&int8.scale) {
            let step = scale * input.scale;
            assert!((*value as f32 * step - bias).abs() <= 0.501 * step + 1e-6);
        }
    }
}
