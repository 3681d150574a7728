//! The bytes of the outbox: slices in, values out. It must not know files.
//!
//! All numbers are little-endian. A *mark* says how things stood when it was written; a segment begins
//! with one, and the file `cursor` is one:
//!
//! ```text
//!  0  8  "vggd-ob1"
//!  8  8  first      the next record to be put on disk; of a segment, its first one
//! 16  8  stored     the last record that was put on disk before that; what is between was given up
//! 24  8  next       number that the next new record gets
//! 32  8  sequence that the next prediction gets
//! 40  8  sequence that the next failure gets
//! 48  8  done       everything up to this record was acknowledged or dropped
//! 56  8  dropped    records that were dropped since the outbox was made
//! 64  4  CRC-32 of all before
//! ```
//!
//! A record:
//!
//! ```text
//!  0  4  0xff "rec"  no text in UTF-8 has that byte
//!  4  4  length of what follows the checksum, at most LARGEST
//!  8  4  CRC-32 of length and what follows the checksum
//! 12  8  number
//! 20  8  sequence that the next prediction gets, this one if it is one
//! 28  8  the same of failures
//! 36  1  kind: 0 prediction, 1 failure
//! 37  2  length of the id
//! 39     id, UTF-8
//!        payload
//! ```
//!
//! Numbers and sequences begin at 1. Every record has both sequences, so that the one that comes after
//! damaged ones tells how far they got.

use std::ops::Range;

use super::Kind;

/// Length of a mark.
pub(super) const MARK: usize = 68;

/// The most bytes of a record after its checksum.
pub(super) const LARGEST: usize = 256 << 10;

/// No number or sequence gets this far; what seems to is damaged.
pub(super) const LIMIT: u64 = 1 << 62;

const MAGIC: &[u8; 8] = b"vggd-ob1";
const MARKER: &[u8; 4] = b"\xffrec";
const FRAME: usize = 12;
const FIXED: usize = 27;

/// How things stand, see above.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mark {
    pub(super) first: u64,
    pub(super) stored: u64,
    pub(super) next: u64,
    /// By [`Kind`].
    pub(super) sequences: [u64; 2],
    pub(super) done: u64,
    pub(super) dropped: u64,
}

impl Default for Mark {
    fn default() -> Self {
        Self { first: 1, stored: 0, next: 1, sequences: [1, 1], done: 0, dropped: 0 }
    }
}

impl Mark {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { first, stored, next, sequences: [prediction, failure], done, dropped } = *self;
        let mut bytes = MAGIC.to_vec();
        for value in [first, stored, next, prediction, failure, done, dropped] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// The mark at the beginning of `bytes`, if it is whole and makes sense.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let sum = crc32fast::hash(bytes.get(..MARK - 4)?);
        if !bytes.starts_with(MAGIC) || u32_at(bytes, MARK - 4)? != sum {
            return None;
        }
        let value = |index: usize| u64_at(bytes, 8 + 8 * index).filter(|value| *value < LIMIT);
        let mark = Self {
            first: value(0)?,
            stored: value(1)?,
            next: value(2)?,
            sequences: [value(3)?, value(4)?],
            done: value(5)?,
            dropped: value(6)?,
        };
        let in_order = mark.stored < mark.first && mark.first <= mark.next && mark.done < mark.next;
        (in_order && !mark.sequences.contains(&0)).then_some(mark)
    }

    /// Takes over what `other` knows of numbers and sequences that were given.
    pub(super) fn raise(&mut self, other: &Self) {
        self.next = self.next.max(other.next);
        for (own, other) in self.sequences.iter_mut().zip(other.sequences) {
            *own = (*own).max(other);
        }
        self.dropped = self.dropped.max(other.dropped);
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Frame<'a> {
    pub(super) number: u64,
    /// Those that are next before it, by [`Kind`].
    pub(super) sequences: [u64; 2],
    pub(super) kind: Kind,
    pub(super) id: &'a str,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Nothing if it is larger than a record may be.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let length = FIXED + self.id.len() + self.payload.len();
        let id = u16::try_from(self.id.len()).ok().filter(|_| length <= LARGEST)?;
        let mut bytes = Vec::with_capacity(FRAME + length);
        bytes.extend(MARKER);
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.number.to_le_bytes());
        for sequence in self.sequences {
            bytes.extend(sequence.to_le_bytes());
        }
        bytes.push(self.kind as u8);
        bytes.extend(id.to_le_bytes());
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.payload);
        let sum = checksum(&bytes);
        bytes[8..FRAME].copy_from_slice(&sum.to_le_bytes());
        Some(bytes)
    }

    /// Its own sequence.
    pub(super) fn sequence(&self) -> u64 {
        self.sequences[self.kind as usize]
    }

    /// The sequences that are next after it.
    pub(super) fn next_sequences(&self) -> [u64; 2] {
        let mut next = self.sequences;
        next[self.kind as usize] += 1;
        next
    }

    /// The record at the beginning of `bytes`, with its length there.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        if !bytes.starts_with(MARKER) {
            return None;
        }
        let length = u32_at(bytes, 4)? as usize;
        if length > LARGEST {
            return None;
        }
        let bytes = bytes.get(..FRAME + length)?;
        if u32_at(bytes, 8)? != checksum(bytes) {
            return None;
        }
        let kind = match bytes.get(36)? {
            0 => Kind::Prediction,
            1 => Kind::Failure,
            _ => return None,
        };
        let id = u16::from_le_bytes(bytes.get(37..39)?.try_into().ok()?);
        let (id, payload) = bytes.get(FRAME + FIXED..)?.split_at_checked(id.into())?;
        let frame = Self {
            number: u64_at(bytes, 12)?,
            sequences: [u64_at(bytes, 20)?, u64_at(bytes, 28)?],
            kind,
            id: std::str::from_utf8(id).ok()?,
            payload,
        };
        Some((frame, bytes.len()))
    }
}

/// What is in a segment.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    /// What it begins with.
    pub(super) mark: Option<Mark>,
    /// Its records, with offset and length.
    pub(super) frames: Vec<(usize, usize, Frame<'a>)>,
    /// Where the last of them ends.
    pub(super) end: usize,
    /// How many records seem to have begun after that.
    pub(super) torn: u64,
}

impl<'a> Scan<'a> {
    /// Reads all records whose numbers are among `numbers` and rise; what is damaged is passed over.
    pub(super) fn of(bytes: &'a [u8], numbers: Range<u64>) -> Self {
        let mark = Mark::decode(bytes).filter(|mark| mark.first == numbers.start);
        let mut frames = Vec::new();
        let mut end = if mark.is_some() { MARK } else { 0 };
        let (mut at, mut least) = (end, numbers.start);
        while at < bytes.len() {
            let frame = Frame::decode(&bytes[at..]).filter(|(frame, _)| {
                (least..numbers.end).contains(&frame.number)
                    && frame.sequences.iter().all(|sequence| (1..LIMIT).contains(sequence))
            });
            match frame {
                Some((frame, length)) => {
                    frames.push((at, length, frame));
                    at += length;
                    (end, least) = (at, frame.number + 1);
                }
                None => at = markers(bytes, at + 1).next().unwrap_or(bytes.len()),
            }
        }
        // A segment is made with its first record, so one without any has lost that at least.
        let torn = match frames.is_empty() || end < bytes.len() {
            true => (markers(bytes, end).count() as u64).max(1),
            false => 0,
        };
        Self { mark, frames, end, torn }
    }
}

/// Where records seem to begin, from offset `from` on.
fn markers(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> {
    let rest = bytes.get(from..).unwrap_or_default();
    let places = rest.windows(MARKER.len()).enumerate();
    places.filter(|(_, window)| window == MARKER).map(move |(at, _)| from + at)
}

fn checksum(record: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&record[4..8]);
    sum.update(&record[FRAME..]);
    sum.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64, payload: &[u8]) -> Vec<u8> {
        let (sequences, kind) = ([8, number], Kind::Failure);
        Frame { number, sequences, kind, id: "photo", payload }.encode().unwrap()
    }

    #[test]
    fn layout_is_as_documented() {
        let mark = Mark { first: 3, stored: 2, next: 9, sequences: [4, 5], done: 1, dropped: 6 };
        let bytes = mark.encode();
        assert_eq!(bytes.len(), MARK);
        let values: Vec<u64> = (8..64).step_by(8).map(|at| u64_at(&bytes, at).unwrap()).collect();
        assert_eq!(values, [3, 2, 9, 4, 5, 1, 6]);
        assert_eq!(Mark::decode(&bytes), Some(mark));

        let bytes = frame(7, b"{}");
        assert_eq!(&bytes[..4], b"\xffrec");
        assert_eq!(u32_at(&bytes, 4), Some(bytes.len() as u32 - 12));
        assert_eq!([12, 20, 28, 36, 37].map(|at| bytes[at]), [7, 8, 7, 1, 5]);
        assert_eq!(&bytes[39..], b"photo{}");
    }

    #[test]
    fn no_changed_bit_goes_unnoticed() {
        let (mark, record) = (Mark::default().encode(), frame(1, b"{\"schema\":1}"));
        for bit in 0..8 * MARK {
            let mut bytes = mark.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&bytes), None, "bit {bit}");
        }
        for bit in 0..8 * record.len() {
            let mut bytes = record.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::decode(&bytes), None, "bit {bit}");
        }
        for length in 0..record.len() {
            assert_eq!(Frame::decode(&record[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn marks_that_contradict_themselves_are_no_marks() {
        let good = Mark { first: 3, stored: 2, next: 9, sequences: [4, 5], done: 1, dropped: 6 };
        let bad = [
            Mark { first: 10, ..good.clone() },
            Mark { stored: 3, ..good.clone() },
            Mark { done: 9, ..good.clone() },
            Mark { sequences: [0, 5], ..good.clone() },
            Mark { dropped: LIMIT, ..good.clone() },
            Mark { next: u64::MAX, ..good },
        ];
        for mark in bad {
            assert_eq!(Mark::decode(&mark.encode()), None, "{mark:?}");
        }
    }

    #[test]
    fn a_record_in_another_one_or_out_of_place_is_not_read() {
        let numbers = |bytes: &[u8], range: Range<u64>| {
            let scan = Scan::of(bytes, range);
            scan.frames.iter().map(|(_, _, frame)| frame.number).collect::<Vec<_>>()
        };
        let nested = [frame(5, &frame(6, b"")), frame(7, b""), frame(7, b""), frame(3, b"")];
        let bytes = nested.concat();
        assert_eq!(numbers(&bytes, 5..LIMIT), [5, 7]);
        assert_eq!(numbers(&bytes, 5..7), [5]);
        assert_eq!(numbers(&bytes, 8..LIMIT), [0; 0]);
    }

    #[test]
    fn what_is_too_large_is_not_written() {
        let payload = vec![0; LARGEST - FIXED];
        let frame = |id, payload| {
            let kind = Kind::Failure;
            Frame { number: 1, sequences: [1, 1], kind, id, payload }
        };
        let bytes = frame("", &payload).encode().unwrap();
        assert_eq!(Frame::decode(&bytes).unwrap().1, bytes.len());
        assert_eq!(frame("x", &payload).encode(), None);
        assert_eq!(frame(&"x".repeat(1 << 16), b"").encode(), None);
    }
}
