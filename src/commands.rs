//! The commands that run once, and what they print. With `--json`: JSON lines alone on stdout.

mod bench;
mod simulate;

use std::fs;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use vggd::config::Config;
use vggd::daemon;
use vggd::event::{Class, Timings};
use vggd::measure::{Job, Measurement};
use vggd::model::{Engine, Model};
use vggd::pipeline::Pipeline;
use vggd::source::Picture;
use vggd::source::directory::Directory;

pub(crate) use bench::{BenchFiles, bench};
pub(crate) use simulate::{Simulation, budget, simulate};

/// What `--json` says of a photo and a variant.
#[derive(Serialize)]
struct Line<'a> {
    file: String,
    variant: &'a str,
    top: &'a [Class],
    timings_ms: Timings,
    #[serde(flatten)]
    cost: Option<Cost>,
}

/// What `compare --json` says beyond `classify --json`. Memory is in MiB.
#[derive(Serialize)]
struct Cost {
    median_ms: f64,
    load_ms: f64,
    bytes: u64,
    rss_mb: u64,
    agrees: bool,
    speedup: f64,
    threads: usize,
}

/// Classifies each photo; those that cannot be are reported, and the exit code is 1 at the end.
pub(crate) fn classify(
    config: &Config,
    variant: Option<&str>,
    photos: &[PathBuf],
    json: bool,
) -> Result<ExitCode> {
    let set = daemon::model_set(config)?;
    let variant = match variant {
        Some(name) => set.variant(name)?,
        None => daemon::configured_variant(config, &set)?,
    };
    let model = Model::load(&set, variant, &Engine::configured(&config.model)?)?;
    let pipeline = Pipeline::new(&set, &config.source);
    let mut code = ExitCode::SUCCESS;
    for path in photos {
        let file = path.display().to_string();
        let answer = match pipeline.classify(&Picture::File(path.clone()), |_| &model) {
            Ok((answer, _)) => answer,
            Err(error) => {
                eprintln!("vggd: {file}: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let timings_ms = answer.timings(Duration::ZERO);
        if json {
            let variant = model.name.as_str();
            print_json(&Line { file, variant, top: &answer.top, timings_ms, cost: None })?;
            continue;
        }
        let Timings { decode, preprocess, inference, total, .. } = timings_ms;
        let mut out = stdout().lock();
        writeln!(out, "{file}  ({}, {total:.1} ms)", model.name)?;
        for class in &answer.top {
            let bar = "█".repeat((class.probability * 20.0).round() as usize);
            writeln!(out, "  {:>6.2} %  {bar:<20}  {}", class.probability * 100.0, class.label)?;
        }
        writeln!(
            out,
            "  decode {decode:.1} ms, preprocess {preprocess:.1} ms, inference {inference:.1} ms\n"
        )?;
    }
    Ok(code)
}

/// Runs every variant on one photo.
pub(crate) fn compare(config: &Config, photo: &Path, runs: u32, json: bool) -> Result<()> {
    let set = daemon::model_set(config)?;
    let measured =
        measure_all(set.names(), config, Some(photo.to_owned()), runs, false, |_| Ok(()))?;
    let baseline = measured[0].clone();
    let first = |m: &Measurement| m.answer.as_ref().map(|answer| answer.top[0].class);
    let mut columns = Vec::new();
    for measurement in &measured {
        let variant = set.variant(&measurement.variant)?;
        let answer = measurement.answer.as_ref().context("a photo gives an answer")?;
        let cost = Cost {
            median_ms: measurement.median_ms,
            load_ms: measurement.load_ms,
            bytes: variant.bytes,
            rss_mb: measurement.rss_mb,
            agrees: first(measurement) == first(&baseline),
            speedup: (100.0 * baseline.median_ms / measurement.median_ms).round() / 100.0,
            threads: measurement.threads,
        };
        if json {
            print_json(&Line {
                file: photo.display().to_string(),
                variant: &variant.name,
                top: &answer.top,
                timings_ms: answer.timings_ms,
                cost: Some(cost),
            })?;
            continue;
        }
        let mut column = vec![
            variant.name.clone(),
            format!("{} x {}", variant.side(), variant.side()),
            format!("{:.1} ms", cost.median_ms),
            format!("{:.2} x", cost.speedup),
            format!("{:.0} ms", cost.load_ms),
            format!("{:.1} MB", variant.bytes as f64 / 1e6),
            format!("{} MiB", cost.rss_mb),
            if cost.agrees { "yes" } else { "no" }.to_owned(),
            String::new(),
        ];
        column.extend(answer.top.iter().map(|class| {
            let label = class.label.split(',').next().unwrap_or_default();
            format!("{:.1} % {label}", class.probability * 100.0)
        }));
        columns.push(column);
    }
    if json {
        return Ok(());
    }
    let names = ["", "input", "latency", "speed-up", "load", "files", "memory", "agrees", ""];
    let mut head: Vec<String> = names.map(str::to_owned).into();
    head.extend((1..=vggd::event::TOP).map(|rank| format!("top {rank}")));
    columns.insert(0, head);
    println!("{}: {} threads, median of {runs} runs", photo.display(), baseline.threads);
    let rows = (0..columns[0].len()).map(|row| {
        let cell = |column: &Vec<String>| column.get(row).cloned().unwrap_or_default();
        columns.iter().map(cell).collect()
    });
    print_table(&rows.collect::<Vec<Vec<String>>>(), &[]);
    Ok(())
}

/// Writes a file whole.
fn write(path: &Path, content: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<()> {
    let mut bytes = Vec::new();
    content(&mut bytes).map_err(anyhow::Error::msg)?;
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Looks at everything that the configuration names, the broker and what the graphs mean excepted.
pub(crate) fn check(config: &Config) -> Result<()> {
    let set = daemon::model_set(config)?;
    daemon::configured_variant(config, &set)?;
    let chooser = daemon::configured_chooser(config, &set)?;
    progress("comparing checksums");
    let verified = set.verify();
    progress("");
    let path = config.model.set.display();
    verified.map_err(|error| config.wrong("model.set", path, error))?;
    let source = &config.source;
    let path = source.directory.display();
    Directory::open(source, &config.outbox.ledger())
        .map_err(|error| config.wrong("source.directory", &path, error))?;
    config.mqtt_login()?;
    println!("ok: {} of {}, photos from {path}", chooser.word(), config.model.set.display());
    println!("    to {}:{}, topic {}", config.mqtt.host, config.mqtt.port, config.mqtt.topic());
    Ok(())
}

/// Measures in this process and prints the result as JSON.
pub(crate) fn measure(job: &Job) -> Result<()> {
    print_json(&job.run()?)
}

fn measure_all(
    names: Vec<String>,
    config: &Config,
    photo: Option<PathBuf>,
    runs: u32,
    each: bool,
    mut done: impl FnMut(&Measurement) -> Result<()>,
) -> Result<Vec<Measurement>> {
    let mut measured = Vec::new();
    for (index, variant) in names.iter().enumerate() {
        progress(&format!("{variant} ({} of {})", index + 1, names.len()));
        let (config, variant, photo) = (config.clone(), variant.clone(), photo.clone());
        let measurement = Job { config, variant, runs, photo, each }.spawn();
        progress("");
        let measurement = measurement?;
        done(&measurement)?;
        measured.push(measurement);
    }
    Ok(measured)
}

/// Replaces the progress line, on a terminal only.
fn progress(what: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    Ok(writeln!(out)?)
}

/// Prints rows in aligned columns; those in `right` are aligned to the right.
pub(crate) fn print_table(rows: &[Vec<String>], right: &[usize]) {
    let length = |cell: &String| cell.chars().count();
    let width = |column: usize| rows.iter().map(|row| length(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - length(cell));
            match right.contains(&column) {
                true => line.extend(["  ", &padding, cell]),
                false => line.extend(["  ", cell, &padding]),
            }
        }
        println!("{}", line.trim_end());
    }
}
