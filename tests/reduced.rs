//! Photos decoded at reduced size against the same photos decoded whole: what the network is given,
//! and what it says.

mod common;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::witness::{python, reference, reference_photos};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder, Rgb, RgbImage};
use vggd::manifest::{ModelSet, Preprocess};
use vggd::model::{Engine, Model};
use vggd::preprocess::{Framing, Limits, Photo, decode, decode_for, to_input};

const LIMITS: Limits = Limits { max_pixels: 20_000_000 };

const SIDE: usize = 224;

fn reduced(bytes: &[u8]) -> Photo {
    decode_for(bytes, &LIMITS, &Framing::default(), SIDE, &Preprocess::default()).unwrap()
}

/// Mean difference of the inputs that two photos give, in 255ths of the range.
fn difference(one: &Photo, other: &Photo) -> f32 {
    let rule = Preprocess { mean: [0.0; 3], std: [1.0 / 255.0; 3], ..Preprocess::default() };
    let [one, other] = [one, other].map(|photo| to_input(photo, SIDE, &rule));
    let sum: f32 = one.iter().zip(&other).map(|(one, other)| (one - other).abs()).sum();
    sum / one.len() as f32
}

/// Slopes and edges, as JPEG with that Exif orientation.
fn jpeg(width: u32, height: u32, orientation: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| {
        let edge = if (x / 97 + y / 61) % 2 == 0 { 0 } else { 50 };
        Rgb([x * 199 / width, y * 199 / height, 99].map(|slope| (slope + edge) as u8))
    });
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
    let mut exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(&image, width, height, image::ExtendedColorType::Rgb8).unwrap();
    bytes.into_inner()
}

#[test]
fn a_photo_is_reduced_as_far_as_it_need_not_be_enlarged() {
    let check = |width, height, orientation, divisor| {
        let bytes = jpeg(width, height, orientation);
        let (whole, reduced) = (decode(&bytes, &LIMITS).unwrap(), reduced(&bytes));
        let expected = (whole.width() / divisor, whole.height() / divisor);
        let found = (reduced.width(), reduced.height());
        assert_eq!(found, expected, "{width} x {height}, orientation {orientation}");
        let difference = difference(&whole, &reduced);
        assert!(difference < 1.5, "{difference} at {width} x {height}, orientation {orientation}");
    };
    for orientation in 1..=8 {
        check(1920, 1080, orientation, 4);
    }
    check(1024, 1024, 1, 4);
    check(1020, 1020, 1, 1);
    check(2048, 2048, 1, 8);
    check(4000, 2052, 1, 4);
    check(1922, 1080, 1, 1);
    check(640, 480, 1, 1);
}

/// Full-HD photos of all kinds made of `photos` by `reduced.py`.
fn full_hd(python: &Path, folder: &Path, photos: &[PathBuf]) -> Vec<(String, Vec<u8>)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reduced.py");
    let status = Command::new(python).arg(script).arg(folder).args(photos).status();
    assert!(status.unwrap().success(), "{python:?} tests/reduced.py");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut photos: Vec<_> = entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect();
    photos.sort();
    photos
}

#[test]
fn every_ordinary_kind_of_jpeg_is_reduced_and_looks_like_the_whole() {
    let Some(python) = python("numpy, PIL") else { return };
    let folder = tempfile::tempdir().unwrap();
    let photo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample/photos/coffee.jpg");
    let photos = full_hd(&python, folder.path(), &[photo]);
    assert_eq!(photos.len(), 7);
    for (name, bytes) in photos {
        let (whole, reduced) = (decode(&bytes, &LIMITS).unwrap(), reduced(&bytes));
        let ordinary = !name.contains("progressive");
        assert_eq!((whole.width(), reduced.width() == 480), (1920, ordinary), "{name}");
        let difference = difference(&whole, &reduced);
        println!("{name}: mean difference {difference:.3} of 255");
        assert!(difference < 1.5, "{name}: {difference}");
    }
}

#[test]
fn predictions_are_those_of_the_whole() {
    let (Some(python), Some(reference)) = (python("numpy, PIL"), reference()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let photos = reference_photos(&reference, "evaluation", 5);
    let photos = full_hd(&python, folder.path(), &photos);
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample");
    let set = ModelSet::open(&sample).unwrap();
    let variant = set.variant("baseline").unwrap();
    let model = Model::load(&set, variant, &Engine::new(0)).unwrap();
    let best = |photo: &Photo| {
        let logits = model.infer(&to_input(photo, SIDE, &set.manifest.preprocess)).unwrap();
        (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
    };
    let count = photos.len();
    let same = photos.iter().filter(|(_, bytes)| {
        let (whole, reduced) = (decode(bytes, &LIMITS).unwrap(), reduced(bytes));
        best(&whole) == best(&reduced)
    });
    let same = same.count();
    println!("the same class for {same} of {count} photos");
    assert!(same * 100 >= count * 99, "{same} of {count}");
}
