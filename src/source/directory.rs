//! A folder that photos are put into.
//!
//! A photo stays where it is until its prediction is kept elsewhere, so that a crash at any point
//! loses nothing: whatever still lies in the folder is classified again, under the same id. Only then
//! does it move to `done/`, or is removed, or stays and is written into a ledger; what cannot be
//! classified moves to `failed/`, and then gets its reason beside it. Nobody else moves or deletes
//! anything here.
//!
//! Complete is what its writer has closed or renamed into place; what was not seen arriving is
//! complete when size and time have rested for a while. Names that start with a dot or end in
//! `.part` or `.tmp` are never touched. A link to a file counts as that file, but moves itself, so that
//! a relative one then leads elsewhere; a link that leads to no file is ignored.
//!
//! No clock is asked: a photo from the future is as good as any.

mod aside;
mod finder;
mod identity;
mod ledger;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use rustix::fs::Access;

use super::{Condition, File, Frame, Handoff, Picture, Source};
use crate::config::{self, Afterwards, AtStart};
use crate::watch::{self, Watch};
use finder::{Finder, Place, Signal, wanted};
pub(super) use identity::Identity;
use ledger::Ledger;

/// The folder, shared by the thread that looks for photos and those that say what became of one.
pub struct Directory {
    path: PathBuf,
    place: Place,
    afterwards: Afterwards,
    settle: Duration,
    blind: bool,
    /// Names that are on their way and must not be found again.
    under_way: Mutex<HashSet<OsString>>,
    /// Photos that lay there at the start and are not wanted.
    skipped: HashSet<Identity>,
    done: Mutex<Ledger>,
    signals: Sender<Signal>,
    /// What [`run`](Source::run) takes: the folder is watched from the start, so that nothing that
    /// happens before the thread runs is missed.
    watched: Mutex<Option<(Receiver<Signal>, Option<Watch>)>>,
}

impl Directory {
    /// The folder that `config` names, watched from now on. What is done and still lies there is
    /// remembered in the file `ledger`, which is made when it is needed.
    ///
    /// With [`AtStart::Skip`] the photos that lie there now are never given unless they change, be it
    /// that they arrived while nobody looked, or that a crash kept them from being classified.
    ///
    /// # Errors
    /// When the folder is missing or none, photos could not be moved out of it, or the ledger cannot be
    /// read. Nothing is changed yet.
    pub fn open(config: &config::Source, ledger: &Path) -> io::Result<Self> {
        fs::read_dir(&config.directory)?;
        let leave = match config.afterwards {
            Afterwards::Keep => Access::READ_OK,
            Afterwards::Archive | Afterwards::Delete => Access::WRITE_OK,
        };
        rustix::fs::access(&config.directory, leave | Access::EXEC_OK)?;
        let (signals, inbox) = channel();
        let mut directory = Self {
            // Changes name absolute paths.
            path: config.directory.canonicalize()?,
            place: Place::of(&config.directory.canonicalize()?)?,
            afterwards: config.afterwards,
            settle: config.settle(),
            blind: false,
            under_way: Mutex::default(),
            skipped: HashSet::new(),
            done: Mutex::new(Ledger::open(ledger)?),
            signals,
            watched: Mutex::default(),
        };
        // If this fails, the first listing says so.
        let watch = directory.watch().ok();
        directory.watched = Mutex::new(Some((inbox, watch)));
        if config.at_start == AtStart::Skip {
            directory.skipped = directory.present()?;
        }
        Ok(directory)
    }

    /// The same, but finds photos by listing alone, as it must on a network share, where the system
    /// does not tell what other machines do.
    pub fn blind(mut self) -> Self {
        self.blind = true;
        if let Some((_, watch)) = self.watched.get_mut().unwrap() {
            *watch = None;
        }
        self
    }

    fn watch(&self) -> Result<Watch, String> {
        let signals = self.signals.clone();
        watch::folder(&self.path, move |change| drop(signals.send(Signal::Change(change))))
    }

    /// All that lies there and may be a photo.
    fn present(&self) -> io::Result<HashSet<Identity>> {
        let mut present = HashSet::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if wanted(&entry.file_name())
                && let Ok(Some((identity, _))) = Identity::of(&entry.path())
            {
                present.insert(identity);
            }
        }
        Ok(present)
    }

    /// Makes the ledger as short as it can be.
    fn compact(&self) -> io::Result<()> {
        let mut done = self.done.lock().unwrap();
        match done.is_empty() {
            true => Ok(()),
            false => done.compact(&self.present()?),
        }
    }

    /// Whether that photo lies in the folder only because it has to stay there.
    fn passes_over(&self, photo: Identity) -> bool {
        self.skipped.contains(&photo) || self.done.lock().unwrap().contains(photo)
    }

    /// The photo of that name as it is now, if it is there and wanted.
    fn frame(&self, name: &OsStr, found_at: Instant) -> Option<Frame> {
        let path = self.path.join(name);
        let found = Identity::of(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "cannot look at photo");
            None
        });
        let Some((identity, metadata)) = found.filter(|(photo, _)| !self.passes_over(*photo))
        else {
            self.under_way.lock().unwrap().remove(name);
            return None;
        };
        Some(Frame {
            id: identity.to_string(),
            picture: Picture::File(path.clone()),
            file: Some(File { name: name.to_string_lossy().into_owned(), path, identity }),
            captured_at: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            found_at,
        })
    }

    /// Moves the photo with `away`, and does `last` with it where it then lies. What is moved may be another
    /// photo that was put in its place at that moment: that goes back, and is found there.
    fn conclude(
        &self,
        frame: &Frame,
        away: impl FnOnce(&Path) -> io::Result<Option<PathBuf>>,
        last: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(file) = &frame.file else { return Ok(()) };
        let name = file.path.file_name().expect("a photo has a name");
        let now = || Some(Identity::of(&file.path).ok()??.0);
        // A link may lead elsewhere from there.
        let is_other = |moved: &Path| {
            !moved.is_symlink()
                && Identity::under(name, moved)
                    .is_ok_and(|found| found.is_some_and(|(identity, _)| identity != file.identity))
        };
        let result = match now() == Some(file.identity) {
            true => away(&file.path).and_then(|moved| match moved {
                Some(moved) if is_other(&moved) => {
                    aside::put_back(&moved, &file.path);
                    Ok(())
                }
                Some(moved) => last(&moved),
                None => Ok(()),
            }),
            false => Ok(()),
        };
        let left = now();
        let recorded = match left == Some(file.identity) {
            true => self.done.lock().unwrap().record(file.identity),
            false => Ok(()),
        };
        self.under_way.lock().unwrap().remove(name);
        // What was put there before this line was not heard of.
        if now().is_some_and(|identity| identity != file.identity) {
            self.signals.send(Signal::Replaced).ok();
        }
        result.and(recorded)
    }
}

impl Source for Directory {
    /// Every photo as it becomes complete, in the order of arrival, what lies there already first
    /// (oldest first).
    fn run(&self, handoff: &Handoff, tell: &dyn Fn(Condition)) {
        let watched = self.watched.lock().unwrap().take();
        let (inbox, watch) = watched.expect("a directory is watched once");
        if let Err(error) = self.compact() {
            tracing::warn!(%error, "cannot shorten the list of photos that are done");
        }
        // If it cannot be listed, the finder says so.
        aside::show_hidden(&self.path).ok();
        Finder::new(self, watch, tell).run(&inbox, handoff);
    }

    fn stop(&self) {
        self.signals.send(Signal::Stop).ok();
    }

    /// The photo is archived, removed or left.
    fn finish(&self, frame: &Frame) -> io::Result<()> {
        let done = self.path.join("done");
        match self.afterwards {
            Afterwards::Archive => {
                let archive = |photo: &Path| aside::move_into(&done, photo, "").map(Some);
                self.conclude(frame, archive, |_| Ok(()))
            }
            Afterwards::Delete => {
                self.conclude(frame, aside::hide, |hidden| fs::remove_file(hidden))
            }
            Afterwards::Keep => self.conclude(frame, |_| Ok(None), |_| Ok(())),
        }
    }

    /// The photo goes to `failed/`, and then `reason` into a text file beside it.
    fn reject(&self, frame: &Frame, reason: &str) -> io::Result<()> {
        let failed = self.path.join("failed");
        let move_away = |photo: &Path| aside::move_into(&failed, photo, ".txt").map(Some);
        self.conclude(frame, move_away, |moved| {
            fs::write(aside::with(moved, ".txt"), format!("{reason}\n"))
        })
    }
}
