//! Getting at a broker: logins, certificates, and what the log says when that fails.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Broker, Daemon, jpeg, program, start, until, vggd};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// A certificate authority, and a folder for its certificates.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate and its key for who is called `name`, valid until the year `until`.
    fn certify(&self, file: &str, name: &str, until: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Lines that make a listener of mosquitto speak TLS.
    fn listener(&self, file: &str) -> String {
        let (certificate, key) =
            (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        format!(
            "allow_anonymous true\ncertfile {}\nkeyfile {}",
            certificate.display(),
            key.display()
        )
    }

    /// A line that makes the daemon trust this authority alone.
    fn trusted(&self) -> String {
        format!("tls = true\nca_file = '{}'\n", self.path("ca.pem").display())
    }

    /// Lines that give the daemon a certificate of its own.
    fn own(&self, file: &str) -> String {
        format!("certificate_file = '{0}.pem'\nkey_file = '{0}.key'\n", self.path(file).display())
    }
}

/// What becomes of a connection.
enum Fate {
    /// Predictions arrive.
    Works,
    /// Nothing arrives, and the log says so once with this level and these words.
    Fails(&'static str, &'static str),
}

use Fate::{Fails, Works};

/// Starts the daemon with lines for `[mqtt]`, hands it a photo, and looks what becomes of it.
fn check(broker: &Broker, lines: &str, fate: &Fate) {
    let mut daemon = Daemon::new(broker);
    daemon.configure_mqtt(lines);
    check_daemon(&mut daemon, broker, fate);
}

fn check_daemon(daemon: &mut Daemon, broker: &Broker, fate: &Fate) {
    let witness = broker.is_running().then(|| broker.subscribe());
    daemon.start();
    daemon.drop_photo("a.jpg", &jpeg(1));
    match fate {
        Works => {
            let witness = witness.expect("a broker that works runs");
            assert_eq!(witness.next("prediction").json()["file"], "a.jpg");
            assert!(!daemon.log().contains(" ERROR "), "{}", daemon.log());
        }
        Fails(level, words) => {
            let told = |text: &str| {
                let log = daemon.log();
                log.lines()
                    .filter(|line| line.contains("predictions wait") && line.contains(text))
                    .count()
            };
            until(words, || {
                let log = daemon.log();
                assert!(told("") == 0 || told(words) > 0, "not '{words}':\n{log}");
                told(words) > 0
            });
            assert_eq!((told(level), told("")), (1, 1), "{}", daemon.log());
            until("it is classified", || daemon.log().contains("classified"));
            assert!(daemon.end("TERM").success());
            // What was said is kept.
            until("the photo is done", || daemon.list("done") == ["a.jpg"]);
        }
    }
}

#[test]
fn a_broker_is_believed_by_its_certificate() {
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    own.certify("broker", "127.0.0.1", 4096);
    own.certify("local", "localhost", 4096);
    own.certify("elsewhere", "elsewhere.example", 4096);
    own.certify("expired", "127.0.0.1", 2020);
    let cases = [
        ("broker", own.trusted(), Works),
        (
            "broker",
            other.trusted(),
            Fails("ERROR", "signed by an authority that is not known here"),
        ),
        ("broker", "tls = true".to_owned(), Fails("ERROR", "authority that is not known here")),
        (
            "elsewhere",
            own.trusted(),
            Fails("ERROR", "is for elsewhere.example, and not for mqtt.host = '127.0.0.1'"),
        ),
        ("expired", own.trusted(), Fails("ERROR", "has expired")),
        ("broker", String::new(), Fails("WARN", "set mqtt.tls = true")),
    ];
    for (file, lines, fate) in cases {
        check(&Broker::with(&own.listener(file)), &lines, &fate);
    }
    // By name, and by the system's authorities.
    let broker = Broker::with(&own.listener("local"));
    let mut daemon = Daemon::new(&broker);
    daemon.replace("'127.0.0.1'", "'localhost'");
    daemon.configure_mqtt("tls = true");
    daemon.set("SSL_CERT_FILE", &own.path("ca.pem"));
    check_daemon(&mut daemon, &broker, &Works);
}

#[test]
fn a_broker_may_want_a_certificate_of_the_device() {
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    own.certify("broker", "127.0.0.1", 4096);
    own.certify("device", "device", 4096);
    own.certify("expired", "device", 2020);
    other.certify("device", "device", 4096);
    let listener = format!(
        "{}\ncafile {}\nrequire_certificate true",
        own.listener("broker"),
        own.path("ca.pem").display()
    );
    let broker = Broker::with(&listener);
    let refused = "the broker refuses the certificate in mqtt.certificate_file";
    for (own_lines, fate) in [
        (own.own("device"), Works),
        (String::new(), Fails("ERROR", "set mqtt.certificate_file and mqtt.key_file")),
        (other.own("device"), Fails("ERROR", refused)),
        (own.own("expired"), Fails("ERROR", refused)),
    ] {
        check(&broker, &format!("{}{own_lines}", own.trusted()), &fate);
    }
}

#[test]
fn tls_at_a_plain_port_is_named() {
    let own = Authority::new("own");
    let broker = Broker::running();
    check(&broker, &own.trusted(), &Fails("WARN", "the one without TLS"));
}

#[test]
fn renewed_certificates_are_taken_over_without_a_restart() {
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    own.certify("broker", "127.0.0.1", 4096);
    other.certify("broker", "127.0.0.1", 4096);
    let mut broker = Broker::with(&own.listener("broker"));
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt(&own.trusted());
    daemon.start();
    daemon.drop_photo("a.jpg", &jpeg(1));
    witness.next("prediction");

    broker.stop();
    for file in ["ca.pem", "broker.pem", "broker.key"] {
        fs::copy(other.path(file), own.path(file)).unwrap();
    }
    daemon.drop_photo("b.jpg", &jpeg(2));
    broker.start();
    until("the second photo is done", || daemon.list("done") == ["a.jpg", "b.jpg"]);
    assert!(!daemon.log().contains(" ERROR "), "{}", daemon.log());
}

#[test]
fn a_certificate_that_went_away_is_named_by_its_key() {
    let own = Authority::new("own");
    own.certify("broker", "127.0.0.1", 4096);
    let mut broker = Broker::with(&own.listener("broker"));
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt(&own.trusted());
    daemon.start();
    assert_eq!(witness.next("status").payload, "online");
    fs::remove_file(own.path("ca.pem")).unwrap();
    broker.stop();
    until("it is named", || {
        let log = daemon.log();
        log.lines().any(|line| line.contains(" ERROR ") && line.contains("mqtt.ca_file = '"))
    });
}

/// A broker that knows the user `vggd` by the password `secret`.
fn with_passwords() -> (TempDir, Broker) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passwords");
    let mut command = program("mosquitto_passwd");
    command.args(["-b", "-c"]).arg(&file).args(["vggd", "secret"]).stderr(Stdio::null());
    assert!(start(&mut command).wait().unwrap().success());
    let lines = format!("allow_anonymous false\npassword_file {}", file.display());
    (folder, Broker::with(&lines))
}

#[test]
fn a_login_is_the_first_line_of_a_file_or_a_credential() {
    let (folder, broker) = with_passwords();
    let password = folder.path().join("password");
    let login = format!("username = 'vggd'\npassword_file = '{}'\n", password.display());
    let wrong = "mqtt.username = 'vggd' or its password is wrong";
    for (text, lines, fate) in [
        ("secret\r\nand more", login.as_str(), Works),
        ("guessed", &login, Fails("ERROR", wrong)),
        ("secret", "username = 'vggd'", Fails("ERROR", wrong)),
        ("secret", "", Fails("ERROR", "set mqtt.username and mqtt.password_file")),
    ] {
        fs::write(&password, text).unwrap();
        check(&broker, lines, &fate);
    }
    for (credential, fate) in [("secret\n", Works), ("old", Fails("ERROR", wrong))] {
        fs::write(folder.path().join("mqtt-password"), credential).unwrap();
        let mut daemon = Daemon::new(&broker);
        daemon.configure_mqtt("username = 'vggd'");
        daemon.set("CREDENTIALS_DIRECTORY", folder.path());
        check_daemon(&mut daemon, &broker, &fate);
    }
}

#[test]
fn a_wrong_login_is_not_tried_every_moment() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut broker = Broker::absent();
    broker.port = listener.local_addr().unwrap().port();
    let daemon = Daemon::started(&broker);
    answer(&mut listener.accept().unwrap().0, &[0x20, 2, 0, 4]);
    until("it says so", || daemon.log().contains("set mqtt.username"));
    // After any other failure the next attempt comes within a quarter of a second.
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        let attempt = listener.accept();
        assert!(attempt.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for what the client says first, and answers.
fn answer(socket: &mut TcpStream, bytes: &[u8]) {
    assert!(socket.read(&mut [0; 1024]).unwrap() > 0);
    socket.write_all(bytes).unwrap();
}

#[test]
fn what_a_broker_answers_is_named() {
    let cases: [(&[u8], Fate); 8] = [
        (&[0x20, 2, 0, 1], Fails("ERROR", "does not speak MQTT 3.1.1")),
        (&[0x20, 2, 0, 2], Fails("ERROR", "refuses mqtt.client_id = 'vggd-test'")),
        (&[0x20, 2, 0, 3], Fails("WARN", "says that it is not available")),
        (&[0x20, 2, 0, 4], Fails("ERROR", "'vggd' or its password is wrong")),
        (&[0x20, 2, 0, 5], Fails("ERROR", "not authorised: mqtt.username = 'vggd'")),
        (
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nnot for machines like you",
            Fails("WARN", "does not speak MQTT"),
        ),
        (&[], Fails("WARN", "no answer within 5 s")),
        // The alert of a TLS server that was sent something else.
        (&[0x15, 3, 3, 0, 2, 2, 10], Fails("WARN", "or it wants mqtt.tls = true")),
    ];
    for (bytes, fate) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut broker = Broker::absent();
        broker.port = listener.local_addr().unwrap().port();
        let script = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            answer(&mut socket, bytes);
            // Until the client hangs up.
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).ok();
        });
        check(&broker, "username = 'vggd'", &fate);
        script.join().unwrap();
    }
}

#[test]
fn what_is_not_there_is_named() {
    let broker = Broker::absent();
    check(&broker, "", &Fails("WARN", "Connection refused"));
    let mut daemon = Daemon::new(&broker);
    daemon.replace("'127.0.0.1'", "'nonesuch.invalid'");
    let fate = Fails("WARN", "no address for mqtt.host = 'nonesuch.invalid'");
    check_daemon(&mut daemon, &broker, &fate);
}

#[test]
fn a_second_client_of_the_same_name_is_suspected() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let daemon = Daemon::started(&broker);
    assert_eq!(witness.next("status").payload, "online");
    let mut twin = program("mosquitto_sub");
    let port = broker.port.to_string();
    twin.args(["-h", "127.0.0.1", "-p", &port, "-i", "vggd-test", "-t", "x", "-W", "30"]);
    let mut twin = start(&mut twin);
    until("it is suspected", || {
        daemon.log().contains("another client has mqtt.client_id = 'vggd-test' too")
    });
    twin.kill().unwrap();
    twin.wait().unwrap();
    daemon.drop_photo("a.jpg", &jpeg(1));
    witness.next("prediction");
}

#[test]
fn a_refused_subscription_is_named_and_predictions_go_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut broker = Broker::absent();
    broker.port = listener.local_addr().unwrap().port();
    let script = std::thread::spawn(move || serve(&mut listener.accept().unwrap().0, 0x80, true));
    let mut daemon = Daemon::started(&broker);
    daemon.drop_photo("a.jpg", &jpeg(1));
    until("the photo is done", || daemon.list("done") == ["a.jpg"]);
    until("it is named", || daemon.log().contains("refuses this subscription"));
    assert!(daemon.log().contains("vggd/test/+/set"));
    daemon.end("TERM");
    script.join().unwrap();
}

/// Answers all that a client sends as a broker does: subscriptions by `granted`, messages only if
/// `acknowledges`. Returns the predictions when the connection ends.
fn serve(socket: &mut TcpStream, granted: u8, acknowledges: bool) -> Vec<serde_json::Value> {
    let mut predictions = Vec::new();
    while let Some((first, body)) = common::packet(socket) {
        let reply = match first >> 4 {
            1 => vec![0x20, 2, 0, 0],
            3 => {
                let (topic, [high, low], payload) = common::published(first, &body).unwrap();
                if topic.ends_with("/prediction") {
                    predictions.push(serde_json::from_slice(payload).unwrap());
                }
                if !acknowledges {
                    continue;
                }
                vec![0x40, 2, high, low]
            }
            8 => vec![0x90, 3, body[0], body[1], granted],
            12 => vec![0xd0, 0],
            _ => continue,
        };
        // The client may be gone by now.
        socket.write_all(&reply).ok();
    }
    predictions
}

#[test]
fn a_broker_that_acknowledges_nothing_is_connected_to_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut broker = Broker::absent();
    broker.port = listener.local_addr().unwrap().port();
    let script = std::thread::spawn(move || {
        let first = serve(&mut listener.accept().unwrap().0, 1, false);
        let second = serve(&mut listener.accept().unwrap().0, 1, true);
        [first, second]
    });
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt("keep_alive_s = 5");
    daemon.start();
    daemon.drop_photo("a.jpg", &jpeg(1));
    until("it is named", || daemon.log().contains("the broker acknowledged nothing for 5 s"));
    until("it is connected again", || daemon.log().matches(" connected ").count() == 2);
    assert!(daemon.end("TERM").success());
    let [first, second] = script.join().unwrap();
    let told = |predictions: &[serde_json::Value]| -> Vec<(String, bool)> {
        let told = predictions.iter().map(|prediction| {
            let file = prediction["file"].as_str().unwrap().to_owned();
            (file, prediction["replayed"].as_bool().unwrap())
        });
        told.collect()
    };
    assert_eq!(told(&first), [("a.jpg".to_owned(), false)]);
    assert_eq!(told(&second), [("a.jpg".to_owned(), true)]);
    assert_eq!(first[0]["id"], second[0]["id"]);
}

#[test]
fn a_broker_that_falls_silent_is_connected_to_anew() {
    let broker = Broker::running();
    let witness = broker.subscribe();
    let mut daemon = Daemon::new(&broker);
    daemon.configure_mqtt("keep_alive_s = 5");
    daemon.start();
    daemon.drop_photo("a.jpg", &jpeg(1));
    witness.next("prediction");
    broker.signal("STOP");
    until("it is noticed", || daemon.log().contains("the broker no longer answers"));
    daemon.drop_photo("b.jpg", &jpeg(2));
    until("the photo is done", || daemon.list("done") == ["a.jpg", "b.jpg"]);
    broker.signal("CONT");
    assert_eq!(witness.next("prediction").json()["file"], "b.jpg");

    // With something under way.
    broker.signal("STOP");
    daemon.drop_photo("c.jpg", &jpeg(3));
    let silent = ["the broker acknowledged nothing for 5 s", "the broker no longer answers"];
    until("it is noticed again", || {
        let log = daemon.log();
        silent.iter().map(|words| log.matches(words).count()).sum::<usize>() >= 2
    });
    broker.signal("CONT");
    until("the third prediction", || {
        let prediction = witness.next("prediction").json();
        prediction["file"] == "c.jpg" && prediction["replayed"] == true
    });
    assert!(daemon.end("TERM").success());
}

/// Of a message that an access list forbids, MQTT 3.1.1 tells the client nothing: mosquitto
/// acknowledges it and drops it.
#[test]
fn what_an_access_list_forbids_is_not_heard() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("acl");
    let lines = format!("allow_anonymous true\nacl_file {}", list.display());
    fs::write(&list, "topic readwrite vggd/test/status\ntopic readwrite vggd/test/error\n")
        .unwrap();
    let broker = Broker::with(&lines);
    let witness = broker.subscribe();
    let mut daemon = Daemon::started(&broker);
    assert_eq!(witness.next("status").payload, "online");
    daemon.drop_photo("a.jpg", &jpeg(1));
    until("the photo is done", || daemon.list("done") == ["a.jpg"]);
    assert!(daemon.end("TERM").success());
    assert_eq!(witness.next("status").payload, "offline");
    assert!(witness.rest("prediction").is_empty());
    assert!(!daemon.log().contains(" ERROR "), "{}", daemon.log());
}

#[test]
fn files_that_cannot_be_used_are_refused_at_the_start() {
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    own.certify("device", "device", 4096);
    other.certify("device", "device", 4096);
    let key = own.path("device.key").display().to_string();
    let (ca, certificate) = (own.path("ca.pem"), own.path("device.pem"));
    let (ca, certificate) = (ca.display(), certificate.display());
    let other_key = other.path("device.key").display().to_string();
    fs::write(own.path("empty"), "\nsecret").unwrap();
    fs::write(own.path("broken"), "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
        .unwrap();
    let (empty, broken) = (own.path("empty"), own.path("broken"));
    let (empty, broken) = (empty.display(), broken.display());
    let cases = [
        (
            "username = 'a'\npassword_file = '/none'".to_owned(),
            "mqtt.password_file = '/none': No such file",
        ),
        (format!("username = 'a'\npassword_file = '{empty}'"), "its first line must have from 1"),
        ("tls = true\nca_file = '/none'".to_owned(), "mqtt.ca_file = '/none': No such file"),
        (format!("tls = true\nca_file = '{key}'"), "has no certificate in it (PEM)"),
        (format!("tls = true\nca_file = '{broken}'"), "invalid peer certificate: BadEncoding"),
        (
            format!("tls = true\ncertificate_file = '{key}'\nkey_file = '{key}'"),
            "has no certificate in it",
        ),
        (
            format!("tls = true\ncertificate_file = '{certificate}'\nkey_file = '{ca}'"),
            "has no key in it",
        ),
        (
            format!("tls = true\ncertificate_file = '{certificate}'\nkey_file = '{other_key}'"),
            "is not the key of mqtt.certificate_file",
        ),
        (format!("tls = true\ncertificate_file = '{certificate}'"), "needs mqtt.key_file"),
        (format!("ca_file = '{ca}'"), "must be true for certificates to be used"),
    ];
    for (lines, expected) in cases {
        let daemon = Daemon::new(&Broker::absent());
        daemon.configure_mqtt(&lines);
        let config = daemon.config().display().to_string();
        for command in ["run", "check"] {
            let folder = daemon.incoming();
            let folder = folder.parent().unwrap();
            let output =
                vggd().args([command, "--config", &config]).current_dir(folder).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{command}: {error}");
            assert!(error.contains(expected) && error.contains("mqtt."), "{lines}\n{error}");
        }
    }
}
