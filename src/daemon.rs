//! The daemon: threads, READY, signals, reload, ordered stop. It puts the parts together and
//! decides nothing about frames.
//!
//! Three strands: `capture` finds frames, `classify` turns them into predictions in the outbox, and the
//! main thread publishes those, takes orders, reloads and stops. Beside them `keep` brings the outbox to
//! the disk, `load` gets variants into memory, and `profile` times those that were not timed before.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
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
use crate::lineup::{self, Lineup};
use crate::manifest::{ModelSet, Variant};
use crate::metrics::Metrics;
use crate::model::{Engine, Model, ModelError};
use crate::outbox::Outbox;
use crate::overview::{History, Overview};
use crate::pipeline::Pipeline;
use crate::profile::Profiles;
use crate::publish::connection;
use crate::publish::{Channels, Health, Notice, Publisher, Retained};
use crate::pulse::Pulse;
use crate::service;
#[cfg(feature = "camera")]
use crate::source::camera::Camera;
use crate::source::directory::Directory;
use crate::source::stream::Stream;
use crate::source::{Condition, Handoff, Picture, Source};
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
    crate::logging::start(config.log.level.as_str());
    let set = model_set(&config)?;
    let chooser = configured_chooser(&config, &set)?;
    check_labels(&config, &set)?;
    connection::check(&config)?;
    web::check(&config)?;
    let path = config.outbox.directory.display();
    let outbox = Outbox::open(&config.outbox);
    let outbox = Arc::new(outbox.map_err(|error| config.wrong("outbox.directory", path, error))?);
    let source = configured_source(&config)?;

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
    start.step();
    let (budget, limit) = (config.model.budget(), config.model.memory_limit());
    let miss_rate = config.model.miss_rate;
    let lineup = Lineup::new(&set, &engine, model, chooser, budget, miss_rate, limit)?;
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
    let automatic = lineup::evaluated(&set).is_ok();
    let known = Known::open(&config.outbox.told(), homeassistant::described(&config));
    let (board, retained) = Board::new(&config, &set.names(), automatic, known.former());
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
        set,
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
        engine,
        source,
        keeper: Arc::new(keeper),
        fresh,
        kept,
        overview: Arc::new(overview),
        profiling: false,
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
    engine: Engine,
    source: Arc<dyn Source>,
    keeper: Arc<Keeper>,
    /// Told of when something is put into the outbox.
    fresh: Arc<Notify>,
    /// Stamped by the thread that keeps predictions.
    kept: Pulse,
    /// All the other parts.
    overview: Arc<Overview>,
    /// Whether variants are being timed, or were.
    profiling: bool,
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
        if overview.lineup.orders().0 == Chooser::Auto {
            self.profile(self.config.model.profile_when, &|| start.step())?;
        }
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
            pipeline: Pipeline::new(&overview.set, &self.config.source),
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
                    let stats = overview.message();
                    overview.board.thermal(&stats.thermal);
                    let throttled = stats.thermal.throttled.filter(|now| now.any());
                    match throttled {
                        now if now == held_back => {}
                        Some(throttled) => tracing::warn!(?throttled, "the board is held back"),
                        None => tracing::info!("the board is not held back any more"),
                    }
                    held_back = throttled;
                    // Without a broker there is nobody to tell.
                    notices.try_send(Notice::json("stats", &stats)).ok();
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
        let pipeline = Pipeline::new(&self.overview.set, &self.config.source);
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
            let Overview { config, set, lineup, .. } = &*overview;
            let (picture, may) = (&*picture, &|index| lineup.room(index));
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
            Order::Variant(Chooser::Auto) => {
                self.overview
                    .lineup
                    .choose_automatically()
                    .map_err(|problem| Refused::Order(format!("variant/set: auto {problem}")))?;
                self.profile(ProfileWhen::Background, &|| {}).map_err(Refused::Model)?;
            }
            Order::Variant(Chooser::Fixed(name)) => {
                let known = self.overview.set.position(&name);
                known.map_err(|error| Refused::Order(format!("variant/set: {error}")))?;
                self.fix(name).await?;
            }
        }
        Ok(())
    }

    /// Runs the variant `name` from now on.
    async fn fix(&self, name: String) -> Result<(), Refused> {
        let lineup = self.overview.lineup.clone();
        let fix = move || lineup.fix(&name);
        let fixed = tokio::task::spawn_blocking(fix).await;
        fixed
            .map_err(anyhow::Error::from)
            .and_then(|fixed| fixed.map_err(anyhow::Error::from))
            .map_err(Refused::Model)
    }

    /// Sees to it that what each variant costs becomes known, once.
    /// Calls `step` before each variant if that is done at once.
    fn profile(&mut self, when: ProfileWhen, step: &dyn Fn()) -> Result<()> {
        if std::mem::replace(&mut self.profiling, true) {
            return Ok(());
        }
        let mut profiles = Profiles::open(&self.config.model.profile, &self.engine);
        for (index, variant) in self.overview.set.manifest.variants.iter().enumerate() {
            if let Some(cost) = profiles.of(&self.overview.set, variant) {
                self.overview.lineup.learn(index, cost);
            }
        }
        let untimed = self.overview.lineup.untimed();
        let (config, set, lineup) =
            (self.config.clone(), self.overview.set.clone(), self.overview.lineup.clone());
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
                    step();
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
        configured_variant(&new, &self.overview.set).map_err(Refused::Configuration)?;
        check_labels(&new, &self.overview.set).map_err(Refused::Configuration)?;
        let chooser =
            configured_chooser(&new, &self.overview.set).map_err(Refused::Configuration)?;
        let is_new = |key: &str| changed.iter().any(|other| other == key);
        if is_new("model.budget_ms") {
            self.overview.lineup.set_budget(new.model.budget());
        }
        if is_new("model.miss_rate") {
            self.overview.lineup.set_miss_rate(new.model.miss_rate);
        }
        if is_new("model.policy") || is_new("model.variant") {
            match chooser {
                Chooser::Auto => {
                    self.overview.lineup.choose_automatically().map_err(|problem| {
                        Refused::Configuration(new.wrong("model.policy", "auto", problem))
                    })?;
                    self.profile(ProfileWhen::Background, &|| {}).map_err(Refused::Model)?;
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
