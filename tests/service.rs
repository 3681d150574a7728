//! What the service manager hears, and the units that it reads.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Broker, Daemon, jpeg, models, vggd, witness};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, mpsc, watch};
use vggd::config::Config;
use vggd::outbox::Outbox;
use vggd::publish::{Channels, Health, Publisher, Retained};
use vggd::pulse::{BEAT, Pulse};
use vggd::source::directory::Directory;
use vggd::source::stream::Stream;
use vggd::source::{Handoff, Source};

/// The exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE: &str = "15";

/// What a unit for one of several has in place of the state directory of the only one.
const OWN_FOLDERS: &str = "StateDirectory=vggd/%i\n\
    ExecStartPre=+/usr/bin/install -d -o vggd -g vggd -m 2775 /var/lib/vggd/%i/incoming\n";

/// How often a daemon under test is to feed its watchdog, at least.
const WATCHDOG: Duration = Duration::from_millis(600);

/// A daemon whose watchdog bites after [`WATCHDOG`].
fn watched(broker: &Broker) -> Daemon {
    let mut daemon = Daemon::new(broker);
    daemon.set("WATCHDOG_USEC", Path::new(&WATCHDOG.as_micros().to_string()));
    daemon
}

#[test]
fn start_frames_reloads_and_stop_are_told() {
    let broker = Broker::running();
    let mut daemon = watched(&broker);
    daemon.launch();
    let start = daemon.notified("READY=1");
    assert!(start[0].starts_with("EXTEND_TIMEOUT_USEC="), "{start:?}");
    daemon.notified("STATUS=no frame yet\n");

    daemon.drop_photo("one.jpg", &jpeg(1));
    let status = daemon.notified("STATUS=baseline: ").pop().unwrap();
    assert!(status.contains(" ms a frame (median of the last 1), 0 of 1 late"), "{status}");

    let clock = || clock_gettime(ClockId::Monotonic);
    for replace in [None, Some(("variant = 'baseline'", "variant = 'scaled'"))] {
        let before = clock();
        match replace {
            None => daemon.signal("HUP"),
            Some((old, new)) => daemon.replace(old, new),
        }
        let reloading = daemon.notified("RELOADING=1").pop().unwrap();
        let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let at: i64 = at.expect(&reloading).parse().unwrap();
        let microseconds =
            |time: rustix::time::Timespec| time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
        assert!((microseconds(before)..=microseconds(clock())).contains(&at), "{reloading}");
        daemon.notified("READY=1");
    }
    daemon.drop_photo("two.jpg", &jpeg(2));
    daemon.notified("STATUS=scaled: ");

    assert!(daemon.end("TERM").success());
    daemon.notified("STOPPING=1");
    assert!(daemon.notified_within(WATCHDOG).iter().all(|heard| !heard.contains("WATCHDOG")));
}

#[test]
fn a_camera_that_is_missing_holds_up_no_start() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = watched(&broker);
    daemon.replace("directory = 'incoming'", "kind = 'camera'\ndevice = '250'");
    daemon.start();
    let error = witness.next("error").json();
    assert_eq!(error["kind"], "source");
    assert!(error["message"].as_str().unwrap().contains("/dev/video250 is not there"), "{error}");
    assert!(daemon.notified_within(4 * WATCHDOG).iter().any(|heard| heard.contains("WATCHDOG=1")));
    assert!(daemon.end("TERM").success());
}

#[test]
fn a_reload_of_a_bad_file_is_over_too_and_changes_nothing() {
    let broker = Broker::running();
    let mut daemon = watched(&broker);
    daemon.start();
    daemon.replace("[model]\n", "[model]\nvairant = 'x'\n");
    daemon.notified("RELOADING=1");
    daemon.notified("READY=1");
    daemon.drop_photo("one.jpg", &jpeg(1));
    daemon.notified("STATUS=baseline: ");
    assert!(daemon.log().contains("model.vairant"), "{}", daemon.log());
}

#[test]
fn a_start_is_not_told_as_a_reload() {
    let broker = Broker::running();
    let mut daemon = watched(&broker);
    daemon.start();
    let heard = daemon.notified_within(4 * WATCHDOG);
    assert!(heard.iter().any(|heard| heard.contains("WATCHDOG=1")), "{heard:?}");
    assert!(heard.iter().all(|heard| !heard.contains("RELOADING")), "{heard:?}");
}

#[test]
fn the_watchdog_is_fed_while_idle_and_without_a_broker_and_not_by_a_stopped_process() {
    for broker in [Broker::running(), Broker::absent()] {
        let mut daemon = watched(&broker);
        daemon.start();
        let fed = || {
            let heard = daemon.notified_within(5 * WATCHDOG);
            heard.iter().filter(|heard| heard.contains("WATCHDOG=1")).count()
        };
        assert!(fed() >= 5);
        daemon.signal("STOP");
        daemon.notified_within(WATCHDOG);
        assert_eq!(fed(), 0);
        daemon.signal("CONT");
        assert!(fed() >= 5);
    }
}

#[test]
fn nothing_feeds_a_watchdog_that_is_not_there() {
    let broker = Broker::running();
    let mut daemon = Daemon::new(&broker);
    daemon.set("WATCHDOG_PID", Path::new("1"));
    daemon.set("WATCHDOG_USEC", Path::new("100000"));
    daemon.launch();
    let heard = daemon.notified_within(Duration::from_secs(3));
    let fed = heard.iter().filter(|heard| heard.contains("WATCHDOG=1")).count();
    assert!(fed == 0 && !heard.is_empty(), "{heard:?}");
}

/// Looks for longer than two beats whether `pulse` beats.
fn beats(what: &str, pulse: &Pulse) {
    let end = Instant::now() + 3 * BEAT;
    while Instant::now() < end {
        assert!(pulse.age() < 2 * BEAT, "{what} does not beat");
        thread::sleep(BEAT / 20);
    }
}

/// A configuration in a folder of its own.
fn configured(lines: &str) -> (tempfile::TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let (path, incoming) = (folder.path().join("vggd.toml"), folder.path().join("incoming"));
    fs::create_dir(&incoming).unwrap();
    let [incoming, outbox] =
        [incoming, folder.path().join("outbox")].map(|path| path.display().to_string());
    let text =
        format!("[outbox]\ndirectory = '{outbox}'\n[source]\ndirectory = '{incoming}'\n{lines}");
    fs::write(&path, text).unwrap();
    let config = Config::load(Some(&path)).unwrap();
    (folder, config)
}

#[test]
fn a_source_that_has_nothing_to_give_beats() {
    let cases = [
        ("a folder that is empty", "kind = 'directory'"),
        (
            "a command that gives nothing",
            "kind = 'stream'\ncommand = 'exec sleep 1000'\ntimeout_s = 3600",
        ),
        ("a command that fails", "kind = 'stream'\ncommand = 'exit 1'"),
    ];
    thread::scope(|scope| {
        for (what, lines) in cases {
            scope.spawn(move || {
                let (folder, config) = configured(lines);
                let source: Box<dyn Source> = match config.source.command.is_empty() {
                    true => {
                        let ledger = folder.path().join("ledger");
                        Box::new(Directory::open(&config.source, &ledger).unwrap())
                    }
                    false => Box::new(Stream::new(&config.source)),
                };
                let handoff = Handoff::default();
                thread::scope(|scope| {
                    scope.spawn(|| source.run(&handoff, &|_| {}));
                    beats(what, handoff.giving());
                    source.stop();
                });
            });
        }
    });
}

#[test]
fn both_sides_of_a_handoff_beat_while_they_wait() {
    let (folder, config) = configured("");
    fs::write(config.source.directory.join("one.jpg"), jpeg(1)).unwrap();
    fs::write(config.source.directory.join("two.jpg"), jpeg(2)).unwrap();
    let full = Handoff::default();
    let empty = Handoff::default();
    let directory = Directory::open(&config.source, &folder.path().join("ledger")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| directory.run(&full, &|_| {}));
        scope.spawn(|| empty.take());
        thread::sleep(Duration::from_secs(2));
        thread::scope(|scope| {
            scope.spawn(|| beats("whoever gives", full.giving()));
            scope.spawn(|| beats("whoever takes", empty.taking()));
        });
        full.close();
        empty.close();
        directory.stop();
    });
}

#[test]
fn a_publisher_beats_with_and_without_a_broker() {
    for broker in [Broker::running(), Broker::absent()] {
        let lines = format!("[mqtt]\nhost = '127.0.0.1'\nport = {}", broker.port);
        let (_folder, config) = configured(&lines);
        let health = Arc::new(Health::default());
        let (stop, stopped) = watch::channel(false);
        let (notices, noticed) = mpsc::channel(1);
        let (_retained, retained) = watch::channel(Retained::new());
        let channels = Channels {
            outbox: Arc::new(Outbox::open(&config.outbox).unwrap()),
            fresh: Arc::new(Notify::new()),
            notices: noticed,
            retained,
            orders: mpsc::channel(1).0,
            stop: stopped,
            health: health.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| runtime.block_on(Publisher::new(&config, channels).run()));
            beats("the publisher", health.pulse());
            assert_eq!(health.connected(), broker.is_running());
            drop(notices);
            stop.send(true).unwrap();
        });
    }
}

fn units() -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    ["vggd.service", "vggd@.service"].map(|name| folder.join(name))
}

/// The units with this build in place of the installed one, if systemd is here to look at them.
fn analysed() -> Option<(tempfile::TempDir, Vec<PathBuf>)> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        witness::missing("systemd-analyze is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = |unit: &PathBuf| {
        let text = fs::read_to_string(unit).unwrap();
        assert!(text.contains("/usr/bin/vggd"));
        let text = text.replace("/usr/bin/vggd", env!("CARGO_BIN_EXE_vggd"));
        let name = unit.file_name().unwrap().to_str().unwrap().replace('@', "@one");
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let copies = units().iter().map(copy).collect();
    Some((folder, copies))
}

/// What systemd finds wrong with a unit and its drop-ins.
fn faults(unit: &Path) -> String {
    let mut command = Command::new("systemd-analyze");
    let verify = command.args(["verify", "--man=no"]).arg(unit).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let name = unit.file_name().unwrap().to_str().unwrap();
    let ours: String = said.lines().filter(|line| line.contains(name)).collect();
    assert!(verify.status.success() || !ours.is_empty(), "{said}");
    ours
}

#[test]
fn the_units_have_no_fault_that_systemd_finds() {
    let Some((_folder, units)) = analysed() else { return };
    for unit in units {
        assert_eq!(faults(&unit), "");
    }
}

#[test]
fn the_drop_ins_have_no_fault_that_systemd_finds() {
    let Some((folder, units)) = analysed() else { return };
    let drop_ins = folder.path().join("vggd.service.d");
    fs::create_dir(&drop_ins).unwrap();
    let faults_with = |text: &str| {
        fs::write(drop_ins.join("it.conf"), text).unwrap();
        faults(&units[0])
    };
    // What a systemd does not know, it names.
    let knows_steps = faults_with("[Service]\nRestartSteps=6\n").is_empty();
    assert!(faults_with("[Service]\nRestartStep=6\n").contains("RestartStep"));
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/examples");
    for example in fs::read_dir(examples).unwrap() {
        let path = example.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        if text.starts_with("# From systemd 254 on") && !knows_steps {
            witness::not_run(&format!("{} is for a newer systemd", path.display()));
            continue;
        }
        assert_eq!(faults_with(&text), "", "{}", path.display());
    }
}

#[test]
fn the_units_expose_little() {
    let Some((_folder, units)) = analysed() else { return };
    for unit in units {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE]);
        let security = command.arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&security.stdout);
        assert!(security.status.success(), "{said}\n{}", String::from_utf8_lossy(&security.stderr));
    }
}

#[test]
fn the_units_differ_only_in_whose_they_are() {
    let [one, each] = units().map(|unit| fs::read_to_string(unit).unwrap());
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let lines = lines.filter(|line| !line.starts_with("Environment="));
        lines.map(str::to_owned).collect()
    };
    let one = one
        .replace("/etc/vggd/vggd.toml", "/etc/vggd/%i.toml")
        .replace("Description=vggd:", "Description=vggd %i:")
        .replace("StateDirectory=vggd\n", OWN_FOLDERS);
    assert_eq!(settings(&one), settings(&each));
}

#[test]
fn a_file_with_a_fault_fails_the_reload_before_the_daemon_reads_it() {
    let text = fs::read_to_string(&units()[0]).unwrap().replace("\\\n", "");
    let reload: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("ExecReload=")).collect();
    let [check, hangup] = reload[..] else { panic!("{reload:?}") };
    let (as_the_daemon, check) = check.split_once(" /usr/bin/vggd ").expect(check);
    for part in ["nsenter --target $MAINPID --mount", "setpriv --reuid vggd --regid vggd"] {
        assert!(as_the_daemon.contains(part), "{as_the_daemon}");
    }
    assert!(hangup.contains("kill -HUP"), "{hangup}");
    let (folder, _) = configured("");
    let file = folder.path().join("reload.toml");
    let incoming = folder.path().join("incoming");
    for (variant, code) in [("baseline", 0), ("basline", 78)] {
        let text = format!(
            "[source]\ndirectory = '{}'\n[model]\nset = '{}'\nvariant = '{variant}'\n",
            incoming.display(),
            models().display()
        );
        fs::write(&file, text).unwrap();
        let words = check.replace("/etc/vggd/vggd.toml", file.to_str().unwrap());
        let status = vggd().args(words.split(' ')).output().unwrap().status;
        assert_eq!(status.code(), Some(code));
    }
    assert!(text.contains("\nRestartPreventExitStatus=78\n"));
}
