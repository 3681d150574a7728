//! Downloads from servers of every kind: what arrives is whole and right, or an error says why not.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vggd_models::checksum::Checksum;
use vggd_models::fetch::{Fetch, FetchError, Fetched, Patience, fetch};
use vggd_models::progress::{Interrupted, Progress};
use vggd_models::random::Random;

/// What a server does with one connection, given the request.
type Answer = Box<dyn FnOnce(&str, &mut TcpStream) + Send>;

/// A server that answers as it is told, one connection after the other.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let request = read_request(&mut stream);
                log.lock().unwrap().push(request.clone());
                thread::spawn(move || answer(&request, &mut stream));
            }
        });
        Self { url, requests }
    }

    /// The value of a header in each request so far.
    fn headers(&self, name: &str) -> Vec<Option<String>> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|request| header(request, name).map(str::to_owned)).collect()
    }

    fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        request.extend(byte);
    }
    String::from_utf8(request).unwrap()
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    (request.lines().filter_map(|line| line.split_once(": ")))
        .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
}

/// A file on a server.
#[derive(Clone)]
struct Served {
    content: Vec<u8>,
    etag: &'static str,
    /// Whether parts can be asked for.
    ranges: bool,
    /// Whether If-Range is looked at.
    conditions: bool,
    /// How many bytes more or less than it sends it says it will.
    lies: i64,
}

impl Served {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let content = (0..300_000).map(|_| (256.0 * random.uniform()) as u8).collect();
        Self { content, etag: "\"one\"", ranges: true, conditions: true, lies: 0 }
    }

    fn sha256(&self) -> String {
        let mut checksum = Checksum::default();
        checksum.update(&self.content);
        checksum.hex()
    }

    /// Sends the file, or the part of it that is asked for, but at most `most` bytes.
    fn send(&self, request: &str, stream: &mut TcpStream, most: usize) {
        let from = header(request, "range").filter(|_| {
            let condition = header(request, "if-range").filter(|_| self.conditions);
            self.ranges && condition.is_none_or(|etag| etag == self.etag)
        });
        let from = from.map(|range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
        let length = self.content.len();
        let status = match from {
            Some(from) if from >= length => {
                let head = format!(
                    "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{length}\r\n\
                     Content-Length: 0\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).unwrap();
                return;
            }
            Some(from) => {
                format!(
                    "206 Partial Content\r\nContent-Range: bytes {from}-{}/{length}",
                    length - 1
                )
            }
            None => "200 OK".to_owned(),
        };
        let body = &self.content[from.unwrap_or(0)..];
        let said = body.len() as i64 + self.lies;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {said}\r\nETag: {}\r\nConnection: close\r\n\r\n",
            self.etag
        );
        // The client may be gone before everything is sent.
        let _gone = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body[..body.len().min(most)]));
    }

    fn whole(&self) -> Answer {
        self.cut(usize::MAX)
    }

    fn cut(&self, most: usize) -> Answer {
        let served = self.clone();
        Box::new(move |request, stream| served.send(request, stream, most))
    }

    fn stall(&self, most: usize) -> Answer {
        let served = self.clone();
        Box::new(move |request, stream| {
            served.send(request, stream, most);
            wait_until_gone(stream);
        })
    }
}

fn wait_until_gone(stream: &mut TcpStream) {
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(1)) {}
}

fn raw(response: impl Into<String>) -> Answer {
    let response = response.into();
    Box::new(move |_, stream| stream.write_all(response.as_bytes()).unwrap())
}

fn status(status: &str) -> Answer {
    raw(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

/// A download into a folder of its own.
struct Download {
    folder: tempfile::TempDir,
    request: Fetch,
}

impl Download {
    fn of(served: &Served, server: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let patience = Patience {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            pause: Duration::from_millis(1),
            attempts: 4,
        };
        let request = Fetch {
            url: format!("{}/weights.pth", server.url),
            out: folder.path().join("new/weights.pth"),
            sha256_prefix: Some(served.sha256()[..8].to_owned()),
            patience,
        };
        Self { folder, request }
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("new/weights.pth.part")
    }

    #[track_caller]
    fn check(&self, served: &Served) {
        let fetched = fetch(&self.request, &mut ()).unwrap();
        let expected = Fetched {
            path: self.request.out.clone(),
            bytes: served.content.len() as u64,
            sha256: served.sha256(),
            already: false,
        };
        assert_eq!(fetched, expected);
        assert!(fs::read(&self.request.out).unwrap() == served.content);
        assert!(!self.part().exists());
    }

    /// Expects an error with every one of `words`, and that many bytes in the partial file.
    #[track_caller]
    fn fails(&self, words: &[&str], kept: Option<usize>) -> FetchError {
        self.fails_with(&mut (), words, kept)
    }

    #[track_caller]
    fn fails_with(
        &self,
        progress: &mut dyn Progress,
        words: &[&str],
        kept: Option<usize>,
    ) -> FetchError {
        let error = fetch(&self.request, progress).unwrap_err();
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "no '{word}' in: {message}");
        }
        let found = fs::metadata(self.part()).ok().map(|part| part.len() as usize);
        assert_eq!(found, kept, "{message}");
        error
    }
}

#[test]
fn a_good_server() {
    let served = Served::new(1);
    let server = Server::new(vec![served.whole()]);
    let mut download = Download::of(&served, &server);
    download.check(&served);
    assert_eq!(server.headers("range"), [None]);
    assert!(server.headers("user-agent")[0].as_ref().unwrap().starts_with("vggd-models/"));

    let again = fetch(&download.request, &mut ()).unwrap();
    assert!(again.already && again.sha256 == served.sha256());
    assert_eq!(server.asked(), 1);

    download.request.sha256_prefix = Some("00000000".to_owned());
    let found = &served.sha256()[..8];
    download.fails(&["weights.pth: exists", found, "not 00000000", "delete it"], None);
    download.request.sha256_prefix = None;
    download.fails(&["weights.pth: exists", "no checksum"], None);
    assert_eq!(server.asked(), 1);
}

#[test]
fn without_a_checksum() {
    let served = Served::new(1);
    let server = Server::new(vec![served.cut(1000), served.whole()]);
    let mut download = Download::of(&served, &server);
    download.request.sha256_prefix = None;
    download.check(&served);
    assert_eq!(server.headers("range")[1].as_deref(), Some("bytes=1000-"));
}

#[test]
fn what_is_left_without_a_checksum_is_not_trusted() {
    let served = Served::new(1);
    let server = Server::new(vec![served.whole()]);
    let mut download = Download::of(&served, &server);
    download.request.sha256_prefix = None;
    fs::create_dir(download.folder.path().join("new")).unwrap();
    fs::write(download.part(), "of another file").unwrap();
    download.check(&served);
    assert_eq!(server.headers("range"), [None]);
}

#[test]
fn a_server_that_cuts() {
    let served = Served::new(2);
    let server =
        Server::new(vec![served.cut(100_000), served.cut(0), served.cut(150_000), served.whole()]);
    Download::of(&served, &server).check(&served);
    let ranges = [None, Some("bytes=100000-"), Some("bytes=100000-"), Some("bytes=250000-")];
    assert_eq!(server.headers("range"), ranges.map(|range| range.map(str::to_owned)));
    let etag = Some("\"one\"".to_owned());
    assert_eq!(server.headers("if-range"), [None, etag.clone(), etag.clone(), etag]);
}

#[test]
fn a_server_that_closes_without_an_answer() {
    let served = Served::new(2);
    let silent: Answer = Box::new(|_, _| {});
    let server = Server::new(vec![silent, served.cut(5000), Box::new(|_, _| {}), served.whole()]);
    Download::of(&served, &server).check(&served);
}

#[test]
fn a_server_that_stalls() {
    let served = Served::new(3);
    let mute: Answer = Box::new(|_, stream| wait_until_gone(stream));
    let server = Server::new(vec![mute, served.stall(200_000), served.whole()]);
    let mut download = Download::of(&served, &server);
    download.request.patience.stall = Duration::from_millis(300);
    download.check(&served);
    assert_eq!(server.headers("range")[2].as_deref(), Some("bytes=200000-"));
}

#[test]
fn a_server_that_redirects_to_another() {
    let served = Served::new(4);
    let target = Server::new(vec![served.cut(70_000), served.whole()]);
    let redirect = |code: &str| {
        let location = format!("Location: {}/elsewhere\r\n", target.url);
        raw(format!("HTTP/1.1 {code}\r\n{location}Content-Length: 0\r\nConnection: close\r\n\r\n"))
    };
    let server = Server::new(vec![redirect("302 Found"), redirect("307 Temporary Redirect")]);
    Download::of(&served, &server).check(&served);
    assert_eq!(target.headers("range")[1].as_deref(), Some("bytes=70000-"));

    let location =
        "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let server = Server::new((0..20).map(|_| raw(location)).collect());
    Download::of(&served, &server).fails(&["too many redirects"], None);
}

#[test]
fn a_server_without_ranges() {
    let served = Served { ranges: false, ..Served::new(5) };
    let server = Server::new(vec![served.cut(100_000), served.whole()]);
    Download::of(&served, &server).check(&served);
    assert_eq!(server.headers("range")[1].as_deref(), Some("bytes=100000-"));
}

#[test]
fn a_file_that_changes_between_attempts() {
    for conditions in [true, false] {
        let old = Served { etag: "\"old\"", conditions, ..Served::new(6) };
        let new = Served { conditions, ..Served::new(7) };
        let server = Server::new(vec![old.cut(100_000), new.whole(), new.whole()]);
        Download::of(&new, &server).check(&new);
        assert_eq!(server.asked(), if conditions { 2 } else { 3 });
    }
    let old = Served { etag: "\"old\"", conditions: false, ..Served::new(6) };
    let mut shorter = Served { conditions: false, ..Served::new(7) };
    shorter.content.truncate(50_000);
    let server = Server::new(vec![old.cut(100_000), shorter.whole(), shorter.whole()]);
    Download::of(&shorter, &server).check(&shorter);
}

#[test]
fn another_file_than_the_name_says() {
    let (served, other) = (Served::new(8), Served::new(9));
    let server = Server::new(vec![other.whole()]);
    let found = &other.sha256()[..8];
    let expected = &served.sha256()[..8];
    let words = ["300000 bytes", found, expected, "it was deleted"];
    Download::of(&served, &server).fails(&words, None);
}

#[test]
fn a_length_that_is_not_true() {
    let served = Served::new(10);
    let short = Served { lies: -1000, ..served.clone() };
    let server = Server::new(vec![short.whole()]);
    Download::of(&served, &server).fails(&["299000 bytes", "it was deleted"], None);

    let long = Served { lies: 1000, ranges: false, ..served.clone() };
    let honest = served.whole();
    let server = Server::new(vec![long.whole(), long.whole(), long.whole(), long.whole(), honest]);
    let download = Download::of(&served, &server);
    let words = ["gave up after 4 attempts", "cut", "300000 bytes are kept", "weights.pth.part"];
    download.fails(&words, Some(300_000));
    download.check(&served);
    assert_eq!(server.headers("range")[4].as_deref(), Some("bytes=300000-"));
}

#[test]
fn a_web_page_instead() {
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 6\r\n\
                Connection: close\r\n\r\n<html>";
    let served = Served::new(11);
    let server = Server::new(vec![raw(page)]);
    Download::of(&served, &server).fails(&[&server.url, "a web page"], None);
}

#[test]
fn answers_that_are_no_file() {
    let served = Served::new(12);
    for code in ["404 Not Found", "403 Forbidden", "407 Proxy Authentication Required"] {
        let server = Server::new(vec![status(code)]);
        Download::of(&served, &server).fails(&[&server.url, "the server answers", code], None);
        assert_eq!(server.asked(), 1);
    }

    let busy = || status("503 Service Unavailable");
    let server = Server::new(vec![busy(), status("429 Too Many Requests"), served.whole()]);
    Download::of(&served, &server).check(&served);
    let server = Server::new(vec![busy(), busy(), busy(), busy()]);
    let words = ["gave up after 4 attempts", "503", "nothing was received"];
    Download::of(&served, &server).fails(&words, None);

    let server = Server::new(vec![raw("SSH-2.0-OpenSSH_9.2\r\n\r\n")]);
    Download::of(&served, &server).fails(&[&server.url], None);
}

#[test]
fn nobody_there() {
    let served = Served::new(12);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let server = Server { url, requests: Arc::default() };
    Download::of(&served, &server).fails(&[&server.url, "refused"], None);

    let mut download = Download::of(&served, &server);
    for (url, words) in [("ftp://127.0.0.1/a", "ftp"), ("nonsense", "nonsense")] {
        download.request.url = url.to_owned();
        download.fails(&[words], None);
    }
}

/// Stops a download once this many bytes have gone through.
struct StopAt(u64);

impl Progress for StopAt {
    fn begin(&mut self, bytes: u64) {
        assert_eq!(bytes, 300_000);
    }

    fn count(&mut self, _things: u64) {}

    fn now(&mut self, _what: &str) {}

    fn advance(&mut self, done: u64) -> Result<(), Interrupted> {
        self.0 = self.0.saturating_sub(done);
        if self.0 == 0 { Err(Interrupted) } else { Ok(()) }
    }
}

#[test]
fn a_user_who_stops_and_goes_on() {
    let served = Served::new(13);
    let server = Server::new(vec![served.stall(120_000), served.stall(50_000), served.whole()]);
    let mut download = Download::of(&served, &server);
    download.request.patience.stall = Duration::from_secs(60);
    let begun = Instant::now();
    let words = ["interrupted", "120000 bytes are kept", "the same command goes on"];
    download.fails_with(&mut StopAt(120_000), &words, Some(120_000));
    download.fails_with(&mut StopAt(170_000), &["170000 bytes"], Some(170_000));
    download.check(&served);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let ranges = [None, Some("bytes=120000-"), Some("bytes=170000-")];
    assert_eq!(server.headers("range"), ranges.map(|range| range.map(str::to_owned)));
}

#[test]
fn a_part_that_is_whole_or_wrong() {
    let served = Served::new(14);
    for (left, asked) in
        [(served.content.clone(), 1), ([&served.content[..], b"and more"].concat(), 2)]
    {
        let server = Server::new(vec![served.whole(), served.whole()]);
        let download = Download::of(&served, &server);
        fs::create_dir(download.folder.path().join("new")).unwrap();
        fs::write(download.part(), left).unwrap();
        download.check(&served);
        assert_eq!(server.asked(), asked);
    }
    let server = Server::new(vec![served.whole()]);
    let download = Download::of(&served, &server);
    fs::create_dir(download.folder.path().join("new")).unwrap();
    fs::write(download.part(), "of another file").unwrap();
    download.fails(&["SHA-256", "it was deleted"], None);
}

#[test]
fn a_part_that_someone_else_writes() {
    let served = Served::new(15);
    let server = Server::new(vec![]);
    let download = Download::of(&served, &server);
    fs::create_dir(download.folder.path().join("new")).unwrap();
    let file = File::create(download.part()).unwrap();
    file.lock().unwrap();
    download.fails(&["weights.pth.part", "another download"], Some(0));
}

fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vggd-models"));
    for variable in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
        command.env_remove(variable).env_remove(variable.to_ascii_lowercase());
    }
    command.current_dir(folder).arg("fetch").args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn check_output(output: &Output, code: i32, stdout: &[&str], stderr: &[&str]) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    for (text, words) in [(out, stdout), (err, stderr)] {
        assert_eq!(text.lines().count(), usize::from(!words.is_empty()), "{text}");
        for word in words {
            assert!(text.contains(word), "no '{word}' in: {text}");
        }
    }
}

#[test]
fn the_program_says_what_it_fetched() {
    let served = Served::new(17);
    let sha256 = served.sha256();
    let name = format!("tiny-{}.pth", &sha256[..8]);
    let server = Server::new(vec![served.whole(), served.whole(), status("404 Not Found")]);
    let url = format!("{}/{name}?download=true", server.url);
    let folder = tempfile::tempdir().unwrap();

    let output = program(folder.path(), &["--url", &url]).output().unwrap();
    check_output(&output, 0, &[&name, "0.3 MB", &sha256], &[]);
    let output = program(folder.path(), &["--url", &url]).output().unwrap();
    check_output(&output, 0, &[&name, "already"], &[]);

    fs::create_dir(folder.path().join("sub")).unwrap();
    let output =
        program(folder.path(), &["--url", &url, "--out", "sub", "--json"]).output().unwrap();
    check_output(&output, 0, &[&sha256], &[]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "path": format!("sub/{name}"), "bytes": 300_000, "sha256": sha256,
    });
    assert_eq!(json, expected);

    let arguments = ["--url", &url, "--out", "other.pth"];
    let output = program(folder.path(), &arguments).output().unwrap();
    check_output(&output, 1, &[], &["vggd-models: ", "404 Not Found"]);
    let output = program(folder.path(), &["--url", &server.url]).output().unwrap();
    check_output(&output, 1, &[], &["--out"]);
    let help = program(folder.path(), &["--help"]).output().unwrap();
    for words in ["Examples:", "Exit codes", "vgg19-dcbb9e9d.pth", "--json", "NO_PROXY"] {
        assert!(text(&help.stdout).contains(words), "no '{words}' in the help");
    }
}

#[test]
fn a_proxy_from_the_environment() {
    let served = Served::new(18);
    let name = format!("tiny-{}.pth", &served.sha256()[..8]);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"] {
        let behind = served.clone();
        let tunnel: Answer = Box::new(move |request, stream| {
            assert!(request.starts_with("CONNECT files.invalid:80 "), "{request}");
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let request = read_request(stream);
            behind.send(&request, stream, usize::MAX);
        });
        let proxy = Server::new(vec![tunnel]);
        let folder = tempfile::tempdir().unwrap();
        let output = program(folder.path(), &["--url", &format!("http://files.invalid/{name}")])
            .env(variable, &proxy.url)
            .output()
            .unwrap();
        check_output(&output, 0, &[&name], &[]);
        assert_eq!(proxy.asked(), 1, "{variable}");
    }

    let (proxy, server) = (Server::new(vec![]), Server::new(vec![served.whole()]));
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["--url", &format!("{}/{name}", server.url)])
        .env("HTTP_PROXY", &proxy.url)
        .env("NO_PROXY", "localhost,127.0.0.1")
        .output()
        .unwrap();
    check_output(&output, 0, &[&name], &[]);
    assert_eq!(proxy.asked(), 0);
}

#[test]
fn a_proxy_that_refuses() {
    let proxy = Server::new(vec![status("407 Proxy Authentication Required")]);
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["--url", "http://files.invalid/a-0123456789.pth"])
        .env("HTTP_PROXY", &proxy.url)
        .output()
        .unwrap();
    check_output(&output, 1, &[], &["407"]);
}

/// A disk is never full in a test, but the system can refuse to make a file any larger.
#[test]
fn a_disk_that_is_full() {
    let served = Served::new(20);
    let name = format!("tiny-{}.pth", &served.sha256()[..8]);
    let server = Server::new(vec![served.whole(), served.whole()]);
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/{name}", server.url);
    let limited = "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", limited, env!("CARGO_BIN_EXE_vggd-models"), "fetch", "--url", &url])
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    let words = ["cannot write more: File too large", "bytes are kept", "goes on from there"];
    check_output(&output, 1, &[], &words);

    let output = program(folder.path(), &["--url", &url]).output().unwrap();
    check_output(&output, 0, &[&name], &[]);
    assert!(server.headers("range")[1].is_some());
}

#[test]
fn an_interrupt_keeps_what_was_received() {
    let served = Served::new(19);
    let name = format!("tiny-{}.pth", &served.sha256()[..8]);
    let (sent, wait) = channel();
    let stalling = served.clone();
    let stall: Answer = Box::new(move |request, stream| {
        stalling.send(request, stream, 100_000);
        sent.send(()).unwrap();
        wait_until_gone(stream);
    });
    let server = Server::new(vec![stall, served.whole()]);
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/{name}", server.url);
    let mut command = program(folder.path(), &["--url", &url]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait.recv().unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    check_output(&output, 1, &[], &["interrupted"]);

    let output = program(folder.path(), &["--url", &url]).output().unwrap();
    check_output(&output, 0, &[&name], &[]);
}
