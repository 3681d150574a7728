//! What the outbox knows, and every change of it. It brings nothing to the disk's platter itself, so
//! that whoever holds it does not wait for that.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::folder::Folder;
use super::format::{Frame, LIMIT, MARK, Mark};
use super::segment::{self, BLOCK, Encoded, Found, LARGEST_SEGMENT, Segment, Unreadable};
use super::{Kind, OutboxError, Record, Settings, Status};
use crate::config;

/// The most records that are held in memory while the disk refuses them.
pub(super) const HELD: usize = 1000;

/// So many of the newest records stay even if they are done with, because of their ids. Segments are no
/// measure of that: a start that ends soon leaves a short one.
const KNOWN: u64 = 10_000;

/// Things that can be in trouble.
#[derive(Clone, Copy)]
enum Part {
    Write,
    Sync,
    Cursor,
    Read,
}

const PARTS: [&str; 4] = [
    "records are held in memory, they cannot be written",
    "records cannot be brought safely to the disk",
    "acknowledgements cannot be kept",
    "records cannot be read",
];

/// What is in memory.
pub(super) struct State {
    settings: Settings,
    /// Nothing after it was deleted, until it is made again.
    folder: Option<Folder>,
    mark: Mark,
    /// On disk, oldest first.
    segments: VecDeque<Segment>,
    /// Whether the newest segment is still written to.
    writing: bool,
    /// Records that the disk has refused, all newer than those on disk.
    held: VecDeque<Encoded>,
    hasher: RandomState,
    /// Up to this record everything was brought safely to the disk or at least tried to.
    tried: u64,
    /// Those of them where it failed.
    unsafe_numbers: Range<u64>,
    /// Earlier segments that are not brought to the disk yet.
    unsynced: Vec<Arc<File>>,
    /// Whether names in the folder are not brought to the disk yet.
    renamed: bool,
    /// The segment that was read last.
    reading: u64,
    /// Numbers below were there when it was opened.
    opened: u64,
    dropped_before: u64,
    damaged: u64,
    truncated: u64,
    troubles: [Option<String>; 4],
}

/// What has to be brought to the disk.
pub(super) struct Unsynced {
    files: Vec<Arc<File>>,
    folder: Option<Arc<File>>,
    pub(super) upto: u64,
}

impl Unsynced {
    pub(super) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.sync_data())?;
        self.folder.as_ref().map_or(Ok(()), |folder| folder.sync_all())
    }
}

impl State {
    pub(super) fn open(settings: Settings) -> Result<Self, OutboxError> {
        let folder = Folder::open(&settings.directory)?;
        let failed = |error| OutboxError::folder(&settings.directory, error);
        let hasher = RandomState::new();
        let hash = |id: &str| hash(&hasher, id);
        let firsts = folder.segments().map_err(failed)?;
        let mut all_found = Vec::new();
        for (index, first) in firsts.iter().enumerate() {
            let end = firsts.get(index + 1).copied().unwrap_or(LIMIT);
            all_found.push(Found::read(folder.path(), *first..end, hash).map_err(failed)?);
        }
        let Reckoning { mark, damaged, lost } = Reckoning::of(&all_found, folder.cursor());
        let truncated = all_found.iter().filter_map(|found| found.tail).sum();

        let durable = settings.durable();
        let kept = folder.set_cursor(&mark).and_then(|cursor| match durable {
            true => cursor.sync_all(),
            false => Ok(()),
        });
        let kept = match kept {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(error));
            }
            kept => kept,
        };
        let mut synced = Ok(());
        for found in &all_found {
            let result = found.cut().and_then(|()| match durable {
                true => found.sync(),
                false => Ok(()),
            });
            synced = synced.and(result);
        }
        let mut state = Self {
            settings,
            folder: Some(folder),
            segments: all_found.into_iter().map(|found| found.segment).collect(),
            writing: false,
            held: VecDeque::new(),
            hasher,
            tried: 0,
            unsafe_numbers: 0..0,
            unsynced: Vec::new(),
            renamed: false,
            reading: 0,
            opened: mark.next,
            dropped_before: mark.dropped,
            damaged,
            truncated,
            troubles: [const { None }; 4],
            mark,
        };
        state.report(Part::Cursor, kept);
        state.synced(state.mark.stored, synced);
        state.make_room(0);
        state.clear();

        let directory = state.settings.directory.display();
        let pending = state.pending();
        match (damaged + lost, truncated) {
            (0, 0) => tracing::info!(%directory, pending, "outbox opened"),
            (0, _) => tracing::warn!(%directory, pending, truncated, "outbox mended"),
            _ => {
                tracing::error!(%directory, pending, damaged, lost, truncated, "outbox is damaged")
            }
        }
        Ok(state)
    }

    /// Takes a record in; gives its number, 0 if it is too large to be one.
    pub(super) fn append(
        &mut self,
        kind: Kind,
        id: &str,
        payload: impl FnOnce(u64) -> Vec<u8>,
    ) -> u64 {
        let (number, sequences) = (self.mark.next, self.mark.sequences);
        let payload = payload(sequences[kind as usize]);
        let frame = Frame { number, sequences, kind, id, payload: &payload };
        self.mark.sequences = frame.next_sequences();
        let Some(bytes) = frame.encode() else {
            self.mark.dropped += 1;
            let bytes = payload.len();
            tracing::error!(?kind, id, bytes, "dropped, larger than the outbox allows");
            self.keep_mark();
            return 0;
        };
        self.mark.next += 1;
        self.held.push_back(Encoded { number, kind, id: hash(&self.hasher, id), bytes });
        self.write_held();
        number
    }

    /// Writes what is held in memory, as far as the disk takes it.
    fn write_held(&mut self) {
        let mut written = Ok(());
        while let Some(record) = self.held.pop_front() {
            written = self.write(&record);
            if written.is_err() {
                self.held.push_front(record);
                break;
            }
            (self.mark.stored, self.mark.first) = (record.number, record.number + 1);
        }
        while self.held.len() > HELD {
            let record = self.held.pop_front().expect("there are some");
            self.mark.dropped += u64::from(record.number > self.mark.done);
            self.mark.first = record.number + 1;
        }
        // The cursor must know what is not on disk yet, and when it is.
        if written.is_err() || self.troubles[Part::Write as usize].is_some() {
            self.keep_mark();
        }
        self.report(Part::Write, written);
    }

    fn write(&mut self, record: &Encoded) -> io::Result<()> {
        let limit = self.segment_size();
        let newest = self.segments.back_mut().filter(|_| self.writing);
        let taking = newest.filter(|s| s.takes(record.number, record.bytes.len(), limit));
        let written = match taking {
            Some(segment) => segment.push(record),
            None => self.begin(record),
        };
        if let Err(error) = &written {
            self.seal();
            if error.kind() == io::ErrorKind::NotFound {
                self.folder = None;
            }
        }
        written
    }

    /// Begins a segment.
    fn begin(&mut self, record: &Encoded) -> io::Result<()> {
        self.seal();
        let least = (MARK + record.bytes.len()) as u64;
        self.make_room(self.segment_size().max(least));
        let mark = self.mark.encode();
        let segment = Segment::create(self.folder()?.path(), &mark, record)?;
        self.segments.push_back(segment);
        self.clear();
        (self.writing, self.renamed) = (true, true);
        Ok(())
    }

    /// Writes nothing more to the newest segment.
    fn seal(&mut self) {
        if !std::mem::take(&mut self.writing) {
            return;
        }
        let newest = self.segments.back_mut().expect("it was written to");
        if self.settings.durable() && self.tried < self.mark.stored {
            self.unsynced.extend(newest.file());
        }
        newest.close();
    }

    /// The folder, made anew if it was deleted.
    fn folder(&mut self) -> io::Result<&Folder> {
        if self.folder.is_none() {
            let folder = Folder::open(&self.settings.directory).map_err(io::Error::other)?;
            self.folder = Some(folder);
        }
        Ok(self.folder.as_ref().expect("it was just opened"))
    }

    /// The largest a segment may become.
    fn segment_size(&self) -> u64 {
        (self.settings.max_bytes / 16).clamp(BLOCK, LARGEST_SEGMENT)
    }

    fn bytes(&self) -> u64 {
        BLOCK + self.segments.iter().map(Segment::size).sum::<u64>()
    }

    /// Drops oldest segments until there is room for so many bytes more. They are counted before they
    /// are deleted.
    fn make_room(&mut self, bytes: u64) {
        let bytes = bytes.next_multiple_of(BLOCK);
        let mut doomed = Vec::new();
        while self.bytes() + bytes > self.settings.max_bytes
            && let Some(segment) = self.segments.pop_front()
        {
            self.mark.dropped += segment.count_after(self.mark.done) as u64;
            self.mark.done = self.mark.done.max(segment.last());
            doomed.push(segment);
        }
        self.delete(&doomed);
    }

    /// Deletes oldest segments in which all is done with and whose ids need not be known any more.
    fn clear(&mut self) {
        let dispensable = self.mark.done.min(self.mark.stored.saturating_sub(KNOWN));
        let mut doomed = Vec::new();
        while self.segments.len() > 1 && self.segments[0].last() <= dispensable {
            doomed.extend(self.segments.pop_front());
        }
        self.delete(&doomed);
    }

    fn delete(&mut self, doomed: &[Segment]) {
        if !doomed.is_empty() {
            self.keep_mark();
            doomed.iter().for_each(Segment::delete);
            self.renamed = true;
        }
    }

    /// Writes the cursor.
    fn keep_mark(&mut self) {
        let kept = match &self.folder {
            Some(folder) => folder.set_cursor(&self.mark).map(drop),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "the folder was removed")),
        };
        self.report(Part::Cursor, kept);
    }

    /// Does what failed before.
    pub(super) fn try_again(&mut self) {
        if !self.held.is_empty() {
            self.write_held();
        } else if self.troubles[Part::Cursor as usize].is_some() {
            self.keep_mark();
        }
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        let number = number.min(self.mark.next - 1);
        if number > self.mark.done {
            self.mark.done = number;
            self.keep_mark();
            self.clear();
        }
    }

    /// The first record after number `after` that is not done with.
    pub(super) fn next(&mut self, after: u64) -> Option<Record> {
        let after = after.max(self.mark.done);
        let opened = self.opened;
        let replayed = |record: Record| Record { replayed: record.number < opened, ..record };
        loop {
            let from = self.segments.partition_point(|segment| segment.last() <= after);
            let mut newer = self.segments.range_mut(from..);
            let Some(segment) = newer.find(|segment| segment.count_after(after) > 0) else {
                let index = self.held.partition_point(|record| record.number <= after);
                let record = segment::record(&self.held.get(index)?.bytes);
                return Some(record.expect("it was written right"));
            };
            let first = segment.first;
            let lost = match segment.read_after(after) {
                Ok(record) => {
                    self.report(Part::Read, Ok(()));
                    self.close_but(first);
                    return Some(replayed(record));
                }
                Err(Unreadable::Refused(error)) => {
                    self.report(Part::Read, Err(error));
                    return None;
                }
                Err(Unreadable::Damaged) => {
                    segment.forget_after(after);
                    1
                }
                Err(Unreadable::Gone) => {
                    let lost = segment.count_after(self.mark.done);
                    segment.forget_all();
                    lost
                }
            };
            self.damaged += lost as u64;
            let directory = self.settings.directory.display();
            tracing::error!(%directory, segment = first, lost, "records were damaged or removed");
        }
    }

    /// Closes the segment that was read before, if it is not the one given or the one written to.
    fn close_but(&mut self, first: u64) {
        let before = std::mem::replace(&mut self.reading, first);
        let written_to = self.segments.back().filter(|_| self.writing).map(|s| s.first);
        if before == first || Some(before) == written_to {
            return;
        }
        if let Ok(index) = self.segments.binary_search_by_key(&before, |segment| segment.first) {
            self.segments[index].close();
        }
    }

    pub(super) fn settled(&self, number: u64) -> bool {
        number <= self.mark.done
            || match self.settings.sync {
                config::Sync::Never => number < self.mark.first,
                _ => number <= self.tried && !self.unsafe_numbers.contains(&number),
            }
    }

    pub(super) fn knows(&self, id: &str) -> Option<Kind> {
        let id = hash(&self.hasher, id)?;
        let held = self.held.iter().rev().find(|record| record.id == Some(id));
        let held = held.map(|record| record.kind);
        held.or_else(|| self.segments.iter().rev().find_map(|segment| segment.kind_of(id)))
    }

    /// What is not brought to the disk yet; counts as being tried.
    pub(super) fn unsynced(&mut self) -> Option<Unsynced> {
        if self.tried >= self.mark.stored && !self.renamed {
            return None;
        }
        let mut files = std::mem::take(&mut self.unsynced);
        if self.writing {
            files.extend(self.segments.back().and_then(Segment::file));
        }
        let renamed = std::mem::take(&mut self.renamed);
        let folder = self.folder.as_ref().filter(|_| renamed).map(Folder::handle);
        Some(Unsynced { files, folder, upto: self.mark.stored })
    }

    /// Everything up to number `upto` was brought to the disk, or it failed: what failed once may be
    /// lost though a second try succeeds, so it never counts as safe.
    pub(super) fn synced(&mut self, upto: u64, result: io::Result<()>) {
        if result.is_err() {
            let from = match self.unsafe_numbers.is_empty() {
                true => self.tried + 1,
                false => self.unsafe_numbers.start,
            };
            self.unsafe_numbers = from..upto + 1;
        }
        self.tried = self.tried.max(upto);
        if result.is_err() {
            self.seal();
        }
        self.report(Part::Sync, result);
    }

    pub(super) fn status(&self) -> Status {
        Status {
            pending: self.pending(),
            held: self.held.len() as u64,
            bytes: self.bytes(),
            dropped: self.mark.dropped,
            dropped_since_open: self.mark.dropped - self.dropped_before,
            damaged: self.damaged,
            truncated: self.truncated,
            trouble: self.trouble().map(str::to_owned),
        }
    }

    fn pending(&self) -> u64 {
        let done = self.mark.done;
        let stored: usize = self.segments.iter().map(|segment| segment.count_after(done)).sum();
        let held = self.held.partition_point(|record| record.number <= done);
        (stored + self.held.len() - held) as u64
    }

    fn trouble(&self) -> Option<&str> {
        self.troubles.iter().find_map(Option::as_deref)
    }

    /// Notes whether a part works. It is logged when the first one does not, and when all do again.
    fn report(&mut self, part: Part, result: io::Result<()>) {
        let index = part as usize;
        if result.is_ok() && self.troubles[index].is_none() {
            return;
        }
        let before = self.trouble().is_some();
        self.troubles[index] = result.err().map(|error| format!("{}: {error}", PARTS[index]));
        let directory = self.settings.directory.display();
        match (before, self.trouble()) {
            (false, Some(trouble)) => tracing::error!(%directory, trouble, "outbox in trouble"),
            (true, None) => tracing::info!(%directory, "outbox works again"),
            _ => {}
        }
    }
}

/// Nothing for an empty id, which many records may have.
fn hash(hasher: &RandomState, id: &str) -> Option<u64> {
    (!id.is_empty()).then(|| hasher.hash_one(id))
}

/// What segments and cursor say together.
#[derive(Debug)]
struct Reckoning {
    /// How things stand.
    mark: Mark,
    /// Records that were on disk, and are not, nor are done with.
    damaged: u64,
    /// Records that were in memory when it ended, and are not done with; counted as dropped.
    lost: u64,
}

impl Reckoning {
    fn of(all_found: &[Found], cursor: Option<Mark>) -> Self {
        let mut mark = Mark::default();
        let mut gaps = Vec::new();
        // Up to here every number is found or in a gap.
        let mut seen = all_found.first().map_or(0, |found| found.segment.first - 1);
        for found in all_found {
            let before = found.segment.first - 1;
            gaps.push(seen + 1..found.mark.as_ref().map_or(before, |mark| mark.stored) + 1);
            gaps.extend(found.gaps.iter().cloned());
            seen = found.segment.last();
            if let Some(begun) = &found.mark {
                mark.raise(begun);
                mark.done = mark.done.max(begun.done);
            }
            mark.raise(&Mark { sequences: found.sequences, ..Mark::default() });
        }
        let mut lost = 0..0;
        let torn = all_found.last().map_or(0, |found| found.torn);
        mark.next = mark.next.max(seen + 1);
        let (mut stored, mut unexplained) = (seen, seen + 1);
        if let Some(cursor) = cursor {
            mark.raise(&cursor);
            // If records are missing that it knows, those before may not be what it spoke of.
            if cursor.stored <= seen || cursor.done <= seen {
                mark.done = mark.done.max(cursor.done);
            }
            gaps.push(seen + 1..cursor.stored + 1);
            lost = cursor.first.max(seen + 1)..cursor.next;
            stored = stored.max(cursor.stored);
            unexplained = unexplained.max(cursor.next);
        }
        let end = mark.next.max(seen + torn + 1);
        if unexplained < end {
            gaps.push(unexplained..end);
            stored = end - 1;
        }

        let done = mark.done;
        let count = |range: &Range<u64>| range.end.saturating_sub(range.start.max(done + 1));
        let damaged = gaps.iter().map(count).sum();
        let lost = count(&lost);
        // Nobody knows of which kind those were that seem to have begun.
        let sequences = mark.sequences.map(|sequence| sequence + (end - mark.next));
        let dropped = mark.dropped + lost;
        let mark = Mark { first: end, stored, next: end, sequences, done, dropped };
        Self { mark, damaged, lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(state: &mut State) -> u64 {
        state.append(Kind::Prediction, "", |sequence| vec![sequence as u8])
    }

    #[test]
    fn what_could_not_be_synchronised_is_not_safe_though_a_later_try_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().to_owned();
        let sync = config::Sync::Interval;
        let settings = Settings { directory, max_bytes: 1 << 20, sync };
        let mut state = State::open(settings).unwrap();
        let numbers: [u64; 2] = std::array::from_fn(|_| append(&mut state));
        let unsynced = state.unsynced().unwrap();
        let during = append(&mut state);
        state.synced(unsynced.upto, Err(io::Error::from_raw_os_error(5)));
        assert!(state.status().trouble.unwrap().contains("os error 5"));
        assert!(!numbers.iter().any(|number| state.settled(*number)));

        let after = append(&mut state);
        assert_eq!(state.segments.len(), 2, "a file that failed is written to");
        let unsynced = state.unsynced().unwrap();
        assert_eq!(unsynced.files.len(), 2);
        state.synced(unsynced.upto, unsynced.sync());
        assert_eq!(state.status().trouble, None);
        let settled = [numbers[0], numbers[1], during, after].map(|number| state.settled(number));
        assert_eq!(settled, [false, false, true, true]);
        assert!(state.unsynced().is_none());
        state.acknowledge(numbers[1]);
        assert!(state.settled(numbers[0]) && state.settled(numbers[1]));
    }
}
