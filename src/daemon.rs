//! The daemon: threads, READY, signals, reload, ordered stop. It puts the parts together and
//! decides nothing about frames.
//!
//! Three strands: `capture` finds frames, `classify` turns them into predictions in the outbox, and the
//! main thread publishes those, takes orders, reloads and stops. Beside them `keep` brings the outbox to
//! the disk, `load` gets variants into memory, and `profile` times those that were not timed before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch as flag};

use crate::board::Board;
use crate::classify::{Classifier, Gate, Keeper, Seen};
use crate::compare::{Comparing, Step, Turn, compare};
use crate::config::{
    self, Config, ConfigError, Image, LIVE, Policy, ProfileWhen, SourceKind, Sync,
};
use crate::control::{Asked, Chooser, Order};
use crate::event::{self, Comparison, Failure};
use crate::homeassistant::{self, Known};
use crate::lineup::{self, Lineup, LineupError, Terms};
use crate::manifest::{ModelSet, Variant};
use crate::metrics::Metrics;
use crate::model::{Engine, ModelError};
use crate::outbox::Outbox;
use crate::overview::{History, Overview};
use crate::pipeline::Pipeline;
use crate::profile::{Cost, Profiles};
use crate::publish::connection;
use crate::publish::{Channels, Health, Notice, Publisher, Retained};
use crate::pulse::Pulse;
use crate::service;
#[cfg(feature = "camera")]
use crate::source::camera::Camera;
use crate::source::directory::Directory;
use crate::source::stream::Stream;
use crate::source::{Condition, Handoff, Picture, Source};
use crate::thermal::Thermal;
use crate::watch::{self, Change, Watch};
use crate::web;

/// Notices that may wait for the publisher.
const NOTICES: usize = 64;

/// How often what could not be brought to the disk is tried again.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// Inferences of each variant in a comparison.
const COMPARED: u32 = 3;

/// Orders that may wait to be carried out.
const ORDERS: usize = 16;

/// How often it is looked how hot the board is.
const THERMAL_EVERY: Duration = Duration::from_secs(10);

/// How long after a change of the file it is read, so that a burst of changes is one.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// What `vggd run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// The model set in place of the configured one.
    pub models: Option<PathBuf>,
    /// Whether to log as JSON on stdout.
    pub json: bool,
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

/// Looks whether every configured label is one of `set`.
///
/// # Errors
/// [`ConfigError`] with the one that is not, and the label that comes nearest.
pub fn check_labels(config: &Config, set: &ModelSet) -> Result<(), ConfigError> {
    let unknown = config.state.labels.iter().find(|label| !set.labels.contains(label));
    unknown.map_or(Ok(()), |label| {
        let nearest = set.labels.iter().min_by_key(|known| config::distance(label, known));
        let path = set.directory.join(&set.manifest.labels);
        let nearest = nearest.map(|nearest| format!(", did you mean '{nearest}'?"));
        let nearest = nearest.unwrap_or_default();
        let problem = format!("is not a line of {}{nearest}", path.display());
        Err(config.wrong("state.labels", label, problem))
    })
}

/// The configured lineup of `set`, with what the kept profile knows, and the variant that is to begin.
///
/// # Errors
/// [`ConfigError`] when no variant that may begin fits into memory.
pub fn configured_lineup(
    config: &Config,
    set: ModelSet,
    engine: &Engine,
    profiles: &Profiles,
) -> Result<(Lineup, String), ConfigError> {
    let terms = Terms {
        chooser: configured_chooser(config, &set)?,
        budget: config.model.budget(),
        miss_rate: config.model.miss_rate,
        memory_limit: config.model.memory_limit(),
        idle: lineup::IDLE,
    };
    let lineup = Lineup::new(set, engine, terms, |set, variant| profiles.of(set, variant));
    let name = &config.model.variant;
    let first = lineup.first(name).map_err(|error| config.wrong("model.variant", name, error))?;
    Ok((lineup, first))
}

/// The configured source of frames.
///
/// # Errors
/// [`ConfigError`] that names the key.
pub fn configured_source(config: &Config) -> Result<Arc<dyn Source>, ConfigError> {
    let source = &config.source;
    match source.kind {
        SourceKind::Directory => {
            let path = source.directory.display();
            let directory = Directory::open(source, &config.outbox.ledger());
            Ok(Arc::new(directory.map_err(|error| config.wrong("source.directory", path, error))?))
        }
        #[cfg(feature = "camera")]
        SourceKind::Camera => Ok(Arc::new(Camera::new(source))),
        #[cfg(not(feature = "camera"))]
        SourceKind::Camera => {
            let problem = "this vggd was built without cameras (cargo feature camera)";
            Err(config.wrong("source.kind", "camera", problem))
        }
        SourceKind::Stream => Ok(Arc::new(Stream::new(source))),
    }
}

/// Runs until a signal asks to stop, or `stop` is done.
///
/// # Errors
/// [`ConfigError`] for what a person must change; anything else that keeps it from starting.
pub fn run(options: &Options, stop: impl Future<Output = ()>) -> Result<()> {
    let (started, started_at) = (Instant::now(), SystemTime::now());
    let start = service::Start::begin();
    let config = options.load()?;
    crate::logging::start(config.log.level.as_str(), options.json);
    let set = model_set(&config)?;
    configured_variant(&config, &set)?;
    configured_chooser(&config, &set)?;
    check_labels(&config, &set)?;
    connection::check(&config)?;
    web::check(&config)?;
    let path = config.outbox.directory.display();
    let outbox = Outbox::open(&config.outbox);
    let outbox = Arc::new(outbox.map_err(|error| config.wrong("outbox.directory", path, error))?);
    let source = configured_source(&config)?;

    let engine = Engine::configured(&config.model)?;
    let profiles = Profiles::open(&config.model.profile, &engine);
    let (lineup, first) = configured_lineup(&config, set, &engine, &profiles)?;
    lineup.begin(&first).map_err(|error| match error {
        LineupError::Model(ModelError::Set(error)) => {
            anyhow!(config.wrong("model.set", config.model.set.display(), error))
        }
        error => anyhow!(error),
    })?;
    tracing::info!(
        variant = first,
        threads = engine.threads(),
        kernels = engine.kernels(),
        load_ms = started.elapsed().as_millis() as u64,
        "model loaded"
    );
    start.step();
    let fresh = Arc::new(Notify::new());
    let (wake, woken) = std_mpsc::sync_channel(1);
    let (tell, appended, sync) = (fresh.clone(), wake.clone(), config.outbox.sync);
    let keeper = Keeper::new(outbox.clone(), source.clone(), move || {
        tell.notify_one();
        if sync == Sync::Always {
            // If there is no room, it was told already, and has yet to look.
            appended.try_send(Wake::Appended).ok();
        }
    });
    let known = Known::open(&config.outbox.told(), homeassistant::described(&config));
    let (board, retained) = Board::new(&config, &Thermal::now(), known.former());
    let (handoff, health) = (Arc::<Handoff>::default(), Arc::<Health>::default());
    let kept = Pulse::default();
    let pulses = vec![
        ("capture", handoff.giving().clone()),
        ("classify", handoff.taking().clone()),
        ("keep", kept.clone()),
        ("publish", health.pulse().clone()),
    ];
    let overview = Overview {
        config: config.clone(),
        lineup: Arc::new(lineup),
        gate: Arc::new(Gate::new(config.source.pace())),
        handoff,
        outbox,
        health,
        stats: Arc::default(),
        board: Arc::new(board),
        turn: Turn::default(),
        started_at,
        last: flag::Sender::new(None),
        metrics: Metrics::default(),
        pulses,
        history: History::default(),
    };
    let daemon = Daemon {
        options: options.clone(),
        config,
        profiles: Arc::new(Mutex::new(profiles)),
        timing: std_mpsc::channel().0,
        source,
        keeper: Arc::new(keeper),
        fresh,
        kept,
        overview: Arc::new(overview),
    };
    let done = daemon.overview.health.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(daemon.run(retained, start, (wake, woken), stop));
    if done.done() {
        known.taken_back();
    }
    // A model that is still being loaded, or a name that is still being looked up, does not count.
    runtime.shutdown_background();
    ended
}

/// What the thread that keeps predictions is told.
enum Wake {
    /// There is one that shall be brought to the disk at once.
    Appended,
    /// There are no more.
    Stop,
}

struct Daemon {
    options: Options,
    config: Config,
    /// What variants cost on this machine.
    profiles: Arc<Mutex<Profiles>>,
    /// Asks for variants to be timed that were not.
    timing: std_mpsc::Sender<()>,
    source: Arc<dyn Source>,
    keeper: Arc<Keeper>,
    /// Told of when something is put into the outbox.
    fresh: Arc<Notify>,
    /// Stamped by the thread that keeps predictions.
    kept: Pulse,
    /// All the other parts.
    overview: Arc<Overview>,
}

impl Daemon {
    async fn run(
        mut self,
        retained: flag::Receiver<Retained>,
        start: service::Start,
        (wake, woken): (std_mpsc::SyncSender<Wake>, std_mpsc::Receiver<Wake>),
        asked: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut asked = pin!(asked);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (triggers, triggered) = mpsc::channel(1);
        let _watch = self.options.config.as_deref().map(|file| watch_file(file, &triggers));

        let overview = self.overview.clone();
        let (orders, ordered) = mpsc::channel(ORDERS);
        let page = web::serve(overview.clone(), orders.clone())?;
        self.describe();
        self.profile(&start)?;
        let (stop, stopped) = flag::channel(false);
        let (notices, noticed) = mpsc::channel(NOTICES);
        overview.board.orders(&overview.orders());
        let channels = Channels {
            outbox: overview.outbox.clone(),
            fresh: self.fresh.clone(),
            notices: noticed,
            retained,
            orders,
            stop: stopped,
            health: overview.health.clone(),
        };
        let publisher = tokio::spawn(Publisher::new(&self.config, channels).run());

        let (keep, mut keep_ended) = self.keep(woken)?;
        let (capture, mut capture_ended) = self.capture(notices.clone())?;
        let (pictures, pictured) = mpsc::channel(1);
        let (classify, mut classify_ended) = self.classify(notices.clone(), pictures)?;
        let lineup = overview.lineup.clone();
        let (load, _) = spawn("load", move || {
            lineup.keep_loaded();
            Ok(())
        })?;

        let source = self.source.clone();
        let inbox = Inbox { triggered, ordered, pictured };
        let obey = tokio::spawn(self.obey(inbox, notices));
        let page = tokio::spawn(page);
        drop(start);
        service::ready();
        tracing::info!("ready");
        let (looked_at, told) = (overview.clone(), overview.clone());
        let stuck = move |limit| looked_at.stuck(limit);
        let report = tokio::spawn(service::report(stuck, move || told.glance()));

        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = &mut asked => break,
                _ = &mut capture_ended => break,
                _ = &mut classify_ended => break,
                _ = &mut keep_ended => break,
                _ = hangup.recv() => drop(triggers.try_send(())),
            }
        }
        tracing::info!("stopping");
        report.abort();
        page.abort();
        service::stopping();
        overview.gate.stop();
        source.stop();
        overview.handoff.close();
        obey.abort();
        stop.send(true).ok();
        let joined = tokio::task::spawn_blocking(move || {
            join(classify)?;
            join(capture)?;
            wake.send(Wake::Stop).ok();
            join(keep)
        });
        let joined = joined.await?;
        // The last senders of notices went with these threads; the publisher now ends by itself.
        publisher.await.context("publishing failed")?;
        overview.lineup.stop();
        join(load)?;
        joined
    }

    /// Starts the thread that brings predictions safely to the disk, as many at once as there are by then,
    /// and then lets their photos go.
    fn keep(&self, woken: std_mpsc::Receiver<Wake>) -> Result<(Thread, oneshot::Receiver<()>)> {
        let (outbox, keeper) = (self.overview.outbox.clone(), self.keeper.clone());
        let pulse = self.kept.clone();
        let pause = match self.config.outbox.sync {
            Sync::Interval => self.config.outbox.interval(),
            Sync::Always | Sync::Never => KEEP_EVERY,
        };
        spawn("keep", move || {
            loop {
                let goes_on = match pulse.receive(&woken, pause) {
                    Ok(Wake::Appended) | Err(RecvTimeoutError::Timeout) => true,
                    Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => false,
                };
                outbox.flush();
                keeper.settle();
                if !goes_on {
                    return Ok(());
                }
            }
        })
    }

    /// Starts the thread that frames come from.
    fn capture(&self, notices: mpsc::Sender<Notice>) -> Result<(Thread, oneshot::Receiver<()>)> {
        let (source, handoff) = (self.source.clone(), self.overview.handoff.clone());
        let board = self.overview.board.clone();
        let tell = move |condition: Condition| {
            if !condition.working {
                let failure = Failure::new("source", None, condition.detail.clone());
                notices.try_send(Notice::failure(&failure)).ok();
            }
            board.condition(condition);
        };
        spawn("capture", move || {
            source.run(&handoff, &tell);
            Ok(())
        })
    }

    /// Starts the thread that classifies; it puts into `pictures` what is to be published as an image.
    fn classify(
        &self,
        notices: mpsc::Sender<Notice>,
        pictures: mpsc::Sender<Arc<Picture>>,
    ) -> Result<(Thread, oneshot::Receiver<()>)> {
        let (overview, image) = (self.overview.clone(), self.config.state.image);
        let seen = move |seen: Seen| {
            let prediction = &seen.prediction;
            let board = &overview.board;
            let changed = board.see(&prediction.top[0], &prediction.variant, seen.captured_at);
            board.budget_kept(overview.lineup.budget_kept());
            let wanted = match image {
                Image::Off => false,
                Image::Change => changed || seen.snapshot,
                Image::Demand => seen.snapshot,
            };
            if wanted {
                pictures.try_send(seen.picture.clone()).ok();
            }
            overview.see(seen);
        };
        let failed = move |failure| drop(notices.try_send(Notice::failure(&failure)));
        let overview = &self.overview;
        let classifier = Classifier {
            pipeline: Pipeline::new(&self.config.source),
            lineup: overview.lineup.clone(),
            gate: overview.gate.clone(),
            keeper: self.keeper.clone(),
            stats: overview.stats.clone(),
            source: self.config.source.kind.as_str(),
            min_change: self.config.source.min_change,
            seen: Box::new(seen),
            failed: Box::new(failed),
        };
        let handoff = overview.handoff.clone();
        spawn("classify", move || classifier.run(&handoff))
    }

    /// Carries out orders, and takes over what changed in the configuration each time it is told to
    /// look. Tells on `board` what holds afterwards.
    async fn obey(mut self, mut inbox: Inbox, notices: mpsc::Sender<Notice>) {
        let overview = self.overview.clone();
        let period = self.config.mqtt.stats();
        let mut next = tokio::time::Instant::now() + period.unwrap_or_default();
        let mut held_back = None;
        let mut warm = tokio::time::interval(THERMAL_EVERY);
        warm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (look, mut started) = (tokio::time::Instant::now() + DEBOUNCE, false);
        loop {
            let mut answer = None;
            let result = tokio::select! {
                // What changed while the model was loaded.
                () = tokio::time::sleep_until(look), if !started => {
                    started = true;
                    self.take_over().await
                }
                () = tokio::time::sleep_until(next), if period.is_some() => {
                    next += period.unwrap_or_default();
                    // Without a broker there is nobody to tell.
                    notices.try_send(Notice::json("stats", &overview.message())).ok();
                    continue;
                }
                _ = warm.tick() => {
                    let thermal = Thermal::now();
                    overview.board.thermal(&thermal);
                    let throttled = thermal.throttled.filter(|now| now.any());
                    match throttled {
                        now if now == held_back => {}
                        Some(throttled) => tracing::warn!(?throttled, "the board is held back"),
                        None => tracing::info!("the board is not held back any more"),
                    }
                    held_back = throttled;
                    // What was timed since may tell.
                    overview.board.budget_kept(overview.lineup.budget_kept());
                    continue;
                }
                Some(picture) = inbox.pictured.recv() => {
                    self.publish_image(picture, notices.clone());
                    continue;
                }
                trigger = inbox.triggered.recv() => {
                    if trigger.is_none() {
                        return;
                    }
                    tokio::time::sleep(DEBOUNCE).await;
                    inbox.triggered.try_recv().ok();
                    let _reload = service::reloading();
                    self.take_over().await
                }
                Some(asked) = inbox.ordered.recv() => {
                    let (order, tell) = asked.take();
                    answer = Some(tell);
                    match order {
                        Ok(order) => self.carry_out(order, &notices).await,
                        Err(problem) => Err(Refused::Order(problem)),
                    }
                }
            };
            overview.board.orders(&overview.orders());
            overview.board.budget_kept(overview.lineup.budget_kept());
            let (kind, error) = match result {
                Ok(()) => {
                    if let Some(tell) = answer {
                        tell(Ok(()));
                    }
                    continue;
                }
                Err(Refused::Configuration(error)) => ("configuration", anyhow!(error)),
                Err(Refused::Order(problem)) => ("order", anyhow!(problem)),
                Err(Refused::Model(error)) => ("model", error),
            };
            let message = format!("{error:#}");
            tracing::error!(error = message, "change refused, going on as before");
            if let Some(tell) = answer {
                tell(Err(message.clone()));
            }
            // Without a broker the channel is full and the log has to do.
            let failure = Failure::new(kind, None, message);
            notices.try_send(Notice::failure(&failure)).ok();
        }
    }

    /// Publishes the picture, as a JPEG that is small enough.
    fn publish_image(&self, picture: Arc<Picture>, notices: mpsc::Sender<Notice>) {
        let pipeline = Pipeline::new(&self.config.source);
        let most = self.config.state.image_bytes();
        tokio::task::spawn_blocking(move || {
            let jpeg = pipeline.to_jpeg(&picture, most)?;
            notices.try_send(Notice::new("image", jpeg)).ok()
        });
    }

    /// Runs every variant on the last frame, beside the classification and behind it.
    fn compare(&self, notices: mpsc::Sender<Notice>) -> Result<(), Refused> {
        let overview = self.overview.clone();
        let Some(Seen { picture, prediction, .. }) = overview.last.borrow().clone() else {
            return Err(Refused::Order("compare/set: no frame was classified so far".to_owned()));
        };
        let Some(turn) = overview.turn.take() else {
            return Err(Refused::Order("compare/set: a comparison is under way".to_owned()));
        };
        tokio::task::spawn_blocking(move || {
            let (mut variants, mut left_out) = (Vec::new(), Vec::new());
            let Overview { config, lineup, .. } = &*overview;
            let set = &*lineup.set();
            let may = &|index: usize| lineup.room(&set.manifest.variants[index]);
            let picture = &*picture;
            let comparing =
                Comparing { config, set, picture, runs: COMPARED, background: true, may };
            let compared = compare(comparing, |step| {
                match step {
                    Step::Next(_) | Step::Ran(_) => {}
                    Step::Card(described) => variants.push(described.card),
                    Step::LeftOut(variant) => left_out.push(variant),
                }
                Ok(())
            });
            drop(turn);
            let notice = match compared {
                Ok(()) => Notice::json(
                    "compare",
                    &Comparison {
                        schema: event::SCHEMA,
                        at: event::timestamp(SystemTime::now()),
                        id: prediction.id.clone(),
                        file: prediction.file.clone(),
                        variants,
                        left_out,
                    },
                ),
                Err(error) => {
                    let message = format!("compare/set: {error:#}");
                    tracing::error!(error = message, "comparison failed");
                    Notice::failure(&Failure::new("model", None, message))
                }
            };
            notices.try_send(notice).ok();
        });
        Ok(())
    }

    async fn carry_out(
        &mut self,
        order: Order,
        notices: &mpsc::Sender<Notice>,
    ) -> Result<(), Refused> {
        tracing::info!(?order, "ordered");
        match order {
            Order::Budget(budget) => self.overview.lineup.set_budget(budget),
            Order::Pause(paused) => self.overview.gate.pause(paused),
            Order::Snapshot => self.overview.gate.snapshot(),
            Order::Compare => self.compare(notices.clone())?,
            Order::Variant(chooser) => {
                let refused = |problem: String| Refused::Order(format!("variant/set: {problem}"));
                let worded = |error: LineupError| refused(error.to_string());
                // It may be about variants or accuracies that were not there before.
                match model_set(&self.config) {
                    Ok(set) => {
                        let adopted = self.adopt(set, &self.config, None).await;
                        adopted.map_err(|stopped| stopped.refused(worded))?;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot read the model set, going on with it as it was");
                    }
                }
                match chooser {
                    Chooser::Auto => {
                        let automatic = self.overview.lineup.choose_automatically();
                        automatic.map_err(|problem| refused(format!("auto {problem}")))?;
                        self.time();
                    }
                    Chooser::Fixed(name) => {
                        self.fix(name).await.map_err(|stopped| stopped.refused(worded))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs the variant `name` from now on.
    async fn fix(&self, name: String) -> Result<(), Stopped> {
        let lineup = self.overview.lineup.clone();
        blocking(move || lineup.fix(&name)).await
    }

    /// Goes over to `set` if that is another one than is in use, or has changed: to what `chooser` says, else
    /// to what was ordered before as far as it can be, else to what is configured.
    async fn adopt(
        &self,
        set: ModelSet,
        config: &Config,
        chooser: Option<Chooser>,
    ) -> Result<(), Stopped> {
        let lineup = self.overview.lineup.clone();
        if set == *lineup.set() {
            return Ok(());
        }
        let chooser = chooser.unwrap_or_else(|| lineup.orders().0);
        let possible = match &chooser {
            Chooser::Auto => lineup::evaluated(&set).is_ok(),
            Chooser::Fixed(name) => set.position(name).is_ok(),
        };
        check_labels(config, &set)?;
        let variant = configured_variant(config, &set)?.name.clone();
        let chooser = if possible { chooser } else { configured_chooser(config, &set)? };
        let profiles = self.profiles.clone();
        let known = move |set: &ModelSet, variant: &Variant| locked(&profiles).of(set, variant);
        blocking(move || lineup.adopt(set, chooser, &variant, known)).await?;
        self.describe();
        self.time();
        Ok(())
    }

    /// Tells which variants may be chosen.
    fn describe(&self) {
        let set = self.overview.lineup.set();
        let automatic = lineup::evaluated(&set).is_ok();
        self.overview.board.describe(&self.config, &set.names(), automatic);
    }

    /// Has variants timed that were not, if the selector is to choose among them.
    fn time(&self) {
        if self.overview.lineup.orders().0 == Chooser::Auto {
            self.timing.send(()).ok();
        }
    }

    /// Starts the thread that times variants, or times them at once if that is configured.
    fn profile(&mut self, start: &service::Start) -> Result<()> {
        let (lineup, profiles) = (self.overview.lineup.clone(), self.profiles.clone());
        let timer = Timer { config: self.config.clone(), lineup, profiles };
        let (timing, asked) = std_mpsc::channel();
        self.timing = timing;
        let at_once = self.config.model.profile_when == ProfileWhen::Start;
        if at_once && self.overview.lineup.orders().0 == Chooser::Auto {
            timer.run(|| start.step());
        }
        spawn("profile", move || {
            while asked.recv().is_ok() {
                timer.run(|| {});
            }
            Ok(())
        })?;
        self.time();
        Ok(())
    }

    async fn take_over(&mut self) -> Result<(), Refused> {
        let new = self.options.load().map_err(Refused::Configuration)?;
        let changed = new.differences(&self.config);
        let later: Vec<_> = changed.iter().filter(|key| !LIVE.contains(&key.as_str())).collect();
        if !later.is_empty() {
            tracing::warn!(keys = ?later, "changed keys take effect at the next start");
        }
        let set = model_set(&new).map_err(Refused::Configuration)?;
        configured_variant(&new, &set).map_err(Refused::Configuration)?;
        check_labels(&new, &set).map_err(Refused::Configuration)?;
        let chooser = configured_chooser(&new, &set).map_err(Refused::Configuration)?;
        let is_new = |key: &str| changed.iter().any(|other| other == key);
        let chooser = (is_new("model.policy") || is_new("model.variant")).then_some(chooser);
        let wrong = |error: LineupError| {
            Refused::Configuration(new.wrong("model.variant", &new.model.variant, error))
        };
        let adopted = self.adopt(set, &new, chooser.clone()).await;
        adopted.map_err(|stopped| stopped.refused(wrong))?;
        let lineup = self.overview.lineup.clone();
        match chooser.filter(|chooser| *chooser != lineup.orders().0) {
            Some(Chooser::Auto) => {
                lineup.choose_automatically().map_err(|problem| {
                    Refused::Configuration(new.wrong("model.policy", "auto", problem))
                })?;
                self.time();
            }
            Some(Chooser::Fixed(name)) => {
                self.fix(name).await.map_err(|stopped| stopped.refused(wrong))?;
            }
            None => {}
        }
        if is_new("model.budget_ms") {
            lineup.set_budget(new.model.budget());
        }
        if is_new("model.miss_rate") {
            lineup.set_miss_rate(new.model.miss_rate);
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

/// Times variants, one after the other, each in a process of its own.
struct Timer {
    config: Config,
    lineup: Arc<Lineup>,
    profiles: Arc<Mutex<Profiles>>,
}

impl Timer {
    /// Times each variant that must be, once, and keeps what it costs; calls `step` before each.
    fn run(&self, step: impl Fn()) {
        let mut tried = BTreeSet::new();
        loop {
            let (set, untimed) = self.lineup.untimed();
            let digest = |index: usize| set.digest(&set.manifest.variants[index]);
            let next = untimed.into_iter().find(|&index| tried.insert(digest(index)));
            let Some(index) = next else { return };
            let variant = &set.manifest.variants[index];
            step();
            match Cost::measure(&self.config, &set, variant) {
                Ok(cost) => {
                    locked(&self.profiles).keep(&set, variant, cost);
                    self.lineup.learn(&set, index, cost);
                }
                Err(error) => {
                    let variant = &variant.name;
                    tracing::error!(variant, error = format!("{error:#}"), "cannot be timed");
                }
            }
        }
    }
}

fn locked(profiles: &Mutex<Profiles>) -> MutexGuard<'_, Profiles> {
    profiles.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the lineup stays as it was.
enum Stopped {
    Lineup(LineupError),
    Configuration(ConfigError),
    Panicked(tokio::task::JoinError),
}

impl From<ConfigError> for Stopped {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

impl Stopped {
    /// The same as an answer: what can be mended by other words is `worded`.
    fn refused(self, worded: impl FnOnce(LineupError) -> Refused) -> Refused {
        match self {
            Self::Lineup(LineupError::Model(error)) => Refused::Model(error.into()),
            Self::Lineup(error) => worded(error),
            Self::Configuration(error) => Refused::Configuration(error),
            Self::Panicked(error) => Refused::Model(error.into()),
        }
    }
}

/// Changes the lineup beside everything else.
async fn blocking(
    change: impl FnOnce() -> Result<(), LineupError> + Send + 'static,
) -> Result<(), Stopped> {
    let changed = tokio::task::spawn_blocking(change).await.map_err(Stopped::Panicked)?;
    changed.map_err(Stopped::Lineup)
}

enum Refused {
    Configuration(ConfigError),
    Order(String),
    Model(anyhow::Error),
}

/// What comes in while it runs.
struct Inbox {
    /// The configuration may have changed.
    triggered: mpsc::Receiver<()>,
    /// Orders as they came.
    ordered: mpsc::Receiver<Asked>,
    /// Pictures to publish.
    pictured: mpsc::Receiver<Arc<Picture>>,
}

type Thread = thread::JoinHandle<Result<()>>;

fn join(thread: Thread) -> Result<()> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

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
