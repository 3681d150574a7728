//! A real broker, the real binary, a real subscriber and a tiny model set, for end-to-end tests.

#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod schema;
pub mod witness;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// No step of a test takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Classes of the tiny network.
const CLASSES: usize = 10;

/// Every test names its program so that a missing one is understood.
pub fn program(name: &str) -> Command {
    let path = ["/usr/sbin", "/usr/local/sbin"]
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.exists());
    Command::new(path.unwrap_or_else(|| name.into()))
}

pub fn start(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; the tests need mosquitto and mosquitto-clients")
    })
}

/// A model set of VGG-19's topology with few channels, made once for each test program.
pub fn models() -> &'static Path {
    static SET: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, set) = SET.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let set = vggd_models::tiny::set(folder.path(), CLASSES).unwrap();
        (folder, set)
    });
    set
}

/// A copy of the tiny set in which each variant has an accuracy, the first one the best.
pub fn evaluated() -> (TempDir, PathBuf) {
    let (folder, path) = copied();
    evaluate(&path);
    (folder, path)
}

/// A copy of the tiny set.
pub fn copied() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set");
    fs::create_dir(&path).unwrap();
    for entry in fs::read_dir(models()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
    }
    (folder, path)
}

/// Gives each variant of a set an accuracy, the first one the best.
pub fn evaluate(set: &Path) {
    edit_manifest(set, |manifest| {
        let variants = manifest["variant"].as_array_mut().unwrap();
        for (index, variant) in variants.iter_mut().enumerate() {
            let top1 = toml::Value::Float(0.9 - 0.1 * index as f64);
            variant.as_table_mut().unwrap().insert("top1".to_owned(), top1);
        }
    });
}

/// Replaces the manifest of a set by a changed one.
pub fn edit_manifest(set: &Path, edit: impl FnOnce(&mut toml::Table)) {
    let path = set.join("manifest.toml");
    let mut manifest = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(set.join("new"), toml::to_string(&manifest).unwrap()).unwrap();
    fs::rename(set.join("new"), path).unwrap();
}

/// Photo number `number`: colourful, and different from every other.
pub fn photo(number: u32) -> image::RgbImage {
    image::RgbImage::from_fn(320, 240, |x, y| {
        let wave = |scale: u32| ((x * scale + y * (number % 7 + 1) + number * 37) % 256) as u8;
        image::Rgb([wave(1 + number % 5), wave(3), wave(7)])
    })
}

pub fn jpeg(number: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    photo(number).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() as u16).wrapping_mul(64);
    loop {
        let port = 10_000 + (first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// mosquitto on a port of its own.
pub struct Broker {
    pub port: u16,
    /// Where the tests themselves connect: without login or encryption, whatever `port` wants.
    witness: u16,
    lines: String,
    folder: TempDir,
    child: Option<Child>,
}

impl Broker {
    /// A port that nobody listens at, and that the system gives to nobody else.
    pub fn absent() -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        Self { port, witness: port, lines: "allow_anonymous true".to_owned(), folder, child: None }
    }

    /// One whose listener is configured by these lines.
    pub fn with(lines: &str) -> Self {
        let mut broker = Self::absent();
        broker.witness = free_port();
        lines.clone_into(&mut broker.lines);
        broker.start();
        broker
    }

    pub fn running() -> Self {
        let mut broker = Self::absent();
        broker.start();
        broker
    }

    pub fn start(&mut self) {
        let folder = self.folder.path().display();
        let config = self.folder.path().join("mosquitto.conf");
        let (port, witness, lines) = (self.port, self.witness, &self.lines);
        let mut text = format!(
            "per_listener_settings true\nuser root\nlog_type none\n\
             persistence true\npersistence_location {folder}/\n\
             listener {port} 127.0.0.1\n{lines}\n"
        );
        if witness != port {
            text += &format!("listener {witness} 127.0.0.1\nallow_anonymous true\n");
        }
        fs::write(&config, text).unwrap();
        let mut command = program("mosquitto");
        self.child = Some(start(command.arg("-c").arg(config).stderr(Stdio::null())));
        until("the broker listens", || {
            let mut ports = [self.port, self.witness].into_iter();
            ports.all(|port| TcpStream::connect(("127.0.0.1", port)).is_ok())
        });
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn stop(&mut self) {
        self.end("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap(), name);
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, name: &str) {
        if let Some(mut child) = self.child.take() {
            signal(&child, name);
            // One that was stopped hears it then.
            signal(&child, "CONT");
            child.wait().unwrap();
        }
    }

    /// Publishes a message, as another program would.
    pub fn publish(&self, topic: &str, payload: &str, more: &[&str]) {
        self.publish_what(topic, &["-m", payload], more);
    }

    /// Publishes what is in a file.
    pub fn publish_file(&self, topic: &str, file: &Path, more: &[&str]) {
        self.publish_what(topic, &["-f", file.to_str().unwrap()], more);
    }

    fn publish_what(&self, topic: &str, what: &[&str], more: &[&str]) {
        let port = self.witness.to_string();
        let mut command = program("mosquitto_pub");
        command.args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", topic]);
        assert!(start(command.args(what).args(more)).wait().unwrap().success());
    }

    /// Everything that is published, from now on and across restarts of the broker.
    pub fn subscribe(&self) -> Subscriber {
        let port = self.witness.to_string();
        let mut command = program("mosquitto_sub");
        command.args(["-h", "127.0.0.1", "-p", &port, "-t", "#", "-q", "1"]);
        command.args(["-c", "-i", "witness", "-F", "%t %r %x"]);
        let mut child = start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut parts = line.splitn(3, ' ').map(str::to_owned);
                let mut next = || parts.next().unwrap_or_default();
                let (topic, retained, bytes) = (next(), next() == "1", from_hex(&next()));
                let payload = String::from_utf8_lossy(&bytes).into_owned();
                let message = Message { topic, retained, payload, bytes };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let subscriber = Subscriber { child, messages };
        until("the subscription stands", || {
            let mut command = program("mosquitto_pub");
            command.args(["-h", "127.0.0.1", "-p", &port, "-t", "probe", "-m", "probe"]);
            start(&mut command).wait().unwrap();
            let deadline = Duration::from_millis(200);
            subscriber.take(deadline).is_some_and(|message| message.topic == "probe")
        });
        subscriber
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    pub retained: bool,
    /// What is not UTF-8 in it is replaced.
    pub payload: String,
    pub bytes: Vec<u8>,
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect()
}

impl Message {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }
}

/// Hears everything, and panics at a message that is not as `config/schema` says.
pub struct Subscriber {
    child: Child,
    messages: Receiver<Message>,
}

impl Subscriber {
    /// The next message on a topic that ends in `/name`; others are passed over.
    pub fn next(&self, name: &str) -> Message {
        self.next_of(&[name])
    }

    /// The next message on one of several topics.
    pub fn next_of(&self, names: &[&str]) -> Message {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.take(left).unwrap_or_else(|| panic!("no message on {names:?}"));
            if names.iter().any(|name| message.topic.ends_with(&format!("/{name}"))) {
                return message;
            }
        }
    }

    pub fn predictions(&self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.next("prediction").json()).collect()
    }

    /// What has arrived and was not taken yet, on topics that end in `/name`.
    pub fn rest(&self, name: &str) -> Vec<Message> {
        let ending = format!("/{name}");
        let rest = self.messages.try_iter().map(checked);
        rest.filter(|message| message.topic.ends_with(&ending)).collect()
    }

    fn take(&self, deadline: Duration) -> Option<Message> {
        self.messages.recv_timeout(deadline).ok().map(checked)
    }
}

fn checked(message: Message) -> Message {
    let checked = schema::check(&message.topic, &message.bytes);
    checked.unwrap_or_else(|problem| panic!("{message:?}: {problem}"));
    message
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if !std::thread::panicking() {
            self.messages.iter().for_each(|message| drop(checked(message)));
        }
    }
}

/// A daemon with a folder and a configuration of its own.
pub struct Daemon {
    folder: TempDir,
    child: Option<Child>,
    notifications: Receiver<String>,
    environment: BTreeMap<String, PathBuf>,
}

impl Daemon {
    /// A configuration and folders, nothing started.
    pub fn new(broker: &Broker) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("incoming")).unwrap();
        let notifications = notifications(&folder.path().join("notify"));
        let environment = BTreeMap::new();
        let daemon = Self { folder, child: None, notifications, environment };
        daemon.configure(broker.port, "baseline", "");
        daemon
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("vggd.toml")
    }

    /// Writes the configuration in place, as an editor that does not rename.
    pub fn configure(&self, port: u16, variant: &str, more: &str) {
        let text = format!(
            "[source]\ndirectory = 'incoming'\nsettle_ms = 200\n{more}\n\
             [model]\nset = '{}'\nvariant = '{variant}'\nthreads = 1\n\
             [mqtt]\nhost = '127.0.0.1'\nport = {port}\ntopic = 'vggd/test'\n\
             [outbox]\ndirectory = 'outbox'\nsync = 'never'\n\
             [web]\nlisten = 'off'\n\
             [log]\nlevel = 'trace'\n",
            models().display(),
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Adds lines to section `[model]` of the configuration.
    pub fn configure_model(&self, lines: &str) {
        self.replace("[model]\n", &format!("[model]\n{lines}\n"));
    }

    /// Adds lines to section `[mqtt]` of the configuration.
    pub fn configure_mqtt(&self, lines: &str) {
        self.replace("[mqtt]\n", &format!("[mqtt]\n{lines}\n"));
    }

    /// Serves the page, with more lines for section `[web]`; where it is.
    pub fn serve(&self, lines: &str) -> String {
        let address = format!("127.0.0.1:{}", free_port());
        self.replace("listen = 'off'\n", &format!("listen = '{address}'\n{lines}\n"));
        address
    }

    /// Replaces a part of the configuration.
    pub fn replace(&self, old: &str, new: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(old), "{text}");
        fs::write(self.config(), text.replace(old, new)).unwrap();
    }

    /// Sets a variable of the environment for the next start.
    pub fn set(&mut self, name: &str, value: &Path) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    pub fn incoming(&self) -> PathBuf {
        self.folder.path().join("incoming")
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(&mut self) {
        self.launch();
        self.notified("READY=1");
    }

    /// Starts it.
    pub fn launch(&mut self) {
        let log = self.folder.path().join("log");
        let log = fs::File::options().append(true).create(true).open(log).unwrap();
        let mut command = vggd();
        command.arg("run").arg("--config").arg(self.config()).current_dir(self.folder.path());
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.envs(&self.environment);
        self.child = Some(start(command.stderr(log)));
    }

    /// The next notification of the service manager that has `part` in it, and those before it.
    pub fn notified(&self, part: &str) -> Vec<String> {
        let mut heard: Vec<String> = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while !heard.last().is_some_and(|last| last.contains(part)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let next = self.notifications.recv_timeout(left);
            heard.push(next.unwrap_or_else(|_| panic!("no {part} in {heard:?}\n{}", self.log())));
        }
        heard
    }

    /// What the service manager is notified of within `time`.
    pub fn notified_within(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let left = || deadline.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| self.notifications.recv_timeout(left()).ok()).collect()
    }

    pub fn started(broker: &Broker) -> Self {
        let mut daemon = Self::new(broker);
        daemon.start();
        daemon
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap(), name);
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, name: &str) -> ExitStatus {
        self.signal(name);
        let mut child = self.child.take().unwrap();
        let mut status = None;
        until("the daemon ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Puts a photo into the folder at once, by renaming.
    pub fn drop_photo(&self, name: &str, bytes: &[u8]) {
        let hidden = self.incoming().join(format!(".{name}"));
        fs::write(&hidden, bytes).unwrap();
        fs::rename(hidden, self.incoming().join(name)).unwrap();
    }

    /// Names in a folder below `incoming`, sorted; "" for the folder itself, without `done` and
    /// `failed`.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.incoming().join(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["done", "failed"].contains(&name.as_str()))
            .collect();
        names.sort();
        names
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Largest resident memory so far in KiB.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// One of the system's figures of its memory, in KiB.
    pub fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// What is sent to the socket `path`, read at once so that nobody has to wait for room in it.
fn notifications(path: &Path) -> Receiver<String> {
    let socket = UnixDatagram::bind(path).unwrap();
    let (sender, heard) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length) = socket.recv(&mut buffer) {
            if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    heard
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", self.log());
        }
    }
}

/// The real binary, with nothing of the environment that would configure it.
pub fn vggd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vggd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VGGD__") {
            command.env_remove(name);
        }
    }
    for name in
        ["RUST_LOG", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY", "WATCHDOG_USEC", "SSL_CERT_FILE"]
    {
        command.env_remove(name);
    }
    command
}

/// Runs the real binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    vggd().args(arguments).output().unwrap()
}

/// The objects of JSON lines.
pub fn json_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Polls until `what` is true; there is nothing to wait on for these.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The next MQTT packet: its first byte and its body.
pub fn packet(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = || -> Option<u8> {
        let mut byte = [0];
        socket.read_exact(&mut byte).ok()?;
        Some(byte[0])
    };
    let first = byte()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let next = byte()?;
        length |= usize::from(next & 0x7f) << shift;
        shift += 7;
        if next < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).ok()?;
    Some((first, body))
}

/// Topic, packet id and payload, if a packet is a PUBLISH at QoS 1.
pub fn published(first: u8, body: &[u8]) -> Option<(String, [u8; 2], &[u8])> {
    if first & 0xf6 != 0x32 {
        return None;
    }
    let end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = String::from_utf8(body[2..end].to_vec()).unwrap();
    Some((topic, [body[end], body[end + 1]], &body[end + 2..]))
}

/// How often each file occurs among predictions.
pub fn count_by_file(predictions: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for prediction in predictions {
        *counts.entry(prediction["file"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}
