//! The model set that comes with the source: complete, small, and right about its photos.

use std::fs;
use std::path::Path;

use vggd::config::Config;
use vggd::manifest::ModelSet;
use vggd::model::{Engine, Model};
use vggd::pipeline::Pipeline;
use vggd::source::Picture;

/// Photos and their classes.
const PHOTOS: [(&str, usize); 8] = [
    ("cat", 285),
    ("coffee", 967),
    ("hedgehog", 334),
    ("koala", 105),
    ("komodo-dragon", 48),
    ("lemurs", 383),
    ("palace", 698),
    ("red-panda", 387),
];

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/sample"))
}

#[test]
fn the_sample_set_is_complete_and_fits_into_a_repository() {
    let set = ModelSet::open(folder()).unwrap();
    set.verify().unwrap();
    let names = [
        "baseline",
        "pruned",
        "quantized",
        "pruned-quantized",
        "scaled",
        "pruned-quantized-scaled",
        "int8",
        "pruned-int8-scaled",
    ];
    assert_eq!(set.names(), names);
    assert!(set.manifest.variants.iter().all(|variant| variant.top1 > Some(0.45)));
    let sizes = |folder: &Path| -> u64 {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        entries.filter(|entry| entry.is_file()).map(|entry| entry.len()).sum()
    };
    let size = sizes(folder()) + sizes(&folder().join("photos"));
    assert!(size <= 60_000_000, "{size} bytes");
}

#[test]
fn every_variant_of_the_sample_recognises_most_of_its_photos() {
    let set = ModelSet::open(folder()).unwrap();
    let pipeline = Pipeline::new(&Config::load(None).unwrap().source);
    let engine = Engine::new(0);
    for variant in &set.manifest.variants {
        let model = Model::load(&set, variant, &engine).unwrap();
        let known = PHOTOS.iter().filter(|(name, class)| {
            let path = folder().join(format!("photos/{name}.jpg"));
            let photo = pipeline.decode(&mut Picture::File(path)).unwrap();
            let (answer, _) = pipeline.classify(&photo, |_| &model).unwrap();
            answer.top.iter().any(|found| found.class == *class)
        });
        let known = known.count();
        assert!(known >= 6, "{}: {known} of {}", variant.name, PHOTOS.len());
    }
}
