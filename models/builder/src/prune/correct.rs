//! Refitting every layer behind a pruned one, so that with what is left it comes as near as it can
//! to what it computed before: ridge least squares on calibration photos (channel pruning, He et
//! al. 2017), layer after layer, each seeing what the pruned layers before it really give.

use super::classifier::{self, Pruned};
use super::passage::{Passage, Rows, per_photo, places};
use super::{Kept, PruneError, Site, is_identity};
use crate::forward::{Convolution, Take, convolutions, side_of};
use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::random::Random;
use crate::regression::{Fit, Samples};
use crate::tensor::Tensor;
use crate::topology::BASELINE_SIDE;

/// Samples per unknown weight of a filter that a layer is fitted on, if the photos have so many.
const SAMPLES: usize = 8;

pub(super) fn correct<'a>(
    site: &Site<'_>,
    network: &Network<'a>,
    kept: &Kept,
    ridge: f64,
    rounds: usize,
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
    progress.count(((refitted + 1) * site.photos.len()) as u64);

    let teacher = convolutions(site.engine, network, BASELINE_SIDE);
    let mut student: Vec<Convolution> = Vec::new();
    let mut passages = Passages { site, teacher: Passage::new(site), student: Passage::new(site) };
    let mut layers = Vec::new();
    for (index, layer) in network.convolutions.iter().enumerate() {
        let all: Vec<usize> = (0..layer.weight.shape()[1]).collect();
        let inputs = if index == 0 { &all } else { &kept[index - 1] };
        let layer = if index <= first || is_identity(layer) {
            select(layer, &kept[index], inputs)
        } else {
            progress.now(&format!("correcting {}", layer.name));
            let samples = passages.sums(
                &teacher[..=index],
                &student,
                &kept[index],
                inputs.len(),
                progress,
            )?;
            refit(layer, &samples, &kept[index], inputs, (ridge, rounds))
        };
        student.push(Convolution::new(site.engine, &layer, index, BASELINE_SIDE));
        layers.push(layer);
    }
    let Passages { teacher: whole, student: pruned, .. } = passages;
    let convolutions =
        Pruned { teacher: (whole, &teacher), student: (pruned, &student), kept: &kept[last] };
    let linears = classifier::correct(network, convolutions, site.photos.len(), ridge, progress)?;
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
    (ridge, rounds): (f64, usize),
) -> Layer<'a> {
    let prior = select(layer, outputs, inputs);
    let Fit { weight, bias } = samples.fit_relu(&prior.weight.values(), ridge, rounds);
    Layer {
        name: prior.name,
        weight: Tensor::new(vec![outputs.len(), inputs.len(), 3, 3], weight),
        bias: Tensor::new(vec![outputs.len()], bias),
    }
}

/// The same photos on their way through both networks.
struct Passages<'a> {
    site: &'a Site<'a>,
    teacher: Passage<'a>,
    student: Passage<'a>,
}

impl Passages<'_> {
    /// What the layer behind those of `student` reads, and what it should give, in places that are
    /// the same for both: what the last of `teacher` gives in `outputs`.
    fn sums(
        &mut self,
        teacher: &[Convolution],
        student: &[Convolution],
        outputs: &[usize],
        inputs: usize,
        progress: &mut dyn Progress,
    ) -> Result<Samples, PruneError> {
        let (index, photos) = (student.len(), self.site.photos);
        let (last, before) = teacher.split_last().expect("the layer itself");
        let side = side_of(index, BASELINE_SIDE);
        let row = 9 * inputs + 1;
        let per_photo = per_photo(SAMPLES * row, photos.len(), side);
        let mut random = Random::new(index as u64);
        let mut rows = Rows::default();
        for photo in 0..photos.len() {
            let wanted = last.run(self.site.engine, &self.teacher.map(photo, before)?, Take::Sum);
            let read = self.student.map(photo, student)?;
            let pixels = places(side, per_photo, &mut random);
            rows.add(pixels, (&read, true), (&wanted, outputs));
            progress.advance(1)?;
        }
        let Rows { inputs, wanted } = rows;
        Ok(Samples { row, outputs: outputs.len(), inputs, wanted })
    }
}
