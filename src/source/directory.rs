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
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use rustix::fs::Access;
use sha2::{Digest, Sha256};

use super::{Condition, File, Frame, Handoff, Picture, Source};
use crate::config::Afterwards;
use crate::watch::{self, Change, Watch};

/// How often the folder is listed for what no event told of.
const RESCAN: Duration = Duration::from_secs(5);

/// A photo that somebody began to write and no event completed counts as complete after resting for
/// this long: events get lost, and some ways of creating a file end without one.
const STALLED: Duration = Duration::from_secs(60);

/// What distinguishes one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
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
    /// Photos that are done but could not be moved away: listing the folder passes them over.
    stuck: Mutex<HashMap<OsString, Identity>>,
    signals: Sender<Signal>,
    /// What [`run`](Source::run) takes: the folder is watched from the start, so that nothing that
    /// happens before the thread runs is missed.
    watched: Mutex<Option<(Receiver<Signal>, Option<Watch>)>>,
}

enum Signal {
    Change(Change),
    /// A photo was replaced while it was under way: list the folder.
    Replaced,
    Stop,
}

impl Directory {
    /// The folder at `path`, watched from now on.
    ///
    /// # Errors
    /// When it is missing or no folder, or photos could not be moved out of it.
    pub fn open(path: &Path, afterwards: Afterwards, settle: Duration) -> io::Result<Self> {
        fs::read_dir(path)?;
        rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK)?;
        let (signals, inbox) = channel();
        // Changes name absolute paths.
        let path = path.canonicalize()?;
        // If this fails, the first listing says so.
        let watch = watch_folder(&path, &signals).ok();
        Ok(Self {
            path,
            afterwards,
            settle,
            under_way: Mutex::default(),
            stuck: Mutex::default(),
            signals,
            watched: Mutex::new(Some((inbox, watch))),
        })
    }

    /// Does `what` with the photo, unless it was replaced meanwhile: then the new one is found.
    fn conclude(
        &self,
        frame: &Frame,
        what: impl FnOnce(&Self, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(file) = &frame.file else { return Ok(()) };
        let name = file.path.file_name().expect("a photo has a name").to_owned();
        let now = || Some(Identity::of(&file.path).ok()??.0);
        let result = match now() == Some(file.identity) {
            true => what(self, &file.path),
            false => Ok(()),
        };
        let left = now();
        if left == Some(file.identity) {
            self.stuck.lock().unwrap().insert(name.clone(), file.identity);
        }
        self.under_way.lock().unwrap().remove(&name);
        if left.is_some_and(|identity| identity != file.identity) {
            self.signals.send(Signal::Replaced).ok();
        }
        result
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
        for part in [identity.inode, identity.length] {
            digest.update(part.to_le_bytes());
        }
        digest.update(identity.modified.0.to_le_bytes());
        digest.update(identity.modified.1.to_le_bytes());
        let digest = digest.finalize();
        let name = name.to_string_lossy().into_owned();
        Some(Frame {
            id: digest[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
            picture: Picture::File(path.clone()),
            file: Some(File { name, path, identity }),
            captured_at: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            found_at,
        })
    }
}

impl Source for Directory {
    /// Every photo as it becomes complete, in the order of arrival, what lies there already first
    /// (oldest first).
    fn run(&self, handoff: &Handoff, tell: &dyn Fn(Condition)) {
        let watched = self.watched.lock().unwrap().take();
        let (inbox, watch) = watched.expect("a directory is watched once");
        let mut finder = Finder {
            directory: self,
            watch,
            queue: VecDeque::new(),
            writing: HashSet::new(),
            resting: HashMap::new(),
            next_scan: Instant::now(),
            trouble: None,
            tell,
        };
        let detail = self.path.display().to_string();
        tell(Condition { working: true, detail });
        loop {
            // All that is known must be heard before the folder is listed or a photo is taken: a
            // photo that somebody began to write looks complete until then.
            loop {
                match inbox.recv_timeout(finder.idle()) {
                    Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(Signal::Change(change)) => finder.hear(change),
                    Ok(Signal::Replaced) => finder.next_scan = Instant::now(),
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            if Instant::now() >= finder.next_scan {
                finder.scan();
                continue;
            }
            if let Some((name, found_at)) = finder.queue.pop_front()
                && let Some(frame) = self.frame(&name, found_at)
                && !handoff.put(frame)
            {
                return;
            }
        }
    }

    fn stop(&self) {
        self.signals.send(Signal::Stop).ok();
    }

    /// The photo is archived or removed.
    fn finish(&self, frame: &Frame) -> io::Result<()> {
        self.conclude(frame, |directory, path| match directory.afterwards {
            Afterwards::Archive => directory.move_to("done", path).map(drop),
            Afterwards::Delete => fs::remove_file(path),
            Afterwards::Keep => Ok(()),
        })
    }

    /// The photo goes to `failed/`, with `reason` in a text file beside it.
    fn reject(&self, frame: &Frame, reason: &str) -> io::Result<()> {
        self.conclude(frame, |directory, path| {
            let mut note = directory.move_to("failed", path)?.into_os_string();
            note.push(".txt");
            fs::write(note, format!("{reason}\n"))
        })
    }
}

/// What the watching thread knows.
struct Finder<'a> {
    directory: &'a Directory,
    watch: Option<Watch>,
    /// Complete photos and since when.
    queue: VecDeque<(OsString, Instant)>,
    /// Names that somebody is writing: a change will tell when they are complete.
    writing: HashSet<OsString>,
    /// Photos that no change completed, as they were when last seen.
    resting: HashMap<OsString, (Identity, Instant)>,
    next_scan: Instant,
    /// Why the folder cannot be watched or listed, as last said.
    trouble: Option<String>,
    tell: &'a dyn Fn(Condition),
}

impl Finder<'_> {
    /// How long there is nothing to do unless something happens.
    fn idle(&self) -> Duration {
        match self.queue.is_empty() {
            true => self.next_scan.saturating_duration_since(Instant::now()),
            false => Duration::ZERO,
        }
    }

    fn hear(&mut self, change: Change) {
        match change {
            Change::Complete(name) => self.complete(name, Instant::now()),
            Change::Begun(name) => {
                // A link is whole from the start; nobody closes it.
                let path = self.directory.path.join(&name);
                match path.symlink_metadata().is_ok_and(|m| m.nlink() > 1 || m.is_symlink()) {
                    true => self.complete(name, Instant::now()),
                    false => drop(self.writing.insert(name)),
                }
            }
            Change::Gone(name) => drop(self.writing.remove(&name)),
            Change::Missed(why) => {
                tracing::warn!(why, "changes were missed, listing the folder");
                self.watch = None;
                self.next_scan = Instant::now();
            }
        }
    }

    fn complete(&mut self, name: OsString, found_at: Instant) {
        self.writing.remove(&name);
        self.resting.remove(&name);
        if wanted(&name) && self.directory.under_way.lock().unwrap().insert(name.clone()) {
            self.queue.push_back((name, found_at));
        }
    }

    /// Lists the folder for photos that no change told of, and says once what is in the way.
    fn scan(&mut self) {
        let (pause, trouble) = match self.try_scan() {
            Ok((pause, trouble)) => (pause, trouble),
            Err(error) => {
                self.watch = None;
                (RESCAN, Some(format!("cannot list: {error}")))
            }
        };
        self.next_scan = Instant::now() + pause;
        if trouble != self.trouble {
            let path = self.directory.path.display();
            match &trouble {
                Some(trouble) => tracing::error!(%path, trouble, "folder"),
                None => tracing::info!(%path, "folder is watched again"),
            }
            let detail = trouble.clone().unwrap_or_else(|| path.to_string());
            (self.tell)(Condition { working: trouble.is_none(), detail });
            self.trouble = trouble;
        }
        tracing::trace!("folder listed");
    }

    /// Returns when to look again, and why the folder cannot be watched, if it cannot.
    fn try_scan(&mut self) -> io::Result<(Duration, Option<String>)> {
        let mut trouble = None;
        if self.watch.is_none() {
            self.writing.clear();
            match watch_folder(&self.directory.path, &self.directory.signals) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => trouble = Some(format!("cannot watch: {error}")),
            }
        }
        let mut found = Vec::new();
        let mut resting = HashMap::new();
        let mut pause = RESCAN;
        let (now, clock) = (Instant::now(), SystemTime::now());
        for entry in fs::read_dir(&self.directory.path)? {
            let name = entry?.file_name();
            if !wanted(&name) || self.directory.under_way.lock().unwrap().contains(&name) {
                continue;
            }
            let Ok(Some((identity, metadata))) = Identity::of(&self.directory.path.join(&name))
            else {
                continue;
            };
            if self.directory.stuck.lock().unwrap().get(&name) == Some(&identity) {
                continue;
            }
            let since = match self.resting.get(&name) {
                Some((before, since)) if *before == identity => *since,
                _ => now,
            };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let complete = match self.writing.contains(&name) {
                true => now - since >= STALLED,
                false => {
                    let age = clock.duration_since(modified).unwrap_or_default();
                    let settled = age.max(now - since) >= self.directory.settle;
                    if !settled {
                        pause = self.directory.settle.clamp(Duration::from_millis(10), pause);
                    }
                    settled
                }
            };
            match complete {
                true => found.push((modified, name)),
                false => drop(resting.insert(name, (identity, since))),
            }
        }
        self.resting = resting;
        found.sort();
        for (_, name) in found {
            self.complete(name, now);
        }
        Ok((pause, trouble))
    }
}

fn watch_folder(path: &Path, signals: &Sender<Signal>) -> Result<Watch, String> {
    let signals = signals.clone();
    watch::folder(path, move |change| drop(signals.send(Signal::Change(change))))
}

fn wanted(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".")
        && !name.ends_with(b".part")
        && !name.ends_with(b".tmp")
        && name != b"done"
        && name != b"failed"
}
