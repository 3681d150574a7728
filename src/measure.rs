//! What a variant costs on this machine: latency, load time, memory. One process per variant, so
//! that none profits from what another left behind.

use std::borrow::Cow;
use std::fs;
use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::distribution::Distribution;
use crate::event::{Class, Timings, milliseconds};
use crate::manifest::ModelSet;
use crate::model::{Engine, Model};
use crate::pipeline::{Pipeline, Prepared, top};
use crate::preprocess;
use crate::source::Picture;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Job {
    /// Model set, threads and the limits on photos.
    pub config: Config,
    /// Name of the variant.
    pub variant: String,
    /// How many inferences are timed, at least 1, after one that is not.
    pub runs: u32,
    /// What to classify; noise without it.
    pub picture: Option<Picture>,
    /// Whether each single run is reported.
    pub each: bool,
    /// Whether everything else on the machine goes first.
    pub background: bool,
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
    /// The part of the fastest inference that was spent in layers that are bound by reading weights.
    pub memory_ms: f64,
    /// How many inferences were timed.
    pub runs: u32,
    /// Resident memory after the last inference (VmRSS).
    pub rss_mb: u64,
    /// Largest resident memory of the process (VmHWM).
    pub peak_rss_mb: u64,
    /// Each run, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub each: Vec<Run>,
    /// What it says of the photo, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// A line of JSON that the measuring process writes to the one that waits for it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// So many inferences are done.
    Ran(u32),
    /// All of them are: this line is the last.
    Measured(Box<Measurement>),
}

/// From one [`Line::Ran`] to the next, at the least: telling must not disturb what is timed.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// One inference.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Run {
    /// When it began, after the first.
    pub at_ms: f64,
    /// How long it took.
    pub total_ms: f64,
    /// The part that was spent in layers that are bound by reading weights.
    pub memory_ms: f64,
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
    /// Measures in a process of its own: this very program, called with `measure`, which
    /// [`reports`](Self::report).
    ///
    /// # Errors
    /// When the process cannot be started or fails; its own message has gone to stderr.
    pub fn spawn(&self) -> Result<Measurement> {
        self.follow(|_| Ok(()))
    }

    /// The same, told now and then how many inferences are done, from 0 when the model is loaded.
    ///
    /// # Errors
    /// The same, or when `ran` fails, which ends the process.
    pub fn follow(&self, ran: impl FnMut(u32) -> Result<()>) -> Result<Measurement> {
        let mut command = Command::new(std::env::current_exe()?);
        let Config { model, file, .. } = &self.config;
        command.arg("measure").arg("--models").arg(&model.set);
        command.args(["--variant", &self.variant]);
        command.args(["--threads", &model.threads.to_string()]);
        command.args(["--precision", model.precision.as_str()]);
        command.args(["--runs", &self.runs.to_string()]);
        command.args(self.each.then_some("--each"));
        command.args(self.background.then_some("--background"));
        let bytes = match &self.picture {
            None => None,
            Some(Picture::File(path)) => {
                command.arg(path);
                None
            }
            Some(Picture::Encoded(bytes)) => Some(Cow::Borrowed(bytes.as_slice())),
            Some(Picture::Raw(raw)) => Some(Cow::Owned(preprocess::to_png(&raw.decode()?))),
        };
        command.args(bytes.is_some().then_some("-"));
        command.args(file.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn()?;
        // It reads all of this before it says anything; if it does not, its exit status tells.
        child.stdin.take().and_then(|mut stdin| stdin.write_all(&bytes.unwrap_or_default()).ok());
        let heard = hear(BufReader::new(child.stdout.take().expect("a pipe")), ran);
        if heard.is_err() {
            child.kill().ok();
        }
        let status = child.wait()?;
        let measurement = heard?;
        ensure!(status.success(), "variant '{}' could not be measured", self.variant);
        measurement.context("no measurement came")
    }

    /// Measures in this process, which should have done nothing else before, and tells the one that
    /// [`follows`](Self::follow) it on stdout.
    ///
    /// # Errors
    /// When the set, the variant or the photo cannot be used, or nobody listens any more.
    pub fn report(&self) -> Result<()> {
        let tell = |line: &Line| {
            let mut out = stdout().lock();
            serde_json::to_writer(&mut out, line)?;
            Ok(writeln!(out)?)
        };
        let measurement = self.run(|count| tell(&Line::Ran(count)))?;
        tell(&Line::Measured(Box::new(measurement)))
    }

    fn run(&self, mut ran: impl FnMut(u32) -> Result<()>) -> Result<Measurement> {
        ensure!(self.runs > 0, "at least one run is needed to measure");
        if self.background {
            rustix::process::nice(19).context("cannot lower the priority")?;
        }
        // Should memory run out, it is this process that goes, and not the one that asked.
        fs::write("/proc/self/oom_score_adj", "1000").ok();
        let start = Instant::now();
        let set = ModelSet::open(&self.config.model.set)?;
        let engine = Engine::configured(&self.config.model)?;
        let model = Model::load(&set, set.variant(&self.variant)?, &engine)?;
        let loaded = start.elapsed();

        let pipeline = Pipeline::new(&self.config.source);
        let prepared = match &self.picture {
            Some(picture) => {
                let decoded = pipeline.decode(&mut picture.clone());
                pipeline.prepare(&decoded.with_context(|| format!("{picture:?}"))?, &model)
            }
            None => Prepared {
                input: noise(3 * model.side * model.side),
                decode: Duration::ZERO,
                preprocess: Duration::ZERO,
            },
        };
        let time = || {
            let (start, before) = (Instant::now(), engine.reading());
            let logits = model.infer(&prepared.input)?;
            anyhow::Ok((start.elapsed(), engine.reading() - before, logits))
        };
        ran(0)?;
        let (first, _, logits) = time()?;
        time()?;
        let (begun, mut told) = (Instant::now(), Instant::now());
        let spent = (0..self.runs)
            .map(|done| {
                if told.elapsed() >= TELL_EVERY {
                    ran(done)?;
                    told = Instant::now();
                }
                let at = begun.elapsed();
                time().map(|(all, reading, _)| (all, reading, at))
            })
            .collect::<Result<Vec<_>>>()?;
        let (_, reading, _) = spent.iter().min().expect("at least one run");
        let inference = Distribution::of(spent.iter().map(|(all, ..)| *all).collect());
        let each = spent.iter().filter(|_| self.each).map(|&(all, reading, at)| Run {
            at_ms: milliseconds(at),
            total_ms: milliseconds(all),
            memory_ms: milliseconds(reading),
        });
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
            memory_ms: milliseconds(*reading),
            runs: self.runs,
            rss_mb: memory("VmRSS:")?,
            peak_rss_mb: memory("VmHWM:")?,
            each: each.collect(),
            answer: match self.picture {
                Some(_) => {
                    Some(Answer { top: top(&model, &logits)?, timings_ms: Timings::new(stages) })
                }
                None => None,
            },
        })
    }
}

/// What the measuring process says, to its end.
fn hear(told: impl BufRead, mut ran: impl FnMut(u32) -> Result<()>) -> Result<Option<Measurement>> {
    let mut measured = None;
    for line in told.lines() {
        match serde_json::from_str(&line?).context("unreadable measurement")? {
            Line::Ran(count) => ran(count)?,
            Line::Measured(measurement) => measured = Some(*measurement),
        }
    }
    Ok(measured)
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
///
/// # Errors
/// When the system does not tell.
pub fn memory(name: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("/proc/self/status has no {name}"))? >> 10)
}
