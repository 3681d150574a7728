//! The daemon: threads, READY, signals, reload, ordered stop. It puts the parts together and
//! decides nothing about frames.
//!
//! Three strands: `capture` finds photos, `classify` turns them into reports, and the main thread
//! publishes, takes orders, reloads and stops. A full channel holds the strand before it back, down to
//! the folder in which photos wait. Beside them `load` gets variants into memory, and `profile` times
//! those that were not timed before.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch as flag};

use crate::config::{Config, ConfigError, LIVE, Policy, ProfileWhen};
use crate::control::{Chooser, Order, State};
use crate::event::{self, Failure, Prediction};
use crate::lineup::{self, Lineup};
use crate::manifest::{ModelSet, Variant};
use crate::measure;
use crate::model::{Engine, Model, ModelError};
use crate::pipeline::{ClassifyError, Pipeline};
use crate::profile::Profiles;
use crate::publish::{Publisher, Report};
use crate::source::directory::Directory;
use crate::source::{Handoff, Source};
use crate::stats::{self, Stats};
use crate::thermal::Thermal;
use crate::watch::{self, Change, Watch};

/// Reports that may wait for the publisher.
const REPORTS: usize = 4;

/// Orders that may wait to be carried out.
const ORDERS: usize = 16;

/// How long timing a variant may take, in microseconds.
const PROFILED_WITHIN: u32 = 300_000_000;

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

/// Who chooses the variant, as configured.
///
/// # Errors
/// [`ConfigError`] when the set lacks what choosing needs.
pub fn configured_chooser(config: &Config, set: &ModelSet) -> Result<Chooser, ConfigError> {
    match config.model.policy {
        Policy::Fixed => Ok(Chooser::Fixed(config.model.variant.clone())),
        Policy::Auto => lineup::evaluated(set)
            .map(|()| Chooser::Auto)
            .map_err(|problem| config.wrong("model.policy", "auto", problem)),
    }
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
    let chooser = configured_chooser(&config, &set)?;
    let directory = Directory::open(&config.source, &config.outbox.ledger());
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
    let chosen = State { variant: chooser, budget: config.model.budget(), paused: false };
    let (miss_rate, limit) = (config.model.miss_rate, config.model.memory_limit());
    let lineup = Lineup::new(&set, &engine, model, chosen, miss_rate, limit)?;
    let daemon = Daemon {
        options: options.clone(),
        pipeline: Pipeline::new(&set, &config.source),
        set,
        engine,
        lineup: Arc::new(lineup),
        directory: Arc::new(directory),
        config,
        stats: Arc::default(),
        profiling: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(daemon.run(stop));
    // A model that is still being loaded, or a name that is still being looked up, does not count.
    runtime.shutdown_background();
    ended
}

struct Daemon {
    options: Options,
    config: Config,
    set: ModelSet,
    engine: Engine,
    pipeline: Pipeline,
    lineup: Arc<Lineup>,
    directory: Arc<Directory>,
    stats: Arc<Mutex<Stats>>,
    /// Whether variants are being timed, or were.
    profiling: bool,
}

impl Daemon {
    async fn run(mut self, asked: impl Future<Output = ()>) -> Result<()> {
        let mut asked = pin!(asked);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (triggers, triggered) = mpsc::channel(1);
        let _watch = self.options.config.as_deref().map(|file| watch_file(file, &triggers));
        // What changed while the model was loaded.
        triggers.try_send(()).ok();

        if self.lineup.state().variant == Chooser::Auto {
            self.profile(self.config.model.profile_when)?;
        }
        let (stop, stopped) = flag::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let (reports, received) = mpsc::channel(REPORTS);
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (states, state) = flag::channel(self.lineup.state());
        let directory = self.directory.clone();
        let publisher = Publisher::new(&self.config, directory, received, state, orders, stopped);
        let publisher = tokio::spawn(publisher.run());

        let handoff = Arc::new(Handoff::default());
        let (directory, frames) = (self.directory.clone(), handoff.clone());
        let (capture, mut capture_ended) = spawn("capture", move || {
            directory.run(&frames, &|_| {});
            Ok(())
        })?;
        let classify = Classify {
            pipeline: self.pipeline.clone(),
            lineup: self.lineup.clone(),
            directory: self.directory.clone(),
            stats: self.stats.clone(),
            stopping: stopping.clone(),
        };
        let (sender, frames) = (reports.clone(), handoff.clone());
        let (classify, mut classify_ended) =
            spawn("classify", move || classify.run(&frames, &sender))?;

        let lineup = self.lineup.clone();
        let (load, _) = spawn("load", move || {
            lineup.keep_loaded();
            Ok(())
        })?;

        let (directory, lineup) = (self.directory.clone(), self.lineup.clone());
        let reload = tokio::spawn(self.obey(triggered, ordered, states, reports));
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
        handoff.close();
        lineup.pause(false);
        stop.send(true).ok();
        // The last senders of reports go with the reload and the classifying thread; the publisher
        // then ends by itself, and without it that thread cannot be held up.
        reload.abort();
        publisher.await.context("publishing failed")?;
        for thread in [capture, classify] {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        lineup.stop();
        load.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok(())
    }

    /// Carries out orders, and takes over what changed in the configuration each time it is told to
    /// look. Tells in `states` what holds afterwards.
    async fn obey(
        mut self,
        mut triggered: mpsc::Receiver<()>,
        mut orders: mpsc::Receiver<(String, Vec<u8>)>,
        states: flag::Sender<State>,
        reports: mpsc::Sender<Report>,
    ) {
        let period = self.config.mqtt.stats();
        let mut next = tokio::time::Instant::now() + period.unwrap_or_default();
        loop {
            let result = tokio::select! {
                () = tokio::time::sleep_until(next), if period.is_some() => {
                    next += period.unwrap_or_default();
                    // Without a broker there is nobody to tell.
                    reports.try_send(Report::Stats(Box::new(self.stats()))).ok();
                    continue;
                }
                trigger = triggered.recv() => {
                    if trigger.is_none() {
                        return;
                    }
                    tokio::time::sleep(DEBOUNCE).await;
                    triggered.try_recv().ok();
                    self.take_over().await
                }
                Some((name, payload)) = orders.recv() => match Order::parse(&name, &payload) {
                    Ok(order) => self.carry_out(order).await,
                    Err(problem) => Err(Refused::Order(problem)),
                },
            };
            let state = self.lineup.state();
            states.send_if_modified(|before| {
                let differs = *before != state;
                *before = state;
                differs
            });
            let (kind, error) = match result {
                Ok(()) => continue,
                Err(Refused::Configuration(error)) => ("configuration", anyhow!(error)),
                Err(Refused::Order(problem)) => ("order", anyhow!(problem)),
                Err(Refused::Model(error)) => ("model", error),
            };
            let message = format!("{error:#}");
            tracing::error!(error = message, "change refused, going on as before");
            // Without a broker the channel is full and the log has to do.
            reports.try_send(Report::Notice(failure(kind, None, message))).ok();
        }
    }

    /// What happened since the last time, and how the machine fares.
    fn stats(&self) -> stats::Message {
        let thermal = Thermal::now();
        if let Some(throttled) = thermal.throttled.filter(|throttled| throttled.any()) {
            tracing::warn!(?throttled, "the board is held back");
        }
        stats::Message {
            at: event::timestamp(SystemTime::now()),
            summary: self.stats.lock().unwrap_or_else(PoisonError::into_inner).take(),
            slowdown: self.lineup.slowdown(),
            rss_mb: measure::memory("VmRSS:").ok(),
            thermal,
        }
    }

    async fn carry_out(&mut self, order: Order) -> Result<(), Refused> {
        tracing::info!(?order, "ordered");
        match order {
            Order::Budget(budget) => self.lineup.set_budget(budget),
            Order::Pause(paused) => self.lineup.pause(paused),
            Order::Variant(Chooser::Auto) => {
                self.lineup
                    .choose_automatically()
                    .map_err(|problem| Refused::Order(format!("variant/set: auto {problem}")))?;
                self.profile(ProfileWhen::Background).map_err(Refused::Model)?;
            }
            Order::Variant(Chooser::Fixed(name)) => {
                let known = self.set.position(&name);
                known.map_err(|error| Refused::Order(format!("variant/set: {error}")))?;
                self.fix(name).await?;
            }
        }
        Ok(())
    }

    /// Runs the variant `name` from now on.
    async fn fix(&self, name: String) -> Result<(), Refused> {
        let lineup = self.lineup.clone();
        let fix = move || lineup.fix(&name);
        let fixed = tokio::task::spawn_blocking(fix).await;
        fixed
            .map_err(anyhow::Error::from)
            .and_then(|fixed| fixed.map_err(anyhow::Error::from))
            .map_err(Refused::Model)
    }

    /// Sees to it that what each variant costs becomes known, once.
    fn profile(&mut self, when: ProfileWhen) -> Result<()> {
        if std::mem::replace(&mut self.profiling, true) {
            return Ok(());
        }
        let mut profiles = Profiles::open(&self.config.model.profile, &self.engine);
        for (index, variant) in self.set.manifest.variants.iter().enumerate() {
            if let Some(cost) = profiles.of(&self.set, variant) {
                self.lineup.learn(index, cost);
            }
        }
        let untimed = self.lineup.untimed();
        let (config, set, lineup) = (self.config.clone(), self.set.clone(), self.lineup.clone());
        let mut time = move |index: usize| {
            let variant = &set.manifest.variants[index];
            match profiles.measure(&config, &set, variant) {
                Ok(cost) => lineup.learn(index, cost),
                Err(error) => {
                    let variant = &variant.name;
                    tracing::error!(variant, error = format!("{error:#}"), "cannot be timed");
                }
            }
        };
        match when {
            ProfileWhen::Start => {
                for index in untimed {
                    sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(PROFILED_WITHIN)]).ok();
                    time(index);
                }
            }
            ProfileWhen::Background => drop(spawn("profile", move || {
                untimed.into_iter().for_each(time);
                Ok(())
            })?),
        }
        Ok(())
    }

    async fn take_over(&mut self) -> Result<(), Refused> {
        let new = self.options.load().map_err(Refused::Configuration)?;
        let changed = new.differences(&self.config);
        let later: Vec<_> = changed.iter().filter(|key| !LIVE.contains(&key.as_str())).collect();
        if !later.is_empty() {
            tracing::warn!(keys = ?later, "changed keys take effect at the next start");
        }
        configured_variant(&new, &self.set).map_err(Refused::Configuration)?;
        let chooser = configured_chooser(&new, &self.set).map_err(Refused::Configuration)?;
        let is_new = |key: &str| changed.iter().any(|other| other == key);
        if is_new("model.budget_ms") {
            self.lineup.set_budget(new.model.budget());
        }
        if is_new("model.miss_rate") {
            self.lineup.set_miss_rate(new.model.miss_rate);
        }
        if is_new("model.policy") || is_new("model.variant") {
            match chooser {
                Chooser::Auto => {
                    self.lineup.choose_automatically().map_err(|problem| {
                        Refused::Configuration(new.wrong("model.policy", "auto", problem))
                    })?;
                    self.profile(ProfileWhen::Background).map_err(Refused::Model)?;
                }
                Chooser::Fixed(name) => self.fix(name).await?,
            }
        }
        if LIVE.iter().any(|key| is_new(key)) {
            tracing::info!(keys = ?changed, "configuration taken over");
        }
        for key in LIVE {
            self.config.take(&new, key);
        }
        Ok(())
    }
}

enum Refused {
    Configuration(ConfigError),
    Order(String),
    Model(anyhow::Error),
}

/// What the classifying thread needs.
struct Classify {
    pipeline: Pipeline,
    lineup: Arc<Lineup>,
    directory: Arc<Directory>,
    stats: Arc<Mutex<Stats>>,
    stopping: Arc<AtomicBool>,
}

impl Classify {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Classifies frame after frame. A photo that cannot be classified is put aside; a model that
    /// cannot classify ends it.
    fn run(&self, frames: &Handoff, reports: &mpsc::Sender<Report>) -> Result<()> {
        let mut sequence = 0;
        while let Some(frame) = frames.take() {
            self.lineup.wait_while_paused();
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
            let wait = frame.found_at.elapsed();
            let name = frame.file.as_ref().map(|file| file.name.clone()).unwrap_or_default();
            let classified =
                self.pipeline.classify(&frame.picture, |spent| self.lineup.choose(spent));
            let report = match classified {
                Ok((answer, chosen)) => {
                    self.lineup.observe(&chosen, answer.after_decoding());
                    sequence += 1;
                    let (model, budget) = (&chosen.model, chosen.budget);
                    let in_time = budget.map(|budget| answer.age() <= budget);
                    self.stats().count(&model.name, answer.age(), in_time);
                    let prediction = Prediction {
                        schema: event::SCHEMA,
                        id: frame.id.clone(),
                        sequence,
                        source: "directory",
                        file: name.clone(),
                        captured_at: event::timestamp(frame.captured_at),
                        variant: model.name.clone(),
                        timings_ms: answer.timings(wait),
                        budget_ms: budget.map(event::milliseconds),
                        in_time,
                        replayed: false,
                        top: answer.top,
                    };
                    tracing::debug!(
                        file = name,
                        variant = model.name,
                        class = prediction.top[0].label,
                        probability = prediction.top[0].probability,
                        total_ms = prediction.timings_ms.total,
                        "classified"
                    );
                    Report::Predicted(frame, prediction)
                }
                Err(ClassifyError::Gone) => {
                    tracing::debug!(file = name, "photo was taken away");
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
                    self.stats().reject();
                    tracing::warn!(file = name, %error, "photo rejected");
                    let failure = failure("photo", Some(name.clone()), error.to_string());
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
