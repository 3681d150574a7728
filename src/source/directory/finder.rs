//! The thread that looks for photos: what the system tells of, and what listing the folder shows. It
//! decides when a photo is complete and hands it over; what becomes of it is told to
//! [`Directory`], not to this.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use super::identity::Identity;
use super::{Condition, Directory, Handoff};
use crate::config::SourceKind;
use crate::watch::{Change, Watch};

/// How often the folder is listed for what no event told of.
const RESCAN: Duration = Duration::from_secs(5);

/// How often at most while there are photos that rest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// A photo that somebody began to write and no event completed counts as complete after resting for
/// this long: events get lost, and some ways of creating a file end without one.
const STALLED: Duration = Duration::from_secs(60);

/// What the thread is told.
pub(super) enum Signal {
    /// Something happened in the folder.
    Change(Change),
    /// A photo was replaced while it was under way: list the folder.
    Replaced,
    /// It is over.
    Stop,
}

/// Where a folder is, beside its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    device: u64,
    inode: u64,
    /// Whether a file system is mounted right there.
    mounted: bool,
}

impl Place {
    /// The place of the folder at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let folder = fs::metadata(path)?;
        let device = folder.dev();
        let mounted = match path.parent() {
            Some(parent) => fs::metadata(parent)?.dev() != device,
            None => false,
        };
        Ok(Self { device, inode: folder.ino(), mounted })
    }
}

/// What the thread knows.
pub(super) struct Finder<'a> {
    directory: &'a Directory,
    watch: Option<Watch>,
    place: Place,
    /// Complete photos and since when.
    queue: VecDeque<(OsString, Instant)>,
    /// Names that somebody is writing: a change will tell when they are complete.
    writing: HashSet<OsString>,
    /// Photos that no change completed, as they were when last seen, and since when.
    resting: HashMap<OsString, (Identity, Instant)>,
    next_scan: Instant,
    told: Condition,
    tell: &'a dyn Fn(Condition),
}

impl<'a> Finder<'a> {
    /// A finder that has told `tell` that the folder works, as it does when it was just opened.
    pub(super) fn new(
        directory: &'a Directory,
        watch: Option<Watch>,
        tell: &'a dyn Fn(Condition),
    ) -> Self {
        let told = Condition { working: true, detail: directory.path.display().to_string() };
        tell(told.clone());
        Self {
            directory,
            watch,
            place: directory.place,
            queue: VecDeque::new(),
            writing: HashSet::new(),
            resting: HashMap::new(),
            next_scan: Instant::now(),
            told,
            tell,
        }
    }

    /// Hands over photo after photo until told to stop.
    pub(super) fn run(&mut self, inbox: &Receiver<Signal>, handoff: &Handoff) {
        loop {
            // All that is known must be heard before the folder is listed or a photo is taken: a
            // photo that somebody began to write looks complete until then.
            loop {
                match handoff.giving().receive(inbox, self.idle()) {
                    Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(Signal::Change(change)) => self.hear(change),
                    Ok(Signal::Replaced) => self.next_scan = Instant::now(),
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            if Instant::now() >= self.next_scan {
                self.scan();
                continue;
            }
            if let Some((name, found_at)) = self.queue.pop_front()
                && let Some(frame) = self.directory.frame(&name, found_at)
                && !handoff.put(frame)
            {
                return;
            }
        }
    }

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
                // Nobody closes a link, and what it leads to may be unfinished: it has to rest.
                let path = self.directory.path.join(&name);
                match path.symlink_metadata().is_ok_and(|m| m.nlink() > 1 || m.is_symlink()) {
                    true => self.next_scan = Instant::now(),
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
        let path = self.directory.path.display();
        let (pause, condition) = match self.try_scan() {
            Ok((pause, None)) => (pause, Condition { working: true, detail: path.to_string() }),
            Ok((pause, Some(problem))) => {
                let detail = format!("{path}, only listed now and then: cannot watch: {problem}");
                (pause, Condition { working: true, detail })
            }
            Err(error) => {
                self.watch = None;
                let detail = format!("{path} cannot be listed: {error}");
                (RESCAN, Condition { working: false, detail })
            }
        };
        self.next_scan = Instant::now() + pause;
        if condition != self.told {
            let (source, detail) = (SourceKind::Directory.as_str(), &condition.detail);
            match condition.working {
                true => tracing::info!(source, detail, "looking for photos"),
                false => tracing::error!(source, error = detail, "no photos"),
            }
            (self.tell)(condition.clone());
            self.told = condition;
        }
        tracing::trace!("folder listed");
    }

    /// Returns when to look again, and why the folder cannot be watched, if it cannot.
    fn try_scan(&mut self) -> io::Result<(Duration, Option<String>)> {
        let place = Place::of(&self.directory.path)?;
        if self.directory.place.mounted && !place.mounted {
            return Err(io::Error::other("no file system is mounted there any more"));
        }
        if place != self.place {
            self.watch = None;
            self.place = place;
        }
        let mut problem = None;
        if self.watch.is_none() && !self.directory.blind {
            self.writing.clear();
            match self.directory.watch() {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => problem = Some(error),
            }
        }
        let mut found = Vec::new();
        let mut resting = HashMap::new();
        let mut pause = RESCAN;
        let now = Instant::now();
        for entry in fs::read_dir(&self.directory.path)? {
            let name = entry?.file_name();
            if !wanted(&name) || self.directory.under_way.lock().unwrap().contains(&name) {
                continue;
            }
            let Ok(Some((identity, metadata))) = Identity::of(&self.directory.path.join(&name))
            else {
                continue;
            };
            if self.directory.passes_over(identity) {
                continue;
            }
            let since = match self.resting.get(&name) {
                Some((before, since)) if *before == identity => *since,
                _ => now,
            };
            let rest = match self.writing.contains(&name) {
                true => STALLED,
                false => self.directory.settle,
            };
            let left = rest.saturating_sub(now - since);
            if left.is_zero() {
                let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((modified, name));
            } else {
                pause = pause.min(left.max(SHORTEST_PAUSE));
                resting.insert(name, (identity, since));
            }
        }
        self.resting = resting;
        found.sort();
        for (_, name) in found {
            self.complete(name, now);
        }
        Ok((pause, problem))
    }
}

/// Whether something of that name may be a photo.
pub(super) fn wanted(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".")
        && !name.ends_with(b".part")
        && !name.ends_with(b".tmp")
        && name != b"done"
        && name != b"failed"
}
