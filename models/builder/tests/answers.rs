//! What the variants of an imported set answer, run by tract as it is, against plain loops.

mod plain;

use std::f32::consts::TAU;
use std::path::Path;

use tract_onnx::prelude::*;
use vggd_models::tiny;

use crate::plain::Map;

const CLASSES: usize = 10;

/// A colourful pattern, another one for every seed, normalised as a photo would be.
fn photo(seed: u64, side: usize) -> Map {
    let mut random = tiny::Random::new(seed);
    let channels = (0..3)
        .map(|_| {
            let [down, right, phase, level] = std::array::from_fn(|_| random.uniform());
            let value = |i: usize| {
                let (y, x) = ((i / side) as f32, (i % side) as f32);
                let turns = 10.0 * (down * y + right * x) / side as f32 + phase;
                1.5 * (TAU * turns).sin() + 2.0 * level - 1.0
            };
            (0..side * side).map(value).collect()
        })
        .collect();
    Map { channels, side }
}

fn answers(set: &Path, variant: &str, photos: &[Map]) -> Vec<Vec<f32>> {
    let model = tract_onnx::onnx()
        .model_for_path(set.join(format!("{variant}.onnx")))
        .and_then(|model| model.into_optimized()?.into_runnable())
        .unwrap();
    (photos.iter())
        .map(|photo| {
            let shape = [1, 3, photo.side, photo.side];
            let input = Tensor::from_shape(&shape, &photo.channels.concat()).unwrap();
            let output = model.run(tvec!(input.into())).unwrap();
            let logits = output[0].to_plain_array_view::<f32>().unwrap();
            logits.iter().copied().collect()
        })
        .collect()
}

fn check(found: &[f32], expected: &[f32], tolerated: f32, what: &str) {
    let largest = expected.iter().fold(f32::MIN, |a, b| a.max(*b));
    let smallest = expected.iter().fold(f32::MAX, |a, b| a.min(*b));
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs() / (largest - smallest);
        assert!(off < tolerated, "{what}: {found}, expected {expected}");
    }
}

#[test]
fn variants_answer_what_plain_loops_compute() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny::set(folder.path(), CLASSES).unwrap();
    let weights = tiny::tensors(&tiny::topology(CLASSES));
    for (variant, side, tolerated) in
        [("baseline", 224, 1e-4), ("scaled", 160, 1e-4), ("quantized", 224, 0.05)]
    {
        let photos = [photo(1, side), photo(2, side)];
        let found = answers(&set, variant, &photos);
        for (found, photo) in found.iter().zip(photos) {
            let expected = plain::logits(&weights, photo);
            check(found, &expected, tolerated, variant);
        }
    }
}

#[test]
fn the_tiny_network_tells_photos_apart() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny::set(folder.path(), CLASSES).unwrap();
    let photos: Vec<Map> = (0..12).map(|seed| photo(seed, 224)).collect();
    let mut classes = std::collections::BTreeSet::new();
    for logits in answers(&set, "baseline", &photos) {
        let (class, largest) =
            (logits.iter().enumerate()).max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        assert!((0.3..60.0).contains(largest), "{logits:?}");
        classes.insert(class);
    }
    assert!(classes.len() >= 4, "only {classes:?}");
}
