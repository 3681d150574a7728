//! What is seen, steadily: a label out of many predictions, for those who want to know what there is
//! and not what each frame looked like. Pure: no clock, no transport.
//!
//! A label becomes stable when [`State::in_a_row`](config::State::in_a_row) predictions one after the
//! other agree on its class, each at least as sure as
//! [`State::min_confidence`](config::State::min_confidence). It stays until another one becomes stable:
//! an unsure prediction, or one whose label does not count, breaks a row that has begun, but does not
//! unsay what was seen. Whoever wants it to expire looks at how long ago it was last seen.

use std::time::{Duration, SystemTime};

use crate::config;
use crate::event::{self, Class};

/// A label that stays is told again when it was last seen this long after what was told.
pub const REFRESH: Duration = Duration::from_secs(30);

/// Finds what is stable.
#[derive(Clone, Debug)]
pub struct Stable {
    in_a_row: u32,
    min_confidence: f64,
    labels: Vec<String>,
    row: Option<Row>,
    seen: Option<Seen>,
}

/// Predictions that agree, up to now.
#[derive(Clone, Debug)]
struct Row {
    top: Class,
    length: u32,
    since: SystemTime,
}

/// What is stable.
#[derive(Clone, Debug)]
struct Seen {
    top: Class,
    variant: String,
    /// Never after `last`, even when the clock was set back or photos come in any order.
    since: SystemTime,
    last: SystemTime,
    /// What `last` was when it was told.
    told: SystemTime,
}

/// A reason to publish the state anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another label is stable.
    Label,
    /// The same was seen, much later than was told.
    Seen,
}

impl Stable {
    /// Nothing is stable at first.
    pub fn new(config: &config::State) -> Self {
        Self {
            in_a_row: config.in_a_row,
            min_confidence: config.min_confidence,
            labels: config.labels.clone(),
            row: None,
            seen: None,
        }
    }

    /// Takes in the likeliest class of a frame that was captured `at`, found by `variant`. Gives the
    /// reason to publish the state now, if there is one.
    pub fn observe(&mut self, top: &Class, variant: &str, at: SystemTime) -> Option<Change> {
        let is_sure = top.probability >= self.min_confidence;
        if !is_sure || !(self.labels.is_empty() || self.labels.contains(&top.label)) {
            self.row = None;
            return None;
        }
        // Another set may call a class by another name.
        let same = |other: &Class| other.class == top.class && other.label == top.label;
        let row = self.row.take().filter(|row| same(&row.top));
        let mut row = row.unwrap_or(Row { top: top.clone(), length: 0, since: at });
        row.length = row.length.saturating_add(1);
        let (since, is_stable) = (row.since, row.length >= self.in_a_row);
        self.row = Some(row);

        match &mut self.seen {
            Some(seen) if same(&seen.top) => {
                seen.top = top.clone();
                variant.clone_into(&mut seen.variant);
                (seen.since, seen.last) = (seen.since.min(at), at);
                let apart = at.duration_since(seen.told).unwrap_or_else(|error| error.duration());
                let is_due = apart >= REFRESH;
                if is_due {
                    seen.told = at;
                }
                is_due.then_some(Change::Seen)
            }
            seen if is_stable => {
                let (top, variant, since) = (top.clone(), variant.to_owned(), since.min(at));
                *seen = Some(Seen { top, variant, since, last: at, told: at });
                Some(Change::Label)
            }
            _ => None,
        }
    }

    /// The message on `state`, as far as it is about what is seen.
    pub fn message(&self, source: event::Origin) -> event::State {
        let seen = self.seen.as_ref();
        event::State {
            schema: event::SCHEMA,
            label: seen.map(|seen| seen.top.label.clone()),
            class: seen.map(|seen| seen.top.class),
            probability: seen.map(|seen| seen.top.probability),
            since: seen.map(|seen| event::timestamp(seen.since)),
            last_seen: seen.map(|seen| event::timestamp(seen.last)),
            variant: seen.map(|seen| seen.variant.clone()),
            source,
            budget_kept: None,
            temperature_c: None,
            throttled: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn class(name: char, probability: f64) -> Class {
        let class = name as usize - 'a' as usize;
        Class { class, label: name.to_string(), probability }
    }

    fn stable(in_a_row: u32, labels: &[&str]) -> Stable {
        let mut config = Config::load(None).unwrap().state;
        config.in_a_row = in_a_row;
        config.labels = labels.iter().map(|&label| label.to_owned()).collect();
        Stable::new(&config)
    }

    fn message(stable: &Stable) -> event::State {
        let source = event::Origin { kind: "camera", working: true, detail: String::new() };
        stable.message(source)
    }

    /// Observes a letter a second: small ones are sure, capital ones are not. Gives after each the
    /// label that is stable, or a dash.
    fn labels(stable: &mut Stable, frames: &str) -> String {
        let mut found = String::new();
        for (second, letter) in (0..).zip(frames.chars()) {
            let probability = if letter.is_lowercase() { 0.5 } else { 0.499 };
            let before = message(stable).label;
            let change = stable.observe(
                &class(letter.to_ascii_lowercase(), probability),
                "baseline",
                at(second),
            );
            let label = message(stable).label;
            assert_eq!(change == Some(Change::Label), before != label, "{frames} at {second}");
            found += label.as_deref().unwrap_or("-");
        }
        found
    }

    #[test]
    fn so_many_in_a_row_make_a_label_stable_until_the_next_one() {
        let all: &[&str] = &[];
        for (in_a_row, allowed, frames, expected) in [
            (1, all, "aba", "aba"),
            (3, all, "aaa", "--a"),
            (3, all, "aabaa", "-----"),
            (3, all, "aaabbaabbb", "--aaaaaaab"),
            // An unsure prediction breaks a row, and unsays nothing.
            (3, all, "aaAaaa", "-----a"),
            (3, all, "aaaABCBbb", "--aaaaaaa"),
            (3, all, "aaabbBbbb", "--aaaaaab"),
            // Back again.
            (2, all, "aabbaa", "-aabba"),
            // Labels that do not count.
            (2, &["b"], "aabbaab", "---bbbb"),
            (2, &["b"], "babb", "---b"),
        ] {
            assert_eq!(labels(&mut stable(in_a_row, allowed), frames), expected, "{frames}");
        }
    }

    #[test]
    fn it_is_told_since_when_and_when_last() {
        let mut stable = stable(3, &[]);
        assert_eq!(message(&stable).since, None);
        labels(&mut stable, "bbAaaaabA");
        let state = message(&stable);
        assert_eq!(state.label.as_deref(), Some("a"));
        assert_eq!(state.since, Some(event::timestamp(at(3))));
        assert_eq!(state.last_seen, Some(event::timestamp(at(6))));
        assert_eq!(state.variant.as_deref(), Some("baseline"));
        stable.observe(&class('a', 0.9), "scaled", at(20));
        let state = message(&stable);
        assert_eq!((state.probability, state.variant.as_deref()), (Some(0.9), Some("scaled")));
        assert_eq!(state.since, Some(event::timestamp(at(3))));
        assert_eq!(state.last_seen, Some(event::timestamp(at(20))));
    }

    #[test]
    fn a_label_that_stays_is_told_again_once_in_a_while() {
        let mut stable = stable(1, &[]);
        let a = class('a', 0.9);
        assert_eq!(stable.observe(&a, "baseline", at(0)), Some(Change::Label));
        let times = [1, 29, 30, 31, 59, 60, 300].map(|second| {
            stable.observe(&a, "baseline", at(second)).map(|change| (second, change))
        });
        let told: Vec<_> = times.into_iter().flatten().collect();
        assert_eq!(told, [30, 60, 300].map(|second| (second, Change::Seen)));
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        let mut stable = stable(2, &[]);
        let a = class('a', 0.9);
        stable.observe(&a, "baseline", at(100));
        assert_eq!(stable.observe(&a, "baseline", at(50)), Some(Change::Label));
        assert_eq!(message(&stable).since, Some(event::timestamp(at(50))));
        assert_eq!(stable.observe(&a, "baseline", at(21)), None);
        assert_eq!(stable.observe(&a, "baseline", at(20)), Some(Change::Seen));
        let state = message(&stable);
        assert_eq!((&state.since, &state.last_seen), (&state.last_seen, &state.since));
        assert_eq!(stable.observe(&a, "baseline", at(50)), Some(Change::Seen));
        assert_eq!(message(&stable).since, Some(event::timestamp(at(20))));
    }

    #[test]
    fn a_class_of_another_name_is_another_one() {
        let mut stable = stable(2, &[]);
        let (before, now) = (class('a', 0.9), Class { label: "b".to_owned(), ..class('a', 0.9) });
        let seen = [&before, &before, &now, &now]
            .map(|top| stable.observe(top, "baseline", at(0)).is_some());
        assert_eq!(seen, [false, true, false, true]);
        assert_eq!(message(&stable).label.as_deref(), Some("b"));
    }

    #[test]
    fn no_number_is_unsure() {
        let mut stable = stable(1, &[]);
        assert_eq!(stable.observe(&class('a', f64::NAN), "baseline", at(0)), None);
        assert_eq!(message(&stable).label, None);
    }
}
