//! What happened to the frames, and how the machine fares: the messages on `stats`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::distribution::Distribution;
use crate::event::{SCHEMA, milliseconds};
use crate::thermal::Thermal;

/// Counts since the start, and what the summaries between want.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    totals: Totals,
    /// The totals at the last summary.
    summed: Totals,
    /// Latencies since then.
    latencies: Vec<Duration>,
    /// Frames of each variant since then.
    by_variant: BTreeMap<String, u64>,
    /// The last variant.
    variant: String,
    /// What the last frames took.
    recent: VecDeque<Duration>,
}

/// What happened to frames since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Frames that were classified.
    pub frames: u64,
    /// Of these, those that were not in time.
    pub late: u64,
    /// Frames that could not be classified.
    pub rejected: u64,
    /// Frames that were passed over because they hardly differed from the last one.
    pub skipped: u64,
    /// How often the variant changed from one frame to the next.
    pub switches: u64,
}

/// Message on `stats`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// When, RFC 3339, UTC.
    pub at: String,
    /// What happened since the message before.
    #[serde(flatten)]
    pub summary: Summary,
    /// Frames of a live source that gave way to newer ones, since the start.
    pub dropped: u64,
    /// What waits for the broker.
    pub outbox: Outbox,
    /// How often there was a connection to the broker again.
    pub reconnects: u64,
    /// How many times slower than undisturbed computing and memory are, if the variant is chosen for
    /// each frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<[f64; 2]>,
    /// Resident memory of the daemon, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_mb: Option<u64>,
    /// How hot it is.
    #[serde(flatten)]
    pub thermal: Thermal,
}

/// Predictions on disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outbox {
    /// Messages that the broker has not acknowledged.
    pub pending: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Messages that were given up because there was no room, since the outbox was made.
    pub dropped: u64,
}

/// What happened to the frames.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Frames that were classified.
    pub frames: u64,
    /// Frames that could not be.
    pub rejected: u64,
    /// Frames that were passed over because they hardly differed from the last one.
    pub skipped: u64,
    /// Median time from being taken off the queue to the prediction; nothing without frames.
    pub p50_ms: Option<f64>,
    /// 95th percentile (nearest rank).
    pub p95_ms: Option<f64>,
    /// 99th percentile (nearest rank).
    pub p99_ms: Option<f64>,
    /// Predictions that were not in time.
    pub misses: u64,
    /// Their share; nothing without frames.
    pub miss_rate: Option<f64>,
    /// How often the variant changed from one frame to the next.
    pub switches: u64,
    /// How many frames each variant classified.
    pub by_variant: BTreeMap<String, u64>,
}

/// The most latencies that percentiles are taken of; of more, the first ones count.
const MOST: usize = 100_000;

/// The frames that a [`glance`](Stats::glance) has the median of.
const RECENT: usize = 100;

impl Stats {
    /// A frame was classified.
    pub fn count(&mut self, variant: &str, total: Duration, in_time: Option<bool>) {
        if self.latencies.len() < MOST {
            self.latencies.push(total);
        }
        self.totals.switches += u64::from(self.totals.frames > 0 && self.variant != variant);
        self.totals.frames += 1;
        self.totals.late += u64::from(in_time == Some(false));
        *self.by_variant.entry(variant.to_owned()).or_default() += 1;
        variant.clone_into(&mut self.variant);
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(total);
    }

    /// A frame could not be classified.
    pub fn reject(&mut self) {
        self.totals.rejected += 1;
    }

    /// A frame hardly differed from the last one.
    pub fn skip(&mut self) {
        self.totals.skipped += 1;
    }

    /// What happened since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The variant of the last frame, if there was one.
    pub fn variant(&self) -> Option<&str> {
        (self.totals.frames > 0).then_some(self.variant.as_str())
    }

    /// How it goes, in a few words:
    /// `scaled: 83.1 ms a frame (median of the last 100), 3 of 1200 late`.
    pub fn glance(&self) -> String {
        let Self { totals: Totals { frames, late, .. }, variant, recent, .. } = self;
        if recent.is_empty() {
            return "no frame yet".to_owned();
        }
        let median = milliseconds(Distribution::of(recent.iter().copied().collect()).median);
        let count = recent.len();
        format!(
            "{variant}: {median:.1} ms a frame (median of the last {count}), {late} of {frames} late"
        )
    }

    /// What happened since the last summary.
    pub fn take(&mut self) -> Summary {
        let summed = std::mem::replace(&mut self.summed, self.totals);
        let latencies = std::mem::take(&mut self.latencies);
        let times = (!latencies.is_empty()).then(|| Distribution::of(latencies));
        let ms = |of: fn(&Distribution) -> Duration| times.as_ref().map(|t| milliseconds(of(t)));
        let Totals { frames, late, rejected, skipped, switches } = self.totals;
        let (frames, misses) = (frames - summed.frames, late - summed.late);
        Summary {
            schema: SCHEMA,
            frames,
            rejected: rejected - summed.rejected,
            skipped: skipped - summed.skipped,
            p50_ms: ms(|times| times.median),
            p95_ms: ms(|times| times.p95),
            p99_ms: ms(|times| times.p99),
            misses,
            miss_rate: (frames > 0).then(|| misses as f64 / frames as f64),
            switches: switches - summed.switches,
            by_variant: std::mem::take(&mut self.by_variant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_begin_anew_with_each_summary() {
        let mut stats = Stats::default();
        for (variant, ms, in_time) in
            [("a", 10, Some(true)), ("b", 30, Some(false)), ("b", 20, None), ("a", 20, Some(true))]
        {
            stats.count(variant, Duration::from_millis(ms), in_time);
        }
        stats.reject();
        let summary = stats.take();
        assert_eq!((summary.frames, summary.rejected, summary.misses), (4, 1, 1));
        assert_eq!((summary.switches, summary.p50_ms, summary.p99_ms), (2, Some(20.0), Some(30.0)));
        assert_eq!(summary.miss_rate, Some(0.25));
        assert_eq!(summary.by_variant["b"], 2);
        stats.count("b", Duration::from_millis(1), None);
        let next = stats.take();
        assert_eq!((next.frames, next.switches, next.misses), (1, 1, 0));
        assert_eq!(stats.glance(), "b: 20.0 ms a frame (median of the last 5), 1 of 5 late");
        let none = stats.take();
        assert_eq!((none.frames, none.p50_ms, none.miss_rate), (0, None, None));
    }
}
