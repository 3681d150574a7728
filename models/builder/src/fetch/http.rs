//! One request at a time, in a thread, so that whoever waits can stop waiting. The only user of
//! crate ureq, which follows redirects and takes its proxy from the environment.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use ureq::http::HeaderMap;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Error};

use super::Patience;

/// Bytes received at a time, at most.
const PIECE: usize = 1 << 18;

/// Pieces that may wait to be written.
const WAITING: usize = 8;

/// What happens to a request, in this order: a head, pieces, and an end or a failure.
pub(super) enum Event {
    Head(Head),
    Piece(Vec<u8>),
    End,
    Failed(Failure),
}

/// The beginning of an answer that has the file or a part of it.
pub(super) struct Head {
    /// Where in the file its body begins.
    pub(super) from: u64,
    /// Length of the file, if the server knows.
    pub(super) total: Option<u64>,
    /// What changes when the file does, if the server says.
    pub(super) validator: Option<String>,
    /// Whether it is meant to be looked at.
    pub(super) is_web_page: bool,
}

/// Why there is no file in an answer, or no answer.
pub(super) enum Failure {
    /// The same request may succeed later.
    Passing(String),
    /// The same request may succeed later, if there ever was an answer.
    Connection(String),
    /// The file is shorter than what was asked to come before the answer.
    Changed,
    /// The same request never will.
    Final(String),
}

/// Requests for one file.
pub(super) struct Client {
    agent: Agent,
    url: String,
}

impl Client {
    pub(super) fn new(url: &str, patience: &Patience) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(url.starts_with("https:"))
            .http_status_as_error(false)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall))
            .build();
        Self { agent: config.into(), url: url.to_owned() }
    }

    /// Asks for the file from byte `from` on, or for all of it if it is not what `validator` says.
    pub(super) fn get(&self, from: u64, validator: Option<&str>) -> Receiver<Event> {
        let mut request = self.agent.get(&self.url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header("If-Range", validator);
            }
        }
        let (sender, receiver) = sync_channel(WAITING);
        thread::spawn(move || {
            let end = match request.call() {
                Ok(response) => answer(response, from, &sender),
                Err(error) => Event::Failed(failure(error)),
            };
            // Nobody is there to be told when the caller has stopped.
            let _stopped = sender.send(end);
        });
        receiver
    }
}

fn answer(
    response: ureq::http::Response<ureq::Body>,
    asked: u64,
    sender: &SyncSender<Event>,
) -> Event {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let range = head.headers.get("content-range").and_then(|range| range.to_str().ok());
    let range = range.and_then(|range| range.strip_prefix("bytes "));
    let (place, length) = range.and_then(|range| range.split_once('/')).unwrap_or_default();
    let length: Option<u64> = length.parse().ok();
    let (from, total) = match status {
        200 => (0, body.content_length()),
        206 => match place.split_once('-').and_then(|(from, _)| from.parse().ok()) {
            Some(from) => (from, length),
            None => return Event::Failed(Failure::Final("answers with an unknown part".into())),
        },
        // Nothing is behind what was received, and that is all there is.
        416 if length == Some(asked) => (asked, length),
        416 => return Event::Failed(Failure::Changed),
        408 | 425 | 429 | 500..=599 => {
            return Event::Failed(Failure::Passing(format!("the server answers {}", head.status)));
        }
        _ => {
            return Event::Failed(Failure::Final(format!("the server answers {}", head.status)));
        }
    };
    let begun = Head {
        from,
        total,
        validator: validator(&head.headers),
        is_web_page: text(&head.headers, "content-type").starts_with("text/html"),
    };
    if sender.send(Event::Head(begun)).is_err() || status == 416 {
        return Event::End;
    }
    match copy(body.into_reader(), sender) {
        Ok(()) => Event::End,
        Err(error) => Event::Failed(failure(error.into())),
    }
}

fn copy(mut body: impl Read, sender: &SyncSender<Event>) -> io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let length = body.read(&mut piece)?;
        piece.truncate(length);
        if length == 0 || sender.send(Event::Piece(piece)).is_err() {
            return Ok(());
        }
    }
}

/// A strong ETag, or else the date of the last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, "etag");
    let validator = if etag.starts_with('"') { etag } else { text(headers, "last-modified") };
    Some(validator.to_owned()).filter(|validator| !validator.is_empty())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Timeout(_) => Failure::Passing("the server does not answer".to_owned()),
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Failure::Passing("the connection was cut".to_owned())
        }
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
            Failure::Passing("the server does not answer".to_owned())
        }
        Error::Io(error) => Failure::Connection(error.to_string()),
        Error::Protocol(_)
        | Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_) => Failure::Connection(error.to_string()),
        error => Failure::Final(error.to_string()),
    }
}
