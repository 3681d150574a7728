//! The model set changes while the daemon runs.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{
    Broker, Daemon, Subscriber, copied, count_by_file, edit_manifest, evaluate, jpeg, models, until,
};
use tempfile::TempDir;

/// A daemon with a set of its own, evaluated or not.
fn daemon(broker: &Broker, is_evaluated: bool) -> (Daemon, TempDir, PathBuf) {
    let (folder, set) = copied();
    if is_evaluated {
        evaluate(&set);
    }
    let daemon = Daemon::new(broker);
    use_set(&daemon, models(), &set);
    (daemon, folder, set)
}

/// Names another set in the configuration.
fn use_set(daemon: &Daemon, old: &Path, new: &Path) {
    daemon.replace(&old.display().to_string(), &new.display().to_string());
}

/// Makes another set of this one: a variant more, under a name of its own, and other labels.
fn alter(set: &Path) {
    edit_manifest(set, |manifest| {
        let variants = manifest["variant"].as_array_mut().unwrap();
        let mut door = variants[2].clone();
        door.as_table_mut().unwrap().insert("name".to_owned(), "door".into());
        variants.push(door);
    });
    let labels = fs::read_to_string(set.join("labels.txt")).unwrap();
    let labels: String = labels.lines().map(|label| format!("new {label}\n")).collect();
    fs::write(set.join("labels.txt"), labels).unwrap();
}

fn ordered(broker: &Broker, witness: &Subscriber, variant: &str) -> String {
    broker.publish("vggd/test/variant/set", variant, &[]);
    let answer = witness.next_of(&["variant", "error"]);
    match answer.topic.ends_with("/error") {
        true => answer.json()["message"].as_str().unwrap().to_owned(),
        false => answer.payload,
    }
}

#[test]
fn accuracies_that_were_just_measured_count_at_once() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (mut daemon, _folder, set) = daemon(&broker, false);
    daemon.configure_mqtt("discovery = 'homeassistant'");
    daemon.start();
    assert_eq!(witness.next("variant").payload, "baseline");
    let refused = ordered(&broker, &witness, "auto");
    assert!(refused.contains("run vggd-models evaluate"), "{refused}");

    evaluate(&set);
    broker.publish("vggd/test/variant/set", "auto", &[]);
    let (mut holds, mut offered) = (false, false);
    until("it holds, and Home Assistant offers it", || {
        let message = witness.next_of(&["variant", "config"]);
        holds |= message.payload == "auto";
        offered |= message.payload.contains("\"options\":[\"auto\"");
        holds && offered
    });
    daemon.drop_photo("one.jpg", &jpeg(1));
    witness.next("prediction");
}

#[test]
fn a_variant_that_was_just_made_can_be_ordered() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (mut daemon, _folder, set) = daemon(&broker, true);
    daemon.start();
    assert_eq!(witness.next("variant").payload, "baseline");
    let refused = ordered(&broker, &witness, "door");
    assert!(refused.contains("no variant 'door'"), "{refused}");
    alter(&set);
    assert_eq!(ordered(&broker, &witness, "door"), "door");
    daemon.drop_photo("one.jpg", &jpeg(1));
    let prediction = witness.next("prediction").json();
    assert_eq!(prediction["variant"], "door");
    assert!(prediction["top"][0]["label"].as_str().unwrap().starts_with("new "));

    // A set that cannot be read any more keeps nobody from what was read before.
    fs::rename(set.join("manifest.toml"), set.join("away")).unwrap();
    assert_eq!(ordered(&broker, &witness, "scaled"), "scaled");
    until("it is told", || daemon.log().contains("cannot read the model set"));
}

#[test]
fn another_folder_takes_over_and_no_photo_is_lost() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (mut daemon, _folder, set) = daemon(&broker, false);
    let (_other_folder, other) = copied();
    alter(&other);
    daemon.start();
    assert_eq!(witness.next("variant").payload, "baseline");
    let mut predictions = Vec::new();
    let mut count = 0;
    let mut photo = || {
        count += 1;
        daemon.drop_photo(&format!("{count}.jpg"), &jpeg(count));
        witness.next("prediction").json()
    };
    predictions.push(photo());
    let text = fs::read_to_string(daemon.config()).unwrap();
    let text = text.replace(&set.display().to_string(), &other.display().to_string());
    fs::write(daemon.config(), text.replace("variant = 'baseline'", "variant = 'door'")).unwrap();
    until("the other set takes over", || {
        predictions.push(photo());
        predictions.last().unwrap()["variant"] == "door"
    });
    predictions.push(photo());
    for prediction in &predictions {
        let is_new = prediction["top"][0]["label"].as_str().unwrap().starts_with("new ");
        assert_eq!(is_new, prediction["variant"] == "door", "{prediction}");
    }
    let once: BTreeMap<String, usize> = (1..=count).map(|at| (format!("{at}.jpg"), 1)).collect();
    assert_eq!(count_by_file(&predictions), once);
}

#[test]
fn an_order_outlives_a_change_of_the_set_as_long_as_it_can() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (mut daemon, _folder, set) = daemon(&broker, false);
    daemon.start();
    assert_eq!(witness.next("variant").payload, "baseline");
    assert_eq!(ordered(&broker, &witness, "quantized"), "quantized");
    alter(&set);
    daemon.signal("HUP");
    until("the set takes over", || daemon.log().contains("model set taken over"));
    daemon.drop_photo("one.jpg", &jpeg(1));
    let prediction = witness.next("prediction").json();
    assert_eq!(prediction["variant"], "quantized");
    assert!(prediction["top"][0]["label"].as_str().unwrap().starts_with("new "));

    // Without it, what is configured runs.
    edit_manifest(&set, |manifest| drop(manifest["variant"].as_array_mut().unwrap().remove(1)));
    daemon.signal("HUP");
    assert_eq!(witness.next("variant").payload, "baseline");
}

#[test]
fn a_set_that_is_wrong_is_refused_and_all_goes_on() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (mut daemon, _folder, set) = daemon(&broker, false);
    daemon.start();
    let refused = |broken: &Path, part: &str| {
        use_set(&daemon, &set, broken);
        until(part, || {
            let error = witness.next("error").json();
            error["kind"] == "configuration" && error["message"].as_str().unwrap().contains(part)
        });
        use_set(&daemon, broken, &set);
    };
    refused(Path::new("/nowhere"), "model.set = '/nowhere'");
    let (_other_folder, other) = copied();
    edit_manifest(&other, |manifest| drop(manifest["variant"].as_array_mut().unwrap().remove(0)));
    refused(&other, "no variant 'baseline'");
    daemon.drop_photo("one.jpg", &jpeg(1));
    assert_eq!(witness.next("prediction").json()["variant"], "baseline");
    assert!(!daemon.log().contains("model set taken over"));
}
