//! Where frames come from, and how they are handed over. A source gives frames and later hears what
//! became of each; it must not know how they are classified or published.

#[cfg(feature = "camera")]
pub mod camera;
pub mod directory;
mod jpeg;
mod live;
pub mod stream;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::preprocess::Raw;
use crate::pulse::Pulse;

/// A picture that nobody has decoded yet.
#[derive(Clone)]
pub enum Picture {
    /// A file, whose bytes stay on disk until it is decoded.
    File(PathBuf),
    /// JPEG, PNG or WebP, told apart by content.
    Encoded(Vec<u8>),
    /// Bare pixels.
    Raw(Raw),
}

/// One picture on its way through the daemon.
#[derive(Clone, Debug)]
pub struct Frame {
    /// No other frame has it. A photo from a directory keeps it across restarts, for as long as it is
    /// not changed.
    pub id: String,
    /// What it shows.
    pub picture: Picture,
    /// The photo that it is, if it comes from a directory; all others are as old as their capture.
    pub file: Option<File>,
    /// When the picture was taken, or the photo was written.
    pub captured_at: SystemTime,
    /// When the source had it complete.
    pub found_at: Instant,
}

/// A photo in a directory.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name in the directory; what is not UTF-8 in it is replaced.
    pub name: String,
    path: PathBuf,
    identity: directory::Identity,
}

impl Frame {
    /// A frame that was captured `age` ago.
    pub fn live(picture: Picture, age: Duration) -> Self {
        static RUN: OnceLock<u32> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let run = *RUN.get_or_init(|| fastrand::u32(..));
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let (now, clock) = (Instant::now(), SystemTime::now());
        Self {
            id: format!("{run:08x}{count:08x}"),
            picture,
            file: None,
            captured_at: clock.checked_sub(age).unwrap_or(clock),
            found_at: now.checked_sub(age).unwrap_or(now),
        }
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Encoded(bytes) => write!(f, "Encoded({} bytes)", bytes.len()),
            Self::Raw(raw) => raw.fmt(f),
        }
    }
}

/// Something that frames come from.
pub trait Source: Send + Sync {
    /// Puts frames into `handoff` until [`stop`](Self::stop) or until the handoff is closed, and tells
    /// whenever its [`Condition`] changes. What can be mended, a camera that was pulled out, is tried
    /// again and again. Stamps [`Handoff::giving`] while there is no frame. Called once.
    fn run(&self, handoff: &Handoff, tell: &dyn Fn(Condition));

    /// Makes [`run`](Self::run) return soon.
    fn stop(&self);

    /// The frame is done with, for good: its prediction is kept elsewhere.
    ///
    /// # Errors
    /// When a photo cannot be moved or removed. It stays where it is, and is not given again before it
    /// changes.
    fn finish(&self, _frame: &Frame) -> io::Result<()> {
        Ok(())
    }

    /// The frame cannot be classified, for the reason given.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish).
    fn reject(&self, _frame: &Frame, _reason: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a source gives frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Whether it does, as far as one can see.
    pub working: bool,
    /// What it is and how it was opened, or why it does not work, in words.
    pub detail: String,
}

/// Where a source puts a frame and the classifier takes it: room for one.
#[derive(Debug, Default)]
pub struct Handoff {
    slot: Mutex<Slot>,
    changed: Condvar,
    giving: Pulse,
    taking: Pulse,
}

#[derive(Debug, Default)]
struct Slot {
    frame: Option<Frame>,
    dropped: u64,
    closed: bool,
}

impl Handoff {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for `frame`. False, and the frame gone, once it is closed.
    pub fn put(&self, frame: Frame) -> bool {
        let full = |slot: &mut Slot| slot.frame.is_some() && !slot.closed;
        self.fill(self.giving.wait_while(&self.changed, self.lock(), full), frame)
    }

    /// Puts `frame` in the place of one that nobody took, which is dropped and counted. False once it
    /// is closed.
    pub fn replace(&self, frame: Frame) -> bool {
        self.giving.beat();
        let mut slot = self.lock();
        slot.dropped += u64::from(slot.frame.is_some());
        self.fill(slot, frame)
    }

    /// Counts so many frames as dropped that never came here, because newer ones were there already.
    pub fn dropped_before(&self, count: u64) {
        self.lock().dropped += count;
    }

    fn fill(&self, mut slot: MutexGuard<'_, Slot>, frame: Frame) -> bool {
        if !slot.closed {
            slot.frame = Some(frame);
            self.changed.notify_all();
        }
        !slot.closed
    }

    /// Waits for a frame; nothing once it is closed.
    pub fn take(&self) -> Option<Frame> {
        let empty = |slot: &mut Slot| slot.frame.is_none() && !slot.closed;
        let mut slot = self.taking.wait_while(&self.changed, self.lock(), empty);
        let frame = slot.frame.take().filter(|_| !slot.closed);
        self.changed.notify_all();
        frame
    }

    /// Stamped by whoever puts frames here, also while there are none.
    pub fn giving(&self) -> &Pulse {
        &self.giving
    }

    /// Stamped by whoever takes them.
    pub fn taking(&self) -> &Pulse {
        &self.taking
    }

    /// How many frames were dropped so far because a newer one came.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Ends it for both sides.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame::live(Picture::Encoded(Vec::new()), Duration::ZERO)
    }

    #[test]
    fn the_newest_frame_wins_and_the_others_are_counted() {
        let handoff = Handoff::default();
        let frames: [Frame; 3] = std::array::from_fn(|_| frame());
        for frame in &frames {
            assert!(handoff.replace(frame.clone()));
        }
        assert_eq!(handoff.take().unwrap().id, frames[2].id);
        assert_eq!(handoff.dropped(), 2);
    }

    #[test]
    fn a_frame_waits_for_room_and_none_is_lost() {
        let handoff = Handoff::default();
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| (0..100).map(|_| frame()).all(|frame| handoff.put(frame)));
            assert!((0..100).all(|_| handoff.take().is_some()));
            assert!(putting.join().unwrap());
        });
        assert_eq!(handoff.dropped(), 0);
    }

    #[test]
    fn closing_ends_both_sides() {
        let handoff = Handoff::default();
        assert!(handoff.put(frame()));
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| handoff.put(frame()));
            handoff.close();
            assert!(!putting.join().unwrap());
        });
        assert!(handoff.take().is_none() && !handoff.replace(frame()));
    }
}
