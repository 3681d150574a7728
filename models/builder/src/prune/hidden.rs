//! Fewer units in the two hidden layers of the classifier: in the order in which the layer that
//! reads them misses them least, which is then refitted to those that stay.

use super::passage::image;
use super::{EFFORT, PruneError, Site};
use crate::forward::{convolutions, linear, pooled, run};
use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::regression::{Fit, Samples, Statistics, removal, with_constant};
use crate::tensor::Tensor;
use crate::topology::BASELINE_SIDE;

/// How strongly the next layer is held to its weights where it makes up for a unit, as a share of the
/// mean square of its inputs: little, or units that say the same are not told from others.
const RIDGE: f64 = 1e-3;

/// `network` with `count` units in each hidden layer, where there are more.
pub(super) fn narrow<'a>(
    site: &Site<'_>,
    network: &Network<'a>,
    count: usize,
    progress: &mut dyn Progress,
) -> Result<Network<'a>, PruneError> {
    let [fitted, held] = [site.photos.len(), site.held.len()];
    let photos = fitted + held;
    progress.count(photos as u64);
    progress.now("what the classifier reads");
    let layers = convolutions(site.engine, network, BASELINE_SIDE);
    let mut read = Vec::new();
    for photos in [site.photos, site.held] {
        for photo in 0..photos.len() {
            read.extend(pooled(&run(site.engine, &layers, &image(photos, photo)?)));
            progress.advance(1)?;
        }
    }
    drop(layers);

    // What the whole layers give, and what those that are narrow so far do.
    let mut wanted = linear(&network.linears[0], &read, photos);
    let mut linears = vec![network.linears[0].clone()];
    for index in 0..2 {
        let next = &network.linears[index + 1];
        progress.now(&format!("narrowing {}", network.linears[index].name));
        wanted.iter_mut().for_each(|value| *value = value.max(0.0));
        let kept = missed_most(next, &wanted, count);
        let narrow = rows(&linears[index], &kept);
        read = linear(&narrow, &read, photos);
        linears[index] = narrow;
        wanted = linear(next, &wanted, photos);

        read.iter_mut().for_each(|value| *value = value.max(0.0));
        let inputs = with_constant(&read, kept.len());
        let (row, outputs) = (kept.len() + 1, next.outputs());
        let [fitted, held] = [0..fitted, fitted..photos].map(|rows| {
            let mut samples = Samples::new(row, outputs);
            samples.add(
                &inputs[rows.start * row..rows.end * row],
                &wanted[rows.start * outputs..rows.end * outputs],
            );
            samples
        });
        let prior = columns(next, &kept);
        let rounds = if index == 0 { EFFORT.rounds } else { 0 };
        let Fit { weight, bias } = fitted.fit_relu(&held, &prior, rounds);
        linears.push(Layer {
            name: next.name.clone(),
            weight: Tensor::new(vec![next.outputs(), kept.len()], weight),
            bias: Tensor::new(vec![next.outputs()], bias),
        });
    }
    Ok(Network { convolutions: network.convolutions.clone(), linears })
}

/// The `count` inputs of `layer` that it would miss most, sorted; `read` are rows of them.
fn missed_most(layer: &Layer<'_>, read: &[f32], count: usize) -> Vec<usize> {
    let inputs = layer.weight.shape()[1];
    if count >= inputs {
        return (0..inputs).collect();
    }
    let mut statistics = Statistics::new(inputs, 0);
    statistics.add(&with_constant(read, inputs), &[]);
    removal(&statistics, 1, &layer.weight.values(), RIDGE, count).kept(count)
}

fn rows<'a>(layer: &Layer<'_>, kept: &[usize]) -> Layer<'a> {
    let inputs = layer.weight.shape()[1];
    let (weight, bias) = (layer.weight.values(), layer.bias.values());
    let values = kept.iter().flat_map(|&row| weight[row * inputs..][..inputs].iter().copied());
    Layer {
        name: layer.name.clone(),
        weight: Tensor::new(vec![kept.len(), inputs], values.collect()),
        bias: Tensor::new(vec![kept.len()], kept.iter().map(|&row| bias[row]).collect()),
    }
}

fn columns(layer: &Layer<'_>, kept: &[usize]) -> Vec<f32> {
    let rows = layer.weight.rows();
    rows.flat_map(|row| kept.iter().map(|&column| row[column]).collect::<Vec<_>>()).collect()
}
