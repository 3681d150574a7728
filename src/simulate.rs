//! What the selector does with a machine that slows down: a trace of slowdowns is replayed through
//! it, without a model and without a clock, and set against an oracle that knows each frame's
//! slowdown beforehand, and against the best single variant in hindsight.

mod picture;
pub mod trace;

use std::io::{Read, Write};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::distribution::Distribution;
use crate::event::{LONGEST_MS, duration, milliseconds};
use crate::select::{Profile, Selector};
use trace::Frame;

pub use picture::draw;

/// A variant as a profile file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its name.
    pub variant: String,
    /// Undisturbed time that scales with the clock.
    pub compute_ms: f64,
    /// Undisturbed time that scales with the speed of memory.
    pub memory_ms: f64,
    /// Share of photos that it gets right, 0..1.
    pub accuracy: f64,
}

/// A board like a Raspberry Pi 4, to try policies with. Its times are estimated, from multiply-accumulates
/// and from bytes at 4 GB/s. Its accuracies are those of models/README.md, measured, but for two that were not
/// and are taken from the variants nearest to them: `pruned-quantized` has that of `pruned`, and
/// `narrow-int8-scaled` that of the narrow network's `scaled`.
pub const PI4: &str = include_str!("../config/profile-pi4.csv");

/// A policy names a variant that is no candidate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no variant '{name}' in the profile, there are {}", known.join(", "))]
pub struct Unknown {
    /// What it names.
    pub name: String,
    /// What there is.
    pub known: Vec<String>,
}

/// Who chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The selector of the daemon.
    Auto,
    /// The most accurate variant that is in time, known beforehand.
    Oracle,
    /// Always the variant of this name.
    Fixed(String),
}

impl From<&str> for Policy {
    fn from(name: &str) -> Self {
        match name {
            "auto" => Self::Auto,
            "oracle" => Self::Oracle,
            name => Self::Fixed(name.to_owned()),
        }
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Counted from 0.
    pub frame: usize,
    /// Who classified it.
    pub variant: String,
    /// How long that took.
    pub total_ms: f64,
    /// How long it should have taken at the most; 0 for no budget.
    pub budget_ms: f64,
    /// Whether it did not take longer.
    pub in_time: bool,
}

/// What became of all frames. Rates are fractions of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many there were.
    pub frames: usize,
    /// Share that was late.
    pub miss_rate: f64,
    /// Share that was late, of those that some variant would have had in time.
    pub avoidable_miss_rate: f64,
    /// Median latency.
    pub p50_ms: f64,
    /// 95th percentile (nearest rank).
    pub p95_ms: f64,
    /// 99th percentile (nearest rank).
    pub p99_ms: f64,
    /// Share that is expected to be right and in time.
    pub effective_accuracy: f64,
    /// The same of an oracle.
    pub oracle_accuracy: f64,
    /// By which share the oracle is better.
    pub oracle_gap: f64,
    /// The variant that would have been the best for all frames.
    pub best_static: String,
    /// By which share this policy is better than that variant.
    pub static_gain: f64,
    /// How often the variant changed, a minute.
    pub switches_per_minute: f64,
    /// The longest run of frames that were late although some variant would have been in time.
    pub recovery_frames: usize,
}

/// Reads `variant,compute_ms,memory_ms,accuracy`, a variant a line, with that header.
///
/// # Errors
/// What is wrong, with the line.
pub fn profile(from: impl Read) -> Result<Vec<Candidate>, String> {
    let candidates: Vec<Candidate> = rows(from)?;
    for (index, candidate) in candidates.iter().enumerate() {
        let line = index + 2;
        let times = [candidate.compute_ms, candidate.memory_ms];
        if times.iter().any(|time| !(0.0..=LONGEST_MS).contains(time)) || times == [0.0; 2] {
            return Err(format!("line {line}: times must be from 0 to 3600000 ms, one over 0"));
        }
        if !(0.0..=1.0).contains(&candidate.accuracy) {
            return Err(format!("line {line}: accuracy must be from 0 to 1"));
        }
        if candidates[..index].iter().any(|other| other.variant == candidate.variant) {
            return Err(format!("line {line}: '{}' is there twice", candidate.variant));
        }
    }
    Ok(candidates)
}

/// Writes what [`profile`] reads.
///
/// # Errors
/// What the system said.
pub fn write_profile(to: impl Write, candidates: &[Candidate]) -> Result<(), String> {
    write_rows(to, candidates)
}

fn write_rows<T: Serialize>(to: impl Write, rows: &[T]) -> Result<(), String> {
    let mut writer = csv::Writer::from_writer(to);
    for row in rows {
        writer.serialize(row).map_err(|error| error.to_string())?;
    }
    writer.flush().map_err(|error| error.to_string())
}

/// The lines of a CSV file with a header; at least one.
fn rows<T: DeserializeOwned>(from: impl Read) -> Result<Vec<T>, String> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(from);
    let rows: Result<Vec<T>, _> = reader.deserialize().collect();
    let rows = rows.map_err(|error| error.to_string())?;
    if rows.is_empty() { Err("no line after the header".to_owned()) } else { Ok(rows) }
}

impl Candidate {
    fn latency_ms(&self, frame: &Frame) -> f64 {
        self.compute_ms * frame.slowdown + self.memory_ms * frame.memory_slowdown
    }

    fn in_time(&self, frame: &Frame) -> bool {
        frame.budget_ms == 0.0 || self.latency_ms(frame) <= frame.budget_ms
    }

    fn profile(&self) -> Profile {
        let (compute, memory) = (duration(self.compute_ms), duration(self.memory_ms));
        Profile { compute, memory, accuracy: self.accuracy }
    }
}

/// Lets `policy` choose for every frame of `trace`.
///
/// # Errors
/// [`Unknown`], by a fixed policy.
///
/// # Panics
/// When there are no candidates or no frames.
pub fn replay(
    candidates: &[Candidate],
    trace: &[Frame],
    policy: &Policy,
    miss_rate: f64,
) -> Result<(Vec<Outcome>, Summary), Unknown> {
    let unknown = |name: &String| Unknown {
        name: name.clone(),
        known: candidates.iter().map(|candidate| candidate.variant.clone()).collect(),
    };
    let fixed = match policy {
        Policy::Fixed(name) => {
            let found = candidates.iter().position(|candidate| candidate.variant == *name);
            Some(found.ok_or_else(|| unknown(name))?)
        }
        _ => None,
    };
    let profiles: Vec<Profile> = candidates.iter().map(Candidate::profile).collect();
    let mut selector = Selector::new(&profiles, miss_rate);
    let mut outcomes = Vec::with_capacity(trace.len());
    let mut tally = Tally { fixed: vec![0.0; candidates.len()], ..Tally::default() };
    for (index, frame) in trace.iter().enumerate() {
        let oracle = best(candidates, frame);
        let left = match frame.budget_ms {
            0.0 => Duration::MAX,
            budget => duration(budget),
        };
        let chosen = match policy {
            Policy::Oracle => oracle.unwrap_or_else(|| fastest(candidates, frame)),
            _ => fixed.unwrap_or_else(|| {
                selector.pick(left, |_| true).map_or(0, |choice| choice.variant)
            }),
        };
        let total_ms = candidates[chosen].latency_ms(frame);
        selector.observe(chosen, duration(total_ms));
        tally.count(candidates, frame, chosen, oracle);
        outcomes.push(Outcome {
            frame: index,
            variant: candidates[chosen].variant.clone(),
            total_ms,
            budget_ms: frame.budget_ms,
            in_time: candidates[chosen].in_time(frame),
        });
    }
    let summary = tally.summary(candidates, trace, &outcomes);
    Ok((outcomes, summary))
}

/// The most accurate candidate that is in time.
fn best(candidates: &[Candidate], frame: &Frame) -> Option<usize> {
    let able = (0..candidates.len()).filter(|&index| candidates[index].in_time(frame));
    able.max_by(|&a, &b| candidates[a].accuracy.total_cmp(&candidates[b].accuracy))
}

fn fastest(candidates: &[Candidate], frame: &Frame) -> usize {
    let latency = |index: usize| candidates[index].latency_ms(frame);
    (0..candidates.len()).min_by(|&a, &b| latency(a).total_cmp(&latency(b))).unwrap_or(0)
}

/// Sums over frames.
#[derive(Default)]
struct Tally {
    missed: usize,
    avoidable: usize,
    possible: usize,
    switches: usize,
    accuracy: f64,
    oracle: f64,
    fixed: Vec<f64>,
    run: usize,
    longest_run: usize,
    last: Option<usize>,
}

impl Tally {
    fn count(
        &mut self,
        candidates: &[Candidate],
        frame: &Frame,
        chosen: usize,
        oracle: Option<usize>,
    ) {
        for (sum, candidate) in self.fixed.iter_mut().zip(candidates) {
            *sum += if candidate.in_time(frame) { candidate.accuracy } else { 0.0 };
        }
        if let Some(oracle) = oracle {
            self.possible += 1;
            self.oracle += candidates[oracle].accuracy;
        }
        if candidates[chosen].in_time(frame) {
            self.accuracy += candidates[chosen].accuracy;
            self.run = 0;
        } else {
            self.missed += 1;
            self.run = if oracle.is_some() { self.run + 1 } else { 0 };
            self.avoidable += usize::from(oracle.is_some());
        }
        self.longest_run = self.longest_run.max(self.run);
        self.switches += usize::from(self.last.is_some_and(|last| last != chosen));
        self.last = Some(chosen);
    }

    fn summary(self, candidates: &[Candidate], trace: &[Frame], outcomes: &[Outcome]) -> Summary {
        let frames = trace.len();
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let of_frames = |sum: f64| sum / frames as f64;
        let (best, sum) =
            (self.fixed.iter().enumerate()).max_by(|a, b| a.1.total_cmp(b.1)).expect("a candidate");
        let times = outcomes.iter().map(|it| duration(it.total_ms));
        let times = Distribution::of(times.collect());
        let minutes = (trace[frames - 1].arrival_ms - trace[0].arrival_ms) / 60e3;
        Summary {
            frames,
            miss_rate: of_frames(self.missed as f64),
            avoidable_miss_rate: share(self.avoidable as f64, self.possible as f64),
            p50_ms: milliseconds(times.median),
            p95_ms: milliseconds(times.p95),
            p99_ms: milliseconds(times.p99),
            effective_accuracy: of_frames(self.accuracy),
            oracle_accuracy: of_frames(self.oracle),
            oracle_gap: share(self.oracle - self.accuracy, self.oracle),
            best_static: candidates[best].variant.clone(),
            static_gain: share(self.accuracy - sum, *sum),
            switches_per_minute: share(self.switches as f64, minutes),
            recovery_frames: self.longest_run,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<Candidate> {
        let text = "variant,compute_ms,memory_ms,accuracy\nslow,300,100,0.8\nfast,100,0,0.6\n";
        profile(text.as_bytes()).unwrap()
    }

    #[test]
    fn figures_of_a_trace_by_hand() {
        let frame = |arrival_ms, slowdown, memory_slowdown| Frame {
            arrival_ms,
            slowdown,
            memory_slowdown,
            budget_ms: 450.0,
        };
        // Both in time; the fast one alone; neither; the fast one alone.
        let trace = [
            frame(0.0, 1.0, 1.0),
            frame(20e3, 1.0, 2.0),
            frame(40e3, 5.0, 1.0),
            frame(60e3, 2.0, 1.0),
        ];
        let (outcomes, slow) =
            replay(&two(), &trace, &Policy::Fixed("slow".to_owned()), 0.05).unwrap();
        let times: Vec<f64> = outcomes.iter().map(|outcome| outcome.total_ms).collect();
        assert_eq!(times, [400.0, 500.0, 1600.0, 700.0]);
        assert_eq!((slow.miss_rate, slow.recovery_frames), (0.75, 1));
        assert!((slow.avoidable_miss_rate - 2.0 / 3.0).abs() < 1e-9);
        assert!((slow.effective_accuracy - 0.2).abs() < 1e-9);
        assert!((slow.oracle_accuracy - 0.5).abs() < 1e-9);
        assert!((slow.oracle_gap - 0.6).abs() < 1e-9);
        assert_eq!(slow.best_static, "fast");
        assert!((slow.static_gain - (0.2 / 0.45 - 1.0)).abs() < 1e-9);
        let (outcomes, oracle) = replay(&two(), &trace, &Policy::Oracle, 0.05).unwrap();
        let names: Vec<&str> = outcomes.iter().map(|outcome| outcome.variant.as_str()).collect();
        assert_eq!(names, ["slow", "fast", "fast", "fast"]);
        assert_eq!((oracle.oracle_gap, oracle.switches_per_minute), (0.0, 1.0));
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let head = "arrival_ms,slowdown,memory_slowdown,budget_ms\n";
        for (rows, expected) in [
            ("", "no line"),
            ("0,1,1,100\n5,0,1,100\n", "line 3: a slowdown"),
            ("0,1,nan,100\n", "line 2: a slowdown"),
            ("9,1,1,100\n5,1,1,100\n", "line 3: arrival_ms"),
            ("0,1,1,-1\n", "line 2: budget_ms"),
            ("0,1,1\n", "line: 2"),
            ("0,1,1,often\n", "line: 2"),
        ] {
            let error = trace::read(format!("{head}{rows}").as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{rows}: {error}");
        }
        let head = "variant,compute_ms,memory_ms,accuracy\n";
        for (rows, expected) in [
            ("a,1,1,1.5\n", "line 2: accuracy"),
            ("a,0,0,0.5\n", "line 2: times"),
            ("a,1,1,0.5\na,1,1,0.5\n", "line 3: 'a' is there twice"),
        ] {
            let error = profile(format!("{head}{rows}").as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{rows}: {error}");
        }
        let unknown = replay(
            &two(),
            &trace::Scenario::Steady.trace(400.0, 0),
            &Policy::Fixed("x".into()),
            0.05,
        );
        assert!(unknown.unwrap_err().to_string().contains("there are slow, fast"));
    }

    #[test]
    fn a_trace_that_was_written_is_read_back() {
        let frames = trace::Scenario::All.trace(400.0, 7);
        let mut file = Vec::new();
        trace::write(&mut file, &frames).unwrap();
        assert_eq!(trace::read(&file[..]).unwrap(), frames);
    }
}
