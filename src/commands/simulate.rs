//! `vggd simulate`: a trace, or every scenario, replayed through a policy.

use std::fs::{self, File};
use std::io::{BufReader, Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use vggd::simulate::trace::{self, Frame, Scenario};
use vggd::simulate::{self, Candidate, Policy, Summary, Unknown};

use super::progress::Progress;
use super::{Misused, print_json, print_table, write};
use crate::arguments::Simulation;

/// The share of frames that may be late, unless it is given.
const MISS_RATE: f64 = 0.05;

/// One scenario with many seeds: the mean, and the worst of them.
#[derive(Serialize)]
struct Row {
    scenario: String,
    budget_ms: f64,
    seeds: u64,
    mean: Figures,
    worst: Figures,
}

#[derive(Serialize)]
struct Figures {
    miss_rate: f64,
    avoidable_miss_rate: f64,
    effective_accuracy: f64,
    oracle_gap: f64,
    static_gain: f64,
    switches_per_minute: f64,
    recovery_frames: f64,
}

pub(crate) fn simulate(simulation: &Simulation) -> Result<()> {
    if simulation.miss_rate.is_some() && simulation.policy != Policy::Auto {
        bail!(Misused("--miss-rate is for --policy auto alone".to_owned()));
    }
    let candidates = match &simulation.profile {
        Some(path) => read(path, simulate::profile)?,
        None => simulate::profile(simulate::PI4.as_bytes()).map_err(anyhow::Error::msg)?,
    };
    let Simulation { budget_ms, seed, .. } = *simulation;
    match (&simulation.trace, simulation.scenario) {
        (Some(path), _) => {
            let frames = read(path, trace::read)?;
            one(simulation, &candidates, &frames, &path.display().to_string())
        }
        (None, Some(scenario)) => {
            let frames = scenario.trace(budget_ms, seed);
            one(simulation, &candidates, &frames, &format!("{scenario}, {budget_ms} ms"))
        }
        (None, None) => each(simulation, &candidates),
    }
}

fn read<T>(path: &Path, parse: impl FnOnce(BufReader<File>) -> Result<T, String>) -> Result<T> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    parse(BufReader::new(file)).map_err(|error| anyhow!("{}: {error}", name()))
}

/// Replays a trace by what the command line says.
fn replay(
    simulation: &Simulation,
    candidates: &[Candidate],
    frames: &[Frame],
) -> Result<(Vec<simulate::Outcome>, Summary)> {
    let miss_rate = simulation.miss_rate.unwrap_or(MISS_RATE);
    let replayed = simulate::replay(candidates, frames, &simulation.policy, miss_rate);
    replayed.map_err(|error: Unknown| Misused(format!("--policy: {error}")).into())
}

/// Replays one trace, and shows it frame by frame.
fn one(
    simulation: &Simulation,
    candidates: &[Candidate],
    frames: &[Frame],
    title: &str,
) -> Result<()> {
    let (outcomes, summary) = replay(simulation, candidates, frames)?;
    if let Some(path) = &simulation.write_trace {
        write(path, |file| trace::write(file, frames))?;
    }
    if let Some(path) = &simulation.picture {
        let svg = simulate::draw(title, candidates, frames, &outcomes);
        fs::write(path, svg).with_context(|| path.display().to_string())?;
    }
    if simulation.json {
        for outcome in &outcomes {
            print_json(outcome)?;
        }
        return print_json(&summary);
    }
    let Summary { p50_ms, p95_ms, p99_ms, .. } = summary;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let rows = [
        ("frames", summary.frames.to_string()),
        ("late", percent(summary.miss_rate)),
        ("late, and need not have been", percent(summary.avoidable_miss_rate)),
        ("latency p50, p95, p99", format!("{p50_ms:.0}, {p95_ms:.0}, {p99_ms:.0} ms")),
        ("right and in time", percent(summary.effective_accuracy)),
        ("the same, by an oracle", percent(summary.oracle_accuracy)),
        ("behind the oracle", percent(summary.oracle_gap)),
        (
            "against the best single variant",
            format!("{:+.1} % ({})", 100.0 * summary.static_gain, summary.best_static),
        ),
        ("switches a minute", format!("{:.1}", summary.switches_per_minute)),
        ("longest run of late frames", summary.recovery_frames.to_string()),
    ];
    writeln!(stdout(), "{title}")?;
    print_table(&rows.map(|(name, value)| vec![name.to_owned(), value]), &[1]);
    let mut shares = vec![["variant", "frames"].map(str::to_owned).to_vec()];
    for candidate in candidates {
        let ran = outcomes.iter().filter(|outcome| outcome.variant == candidate.variant).count();
        let share = percent(ran as f64 / outcomes.len() as f64);
        shares.push(vec![candidate.variant.clone(), share]);
    }
    writeln!(stdout())?;
    print_table(&shares, &[1]);
    Ok(())
}

/// Replays every scenario with many seeds.
fn each(simulation: &Simulation, candidates: &[Candidate]) -> Result<()> {
    let Simulation { budget_ms, seed, seeds, .. } = *simulation;
    let mut rows = Vec::new();
    let mut progress = Progress::new();
    for (index, scenario) in Scenario::EACH.into_iter().enumerate() {
        let summaries: Result<Vec<Summary>> = (0..seeds)
            .map(|run| {
                let part = run as f64 / seeds as f64;
                let share = (index as f64 + part) / Scenario::EACH.len() as f64;
                progress.tell(&scenario.to_string(), share);
                Ok(replay(simulation, candidates, &scenario.trace(budget_ms, seed + run))?.1)
            })
            .collect();
        let summaries = summaries?;
        let mean = |of: fn(&Summary) -> f64| {
            summaries.iter().map(of).sum::<f64>() / summaries.len() as f64
        };
        let most =
            |of: fn(&Summary) -> f64| summaries.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        let least =
            |of: fn(&Summary) -> f64| summaries.iter().map(of).fold(f64::INFINITY, f64::min);
        rows.push(Row {
            scenario: scenario.to_string(),
            budget_ms,
            seeds,
            mean: Figures::of(mean, mean),
            worst: Figures::of(most, least),
        });
    }
    if simulation.json {
        return rows.iter().try_for_each(print_json);
    }
    println!("mean and worst of {seeds} traces each, budget {budget_ms} ms, in %");
    let titles = [
        "scenario",
        "late",
        "needlessly",
        "behind oracle",
        "over best single",
        "switches/min",
        "run",
    ];
    let mut table = vec![titles.map(str::to_owned).to_vec()];
    for Row { scenario, mean, worst, .. } in &rows {
        let percent = |of: fn(&Figures) -> f64| {
            format!("{:.1}, {:.1}", 100.0 * of(mean) + 0.0, 100.0 * of(worst) + 0.0)
        };
        table.push(vec![
            scenario.clone(),
            percent(|it| it.miss_rate),
            percent(|it| it.avoidable_miss_rate),
            percent(|it| it.oracle_gap),
            percent(|it| it.static_gain),
            format!("{:.1}, {:.1}", mean.switches_per_minute, worst.switches_per_minute),
            worst.recovery_frames.to_string(),
        ]);
    }
    print_table(&table, &[1, 2, 3, 4, 5, 6]);
    Ok(())
}

impl Figures {
    /// Figures of which `low` ones are better, and those of which high ones are.
    fn of(
        low: impl Fn(fn(&Summary) -> f64) -> f64,
        high: impl Fn(fn(&Summary) -> f64) -> f64,
    ) -> Self {
        Self {
            miss_rate: low(|it| it.miss_rate),
            avoidable_miss_rate: low(|it| it.avoidable_miss_rate),
            effective_accuracy: high(|it| it.effective_accuracy),
            oracle_gap: low(|it| it.oracle_gap),
            static_gain: high(|it| it.static_gain),
            switches_per_minute: low(|it| it.switches_per_minute),
            recovery_frames: low(|it| it.recovery_frames as f64),
        }
    }
}
