//! A large file over HTTP, once and whole: what was received stays when the connection does not.
//!
//! ```text
//! NAME.part   what was received so far, in order and without gaps; locked while someone writes it
//! NAME        the whole file, synced and checked, renamed from NAME.part
//! ```
//!
//! NAME.part is kept when a download is cut off or interrupted, and the next one goes on behind it.
//! It is deleted when its checksum is wrong, and emptied when the server has another file by now.
//! Without a checksum, nothing would tell that two files were joined, so then only cuts within one
//! download are mended.

mod http;
mod part;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::http::{Client, Event, Failure, Head};
use self::part::{Part, read};
use crate::progress::Progress;

/// torchvision's VGG-19, trained on ImageNet.
pub const VGG19: &str = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth";

/// How often a wait looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// After how many bytes a cut is a new one and not the same again.
const HEADWAY: u64 = 1 << 20;

/// What to download, and where to.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Where it is, http or https.
    pub url: String,
    /// The file it becomes; its folder is made if it is missing.
    pub out: PathBuf,
    /// What its SHA-256 begins with, in hexadecimal digits.
    pub sha256_prefix: Option<String>,
    /// How long to wait for the server.
    pub patience: Patience,
}

/// How long a server may take, and how often it is asked again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until there is a connection.
    pub connect: Duration,
    /// Until anything arrives.
    pub stall: Duration,
    /// Before the second attempt; twice as long before each further one.
    pub pause: Duration,
    /// Attempts in a row that bring next to nothing.
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            pause: Duration::from_secs(2),
            attempts: 5,
        }
    }
}

/// A file that is there and right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its checksum, 64 hexadecimal digits.
    pub sha256: String,
    /// Whether it was there before, so that nothing was downloaded.
    pub already: bool,
}

/// Why the file is not there.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The folder may not be written to, or the like.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Make room on the disk.
    #[error("cannot write more: {error}; {kept}")]
    Write {
        /// What the system said.
        error: io::Error,
        /// What is left.
        kept: Kept,
    },
    /// Delete the other file, or choose another name.
    #[error(
        "{}: exists, but its SHA-256 begins with {found}, not {expected}; delete it, or choose \
         another --out",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
        /// As many digits as are expected.
        found: String,
        /// The first digits that it should have.
        expected: String,
    },
    /// Delete the other file, or choose another name.
    #[error(
        "{}: exists, and there is no checksum to compare it with; delete it, or choose another \
         --out",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// Wait for the other download.
    #[error("{}: another download is writing it", path.display())]
    Busy {
        /// The partial file.
        path: PathBuf,
    },
    /// Correct the address, or the settings of the proxy.
    #[error("{url}: {error}")]
    Refused {
        /// The address.
        url: String,
        /// What went wrong.
        error: String,
    },
    /// A proxy wants a password, or a network a click: open the address in a browser.
    #[error("{url}: the server sent a web page instead of the file")]
    WebPage {
        /// The address.
        url: String,
    },
    /// Try later.
    #[error("{url}: gave up after {attempts} attempts: {error}; {kept}")]
    GaveUp {
        /// The address.
        url: String,
        /// How many in a row failed.
        attempts: u32,
        /// What went wrong the last time.
        error: String,
        /// What is left.
        kept: Kept,
    },
    /// Try again, or another server.
    #[error(
        "{url}: the SHA-256 of the {bytes} bytes begins with {found}, not {expected}: not the file \
         that was asked for, or damaged on the way; it was deleted"
    )]
    Checksum {
        /// The address.
        url: String,
        /// As many digits as are expected.
        found: String,
        /// The first digits that it should have.
        expected: String,
        /// How many were received.
        bytes: u64,
    },
    /// The caller asked to stop.
    #[error("interrupted; {kept}")]
    Interrupted {
        /// What is left.
        kept: Kept,
    },
}

/// The partial file that a download leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Whether the next download goes on behind it.
    pub goes_on: bool,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, bytes, goes_on } = self;
        if *bytes == 0 {
            return write!(f, "nothing was received");
        }
        let next = if *goes_on {
            "the same command goes on from there"
        } else {
            "but without a checksum in its name the next download starts again"
        };
        write!(f, "{bytes} bytes are kept in {}, {next}", path.display())
    }
}

/// The file's name at the end of a URL, if it has one.
pub fn name_in(url: &str) -> Option<&str> {
    let path = url.split(['?', '#']).next()?;
    let (host, name) = path.split_once("://").unwrap_or(("", path)).1.rsplit_once('/')?;
    Some(name).filter(|name| !host.is_empty() && !matches!(*name, "" | "." | ".."))
}

/// The checksum's first digits in a file name as torchvision's: those between `-` and `.`, such as
/// `dcbb9e9d` in `vgg19-dcbb9e9d.pth`.
pub fn sha256_prefix(name: &str) -> Option<&str> {
    let (before, _) = name.rsplit_once('.')?;
    let (_, digits) = before.rsplit_once('-')?;
    let is_checksum =
        (8..=64).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_checksum.then_some(digits)
}

/// Downloads the file, unless it is there already.
///
/// # Errors
/// [`FetchError`].
pub fn fetch(fetch: &Fetch, progress: &mut dyn Progress) -> Result<Fetched, FetchError> {
    let prefix = fetch.sha256_prefix.as_deref().map(str::to_ascii_lowercase);
    if let Some(fetched) = existing(&fetch.out, prefix.as_deref())? {
        return Ok(fetched);
    }
    let mut part = Part::open(&fetch.out, prefix.is_some())?;
    match receive(fetch, &mut part, progress) {
        Ok(()) => part.publish(fetch, prefix.as_deref()),
        Err(error) => {
            if part.bytes == 0 {
                fs::remove_file(&part.path).map_err(io_error(&part.path))?;
            }
            Err(error)
        }
    }
}

/// The file that is there, if it is the right one.
fn existing(path: &Path, prefix: Option<&str>) -> Result<Option<Fetched>, FetchError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path)(error)),
    };
    let (bytes, checksum) = read(&mut file).map_err(io_error(path))?;
    let (path, sha256) = (path.to_owned(), checksum.hex());
    match prefix {
        None => Err(FetchError::Unknown { path }),
        Some(prefix) if sha256.starts_with(prefix) => {
            Ok(Some(Fetched { path, bytes, sha256, already: true }))
        }
        Some(prefix) => {
            let found = sha256[..prefix.len().min(sha256.len())].to_owned();
            Err(FetchError::Exists { path, found, expected: prefix.to_owned() })
        }
    }
}

/// Fills the partial file, in as many attempts as it takes.
fn receive(fetch: &Fetch, part: &mut Part, progress: &mut dyn Progress) -> Result<(), FetchError> {
    let patience = fetch.patience;
    let name = fetch.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    progress.now(&name);
    let client = Client::new(&fetch.url, &patience);
    let mut server = Server { client, validator: None, has_answered: false };
    let mut failed = 0;
    loop {
        let before = part.bytes;
        let error = match server.attempt(fetch, part, progress) {
            Ok(()) => return Ok(()),
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(error)) => error,
        };
        failed = if part.bytes >= before + HEADWAY { 1 } else { failed + 1 };
        if failed >= patience.attempts {
            return Err(FetchError::GaveUp {
                url: fetch.url.clone(),
                attempts: failed,
                error,
                kept: part.kept(),
            });
        }
        progress.now(&format!("{name}: {error}, trying again"));
        let pause = patience.pause.saturating_mul(2u32.saturating_pow(failed - 1));
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            progress.advance(0).map_err(part.interrupted())?;
            thread::sleep(left.min(TICK));
        }
        progress.now(&name);
    }
}

/// Why an attempt did not bring the whole file.
enum Trouble {
    /// Another attempt may.
    Passing(String),
    Final(FetchError),
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

/// The other side, and what is known of it.
struct Server {
    client: Client,
    /// What tells this version of the file from others.
    validator: Option<String>,
    /// Whether there was an answer, so that address and proxy are right.
    has_answered: bool,
}

impl Server {
    /// Asks for what is missing, and appends it.
    fn attempt(
        &mut self,
        fetch: &Fetch,
        part: &mut Part,
        progress: &mut dyn Progress,
    ) -> Result<(), Trouble> {
        let events = self.client.get(part.bytes, self.validator.as_deref());
        let mut total = None;
        loop {
            match events.recv_timeout(TICK) {
                Ok(Event::Head(head)) => {
                    self.has_answered = true;
                    self.begin(&head, &fetch.url, part)?;
                    total = head.total;
                    progress.begin(total.unwrap_or(0));
                    progress.advance(part.bytes).map_err(part.interrupted())?;
                }
                Ok(Event::Piece(piece)) => {
                    part.append(&piece)?;
                    progress.advance(piece.len() as u64).map_err(part.interrupted())?;
                }
                Ok(Event::End) if total.is_none_or(|total| part.bytes >= total) => return Ok(()),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(Trouble::Passing("the connection was cut".to_owned()));
                }
                Ok(Event::Failed(failure)) => return Err(self.failed(failure, &fetch.url, part)?),
                Err(RecvTimeoutError::Timeout) => {
                    progress.advance(0).map_err(part.interrupted())?;
                }
            }
        }
    }

    /// Makes the partial file end where the body begins.
    fn begin(&mut self, head: &Head, url: &str, part: &mut Part) -> Result<(), Trouble> {
        if head.is_web_page {
            return Err(FetchError::WebPage { url: url.to_owned() }.into());
        }
        let is_other = self.validator.is_some() && self.validator != head.validator;
        if head.from != part.bytes || (is_other && head.from > 0) {
            part.empty()?;
        }
        self.validator.clone_from(&head.validator);
        if head.from != part.bytes {
            return Err(changed());
        }
        Ok(())
    }

    fn failed(&self, failure: Failure, url: &str, part: &mut Part) -> Result<Trouble, FetchError> {
        match failure {
            Failure::Passing(error) => Ok(Trouble::Passing(error)),
            Failure::Connection(error) if self.has_answered => Ok(Trouble::Passing(error)),
            Failure::Connection(error) | Failure::Final(error) => {
                Err(FetchError::Refused { url: url.to_owned(), error })
            }
            Failure::Changed => {
                part.empty()?;
                Ok(changed())
            }
        }
    }
}

fn changed() -> Trouble {
    Trouble::Passing("the file on the server has changed".to_owned())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    |error| FetchError::Io { path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses() {
        for (url, expected) in [
            (VGG19, Some("vgg19-dcbb9e9d.pth")),
            ("http://127.0.0.1:8080/a/b.bin?download=true#top", Some("b.bin")),
            ("https://example.org", None),
            ("https://example.org/", None),
            ("https://example.org/a/..", None),
            ("nonsense", None),
        ] {
            assert_eq!(name_in(url), expected, "{url}");
        }
    }

    #[test]
    fn checksums_in_names() {
        for (name, expected) in [
            ("vgg19-dcbb9e9d.pth", Some("dcbb9e9d")),
            ("a-b-00112233445566.tar.gz", None),
            ("vgg19_bn-c79401a0.pth", Some("c79401a0")),
            ("vgg19.pth", None),
            ("vgg19-bn.pth", None),
            ("vgg19-0123456.pth", None),
            ("dcbb9e9d", None),
        ] {
            assert_eq!(sha256_prefix(name), expected, "{name}");
        }
    }
}
