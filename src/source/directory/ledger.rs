//! The photos that are done and still lie in the folder, across restarts: those that are kept there,
//! and those that could not be moved away. It knows their identities and nothing else of them.
//!
//! The file is text, one record after the other, each a line feed and then 16 hexadecimal digits, the
//! photo's identity:
//!
//! ```text
//! \n 0 1 2 3 4 5 6 7 8 9 a b c d e f
//! ```
//!
//! A line that is anything else is passed over: what a crash or a full disk cut off ends at the next
//! record's line feed. There is no checksum, because a wrong identity is no photo's; the worst, also
//! when a power cut leaves garbage behind the last record, is that a photo is classified again, under
//! the id that it had before. For the same reason nothing is synced, except a file that replaces
//! another one.
//!
//! There is no file until there is a record. Only this code writes it; it drops what no longer lies in
//! the folder when photos are first looked for, but not all of it at once: an empty folder may be one whose file
//! system is not mounted yet. A person may delete the file while vggd is not running.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::aside::with;
use super::identity::Identity;

/// An open ledger.
pub(super) struct Ledger {
    path: PathBuf,
    done: HashSet<Identity>,
    file: Option<File>,
}

impl Ledger {
    /// What is written at `path`, which may be missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes?,
        };
        let lines = bytes.split(|byte| *byte == b'\n');
        let done = lines.filter_map(|line| Identity::parse(str::from_utf8(line).ok()?)).collect();
        Ok(Self { path: path.to_owned(), done, file: None })
    }

    /// Whether no photo is known.
    pub(super) fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Whether the photo is done.
    pub(super) fn contains(&self, photo: Identity) -> bool {
        self.done.contains(&photo)
    }

    /// The photo is done. It counts as that from now on even if it cannot be written down.
    pub(super) fn record(&mut self, photo: Identity) -> io::Result<()> {
        if !self.done.insert(photo) {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                fs::create_dir_all(self.path.parent().unwrap_or(Path::new("")))?;
                File::options().append(true).create(true).open(&self.path)?
            }
        };
        self.file.insert(file).write_all(line(photo).as_bytes())
    }

    /// Drops what is not in `present`, if something of it is.
    pub(super) fn compact(&mut self, present: &HashSet<Identity>) -> io::Result<()> {
        let left: HashSet<Identity> = self.done.intersection(present).copied().collect();
        if left.is_empty() || left.len() == self.done.len() {
            return Ok(());
        }
        let aside = with(&self.path, ".new");
        let mut file = File::create(&aside)?;
        file.write_all(left.iter().copied().map(line).collect::<String>().as_bytes())?;
        file.sync_all()?;
        fs::rename(aside, &self.path)?;
        self.done = left;
        Ok(())
    }
}

fn line(photo: Identity) -> String {
    format!("\n{photo}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(number: u64) -> Identity {
        Identity::parse(&format!("{number:016x}")).unwrap()
    }

    /// A ledger with photos 0, 1 and 2, and where it is.
    fn three() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/done");
        let mut ledger = Ledger::open(&path).unwrap();
        assert!(ledger.is_empty() && !path.exists());
        for number in 0..3 {
            ledger.record(identity(number)).unwrap();
        }
        (folder, path)
    }

    fn known(path: &Path) -> Vec<u64> {
        let ledger = Ledger::open(path).unwrap();
        (0..10).filter(|number| ledger.contains(identity(*number))).collect()
    }

    #[test]
    fn a_torn_record_costs_that_record_alone() {
        let (_folder, path) = three();
        let whole = fs::read(&path).unwrap();
        for end in 0..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let mut ledger = Ledger::open(&path).unwrap();
            ledger.record(identity(9)).unwrap();
            let mut expected: Vec<u64> = (0..end as u64 / 17).collect();
            expected.push(9);
            assert_eq!(known(&path), expected, "cut to {end}");
        }
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let (_folder, path) = three();
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(b"\n\0\0\0\xff\n+00000000000003\n00000000000000004\n\n0000000000000005");
        fs::write(&path, bytes).unwrap();
        assert_eq!(known(&path), [0, 1, 2, 5]);
    }

    #[test]
    fn compacting_keeps_what_is_there_but_never_forgets_all() {
        let (_folder, path) = three();
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.compact(&HashSet::new()).unwrap();
        assert_eq!(known(&path), [0, 1, 2]);
        ledger.compact(&HashSet::from([identity(1), identity(7)])).unwrap();
        assert_eq!(known(&path), [1]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 17);
        ledger.record(identity(8)).unwrap();
        assert_eq!(known(&path), [1, 8]);
    }
}
