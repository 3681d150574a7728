//! What each layer loses when it does without some of its inputs: in which order filters are best
//! removed, and what that does to the network's answers, one layer at a time.

use vggd::model::Engine;

use super::passage::{Passage, Rows, image, per_photo, places};
use super::{Options, PruneError, Site, block, is_identity, workers};
use crate::forward::{Convolution, Map, Take, classify, convolutions, pooled, run, side_of};
use crate::judge::divergence;
use crate::network::{Layer, Network};
use crate::photos::Photos;
use crate::progress::Progress;
use crate::random::Random;
use crate::regression::{Fit, RIDGE, Removal, Statistics, removal};
use crate::tensor::Tensor;
use crate::topology::BASELINE_SIDE;

/// Samples per input of a layer that the order is found on.
const SAMPLES: usize = 6;

/// Photos on which the damage is measured.
const JUDGES: usize = 48;

/// Shares of the filters that are left where the damage is measured.
const LEVELS: [f64; 3] = [0.75, 0.5, 0.25];

/// How the filters of one convolution may go.
#[derive(Clone, Debug)]
pub(super) struct Sensitivity {
    /// The convolution, 0 to 15, that does work; those after it which hand its output on follow.
    pub(super) layer: usize,
    /// In which order they go; none goes where this is missing.
    pub(super) removal: Option<Removal>,
    /// Error of the next layer against damage to the answers: mean Kullback-Leibler divergence.
    points: Vec<(f64, f64)>,
}

impl Sensitivity {
    /// Damage with `count` filters left, between the measured points by the next layer's error.
    pub(super) fn damage(&self, count: usize) -> f64 {
        let Some(removal) = &self.removal else { return 0.0 };
        let error = removal.error[removal.order.len() - count];
        let after = self.points.partition_point(|point| point.0 < error);
        let after = after.clamp(1, self.points.len() - 1);
        let (a, b) = (self.points[after - 1], self.points[after]);
        let slope = (b.1 - a.1) / (b.0 - a.0).max(f64::MIN_POSITIVE);
        (a.1 + slope.max(0.0) * (error - a.0)).max(0.0)
    }
}

/// Measures every convolution of `network` that does work, against the answers of `whole`, which it
/// was pruned from or is.
pub(super) fn measure(
    site: &Site<'_>,
    whole: &Network<'_>,
    network: &Network<'_>,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Vec<Sensitivity>, PruneError> {
    let Site { engine, photos, held, .. } = *site;
    let judges = if held.is_empty() { photos } else { held }.sample(JUDGES);
    let workers = workers(network);
    let measured = workers.iter().filter(|&&layer| layer >= options.first).count();
    progress.count((measured * (photos.len() + judges.len()) + judges.len()) as u64);
    progress.now("answers of the whole network");
    let answers = answers(engine, whole, &judges, progress)?;

    let layers = convolutions(engine, network, BASELINE_SIDE);
    let mut bench = Bench {
        engine,
        network,
        layers: &layers,
        answers: &answers,
        photos: (photos.len(), Passage::new(site)),
        judges: (judges.len(), Passage::new(&Site { photos: &judges, ..*site })),
    };
    let mut found = Vec::new();
    for layer in workers {
        let sensitivity = if layer < options.first {
            Sensitivity { layer, removal: None, points: Vec::new() }
        } else {
            progress.now(&format!("measuring {}", network.convolutions[layer].name));
            bench.measure(layer, progress)?
        };
        found.push(sensitivity);
    }
    Ok(found)
}

fn answers(
    engine: &Engine,
    network: &Network<'_>,
    photos: &Photos,
    progress: &mut dyn Progress,
) -> Result<Vec<f32>, PruneError> {
    let layers = convolutions(engine, network, BASELINE_SIDE);
    let mut features = Vec::new();
    for photo in 0..photos.len() {
        features.extend(pooled(&run(engine, &layers, &image(photos, photo)?)));
        progress.advance(1)?;
    }
    Ok(classify(network, &features))
}

struct Bench<'a> {
    engine: &'a Engine,
    network: &'a Network<'a>,
    layers: &'a [Convolution],
    /// What the whole network says to the photos that judge.
    answers: &'a [f32],
    /// How many, and where they are: photos that layers are refitted on.
    photos: (usize, Passage<'a>),
    /// Photos that judge.
    judges: (usize, Passage<'a>),
}

impl Bench<'_> {
    fn measure(
        &mut self,
        layer: usize,
        progress: &mut dyn Progress,
    ) -> Result<Sensitivity, PruneError> {
        let filters = self.network.convolutions[layer].outputs();
        let least = block(self.network, layer).max(filters / 8).min(filters);
        // The next layer that does more than hand on what it reads.
        let reader = (layer + 1..16).find(|&i| !is_identity(&self.network.convolutions[i]));
        let statistics = self.inputs(layer, reader, progress)?;
        let (taps, weight) = match reader {
            Some(reader) => (9, self.network.convolutions[reader].weight.values().into_owned()),
            None => (1, root(&self.network.linears[0], filters)),
        };
        let removal = removal(&statistics, taps, &weight, RIDGE, least);

        let mut cut: Vec<Cut> = Vec::new();
        for level in LEVELS {
            let block = block(self.network, layer);
            let count =
                ((level * filters as f64 / block as f64).round() as usize * block).max(least);
            if cut.last().is_some_and(|cut| cut.count == count) || count >= filters {
                continue;
            }
            cut.push(self.cut(&statistics, reader, &removal, count));
        }
        let mut features = vec![Vec::new(); cut.len()];
        let mut uncut = Vec::new();
        for photo in 0..self.judges.0 {
            let input = self.judges.1.map(photo, &self.layers[..reader.unwrap_or(16)])?;
            uncut.extend(pooled(&run(self.engine, &self.layers[reader.unwrap_or(16)..], &input)));
            for (cut, features) in cut.iter().zip(&mut features) {
                features.extend(self.features(cut, reader, &input));
            }
            progress.advance(1)?;
        }
        let mut points = vec![(0.0, 0.0)];
        let divergence = |features: &[f32]| {
            let logits = classify(self.network, features);
            divergence(self.answers, &logits, self.network.linears[2].outputs())
        };
        let before = divergence(&uncut);
        for (cut, features) in cut.iter().zip(&features) {
            points.push((removal.error[filters - cut.count], divergence(features) - before));
        }
        if points.len() == 1 {
            points.push((1.0, 0.0));
        }
        Ok(Sensitivity { layer, removal: Some(removal), points })
    }

    /// What the reader of a layer's output sees.
    fn inputs(
        &mut self,
        layer: usize,
        reader: Option<usize>,
        progress: &mut dyn Progress,
    ) -> Result<Statistics, PruneError> {
        let channels = self.network.convolutions[layer].outputs();
        let taps = if reader.is_some() { 9 } else { 1 };
        // The pixels are the outputs only where there is no convolution to refit.
        let outputs = reader.map_or(channels, |reader| self.network.convolutions[reader].outputs());
        let mut statistics = Statistics::new(taps * channels, outputs);
        let side = side_of(reader.unwrap_or(16), BASELINE_SIDE);
        let (row, mut random) = (statistics.row(), Random::new(layer as u64));
        let per_photo = per_photo(SAMPLES * row, self.photos.0, side);
        let channels: Vec<usize> = (0..outputs).collect();
        let mut rows = Rows::default();
        for photo in 0..self.photos.0 {
            let map = self.photos.1.map(photo, &self.layers[..reader.unwrap_or(16)])?;
            let wanted = reader.map(|reader| self.layers[reader].run(self.engine, &map, Take::Sum));
            let wanted = (wanted.as_ref().unwrap_or(&map), &channels[..]);
            rows.add(places(side, per_photo, &mut random), (&map, reader.is_some()), wanted);
            if rows.inputs.len() >= 2048 * row {
                statistics.add(&rows.inputs, &rows.wanted);
                rows = Rows::default();
            }
            progress.advance(1)?;
        }
        statistics.add(&rows.inputs, &rows.wanted);
        Ok(statistics)
    }

    /// The reader, refitted to `count` of its inputs, the others unread.
    fn cut(
        &self,
        statistics: &Statistics,
        reader: Option<usize>,
        removal: &Removal,
        count: usize,
    ) -> Cut {
        let kept = removal.kept(count);
        let groups = removal.order.len();
        let Some(reader) = reader else {
            let mut unit = vec![0.0; groups * groups];
            (0..groups).for_each(|i| unit[i * groups + i] = 1.0);
            let fit = statistics.fit(&kept, 1, &unit, RIDGE);
            return Cut { count, kept, layer: None, mix: Some(fit) };
        };
        let layer = &self.network.convolutions[reader];
        let fit = statistics.fit(&kept, 9, &layer.weight.values(), RIDGE);
        let mut weight = vec![0.0; layer.weight.shape().iter().product()];
        for (to, from) in weight.chunks_mut(groups * 9).zip(fit.weight.chunks(kept.len() * 9)) {
            for (channel, from) in kept.iter().zip(from.chunks(9)) {
                to[channel * 9..][..9].copy_from_slice(from);
            }
        }
        let layer = Layer {
            name: layer.name.clone(),
            weight: Tensor::new(layer.weight.shape().to_owned(), weight),
            bias: Tensor::new(vec![layer.outputs()], fit.bias),
        };
        let layer = Convolution::new(self.engine, &layer, reader, BASELINE_SIDE);
        Cut { count, kept, layer: Some(layer), mix: None }
    }

    /// The last feature map, as the first linear layer reads it, with `cut` in its place.
    fn features(&self, cut: &Cut, reader: Option<usize>, input: &Map) -> Vec<f32> {
        if let (Some(layer), Some(reader)) = (&cut.layer, reader) {
            let map = layer.run(self.engine, input, Take::Activation);
            return pooled(&run(self.engine, &self.layers[reader + 1..], &map));
        }
        let fit = cut.mix.as_ref().expect("either a layer or a mix");
        let (planar, pixels) = (input.planar(), input.side * input.side);
        let mut mixed: Vec<f32> = Vec::with_capacity(planar.len());
        for (weight, bias) in fit.weight.chunks(cut.kept.len()).zip(&fit.bias) {
            mixed.extend((0..pixels).map(|pixel| {
                let channels = cut.kept.iter().zip(weight);
                bias + channels.map(|(c, w)| w * planar[c * pixels + pixel]).sum::<f32>()
            }));
        }
        mixed
    }
}

/// A reader of fewer channels.
struct Cut {
    count: usize,
    kept: Vec<usize>,
    /// A convolution, or …
    layer: Option<Convolution>,
    /// … what the first linear layer is told of each channel.
    mix: Option<Fit>,
}

/// A square matrix that weighs channels as the first linear layer does, all positions together:
/// R with R^T R = sum over positions W_p^T W_p.
fn root(layer: &Layer<'_>, channels: usize) -> Vec<f32> {
    let positions = layer.weight.shape()[1] / channels;
    let mut statistics = Statistics::new(channels, 0);
    let mut rows = Vec::new();
    for row in layer.weight.rows() {
        for position in 0..positions {
            rows.extend(row.iter().skip(position).step_by(positions));
            rows.push(0.0);
        }
        if rows.len() >= 4096 * (channels + 1) {
            statistics.add(&rows, &[]);
            rows.clear();
        }
    }
    statistics.add(&rows, &[]);
    statistics.root()
}
