//! What Home Assistant is told so that it finds this device by itself: one retained message that
//! describes all of it (MQTT device discovery). It knows topics, and the keys of the messages on them, but
//! no transport; what was told where before is in `known`.

mod known;

use serde_json::{Map, Value, json};

use crate::config::{Config, Image, SourceKind};
use crate::event::LONGEST_MS;
pub use known::Known;

/// The prefix that Home Assistant listens to unless it was changed there.
const USUAL_PREFIX: &str = "homeassistant";

/// What comes on the topic of [`birth`] when Home Assistant has started and wants to be told.
pub const STARTED: &[u8] = b"online";

/// A message for Home Assistant, to be retained.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Where it goes.
    pub topic: String,
    /// JSON, or nothing to be forgotten.
    pub payload: Vec<u8>,
}

/// The topic on which Home Assistant tells that it has [`STARTED`]; none with discovery switched off.
pub fn birth(config: &Config) -> Option<String> {
    let prefix = &config.mqtt.discovery;
    (!prefix.is_empty()).then(|| format!("{prefix}/status"))
}

/// The message that describes this device with its `variants`, and whether they can be chosen for each
/// frame. With discovery switched off: the one that makes Home Assistant forget the device, if it was
/// told of it under the usual prefix.
pub fn discovery(config: &Config, variants: &[String], automatic: bool) -> Message {
    let id = id(&config.mqtt.topic());
    match config.mqtt.discovery.as_str() {
        "" => Message { topic: topic(USUAL_PREFIX, &id), payload: Vec::new() },
        prefix => {
            let device = device(config, &id, variants, automatic);
            Message { topic: topic(prefix, &id), payload: device.to_string().into_bytes() }
        }
    }
}

/// Where the message that describes this device goes; nowhere with discovery switched off.
pub fn described(config: &Config) -> Option<String> {
    let prefix = &config.mqtt.discovery;
    (!prefix.is_empty()).then(|| topic(prefix, &id(&config.mqtt.topic())))
}

fn topic(prefix: &str, id: &str) -> String {
    format!("{prefix}/device/{id}/config")
}

/// Home Assistant's name for the device: of a topic what it takes in an id.
fn id(topic: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    topic.chars().map(|c| if plain(c) { c } else { '-' }).collect()
}

fn device(config: &Config, id: &str, variants: &[String], automatic: bool) -> Value {
    let base = config.mqtt.topic();
    let mut components = Map::new();
    for (key, platform, mut more) in components_of(config, &base, variants, automatic) {
        if let Some(more) = more.as_object_mut().filter(|more| !more.is_empty()) {
            more.insert("unique_id".to_owned(), format!("{id}-{key}").into());
        }
        // A platform alone removes what an earlier message described.
        more["platform"] = platform.into();
        components.insert(key.to_owned(), more);
    }
    json!({
        "device": {
            "identifiers": [id],
            "name": base.replace('/', " "),
            "model": "VGG-19",
            "sw_version": env!("CARGO_PKG_VERSION"),
        },
        "origin": { "name": "vggd", "sw_version": env!("CARGO_PKG_VERSION") },
        "availability_topic": format!("{base}/status"),
        "payload_available": "online",
        "payload_not_available": "offline",
        "components": components,
    })
}

/// Key, platform and settings of each component; no settings for one that there is not.
fn components_of(
    config: &Config,
    base: &str,
    variants: &[String],
    automatic: bool,
) -> Vec<(&'static str, &'static str, Value)> {
    let topic = |name: &str| format!("{base}/{name}");
    let only_if = |there: bool, settings: Value| if there { settings } else { json!({}) };
    let has_stats = config.mqtt.stats().is_some();
    let has_image = config.state.image != Image::Off;
    let mut options: Vec<&str> = variants.iter().map(String::as_str).collect();
    if automatic {
        options.insert(0, "auto");
    }
    let source = match config.source.kind {
        SourceKind::Directory => "Folder",
        SourceKind::Camera => "Camera",
        SourceKind::Stream => "Stream",
    };
    vec![
        (
            "label",
            "sensor",
            json!({
                "name": "Label",
                "icon": "mdi:image-search",
                "state_topic": topic("state"),
                "value_template": "{{ value_json.label }}",
                "json_attributes_topic": topic("state"),
            }),
        ),
        (
            "confidence",
            "sensor",
            json!({
                "name": "Confidence",
                "state_class": "measurement",
                "unit_of_measurement": "%",
                "state_topic": topic("state"),
                "value_template": "{{ none if value_json.probability is none else (value_json.probability * 100) | round(1) }}",
            }),
        ),
        (
            "prediction",
            "sensor",
            json!({
                "name": "Last prediction",
                "enabled_by_default": false,
                "entity_category": "diagnostic",
                "state_topic": topic("prediction"),
                "value_template": "{{ value_json.top[0].label }}",
                "json_attributes_topic": topic("prediction"),
            }),
        ),
        (
            "latency",
            "sensor",
            only_if(
                has_stats,
                json!({
                    "name": "Latency",
                    "device_class": "duration",
                    "entity_category": "diagnostic",
                    "state_class": "measurement",
                    "unit_of_measurement": "ms",
                    "state_topic": topic("stats"),
                    "value_template": "{{ value_json.p50_ms }}",
                    "json_attributes_topic": topic("stats"),
                }),
            ),
        ),
        (
            "misses",
            "sensor",
            only_if(
                has_stats,
                json!({
                    "name": "Not in time",
                    "entity_category": "diagnostic",
                    "state_class": "measurement",
                    "unit_of_measurement": "%",
                    "state_topic": topic("stats"),
                    "value_template": "{{ none if value_json.miss_rate is none else (value_json.miss_rate * 100) | round(1) }}",
                }),
            ),
        ),
        (
            "variant",
            "select",
            json!({
                "name": "Variant",
                "entity_category": "config",
                "state_topic": topic("variant"),
                "command_topic": topic("variant/set"),
                "options": options,
            }),
        ),
        (
            "budget",
            "number",
            json!({
                "name": "Budget",
                "device_class": "duration",
                "entity_category": "config",
                "unit_of_measurement": "ms",
                "min": 0,
                "max": LONGEST_MS,
                "step": 1,
                "mode": "box",
                "state_topic": topic("budget"),
                "command_topic": topic("budget/set"),
            }),
        ),
        (
            "pause",
            "switch",
            json!({
                "name": "Pause",
                "icon": "mdi:pause",
                "state_topic": topic("pause"),
                "command_topic": topic("pause/set"),
                "payload_on": "ON",
                "payload_off": "OFF",
            }),
        ),
        (
            "snapshot",
            "button",
            json!({
                "name": "Snapshot",
                "icon": "mdi:camera",
                "command_topic": topic("snapshot/set"),
                "payload_press": "PRESS",
            }),
        ),
        (
            "source",
            "binary_sensor",
            json!({
                "name": source,
                "device_class": "connectivity",
                "entity_category": "diagnostic",
                "state_topic": topic("state"),
                "value_template": "{{ 'ON' if value_json.source.working else 'OFF' }}",
                "json_attributes_topic": topic("state"),
                "json_attributes_template": "{{ value_json.source | tojson }}",
            }),
        ),
        (
            "throttled",
            "binary_sensor",
            json!({
                "name": "Throttled",
                "device_class": "problem",
                "entity_category": "diagnostic",
                "state_topic": topic("state"),
                "value_template": "{{ none if value_json.throttled is none else 'ON' if value_json.throttled else 'OFF' }}",
            }),
        ),
        (
            "over_budget",
            "binary_sensor",
            json!({
                "name": "Over budget",
                "device_class": "problem",
                "entity_category": "diagnostic",
                "state_topic": topic("state"),
                "value_template": "{{ none if value_json.budget_kept is none else 'OFF' if value_json.budget_kept else 'ON' }}",
            }),
        ),
        (
            "temperature",
            "sensor",
            json!({
                "name": "Temperature",
                "device_class": "temperature",
                "entity_category": "diagnostic",
                "state_class": "measurement",
                "unit_of_measurement": "°C",
                "state_topic": topic("state"),
                "value_template": "{{ value_json.temperature_c }}",
            }),
        ),
        (
            "image",
            "image",
            only_if(
                has_image,
                json!({
                    "name": "Image",
                    "image_topic": topic("image"),
                    "content_type": "image/jpeg",
                }),
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    /// What an entity of any platform may have.
    const ANY: &str = "platform unique_id name icon entity_category enabled_by_default \
        entity_picture qos json_attributes_topic json_attributes_template availability \
        availability_mode availability_template availability_topic payload_available \
        payload_not_available object_id encoding";

    /// For each platform what Home Assistant's documentation requires and what else it allows.
    const PLATFORMS: [(&str, &str, &str); 7] = [
        (
            "sensor",
            "state_topic",
            "value_template unit_of_measurement device_class state_class expire_after force_update \
             options suggested_display_precision last_reset_value_template",
        ),
        (
            "binary_sensor",
            "state_topic",
            "value_template device_class expire_after force_update off_delay payload_on payload_off",
        ),
        (
            "select",
            "command_topic options",
            "state_topic value_template command_template optimistic retain",
        ),
        (
            "number",
            "command_topic",
            "state_topic value_template command_template device_class unit_of_measurement min max \
             step mode optimistic payload_reset retain",
        ),
        (
            "switch",
            "command_topic",
            "state_topic value_template command_template device_class optimistic payload_on \
             payload_off state_on state_off retain",
        ),
        ("button", "command_topic", "command_template device_class payload_press retain"),
        ("image", "image_topic", "content_type image_encoding url_topic url_template"),
    ];

    fn config(lines: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vggd.toml");
        fs::write(&path, format!("mqtt.topic = 'vggd/den'\n{lines}")).unwrap();
        Config::load(Some(&path)).unwrap()
    }

    fn payload(lines: &str, automatic: bool) -> Value {
        let variants = ["baseline", "scaled"].map(str::to_owned);
        let message =
            discovery(&config(&format!("mqtt.discovery = 'ha'\n{lines}")), &variants, automatic);
        assert_eq!(message.topic, "ha/device/vggd-den/config");
        serde_json::from_slice(&message.payload).unwrap()
    }

    /// Whether `value` has all `required` keys, and no others than these and the `allowed` ones.
    fn check_keys(value: &Value, required: &str, allowed: &str) {
        let keys: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let required: BTreeSet<&str> = required.split_whitespace().collect();
        let mut all: BTreeSet<&str> = allowed.split_whitespace().collect();
        all.extend(&required);
        assert!(keys.is_superset(&required), "{required:?} in {value}");
        assert!(keys.is_subset(&all), "only {all:?} in {value}");
    }

    const ALL: &str = "state.image = 'change'\nmqtt.stats_s = 60";

    #[test]
    fn every_component_has_the_keys_that_home_assistant_wants() {
        let device = payload(ALL, true);
        check_keys(
            &device,
            "device origin components",
            "availability_topic payload_available payload_not_available",
        );
        check_keys(
            &device["device"],
            "identifiers",
            "name model sw_version manufacturer hw_version serial_number configuration_url",
        );
        check_keys(&device["origin"], "name", "sw_version support_url");
        let components = device["components"].as_object().unwrap();
        assert_eq!(components.len(), 14);
        let mut ids = BTreeSet::new();
        for component in components.values() {
            let platform = component["platform"].as_str().unwrap();
            let (_, required, allowed) =
                PLATFORMS.iter().find(|(name, ..)| *name == platform).expect(platform);
            check_keys(
                component,
                &format!("platform unique_id {required}"),
                &format!("{ANY} {allowed}"),
            );
            assert!(ids.insert(component["unique_id"].as_str().unwrap()), "{component}");
        }
    }

    /// The schema of what a topic of ours carries, if that is JSON.
    fn schema(topic: &str) -> Option<Value> {
        let name = topic.strip_prefix("vggd/den/").unwrap();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema");
        let text = fs::read_to_string(format!("{folder}/{name}.json")).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// What a schema says of the key `key`, or of each element.
    fn step(schema: &Value, root: &Value, key: &str) -> Option<Value> {
        let target = match schema["$ref"].as_str() {
            Some(target) => root.pointer(target.strip_prefix('#')?)?,
            None => schema,
        };
        let found = match key.is_empty() {
            true => &target["items"],
            false => &target["properties"][key],
        };
        (!found.is_null()).then(|| found.clone())
    }

    #[test]
    fn every_template_fits_the_messages_on_its_topic() {
        let device = payload(ALL, true);
        let mut paths = 0;
        for component in device["components"].as_object().unwrap().values() {
            let Some(template) = component["value_template"].as_str() else { continue };
            let template = format!(
                "{template}{}",
                component["json_attributes_template"].as_str().unwrap_or("")
            );
            let topic = component["state_topic"].as_str().unwrap();
            let root = schema(topic).expect("a template is for JSON");
            for path in template.split("value_json.").skip(1) {
                let end = path.find(|c: char| !(c.is_alphanumeric() || "._[]".contains(c)));
                let mut place = root.clone();
                for key in path[..end.unwrap_or(path.len())].replace("[0]", ".").split('.') {
                    place = step(&place, &root, key)
                        .or_else(|| key.is_empty().then(|| place.clone()))
                        .unwrap_or_else(|| panic!("no '{key}' on {topic}, for {template}"));
                }
                paths += 1;
            }
        }
        assert!(paths >= 10, "{paths}");
    }

    #[test]
    fn only_what_is_possible_is_offered() {
        let options =
            |automatic| payload(ALL, automatic)["components"]["variant"]["options"].clone();
        assert_eq!(options(true), json!(["auto", "baseline", "scaled"]));
        assert_eq!(options(false), json!(["baseline", "scaled"]));
        // What there was before, and is not any more, is removed by its platform alone.
        let few = payload("state.image = 'off'\nmqtt.stats_s = 0", true);
        for (key, platform) in [("latency", "sensor"), ("misses", "sensor"), ("image", "image")] {
            assert_eq!(few["components"][key], json!({ "platform": platform }));
            assert_ne!(payload(ALL, true)["components"][key], few["components"][key]);
        }
    }

    #[test]
    fn switched_off_it_is_forgotten() {
        let off = config("");
        assert_eq!(birth(&off), None);
        let forget = discovery(&off, &[], false);
        assert_eq!(forget.topic, "homeassistant/device/vggd-den/config");
        assert!(forget.payload.is_empty());
        assert_eq!(birth(&config("mqtt.discovery = 'ha'")).as_deref(), Some("ha/status"));
    }

    #[test]
    fn ids_have_no_letters_that_home_assistant_refuses() {
        assert_eq!(id("vggd/küche 1/+"), "vggd-k-che-1--");
    }
}
