//! The configuration: `config/default.toml`, then a file, then the environment.
//!
//! Owns every key, its default and its validation; it is the only user of crate `config`. It opens
//! nothing that the keys point to.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::event;

/// Every key, commented, with its default value.
pub const DEFAULT: &str = include_str!("../config/default.toml");

/// Where a packaged daemon looks when no file is named.
pub const DEFAULT_PATH: &str = "/etc/vggd/vggd.toml";

/// Keys that a running daemon takes over at once when its file changes.
pub const LIVE: [&str; 5] =
    ["model.budget_ms", "model.miss_rate", "model.policy", "model.set", "model.variant"];

/// A TiB in MiB, and less where one allocation cannot be larger.
const MOST_MEGABYTES: u64 = if usize::BITS < 64 { isize::MAX as u64 >> 20 } else { 1 << 20 };

const ENVIRONMENT: &str = "VGGD";
const SEPARATOR: &str = "__";

/// The values of [`DEFAULT`], section by section.
pub fn defaults() -> toml::Table {
    toml::from_str(DEFAULT).expect("default.toml is TOML")
}

/// A valid configuration. The keys are documented in `config/default.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Config {
    pub source: Source,
    pub model: Model,
    pub mqtt: Mqtt,
    pub outbox: Outbox,
    pub state: State,
    pub web: Web,
    pub log: Log,
    /// The file that was read, if one was.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// The file or environment variable of each key that is not at its default.
    #[serde(skip)]
    origins: BTreeMap<String, String>,
}

/// Section `[source]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Source {
    pub kind: SourceKind,
    pub directory: PathBuf,
    pub at_start: AtStart,
    pub afterwards: Afterwards,
    settle_ms: u64,
    pub device: String,
    size: String,
    pub rate: f64,
    pub format: Format,
    pub command: String,
    timeout_s: u64,
    pub rotate: u16,
    region: String,
    pub fit: Fit,
    max_rate: f64,
    pub min_change: f64,
    max_file_mb: u64,
    decode_memory_mb: u64,
}

/// Where frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Photos put into a folder.
    Directory,
    /// A camera that the kernel drives.
    Camera,
    /// The output of a command.
    Stream,
}

impl SourceKind {
    /// The kind's name, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Camera => "camera",
            Self::Stream => "stream",
        }
    }
}

/// What becomes of photos that lie in the folder at the start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtStart {
    /// They are classified.
    Process,
    /// They are left alone.
    Skip,
}

/// How a camera hands over its frames.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Whatever the camera offers.
    Auto,
    /// A JPEG each.
    Mjpeg,
    /// Brightness of each pixel, colour of each two.
    Yuyv,
    /// Brightness first, then colour of each two by two pixels.
    Nv12,
    /// Red, green, blue.
    Rgb,
    /// Brightness alone.
    Grey,
}

/// How a frame becomes square.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Its middle is cut out.
    Crop,
    /// All of it, in other proportions.
    Squash,
    /// All of it, between grey bars.
    Letterbox,
}

/// A part of a frame, as shares of its width and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// From the left edge.
    pub left: f64,
    /// From the upper edge.
    pub top: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// What becomes of a photo whose prediction is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Afterwards {
    /// It moves to `done/`.
    Archive,
    /// It is removed.
    Delete,
    /// It stays.
    Keep,
}

/// Section `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Model {
    pub set: PathBuf,
    pub policy: Policy,
    pub variant: String,
    budget_ms: f64,
    pub miss_rate: f64,
    memory_limit: u64,
    pub profile: PathBuf,
    pub profile_when: ProfileWhen,
    pub threads: usize,
    pub pin: bool,
    pub precision: Precision,
}

/// The numbers that layers multiply by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    F32,
    /// Numbers of 16 bits, where that is faster.
    Half,
}

impl Precision {
    /// The precision's name, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Half => "half",
        }
    }
}

impl FromStr for Precision {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "half" => Ok(Self::Half),
            _ => Err("neither 'f32' nor 'half'"),
        }
    }
}

/// Who chooses the variant of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// A person: `model.variant`.
    Fixed,
    /// The selector, within the budget.
    Auto,
}

/// When variants are timed that were not timed before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileWhen {
    /// Before the first frame.
    Start,
    /// Beside the classification by `model.variant`.
    Background,
}

/// Section `[mqtt]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Mqtt {
    pub host: String,
    pub port: u16,
    topic: String,
    client_id: String,
    pub username: String,
    pub password_file: PathBuf,
    pub tls: bool,
    pub ca_file: PathBuf,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    keep_alive_s: u16,
    stats_s: u64,
    pub discovery: String,
}

/// Section `[outbox]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Outbox {
    pub directory: PathBuf,
    max_mb: u64,
    pub sync: Sync,
    sync_ms: u64,
}

/// When predictions are brought safely to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// Each.
    Always,
    /// Once in a while.
    Interval,
    /// When the system likes.
    Never,
}

/// Section `[state]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct State {
    pub in_a_row: u32,
    pub min_confidence: f64,
    pub labels: Vec<String>,
    pub image: Image,
    image_kb: u64,
}

/// When a picture is published.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Image {
    /// Never.
    Off,
    /// When the state changes.
    Change,
    /// When asked for.
    Demand,
}

/// Section `[web]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Web {
    listen: String,
    pub token_file: PathBuf,
    pub frame: bool,
    pub max_upload_mb: u64,
}

/// Section `[log]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Log {
    pub level: Level,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// The level's name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Source {
    /// How long an unwatched photo must be unchanged to count as complete.
    pub fn settle(&self) -> Duration {
        Duration::from_millis(self.settle_ms)
    }

    /// Width and height that are asked of a camera.
    pub fn size(&self) -> (u32, u32) {
        parse_size(&self.size).expect("validated")
    }

    /// How long a camera or stream may give no frame.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    /// The part of a frame that is looked at, if it is not all of it.
    pub fn region(&self) -> Option<Region> {
        parse_region(&self.region).expect("validated")
    }

    /// The shortest time from one frame to the next.
    pub fn pace(&self) -> Duration {
        match self.max_rate > 0.0 {
            true => Duration::from_secs_f64(1.0 / self.max_rate),
            false => Duration::ZERO,
        }
    }

    /// Largest photo that is read, in bytes.
    pub fn max_file(&self) -> u64 {
        self.max_file_mb << 20
    }

    /// Most memory that decoding a photo may take, in bytes.
    pub fn decode_memory(&self) -> u64 {
        self.decode_memory_mb << 20
    }
}

impl Model {
    /// The latency budget of a frame, if there is one.
    pub fn budget(&self) -> Option<Duration> {
        event::budget(self.budget_ms)
    }

    /// The most resident memory, in MiB, if it is limited.
    pub fn memory_limit(&self) -> Option<u64> {
        (self.memory_limit > 0).then_some(self.memory_limit)
    }
}

impl Mqtt {
    /// What all topics start with, without a slash at its end.
    pub fn topic(&self) -> String {
        self.topic.replace("{host}", &host_name())
    }

    /// How the broker knows this client.
    pub fn client_id(&self) -> String {
        match self.client_id.as_str() {
            "" => self.topic().replace('/', "-"),
            id => id.to_owned(),
        }
    }

    /// Time from one message on `stats` to the next, if there are any.
    pub fn stats(&self) -> Option<Duration> {
        (self.stats_s > 0).then(|| Duration::from_secs(self.stats_s))
    }

    /// Longest silence towards the broker.
    pub fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.keep_alive_s.into())
    }
}

impl Outbox {
    /// The most bytes that it may take on disk.
    pub fn max_bytes(&self) -> u64 {
        self.max_mb << 20
    }

    /// The file beside it that remembers which photos are done and stay in their folder.
    pub fn ledger(&self) -> PathBuf {
        self.directory.with_file_name("photos.done")
    }

    /// The file beside it that remembers where Home Assistant was told of this device.
    pub fn told(&self) -> PathBuf {
        self.directory.with_file_name("homeassistant.told")
    }

    /// The longest time after which predictions are brought to the disk, for [`Sync::Interval`].
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.sync_ms)
    }
}

impl State {
    /// The most bytes of a published picture.
    pub fn image_bytes(&self) -> usize {
        (self.image_kb as usize) << 10
    }
}

impl Web {
    /// Address and port of the page, unless it is off.
    pub fn listen(&self) -> Option<SocketAddr> {
        parse_listen(&self.listen).expect("validated")
    }

    /// The largest photo that is taken, in bytes.
    pub fn max_upload(&self) -> usize {
        (self.max_upload_mb as usize) << 20
    }
}

/// What is wrong, and where: a person must change that file or variable.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{}{message}", origin.as_ref().map(|origin| format!("{origin}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// The file or environment variable, if known.
    pub origin: Option<String>,
    /// The key, the value and what is wrong with it.
    pub message: String,
}

impl ConfigError {
    /// An error about the value of `key`.
    pub fn new(key: &str, value: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        Self { origin: None, message: format!("{key} = '{value}': {problem}") }
    }

    fn at(mut self, origin: String) -> Self {
        self.origin = Some(origin);
        self
    }
}

impl Config {
    /// The defaults, then `file` if there is one, then the environment.
    ///
    /// # Errors
    /// [`ConfigError`] with the file or variable, the key and the value.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let prefix = format!("{ENVIRONMENT}{SEPARATOR}");
        let mut environment = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else {
                continue;
            };
            let value = value.into_string().map_err(|value| ConfigError {
                origin: Some(name.to_owned()),
                message: format!("{value:?} is not UTF-8"),
            })?;
            environment.insert(name.to_owned(), value);
        }
        Self::load_from(file, environment)
    }

    /// Uses the model set at `path`, which was given as an argument.
    pub fn override_set(&mut self, path: &Path) {
        path.clone_into(&mut self.model.set);
        self.origins.insert("model.set".to_owned(), "--models".to_owned());
    }

    fn load_from(
        file: Option<&Path>,
        environment: BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let known = defaults();
        let mut written = toml::Table::new();
        if let Some(path) = file {
            written = read(path)?;
            check_keys(&written, &known, "")
                .map_err(|error| error.at(path.display().to_string()))?;
        }
        for name in environment.keys() {
            let key = key_of_variable(name);
            if lookup(&known, &key).is_none_or(toml::Value::is_table) {
                let message = unknown(&key, &known, "");
                return Err(ConfigError { origin: Some(name.clone()), message });
            }
        }
        let path = file.map(Path::to_owned);
        let file = file.map(|path| path.display().to_string()).unwrap_or_default();
        let in_file = flatten(&written).into_keys().map(|key| (key, file.clone()));
        let mut origins: BTreeMap<String, String> = in_file.collect();
        origins.extend(environment.keys().map(|name| (key_of_variable(name), name.clone())));

        let text = toml::to_string(&written).expect("parsed TOML can be written");
        let variables = config::Environment::with_prefix(ENVIRONMENT)
            .prefix_separator(SEPARATOR)
            .separator(SEPARATOR)
            .source(Some(environment.clone().into_iter().collect()));
        let mut config: Self = config::Config::builder()
            .add_source(config::File::from_str(DEFAULT, config::FileFormat::Toml))
            .add_source(config::File::from_str(&text, config::FileFormat::Toml))
            .add_source(variables)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| explain(&error, &origins, &environment, &written))?;
        config.origins = origins;
        config.file = path;
        config.validate()?;
        Ok(config)
    }

    /// An error about the value of `key`, with the file or variable that the value comes from.
    pub fn wrong(
        &self,
        key: &str,
        value: impl std::fmt::Display,
        problem: impl std::fmt::Display,
    ) -> ConfigError {
        ConfigError {
            origin: self.origins.get(key).cloned(),
            ..ConfigError::new(key, value, problem)
        }
    }

    /// The keys whose values differ between two configurations.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let flat = |config: &Self| {
            let table = toml::Table::try_from(config).expect("a configuration is TOML");
            flatten(&table)
        };
        let (mine, theirs) = (flat(self), flat(other));
        mine.into_iter()
            .filter(|(key, value)| theirs.get(key) != Some(value))
            .map(|(key, _)| key)
            .collect()
    }

    /// Takes over what `other` says about one of the [`LIVE`] keys.
    pub fn take(&mut self, other: &Self, key: &str) {
        let (own, new) = (&mut self.model, &other.model);
        match key {
            "model.budget_ms" => own.budget_ms = new.budget_ms,
            "model.miss_rate" => own.miss_rate = new.miss_rate,
            "model.policy" => own.policy = new.policy,
            "model.set" => own.set.clone_from(&new.set),
            "model.variant" => own.variant.clone_from(&new.variant),
            _ => unreachable!("{key} is no live key"),
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let check =
            |holds: bool, key: &str, value: &dyn std::fmt::Display, problem: &str| match holds {
                true => Ok(()),
                false => Err(self.wrong(key, value, problem)),
            };
        let Self { source, model, mqtt, .. } = self;
        let directory = source.directory.display();
        let named = !source.directory.as_os_str().is_empty();
        check(named, "source.directory", &directory, "names no folder")?;
        let megabytes = 8..=MOST_MEGABYTES;
        let range = &format!("must be from 8 to {MOST_MEGABYTES}");
        let file = source.max_file_mb;
        check(megabytes.contains(&file), "source.max_file_mb", &file, range)?;
        let memory = source.decode_memory_mb;
        check(megabytes.contains(&memory), "source.decode_memory_mb", &memory, range)?;
        let settle = source.settle_ms;
        check(settle <= 3_600_000, "source.settle_ms", &settle, "must be at most 3600000")?;

        let size = &source.size;
        check(parse_size(size).is_some(), "source.size", size, "must be like 640x480")?;
        let rate = source.rate;
        check((0.1..=1000.0).contains(&rate), "source.rate", &rate, "must be from 0.1 to 1000")?;
        let camera = source.kind != SourceKind::Camera || !source.device.is_empty();
        check(camera, "source.device", &"", "names no camera")?;
        let command = source.kind != SourceKind::Stream || !source.command.trim().is_empty();
        check(command, "source.command", &"", "is needed when source.kind is \"stream\"")?;
        let timeout = source.timeout_s;
        check(
            (1..=3600).contains(&timeout),
            "source.timeout_s",
            &timeout,
            "must be from 1 to 3600",
        )?;
        let rotate = source.rotate;
        let quarter = [0, 90, 180, 270].contains(&rotate);
        check(quarter, "source.rotate", &rotate, "must be 0, 90, 180 or 270")?;
        let region = &source.region;
        let problem = "must be left, top, width and height from 0 to 1, inside the frame";
        check(parse_region(region).is_some(), "source.region", region, problem)?;
        let max_rate = source.max_rate;
        let sane = max_rate == 0.0 || (1e-4..=1e4).contains(&max_rate);
        check(sane, "source.max_rate", &max_rate, "must be 0 or from 0.0001 to 10000")?;
        let change = source.min_change;
        check((0.0..=1.0).contains(&change), "source.min_change", &change, "must be from 0 to 1")?;

        let set = model.set.display();
        check(!model.set.as_os_str().is_empty(), "model.set", &set, "names no folder")?;
        check(!model.variant.is_empty(), "model.variant", &"", "names no variant")?;
        let budget = model.budget_ms;
        let sane = (0.0..=event::LONGEST_MS).contains(&budget);
        check(sane, "model.budget_ms", &budget, "must be from 0 to 3600000")?;
        let miss_rate = model.miss_rate;
        let sane = (0.0..1.0).contains(&miss_rate);
        check(sane, "model.miss_rate", &miss_rate, "must be from 0 to less than 1")?;
        let profile = model.profile.display();
        check(!model.profile.as_os_str().is_empty(), "model.profile", &profile, "names no file")?;
        check(model.threads <= 256, "model.threads", &model.threads, "must be at most 256")?;

        check(!mqtt.host.is_empty(), "mqtt.host", &"", "names no broker")?;
        check(mqtt.port != 0, "mqtt.port", &mqtt.port, "must be from 1 to 65535")?;
        let topic = mqtt.topic.as_str();
        let plain = !topic.is_empty() && !topic.contains(['+', '#', '\0']);
        check(plain, "mqtt.topic", &topic, "must not be empty nor have + or # in it")?;
        let inner = !topic.starts_with(['/', '$']) && !topic.ends_with('/');
        check(inner, "mqtt.topic", &topic, "must not start with / or $ nor end with /")?;
        let orphan = mqtt.username.is_empty() && !mqtt.password_file.as_os_str().is_empty();
        let file = mqtt.password_file.display();
        check(!orphan, "mqtt.password_file", &file, "needs mqtt.username")?;
        let keep_alive = mqtt.keep_alive_s;
        check(keep_alive >= 5, "mqtt.keep_alive_s", &keep_alive, "must be at least 5")?;
        let stats = mqtt.stats_s;
        check(stats <= 86_400, "mqtt.stats_s", &stats, "must be at most 86400")?;
        let pair = mqtt.certificate_file.as_os_str().is_empty();
        let pair = pair == mqtt.key_file.as_os_str().is_empty();
        let certificate = mqtt.certificate_file.display();
        let problem = "needs mqtt.key_file, and that needs it";
        check(pair, "mqtt.certificate_file", &certificate, problem)?;
        let files = [&mqtt.ca_file, &mqtt.certificate_file];
        let files = files.iter().any(|file| !file.as_os_str().is_empty());
        check(mqtt.tls || !files, "mqtt.tls", &false, "must be true for certificates to be used")?;
        let prefix = mqtt.discovery.as_str();
        let plain = !prefix.contains(['+', '#', '\0']) && !prefix.starts_with('$');
        let plain = plain && !prefix.ends_with('/');
        check(plain, "mqtt.discovery", &prefix, "must begin a topic, without / at its end")?;

        let Self { outbox, state, .. } = self;
        let directory = outbox.directory.display();
        let named = !outbox.directory.as_os_str().is_empty();
        check(named, "outbox.directory", &directory, "names no folder")?;
        let most = outbox.max_mb;
        check((1..=4096).contains(&most), "outbox.max_mb", &most, "must be from 1 to 4096")?;
        let interval = outbox.sync_ms;
        let sane = (1..=3_600_000).contains(&interval);
        check(sane, "outbox.sync_ms", &interval, "must be from 1 to 3600000")?;
        let in_a_row = state.in_a_row;
        let sane = (1..=10_000).contains(&in_a_row);
        check(sane, "state.in_a_row", &in_a_row, "must be from 1 to 10000")?;
        let confidence = state.min_confidence;
        let sane = (0.0..=1.0).contains(&confidence);
        check(sane, "state.min_confidence", &confidence, "must be from 0 to 1")?;
        let image = state.image_kb;
        check((8..=4096).contains(&image), "state.image_kb", &image, "must be from 8 to 4096")?;

        let web = &self.web;
        let problem = "must be an address with a port, like 127.0.0.1:8190, or \"off\"";
        check(parse_listen(&web.listen).is_some(), "web.listen", &web.listen, problem)?;
        let upload = web.max_upload_mb;
        check((1..=1024).contains(&upload), "web.max_upload_mb", &upload, "must be from 1 to 1024")
    }
}

/// The address of `127.0.0.1:8190`, none for `off`.
fn parse_listen(text: &str) -> Option<Option<SocketAddr>> {
    match text {
        "off" => Some(None),
        address => address.parse().ok().map(Some),
    }
}

/// Width and height of `640x480`.
fn parse_size(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| text.parse().ok().filter(|side| (16..=16_384).contains(side));
    Some((side(width)?, side(height)?))
}

/// The part that `left top width height` gives, all of it if that is empty.
fn parse_region(text: &str) -> Option<Option<Region>> {
    if text.trim().is_empty() {
        return Some(None);
    }
    let shares: Option<Vec<f64>> =
        text.split_whitespace().map(|share| share.parse().ok()).collect();
    let [left, top, width, height] = shares?[..] else { return None };
    let inside = |start: f64, length: f64| start >= 0.0 && length > 0.0 && start + length <= 1.0;
    (inside(left, width) && inside(top, height)).then_some(Some(Region {
        left,
        top,
        width,
        height,
    }))
}

fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let origin = Some(path.display().to_string());
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError { origin: origin.clone(), message: error.to_string() })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError { origin, message: error.to_string().trim_end().to_owned() })
}

fn key_of_variable(name: &str) -> String {
    let key = name.trim_start_matches(ENVIRONMENT).trim_start_matches(SEPARATOR);
    key.replace(SEPARATOR, ".").to_lowercase()
}

fn lookup<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
    }
}

fn flatten(table: &toml::Table) -> BTreeMap<String, toml::Value> {
    let mut flat = BTreeMap::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                let inner = flatten(inner).into_iter();
                flat.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => drop(flat.insert(key.clone(), value.clone())),
        }
    }
    flat
}

/// Every key of `written` must be one of `known`, and a section only where a section is known.
fn check_keys(
    written: &toml::Table,
    known: &toml::Table,
    section: &str,
) -> Result<(), ConfigError> {
    for (name, value) in written {
        let key = format!("{section}{name}");
        let message = match (known.get(name), value) {
            (Some(toml::Value::Table(known)), toml::Value::Table(inner)) => {
                check_keys(inner, known, &format!("{key}."))?;
                continue;
            }
            (Some(toml::Value::Table(_)), value) => {
                format!("{key} = '{}': is a section, write [{key}]", plain(value))
            }
            (Some(_), toml::Value::Table(_)) => format!("{key} is a key, not a section"),
            (Some(toml::Value::Float(_)), toml::Value::Integer(_)) => continue,
            (Some(known), value) if known.same_type(value) => continue,
            (Some(known), value) => {
                let (found, expected) = (value.type_str(), known.type_str());
                format!("{key} = '{}': {found} instead of {expected}", plain(value))
            }
            (None, toml::Value::Table(_)) => unknown(&key, known, section),
            (None, value) => {
                format!("{key} = '{}': {}", plain(value), unknown(&key, known, section))
            }
        };
        return Err(ConfigError { origin: None, message });
    }
    Ok(())
}

/// What to say of a `key` that is not among `known`, the keys of `section`.
fn unknown(key: &str, known: &toml::Table, section: &str) -> String {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let known = flatten(known).into_keys().map(|known| format!("{section}{known}"));
    let close = known.map(|known| (distance(&last(key), &last(&known)), known)).min();
    match close {
        Some((0..=2, close)) => format!("unknown key '{key}', did you mean '{close}'?"),
        _ => format!("unknown key '{key}'; `vggd defaults` lists all keys"),
    }
}

/// A value as it was meant: strings without quotes.
fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Levenshtein distance.
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

/// Says which file or variable holds the value that has the wrong type.
fn explain(
    error: &config::ConfigError,
    origins: &BTreeMap<String, String>,
    environment: &BTreeMap<String, String>,
    written: &toml::Table,
) -> ConfigError {
    let (key, problem) = match error {
        config::ConfigError::Type { key: Some(key), expected, .. } => {
            (key.clone(), format!("expected {expected}"))
        }
        config::ConfigError::At { key: Some(key), error, .. } => (key.clone(), error.to_string()),
        other => {
            let message = other.to_string();
            return ConfigError { origin: None, message };
        }
    };
    let variable = environment.iter().find(|(name, _)| key_of_variable(name) == key);
    let value = match (variable, lookup(written, &key)) {
        (Some((_, value)), _) => value.clone(),
        (None, Some(value)) => plain(value),
        (None, None) => String::new(),
    };
    let mut explained = ConfigError::new(&key, value, problem);
    explained.origin = origins.get(&key).cloned();
    explained
}

fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    name.split('.').next().unwrap_or("localhost").to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vggd.toml");
        fs::write(&path, text).unwrap();
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load_from(Some(&path), variables.collect())
            .map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn defaults_are_valid_and_later_layers_win() {
        let default = Config::load_from(None, BTreeMap::new()).unwrap();
        assert_eq!(default.model.variant, "baseline");
        assert_eq!(default.model.budget(), None);
        assert_eq!(default.model.precision, Precision::F32);
        assert!(default.differences(&default).is_empty());

        let text = "[model]\nvariant = 'scaled'\nbudget_ms = 80\n[mqtt]\nport = 1884";
        let file = load(text, &[]).unwrap();
        assert_eq!(file.model.variant, "scaled");
        assert_eq!(file.model.budget(), Some(Duration::from_millis(80)));
        assert_eq!(file.mqtt.host, default.mqtt.host);
        let changed = ["model.budget_ms", "model.variant", "mqtt.port"];
        assert_eq!(file.differences(&default), changed);

        let variables = [
            ("VGGD__MODEL__VARIANT", "quantized"),
            ("VGGD__MODEL__PRECISION", "half"),
            ("VGGD__MQTT__PORT", "1885"),
        ];
        let both = load(text, &variables).unwrap();
        assert_eq!(both.model.precision, Precision::Half);
        assert_eq!((both.model.variant.as_str(), both.mqtt.port), ("quantized", 1885));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_origin() {
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(&str, Variables, &str); 19] = [
            ("[model\n", &[], "FILE: TOML parse error at line 1, column 7"),
            (
                "[model]\nvairant = 'x'",
                &[],
                "FILE: model.vairant = 'x': unknown key 'model.vairant', did you mean 'model.variant'?",
            ),
            ("[models]\nset = 'x'", &[], "FILE: unknown key 'models'"),
            ("model = 3", &[], "FILE: model = '3': is a section, write [model]"),
            ("[mqtt.port]\nx = 1", &[], "FILE: mqtt.port is a key, not a section"),
            ("[mqtt]\nport = 'abc'", &[], "FILE: mqtt.port = 'abc': string instead of integer"),
            ("[mqtt]\nport = 1883.7", &[], "FILE: mqtt.port = '1883.7': float instead of integer"),
            (
                "[model]\nthreads = true",
                &[],
                "FILE: model.threads = 'true': boolean instead of integer",
            ),
            ("[model]\nprecision = 'f64'", &[], "FILE: model.precision = 'f64': "),
            ("[mqtt]\nport = 70000", &[], "FILE: mqtt.port = '70000': "),
            ("[source]\nkind = 'tape'", &[], "FILE: source.kind = 'tape': "),
            ("[model]\nbudget_ms = -1", &[], "FILE: model.budget_ms = '-1': must be from 0"),
            ("[model]\nbudget_ms = nan", &[], "FILE: model.budget_ms = 'NaN': must be from 0"),
            ("[model]\nmiss_rate = 1.0", &[], "FILE: model.miss_rate = '1': must be from 0"),
            ("[model]\npolicy = 'best'", &[], "FILE: model.policy = 'best': "),
            ("[mqtt]\ntopic = 'a/#'", &[], "FILE: mqtt.topic = 'a/#': must not"),
            (
                "[mqtt]\npassword_file = '/p'",
                &[],
                "FILE: mqtt.password_file = '/p': needs mqtt.username",
            ),
            (
                "",
                &[("VGGD__MODEL__THREADS", "many")],
                "VGGD__MODEL__THREADS: model.threads = 'many': ",
            ),
            (
                "",
                &[("VGGD__MODEL__THREAD", "2")],
                "VGGD__MODEL__THREAD: unknown key 'model.thread', did you mean",
            ),
        ];
        for (text, variables, expected) in cases {
            let error = load(text, variables).expect_err(text);
            assert!(error.starts_with(expected), "{text:?} gave: {error}");
        }
        let missing = Config::load_from(Some(Path::new("/none/vggd.toml")), BTreeMap::new());
        let missing = missing.unwrap_err().to_string();
        assert!(missing.starts_with("/none/vggd.toml: No such file"), "{missing}");
    }

    /// TOML values, many of them at the edge of what makes sense.
    fn values() -> impl Strategy<Value = toml::Value> {
        let word =
            select(vec!["", "auto", "stream", "640x480", "0 0 1 1", "vggd/{host}", "/", "#"]);
        prop_oneof![
            any::<i64>().prop_map(toml::Value::from),
            (-10..100_000i64).prop_map(toml::Value::from),
            any::<f64>().prop_map(toml::Value::from),
            (-1.0..2.0).prop_map(toml::Value::from),
            any::<bool>().prop_map(toml::Value::from),
            word.prop_map(toml::Value::from),
            any::<String>().prop_map(toml::Value::from),
            any::<Vec<String>>().prop_map(toml::Value::from),
        ]
    }

    /// Asks for everything that is computed from what was written.
    fn use_all(config: &Config) {
        let Config { source, model, mqtt, outbox, state, log, .. } = config;
        let _ = (source.settle(), source.size(), source.timeout(), source.region());
        let _ = (source.pace(), source.max_file(), source.decode_memory());
        let _ = (model.budget(), model.memory_limit());
        let _ = (mqtt.topic(), mqtt.client_id(), mqtt.stats(), mqtt.keep_alive());
        let _ = (outbox.max_bytes(), outbox.interval(), state.image_bytes(), log.level.as_str());
        assert!(config.differences(config).is_empty());
    }

    proptest! {
        #[test]
        fn any_value_of_any_key_is_taken_or_refused_by_its_name(
            key in select(flatten(&defaults()).into_keys().collect::<Vec<_>>()),
            value in values(),
            by_variable in any::<bool>(),
        ) {
            let (section, name) = key.split_once('.').unwrap();
            let variable = format!("VGGD__{section}__{name}").to_uppercase();
            let table = toml::Table::from_iter([(name.to_owned(), value.clone())]);
            let table = toml::Table::from_iter([(section.to_owned(), table.into())]);
            let loaded = match by_variable {
                true => load("", &[(&variable, &plain(&value))]),
                false => load(&table.to_string(), &[]),
            };
            let origin = if by_variable { &variable } else { "FILE" };
            match loaded {
                Ok(config) => use_all(&config),
                // Some values are only wrong beside another key.
                Err(error) => prop_assert!(
                    error.starts_with(&format!("{origin}: {key} = '"))
                        || error.contains("source.command = ''")
                        || error.contains("mqtt.tls = 'false'")
                        || error.contains("mqtt.certificate_file = ''"),
                    "{}", error
                ),
            }
        }

        #[test]
        fn any_text_is_refused_in_words(text in ".*") {
            match load(&text, &[]) {
                Ok(config) => use_all(&config),
                Err(error) => prop_assert!(error.starts_with("FILE: "), "{}", error),
            }
        }
    }
}
