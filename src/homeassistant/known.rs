//! Where Home Assistant was told of this device, across restarts: when its prefix or this device's topic
//! is another one, the retained message under the old one must be taken back, or the device is there twice.
//!
//! The file is text, a topic a line; only this code writes it, and removes it when no topic is left. A line
//! that is no such topic is passed over. What cannot be written is not remembered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The topics of the message that describes this device.
pub struct Known {
    path: PathBuf,
    current: Option<String>,
    former: Vec<String>,
}

impl Known {
    /// What is written at `path`, to which the `current` topic is added, if there is one.
    pub fn open(path: &Path, current: Option<String>) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter(|line| line.ends_with("/config"));
        let former = lines.filter(|line| Some(*line) != current.as_deref()).map(str::to_owned);
        let known = Self { path: path.to_owned(), former: former.collect(), current };
        known.write(&known.former);
        known
    }

    /// The topics on which the message has to be taken back.
    pub fn former(&self) -> &[String] {
        &self.former
    }

    /// It was, and they need not be remembered any more.
    pub fn taken_back(&self) {
        if !self.former.is_empty() {
            self.write(&[]);
        }
    }

    fn write(&self, former: &[String]) {
        let lines: Vec<&str> = former.iter().chain(&self.current).map(String::as_str).collect();
        let written = match lines.is_empty() {
            true => fs::remove_file(&self.path),
            false => fs::write(&self.path, lines.join("\n") + "\n"),
        };
        if let Err(error) = written
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_remembered_until_they_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("told");
        let open = |current: &str| {
            Known::open(&path, (!current.is_empty()).then(|| format!("{current}/config")))
        };
        assert!(open("").former().is_empty() && !path.exists());
        assert!(open("a").former().is_empty());
        assert!(open("a").former().is_empty());
        assert_eq!(open("b").former(), ["a/config"]);
        // Nobody was there to hear it.
        let third = open("c");
        assert_eq!(third.former(), ["a/config", "b/config"]);
        third.taken_back();
        fs::write(&path, fs::read_to_string(&path).unwrap() + "\n\0\nlights\n").unwrap();
        let off = open("");
        assert_eq!(off.former(), ["c/config"]);
        off.taken_back();
        assert!(!path.exists() && open("").former().is_empty());
    }
}
