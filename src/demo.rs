//! `vggd demo`: photos go through the daemon, and what it publishes is printed.
//!
//! Each variant of the set gets every photo, one after the other, and the daemon changes variants
//! while it runs. What it takes for that is on the stage; the model set and the photos are only
//! read.

mod broker;
mod page;
mod stage;
mod subscriber;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use vggd::event::{Class, Timings};
use vggd::manifest::{self, ModelSet, Variant};

use page::Page;
use stage::Stage;
use subscriber::Message;

/// Where the sample set lies in a checkout, and where a package puts it.
const CHECKOUT: &str = "models/sample";
const PACKAGED: &str = "/usr/share/vggd/sample";

/// The folder in a set that its photos are in, if it brings some.
const PHOTOS: &str = "photos";

/// What the name of a photo ends in.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// More photos than these are left out.
const MOST_PHOTOS: usize = 16;

/// How long a variant has to load before it is asked, and the longest pause until it is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// What `vggd demo` was told.
pub(crate) struct Options {
    /// A model set in place of the sample.
    pub(crate) models: Option<PathBuf>,
    /// A folder of photos in place of those that come with the set.
    pub(crate) photos: Option<PathBuf>,
    /// Print the messages as they are.
    pub(crate) json: bool,
}

/// What the daemon published on `prediction`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Answer {
    file: String,
    variant: String,
    top: Vec<Class>,
    timings_ms: Timings,
}

/// What the daemon published on `error`.
#[derive(Debug, Deserialize)]
struct Failure {
    kind: String,
    file: Option<String>,
    message: String,
}

/// Shows every variant at work, until all have answered for all photos or a signal asks to stop.
///
/// # Errors
/// When set or photos are missing, the environment changes what the demo configures, or the daemon
/// fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let models = match &options.models {
        Some(models) => models.clone(),
        None => find_set(&places())?,
    };
    let set = ModelSet::open(&models).context("cannot use the model set")?;
    let mut photos = match &options.photos {
        Some(folder) => list_photos(folder)?,
        None => find_photos(&models, &places())?,
    };
    let found = photos.len();
    photos.truncate(MOST_PHOTOS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut stage = Stage::open(&set).await?;
        let page = Page::new(options.json, &set, &photos);
        page.opening(photos.len(), found, stage.port())?;
        let shown = tokio::select! {
            // A signal ends the daemon too, which is no failure then.
            biased;
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
            shown = show(&mut stage, &set, &photos, &page) => shown,
        };
        let closed = stage.close().await;
        shown.and(closed)
    })
}

/// Every photo by every variant, in the order of the manifest: the baseline comes first.
async fn show(
    stage: &mut Stage,
    set: &ModelSet,
    photos: &[PathBuf],
    page: &Page<'_>,
) -> Result<()> {
    stage.online().await?;
    let mut answers = Vec::new();
    for (index, variant) in set.manifest.variants.iter().enumerate() {
        page.heading(variant)?;
        let mut pause = PAUSE.0;
        if index > 0 {
            stage.configure(&variant.name)?;
            sleep(pause).await;
        }
        let mut row = Vec::new();
        for photo in photos {
            row.push(loop {
                stage.put(photo)?;
                match hear(stage, photo, variant, page).await? {
                    Some(answer) if answer.variant != variant.name => {
                        pause = (pause * 2).min(PAUSE.1);
                        sleep(pause).await;
                    }
                    answer => break answer,
                }
            });
        }
        if row.iter().flatten().next().is_none() {
            bail!("no photo could be classified");
        }
        answers.push(row);
    }
    Ok(page.closing(&answers)?)
}

/// Prints messages as they arrive, up to the one about `photo`: its answer, or nothing when it
/// cannot be classified.
async fn hear(
    stage: &mut Stage,
    photo: &Path,
    configured: &Variant,
    page: &Page<'_>,
) -> Result<Option<Answer>> {
    let file = name(photo);
    loop {
        let message = stage.next().await.with_context(|| format!("no answer for {file}"))?;
        match message.name.as_str() {
            "prediction" => {
                let answer: Answer = parse(&message)?;
                page.answer(&message, &answer, configured)?;
                if answer.file == file {
                    return Ok(Some(answer));
                }
            }
            "error" => {
                let failure: Failure = parse(&message)?;
                page.failure(&message, &failure)?;
                if failure.file.as_ref() == Some(&file) {
                    return Ok(None);
                }
                if failure.kind != "photo" {
                    bail!("the daemon says: {}", failure.message);
                }
            }
            _ => {}
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(message: &'a Message) -> Result<T> {
    let text = || format!("on {}: {}", message.name, String::from_utf8_lossy(&message.payload));
    serde_json::from_slice(&message.payload).with_context(text)
}

/// A photo's name as the daemon tells it.
fn name(photo: &Path) -> String {
    photo.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the sample set may be.
fn places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(CHECKOUT)];
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let elsewhere = fs::canonicalize(".").is_ok_and(|here| here != checkout);
    if elsewhere && checkout.exists() {
        places.push(checkout.join(CHECKOUT));
    }
    places.push(PathBuf::from(PACKAGED));
    places
}

/// The first of `places` that is a model set.
fn find_set(places: &[PathBuf]) -> Result<PathBuf> {
    let mut found = places.iter().filter(|place| place.join(manifest::FILE_NAME).is_file());
    found.next().cloned().with_context(|| {
        let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        let looked = looked.join(" or ");
        format!(
            "no model set in {looked}: run the demo in vggd's source folder, or use --models DIR"
        )
    })
}

/// The photos that come with the set at `models`, else those of the sample in one of `places`.
fn find_photos(models: &Path, places: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let folders = std::iter::once(models).chain(places.iter().map(PathBuf::as_path));
    let folders = folders.map(|folder| folder.join(PHOTOS));
    let mut found = folders.filter_map(|folder| list_photos(&folder).ok());
    found.next().with_context(|| {
        format!("no photos in {}: use --photos DIR", models.join(PHOTOS).display())
    })
}

/// The photos in `folder` by name.
fn list_photos(folder: &Path) -> Result<Vec<PathBuf>> {
    let wanted = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let ending = ending.map(str::to_ascii_lowercase).unwrap_or_default();
        ENDINGS.contains(&ending.as_str()) && !name(path).starts_with('.') && path.is_file()
    };
    let entries: io::Result<Vec<_>> =
        fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let entries = entries.with_context(|| format!("photos in {}", folder.display()))?;
    let mut photos: Vec<_> = entries.into_iter().filter(wanted).collect();
    if photos.is_empty() {
        bail!("photos in {}: there is no JPEG, PNG or WebP", folder.display());
    }
    photos.sort();
    Ok(photos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_is_a_set_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let places = ["a", "b", "c"].map(|place| folder.path().join(place));
        let error = find_set(&places).unwrap_err().to_string();
        assert!(places.iter().all(|place| error.contains(place.to_str().unwrap())), "{error}");
        assert!(error.contains("--models"), "{error}");
        for place in &places[1..] {
            fs::create_dir(place).unwrap();
            fs::write(place.join(manifest::FILE_NAME), "").unwrap();
        }
        assert_eq!(find_set(&places).unwrap(), places[1]);
    }

    #[test]
    fn photos_come_from_the_set_or_the_sample_and_are_told_by_their_ending() {
        let folder = tempfile::tempdir().unwrap();
        let [set, sample] = ["set", "sample"].map(|place| folder.path().join(place));
        let places = [sample.clone()];
        let error = find_photos(&set, &places).unwrap_err().to_string();
        assert!(error.contains("set/photos") && error.contains("--photos"), "{error}");

        let fill = |place: &Path, names: &[&str]| {
            fs::create_dir_all(place.join(PHOTOS)).unwrap();
            names.iter().for_each(|name| fs::write(place.join(PHOTOS).join(name), "").unwrap());
        };
        fill(&sample, &["b.JPG", "a.webp", "README.md", ".c.png", "noending"]);
        let names = |photos: Vec<PathBuf>| photos.iter().map(|path| name(path)).collect::<Vec<_>>();
        assert_eq!(names(find_photos(&set, &places).unwrap()), ["a.webp", "b.JPG"]);
        fill(&set, &["z.jpeg"]);
        assert_eq!(names(find_photos(&set, &places).unwrap()), ["z.jpeg"]);
        let error = list_photos(&set).unwrap_err().to_string();
        assert!(error.contains("no JPEG"), "{error}");
    }
}
