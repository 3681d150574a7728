//! What holds at the moment, as the retained topics tell it: threads say what they know, and it is put
//! together here.

use tokio::sync::watch;

use crate::classify::Seen;
use crate::config::Config;
use crate::control;
use crate::manifest::ModelSet;
use crate::publish::Retained;
use crate::source::Condition;
use crate::thermal::Thermal;

/// The retained messages, changed by any thread.
pub struct Board {
    topic: String,
    told: watch::Sender<Retained>,
}

impl Board {
    /// An empty board, and what is on it for the publisher.
    pub fn new(config: &Config, _set: &ModelSet) -> (Self, watch::Receiver<Retained>) {
        let (told, retained) = watch::channel(Retained::new());
        (Self { topic: config.mqtt.topic(), told }, retained)
    }

    /// What may be set, as it is now.
    pub fn orders(&self, state: &control::State) {
        let messages = state.messages();
        self.put(messages.map(|(name, word)| (name, word.into_bytes())));
    }

    /// A frame was classified; whether that changed what is seen.
    pub fn see(&self, _seen: &Seen) -> bool {
        false
    }

    /// Whether the source gives frames.
    pub fn condition(&self, _condition: Condition) {}

    /// How hot it is.
    pub fn throttled(&self, _thermal: &Thermal) {}

    fn put(&self, messages: impl IntoIterator<Item = (&'static str, Vec<u8>)>) {
        self.told.send_if_modified(|told| {
            messages.into_iter().fold(false, |changed, (name, payload)| {
                let topic = format!("{}/{name}", self.topic);
                let before = told.insert(topic, payload.clone());
                changed | (before != Some(payload))
            })
        });
    }
}
