//! Which part of a photo the network sees, and how that becomes its square.
//!
//! Owns turning, cutting and resizing. No copy of the photo is made: what was asked of the turned
//! photo is looked up in the one that lies there, and only the small result is turned.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};

use super::Photo;
use crate::config::{self, Fit, Region};
use crate::manifest::Preprocess;

/// What is done to each photo after it was decoded and turned upright: a turn, then a cut, then what
/// makes it square. The default is what the network was trained with: all of the photo, its middle
/// cut out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Framing {
    quarters: u32,
    region: Option<Region>,
    fit: Fit,
}

impl Default for Framing {
    fn default() -> Self {
        Self { quarters: 0, region: None, fit: Fit::Crop }
    }
}

impl Framing {
    /// The framing that is configured.
    pub fn new(source: &config::Source) -> Self {
        let quarters = u32::from(source.rotate) / 90;
        Self { quarters, region: source.region(), fit: source.fit }
    }

    /// The network's input for `photo`: NCHW, 1 x 3 x `side` x `side`, RGB, normalised.
    ///
    /// Resizing is bilinear with antialiasing as Pillow does it, horizontally first and rounded in
    /// between; then (value / 255 - mean) / std for each channel. A region is cut out first, at whole
    /// pixels; what lies outside it has no influence.
    ///
    /// - [`Fit::Crop`] is torchvision's rule for its ImageNet weights (`transforms.Resize`,
    ///   `CenterCrop`, `ToTensor`, `Normalize` on a PIL image): the shorter side becomes
    ///   `rule.resize * side`, the longer one keeps the ratio, truncated; the centre is cut out.
    ///   Only what the crop shows is resized, so the shape of the photo does not matter for the cost.
    /// - [`Fit::Squash`] is `image.resize((side, side))`.
    /// - [`Fit::Letterbox`] is `ImageOps.pad`: the longer side becomes `side`; the bars have the
    ///   network's mean colour, which is 0 once it is normalised.
    ///
    /// A quarter turn gives what turning the photo before would give; a half turn, and the mirror
    /// image in a three-quarter turn, may differ from that by 1 of 255 where a value is rounded.
    pub fn to_input(&self, photo: &Photo, side: usize, rule: &Preprocess) -> Vec<f32> {
        let framed = self.picture(photo, side, rule.resize);
        let mut input = vec![0.0; 3 * side * side];
        for (channel, plane) in input.chunks_exact_mut(side * side).enumerate() {
            let (mean, std) = (rule.mean[channel], rule.std[channel]);
            let value = |value| (value as f32 / 255.0 - mean) / std;
            let values: [f32; 256] = std::array::from_fn(value);
            let lines = plane.chunks_exact_mut(side).skip(bar(side - framed.height));
            for (line, pixels) in lines.zip(framed.pixels.chunks_exact(framed.width)) {
                let left = bar(side - framed.width);
                for (output, pixel) in line[left..].iter_mut().zip(pixels) {
                    *output = values[usize::from(pixel[channel])];
                }
            }
        }
        input
    }

    /// The photo as it is looked at, in all its pixels: turned, and of it the region, before that is made
    /// square.
    pub fn cut(&self, photo: &Photo) -> Photo {
        let (width, height) = match self.quarters % 2 {
            0 => (photo.width, photo.height),
            _ => (photo.height, photo.width),
        };
        let (left, top, width, height) = self.region_of(width, height);
        let mut rgb = Vec::with_capacity(3 * width as usize * height as usize);
        for y in top..top + height {
            for x in left..left + width {
                let (x, y) = match self.quarters % 4 {
                    0 => (x, y),
                    1 => (y, photo.height - 1 - x),
                    2 => (photo.width - 1 - x, photo.height - 1 - y),
                    _ => (photo.width - 1 - y, x),
                };
                let at = 3 * (y as usize * photo.width as usize + x as usize);
                rgb.extend_from_slice(&photo.rgb[at..at + 3]);
            }
        }
        Photo::new(width, height, rgb)
    }

    /// Left, top, width and height of the region in a turned photo.
    fn region_of(&self, width: u32, height: u32) -> (u32, u32, u32, u32) {
        let whole = Region { left: 0.0, top: 0.0, width: 1.0, height: 1.0 };
        let region = self.region.unwrap_or(whole);
        let (left, width) = pixels(region.left, region.width, width);
        let (top, height) = pixels(region.top, region.height, height);
        (left, top, width, height)
    }

    /// What the network sees, in `side` x `side` pixels or less, without the bars.
    pub(super) fn picture(&self, photo: &Photo, side: usize, resize: f64) -> Picture {
        let side = u32::try_from(side).expect("input sides are small");
        let mut axes = self.axes((photo.width, photo.height), side, resize);
        let whole = [photo.width, photo.height];
        match self.quarters % 4 {
            0 => {}
            1 => axes = [axes[1], axes[0].mirrored(whole[1])],
            2 => axes = [axes[0].mirrored(whole[0]), axes[1].mirrored(whole[1])],
            _ => axes = [axes[1].mirrored(whole[0]), axes[0]],
        }
        let mut picture = resized(photo, axes, self.quarters % 2 == 1);
        for _ in 0..self.quarters % 4 {
            picture = picture.turned();
        }
        picture
    }

    /// What becomes of the width and of the height of a photo once it is turned.
    fn axes(&self, (width, height): (u32, u32), side: u32, resize: f64) -> [Axis; 2] {
        let (width, height) = match self.quarters % 2 {
            0 => (width, height),
            _ => (height, width),
        };
        let (left, top, width, height) = self.region_of(width, height);
        let all = |size| Span { start: 0.0, length: f64::from(size) };
        let ([across, down], (columns, rows)) = match self.fit {
            Fit::Crop => (spans(width, height, side, resize), (side, side)),
            Fit::Squash => ([all(width), all(height)], (side, side)),
            Fit::Letterbox => ([all(width), all(height)], contained(width, height, side)),
        };
        [
            Axis { from: left, size: width, span: across, output: columns },
            Axis { from: top, size: height, span: down, output: rows },
        ]
    }
}

/// A small picture, rows from the top.
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// Turned by 90 degrees, clockwise.
    fn turned(&self) -> Self {
        let columns = 0..self.width;
        let column = |x| (0..self.height).rev().map(move |y| self.pixels[y * self.width + x]);
        Self { width: self.height, height: self.width, pixels: columns.flat_map(column).collect() }
    }
}

/// What becomes of one axis of a photo, in its pixels.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// The region's first pixel, and how many it has.
    from: u32,
    size: u32,
    /// What is shown of the region, counted from its start.
    span: Span,
    /// How many pixels that becomes.
    output: u32,
}

impl Axis {
    /// The same seen from the other end of an axis of `whole` pixels.
    fn mirrored(self, whole: u32) -> Self {
        let Span { start, length } = self.span;
        let start = (f64::from(self.size) - start - length).max(0.0);
        let length = length.min(f64::from(self.size) - start);
        let from = whole - self.from - self.size;
        Self { from, span: Span { start, length }, ..self }
    }

    /// The pixels of the region that have an influence: the first one and how many.
    fn reach(&self) -> (u32, u32) {
        let Span { start, length } = self.span;
        let reach = (length / f64::from(self.output)).max(1.0);
        let first = (start - reach).floor().max(0.0) as u32;
        let last = ((start + length + reach).ceil() as u32).min(self.size);
        (first, last - first)
    }
}

/// One pass for each axis, rounded to 8 bits in between: `down_first` if the photo lies on its side,
/// because Pillow's first pass goes across; fast_image_resize alone would always go down first.
fn resized(photo: &Photo, [across, down]: [Axis; 2], down_first: bool) -> Picture {
    const FITS: &str = "what is shown lies inside the photo";
    let source = TypedImageRef::<U8x3>::from_buffer(photo.width, photo.height, &photo.rgb);
    let source = source.expect(FITS);
    let (near, far) = if down_first { (down, across) } else { (across, down) };
    let (first, count) = far.reach();
    let part = |from, width, top, height| {
        TypedCroppedImage::from_ref(&source, from, top, width, height).expect(FITS)
    };
    let skipped =
        Axis { span: Span { start: far.span.start - f64::from(first), ..far.span }, ..far };
    let output = match down_first {
        false => {
            let part = part(across.from, across.size, down.from + first, count);
            pass(&pass(&part, Some(near), None), None, Some(skipped))
        }
        true => {
            let part = part(across.from + first, count, down.from, down.size);
            pass(&pass(&part, None, Some(near)), Some(skipped), None)
        }
    };
    Picture {
        width: across.output as usize,
        height: down.output as usize,
        pixels: output.pixels().iter().map(|pixel| pixel.0).collect(),
    }
}

/// Resizes one axis of an image, and leaves the other.
fn pass(
    image: &impl ImageView<Pixel = U8x3>,
    across: Option<Axis>,
    down: Option<Axis>,
) -> TypedImage<'static, U8x3> {
    let target = |axis: Option<Axis>, size: u32| match axis {
        Some(axis) => (axis.span, axis.output),
        None => (Span { start: 0.0, length: size.into() }, size),
    };
    let (x, width) = target(across, image.width());
    let (y, height) = target(down, image.height());
    let mut output = TypedImage::new(width, height);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .crop(x.start, y.start, x.length, y.length);
    let resized = Resizer::new().resize_typed(image, &mut output, &options);
    resized.expect("what is shown lies inside the image");
    output
}

/// A stretch of one axis, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: f64,
    length: f64,
}

/// The first pixel of a share of an axis of `size` pixels, and how many it has; at least one.
fn pixels(start: f64, length: f64, size: u32) -> (u32, u32) {
    let pixel = |share: f64| ((share * f64::from(size)).round_ties_even() as u32).min(size);
    let first = pixel(start).min(size - 1);
    (first, pixel(start + length).max(first + 1) - first)
}

/// The largest size of the same ratio within `side` x `side` (Pillow, `ImageOps.contain`).
fn contained(width: u32, height: u32, side: u32) -> (u32, u32) {
    let shorter = |short: u32, long: u32| {
        let exact = f64::from(short) / f64::from(long) * f64::from(side);
        (exact.round_ties_even() as u32).max(1)
    };
    match width > height {
        true => (side, shorter(height, width)),
        false => (shorter(width, height), side),
    }
}

/// The width of the left or upper one of two bars that fill `room` (Pillow, `ImageOps.pad`).
fn bar(room: usize) -> usize {
    (room as f64 / 2.0).round_ties_even() as usize
}

/// The part of the photo that the crop shows, horizontally and vertically.
fn spans(width: u32, height: u32, side: u32, resize: f64) -> [Span; 2] {
    let (resized_width, resized_height) = before_crop(width, height, side, resize);
    [(width, resized_width), (height, resized_height)].map(|(size, resized)| {
        let (size, side, resized) = (f64::from(size), f64::from(side), resized as f64);
        let offset = ((resized - side) / 2.0).round_ties_even();
        let start = offset * size / resized;
        let length = (side * size / resized).min(size - start);
        Span { start, length }
    })
}

/// Width and height before the crop (torchvision, `_compute_resized_output_size`). A rule below 1
/// counts as 1: there is no padding.
fn before_crop(width: u32, height: u32, side: u32, resize: f64) -> (u64, u64) {
    let short = ((f64::from(side) * resize).round_ties_even() as u64).max(side.into());
    let (shorter, longer) = (width.min(height), width.max(height));
    let long = short * u64::from(longer) / u64::from(shorter);
    if width <= height { (short, long) } else { (long, short) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_before_the_crop_are_torchvisions() {
        let check = |width, height, side, expected| {
            let found = before_crop(width, height, side, Preprocess::default().resize);
            assert_eq!(found, expected, "{width} x {height} for {side}");
        };
        check(256, 256, 224, (256, 256));
        check(100, 80, 224, (320, 256));
        check(500, 333, 224, (384, 256));
        check(333, 500, 224, (256, 384));
        check(640, 481, 224, (340, 256));
        check(4000, 3000, 224, (341, 256));
        check(4000, 3000, 160, (244, 183));
        check(1, 1, 160, (183, 183));
        check(10_000, 2, 224, (1_280_000, 256));
        check(u32::MAX, 1, 224, (256 * u64::from(u32::MAX), 256));
    }

    #[test]
    fn crop_offsets_round_half_to_even() {
        let check = |size, side, offset| {
            let [x, _] = spans(size, side, side, 1.0);
            assert_eq!((x.start, x.length), (offset, f64::from(side)), "{size}");
        };
        check(225, 224, 0.0);
        check(226, 224, 1.0);
        check(227, 224, 2.0);
        check(229, 224, 2.0);
        check(231, 224, 4.0);
    }

    #[test]
    fn input_is_planar_rgb_and_normalised() {
        let mut rgb = vec![0; 3 * 256 * 256];
        for (index, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&[(index % 256) as u8, (index / 256) as u8, 7]);
        }
        let rule = Preprocess::default();
        let input = Framing::default().to_input(&Photo::new(256, 256, rgb), 224, &rule);
        assert_eq!(input.len(), 3 * 224 * 224);
        for (index, value) in input.iter().enumerate() {
            let (channel, y, x) = (index / (224 * 224), index / 224 % 224, index % 224);
            let pixel = [x + 16, y + 16, 7][channel] as f32;
            let expected = (pixel / 255.0 - rule.mean[channel]) / rule.std[channel];
            assert_eq!(*value, expected, "channel {channel}, row {y}, column {x}");
        }
    }

    const FITS: [Fit; 3] = [Fit::Crop, Fit::Squash, Fit::Letterbox];

    #[test]
    fn any_shape_of_photo_gives_an_input() {
        let rule = Preprocess { resize: 256.0 / 224.0, mean: [0.0; 3], std: [1.0; 3] };
        let check = |width: u32, height: u32, side: usize| {
            let rgb = [51, 102, 204].repeat((width * height) as usize);
            let photo = Photo::new(width, height, rgb);
            let tiny = Region { left: 0.7, top: 0.3, width: 1e-9, height: 0.7 };
            for (quarters, region) in [(0, None), (1, Some(tiny)), (2, None), (3, None)] {
                for fit in FITS {
                    let framing = Framing { quarters, region, fit };
                    let input = framing.to_input(&photo, side, &rule);
                    for (plane, expected) in input.chunks_exact(side * side).zip([0.2, 0.4, 0.8]) {
                        let shown = plane.iter().filter(|value| **value == expected).count();
                        let bars = plane.iter().filter(|value| **value == 0.0).count();
                        let sane = shown + bars == plane.len() && shown >= side;
                        let all = fit == Fit::Letterbox || bars == 0;
                        assert!(sane && all, "{width} x {height} for {side}, {framing:?}");
                    }
                }
            }
        };
        check(1, 1, 224);
        check(1, 2, 160);
        check(3, 1, 1);
        check(10_000, 2, 224);
        check(2, 10_000, 160);
        check(100_000, 1, 224);
        check(1, 100_000, 224);
        check(223, 225, 224);
    }

    #[test]
    fn regions_are_whole_pixels_inside() {
        let check = |start, length, size, expected| {
            assert_eq!(pixels(start, length, size), expected, "{start} {length} of {size}");
        };
        check(0.0, 1.0, 640, (0, 640));
        check(0.25, 0.5, 640, (160, 320));
        check(0.5, 0.5, 3, (2, 1));
        check(0.999, 1e-9, 10, (9, 1));
        check(0.3, 1e-9, 1, (0, 1));
        check(0.9, 0.1, 7, (6, 1));
    }

    /// Noise, of which no turn or cut leaves the same.
    fn noise(width: u32, height: u32) -> Photo {
        let mut state = width * 65_537 + height;
        let rgb = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        Photo::new(width, height, rgb.take((3 * width * height) as usize).collect())
    }

    /// The photo turned clockwise, pixel by pixel.
    fn turned(photo: &Photo, quarters: u32) -> Photo {
        (0..quarters).fold(photo.clone(), |photo, _| {
            let (width, height) = (photo.width, photo.height);
            let at = |x: u32, y: u32| photo.rgb[(3 * (y * width + x)) as usize..][..3].to_vec();
            let rows = (0..width).map(|x| (0..height).rev().flat_map(move |y| at(x, y)));
            Photo::new(height, width, rows.flatten().collect())
        })
    }

    #[test]
    fn turning_the_result_is_turning_the_photo() {
        let region = Some(Region { left: 0.1, top: 0.25, width: 0.6, height: 0.7 });
        for (width, height) in [(64, 64), (301, 200), (90, 333), (33, 21), (7, 500)] {
            let photo = noise(width, height);
            for (region, fit) in [None, region].into_iter().flat_map(|r| FITS.map(|fit| (r, fit))) {
                for quarters in 0..4 {
                    let framing = Framing { quarters, region, fit };
                    let found = framing.picture(&photo, 32, 8.0 / 7.0);
                    let plain = Framing { quarters: 0, ..framing };
                    let expected = plain.picture(&turned(&photo, quarters), 32, 8.0 / 7.0);
                    assert_eq!((found.width, found.height), (expected.width, expected.height));
                    let pairs = found.pixels.iter().zip(&expected.pixels);
                    let differences = pairs.flat_map(|(a, b)| (0..3).map(|i| a[i].abs_diff(b[i])));
                    let worst = differences.max().unwrap();
                    assert!(worst <= 1, "{worst} at {width} x {height}, {framing:?}");
                }
            }
        }
    }

    #[test]
    fn a_cut_is_the_region_of_the_turned_photo() {
        let region = Some(Region { left: 0.1, top: 0.25, width: 0.6, height: 0.7 });
        for (width, height) in [(1, 1), (64, 64), (33, 21), (7, 50)] {
            let photo = noise(width, height);
            for (quarters, region) in (0..4).flat_map(|turn| [(turn, None), (turn, region)]) {
                let framing = Framing { quarters, region, fit: Fit::Crop };
                let turned = turned(&photo, quarters);
                let (left, top, width, height) = framing.region_of(turned.width, turned.height);
                let rows = turned.rgb.chunks_exact(3 * turned.width as usize);
                let rows = rows.skip(top as usize).take(height as usize);
                let part = 3 * left as usize..3 * (left + width) as usize;
                let expected = rows.flat_map(|row| row[part.clone()].to_vec()).collect();
                let expected = Photo::new(width, height, expected);
                assert_eq!(framing.cut(&photo), expected, "{framing:?}");
                let whole = Framing { quarters: 0, region: None, ..framing };
                let (found, expected) =
                    (framing.picture(&photo, 16, 1.0), whole.picture(&expected, 16, 1.0));
                let pairs = found.pixels.iter().zip(&expected.pixels);
                let near = |(a, b): (&[u8; 3], &[u8; 3])| (0..3).all(|i| a[i].abs_diff(b[i]) <= 1);
                assert!(pairs.into_iter().all(near), "{framing:?}");
            }
        }
    }

    #[test]
    fn what_lies_outside_a_region_has_no_influence() {
        let region = Some(Region { left: 0.25, top: 0.5, width: 0.5, height: 0.25 });
        let inside = noise(100, 100);
        let mut framed = noise(200, 400);
        for (row, pixels) in inside.rgb.chunks_exact(300).enumerate() {
            framed.rgb[(200 + row) * 600 + 150..][..300].copy_from_slice(pixels);
        }
        for fit in FITS {
            let framing = Framing { quarters: 0, region, fit };
            let whole = Framing { region: None, ..framing };
            let found = framing.picture(&framed, 32, 8.0 / 7.0);
            assert_eq!(found.pixels, whole.picture(&inside, 32, 8.0 / 7.0).pixels, "{fit:?}");
        }
    }
}
