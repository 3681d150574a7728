//! The directory as a source, by itself: a real folder, and nobody who classifies.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;
use vggd::config::Config;
use vggd::source::directory::Directory;
use vggd::source::{Condition, Frame, Handoff, Picture, Source};

/// No step of a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

const SETTLE: Duration = Duration::from_millis(100);

/// A folder for photos, and what is remembered of it.
struct Folder {
    base: TempDir,
}

impl Folder {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("incoming")).unwrap();
        Self { base }
    }

    fn path(&self) -> PathBuf {
        self.base.path().join("incoming")
    }

    fn ledger(&self) -> PathBuf {
        self.base.path().join("photos.done")
    }

    /// The directory as configured by `lines` of section `[source]`.
    fn open(&self, lines: &str) -> Directory {
        let file = self.base.path().join("vggd.toml");
        let settle = SETTLE.as_millis();
        let path = self.path();
        let text = format!("[source]\ndirectory = '{}'\n{lines}\n", path.display());
        let text = match lines.contains("settle_ms") {
            true => text,
            false => text + &format!("settle_ms = {settle}\n"),
        };
        fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        Directory::open(&config.source, &self.ledger()).unwrap()
    }

    fn start(&self, lines: &str) -> Running {
        Running::new(self.open(lines))
    }

    /// Puts a photo there at once, by renaming.
    fn put(&self, name: impl Into<OsString>, content: &str) {
        let hidden = self.base.path().join("hidden");
        fs::write(&hidden, content).unwrap();
        fs::rename(hidden, self.path().join(name.into())).unwrap();
    }

    /// Writes what is in the way of the folder `name`.
    fn block(&self, name: &str) {
        fs::write(self.path().join(name), "in the way").unwrap();
    }

    /// Names in a folder below, sorted; "" for the folder itself, without `done` and `failed`.
    fn list(&self, folder: &str) -> Vec<OsString> {
        let Ok(entries) = fs::read_dir(self.path().join(folder)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.filter(|name| name != "done" && name != "failed").collect();
        names.sort();
        names
    }
}

/// A directory whose photos are taken as fast as they come.
struct Running {
    directory: Arc<Directory>,
    handoff: Arc<Handoff>,
    frames: Receiver<Frame>,
    conditions: Receiver<Condition>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(directory: Directory) -> Self {
        let (directory, handoff) = (Arc::new(directory), Arc::new(Handoff::default()));
        let (tell, conditions) = channel();
        let (source, slot) = (directory.clone(), handoff.clone());
        let thread = std::thread::spawn(move || {
            source.run(&slot, &|condition| drop(tell.send(condition)));
        });
        let (take, frames) = channel();
        let slot = handoff.clone();
        std::thread::spawn(move || {
            while let Some(frame) = slot.take() {
                if take.send(frame).is_err() {
                    return;
                }
            }
        });
        let running = Self { directory, handoff, frames, conditions, thread: Some(thread) };
        assert!(running.condition().working);
        running
    }

    fn next(&self) -> Frame {
        self.frames.recv_timeout(PATIENCE).expect("a photo is given")
    }

    /// The next photo, which must be that one, with that content.
    fn expect(&self, name: &str, content: &str) -> Frame {
        let frame = self.next();
        assert_eq!((name_of(&frame).as_str(), read(&frame).as_str()), (name, content));
        frame
    }

    fn condition(&self) -> Condition {
        self.conditions.recv_timeout(PATIENCE).expect("a condition is told")
    }

    /// Asserts that nothing of what lies there is given any more: a link, which is only found by
    /// listing the folder and by resting, is the next that comes.
    fn nothing_else(&self, folder: &Folder) {
        let content = format!("{:?}", Instant::now());
        let target = folder.base.path().join("target");
        fs::write(&target, &content).unwrap();
        symlink(target, folder.path().join("last")).unwrap();
        let frame = self.expect("last", &content);
        fs::remove_file(folder.path().join("last")).unwrap();
        self.directory.finish(&frame).unwrap();
        assert!(self.frames.try_recv().is_err());
    }

    fn finish(&self, frame: &Frame) {
        self.directory.finish(frame).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.directory.stop();
        self.handoff.close();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn name_of(frame: &Frame) -> String {
    frame.file.as_ref().unwrap().name.clone()
}

fn read(frame: &Frame) -> String {
    let Picture::File(path) = &frame.picture else { panic!("{frame:?}") };
    fs::read_to_string(path).unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn without_events_a_photo_is_complete_when_it_has_rested() {
    let folder = Folder::new();
    let running = Running::new(folder.open("").blind());
    let path = folder.path().join("slow");
    let mut slow = File::create(&path).unwrap();
    outruns(&running, &folder, || slow.write_all(b"more ").unwrap());
    slow.write_all(b"end").unwrap();
    drop(slow);
    let frame = running.next();
    assert!(name_of(&frame) == "slow" && read(&frame).ends_with(" end"), "{frame:?}");
}

#[test]
fn an_old_date_is_no_sign_of_rest() {
    let folder = Folder::new();
    let running = Running::new(folder.open("").blind());
    let path = folder.path().join("copy");
    let mut copy = File::create(&path).unwrap();
    outruns(&running, &folder, || {
        copy.write_all(b"more ").unwrap();
        set_modified(&path, SystemTime::UNIX_EPOCH);
    });
}

/// Asserts that a photo that rests is given before one that `grow` changes faster than it could rest,
/// though the same listings see both.
fn outruns(running: &Running, folder: &Folder, mut grow: impl FnMut()) {
    folder.put("quick", "");
    let start = Instant::now();
    loop {
        grow();
        if let Ok(frame) = running.frames.recv_timeout(SETTLE / 10) {
            return assert_eq!(name_of(&frame), "quick");
        }
        assert!(start.elapsed() < PATIENCE, "the quick photo is not given");
    }
}

#[test]
fn with_events_a_photo_is_complete_when_it_is_closed() {
    let folder = Folder::new();
    let running = folder.start("");
    let mut slow = File::create(folder.path().join("slow")).unwrap();
    slow.write_all(b"half").unwrap();
    for name in [".hidden", "copying.part", "copying.tmp"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    // Longer than it would have to rest.
    running.nothing_else(&folder);
    drop(slow);
    running.expect("slow", "half");
    fs::write(folder.path().join("later"), "whole").unwrap();
    running.expect("later", "whole");
}

#[test]
fn what_lies_there_at_the_start_comes_oldest_first_also_from_the_future() {
    let folder = Folder::new();
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    for (name, time) in [("b", now - hour), ("c", now + hour), ("a", SystemTime::UNIX_EPOCH)] {
        folder.put(name, name);
        set_modified(&folder.path().join(name), time);
    }
    let running = folder.start("");
    for name in ["a", "b", "c"] {
        running.expect(name, name);
    }
    folder.put("d", "d");
    set_modified(&folder.path().join("d"), now + 2 * hour);
    running.expect("d", "d");
}

#[test]
fn skipped_is_what_lies_there_at_the_start_until_it_changes() {
    let folder = Folder::new();
    folder.put("old", "old");
    folder.put("older", "older");
    let skip = "at_start = 'skip'";
    let running = folder.start(skip);
    running.nothing_else(&folder);
    File::options().append(true).open(folder.path().join("old")).unwrap();
    running.nothing_else(&folder);
    folder.put("old", "changed");
    running.expect("old", "changed");
    drop(running);
    // It was not classified, and now lies there at a start.
    let running = Running::new(folder.open(skip).blind());
    fs::write(folder.path().join("older"), "longer than before").unwrap();
    running.expect("older", "longer than before");
    assert!(!folder.ledger().exists());
}

#[test]
fn afterwards_says_where_a_photo_goes() {
    let check = |afterwards: &str, left: &[&str], done: &[&str]| {
        let folder = Folder::new();
        let running = folder.start(&format!("afterwards = '{afterwards}'"));
        folder.put("a", "");
        running.finish(&running.next());
        assert_eq!(folder.list(""), left, "{afterwards}");
        assert_eq!(folder.list("done"), done, "{afterwards}");
        assert_eq!(folder.ledger().exists(), !left.is_empty(), "{afterwards}");
    };
    check("archive", &[], &["a"]);
    check("delete", &[], &[]);
    check("keep", &["a"], &[]);
}

#[test]
fn a_kept_photo_is_given_once_and_again_when_it_changes() {
    let folder = Folder::new();
    let keep = "afterwards = 'keep'";
    let running = folder.start(keep);
    for name in ["a", "b"] {
        folder.put(name, name);
        running.finish(&running.expect(name, name));
    }
    running.nothing_else(&folder);
    // Opened for writing, and closed as it was.
    File::options().append(true).open(folder.path().join("a")).unwrap();
    running.nothing_else(&folder);
    drop(running);

    // A record that a power cut tore, and one that is not there any more.
    File::options().append(true).open(folder.ledger()).unwrap().write_all(b"\n0123").unwrap();
    fs::remove_file(folder.path().join("b")).unwrap();
    let running = folder.start(keep);
    running.nothing_else(&folder);
    assert_eq!(fs::metadata(folder.ledger()).unwrap().len(), 17, "not compacted");
    folder.put("a", "changed");
    running.finish(&running.expect("a", "changed"));
    drop(running);

    let running = folder.start(keep);
    running.nothing_else(&folder);
    fs::rename(folder.path().join("a"), folder.path().join("renamed")).unwrap();
    running.expect("renamed", "changed");
}

#[test]
fn a_crash_before_the_end_gives_the_same_photo_under_the_same_id() {
    for afterwards in ["archive", "delete", "keep"] {
        let folder = Folder::new();
        folder.put("a", "content");
        let lines = format!("afterwards = '{afterwards}'");
        // Found, given, and never heard of again.
        let ids = [(); 3].map(|()| folder.start(&lines).expect("a", "content").id);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let running = folder.start(&lines);
        running.finish(&running.expect("a", "content"));
        drop(running);
        folder.start(&lines).nothing_else(&folder);
    }
}

#[test]
fn a_rejected_photo_goes_to_failed_with_the_reason_whatever_else_is_there() {
    let folder = Folder::new();
    let running = folder.start("");
    // The note of the second one must not replace the first.
    for name in ["a.txt", "a", "a"] {
        folder.put(name, "photo");
        running.directory.reject(&running.next(), "the reason").unwrap();
    }
    let failed = folder.path().join("failed");
    let names = ["a-1", "a-1.txt", "a-2", "a-2.txt", "a.txt", "a.txt.txt"];
    assert_eq!(folder.list("failed"), names);
    for (name, expected) in [("a.txt", "photo"), ("a.txt.txt", "the reason\n"), ("a-1", "photo")] {
        assert_eq!(fs::read_to_string(failed.join(name)).unwrap(), expected, "{name}");
    }
}

#[test]
fn names_may_be_long_or_no_text_or_look_alike() {
    let folder = Folder::new();
    let running = folder.start("");
    let long = format!("{}.jpg", "x".repeat(251));
    let names =
        [b"\xff.jpg".to_vec(), b"\xfe.jpg".to_vec(), "ä\n .jpg".into(), long.clone().into()];
    let mut frames = Vec::new();
    for name in &names {
        folder.put(OsString::from_vec(name.clone()), "");
        frames.push(running.next());
    }
    let ids: BTreeSet<_> = frames.iter().map(|frame| &frame.id).collect();
    assert_eq!(ids.len(), names.len());
    assert_eq!(name_of(&frames[0]), name_of(&frames[1]));
    for frame in &frames {
        running.directory.reject(frame, "no").unwrap();
    }
    let failed = folder.list("failed");
    assert_eq!((failed.len(), folder.list("").len()), (8, 0), "{failed:?}");
    let note = format!("{}.jpg.txt", &long[..247]);
    assert!(failed.contains(&note.into()), "{failed:?}");

    // Once more where its name is taken, to the last byte.
    for _ in 0..3 {
        folder.put(&long, "");
        running.finish(&running.next());
    }
    assert_eq!(folder.list("done").len(), 3);
}

#[test]
fn links_count_as_what_they_lead_to() {
    let folder = Folder::new();
    let outside = folder.base.path().join("outside");
    fs::write(&outside, "photo").unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    let link = |target: &Path, name: &str| symlink(target, folder.path().join(name)).unwrap();
    link(&outside, "before");
    link(&folder.path().join("folder"), "to-a-folder");
    link(Path::new("itself"), "itself");
    link(Path::new("nowhere"), "dangling");
    let running = folder.start("");
    running.finish(&running.expect("before", "photo"));
    link(&outside, "after");
    running.finish(&running.expect("after", "photo"));
    fs::hard_link(&outside, folder.path().join("hard")).unwrap();
    running.finish(&running.expect("hard", "photo"));
    running.nothing_else(&folder);
    assert!(folder.path().join("done/before").is_symlink() && outside.exists());

    // The link is not what is unfinished, but what it leads to.
    let mut target = File::create(folder.path().join("nowhere.part")).unwrap();
    fs::remove_file(folder.path().join("dangling")).unwrap();
    link(Path::new("nowhere.part"), "dangling");
    folder.put("quick", "");
    running.expect("quick", "");
    target.write_all(b"arrived").unwrap();
    running.expect("dangling", "arrived");
}

#[test]
fn a_photo_replaced_under_way_is_given_again_and_not_taken_for_the_first() {
    for afterwards in ["archive", "delete", "keep"] {
        let folder = Folder::new();
        let running = folder.start(&format!("afterwards = '{afterwards}'"));
        folder.put("a", "first");
        let first = running.expect("a", "first");
        folder.put("a", "second");
        running.finish(&first);
        assert_eq!(folder.list(""), ["a"], "{afterwards}");
        let second = running.expect("a", "second");
        assert_ne!(first.id, second.id);
        running.finish(&second);
        running.nothing_else(&folder);
        let rejected = folder.list("failed");
        assert!(rejected.is_empty(), "{rejected:?}");
    }
}

#[test]
fn a_photo_put_in_the_place_of_one_that_leaves_is_given_too() {
    for afterwards in ["archive", "delete"] {
        let folder = Folder::new();
        let running = folder.start(&format!("afterwards = '{afterwards}'\nsettle_ms = 1"));
        folder.put("latest.jpg", "0");
        for round in 1..300 {
            let frame = running.next();
            assert_eq!(read(&frame), (round - 1).to_string());
            std::thread::scope(|scope| {
                scope.spawn(|| running.directory.finish(&frame).unwrap());
                folder.put("latest.jpg", &round.to_string());
            });
        }
        let last = running.next();
        assert_eq!(read(&last), "299");
    }
}

#[test]
fn a_photo_that_cannot_leave_is_told_once_and_never_given_again() {
    for (blocked, afterwards) in [("done", "archive"), ("failed", "delete")] {
        let folder = Folder::new();
        folder.block(blocked);
        let lines = format!("afterwards = '{afterwards}'");
        let running = folder.start(&lines);
        folder.put("a", "first");
        let frame = running.next();
        let error = match blocked {
            "done" => running.directory.finish(&frame),
            _ => running.directory.reject(&frame, "no photo"),
        };
        assert!(error.is_err());
        running.nothing_else(&folder);
        drop(running);

        let running = folder.start(&lines);
        running.nothing_else(&folder);
        folder.put("a", "second");
        running.expect("a", "second");
    }
}

#[test]
fn a_folder_removed_and_made_again_is_watched_again() {
    let folder = Folder::new();
    let running = folder.start("");
    for round in 0..2 {
        fs::remove_dir_all(folder.path()).unwrap();
        let gone = running.condition();
        assert!(!gone.working && gone.detail.contains("incoming"), "{gone:?}");
        fs::create_dir(folder.path()).unwrap();
        let back = running.condition();
        assert!(back.working, "{back:?}");
        let mut slow = File::create(folder.path().join("slow")).unwrap();
        write!(slow, "{round}").unwrap();
        // Only events can tell that a photo is not complete though it rests.
        running.nothing_else(&folder);
        drop(slow);
        running.finish(&running.expect("slow", &round.to_string()));
    }
    assert!(running.conditions.try_recv().is_err(), "told more than once");
}

#[test]
fn another_folder_in_the_place_of_the_first_is_watched() {
    let folder = Folder::new();
    let running = folder.start("");
    let (path, other) = (folder.path(), folder.base.path().join("other"));
    fs::create_dir(&other).unwrap();
    // In one step, so that the folder is never missing.
    renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    running.nothing_else(&folder);
    let slow = File::create(path.join("slow")).unwrap();
    running.nothing_else(&folder);
    drop(slow);
    running.expect("slow", "");
    assert!(running.conditions.try_recv().is_err());
}

#[test]
fn ten_thousand_photos_at_once_cost_no_handles_and_little_time() {
    const COUNT: usize = 10_000;
    let handles = || fs::read_dir("/proc/self/fd").unwrap().count();
    for (afterwards, name) in [("archive", "photo"), ("keep", "photo"), ("archive", "same")] {
        let folder = Folder::new();
        let lines = format!("afterwards = '{afterwards}'");
        let start = Instant::now();
        let running = folder.start(&lines);
        let before = handles();
        let mut most = 0;
        let mut take = |running: &Running| {
            running.finish(&running.next());
            most = most.max(handles());
        };
        for number in 0..COUNT {
            match name {
                "same" => {
                    folder.put(name, "");
                    take(&running);
                }
                _ => fs::write(folder.path().join(format!("{name}-{number}")), "").unwrap(),
            }
        }
        if name != "same" {
            (0..COUNT).for_each(|_| take(&running));
        }
        let spent = start.elapsed();
        running.nothing_else(&folder);
        assert_eq!(folder.list("done").len() + folder.list("").len(), COUNT);
        drop(running);
        let again = Instant::now();
        folder.start(&lines).nothing_else(&folder);
        let again = again.elapsed();
        let grown = most.saturating_sub(before);
        println!("{afterwards} {name}: {spent:?}, {grown} more handles; restart {again:?}");
        // Other tests of this program have handles too, but not thousands.
        assert!(grown < 200, "{grown} more handles");
        assert!(spent < PATIENCE && again < PATIENCE, "{spent:?}, {again:?}");
    }
}

/// Runs the ignored test `name` of this file in a process with mounts of its own, where that is
/// allowed.
fn with_mounts(name: &str) {
    let may =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        // Past the test harness, which hides what a passing test prints.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "NOT RUN: {name} needs to mount in a namespace").unwrap();
        return;
    }
    let mut command = Command::new("unshare");
    command.arg("-rm").arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

#[test]
fn an_unmounted_folder_is_told_once_and_found_again() {
    with_mounts("unmounted_folder");
}

#[test]
#[ignore = "mounts: started by an_unmounted_folder_is_told_once_and_found_again"]
fn unmounted_folder() {
    let folder = Folder::new();
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).arg(folder.path()).status();
        assert!(status.unwrap().success(), "{program} {arguments:?}");
    };
    run("mount", &["-t", "tmpfs", "none"]);
    fs::write(folder.path().join("kept"), "kept").unwrap();
    let running = folder.start("afterwards = 'keep'");
    running.finish(&running.expect("kept", "kept"));
    run("umount", &["--lazy"]);
    // What lies below the mount is not meant.
    fs::write(folder.path().join("below"), "below").unwrap();
    let gone = running.condition();
    assert!(!gone.working && gone.detail.contains("mounted"), "{gone:?}");
    run("mount", &["-t", "tmpfs", "none"]);
    assert!(running.condition().working);
    fs::write(folder.path().join("new"), "new").unwrap();
    running.expect("new", "new");
    assert!(running.conditions.try_recv().is_err(), "told more than once");
}
