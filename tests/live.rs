//! Frames of a stream through the whole daemon: what is seen steadily, pictures, Home Assistant, and a
//! source that fails.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use common::{Broker, Daemon, jpeg, until};
use vggd::preprocess::{Limits, decode};

/// A daemon that reads a stream: `command`, in whose folder lie `0.jpg` to `3.jpg`.
fn streaming(broker: &Broker, command: &str, more: &str) -> Daemon {
    let daemon = Daemon::new(broker);
    let folder = daemon.incoming();
    for number in 0..4 {
        fs::write(folder.join(format!("{number}.jpg")), jpeg(number)).unwrap();
    }
    let command = format!("cd {}; {command}", folder.display());
    daemon.replace(
        "[source]\ndirectory = 'incoming'\n",
        &format!("[source]\nkind = 'stream'\ncommand = '{command}'\ntimeout_s = 2\n"),
    );
    let text = fs::read_to_string(daemon.config()).unwrap();
    fs::write(daemon.config(), format!("{text}{more}")).unwrap();
    daemon
}

/// Writes `0.jpg` again and again.
const STEADY: &str = "while cat 0.jpg; do sleep 0.02; done";

#[test]
fn a_steady_stream_gives_a_steady_state() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = streaming(&broker, STEADY, "[state]\nmin_confidence = 0.0\nin_a_row = 4\n");
    daemon.start();
    let first = witness.next("state").json();
    assert_eq!(
        (&first["label"], &first["source"]["kind"]),
        (&"null".parse().unwrap(), &"stream".into())
    );
    let mut last = None;
    for sequence in 1..=4 {
        let prediction = witness.next("prediction").json();
        assert_eq!(
            (&prediction["sequence"], &prediction["source"]),
            (&sequence.into(), &"stream".into())
        );
        assert!(prediction["file"].is_null());
        last = Some(prediction);
    }
    let last = last.unwrap();
    let mut state = first;
    until("something is seen steadily", || {
        state = witness.next("state").json();
        state["label"].is_string()
    });
    assert_eq!((&state["label"], &state["variant"]), (&last["top"][0]["label"], &last["variant"]));
    assert_eq!(state["source"]["working"], true);
    assert!(state["since"].as_str() <= state["last_seen"].as_str());
}

#[test]
fn a_picture_is_shown_when_it_is_asked_for() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = streaming(&broker, STEADY, "[state]\nimage = 'demand'\nimage_kb = 8\n");
    daemon.start();
    witness.predictions(2);
    assert!(witness.rest("image").is_empty());
    broker.publish("vggd/test/snapshot/set", "", &[]);
    let image = witness.next("image");
    assert!(!image.retained && image.bytes.len() <= 8 << 10, "{} bytes", image.bytes.len());
    let photo = decode(&image.bytes, &Limits::within(1 << 24)).unwrap();
    assert!((photo.width() * 3).abs_diff(photo.height() * 4) <= 4, "{photo:?}");
}

#[test]
fn a_picture_shows_what_was_looked_at() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let state = "[state]\nimage = 'change'\nin_a_row = 1\nmin_confidence = 0.0\n";
    let mut daemon = streaming(&broker, STEADY, state);
    daemon.replace("[source]\n", "[source]\nrotate = 90\nregion = '0.5 0.25 0.5 0.5'\n");
    let address = daemon.serve("frame = true");
    daemon.start();
    let told = witness.next("image").bytes;
    let mut page = TcpStream::connect(&address).unwrap();
    write!(page, "GET /api/v1/frame HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut shown = Vec::new();
    page.read_to_end(&mut shown).unwrap();
    let body = shown.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;

    let turned = image::imageops::rotate90(&common::photo(0));
    let expected = image::imageops::crop_imm(&turned, 120, 80, 120, 160).to_image();
    for jpeg in [told.as_slice(), &shown[body..]] {
        let found = image::load_from_memory(jpeg).unwrap().to_rgb8();
        assert_eq!(found.dimensions(), expected.dimensions());
        let pairs = found.iter().zip(expected.iter());
        let difference: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(difference < 20 * found.len() as u64, "{difference}");
    }
}

#[test]
fn what_is_seen_is_told_to_whoever_comes_late() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = streaming(&broker, STEADY, "[state]\nmin_confidence = 0.0\n");
    daemon.start();
    let mut seen = witness.next("state");
    while seen.json()["label"].is_null() {
        seen = witness.next("state");
    }
    let mut late = common::program("mosquitto_sub");
    let port = broker.port.to_string();
    late.args(["-h", "127.0.0.1", "-p", &port, "-t", "vggd/test/state", "-C", "1", "-W", "30"]);
    let heard = late.args(["-F", "%r %p"]).output().unwrap().stdout;
    let heard = String::from_utf8(heard).unwrap();
    let (retained, payload) = heard.trim().split_once(' ').unwrap();
    assert_eq!(retained, "1");
    let payload: serde_json::Value = serde_json::from_str(payload).unwrap();
    assert_eq!(payload["label"], seen.json()["label"]);
}

#[test]
fn no_more_frames_are_classified_than_are_wanted() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = streaming(&broker, STEADY, "");
    // One in three hours.
    daemon.replace("[source]\n", "[source]\nmax_rate = 0.0001\n");
    daemon.configure_mqtt("stats_s = 1\n");
    daemon.start();
    witness.next("prediction");
    let dropped = || witness.next_of(&["stats", "prediction"]).json()["dropped"].as_u64();
    until("many more have come", || dropped().expect("no further prediction") > 50);
    broker.publish("vggd/test/snapshot/set", "", &[]);
    witness.next("prediction");
    let before = dropped().expect("no further prediction");
    until("many more have come", || dropped().expect("no further one") > before + 50);
}

#[test]
fn what_a_command_says_is_logged_without_logins() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let says = "echo no lens at rtsp://me:secret@camera/1 >&2";
    let mut daemon = streaming(&broker, &format!("{says}; {STEADY}"), "");
    daemon.start();
    witness.next("prediction");
    until("it is logged", || daemon.log().contains("no lens at rtsp://…@camera/1"));
    assert!(!daemon.log().contains("secret"), "{}", daemon.log());
}

#[test]
fn a_stream_that_ends_is_told_and_started_again() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    // The first time it ends after a picture; the second time it goes on.
    let command = format!("cat 1.jpg; if [ -e again ]; then {STEADY}; fi; touch again; exit 3");
    let mut daemon = streaming(&broker, &command, "");
    daemon.start();
    let mut said = Vec::new();
    until("it works, fails and works again", || {
        let message = witness.next_of(&["error", "state"]).json();
        match message["source"]["working"].as_bool() {
            Some(working) => said.push(working.to_string()),
            None => said.push(message["kind"].as_str().unwrap().to_owned()),
        }
        said.dedup();
        said.ends_with(&["true".to_owned()]) && said.iter().any(|word| word == "source")
    });
    witness.predictions(3);
}

#[test]
fn a_stream_with_a_broken_picture_now_and_then_is_told_of_once() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let command = "while cat 0.jpg; do sleep 0.02; cat broken.jpg; sleep 0.02; done";
    let mut daemon = streaming(&broker, command, "");
    let mut broken = jpeg(0);
    let frame = broken.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    // Bits of a sample: no such picture has four.
    broken[frame + 4] = 4;
    fs::write(daemon.incoming().join("broken.jpg"), broken).unwrap();
    daemon.configure_mqtt("stats_s = 1\n");
    daemon.start();
    assert_eq!(witness.next("error").json()["kind"], "frame");
    let mut rejected = 0;
    until("more were broken", || {
        rejected += witness.next("stats").json()["rejected"].as_u64().unwrap();
        rejected > 3
    });
    assert!(witness.rest("error").is_empty());
    assert_eq!(daemon.log().matches("a frame is broken").count(), 1);
}

#[test]
fn frames_that_hardly_differ_are_passed_over() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let command = "while :; do cat 0.jpg; sleep 0.02; done & sleep 2; kill $!; while cat 1.jpg; do sleep 0.02; done";
    let mut daemon = streaming(&broker, command, "");
    daemon.replace("[source]\n", "[source]\nmin_change = 0.01\n");
    daemon.configure_mqtt("stats_s = 1\n");
    daemon.start();
    let predictions = witness.predictions(2);
    assert_ne!(predictions[0]["top"], predictions[1]["top"]);
    until("frames were passed over", || {
        witness.next("stats").json()["skipped"].as_u64().unwrap() > 5
    });
    assert!(witness.rest("prediction").is_empty());
}

#[test]
fn home_assistant_learns_of_the_device_again_when_it_starts() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt("discovery = 'homeassistant'\n");
    daemon.start();
    let device = witness.next("config");
    assert_eq!(device.topic, "homeassistant/device/vggd-test/config");
    let components = &device.json()["components"];
    let options = components["variant"]["options"].as_array().unwrap().clone();
    assert_eq!(options, ["baseline", "quantized", "scaled"]);
    broker.publish("homeassistant/status", "online", &[]);
    assert_eq!(witness.next("config").payload, device.payload);
    assert!(daemon.end("TERM").success());

    // Switched off, it is forgotten.
    daemon.replace("discovery = 'homeassistant'\n", "");
    daemon.start();
    assert_eq!(witness.next("config").payload, "");
}

#[test]
fn home_assistant_forgets_the_device_under_an_old_prefix_or_topic() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt("discovery = 'ha'\n");
    daemon.start();
    let old = "ha/device/vggd-test/config";
    assert_eq!(witness.next("config").topic, old);
    // However it ended.
    daemon.end("KILL");
    daemon.replace("discovery = 'ha'\n", "discovery = 'home'\n");
    daemon.start();
    let told = [witness.next("config"), witness.next("config")];
    let told = told.map(|message| (message.topic, message.payload.is_empty()));
    let new = "home/device/vggd-test/config";
    assert_eq!(told, [(old.to_owned(), true), (new.to_owned(), false)]);
    assert!(daemon.end("TERM").success());

    daemon.replace("topic = 'vggd/test'", "topic = 'vggd/other'");
    daemon.start();
    let told = [witness.next("config"), witness.next("config")];
    let told = told.map(|message| (message.topic, message.payload.is_empty()));
    let newest = "home/device/vggd-other/config";
    assert_eq!(told, [(newest.to_owned(), false), (new.to_owned(), true)]);
    assert!(daemon.end("TERM").success());
    // It is not taken back for ever: another device may be called that by now.
    daemon.start();
    assert_eq!(witness.next("config").topic, newest);
    witness.next("pause");
    assert!(daemon.end("TERM").success());
    assert!(witness.rest("config").is_empty());
}

#[test]
fn a_command_goes_with_the_daemon() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = streaming(&broker, "echo $$ > pid; while cat 0.jpg; do sleep 0.02; done", "");
    daemon.start();
    witness.next("prediction");
    let pid = fs::read_to_string(daemon.incoming().join("pid")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    assert!(daemon.end("TERM").success());
    until("the command is gone", || !process.exists());
}
