//! Photos in, predictions out: the real binary against a real broker.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use common::{Broker, Daemon, jpeg, packet, published, until};
use serde_json::Value;

#[test]
fn each_photo_gives_one_prediction_in_order_of_arrival() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::started(&broker);
    assert_eq!(witness.next("status").payload, "online");

    let names: Vec<String> = (0..40).map(|n| format!("{:02}.jpg", (n * 17) % 40)).collect();
    for (number, name) in names.iter().enumerate() {
        daemon.drop_photo(name, &jpeg(number as u32));
    }
    let predictions = witness.predictions(names.len());
    for (index, prediction) in predictions.iter().enumerate() {
        check_prediction(prediction, &names[index], index as u64 + 1);
    }
    let ids: BTreeSet<_> = predictions.iter().map(|p| p["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), names.len());
    let answers: BTreeSet<_> = predictions.iter().map(|p| p["top"][0]["class"].as_u64()).collect();
    assert!(answers.len() > 1, "the photos all look the same to the model");

    until("all photos are archived", || daemon.list("done").len() == names.len());
    assert_eq!(daemon.list(""), [""; 0]);
    assert!(daemon.end("TERM").success());
    assert_eq!(witness.next("status").payload, "offline");
    assert!(witness.rest("prediction").is_empty());
    assert!(!daemon.log().contains(" ERROR "), "{}", daemon.log());
}

fn check_prediction(prediction: &Value, file: &str, sequence: u64) {
    let keys: BTreeSet<_> = prediction.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = BTreeSet::from([
        "schema",
        "id",
        "sequence",
        "source",
        "file",
        "captured_at",
        "variant",
        "top",
        "timings_ms",
        "budget_ms",
        "in_time",
        "replayed",
    ]);
    assert_eq!(keys, expected);
    assert_eq!(prediction["schema"], 1);
    assert_eq!(prediction["file"], file);
    assert_eq!(prediction["sequence"], sequence);
    assert_eq!(prediction["source"], "directory");
    assert_eq!(prediction["variant"], "baseline");
    assert_eq!(prediction["replayed"], false);
    assert!(prediction["captured_at"].as_str().unwrap().ends_with('Z'));
    let top = prediction["top"].as_array().unwrap();
    assert_eq!(top.len(), 5);
    let probabilities: Vec<f64> = top.iter().map(|c| c["probability"].as_f64().unwrap()).collect();
    assert!(
        probabilities.is_sorted_by(|a, b| a >= b) && probabilities.iter().sum::<f64>() <= 1.001
    );
    assert!(top.iter().all(|class| class["label"].is_string()));
    let timings = &prediction["timings_ms"];
    let stage = |name: &str| timings[name].as_f64().unwrap();
    let sum: f64 = ["wait", "decode", "preprocess", "inference"].map(stage).iter().sum();
    assert!((sum - stage("total")).abs() < 0.002, "{timings}");
}

#[test]
fn what_lay_there_before_comes_first_and_oldest_first() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    let day = std::time::Duration::from_secs(86_400);
    for (age, name) in [(3, "c.jpg"), (1, "a.jpg"), (2, "b.jpg")] {
        let path = daemon.incoming().join(name);
        fs::write(&path, jpeg(age)).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - day * age).unwrap();
    }
    daemon.start();
    let files: Vec<_> = witness.predictions(3).iter().map(|p| p["file"].to_string()).collect();
    assert_eq!(files, ["\"c.jpg\"", "\"b.jpg\"", "\"a.jpg\""]);
}

#[test]
fn a_photo_is_taken_only_when_it_is_complete() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    let bytes = jpeg(1);
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    let mut slow = fs::File::create(daemon.incoming().join("slow.jpg")).unwrap();
    slow.write_all(head).unwrap();
    fs::write(daemon.incoming().join("copying.jpg.part"), head).unwrap();
    fs::write(daemon.incoming().join(".hidden.jpg"), &bytes).unwrap();
    daemon.drop_photo("quick.jpg", &bytes);
    assert_eq!(witness.next("prediction").json()["file"], "quick.jpg");
    let listed = || daemon.log().matches("folder listed").count();
    let before = listed();
    until("the folder is listed", || listed() > before);

    slow.write_all(tail).unwrap();
    drop(slow);
    assert_eq!(witness.next("prediction").json()["file"], "slow.jpg");
    fs::hard_link(daemon.incoming().join(".hidden.jpg"), daemon.incoming().join("link.jpg"))
        .unwrap();
    assert_eq!(witness.next("prediction").json()["file"], "link.jpg");
    until("the last photo is archived", || daemon.list("").len() == 2);
    assert_eq!(daemon.list(""), [".hidden.jpg", "copying.jpg.part"]);
    assert!(witness.rest("error").is_empty());
}

#[test]
fn the_same_name_again_is_a_new_photo_and_keeps_the_old_one() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    for round in 1..=3 {
        daemon.drop_photo("door.jpg", &jpeg(round));
        assert_eq!(witness.next("prediction").json()["file"], "door.jpg");
        until("it is archived", || daemon.list("done").len() == round as usize);
    }
    assert_eq!(daemon.list("done"), ["door-1.jpg", "door-2.jpg", "door.jpg"]);
}

#[test]
fn afterwards_delete_removes_photos() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure(broker.port, "baseline", "afterwards = 'delete'");
    daemon.start();
    daemon.drop_photo("a.jpg", &jpeg(1));
    witness.next("prediction");
    until("it is removed", || daemon.list("").is_empty());
    assert_eq!(daemon.list("done"), [""; 0]);
}

/// A PNG header that promises `side` x `side` pixels.
fn huge_png(side: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(side.to_be_bytes());
    header.extend(side.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend(crc32(&header).to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn a_bad_photo_gives_one_error_and_goes_to_failed_with_the_reason() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure(broker.port, "baseline", "max_file_mb = 8");
    daemon.start();
    daemon.drop_photo("good.jpg", &jpeg(1));
    witness.next("prediction");
    let before = daemon.peak_memory();

    let whole = jpeg(2);
    let cases: [(&str, &[u8]); 5] = [
        ("cut-off.jpg", &whole[..whole.len() / 2]),
        ("empty.jpg", b""),
        ("notes.txt", b"milk, eggs, bread"),
        ("huge.png", &huge_png(60_000)),
        ("too-long.jpg", &vec![0; 9 << 20]),
    ];
    for (name, bytes) in cases {
        daemon.drop_photo(name, bytes);
        let error = witness.next("error").json();
        assert_eq!((&error["kind"], &error["file"]), (&"photo".into(), &name.into()), "{error}");
        let failed = daemon.incoming().join("failed");
        let mut reason = String::new();
        until("it is put aside with the whole reason", || {
            reason = fs::read_to_string(failed.join(format!("{name}.txt"))).unwrap_or_default();
            reason.ends_with('\n')
        });
        assert_eq!(daemon.list("failed"), [name.to_owned(), format!("{name}.txt")]);
        assert_eq!(reason.trim_end(), error["message"], "{name}");
        let lines = daemon.log().lines().filter(|line| line.contains(name)).count();
        assert_eq!(lines, 1, "{}", daemon.log());
        fs::remove_dir_all(failed).unwrap();
    }
    let grown = daemon.peak_memory() - before;
    assert!(grown < 16 << 10, "{grown} KiB more memory");
    daemon.drop_photo("good.jpg", &jpeg(1));
    assert_eq!(witness.next("prediction").json()["file"], "good.jpg");
    assert!(witness.rest("error").is_empty());
}

#[test]
fn without_a_broker_predictions_wait() {
    let mut broker = Broker::absent();
    let mut daemon = Daemon::started(&broker);
    let names: Vec<String> = (0..30).map(|n| format!("{n:02}.jpg")).collect();
    for (number, name) in names.iter().enumerate() {
        daemon.drop_photo(name, &jpeg(number as u32));
    }
    until("all photos are done", || daemon.list("done") == names);
    until("it says so", || daemon.log().contains("no broker, predictions wait"));
    // A stop without a broker is prompt, and what was said is kept.
    assert!(daemon.end("TERM").success());

    broker.start();
    let witness = broker.subscribe();
    daemon.start();
    for (index, prediction) in witness.predictions(30).iter().enumerate() {
        assert_eq!(prediction["file"], *names[index]);
        assert_eq!(prediction["sequence"], index as u64 + 1);
        assert_eq!(prediction["replayed"], true);
    }
    daemon.drop_photo("new.jpg", &jpeg(77));
    let new = witness.next("prediction").json();
    assert_eq!((&new["sequence"], &new["replayed"]), (&31.into(), &false.into()));
}

#[test]
fn a_broker_that_goes_away_loses_nothing() {
    let mut broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    daemon.drop_photo("first.jpg", &jpeg(0));
    let mut seen = vec![witness.next("prediction").json()];
    for round in 0..2 {
        broker.stop();
        for number in 0..10 {
            daemon.drop_photo(&format!("{round}-{number}.jpg"), &jpeg(number));
        }
        broker.start();
        let last = format!("{round}-9.jpg");
        while seen.last().is_none_or(|p: &Value| p["file"] != *last) {
            seen.push(witness.next("prediction").json());
        }
    }
    // Repeats, the daemon's or the broker's, have the id of the first.
    let mut files: Vec<&str> = Vec::new();
    let mut ids = BTreeSet::new();
    for prediction in &seen {
        let file = prediction["file"].as_str().unwrap();
        let is_new = ids.insert(prediction["id"].as_str().unwrap());
        assert_eq!(is_new, !files.contains(&file), "{file}");
        files.extend(is_new.then_some(file));
    }
    let expected = (0..2).flat_map(|round| (0..10).map(move |n| format!("{round}-{n}.jpg")));
    assert_eq!(files.remove(0), "first.jpg");
    assert!(expected.eq(files.iter().copied()), "{files:?}");
    until("all photos are done", || daemon.list("").is_empty());
    assert_eq!(daemon.list("done").len(), 21);
}

#[test]
fn without_an_acknowledgement_a_prediction_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut broker = Broker::absent();
    broker.port = listener.local_addr().unwrap().port();
    // A broker that accepts the connection and then only listens.
    let mute = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(&[0x20, 2, 0, 0]).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = socket.read(&mut buffer) {
            heard.extend(&buffer[..length]);
        }
        String::from_utf8_lossy(&heard).into_owned()
    });
    let mut daemon = Daemon::started(&broker);
    daemon.drop_photo("a.jpg", &jpeg(1));
    until("it is classified", || daemon.log().contains("classified"));
    assert!(daemon.end("TERM").success());
    assert!(mute.join().unwrap().contains("vggd/test/prediction"));
    assert_eq!(daemon.list("done"), ["a.jpg"]);

    let broker = Broker::running();
    let witness = broker.subscribe();
    daemon.configure(broker.port, "baseline", "");
    daemon.start();
    let prediction = witness.next("prediction").json();
    assert_eq!((&prediction["file"], &prediction["replayed"]), (&"a.jpg".into(), &true.into()));
}

/// The next PUBLISH at QoS 1: topic, packet id and payload.
fn publish(socket: &mut TcpStream) -> (String, [u8; 2], Vec<u8>) {
    loop {
        let (first, body) = packet(socket).expect("the client stays connected");
        if let Some((topic, id, payload)) = published(first, &body) {
            return (topic, id, payload.to_vec());
        }
    }
}

#[test]
fn what_was_sent_and_not_acknowledged_is_sent_again_and_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut broker = Broker::absent();
    broker.port = listener.local_addr().unwrap().port();
    // A broker that hears a prediction, hangs up, and acknowledges at the second call.
    let (acknowledged, twice) = std::sync::mpsc::channel();
    let script = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for acknowledges in [false, true] {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(&[0x20, 2, 0, 0]).unwrap();
            loop {
                let (topic, id, payload) = publish(&mut socket);
                if acknowledges {
                    socket.write_all(&[0x40, 2, id[0], id[1]]).unwrap();
                }
                if topic == "vggd/test/prediction" {
                    heard.push(serde_json::from_slice::<Value>(&payload).unwrap());
                    break;
                }
            }
            if acknowledges {
                acknowledged.send(()).unwrap();
                while packet(&mut socket).is_some() {}
            }
        }
        heard
    });
    let mut daemon = Daemon::started(&broker);
    daemon.drop_photo("a.jpg", &jpeg(1));
    twice.recv().unwrap();
    daemon.end("TERM");
    let heard = script.join().unwrap();
    assert_eq!((&heard[0]["replayed"], &heard[1]["replayed"]), (&false.into(), &true.into()));
    assert_eq!(heard[0]["id"], heard[1]["id"]);
}

#[test]
fn a_photo_that_was_rejected_before_a_kill_is_told_of_once() {
    let mut broker = Broker::absent();
    let mut daemon = Daemon::new(&broker);
    daemon.replace("sync = 'never'", "sync = 'interval'\nsync_ms = 60000");
    daemon.start();
    let bad: Vec<String> = (0..5).map(|number| format!("{number}.jpg")).collect();
    for name in &bad {
        daemon.drop_photo(name, b"no photo");
    }
    until("they are rejected", || daemon.log().matches("photo rejected").count() == bad.len());
    // Neither the disk nor the broker has what was said of them, so they stay.
    assert_eq!(daemon.list(""), bad);
    daemon.end("KILL");

    broker.start();
    let witness = broker.subscribe();
    daemon.start();
    let mut ids: Vec<String> = Vec::new();
    for _ in &bad {
        let error = witness.next("error").json();
        assert_eq!((&error["kind"], &error["message"]), (&"photo".into(), &NO_PHOTO.into()));
        ids.push(error["id"].as_str().unwrap().to_owned());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), bad.len());
    until("they are put aside", || daemon.list("").is_empty());
    assert_eq!(daemon.list("failed").len(), 2 * bad.len());
    let reason = fs::read_to_string(daemon.incoming().join("failed/0.jpg.txt")).unwrap();
    assert_eq!(reason.trim(), NO_PHOTO);
    daemon.drop_photo("good.jpg", &jpeg(1));
    witness.next("prediction");
    assert!(witness.rest("error").is_empty());
}

const NO_PHOTO: &str = "not a JPEG, PNG or WebP image";

#[test]
fn photos_leave_when_their_predictions_are_on_the_disk() {
    let broker = Broker::absent();
    for sync in ["'always'", "'interval'\nsync_ms = 100"] {
        let mut daemon = Daemon::new(&broker);
        daemon.replace("sync = 'never'", &format!("sync = {sync}"));
        for number in 0..20 {
            daemon.drop_photo(&format!("{number}.jpg"), &jpeg(number));
        }
        daemon.start();
        until("all photos are done", || daemon.list("done").len() == 20);
        daemon.end("KILL");
    }
}

#[test]
fn a_kill_at_any_point_loses_nothing_and_the_will_speaks() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    let mut predictions = Vec::new();
    for round in 0..3 {
        daemon.start();
        assert_eq!(witness.next("status").payload, "online");
        for number in 0..8 {
            daemon.drop_photo(&format!("{round}-{number}.jpg"), &jpeg(round * 8 + number));
        }
        predictions.extend(witness.predictions(1 + 2 * round as usize));
        daemon.end("KILL");
        // What was on its way arrives before the will.
        loop {
            let message = witness.next_of(&["prediction", "status"]);
            match message.topic.ends_with("prediction") {
                true => predictions.push(message.json()),
                false => break assert_eq!(message.payload, "offline"),
            }
        }
    }
    daemon.start();
    while common::count_by_file(&predictions).len() < 24 {
        predictions.extend(witness.predictions(1));
    }
    until("all photos are done", || daemon.list("").is_empty());
    // The same photo has the same id however often it is told.
    let pairs: BTreeSet<_> =
        predictions.iter().map(|p| (p["file"].to_string(), p["id"].to_string())).collect();
    assert_eq!(pairs.len(), 24);
    assert_eq!(daemon.list("done").len(), 24);
    // None is left out, and none is numbered twice.
    let mut sequences: Vec<_> = predictions.iter().map(|p| p["sequence"].as_u64()).collect();
    sequences.sort();
    sequences.dedup();
    assert!(sequences.into_iter().eq((1..=24).map(Some)));
}

#[test]
fn the_variant_changes_while_it_runs() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    let port = broker.port;
    let mut count = 0;
    let mut expect = |variant: &str| {
        until(&format!("a prediction by {variant}"), || {
            count += 1;
            daemon.drop_photo(&format!("{count}.jpg"), &jpeg(count));
            witness.next("prediction").json()["variant"] == variant
        });
    };
    expect("baseline");
    daemon.configure(port, "scaled", "");
    expect("scaled");

    // A wrong file is refused, and the daemon goes on as before.
    fs::write(daemon.config(), "[model]\nvairant = 'quantized'\n").unwrap();
    let error = witness.next("error").json();
    assert_eq!(error["kind"], "configuration");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("vggd.toml") && message.contains("'model.vairant'"), "{message}");
    expect("scaled");
    daemon.configure(port, "nonesuch", "");
    let message = witness.next("error").json()["message"].to_string();
    assert!(message.contains("nonesuch") && message.contains("quantized"), "{message}");
    expect("scaled");

    // An editor that replaces the file, and a signal.
    let aside = daemon.config().with_extension("new");
    let text = fs::read_to_string(daemon.config()).unwrap().replace("nonesuch", "quantized");
    fs::write(&aside, text).unwrap();
    fs::rename(aside, daemon.config()).unwrap();
    expect("quantized");
    assert_eq!(daemon.log().matches("variant switched").count(), 2);
}

#[test]
fn a_signal_reloads_what_no_watching_sees() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    // The folder that the link lies in is watched, the one that the file lies in is not.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("real.toml");
    fs::rename(daemon.config(), &file).unwrap();
    std::os::unix::fs::symlink(&file, daemon.config()).unwrap();
    daemon.start();
    daemon.configure(broker.port, "scaled", "");
    daemon.signal("HUP");
    until("the variant is switched", || daemon.log().contains("variant switched"));
    daemon.drop_photo("a.jpg", &jpeg(1));
    assert_eq!(witness.next("prediction").json()["variant"], "scaled");
}

#[test]
fn a_photo_that_cannot_be_moved_is_told_once() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    fs::write(daemon.incoming().join("done"), "in the way").unwrap();
    daemon.start();
    daemon.drop_photo("a.jpg", &jpeg(1));
    witness.next("prediction");
    until("it says so", || daemon.log().contains("cannot move or remove photo"));
    // It is passed over until it changes.
    let listed = || daemon.log().matches("folder listed").count();
    let before = listed();
    until("the folder is listed", || listed() > before);
    daemon.drop_photo("a.jpg", &jpeg(2));
    witness.next("prediction");
    assert!(witness.rest("prediction").is_empty());
}

#[test]
fn stats_sum_up_what_happened() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    let text = fs::read_to_string(daemon.config()).unwrap();
    fs::write(daemon.config(), text.replace("[mqtt]\n", "[mqtt]\nstats_s = 1\n")).unwrap();
    daemon.start();
    for number in 0..5 {
        daemon.drop_photo(&format!("{number}.jpg"), &jpeg(number));
    }
    daemon.drop_photo("bad.jpg", b"no photo");
    let (mut frames, mut rejected) = (0, 0);
    until("all frames are in the stats", || {
        let stats = witness.next("stats").json();
        assert_eq!((&stats["schema"], &stats["misses"]), (&1.into(), &0.into()));
        assert!(stats["rss_mb"].as_u64().unwrap() > 0);
        let new = stats["frames"].as_u64().unwrap();
        assert_eq!(stats["p50_ms"].is_number(), new > 0, "{stats}");
        assert_eq!(stats["by_variant"]["baseline"].as_u64().unwrap_or(0), new);
        frames += new;
        rejected += stats["rejected"].as_u64().unwrap();
        (frames, rejected) == (5, 1)
    });
}

#[test]
fn a_photo_with_an_odd_date_is_classified_too() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    let path = daemon.incoming().join(".a.jpg");
    fs::write(&path, jpeg(1)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let hour = std::time::Duration::from_secs(3600);
    file.set_modified(std::time::SystemTime::UNIX_EPOCH - hour).unwrap();
    fs::rename(path, daemon.incoming().join("a.jpg")).unwrap();
    let prediction = witness.next("prediction").json();
    assert_eq!(prediction["captured_at"], "1970-01-01T00:00:00.000Z");
}
