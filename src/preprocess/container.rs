//! What the containers of JPEG, PNG and WebP say before any decoder sees the file: its format, its
//! size in pixels, and whether it is all there.
//!
//! Owns the byte layouts and decodes nothing, so it costs no memory. It is here because decoders
//! differ in what they let pass: half a JPEG, a chunk longer than its file.

use super::DecodeError;

/// A format that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
}

impl Format {
    /// The format by the file's first bytes.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            Err(DecodeError::Empty)
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            Ok(Self::Jpeg)
        } else if bytes.starts_with(PNG_SIGNATURE) {
            Ok(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Ok(Self::WebP)
        } else {
            Err(DecodeError::NotAnImage)
        }
    }

    /// Width and height in pixels as the file's header states them.
    pub(super) fn dimensions(self, bytes: &[u8]) -> Result<(u32, u32), DecodeError> {
        let size = match self {
            Self::Jpeg => jpeg_dimensions(bytes)?,
            Self::Png => png_dimensions(bytes),
            Self::WebP => webp_dimensions(bytes),
        };
        match size {
            Some((width, height)) if width > 0 && height > 0 => Ok((width, height)),
            Some((width, height)) => Err(damaged(format!("{width} x {height} pixels"))),
            None => Err(damaged("ends before its size is stated")),
        }
    }

    /// Errors unless the file reaches its own end: EOI in a JPEG, IEND in a PNG, the stated length
    /// in a WebP. What follows the end is ignored, because cameras pad.
    pub(super) fn check_whole(self, bytes: &[u8]) -> Result<(), DecodeError> {
        match self {
            Self::Jpeg => match JpegSegments::new(bytes).any(|segment| segment.0 == EOI) {
                true => Ok(()),
                false => Err(damaged("ends before its end-of-image marker")),
            },
            Self::Png => match PngChunks::new(bytes).any(|chunk| chunk.0 == *b"IEND") {
                true => Ok(()),
                false => Err(damaged("ends before its IEND chunk")),
            },
            Self::WebP => check_webp(bytes),
        }
    }
}

fn damaged(words: impl Into<String>) -> DecodeError {
    DecodeError::Damaged(words.into())
}

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;

/// Marker segments of a JPEG after SOI (ITU-T T.81, B.1.1): marker and parameters, EOI with none.
/// Entropy-coded data, restart markers and fill bytes are passed over. Ends with the bytes.
struct JpegSegments<'a>(&'a [u8]);

impl<'a> JpegSegments<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.strip_prefix(&[0xff, SOI]).unwrap_or(&[]))
    }
}

impl<'a> Iterator for JpegSegments<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let prefix = self.0.iter().position(|byte| *byte == 0xff)?;
            self.0 = &self.0[prefix + 1..];
            match *self.0.first()? {
                0x00 | 0x01 | 0xd0..=0xd7 | 0xff => {}
                EOI => return Some((EOI, &[])),
                marker => {
                    let length = u16::from_be_bytes(*self.0[1..].first_chunk()?);
                    let parameters = self.0.get(3..1 + usize::from(length))?;
                    self.0 = &self.0[1 + usize::from(length)..];
                    return Some((marker, parameters));
                }
            }
        }
    }
}

/// From the frame header, SOF0 to SOF15 (T.81, B.2.2), if it is of a kind that decoders know.
fn jpeg_dimensions(bytes: &[u8]) -> Result<Option<(u32, u32)>, DecodeError> {
    let is_frame = |marker| matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
    let frame = JpegSegments::new(bytes).find(|segment| is_frame(segment.0));
    let Some((marker, [precision, h1, h0, w1, w0, ..])) = frame else {
        return Ok(None);
    };
    let unsupported = |kind: &str| Err(DecodeError::Unsupported(kind.to_owned()));
    match marker {
        0xc3 | 0xc7 | 0xcb | 0xcf => return unsupported("lossless JPEG"),
        0xc9.. => return unsupported("arithmetic-coded JPEG"),
        0xc5.. => return unsupported("hierarchical JPEG"),
        _ if *precision != 8 => return unsupported(&format!("{precision}-bit JPEG")),
        _ => {}
    }
    let [width, height] = [[*w1, *w0], [*h1, *h0]].map(u16::from_be_bytes);
    Ok(Some((width.into(), height.into())))
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Chunks of a PNG (W3C PNG, 5.3): type and data. Ends with the bytes.
struct PngChunks<'a>(&'a [u8]);

impl<'a> PngChunks<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.strip_prefix(PNG_SIGNATURE).unwrap_or(&[]))
    }
}

impl<'a> Iterator for PngChunks<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (data, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let (_crc, rest) = rest.split_first_chunk::<4>()?;
        self.0 = rest;
        Some((*kind, data))
    }
}

/// From IHDR, which comes first (W3C PNG, 11.2.1).
fn png_dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let (kind, data) = PngChunks::new(bytes).next()?;
    let (width, rest) = data.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    (kind == *b"IHDR").then(|| (u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

/// One RIFF chunk (RFC 9649, 2.3): type, stated length, as much data as there is, what follows.
struct RiffChunk<'a> {
    kind: [u8; 4],
    length: usize,
    data: &'a [u8],
    rest: &'a [u8],
}

fn riff_chunk(bytes: &[u8]) -> Option<RiffChunk<'_>> {
    let (kind, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let padded = length.saturating_add(length & 1);
    Some(RiffChunk {
        kind: *kind,
        length,
        data: &rest[..length.min(rest.len())],
        rest: &rest[padded.min(rest.len())..],
    })
}

/// Canvas or frame size as stated at the start of `chunk` (RFC 9649, 2.5 to 2.7; RFC 6386, 9.1).
fn webp_size(chunk: &RiffChunk<'_>) -> Option<(u32, u32)> {
    let little = |range: std::ops::Range<usize>| {
        let bytes = chunk.data.get(range)?.iter().rev();
        Some(bytes.fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    match &chunk.kind {
        b"VP8X" => Some((little(4..7)? + 1, little(7..10)? + 1)),
        b"VP8 " => Some((little(6..8)? & 0x3fff, little(8..10)? & 0x3fff)),
        b"VP8L" => {
            let bits = little(1..5)?;
            Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        _ => None,
    }
}

fn webp_dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    webp_size(&riff_chunk(bytes.get(12..)?)?)
}

/// Beside completeness: no frame is larger than the canvas, so a small canvas cannot hide one.
fn check_webp(bytes: &[u8]) -> Result<(), DecodeError> {
    let riff = riff_chunk(bytes).ok_or_else(|| damaged("ends in its RIFF header"))?;
    if riff.data.len() < riff.length {
        return Err(damaged("ends before its RIFF length"));
    }
    let canvas = webp_dimensions(bytes).ok_or_else(|| damaged("first chunk states no size"))?;
    check_webp_chunks(riff.data.get(4..).unwrap_or(&[]), canvas)
}

fn check_webp_chunks(mut bytes: &[u8], canvas: (u32, u32)) -> Result<(), DecodeError> {
    while let Some(chunk) = riff_chunk(bytes) {
        if chunk.data.len() < chunk.length {
            return Err(damaged("a chunk is longer than the file"));
        }
        let size = webp_size(&chunk);
        if size.is_some_and(|(width, height)| width > canvas.0 || height > canvas.1) {
            return Err(damaged("a frame is larger than the canvas"));
        }
        if chunk.kind == *b"ANMF" {
            check_webp_chunks(chunk.data.get(16..).unwrap_or(&[]), canvas)?;
        }
        bytes = chunk.rest;
    }
    Ok(())
}
