//! `vggd bench`: what each variant takes, for people, for programs, and for `vggd simulate`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use vggd::config::Config;
use vggd::measure::{Job, Measurement, Run};
use vggd::profile::Cost;
use vggd::simulate::trace::{self, Frame};
use vggd::simulate::{Candidate, write_profile};
use vggd::{daemon, lineup};

use super::table::{bar, columns, faint, lay_out, strong, width};
use super::{BAR, Progress, print_json, print_table, readable, write};

/// What `bench` writes for `simulate`.
pub(crate) struct BenchFiles {
    pub(crate) profile: Option<PathBuf>,
    pub(crate) record: Option<PathBuf>,
    pub(crate) budget_ms: f64,
}

/// Times variants.
pub(crate) fn bench(
    config: &Config,
    variant: Option<String>,
    photo: Option<PathBuf>,
    runs: u32,
    files: &BenchFiles,
    json: bool,
) -> Result<()> {
    let set = daemon::model_set(config)?;
    let names = match variant {
        Some(name) => vec![set.variant(&name).map(|variant| variant.name.clone())?],
        None => set.names(),
    };
    if files.profile.is_some() {
        lineup::evaluated(&set).map_err(|problem| anyhow!("--profile {problem}"))?;
    }
    let picture = photo.map(|path| readable(config, &path)).transpose()?;
    let (mut measured, mut progress) = (Vec::new(), Progress::new());
    for (index, variant) in names.iter().enumerate() {
        let all = names.len();
        let running = format!("{variant} ({} of {all})", index + 1);
        progress.tell(&format!("{running}, loading"), index as f64 / all as f64);
        let job = Job {
            config: config.clone(),
            variant: variant.clone(),
            runs,
            picture: picture.clone(),
            each: files.record.is_some(),
            background: false,
        };
        let measurement = job.follow(|count| {
            let share = (index as f64 + f64::from(count) / f64::from(runs)) / all as f64;
            progress.tell(&format!("{running}, {count} of {runs} runs"), share);
            Ok(())
        })?;
        progress.clear();
        if json {
            print_json(&Measurement { answer: None, each: Vec::new(), ..measurement.clone() })?;
        }
        measured.push(measurement);
    }
    drop(progress);
    if let Some(path) = &files.profile {
        let candidates = (measured.iter().zip(&set.manifest.variants))
            .filter_map(|(measurement, variant)| {
                let Cost { compute_ms, memory_ms, .. } = Cost::from(measurement);
                let (variant, accuracy) = (variant.name.clone(), variant.accuracy()?);
                Some(Candidate { variant, compute_ms, memory_ms, accuracy })
            })
            .collect::<Vec<_>>();
        write(path, |file| write_profile(file, &candidates))?;
    }
    if let Some(path) = &files.record {
        write(path, |file| trace::write(file, &recorded(&measured[0], files.budget_ms)))?;
    }
    if json {
        return Ok(());
    }
    let Measurement { threads, kernels, .. } = &measured[0];
    println!("{runs} runs each on {threads} threads, kernels: {kernels}; times in ms");
    print(&measured);
    Ok(())
}

/// A line for each variant, with bars as long as there is room for.
fn print(measured: &[Measurement]) {
    let titles = ["variant", "median", "min", "p95", "p99", "load", "memory", ""];
    let mut rows = vec![titles.map(faint).to_vec()];
    rows.extend(measured.iter().map(|m| {
        let ms = |value: f64| format!("{value:.1}");
        vec![
            strong(&m.variant),
            ms(m.median_ms),
            ms(m.min_ms),
            ms(m.p95_ms),
            ms(m.p99_ms),
            ms(m.load_ms),
            format!("{} MiB", m.peak_rss_mb),
            String::new(),
        ]
    }));
    let right = [1, 2, 3, 4, 5, 6];
    let taken = lay_out(&rows, &right).iter().map(|line| width(line)).max().unwrap_or(0);
    let room = columns().saturating_sub(taken + 2).min(BAR);
    let slowest = measured.iter().map(|m| m.median_ms).fold(0.0, f64::max);
    for (row, m) in rows[1..].iter_mut().zip(measured) {
        row[7] = bar(m.median_ms / slowest, room);
    }
    print_table(&rows, &right);
}

/// A trace of how much slower than the fastest run each run was.
fn recorded(measurement: &Measurement, budget_ms: f64) -> Vec<Frame> {
    let computing = |run: &Run| run.total_ms - run.memory_ms;
    let fastest = |of: &dyn Fn(&Run) -> f64| {
        let times = measurement.each.iter().map(of);
        times.fold(f64::INFINITY, f64::min).max(1e-3)
    };
    let (compute, memory) = (fastest(&computing), fastest(&|run| run.memory_ms));
    let frame = |run: &Run| Frame {
        arrival_ms: run.at_ms,
        slowdown: (computing(run) / compute).max(1.0),
        memory_slowdown: (run.memory_ms / memory).max(1.0),
        budget_ms,
    };
    measurement.each.iter().map(frame).collect()
}
