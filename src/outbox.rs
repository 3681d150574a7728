//! Where predictions are kept until the broker has acknowledged them: a queue on disk that delivers
//! each record at least once and in order, across restarts and power cuts. It must not know what
//! records say nor how they travel.
//!
//! The folder holds segments, `00000000000000000042.seg`, each named by the number of its first record
//! and beginning with a mark that says how things stood, and `cursor`, a mark that is overwritten in
//! place at each acknowledgement. The bytes are described in `format`.
//!
//! What always holds:
//!
//! - One process has the folder: it is locked as a whole.
//! - A segment is written to by the process that made it, from its beginning to its end, and never
//!   after. The first record after a start begins a new one: after a crash nobody knows what the end
//!   of an old file will look like, and so nobody has to.
//! - Numbers rise by one, through all segments and in memory. Where some are missing within a segment,
//!   or before one that was made with a mark that knew them, records were damaged. Where one is dropped
//!   from memory, a new segment begins, whose mark says so.
//! - No number or sequence is given twice, unless newest segment and cursor are both lost before another
//!   record is appended, or a power cut takes both back to before it was given.
//! - On disk are the older records, in memory the newer ones, which the disk has refused.
//!
//! Who deletes: segments go whole, from the oldest on; when all in them is acknowledged and 10,000 newer
//! records are left, because a photo that a crash has left in its folder is known by its id, or when a new
//! one needs their room. What was not acknowledged counts as dropped then, and is counted before it goes.
//! What follows the last record of a segment is cut off at the start. Nobody else deletes, and other files
//! are left alone.
//!
//! A damaged record costs itself alone: reading goes on at the next that is whole. A mark that is
//! damaged costs nothing but repeats; so does a cursor that is missing, or that knows of acknowledged
//! records which are not there.

mod folder;
mod format;
mod segment;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::config;
use state::State;

/// Where it is, how large it may become and when it is brought to the disk.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder, which is made if it is missing.
    pub directory: PathBuf,
    /// The most bytes on disk. A segment has a sixteenth of it, from 4 KiB to 4 MiB.
    pub max_bytes: u64,
    /// When records are brought safely to the disk.
    pub sync: config::Sync,
}

impl Settings {
    fn durable(&self) -> bool {
        self.sync != config::Sync::Never
    }
}

impl From<&config::Outbox> for Settings {
    fn from(outbox: &config::Outbox) -> Self {
        let (directory, max_bytes) = (outbox.directory.clone(), outbox.max_bytes());
        Self { directory, max_bytes, sync: outbox.sync }
    }
}

/// What a record is. Each kind has a sequence of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What a frame shows.
    Prediction,
    /// That something went wrong.
    Failure,
}

/// Something to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place among all records, from 1.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Its place among those of its kind, from 1.
    pub sequence: u64,
    /// What it was appended with.
    pub id: String,
    /// What it was appended with.
    pub payload: Vec<u8>,
    /// It was there already when the outbox was opened, and may have been sent before.
    pub replayed: bool,
}

/// How it fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Records that are not acknowledged.
    pub pending: u64,
    /// Records that are in memory because the disk refuses them.
    pub held: u64,
    /// What it takes on disk, in bytes.
    pub bytes: u64,
    /// Records that were dropped unacknowledged since the outbox was made: for want of room, because
    /// they were too large, or in memory at an end.
    pub dropped: u64,
    /// Those that were dropped since it was opened.
    pub dropped_since_open: u64,
    /// Unacknowledged records that were found missing or damaged since it was opened.
    pub damaged: u64,
    /// Bytes without a record that were cut off when it was opened.
    pub truncated: u64,
    /// What keeps it from working as it should, in words.
    pub trouble: Option<String>,
}

/// Why the outbox cannot be opened.
#[derive(Debug, Error)]
pub enum OutboxError {
    /// Two must not share it: stop the other one, or name another folder.
    #[error("another vggd uses it; stop that one, or name another folder")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// It cannot be made, listed or written to: see to its permissions.
    #[error("{error}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl OutboxError {
    fn folder(folder: &Path, error: io::Error) -> Self {
        Self::Folder { folder: folder.to_owned(), error }
    }
}

/// The queue. All methods may be called from any thread; only [`flush`](Self::flush) waits for the disk, and
/// holds up nobody else meanwhile.
pub struct Outbox {
    durable: bool,
    state: Mutex<State>,
    /// Whoever brings something to the disk. Locked before `state`.
    syncing: Mutex<()>,
}

impl Outbox {
    /// Opens or makes it. What is damaged in it is counted, logged once and passed over.
    ///
    /// # Errors
    /// [`OutboxError`]. A full or failing disk is no error: see [`Status::trouble`].
    pub fn open(settings: impl Into<Settings>) -> Result<Self, OutboxError> {
        let settings = settings.into();
        Ok(Self {
            durable: settings.durable(),
            state: Mutex::new(State::open(settings)?),
            syncing: Mutex::default(),
        })
    }

    /// Adds a record with what `payload` makes of the sequence of its kind, and gives its number. `id`
    /// is what [`knows`](Self::knows) finds it by, if it is not empty. `payload` must not call the
    /// outbox.
    ///
    /// While the disk refuses it, it is held in memory with up to 1,000 others, of which the oldest are
    /// dropped. One of more than 256 KiB is dropped at once, and its number is 0.
    pub fn append(&self, kind: Kind, id: &str, payload: impl FnOnce(u64) -> Vec<u8>) -> u64 {
        self.state().append(kind, id, payload)
    }

    /// The oldest record after number `after` that is not acknowledged, if there is one now.
    pub fn next(&self, after: u64) -> Option<Record> {
        self.state().next(after)
    }

    /// Everything up to record `number` has arrived.
    pub fn acknowledge(&self, number: u64) {
        self.state().acknowledge(number);
    }

    /// Whether record `number` needs its frame no more: it has arrived, was dropped, or is as safe on
    /// disk as is promised. That is synchronised for [`config::Sync::Always`] and `Interval`, written
    /// for `Never`.
    pub fn settled(&self, number: u64) -> bool {
        self.state().settled(number)
    }

    /// What the record with that id is, acknowledged or not, if it is still here. A photo whose record
    /// is known need not be classified again.
    pub fn knows(&self, id: &str) -> Option<Kind> {
        self.state().knows(id)
    }

    /// Brings to the disk what is not there yet, however many records at once. Whoever opened the outbox
    /// calls it once in each [`config::Outbox::interval`], after records are appended for
    /// [`config::Sync::Always`], and before the end, on a thread that may wait.
    pub fn flush(&self) {
        self.state().try_again();
        self.sync();
    }

    /// How it fares.
    pub fn status(&self) -> Status {
        self.state().status()
    }

    fn sync(&self) {
        if !self.durable {
            return;
        }
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(unsynced) = self.state().unsynced() else { return };
        let result = unsynced.sync();
        self.state().synced(unsynced.upto, result);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
