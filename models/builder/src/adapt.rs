//! Own classes from own photos: a folder per class becomes a model set whose convolutions are those
//! of another set and whose classifier is refitted.
//!
//! ```text
//! photos     a folder per class, a few views of each photo
//! features   what the convolutions, which stay as they are, make of each view
//! classifier the last layer in closed form, then all linear layers by a short training; how right
//!            it is, cross-validation tells
//! import     the new network as a set of the variants that need no photos
//! ```

mod classifier;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{fs, io};

use serde::Serialize;
use thiserror::Error;
use vggd::manifest::{Manifest, ModelSet, SetError};
use vggd::model::Engine;

use self::classifier::{Classifier, Lessons};
use crate::build::{BuildError, plain_source};
use crate::finetune::{Examples, View};
use crate::forward::{Map, convolutions, pooled, run};
use crate::import::{Import, import};
use crate::labels;
use crate::network::Network;
use crate::photos::{Photos, PhotosError};
use crate::progress::{Interrupted, Progress};
use crate::set::WriteError;
use crate::source;
use crate::topology::BASELINE_SIDE;

/// Parts of the photos that are left out in turn, to tell how right the others make a classifier.
pub const FOLDS: usize = 5;

/// Views of a photo: whole, and crops of it.
const VIEWS: usize = 4;

/// As many views as there are, if possible; more take long on a small computer.
const ROWS: usize = 1024;

/// The most photos that are used.
const MOST: usize = 4096;

/// What to adapt to what.
#[derive(Clone, Debug)]
pub struct Adapt {
    /// A folder per class, each with photos.
    pub photos: PathBuf,
    /// The model set to start from.
    pub set: PathBuf,
    /// The variant of it to start from.
    pub from: String,
    /// The new model set's folder.
    pub out: PathBuf,
    /// What it is called, for people.
    pub name: String,
    /// Whether a model set that is already there is replaced.
    pub force: bool,
}

/// How right the classifier is, by cross-validation: each photo was judged by a classifier that was
/// fitted without it and its neighbours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Photos that were judged.
    pub photos: usize,
    /// Share of them whose first answer was right, 0 to 1.
    pub top1: f64,
    /// Bounds of its 95 % interval (Wilson).
    pub interval: [f64; 2],
    /// The same for each class.
    pub classes: Vec<ClassEstimate>,
}

/// How right the classifier is on photos of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassEstimate {
    /// The class.
    pub label: String,
    /// How many photos of it there are.
    pub photos: usize,
    /// How many of them were recognised.
    pub right: usize,
}

/// A new set, and what to expect of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The set's manifest.
    pub manifest: Manifest,
    /// How right its baseline is.
    pub estimate: Estimate,
}

/// Why there is no new set. Whatever was in its place is untouched.
#[derive(Debug, Error)]
pub enum AdaptError {
    /// The set to start from cannot be used.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Photos cannot be used.
    #[error(transparent)]
    Photos(#[from] PhotosError),
    /// Photos lie elsewhere than in a folder per class.
    #[error("{}: lies in no class's folder; move it into {}/CLASS/", path.display(), folder.display())]
    Unsorted {
        /// The photo.
        path: PathBuf,
        /// Where the classes' folders are.
        folder: PathBuf,
    },
    /// One class is nothing to choose from.
    #[error("{}: has photos of '{class}' only; make a folder for each of two or more classes", folder.display())]
    OneClass {
        /// The only class.
        class: String,
        /// Where the classes' folders are.
        folder: PathBuf,
    },
    /// A class has too few photos to be judged by some and learned from others.
    #[error("class '{class}' has {found} photos, at least {FOLDS} are needed, better dozens")]
    TooFew {
        /// The class.
        class: String,
        /// How many it has.
        found: usize,
    },
    /// The classifier's weights left the range of numbers.
    #[error(
        "the classifier could not be fitted: {0}; look for photos that are in the wrong folder"
    )]
    Fit(String),
    /// The set could not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Adapts a set to own photos.
///
/// # Errors
/// [`AdaptError`].
pub fn adapt(
    engine: &Engine,
    request: &Adapt,
    progress: &mut dyn Progress,
) -> Result<Outcome, AdaptError> {
    let set = ModelSet::open(&request.set)?;
    let source = plain_source(&set, &request.from)?;
    let network = Network::read(&source)
        .map_err(|error| BuildError::Network { path: request.set.join(&request.from), error })?;
    let (photos, labels) = sorted(request, &set)?;

    let lessons = read(engine, &network, &photos, labels.len(), progress)?;
    let fitted = Classifier::fit(&network.linears, &lessons, progress)?;
    let estimate = estimate(&photos, &labels, &fitted.right);
    let adapted = Network { convolutions: network.convolutions.clone(), linears: fitted.linears };

    let parent = request.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| ".".as_ref());
    let write = || -> io::Result<_> {
        fs::create_dir_all(parent)?;
        let work = tempfile::Builder::new().prefix(".adapt").tempdir_in(parent)?;
        let [weights, list] = ["adapted.safetensors", "labels.txt"].map(|n| work.path().join(n));
        source::write(&weights, &adapted.tensors())?;
        fs::write(&list, labels::text(&labels))?;
        Ok((work, weights, list))
    };
    let (_work, weights, list) =
        write().map_err(WriteError::io(parent)).map_err(BuildError::from)?;
    let import_request = Import {
        source: weights,
        labels: list,
        preprocess: set.manifest.preprocess.clone(),
        out: request.out.clone(),
        name: request.name.clone(),
        force: request.force,
    };
    Ok(Outcome { manifest: import(&import_request, progress)?, estimate })
}

/// The photos and the names of their classes, sorted.
fn sorted(request: &Adapt, set: &ModelSet) -> Result<(Photos, Vec<String>), AdaptError> {
    let folder = &request.photos;
    let mut photos = Photos::open(folder, &[], &set.manifest.preprocess)?;
    let mut classes = Vec::new();
    for entry in &photos.entries {
        let within = entry.path.strip_prefix(folder).unwrap_or(&entry.path);
        let mut parts = within.components();
        let Some(class) = parts.next().filter(|_| parts.next().is_some()) else {
            return Err(AdaptError::Unsorted { path: entry.path.clone(), folder: folder.clone() });
        };
        classes.push(class.as_os_str().to_string_lossy().into_owned());
    }
    let labels: Vec<String> = BTreeSet::from_iter(classes.iter().cloned()).into_iter().collect();
    if let [class] = &labels[..] {
        return Err(AdaptError::OneClass { class: class.clone(), folder: folder.clone() });
    }
    for (entry, class) in photos.entries.iter_mut().zip(&classes) {
        entry.label = labels.binary_search(class).ok();
    }
    let photos = photos.sample(MOST);
    for (class, label) in labels.iter().enumerate() {
        let found = photos.entries.iter().filter(|entry| entry.label == Some(class)).count();
        if found < FOLDS {
            return Err(AdaptError::TooFew { class: label.clone(), found });
        }
    }
    Ok((photos, labels))
}

/// What the convolutions make of each view of each photo.
fn read(
    engine: &Engine,
    network: &Network<'_>,
    photos: &Photos,
    classes: usize,
    progress: &mut dyn Progress,
) -> Result<Lessons, AdaptError> {
    let views = (ROWS / photos.len()).clamp(1, VIEWS);
    progress.count((photos.len() * views) as u64);
    progress.now("reading photos");
    let layers = convolutions(engine, network, BASELINE_SIDE);
    let mut features = Vec::new();
    for photo in 0..photos.len() {
        for view in 0..views {
            let input = match view {
                0 => photos.input(photo, BASELINE_SIDE)?,
                _ => {
                    let crop = View::Crop((photo * VIEWS + view) as u64);
                    photos.view(photo, crop, BASELINE_SIDE)?
                }
            };
            let image = Map::image(input, BASELINE_SIDE);
            features.extend(pooled(&run(engine, &layers, &image)));
            progress.advance(1)?;
        }
    }
    let labels = (0..photos.len()).map(|photo| photos.label(photo).expect("sorted")).collect();
    Ok(Lessons { features, views, labels, classes })
}

fn estimate(photos: &Photos, labels: &[String], right: &[bool]) -> Estimate {
    let mut classes: Vec<ClassEstimate> = (labels.iter())
        .map(|label| ClassEstimate { label: label.clone(), photos: 0, right: 0 })
        .collect();
    for (entry, &right) in photos.entries.iter().zip(right) {
        let class = &mut classes[entry.label.expect("sorted")];
        class.photos += 1;
        class.right += usize::from(right);
    }
    let hits = right.iter().filter(|right| **right).count();
    let top1 = hits as f64 / right.len() as f64;
    Estimate { photos: right.len(), top1, interval: wilson(top1, right.len() as f64), classes }
}

/// The 95 % interval of a share of `count` (Wilson 1927).
fn wilson(share: f64, count: f64) -> [f64; 2] {
    let square = 1.96f64.powi(2);
    let middle = share + square / (2.0 * count);
    let spread = 1.96 * (share * (1.0 - share) / count + square / (4.0 * count * count)).sqrt();
    [middle - spread, middle + spread].map(|bound| (bound / (1.0 + square / count)).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_the_published_one() {
        // 81 of 263, Newcombe 1998, table I.
        let [low, high] = wilson(81.0 / 263.0, 263.0);
        assert!((low - 0.2553).abs() < 1e-4 && (high - 0.3662).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(1.0, 10.0)[1], 1.0);
    }
}
