//! What a photo is known by: its name and what the system says about its content, which nobody has
//! to read for that.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// One content of a file of that name: the first eight bytes of SHA-256 over the name, the inode, the
/// length and the time of the last change, a link's being those of what it leads to. Written as 16
/// hexadecimal digits, it is the frame's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::source) struct Identity(u64);

impl Identity {
    /// That of the file at `path` as it is now; nothing if there is none, or something else: a folder,
    /// a link that leads nowhere.
    pub(super) fn of(path: &Path) -> io::Result<Option<(Self, Metadata)>> {
        Self::under(path.file_name().unwrap_or_default(), path)
    }

    /// The same, as if the file were called `name`.
    pub(super) fn under(name: &OsStr, path: &Path) -> io::Result<Option<(Self, Metadata)>> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound || path.is_symlink() => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut digest = Sha256::new();
        digest.update(name.as_bytes());
        for part in [metadata.ino(), metadata.len()] {
            digest.update(part.to_le_bytes());
        }
        for part in [metadata.mtime(), metadata.mtime_nsec()] {
            digest.update(part.to_le_bytes());
        }
        let first = digest.finalize().first_chunk().copied().expect("32 bytes");
        Ok(Some((Self(u64::from_be_bytes(first)), metadata)))
    }

    /// What was written as 16 hexadecimal digits, if it is that.
    pub(super) fn parse(digits: &str) -> Option<Self> {
        let plain = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        plain.then(|| u64::from_str_radix(digits, 16).ok().map(Self))?
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
