//! Disks that are full, folders that go away, and processes that are killed.

#[path = "../common/witness.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod witness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

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
        let mut child = child("disk::child_that_is_killed", "exec \"$@\"", folder.path())
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
        assert_eq!(record.payload, payload(record.number, LENGTH));
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
    let output = child("disk::child_with_a_full_disk", &shell, disk.path()).output().unwrap();
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
    let output =
        child("disk::child_whose_files_cannot_grow", shell, folder.path()).output().unwrap();
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
    let output =
        child("disk::child_with_a_huge_file", "exec \"$@\"", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}
