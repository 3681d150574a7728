//! What strangers' files may do to the decoder: photos with bytes changed, cut out and put in.

use std::fs;
use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, Rgb, RgbImage};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use vggd::preprocess::{Limits, decode};

/// Small, so that a file that promises more is soon over it.
const LIMITS: Limits = Limits { max_pixels: 1 << 16 };

/// At least this many; PROPTEST_CASES asks for more.
const CASES: u32 = 4096;

/// One change of a file.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

impl Mutation {
    fn strategy() -> impl Strategy<Value = Self> {
        let telling = prop_oneof![Just(0), Just(0xff), Just(0x7f), Just(0xd9), any::<u8>()];
        prop_oneof![
            8 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            8 => (any::<Index>(), telling).prop_map(|(at, value)| Self::Set(at, value)),
            1 => any::<Index>().prop_map(Self::Cut),
            2 => (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, b)| Self::Insert(at, b)),
            2 => (any::<Index>(), 1..40usize).prop_map(|(at, count)| Self::Remove(at, count)),
            2 => (any::<Index>(), 1..40usize).prop_map(|(at, count)| Self::Repeat(at, count)),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        let part = |at: &Index, count| at.index(length)..length.min(at.index(length) + count);
        match self {
            Self::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Self::Set(at, value) => bytes[at.index(length)] = *value,
            Self::Cut(at) => bytes.truncate(at.index(length)),
            Self::Insert(at, more) => {
                bytes.splice(at.index(length)..at.index(length), more.iter().copied());
            }
            Self::Remove(at, count) => drop(bytes.drain(part(at, *count))),
            Self::Repeat(at, count) => {
                let more = bytes[part(at, *count)].to_vec();
                bytes.splice(at.index(length)..at.index(length), more);
            }
        }
    }
}

/// One small photo of each format and kind that can be made here.
fn photos() -> Vec<Vec<u8>> {
    let colour = RgbImage::from_fn(37, 21, |x, y| Rgb([x * 7, y * 11, x * y].map(|v| v as u8)));
    let grey = image::DynamicImage::ImageRgb8(colour.clone()).to_luma8();
    let deep = image::DynamicImage::ImageRgb8(colour.clone()).to_rgba16();
    let mut photos = Vec::new();
    let mut add = |write: &dyn Fn(&mut Cursor<Vec<u8>>) -> image::ImageResult<()>| {
        let mut bytes = Cursor::new(Vec::new());
        write(&mut bytes).unwrap();
        photos.push(bytes.into_inner());
    };
    add(&|bytes| colour.write_with_encoder(JpegEncoder::new_with_quality(bytes, 90)));
    add(&|bytes| grey.write_with_encoder(JpegEncoder::new_with_quality(bytes, 40)));
    add(&|bytes| colour.write_to(bytes, ImageFormat::Png));
    add(&|bytes| grey.write_to(bytes, ImageFormat::Png));
    add(&|bytes| deep.write_to(bytes, ImageFormat::Png));
    add(&|bytes| colour.write_to(bytes, ImageFormat::WebP));
    photos
}

/// Peak address space of this process in bytes: also what is allocated and never touched.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// The only test of this program: it measures its process.
#[test]
fn a_mutated_photo_is_decoded_or_refused_the_same_each_time_and_within_the_limit() {
    let photos = photos();
    assert!(photos.iter().all(|photo| decode(photo, &LIMITS).is_ok()));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = config.cases.max(CASES);
    let mut runner = TestRunner::new(ProptestConfig { cases, ..config });
    let (decoded, refused) = (std::cell::Cell::new(0u32), std::cell::Cell::new(0u32));
    let before = peak();
    let result =
        runner.run(&(any::<Index>(), vec(Mutation::strategy(), 1..6)), |(which, mutations)| {
            let mut bytes = which.get(&photos).clone();
            mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
            let result = decode(&bytes, &LIMITS);
            prop_assert_eq!(&result, &decode(&bytes, &LIMITS));
            match result {
                Ok(photo) => {
                    let pixels = u64::from(photo.width()) * u64::from(photo.height());
                    prop_assert!(pixels <= LIMITS.max_pixels);
                    decoded.set(decoded.get() + 1);
                }
                Err(_) => refused.set(refused.get() + 1),
            }
            Ok(())
        });
    result.unwrap_or_else(|error| panic!("{error}"));
    let cost = peak() - before;
    let (decoded, refused) = (decoded.get(), refused.get());
    println!("{decoded} decoded, {refused} refused, {cost} bytes, limit {}", LIMITS.max_memory());
    assert!(decoded > cases / 50 && refused > cases / 50, "{decoded} decoded, {refused} refused");
    assert!(cost <= LIMITS.max_memory(), "{cost} bytes");
}
