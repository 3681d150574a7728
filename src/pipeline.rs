//! One photo becomes one prediction, and every stage is timed. It must not know where photos come
//! from nor where predictions go.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::config;
use crate::event::{self, Class, Timings};
use crate::model::{Model, ModelError};
use crate::preprocess::{self, DecodeError, Framing, Limits, Photo, Thumb};
use crate::source::Picture;

/// Why there is no prediction for a photo.
#[derive(Debug, Error)]
pub enum ClassifyError {
    /// It is gone: somebody took it away, and there is nothing left to do.
    #[error("no such file")]
    Gone,
    /// It cannot be read: see to its permissions or the disk.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// It is refused unread; `source.max_file_mb` sets the limit.
    #[error("larger than {} MB, the most that is read", limit >> 20)]
    TooLarge {
        /// The most bytes that are read.
        limit: u64,
    },
    /// It is damaged, no photo, or too large to decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The decoder gave up in a way that it should not: a defect of this program.
    #[error("the decoder panicked")]
    Panicked,
    /// Numbers too large for the network came up on the way.
    #[error("the answer is not a number")]
    NotANumber,
    /// Not the photo but the model is at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A decoded photo.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Its pixels.
    pub photo: Photo,
    /// Time for reading and decoding.
    took: Duration,
}

/// A photo as a variant wants it.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// 1 x 3 x side x side, NCHW, normalised.
    pub input: Vec<f32>,
    /// Time for reading and decoding.
    pub decode: Duration,
    /// Time for resizing, cropping and normalising.
    pub preprocess: Duration,
}

/// What a variant says about a photo.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The likeliest classes, [`event::TOP`] of them.
    pub top: Vec<Class>,
    /// Decoding, preprocessing, inference.
    stages: [Duration; 3],
}

impl Answer {
    /// The timings of a frame that waited for `wait` before.
    pub fn timings(&self, wait: Duration) -> Timings {
        let [decode, preprocess, inference] = self.stages;
        Timings::new([wait, decode, preprocess, inference])
    }

    /// The time since the photo was taken off the queue: what a budget bounds.
    pub fn age(&self) -> Duration {
        self.stages.iter().sum()
    }

    /// The part of it that depends on the variant.
    pub fn after_decoding(&self) -> Duration {
        self.stages[1..].iter().sum()
    }
}

/// Everything but the model that turns a photo into an answer. It is the same for every set.
#[derive(Clone, Debug)]
pub struct Pipeline {
    framing: Framing,
    max_file: u64,
    limits: Limits,
}

impl Pipeline {
    /// A pipeline with the limits and the framing of `source`.
    pub fn new(source: &config::Source) -> Self {
        Self {
            framing: Framing::new(source),
            max_file: source.max_file(),
            limits: Limits::within(source.decode_memory()),
        }
    }

    /// Reads and decodes a picture. If it lies in a file, its bytes take the file's place.
    ///
    /// # Errors
    /// [`ClassifyError`], but never about the model; a photo is left as it is.
    pub fn decode(&self, picture: &mut Picture) -> Result<Decoded, ClassifyError> {
        let start = Instant::now();
        if let Picture::File(path) = picture {
            *picture = Picture::Encoded(self.read(path)?);
        }
        // A photo is whatever a stranger puts there; it must not take the daemon with it.
        let photo = catch_unwind(|| match &*picture {
            Picture::File(_) => unreachable!("it was read"),
            Picture::Encoded(bytes) => preprocess::decode(bytes, &self.limits),
            Picture::Raw(raw) => raw.decode(),
        });
        let photo = photo.map_err(|_| ClassifyError::Panicked)??;
        Ok(Decoded { photo, took: start.elapsed() })
    }

    /// Makes the input of `model` of a photo.
    pub fn prepare(&self, decoded: &Decoded, model: &Model) -> Prepared {
        let start = Instant::now();
        let input = self.framing.to_input(&decoded.photo, model.side, &model.rule);
        Prepared { input, decode: decoded.took, preprocess: start.elapsed() }
    }

    /// What is looked at of a picture, as a JPEG of at most `most` bytes: turned and cut as it is
    /// classified, before that is made square. Nothing if it cannot be decoded or be that small.
    pub fn to_jpeg(&self, picture: &Picture, most: usize) -> Option<Vec<u8>> {
        let decoded = self.decode(&mut picture.clone()).ok()?;
        preprocess::to_jpeg(&self.framing.cut(&decoded.photo), most)
    }

    /// A small picture of a photo, to compare it with others; `resize` is that of the set's
    /// [`Preprocess`](crate::manifest::Preprocess).
    pub fn thumb(&self, decoded: &Decoded, resize: f64) -> Thumb {
        Thumb::new(&decoded.photo, &self.framing, resize)
    }

    /// Classifies a photo with the model that `choose` gives, when told how long decoding took; gives
    /// that too.
    ///
    /// # Errors
    /// [`ClassifyError::Model`] or [`ClassifyError::NotANumber`].
    pub fn classify<M: Borrow<Model>>(
        &self,
        decoded: &Decoded,
        choose: impl FnOnce(Duration) -> M,
    ) -> Result<(Answer, M), ClassifyError> {
        let chosen = choose(decoded.took);
        let model = chosen.borrow();
        let prepared = self.prepare(decoded, model);
        let start = Instant::now();
        let logits = model.infer(&prepared.input)?;
        let stages = [prepared.decode, prepared.preprocess, start.elapsed()];
        let top = top(model, &logits)?;
        Ok((Answer { top, stages }, chosen))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, ClassifyError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ClassifyError::Gone,
            _ => ClassifyError::Read(error),
        })?;
        let length = file.metadata().map_err(ClassifyError::Read)?.len();
        let mut bytes = Vec::new();
        if length <= self.max_file {
            bytes.reserve_exact(length as usize + 1);
            file.take(self.max_file + 1).read_to_end(&mut bytes).map_err(ClassifyError::Read)?;
        }
        match length.max(bytes.len() as u64) > self.max_file {
            true => Err(ClassifyError::TooLarge { limit: self.max_file }),
            false => Ok(bytes),
        }
    }
}

/// The likeliest classes that a model's logits name.
///
/// # Errors
/// [`ClassifyError::NotANumber`].
pub fn top(model: &Model, logits: &[f32]) -> Result<Vec<Class>, ClassifyError> {
    event::top_k(logits, &model.labels, event::TOP).ok_or(ClassifyError::NotANumber)
}
