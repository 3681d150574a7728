//! From the bytes of a photo to the network's input: [`decode`], then [`Framing::to_input`].
//!
//! Owns image formats, the limits on what a photo may cost, and how it is framed. Pure: it opens no file, reads no clock and knows nothing of variants or of where
//! photos come from.

mod container;
mod encode;
mod framing;
mod raw;
mod thumb;

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, RgbImage};
use thiserror::Error;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors as JpegError;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::manifest::Preprocess;
use container::Format;
pub use encode::{to_jpeg, to_png};
pub use framing::Framing;
pub use raw::{PixelFormat, Raw};
pub use thumb::Thumb;

/// What decoding one photo may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most pixels, width times height, that a photo may have. A photo with more is refused
    /// before anything is allocated for it.
    pub max_pixels: u64,
}

impl Limits {
    /// What a 16-bit RGBA PNG, a progressive CMYK JPEG or an animated WebP comes near; a baseline
    /// JPEG takes 3, or 6 when it has to be turned upright.
    const BYTES_PER_PIXEL: u64 = 12;
    const BYTES_BESIDES: u64 = 4 << 20;

    /// The limits that keep [`decode`] within `memory` bytes.
    pub fn within(memory: u64) -> Self {
        Self { max_pixels: memory.saturating_sub(Self::BYTES_BESIDES) / Self::BYTES_PER_PIXEL }
    }

    /// The most bytes that [`decode`] holds at once beside its input.
    pub fn max_memory(&self) -> u64 {
        self.max_pixels.saturating_mul(Self::BYTES_PER_PIXEL).saturating_add(Self::BYTES_BESIDES)
    }
}

/// Why a photo cannot be decoded. Trying again with the same bytes gives the same error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// There are no bytes: nothing was written.
    #[error("empty file")]
    Empty,
    /// The bytes start like none of the formats: it is not a photo.
    #[error("not a JPEG, PNG or WebP image")]
    NotAnImage,
    /// Sound, but in a form that is not supported: save it as an ordinary JPEG or PNG.
    #[error("unsupported image: {0}")]
    Unsupported(String),
    /// Cut off or corrupt, with what was found: copy it again.
    #[error("damaged image: {0}")]
    Damaged(String),
    /// Too many pixels: raise the limit or make the photo smaller.
    #[error("{width} x {height} pixels are more than the limit of {limit} pixels")]
    TooLarge {
        /// Width as the file states it.
        width: u32,
        /// Height as the file states it.
        height: u32,
        /// [`Limits::max_pixels`].
        limit: u64,
    },
}

/// A decoded photo, upright: 8-bit RGB, rows from the top, pixels interleaved, no padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Photo {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

impl Photo {
    /// A photo from pixels; `rgb` holds `height` rows of `width` RGB triples.
    ///
    /// # Panics
    /// If there are no pixels, or not as many as the size says.
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "{width} x {height} pixels");
        assert_eq!(rgb.len() as u64, u64::from(width) * u64::from(height) * 3);
        Self { width, height, rgb }
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The pixels, `height` rows of `width` RGB triples.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

impl std::fmt::Debug for Photo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Photo({} x {})", self.width, self.height)
    }
}

/// Decodes a JPEG, PNG or WebP, told apart by content, and turns it upright by its Exif
/// orientation.
///
/// Colours are those of Pillow's `convert("RGB")`: grey is repeated, a palette looked up, alpha
/// dropped without blending, colour profiles are ignored. 16-bit samples are scaled to 8 bits
/// (Pillow cuts 16-bit grey off at 255 instead). Of an animation it takes the first frame.
///
/// Strict where decoders are not: a file that does not reach its own end, and a JPEG whose
/// entropy-coded data cannot be read to the last row, are damaged, never half a photo.
///
/// # Errors
/// [`DecodeError`]; it never holds more than [`Limits::max_memory`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Photo, DecodeError> {
    let format = Format::of(bytes)?;
    let (width, height) = format.dimensions(bytes)?;
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(DecodeError::TooLarge { width, height, limit: limits.max_pixels });
    }
    format.check_whole(bytes)?;

    let (image, orientation) = match format {
        Format::Jpeg => decode_jpeg(bytes, (width, height))?,
        Format::Png => {
            let mut allowed = image::Limits::no_limits();
            allowed.max_alloc = Some(limits.max_memory());
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), allowed)?;
            decode_by_image(decoder, (width, height))?
        }
        Format::WebP => decode_by_image(WebPDecoder::new(Cursor::new(bytes))?, (width, height))?,
    };
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    Ok(Photo::new(image.width(), image.height(), image.into_raw()))
}

/// By zune-jpeg itself: crate image uses it too, but in its lenient mode, which fills what cannot
/// be read with grey.
fn decode_jpeg(bytes: &[u8], size: (u32, u32)) -> Result<(RgbImage, Orientation), DecodeError> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers()?;
    let found = decoder.info().map(|info| (info.width, info.height));
    check_size(found.map(|(width, height)| (width.into(), height.into())), size)?;

    let mut image = RgbImage::new(size.0, size.1);
    decoder.decode_into(&mut image)?;
    let orientation = orientation(decoder.exif().map(Vec::as_slice));
    Ok((image, orientation))
}

fn decode_by_image(
    mut decoder: impl ImageDecoder,
    size: (u32, u32),
) -> Result<(RgbImage, Orientation), DecodeError> {
    check_size(Some(decoder.dimensions()), size)?;
    let orientation = orientation(decoder.exif_metadata().ok().flatten().as_deref());
    let image = DynamicImage::from_decoder(decoder)?.into_rgb8();
    Ok((image, orientation))
}

/// The limit was checked on the container's size: a decoder that reads another has to be stopped.
fn check_size(found: Option<(u32, u32)>, stated: (u32, u32)) -> Result<(), DecodeError> {
    match found {
        Some(found) if found == stated => Ok(()),
        _ => Err(DecodeError::Damaged("states two sizes".to_owned())),
    }
}

fn orientation(exif: Option<&[u8]>) -> Orientation {
    exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

impl From<JpegError> for DecodeError {
    fn from(error: JpegError) -> Self {
        match error {
            JpegError::Unsupported(_) => Self::Unsupported(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<ImageError> for DecodeError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Unsupported(_) => Self::Unsupported(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// The network's input for `photo` as the network was trained: [`Framing::to_input`] of the default.
pub fn to_input(photo: &Photo, side: usize, rule: &Preprocess) -> Vec<f32> {
    Framing::default().to_input(photo, side, rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_pixels: 1 << 20 };

    /// Four blocks of 8 x 8: red, green / blue, white.
    fn quarters() -> RgbImage {
        RgbImage::from_fn(16, 16, |x, y| match (x < 8, y < 8) {
            (true, true) => image::Rgb([255, 0, 0]),
            (false, true) => image::Rgb([0, 255, 0]),
            (true, false) => image::Rgb([0, 0, 255]),
            (false, false) => image::Rgb([255, 255, 255]),
        })
    }

    fn exif(orientation: u8) -> Vec<u8> {
        let mut exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        exif
    }

    fn encode(format: Format, image: &RgbImage, exif: Option<Vec<u8>>) -> Vec<u8> {
        use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
        fn write(mut encoder: impl image::ImageEncoder, image: &RgbImage, exif: Option<Vec<u8>>) {
            if let Some(exif) = exif {
                encoder.set_exif_metadata(exif).unwrap();
            }
            let (width, height) = image.dimensions();
            let colour = image::ExtendedColorType::Rgb8;
            encoder.write_image(image, width, height, colour).unwrap();
        }
        let mut bytes = Vec::new();
        match format {
            Format::Jpeg => write(JpegEncoder::new_with_quality(&mut bytes, 95), image, exif),
            Format::Png => write(PngEncoder::new(&mut bytes), image, exif),
            Format::WebP => write(WebPEncoder::new_lossless(&mut bytes), image, exif),
        }
        bytes
    }

    const FORMATS: [Format; 3] = [Format::Jpeg, Format::Png, Format::WebP];

    #[test]
    fn exif_orientation_is_honoured() {
        let check = |orientation, expected: [char; 4]| {
            for format in FORMATS {
                let bytes = encode(format, &quarters(), Some(exif(orientation)));
                let photo = decode(&bytes, &LIMITS).unwrap();
                let found = [(4, 4), (12, 4), (4, 12), (12, 12)].map(|(x, y)| {
                    let pixel = &photo.rgb[(y * 16 + x) * 3..][..3];
                    match [pixel[0] > 127, pixel[1] > 127, pixel[2] > 127] {
                        [true, false, false] => 'r',
                        [false, true, false] => 'g',
                        [false, false, true] => 'b',
                        _ => 'w',
                    }
                });
                assert_eq!(found, expected, "orientation {orientation}, {format:?}");
            }
        };
        check(0, ['r', 'g', 'b', 'w']);
        check(1, ['r', 'g', 'b', 'w']);
        check(2, ['g', 'r', 'w', 'b']);
        check(3, ['w', 'b', 'g', 'r']);
        check(4, ['b', 'w', 'r', 'g']);
        check(5, ['r', 'b', 'g', 'w']);
        check(6, ['b', 'r', 'w', 'g']);
        check(7, ['w', 'g', 'b', 'r']);
        check(8, ['g', 'w', 'r', 'b']);
        check(9, ['r', 'g', 'b', 'w']);
    }

    #[test]
    fn orientation_swaps_width_and_height() {
        let bytes = encode(Format::Png, &RgbImage::new(5, 3), Some(exif(6)));
        let photo = decode(&bytes, &LIMITS).unwrap();
        assert_eq!((photo.width(), photo.height()), (3, 5));
    }

    /// A chunk of a PNG with its CRC (W3C PNG, annex D).
    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let crc = !kind.iter().chain(data).fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        });
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], kind, data, &crc.to_be_bytes()].concat()
    }

    /// A PNG of one row, its samples stored uncompressed after the filter byte.
    fn png(size: (u32, u32), depth: u8, colour: u8, extra: &[u8], row: &[u8]) -> Vec<u8> {
        let header = [&size.0.to_be_bytes()[..], &size.1.to_be_bytes(), &[depth, colour, 0, 0, 0]];
        let row = [&[0], row].concat();
        let length = row.len() as u16;
        let (mut low, mut high) = (1u32, 0u32);
        for byte in &row {
            low = (low + u32::from(*byte)) % 65521;
            high = (high + low) % 65521;
        }
        let stored = [&[0x78, 0x01, 1][..], &length.to_le_bytes(), &(!length).to_le_bytes(), &row];
        let check = (high << 16 | low).to_be_bytes();
        [
            b"\x89PNG\r\n\x1a\n".to_vec(),
            chunk(b"IHDR", &header.concat()),
            extra.to_vec(),
            chunk(b"IDAT", &[&stored.concat()[..], &check].concat()),
            chunk(b"IEND", &[]),
        ]
        .concat()
    }

    #[test]
    fn every_colour_type_becomes_rgb() {
        let check = |name: &str, bytes: &[u8], expected: &[u8]| {
            let photo = decode(bytes, &LIMITS).unwrap();
            assert_eq!(photo.rgb(), expected, "{name}");
        };
        let palette = chunk(b"PLTE", &[9, 8, 7, 1, 2, 3]);
        let transparent = chunk(b"tRNS", &[0, 128]);
        let one = (1, 1);
        check("1-bit grey", &png((2, 1), 1, 0, &[], &[0x40]), &[0, 0, 0, 255, 255, 255]);
        check("8-bit grey", &png(one, 8, 0, &[], &[77]), &[77; 3]);
        check("16-bit grey", &png(one, 16, 0, &[], &[200, 200]), &[200; 3]);
        check("8-bit RGB", &png(one, 8, 2, &[], &[1, 2, 3]), &[1, 2, 3]);
        check("16-bit RGB", &png(one, 16, 2, &[], &[1, 1, 2, 2, 3, 3]), &[1, 2, 3]);
        check("palette", &png(one, 8, 3, &palette, &[1]), &[1, 2, 3]);
        let extra = [palette, transparent].concat();
        check("transparent palette", &png(one, 8, 3, &extra, &[0]), &[9, 8, 7]);
        check("grey with alpha", &png(one, 8, 4, &[], &[77, 3]), &[77; 3]);
        check("16-bit grey with alpha", &png(one, 16, 4, &[], &[7, 7, 0, 0]), &[7; 3]);
        check("RGB with alpha", &png(one, 8, 6, &[], &[1, 2, 3, 0]), &[1, 2, 3]);
        let samples = [1, 1, 2, 2, 3, 3, 0, 9];
        check("16-bit RGB with alpha", &png(one, 16, 6, &[], &samples), &[1, 2, 3]);
    }

    #[test]
    fn no_part_of_a_file_passes_for_the_whole() {
        for format in FORMATS {
            let bytes = encode(format, &quarters(), Some(exif(1)));
            for end in 0..bytes.len() {
                let result = decode(&bytes[..end], &LIMITS);
                assert!(result.is_err(), "{format:?} cut to {end} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn what_follows_the_image_is_ignored() {
        for format in FORMATS {
            let bytes = encode(format, &quarters(), None);
            let padded = [&bytes[..], &[0xff, 0xd8, 0, 1, 2]].concat();
            assert_eq!(decode(&padded, &LIMITS), decode(&bytes, &LIMITS), "{format:?}");
        }
    }

    #[test]
    fn damage_is_told_apart() {
        use DecodeError::{Damaged, Empty, NotAnImage, Unsupported};
        let check = |name: &str, bytes: &[u8], expected: DecodeError| {
            let error = decode(bytes, &LIMITS).unwrap_err();
            let same = std::mem::discriminant(&error) == std::mem::discriminant(&expected);
            assert!(same && error.to_string().contains(&expected.to_string()), "{name}: {error}");
        };
        let damaged = |words: &str| Damaged(words.to_owned());
        let noise = RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y * 7) as u8; 3]));
        let [jpeg, png_file, webp] = FORMATS.map(|format| encode(format, &noise, None));
        let changed = |bytes: &[u8], at: usize, value: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        let find = |bytes: &[u8], what: &[u8]| {
            let found = bytes.windows(what.len()).position(|part| part == what);
            found.unwrap()
        };

        check("no bytes", b"", Empty);
        check("text", b"not a photo", NotAnImage);
        check("GIF", b"GIF89a\x01\0\x01\0\0\0\0;", NotAnImage);
        check("RIFF that is sound", b"RIFF\x04\0\0\0WAVE", NotAnImage);

        let middle = jpeg.len() / 2;
        let scan = find(&jpeg, b"\xff\xda");
        let frame = find(&jpeg, b"\xff\xc0");
        let end = "ends before its end-of-image marker";
        check("JPEG cut in half", &jpeg[..middle], damaged(end));
        check("JPEG without its last byte", &jpeg[..jpeg.len() - 1], damaged(end));
        let zeros = changed(&jpeg, middle, &vec![0; jpeg.len() - middle]);
        check("JPEG with zeros for its second half", &zeros, damaged(end));
        let size = "ends before its size is stated";
        check("JPEG cut in its header", &jpeg[..frame], damaged(size));
        check("JPEG of no pixels", &changed(&jpeg, frame + 5, &[0; 4]), damaged("0 x 0 pixels"));
        check("JPEG with a stray marker", &changed(&jpeg, middle, b"\xff\xc0\0\x02"), damaged(""));
        let ones = changed(&jpeg, scan + 14, &[0xff, 0].repeat(20));
        check("JPEG with a code that does not exist", &ones, damaged(""));
        for (name, at, value) in
            [("lossless JPEG", 1, 0xc3), ("arithmetic-coded JPEG", 1, 0xc9), ("12-bit JPEG", 4, 12)]
        {
            let bytes = changed(&jpeg, frame + at, &[value]);
            check(name, &bytes, Unsupported(name.to_owned()));
        }

        let end = "ends before its IEND chunk";
        let data = find(&png_file, b"IDAT");
        check("PNG cut in half", &png_file[..png_file.len() / 2], damaged(end));
        check("PNG with a wrong CRC", &changed(&png_file, data + 9, b"wrong"), damaged(""));
        check(
            "PNG with no data",
            &[&png_file[..data - 4], &chunk(b"IEND", &[])].concat(),
            damaged(""),
        );
        check("PNG with too little data", &png((9, 9), 8, 0, &[], &[0; 9]), damaged(""));
        check("PNG of no pixels", &png((0, 5), 8, 0, &[], &[]), damaged("0 x 5 pixels"));

        let length = (webp.len() as u32).to_le_bytes();
        check("WebP cut in half", &webp[..webp.len() / 2], damaged("ends before its RIFF length"));
        check(
            "WebP with a long chunk",
            &changed(&webp, 16, &length),
            damaged("a chunk is longer than the file"),
        );
        let zeros = changed(&webp, 30, &vec![0; webp.len() - 30]);
        check("WebP with zeros for data", &zeros, damaged(""));
    }

    /// A WebP with a canvas and one lossy frame, no data in either.
    fn webp(canvas: u32, frame: u16) -> Vec<u8> {
        let canvas = &(canvas - 1).to_le_bytes()[..3];
        let frame = frame.to_le_bytes();
        [
            b"RIFF\x28\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0",
            canvas,
            canvas,
            b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a",
            &frame,
            &frame,
        ]
        .concat()
    }

    #[test]
    fn too_many_pixels_are_refused_by_the_header_alone() {
        let check = |name: &str, bytes: &[u8], side| {
            let expected =
                DecodeError::TooLarge { width: side, height: side, limit: LIMITS.max_pixels };
            assert_eq!(decode(bytes, &LIMITS), Err(expected), "{name}");
        };
        check("JPEG", b"\xff\xd8\xff\xc0\0\x0b\x08\xea\x60\xea\x60\x01\0\0\0", 60_000);
        check("PNG", &png((60_000, 60_000), 8, 2, &[], &[]), 60_000);
        check("WebP canvas", &webp(60_000, 16), 60_000);
        let lossy = [b"RIFF\x16\0\0\0WEBP", &webp(1, 16_000)[30..]].concat();
        check("lossy WebP", &lossy, 16_000);
        let lossless = b"RIFF\x11\0\0\0WEBPVP8L\x05\0\0\0\x2f\xff\xff\xff\x0f\0";
        check("lossless WebP", lossless, 16_384);
        check("one pixel over", &png((1025, 1025), 8, 0, &[], &[]), 1025);
    }

    #[test]
    fn a_small_canvas_hides_no_large_frame() {
        let error = decode(&webp(16, 0x3fff), &LIMITS).unwrap_err();
        assert!(error.to_string().contains("larger than the canvas"), "{error}");
    }
}
