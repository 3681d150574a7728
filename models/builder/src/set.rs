//! Model sets are written beside their place and moved there in one step.
//!
//! ```text
//! PARENT/.NAME.new-XXXXXX/   written, synced, then renamed to PARENT/NAME
//! PARENT/.NAME.old-XXXXXX/   what was there, renamed away just before and deleted just after
//! ```
//!
//! Whatever else lies in the folder of a set that is replaced, such as photos, stays in the folder.
//!
//! So PARENT/NAME is never half a set. A step that fails or is told to stop deletes the first
//! folder when its [`SetWriter`] is dropped; after a crash or a power cut either may be left, the
//! second only if the set was cut off between the two renames, and both can be deleted by hand.
//!
//! Knows nothing of what is in the files. For what a reader expects of a set see
//! [`vggd::manifest`].

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use thiserror::Error;
use vggd::manifest::{self, Manifest, WeightFile};

use crate::checksum::Checksum;
use crate::progress::Interrupted;

/// Why a set was not written. Nothing is left of it, and what was in its place is still there.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Choose another folder, or say that this one is to be replaced.
    #[error("{}: exists and is not empty; choose another folder, or replace it with --force", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Replacing deletes, so what is no model set is not replaced.
    #[error(
        "{}: exists and is not a model set (it has no {}), so it is not replaced; choose another \
         folder, or delete it yourself",
        path.display(),
        manifest::FILE_NAME
    )]
    NotASet {
        /// The folder, or a file of that name.
        path: PathBuf,
    },
    /// The disk is full, the folder may not be written to, or the like.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The set was written; delete what it replaced by hand.
    #[error("the new set is in place, but the old one could not be deleted: {}: {error}", path.display())]
    Leftover {
        /// Where the old set is now.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl WriteError {
    /// Makes an error of this kind from the system's, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |error| Self::Io { path, error }
    }
}

/// A set on its way.
#[derive(Debug)]
pub struct SetWriter {
    place: PathBuf,
    force: bool,
    parent: PathBuf,
    name: String,
    folder: TempDir,
}

impl SetWriter {
    /// Begins a set that will be at `place`, whose parents are made where they are missing. There
    /// may be an empty folder, and with `force` another model set.
    ///
    /// # Errors
    /// [`WriteError::Exists`], [`WriteError::NotASet`], or [`WriteError::Io`] if the folder that
    /// `place` is in cannot be written to.
    pub fn create(place: &Path, force: bool) -> Result<Self, WriteError> {
        let place = resolve(place)?;
        refuse(&place, force)?;
        let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
            return Err(WriteError::NotASet { path: place });
        };
        let (parent, name) = (parent.to_owned(), name.to_string_lossy().into_owned());
        let folder = sibling(&parent, &name, "new").map_err(WriteError::io(&parent))?;
        Ok(Self { place, force, parent, name, folder })
    }

    /// Where the set will be.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Begins a file of the set.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn file(&self, name: &str) -> Result<SetFile, WriteError> {
        let path = self.folder.path().join(name);
        let file = File::create_new(&path).map_err(WriteError::io(&path))?;
        Ok(SetFile {
            name: name.to_owned(),
            path,
            file: BufWriter::with_capacity(1 << 20, file),
            checksum: Checksum::default(),
            bytes: 0,
        })
    }

    /// Writes a whole file of the set.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<WeightFile, WriteError> {
        let mut file = self.file(name)?;
        file.write(content)?;
        file.finish()
    }

    /// Takes over a file of another set, which is not copied where the file system can link.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn link(&self, from: &Path, name: &str) -> Result<(), WriteError> {
        let to = self.folder.path().join(name);
        (fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(|_| ())))
            .map_err(WriteError::io(from))
    }

    /// Forgets a file that was written.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn discard(&self, name: &str) -> Result<(), WriteError> {
        let path = self.folder.path().join(name);
        fs::remove_file(&path).map_err(WriteError::io(&path))
    }

    /// Writes the manifest and moves the set into its place.
    ///
    /// # Errors
    /// [`WriteError::Io`]; [`WriteError::Leftover`] when it is in place all the same.
    pub fn publish(self, manifest: &Manifest) -> Result<(), WriteError> {
        let text = toml::to_string(manifest).expect("a manifest is nothing but tables and values");
        self.write(manifest::FILE_NAME, text.as_bytes())?;
        sync(self.folder.path())?;

        let replaced = match fs::rename(self.folder.path(), &self.place) {
            Ok(()) => None,
            Err(error) if is_occupied(&error) => Some(self.replace()?),
            Err(error) => return Err(WriteError::io(&self.place)(error)),
        };
        let _moved = self.folder.keep();
        sync(&self.parent)?;
        let Some(path) = replaced else { return Ok(()) };
        (keep_others(&path, &self.place).and_then(|()| fs::remove_dir_all(&path)))
            .map_err(|error| WriteError::Leftover { path, error })
    }

    /// Exchanges the set in the place for the new one, and says where the old one is.
    fn replace(&self) -> Result<PathBuf, WriteError> {
        refuse(&self.place, self.force)?;
        let aside =
            sibling(&self.parent, &self.name, "old").map_err(WriteError::io(&self.parent))?;
        fs::rename(&self.place, aside.path()).map_err(WriteError::io(&self.place))?;
        let aside = aside.keep();
        match fs::rename(self.folder.path(), &self.place) {
            Ok(()) => Ok(aside),
            Err(error) => {
                fs::rename(&aside, &self.place).map_err(WriteError::io(&aside))?;
                Err(WriteError::io(&self.place)(error))
            }
        }
    }
}

/// Moves from an old set to the new one what is no part of a set.
fn keep_others(old: &Path, new: &Path) -> io::Result<()> {
    let text = fs::read_to_string(old.join(manifest::FILE_NAME))?;
    let manifest = toml::from_str::<Manifest>(&text).ok();
    let is_part = |name: &str| match &manifest {
        Some(Manifest { labels, files, variants, .. }) => {
            name == labels
                || files.iter().any(|file| name == file.path)
                || variants.iter().any(|variant| name == variant.graph)
        }
        None => name.ends_with(".bin") || name.ends_with(".onnx"),
    };
    for entry in fs::read_dir(old)? {
        let entry = entry?;
        let (name, to) = (entry.file_name(), new.join(entry.file_name()));
        let is_part = name.to_str().is_some_and(is_part);
        if !is_part && !to.try_exists()? {
            fs::rename(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Puts `manifest` in the place of the one that the set in `folder` has, in one step.
///
/// # Errors
/// [`WriteError::Io`].
pub fn rewrite(folder: &Path, manifest: &Manifest) -> Result<(), WriteError> {
    let text = toml::to_string(manifest).expect("a manifest is nothing but tables and values");
    let place = folder.join(manifest::FILE_NAME);
    let io = |error| WriteError::Io { path: place.clone(), error };
    let mut file = tempfile::Builder::new()
        .prefix(".manifest-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(io)?;
    file.persist(&place).map_err(|error| io(error.error))?;
    sync(folder)
}

/// A file of a set, checksummed while it is written.
#[derive(Debug)]
pub struct SetFile {
    name: String,
    path: PathBuf,
    file: BufWriter<File>,
    checksum: Checksum,
    bytes: u64,
}

impl SetFile {
    /// Its name in the set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long it is so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        (self.file.write_all(bytes)).map_err(WriteError::io(&self.path))?;
        self.checksum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Puts everything on the disk.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn finish(self) -> Result<WeightFile, WriteError> {
        (self.file.into_inner())
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .map_err(WriteError::io(&self.path))?;
        Ok(WeightFile { path: self.name, sha256: self.checksum.hex(), bytes: self.bytes })
    }
}

/// The absolute path without links, so that what is behind a link is replaced and not the link.
fn resolve(place: &Path) -> Result<PathBuf, WriteError> {
    if let Ok(path) = place.canonicalize() {
        return Ok(path);
    }
    let Some(name) = place.file_name() else {
        let error = io::ErrorKind::NotFound.into();
        return Err(WriteError::io(place)(error));
    };
    let parent = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(WriteError::io(parent))?;
    let parent = parent.canonicalize().map_err(WriteError::io(parent))?;
    Ok(parent.join(name))
}

fn refuse(place: &Path, force: bool) -> Result<(), WriteError> {
    let path = place.to_owned();
    match fs::read_dir(place).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) if !force => Err(WriteError::Exists { path }),
        Ok(false) if place.join(manifest::FILE_NAME).is_file() => Ok(()),
        Ok(false) => Err(WriteError::NotASet { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(WriteError::NotASet { path })
        }
        Err(error) => Err(WriteError::Io { path, error }),
    }
}

/// Whether a folder could not be renamed because there are files where it would go.
fn is_occupied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

/// An empty folder with the permissions that a folder made by hand would have.
fn sibling(parent: &Path, name: &str, kind: &str) -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!(".{name}.{kind}-"))
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent)
}

fn sync(folder: &Path) -> Result<(), WriteError> {
    (File::open(folder).and_then(|folder| folder.sync_all())).map_err(WriteError::io(folder))
}
