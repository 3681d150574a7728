//! Refitting every layer behind a pruned one, so that with what is left it comes as near as it can
//! to what it computed before: ridge least squares on calibration photos (channel pruning, He et
//! al. 2017), layer after layer, each seeing what the pruned layers before it really give.
//!
//! A layer has thousands of inputs, and pixels of a photo are much alike, so weights that are fitted
//! freely are right for these photos alone, and mislead every layer behind. They are therefore held
//! to a prior with far fewer unknowns: the layer's own weights on what the channels that are left
//! say about all of them, pixel by pixel. How strongly, photos decide that no layer is fitted on.

use super::classifier;
use super::passage::{Passage, Rows, per_photo, places};
use super::{Kept, PruneError, Site, is_identity};
use crate::forward::{Convolution, Map, Take, side_of};
use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::random::Random;
use crate::regression::{Fit, RIDGE, Samples, Statistics, times};
use crate::tensor::Tensor;
use crate::topology::BASELINE_SIDE;

/// Samples that judge a fit.
const JUDGING: usize = 8192;

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Samples per unknown weight of a filter that a layer is fitted on, if the photos have so many.
    pub(super) samples: usize,
    /// Times that a fit is repeated for what the ReLU cuts off.
    pub(super) rounds: usize,
}

/// The convolutions of both networks, before and after, as far as they have been needed.
#[derive(Default)]
pub(super) struct Pair {
    teacher: Vec<Convolution>,
    student: Vec<Convolution>,
}

pub(super) fn correct<'a>(
    site: &Site<'_>,
    network: &Network<'a>,
    kept: &Kept,
    Effort { samples, rounds }: Effort,
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
    let photos = site.photos.len() + site.held.len();
    progress.count(((refitted + 1) * photos) as u64);

    let mut pair = Pair::default();
    let mut fitting = Passages::new(*site);
    let mut judging = Passages::new(Site { photos: site.held, ..*site });
    let mut layers = Vec::new();
    for (index, layer) in network.convolutions.iter().enumerate() {
        pair.teacher.push(Convolution::new(site.engine, layer, index, BASELINE_SIDE));
        let all: Vec<usize> = (0..layer.weight.shape()[1]).collect();
        let inputs = if index == 0 { &all } else { &kept[index - 1] };
        let outputs = &kept[index];
        let layer = if index <= first || is_identity(layer) {
            select(layer, outputs, inputs)
        } else {
            progress.now(&format!("correcting {}", layer.name));
            let row = 9 * inputs.len() + 1;
            let mut fitted = Samples::short(row, outputs.len());
            let mut pixels = Statistics::new(inputs.len(), all.len());
            fitting.each(&pair, outputs, samples * row, progress, |rows, pixel| {
                fitted.add(&rows.inputs, &rows.wanted);
                pixels.add(&pixel.inputs, &pixel.wanted);
            })?;
            let mut held = Samples::short(row, outputs.len());
            judging.each(&pair, outputs, JUDGING, progress, |rows, _| {
                held.add(&rows.inputs, &rows.wanted);
            })?;
            let prior = mixed(layer, &restored(&pixels, inputs, RIDGE), outputs, inputs.len());
            let Fit { weight, bias } = fitted.fit_relu(&held, &prior, rounds);
            Layer {
                name: layer.name.clone(),
                weight: Tensor::new(vec![outputs.len(), inputs.len(), 3, 3], weight),
                bias: Tensor::new(vec![outputs.len()], bias),
            }
        };
        pair.student.push(Convolution::new(site.engine, &layer, index, BASELINE_SIDE));
        layers.push(layer);
    }
    let photos = [fitting, judging];
    let linears = classifier::correct(network, &kept[last], &pair, photos, progress)?;
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

/// Weights of filters `outputs` of a layer that reads `inputs` channels mixed to all that it read:
/// outputs x inputs x 3 x 3.
fn mixed(layer: &Layer<'_>, mix: &Fit, outputs: &[usize], inputs: usize) -> Vec<f32> {
    let channels = layer.weight.shape()[1];
    let weight = layer.weight.values();
    // outputs x 9 x channels
    let taps: Vec<f32> = (outputs.iter())
        .flat_map(|filter| (0..9).map(move |tap| filter * channels * 9 + tap))
        .flat_map(|from| (0..channels).map(move |channel| from + channel * 9))
        .map(|at| weight[at])
        .collect();
    let product = times(&taps, outputs.len() * 9, &mix.weight, inputs);
    let place = |at: usize| (at / 9 / inputs * 9 + at % 9) * inputs + at / 9 % inputs;
    (0..product.len()).map(|at| product[place(at)]).collect()
}

/// What channels `kept` of a map say about all that there were: all x kept.
pub(super) fn restored(pixels: &Statistics, kept: &[usize], ridge: f64) -> Fit {
    let mut prior = vec![0.0; pixels.outputs() * kept.len()];
    for (at, channel) in kept.iter().enumerate() {
        prior[channel * kept.len() + at] = 1.0;
    }
    let all: Vec<usize> = (0..kept.len()).collect();
    pixels.fit(&all, 1, &prior, ridge)
}

/// The same photos on their way through both networks.
pub(super) struct Passages<'a> {
    site: Site<'a>,
    teacher: Passage<'a>,
    student: Passage<'a>,
}

impl<'a> Passages<'a> {
    fn new(site: Site<'a>) -> Self {
        Self { site, teacher: Passage::new(&site), student: Passage::new(&site) }
    }

    /// How many photos.
    pub(super) fn len(&self) -> usize {
        self.site.photos.len()
    }

    /// What both networks' convolutions give for a photo.
    pub(super) fn maps(&mut self, photo: usize, pair: &Pair) -> Result<[Map; 2], PruneError> {
        Ok([self.teacher.map(photo, &pair.teacher)?, self.student.map(photo, &pair.student)?])
    }

    /// Calls `add` for each photo with about `samples` pixels of all photos, the same in both
    /// networks: what the layer behind those of the student reads and what it should give in
    /// channels `outputs`; and what its input is at a pixel and was before.
    fn each(
        &mut self,
        pair: &Pair,
        outputs: &[usize],
        samples: usize,
        progress: &mut dyn Progress,
        mut add: impl FnMut(&Rows, &Rows),
    ) -> Result<(), PruneError> {
        let index = pair.student.len();
        let (layer, before) = (&pair.teacher[index], &pair.teacher[..index]);
        let side = side_of(index, BASELINE_SIDE);
        let per_photo = per_photo(samples, self.len().max(1), side);
        let mut random = Random::new(index as u64);
        let (mut rows, mut pixels) = (Rows::default(), Rows::default());
        let photos = self.len();
        for photo in 0..photos {
            let was = self.teacher.map(photo, before)?;
            let wanted = layer.run(self.site.engine, &was, Take::Sum);
            let read = self.student.map(photo, &pair.student)?;
            let all: Vec<usize> = (0..was.channels).collect();
            let places: Vec<usize> = places(side, per_photo, &mut random).collect();
            rows.add(places.iter().copied(), (&read, true), (&wanted, outputs));
            pixels.add(places.into_iter(), (&read, false), (&was, &all));
            if photo + 1 == photos || pixels.wanted.len() >= 2048 * all.len() {
                add(&rows, &pixels);
                rows.clear();
                pixels.clear();
            }
            progress.advance(1)?;
        }
        Ok(())
    }
}
