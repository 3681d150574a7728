//! Every variant's answer for one picture, beside what it costs: each in a process of its own, one after
//! the other, so that they neither share anything nor need memory at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::config::Config;
use crate::event::{Card, LeftOut};
use crate::manifest::ModelSet;
use crate::measure::{Job, Measurement};
use crate::source::Picture;

/// What to compare on.
#[derive(Clone, Copy)]
pub struct Comparing<'a> {
    /// Threads, precision and limits.
    pub config: &'a Config,
    /// The variants.
    pub set: &'a ModelSet,
    /// What they look at.
    pub picture: &'a Picture,
    /// How many inferences of each are timed.
    pub runs: u32,
    /// Whether everything else goes first.
    pub background: bool,
    /// Says of a variant, by its index, why it must not run now.
    pub may: &'a dyn Fn(usize) -> Result<(), String>,
}

/// How a comparison gets on.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// This variant runs now.
    Next(&'a str),
    /// It is loaded and has done so many of its runs; told now and then.
    Ran(u32),
    /// It has answered.
    Card(Described<'a>),
    /// It does not run.
    LeftOut(LeftOut),
}

/// A card, and what the set says of its variant.
#[derive(Clone, Debug, Serialize)]
pub struct Described<'a> {
    /// What it says and costs.
    #[serde(flatten)]
    pub card: Card,
    /// What was done to the network.
    pub description: &'a str,
    /// Side of its input, in pixels.
    pub input: usize,
}

/// Tells `step` of each variant, and ends as soon as that fails, the variant that runs included.
///
/// # Errors
/// When a variant cannot be measured, or `step` fails.
pub fn compare<'a>(
    comparing: Comparing<'a>,
    mut step: impl FnMut(Step<'a>) -> Result<()>,
) -> Result<()> {
    let Comparing { config, set, picture, runs, background, may } = comparing;
    let mut config = config.clone();
    config.model.set.clone_from(&set.directory);
    let mut first: Option<(Measurement, usize)> = None;
    for (index, variant) in set.manifest.variants.iter().enumerate() {
        if let Err(reason) = may(index) {
            step(Step::LeftOut(LeftOut { variant: variant.name.clone(), reason }))?;
            continue;
        }
        step(Step::Next(&variant.name))?;
        let job = Job {
            config: config.clone(),
            variant: variant.name.clone(),
            runs,
            picture: Some(picture.clone()),
            each: false,
            background,
        };
        let measurement = job.follow(|count| step(Step::Ran(count)))?;
        let answer = measurement.answer.clone().context("a picture gives an answer")?;
        let class = answer.top[0].class;
        let (first, first_class) = first.get_or_insert_with(|| (measurement.clone(), class));
        let card = Card {
            variant: variant.name.clone(),
            top: answer.top,
            timings_ms: answer.timings_ms,
            median_ms: measurement.median_ms,
            load_ms: measurement.load_ms,
            bytes: variant.bytes,
            rss_mb: measurement.rss_mb,
            agrees: class == *first_class,
            speedup: (100.0 * first.median_ms / measurement.median_ms).round() / 100.0,
            threads: measurement.threads,
        };
        let (description, input) = (&*variant.description, variant.side());
        step(Step::Card(Described { card, description, input }))?;
    }
    Ok(())
}

/// Beside a running daemon one comparison runs at a time. Copies share the turn.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<AtomicBool>);

/// A turn that is taken, until it is dropped.
#[derive(Debug)]
pub struct Taken(Arc<AtomicBool>);

impl Turn {
    /// Takes the turn, if nobody has it.
    pub fn take(&self) -> Option<Taken> {
        (!self.0.swap(true, Ordering::Relaxed)).then(|| Taken(self.0.clone()))
    }

    /// Whether a comparison is under way.
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
