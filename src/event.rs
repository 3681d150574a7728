//! The wire format: what vggd says over MQTT and with `--json`. Values only; it knows no transport.
//!
//! Words that come from outside, labels and names of files, are cut when they are written down, so that
//! no message is larger than a broker takes. `config/schema` has a JSON Schema for each message.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, Serializer};

/// Version of the messages, in each of them as `schema`.
pub const SCHEMA: u32 = 1;

/// How many classes a prediction names.
pub const TOP: usize = 5;

/// Message on `prediction`: the answer for one frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The same for the same photo even when it is classified again after a crash, so that a
    /// receiver can drop repeats.
    pub id: String,
    /// Counts predictions from 1, across restarts. A gap is predictions that were dropped.
    pub sequence: u64,
    /// Kind of source: `directory`, `camera` or `stream`.
    pub source: Cow<'static, str>,
    /// Name of the photo in its directory, if it comes from one.
    #[serde(serialize_with = "name_if_any")]
    pub file: Option<String>,
    /// When the frame was captured or the photo written, RFC 3339, UTC.
    pub captured_at: String,
    /// Which variant answered.
    #[serde(serialize_with = "label")]
    pub variant: String,
    /// The likeliest classes, the likeliest first.
    pub top: Vec<Class>,
    /// Where the time went.
    pub timings_ms: Timings,
    /// The budget, if one is set.
    pub budget_ms: Option<f64>,
    /// Whether the budget was kept, if one is set. A photo's time in the queue does not count.
    pub in_time: Option<bool>,
    /// True when the message may have been sent before: no acknowledgement came, or vggd was started
    /// anew since.
    pub replayed: bool,
}

/// Message on `error`: a photo that cannot be classified, or a change that was refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When, RFC 3339, UTC.
    pub at: String,
    /// `photo`, `frame`, `source`, `configuration`, `order` or `model`.
    pub kind: &'static str,
    /// The photo's name, for kind `photo`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "name_if_any")]
    pub file: Option<String>,
    /// Id of the photo or frame, for kinds `photo` and `frame`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What was wrong.
    #[serde(serialize_with = "sentence")]
    pub message: String,
}

/// A message as it is published.
pub fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a message is JSON")
}

impl Prediction {
    /// A message marked as replayed; one that is no prediction stays as it is.
    pub fn replayed(message: Vec<u8>) -> Vec<u8> {
        match serde_json::from_slice::<Self>(&message) {
            Ok(prediction) => json(&Self { replayed: true, ..prediction }),
            Err(_) => message,
        }
    }
}

impl Failure {
    /// A failure of now.
    pub fn new(kind: &'static str, file: Option<String>, message: String) -> Self {
        let at = timestamp(SystemTime::now());
        Self { schema: SCHEMA, at, kind, file, id: None, message }
    }

    /// The same, about the frame of that id.
    pub fn about(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }
}

/// Message on `state`, retained: what is seen, steadily. While nothing is, all that tells of it is null.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct State {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The stable label.
    #[serde(serialize_with = "label_if_any")]
    pub label: Option<String>,
    /// Index of its class.
    pub class: Option<usize>,
    /// How sure the latest prediction of it was, 0..1.
    pub probability: Option<f64>,
    /// When the first frame of the row that made it stable was captured, RFC 3339, UTC.
    pub since: Option<String>,
    /// When the latest frame with it was captured, RFC 3339, UTC.
    pub last_seen: Option<String>,
    /// Which variant saw it then.
    #[serde(serialize_with = "label_if_any")]
    pub variant: Option<String>,
    /// Where frames come from.
    pub source: Origin,
    /// Whether what runs keeps the budget, as far as can be foreseen; null without a budget, and before
    /// what runs was timed.
    pub budget_kept: Option<bool>,
    /// The hottest thermal zone in degrees Celsius, told anew with each [`DEGREES`]; null without one.
    pub temperature_c: Option<f64>,
    /// Whether the board's firmware holds it back; null where it does not say.
    pub throttled: Option<bool>,
}

/// By how many degrees the temperature changes before `state` tells it anew.
pub const DEGREES: f64 = 5.0;

/// A source, in the message on `state`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Origin {
    /// `directory`, `camera` or `stream`.
    pub kind: &'static str,
    /// Whether it gives frames.
    pub working: bool,
    /// What it is, or why it does not work.
    #[serde(serialize_with = "sentence")]
    pub detail: String,
}

/// Message on `compare`: what every variant says of one frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When, RFC 3339, UTC.
    pub at: String,
    /// The frame's `id`, as in its prediction.
    pub id: String,
    /// Name of the photo, if it is one.
    #[serde(serialize_with = "name_if_any")]
    pub file: Option<String>,
    /// One for each variant that ran, in the order of the set.
    pub variants: Vec<Card>,
    /// Those that did not run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A variant that is not compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// The variant's name.
    #[serde(serialize_with = "label")]
    pub variant: String,
    /// Why not.
    #[serde(serialize_with = "sentence")]
    pub reason: String,
}

/// What a variant says of a frame, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Card {
    /// The variant's name.
    #[serde(serialize_with = "label")]
    pub variant: String,
    /// The likeliest classes, the likeliest first.
    pub top: Vec<Class>,
    /// Where the time went; inference is the median of the runs.
    pub timings_ms: Timings,
    /// Median inference.
    pub median_ms: f64,
    /// From the first byte read to the first answer.
    pub load_ms: f64,
    /// Size on disk: the graph and all weights it needs.
    pub bytes: u64,
    /// Resident memory after the last run, in MiB.
    pub rss_mb: u64,
    /// Whether its first class is that of the first variant that ran, the baseline unless it was left out.
    pub agrees: bool,
    /// How many times faster than that one it is.
    pub speedup: f64,
    /// Threads that ran it.
    pub threads: usize,
}

/// One class with the network's belief in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Index of the class.
    pub class: usize,
    /// Its line in `labels.txt`.
    #[serde(serialize_with = "label")]
    pub label: String,
    /// Softmax of its logit, 0..1.
    pub probability: f64,
}

/// Milliseconds of each stage; the first four add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Between being found or captured and being taken off the queue.
    pub wait: f64,
    /// Reading and decoding.
    pub decode: f64,
    /// Resizing, cropping and normalising.
    pub preprocess: f64,
    /// The network.
    pub inference: f64,
    /// All of them.
    pub total: f64,
}

impl Timings {
    /// Timings of the four stages, in the order in which they happen.
    pub fn new(stages: [Duration; 4]) -> Self {
        let [wait, decode, preprocess, inference] = stages.map(milliseconds);
        let total = round(wait + decode + preprocess + inference, 3);
        Self { wait, decode, preprocess, inference, total }
    }
}

/// The `count` classes with the largest logits, by softmax, the likeliest first; of equals the one
/// with the smaller index first. Nothing if a logit is not finite: such an answer means nothing.
pub fn top_k(logits: &[f32], labels: &[String], count: usize) -> Option<Vec<Class>> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return None;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from(logit - largest).exp();
    let sum: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let classes = order.into_iter().take(count).map(|class| Class {
        class,
        label: labels[class].clone(),
        probability: round(weight(logits[class]) / sum, 6),
    });
    Some(classes.collect())
}

/// A duration in milliseconds, to a microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e3, 3)
}

/// The duration of so many milliseconds.
///
/// # Panics
/// When that is negative or no number.
pub fn duration(milliseconds: f64) -> Duration {
    Duration::from_secs_f64(milliseconds / 1e3)
}

/// The budget of so many milliseconds, to a microsecond as it is told; none for 0.
pub fn budget(milliseconds: f64) -> Option<Duration> {
    let budget = Duration::from_micros((milliseconds * 1e3).round() as u64);
    (!budget.is_zero()).then_some(budget)
}

/// A point in time as RFC 3339, UTC, to a millisecond. What lies outside the years 1970 to 9999, as
/// the date of a photo may, becomes the nearest that lies inside.
pub fn timestamp(time: SystemTime) -> String {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().min(LAST);
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}

/// The longest time that anybody may set, a budget for one, in milliseconds.
pub const LONGEST_MS: f64 = 3.6e6;

/// The most characters of a label or a variant's name: no state in Home Assistant is longer.
const LONGEST_LABEL: usize = 255;

/// The most characters of a file's name.
const LONGEST_NAME: usize = 1000;

/// The most characters of what is told in words.
const LONGEST_SENTENCE: usize = 2000;

/// So many characters of `text` at most, and a sign that it was cut.
fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    match text.char_indices().nth(longest) {
        None => text.into(),
        Some(_) => text.chars().take(longest - 1).chain(['…']).collect::<String>().into(),
    }
}

fn label<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    cut(text, LONGEST_LABEL).serialize(to)
}

fn label_if_any<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| cut(text, LONGEST_LABEL)).serialize(to)
}

fn name_if_any<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| cut(text, LONGEST_NAME)).serialize(to)
}

fn sentence<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    cut(text, LONGEST_SENTENCE).serialize(to)
}

/// A number rounded to so many decimal places.
pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_is_softmax_in_order() {
        let labels: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let top = top_k(&[1000.0, 1000.0 + 2f32.ln(), 0.0], &labels, 5).unwrap();
        let found: Vec<_> = top.iter().map(|c| (c.class, c.label.as_str())).collect();
        assert_eq!(found, [(1, "b"), (0, "a"), (2, "c")]);
        assert!((top[0].probability - 2.0 / 3.0).abs() < 1e-4);
        assert_eq!(top[2].probability, 0.0);
        assert_eq!(top_k(&[3.0, 3.0, 3.0], &labels, 1).unwrap()[0].class, 0);
    }

    #[test]
    fn logits_that_are_no_numbers_are_no_answer() {
        let labels: Vec<String> = ["a", "b"].map(str::to_owned).into();
        for logit in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(top_k(&[1.0, logit], &labels, 5), None, "{logit}");
        }
        for logits in [[f32::MAX, f32::MIN], [f32::MIN, f32::MIN]] {
            let top = top_k(&logits, &labels, 5).unwrap();
            assert!(top.iter().all(|class| class.probability.is_finite()), "{logits:?}");
        }
    }

    #[test]
    fn long_words_are_cut_and_messages_stay_small() {
        assert_eq!(cut("four", 4), "four");
        assert_eq!(cut("fünf!", 4), "fün…");
        // Characters of the largest size in UTF-8, and those that JSON writes with the most bytes.
        for letter in ["a", "\u{10348}", "\u{1}"] {
            let class = Class { class: 1, label: letter.repeat(10 << 10), probability: 0.5 };
            let failure = Failure {
                schema: SCHEMA,
                at: String::new(),
                kind: "photo",
                file: Some(letter.repeat(4 << 10)),
                id: Some("0123456789abcdef".to_owned()),
                message: letter.repeat(1 << 20),
            };
            let prediction = Prediction {
                schema: SCHEMA,
                id: String::new(),
                sequence: u64::MAX,
                source: "directory".into(),
                file: Some(letter.repeat(4 << 10)),
                captured_at: String::new(),
                variant: letter.repeat(1 << 20),
                top: vec![class; TOP],
                timings_ms: Timings::default(),
                budget_ms: None,
                in_time: None,
                replayed: false,
            };
            for length in [serde_json::to_vec(&failure), serde_json::to_vec(&prediction)]
                .map(|json| json.unwrap().len())
            {
                assert!(length < 20 << 10, "{length} bytes");
            }
            assert!(serde_json::to_string(&prediction).unwrap().contains('…'));
        }
    }

    #[test]
    fn odd_dates_are_written_too() {
        let at = |seconds: i64| match u64::try_from(seconds) {
            Ok(after) => SystemTime::UNIX_EPOCH + Duration::from_secs(after),
            Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()),
        };
        assert_eq!(timestamp(at(-3600)), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(at(951_782_400)), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(at(1 << 40)), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn timings_add_up() {
        let timings = Timings::new([1500, 250, 4, 90].map(Duration::from_micros));
        assert_eq!((timings.wait, timings.total), (1.5, 1.844));
    }
}
