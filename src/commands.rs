//! The commands that run once, and what they print. With `--json`: JSON lines alone on stdout.

mod bench;
mod simulate;
mod table;

use std::fs;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use vggd::compare::{self, Comparing, Step};
use vggd::config::{Config, SourceKind};
use vggd::daemon;
use vggd::event::{Card, Class, Timings};
use vggd::measure::{Job, Measurement};
use vggd::model::{Engine, Model};
use vggd::pipeline::Pipeline;
use vggd::publish::connection;
use vggd::source::Picture;
use vggd::web;

pub(crate) use bench::{BenchFiles, bench};
pub(crate) use simulate::simulate;
pub(crate) use table::print_table;

use table::{bad, bar, faint, good, strong};

/// Characters of the longest bar.
const BAR: usize = 10;

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
    progress(&format!("loading {}", variant.name));
    let model = Model::load(&set, variant, &Engine::configured(&config.model)?);
    progress("");
    let model = model?;
    let pipeline = Pipeline::new(&set, &config.source);
    let mut code = ExitCode::SUCCESS;
    for path in photos {
        let file = path.display().to_string();
        let photo = match pipeline.decode(&mut Picture::File(path.clone())) {
            Ok(photo) => photo,
            Err(error) => {
                eprintln!("vggd: {file}: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let (answer, _) = pipeline.classify(&photo, |_| &model)?;
        let timings_ms = answer.timings(Duration::ZERO);
        if json {
            let variant = model.name.as_str();
            print_json(&Line { file, variant, top: &answer.top, timings_ms, cost: None })?;
            continue;
        }
        let Timings { decode, preprocess, inference, total, .. } = timings_ms;
        let mut out = anstream::stdout().lock();
        writeln!(out, "{file}  ({}, {total:.1} ms)", model.name)?;
        for class in &answer.top {
            let bar = bar(class.probability, 2 * BAR);
            let padding = " ".repeat(2 * BAR - table::width(&bar));
            let percent = class.probability * 100.0;
            writeln!(out, "  {percent:>6.2} %  {bar}{padding}  {}", class.label)?;
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
    let picture = &Picture::File(photo.to_owned());
    let may = &|_| Ok(());
    let comparing = Comparing { config, set: &set, picture, runs, background: false, may };
    let (mut cards, mut count) = (Vec::new(), 0);
    let compared = compare::compare(comparing, |step| {
        match step {
            Step::Next(name) => {
                count += 1;
                progress(&format!("{name} ({count} of {})", set.manifest.variants.len()));
            }
            Step::Card(card) => {
                progress("");
                if json {
                    print_json(&Compared { file: photo.display().to_string(), card: &card })?;
                }
                cards.push(card);
            }
            Step::LeftOut(_) => unreachable!("every variant may run"),
        }
        Ok(())
    });
    progress("");
    compared?;
    if json {
        return Ok(());
    }
    let names = ["", "input", "latency", "", "speed-up", "load", "files", "memory", "agrees", ""]
        .map(faint);
    let mut head: Vec<String> = names.into();
    head.extend((1..=vggd::event::TOP).map(|rank| faint(&format!("top {rank}"))));
    let mut columns = vec![head];
    let slowest = cards.iter().map(|card| card.median_ms).fold(0.0, f64::max);
    for card in &cards {
        let side = set.variant(&card.variant)?.side();
        let mut column = vec![
            strong(&card.variant),
            format!("{side} x {side}"),
            format!("{:.1} ms", card.median_ms),
            bar(card.median_ms / slowest, BAR),
            format!("{:.2} x", card.speedup),
            format!("{:.0} ms", card.load_ms),
            format!("{:.1} MB", card.bytes as f64 / 1e6),
            format!("{} MiB", card.rss_mb),
            if card.agrees { good("yes") } else { bad("no") },
            String::new(),
        ];
        column.extend(card.top.iter().map(|class| {
            let label = class.label.split(',').next().unwrap_or_default();
            format!("{:.1} % {label}", class.probability * 100.0)
        }));
        columns.push(column);
    }
    println!("{}: {} threads, median of {runs} runs", photo.display(), cards[0].threads);
    let rows = (0..columns[0].len()).map(|row| {
        let cell = |column: &Vec<String>| column.get(row).cloned().unwrap_or_default();
        columns.iter().map(cell).collect()
    });
    print_table(&rows.collect::<Vec<Vec<String>>>(), &[]);
    Ok(())
}

/// A variant's line with `compare --json`.
#[derive(Serialize)]
struct Compared<'a> {
    file: String,
    #[serde(flatten)]
    card: &'a Card,
}

/// The photo at `path`, or what comes in on stdin for `-`.
pub(crate) fn picture(path: PathBuf) -> Result<Picture> {
    if path.as_os_str() != "-" {
        return Ok(Picture::File(path));
    }
    let mut bytes = Vec::new();
    stdin().lock().read_to_end(&mut bytes).context("stdin")?;
    Ok(Picture::Encoded(bytes))
}

/// Writes a file whole.
fn write(path: &Path, content: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<()> {
    let mut bytes = Vec::new();
    content(&mut bytes).map_err(anyhow::Error::msg)?;
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// What `check --json` says.
#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    variant: &'a str,
    set: String,
    source: &'a str,
    broker: String,
    topic: String,
    page: Option<String>,
}

/// Looks at everything that the configuration names, the broker and what the graphs mean excepted.
pub(crate) fn check(config: &Config, json: bool) -> Result<()> {
    let set = daemon::model_set(config)?;
    daemon::configured_variant(config, &set)?;
    let chooser = daemon::configured_chooser(config, &set)?;
    daemon::check_labels(config, &set)?;
    progress("comparing checksums");
    let verified = set.verify();
    progress("");
    let path = config.model.set.display();
    verified.map_err(|error| config.wrong("model.set", path, error))?;
    daemon::configured_source(config)?;
    connection::check(config)?;
    web::check(config)?;
    let source = &config.source;
    let frames = match source.kind {
        SourceKind::Directory => format!("photos from {}", source.directory.display()),
        SourceKind::Camera => format!("frames from camera {}", source.device),
        SourceKind::Stream => format!("frames from {}", source.command),
    };
    if json {
        return print_json(&Checked {
            ok: true,
            variant: chooser.word(),
            set: config.model.set.display().to_string(),
            source: source.kind.as_str(),
            broker: format!("{}:{}", config.mqtt.host, config.mqtt.port),
            topic: config.mqtt.topic(),
            page: config.web.listen().map(|address| format!("http://{address}/")),
        });
    }
    println!("ok: {} of {}, {frames}", chooser.word(), config.model.set.display());
    println!("    to {}:{}, topic {}", config.mqtt.host, config.mqtt.port, config.mqtt.topic());
    if let Some(address) = config.web.listen() {
        println!("    the page will be at http://{address}/");
    }
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
        let (config, variant) = (config.clone(), variant.clone());
        let picture = photo.clone().map(Picture::File);
        let background = false;
        let measurement = Job { config, variant, runs, picture, each, background }.spawn();
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
