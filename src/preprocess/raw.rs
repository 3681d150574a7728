//! Bare pixels as cameras give them, and their way to RGB.
//!
//! Owns the layouts and the arithmetic of colours; it knows nothing of cameras.

use super::{DecodeError, Photo};

/// Bare pixels, rows from the top without padding; what follows the last row is ignored.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw {
    /// What the bytes mean.
    pub format: PixelFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Arrangement of bare pixels, 8 bits a sample. Colours with brightness apart are those of
/// ITU-R BT.601 in limited range: brightness from 16 to 235, colour differences from 16 to 240
/// around 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Y, Cb, Y, Cr for each two pixels of a row; the last two have a pixel to spare where the width
    /// is odd.
    Yuyv,
    /// Y of each pixel, then Cb and Cr of each two by two; those at the right and lower edges are
    /// shared by fewer where a side is odd.
    Nv12,
    /// Red, green, blue.
    Rgb,
    /// Brightness alone, in full range.
    Grey,
}

impl PixelFormat {
    /// Bytes of a line and how many lines there are, of each kind of lines, one after the other.
    fn lines(self, width: u32, height: u32) -> [(u128, u128); 2] {
        let [width, height] = [width, height].map(u128::from);
        match self {
            Self::Yuyv => [(width.div_ceil(2) * 4, height), (0, 0)],
            Self::Nv12 => [(width, height), (width.div_ceil(2) * 2, height.div_ceil(2))],
            Self::Rgb => [(width * 3, height), (0, 0)],
            Self::Grey => [(width, height), (0, 0)],
        }
    }

    /// Bytes of a picture.
    fn bytes(self, width: u32, height: u32) -> u128 {
        self.lines(width, height).map(|(bytes, count)| bytes * count).iter().sum()
    }
}

impl Raw {
    /// The picture in `bytes`, where lines begin `stride` bytes apart, or follow one another if they are
    /// longer than that. Nothing if some of it is missing.
    pub fn from_lines(
        format: PixelFormat,
        width: u32,
        height: u32,
        stride: u32,
        bytes: &[u8],
    ) -> Option<Self> {
        let needed = usize::try_from(format.bytes(width, height)).ok()?;
        if needed == 0 || bytes.len() < needed {
            return None;
        }
        let mut data = Vec::with_capacity(needed);
        let mut rest = bytes;
        for (line, count) in format.lines(width, height) {
            let line = line as usize;
            for _ in 0..count {
                data.extend_from_slice(rest.get(..line)?);
                rest = rest.get(line.max(stride as usize)..).unwrap_or_default();
            }
        }
        Some(Self { format, width, height, data })
    }

    /// The picture as 8-bit RGB.
    ///
    /// # Errors
    /// [`DecodeError::Damaged`] when there are fewer bytes than the size says, or no pixels.
    pub fn decode(&self) -> Result<Photo, DecodeError> {
        let needed = self.format.bytes(self.width, self.height);
        let data = usize::try_from(needed).ok().and_then(|needed| self.data.get(..needed));
        let data = data.filter(|data| !data.is_empty()).ok_or_else(|| {
            DecodeError::Damaged(format!("{} bytes instead of {needed}", self.data.len()))
        })?;
        let (width, height) = (self.width as usize, self.height as usize);
        let rgb = match self.format {
            PixelFormat::Yuyv => yuyv(data, width, height),
            PixelFormat::Nv12 => nv12(data, width, height),
            PixelFormat::Rgb => data.to_vec(),
            PixelFormat::Grey => data.iter().flat_map(|&grey| [grey; 3]).collect(),
        };
        Ok(Photo::new(self.width, self.height, rgb))
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raw({:?}, {} x {})", self.format, self.width, self.height)
    }
}

fn yuyv(data: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut rgb = vec![0; width * height * 3];
    let lines = data.chunks_exact(width.div_ceil(2) * 4);
    for (row, line) in rgb.chunks_exact_mut(width * 3).zip(lines) {
        fill(row, line.as_chunks().0.iter().map(|&[y0, cb, y1, cr]| ([y0, y1], [cb, cr])));
    }
    rgb
}

fn nv12(data: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut rgb = vec![0; width * height * 3];
    let (brightness, colours) = data.split_at(width * height);
    let lines = colours.chunks_exact(width.div_ceil(2) * 2).flat_map(|line| [line; 2]);
    let rows = rgb.chunks_exact_mut(width * 3).zip(brightness.chunks_exact(width));
    for ((row, brightness), colours) in rows.zip(lines) {
        let (pairs, last) = brightness.as_chunks();
        let last = last.iter().map(|&y| [y; 2]);
        fill(row, pairs.iter().copied().chain(last).zip(colours.as_chunks().0.iter().copied()));
    }
    rgb
}

/// Fills a row from the brightness and colour of each two pixels.
#[inline(always)]
fn fill(row: &mut [u8], mut samples: impl Iterator<Item = ([u8; 2], [u8; 2])>) {
    let (pairs, last) = row.as_chunks_mut();
    for (pixels, (brightness, colour)) in pairs.iter_mut().zip(&mut samples) {
        *pixels = pair(brightness, colour);
    }
    if let Some((brightness, colour)) = samples.next() {
        last.copy_from_slice(&pair(brightness, colour)[..last.len()]);
    }
}

/// RGB of two neighbours that share their colour. Products have 16 bits after the point: 255 / 219
/// for brightness; 255 / 112 (1 - Kr) for Cr in red and 255 / 112 (1 - Kb) for Cb in blue; in green
/// what these leave of brightness, with Kr = 0.299 and Kb = 0.114.
#[inline(always)]
fn pair(brightness: [u8; 2], colour: [u8; 2]) -> [u8; 6] {
    let [cb, cr] = colour.map(|value| i32::from(value) - 128);
    let [y0, y1] = brightness.map(|y| 76_309 * (i32::from(y) - 16) + (1 << 15));
    let [red, green, blue] = [104_597 * cr, -25_675 * cb - 53_279 * cr, 132_201 * cb];
    let sums = [y0 + red, y0 + green, y0 + blue, y1 + red, y1 + green, y1 + blue];
    sums.map(|sum| (sum >> 16).clamp(0, 255) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [PixelFormat; 4] =
        [PixelFormat::Yuyv, PixelFormat::Nv12, PixelFormat::Rgb, PixelFormat::Grey];

    fn raw(format: PixelFormat, width: u32, height: u32, bytes: u128) -> Raw {
        let mut random = fastrand::Rng::with_seed(7);
        let data = (0..bytes).map(|_| random.u8(..)).collect();
        Raw { format, width, height, data }
    }

    /// One pixel, by the definition of BT.601 with all its decimals.
    fn plain(raw: &Raw, x: usize, y: usize) -> [f64; 3] {
        let (width, height) = (raw.width as usize, raw.height as usize);
        let at = |index: usize| f64::from(raw.data[index]);
        let half = width.div_ceil(2);
        let [luma, cb, cr] = match raw.format {
            PixelFormat::Yuyv => {
                let four = (y * half + x / 2) * 4;
                [at(four + x % 2 * 2), at(four + 1), at(four + 3)]
            }
            PixelFormat::Nv12 => {
                let two = width * height + (y / 2 * half + x / 2) * 2;
                [at(y * width + x), at(two), at(two + 1)]
            }
            PixelFormat::Rgb => return [0, 1, 2].map(|channel| at((y * width + x) * 3 + channel)),
            PixelFormat::Grey => return [at(y * width + x); 3],
        };
        let (kr, kb) = (0.299, 0.114);
        let luma = (luma - 16.0) / 219.0;
        let (cb, cr) = ((cb - 128.0) / 224.0, (cr - 128.0) / 224.0);
        let red = luma + 2.0 * (1.0 - kr) * cr;
        let blue = luma + 2.0 * (1.0 - kb) * cb;
        let green = (luma - kr * red - kb * blue) / (1.0 - kr - kb);
        [red, green, blue].map(|value| (value * 255.0).clamp(0.0, 255.0))
    }

    #[test]
    fn every_format_and_size_is_as_defined() {
        for format in FORMATS {
            for (width, height) in [(1, 1), (2, 1), (1, 2), (3, 3), (7, 4), (64, 48), (101, 77)] {
                let raw = raw(format, width, height, format.bytes(width, height));
                let photo = raw.decode().unwrap();
                assert_eq!((photo.width(), photo.height()), (width, height));
                for (index, found) in photo.rgb().chunks_exact(3).enumerate() {
                    let (x, y) = (index % width as usize, index / width as usize);
                    let expected = plain(&raw, x, y);
                    let close = found.iter().zip(expected);
                    let close = close.map(|(found, expected)| (f64::from(*found) - expected).abs());
                    let worst = close.fold(0.0, f64::max);
                    assert!(worst < 0.51, "{raw:?} at {x}, {y}: {found:?} for {expected:?}");
                }
            }
        }
    }

    #[test]
    fn black_white_and_the_primaries_are_exact() {
        let check = |data: [u8; 4], expected: [u8; 3]| {
            let raw = Raw { format: PixelFormat::Yuyv, width: 2, height: 1, data: data.to_vec() };
            assert_eq!(raw.decode().unwrap().rgb(), expected.repeat(2), "{data:?}");
        };
        check([16, 128, 16, 128], [0; 3]);
        check([235, 128, 235, 128], [255; 3]);
        check([0, 128, 0, 128], [0; 3]);
        check([255, 128, 255, 128], [255; 3]);
        check([81, 90, 81, 240], [254, 0, 0]);
        check([145, 54, 145, 34], [0, 255, 1]);
        check([41, 240, 41, 110], [0, 0, 255]);
    }

    #[test]
    fn padded_lines_are_those_without_padding() {
        for format in FORMATS {
            for (width, height) in [(1, 1), (3, 3), (7, 4), (64, 48)] {
                let whole = raw(format, width, height, format.bytes(width, height));
                let cut = |stride, bytes: &[u8]| {
                    Raw::from_lines(format, width, height, stride, bytes).map(|raw| raw.data)
                };
                let stride = width * 4 + 5;
                let (mut padded, mut rest) = (Vec::new(), whole.data.as_slice());
                for (line, count) in format.lines(width, height) {
                    for _ in 0..count {
                        padded.extend_from_slice(&rest[..line as usize]);
                        rest = &rest[line as usize..];
                        padded.resize(padded.len() + stride as usize - line as usize, 0xee);
                    }
                }
                let (last, _) =
                    format.lines(width, height)[usize::from(format == PixelFormat::Nv12)];
                let end = padded.len() - stride as usize + last as usize;
                assert_eq!(cut(stride, &padded), Some(whole.data.clone()), "{whole:?}");
                assert_eq!(cut(stride, &padded[..end]), Some(whole.data.clone()), "{whole:?}");
                assert_eq!(cut(stride, &padded[..end - 1]), None, "{whole:?}");
                assert_eq!(cut(0, &whole.data), Some(whole.data.clone()), "{whole:?}");
                assert_eq!(cut(0, &whole.data[1..]), None, "{whole:?}");
            }
            assert_eq!(Raw::from_lines(format, 0, 3, 0, &[0; 64]), None);
        }
    }

    #[test]
    fn padding_is_ignored_and_missing_bytes_are_damage() {
        for format in FORMATS {
            let needed = format.bytes(5, 3);
            let whole = raw(format, 5, 3, needed);
            let mut padded = whole.clone();
            padded.data.extend([7; 4096]);
            assert_eq!(padded.decode(), whole.decode(), "{format:?}");
            let short = raw(format, 5, 3, needed - 1).decode().unwrap_err();
            let expected = format!("damaged image: {} bytes instead of {needed}", needed - 1);
            assert_eq!(short.to_string(), expected, "{format:?}");
            for (width, height) in [(0, 0), (0, 3), (5, 0), (u32::MAX, u32::MAX)] {
                let error = raw(format, width, height, 64).decode().unwrap_err();
                assert!(matches!(error, DecodeError::Damaged(_)), "{format:?}: {error}");
            }
        }
    }
}
