//! Brokers and daemons that are killed at any moment: every prediction arrives, in order, and none is
//! invented.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::witness::not_run;
use common::{Broker, Daemon, jpeg, packet, published, until};
use serde_json::Value;

/// Between the daemon and the broker: hands packets on as they are, and tells of each prediction when the
/// broker has acknowledged it. What a broker does with it after that is the broker's business.
struct Wire {
    port: u16,
    acknowledged: Receiver<Value>,
}

impl Wire {
    fn to(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, acknowledged) = channel();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", broker)))
                else {
                    continue;
                };
                connect(client, server, sender.clone());
            }
        });
        Self { port, acknowledged }
    }

    /// What was acknowledged and not taken yet.
    fn rest(&self) -> Vec<Value> {
        self.acknowledged.try_iter().collect()
    }
}

/// Hands packets on in both directions until one side is gone.
fn connect(client: TcpStream, server: TcpStream, acknowledged: Sender<Value>) {
    let sent: Arc<Mutex<HashMap<[u8; 2], Value>>> = Arc::default();
    let heard = sent.clone();
    let up = [client.try_clone().unwrap(), server.try_clone().unwrap()];
    std::thread::spawn(move || {
        hand_on(up, |first, body| {
            if let Some((topic, id, payload)) = published(first, body)
                && topic.ends_with("/prediction")
            {
                let prediction = serde_json::from_slice(payload).unwrap();
                sent.lock().unwrap().insert(id, prediction);
            }
        });
    });
    std::thread::spawn(move || {
        hand_on([server, client], |first, body| {
            if first == 0x40
                && let Some(prediction) = heard.lock().unwrap().remove(&[body[0], body[1]])
            {
                acknowledged.send(prediction).ok();
            }
        });
    });
}

/// Hands packets on from the first to the second, and looks at each when it has gone.
fn hand_on([mut from, mut to]: [TcpStream; 2], mut look: impl FnMut(u8, &[u8])) {
    use std::io::Write;
    while let Some((first, body)) = packet(&mut from) {
        let mut bytes = vec![first];
        let mut length = body.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(&body);
        // An acknowledgement is looked at before it can be lost on the rest of its way.
        look(first, &body);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        socket.shutdown(Shutdown::Both).ok();
    }
}

#[test]
fn killed_brokers_and_daemons_lose_nothing() {
    const ROUNDS: usize = 12;
    const PHOTOS: usize = 12;
    let mut random = fastrand::Rng::with_seed(20);
    let mut broker = Broker::running();
    let wire = Wire::to(broker.port);
    let mut daemon = Daemon::new(&broker);
    daemon.configure(wire.port, "baseline", "");
    daemon.start();
    let (mut arrived, mut count) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        for _ in 0..PHOTOS {
            daemon.drop_photo(&format!("{count:03}.jpg"), &jpeg(count));
            count += 1;
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..150)));
        let (broker_dies, daemon_dies) = [(true, false), (false, true), (true, true)][round % 3];
        if broker_dies {
            broker.end("KILL");
        }
        if daemon_dies {
            daemon.end(if random.bool() { "KILL" } else { "TERM" });
            daemon.start();
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..150)));
        if broker_dies {
            broker.start();
        }
        arrived.extend(wire.rest());
    }
    until("all photos are done", || daemon.list("").is_empty());
    // A photo's prediction is the last thing that is appended: behind this one nothing waits.
    daemon.drop_photo("last.jpg", &jpeg(count));
    until("everything has arrived", || {
        arrived.extend(wire.rest());
        arrived.iter().any(|prediction: &Value| prediction["file"] == "last.jpg")
    });
    assert!(daemon.end("TERM").success());
    arrived.extend(wire.rest());

    let mut first: BTreeMap<u64, Value> = BTreeMap::new();
    let mut highest = 0;
    for prediction in &arrived {
        let sequence = prediction["sequence"].as_u64().unwrap();
        // In order, but for going back to what was not acknowledged.
        assert!(sequence <= highest + 1, "{sequence} after {highest}");
        highest = highest.max(sequence);
        let mut plain = prediction.clone();
        plain["replayed"] = false.into();
        let before = first.entry(sequence).or_insert_with(|| plain.clone());
        assert_eq!(*before, plain, "two predictions of one number");
    }
    let files: Vec<_> = first.values().map(|p| p["file"].as_str().unwrap().to_owned()).collect();
    let mut unique = files.clone();
    unique.sort();
    unique.dedup();
    let dropped = (0..count).map(|n| format!("{n:03}.jpg")).chain(["last.jpg".to_owned()]);
    assert!(unique.iter().cloned().eq(dropped), "{unique:?}");
    // A photo whose prediction was on disk is not classified again after a crash.
    assert_eq!(files.len(), unique.len());
}

/// Lets the daemon's clock be set while it runs, where Debian's faketime is installed.
fn settable_clock(daemon: &mut Daemon) -> Option<PathBuf> {
    let library = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(library) = library else {
        not_run("the clock cannot be set: install faketime");
        return None;
    };
    let clock = daemon.config().with_file_name("clock");
    fs::write(&clock, "+0\n").unwrap();
    daemon.set("LD_PRELOAD", Path::new(&library));
    daemon.set("FAKETIME_TIMESTAMP_FILE", &clock);
    daemon.set("FAKETIME_NO_CACHE", Path::new("1"));
    daemon.set("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1"));
    Some(clock)
}

#[test]
fn a_clock_that_is_set_back_an_hour_changes_nothing() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt("stats_s = 1\n");
    let Some(clock) = settable_clock(&mut daemon) else { return };
    daemon.start();
    let mut before = String::new();
    for (step, offset) in ["+0", "-1h", "+1h", "-1h"].into_iter().enumerate() {
        fs::write(&clock, format!("{offset}\n")).unwrap();
        for number in 0..3 {
            daemon.drop_photo(&format!("{step}-{number}.jpg"), &jpeg(number));
            let prediction = witness.next("prediction").json();
            assert_eq!(prediction["file"], format!("{step}-{number}.jpg"));
            assert_eq!(prediction["sequence"], step as u64 * 3 + u64::from(number) + 1);
            assert!(prediction["timings_ms"]["total"].as_f64().unwrap() < 60_000.0);
        }
        let stats = witness.next("stats").json();
        let now = stats["at"].as_str().unwrap().to_owned();
        assert_eq!(now < before, offset == "-1h", "{now} after {before}");
        before = now;
        // What was settled before is not done again.
        if step == 2 {
            assert!(daemon.end("KILL").code().is_none());
            daemon.start();
        }
    }
    until("all photos are done", || daemon.list("done").len() == 12);
    assert!(witness.rest("prediction").is_empty());
}
