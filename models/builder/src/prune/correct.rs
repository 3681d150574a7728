//! Refitting every layer behind a pruned one, so that with what is left it comes as near as it can
//! to what it computed before: ridge least squares on calibration photos (channel pruning, He et
//! al. 2017), layer after layer, each seeing what the pruned layers before it really give.

use vggd::model::Engine;

use super::classifier::{self, Pruned};
use super::{Kept, PruneError, is_identity};
use crate::forward::{Convolution, Map, Take, convolutions, side_of};
use crate::network::{Layer, Network};
use crate::photos::Photos;
use crate::progress::Progress;
use crate::random::Random;
use crate::regression::{Fit, Samples};
use crate::tensor::Tensor;
use crate::topology::BASELINE_SIDE;

/// Samples per unknown weight of a filter that a layer is fitted on, if the photos have so many.
const SAMPLES: usize = 8;

/// Times that a fit is repeated for what the ReLU cuts off.
const ROUNDS: usize = 12;

pub(super) fn correct<'a>(
    engine: &Engine,
    network: &Network<'a>,
    kept: &Kept,
    photos: &Photos,
    ridge: f64,
    progress: &mut dyn Progress,
) -> Result<Network<'a>, PruneError> {
    let whole: Vec<bool> = kept
        .iter()
        .zip(&network.convolutions)
        .map(|(kept, layer)| kept.len() == layer.outputs())
        .collect();
    let Some(first) = whole.iter().position(|whole| !whole) else {
        return Ok(network.clone());
    };
    let last = network.convolutions.len() - 1;
    let refitted = (first + 1..=last).filter(|&i| !is_identity(&network.convolutions[i])).count();
    progress.count(((refitted + 1) * photos.len()) as u64);

    let teacher = convolutions(engine, network, BASELINE_SIDE);
    let mut student: Vec<Convolution> = Vec::new();
    let mut layers = Vec::new();
    for (index, layer) in network.convolutions.iter().enumerate() {
        let all: Vec<usize> = (0..layer.weight.shape()[1]).collect();
        let inputs = if index == 0 { &all } else { &kept[index - 1] };
        let layer = if index <= first || is_identity(layer) {
            select(layer, &kept[index], inputs)
        } else {
            progress.now(&format!("correcting {}", layer.name));
            let observer =
                Observer { engine, photos, teacher: &teacher[..=index], student: &student };
            let samples = observer.sums(index, &kept[index], inputs.len(), progress)?;
            refit(layer, &samples, &kept[index], inputs, ridge)
        };
        student.push(Convolution::new(engine, &layer, index, BASELINE_SIDE));
        layers.push(layer);
    }
    let convolutions = Pruned { teacher: &teacher, student: &student, kept: &kept[last] };
    let linears = classifier::correct(engine, network, &convolutions, photos, ridge, progress)?;
    Ok(Network { convolutions: layers, linears })
}

/// Filters `outputs` of a layer, reading only channels `inputs`, as they are.
fn select<'a>(layer: &Layer<'a>, outputs: &[usize], inputs: &[usize]) -> Layer<'a> {
    let [filters, channels] = [layer.weight.shape()[0], layer.weight.shape()[1]];
    if outputs.len() == filters && inputs.len() == channels {
        return layer.clone();
    }
    let (weight, bias) = (layer.weight.values(), layer.bias.values());
    let values = (outputs.iter())
        .flat_map(|filter| inputs.iter().map(move |channel| (filter * channels + channel) * 9))
        .flat_map(|at| weight[at..at + 9].iter().copied())
        .collect();
    Layer {
        name: layer.name.clone(),
        weight: Tensor::new(vec![outputs.len(), inputs.len(), 3, 3], values),
        bias: Tensor::new(vec![outputs.len()], outputs.iter().map(|&o| bias[o]).collect()),
    }
}

fn refit<'a>(
    layer: &Layer<'a>,
    samples: &Samples,
    outputs: &[usize],
    inputs: &[usize],
    ridge: f64,
) -> Layer<'a> {
    let prior = select(layer, outputs, inputs);
    let Fit { weight, bias } = samples.fit_relu(&prior.weight.values(), ridge, ROUNDS);
    Layer {
        name: prior.name,
        weight: Tensor::new(vec![outputs.len(), inputs.len(), 3, 3], weight),
        bias: Tensor::new(vec![outputs.len()], bias),
    }
}

/// Looks at the same places of both networks.
struct Observer<'a> {
    engine: &'a Engine,
    photos: &'a Photos,
    /// Up to the layer that is fitted.
    teacher: &'a [Convolution],
    /// Up to the layer before it.
    student: &'a [Convolution],
}

impl Observer<'_> {
    /// What layer `index` of the pruned network reads, and what it should give.
    fn sums(
        &self,
        index: usize,
        outputs: &[usize],
        inputs: usize,
        progress: &mut dyn Progress,
    ) -> Result<Samples, PruneError> {
        let side = side_of(index, BASELINE_SIDE);
        let row = 9 * inputs + 1;
        let per_photo = (SAMPLES * row).div_ceil(self.photos.len()).min(side * side);
        let mut random = Random::new(index as u64);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for photo in 0..self.photos.len() {
            let image = Map::image(self.photos.input(photo, BASELINE_SIDE)?, BASELINE_SIDE);
            let (last, before) = self.teacher.split_last().expect("the layer itself");
            let wanted = last.run(self.engine, &run(self.engine, before, &image), Take::Sum);
            let read = run(self.engine, self.student, &image);
            for pixel in places(side, per_photo, &mut random) {
                let (at_y, at_x) = (pixel / side, pixel % side);
                let from = x.len();
                x.resize(from + row, 1.0);
                read.patch(at_y, at_x, &mut x[from..from + row - 1]);
                y.extend(outputs.iter().map(|&channel| wanted.at(channel, at_y, at_x)));
            }
            progress.advance(1)?;
        }
        Ok(Samples { row, outputs: outputs.len(), inputs: x, wanted: y })
    }
}

/// `image` after all of `layers`.
pub(super) fn run(engine: &Engine, layers: &[Convolution], image: &Map) -> Map {
    let mut map = None;
    for layer in layers {
        map = Some(layer.run(engine, map.as_ref().unwrap_or(image), Take::Activation));
    }
    map.unwrap_or_else(|| image.clone())
}

/// `count` different pixels of a map, evenly spread, from a random one on.
pub(super) fn places(
    side: usize,
    count: usize,
    random: &mut Random,
) -> impl Iterator<Item = usize> {
    let pixels = side * side;
    let start = (random.uniform() * pixels as f32) as usize;
    (0..count).map(move |i| (start + i * pixels / count) % pixels)
}
