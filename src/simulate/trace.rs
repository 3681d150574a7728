//! What a machine goes through, frame by frame: read from CSV, or made up.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::event::LONGEST_MS;

/// One frame's circumstances: a line of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// When the frame arrives, from the start of the trace.
    pub arrival_ms: f64,
    /// Factor on the profiled time of compute-bound work.
    pub slowdown: f64,
    /// Factor on the profiled time of memory-bound work.
    pub memory_slowdown: f64,
    /// What the frame's latency should not exceed; 0 for no budget.
    pub budget_ms: f64,
}

/// A made-up trace of ten minutes, two frames a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing but noise.
    Steady,
    /// Everything takes twice as long for a while.
    Step,
    /// The clock falls to 0.6 over five minutes and stays there.
    Thermal,
    /// One frame in twenty takes four times as long.
    Spikes,
    /// Memory is two and a half times as slow for a while.
    Memory,
    /// The budget is halved for a while.
    Budget,
    /// All of these.
    All,
}

const FRAMES: usize = 1200;
const PERIOD_MS: f64 = 500.0;
const NOISE: f64 = 0.03;

impl Scenario {
    /// All of them.
    pub const EACH: [Self; 7] = [
        Self::Steady,
        Self::Step,
        Self::Thermal,
        Self::Spikes,
        Self::Memory,
        Self::Budget,
        Self::All,
    ];

    /// A trace with that budget, the same for the same seed.
    pub fn trace(self, budget_ms: f64, seed: u64) -> Vec<Frame> {
        let mut random = fastrand::Rng::with_seed(seed);
        let has = |one| self == one || self == Self::All;
        // Begins in the earlier and ends in the later part.
        let mut while_between = |begins: [f64; 2], ends: [f64; 2]| {
            let [begin, end] = [begins, ends].map(|[from, to]| from + (to - from) * random.f64());
            move |index: usize| (begin..end).contains(&(index as f64 / FRAMES as f64))
        };
        let stepped = while_between([0.2, 0.4], [0.6, 0.8]);
        let memory_busy = while_between([0.3, 0.5], [0.7, 0.9]);
        let halved = while_between([0.25, 0.45], [0.65, 0.85]);
        let frame = |index: usize| {
            let arrival_ms = index as f64 * PERIOD_MS;
            let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            let mut common = (NOISE * normal).exp();
            let spiky = random.f64() < 0.05;
            if has(Self::Step) && stepped(index) {
                common *= 2.0;
            }
            if has(Self::Spikes) && spiky {
                common *= 4.0;
            }
            let clock = match has(Self::Thermal) {
                true => 1.0 - 0.4 * (arrival_ms / 300e3).min(1.0),
                false => 1.0,
            };
            let memory = if has(Self::Memory) && memory_busy(index) { 2.5 } else { 1.0 };
            let budget = if has(Self::Budget) && halved(index) { 0.5 } else { 1.0 };
            Frame {
                arrival_ms,
                slowdown: common / clock,
                memory_slowdown: common * memory,
                budget_ms: budget * budget_ms,
            }
        };
        (0..FRAMES).map(frame).collect()
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::EACH.into_iter().find(|scenario| scenario.to_string() == name);
        found.ok_or_else(|| {
            let names = Self::EACH.map(|scenario| scenario.to_string());
            format!("there are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// Reads `arrival_ms,slowdown,memory_slowdown,budget_ms`, a frame a line, with that header.
///
/// # Errors
/// What is wrong, with the line.
pub fn read(from: impl Read) -> Result<Vec<Frame>, String> {
    let frames: Vec<Frame> = super::rows(from)?;
    for (index, frame) in frames.iter().enumerate() {
        let Frame { arrival_ms, slowdown, memory_slowdown, budget_ms } = *frame;
        let line = index + 2;
        let positive = |factor: f64| factor.is_finite() && factor > 0.0;
        if !positive(slowdown) || !positive(memory_slowdown) {
            return Err(format!("line {line}: a slowdown must be over 0"));
        }
        if !(0.0..=LONGEST_MS).contains(&budget_ms) {
            return Err(format!("line {line}: budget_ms must be from 0 to 3600000"));
        }
        let before = index.checked_sub(1).map_or(0.0, |index| frames[index].arrival_ms);
        if !arrival_ms.is_finite() || arrival_ms < before {
            return Err(format!("line {line}: arrival_ms must not fall"));
        }
    }
    Ok(frames)
}

/// Writes what [`read`] reads.
///
/// # Errors
/// What the system said.
pub fn write(to: impl Write, frames: &[Frame]) -> Result<(), String> {
    super::write_rows(to, frames)
}
