//! The partial file of a download.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Fetch, FetchError, Fetched, Kept, io_error};
use crate::checksum::Checksum;
use crate::progress::Interrupted;

/// Bytes read at a time.
const PIECE: usize = 1 << 18;

/// The partial file, and the checksum of what is in it.
pub(super) struct Part {
    pub(super) path: PathBuf,
    file: File,
    pub(super) bytes: u64,
    checksum: Checksum,
    goes_on: bool,
}

impl Part {
    /// The file for `out`, with what is in it if the download `goes_on` behind that.
    pub(super) fn open(out: &Path, goes_on: bool) -> Result<Self, FetchError> {
        if let Some(folder) = out.parent() {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
        }
        let mut path = out.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(io_error(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy { path }),
            Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
        }
        let mut part = Self { path, file, bytes: 0, checksum: Checksum::default(), goes_on };
        if goes_on {
            let found = read(&mut part.file).map_err(io_error(&part.path))?;
            (part.bytes, part.checksum) = found;
        } else {
            part.empty()?;
        }
        Ok(part)
    }

    pub(super) fn empty(&mut self) -> Result<(), FetchError> {
        (self.bytes, self.checksum) = (0, Checksum::default());
        let emptied = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.set_len(0));
        emptied.map_err(io_error(&self.path))
    }

    pub(super) fn append(&mut self, mut piece: &[u8]) -> Result<(), FetchError> {
        while !piece.is_empty() {
            let written = match self.file.write(piece) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                written => written,
            };
            let written =
                written.map_err(|error| FetchError::Write { error, kept: self.kept() })?;
            let (done, rest) = piece.split_at(written);
            self.checksum.update(done);
            self.bytes += done.len() as u64;
            piece = rest;
        }
        Ok(())
    }

    /// Checks the whole file and gives it its name.
    pub(super) fn publish(
        self,
        fetch: &Fetch,
        prefix: Option<&str>,
    ) -> Result<Fetched, FetchError> {
        let sha256 = self.checksum.hex();
        if let Some(expected) = prefix.filter(|prefix| !sha256.starts_with(prefix)) {
            fs::remove_file(&self.path).map_err(io_error(&self.path))?;
            return Err(FetchError::Checksum {
                url: fetch.url.clone(),
                found: sha256[..expected.len().min(sha256.len())].to_owned(),
                expected: expected.to_owned(),
                bytes: self.bytes,
            });
        }
        self.file.sync_all().map_err(io_error(&self.path))?;
        fs::rename(&self.path, &fetch.out).map_err(io_error(&fetch.out))?;
        let folder = match fetch.out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        (File::open(folder).and_then(|folder| folder.sync_all())).map_err(io_error(folder))?;
        Ok(Fetched { path: fetch.out.clone(), bytes: self.bytes, sha256, already: false })
    }

    pub(super) fn interrupted(&self) -> impl FnOnce(Interrupted) -> FetchError {
        let kept = self.kept();
        move |Interrupted| FetchError::Interrupted { kept }
    }

    pub(super) fn kept(&self) -> Kept {
        Kept { path: self.path.clone(), bytes: self.bytes, goes_on: self.goes_on }
    }
}

/// Length and checksum of a file, which is then at its end.
pub(super) fn read(file: &mut File) -> io::Result<(u64, Checksum)> {
    let mut file = file.take(file.metadata()?.len());
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, checksum)),
            length => {
                checksum.update(&buffer[..length]);
                bytes += length as u64;
            }
        }
    }
}
