//! The broker with clients of another make, and byte by byte.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use tokio::sync::oneshot;

use super::*;

/// No step takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker with a thread of its own.
struct Running {
    port: u16,
    _stop: oneshot::Sender<()>,
}

impl Running {
    fn new() -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let broker = Broker::start().await.unwrap();
                tell.send(broker.port()).unwrap();
                stopped.await.ok();
            });
        });
        let running = Self { port: told.recv().unwrap(), _stop: stop };
        running.publish(&["-t", "ready", "-m", "ready", "-r"]);
        running
    }

    fn mosquitto(&self, name: &str, arguments: &[&str]) -> Child {
        let mut command = Command::new(name);
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(arguments);
        let child = command.stdout(Stdio::piped()).spawn();
        child.unwrap_or_else(|error| panic!("{name}: {error}; needs mosquitto-clients"))
    }

    fn publish(&self, arguments: &[&str]) {
        assert!(self.mosquitto("mosquitto_pub", arguments).wait().unwrap().success());
    }

    /// Subscribed to `ready` and `end` as well; the first is retained and has been heard when
    /// this returns.
    fn subscribe(&self, arguments: &[&str]) -> Witness {
        let mut all = vec!["-t", "ready", "-t", "end", "-F", "%t %q %r %p", "-W", "30"];
        all.extend(arguments);
        let mut child = self.mosquitto("mosquitto_sub", &all);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut witness = Witness { child, lines };
        while !witness.line().starts_with("ready ") {}
        witness
    }

    /// Connected, from a client that is told what to send byte by byte.
    fn connect(&self, client_id: &str, keep_alive: u8) -> TcpStream {
        let mut socket = self.socket();
        let length = client_id.len() as u8;
        let mut connect = vec![0x10, 12 + length, 0, 4];
        connect.extend(b"MQTT");
        connect.extend([4, 2, 0, keep_alive, 0, length]);
        connect.extend(client_id.as_bytes());
        socket.write_all(&connect).unwrap();
        check(&mut socket, &[0x20, 2, 0, 0]);
        socket
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// The next bytes are these.
fn check(socket: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    socket.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

/// The broker hangs up without another word.
fn check_ended(socket: &mut TcpStream) {
    assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)));
}

struct Witness {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Witness {
    fn line(&mut self) -> String {
        self.lines.next().expect("the subscriber goes on").unwrap()
    }

    /// What was heard until now, as topic, QoS, whether it was retained, and payload.
    fn heard(mut self, running: &Running) -> Vec<String> {
        running.publish(&["-t", "end", "-m", "end"]);
        let lines = std::iter::repeat_with(|| self.line());
        lines.take_while(|line| !line.starts_with("end ")).collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn everybody_hears_what_they_asked_for() {
    type Case = (&'static [&'static str], &'static str, &'static [&'static str]);
    let cases: [Case; 8] = [
        (&["-t", "a/b"], "0", &["a/b 0 0 x"]),
        (&["-t", "a/+"], "0", &["a/b 0 0 x", "a/c 0 0 x"]),
        (&["-t", "a/#"], "0", &["a 0 0 x", "a/b 0 0 x", "a/b/c 0 0 x", "a/c 0 0 x"]),
        (&["-t", "+/b/#"], "0", &["a/b 0 0 x", "a/b/c 0 0 x"]),
        (&["-t", "a/b", "-t", "+/b"], "0", &["a/b 0 0 x"]),
        (&["-t", "a/b", "-q", "1"], "0", &["a/b 0 0 x"]),
        (&["-t", "a/b", "-q", "2"], "1", &["a/b 1 0 x"]),
        (&["-t", "a/b", "-q", "0"], "1", &["a/b 0 0 x"]),
    ];
    for (asked, qos, expected) in cases {
        let running = Running::new();
        let witness = running.subscribe(asked);
        for topic in ["a", "a/b", "a/b/c", "a/c", "b"] {
            running.publish(&["-t", topic, "-m", "x", "-q", qos]);
        }
        assert_eq!(witness.heard(&running), expected, "{asked:?}");
    }
}

#[test]
fn the_last_retained_message_is_told_to_latecomers_until_it_is_cleared() {
    let running = Running::new();
    let early = running.subscribe(&["-t", "a", "-q", "1"]);
    running.publish(&["-t", "a", "-m", "1", "-r", "-q", "1"]);
    running.publish(&["-t", "a", "-m", "2", "-r", "-q", "1"]);
    let late = running.subscribe(&["-t", "#", "-q", "1"]);
    running.publish(&["-t", "a", "-n", "-r", "-q", "1"]);
    let later = running.subscribe(&["-t", "a"]);
    assert_eq!(early.heard(&running), ["a 1 0 1", "a 1 0 2", "a 1 0 "]);
    let mut late = late.heard(&running);
    late.retain(|line| !line.starts_with("ready "));
    assert_eq!(late, ["a 1 1 2", "a 1 0 "]);
    assert_eq!(later.heard(&running), [""; 0]);
}

#[test]
fn a_last_will_speaks_unless_the_client_says_goodbye() {
    let running = Running::new();
    let witness = running.subscribe(&["-t", "will"]);
    let will = ["-t", "a", "--will-topic", "will", "--will-payload"];
    let mut killed = running.subscribe(&[&will[..], &["killed"]].concat());
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let mut left = running.subscribe(&[&will[..], &["left", "-C", "2"]].concat());
    running.publish(&["-t", "a", "-m", "x"]);
    assert!(left.child.wait().unwrap().success());
    assert_eq!(witness.heard(&running), ["will 0 0 killed"]);
}

#[test]
fn a_client_that_misbehaves_is_sent_away_and_the_others_stay() {
    let running = Running::new();
    let witness = running.subscribe(&["-t", "a"]);
    let exactly_once = [0x34, 6, 0, 1, b'a', 0, 1, b'x'];
    let subscribe_wrongly = [0x82, 6, 0, 1, 0, 1, b'a', 3];
    let too_long = [0x30, 0xff, 0xff, 0xff, 0x7f];
    let connect_again = [0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 0];
    let cases: [&[u8]; 5] =
        [&exactly_once, &subscribe_wrongly, &too_long, &connect_again, &[0xff; 8]];
    for bytes in cases {
        let mut socket = running.connect("odd", 0);
        socket.write_all(bytes).unwrap();
        check_ended(&mut socket);
    }
    let mut nobody = running.socket();
    nobody.write_all(&[0xc0, 0]).unwrap();
    check_ended(&mut nobody);
    running.publish(&["-t", "a", "-m", "x"]);
    assert_eq!(witness.heard(&running), ["a 0 0 x"]);
}

#[test]
fn a_name_belongs_to_the_last_who_takes_it_and_silence_ends_a_connection() {
    let running = Running::new();
    let (mut first, mut other) = (running.connect("a", 0), running.connect("b", 0));
    let (mut nameless, mut again) = (running.connect("", 0), running.connect("", 0));
    let mut second = running.connect("a", 1);
    check_ended(&mut first);
    for socket in [&mut other, &mut nameless, &mut again] {
        socket.write_all(&[0xc0, 0]).unwrap();
        check(socket, &[0xd0, 0]);
    }
    check_ended(&mut second);
    other.write_all(&[0xc0, 0]).unwrap();
    check(&mut other, &[0xd0, 0]);
}

#[test]
fn a_filter_can_be_refused_and_taken_back() {
    let running = Running::new();
    let mut socket = running.connect("a", 0);
    // "x/y" at QoS 2, and "#/y".
    let subscribe = [0x82, 14, 0, 7, 0, 3, b'x', b'/', b'y', 2, 0, 3, b'#', b'/', b'y', 0];
    socket.write_all(&subscribe).unwrap();
    check(&mut socket, &[0x90, 4, 0, 7, 1, 0x80]);
    running.publish(&["-t", "x/y", "-m", "1", "-q", "1"]);
    check(&mut socket, &[0x32, 8, 0, 3, b'x', b'/', b'y', 0, 1, b'1']);
    socket.write_all(&[0x40, 2, 0, 1]).unwrap();
    socket.write_all(&[0xa2, 7, 0, 8, 0, 3, b'x', b'/', b'y']).unwrap();
    check(&mut socket, &[0xb0, 2, 0, 8]);
    running.publish(&["-t", "x/y", "-m", "2", "-q", "1"]);
    socket.write_all(&[0xc0, 0]).unwrap();
    check(&mut socket, &[0xd0, 0]);
}
