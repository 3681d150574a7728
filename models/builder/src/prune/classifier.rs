//! Refitting the linear layers behind pruned convolutions.
//!
//! The first reads what the channels that are left say about all of them, position by position. Then
//! each of the three is nudged towards what it gave before, by ridge regression in the space of the
//! photos, since there are more weights than photos.

use super::PruneError;
use super::passage::{Passage, Rows};
use crate::forward::{Convolution, linear, pooled};
use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::regression::{Fit, Samples, Statistics, times_transposed, with_constant};
use crate::tensor::Tensor;
use crate::topology::POOLED_SIDE;

const POSITIONS: usize = POOLED_SIDE * POOLED_SIDE;

/// The most photos that linear layers are nudged on.
const PHOTOS: usize = 1024;

/// The convolutions before and after pruning, and the photos on their way through them.
pub(super) struct Pruned<'a> {
    pub(super) teacher: (Passage<'a>, &'a [Convolution]),
    pub(super) student: (Passage<'a>, &'a [Convolution]),
    /// Channels of the last feature map that are left.
    pub(super) kept: &'a [usize],
}

/// The linear layers of `network` behind pruned convolutions.
pub(super) fn correct<'a>(
    network: &Network<'a>,
    mut convolutions: Pruned<'_>,
    photos: usize,
    ridge: f64,
    progress: &mut dyn Progress,
) -> Result<Vec<Layer<'a>>, PruneError> {
    progress.now("correcting classifier.0");
    let count = photos.min(PHOTOS);
    let channels = network.convolutions[15].outputs();
    let all: Vec<usize> = (0..channels).collect();
    let mut statistics = Statistics::new(convolutions.kept.len(), channels);
    let (mut wanted, mut read) = (Vec::new(), Vec::new());
    for photo in (0..count).map(|i| i * photos / count) {
        let teacher = convolutions.teacher.0.map(photo, convolutions.teacher.1)?;
        let student = convolutions.student.0.map(photo, convolutions.student.1)?;
        let mut rows = Rows::default();
        rows.add(0..POSITIONS, (&student, false), (&teacher, &all));
        statistics.add(&rows.inputs, &rows.wanted);
        wanted.extend(pooled(&teacher));
        read.extend(pooled(&student));
        progress.advance(1)?;
    }
    let mut layers = vec![mix(&network.linears[0], &statistics, convolutions.kept, ridge)];
    layers.extend(network.linears[1..].iter().cloned());
    for (index, before) in network.linears.iter().enumerate() {
        progress.now(&format!("correcting {}", before.name));
        let relu = index < 2;
        let outputs = before.outputs();
        wanted = linear(before, &wanted, count);
        let found = linear(&layers[index], &read, count);
        let row = read.len() / count + 1;
        let inputs = with_constant(&read, row - 1);
        let samples = Samples { row, outputs, inputs, wanted };
        if let Some(change) = samples.nudge(&found, relu) {
            layers[index] = moved(&layers[index], change);
        }
        read = linear(&layers[index], &read, count);
        wanted = samples.wanted;
        if relu {
            [&mut wanted, &mut read].into_iter().flatten().for_each(|v| *v = v.max(0.0));
        }
    }
    Ok(layers)
}

/// A layer with weights and biases added to its own.
fn moved<'a>(layer: &Layer<'_>, mut change: Fit) -> Layer<'a> {
    let own = [(&mut change.weight, &layer.weight), (&mut change.bias, &layer.bias)];
    for (change, own) in own {
        change.iter_mut().zip(own.values().iter()).for_each(|(change, own)| *change += own);
    }
    Layer {
        name: layer.name.clone(),
        weight: Tensor::new(layer.weight.shape().to_owned(), change.weight),
        bias: Tensor::new(layer.bias.shape().to_owned(), change.bias),
    }
}

/// The first linear layer, reading what the kept channels say about all of them.
fn mix<'a>(layer: &Layer<'a>, statistics: &Statistics, kept: &[usize], ridge: f64) -> Layer<'a> {
    let channels = layer.weight.shape()[1] / POSITIONS;
    let mut prior = vec![0.0; channels * kept.len()];
    for (at, channel) in kept.iter().enumerate() {
        prior[channel * kept.len() + at] = 1.0;
    }
    let all: Vec<usize> = (0..kept.len()).collect();
    // channels x kept: what each channel would have been.
    let fit = statistics.fit(&all, 1, &prior, ridge);
    let mut transposed = vec![0.0; fit.weight.len()];
    for (at, value) in fit.weight.iter().enumerate() {
        transposed[at % kept.len() * channels + at / kept.len()] = *value;
    }
    let outputs = layer.outputs();
    let mut weight = Vec::with_capacity(outputs * kept.len() * POSITIONS);
    let mut bias = layer.bias.values().into_owned();
    for (row, bias) in layer.weight.rows().zip(&mut bias) {
        // The row as positions x channels.
        let by_position: Vec<f32> = (0..POSITIONS)
            .flat_map(|position| row.iter().skip(position).step_by(POSITIONS).copied())
            .collect();
        // kept x positions
        weight.extend(times_transposed(&transposed, kept.len(), &by_position, POSITIONS));
        let moved: f64 = (row.chunks(POSITIONS).zip(&fit.bias))
            .map(|(row, &value)| f64::from(value) * row.iter().map(|w| f64::from(*w)).sum::<f64>())
            .sum();
        *bias += moved as f32;
    }
    Layer {
        name: layer.name.clone(),
        weight: Tensor::new(vec![outputs, kept.len() * POSITIONS], weight),
        bias: Tensor::new(vec![outputs], bias),
    }
}
