//! The folder of the outbox: its lock, its list of segments, and the cursor. It must not know records.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OutboxError;
use super::format::{LIMIT, MARK, Mark};
use super::segment;

const CURSOR: &str = "cursor";

/// A folder that is locked until this is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: Arc<File>,
}

impl Folder {
    /// The folder at `path`, made if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, OutboxError> {
        let failed = |error| OutboxError::folder(path, error);
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
            let parent = path.canonicalize().map_err(failed)?;
            parent.parent().map(|parent| File::open(parent)?.sync_all());
        }
        let handle = File::open(path).map_err(failed)?;
        match handle.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), handle: Arc::new(handle) }),
            Err(TryLockError::WouldBlock) => Err(OutboxError::InUse { folder: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What must be synchronised for new names to last.
    pub(super) fn handle(&self) -> Arc<File> {
        self.handle.clone()
    }

    /// The first numbers of all segments, rising. Other files are left alone.
    pub(super) fn segments(&self) -> io::Result<Vec<u64>> {
        let mut firsts = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let first = name.to_str().and_then(segment::first_of);
            let first = first.filter(|first| (1..LIMIT).contains(first));
            if entry.file_type()?.is_file() {
                firsts.extend(first);
            }
        }
        firsts.sort_unstable();
        Ok(firsts)
    }

    /// What the cursor says, if there is one and it is whole.
    pub(super) fn cursor(&self) -> Option<Mark> {
        let mut bytes = [0; MARK];
        let file = File::open(self.path.join(CURSOR)).ok()?;
        file.read_exact_at(&mut bytes, 0).ok()?;
        Mark::decode(&bytes)
    }

    /// Overwrites the cursor.
    pub(super) fn set_cursor(&self, mark: &Mark) -> io::Result<File> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(self.path.join(CURSOR))?;
        file.write_all_at(&mark.encode(), 0)?;
        Ok(file)
    }
}

impl Drop for Folder {
    /// Closing alone would leave it locked for as long as a process that is just being started has
    /// not closed it too.
    fn drop(&mut self) {
        self.handle.unlock().ok();
    }
}
