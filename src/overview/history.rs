//! Latencies of the last minutes, as many as a picture of them needs: at a high rate a point stands for
//! several frames.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::classify::Seen;
use crate::event;

/// How long latencies are remembered, and how many points at most.
const REMEMBERED: (Duration, usize) = (Duration::from_secs(600), 1200);

/// How many times nearer together late frames may be than others before one is left out.
const LATE: u64 = 16;

/// Latencies of the last minutes.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Point>>);

/// How long a frame took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// When it was classified, in milliseconds since 1970.
    pub at_ms: u64,
    /// What counts against the budget.
    pub total_ms: f64,
    /// Which variant answered.
    pub variant: String,
    /// The budget, if one was set.
    pub budget_ms: Option<f64>,
    /// Whether it was kept.
    pub in_time: Option<bool>,
    /// How many frames it stands for: itself, and others near it that were as much in time.
    pub frames: u64,
}

impl Point {
    /// The point of a classified frame.
    pub fn new(seen: &Seen) -> Self {
        let prediction = &seen.prediction;
        let at = seen.classified_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let timings = prediction.timings_ms;
        // A photo's time in its folder is not held against it.
        let waited = if prediction.file.is_some() { timings.wait } else { 0.0 };
        Self {
            at_ms: at.as_millis() as u64,
            total_ms: event::round(timings.total - waited, 3),
            variant: prediction.variant.clone(),
            budget_ms: prediction.budget_ms,
            in_time: prediction.in_time,
            frames: 1,
        }
    }
}

impl History {
    pub(super) fn add(&self, point: Point) {
        let (age, count) = REMEMBERED;
        let oldest = point.at_ms.saturating_sub(age.as_millis() as u64);
        let mut points = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        points.push_back(point);
        while points.front().is_some_and(|point| point.at_ms < oldest) {
            points.pop_front();
        }
        if points.len() > count {
            thin(&mut points);
        }
    }

    /// The points so far, the oldest first.
    pub fn points(&self) -> Vec<Point> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Leaves out the point that is missed least, the one with its neighbours nearest together; another one of
/// its kind stands for its frames.
fn thin(points: &mut VecDeque<Point>) {
    let distance = |at: usize| {
        let between = points[at + 1].at_ms.saturating_sub(points[at - 1].at_ms);
        if points[at].in_time == Some(false) { LATE * between } else { between }
    };
    let Some(at) = (1..points.len() - 1).min_by_key(|&at| distance(at)) else { return };
    let Some(gone) = points.remove(at) else { return };
    let kin = |other: &usize| points[*other].in_time == gone.in_time;
    let heir = (0..at).rev().find(kin).or_else(|| (at..points.len()).find(kin)).unwrap_or(at - 1);
    points[heir].frames += gone.frames;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of frames that came every so many milliseconds, of which every so many were late.
    fn history(seconds: u64, every_ms: u64, late: u64) -> Vec<Point> {
        let history = History::default();
        for frame in 0..1000 * seconds / every_ms {
            history.add(Point {
                at_ms: 1_000_000 + frame * every_ms,
                total_ms: 1.0,
                variant: "a".to_owned(),
                budget_ms: Some(1.0),
                in_time: Some(!frame.is_multiple_of(late)),
                frames: 1,
            });
        }
        history.points()
    }

    #[test]
    fn minutes_are_remembered_at_any_rate() {
        // Of each 100th frame being late, all of these are there; of nothing but late ones, as many as
        // of others.
        for (every_ms, late, kept) in
            [(67, 100, 90), (20, 1 << 40, 1), (33, 1, 1200), (1000, 7, 85)]
        {
            let points = history(700, every_ms, late);
            let words = format!("every {every_ms} ms, one in {late} late");
            assert!(points.len() <= 1200, "{words}: {}", points.len());
            assert!(points.is_sorted_by_key(|point| point.at_ms));
            let (first, last) = (&points[0], &points[points.len() - 1]);
            let span = last.at_ms - first.at_ms;
            assert!((595_000..=600_000).contains(&span), "{words}: {span} ms");
            let widest = points.windows(2).map(|two| two[1].at_ms - two[0].at_ms).max();
            assert!(widest.is_some_and(|widest| widest <= 2000), "{words}: {widest:?} ms apart");
            let of = |kind: bool| points.iter().filter(move |point| point.in_time == Some(kind));
            assert!(of(false).count() + 1 >= kept, "{words}: {} late", of(false).count());
            let frames: u64 = points.iter().map(|point| point.frames).sum();
            let real = 600_000 / every_ms;
            assert!(frames.abs_diff(real) <= real / 100 + 1, "{words}: {frames} frames of {real}");
        }
    }

    #[test]
    fn few_frames_are_all_remembered() {
        let points = history(60, 100, 9);
        assert_eq!(points.len(), 600);
        assert!(points.iter().all(|point| point.frames == 1));
    }
}
