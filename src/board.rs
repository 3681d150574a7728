//! What holds at the moment, as the retained topics tell it: threads say what they know, and it is put
//! together here.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::config::{Config, SourceKind};
use crate::control;
use crate::event::{self, Class, DEGREES, Origin};
use crate::homeassistant;
use crate::publish::Retained;
use crate::source::Condition;
use crate::stable::{Change, Stable};
use crate::thermal::Thermal;

/// The retained messages, changed by any thread.
pub struct Board {
    topic: String,
    told: watch::Sender<Retained>,
    scene: Mutex<Scene>,
}

/// What the message on `state` is made of.
struct Scene {
    kind: SourceKind,
    condition: Condition,
    stable: Stable,
    budget_kept: Option<bool>,
    temperature_c: Option<f64>,
    throttled: Option<bool>,
}

impl Scene {
    fn message(&self) -> event::State {
        let Condition { working, detail } = self.condition.clone();
        let source = Origin { kind: self.kind.as_str(), working, detail };
        event::State {
            budget_kept: self.budget_kept,
            temperature_c: self.temperature_c,
            throttled: self.throttled,
            ..self.stable.message(source)
        }
    }

    /// Takes in how hot it is; whether that is to be told.
    fn warm(&mut self, thermal: &Thermal) -> bool {
        let throttled = thermal.throttled.map(|throttled| throttled.any());
        let apart = match (self.temperature_c, thermal.temperature_c) {
            (Some(told), Some(now)) => (told - now).abs() >= DEGREES,
            (told, now) => told != now,
        };
        let changed = apart || throttled != self.throttled;
        if changed {
            self.temperature_c = thermal.temperature_c.map(|degrees| event::round(degrees, 0));
            self.throttled = throttled;
        }
        changed
    }
}

impl Board {
    /// A board that says nothing yet; what is on it, for the publisher. Under `former` topics Home Assistant
    /// shall forget this device.
    pub fn new(
        config: &Config,
        thermal: &Thermal,
        former: &[String],
    ) -> (Self, watch::Receiver<Retained>) {
        let told = former.iter().map(|topic| (topic.clone(), Vec::new())).collect();
        let (told, retained) = watch::channel(told);
        let mut scene = Scene {
            kind: config.source.kind,
            condition: Condition::default(),
            stable: Stable::new(&config.state),
            budget_kept: None,
            temperature_c: None,
            throttled: None,
        };
        scene.warm(thermal);
        (Self { topic: config.mqtt.topic(), told, scene: Mutex::new(scene) }, retained)
    }

    /// How Home Assistant shows this device: `variants` may be chosen, `auto` too if it is `automatic`.
    pub fn describe(&self, config: &Config, variants: &[String], automatic: bool) {
        let device = homeassistant::discovery(config, variants, automatic);
        self.put(device.topic, device.payload);
    }

    /// What may be set, as it is now.
    pub fn orders(&self, state: &control::State) {
        for (name, word) in state.messages() {
            self.tell(name, word.into_bytes());
        }
    }

    /// A frame captured at `at` was classified by `variant`; whether that changed what is seen.
    pub fn see(&self, top: &Class, variant: &str, at: SystemTime) -> bool {
        let mut change = None;
        self.state(|scene| {
            change = scene.stable.observe(top, variant, at);
            change.is_some()
        });
        change == Some(Change::Label)
    }

    /// The message on `state`, as it is now.
    pub fn message(&self) -> event::State {
        self.lock().message()
    }

    fn lock(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the source gives frames.
    pub fn condition(&self, condition: Condition) {
        self.state(|scene| {
            scene.condition = condition;
            true
        });
    }

    /// How hot it is; whether that has changed by what is worth telling.
    pub fn thermal(&self, thermal: &Thermal) -> bool {
        let mut changed = false;
        self.state(|scene| {
            changed = scene.warm(thermal);
            changed
        });
        changed
    }

    /// Whether what runs keeps the budget, if there is one and that is known.
    pub fn budget_kept(&self, kept: Option<bool>) {
        self.state(|scene| std::mem::replace(&mut scene.budget_kept, kept) != kept);
    }

    /// Tells the state anew if `change` says so.
    fn state(&self, change: impl FnOnce(&mut Scene) -> bool) {
        let mut scene = self.lock();
        if change(&mut scene) {
            self.tell("state", event::json(&scene.message()));
        }
    }

    fn tell(&self, name: &str, payload: Vec<u8>) {
        self.put(format!("{}/{name}", self.topic), payload);
    }

    fn put(&self, topic: String, payload: Vec<u8>) {
        self.told.send_if_modified(|told| {
            let before = told.insert(topic, payload.clone());
            before.as_ref() != Some(&payload)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thermal::Throttled;

    #[test]
    fn a_temperature_is_told_with_every_five_degrees_and_throttling_at_once() {
        let config = Config::load(None).unwrap();
        let thermal = |temperature_c, throttled| Thermal {
            temperature_c: Some(temperature_c),
            throttled: Some(Throttled { throttled, ..Throttled::default() }),
        };
        let (board, _retained) = Board::new(&config, &thermal(48.3, false), &[]);
        for (temperature, throttled, told) in [
            (49.0, false, 48.0),
            (52.9, false, 48.0),
            (53.2, false, 53.0),
            (48.4, false, 53.0),
            (50.1, true, 50.0),
            (45.4, true, 50.0),
            (45.0, true, 45.0),
        ] {
            let before = board.message();
            let changed = board.thermal(&thermal(temperature, throttled));
            let now = board.message();
            assert_eq!((now.temperature_c, now.throttled), (Some(told), Some(throttled)));
            assert_eq!(changed, now != before, "{temperature}");
        }
        assert!(board.thermal(&Thermal::default()));
        assert_eq!(board.message().temperature_c, None);
    }
}
