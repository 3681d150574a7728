//! vggd makes VGG-19 usable on a small board: it classifies photos with one of several variants of
//! the same network and publishes the predictions over MQTT.
//!
//! The parts, in the order in which a frame meets them:
//!
//! 1. [`config`] says what to run, [`manifest`] which variants there are.
//! 2. [`source`] finds a photo, or takes a picture off a camera or a command, and hands it over.
//! 3. [`pipeline`] makes one prediction of one photo: [`preprocess`] decodes it, [`lineup`] gives the
//!    variant for it, [`preprocess`] resizes it for that, [`model`] runs it, and what comes out is
//!    written down in [`event`].
//! 4. [`publish`] sends it until the broker acknowledges it; then the source lets the photo go.
//!
//! [`lineup`] keeps variants in memory and lets [`select`] choose among them, by what [`profile`] has
//! found them to cost and by how long frames take. [`daemon`] starts, connects, reloads and stops all
//! of these, and carries out the orders of [`control`]. [`measure`] runs the same pipeline to compare
//! variants, [`simulate`] shows what choosing does without any model, and [`watch`] tells the source
//! and the daemon what happens in a folder.
//!
//! [`stats`] sums up how frames fared, and [`thermal`] how hot it got.
//!
//! Arrows point one way: values and decisions (`manifest`, `event`, `select`, `distribution`, `svg`),
//! then one outside thing each (`config`, `preprocess`, `watch`, `logging`, `control`, `simulate`,
//! `thermal`), then what is built on these (`source`, `model`, `stats`), then `pipeline`, then `publish` and `measure`, then
//! `profile`, `lineup` and last `daemon`. The binary adds the commands; one of them is `demo`, which
//! runs the daemon beside a small broker and a subscriber.

pub mod config;
pub mod manifest;

pub mod source;
pub mod watch;

pub mod preprocess;

pub mod model;

pub mod event;
pub mod pipeline;

pub mod lineup;
pub mod profile;
pub mod select;

pub mod control;
pub mod publish;
pub mod stats;
pub mod thermal;

pub mod daemon;
pub mod logging;

pub mod distribution;
pub mod measure;
pub mod simulate;
pub mod svg;
