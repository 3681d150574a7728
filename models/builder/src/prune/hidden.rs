//! Fewer units in the two hidden layers of the classifier: a narrow classifier is trained to answer
//! as the whole one does (Hinton et al. 2015), on feature maps that are made up of those of the
//! calibration photos.
//!
//! Photos are few and show few of the classes, and what is fitted on them alone forgets the others.
//! The whole classifier, however, answers to any feature map. So each one that it is asked about has
//! some positions from one photo and the others from another, some channels of a third such map, and
//! gains of its own; and since the first layer's sums are linear in the map, two of these are blended
//! anew at each step without running that layer, which is by far the largest.
//!
//! The narrow first layer reads the whole one's sums, as if it came behind it, and both become one
//! layer at the end.

use super::passage::image;
use super::{PruneError, Site};
use crate::forward::{affine, convolutions, pooled, run};
use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::random::Random;
use crate::regression::{times, transposed_times};
use crate::tensor::Tensor;
use crate::topology::{BASELINE_SIDE, POOLED_SIDE};

const POSITIONS: usize = POOLED_SIDE * POOLED_SIDE;

/// Times that the weights are changed.
const STEPS: usize = 4000;

/// Feature maps that a step looks at.
const BATCH: usize = 256;

/// Made-up feature maps that are blended with each other.
const POOL: usize = 8192;

/// So many of them are replaced …
const REPLACED: usize = 512;

/// … after so many steps.
const LIFE: usize = 32;

/// The longest step, as a share of the size that weights begin with.
const RATE: f64 = 0.03;

/// Steps until it is reached.
const WARM: usize = 100;

/// How much of the moments of gradients remains after a step (Adam, Kingma and Ba 2015).
const MOMENTS: [f32; 2] = [0.9, 0.99];

/// What logits are divided by where unlikely classes are to count too, and the weight of that.
const TEMPERATURE: (f32, f32) = (3.0, 2.0);

/// `network` with `units` in the hidden layers, where there are more.
pub(super) fn narrow<'a>(
    site: &Site<'_>,
    network: &Network<'a>,
    units: [usize; 2],
    progress: &mut dyn Progress,
) -> Result<Network<'a>, PruneError> {
    let [first, second, last] = &network.linears[..] else { unreachable!("three linear layers") };
    let whole = [first, second].map(Layer::outputs);
    let units = [units[0].min(whole[0]), units[1].min(whole[1])];
    if units == whole {
        return Ok(network.clone());
    }
    progress.count((site.photos.len() + STEPS) as u64);
    progress.now("what the classifier reads");
    let layers = convolutions(site.engine, network, BASELINE_SIDE);
    let mut photos = Vec::new();
    for photo in 0..site.photos.len() {
        photos.push(pooled(&run(site.engine, &layers, &image(site.photos, photo)?)));
        progress.advance(1)?;
    }
    drop(layers);

    progress.now("narrowing the classifier");
    let width = first.outputs();
    let mut random = Random::new(0);
    let sums = |maps: usize, random: &mut Random| {
        let made: Vec<f32> = (0..maps).flat_map(|_| made_up(&photos, random)).collect();
        affine(&first.weight.values(), &first.bias.values(), &made, maps)
    };
    let mut pool: Vec<f32> = Vec::with_capacity(POOL * width);
    for _ in 0..POOL / REPLACED {
        pool.extend(sums(REPLACED, &mut random));
    }
    let mut student = Student::new(&pool, width, units, last.outputs(), &mut random);
    for step in 0..STEPS {
        if step > 0 && step.is_multiple_of(LIFE) {
            let oldest = step / LIFE % (POOL / REPLACED) * REPLACED * width;
            let new = sums(REPLACED, &mut random);
            pool[oldest..oldest + new.len()].copy_from_slice(&new);
        }
        let mut blended = Vec::with_capacity(BATCH * width);
        for _ in 0..BATCH {
            let [a, b] = [0; 2].map(|_| pick(POOL, &mut random) * width);
            let share = random.uniform().powi(2);
            let pair = pool[a..a + width].iter().zip(&pool[b..b + width]);
            blended.extend(pair.map(|(a, b)| a + share * (b - a)));
        }
        let hidden = affine(&second.weight.values(), &second.bias.values(), &relu(&blended), BATCH);
        let wanted = affine(&last.weight.values(), &last.bias.values(), &relu(&hidden), BATCH);
        student.learn(blended, &wanted, step);
        progress.advance(1)?;
    }
    let linears = student.layers(&network.linears);
    Ok(Network { convolutions: network.convolutions.clone(), linears })
}

/// A feature map that no photo has, channels x positions.
fn made_up(photos: &[Vec<f32>], random: &mut Random) -> Vec<f32> {
    let mosaic = |random: &mut Random| {
        let [a, b] = [0; 2].map(|_| &photos[pick(photos.len(), random)]);
        let share = random.uniform();
        let from: Vec<bool> = (0..POSITIONS).map(|_| random.uniform() < share).collect();
        let places = (0..a.len()).map(|at| if from[at % POSITIONS] { a[at] } else { b[at] });
        places.collect::<Vec<f32>>()
    };
    let mut map = mosaic(random);
    if random.uniform() < 0.6 {
        let (other, share) = (mosaic(random), 0.5 * random.uniform());
        for (to, from) in map.chunks_mut(POSITIONS).zip(other.chunks(POSITIONS)) {
            if random.uniform() < share {
                to.copy_from_slice(from);
            }
        }
    }
    let gain = 0.3 * random.normal();
    let uneven = if random.uniform() < 0.5 { 0.5 } else { 0.0 };
    for channel in map.chunks_mut(POSITIONS) {
        let gain = (gain + uneven * random.normal()).exp();
        channel.iter_mut().for_each(|value| *value *= gain);
    }
    map
}

fn pick(count: usize, random: &mut Random) -> usize {
    ((random.uniform() * count as f32) as usize).min(count - 1)
}

fn relu(sums: &[f32]) -> Vec<f32> {
    sums.iter().map(|sum| sum.max(0.0)).collect()
}

/// Three layers that learn.
struct Student {
    /// What the first layer's inputs are usually.
    mean: Vec<f32>,
    layers: [Learning; 3],
}

/// A layer that learns.
struct Learning {
    /// Outputs x inputs.
    weight: Parameter,
    bias: Parameter,
}

/// Numbers that change by Adam.
struct Parameter {
    values: Vec<f32>,
    moments: [Vec<f32>; 2],
    /// What they begin with, about.
    size: f64,
}

impl Student {
    /// For sums like those in `pool`, rows of `width`.
    fn new(
        pool: &[f32],
        width: usize,
        units: [usize; 2],
        classes: usize,
        random: &mut Random,
    ) -> Self {
        let rows = (pool.len() / width) as f32;
        let mut mean = vec![0.0; width];
        for row in pool.chunks(width) {
            mean.iter_mut().zip(row).for_each(|(mean, sum)| *mean += sum / rows);
        }
        let squares = pool.chunks(width).flat_map(|row| row.iter().zip(&mean));
        let variance = squares.map(|(sum, mean)| f64::from(sum - mean).powi(2)).sum::<f64>();
        let deviation = (variance / pool.len() as f64).sqrt().max(f64::from(f32::MIN_POSITIVE));
        let mut layer = |outputs: usize, inputs: usize, size: f64| Learning {
            weight: Parameter::new(
                (0..outputs * inputs).map(|_| size as f32 * random.normal()).collect(),
                size,
            ),
            bias: Parameter::new(vec![0.0; outputs], 1.0),
        };
        let [one, two] = units;
        let layers = [
            layer(one, width, (width as f64).sqrt().recip() / deviation),
            layer(two, one, (2.0 / one as f64).sqrt()),
            layer(classes, two, (two as f64).sqrt().recip()),
        ];
        Self { mean, layers }
    }

    /// One step towards the logits `wanted` for rows of the first layer's inputs.
    fn learn(&mut self, mut inputs: Vec<f32>, wanted: &[f32], step: usize) {
        for row in inputs.chunks_mut(self.mean.len()) {
            row.iter_mut().zip(&self.mean).for_each(|(input, mean)| *input -= mean);
        }
        let [one, two, three] = &mut self.layers;
        let first = relu(&one.sums(&inputs));
        let second = relu(&two.sums(&first));
        let logits = three.sums(&second);

        let classes = three.bias.values.len();
        let mut gradient = Vec::with_capacity(logits.len());
        for (found, wanted) in logits.chunks(classes).zip(wanted.chunks(classes)) {
            let (warm, weight) = TEMPERATURE;
            let [cool, warm] = [(1.0, 1.0), (warm, weight / warm)].map(|(temperature, weight)| {
                let [found, wanted] = [found, wanted].map(|row| softmax(row, temperature));
                found.zip(wanted).map(move |(found, wanted)| weight * (found - wanted))
            });
            gradient.extend(cool.zip(warm).map(|(a, b)| (a + b) / BATCH as f32));
        }
        let progress = step as f64 / STEPS as f64;
        let rate = RATE
            * ((step + 1) as f64 / WARM as f64).min(1.0)
            * (0.5 + 0.5 * (std::f64::consts::PI * progress).cos());
        let pace = Pace { rate, step };
        let mut back = three.step(&gradient, &second, pace);
        cut(&mut back, &second);
        let mut back = two.step(&back, &first, pace);
        cut(&mut back, &first);
        one.step(&back, &inputs, pace);
    }

    /// The classifier, of which the first layer reads feature maps as the first of `whole` does.
    fn layers<'a>(self, whole: &[Layer<'a>]) -> Vec<Layer<'a>> {
        let [mut one, two, three] = self.layers;
        let first = &whole[0];
        let moved = affine(&one.weight.values, &vec![0.0; one.bias.values.len()], &self.mean, 1);
        let own = affine(&one.weight.values, &one.bias.values, &first.bias.values(), 1);
        one.bias.values = own.iter().zip(moved).map(|(own, moved)| own - moved).collect();
        let (rows, columns) = (one.bias.values.len(), first.weight.shape()[1]);
        one.weight.values = times(&one.weight.values, rows, &first.weight.values(), columns);
        let layers = [one, two, three].into_iter().zip(whole);
        let layer = |(layer, whole): (Learning, &Layer<'a>)| {
            let (outputs, weight) = (layer.bias.values.len(), layer.weight.values);
            Layer {
                name: whole.name.clone(),
                weight: Tensor::new(vec![outputs, weight.len() / outputs], weight),
                bias: Tensor::new(vec![outputs], layer.bias.values),
            }
        };
        layers.map(layer).collect()
    }
}

/// How far a step goes.
#[derive(Clone, Copy)]
struct Pace {
    rate: f64,
    step: usize,
}

impl Learning {
    fn sums(&self, inputs: &[f32]) -> Vec<f32> {
        affine(&self.weight.values, &self.bias.values, inputs, BATCH)
    }

    /// Changes weights by the gradient of what the layer gave for `inputs`, and gives that of these.
    fn step(&mut self, gradient: &[f32], inputs: &[f32], pace: Pace) -> Vec<f32> {
        let (outputs, columns) = (self.bias.values.len(), inputs.len() / BATCH);
        let back = times(gradient, BATCH, &self.weight.values, columns);
        self.weight.step(&transposed_times(gradient, outputs, inputs, columns), pace);
        let mut bias = vec![0.0; outputs];
        for row in gradient.chunks(outputs) {
            bias.iter_mut().zip(row).for_each(|(sum, gradient)| *sum += gradient);
        }
        self.bias.step(&bias, pace);
        back
    }
}

impl Parameter {
    fn new(values: Vec<f32>, size: f64) -> Self {
        let moments = [0; 2].map(|_| vec![0.0; values.len()]);
        Self { values, moments, size }
    }

    fn step(&mut self, gradient: &[f32], Pace { rate, step }: Pace) {
        let [mean, square] = MOMENTS;
        let bias = MOMENTS.map(|keep| 1.0 - keep.powi(step as i32 + 1));
        let length = (rate * self.size) as f32 / bias[0];
        let [first, second] = &mut self.moments;
        let moments = first.iter_mut().zip(second);
        for ((value, gradient), (first, second)) in
            self.values.iter_mut().zip(gradient).zip(moments)
        {
            *first = mean * *first + (1.0 - mean) * gradient;
            *second = square * *second + (1.0 - square) * gradient * gradient;
            *value -= length * *first / ((*second / bias[1]).sqrt() + 1e-12);
        }
    }
}

/// Gradients where a ReLU let something through.
fn cut(gradients: &mut [f32], outputs: &[f32]) {
    let pairs = gradients.iter_mut().zip(outputs);
    pairs.filter(|(_, output)| **output <= 0.0).for_each(|(gradient, _)| *gradient = 0.0);
}

fn softmax(logits: &[f32], temperature: f32) -> impl Iterator<Item = f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits.iter().map(move |logit| ((logit - most) / temperature).exp());
    let sum: f32 = powers.clone().sum();
    powers.map(move |power| power / sum)
}
