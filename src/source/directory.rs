//! A folder that photos are put into.
//!
//! A photo stays where it is until its prediction is acknowledged, so that a crash at any point
//! loses nothing: whatever still lies in the folder is classified again. Only then does it move to
//! `done/` (or is removed), or to `failed/` with the reason beside it. Nobody else moves or deletes
//! anything here.
//!
//! Complete is what its writer has closed or renamed into place; what was not seen arriving is
//! complete when size and time have rested for a while. Names that start with a dot or end in
//! `.part` or `.tmp` are never touched.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};

use super::Frame;
use crate::config::Afterwards;

/// How often the folder is listed for what no event told of.
const RESCAN: Duration = Duration::from_secs(5);

/// What distinguishes one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> io::Result<Option<(Self, fs::Metadata)>> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let identity = Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        Ok(Some((identity, metadata)))
    }
}

/// The folder, shared by the thread that watches it and those that say what became of a photo.
pub struct Directory {
    path: PathBuf,
    afterwards: Afterwards,
    settle: Duration,
    /// Names that are on their way and must not be found again.
    under_way: Mutex<HashSet<OsString>>,
    signals: Sender<Signal>,
    inbox: Mutex<Option<Receiver<Signal>>>,
}

enum Signal {
    Event(notify::Result<notify::Event>),
    Found(OsString),
    Stop,
}

impl Directory {
    /// The folder at `path`, which is created if it is missing.
    ///
    /// # Errors
    /// When it cannot be created or is not a folder.
    pub fn open(path: &Path, afterwards: Afterwards, settle: Duration) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        fs::read_dir(path)?;
        // Events name absolute paths.
        let path = path.canonicalize()?;
        let (signals, inbox) = channel();
        Ok(Self {
            path,
            afterwards,
            settle,
            under_way: Mutex::default(),
            signals,
            inbox: Mutex::new(Some(inbox)),
        })
    }

    /// Puts every photo into `handoff` as it becomes complete, in the order of arrival, what lies
    /// there already first (oldest first). Returns after [`stop`](Self::stop), or when nobody takes
    /// frames any more.
    ///
    /// # Panics
    /// When called twice.
    pub fn run(&self, handoff: &SyncSender<Frame>) {
        let inbox = self.inbox.lock().unwrap().take();
        let inbox = inbox.expect("a directory is watched once");
        let mut watch = Watch {
            directory: self,
            watcher: None,
            queue: VecDeque::new(),
            writing: HashSet::new(),
            resting: HashMap::new(),
            lost: false,
        };
        let mut next_scan = Instant::now();
        loop {
            if Instant::now() >= next_scan {
                next_scan = Instant::now() + watch.scan();
            }
            let wait = match watch.queue.is_empty() {
                true => next_scan.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            match inbox.recv_timeout(wait) {
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Signal::Found(name)) => watch.complete(name, Instant::now()),
                Ok(Signal::Event(event)) => {
                    if watch.hear(event) == Heard::Overflow {
                        next_scan = Instant::now();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some((name, found_at)) = watch.queue.pop_front()
                && let Some(frame) = self.frame(&name, found_at)
                && handoff.send(frame).is_err()
            {
                return;
            }
        }
    }

    /// Whether photos can be moved out of the folder.
    ///
    /// # Errors
    /// When nothing can be created in it.
    pub fn check_writable(&self) -> io::Result<()> {
        let probe = self.path.join(".vggd-check");
        fs::create_dir(&probe)?;
        fs::remove_dir(&probe)
    }

    /// Makes [`run`](Self::run) return.
    pub fn stop(&self) {
        self.signals.send(Signal::Stop).ok();
    }

    /// The photo's prediction was acknowledged: it is archived or removed.
    ///
    /// # Errors
    /// When it cannot be moved or removed; it then stays where it is, and is not classified again
    /// before the next start.
    pub fn finish(&self, frame: &Frame) -> io::Result<()> {
        self.conclude(frame, |directory, path| match directory.afterwards {
            Afterwards::Archive => directory.move_to("done", path).map(drop),
            Afterwards::Delete => fs::remove_file(path),
        })
    }

    /// The photo cannot be classified: it goes to `failed/`, with `reason` in a text file beside it.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish).
    pub fn reject(&self, frame: &Frame, reason: &str) -> io::Result<()> {
        self.conclude(frame, |directory, path| {
            let mut note = directory.move_to("failed", path)?.into_os_string();
            note.push(".txt");
            fs::write(note, format!("{reason}\n"))
        })
    }

    /// Does `what` with the photo, unless it was replaced meanwhile: then the new one is found.
    fn conclude(
        &self,
        frame: &Frame,
        what: impl FnOnce(&Self, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = frame.path.file_name().expect("a photo has a name").to_owned();
        let found = Identity::of(&frame.path)?;
        let unchanged = found.is_some_and(|(identity, _)| identity == frame.identity);
        if unchanged {
            what(self, &frame.path)?;
        }
        self.under_way.lock().unwrap().remove(&name);
        if !unchanged {
            self.signals.send(Signal::Found(name)).ok();
        }
        Ok(())
    }

    fn move_to(&self, folder: &str, path: &Path) -> io::Result<PathBuf> {
        let folder = self.path.join(folder);
        fs::create_dir_all(&folder)?;
        let name = Path::new(path.file_name().expect("a photo has a name"));
        let mut target = folder.join(name);
        for count in 1.. {
            if target.symlink_metadata().is_err() {
                break;
            }
            let mut numbered = name.file_stem().unwrap_or_default().to_owned();
            numbered.push(format!("-{count}"));
            target = folder.join(numbered);
            if let Some(extension) = name.extension() {
                target.as_mut_os_string().push(".");
                target.as_mut_os_string().push(extension);
            }
        }
        fs::rename(path, &target)?;
        Ok(target)
    }

    fn frame(&self, name: &OsStr, found_at: Instant) -> Option<Frame> {
        let path = self.path.join(name);
        let (identity, metadata) = match Identity::of(&path) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.under_way.lock().unwrap().remove(name);
                return None;
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot look at photo");
                self.under_way.lock().unwrap().remove(name);
                return None;
            }
        };
        let mut digest = Sha256::new();
        digest.update(name.as_bytes());
        for part in [identity.device, identity.inode, identity.length] {
            digest.update(part.to_le_bytes());
        }
        digest.update(identity.modified.0.to_le_bytes());
        digest.update(identity.modified.1.to_le_bytes());
        let digest = digest.finalize();
        Some(Frame {
            name: name.to_string_lossy().into_owned(),
            path,
            id: digest[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
            captured_at: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            found_at,
            identity,
        })
    }
}

#[derive(PartialEq)]
enum Heard {
    Enough,
    Overflow,
}

/// What the watching thread knows.
struct Watch<'a> {
    directory: &'a Directory,
    watcher: Option<RecommendedWatcher>,
    /// Complete photos and since when.
    queue: VecDeque<(OsString, Instant)>,
    /// Names that somebody is writing: an event will tell when they are complete.
    writing: HashSet<OsString>,
    /// Photos that no event told of, as they were when last seen.
    resting: HashMap<OsString, (Identity, Instant)>,
    /// Whether the folder could not be read last time.
    lost: bool,
}

impl Watch<'_> {
    fn hear(&mut self, event: notify::Result<notify::Event>) -> Heard {
        let event = match event {
            Ok(event) if event.need_rescan() => return Heard::Overflow,
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "watching the folder failed, it is listed instead");
                self.watcher = None;
                return Heard::Overflow;
            }
        };
        for path in &event.paths {
            if path.parent() != Some(&self.directory.path) {
                continue;
            }
            let Some(name) = path.file_name().map(OsStr::to_owned) else {
                continue;
            };
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                    self.writing.remove(&name);
                    self.complete(name, Instant::now());
                }
                EventKind::Create(CreateKind::File) => {
                    let linked =
                        path.symlink_metadata().is_ok_and(|m| m.nlink() > 1 || m.is_symlink());
                    match linked {
                        true => self.complete(name, Instant::now()),
                        false => drop(self.writing.insert(name)),
                    }
                }
                EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                    self.writing.remove(&name);
                }
                _ => {}
            }
        }
        Heard::Enough
    }

    fn complete(&mut self, name: OsString, found_at: Instant) {
        self.resting.remove(&name);
        if wanted(&name) && self.directory.under_way.lock().unwrap().insert(name.clone()) {
            self.queue.push_back((name, found_at));
        }
    }

    /// Lists the folder for photos that no event told of. Returns when to look again.
    fn scan(&mut self) -> Duration {
        match self.try_scan() {
            Ok(pause) => {
                if std::mem::take(&mut self.lost) {
                    tracing::info!(path = %self.directory.path.display(), "folder is back");
                }
                pause
            }
            Err(error) => {
                if !std::mem::replace(&mut self.lost, true) {
                    tracing::error!(path = %self.directory.path.display(), %error, "cannot list folder");
                }
                self.watcher = None;
                RESCAN
            }
        }
    }

    fn try_scan(&mut self) -> io::Result<Duration> {
        if self.watcher.is_none() {
            self.writing.clear();
            self.watcher = self.watch();
        }
        let mut found = Vec::new();
        let mut seen = HashMap::new();
        let (now, clock) = (Instant::now(), SystemTime::now());
        for entry in fs::read_dir(&self.directory.path)? {
            let name = entry?.file_name();
            let known = self.directory.under_way.lock().unwrap().contains(&name);
            if known || self.writing.contains(&name) || !wanted(&name) {
                continue;
            }
            let Ok(Some((identity, metadata))) = Identity::of(&self.directory.path.join(&name))
            else {
                continue;
            };
            let since = match self.resting.get(&name) {
                Some((before, since)) if *before == identity => *since,
                _ => now,
            };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let age = clock.duration_since(modified).unwrap_or_default();
            match age.max(now - since) >= self.directory.settle {
                true => found.push((modified, name)),
                false => drop(seen.insert(name, (identity, since))),
            }
        }
        let pause = match seen.is_empty() {
            true => RESCAN,
            false => RESCAN.min(self.directory.settle).max(Duration::from_millis(10)),
        };
        self.resting = seen;
        found.sort();
        for (_, name) in found {
            self.complete(name, now);
        }
        Ok(pause)
    }

    fn watch(&self) -> Option<RecommendedWatcher> {
        let signals = self.directory.signals.clone();
        let hear = move |event| drop(signals.send(Signal::Event(event)));
        let watcher = notify::recommended_watcher(hear).and_then(|mut watcher| {
            watcher.watch(&self.directory.path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        watcher
            .inspect_err(
                |error| tracing::warn!(%error, "cannot watch the folder, it is listed instead"),
            )
            .ok()
    }
}

fn wanted(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".")
        && !name.ends_with(b".part")
        && !name.ends_with(b".tmp")
        && name != b"done"
        && name != b"failed"
}
