//! From the bytes of a full-HD JPEG to the network's input: what each step takes.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use vggd::manifest::Preprocess;
use vggd::preprocess::{Framing, Limits, Thumb, decode, to_input};

const SIDE: usize = 224;

/// Detail at every scale, a few hard edges and a camera's noise: compresses like a photo.
fn scene(width: u32, height: u32) -> RgbImage {
    let hash = |x: u32, y: u32, seed: u32| {
        let mut value = x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77) ^ seed;
        value = (value ^ value >> 15).wrapping_mul(0x2c1b_3c6d);
        value = (value ^ value >> 12).wrapping_mul(0x297a_2d39);
        (value >> 16) as f32 / 65_535.0 - 0.5
    };
    let smooth = |x: u32, y: u32, cell: u32, seed: u32| {
        let (left, top) = (x / cell, y / cell);
        let (across, down) = ((x % cell) as f32 / cell as f32, (y % cell) as f32 / cell as f32);
        let row = |y| hash(left, y, seed) * (1.0 - across) + hash(left + 1, y, seed) * across;
        row(top) * (1.0 - down) + row(top + 1) * down
    };
    RgbImage::from_fn(width, height, |x, y| {
        let octaves = (2..8).map(|octave| {
            let cell = 1 << octave;
            smooth(x, y, cell, octave) * cell as f32
        });
        let relief: f32 = octaves.sum();
        let edge = if smooth(x, y, 211, 9) > 0.1 { 40.0 } else { 0.0 };
        let light = 110.0 + relief + edge + 12.0 * hash(x, y, 1);
        let tint = 60.0 * smooth(x, y, 127, 5);
        Rgb([light + tint, light, light - tint].map(|value| value.clamp(0.0, 255.0) as u8))
    })
}

fn steps(criterion: &mut Criterion) {
    let scene = scene(1920, 1080);
    let limits = Limits::within(64 << 20);
    let rule = Preprocess::default();
    for quality in [85, 95] {
        let mut bytes = Vec::new();
        scene.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality)).unwrap();
        println!("1920 x 1080, quality {quality}: {} bytes", bytes.len());
        let name = |step: &str| format!("full HD, quality {quality}: {step}");
        criterion.bench_function(&name("decode"), |bencher| {
            bencher.iter(|| decode(black_box(&bytes), &limits).unwrap());
        });
        criterion.bench_function(&name("decode and to_input"), |bencher| {
            bencher.iter(|| {
                let photo = decode(black_box(&bytes), &limits).unwrap();
                to_input(&photo, SIDE, &rule)
            });
        });
    }
    let mut bytes = Vec::new();
    scene.write_with_encoder(JpegEncoder::new(&mut bytes)).unwrap();
    let photo = decode(&bytes, &limits).unwrap();
    criterion.bench_function("full HD: to_input", |bencher| {
        bencher.iter(|| to_input(black_box(&photo), SIDE, &rule));
    });
    criterion.bench_function("full HD: thumb", |bencher| {
        bencher.iter(|| Thumb::new(black_box(&photo), &Framing::default(), rule.resize));
    });
}

criterion_group!(benches, steps);
criterion_main!(benches);
