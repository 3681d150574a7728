//! Preprocessing against a witness: torchvision's rule and other framings as Pillow computes them
//! (`preprocess.py`), and what a photo may cost in memory.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::witness::{python, reference, reference_photos};
use image::{ImageFormat, Rgb, RgbImage};
use vggd::config::Config;
use vggd::manifest::Preprocess;
use vggd::preprocess::{DecodeError, Framing, Limits, decode};

/// What the witness imports.
const MODULES: &str = "numpy, PIL";

const LIMITS: Limits = Limits { max_pixels: 20_000_000 };

#[test]
fn input_equals_torchvisions() {
    let Some(python) = python(MODULES) else { return };
    let folder = tempfile::tempdir().unwrap();
    let sizes = [(100, 80), (101, 77), (224, 224), (255, 257), (333, 500), (1023, 767)];
    for (width, height) in sizes {
        let path = format!("photo-{width}x{height}.png");
        let photo = photo(width, height);
        photo.save(folder.path().join(path)).unwrap();
        let path = format!("rust-{width}x{height}.jpg");
        photo.save(folder.path().join(path)).unwrap();
    }
    for (width, height) in [(4000, 3000), (3001, 3999), (3999, 23), (17, 2001), (1, 1)] {
        let path = format!("plain-{width}x{height}.png");
        photo(width, height).save(folder.path().join(path)).unwrap();
    }
    compare(&python, folder.path(), (0, "", "crop"));
}

#[test]
fn framed_input_equals_pillows() {
    let Some(python) = python(MODULES) else { return };
    let framings = [
        (0, "", "squash"),
        (0, "", "letterbox"),
        (90, "", "letterbox"),
        (90, "0.1 0.25 0.6 0.7", "crop"),
        (180, "0.25 0 0.5 1", "letterbox"),
        (270, "0.5 0.333 0.5 0.667", "squash"),
    ];
    for framing in framings {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [(100, 80), (101, 77), (640, 481), (1023, 767), (333, 500), (3999, 23)];
        for (width, height) in sizes {
            let path = format!("plain-{width}x{height}.png");
            photo(width, height).save(folder.path().join(path)).unwrap();
        }
        compare(&python, folder.path(), framing);
    }
}

#[test]
fn input_of_real_photos_equals_torchvisions() {
    let (Some(python), Some(reference)) = (python(MODULES), reference()) else { return };
    let folder = tempfile::tempdir().unwrap();
    for name in ["calibration", "evaluation"] {
        for path in reference_photos(&reference, name, 25) {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    compare(&python, folder.path(), (0, "", "crop"));
}

/// The framing that the configuration gives.
fn framing((rotate, region, fit): (u16, &str, &str)) -> Framing {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[source]\nrotate = {rotate}\nregion = '{region}'\nfit = '{fit}'\n");
    fs::write(&file, text).unwrap();
    Framing::new(&Config::load(Some(file.path())).unwrap().source)
}

fn compare(python: &Path, folder: &Path, how: (u16, &str, &str)) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preprocess.py");
    let mut command = Command::new(python);
    command.arg(script).arg(folder).args([&how.0.to_string(), how.1, how.2, "224", "160"]);
    assert!(command.status().unwrap().success(), "{python:?} tests/preprocess.py");
    let framing = framing(how);

    let rule = Preprocess::default();
    let (mut worst_lossless, mut worst_lossy, mut count) = (0.0f64, 0.0f64, 0);
    let mut wrong = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".f32") {
            continue;
        }
        let photo = decode(&fs::read(&path).unwrap(), &LIMITS);
        let photo = photo.unwrap_or_else(|error| panic!("{name}: {error}"));
        for side in [224, 160] {
            let found = framing.to_input(&photo, side, &rule);
            let expected = fs::read(folder.join(format!("{name}.{side}.f32"))).unwrap();
            let expected = expected.as_chunks::<4>().0.iter();
            assert_eq!(found.len(), expected.len(), "{name}");
            let (mut max, mut sum) = (0.0f64, 0.0);
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                let std = f64::from(rule.std[index / (side * side)]);
                let expected = f64::from(f32::from_le_bytes(*expected));
                let difference = (f64::from(*found) - expected).abs() * std * 255.0;
                max = max.max(difference);
                sum += difference;
            }
            let mean = sum / found.len() as f64;
            println!("{name} at {side}, {how:?}: max {max:.3}, mean {mean:.4} of 255");
            let lossy = name.ends_with(".jpg") || name.contains("lossy");
            if lossy {
                worst_lossy = worst_lossy.max(mean);
            } else {
                worst_lossless = worst_lossless.max(max);
            }
            if if lossy { mean > 0.5 } else { max > 1.001 } {
                wrong.push(format!("{name} at {side}, {how:?}: max {max:.3}, mean {mean:.4}"));
            }
            count += 1;
        }
    }
    println!("{count} inputs: lossless max {worst_lossless:.3}, lossy mean {worst_lossy:.4}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Slopes, edges and noise, the same each time.
fn photo(width: u32, height: u32) -> RgbImage {
    let mut state = width * 65_537 + height;
    RgbImage::from_fn(width, height, |x, y| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let slope = [x * 199 / width, y * 199 / height, (x + y) * 199 / (width + height)];
        let edge = if (x / 37 + y / 23) % 2 == 0 { 0 } else { 40 };
        let noise = state >> 28;
        Rgb(slope.map(|slope| (slope + edge + noise) as u8))
    })
}

/// Peak address space of this process in bytes: also what is allocated and never touched.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Runs the ignored test `name` of this file in a process of its own.
fn alone(name: &str) {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_huge_photo_costs_nothing() {
    alone("huge_photo");
}

#[test]
#[ignore = "measures its process: started by a_huge_photo_costs_nothing"]
fn huge_photo() {
    let mut png = Vec::new();
    RgbImage::new(1, 1).write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png).unwrap();
    png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let before = peak();
    let result = decode(&png, &LIMITS);
    let cost = peak() - before;
    assert!(matches!(result, Err(DecodeError::TooLarge { .. })), "{result:?}");
    assert!(cost < 1 << 20, "{cost} bytes");
}

#[test]
fn memory_stays_under_the_limit() {
    alone("dearest_photo");
}

#[test]
#[ignore = "measures its process: started by memory_stays_under_the_limit"]
fn dearest_photo() {
    let mut png = Vec::new();
    image::ImageBuffer::<image::Rgba<u16>, _>::new(3000, 2000)
        .write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png)
        .unwrap();
    // What making it took may not count as room for decoding it.
    let limits = Limits { max_pixels: 6_000_000 };
    let filler = vec![0u8; 256 << 20];
    let before = peak();
    let photo = decode(&png, &limits).unwrap();
    let cost = peak() - before;
    drop(filler);
    assert_eq!((photo.width(), photo.height()), (3000, 2000));
    println!("{cost} bytes, limit {}", limits.max_memory());
    assert!(cost <= limits.max_memory(), "{cost} bytes");
}
