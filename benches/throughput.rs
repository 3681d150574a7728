//! Frames a second from memory to the broker's acknowledgement, with a tiny network: what everything around
//! inference can do, with each way of bringing predictions to the disk. Needs mosquitto.

#![allow(missing_docs)]

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use vggd::classify::{Classifier, Gate, Keeper};
use vggd::config::{Config, Sync};
use vggd::control::Chooser;
use vggd::lineup::{IDLE, Lineup, Terms};
use vggd::manifest::ModelSet;
use vggd::model::Engine;
use vggd::outbox::Outbox;
use vggd::pipeline::Pipeline;
use vggd::preprocess::{PixelFormat, Raw};
use vggd::publish::{Channels, Publisher, Retained};
use vggd::source::{Condition, Frame, Handoff, Picture, Source};
use vggd_models::build::{Build, Start, build};
use vggd_models::plan::Step;
use vggd_models::tiny;
use vggd_models::variant::Form;

/// How long frames are put in.
const RUN: Duration = Duration::from_secs(10);

/// A port that is hopefully free.
const PORT: u16 = 18_839;

/// Frames out of memory, as fast as they are taken.
#[derive(Default)]
struct Memory {
    given: AtomicU64,
}

impl Source for Memory {
    fn run(&self, handoff: &Handoff, _: &dyn Fn(Condition)) {
        let data = (0..160 * 120 * 3).map(|index| (index * 7 % 251) as u8).collect();
        let raw = Raw { format: PixelFormat::Rgb, width: 160, height: 120, data };
        while handoff.put(Frame::live(Picture::Raw(raw.clone()), Duration::ZERO)) {
            self.given.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn stop(&self) {}
}

/// A tiny network that looks at 96 x 96 pixels.
fn tiny_set(folder: &Path) -> PathBuf {
    let set = tiny::set(folder, 10).unwrap();
    let form = Form { side: 96, ..Form::PLAIN };
    let request = Build {
        out: set.clone(),
        name: "tiny".to_owned(),
        start: Start::Variant("baseline".to_owned()),
        photos: None,
        calibration: 0,
        steps: vec![Step { name: "small".to_owned(), changes: Vec::new(), form }],
        force: false,
    };
    build(&Engine::new(2), &request, &mut ()).unwrap();
    set
}

fn broker(folder: &Path) -> Child {
    let config = folder.join("mosquitto.conf");
    fs::write(&config, format!("listener {PORT} 127.0.0.1\nallow_anonymous true\nlog_type none\n"))
        .unwrap();
    let mut command = Command::new("/usr/sbin/mosquitto");
    let child = command.arg("-c").arg(config).stderr(Stdio::null()).spawn().expect("mosquitto");
    while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Frames that were acknowledged in a second, and how many were given in all.
async fn measure(config: &Config, set: &ModelSet) -> (f64, u64) {
    let outbox = Arc::new(Outbox::open(&config.outbox).unwrap());
    let source = Arc::new(Memory::default());
    let fresh = Arc::new(Notify::new());
    let tell = fresh.clone();
    let keeper = Keeper::new(outbox.clone(), source.clone(), move || tell.notify_one());
    let engine = Engine::configured(&config.model).unwrap();
    let chooser = Chooser::Fixed("small".to_owned());
    let terms = Terms { chooser, budget: None, miss_rate: 0.05, memory_limit: None, idle: IDLE };
    let lineup = Lineup::new(set.clone(), &engine, terms, |_, _| None);
    lineup.begin("small").unwrap();
    let classifier = Classifier {
        pipeline: Pipeline::new(&config.source),
        lineup: Arc::new(lineup),
        gate: Arc::new(Gate::new(Duration::ZERO)),
        keeper: Arc::new(keeper),
        stats: Arc::default(),
        source: "camera",
        min_change: 0.0,
        seen: Box::new(|_| {}),
        failed: Box::new(|failure| panic!("{failure:?}")),
    };
    let (notices, noticed) = mpsc::channel(1);
    let (_retained, retained) = watch::channel(Retained::new());
    let (orders, _ordered) = mpsc::channel(1);
    let (_stop, stop) = watch::channel(false);
    let channels = Channels {
        outbox: outbox.clone(),
        fresh,
        notices: noticed,
        retained,
        orders,
        stop,
        health: Arc::default(),
    };
    let publisher = tokio::spawn(Publisher::new(config, channels).run());

    let handoff = Arc::new(Handoff::default());
    let (frames, given) = (handoff.clone(), source.clone());
    let capture = std::thread::spawn(move || given.run(&frames, &|_| {}));
    let frames = handoff.clone();
    let interval = match config.outbox.sync {
        Sync::Always => Duration::ZERO,
        Sync::Interval | Sync::Never => config.outbox.interval(),
    };
    let start = Instant::now();
    let classify = std::thread::spawn(move || classifier.run(&frames).unwrap());
    while start.elapsed() < RUN {
        tokio::time::sleep(interval).await;
        let outbox = outbox.clone();
        tokio::task::spawn_blocking(move || outbox.flush()).await.unwrap();
    }
    handoff.close();
    capture.join().unwrap();
    classify.join().unwrap();
    // Without senders of notices the publisher ends once everything is acknowledged.
    drop(notices);
    publisher.await.unwrap();
    assert_eq!(outbox.status().pending, 0, "not everything was acknowledged");
    let given = source.given.load(Ordering::Relaxed);
    (given as f64 / start.elapsed().as_secs_f64(), given)
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let set = ModelSet::open(&tiny_set(folder.path())).unwrap();
    let mut broker = broker(folder.path());
    let mut config = Config::load(None).unwrap();
    config.mqtt.host = "127.0.0.1".to_owned();
    config.mqtt.port = PORT;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("sync        frames/s");
    for (name, sync) in
        [("never", Sync::Never), ("interval", Sync::Interval), ("always", Sync::Always)]
    {
        config.outbox.sync = sync;
        config.outbox.directory = folder.path().join(name);
        let (rate, given) = runtime.block_on(measure(&config, &set));
        println!("{name:<10}  {rate:>8.0}  ({given} frames)");
    }
    broker.kill().unwrap();
    broker.wait().unwrap();
}
