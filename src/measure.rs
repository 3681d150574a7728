//! What a variant costs on this machine: latency, load time, memory. One process per variant, so
//! that none profits from what another left behind.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::event::{Class, Timings, milliseconds};
use crate::manifest::ModelSet;
use crate::model::{Engine, Model};
use crate::pipeline::{Pipeline, Prepared};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Job {
    /// Model set, threads and the limits on photos.
    pub config: Config,
    /// Name of the variant.
    pub variant: String,
    /// How many inferences are timed, at least 1, after one that is not.
    pub runs: u32,
    /// The photo to classify; noise without one.
    pub photo: Option<PathBuf>,
}

/// One variant's figures. Times are in milliseconds, memory in MiB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the variant.
    pub variant: String,
    /// Threads that ran it.
    pub threads: usize,
    /// Instruction set of the kernels, and their precision if it is not float32.
    pub kernels: String,
    /// From the first byte read to the first answer, with the files in the page cache or not.
    pub load_ms: f64,
    /// Median inference.
    pub median_ms: f64,
    /// Fastest inference.
    pub min_ms: f64,
    /// 95th percentile (nearest rank).
    pub p95_ms: f64,
    /// 99th percentile (nearest rank).
    pub p99_ms: f64,
    /// How many inferences were timed.
    pub runs: u32,
    /// Resident memory after the last inference (VmRSS).
    pub rss_mb: u64,
    /// Largest resident memory of the process (VmHWM).
    pub peak_rss_mb: u64,
    /// What it says of the photo, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// A photo's classes and the median timings of its runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The likeliest classes.
    pub top: Vec<Class>,
    /// Decoding and preprocessing once, inference by its median.
    pub timings_ms: Timings,
}

impl Job {
    /// Measures in a process of its own: this very program, called with `measure`.
    ///
    /// # Errors
    /// When the process cannot be started or fails; its own message has gone to stderr.
    pub fn spawn(&self) -> Result<Measurement> {
        let mut command = Command::new(std::env::current_exe()?);
        let Config { model, file, .. } = &self.config;
        command.arg("measure").arg("--models").arg(&model.set);
        command.args(["--variant", &self.variant]);
        command.args(["--threads", &model.threads.to_string()]);
        command.args(["--precision", model.precision.as_str()]);
        command.args(["--runs", &self.runs.to_string()]);
        command.args(self.photo.iter());
        command.args(file.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]));
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "variant '{}' could not be measured", self.variant);
        serde_json::from_slice(&output.stdout).context("unreadable measurement")
    }

    /// Measures in this process, which should have done nothing else before.
    ///
    /// # Errors
    /// When the set, the variant or the photo cannot be used.
    pub fn run(&self) -> Result<Measurement> {
        ensure!(self.runs > 0, "at least one run is needed to measure");
        let start = Instant::now();
        let set = ModelSet::open(&self.config.model.set)?;
        let engine = Engine::configured(&self.config.model)?;
        let model = Model::load(&set, set.variant(&self.variant)?, &engine)?;
        let loaded = start.elapsed();

        let pipeline = Pipeline::new(&set, &self.config.source);
        let prepared = match &self.photo {
            Some(path) => {
                pipeline.prepare(path, model.side).with_context(|| path.display().to_string())?
            }
            None => Prepared {
                input: noise(3 * model.side * model.side),
                decode: Duration::ZERO,
                preprocess: Duration::ZERO,
            },
        };
        let time = || {
            let start = Instant::now();
            let logits = model.infer(&prepared.input)?;
            anyhow::Ok((start.elapsed(), logits))
        };
        let (first, logits) = time()?;
        time()?;
        let spent = (0..self.runs).map(|_| Ok(time()?.0)).collect::<Result<Vec<_>>>()?;
        let inference = Distribution::of(spent);
        let stages = [Duration::ZERO, prepared.decode, prepared.preprocess, inference.median];
        Ok(Measurement {
            variant: self.variant.clone(),
            threads: engine.threads(),
            kernels: engine.kernels(),
            load_ms: milliseconds(loaded + first),
            median_ms: milliseconds(inference.median),
            min_ms: milliseconds(inference.min),
            p95_ms: milliseconds(inference.p95),
            p99_ms: milliseconds(inference.p99),
            runs: self.runs,
            rss_mb: memory("VmRSS:")?,
            peak_rss_mb: memory("VmHWM:")?,
            answer: self
                .photo
                .is_some()
                .then(|| Answer { top: pipeline.top(&logits), timings_ms: Timings::new(stages) }),
        })
    }
}

/// Percentiles by nearest rank; the median of an even number lies between the middle two.
#[derive(Debug, PartialEq)]
struct Distribution {
    min: Duration,
    median: Duration,
    p95: Duration,
    p99: Duration,
}

impl Distribution {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let count = times.len();
        let rank = |percent: usize| times[(percent * count).div_ceil(100) - 1];
        Self {
            min: times[0],
            median: (times[(count - 1) / 2] + times[count / 2]) / 2,
            p95: rank(95),
            p99: rank(99),
        }
    }
}

/// Values around 0 such as a normalised photo has, always the same.
fn noise(length: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| 2.0 * next()).collect()
}

/// A line of this process's memory figures, in MiB.
fn memory(name: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("/proc/self/status has no {name}"))? >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let times =
            |count: u64| Distribution::of((1..=count).rev().map(Duration::from_secs).collect());
        let seconds = |s: f64| Duration::from_secs_f64(s);
        let of = |min, median, p95, p99| Distribution {
            min: seconds(min),
            median: seconds(median),
            p95: seconds(p95),
            p99: seconds(p99),
        };
        assert_eq!(times(1), of(1.0, 1.0, 1.0, 1.0));
        assert_eq!(times(20), of(1.0, 10.5, 19.0, 20.0));
        assert_eq!(times(100), of(1.0, 50.5, 95.0, 99.0));
    }
}
