//! What may be asked of a running daemon, over MQTT or its web page, and what it answers: plain words on
//! retained topics. Nobody is asked whether it can be done.

use std::time::Duration;

use crate::event::{self, LONGEST_MS, milliseconds};

/// A message on `TOPIC/<name>/set` that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// `variant`: `auto`, or the name of a variant that is to be fixed.
    Variant(Chooser),
    /// `budget`: milliseconds, 0 for none.
    Budget(Option<Duration>),
    /// `pause`: `ON` or `OFF`.
    Pause(bool),
    /// `snapshot`: classify the next frame at once, whatever the message says.
    Snapshot,
    /// `compare`: run every variant on the last frame, whatever the message says.
    Compare,
}

/// An order as it came, and whom to tell what became of it.
pub struct Asked {
    /// What is to be set: the part of the topic before `/set`.
    pub name: String,
    /// To what.
    pub payload: Vec<u8>,
    answer: Box<dyn FnOnce(Result<(), String>) + Send>,
}

impl Asked {
    /// An order by somebody who sees its outcome on the topics.
    pub fn new(name: String, payload: Vec<u8>) -> Self {
        Self::answered(name, payload, |_| {})
    }

    /// An order by somebody who wants to know whether it was carried out, or why not.
    pub fn answered(
        name: String,
        payload: Vec<u8>,
        answer: impl FnOnce(Result<(), String>) + Send + 'static,
    ) -> Self {
        Self { name, payload, answer: Box::new(answer) }
    }

    /// The order and what is called with its outcome.
    pub fn take(self) -> (Result<Order, String>, impl FnOnce(Result<(), String>) + Send) {
        (Order::parse(&self.name, &self.payload), self.answer)
    }
}

/// Who chooses the variant of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chooser {
    /// The selector.
    Auto,
    /// Nobody: it is always this one.
    Fixed(String),
}

impl Chooser {
    /// What it is called on the topic.
    pub fn word(&self) -> &str {
        match self {
            Self::Auto => "auto",
            Self::Fixed(name) => name,
        }
    }
}

/// What holds now: the retained messages on `variant`, `budget` and `pause`.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Who chooses.
    pub variant: Chooser,
    /// The latency budget, if there is one.
    pub budget: Option<Duration>,
    /// Whether photos wait.
    pub paused: bool,
}

/// The longest payload that is looked at, in bytes.
pub const LONGEST: usize = 256;

impl Order {
    /// The order that a message gives, `name` being the part of its topic before `/set`.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence for whoever sent it.
    pub fn parse(name: &str, payload: &[u8]) -> Result<Self, String> {
        let wrong = |problem: &str| Err(format!("{name}/set: {problem}"));
        if payload.len() > LONGEST {
            return wrong("the message is too long");
        }
        let Ok(text) = std::str::from_utf8(payload) else {
            return wrong("the message is not UTF-8");
        };
        let text = text.trim();
        match name {
            "variant" => match text {
                "" => wrong("names no variant"),
                "auto" => Ok(Self::Variant(Chooser::Auto)),
                text => Ok(Self::Variant(Chooser::Fixed(text.to_owned()))),
            },
            "budget" => match text.parse::<f64>() {
                Ok(budget) if (0.0..=LONGEST_MS).contains(&budget) => {
                    Ok(Self::Budget(event::budget(budget)))
                }
                Ok(_) => wrong(&format!("'{text}' must be from 0 to {LONGEST_MS} ms")),
                Err(_) => wrong(&format!("'{text}' is not a number of milliseconds")),
            },
            "pause" => match text.to_ascii_lowercase().as_str() {
                "on" | "true" | "1" => Ok(Self::Pause(true)),
                "off" | "false" | "0" => Ok(Self::Pause(false)),
                _ => wrong(&format!("'{text}' is neither ON nor OFF")),
            },
            "snapshot" => Ok(Self::Snapshot),
            "compare" => Ok(Self::Compare),
            _ => Err(format!("'{name}/set' is nothing that can be set")),
        }
    }
}

impl State {
    /// The retained messages: topic and payload.
    pub fn messages(&self) -> [(&'static str, String); 3] {
        let pause = if self.paused { "ON" } else { "OFF" };
        [
            ("variant", self.variant.word().to_owned()),
            ("budget", self.budget.map_or(0.0, milliseconds).to_string()),
            ("pause", pause.to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn orders_are_read_and_nonsense_is_refused() {
        let fixed = |name: &str| Order::Variant(Chooser::Fixed(name.to_owned()));
        let cases: [(&str, &[u8], Result<Order, &str>); 17] = [
            ("variant", b"auto", Ok(Order::Variant(Chooser::Auto))),
            ("variant", b" scaled\n", Ok(fixed("scaled"))),
            ("variant", b"", Err("variant/set: names no variant")),
            ("budget", b"400", Ok(Order::Budget(Some(Duration::from_millis(400))))),
            ("budget", b"0.5", Ok(Order::Budget(Some(Duration::from_micros(500))))),
            ("budget", b"0", Ok(Order::Budget(None))),
            ("budget", b"-1", Err("budget/set: '-1' must be from 0 to 3600000 ms")),
            ("budget", b"nan", Err("budget/set: 'nan' must be")),
            ("budget", b"inf", Err("budget/set: 'inf' must be")),
            ("budget", b"soon", Err("budget/set: 'soon' is not a number of milliseconds")),
            ("budget", b"\xff", Err("budget/set: the message is not UTF-8")),
            ("pause", b"ON", Ok(Order::Pause(true))),
            ("pause", b"false", Ok(Order::Pause(false))),
            ("pause", b"maybe", Err("pause/set: 'maybe' is neither ON nor OFF")),
            ("snapshot", b"", Ok(Order::Snapshot)),
            ("compare", b"PRESS", Ok(Order::Compare)),
            ("colour", b"red", Err("'colour/set' is nothing that can be set")),
        ];
        for (name, payload, expected) in cases {
            match (Order::parse(name, payload), expected) {
                (Ok(order), Ok(expected)) => assert_eq!(order, expected),
                (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{error}"),
                (found, expected) => panic!("{name} {payload:?}: {found:?}, not {expected:?}"),
            }
        }
        assert!(Order::parse("variant", &[b'a'; 300]).unwrap_err().ends_with("too long"));
    }

    #[test]
    fn what_holds_can_be_sent_back() {
        let state = State {
            variant: Chooser::Fixed("scaled".to_owned()),
            budget: Some(Duration::from_millis(150)),
            paused: true,
        };
        let orders = state.messages().map(|(name, word)| Order::parse(name, word.as_bytes()));
        assert_eq!(
            orders,
            [
                Ok(Order::Variant(state.variant.clone())),
                Ok(Order::Budget(state.budget)),
                Ok(Order::Pause(true)),
            ]
        );
        let none = State { variant: Chooser::Auto, budget: None, paused: false };
        assert_eq!(none.messages().map(|(_, word)| word), ["auto", "0", "OFF"]);
    }

    /// Names and payloads, most of them nearly right.
    fn orders() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name = prop_oneof![
            Just("variant"),
            Just("budget"),
            Just("pause"),
            Just("snapshot"),
            Just("compare")
        ];
        let name = prop_oneof![9 => name.prop_map(str::to_owned), 1 => any::<String>()];
        let number = any::<f64>().prop_map(|number| number.to_string());
        let budget = (0.0..2.0 * LONGEST_MS).prop_map(|budget| budget.to_string());
        let text = prop_oneof![any::<String>(), number, budget, "[a-z ]{0,300}"];
        let payload = prop_oneof![text.prop_map(String::into_bytes), any::<Vec<u8>>()];
        (name, payload)
    }

    proptest! {
        #[test]
        fn any_order_is_taken_and_told_back_or_refused_in_words((name, payload) in orders()) {
            let mut state = State { variant: Chooser::Auto, budget: None, paused: false };
            match Order::parse(&name, &payload) {
                Err(problem) => {
                    prop_assert!(problem.contains(&format!("{name}/set")), "{problem}");
                    return Ok(());
                }
                Ok(Order::Variant(variant)) => state.variant = variant,
                Ok(Order::Budget(budget)) => state.budget = budget,
                Ok(Order::Pause(paused)) => state.paused = paused,
                Ok(Order::Snapshot | Order::Compare) => {}
            }
            let told = state.messages().map(|(name, word)| Order::parse(name, word.as_bytes()));
            prop_assert_eq!(told, [
                Ok(Order::Variant(state.variant)),
                Ok(Order::Budget(state.budget)),
                Ok(Order::Pause(state.paused)),
            ]);
        }
    }
}
