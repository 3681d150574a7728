//! Every variant's answer for one picture, beside what it costs: each in a process of its own, one after
//! the other, so that they neither share anything nor need memory at the same time.

use anyhow::{Context, Result};

use crate::config::Config;
use crate::event::Card;
use crate::manifest::ModelSet;
use crate::measure::{Job, Measurement};
use crate::source::Picture;

/// What to compare on.
#[derive(Clone, Debug)]
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
}

/// Calls `next` before each variant, with its name, and `done` with its card.
///
/// # Errors
/// When a variant cannot be measured.
pub fn compare(
    comparing: &Comparing,
    mut next: impl FnMut(&str),
    mut done: impl FnMut(Card) -> Result<()>,
) -> Result<()> {
    let &Comparing { config, set, picture, runs, background } = comparing;
    let mut first: Option<(Measurement, usize)> = None;
    for variant in &set.manifest.variants {
        next(&variant.name);
        let job = Job {
            config: config.clone(),
            variant: variant.name.clone(),
            runs,
            picture: Some(picture.clone()),
            each: false,
            background,
        };
        let measurement = job.spawn()?;
        let answer = measurement.answer.clone().context("a picture gives an answer")?;
        let class = answer.top[0].class;
        let (first, first_class) = first.get_or_insert_with(|| (measurement.clone(), class));
        done(Card {
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
        })?;
    }
    Ok(())
}
