//! vggd makes VGG-19 usable on a small board: it classifies photos with one of several variants of
//! the same network and publishes the predictions over MQTT.
//!
//! The parts, in the order in which a frame meets them:
//!
//! 1. [`config`] says what to run, [`manifest`] which variants there are.
//! 2. [`source`] finds a frame, in a folder, a camera or a stream, and hands it over.
//! 3. [`classify`] takes it, when pauses and the pace allow, through the [`pipeline`]: [`preprocess`]
//!    decodes it, [`lineup`] gives the variant for it, [`preprocess`] frames it for that, [`model`] runs
//!    it, and what comes out is written down in [`event`].
//! 4. [`outbox`] keeps the prediction on disk; then the source lets the frame go.
//! 5. [`publish`] sends it until the broker acknowledges it; then the outbox lets it go.
//!
//! [`lineup`] has the set that is in use, keeps variants of it in memory and lets [`select`] choose among
//! them, by what [`profile`] has found them to cost and by how long frames take. [`daemon`] starts, connects,
//! reloads and stops all of these, and carries out the orders of [`control`]. What holds at the moment stands
//! on the [`board`], for the retained topics: what may be ordered, what [`stable`] has seen for longer than a
//! frame, and how [`homeassistant`] shows all of this. [`stats`] sums up how frames fared, [`thermal`] how hot
//! it got.
//!
//! [`overview`] puts together what may be looked at, and remembers the last frames: for [`service`], which
//! tells systemd how all this goes as long as each part has a [`pulse`], for the messages on `stats`, and
//! for the page, its programs and Prometheus ([`web`], [`metrics`]).
//!
//! [`compare`] lets every variant answer for one picture, each through [`measure`], which runs the same
//! pipeline in a process of its own; [`simulate`] shows what choosing does without any model, and
//! [`watch`] tells the source and the daemon what happens in a folder.
//!
//! Arrows point one way: values and decisions (`manifest`, `event`, `select`, `distribution`, `svg`,
//! `pulse`), then `config`, then one outside thing each (`preprocess`, `watch`, `logging`, `control`,
//! `simulate`, `thermal`, `service`, `secret`, `metrics`), then what is built on these (`source`, `model`, `outbox`, `stats`, `stable`,
//! `homeassistant`), then `pipeline`, then `publish` and `measure`, then `profile` and `compare`, `lineup`,
//! `classify`, `board`, `overview`, `web` and last `daemon`. The binary adds the commands; one of them is `demo`, which runs
//! the daemon beside a small broker and a subscriber.

pub mod config;
pub mod manifest;

pub mod source;
pub mod watch;

pub mod preprocess;

pub mod model;

pub mod event;
pub mod outbox;
pub mod pipeline;

pub mod classify;

pub mod lineup;
pub mod profile;
pub mod select;

pub mod board;
pub mod control;
pub mod homeassistant;
pub mod metrics;
pub mod overview;
pub mod publish;
pub mod stable;
pub mod stats;
pub mod thermal;
pub mod web;

pub mod daemon;
pub mod logging;
pub mod pulse;
pub mod secret;
pub mod service;

pub mod compare;
pub mod distribution;
pub mod measure;
pub mod simulate;
pub mod svg;
