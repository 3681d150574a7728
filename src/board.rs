//! What holds at the moment, as the retained topics tell it: threads say what they know, and it is put
//! together here.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::config::{Config, SourceKind};
use crate::control;
use crate::event::{self, Class, Origin};
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
    throttled: Option<bool>,
}

impl Scene {
    fn message(&self) -> event::State {
        let Condition { working, detail } = self.condition.clone();
        let source = Origin { kind: self.kind.as_str(), working, detail };
        self.stable.message(source, self.throttled)
    }
}

impl Board {
    /// A board that says nothing yet but how Home Assistant shows this device; what is on it, for the
    /// publisher. `variants` may be chosen, `auto` too if it is `automatic`. Under `former` topics
    /// Home Assistant shall forget it.
    pub fn new(
        config: &Config,
        variants: &[String],
        automatic: bool,
        former: &[String],
    ) -> (Self, watch::Receiver<Retained>) {
        let device = homeassistant::discovery(config, variants, automatic);
        let mut told: Retained = former.iter().map(|topic| (topic.clone(), Vec::new())).collect();
        told.insert(device.topic, device.payload);
        let (told, retained) = watch::channel(told);
        let scene = Scene {
            kind: config.source.kind,
            condition: Condition::default(),
            stable: Stable::new(&config.state),
            throttled: None,
        };
        (Self { topic: config.mqtt.topic(), told, scene: Mutex::new(scene) }, retained)
    }

    /// What may be set, as it is now.
    pub fn orders(&self, state: &control::State) {
        for (name, word) in state.messages() {
            self.put(name, word.into_bytes());
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

    /// How hot it is.
    pub fn thermal(&self, thermal: &Thermal) {
        let throttled = thermal.throttled.map(|throttled| throttled.any());
        self.state(|scene| std::mem::replace(&mut scene.throttled, throttled) != throttled);
    }

    /// Tells the state anew if `change` says so.
    fn state(&self, change: impl FnOnce(&mut Scene) -> bool) {
        let mut scene = self.lock();
        if change(&mut scene) {
            self.put("state", event::json(&scene.message()));
        }
    }

    fn put(&self, name: &str, payload: Vec<u8>) {
        self.told.send_if_modified(|told| {
            let before = told.insert(format!("{}/{name}", self.topic), payload.clone());
            before.as_ref() != Some(&payload)
        });
    }
}
