//! One file of the outbox with records, and where in it they are. It must not know which of them are
//! done with.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{Frame, LARGEST, MARK, Mark, Scan};
use super::{Kind, Record};

/// The largest a segment becomes, unless a single record is larger.
pub(super) const LARGEST_SEGMENT: u64 = 4 << 20;

/// What a file takes on disk is a multiple of this.
pub(super) const BLOCK: u64 = 4096;

/// A record in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    offset: u32,
    length: u32,
}

/// A file with records, whose numbers rise.
#[derive(Debug)]
pub(super) struct Segment {
    /// The number of its first record, which it is named by.
    pub(super) first: u64,
    path: PathBuf,
    /// Where its last record ends, in bytes.
    length: u64,
    entries: Vec<Entry>,
    /// What its ids belong to, by their hashes.
    ids: HashMap<u64, Kind>,
    file: Option<Arc<File>>,
}

/// A record that is ready to be written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) number: u64,
    pub(super) kind: Kind,
    /// The hash of its id, if it has one.
    pub(super) id: Option<u64>,
    pub(super) bytes: Vec<u8>,
}

/// Why a record cannot be had.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// Its file is gone, and all others in it.
    Gone,
    /// It is damaged.
    Damaged,
    /// For now only.
    Refused(io::Error),
}

/// The name of the segment whose first record is `first`.
pub(super) fn name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// The reverse of [`name`].
pub(super) fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20)?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

impl Segment {
    /// A new file with `mark` and one record. No file is left behind by an error.
    pub(super) fn create(folder: &Path, mark: &[u8], record: &Encoded) -> io::Result<Self> {
        let path = folder.join(name(record.number));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path)?;
        let written = file.write_all_at(&[mark, &record.bytes].concat(), 0);
        if let Err(error) = written.and_then(|()| linked(&file)) {
            fs::remove_file(&path).ok();
            return Err(error);
        }
        let mut segment = Self {
            first: record.number,
            path,
            length: MARK as u64,
            entries: Vec::new(),
            ids: HashMap::new(),
            file: Some(Arc::new(file)),
        };
        segment.note(record);
        Ok(segment)
    }

    /// Puts a record behind the others.
    ///
    /// # Errors
    /// Afterwards nothing more may be put into it.
    pub(super) fn push(&mut self, record: &Encoded) -> io::Result<()> {
        let file = self.file.as_ref().expect("records are put into an open segment");
        let written = file.write_all_at(&record.bytes, self.length);
        if let Err(error) = written.and_then(|()| linked(file)) {
            file.set_len(self.length).ok();
            return Err(error);
        }
        self.note(record);
        Ok(())
    }

    fn note(&mut self, record: &Encoded) {
        let (offset, length) = (self.length as u32, record.bytes.len() as u32);
        self.entries.push(Entry { number: record.number, offset, length });
        self.ids.extend(record.id.map(|id| (id, record.kind)));
        self.length += u64::from(length);
    }

    /// Whether a record of so many bytes can follow as number `number` without making the file
    /// longer than `limit`.
    pub(super) fn takes(&self, number: u64, bytes: usize, limit: u64) -> bool {
        self.last() + 1 == number && self.length + bytes as u64 <= limit
    }

    /// Number of the last record; the one before the first if there is none.
    pub(super) fn last(&self) -> u64 {
        self.entries.last().map_or(self.first - 1, |entry| entry.number)
    }

    /// How many records come after number `after`.
    pub(super) fn count_after(&self, after: u64) -> usize {
        self.entries.len() - self.position(after)
    }

    fn position(&self, after: u64) -> usize {
        self.entries.partition_point(|entry| entry.number <= after)
    }

    /// What it takes on disk, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.length.next_multiple_of(BLOCK)
    }

    /// What the record with an id of that hash is.
    pub(super) fn kind_of(&self, id: u64) -> Option<Kind> {
        self.ids.get(&id).copied()
    }

    /// The file, if it is open.
    pub(super) fn file(&self) -> Option<Arc<File>> {
        self.file.clone()
    }

    /// The first record after number `after`. The file stays open.
    pub(super) fn read_after(&mut self, after: u64) -> Result<Record, Unreadable> {
        let entry = self.entries[self.position(after)];
        if self.file.is_none() {
            let file = File::open(&self.path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Unreadable::Gone,
                _ => Unreadable::Refused(error),
            })?;
            self.file = Some(Arc::new(file));
        }
        let file = self.file.as_ref().expect("it was just opened");
        let mut bytes = vec![0; entry.length as usize];
        file.read_exact_at(&mut bytes, entry.offset.into()).map_err(|_| Unreadable::Damaged)?;
        let record = record(&bytes).filter(|record| record.number == entry.number);
        record.ok_or(Unreadable::Damaged)
    }

    /// Forgets the first record after number `after`.
    pub(super) fn forget_after(&mut self, after: u64) {
        self.entries.remove(self.position(after));
    }

    /// Forgets all records.
    pub(super) fn forget_all(&mut self) {
        self.entries.clear();
    }

    /// Closes the file, unless it could not be opened again.
    pub(super) fn close(&mut self) {
        self.file.take_if(|file| linked(file).is_ok());
    }

    /// Removes the file, if it is still there.
    pub(super) fn delete(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "cannot remove");
        }
    }
}

/// A segment as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) segment: Segment,
    /// What it begins with, if that is whole.
    pub(super) mark: Option<Mark>,
    /// Numbers of records that are missing, in front of others.
    pub(super) gaps: Vec<Range<u64>>,
    /// The sequences that follow those of its records, by [`Kind`].
    pub(super) sequences: [u64; 2],
    /// How many records seem to have begun after the last one.
    pub(super) torn: u64,
    /// Bytes after the last record; nothing is known of them if the file could not be read whole.
    pub(super) tail: Option<u64>,
}

impl Found {
    /// Reads the file of the segment whose first record is `numbers.start`; `hash` is for ids.
    ///
    /// # Errors
    /// When it cannot be opened. What cannot be read in it is damage.
    pub(super) fn read(
        folder: &Path,
        numbers: Range<u64>,
        hash: impl Fn(&str) -> Option<u64>,
    ) -> io::Result<Self> {
        let first = numbers.start;
        let path = folder.join(name(first));
        let file = File::open(&path)?;
        let mut bytes = Vec::new();
        let whole = (&file).take(LARGEST_SEGMENT + LARGEST as u64).read_to_end(&mut bytes).is_ok();
        let scan = Scan::of(&bytes, numbers);
        let mut found = Self {
            segment: Segment {
                first,
                path,
                length: scan.end as u64,
                entries: Vec::with_capacity(scan.frames.len()),
                ids: HashMap::new(),
                file: None,
            },
            mark: scan.mark,
            gaps: Vec::new(),
            sequences: [1, 1],
            torn: if whole { scan.torn } else { scan.torn.max(1) },
            tail: None,
        };
        for (offset, length, frame) in scan.frames {
            let before = found.segment.last();
            if frame.number > before + 1 {
                found.gaps.push(before + 1..frame.number);
            }
            let (offset, length) = (offset as u32, length as u32);
            found.segment.entries.push(Entry { number: frame.number, offset, length });
            found.segment.ids.extend(hash(frame.id).map(|id| (id, frame.kind)));
            for (known, next) in found.sequences.iter_mut().zip(frame.next_sequences()) {
                *known = (*known).max(next);
            }
        }
        if whole {
            found.tail = Some(file.metadata()?.len().saturating_sub(found.segment.length));
        }
        Ok(found)
    }

    /// Cuts off what comes after the last record.
    pub(super) fn cut(&self) -> io::Result<()> {
        match self.tail {
            None | Some(0) => Ok(()),
            Some(_) => {
                File::options().write(true).open(&self.segment.path)?.set_len(self.segment.length)
            }
        }
    }

    /// Brings the file to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.segment.path)?.sync_data()
    }
}

/// The record in `bytes`, if it is whole.
pub(super) fn record(bytes: &[u8]) -> Option<Record> {
    let (frame, _) = Frame::decode(bytes)?;
    Some(Record {
        number: frame.number,
        kind: frame.kind,
        sequence: frame.sequence(),
        id: frame.id.to_owned(),
        payload: frame.payload.to_owned(),
        replayed: false,
    })
}

/// An error if nobody could open the file again, because it was removed.
fn linked(file: &File) -> io::Result<()> {
    match file.metadata()?.nlink() {
        0 => Err(io::Error::new(io::ErrorKind::NotFound, "the file was removed")),
        _ => Ok(()),
    }
}
