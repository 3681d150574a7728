//! A run of fine-tuning from its first step, or from where it was, to its outcome.

use std::f64::consts::PI;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Instant;

use super::checkpoint::{Checkpoint, Record};
use super::examples::{self, Course, Examples, Lesson};
use super::loss::Loss;
use super::model::{Model, Parameter, Place};
use super::optimizer::Moments;
use super::teacher::Teacher;
use super::{Budget, FinetuneError, Judgement, Options, Outcome};
use crate::judge;
use crate::network::Network;
use crate::progress::Progress;

/// How often a run is judged.
const JUDGEMENTS: f64 = 20.0;

/// Share of a run in which the learning rate rises.
const WARM_UP: f64 = 0.1;

/// Where it rises from, as such a share.
const HEAD_START: f64 = 0.01;

/// A photo that is learned from takes about as long as this many that are only looked at.
const LESSON: u64 = 4;

/// A run: what does not change in it.
pub(super) struct Run<'r, 'a> {
    pub(super) student: &'r Network<'a>,
    pub(super) photos: &'r dyn Examples,
    pub(super) options: &'r Options,
    pub(super) course: Course<'r>,
    pub(super) place: &'r Place,
    pub(super) checkpoint: &'r Checkpoint,
}

/// The student while it learns.
struct Pupil {
    model: Model,
    parameters: Vec<Parameter>,
    moments: Vec<Moments>,
}

/// How a session ended.
enum End {
    Done,
    Diverged,
    Interrupted,
}

impl<'a> Run<'_, 'a> {
    /// The whole run, or what is left of it after `record`.
    pub(super) fn go(
        &self,
        mut teacher: Teacher<'_>,
        record: Option<Record>,
        progress: &mut dyn Progress,
    ) -> Result<Outcome<'a>, FinetuneError> {
        progress.now("loading the network");
        let pupil = self.pupil()?;
        let mut record = match record {
            Some(record) => {
                self.checkpoint.restore(&record, &pupil.parameters, &pupil.moments)?;
                record
            }
            None => {
                progress.now("judging the network as it is given");
                Record::new(self.judge(&pupil, &mut teacher, progress)?)
            }
        };
        progress.count(self.left(&record));
        let (sender, lessons) = sync_channel(1);
        let (course, first) = (&self.course, record.step);
        let (side, readers) = (self.options.side, self.place.readers());
        let end = thread::scope(|scope| {
            scope.spawn(move || course.read(self.photos, side, readers, first, &sender));
            self.learn(&pupil, &mut teacher, &mut record, lessons, progress)
        })?;
        if !matches!(end, End::Diverged) {
            self.save(&pupil, &mut record, progress)?;
        }
        if matches!(end, End::Interrupted) {
            return Err(self.interrupted());
        }
        drop((pupil, teacher));
        self.outcome(&record, matches!(end, End::Diverged))
    }

    fn pupil(&self) -> Result<Pupil, FinetuneError> {
        let model = Model::new(self.student, self.options.side, self.place)?;
        let mut parameters = model.parameters()?;
        parameters.retain(|parameter| !(parameter.linear && self.options.freeze_linears));
        let moments = parameters.iter().map(Moments::new).collect::<Result<_, _>>()?;
        Ok(Pupil { model, parameters, moments })
    }

    /// The rest of the run.
    fn learn(
        &self,
        pupil: &Pupil,
        teacher: &mut Teacher<'_>,
        record: &mut Record,
        lessons: Receiver<Result<Lesson, FinetuneError>>,
        progress: &mut dyn Progress,
    ) -> Result<End, FinetuneError> {
        let (begun, before) = (Instant::now(), record.elapsed);
        let mut saved = begun;
        loop {
            progress.now(&self.state(record));
            let left = self.left(record);
            let fraction = self.fraction(record);
            let due = (fraction * JUDGEMENTS) as u64;
            if record.judged < due {
                let judgement = match self.judge(pupil, teacher, progress) {
                    Err(FinetuneError::Interrupted { .. }) => return Ok(End::Interrupted),
                    judgement => judgement?,
                };
                record.judged = due;
                if judgement.divergence < record.best().divergence {
                    record.best = Some((record.step, judgement));
                    self.save(pupil, record, progress)?;
                    saved = Instant::now();
                }
            } else if fraction >= 1.0 {
                return Ok(End::Done);
            } else {
                let lesson = lessons.recv().expect("lessons end with an error only")?;
                let rate = self.options.learning_rate * schedule(fraction);
                if !self.step(pupil, teacher, lesson, record.step + 1, rate)? {
                    return Ok(End::Diverged);
                }
                record.step += 1;
                if saved.elapsed() >= self.options.save_every {
                    self.save(pupil, record, progress)?;
                    saved = Instant::now();
                }
            }
            record.elapsed = before + begun.elapsed();
            if progress.advance(left - self.left(record).min(left)).is_err() {
                return Ok(End::Interrupted);
            }
        }
    }

    /// Learns one lesson, unless numbers have grown beyond all bounds.
    fn step(
        &self,
        pupil: &Pupil,
        teacher: &mut Teacher<'_>,
        lesson: Lesson,
        number: u64,
        rate: f64,
    ) -> Result<bool, FinetuneError> {
        let Options { side, temperature, label_weight, .. } = *self.options;
        let Lesson { seen, inputs } = lesson;
        let answers = teacher.answer(self.photos, self.course.split, &seen, &inputs, side)?;
        let classes = answers.len() / seen.len();
        let mut labels = vec![0.0; answers.len()];
        for (seen, labels) in seen.iter().zip(labels.chunks_mut(classes)) {
            if let Some(label) = self.photos.label(seen.photo) {
                labels[label] = 1.0;
            }
        }
        let answers = self.place.matrix(answers, classes)?;
        let labels = self.place.matrix(labels, classes)?;
        let loss = Loss { temperature, labels: label_weight };
        let inputs = pupil.model.input(inputs, side)?;
        let (value, gradients) =
            pupil.model.gradients(&inputs, |logits| loss.of(logits, &answers, &labels))?;
        if !value.is_finite() {
            return Ok(false);
        }
        let parameters = pupil.parameters.iter().zip(&pupil.moments);
        for ((parameter, moments), gradient) in parameters.zip(gradients) {
            moments.step(parameter, &gradient, number, rate)?;
        }
        Ok(true)
    }

    fn judge(
        &self,
        pupil: &Pupil,
        teacher: &mut Teacher<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Judgement, FinetuneError> {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        let side = self.options.side;
        let exam = self.course.split.exam();
        for seen in exam.chunks(self.options.batch) {
            let inputs = examples::read(self.photos, seen, side, self.place.readers())?;
            let split = self.course.split;
            expected.extend(teacher.answer(self.photos, split, seen, &inputs, side)?);
            found.extend(pupil.model.answer(inputs, side)?);
            progress.advance(0).map_err(|_| self.interrupted())?;
        }
        let classes = expected.len() / exam.len();
        let first =
            |logits: &[f32]| -> Vec<usize> { logits.chunks(classes).map(judge::first).collect() };
        let (teachers, students) = (first(&expected), first(&found));
        let labels = exam.iter().map(|seen| self.photos.label(seen.photo));
        let labelled: Vec<bool> = (labels.zip(&students))
            .filter_map(|(label, student)| Some(label? == *student))
            .collect();
        let share = |right: usize, of: usize| right as f64 / of as f64;
        let same = teachers.iter().zip(&students).filter(|(a, b)| a == b).count();
        let right = labelled.iter().filter(|right| **right).count();
        Ok(Judgement {
            divergence: judge::divergence(&expected, &found, classes),
            agreement: share(same, exam.len()),
            top1: (!labelled.is_empty()).then(|| share(right, labelled.len())),
        })
    }

    fn save(
        &self,
        pupil: &Pupil,
        record: &mut Record,
        progress: &mut dyn Progress,
    ) -> Result<(), FinetuneError> {
        progress.now("writing a checkpoint");
        self.checkpoint.save(record, &pupil.parameters, &pupil.moments)
    }

    fn interrupted(&self) -> FinetuneError {
        FinetuneError::Interrupted { path: self.checkpoint.folder().to_owned() }
    }

    fn outcome(&self, record: &Record, diverged: bool) -> Result<Outcome<'a>, FinetuneError> {
        let network = match record.best {
            Some((step, _)) => self.checkpoint.network(record, step, self.student)?,
            None => self.student.clone(),
        };
        Ok(Outcome {
            network,
            improved: record.best.is_some(),
            given: record.given,
            best: record.best(),
            held_back: self.course.split.held_back.len(),
            lessons: self.course.split.lessons.len(),
            steps: record.step,
            epochs: record.step as f64 / self.course.steps() as f64,
            elapsed: record.elapsed,
            diverged,
        })
    }

    /// How much of the run is behind it, from 0 to 1.
    fn fraction(&self, record: &Record) -> f64 {
        match self.options.budget {
            Budget::Epochs(epochs) => {
                let steps = u64::from(epochs) * self.course.steps();
                if record.step >= steps { 1.0 } else { record.step as f64 / steps as f64 }
            }
            Budget::Time(time) => {
                (record.elapsed.as_secs_f64() / time.as_secs_f64().max(1e-3)).min(1.0)
            }
        }
    }

    /// How much is before it, for the progress: milliseconds, or photos to look at.
    fn left(&self, record: &Record) -> u64 {
        match self.options.budget {
            Budget::Epochs(epochs) => {
                let steps = u64::from(epochs) * self.course.steps();
                let lessons = steps.saturating_sub(record.step) * self.course.batch as u64;
                let exams = (JUDGEMENTS as u64).saturating_sub(record.judged);
                LESSON * lessons + exams * self.course.split.held_back.len() as u64
            }
            Budget::Time(time) => time.saturating_sub(record.elapsed).as_millis() as u64,
        }
    }

    fn state(&self, record: &Record) -> String {
        let epoch = record.step / self.course.steps() + 1;
        let (given, best) = (record.given.divergence, record.best().divergence);
        format!("epoch {epoch}, divergence from the teacher {given:.4}, now {best:.4}")
    }
}

/// Share of the learning rate when `fraction` of a run is over: up in a line, down as a cosine
/// (Loshchilov and Hutter 2017).
fn schedule(fraction: f64) -> f64 {
    let rise = ((fraction + HEAD_START) / WARM_UP).min(1.0);
    rise * 0.5 * (1.0 + (PI * fraction).cos())
}
