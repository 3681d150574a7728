//! Labels: a text file with one name per line, in the order of the classes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why labels cannot be used.
#[derive(Debug, Error)]
pub enum LabelsError {
    /// The file is not there, may not be read, or is not text in UTF-8.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A class would have no name: fill the line in, or remove it.
    #[error("{}: line {line} is empty, every line names one class", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// Reads labels, without a byte order mark, space around them, and empty lines at the end.
///
/// # Errors
/// [`LabelsError`] with the path.
pub fn read(path: &Path) -> Result<Vec<String>, LabelsError> {
    let text = fs::read_to_string(path)
        .map_err(|error| LabelsError::Io { path: path.to_owned(), error })?;
    let text = text.trim_start_matches('\u{feff}').trim_end();
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    match labels.iter().position(String::is_empty) {
        Some(at) => Err(LabelsError::Empty { path: path.to_owned(), line: at + 1 }),
        None => Ok(labels),
    }
}

/// The content of a model set's `labels.txt`.
pub fn text(labels: &[String]) -> String {
    labels.iter().map(|label| format!("{label}\n")).collect()
}
