//! vggd makes VGG-19 usable on a small board: it classifies photos with one of several variants of
//! the same network and publishes the predictions over MQTT.
//!
//! The parts, in the order in which a frame meets them:
//!
//! 1. [`config`] says what to run, [`manifest`] which variants there are.
//! 2. [`source`] finds a photo and hands it over.
//! 3. [`pipeline`] makes one prediction of one photo: [`preprocess`] decodes and resizes it,
//!    [`model`] runs the variant, and what comes out is written down in [`event`].
//! 4. [`publish`] sends it until the broker acknowledges it; then the source lets the photo go.
//!
//! [`daemon`] starts, connects, reloads and stops these. [`measure`] runs the same pipeline to
//! compare variants, and [`watch`] tells the source and the daemon what happens in a folder. Arrows
//! point one way: values (`manifest`, `event`), then one outside thing each (`config`, `preprocess`,
//! `watch`, `logging`), then what is built on these (`source`, `model`), then `pipeline`, then
//! `publish` and `measure`, then `daemon`. The binary adds the commands; one of them is `demo`, which
//! runs the daemon beside a small broker and a subscriber.

pub mod config;
pub mod manifest;

pub mod source;
pub mod watch;

pub mod preprocess;

pub mod model;

pub mod event;
pub mod pipeline;

pub mod publish;

pub mod daemon;
pub mod logging;
pub mod measure;
