//! The JSON Schemas of the messages: strict, true to what the code writes, and refusing all else.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use common::schema::{SCHEMAS, check};
use common::{Broker, Daemon, evaluated, jpeg, models};
use serde_json::{Value, json};
use vggd::event::{
    Card, Class, Comparison, Failure, LeftOut, Origin, Prediction, SCHEMA, State, Timings,
    timestamp,
};
use vggd::stats::{self, Stats};
use vggd::thermal::{Thermal, Throttled};

fn top() -> Vec<Class> {
    vec![Class { class: 3, label: "tabby".to_owned(), probability: 0.75 }]
}

fn timings() -> Timings {
    Timings::new([1500, 250, 4, 90].map(Duration::from_micros))
}

fn now() -> String {
    timestamp(SystemTime::UNIX_EPOCH)
}

fn prediction() -> Prediction {
    Prediction {
        schema: SCHEMA,
        id: "0123456789abcdef".to_owned(),
        sequence: 1,
        source: "directory".into(),
        file: Some("a.jpg".to_owned()),
        captured_at: now(),
        variant: "baseline".to_owned(),
        top: top(),
        timings_ms: timings(),
        budget_ms: Some(80.0),
        in_time: Some(true),
        replayed: false,
    }
}

fn state() -> State {
    State {
        schema: SCHEMA,
        label: Some("tabby".to_owned()),
        class: Some(3),
        probability: Some(0.75),
        since: Some(now()),
        last_seen: Some(now()),
        variant: Some("baseline".to_owned()),
        source: Origin { kind: "camera", working: true, detail: "/dev/video0".to_owned() },
        budget_kept: Some(true),
        temperature_c: Some(48.0),
        throttled: Some(false),
    }
}

fn stats() -> stats::Message {
    let mut stats = Stats::default();
    stats.count("baseline", Duration::from_millis(80), Some(true));
    stats::Message {
        at: now(),
        summary: stats.take(),
        dropped: 7,
        outbox: stats::Outbox { pending: 2, bytes: 1024, dropped: 0 },
        reconnects: 1,
        slowdown: Some([1.0, 1.25]),
        rss_mb: Some(300),
        thermal: Thermal { temperature_c: Some(48.3), throttled: Some(Throttled::default()) },
    }
}

/// A message of each kind with all that it can have.
fn full() -> [(&'static str, Value); 5] {
    let card = Card {
        variant: "baseline".to_owned(),
        top: top(),
        timings_ms: timings(),
        median_ms: 80.0,
        load_ms: 800.0,
        bytes: 574_700_000,
        rss_mb: 600,
        agrees: true,
        speedup: 1.0,
        threads: 2,
    };
    let comparison = Comparison {
        schema: SCHEMA,
        at: now(),
        id: "0123456789abcdef".to_owned(),
        file: Some("a.jpg".to_owned()),
        variants: vec![card],
        left_out: vec![LeftOut {
            variant: "pruned".to_owned(),
            reason: "needs 500 MiB".to_owned(),
        }],
    };
    let failure = Failure {
        schema: SCHEMA,
        at: now(),
        kind: "photo",
        file: Some("a.jpg".to_owned()),
        id: Some("c029c7892a1bfb4b".to_owned()),
        message: "no photo".to_owned(),
    };
    [
        ("compare", json!(comparison)),
        ("error", json!(failure)),
        ("prediction", json!(prediction())),
        ("state", json!(state())),
        ("stats", json!(stats())),
    ]
}

fn verdict(name: &str, message: &Value) -> Result<(), String> {
    check(&format!("vggd/test/{name}"), message.to_string().as_bytes())
}

fn schema(name: &str) -> Value {
    let (_, text) = SCHEMAS.iter().find(|(other, _)| *other == name).unwrap();
    serde_json::from_str(text).unwrap()
}

/// Every schema inside a schema that describes a value.
fn described<'a>(schema: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(schema);
    let inside = ["properties", "$defs"].into_iter().filter_map(|key| schema[key].as_object());
    inside.flat_map(|map| map.values()).for_each(|schema| described(schema, found));
    if schema["items"].is_object() && schema["items"]["$ref"].is_null() {
        found.extend(schema["items"].get("properties").map(|_| &schema["items"]));
    }
}

#[test]
fn every_schema_is_valid_strict_and_described() {
    for (name, _) in SCHEMAS {
        let schema = schema(name);
        assert!(jsonschema::meta::validate(&schema).is_ok(), "{name}");
        let mut all = Vec::new();
        described(&schema, &mut all);
        for part in all {
            let is_described = part["description"].is_string() || part["$ref"].is_string();
            assert!(is_described, "{name}: {part}");
            let is_open = part["type"] == "object" && part["additionalProperties"].is_null();
            assert!(!is_open, "{name}: {part}");
        }
    }
}

#[test]
fn schemas_have_the_keys_that_are_written() {
    for (name, message) in full() {
        assert_eq!(verdict(name, &message), Ok(()), "{name}");
        let written: BTreeSet<&String> = message.as_object().unwrap().keys().collect();
        let schema = schema(name);
        let known: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(known, written, "{name}");
    }
}

#[test]
fn messages_without_what_is_not_always_there_are_valid() {
    let nothing = State {
        label: None,
        class: None,
        probability: None,
        since: None,
        last_seen: None,
        variant: None,
        throttled: None,
        ..state()
    };
    let quiet = stats::Message {
        summary: Stats::default().take(),
        slowdown: None,
        rss_mb: None,
        thermal: Thermal::default(),
        ..stats()
    };
    let refused = Failure {
        schema: SCHEMA,
        at: now(),
        kind: "order",
        file: None,
        id: None,
        message: "budget/set: 'soon' is not a number of milliseconds".to_owned(),
    };
    for (name, message) in [
        ("prediction", json!(Prediction { budget_ms: None, in_time: None, ..prediction() })),
        ("state", json!(nothing)),
        ("stats", json!(quiet)),
        ("error", json!(refused)),
    ] {
        assert_eq!(verdict(name, &message), Ok(()), "{name}");
    }
}

/// Where a message has values, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), found));
        }
        Value::Array(list) => {
            let all = list.iter().enumerate();
            all.for_each(|(index, value)| places(value, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

#[test]
fn what_is_no_number_is_refused_everywhere() {
    // Without them there is no frame that could have told.
    let may_be_null = ["/throttled", "/temperature_c", "/budget_kept", "/file"];
    for (name, message) in full() {
        let mut all = Vec::new();
        places(&message, "", &mut all);
        for place in all {
            if may_be_null.contains(&place.as_str()) && name != "stats" && name != "error" {
                continue;
            }
            let mut broken = message.clone();
            *broken.pointer_mut(&place).unwrap() = Value::Null;
            assert!(verdict(name, &broken).is_err(), "{name}: {place} may be null");
        }
    }
    let class = Class { probability: f64::NAN, ..top().remove(0) };
    let broken = Prediction { top: vec![class], ..prediction() };
    assert!(verdict("prediction", &json!(broken)).is_err());
}

#[test]
fn an_unknown_key_is_refused_at_every_level() {
    for (name, message) in full() {
        let mut all = Vec::new();
        places(&message, "", &mut all);
        for place in all {
            let mut more = message.clone();
            let Some(object) = more.pointer_mut(&place).and_then(Value::as_object_mut) else {
                continue;
            };
            object.insert("unheard_of".to_owned(), "x".into());
            assert!(verdict(name, &more).is_err(), "{name}: more keys at '{place}'");
        }
    }
}

#[test]
fn plain_messages_have_their_patterns() {
    for (name, payload, is_valid) in [
        ("status", "online", true),
        ("status", "On", false),
        ("pause", "OFF", true),
        ("pause", "off", false),
        ("budget", "0.5", true),
        ("budget", "NaN", false),
        ("budget", "-1", false),
        ("variant", "auto", true),
        ("variant", "", false),
        ("image", "GIF89a", false),
        ("whatever", "{}", false),
    ] {
        let verdict = check(&format!("vggd/test/{name}"), payload.as_bytes());
        assert_eq!(verdict.is_ok(), is_valid, "{name} {payload}");
    }
    assert!(check("vggd/test/image", b"\xff\xd8\xff\xe0").is_ok());
}

#[test]
fn the_longest_names_and_labels_get_through() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let labels: String =
        (0..10).map(|class| format!("{}\n", class.to_string().repeat(10 << 10))).collect();
    fs::write(set.join("labels.txt"), labels).unwrap();
    let mut daemon = Daemon::new(&broker);
    daemon.replace(models().to_str().unwrap(), set.to_str().unwrap());
    daemon.start();
    // With the dot of the hidden name 255 bytes, the most that a file system takes.
    let name = format!("{}.jpg", "ü".repeat(125));
    daemon.drop_photo(&name, &jpeg(1));
    let prediction = witness.next("prediction").json();
    assert_eq!(prediction["file"], name);
    let label = prediction["top"][0]["label"].as_str().unwrap();
    assert_eq!((label.chars().count(), label.chars().last()), (255, Some('…')));
}
