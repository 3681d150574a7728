//! Photos as files again: a JPEG to look at, a PNG that loses nothing.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{ImageBuffer, ImageFormat, Rgb};

use super::Photo;

/// The longest side of a picture to look at, in pixels.
const LONGEST: u32 = 640;

/// A picture whose longest side is smaller than this is no use.
const SHORTEST: u32 = 64;

/// The photo as a JPEG of at most `most` bytes: made coarser, then smaller until it fits. Nothing if that
/// would leave nothing to see.
pub fn to_jpeg(photo: &Photo, most: usize) -> Option<Vec<u8>> {
    let longest = photo.width.max(photo.height);
    let mut side = longest.min(LONGEST);
    while side >= SHORTEST.min(longest) {
        let scaled =
            |length: u32| (u64::from(length) * u64::from(side) / u64::from(longest)).max(1);
        let [width, height] = [photo.width, photo.height].map(|length| scaled(length) as u32);
        let image = imageops::resize(&image(photo), width, height, FilterType::Triangle);
        for quality in [80, 60, 40] {
            let mut jpeg = Vec::new();
            JpegEncoder::new_with_quality(&mut jpeg, quality).encode_image(&image).ok()?;
            if jpeg.len() <= most {
                return Some(jpeg);
            }
        }
        side = side * 2 / 3;
    }
    None
}

/// The photo as a PNG.
///
/// # Panics
/// Never: memory takes whatever is written.
pub fn to_png(photo: &Photo) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    image(photo).write_to(&mut png, ImageFormat::Png).expect("memory takes all");
    png.into_inner()
}

fn image(photo: &Photo) -> ImageBuffer<Rgb<u8>, &[u8]> {
    let (width, height) = (photo.width, photo.height);
    ImageBuffer::from_raw(width, height, photo.rgb()).expect("as many pixels as the size says")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::{Limits, decode};

    /// Noise, which compresses badly.
    fn photo(width: u32, height: u32) -> Photo {
        let mut random = fastrand::Rng::with_seed(1);
        let rgb = (0..width * height * 3).map(|_| random.u8(..)).collect();
        Photo::new(width, height, rgb)
    }

    #[test]
    fn a_png_loses_nothing() {
        let photo = photo(37, 21);
        assert_eq!(decode(&to_png(&photo), &Limits::within(1 << 24)).unwrap(), photo);
    }

    #[test]
    fn a_jpeg_keeps_its_bound_and_its_proportions() {
        let check = |width, height, most, expected: Option<(u32, u32)>| {
            let jpeg = to_jpeg(&photo(width, height), most);
            let size = jpeg.map(|jpeg| {
                assert!(jpeg.len() <= most, "{} bytes", jpeg.len());
                let photo = decode(&jpeg, &Limits::within(1 << 24)).unwrap();
                (photo.width(), photo.height())
            });
            assert_eq!(size, expected, "{width} x {height} in {most} bytes");
        };
        check(320, 240, 1 << 20, Some((320, 240)));
        check(1280, 960, 1 << 20, Some((640, 480)));
        check(1280, 2, 1 << 20, Some((640, 1)));
        check(1, 1, 1 << 20, Some((1, 1)));
        check(640, 480, 200, None);
        let small = to_jpeg(&photo(640, 480), 20_000).unwrap();
        assert!(small.len() > 5_000, "{} bytes", small.len());
    }
}
