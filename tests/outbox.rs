//! The outbox on a real disk: every kind of damage, every way to end, and what fills it.

#[path = "common/witness.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;
use vggd::config::Sync;
use vggd::outbox::{Kind, Outbox, OutboxError, Record, Settings, Status};

/// Sixteen segments of a block each.
const SMALL: u64 = 64 << 10;

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
    outbox.append(Kind::Prediction, &format!("photo{index}"), |_| payload(index, 600))
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
    place(path, &format!("photo{index}"), &payload(index, 600)).expect("it is there")
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
        assert!(segments(folder.path()).len() <= 2);
    }
    fs::remove_file(cursor(folder.path())).unwrap();
    let outbox = open(folder.path(), SMALL);
    assert!(outbox.knows("photo200").is_some() && outbox.knows("photo1").is_none());
    assert_eq!((append(&outbox, 201), outbox.status().dropped), (201, 0));
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
        assert_eq!(outbox.settled(number), sync != Sync::Interval, "{sync:?}");
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
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    drop(outbox);
    again().unwrap();
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("file/outbox");
    fs::write(folder.path().join("file"), "").unwrap();
    let settings = Settings { directory: directory.clone(), max_bytes: LARGE, sync: Sync::Never };
    let error = Outbox::open(settings).err().expect("a file is in the way").to_string();
    assert!(error.contains(directory.to_str().unwrap()), "{error}");
}

/// What a folder with damage must lead to.
#[derive(Default)]
struct Expected {
    /// Records that cannot be had any more, and are counted.
    damaged: &'static [u64],
    /// Whether something is cut off.
    truncated: bool,
    /// Whether acknowledgements are forgotten.
    repeats: bool,
}

/// Twenty records in several segments, of which three are acknowledged, `harm` done to their folder,
/// and what is found afterwards, twice over.
#[track_caller]
fn check(expected: &Expected, harm: impl FnOnce(&Path, &[PathBuf])) {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), SMALL);
    append_all(&outbox, 1..=20);
    outbox.acknowledge(3);
    drop(outbox);
    let files = segments(folder.path());
    assert!(files.len() >= 4, "{files:?}");
    harm(folder.path(), &files);

    let from = if expected.repeats { 1 } else { 4 };
    let mut left: Vec<u64> = (from..=20).filter(|n| !expected.damaged.contains(n)).collect();
    for newest in [21, 22] {
        let outbox = open(folder.path(), SMALL);
        let records = pending(&outbox);
        assert_eq!(records.iter().map(|r| r.number).collect::<Vec<_>>(), left);
        for record in &records {
            assert_eq!(record.payload, payload(record.number, 600));
            assert_eq!(outbox.knows(&record.id), Some(Kind::Prediction));
            assert_eq!(record.sequence, record.number);
        }
        let status = outbox.status();
        assert_eq!(status.damaged, expected.damaged.len() as u64);
        assert_eq!(status.truncated > 0, expected.truncated && newest == 21, "{status:?}");
        assert_eq!((status.pending, status.dropped), (left.len() as u64, 0));
        assert_eq!(append(&outbox, newest), newest);
        left.push(newest);
        assert_eq!(numbers(&outbox), left);
    }
}

#[test]
fn a_torn_tail() {
    let expected = Expected { damaged: &[20], truncated: true, ..Expected::default() };
    check(&expected, |_, files| {
        let newest = files.last().unwrap();
        cut(newest, place_of(newest, 20).1 - 1);
    });
    check(&expected, |_, files| {
        let newest = files.last().unwrap();
        cut(newest, place_of(newest, 20).0 + 1);
    });
    let unseen = Expected { damaged: &[20], ..Expected::default() };
    check(&unseen, |_, files| {
        let newest = files.last().unwrap();
        cut(newest, place_of(newest, 20).0);
    });
}

#[test]
fn a_tail_of_zeros_in_place_of_a_record() {
    let expected = Expected { damaged: &[20], truncated: true, ..Expected::default() };
    check(&expected, |_, files| {
        let newest = files.last().unwrap();
        let (start, end) = place_of(newest, 20);
        cut(newest, start);
        cut(newest, end);
    });
}

#[test]
fn a_cut_header() {
    let expected = Expected { damaged: &[19, 20], truncated: true, repeats: false };
    check(&expected, |_, files| {
        assert!(files.last().unwrap().ends_with("00000000000000000019.seg"));
        cut(files.last().unwrap(), 30);
    });
}

#[test]
fn an_empty_segment() {
    let expected = Expected { damaged: &[19, 20], ..Expected::default() };
    check(&expected, |_, files| cut(files.last().unwrap(), 0));
    let middle = Expected { damaged: &[7, 8, 9, 10, 11, 12], ..Expected::default() };
    check(&middle, |_, files| cut(&files[1], 0));
}

#[test]
fn a_flipped_byte_of_a_record() {
    let expected = Expected { damaged: &[8], ..Expected::default() };
    for at in [0, 4, 7, 8, 12, 19, 20, 28, 36, 37, 39, 50, 300, 600] {
        check(&expected, |_, files| flip(&files[1], place_of(&files[1], 8).0 as i64 + at));
    }
    let expected = Expected { damaged: &[20], truncated: true, ..Expected::default() };
    check(&expected, |_, files| flip(files.last().unwrap(), -5));
    let acknowledged = Expected::default();
    check(&acknowledged, |_, files| flip(&files[0], place_of(&files[0], 2).0 as i64 + 100));
}

#[test]
fn a_flipped_byte_of_a_header() {
    for index in [0, 1, 3] {
        for at in [0, 8, 30, 67] {
            check(&Expected::default(), |_, files| flip(&files[index], at));
        }
    }
}

#[test]
fn no_cursor_or_a_damaged_one() {
    let expected = Expected { repeats: true, ..Expected::default() };
    check(&expected, |folder, _| fs::remove_file(cursor(folder)).unwrap());
    check(&expected, |folder, _| cut(&cursor(folder), 0));
    check(&expected, |folder, _| cut(&cursor(folder), 40));
    for at in [0, 8, 48, 67] {
        check(&expected, |folder, _| flip(&cursor(folder), at));
    }
}

#[test]
fn a_segment_removed_from_the_middle() {
    let expected = Expected { damaged: &[7, 8, 9, 10, 11, 12], ..Expected::default() };
    check(&expected, |_, files| fs::remove_file(&files[1]).unwrap());
}

#[test]
fn foreign_files_in_the_folder() {
    let names = ["README", "1.seg", "99999999999999999999.seg", "0000000000000000000x.seg"];
    check(&Expected::default(), |folder, _| {
        for name in names {
            fs::write(folder.join(name), "not ours").unwrap();
        }
        fs::create_dir(folder.join("00000000000000000030.seg")).unwrap();
        fs::write(folder.join("00000000000000000030.seg/x"), "").unwrap();
    });
}

#[test]
fn a_cursor_from_the_future() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), SMALL);
    append_all(&outbox, 1..=8);
    outbox.acknowledge(3);
    let before: Vec<_> =
        segments(folder.path()).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    append_all(&outbox, 9..=30);
    outbox.acknowledge(25);
    drop(outbox);
    segments(folder.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
    before.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());

    let outbox = open(folder.path(), SMALL);
    assert_eq!(numbers(&outbox), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(outbox.status().damaged, 22);
    let number = outbox.append(Kind::Prediction, "", |sequence| vec![sequence as u8]);
    let record = outbox.next(number - 1).unwrap();
    assert_eq!((number, record.sequence), (31, 31));
    assert_eq!(record.payload, [31]);
}

#[test]
fn damage_while_it_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), SMALL);
    append_all(&outbox, 1..=20);
    let files = segments(folder.path());
    flip(&files[0], place_of(&files[0], 2).0 as i64 + 100);
    fs::remove_file(&files[1]).unwrap();
    assert_eq!(numbers(&outbox), [1, 3, 4, 5, 6, 13, 14, 15, 16, 17, 18, 19, 20]);
    assert_eq!(outbox.status().damaged, 7);
    assert_eq!(outbox.status().pending, 13);
    drop(outbox);
    assert_eq!(open(folder.path(), SMALL).status().damaged, 7);
}

#[test]
fn the_folder_is_deleted_while_it_is_open() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("outbox");
    let outbox = open(&folder, SMALL);
    append_all(&outbox, 1..=3);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(append(&outbox, 4), 4);
    let status = outbox.status();
    assert_eq!(status.held, 1);
    assert!(status.trouble.unwrap().contains("removed"));
    assert!(!outbox.settled(4));
    assert_eq!(append(&outbox, 5), 5);
    let status = outbox.status();
    assert_eq!((status.held, status.trouble), (0, None));
    outbox.flush();
    assert!(outbox.settled(5));
    assert_eq!(numbers(&outbox), [1, 2, 3, 4, 5]);
    outbox.acknowledge(1);
    assert_eq!(outbox.status().trouble, None);
    drop(outbox);
    let outbox = open(&folder, SMALL);
    assert_eq!(numbers(&outbox), [4, 5]);
    assert_eq!(append(&outbox, 6), 6);
}

#[test]
fn the_folder_cannot_be_made_again_for_long() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("outbox");
    let outbox = open(&folder, LARGE);
    append(&outbox, 1);
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "in the way").unwrap();
    append_all(&outbox, 2..=1501);
    let status = outbox.status();
    assert_eq!((status.held, status.dropped, status.pending), (1000, 500, 1001));
    let left: Vec<u64> = std::iter::once(1).chain(502..=1501).collect();
    assert_eq!(numbers(&outbox), left);
    assert!(outbox.knows("photo1501").is_some() && outbox.knows("photo500").is_none());
    outbox.acknowledge(1001);
    fs::remove_file(&folder).unwrap();
    outbox.flush();
    let status = outbox.status();
    assert_eq!((status.held, status.trouble), (0, None));
    assert!(outbox.settled(1501));
    drop(outbox);
    let outbox = open(&folder, LARGE);
    assert_eq!(numbers(&outbox), (1002..=1501).collect::<Vec<_>>());
    let status = outbox.status();
    assert_eq!((status.dropped, status.damaged), (500, 0));
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
                        assert!(outbox.settled(number) || sync == Sync::Interval);
                    }
                    outbox.flush();
                });
            }
            let mut seen = BTreeSet::new();
            let mut last = 0;
            let deadline = Instant::now() + std::time::Duration::from_secs(60);
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

/// Runs this program's test `role` in a process of its own, by `shell`, in which `"$@"` is it.
fn child(role: &str, shell: &str, folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", shell, "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", role, "--ignored", "--nocapture", "--quiet"]);
    command.env("OUTBOX_FOLDER", folder).stdin(Stdio::null());
    command
}

fn folder_of_child() -> PathBuf {
    std::env::var_os("OUTBOX_FOLDER").expect("another test runs this one").into()
}

#[test]
#[ignore = "killed_at_any_moment runs it"]
fn child_that_is_killed() {
    let outbox = open(&folder_of_child(), 1 << 20);
    let mut stdout = std::io::stdout();
    for turn in 0.. {
        let mut sequence = 0;
        let number = outbox.append(Kind::Prediction, &format!("{turn}"), |given| {
            sequence = given;
            payload(given, 600)
        });
        writeln!(stdout, "appended {number} {sequence}").unwrap();
        if turn % 3 == 2 {
            outbox.acknowledge(number - 2);
            writeln!(stdout, "acknowledged {}", number - 2).unwrap();
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (mut last, mut most_acknowledged, mut most) = (0, 0, 0);
    for round in 0..40_u64 {
        let mut child = child("child_that_is_killed", "exec \"$@\"", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said: Vec<String> = lines.by_ref().take((round * 37 % 200 + 3) as usize).collect();
        child.kill().unwrap();
        said.extend(lines);
        child.wait().unwrap();

        let (mut appended, mut acknowledged) = (BTreeMap::new(), most_acknowledged);
        for line in &said {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["appended", number, sequence] => {
                    let number: u64 = number.parse().unwrap();
                    assert!(number > last, "{number} after {last}");
                    appended.insert(number, sequence.parse::<u64>().unwrap());
                    last = number;
                }
                ["acknowledged", number] => acknowledged = number.parse().unwrap(),
                // A line that was cut off, or what the harness says.
                _ => {}
            }
        }
        let outbox = open(folder.path(), 1 << 20);
        let records = pending(&outbox);
        assert!(records.is_sorted_by_key(|record| record.number));
        for (number, sequence) in appended.range(acknowledged + 4..) {
            let record = records.iter().find(|record| record.number == *number);
            let record =
                record.unwrap_or_else(|| panic!("{number} is lost, {:?}", outbox.status()));
            assert_eq!((record.sequence, &record.payload), (*sequence, &payload(*sequence, 600)));
        }
        let newest = records.last().map_or(last, |record| record.number);
        // At most one record was under way, and at most one acknowledgement.
        assert!(newest <= last + 1, "{newest} after {last}");
        let first = records.first().map_or(last, |record| record.number);
        assert!(first <= acknowledged + 4, "{first} is first, {acknowledged} acknowledged");
        let status = outbox.status();
        assert!(status.damaged + status.dropped_since_open <= 1, "{status:?}");
        outbox.acknowledge(newest);
        (last, most_acknowledged) = (newest, newest);
        most = most.max(appended.len());
    }
    assert!(most > 100, "killed too early: {most}");
}

const CAPACITY: u64 = 300 << 10;

#[test]
#[ignore = "a_full_disk runs it"]
fn child_with_a_full_disk() {
    let disk = folder_of_child();
    let folder = disk.join("outbox");
    let outbox = open(&folder, LARGE);
    append_all(&outbox, 1..=10);
    assert_eq!(outbox.status().trouble, None);
    let others = disk.join("others");
    let mut filler = File::create(&others).unwrap();
    while filler.write_all(&[0; 512]).is_ok() {}

    let mut last = 10;
    while outbox.status().held < 200 {
        last += 1;
        assert_eq!(append(&outbox, last), last);
    }
    let status = outbox.status();
    let trouble = status.trouble.as_deref().unwrap();
    assert!(trouble.contains("No space left"), "{trouble}");
    assert_eq!((status.dropped, status.pending), (0, last));
    outbox.flush();
    assert!(!outbox.settled(last));
    assert_eq!(numbers(&outbox), (1..=last).collect::<Vec<_>>());
    outbox.acknowledge(5);
    drop(outbox);

    let outbox = open(&folder, LARGE);
    let status = outbox.status();
    assert_eq!((status.dropped, status.damaged, status.pending), (200, 0, last - 205));
    assert_eq!(numbers(&outbox), (6..=last - 200).collect::<Vec<_>>());
    for index in 1..=100 {
        assert_eq!(append(&outbox, last + index), last + index);
    }
    assert!(outbox.status().trouble.is_some());
    drop(filler);
    fs::remove_file(others).unwrap();
    outbox.flush();
    let status = outbox.status();
    assert_eq!((status.held, status.trouble), (0, None));
    assert!(outbox.settled(last + 100));
    let left: Vec<u64> = (6..=last - 200).chain(last + 1..=last + 100).collect();
    assert_eq!(numbers(&outbox), left);
    drop(outbox);
    let outbox = open(&folder, LARGE);
    assert_eq!(numbers(&outbox), left);
    let status = outbox.status();
    assert_eq!((status.damaged, status.dropped), (0, 200));
    for record in pending(&outbox) {
        assert_eq!(record.payload, payload(record.number, 600));
    }
}

#[test]
fn a_full_disk() {
    let disk = tempfile::tempdir().unwrap();
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let mount = format!("mount -t tmpfs -o size={CAPACITY} tmpfs \"$OUTBOX_FOLDER\"");
    let tried = Command::new("unshare")
        .args(unshare)
        .arg(&mount)
        .env("OUTBOX_FOLDER", disk.path())
        .output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        return witness::not_run(&format!("no small disk can be mounted: {tried:?}"));
    }
    let shell = format!("exec unshare {} '{mount} && exec \"$@\"' sh \"$@\"", unshare.join(" "));
    let output = child("child_with_a_full_disk", &shell, disk.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

#[test]
#[ignore = "files_that_cannot_grow runs it"]
fn child_whose_files_cannot_grow() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Fsize);
    let grow = |most| setrlimit(Resource::Fsize, Rlimit { current: most, ..before }).unwrap();
    let folder = folder_of_child();
    let outbox = open(&folder, LARGE);
    append(&outbox, 1);
    // The second record is written in part, and then none at all.
    grow(Some(1000));
    assert_eq!(append(&outbox, 2), 2);
    assert_eq!(outbox.status().held, 1);
    grow(Some(400));
    for index in 3..=20 {
        assert_eq!(append(&outbox, index), index);
    }
    let status = outbox.status();
    assert!(status.held >= 10 && status.trouble.is_some(), "{status:?}");
    assert_eq!(numbers(&outbox), (1..=20).collect::<Vec<_>>());
    grow(None);
    assert_eq!(append(&outbox, 21), 21);
    assert_eq!(outbox.status().trouble, None);
    drop(outbox);
    let outbox = open(&folder, LARGE);
    assert_eq!(numbers(&outbox), (1..=21).collect::<Vec<_>>());
    assert_eq!(outbox.status().damaged, 0);
}

#[test]
fn files_that_cannot_grow() {
    let folder = tempfile::tempdir().unwrap();
    let shell = "trap '' XFSZ; exec \"$@\"";
    let output = child("child_whose_files_cannot_grow", shell, folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

#[test]
#[ignore = "a_huge_file_is_not_read_whole runs it"]
fn child_with_a_huge_file() {
    let peak = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = peak();
    let outbox = open(&folder_of_child(), LARGE);
    assert_eq!(numbers(&outbox), [1]);
    let grown = peak() - before;
    assert!(grown < 16 << 10, "{grown} KiB more");
}

#[test]
fn a_huge_file_is_not_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    append(&open(folder.path(), LARGE), 1);
    let foreign = folder.path().join("00000000000000000002.seg");
    fs::write(&foreign, b"\xffrec\xff\xff\xff\xff\xffrec\0\0\x04\0").unwrap();
    cut(&foreign, 8 << 30);
    cut(&segments(folder.path())[0], 8 << 30);
    let output = child("child_with_a_huge_file", "exec \"$@\"", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

/// What happens to an outbox.
#[derive(Clone, Debug)]
enum Step {
    Append {
        failure: bool,
        length: usize,
    },
    /// Acknowledges some of what was delivered.
    Acknowledge(prop::sample::Index),
    Next,
    Flush,
    Reopen,
    /// Closes it, cuts off its newest segment and opens it.
    Cut(prop::sample::Index),
    /// Closes it, changes a byte of a file and opens it.
    Flip(prop::sample::Index, prop::sample::Index),
    NoCursor,
}

fn steps(damage: bool) -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![8 => 0..900_usize, 1 => 3000..9000_usize];
    let append =
        (any::<bool>(), length).prop_map(|(failure, length)| Step::Append { failure, length });
    let index = any::<prop::sample::Index>;
    let harm = u32::from(damage);
    let step = prop_oneof![
        24 => append,
        4 => index().prop_map(Step::Acknowledge),
        6 => Just(Step::Next),
        1 => Just(Step::Flush),
        2 => Just(Step::Reopen),
        harm => index().prop_map(Step::Cut),
        2 * harm => (index(), index()).prop_map(|(file, at)| Step::Flip(file, at)),
        harm => Just(Step::NoCursor),
    ];
    prop::collection::vec(step, 1..160)
}

/// What is known of a record in memory alone.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    kind: Kind,
    sequence: u64,
    id: String,
    payload: Vec<u8>,
}

/// An outbox, and beside it what was done with it.
struct Model {
    folder: TempDir,
    outbox: Option<Outbox>,
    max_bytes: u64,
    /// Appended, and neither damaged nor dropped nor acknowledged.
    known: BTreeMap<u64, Known>,
    /// The last to be appended of each number.
    ever: BTreeMap<u64, Known>,
    appended: u64,
    acknowledged: u64,
    read: u64,
    last: u64,
    sequences: [u64; 2],
    dropped: u64,
    damaged: bool,
}

impl Model {
    fn new(max_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Some(open(folder.path(), max_bytes));
        Self {
            folder,
            outbox,
            max_bytes,
            known: BTreeMap::new(),
            ever: BTreeMap::new(),
            appended: 0,
            acknowledged: 0,
            read: 0,
            last: 0,
            sequences: [0; 2],
            dropped: 0,
            damaged: false,
        }
    }

    fn outbox(&self) -> &Outbox {
        self.outbox.as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { failure, length } => self.append(*failure, *length),
            Step::Acknowledge(index) => {
                if self.read > self.acknowledged {
                    let count = (self.read - self.acknowledged) as usize;
                    self.acknowledged += index.index(count) as u64 + 1;
                    self.outbox().acknowledge(self.acknowledged);
                }
            }
            Step::Next => {
                let from = self.read.max(self.acknowledged);
                let record = self.outbox().next(from);
                let expected = self.known.range(from + 1..).next();
                assert_eq!(record.as_ref().map(|r| r.number), expected.map(|(number, _)| *number));
                if let Some(record) = record {
                    self.read = record.number;
                    self.compare(&record);
                }
            }
            Step::Flush => {
                self.outbox().flush();
                assert!(self.last == 0 || self.outbox().settled(self.last));
            }
            Step::Reopen => self.reopen(&[]),
            Step::Cut(index) => {
                self.outbox = None;
                if let Some(newest) = segments(self.folder.path()).pop() {
                    let length = fs::metadata(&newest).unwrap().len();
                    let at = index.index(length as usize + 1) as u64;
                    let harmed = self.harmed(&newest, |_, end| end > at);
                    cut(&newest, at);
                    self.damaged |= at < length;
                    self.reopen(&harmed);
                }
            }
            Step::Flip(file, at) => {
                self.outbox = None;
                let mut files = segments(self.folder.path());
                files.push(cursor(self.folder.path()));
                let file = file.get(&files);
                let length = fs::metadata(file).unwrap().len() as usize;
                if length > 0 {
                    let at = at.index(length) as u64;
                    let harmed = self.harmed(file, |start, end| (start..end).contains(&at));
                    flip(file, at as i64);
                    self.damaged = true;
                    self.reopen(&harmed);
                }
            }
            Step::NoCursor => {
                self.outbox = None;
                fs::remove_file(cursor(self.folder.path())).unwrap();
                self.damaged = true;
                self.reopen(&[]);
            }
        }
        if self.outbox.is_none() {
            self.reopen(&[]);
        }
        let status = self.outbox().status();
        assert_eq!(status.trouble, None);
        assert!(status.bytes <= self.max_bytes, "{status:?}");
    }

    fn append(&mut self, failure: bool, length: usize) {
        self.appended += 1;
        let kind = if failure { Kind::Failure } else { Kind::Prediction };
        let (id, payload) = (format!("id{}", self.appended), payload(self.appended, length));
        let mut sequence = 0;
        let number = self.outbox().append(kind, &id, |given| {
            sequence = given;
            payload.clone()
        });
        let before = &mut self.sequences[failure as usize];
        match self.damaged {
            false => assert_eq!((number, sequence), (self.last + 1, *before + 1)),
            true => assert!(number > self.last && sequence > *before),
        }
        (self.last, *before) = (number, sequence);
        assert_eq!(self.outbox().knows(&id), Some(kind));
        let known = Known { kind, sequence, id, payload };
        self.ever.insert(number, known.clone());
        self.known.insert(number, known);
        self.account();
    }

    /// Only the oldest are ever dropped, and as many as are counted.
    fn account(&mut self) {
        let first = self.outbox().next(0).expect("the newest stays").number;
        let gone: Vec<u64> = self.known.range(..first).map(|(number, _)| *number).collect();
        let dropped = gone.iter().filter(|number| **number > self.acknowledged).count() as u64;
        let counted = self.outbox().status().dropped;
        assert_eq!(self.dropped + dropped, counted);
        self.dropped += dropped;
        gone.iter().for_each(|number| drop(self.known.remove(number)));
    }

    fn compare(&self, record: &Record) {
        let Record { number, kind, sequence, id, payload, .. } = record.clone();
        assert_eq!(
            self.ever.get(&number),
            Some(&Known { kind, sequence, id, payload }),
            "{number}"
        );
    }

    /// Those of the known records that lie in a file where `hit` says.
    fn harmed(&self, file: &Path, hit: impl Fn(u64, u64) -> bool) -> Vec<u64> {
        let places = self.known.iter().filter_map(|(number, known)| {
            place(file, &known.id, &known.payload).map(|place| (number, place))
        });
        let harmed = places.filter(|(_, (start, end))| hit(*start, *end));
        harmed.map(|(number, _)| *number).collect()
    }

    /// Opens it anew; what is `harmed` must be gone, and all else be there.
    fn reopen(&mut self, harmed: &[u64]) {
        self.outbox = None;
        self.outbox = Some(open(self.folder.path(), self.max_bytes));
        let status = self.outbox().status();
        for number in harmed {
            self.known.remove(number);
        }
        let found = pending(self.outbox());
        found.iter().for_each(|record| self.compare(record));
        assert!(found.is_sorted_by(|a, b| a.number < b.number));
        assert!(found.iter().all(|record| record.replayed));
        let numbers: BTreeSet<u64> = found.iter().map(|record| record.number).collect();
        for number in self.known.range(self.acknowledged + 1..).map(|(number, _)| number) {
            assert!(numbers.contains(number), "{number} is lost: {status:?}");
        }
        if harmed.iter().any(|number| *number > self.acknowledged) && !self.known.is_empty() {
            self.visible(harmed, &status);
        }
        if !self.damaged {
            assert_eq!((status.damaged, status.truncated), (0, 0));
            let all: BTreeSet<u64> =
                self.known.range(self.acknowledged + 1..).map(|(number, _)| *number).collect();
            assert_eq!(numbers, all);
        }
        if self.damaged {
            // What was cut off without a trace may be given again, but nothing else.
            self.last = self.acknowledged.max(numbers.last().copied().unwrap_or(0));
            let given = |kind| {
                let given = self.ever.range(..=self.last).filter(|(_, known)| known.kind == kind);
                given.map(|(_, known)| known.sequence).max().unwrap_or(0)
            };
            self.sequences = [Kind::Prediction, Kind::Failure].map(given);
            self.dropped = status.dropped;
            // What was acknowledged may come again.
            let first = numbers.first().map_or(self.last, |first| first - 1);
            self.acknowledged = self.acknowledged.min(first);
            self.known = numbers.iter().map(|n| (*n, self.ever[n].clone())).collect();
        }
        self.read = self.acknowledged;
    }

    /// Records that are lost from among others are counted.
    fn visible(&self, harmed: &[u64], status: &Status) {
        let newest = self.known.keys().next_back().copied().unwrap_or(0);
        let among =
            harmed.iter().filter(|n| **n > self.acknowledged && **n < newest).count() as u64;
        assert!(status.damaged >= among, "{harmed:?}: {status:?}");
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn it_is_a_queue(steps in steps(false)) {
        let mut model = Model::new(SMALL);
        steps.iter().for_each(|step| model.step(step));
    }

    #[test]
    fn it_is_a_queue_but_for_what_is_damaged(steps in steps(true)) {
        let mut model = Model::new(SMALL);
        steps.iter().for_each(|step| model.step(step));
    }

    #[test]
    fn whatever_lies_in_the_folder(files in prop::collection::vec(scraps(), 0..5), tail in scraps()) {
        let folder = tempfile::tempdir().unwrap();
        let first = |index: usize| [1, 2, 40, 1 << 61, u64::MAX][index];
        for (index, file) in files.iter().enumerate() {
            fs::write(folder.path().join(format!("{:020}.seg", first(index))), file).unwrap();
        }
        fs::write(cursor(folder.path()), tail).unwrap();
        let outbox = open(folder.path(), SMALL);
        let before = numbers(&outbox);
        let number = append(&outbox, 7);
        prop_assert!(before.iter().all(|other| *other < number));
        outbox.acknowledge(number - 1);
        prop_assert_eq!(numbers(&outbox), [number]);
        drop(outbox);
        prop_assert_eq!(pending(&open(folder.path(), SMALL))[0].payload.clone(), payload(7, 600));
    }
}

/// Bytes of any kind, among them whole marks and records and parts of them.
fn scraps() -> impl Strategy<Value = Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), LARGE);
    append_all(&outbox, 1..=40);
    outbox.acknowledge(20);
    let segment = fs::read(&segments(folder.path())[0]).unwrap();
    let cursor = fs::read(cursor(folder.path())).unwrap();
    let part = move |bytes: Vec<u8>| {
        any::<(prop::sample::Index, prop::sample::Index)>().prop_map(move |(a, b)| {
            let (a, b) = (a.index(bytes.len() + 1), b.index(bytes.len() + 1));
            bytes[a.min(b)..a.max(b)].to_vec()
        })
    };
    let scrap = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        (any::<u8>(), 0..5000_usize).prop_map(|(byte, length)| vec![byte; length]),
        Just(b"\xffrec".to_vec()),
        Just(b"vggd-ob1".to_vec()),
        part(segment.clone()),
        part(cursor.clone()),
        Just(cursor),
        Just(segment),
    ];
    prop::collection::vec(scrap, 0..8).prop_map(|scraps| scraps.concat())
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
            append(&outbox, index);
            if flushed.elapsed().as_secs() >= 1 {
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
