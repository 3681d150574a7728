//! Streams by real commands: what they give, how they fail, and that nothing of them is left.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use common::{PATIENCE, jpeg, signal, until};
use tempfile::TempDir;
use vggd::config::Config;
use vggd::source::stream::Stream;
use vggd::source::{Condition, Frame, Handoff, Picture, Source};

/// A folder with photos a.jpg and b.jpg, in which commands run, and a configuration.
struct Place(TempDir);

impl Place {
    fn new(command: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (number, name) in ["a.jpg", "b.jpg"].into_iter().enumerate() {
            fs::write(folder.path().join(name), jpeg(number as u32)).unwrap();
        }
        let command = format!("cd '{}'; {command}", folder.path().display());
        let text = format!(
            "[source]\nkind = 'stream'\ntimeout_s = 1\ncommand = {}\n",
            toml::Value::String(command)
        );
        fs::write(folder.path().join("vggd.toml"), text).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn stream(&self) -> Stream {
        Stream::new(&Config::load(Some(&self.path("vggd.toml"))).unwrap().source)
    }

    /// What a file holds, once there is a whole line in it.
    fn line(&self, name: &str) -> String {
        let mut line = String::new();
        until("a line is written", || {
            line = fs::read_to_string(self.path(name)).unwrap_or_default();
            line.ends_with('\n')
        });
        line.trim().to_owned()
    }
}

/// Runs `command` until `enough` of what it told and gave; gives the conditions, and the photo of each
/// frame.
fn check(place: &Place, enough: impl Fn(&[Condition], &[Vec<u8>]) -> bool) -> Vec<Condition> {
    let stream = place.stream();
    let handoff = Handoff::default();
    let (told, frames) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| stream.run(&handoff, &|condition| told.lock().unwrap().push(condition)));
        scope.spawn(|| {
            while let Some(Frame { picture: Picture::Encoded(bytes), .. }) = handoff.take() {
                frames.lock().unwrap().push(bytes);
            }
        });
        while !enough(&told.lock().unwrap(), &frames.lock().unwrap())
            && started.elapsed() < PATIENCE
        {
            thread::yield_now();
        }
        stream.stop();
        handoff.close();
    });
    let (told, frames) = (told.into_inner().unwrap(), frames.into_inner().unwrap());
    assert!(enough(&told, &frames), "{told:?}, {} frames", frames.len());
    told
}

fn condition(working: bool, detail: &str) -> Condition {
    Condition { working, detail: detail.to_owned() }
}

/// Whether a process runs; not if it waits to be reaped by somebody else.
fn runs(pid: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

#[test]
fn frames_come_whole_from_any_kind_of_output() {
    let [a, b] = [jpeg(0), jpeg(1)];
    let check = |command: &str| {
        let place = Place::new(&format!("{command}; sleep 1000"));
        let told = check(&place, |_, frames| frames.last() == Some(&b));
        assert_eq!(told, [condition(true, "cd")], "{command}");
    };
    check("cat a.jpg b.jpg");
    check("for i in 1 2 3 4 5 6 7 8 9; do cat a.jpg; done; cat b.jpg");
    check("head -c 1000000 /dev/zero; cat b.jpg");
    check("head -c 500 a.jpg; cat b.jpg b.jpg");
    check("head -c 3000 a.jpg; cat b.jpg");
    check(
        "for i in a b; do printf -- '--x\\r\\nContent-Type: image/jpeg\\r\\n\\r\\n'; cat $i.jpg; done",
    );
    check("dd if=b.jpg bs=100 status=none");
    assert_ne!(a, b);
}

#[test]
fn of_many_frames_the_newest_wins() {
    let place = Place::new(
        "for i in 1 2 3 4 5 6 7 8 9; do cat a.jpg; done; cat b.jpg; echo >done; sleep 1000",
    );
    let stream = place.stream();
    let handoff = Handoff::default();
    thread::scope(|scope| {
        scope.spawn(|| stream.run(&handoff, &|_| {}));
        until("all were handed over", || handoff.dropped() == 9);
        let Picture::Encoded(bytes) = handoff.take().unwrap().picture else { unreachable!() };
        assert_eq!(bytes, jpeg(1));
        stream.stop();
    });
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let told = check(&Place::new("no-such-program --x"), |told, _| !told.is_empty());
    assert_eq!(told, [condition(false, "cd: no such command, or one in it")]);
}

#[test]
fn a_command_that_fails_is_told_once_and_started_again() {
    let place = Place::new("echo >>starts; echo trouble >&2; exit 3");
    let again = || fs::read(place.path("starts")).is_ok_and(|starts| starts.len() >= 3);
    let told = check(&place, |_, _| again());
    assert_eq!(told, [condition(false, "cd: ended, exit status: 3")]);
}

#[test]
fn a_command_that_ends_after_each_frame_is_started_again() {
    let place = Place::new("cat b.jpg");
    let told = check(&place, |_, frames| frames.len() >= 3);
    let [works, ended] = [condition(true, "cd"), condition(false, "cd: ended, exit status: 0")];
    assert_eq!(told[..4], [works.clone(), ended.clone(), works, ended]);
}

#[test]
fn output_without_a_frame_is_given_up() {
    for command in ["cat /dev/zero", "sleep 1000", "cat a.jpg | head -c 500; sleep 1000"] {
        let place = Place::new(&format!("echo $$ >>starts; {command}"));
        let starts = || fs::read_to_string(place.path("starts")).unwrap_or_default();
        let told = check(&place, |_, _| starts().lines().count() >= 2);
        assert_eq!(told, [condition(false, "cd: no picture for 1 s")], "{command}");
        for pid in starts().lines() {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{command} was left");
        }
    }
}

#[test]
fn nothing_is_left_of_a_command_that_ignores_being_asked() {
    let place = Place::new(
        "trap '' TERM; sleep 1000 & echo $! >child; echo $$ >parent; cat a.jpg; \
         while :; do sleep 1000; done",
    );
    check(&place, |_, frames| !frames.is_empty());
    let [child, parent] = ["child", "parent"].map(|name| place.line(name));
    assert!(!Path::new(&format!("/proc/{parent}")).exists());
    // It was killed, which takes a moment.
    until("the child ends", || !runs(&child));
}

#[test]
fn a_command_is_asked_before_it_is_killed() {
    let place =
        Place::new("trap 'echo asked >answer; exit' TERM; cat a.jpg; while :; do sleep 0.01; done");
    check(&place, |_, frames| !frames.is_empty());
    assert_eq!(place.line("answer"), "asked");
}

#[test]
fn what_a_command_leaves_in_the_background_goes_with_it() {
    let place = Place::new("sleep 1000 >/dev/null 2>&1 & echo $! >child; cat a.jpg");
    check(&place, |told, _| told.len() >= 2);
    let child = place.line("child");
    until("the child ends", || !runs(&child));
}

#[test]
fn stopping_before_the_start_and_in_a_pause_is_prompt() {
    for command in ["sleep 1000", "exit 1"] {
        let place = Place::new(command);
        let stream = place.stream();
        stream.stop();
        stream.run(&Handoff::default(), &|_| {});
        let started = Instant::now();
        check(&place, |told, _| command == "sleep 1000" || !told.is_empty());
        assert!(started.elapsed().as_secs() < 20);
    }
}

/// What the next test kills.
#[test]
#[ignore = "runs until it is killed"]
fn run_until_killed() {
    let config = std::env::var_os("STREAM_CONFIG").unwrap();
    let stream = Stream::new(&Config::load(Some(Path::new(&config))).unwrap().source);
    stream.run(&Handoff::default(), &|_| {});
}

#[test]
fn a_command_ends_when_its_daemon_is_killed() {
    let place = Place::new("echo $$ >pid; while cat a.jpg; do sleep 0.01; done");
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "run_until_killed", "--ignored"])
        .env("STREAM_CONFIG", place.path("vggd.toml"))
        .spawn()
        .unwrap();
    let pid = place.line("pid");
    assert!(runs(&pid));
    signal(&daemon, "KILL");
    daemon.wait().unwrap();
    until("the command ends", || !runs(&pid));
}
