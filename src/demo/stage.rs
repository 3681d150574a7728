//! What the demo takes place on: a temporary folder, a broker, a subscriber and the daemon.
//!
//! Whatever is written is written in the temporary folder, which goes with the stage: `vggd.toml`,
//! `photos`, where copies of photos are put and the daemon deletes what is done, and `outbox`.

use std::fs;
use std::future::pending;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use vggd::daemon;
use vggd::manifest::ModelSet;

use super::broker::Broker;
use super::subscriber::{Message, Subscriber};

/// What all topics start with.
pub(super) const TOPIC: &str = "vggd/demo";

/// Names in the temporary folder.
const FILE: &str = "vggd.toml";
const PHOTOS: &str = "photos";
const OUTBOX: &str = "outbox";

/// What takes longer is not going to happen any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the daemon may take to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Everything in its place and the daemon running.
pub(super) struct Stage {
    folder: TempDir,
    broker: Broker,
    subscriber: Subscriber,
    /// The daemon stops when this is dropped.
    stop: oneshot::Sender<()>,
    /// How the daemon ended.
    ended: mpsc::Receiver<Result<()>>,
}

impl Stage {
    /// Starts the daemon with the first variant of `set`.
    ///
    /// # Errors
    /// A `ConfigError` when an environment variable changes what the demo configures; else what the
    /// system says.
    pub(super) async fn open(set: &ModelSet) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vggd-demo-").tempdir();
        let folder = folder.context("cannot make a temporary folder")?;
        fs::create_dir(folder.path().join(PHOTOS))?;
        let broker = Broker::start().await.context("the demo's broker cannot listen")?;
        let subscriber = Subscriber::connect(broker.port(), TOPIC).await?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (ending, ended) = mpsc::channel(1);
        let stage = Self { folder, broker, subscriber, stop, ended };

        let first = &set.manifest.variants[0].name;
        stage.configure(first)?;
        let options = daemon::Options {
            config: Some(stage.folder.path().join(FILE)),
            models: Some(set.directory.clone()),
            json: false,
        };
        stage.check(&options, first)?;
        let run = move || {
            let stopped = async { drop(stopped.await) };
            ending.blocking_send(daemon::run(&options, stopped)).ok();
        };
        thread::Builder::new().name("daemon".to_owned()).spawn(run)?;
        Ok(stage)
    }

    /// The port that the broker listens at.
    pub(super) fn port(&self) -> u16 {
        self.broker.port()
    }

    /// Waits until the daemon says that it is there.
    ///
    /// # Errors
    /// As for [`next`](Self::next).
    pub(super) async fn online(&mut self) -> Result<()> {
        loop {
            let message = self.next().await?;
            if message.name == "status" && message.payload == b"online" {
                return Ok(());
            }
        }
    }

    /// Writes a configuration with that variant; a running daemon takes it over.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn configure(&self, variant: &str) -> Result<()> {
        let lines = self.settings(variant).map(|(key, value)| format!("{key} = {value}\n"));
        let file = self.folder.path().join(FILE);
        let aside = file.with_extension("tmp");
        fs::write(&aside, lines.concat())
            .and_then(|()| fs::rename(&aside, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Puts a copy of a photo into the folder, at once.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(super) fn put(&self, photo: &Path) -> Result<()> {
        let folder = self.folder.path();
        let name = photo.file_name().context("a photo has a name")?;
        let aside = folder.join(name);
        fs::copy(photo, &aside)
            .and_then(|_| fs::rename(&aside, folder.join(PHOTOS).join(name)))
            .with_context(|| format!("cannot copy {} to {}", photo.display(), folder.display()))
    }

    /// The next message that the subscriber hears.
    ///
    /// # Errors
    /// When the daemon has failed, the connection is lost, or nothing is heard for long.
    pub(super) async fn next(&mut self) -> Result<Message> {
        let next = async {
            tokio::select! {
                message = self.subscriber.next() => message.context("the subscriber is cut off"),
                ended = self.ended.recv() => match ended {
                    // On a signal, which others hear too.
                    Some(Ok(())) => pending().await,
                    Some(Err(error)) => Err(error),
                    None => Err(anyhow!("the daemon panicked")),
                },
            }
        };
        match timeout(PATIENCE, next).await {
            Ok(next) => next,
            Err(_) => Err(anyhow!("heard nothing for {} s", PATIENCE.as_secs())),
        }
    }

    /// Stops the daemon and removes the temporary folder.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub(super) async fn close(self) -> Result<()> {
        let Self { folder, stop, mut ended, broker: _broker, subscriber: _subscriber } = self;
        drop(stop);
        // A model that is still being loaded is not waited for.
        timeout(GRACE, ended.recv()).await.ok();
        let path = folder.path().to_owned();
        folder.close().with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The configuration: where the default does not do.
    fn settings(&self, variant: &str) -> [(&'static str, Value); 10] {
        let [photos, outbox] = [PHOTOS, OUTBOX].map(|name| self.folder.path().join(name));
        [
            ("source.directory", photos.to_string_lossy().into()),
            ("source.afterwards", "delete".into()),
            ("source.settle_ms", 100.into()),
            ("model.variant", variant.into()),
            ("mqtt.host", "127.0.0.1".into()),
            ("mqtt.port", self.port().into()),
            ("mqtt.topic", TOPIC.into()),
            ("web.listen", "off".into()),
            ("outbox.directory", outbox.to_string_lossy().into()),
            ("log.level", "warn".into()),
        ]
    }

    /// The environment wins over the file: only how much is logged is open to it.
    fn check(&self, options: &daemon::Options, variant: &str) -> Result<()> {
        let config = options.load()?;
        let effective = serde_json::to_value(&config)?;
        for (key, value) in self.settings(variant) {
            let found = effective.pointer(&format!("/{}", key.replace('.', "/")));
            if found != Some(&value) && key != "log.level" {
                let found = found.unwrap_or(&Value::Null);
                return Err(config.wrong(key, found, "the demo sets this itself, unset it").into());
            }
        }
        Ok(())
    }
}
