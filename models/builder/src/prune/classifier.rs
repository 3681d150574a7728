//! Refitting the linear layers behind pruned convolutions.
//!
//! The first reads what the channels that are left say about all of them: pixel by pixel, or for the
//! means of photos, whichever brings it nearer to what it gave. Then each of the three is nudged
//! towards what it gave before, by ridge regression in the space of the photos, since there are more
//! weights than photos.

use super::PruneError;
use super::correct::{Pair, Passages, restored};
use super::passage::Rows;
use crate::forward::{linear, pooled};
use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::regression::{
    Fit, Nudge, RIDGE, RIDGES, Statistics, missing, squared, times, times_transposed, with_constant,
};
use crate::tensor::Tensor;
use crate::topology::POOLED_SIDE;

const POSITIONS: usize = POOLED_SIDE * POOLED_SIDE;

/// The most photos that linear layers are nudged on.
const PHOTOS: usize = 1024;

/// The linear layers of `network` behind convolutions of which the last has only filters `kept`.
/// The second of `photos` decide how strongly layers are held to what they were.
pub(super) fn correct<'a>(
    network: &Network<'a>,
    kept: &[usize],
    pair: &Pair,
    photos: [Passages<'_>; 2],
    progress: &mut dyn Progress,
) -> Result<Vec<Layer<'a>>, PruneError> {
    progress.now("correcting classifier.0");
    let channels: Vec<usize> = (0..network.convolutions[15].outputs()).collect();
    let mut pixels = Statistics::new(kept.len(), channels.len());
    let mut means = Statistics::new(kept.len(), channels.len());
    let (mut wanted, mut read) = (Vec::new(), Vec::new());
    let all = photos.iter().map(Passages::len).sum::<usize>();
    let mut held = 0;
    for (index, mut photos) in photos.into_iter().enumerate() {
        let count = photos.len() * all.min(PHOTOS) / all.max(1);
        for i in 0..count {
            let maps = photos.maps(i * photos.len() / count, pair)?;
            let mut rows = Rows::default();
            rows.add(0..POSITIONS, (&maps[1], false), (&maps[0], &channels));
            let [teacher, student] = maps.map(|map| pooled(&map));
            if index == 0 {
                pixels.add(&rows.inputs, &rows.wanted);
                means.add(&with_constant(&mean(&student), kept.len()), &mean(&teacher));
            }
            wanted.extend(teacher);
            read.extend(student);
            progress.advance(1)?;
        }
        held = count;
    }
    let count = read.len() / (kept.len() * POSITIONS);
    let first = &network.linears[0];
    let from = count - held;
    let judge = |mix: &Fit| {
        let read = read[from * kept.len() * POSITIONS..].chunks(kept.len() * POSITIONS);
        let restored: Vec<f32> = read.flat_map(|map| restore(mix, map)).collect();
        let wanted = linear(first, &wanted[from * channels.len() * POSITIONS..], held);
        let found = linear(first, &restored, held);
        squared(missing(&wanted, &found, true))
    };
    let pixelwise = restored(&pixels, kept, RIDGE);
    let all: Vec<usize> = (0..kept.len()).collect();
    let others = RIDGES.map(|ridge| means.fit(&all, 1, &pixelwise.weight, ridge));
    let mixes = [pixelwise].into_iter().chain(others).map(|mix| (judge(&mix), mix));
    let (_, best) = mixes.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is one");
    drop((pixels, means));

    let mut layers = vec![mixed(first, &best, kept.len())];
    layers.extend(network.linears[1..].iter().cloned());
    for (index, before) in network.linears.iter().enumerate() {
        progress.now(&format!("correcting {}", before.name));
        let relu = index < 2;
        wanted = linear(before, &wanted, count);
        let found = linear(&layers[index], &read, count);
        let row = read.len() / count + 1;
        let inputs = with_constant(&read, row - 1);
        let (wants, outputs) = (&wanted[..], before.outputs());
        let nudge =
            Nudge { row, outputs, inputs: &inputs, wanted: wants, found: &found, held, relu };
        if let Some(change) = nudge.fit() {
            layers[index] = moved(&layers[index], change);
        }
        read = linear(&layers[index], &read, count);
        if relu {
            [&mut wanted, &mut read].into_iter().flatten().for_each(|v| *v = v.max(0.0));
        }
    }
    Ok(layers)
}

/// Means over all positions of maps, channel by channel.
fn mean(maps: &[f32]) -> Vec<f32> {
    maps.chunks(POSITIONS).map(|map| map.iter().sum::<f32>() / POSITIONS as f32).collect()
}

/// All channels of a map, from those that are left.
fn restore(mix: &Fit, map: &[f32]) -> Vec<f32> {
    let mut all = times(&mix.weight, mix.bias.len(), map, POSITIONS);
    for (channel, bias) in all.chunks_mut(POSITIONS).zip(&mix.bias) {
        channel.iter_mut().for_each(|value| *value += bias);
    }
    all
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

/// The first linear layer, reading `kept` channels from which all are mixed.
fn mixed<'a>(layer: &Layer<'a>, mix: &Fit, kept: usize) -> Layer<'a> {
    let channels = mix.bias.len();
    let mut transposed = vec![0.0; mix.weight.len()];
    for (at, value) in mix.weight.iter().enumerate() {
        transposed[at % kept * channels + at / kept] = *value;
    }
    let outputs = layer.outputs();
    let mut weight = Vec::with_capacity(outputs * kept * POSITIONS);
    let mut bias = layer.bias.values().into_owned();
    for (row, bias) in layer.weight.rows().zip(&mut bias) {
        // The row as positions x channels.
        let by_position: Vec<f32> = (0..POSITIONS)
            .flat_map(|position| row.iter().skip(position).step_by(POSITIONS).copied())
            .collect();
        // kept x positions
        weight.extend(times_transposed(&transposed, kept, &by_position, POSITIONS));
        let moved: f64 = (row.chunks(POSITIONS).zip(&mix.bias))
            .map(|(row, &value)| f64::from(value) * row.iter().map(|w| f64::from(*w)).sum::<f64>())
            .sum();
        *bias += moved as f32;
    }
    Layer {
        name: layer.name.clone(),
        weight: Tensor::new(vec![outputs, kept * POSITIONS], weight),
        bias: Tensor::new(vec![outputs], bias),
    }
}
