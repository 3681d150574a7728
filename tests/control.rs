//! The variant, the budget and pauses, ordered over MQTT, and a variant chosen for each frame.

mod common;

use std::fs;

use common::{Broker, Daemon, Subscriber, evaluated, jpeg, models, run, until};

/// A daemon with an evaluated set that chooses variants itself.
fn automatic(broker: &Broker, set: &std::path::Path) -> Daemon {
    let daemon = Daemon::new(broker);
    let text = fs::read_to_string(daemon.config()).unwrap();
    let text = text.replace(&models().display().to_string(), &set.display().to_string());
    fs::write(daemon.config(), text).unwrap();
    daemon.configure_model("policy = 'auto'\nprofile = 'profile.json'\nprofile_when = 'start'");
    daemon
}

/// Drops photos until one is classified by `variant`; what was classified before by others.
fn until_by(daemon: &Daemon, witness: &Subscriber, count: &mut u32, variant: &str) -> u32 {
    let mut before = 0;
    until(&format!("a prediction by {variant}"), || {
        *count += 1;
        daemon.drop_photo(&format!("{count}.jpg"), &jpeg(*count));
        let found = witness.next("prediction").json()["variant"] == variant;
        before += u32::from(!found);
        found
    });
    before
}

#[test]
fn a_lower_budget_brings_a_faster_variant_and_a_higher_one_the_accurate_one() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let mut daemon = automatic(&broker, &set);
    daemon.start();
    assert_eq!(witness.next("budget").payload, "0");
    assert_eq!(witness.next("variant").payload, "auto");
    let mut count = 0;
    until_by(&daemon, &witness, &mut count, "baseline");

    // Nothing fits, so the fastest runs, which has half the pixels.
    broker.publish("vggd/test/budget/set", "0.001", &[]);
    let budget = witness.next("budget");
    assert_eq!(budget.payload, "0.001");
    until_by(&daemon, &witness, &mut count, "scaled");
    daemon.drop_photo("late.jpg", &jpeg(99));
    let late = witness.next("prediction").json();
    assert_eq!((&late["in_time"], &late["budget_ms"]), (&false.into(), &0.001.into()));
    assert_eq!(late["variant"], "scaled");

    broker.publish("vggd/test/budget/set", "60000", &[]);
    assert_eq!(witness.next("budget").payload, "60000");
    let before = until_by(&daemon, &witness, &mut count, "baseline");
    assert!(before <= 1, "{before} frames by another variant than the accurate one");
    assert_eq!(daemon.log().matches("no variant keeps the budget").count(), 1);

    // The profile is kept.
    let timed = |daemon: &Daemon| daemon.log().matches("variant timed").count();
    assert_eq!(timed(&daemon), 3);
    assert!(daemon.end("TERM").success());
    daemon.start();
    until_by(&daemon, &witness, &mut count, "baseline");
    assert_eq!(timed(&daemon), 3);
}

#[test]
fn a_variant_is_ordered_and_the_configuration_wins_after_a_restart() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::started(&broker);
    assert_eq!(witness.next("variant").payload, "baseline");
    let mut count = 0;
    until_by(&daemon, &witness, &mut count, "baseline");
    broker.publish("vggd/test/variant/set", "scaled", &[]);
    assert_eq!(witness.next("variant").payload, "scaled");
    assert_eq!(until_by(&daemon, &witness, &mut count, "scaled"), 0);

    let refused = [
        ("variant", "nonesuch", "no variant 'nonesuch'"),
        ("variant", "auto", "run vggd-models evaluate"),
        ("variant", "", "names no variant"),
        ("budget", "soon", "'soon' is not a number"),
        ("budget", "-3", "must be from 0"),
        ("pause", "perhaps", "neither ON nor OFF"),
        ("lights", "ON", "nothing that can be set"),
    ];
    for (name, payload, expected) in refused {
        broker.publish(&format!("vggd/test/{name}/set"), payload, &[]);
        let error = witness.next("error").json();
        assert_eq!(error["kind"], "order");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(until_by(&daemon, &witness, &mut count, "scaled"), 0);

    assert!(daemon.end("TERM").success());
    // An order that was left behind does not speak again.
    broker.publish("vggd/test/variant/set", "quantized", &["-r"]);
    daemon.start();
    assert_eq!(witness.next("variant").payload, "baseline");
    assert_eq!(until_by(&daemon, &witness, &mut count, "baseline"), 0);
    until("the order is seen", || daemon.log().contains("retained order ignored"));
    assert_eq!(until_by(&daemon, &witness, &mut count, "baseline"), 0);
}

#[test]
fn orders_of_any_size_that_were_left_behind_stop_nothing() {
    for (length, is_heard) in [(11_000, true), (3_000_000, false)] {
        let broker = Broker::running();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("order");
        fs::write(&file, vec![b'x'; length]).unwrap();
        broker.publish_file("vggd/test/variant/set", &file, &["-r"]);
        let witness = broker.subscribe();
        let mut daemon = Daemon::started(&broker);
        daemon.drop_photo("a.jpg", &jpeg(1));
        assert_eq!(witness.next("prediction").json()["file"], "a.jpg");
        until("the photo is done", || daemon.list("done") == ["a.jpg"]);
        match is_heard {
            true => {
                broker.publish("vggd/test/budget/set", "5", &[]);
                until("the order is carried out", || witness.next("budget").payload == "5");
                broker.publish_file("vggd/test/pause/set", &file, &[]);
                let error = witness.next("error").json();
                assert_eq!(error["message"], "pause/set: the message is too long");
            }
            false => {
                until("it is named", || {
                    daemon.log().contains("bytes on vggd/test/+/set: if it is retained")
                });
                daemon.drop_photo("b.jpg", &jpeg(2));
                let next = || witness.next("prediction").json()["file"] == "b.jpg";
                until("the second prediction", next);
            }
        }
        let log = daemon.log();
        let told = log.lines().filter(|line| line.contains("orders are not heard for a while"));
        assert_eq!(told.count(), usize::from(!is_heard), "{log}");
        assert!(daemon.end("TERM").success());
    }
}

#[test]
fn photos_wait_during_a_pause() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::started(&broker);
    assert_eq!(witness.next("pause").payload, "OFF");
    broker.publish("vggd/test/pause/set", "ON", &[]);
    assert_eq!(witness.next("pause").payload, "ON");
    for number in 0..4 {
        daemon.drop_photo(&format!("{number}.jpg"), &jpeg(number));
    }
    // Orders are carried out one after the other: when this one was, the pause has been for a while.
    broker.publish("vggd/test/budget/set", "5", &[]);
    assert_eq!(witness.next_of(&["budget", "prediction"]).payload, "5");
    broker.publish("vggd/test/pause/set", "off", &[]);
    assert_eq!(witness.next_of(&["pause", "prediction"]).payload, "OFF");
    assert_eq!(witness.predictions(4).len(), 4);

    // A pause does not hold up a stop.
    broker.publish("vggd/test/pause/set", "ON", &[]);
    assert_eq!(witness.next("pause").payload, "ON");
    daemon.drop_photo("last.jpg", &jpeg(9));
    assert!(daemon.end("TERM").success());
    assert_eq!(daemon.list(""), ["last.jpg"]);
}

#[test]
fn a_snapshot_is_taken_during_a_pause() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    assert_eq!(witness.next("pause").payload, "OFF");
    broker.publish("vggd/test/pause/set", "ON", &[]);
    until("the pause begins", || witness.next("pause").payload == "ON");
    for number in 0..3 {
        daemon.drop_photo(&format!("{number}.jpg"), &jpeg(number));
    }
    broker.publish("vggd/test/snapshot/set", "", &[]);
    assert_eq!(witness.next("prediction").json()["file"], "0.jpg");
    // One alone: this order was carried out later, and nothing came between.
    broker.publish("vggd/test/budget/set", "5", &[]);
    assert_eq!(witness.next_of(&["budget", "prediction"]).payload, "5");
}

#[test]
fn every_variant_is_compared_on_the_last_frame() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    // It hears orders as soon as it has told what holds.
    assert_eq!(witness.next("pause").payload, "OFF");
    broker.publish("vggd/test/compare/set", "", &[]);
    let error = witness.next("error").json();
    assert_eq!(error["message"], "compare/set: no frame was classified so far");

    daemon.drop_photo("a.jpg", &jpeg(1));
    let prediction = witness.next("prediction").json();
    broker.publish("vggd/test/compare/set", "", &[]);
    let comparison = witness.next("compare").json();
    assert_eq!((&comparison["id"], &comparison["file"]), (&prediction["id"], &"a.jpg".into()));
    let cards = comparison["variants"].as_array().unwrap();
    let names: Vec<_> = cards.iter().map(|card| card["variant"].as_str().unwrap()).collect();
    assert_eq!(names, ["baseline", "quantized", "scaled"]);
    assert_eq!((&cards[0]["agrees"], &cards[0]["speedup"]), (&true.into(), &1.0.into()));
    // The same photo, the same answer.
    assert_eq!(cards[0]["top"], prediction["top"]);
}

#[test]
fn a_label_that_no_class_has_is_refused_with_the_nearest() {
    let labels = fs::read_to_string(models().join("labels.txt")).unwrap();
    let known = labels.lines().nth(3).unwrap();
    let daemon = Daemon::new(&Broker::absent());
    let text = fs::read_to_string(daemon.config()).unwrap();
    let config = daemon.config().display().to_string();
    for (label, is_known) in [(known.to_owned(), true), (format!("{known}x"), false)] {
        fs::write(daemon.config(), format!("{text}[state]\nlabels = ['{label}']\n")).unwrap();
        for command in if is_known { vec!["check"] } else { vec!["check", "run"] } {
            let output = common::vggd()
                .args([command, "--config", &config])
                .current_dir(daemon.incoming().parent().unwrap())
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            let expected = if is_known { 0 } else { 78 };
            assert_eq!(output.status.code(), Some(expected), "{command}: {error}");
            let named = error.contains(&format!("state.labels = '{label}': is not a line of"))
                && error.contains(&format!("did you mean '{known}'?"));
            assert_eq!(named, !is_known, "{error}");
        }
    }
}

#[test]
fn automatic_without_accuracy_is_refused_with_the_command_that_helps() {
    let broker = Broker::absent();
    let daemon = Daemon::new(&broker);
    daemon.configure_model("policy = 'auto'");
    let config = daemon.config().display().to_string();
    for command in ["check", "run"] {
        let output = run(&[command, "--config", &config]);
        assert_eq!(output.status.code(), Some(78), "{command}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("model.policy = 'auto'"), "{error}");
        assert!(error.contains("vggd-models evaluate"), "{error}");
    }
}
