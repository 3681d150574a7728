//! The daemon: threads, READY, signals, reload, ordered stop. It puts the parts together and
//! decides nothing about frames.
//!
//! Three strands: `capture` finds photos, `classify` turns them into reports, and the main thread
//! publishes, reloads and stops. A full channel holds the strand before it back, down to the folder
//! in which photos wait.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch as flag};

use crate::config::{Config, ConfigError, LIVE};
use crate::event::{self, Failure, Prediction};
use crate::manifest::{ModelSet, Variant};
use crate::model::{Engine, Model, ModelError};
use crate::pipeline::{ClassifyError, Pipeline};
use crate::publish::{Publisher, Report};
use crate::source::Frame;
use crate::source::directory::Directory;
use crate::watch::{self, Change, Watch};

/// Reports that may wait for the publisher.
const REPORTS: usize = 4;

/// How long after a change of the file it is read, so that a burst of changes is one.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// What `vggd run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// The model set in place of the configured one.
    pub models: Option<PathBuf>,
}

impl Options {
    /// The configuration as it is now.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(models) = &self.models {
            config.override_set(models);
        }
        Ok(config)
    }
}

/// The configured model set.
///
/// # Errors
/// [`ConfigError`] that names the key.
pub fn model_set(config: &Config) -> Result<ModelSet, ConfigError> {
    let path = config.model.set.display();
    ModelSet::open(&config.model.set).map_err(|error| config.wrong("model.set", path, error))
}

/// The configured variant of `set`.
///
/// # Errors
/// [`ConfigError`] that names the key and the variants there are.
pub fn configured_variant<'a>(
    config: &Config,
    set: &'a ModelSet,
) -> Result<&'a Variant, ConfigError> {
    let name = &config.model.variant;
    set.variant(name).map_err(|error| config.wrong("model.variant", name, error))
}

/// Runs until a signal asks to stop, or `stop` is done.
///
/// # Errors
/// [`ConfigError`] for what a person must change; anything else that keeps it from starting.
pub fn run(options: &Options, stop: impl Future<Output = ()>) -> Result<()> {
    let started = Instant::now();
    let config = options.load()?;
    crate::logging::start(config.log.level.as_str());
    let set = model_set(&config)?;
    let directory =
        Directory::open(&config.source.directory, config.source.afterwards, config.source.settle());
    let path = config.source.directory.display();
    let directory = directory.map_err(|error| config.wrong("source.directory", path, error))?;
    config.mqtt_login()?;

    let engine = Engine::configured(&config.model)?;
    let variant = configured_variant(&config, &set)?;
    let model = Model::load(&set, variant, &engine).map_err(|error| match error {
        ModelError::Set(error) => {
            anyhow!(config.wrong("model.set", set.directory.display(), error))
        }
        error => anyhow!(error),
    })?;
    tracing::info!(
        variant = model.name,
        threads = engine.threads(),
        kernels = engine.kernels(),
        load_ms = started.elapsed().as_millis() as u64,
        "model loaded"
    );
    let daemon = Daemon {
        options: options.clone(),
        pipeline: Pipeline::new(&set, &config.source),
        set,
        engine,
        slot: Arc::new(Mutex::new(Arc::new(model))),
        directory: Arc::new(directory),
        config,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(daemon.run(stop));
    // A model that is still being loaded, or a name that is still being looked up, does not count.
    runtime.shutdown_background();
    ended
}

/// The model that classifies the next frame.
type Slot = Arc<Mutex<Arc<Model>>>;

struct Daemon {
    options: Options,
    config: Config,
    set: ModelSet,
    engine: Engine,
    pipeline: Pipeline,
    slot: Slot,
    directory: Arc<Directory>,
}

impl Daemon {
    async fn run(self, asked: impl Future<Output = ()>) -> Result<()> {
        let mut asked = pin!(asked);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (triggers, triggered) = mpsc::channel(1);
        let _watch = self.options.config.as_deref().map(|file| watch_file(file, &triggers));
        // What changed while the model was loaded.
        triggers.try_send(()).ok();

        let (stop, stopped) = flag::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let (reports, received) = mpsc::channel(REPORTS);
        let publisher = Publisher::new(&self.config, self.directory.clone(), received, stopped);
        let publisher = tokio::spawn(publisher.run());

        let (handoff, frames) = sync_channel(1);
        let directory = self.directory.clone();
        let (capture, mut capture_ended) = spawn("capture", move || {
            directory.run(&handoff);
            Ok(())
        })?;
        let classify = Classify {
            pipeline: self.pipeline.clone(),
            slot: self.slot.clone(),
            directory: self.directory.clone(),
            budget: self.config.model.budget(),
            stopping: stopping.clone(),
        };
        let sender = reports.clone();
        let (classify, mut classify_ended) =
            spawn("classify", move || classify.run(&frames, &sender))?;

        let directory = self.directory.clone();
        let reload = tokio::spawn(self.reload(triggered, reports));
        sd_notify::notify(&[NotifyState::Ready]).ok();
        tracing::info!("ready");

        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = &mut asked => break,
                _ = &mut capture_ended => break,
                _ = &mut classify_ended => break,
                _ = hangup.recv() => drop(triggers.try_send(())),
            }
        }
        tracing::info!("stopping");
        sd_notify::notify(&[NotifyState::Stopping]).ok();
        stopping.store(true, Ordering::Relaxed);
        directory.stop();
        stop.send(true).ok();
        // The last senders of reports go with the reload and the classifying thread; the publisher
        // then ends by itself, and without it that thread cannot be held up.
        reload.abort();
        publisher.await.context("publishing failed")?;
        for thread in [capture, classify] {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    }

    /// Takes over what changed in the configuration, each time it is told to look.
    async fn reload(mut self, mut triggered: mpsc::Receiver<()>, reports: mpsc::Sender<Report>) {
        while triggered.recv().await.is_some() {
            tokio::time::sleep(DEBOUNCE).await;
            triggered.try_recv().ok();
            let (kind, error) = match self.take_over().await {
                Ok(()) => continue,
                Err(Refused::Configuration(error)) => ("configuration", anyhow!(error)),
                Err(Refused::Model(error)) => ("model", error),
            };
            let message = format!("{error:#}");
            tracing::error!(error = message, "change refused, going on as before");
            // Without a broker the channel is full and the log has to do.
            reports.try_send(Report::Notice(failure(kind, None, message))).ok();
        }
    }

    async fn take_over(&mut self) -> Result<(), Refused> {
        let new = self.options.load().map_err(Refused::Configuration)?;
        let changed = new.differences(&self.config);
        let later: Vec<_> = changed.iter().filter(|key| !LIVE.contains(&key.as_str())).collect();
        if !later.is_empty() {
            tracing::warn!(keys = ?later, "changed keys take effect at the next start");
        }
        let name = new.model.variant.clone();
        if name == self.config.model.variant {
            tracing::debug!("configuration read again, same variant");
            return Ok(());
        }
        let variant = configured_variant(&new, &self.set).map_err(Refused::Configuration)?.clone();
        let (set, engine) = (self.set.clone(), self.engine.clone());
        let load = move || Model::load(&set, &variant, &engine);
        let started = Instant::now();
        let model = tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Refused::Model(error.into()))?
            .map_err(|error| Refused::Model(error.into()))?;
        let before = std::mem::replace(&mut *self.slot.lock().unwrap(), Arc::new(model));
        tracing::info!(
            variant = name,
            before = before.name,
            load_ms = started.elapsed().as_millis() as u64,
            "variant switched"
        );
        self.config.model.variant = name;
        Ok(())
    }
}

enum Refused {
    Configuration(ConfigError),
    Model(anyhow::Error),
}

/// What the classifying thread needs.
struct Classify {
    pipeline: Pipeline,
    slot: Slot,
    directory: Arc<Directory>,
    budget: Option<Duration>,
    stopping: Arc<AtomicBool>,
}

impl Classify {
    /// Classifies frame after frame. A photo that cannot be classified is put aside; a model that
    /// cannot classify ends it.
    fn run(&self, frames: &Receiver<Frame>, reports: &mpsc::Sender<Report>) -> Result<()> {
        let mut sequence = 0;
        for frame in frames {
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
            let wait = frame.found_at.elapsed();
            let model = self.slot.lock().unwrap().clone();
            let report = match self.pipeline.classify(&model, &frame.path) {
                Ok(answer) => {
                    sequence += 1;
                    let prediction = Prediction {
                        schema: event::SCHEMA,
                        id: frame.id.clone(),
                        sequence,
                        source: "directory",
                        file: frame.name.clone(),
                        captured_at: event::timestamp(frame.captured_at),
                        variant: model.name.clone(),
                        timings_ms: answer.timings(wait),
                        budget_ms: self.budget.map(event::milliseconds),
                        in_time: self.budget.map(|budget| answer.age() <= budget),
                        replayed: false,
                        top: answer.top,
                    };
                    tracing::debug!(
                        file = frame.name,
                        variant = model.name,
                        class = prediction.top[0].label,
                        probability = prediction.top[0].probability,
                        total_ms = prediction.timings_ms.total,
                        "classified"
                    );
                    Report::Predicted(frame, prediction)
                }
                Err(ClassifyError::Gone) => {
                    tracing::debug!(file = frame.name, "photo was taken away");
                    self.directory.finish(&frame).ok();
                    continue;
                }
                Err(ClassifyError::Model(error)) => {
                    tracing::error!(%error, "the model failed, the photo stays");
                    let failure = failure("model", None, error.to_string());
                    reports.blocking_send(Report::Notice(failure)).ok();
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::warn!(file = frame.name, %error, "photo rejected");
                    let failure = failure("photo", Some(frame.name.clone()), error.to_string());
                    Report::Rejected(frame, failure)
                }
            };
            if reports.blocking_send(report).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The most characters of an error that are published.
const LONGEST_MESSAGE: usize = 2000;

fn failure(kind: &'static str, file: Option<String>, message: String) -> Failure {
    let message = message.chars().take(LONGEST_MESSAGE).collect();
    let at = event::timestamp(SystemTime::now());
    Failure { schema: event::SCHEMA, at, kind, file, message }
}

type Thread = thread::JoinHandle<Result<()>>;

/// Starts a thread, and tells when it ends, in whichever way.
fn spawn(
    name: &str,
    run: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<(Thread, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel::<()>();
    let run = move || {
        let _alive = alive;
        run()
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
    Ok((thread.with_context(|| format!("cannot start thread '{name}'"))?, ended))
}

/// Triggers when `file` was written or replaced. Its folder is watched, because editors rename.
fn watch_file(file: &Path, triggers: &mpsc::Sender<()>) -> Option<Watch> {
    let triggers = triggers.clone();
    let path = file.parent().unwrap_or(Path::new("")).join(".");
    let name = file.file_name()?.to_owned();
    let hear = move |change| match change {
        Change::Complete(changed) if changed != name => {}
        Change::Complete(_) | Change::Missed(_) => drop(triggers.try_send(())),
        Change::Begun(_) | Change::Gone(_) => {}
    };
    let folder = path.canonicalize().map_err(|error| error.to_string());
    folder
        .and_then(|folder| watch::folder(&folder, hear))
        .inspect_err(|error| {
            tracing::warn!(error, "cannot watch the configuration, SIGHUP still reloads it");
        })
        .ok()
}
