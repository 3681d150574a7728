//! Where one JPEG ends and the next begins in a row of bytes.
//!
//! Owns the structure of markers and segments (ITU-T T.81, annex B), read as the bytes come. It decodes
//! nothing and does not know where they come from.

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;

/// Says that a picture is Motion JPEG, where Huffman tables that are left out, as many cameras do,
/// are those of T.81, K.3. Decoders put them in then.
const MOTION: &[u8] = b"\xff\xe0\x00\x07AVI1\0";

/// Takes whole JPEGs out of bytes that come in pieces of any size. What lies between them is passed
/// over, such as the headers of multipart messages, and so is a JPEG that is cut off or too large:
/// from there on it looks for the next one.
#[derive(Debug)]
pub(super) struct Splitter {
    limit: usize,
    state: State,
    /// What there is of a picture, from its SOI.
    picture: Vec<u8>,
    /// Whether it has Huffman tables.
    tables: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Anything: there is no picture.
    Outside,
    /// The second byte of SOI.
    Start,
    /// The `ff` of a marker.
    Prefix,
    /// The marker, in or after data if so.
    Marker { data: bool },
    /// The length of the segment of that marker, its high byte first.
    Length(u8, Option<u8>),
    /// The rest of that segment, so many bytes.
    Segment(u8, usize),
    /// Entropy-coded data.
    Data,
}

impl Splitter {
    /// A splitter that passes over pictures of more than `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: State::Outside, picture: Vec::new(), tables: false }
    }

    /// Takes `bytes` in, and gives each picture that they complete. Where they are cut into pieces
    /// makes no difference.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut give: impl FnMut(Vec<u8>)) {
        while let Some(picture) = self.take(&mut bytes) {
            give(picture);
        }
    }

    /// Takes `bytes` in as far as the end of a picture, and gives that; takes all in if they complete none.
    fn take(&mut self, bytes: &mut &[u8]) -> Option<Vec<u8>> {
        loop {
            let inside = match self.state {
                State::Outside | State::Data => {
                    bytes.iter().position(|&byte| byte == 0xff).unwrap_or(bytes.len())
                }
                State::Segment(_, left) => left.min(bytes.len()),
                _ => 0,
            };
            if self.state != State::Outside {
                self.picture.extend_from_slice(&bytes[..inside]);
            }
            self.state = match self.state {
                State::Segment(SOS, left) if left == inside => State::Data,
                State::Segment(_, left) if left == inside => State::Prefix,
                State::Segment(marker, left) => State::Segment(marker, left - inside),
                State::Data if self.picture.len() > self.limit => State::Outside,
                state => state,
            };
            *bytes = &bytes[inside..];
            let byte = *bytes.split_off_first()?;
            self.picture.push(byte);
            let next = self.next(byte);
            self.state = next.unwrap_or(State::Outside);
            if next.is_none() {
                return Some(self.complete());
            }
        }
    }

    /// What comes after `byte`, the last one of the picture; nothing when that is complete.
    fn next(&mut self, byte: u8) -> Option<State> {
        let state = match (self.state, byte) {
            (State::Marker { data: true }, 0x00 | 0xd0..=0xd7) => State::Data,
            (State::Marker { .. }, 0x01 | 0xd0..=0xd7) => State::Prefix,
            (State::Start | State::Marker { .. }, SOI) => {
                self.begin();
                State::Prefix
            }
            (State::Marker { .. }, EOI) => return None,
            (State::Marker { .. }, 0xc0..=0xfe) => State::Length(byte, None),
            (State::Marker { .. }, 0xff) => self.state,
            (State::Length(marker, None), high) => State::Length(marker, Some(high)),
            (State::Length(marker, Some(high)), low) => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                self.tables |= marker == DHT;
                match length.checked_sub(2) {
                    Some(left) if self.picture.len() + left <= self.limit => {
                        State::Segment(marker, left)
                    }
                    _ => State::Outside,
                }
            }
            (State::Prefix, 0xff) => State::Marker { data: false },
            (State::Data, 0xff) => State::Marker { data: true },
            (State::Data, _) => State::Data,
            (State::Outside | State::Start, 0xff) => State::Start,
            _ => State::Outside,
        };
        Some(state)
    }

    fn begin(&mut self) {
        self.picture.clear();
        self.picture.extend([0xff, SOI]);
        self.tables = false;
    }

    fn complete(&mut self) -> Vec<u8> {
        let mut picture = std::mem::take(&mut self.picture);
        if !self.tables {
            picture.splice(2..2, MOTION.iter().copied());
        }
        picture
    }
}

/// The first whole JPEG in `bytes`: many a camera's driver hands over more than the picture, such as what was
/// in its buffer before.
#[cfg(any(feature = "camera", test))]
pub(super) fn first(mut bytes: &[u8]) -> Option<Vec<u8>> {
    Splitter::new(bytes.len()).take(&mut bytes)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 100_000;

    /// A photo as JPEG, by the encoder's own standard tables, with a thumbnail in its Exif segment.
    fn jpeg(seed: u8) -> Vec<u8> {
        let encode = |side: u32| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            let colour = |x: u32, y: u32| image::Rgb([x as u8 * 5, (y * x) as u8, seed]);
            let photo = image::RgbImage::from_fn(side, side, colour);
            photo.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
            bytes.into_inner()
        };
        let (photo, thumbnail) = (encode(40), encode(8));
        let length = (thumbnail.len() as u16 + 8).to_be_bytes();
        let segment = [b"\xff\xe1", &length[..], b"Exif\0\0", &thumbnail].concat();
        [&photo[..2], &segment, &photo[2..]].concat()
    }

    fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        Splitter::new(LIMIT).push(bytes, |picture| found.push(picture));
        found
    }

    /// The bytes without their segments of Huffman tables, up to the data.
    fn without_tables(jpeg: &[u8]) -> Vec<u8> {
        let (mut bytes, mut rest) = (jpeg[..2].to_vec(), &jpeg[2..]);
        while rest[1] != SOS {
            let length = 2 + usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            if rest[1] != DHT {
                bytes.extend(&rest[..length]);
            }
            rest = &rest[length..];
        }
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn pictures_are_found_whole_among_anything() {
        let [a, b] = [jpeg(1), jpeg(2)];
        let both = vec![a.clone(), b.clone()];
        let last = vec![b.clone()];
        let header = b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n";
        let large = [&b"\xff\xd8\xff\xda\0\x02"[..], &vec![7; LIMIT], b"\xff\xd9"].concat();
        let check = |name: &str, parts: &[&[u8]], expected: &[Vec<u8>]| {
            assert!(split(&parts.concat()) == expected, "{name}");
        };
        check("nothing", &[], &[]);
        check("one after the other", &[&a, &b], &both);
        check("multipart", &[header, &a, header, &b, header], &both);
        check("zeros between", &[&[0; 999], &a, &[0; 999], &b], &both);
        check("markers between", &[b"\xff\xff\xd9\xff\xd8\xd8", &a, b"\xff\xd8\xff", &b], &both);
        check("starting in the middle", &[&a[a.len() / 2..], &b], &last);
        check("cut in its data", &[&a[..a.len() - 20], &b], &last);
        check("cut in its data, then text", &[&a[..a.len() - 20], header, &b], &last);
        check("cut in its Exif segment", &[&a[..30], &b, &a, &b], &both);
        check("a segment that is too short", &[b"\xff\xd8\xff\xe0\0\x01", &b], &last);
        check("a marker that does not exist", &[b"\xff\xd8\xff\x05", &b], &last);
        check("larger than the limit", &[&large, &b], &last);
        check("only its end", &[&a[a.len() - 20..]], &[]);
        check("never ending", &[&a[..a.len() - 2]], &[]);
    }

    #[test]
    fn fill_bytes_and_restart_markers_belong_to_a_picture() {
        let picture = b"\xff\xd8\xff\xff\xc4\0\x03\x01\xff\xda\0\x02ab\xff\0c\xff\xd3d\xff\xff\xd9";
        assert_eq!(split(picture), [picture]);
        let scans = b"\xff\xd8\xff\xda\0\x02a\xff\xc4\0\x03\x01\xff\xda\0\x02b\xff\xd9";
        assert_eq!(split(scans), [scans]);
    }

    #[test]
    fn what_lies_behind_the_picture_in_a_buffer_is_cut_off() {
        let [a, b] = [jpeg(1), jpeg(2)];
        let buffer = [&a[..], &b[100..], &[0; 4096]].concat();
        assert_eq!(first(&buffer), Some(a.clone()));
        let mut rest = &buffer[..];
        assert_eq!(Splitter::new(LIMIT).take(&mut rest), Some(a.clone()));
        assert!(rest == &buffer[a.len()..], "it is looked at");
        assert_eq!(first(&b[..b.len() - 1]), None);
        assert_eq!(first(&[]), None);
    }

    #[test]
    fn pictures_without_huffman_tables_decode_to_the_same_pixels() {
        let limits = crate::preprocess::Limits { max_pixels: 10_000 };
        let decode = |bytes: &[u8]| crate::preprocess::decode(bytes, &limits);
        let whole = jpeg(3);
        let bare = without_tables(&whole);
        assert!(bare.len() < whole.len());
        assert!(decode(&bare).is_err(), "this decoder needs no help");
        let found = split(&bare);
        assert_eq!(found.len(), 1);
        assert_eq!(decode(&found[0]), decode(&whole));
        assert!(decode(&whole).is_ok());
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_pictures(
            order in vec(0usize..6, 0..12),
            noise in vec(any::<u8>(), 0..200),
            sizes in vec(1usize..3000, 1..40),
        ) {
            let [a, b] = [jpeg(1), jpeg(2)];
            let large = [&b"\xff\xd8\xff\xda\0\x02"[..], &vec![7; LIMIT], b"\xff\xd9"].concat();
            let parts = [&a[..], &b, &a[..a.len() / 2], &b[..40], &noise, &large];
            let bytes = order.iter().flat_map(|&part| parts[part]).copied().collect::<Vec<u8>>();
            let mut splitter = Splitter::new(LIMIT);
            let (mut found, mut rest) = (Vec::new(), &bytes[..]);
            for size in sizes.iter().cycle() {
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                splitter.push(piece, |picture| found.push(picture));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(found == split(&bytes));
        }

        #[test]
        fn noise_breaks_nothing(bytes in vec(prop_oneof![Just(0xff), Just(SOI), Just(SOS), any::<u8>()], 0..999)) {
            let mut splitter = Splitter::new(100);
            splitter.push(&bytes, |picture| assert!(picture.len() <= 100 + MOTION.len()));
            let whole = jpeg(1);
            let mut splitter = Splitter::new(LIMIT);
            let mut last = None;
            splitter.push(&bytes, |_| {});
            for _ in 0..40 {
                splitter.push(&whole, |picture| last = Some(picture));
            }
            prop_assert!(last == Some(whole));
        }
    }
}
