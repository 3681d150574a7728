//! `vggd bench`: what each variant takes, for people, for programs, and for `vggd simulate`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use vggd::config::Config;
use vggd::measure::{Measurement, Run};
use vggd::profile::Cost;
use vggd::simulate::trace::{self, Frame};
use vggd::simulate::{Candidate, write_profile};
use vggd::{daemon, lineup};

use super::{BAR, bar, faint, measure_all, print_json, print_table, strong, write};

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
    let each = files.record.is_some();
    let measured = measure_all(names, config, photo, runs, each, |measurement| match json {
        true => print_json(&Measurement { answer: None, each: Vec::new(), ..measurement.clone() }),
        false => Ok(()),
    })?;
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
    let titles = ["variant", "threads", "median", "", "min", "p95", "p99", "load", "peak memory"];
    let mut rows = vec![titles.map(faint).to_vec()];
    let slowest = measured.iter().map(|m| m.median_ms).fold(0.0, f64::max);
    rows.extend(measured.iter().map(|m| {
        let ms = |value: f64| format!("{value:.1} ms");
        vec![
            strong(&m.variant),
            m.threads.to_string(),
            ms(m.median_ms),
            bar(m.median_ms / slowest, BAR),
            ms(m.min_ms),
            ms(m.p95_ms),
            ms(m.p99_ms),
            ms(m.load_ms),
            format!("{} MiB", m.peak_rss_mb),
        ]
    }));
    println!("{runs} runs each, kernels: {}", measured[0].kernels);
    print_table(&rows, &[1, 2, 4, 5, 6, 7, 8]);
    Ok(())
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
