//! Fewer filters: which ones go, and how the layers that read them make up for it.
//!
//! ```text
//! Target::Ratio   the same share of every layer's filters, smallest L2 norm first (Li et al. 2017)
//! Target::Macs,   in stages, each from what the one before left:
//! ::Parameters      sensitivity: what each layer loses when it does without some of its inputs
//!                   budget: how many filters each layer keeps, so that the target costs least
//! all of these    correct: every layer after a pruned one refitted on calibration photos
//! Target::Hidden  hidden: fewer units in the classifier
//! ```
//!
//! A layer that only hands its input on (the middle weight of each filter 1, all others 0) loses
//! the filters that the layer before it loses, and its multiply-accumulates count for nothing:
//! otherwise a target could be met by thinning out what does no work.

mod budget;
mod classifier;
mod correct;
mod hidden;
mod passage;
mod sensitivity;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vggd::model::Engine;

use crate::network::{Layer, Network};
use crate::photos::{Photos, PhotosError};
use crate::progress::{Interrupted, Progress};
use crate::quantize::GROUP;
use crate::topology::BASELINE_SIDE;
use correct::{Effort, correct};

/// Filters come in multiples of this, so that kernels' blocks of channels are full.
pub const BLOCK: usize = 16;

/// Share of what is to be saved that a stage leaves, at the least.
const STAGE: f64 = 0.7;

/// The most photos on which stages are planned; the last one is corrected on all.
const SURVEY: usize = 200;

/// How hard to try to correct a network.
const EFFORT: Effort = Effort { samples: 16, rounds: 8 };

/// The same where only the next stage depends on it.
const DRAFT: Effort = Effort { samples: 8, rounds: 2 };

/// Share of every layer's filters that goes when nothing else is asked for.
pub const RATIO: f64 = 0.10;

/// How much to prune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This share of the filters of every layer from [`Options::first`] on.
    Ratio(f64),
    /// Down to this share of the multiply-accumulates, wherever it hurts least.
    Macs(f64),
    /// Down to this share of the weights and biases, by taking filters wherever it hurts least.
    Parameters(f64),
    /// Down to so many units in the two hidden layers of the classifier.
    Hidden([usize; 2]),
}

/// What to prune, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much.
    pub target: Target,
    /// The first convolution to lose filters, 0 to 15.
    pub first: usize,
}

impl Options {
    /// The defaults for `target`: from conv3_1 on for a ratio, since earlier layers are small and
    /// matter more; from the first layer on for a target of multiply-accumulates, which is spent
    /// where it hurts least anyway.
    pub fn new(target: Target) -> Self {
        let first = match target {
            Target::Ratio(_) => 4,
            Target::Macs(_) | Target::Parameters(_) | Target::Hidden(_) => 0,
        };
        Self { target, first }
    }
}

/// Why a network was not pruned.
#[derive(Debug, Error)]
pub enum PruneError {
    /// Give another ratio or target.
    #[error("{0}")]
    Target(String),
    /// What the photos are on their way could not be kept: make room there.
    #[error("{}: {error}", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Calibration photos cannot be used.
    #[error(transparent)]
    Photos(#[from] PhotosError),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Prunes `network` and corrects it on `photos`. Needs room for files in the folder `scratch`, where
/// it leaves none: about 4 MB per photo for a VGG-19 of the original widths.
///
/// # Errors
/// [`PruneError`].
pub fn prune<'a>(
    engine: &Engine,
    network: &Network<'a>,
    photos: &Photos,
    options: &Options,
    scratch: &Path,
    progress: &mut dyn Progress,
) -> Result<Network<'a>, PruneError> {
    check(options.target)?;
    let split = [photos.sample(SURVEY).split(), photos.split()];
    let [survey, site] =
        split.each_ref().map(|[photos, held]| Site { engine, photos, held, scratch });
    let (share, cost) = match options.target {
        Target::Ratio(ratio) => {
            let kept = smallest_norms(network, ratio, options.first);
            return correct(&site, network, &kept, EFFORT, progress);
        }
        Target::Hidden(units) => return hidden::narrow(&site, network, units, progress),
        Target::Macs(share) => (share, Cost::Macs),
        Target::Parameters(share) => (share, Cost::Parameters),
    };
    // Damages measured one layer at a time do not simply add up, so no stage goes far.
    let stages = (share.ln() / STAGE.ln()).ceil() as i32;
    let whole = cost.of(network) as f64;
    let least = budget::least(network, options.first, cost);
    if share * whole < least {
        return Err(PruneError::Target(format!(
            "share of {cost} {share}: no less than {:.3} can be reached",
            least / whole
        )));
    }
    let mut kept: Kept = network.convolutions.iter().map(|l| (0..l.outputs()).collect()).collect();
    let mut pruned = network.clone();
    for stage in 1..=stages {
        let layers = sensitivity::measure(&survey, network, &pruned, options, progress)?;
        let target = whole * share.powf(f64::from(stage) / f64::from(stages));
        let further = budget::spend(&pruned, &layers, cost, target)?;
        // It takes as much memory as the one that is made of it.
        drop(pruned);
        for (kept, further) in kept.iter_mut().zip(further) {
            *kept = further.into_iter().map(|filter| kept[filter]).collect();
        }
        let (site, effort) = if stage == stages { (&site, EFFORT) } else { (&survey, DRAFT) };
        pruned = correct(site, network, &kept, effort, progress)?;
    }
    Ok(pruned)
}

/// With what it is done, and where.
#[derive(Clone, Copy)]
struct Site<'a> {
    engine: &'a Engine,
    /// Photos that layers are fitted on.
    photos: &'a Photos,
    /// Photos that decide how closely.
    held: &'a Photos,
    scratch: &'a Path,
}

/// The filters that each convolution keeps, sorted.
type Kept = Vec<Vec<usize>>;

/// Whether a target makes sense.
///
/// # Errors
/// [`PruneError::Target`].
pub fn check(target: Target) -> Result<(), PruneError> {
    let (what, share) = match target {
        Target::Ratio(share) => ("ratio", share),
        Target::Macs(share) => ("share of MACs", share),
        Target::Parameters(share) => ("share of parameters", share),
        Target::Hidden(units) => {
            let wrong = units.iter().find(|&&count| count == 0 || !count.is_multiple_of(GROUP));
            return wrong.map_or(Ok(()), |count| {
                let message = format!("{count} hidden units: must be a multiple of {GROUP}");
                Err(PruneError::Target(message))
            });
        }
    };
    if share > 0.0 && share < 1.0 {
        return Ok(());
    }
    Err(PruneError::Target(format!("{what} {share}: must lie between 0 and 1")))
}

/// Whether the layer hands its input on as it is.
pub fn is_identity(layer: &Layer<'_>) -> bool {
    let shape = layer.weight.shape();
    shape[0] == shape[1]
        && layer.bias.values().iter().all(|bias| *bias == 0.0)
        && layer.weight.rows().enumerate().all(|(filter, row)| {
            let own = filter * 9 + 4;
            row.iter().enumerate().all(|(at, &weight)| weight == f32::from(u8::from(at == own)))
        })
}

/// The layer before the identities that `index` ends.
fn worker(network: &Network<'_>, index: usize) -> usize {
    (0..=index).rev().find(|&i| i == 0 || !is_identity(&network.convolutions[i])).unwrap_or(0)
}

/// The layers that do more than hand their input on.
fn workers(network: &Network<'_>) -> Vec<usize> {
    (0..network.convolutions.len()).filter(|&index| worker(network, index) == index).collect()
}

/// How many filters convolution `index` may keep in all: a multiple of this.
fn block(network: &Network<'_>, index: usize) -> usize {
    let last = network.convolutions.len() - 1;
    if worker(network, last) <= index { GROUP } else { BLOCK }
}

/// What can be saved by pruning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Multiply-accumulates at 224 x 224.
    Macs,
    /// Weights and biases.
    Parameters,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Macs => "multiply-accumulates",
            Self::Parameters => "parameters",
        })
    }
}

impl Cost {
    /// How much of it a network has, without what belongs to layers that hand their input on.
    pub fn of(self, network: &Network<'_>) -> u64 {
        let topology = network.topology();
        let (whole, per_layer) = match self {
            Self::Macs => (topology.macs(BASELINE_SIDE), topology.convolution_macs(BASELINE_SIDE)),
            Self::Parameters => {
                (topology.parameters(BASELINE_SIDE), topology.convolution_parameters())
            }
        };
        let idle: u64 = (network.convolutions.iter().zip(per_layer))
            .filter(|(layer, _)| is_identity(layer))
            .map(|(_, count)| count)
            .sum();
        whole - idle
    }
}

fn smallest_norms(network: &Network<'_>, ratio: f64, first: usize) -> Kept {
    let mut kept: Kept = Vec::new();
    for (index, layer) in network.convolutions.iter().enumerate() {
        let filters = layer.outputs();
        if worker(network, index) < index {
            kept.push(kept[index - 1].clone());
            continue;
        }
        if index < first {
            kept.push((0..filters).collect());
            continue;
        }
        let block = block(network, index);
        let wanted = (filters as f64 * (1.0 - ratio) / block as f64).round() as usize * block;
        let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        let mut norms: Vec<(f64, usize)> =
            layer.weight.rows().enumerate().map(|(filter, row)| (norm(&row), filter)).collect();
        norms.sort_by(|a, b| b.0.total_cmp(&a.0));
        let stay = norms.into_iter().take(wanted.clamp(block.min(filters), filters));
        let mut stay: Vec<usize> = stay.map(|(_, filter)| filter).collect();
        stay.sort_unstable();
        kept.push(stay);
    }
    kept
}
