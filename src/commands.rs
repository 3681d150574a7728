//! The commands that run once, and what they print. With `--json`: JSON lines alone on stdout.

mod bench;
mod compare;
mod progress;
mod simulate;
mod table;

use std::fs;
use std::io::{Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use vggd::config::{self, Config, SourceKind};
use vggd::daemon;
use vggd::event::{Class, Timings};
use vggd::manifest::{ModelSet, SetError};
use vggd::model::{Engine, Model};
use vggd::pipeline::Pipeline;
use vggd::profile::Profiles;
use vggd::publish::connection;
use vggd::source::Picture;
use vggd::web;

pub(crate) use bench::{BenchFiles, bench};
pub(crate) use compare::compare;
pub(crate) use simulate::simulate;
pub(crate) use table::print_table;

use progress::Progress;
use table::bar;

/// Characters of the longest bar.
const BAR: usize = 10;

/// Arguments that go together with no sense, or name what there is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misused(pub(crate) String);

/// What `classify --json` says of a photo.
#[derive(Serialize)]
struct Classified<'a> {
    file: String,
    variant: &'a str,
    top: &'a [Class],
    timings_ms: Timings,
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
    let mut progress = Progress::new();
    progress.tell(&format!("loading {}", variant.name), 0.0);
    let model = Model::load(&set, variant, &Engine::configured(&config.model)?)?;
    let pipeline = Pipeline::new(&config.source);
    let mut code = ExitCode::SUCCESS;
    for (index, path) in photos.iter().enumerate() {
        let file = path.display().to_string();
        let done = index as f64 / photos.len() as f64;
        progress.tell(&format!("photo {} of {}", index + 1, photos.len()), done);
        let photo = match pipeline.decode(&mut Picture::File(path.clone())) {
            Ok(photo) => photo,
            Err(error) => {
                progress.clear();
                eprintln!("vggd: {file}: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let (answer, _) = pipeline.classify(&photo, |_| &model)?;
        progress.clear();
        let timings_ms = answer.timings(Duration::ZERO);
        if json {
            let variant = model.name.as_str();
            print_json(&Classified { file, variant, top: &answer.top, timings_ms })?;
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

/// A photo for processes that will classify it; here it is seen to that they can.
fn readable(config: &Config, path: &Path) -> Result<Picture> {
    let picture = Picture::File(path.to_owned());
    let decoded = Pipeline::new(&config.source).decode(&mut picture.clone());
    decoded.with_context(|| path.display().to_string())?;
    Ok(picture)
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

/// What `check --json` says when all is well.
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
    let engine = Engine::configured(&config.model)?;
    let profiles = Profiles::open(&config.model.profile, &engine);
    daemon::configured_lineup(config, set.clone(), &engine, &profiles)?;
    verify(&set).map_err(|error| config.wrong("model.set", config.model.set.display(), error))?;
    daemon::configured_source(config)?;
    connection::check(config)?;
    let stored_token = web::stored_token(config);
    if stored_token.is_none() {
        web::check(config)?;
    }
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
    if let Some(path) = stored_token {
        println!("    the service will ask for the token in {}", path.display());
    }
    Ok(())
}

/// What `check --json` says when something is wrong.
#[derive(Serialize)]
struct Faulty {
    ok: bool,
    error: String,
}

/// Says on stdout too what is wrong.
pub(crate) fn faulty(error: &anyhow::Error) -> Result<()> {
    print_json(&Faulty { ok: false, error: format!("{error:#}") })
}

/// The default configuration, with its explanations unless as JSON.
pub(crate) fn defaults(json: bool) -> Result<()> {
    if json {
        return print_json(&config::defaults());
    }
    stdout().write_all(config::DEFAULT.as_bytes())?;
    Ok(())
}

/// Compares all checksums of a set.
fn verify(set: &ModelSet) -> Result<(), SetError> {
    let all: u64 = set.manifest.files.iter().map(|file| file.bytes).sum();
    let (mut progress, mut done) = (Progress::new(), 0);
    set.verify_telling(|file, read| {
        done += read;
        progress.tell(&format!("checksum of {file}"), done as f64 / all as f64);
    })
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    Ok(writeln!(out)?)
}
