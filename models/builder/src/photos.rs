//! Photos in a folder, with or without labels: what variants are calibrated and judged on.
//!
//! Labels come from `images.csv` in the folder (columns `file` and `label`, a class's number or
//! its name), or from the names of subfolders, one per class. Owns how photos are found and which
//! of them are taken; decoding and framing are the daemon's own. The only user of crate csv.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vggd::manifest::Preprocess;
use vggd::preprocess::{self, DecodeError, Limits, Photo};

use crate::digest::Digest;
use crate::finetune::{Examples, Frame, Split, View};

/// The most pixels that a photo may have.
const LIMITS: Limits = Limits { max_pixels: 1 << 27 };

const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// One photo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Index of its class, where it is known.
    pub label: Option<usize>,
}

/// Photos in a fixed order.
#[derive(Clone, Debug)]
pub struct Photos {
    /// What they were found in.
    pub folder: PathBuf,
    /// The photos.
    pub entries: Vec<Entry>,
    /// How a photo becomes a network's input.
    pub preprocess: Preprocess,
}

/// Why photos cannot be used.
#[derive(Debug, Error)]
pub enum PhotosError {
    /// A file or folder cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The folder is the wrong one.
    #[error("{}: no photos (.jpg, .jpeg, .png, .webp) in it or its subfolders", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
    /// The list of labels is wrong: correct or remove it.
    #[error("{}: {message}", path.display())]
    List {
        /// `images.csv`.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file is no photo: remove it.
    #[error("{}: {error}; remove it from the folder", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: DecodeError,
    },
}

impl Photos {
    /// Finds the photos in `folder` and in its subfolders, in the order of their names, with those
    /// labels that are among `labels`. Reads none of them.
    ///
    /// # Errors
    /// [`PhotosError`] when there is none, or when `images.csv` cannot be understood.
    pub fn open(
        folder: &Path,
        labels: &[String],
        preprocess: &Preprocess,
    ) -> Result<Self, PhotosError> {
        let mut entries: Vec<Entry> = (files(folder)?.into_iter())
            .map(|path| {
                let class = path.parent().filter(|parent| *parent != folder);
                let class = class.and_then(Path::file_name).and_then(OsStr::to_str);
                let label = class.and_then(|name| class_of(name, labels));
                Entry { path, label }
            })
            .collect();
        if entries.is_empty() {
            return Err(PhotosError::None { path: folder.to_owned() });
        }
        let list = folder.join("images.csv");
        if list.is_file() {
            let listed = read_list(&list, labels)?;
            for entry in &mut entries {
                let name = entry.path.strip_prefix(folder).unwrap_or(&entry.path);
                if let Some(&label) = listed.get(name) {
                    entry.label = Some(label);
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), entries, preprocess: preprocess.clone() })
    }

    /// At most `count` of them, evenly spread over all.
    pub fn sample(&self, count: usize) -> Self {
        let (all, count) = (self.entries.len(), count.min(self.entries.len()));
        let entries = (0..count).map(|i| self.entries[i * all / count].clone()).collect();
        Self { entries, ..self.clone() }
    }

    /// Those that fine-tuning learns from: what was fitted on those that it judges by would seem better
    /// than it is, and tuning worse. All, where it takes more than a tenth to judge by.
    pub fn lessons(&self) -> Self {
        let Split { held_back, mut lessons, .. } = Split::of(self);
        if held_back.len() * 10 > self.len() {
            return self.clone();
        }
        lessons.sort_unstable();
        let entries = lessons.into_iter().map(|photo| self.entries[photo].clone()).collect();
        Self { entries, ..self.clone() }
    }

    /// All but every fifth, and every fifth.
    pub fn split(&self) -> [Self; 2] {
        [false, true].map(|fifth| {
            let entries = self.entries.iter().enumerate().filter(|(i, _)| (i % 5 == 4) == fifth);
            Self { entries: entries.map(|(_, entry)| entry.clone()).collect(), ..self.clone() }
        })
    }

    /// A number that tells other photos apart, by their names and sizes.
    pub fn digest(&self) -> u64 {
        let of = |digest: Digest, entry: &Entry| {
            let size = fs::metadata(&entry.path).map_or(0, |metadata| metadata.len());
            digest.bytes(self.relative(entry).as_bytes()).word(size)
        };
        self.entries.iter().fold(Digest::new(), of).end()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Photo `index` as a network with inputs of `side` x `side` pixels sees it: 3 x side x side.
    ///
    /// # Errors
    /// [`PhotosError::Io`] or [`PhotosError::Decode`].
    ///
    /// # Panics
    /// If there is no such photo.
    pub fn input(&self, index: usize, side: usize) -> Result<Vec<f32>, PhotosError> {
        Ok(preprocess::to_input(&self.decode(index)?, side, &self.preprocess))
    }

    /// A view of photo `index`, as [`input`](Self::input) gives the whole.
    ///
    /// # Errors
    /// [`PhotosError::Io`] or [`PhotosError::Decode`].
    ///
    /// # Panics
    /// If there is no such photo.
    pub fn view(&self, photo: usize, view: View, side: usize) -> Result<Vec<f32>, PhotosError> {
        let whole = self.decode(photo)?;
        let Some(frame) = view.frame(whole.width(), whole.height()) else {
            return Ok(preprocess::to_input(&whole, side, &self.preprocess));
        };
        // A square of the frame's content fills the input: what resizing adds is cropped off again.
        let plain = Preprocess { resize: 1.0, ..self.preprocess.clone() };
        Ok(preprocess::to_input(&cut(&whole, frame), side, &plain))
    }

    fn decode(&self, index: usize) -> Result<Photo, PhotosError> {
        let path = &self.entries[index].path;
        let bytes =
            fs::read(path).map_err(|error| PhotosError::Io { path: path.clone(), error })?;
        preprocess::decode(&bytes, &LIMITS)
            .map_err(|error| PhotosError::Decode { path: path.clone(), error })
    }

    /// The path of a photo within the folder.
    fn relative(&self, entry: &Entry) -> String {
        let path = entry.path.strip_prefix(&self.folder).unwrap_or(&entry.path);
        path.to_string_lossy().into_owned()
    }
}

impl Examples for Photos {
    fn count(&self) -> usize {
        self.len()
    }

    fn name(&self, photo: usize) -> String {
        self.relative(&self.entries[photo])
    }

    fn label(&self, photo: usize) -> Option<usize> {
        self.entries[photo].label
    }

    fn input(
        &self,
        photo: usize,
        view: View,
        side: usize,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(self.view(photo, view, side)?)
    }
}

/// A part of a photo, mirrored or not.
fn cut(photo: &Photo, frame: Frame) -> Photo {
    let Frame { left, top, width, height, mirrored } = frame;
    let row = 3 * photo.width() as usize;
    let mut rgb = Vec::with_capacity(3 * (width * height) as usize);
    for line in photo.rgb().chunks(row).skip(top as usize).take(height as usize) {
        let (pixels, _) = line[3 * left as usize..][..3 * width as usize].as_chunks::<3>();
        if mirrored {
            rgb.extend(pixels.iter().rev().flatten());
        } else {
            rgb.extend(pixels.iter().flatten());
        }
    }
    Photo::new(width, height, rgb)
}

/// All photos under `folder`, sorted, hidden ones left out.
fn files(folder: &Path) -> Result<Vec<PathBuf>, PhotosError> {
    let io = |error| PhotosError::Io { path: folder.to_owned(), error };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn class_of(name: &str, labels: &[String]) -> Option<usize> {
    if let Some(class) = labels.iter().position(|label| label == name) {
        return Some(class);
    }
    name.parse().ok().filter(|class| *class < labels.len())
}

fn read_list(path: &Path, labels: &[String]) -> Result<BTreeMap<PathBuf, usize>, PhotosError> {
    let wrong = |message: String| PhotosError::List { path: path.to_owned(), message };
    let mut reader = csv::Reader::from_path(path).map_err(|error| wrong(error.to_string()))?;
    let headers = reader.headers().map_err(|error| wrong(error.to_string()))?.clone();
    let column = |name| {
        let at = headers.iter().position(|header| header == name);
        at.ok_or_else(|| wrong(format!("no column '{name}' in its first line")))
    };
    let (file, label) = (column("file")?, column("label")?);
    let mut listed = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let (Some(file), Some(label)) = (record.get(file), record.get(label)) else { continue };
        if label.is_empty() {
            continue;
        }
        let class = class_of(label, labels)
            .ok_or_else(|| wrong(format!("'{label}' of {file} is none of the set's labels")))?;
        listed.insert(PathBuf::from(file), class);
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[&str], list: Option<&str>) -> Result<Vec<Option<usize>>, String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        if let Some(list) = list {
            fs::write(folder.path().join("images.csv"), list).unwrap();
        }
        let labels = ["cat", "dog", "hen"].map(str::to_owned);
        let photos = Photos::open(folder.path(), &labels, &Preprocess::default())
            .map_err(|error| error.to_string())?;
        Ok(photos.entries.into_iter().map(|entry| entry.label).collect())
    }

    #[test]
    fn labels_come_from_subfolders_or_a_list() {
        assert_eq!(found(&["b.jpg", "a.PNG", "x.txt", ".c.jpg"], None).unwrap(), [None, None]);
        let folders = ["cat/1.jpg", "dog/1.webp", "emu/1.jpg", "2/1.jpeg"];
        assert_eq!(found(&folders, None).unwrap(), [Some(2), Some(0), Some(1), None]);
        let list = "file,author,label\na.jpg,\"A, B\",1\nb.jpg,C,hen\n";
        let files = ["a.jpg", "b.jpg", "c.jpg"];
        assert_eq!(found(&files, Some(list)).unwrap(), [Some(1), Some(2), None]);
    }

    #[test]
    fn folders_and_lists_that_say_nothing_are_refused() {
        let error = found(&["readme.txt"], None).unwrap_err();
        assert!(error.contains("no photos"), "{error}");
        let error = found(&["a.jpg"], Some("name,label\na.jpg,1\n")).unwrap_err();
        assert!(error.contains("no column 'file'"), "{error}");
        let error = found(&["a.jpg"], Some("file,label\na.jpg,7\n")).unwrap_err();
        assert!(error.contains("'7' of a.jpg"), "{error}");
    }

    /// Photos that are labelled with their numbers.
    fn numbered(count: usize) -> Photos {
        let entries = (0..count)
            .map(|i| Entry { path: format!("{i}").into(), label: Some(i) })
            .collect::<Vec<_>>();
        Photos { folder: PathBuf::new(), entries, preprocess: Preprocess::default() }
    }

    fn numbers(photos: Photos) -> Vec<usize> {
        photos.entries.into_iter().filter_map(|entry| entry.label).collect()
    }

    #[test]
    fn a_sample_is_spread_evenly() {
        let photos = numbered(10);
        assert_eq!(numbers(photos.sample(5)), [0, 2, 4, 6, 8]);
        assert_eq!(numbers(photos.sample(20)), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn lessons_are_not_what_fine_tuning_is_judged_by() {
        for (count, expected) in [(0, 0), (20, 20), (159, 159), (160, 144), (1000, 900)] {
            let photos = numbered(count);
            let lessons = numbers(photos.lessons());
            assert_eq!(lessons.len(), expected);
            assert!(lessons.is_sorted(), "{count}");
            let held_back = Split::of(&photos).held_back;
            assert!(count < 160 || held_back.iter().all(|photo| !lessons.contains(photo)));
        }
    }
}
