//! Every kind of damage to the files of an outbox, and what is left afterwards.

use super::*;

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
            assert_eq!(record.payload, payload(record.number, LENGTH));
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
    for at in [0, 4, 7, 8, 12, 19, 20, 28, 36, 37, 39, 50, 300, 550] {
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
