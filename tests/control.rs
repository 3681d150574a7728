//! The variant, the budget and pauses, ordered over MQTT, and a variant chosen for each frame.

mod common;

use std::fs;

use common::{Broker, Daemon, PATIENCE, Subscriber, evaluated, jpeg, models, program, run, until};

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

/// The next message on `state` that says this of the budget.
fn until_kept(witness: &Subscriber, kept: Option<bool>) {
    until(&format!("state says {kept:?}"), || {
        witness.next("state").json()["budget_kept"].as_bool() == kept
    });
}

#[test]
fn a_budget_that_nothing_keeps_is_told_everywhere_and_once() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let mut daemon = automatic(&broker, &set);
    daemon.configure_mqtt("stats_s = 1");
    daemon.start();
    until_kept(&witness, None);
    broker.publish("vggd/test/budget/set", "0.001", &[]);
    until_kept(&witness, Some(false));
    for number in 0..5 {
        daemon.drop_photo(&format!("{number}.jpg"), &jpeg(number));
    }
    let (mut late, mut misses) = (0, 0);
    until("all are late, and counted", || {
        let message = witness.next_of(&["prediction", "stats"]).json();
        late += u64::from(message["in_time"] == false);
        misses += message["misses"].as_u64().unwrap_or(0);
        (late, misses) == (5, 5)
    });
    broker.publish("vggd/test/budget/set", "0.002", &[]);
    broker.publish("vggd/test/budget/set", "60000", &[]);
    until_kept(&witness, Some(true));
    broker.publish("vggd/test/budget/set", "0", &[]);
    until_kept(&witness, None);
    let log = daemon.log();
    for line in ["no variant keeps the budget", "the budget can be kept again"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
    assert!(daemon.end("TERM").success());

    // What was timed is known to a fixed variant, too, and nothing is timed again for it.
    daemon.replace("policy = 'auto'", "policy = 'fixed'\nbudget_ms = 0.001");
    daemon.start();
    until_kept(&witness, Some(false));
    assert_eq!(daemon.log().matches("variant timed").count(), 3);
    assert_eq!(daemon.log().matches("the variant does not keep the budget").count(), 1);
}

#[test]
fn variants_are_timed_beside_the_frames() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let mut daemon = automatic(&broker, &set);
    daemon.replace("profile_when = 'start'\n", "");
    daemon.replace("variant = 'baseline'", "variant = 'quantized'\nbudget_ms = 60000");
    daemon.start();
    assert!(daemon.log().contains("model loaded variant=\"quantized\""), "{}", daemon.log());
    let mut count = 0;
    until_by(&daemon, &witness, &mut count, "baseline");
    until("all are timed", || daemon.log().matches("variant timed").count() == 3);
    // It may have been told between predictions.
    until("the state says that the budget is kept", || {
        let state = retained(&broker, ["state"]);
        serde_json::from_str::<serde_json::Value>(&state[0]).unwrap()["budget_kept"] == true
    });
}

#[test]
fn what_does_not_fit_into_memory_is_told_before_it_runs() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let mut daemon = automatic(&broker, &set);
    daemon.start();
    assert_eq!(witness.next("variant").payload, "auto");
    assert!(daemon.end("TERM").success());

    // As if it had been large when it was timed.
    let kept = daemon.config().with_file_name("profile.json");
    let mut profile: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&kept).unwrap()).unwrap();
    let digest = {
        let set = vggd::manifest::ModelSet::open(&set).unwrap();
        set.digest(set.variant("baseline").unwrap())
    };
    profile["costs"][&digest]["peak_rss_mb"] = 5000.into();
    fs::write(&kept, profile.to_string()).unwrap();
    daemon.replace("policy = 'auto'", "policy = 'auto'\nmemory_limit = 4000");
    daemon.start();
    daemon.drop_photo("one.jpg", &jpeg(1));
    assert_eq!(witness.next("prediction").json()["variant"], "quantized");
    broker.publish("vggd/test/variant/set", "baseline", &[]);
    let refused = witness.next("error").json();
    let problem = "variant 'baseline' needs 5000 MiB, more than model.memory_limit = 4000";
    assert_eq!(
        (&refused["kind"], &refused["message"]),
        (&"order".into(), &format!("variant/set: {problem}").into())
    );
    assert!(daemon.end("TERM").success());

    daemon.replace("policy = 'auto'", "policy = 'fixed'");
    let config = daemon.config();
    let folder = config.parent().unwrap();
    for command in ["check", "run"] {
        let mut vggd = common::vggd();
        vggd.args([command, "--config"]).arg(daemon.config()).current_dir(folder);
        let output = vggd.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{command}: {error}");
        assert!(error.contains(&format!("model.variant = 'baseline': {problem}")), "{error}");
    }
}

#[test]
fn a_running_daemon_takes_over_what_its_file_says_of_the_choice() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let mut daemon = automatic(&broker, &set);
    daemon.replace("policy = 'auto'", "policy = 'fixed'");
    daemon.start();
    assert_eq!(witness.next("variant").payload, "baseline");
    daemon.replace("policy = 'fixed'", "policy = 'fixed'\nbudget_ms = 250.5");
    until("the budget is taken over", || witness.next("budget").payload == "250.5");
    daemon.replace("policy = 'fixed'", "policy = 'auto'");
    until("the policy is taken over", || witness.next("variant").payload == "auto");
    daemon.replace("budget_ms = 250.5", "budget_ms = 250.5\nmiss_rate = 0.25");
    until("the miss rate is taken over", || {
        daemon.log().contains("configuration taken over keys=[\"model.miss_rate\"]")
    });
    daemon.replace("policy = 'auto'", "policy = 'fixed'");
    until("a variant is fixed again", || witness.next("variant").payload == "baseline");
    // What is ordered holds until the file says something else about it.
    broker.publish("vggd/test/budget/set", "5", &[]);
    assert_eq!(witness.next("budget").payload, "5");
    daemon.replace("miss_rate = 0.25", "miss_rate = 0.2");
    until("the file is read", || daemon.log().matches("[\"model.miss_rate\"]").count() == 2);
    daemon.replace("budget_ms = 250.5", "budget_ms = 60000");
    assert_eq!(witness.next("budget").payload, "60000");
}

/// What the broker keeps on these topics for whoever comes later.
fn retained<const COUNT: usize>(broker: &Broker, names: [&str; COUNT]) -> [String; COUNT] {
    names.map(|name| {
        let port = broker.port.to_string();
        let mut command = program("mosquitto_sub");
        command.args(["-h", "127.0.0.1", "-p", &port, "--retained-only", "-C", "1"]);
        command.args(["-W", &PATIENCE.as_secs().to_string(), "-t", &format!("vggd/test/{name}")]);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    })
}

#[test]
fn what_holds_is_retained_and_the_configuration_wins_after_a_restart() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_model("budget_ms = 80");
    daemon.start();
    assert_eq!(witness.next("pause").payload, "OFF");
    let names = ["variant", "budget", "pause"];
    for (name, value) in names.into_iter().zip(["scaled", "5", "ON"]) {
        broker.publish(&format!("vggd/test/{name}/set"), value, &[]);
        until("it holds", || witness.next(name).payload == value);
    }
    assert_eq!(retained(&broker, names), ["scaled", "5", "ON"]);
    assert!(daemon.end("TERM").success());
    assert_eq!(retained(&broker, names), ["scaled", "5", "ON"]);
    daemon.start();
    until("a frame may pass", || witness.next("pause").payload == "OFF");
    assert_eq!(retained(&broker, names), ["baseline", "80", "OFF"]);
    daemon.drop_photo("one.jpg", &jpeg(1));
    let prediction = witness.next("prediction").json();
    assert_eq!(
        (&prediction["variant"], &prediction["budget_ms"]),
        (&"baseline".into(), &80.0.into())
    );
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
