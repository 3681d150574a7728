//! The page and its interface, as browsers, programs and strangers use them.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{Broker, Daemon, PATIENCE, Subscriber, evaluated, jpeg, models, until, vggd};
use common::{schema, witness};

/// What comes back.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The words of a refusal.
    fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().unwrap().to_owned())
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request with more header lines, and reads the whole answer.
fn request(address: &str, line: &str, headers: &str, body: &[u8]) -> Reply {
    let mut stream = connect(address);
    let length = body.len();
    let host =
        if headers.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    let head = format!(
        "{line} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    reply(stream)
}

fn reply(stream: TcpStream) -> Reply {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "only {head:?}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = Vec::new();
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            body.extend(&chunk[..size]);
        }
    } else {
        reader.read_to_end(&mut body).unwrap();
    }
    Reply { status, head, body }
}

fn get(address: &str, path: &str) -> Reply {
    request(address, &format!("GET {path}"), "", b"")
}

fn put(address: &str, path: &str, body: &str) -> Reply {
    request(address, &format!("PUT {path}"), "", body.as_bytes())
}

/// How everything stands, as `config/schema` says, and so do the messages in it.
fn overview(address: &str) -> Value {
    let status = get(address, "/api/v1/status").json();
    as_documented(&status);
    status
}

fn as_documented(status: &Value) {
    let check = |name: &str, part: &Value| {
        assert_eq!(schema::check(name, part.to_string().as_bytes()), Ok(()), "{part}");
    };
    check("api-status", status);
    check("state", &status["state"]);
    if let Some(last) = status["last"].as_object() {
        let mut last = last.clone();
        assert_eq!(last.insert("sequence".to_owned(), json!(1)), Some(json!(0)));
        check("prediction", &Value::Object(last));
    }
}

/// A daemon that serves its page.
fn served(broker: &Broker, lines: &str) -> (Daemon, String) {
    let mut daemon = Daemon::new(broker);
    let address = daemon.serve(lines);
    daemon.start();
    until("the page is there", || TcpStream::connect(&address).is_ok());
    (daemon, address)
}

/// Has a photo classified.
fn classify(daemon: &Daemon, witness: &Subscriber, number: u32) -> Value {
    daemon.drop_photo(&format!("{number}.jpg"), &jpeg(number));
    witness.next("prediction").json()
}

#[test]
fn the_status_tells_what_holds_and_the_history_how_it_was() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    witness.next("variant");
    let before = overview(&address);
    assert_eq!(
        (&before["last"], &before["running"], &before["frames"]),
        (&Value::Null, &Value::Null, &json!(0))
    );
    let prediction = classify(&daemon, &witness, 1);
    let reply = get(&address, "/api/v1/status");
    assert!(reply.head.to_lowercase().contains("content-type: application/json"), "{reply:?}");
    let status = overview(&address);
    assert_eq!(status["last"]["id"], prediction["id"]);
    assert_eq!(status["last"]["top"], prediction["top"]);
    assert_eq!((&status["variant"], &status["running"]), (&json!("baseline"), &json!("baseline")));
    assert_eq!(
        (&status["frames"], &status["late"], &status["paused"]),
        (&json!(1), &json!(0), &json!(false))
    );
    assert_eq!(status["source"]["kind"], "directory");
    assert_eq!(status["automatic"], false);
    assert_eq!(status["budget_ms"], Value::Null);
    assert_eq!(status["why"], "baseline runs because it was chosen for all frames");
    let variants = status["variants"].as_array().unwrap();
    let names: Vec<_> = variants.iter().map(|variant| variant["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["baseline", "quantized", "scaled"]);
    let loaded: Vec<_> =
        variants.iter().map(|variant| variant["loaded"].as_bool().unwrap()).collect();
    assert_eq!(loaded, [true, false, false]);
    until("the broker is seen", || overview(&address)["broker"]["connected"] == true);
    let history = get(&address, "/api/v1/history").json();
    let points = history["points"].as_array().unwrap();
    assert_eq!(points.len(), 1);
    let timings = &prediction["timings_ms"];
    let counted = timings["total"].as_f64().unwrap() - timings["wait"].as_f64().unwrap();
    assert!((points[0]["total_ms"].as_f64().unwrap() - counted).abs() < 0.01, "{points:?}");
}

#[test]
fn orders_do_what_they_do_over_mqtt_and_say_what_is_wrong() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    assert_eq!(witness.next("variant").payload, "baseline");
    let set = put(&address, "/api/v1/budget", "150");
    assert_eq!(set.json(), json!({"variant": "baseline", "budget_ms": 150.0, "paused": false}));
    while witness.next("budget").payload != "150" {}
    let set = put(&address, "/api/v1/variant", "scaled");
    assert_eq!(set.json()["variant"], "scaled");
    while witness.next("variant").payload != "scaled" {}
    assert_eq!(classify(&daemon, &witness, 1)["variant"], "scaled");
    assert_eq!(put(&address, "/api/v1/pause", "ON").json()["paused"], true);
    daemon.drop_photo("2.jpg", &jpeg(2));
    assert_eq!(request(&address, "POST /api/v1/snapshot", "", b"").status, 202);
    assert_eq!(witness.next("prediction").json()["file"], "2.jpg");
    assert_eq!(put(&address, "/api/v1/pause", "OFF").json()["paused"], false);

    let cases = [
        ("variant", "nonesuch", 400, "no variant 'nonesuch'"),
        ("variant", "auto", 400, "run vggd-models evaluate"),
        ("budget", "soon", 400, "'soon' is not a number"),
        ("pause", "perhaps", 400, "neither ON nor OFF"),
        ("colour", "red", 404, "nothing at /api/v1/colour"),
    ];
    for (name, value, status, words) in cases {
        let (found, problem) = put(&address, &format!("/api/v1/{name}"), value).refusal();
        assert!(found == status && problem.contains(words), "{name} {value}: {found} {problem}");
    }
    let long = put(&address, "/api/v1/variant", &"a".repeat(10_000)).refusal();
    assert_eq!(long, (400, "the order is too long, or cut".to_owned()));
    assert_eq!(overview(&address)["variant"], "scaled");
}

/// The next event of a stream, as its name and data.
fn event(stream: &mut impl BufRead) -> (String, Value) {
    let (mut name, mut line) = (String::new(), String::new());
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream has ended");
        if let Some(value) = line.strip_prefix("event: ") {
            value.trim().clone_into(&mut name);
        }
        if let Some(value) = line.strip_prefix("data: ") {
            return (name, serde_json::from_str(value).unwrap());
        }
    }
}

fn open_stream(address: &str) -> BufReader<TcpStream> {
    let mut stream = connect(address);
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    BufReader::new(stream)
}

#[test]
fn events_tell_of_frames_and_changes_and_hold_still_in_between() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    witness.next("variant");
    let mut stream = open_stream(&address);
    let (name, status) = event(&mut stream);
    as_documented(&status);
    assert_eq!((name.as_str(), &status["frames"]), ("status", &json!(0)));
    let id = classify(&daemon, &witness, 1)["id"].clone();
    let prediction = loop {
        let (name, data) = event(&mut stream);
        if name == "prediction" {
            break data;
        }
    };
    assert_eq!(prediction["prediction"]["id"], id);
    assert!(prediction["point"]["total_ms"].as_f64().unwrap() > 0.0);
    put(&address, "/api/v1/budget", "250");
    let until = Instant::now() + PATIENCE;
    while event(&mut stream).1["budget_ms"] != 250.0 {
        assert!(Instant::now() < until);
    }
}

#[test]
fn streams_are_bounded_and_a_closed_one_makes_room() {
    let broker = Broker::absent();
    let (_daemon, address) = served(&broker, "");
    let mut streams: Vec<_> = (0..16).map(|_| open_stream(&address)).collect();
    streams.iter_mut().for_each(|stream| drop(event(stream)));
    let (status, problem) = get(&address, "/api/v1/events").refusal();
    assert!(status == 503 && problem.contains("16 streams"), "{problem}");
    // Others are served all the same.
    assert_eq!(get(&address, "/healthz").status, 200);
    streams.pop();
    until("there is room again", || {
        let mut stream = open_stream(&address);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line.contains("200")
    });
}

#[test]
fn every_variant_gets_a_card_as_vggd_compare_shows_it() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    let folder = tempfile::tempdir().unwrap();
    let photo = folder.path().join("photo.jpg");
    std::fs::write(&photo, jpeg(5)).unwrap();
    let mut command = vggd();
    command.args(["compare", "--json", "--runs", "1", "--models"]).arg(models()).arg(&photo);
    let output = command.output().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    let expected: Vec<Value> =
        expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();

    let check = |reply: &Reply| {
        assert_eq!(reply.status, 200, "{reply:?}");
        let lines = reply.lines();
        assert_eq!(lines[0]["start"]["variants"], json!(["baseline", "quantized", "scaled"]));
        assert_eq!(lines.last().unwrap(), &json!({"done": {}}));
        let next: Vec<_> = lines.iter().filter_map(|line| line["next"].as_str()).collect();
        assert_eq!(next, ["baseline", "quantized", "scaled"]);
        let cards: Vec<&Value> = lines.iter().filter_map(|line| line.get("card")).collect();
        assert_eq!(cards.len(), expected.len());
        for (card, expected) in cards.iter().zip(&expected) {
            for key in ["variant", "top", "agrees", "bytes", "description", "input"] {
                assert_eq!(card[key], expected[key], "{key}");
            }
            assert!(card["median_ms"].as_f64().unwrap() > 0.0);
        }
        assert_eq!((&cards[2]["input"], &cards[0]["speedup"]), (&json!(160), &json!(1.0)));
    };
    check(&request(&address, "POST /api/v1/compare?runs=1", "", &jpeg(5)));

    let none = request(&address, "POST /api/v1/compare?frame=last", "", b"").refusal();
    assert_eq!(none, (404, "no frame was classified so far".to_owned()));
    daemon.drop_photo("5.jpg", &jpeg(5));
    witness.next("prediction");
    check(&request(&address, "POST /api/v1/compare?frame=last&runs=1", "", b""));
}

#[test]
fn what_cannot_be_compared_is_refused_in_words() {
    let broker = Broker::absent();
    let (_daemon, address) = served(&broker, "max_upload_mb = 1");
    let large = vec![7; 50 << 20];
    let half = &jpeg(1)[..2000];
    let cases: [(&str, &[u8], u16, &str); 7] = [
        ("", b"", 400, "send a photo"),
        ("", b"GIF89a not a photo at all", 415, "the photo"),
        ("", half, 415, "the photo"),
        ("", &large, 413, "web.max_upload_mb = 1 MB"),
        ("?runs=0", b"", 400, "runs must be from 1 to 20"),
        ("?frame=first", b"", 400, "frame can only be 'last'"),
        ("?frame=last", b"", 404, "no frame"),
    ];
    for (query, body, status, words) in cases {
        let reply = request(&address, &format!("POST /api/v1/compare{query}"), "", body);
        let (found, problem) = reply.refusal();
        assert!(found == status && problem.contains(words), "{query}: {found} {problem}");
    }
    // What is cut off in the middle leaves nothing behind.
    let mut stream = connect(&address);
    let head = format!(
        "POST /api/v1/compare HTTP/1.1\r\nHost: {address}\r\nContent-Length: 900000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&large[..5000]).unwrap();
    drop(stream);
    until("the turn is free again", || {
        let reply = request(&address, "POST /api/v1/compare?runs=1", "", &jpeg(2));
        assert!([200, 409].contains(&reply.status), "{reply:?}");
        reply.status == 200
    });
}

/// Begins to send a photo that does not say how long it is.
fn begin_upload(address: &str) -> TcpStream {
    let mut stream = connect(address);
    let head = format!(
        "POST /api/v1/compare?runs=1 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn send_chunk(stream: &mut TcpStream, bytes: &[u8]) {
    write!(stream, "{:x}\r\n", bytes.len()).unwrap();
    stream.write_all(bytes).unwrap();
    stream.write_all(b"\r\n").unwrap();
}

#[test]
fn an_endless_photo_is_refused_and_neither_kept_nor_waited_for() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "max_upload_mb = 1");
    classify(&daemon, &witness, 0);
    let before = daemon.memory("VmRSS:");
    let mut stream = begin_upload(&address);
    for number in 1..=50 {
        send_chunk(&mut stream, &[7; 1 << 20]);
        if number % 10 == 0 {
            classify(&daemon, &witness, number);
        }
    }
    send_chunk(&mut stream, b"");
    let (status, problem) = reply(stream).refusal();
    assert!(status == 413 && problem.contains("web.max_upload_mb = 1 MB"), "{status} {problem}");
    let grown = daemon.memory("VmRSS:").saturating_sub(before);
    assert!(grown < 20 << 10, "{grown} kB more");
}

#[test]
fn slow_uploads_hold_up_no_comparison_and_are_bounded() {
    let broker = Broker::absent();
    let (_daemon, address) = served(&broker, "");
    let photo = jpeg(1);
    let mut slow: Vec<TcpStream> = (0..3).map(|_| begin_upload(&address)).collect();
    for stream in &mut slow {
        send_chunk(stream, &photo[..100]);
    }
    let reply_of = |photo: &[u8]| request(&address, "POST /api/v1/compare?runs=1", "", photo);
    assert_eq!(reply_of(&photo).lines().last().unwrap(), &json!({"done": {}}));
    // One more, and there is room for no other.
    slow.push(begin_upload(&address));
    send_chunk(&mut slow[3], &photo[..100]);
    let mut words = String::new();
    until("the fourth one has begun", || {
        let reply = reply_of(&photo);
        words = reply.text();
        reply.status == 503
    });
    assert!(words.contains("4 photos are on their way"), "{words}");
    // Whoever goes on gets its cards in the end.
    send_chunk(&mut slow[0], &photo[100..]);
    send_chunk(&mut slow[0], b"");
    assert_eq!(reply(slow.remove(0)).lines().last().unwrap(), &json!({"done": {}}));
    drop(slow);
    until("there is room again", || reply_of(&photo).status == 200);
}

/// The processes that a daemon has started: of each the niceness of all its threads.
fn children(daemon: &Daemon) -> Vec<Vec<i32>> {
    let field = |path: &std::path::Path, number: usize| -> Option<i32> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        // The name, which may have anything in it, is the second one.
        let rest = &stat[stat.rfind(')')? + 2..];
        rest.split(' ').nth(number - 3)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let own = processes.filter(|path| field(path, 4) == i32::try_from(daemon.id()).ok());
    let threads = own.filter_map(|path| std::fs::read_dir(path.join("task")).ok());
    threads
        .map(|tasks| tasks.flatten().filter_map(|task| field(&task.path(), 19)).collect())
        .collect()
}

#[test]
fn whatever_compares_has_the_lowest_priority_and_ends_with_its_visitor() {
    let broker = Broker::absent();
    let (daemon, address) = served(&broker, "");
    let mut stream = BufReader::new(connect(&address));
    let photo = jpeg(1);
    let head = format!(
        "POST /api/v1/compare?runs=20 HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
        photo.len()
    );
    stream.get_mut().write_all(head.as_bytes()).unwrap();
    stream.get_mut().write_all(&photo).unwrap();
    until("a process measures behind all others", || {
        let all = children(&daemon);
        assert!(all.len() <= 1, "{all:?}");
        all.iter().any(|threads| !threads.is_empty() && threads.iter().all(|nice| *nice == 19))
    });
    drop(stream);
    until("nothing is compared any more", || {
        children(&daemon).is_empty() && overview(&address)["comparing"] == false
    });
}

#[test]
fn what_does_not_fit_into_memory_is_left_out() {
    let broker = Broker::absent();
    let mut daemon = Daemon::new(&broker);
    // Room for one variant, of 3 MiB.
    daemon.configure_model("memory_limit = 4");
    let address = daemon.serve("");
    daemon.start();
    let reply = request(&address, "POST /api/v1/compare?runs=1", "", &jpeg(1));
    let lines = reply.lines();
    let left_out: Vec<_> = lines.iter().filter_map(|line| line.get("left_out")).collect();
    assert!(!left_out.is_empty(), "{lines:?}");
    for variant in left_out {
        let reason = variant["reason"].as_str().unwrap();
        assert!(reason.contains("model.memory_limit = 4"), "{reason}");
    }
}

#[test]
fn the_last_frame_is_shown_only_where_that_is_allowed() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    classify(&daemon, &witness, 1);
    let (status, problem) = get(&address, "/api/v1/frame").refusal();
    assert!(status == 403 && problem.contains("web.frame = true"), "{problem}");

    let (daemon, address) = served(&broker, "frame = true");
    assert_eq!(get(&address, "/api/v1/frame").refusal().0, 404);
    classify(&daemon, &witness, 2);
    let reply = get(&address, "/api/v1/frame");
    assert!(reply.head.to_lowercase().contains("content-type: image/jpeg"), "{}", reply.head);
    let shown = image::load_from_memory(&reply.body).unwrap().to_rgb8();
    let real = common::photo(2);
    assert_eq!(shown.dimensions(), real.dimensions());
    let difference: u64 =
        shown.iter().zip(real.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(difference < 20 * shown.len() as u64, "{difference}");
}

#[test]
fn without_the_token_nothing_is_told() {
    let broker = Broker::absent();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    let (_daemon, address) = served(&broker, &format!("token_file = '{}'", file.display()));
    let basic = |login: &str| {
        let mut child = Command::new("base64");
        let mut child = child.stdin(std::process::Stdio::piped());
        child = child.stdout(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(login.as_bytes()).unwrap();
        let coded = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        format!("Authorization: Basic {}\r\n", coded.trim())
    };
    let cases = [
        (String::new(), 401),
        ("Authorization: Bearer correct-horse-battery\r\n".to_owned(), 200),
        ("Authorization: bearer wrong\r\n".to_owned(), 401),
        ("Authorization: Bearer correct-horse-batterz\r\n".to_owned(), 401),
        ("Authorization: Digest correct-horse-battery\r\n".to_owned(), 401),
        ("Authorization: Basic !!!\r\n".to_owned(), 401),
        (basic("anyone:correct-horse-battery"), 200),
        (basic("correct-horse-battery"), 401),
        (basic("correct-horse-battery:"), 401),
    ];
    for path in ["/", "/metrics", "/api/v1/status"] {
        for (header, expected) in &cases {
            let reply = request(&address, &format!("GET {path}"), header, b"");
            assert_eq!(reply.status, *expected, "{path} {header}");
            let asks = reply.head.to_lowercase().contains("www-authenticate: basic");
            assert_eq!(asks, *expected == 401);
        }
    }
    assert_eq!(get(&address, "/healthz").status, 200);
}

#[test]
fn other_machines_need_a_token() {
    let broker = Broker::absent();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let cases: [(&str, Option<&str>, &str); 3] = [
        ("0.0.0.0:8190", None, "give a web.token_file"),
        ("[::]:8190", None, "give a web.token_file"),
        ("0.0.0.0:8190", Some("short\n"), "from 16 to 1024 bytes"),
    ];
    for (listen, token, words) in cases {
        let daemon = Daemon::new(&broker);
        let mut lines = format!("listen = '{listen}'\n");
        if let Some(token) = token {
            std::fs::write(&file, token).unwrap();
            lines += &format!("token_file = '{}'\n", file.display());
        }
        daemon.replace("listen = 'off'\n", &lines);
        for name in ["check", "run"] {
            let mut command = vggd();
            command.arg(name).arg("--config").arg(daemon.config());
            let output = command.current_dir(daemon.config().parent().unwrap()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{text}");
            assert!(text.contains(words), "{name} {listen}: {text}");
        }
    }
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let broker = Broker::absent();
    let (_daemon, address) = served(&broker, "");
    let port = address.split(':').nth(1).unwrap();
    let own = format!("Origin: http://{address}\r\n");
    let named = format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n");
    let cases = [
        ("PUT", own.as_str(), 200),
        ("PUT", named.as_str(), 200),
        ("PUT", "Sec-Fetch-Site: same-origin\r\n", 200),
        ("PUT", "Origin: http://evil.example\r\n", 403),
        ("PUT", "Origin: null\r\n", 403),
        ("PUT", "Sec-Fetch-Site: cross-site\r\n", 403),
        ("PUT", "Sec-Fetch-Site: same-site\r\n", 403),
        // A name of a stranger's that leads here.
        ("PUT", "Host: evil.example\r\nOrigin: http://evil.example\r\n", 403),
        ("GET", "Host: evil.example\r\n", 403),
        ("GET", "Host: [::1]:80\r\n", 405),
    ];
    for (method, headers, expected) in cases {
        let reply = request(&address, &format!("{method} /api/v1/pause"), headers, b"OFF");
        assert_eq!(reply.status, expected, "{method} {headers}: {reply:?}");
    }
    // Nor do they see anything; a link may lead here.
    let foreign = "Origin: http://evil.example\r\n";
    let embeds =
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n";
    let frames =
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n";
    let links =
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for (line, headers, expected) in [
        ("POST /api/v1/compare", foreign, 403),
        ("POST /api/v1/compare?frame=last", foreign, 403),
        ("POST /api/v1/snapshot", foreign, 403),
        ("POST /api/v1/snapshot", links, 403),
        ("GET /api/v1/status", foreign, 403),
        ("GET /api/v1/frame", embeds, 403),
        ("GET /api/v1/events", embeds, 403),
        ("GET /", frames, 403),
        ("GET /", links, 200),
        ("GET /api/v1/status", "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n", 200),
    ] {
        let reply = request(&address, line, headers, b"");
        assert_eq!(reply.status, expected, "{line} {headers}: {reply:?}");
        let head = reply.head.to_lowercase();
        for name in ["resource", "opener"] {
            let policy = format!("cross-origin-{name}-policy: same-origin");
            assert!(head.contains(&policy), "{policy} in {head}");
        }
        assert!(!head.contains("access-control"), "{head}");
    }
}

#[test]
fn with_a_token_other_machines_may_come_in() {
    let broker = Broker::absent();
    let mut daemon = Daemon::new(&broker);
    let file = daemon.config().with_file_name("token");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    let own = daemon.serve("token_file = 'token'");
    let port = own.split(':').nth(1).unwrap();
    daemon.replace(&format!("listen = '{own}'"), &format!("listen = '0.0.0.0:{port}'"));
    daemon.start();
    until("the page is there", || TcpStream::connect(&own).is_ok());
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the page is there")).unwrap();
    let line = line.replace('"', "");
    assert!(line.contains(&format!("http://0.0.0.0:{port}/")), "{line}");
    assert!(line.contains("token=true") && !log.contains("correct-horse"), "{line}");
    // By a name or an address of this machine, whatever it is called.
    for (host, token, expected) in [
        ("device.example:8190", "correct-horse-battery", 200),
        ("192.0.2.7", "correct-horse-battery", 200),
        ("device.example:8190", "wrong-horse-battery", 401),
    ] {
        let headers = format!("Host: {host}\r\nAuthorization: Bearer {token}\r\n");
        let reply = request(&own, "GET /api/v1/status", &headers, b"");
        assert_eq!(reply.status, expected, "{host} {token}");
    }
}

#[test]
fn the_page_is_light_and_an_idle_stream_is_quiet() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    classify(&daemon, &witness, 1);
    let mut files = vec!["/".to_owned()];
    let mut weight = 0;
    for at in 0.. {
        let Some(path) = files.get(at) else { break };
        let reply = get(&address, path);
        assert_eq!(reply.status, 200, "{path}");
        weight += reply.head.len() + reply.body.len();
        let text = reply.text();
        let named = text.split(['"', '\'']).map(|word| word.trim_start_matches('.'));
        for name in named.filter(|name| [".js", ".css", ".svg"].iter().any(|it| name.ends_with(it)))
        {
            let name = format!("/{}", name.trim_start_matches('/'));
            if !files.contains(&name) {
                files.push(name);
            }
        }
    }
    assert!(files.len() > 10 && weight < 150_000, "{weight} bytes: {files:?}");

    let mut stream = open_stream(&address);
    event(&mut stream);
    let time = Duration::from_secs(12);
    let (end, mut said) = (Instant::now() + time, 0);
    let mut bytes = [0; 4096];
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        stream.get_ref().set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut bytes) {
            Ok(0) => panic!("the stream has ended"),
            Ok(count) => said += count,
            Err(_) => break,
        }
    }
    assert!(said < 1000 * time.as_secs() as usize, "{said} bytes in {time:?}");
}

#[test]
fn strange_paths_lead_nowhere() {
    let broker = Broker::absent();
    let (_daemon, address) = served(&broker, "");
    for path in [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/api/v1/../../Cargo.toml",
        "/page.rs",
        "//",
        "/api/v1/",
        "/api/v2/status",
        "/%00",
        "/index.html%00.js",
    ] {
        let (status, problem) = get(&address, path).refusal();
        assert!(status == 404 && problem.contains("nothing at"), "{path}: {problem}");
    }
    let page = get(&address, "/");
    assert_eq!(page.status, 200);
    let head = page.head.to_lowercase();
    for part in ["content-security-policy: default-src 'self'", "nosniff", "text/html"] {
        assert!(head.contains(part), "{part} in {head}");
    }
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = request(&address, "GET /", &format!("If-None-Match: {tag}\r\n"), b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(request(&address, "DELETE /api/v1/status", "", b"").status, 405);
    let mut stream = connect(&address);
    stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").unwrap();
    assert_eq!(reply(stream).status, 400);
}

#[test]
fn slow_visitors_hold_up_nobody() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (daemon, address) = served(&broker, "");
    witness.next("variant");
    // Some say nothing, some stop in the middle, some read nothing of what they asked for.
    let mut idle: Vec<TcpStream> = (0..20).map(|_| connect(&address)).collect();
    for stream in &mut idle[10..] {
        stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: ").unwrap();
    }
    let readers: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut stream = connect(&address);
            write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let memory = daemon.memory("VmRSS:");
    for number in 0..40 {
        classify(&daemon, &witness, number);
    }
    assert_eq!(overview(&address)["frames"], 40);
    let grown = daemon.memory("VmRSS:").saturating_sub(memory);
    assert!(grown < 20 << 10, "{grown} kB more");
    // Who does not say what it wants is shown out.
    let mut byte = [0];
    let told = Instant::now();
    for stream in &mut idle {
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        while stream.read(&mut byte).unwrap_or(0) > 0 {}
    }
    assert!(told.elapsed() < Duration::from_secs(35), "{:?}", told.elapsed());
    drop(readers);
}

#[test]
fn health_is_that_of_the_parts_and_readiness_that_of_the_source() {
    let broker = Broker::absent();
    let (daemon, address) = served(&broker, "");
    until("it is ready", || get(&address, "/readyz").status == 200);
    assert_eq!(get(&address, "/healthz").text(), "ok\n");
    std::fs::remove_dir_all(daemon.incoming()).unwrap();
    until("its folder is missed", || get(&address, "/readyz").status == 503);
    let words = get(&address, "/readyz").text();
    assert!(words.starts_with("directory: "), "{words}");
    std::fs::create_dir(daemon.incoming()).unwrap();
    until("it is there again", || get(&address, "/readyz").status == 200);
    put(&address, "/api/v1/pause", "ON");
    let paused = get(&address, "/readyz");
    assert_eq!((paused.status, paused.text().as_str()), (503, "paused\n"));
    put(&address, "/api/v1/pause", "OFF");
    assert_eq!(get(&address, "/readyz").status, 200);
    assert_eq!(get(&address, "/healthz").status, 200);
}

/// The names of metrics in a text; a histogram has one.
fn metric_names(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let names = words.filter(|word| word.starts_with("vggd_") && word.len() > 5);
    let histogram = |name: &str| {
        let ends = ["_bucket", "_count", "_sum"];
        ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    names.map(histogram).collect()
}

#[test]
fn metrics_are_open_metrics_and_count_what_happened() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let (_folder, set) = evaluated();
    let mut daemon = Daemon::new(&broker);
    daemon.replace(&models().display().to_string(), &set.display().to_string());
    daemon.configure_model(
        "budget_ms = 0.001\npolicy = 'auto'\nprofile = 'profile.json'\nprofile_when = 'start'",
    );
    let address = daemon.serve("");
    daemon.start();
    witness.next("variant");
    until("the page is there", || TcpStream::connect(&address).is_ok());
    let chosen = get(&address, "/metrics").text();
    assert_eq!(put(&address, "/api/v1/variant", "baseline").status, 200);
    for number in 0..3 {
        classify(&daemon, &witness, number);
    }
    daemon.drop_photo("bad.jpg", b"no photo");
    witness.next("error");
    put(&address, "/api/v1/variant", "scaled");
    classify(&daemon, &witness, 3);
    put(&address, "/api/v1/pause", "ON");
    let reply = get(&address, "/metrics");
    assert!(reply.head.contains("application/openmetrics-text"), "{}", reply.head);
    let text = reply.text();
    for line in [
        "vggd_frames_total 4",
        "vggd_late_frames_total 4",
        "vggd_rejected_frames_total 1",
        "vggd_skipped_frames_total 0",
        "vggd_dropped_frames_total 0",
        "vggd_variant_switches_total 1",
        "vggd_broker_connected 1.0",
        "vggd_broker_reconnects_total 0",
        "vggd_outbox_dropped_messages_total 0",
        "vggd_paused 1.0",
        "vggd_variant_running{variant=\"baseline\"} 0.0",
        "vggd_variant_running{variant=\"scaled\"} 1.0",
        "vggd_stage_seconds_count{variant=\"baseline\",stage=\"inference\"} 3",
        "vggd_budget_seconds 0.000001",
        "vggd_source_working 1.0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    // What there is, is documented, and the other way round; this machine may have no thermometer.
    let told = metric_names(&(chosen + &text));
    let documented = metric_names(include_str!("../config/api.md"));
    let unknown: Vec<_> = told.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in config/api.md: {unknown:?}");
    let mut missing: Vec<_> = documented.difference(&told).collect();
    missing.retain(|name| !["vggd_temperature_celsius", "vggd_throttled"].contains(&name.as_str()));
    assert!(missing.is_empty(), "only in config/api.md: {missing:?}");
    let path = daemon.incoming().join(".metrics");
    std::fs::write(&path, &text).unwrap();
    let parser = "prometheus_client.openmetrics.parser";
    let Some(python) = witness::python(parser) else { return };
    let script = format!(
        "import sys; from {parser} import text_string_to_metric_families as parse; \
         print(len(list(parse(open(sys.argv[1]).read()))))"
    );
    let output = Command::new(python).args(["-c", &script]).arg(&path).output().unwrap();
    let families = String::from_utf8_lossy(&output.stdout).trim().parse::<u32>();
    assert!(families.is_ok_and(|families| families > 15), "{output:?}");
}

#[test]
fn a_page_whose_address_is_taken_waits_and_holds_up_nothing() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    let address = daemon.serve("");
    let _taken = std::net::TcpListener::bind(&address).unwrap();
    daemon.start();
    witness.next("variant");
    classify(&daemon, &witness, 1);
    assert!(daemon.log().contains("the page waits for its address"), "{}", daemon.log());
}
