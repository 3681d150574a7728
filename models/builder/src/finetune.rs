//! Making a changed network answer like the one it was made from, by back-propagation through all
//! layers.
//!
//! ```text
//! Examples   examples: a tenth is held back; the others come in batches, as crops
//! Teacher    teacher: the unpruned network's answers to them, each computed once
//! student    run: until the budget is spent,
//!              loss: how far its answers are from these, and from labels
//!              model: gradients, by candle; on the CPU with an operation of our own
//!                convolution
//!              optimizer: new weights
//!              and, twenty times, how it answers to the photos held back
//! DIR        checkpoint: the last weights and the best, to go on from
//! ```
//!
//! The best weights are handed on, and none that are not better than those given. A convolution
//! that only hands its input on is left alone: see [`crate::prune`].

mod checkpoint;
mod convolution;
mod examples;
mod loss;
mod model;
mod optimizer;
mod run;
mod teacher;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use vggd::model::Engine;

use crate::digest::{Digest, hex};
use crate::network::Network;
use crate::progress::Progress;
use crate::topology::{BASELINE_SIDE, REDUCTION};
use checkpoint::{Checkpoint, Identity};
use examples::Course;
pub(crate) use examples::Split;
pub use examples::{Examples, Frame, View};
use model::Place;
use run::Run;
use teacher::Teacher;

/// How long to tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Every photo this often.
    Epochs(u32),
    /// As long as this, whatever else the machine does; runs differ a little.
    Time(Duration),
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Computer {
    /// The engine's threads.
    Cpu,
    /// The NVIDIA GPU of this number; needs feature `cuda`.
    Cuda(usize),
    /// The Apple GPU of this number; needs feature `metal`.
    Metal(usize),
}

/// How to tune.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to tune: minutes, or times that every photo is seen
    pub budget: Budget,
    /// Photos per step; more of them need more memory, 0.2 GB each for a full VGG-19
    pub batch: usize,
    /// How far a weight moves in a step, at most, as a share of its layer's mean weight
    pub learning_rate: f64,
    /// What the teacher's and the student's logits are divided by: above 1, unlikely classes count
    /// more
    pub temperature: f64,
    /// Weight of the labels against that of the teacher, for photos that have one
    pub label_weight: f64,
    /// Different crops of each photo; the teacher's answers to each are kept
    pub crops: u32,
    /// Leave the linear layers as they are, which saves memory and time
    pub freeze_linears: bool,
    /// Height and width of the student's input, in pixels
    pub side: usize,
    /// Height and width of the teacher's input, in pixels
    pub teacher_side: usize,
    /// Number that decides the order of the photos and their crops
    pub seed: u64,
    /// Where to compute: on the CPU, or on a GPU that this program was built for
    pub computer: Computer,
    /// How often to write a checkpoint
    pub save_every: Duration,
    /// Forget the run that is in the folder, and begin anew
    pub restart: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            budget: Budget::Epochs(10),
            batch: 8,
            learning_rate: 3e-4,
            temperature: 1.0,
            label_weight: 0.1,
            crops: 4,
            freeze_linears: false,
            side: BASELINE_SIDE,
            teacher_side: BASELINE_SIDE,
            seed: 0,
            computer: Computer::Cpu,
            save_every: Duration::from_secs(600),
            restart: false,
        }
    }
}

/// How a student answers to the photos held back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Mean Kullback-Leibler divergence from the teacher's answers, in nats: what counts.
    pub divergence: f64,
    /// Share of photos for which student and teacher give the same first answer.
    pub agreement: f64,
    /// Share of the labelled photos that are answered rightly, if there are any.
    pub top1: Option<f64>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// The best network: tuned, or as it was given.
    pub network: Network<'a>,
    /// Whether tuning made it better.
    pub improved: bool,
    /// How good it was when it was given.
    pub given: Judgement,
    /// How good it is.
    pub best: Judgement,
    /// How many photos it was judged by.
    pub held_back: usize,
    /// How many others it learned from.
    pub lessons: usize,
    /// Steps that were taken, however often it was stopped.
    pub steps: u64,
    /// How often every photo was seen.
    pub epochs: f64,
    /// Time that it took, however often it was stopped.
    pub elapsed: Duration,
    /// Whether numbers grew beyond all bounds, which ends a run: try a lower learning rate.
    pub diverged: bool,
}

/// Why a network was not tuned.
#[derive(Debug, Error)]
pub enum FinetuneError {
    /// Give others.
    #[error("{what} {value}: must be {expected}")]
    Option {
        /// What was given.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it should have been.
        expected: String,
    },
    /// They are not two variants of one network.
    #[error(
        "the student tells {student} classes apart and the teacher {teacher}; both must come from \
         the same network"
    )]
    Classes {
        /// Classes of the student.
        student: usize,
        /// Classes of the teacher.
        teacher: usize,
    },
    /// Give more.
    #[error(
        "{found} photos are too few: {} are held back to judge by, and at least {} to learn from \
         are needed",
        examples::LEAST,
        examples::LEAST
    )]
    TooFew {
        /// How many there are.
        found: usize,
    },
    /// Photos and network do not belong together.
    #[error("'{name}' has label {label}, but the network tells {classes} classes apart")]
    Label {
        /// The photo.
        name: String,
        /// Its label.
        label: usize,
        /// Classes of the network.
        classes: usize,
    },
    /// Remove it.
    #[error("'{name}': {error}")]
    Photo {
        /// The photo.
        name: String,
        /// What is wrong with it.
        error: Box<dyn Error + Send + Sync>,
    },
    /// The folder is in use: give another one, or forget what is there.
    #[error(
        "{}: holds a run with other {what} ({found}, not {expected}); give an empty folder, or \
         restart to forget that run",
        path.display()
    )]
    Other {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What it is in the folder.
        found: String,
        /// What it is here.
        expected: String,
    },
    /// A checkpoint cannot be gone on with: delete its folder, or restart.
    #[error("{}: damaged; restart to forget the run that it belongs to", path.display())]
    Damaged {
        /// The file.
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
    /// There is no such device, or it has too little memory.
    #[error("cannot compute: {0}")]
    Computer(Box<dyn Error + Send + Sync>),
    /// The caller asked to stop. The same call goes on from where it was.
    #[error("interrupted; the run in {} can be gone on with", path.display())]
    Interrupted {
        /// The folder.
        path: PathBuf,
    },
}

impl FinetuneError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |error| Self::Io { path, error }
    }
}

/// Tunes `student` on `photos` towards the answers of `teacher`, in the folder `checkpoint`: a run
/// that was stopped there is gone on with, and one that had ended is told again.
///
/// # Errors
/// [`FinetuneError`].
pub fn finetune<'a>(
    engine: &Engine,
    student: &Network<'a>,
    teacher: &Network<'_>,
    photos: &dyn Examples,
    options: &Options,
    checkpoint: &Path,
    progress: &mut dyn Progress,
) -> Result<Outcome<'a>, FinetuneError> {
    check(student, teacher, photos, options)?;
    let split = Split::of(photos);
    let teacher_digest = Digest::new().network(teacher).end();
    let identity = identity(student, teacher_digest, split.digest(photos), options);
    let (checkpoint, record) = Checkpoint::open(checkpoint, identity, options.restart)?;
    let place = Place::new(options.computer, engine)?;
    let (side, folder) = (options.teacher_side, checkpoint.folder());
    let teacher = Teacher::open(teacher, teacher_digest, side, &place, folder)?;
    let course = Course {
        split: &split,
        batch: options.batch.min(split.lessons.len()),
        crops: options.crops.into(),
        seed: options.seed,
    };
    Run { student, photos, options, course, place: &place, checkpoint: &checkpoint }
        .go(teacher, record, progress)
}

fn check(
    student: &Network<'_>,
    teacher: &Network<'_>,
    photos: &dyn Examples,
    options: &Options,
) -> Result<(), FinetuneError> {
    let wrong = |what, value: &dyn ToString, expected: &str| FinetuneError::Option {
        what,
        value: value.to_string(),
        expected: expected.to_owned(),
    };
    let above_zero = |value: f64| value.is_finite() && value > 0.0;
    for (what, side) in [("input side", options.side), ("teacher's side", options.teacher_side)] {
        if side == 0 || !side.is_multiple_of(REDUCTION) {
            return Err(wrong(what, &side, &format!("a multiple of {REDUCTION}")));
        }
    }
    for (what, count) in [("batch", options.batch), ("crops", options.crops as usize)] {
        if count == 0 {
            return Err(wrong(what, &count, "at least 1"));
        }
    }
    for (what, value) in
        [("learning rate", options.learning_rate), ("temperature", options.temperature)]
    {
        if !above_zero(value) {
            return Err(wrong(what, &value, "above 0"));
        }
    }
    if !(options.label_weight.is_finite() && options.label_weight >= 0.0) {
        return Err(wrong("weight of labels", &options.label_weight, "0 or above"));
    }
    let classes = student.topology().classes;
    if classes != teacher.topology().classes {
        return Err(FinetuneError::Classes {
            student: classes,
            teacher: teacher.topology().classes,
        });
    }
    if photos.count() < 2 * examples::LEAST {
        return Err(FinetuneError::TooFew { found: photos.count() });
    }
    let labelled = (0..photos.count()).filter_map(|at| Some((at, photos.label(at)?)));
    match labelled.into_iter().find(|(_, label)| *label >= classes) {
        Some((at, label)) => Err(FinetuneError::Label { name: photos.name(at), label, classes }),
        None => Ok(()),
    }
}

fn identity(student: &Network<'_>, teacher: u64, photos: u64, options: &Options) -> Identity {
    let Options { batch, learning_rate, temperature, label_weight, crops, seed, .. } = options;
    let Options { freeze_linears, side, teacher_side, .. } = options;
    Identity(vec![
        ("student", hex(Digest::new().network(student).end())),
        ("teacher", hex(teacher)),
        ("photos", hex(photos)),
        ("budget", format!("{:?}", options.budget)),
        ("batch", batch.to_string()),
        ("learning rate", learning_rate.to_string()),
        ("temperature", temperature.to_string()),
        ("weight of labels", label_weight.to_string()),
        ("crops", crops.to_string()),
        ("frozen linear layers", freeze_linears.to_string()),
        ("sides", format!("{side}, {teacher_side}")),
        ("seed", seed.to_string()),
    ])
}
