//! Whether what is published is what `config/schema` says.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use jsonschema::Validator;
use serde_json::Value;

/// Each schema by the last part of its topic, by what is asked for, or by the command that prints it.
pub const SCHEMAS: [(&str, &str); 10] = [
    ("api-status", include_str!("../../config/schema/api-status.json")),
    ("cli-bench", include_str!("../../config/schema/cli-bench.json")),
    ("cli-check", include_str!("../../config/schema/cli-check.json")),
    ("cli-classify", include_str!("../../config/schema/cli-classify.json")),
    ("cli-compare", include_str!("../../config/schema/cli-compare.json")),
    ("compare", include_str!("../../config/schema/compare.json")),
    ("error", include_str!("../../config/schema/error.json")),
    ("prediction", include_str!("../../config/schema/prediction.json")),
    ("state", include_str!("../../config/schema/state.json")),
    ("stats", include_str!("../../config/schema/stats.json")),
];

fn validators() -> &'static BTreeMap<&'static str, Validator> {
    static VALIDATORS: OnceLock<BTreeMap<&str, Validator>> = OnceLock::new();
    let validator = |text| jsonschema::draft202012::new(&serde_json::from_str(text).unwrap());
    VALIDATORS.get_or_init(|| {
        SCHEMAS.iter().map(|&(name, text)| (name, validator(text).unwrap())).collect()
    })
}

/// What is wrong with a message of the daemon. Orders are for the daemon to judge.
pub fn check(topic: &str, payload: &[u8]) -> Result<(), String> {
    let text = || std::str::from_utf8(payload).map_err(|error| error.to_string());
    let one_of = |words: &[&str]| match words.contains(&text()?) {
        true => Ok(()),
        false => Err(format!("none of {words:?}")),
    };
    let name = topic.rsplit('/').next().unwrap_or_default();
    match name {
        "set" | "probe" => Ok(()),
        "status" => one_of(&["online", "offline"]),
        "pause" => one_of(&["ON", "OFF"]),
        "variant" if (1..=255).contains(&text()?.len()) => Ok(()),
        "budget" if text()?.parse().is_ok_and(|ms: f64| (0.0..=3.6e6).contains(&ms)) => Ok(()),
        "image" if payload.starts_with(b"\xff\xd8\xff") => Ok(()),
        "config" if payload.is_empty() => Ok(()),
        "config" => json(payload).map(drop),
        name => {
            let validator = validators().get(name).ok_or("not as documented")?;
            let json = json(payload)?;
            let errors = validator.iter_errors(&json);
            let errors: Vec<_> =
                errors.map(|error| format!("{}: {error}", error.instance_path())).collect();
            if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
        }
    }
}

fn json(payload: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}
