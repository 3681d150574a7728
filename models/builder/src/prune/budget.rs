//! How many filters each layer keeps, so that a share of the multiply-accumulates or of the parameters
//! is left and the answers suffer least.
//!
//! A layer's cost is its inputs times its outputs, so that choices of neighbours depend on each
//! other: for a given price of a multiply-accumulate the cheapest chain is found exactly by
//! dynamic programming (Viterbi), and the price is searched for.

use super::sensitivity::Sensitivity;
use super::{Cost, Kept, PruneError, block, worker, workers};
use crate::forward::side_of;
use crate::network::Network;
use crate::topology::{BASELINE_SIDE, POOLED_SIDE};

/// Steps of bisection over the price.
const STEPS: usize = 60;

/// The cost that is left when every convolution from `first` on keeps as few filters as it can.
pub(super) fn least(network: &Network<'_>, first: usize, cost: Cost) -> f64 {
    let workers = workers(network);
    let fewest = |&layer: &usize| {
        let filters = network.convolutions[layer].outputs();
        if layer < first { filters } else { block(network, layer).min(filters) }
    };
    let counts: Vec<usize> = workers.iter().map(fewest).collect();
    Chain::new(network, workers.iter().map(|&layer| (layer, Vec::new())), cost).cost(&counts)
}

/// The filters that each convolution keeps for a cost of `target`.
pub(super) fn spend(
    network: &Network<'_>,
    layers: &[Sensitivity],
    cost: Cost,
    target: f64,
) -> Result<Kept, PruneError> {
    let choices = layers.iter().map(|layer| (layer.layer, choices(network, layer)));
    let chain = Chain::new(network, choices, cost);
    let least = chain.cost(&chain.cheapest(f64::MAX));
    if least > target {
        return Err(PruneError::Target(format!(
            "{:.1} million {cost} cannot be reached, no fewer than {:.1}",
            target / 1e6,
            least / 1e6
        )));
    }
    // Prices between which the target lies, in damage by cost.
    let (mut low, mut high) = (0.0, 1.0 / target);
    while chain.cost(&chain.cheapest(high)) > target {
        high *= 4.0;
    }
    for _ in 0..STEPS {
        let price = (low + high) / 2.0;
        if chain.cost(&chain.cheapest(price)) > target {
            low = price;
        } else {
            high = price;
        }
    }
    let counts = chain.fill(chain.cheapest(high), target);
    let mut kept: Kept = vec![Vec::new(); network.convolutions.len()];
    for (sensitivity, count) in layers.iter().zip(counts) {
        let filters = network.convolutions[sensitivity.layer].outputs();
        kept[sensitivity.layer] = match &sensitivity.removal {
            Some(removal) => removal.kept(count),
            None => (0..filters).collect(),
        };
    }
    for index in 0..kept.len() {
        kept[index] = kept[worker(network, index)].clone();
    }
    Ok(kept)
}

/// How many filters a layer may keep, and the damage.
fn choices(network: &Network<'_>, sensitivity: &Sensitivity) -> Vec<(usize, f64)> {
    let filters = network.convolutions[sensitivity.layer].outputs();
    let step = block(network, sensitivity.layer);
    let reachable = (step..=filters).step_by(step).chain([filters]);
    let reachable = reachable.filter(|&count| match &sensitivity.removal {
        Some(removal) => filters - count < removal.error.len(),
        None => count == filters,
    });
    let mut counts: Vec<usize> = reachable.collect();
    counts.dedup();
    counts.into_iter().map(|count| (count, sensitivity.damage(count))).collect()
}

/// The layers that do work, and what each may keep.
struct Chain {
    /// Filters and damage, for each layer.
    choices: Vec<Vec<(usize, f64)>>,
    /// Cost per input and output channel.
    per_pair: Vec<f64>,
    /// Of the first linear layer, per channel that it reads.
    per_feature: f64,
    /// Of the others.
    rest: f64,
}

impl Chain {
    fn new(
        network: &Network<'_>,
        layers: impl Iterator<Item = (usize, Vec<(usize, f64)>)>,
        cost: Cost,
    ) -> Self {
        let per_weight = |layer| match cost {
            Cost::Macs => (side_of(layer, BASELINE_SIDE) as f64).powi(2),
            Cost::Parameters => 1.0,
        };
        let (per_pair, choices) =
            layers.map(|(layer, choices)| (9.0 * per_weight(layer), choices)).unzip();
        let [first, rest @ ..] = &network.linears[..] else { unreachable!("three linear layers") };
        let macs = |outputs: usize, inputs: usize| (outputs * inputs) as f64;
        let rest = rest.iter().map(|l| macs(l.outputs(), l.weight.shape()[1])).sum();
        let per_feature = macs(first.outputs(), POOLED_SIDE * POOLED_SIDE);
        Self { choices, per_pair, per_feature, rest }
    }

    fn cost(&self, counts: &[usize]) -> f64 {
        let mut macs = self.rest + self.per_feature * counts[counts.len() - 1] as f64;
        let mut inputs = 3;
        for (&outputs, per_pair) in counts.iter().zip(&self.per_pair) {
            macs += per_pair * (inputs * outputs) as f64;
            inputs = outputs;
        }
        macs
    }

    /// Counts with the least damage + `price` x cost.
    fn cheapest(&self, price: f64) -> Vec<usize> {
        // The best way to each choice of the layer before: its cost, and where it came from.
        let mut best: Vec<(f64, usize)> = vec![(0.0, 0)];
        let mut before = vec![(3, 0.0)];
        let mut ways: Vec<Vec<usize>> = Vec::new();
        for (index, choices) in self.choices.iter().enumerate() {
            let last = index + 1 == self.choices.len();
            let next = choices.iter().map(|&(outputs, damage)| {
                let own = if last { self.per_feature * outputs as f64 } else { 0.0 };
                let way =
                    before.iter().zip(&best).enumerate().map(|(from, ((inputs, _), best))| {
                        let macs = self.per_pair[index] * (inputs * outputs) as f64 + own;
                        // At any price, less damage is better.
                        (best.0 + price.min(1e30) * macs + damage, from)
                    });
                way.min_by(|a, b| a.0.total_cmp(&b.0)).expect("a layer has choices")
            });
            best = next.collect();
            ways.push(best.iter().map(|way| way.1).collect());
            before = choices.clone();
        }
        let ends = best.iter().enumerate();
        let mut at = ends.min_by(|a, b| a.1.0.total_cmp(&b.1.0)).expect("a layer has choices").0;
        let mut counts = vec![0; self.choices.len()];
        for index in (0..counts.len()).rev() {
            counts[index] = self.choices[index][at].0;
            at = ways[index][at];
        }
        counts
    }

    /// Gives back filters as long as the target allows, each time those that help most.
    fn fill(&self, mut counts: Vec<usize>, target: f64) -> Vec<usize> {
        loop {
            let now = self.cost(&counts);
            let more = (0..counts.len()).filter_map(|index| {
                let choices = &self.choices[index];
                let at = choices.iter().position(|choice| choice.0 == counts[index])?;
                let next = choices.get(at + 1)?;
                let mut counts = counts.clone();
                counts[index] = next.0;
                let macs = self.cost(&counts);
                let gain = (choices[at].1 - next.1) / (macs - now);
                (macs <= target).then_some((gain, counts))
            });
            match more.max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((_, better)) => counts = better,
                None => return counts,
            }
        }
    }
}
