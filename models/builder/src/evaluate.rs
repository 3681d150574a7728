//! What every variant of a set is worth: answers to photos, judged by their labels and by the
//! baseline's answers, and what they cost on this machine.
//!
//! Variants are run as the daemon runs them, from their files.

use std::path::Path;

use serde::Serialize;
use thiserror::Error;
use vggd::manifest::{ModelSet, SetError, Variant};
use vggd::measure::Measurement;
use vggd::model::{Engine, Model, ModelError};

use crate::judge::{divergence, first, rank};
use crate::photos::{Photos, PhotosError};
use crate::progress::{Interrupted, Progress};
use crate::set::{self, WriteError};

/// One variant's figures. Shares are 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Its name.
    pub variant: String,
    /// Input side in pixels.
    pub side: usize,
    /// Weights and biases.
    pub parameters: u64,
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// Size of the graph and of all weight files it reads.
    pub bytes: u64,
    /// Photos it was judged on.
    pub photos: usize,
    /// Those of them that have a label.
    pub labelled: usize,
    /// Share of labelled photos whose first answer is right.
    pub top1: Option<Share>,
    /// Share of labelled photos with the right answer among the first five.
    pub top5: Option<Share>,
    /// Share of photos whose first answer equals the baseline's.
    pub agreement: f64,
    /// Mean Kullback-Leibler divergence of the answers from the baseline's, in nats.
    pub divergence: f64,
    /// Latency, load time and memory on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measurement>,
}

/// A share of photos, and by how much the baseline's is exceeded on the same photos.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// 0 to 1.
    pub share: f64,
    /// This share minus the baseline's.
    pub difference: f64,
    /// Half the width of the difference's 95 % interval: photos are paired, normal approximation.
    pub interval: f64,
}

/// Why variants were not judged.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// The set cannot be used.
    #[error(transparent)]
    Set(#[from] SetError),
    /// A variant cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Photos cannot be used.
    #[error(transparent)]
    Photos(#[from] PhotosError),
    /// The figures could not be written into the manifest.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Judges `variants` of a set by `photos`; the first of the set is the baseline.
///
/// # Errors
/// [`EvaluateError`].
pub fn evaluate(
    engine: &Engine,
    set: &ModelSet,
    variants: &[&Variant],
    photos: &Photos,
    progress: &mut dyn Progress,
) -> Result<Vec<Evaluation>, EvaluateError> {
    let baseline = &set.manifest.variants[0];
    let others = variants.iter().filter(|variant| variant.name != baseline.name).count();
    progress.count(((others + 1) * photos.len()) as u64);
    let expected = answers(engine, set, baseline, photos, progress)?;
    let classes = set.labels.len();
    let of = |variant: &Variant, found: &[f32]| {
        let agreeing = (expected.chunks(classes).zip(found.chunks(classes)))
            .filter(|(expected, found)| first(expected) == first(found))
            .count();
        let labelled = photos.entries.iter().filter(|entry| entry.label.is_some()).count();
        Evaluation {
            variant: variant.name.clone(),
            side: variant.side(),
            parameters: variant.parameters,
            macs: variant.macs,
            bytes: variant.bytes,
            photos: photos.len(),
            labelled,
            top1: share(photos, &expected, found, classes, 1),
            top5: share(photos, &expected, found, classes, 5),
            agreement: agreeing as f64 / photos.len() as f64,
            divergence: divergence(&expected, found, classes),
            measured: None,
        }
    };
    let mut evaluations = Vec::new();
    for variant in variants {
        evaluations.push(if variant.name == baseline.name {
            of(variant, &expected)
        } else {
            of(variant, &answers(engine, set, variant, photos, progress)?)
        });
    }
    Ok(evaluations)
}

/// Writes the figures into the manifest of the set in `folder`.
///
/// # Errors
/// [`EvaluateError::Set`] or [`EvaluateError::Write`].
pub fn record(folder: &Path, evaluations: &[Evaluation]) -> Result<(), EvaluateError> {
    let mut manifest = ModelSet::open(folder)?.manifest;
    for variant in &mut manifest.variants {
        let same = |evaluation: &&Evaluation| evaluation.variant == variant.name;
        if let Some(evaluation) = evaluations.iter().find(same) {
            variant.top1 = evaluation.top1.map(|top1| round(top1.share));
            variant.top5 = evaluation.top5.map(|top5| round(top5.share));
            variant.agreement = Some(round(evaluation.agreement));
            variant.divergence = Some(round(evaluation.divergence));
        }
    }
    set::rewrite(folder, &manifest)?;
    Ok(())
}

/// To six decimals.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn answers(
    engine: &Engine,
    set: &ModelSet,
    variant: &Variant,
    photos: &Photos,
    progress: &mut dyn Progress,
) -> Result<Vec<f32>, EvaluateError> {
    progress.now(&variant.name);
    let model = Model::load(set, variant, engine)?;
    let mut logits = Vec::new();
    for photo in 0..photos.len() {
        logits.extend(model.infer(&photos.input(photo, model.side)?)?);
        progress.advance(1)?;
    }
    Ok(logits)
}

/// How many labelled photos have the right answer among the first `count`.
fn share(
    photos: &Photos,
    expected: &[f32],
    found: &[f32],
    classes: usize,
    count: usize,
) -> Option<Share> {
    let right = |logits: &[f32], label| f64::from(u8::from(rank(logits, label) < count));
    let answers = expected.chunks(classes).zip(found.chunks(classes));
    let pairs: Vec<(f64, f64)> = (photos.entries.iter().zip(answers))
        .filter_map(|(entry, (expected, found))| {
            entry.label.map(|label| (right(expected, label), right(found, label)))
        })
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let photos = pairs.len() as f64;
    let share = pairs.iter().map(|pair| pair.1).sum::<f64>() / photos;
    let difference = share - pairs.iter().map(|pair| pair.0).sum::<f64>() / photos;
    let spread: f64 = pairs.iter().map(|pair| (pair.1 - pair.0 - difference).powi(2)).sum();
    Some(Share { share, difference, interval: 1.96 * spread.sqrt() / photos })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use vggd::manifest::Preprocess;

    use super::*;
    use crate::photos::Entry;

    #[test]
    fn shares_are_compared_photo_by_photo() {
        let entries = [Some(0), Some(1), None, Some(1)]
            .map(|label| Entry { path: PathBuf::new(), label })
            .to_vec();
        let photos = Photos { folder: PathBuf::new(), entries, preprocess: Preprocess::default() };
        // right, right, unlabelled, wrong
        let expected = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0];
        // right, wrong, unlabelled, wrong
        let found = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        let top1 = share(&photos, &expected, &found, 2, 1).unwrap();
        assert!((top1.share - 1.0 / 3.0).abs() < 1e-12);
        assert!((top1.difference + 1.0 / 3.0).abs() < 1e-12);
        // Differences 0, -1, 0 have the squared deviations 1/9, 4/9, 1/9.
        assert!((top1.interval - 1.96 * (6f64 / 9.0).sqrt() / 3.0).abs() < 1e-12);
        assert_eq!(share(&photos, &expected, &found, 2, 2).unwrap().share, 1.0);
    }
}
