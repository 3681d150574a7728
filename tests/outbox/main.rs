//! The outbox on a real disk: what it promises while nothing goes wrong, and how fast it is.

mod damage;
mod disk;
mod model;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vggd::config::Sync;
use vggd::outbox::{Kind, Outbox, OutboxError, Record, Settings};

/// Sixteen segments of a block each.
const SMALL: u64 = 64 << 10;

/// Length of what most records say, such that a small segment has six.
const LENGTH: usize = 540;

/// Room for everything that a test appends.
const LARGE: u64 = 64 << 20;

fn open(folder: &Path, max_bytes: u64) -> Outbox {
    let directory = folder.to_owned();
    Outbox::open(Settings { directory, max_bytes, sync: Sync::Interval }).unwrap()
}

/// What record `index` of a test says: found in a file by its beginning, which no other has.
fn payload(index: u64, length: usize) -> Vec<u8> {
    let mut text = format!("{{\"record\":\"<{index}>\",\"more\":\"").into_bytes();
    text.extend((0..length as u64).map(|at| b'a' + ((at * 7 + index) % 26) as u8));
    text.extend(b"\"}");
    text
}

fn append(outbox: &Outbox, index: u64) -> u64 {
    outbox.append(Kind::Prediction, &format!("photo{index}"), |_| payload(index, LENGTH))
}

/// Appends records whose numbers are their indices.
fn append_all(outbox: &Outbox, indices: std::ops::RangeInclusive<u64>) {
    for index in indices {
        assert_eq!(append(outbox, index), index);
    }
}

/// Everything that is not acknowledged.
fn pending(outbox: &Outbox) -> Vec<Record> {
    let mut after = 0;
    let next = || {
        let record = outbox.next(after)?;
        after = record.number;
        Some(record)
    };
    std::iter::from_fn(next).collect()
}

fn numbers(outbox: &Outbox) -> Vec<u64> {
    pending(outbox).iter().map(|record| record.number).collect()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

fn cursor(folder: &Path) -> PathBuf {
    folder.join("cursor")
}

/// Changes the byte of a file at `at`; counts from its end if that is negative.
fn flip(path: &Path, at: i64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let at = at.checked_rem_euclid(length as i64).unwrap() as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

fn cut(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

/// Where record `index` lies in the file at `path`: its first byte and its end.
fn place(path: &Path, id: &str, payload: &[u8]) -> Option<(u64, u64)> {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(payload.len()).position(|window| window == payload)?;
    Some(((at - id.len() - 39) as u64, (at + payload.len()) as u64))
}

fn place_of(path: &Path, index: u64) -> (u64, u64) {
    place(path, &format!("photo{index}"), &payload(index, LENGTH)).expect("it is there")
}

#[test]
fn records_come_out_in_order_until_they_are_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), LARGE);
    assert_eq!((outbox.next(0), outbox.knows("photo1")), (None, None));
    for index in 1..=10 {
        let kind = if index % 5 == 0 { Kind::Failure } else { Kind::Prediction };
        let number = outbox
            .append(kind, &format!("photo{index}"), |sequence| format!("{sequence}").into_bytes());
        assert_eq!(number, index);
    }
    let records = pending(&outbox);
    let sequences: Vec<u64> = records.iter().map(|record| record.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 1, 5, 6, 7, 8, 2]);
    assert!(records.iter().all(|r| r.payload == r.sequence.to_string().as_bytes() && !r.replayed));
    outbox.acknowledge(4);
    outbox.acknowledge(2);
    assert_eq!(numbers(&outbox), [5, 6, 7, 8, 9, 10]);
    drop(outbox);

    let outbox = open(folder.path(), LARGE);
    assert_eq!(append(&outbox, 11), 11);
    let records = pending(&outbox);
    assert_eq!(records.iter().map(|r| r.number).collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10, 11]);
    assert!(records.iter().all(|record| record.replayed == (record.number <= 10)));
    assert_eq!(records[6].sequence, 9);
    let known = ["photo1", "photo5", "photo11", "photo12", ""].map(|id| outbox.knows(id));
    let [prediction, failure] = [Some(Kind::Prediction), Some(Kind::Failure)];
    assert_eq!(known, [prediction, failure, prediction, None, None]);
    outbox.acknowledge(u64::MAX);
    assert_eq!((outbox.next(0), outbox.status().pending), (None, 0));
    assert_eq!(append(&outbox, 12), 12);
    assert_eq!(numbers(&outbox), [12]);
}

#[test]
fn numbers_and_recent_ids_survive_when_all_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    for start in 0..20 {
        let outbox = open(folder.path(), SMALL);
        for index in 1..=10 {
            let index = start * 10 + index;
            assert_eq!(append(&outbox, index), index);
            outbox.acknowledge(index);
            assert!(outbox.knows(&format!("photo{index}")).is_some());
        }
        assert!(outbox.status().bytes <= SMALL);
    }
    fs::remove_file(cursor(folder.path())).unwrap();
    let outbox = open(folder.path(), SMALL);
    assert!(outbox.knows("photo200").is_some() && outbox.knows("photo1").is_none());
    assert_eq!((append(&outbox, 201), outbox.status().dropped), (201, 0));
}

#[test]
fn ids_survive_starts_that_end_soon() {
    let folder = tempfile::tempdir().unwrap();
    for index in 1..=30 {
        let outbox = open(folder.path(), LARGE);
        assert_eq!(append(&outbox, index), index);
        outbox.acknowledge(index);
        assert!((1..=index).all(|index| outbox.knows(&format!("photo{index}")).is_some()));
    }
}

#[test]
fn what_is_done_with_goes_when_enough_has_followed() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), 1 << 20);
    for index in 1..=13_000 {
        let number = outbox.append(Kind::Failure, &format!("photo{index}"), |_| Vec::new());
        outbox.acknowledge(number);
    }
    let known = [1, 3_001, 13_000].map(|index| outbox.knows(&format!("photo{index}")).is_some());
    assert_eq!(known, [false, true, true]);
    let status = outbox.status();
    assert_eq!((status.dropped, status.pending), (0, 0));
}

#[test]
fn what_is_promised_is_kept_before_a_record_is_settled() {
    for sync in [Sync::Always, Sync::Interval, Sync::Never] {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("a/b");
        let settings = Settings { directory: directory.clone(), max_bytes: LARGE, sync };
        let outbox = Outbox::open(settings.clone()).unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let number = append(&outbox, 1);
        assert_eq!(outbox.settled(number), sync == Sync::Never, "{sync:?}");
        outbox.flush();
        assert!(outbox.settled(number) && !outbox.settled(number + 1));
        let number = append(&outbox, 2);
        outbox.acknowledge(number);
        assert!(outbox.settled(number));
        append(&outbox, 3);
        drop(outbox);
        assert!(Outbox::open(settings).unwrap().settled(3), "{sync:?}");
    }
}

#[test]
fn when_it_is_full_the_oldest_go_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), SMALL);
    let size = || -> u64 {
        let entries = fs::read_dir(folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    for index in 1..=500 {
        append(&outbox, index);
        assert!(size() <= SMALL && outbox.status().bytes <= SMALL);
    }
    let left = numbers(&outbox);
    let dropped = 500 - left.len() as u64;
    assert!(left.len() > 50, "only {} left", left.len());
    assert_eq!(left, (dropped + 1..=500).collect::<Vec<_>>());
    let status = outbox.status();
    assert_eq!((status.dropped, status.dropped_since_open), (dropped, dropped));
    assert!(outbox.settled(dropped));
    drop(outbox);

    let outbox = open(folder.path(), SMALL);
    assert_eq!(numbers(&outbox), left);
    let status = outbox.status();
    let counts = (status.dropped, status.dropped_since_open, status.damaged, status.truncated);
    assert_eq!(counts, (dropped, 0, 0, 0));
    drop(outbox);
    let outbox = open(folder.path(), SMALL / 2);
    let fewer = numbers(&outbox).len() as u64;
    assert!(0 < fewer && fewer < left.len() as u64);
    assert_eq!(outbox.status().dropped, 500 - fewer);
}

#[test]
fn a_record_that_is_too_large_is_dropped_alone() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), 1 << 20);
    assert_eq!(append(&outbox, 1), 1);
    assert_eq!(outbox.append(Kind::Prediction, "big", |_| vec![b' '; 300_000]), 0);
    assert!(outbox.settled(0));
    let whole = outbox.append(Kind::Prediction, "whole", |_| vec![b' '; 250_000]);
    assert_eq!((whole, append(&outbox, 3)), (2, 3));
    drop(outbox);
    let outbox = open(folder.path(), 1 << 20);
    let sequences: Vec<u64> = pending(&outbox).iter().map(|record| record.sequence).collect();
    assert_eq!(sequences, [1, 3, 4]);
    let status = outbox.status();
    assert_eq!((status.dropped, status.damaged), (1, 0));
}

#[test]
fn two_at_once_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), LARGE);
    let again = || {
        let (directory, sync) = (folder.path().to_owned(), Sync::Never);
        Outbox::open(Settings { directory, max_bytes: LARGE, sync })
    };
    let error = again().err().expect("it is locked");
    assert!(matches!(error, OutboxError::InUse { .. }));
    assert!(error.to_string().contains("another vggd uses it"), "{error}");
    drop(outbox);
    again().unwrap();
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("file/outbox");
    fs::write(folder.path().join("file"), "").unwrap();
    let settings = Settings { directory: directory.clone(), max_bytes: LARGE, sync: Sync::Never };
    let error = Outbox::open(settings).err().expect("a file is in the way");
    assert!(
        matches!(&error, OutboxError::Folder { folder, .. } if *folder == directory),
        "{error}"
    );
}

#[test]
fn threads_append_and_deliver_at_once() {
    const EACH: u64 = 200;
    for sync in [Sync::Always, Sync::Interval] {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { directory: folder.path().to_owned(), max_bytes: 1 << 20, sync };
        let outbox = Outbox::open(settings).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let outbox = &outbox;
                scope.spawn(move || {
                    for index in 0..EACH {
                        let number = append(outbox, thread * EACH + index);
                        if sync == Sync::Always {
                            outbox.flush();
                            assert!(outbox.settled(number));
                        }
                    }
                    outbox.flush();
                });
            }
            let mut seen = BTreeSet::new();
            let mut last = 0;
            let deadline = Instant::now() + Duration::from_secs(60);
            while last < 4 * EACH {
                let Some(record) = outbox.next(last) else {
                    assert!(Instant::now() < deadline, "only {last} arrived");
                    std::thread::yield_now();
                    continue;
                };
                assert_eq!((record.number, record.sequence), (last + 1, last + 1));
                assert!(seen.insert(record.id));
                last = record.number;
                outbox.acknowledge(last);
            }
        });
        assert_eq!(outbox.status().pending, 0);
        assert!(outbox.settled(4 * EACH));
    }
}

#[test]
#[ignore = "prints how fast it is, run it with --release --nocapture"]
fn speed() {
    let kept = std::env::var_os("OUTBOX_FOLDER");
    for (sync, count) in [(Sync::Always, 500), (Sync::Interval, 50_000), (Sync::Never, 50_000)] {
        let folder = match &kept {
            Some(folder) => tempfile::tempdir_in(folder).unwrap(),
            None => tempfile::tempdir().unwrap(),
        };
        let settings = Settings { directory: folder.path().to_owned(), max_bytes: LARGE, sync };
        let outbox = Outbox::open(settings.clone()).unwrap();
        let start = Instant::now();
        let mut flushed = Instant::now();
        for index in 0..count {
            outbox.append(Kind::Prediction, &format!("photo{index}"), |_| vec![b'x'; 600]);
            if sync == Sync::Always || flushed.elapsed().as_secs() >= 1 {
                outbox.flush();
                flushed = Instant::now();
            }
        }
        outbox.flush();
        let appended = count as f64 / start.elapsed().as_secs_f64();
        drop(outbox);
        let start = Instant::now();
        let outbox = Outbox::open(settings).unwrap();
        let opened = start.elapsed();
        let start = Instant::now();
        let mut last = 0;
        while let Some(record) = outbox.next(last) {
            last = record.number;
            outbox.acknowledge(last);
        }
        let delivered = count as f64 / start.elapsed().as_secs_f64();
        println!(
            "{sync:?}: {appended:.0} appended/s, {delivered:.0} delivered/s, opened in {opened:?}"
        );
    }
}
