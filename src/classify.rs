//! Frame after frame: takes one, has it classified, keeps its prediction in the outbox, and only then
//! lets the frame go. It must not know what kind of source frames come from, nor how predictions are
//! published.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::event::{self, Failure, Prediction};
use crate::lineup::Lineup;
use crate::outbox::{Kind, Outbox};
use crate::pipeline::{ClassifyError, Decoded, Pipeline};
use crate::preprocess::Thumb;
use crate::pulse::{BEAT, Pulse};
use crate::source::{Frame, Handoff, Picture, Source};
use crate::stats::Stats;

/// Broken pictures of a live source are told of this often at the most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Decides when the next frame may pass: not during a pause, nor sooner than the pace allows.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    paused: bool,
    /// The next frame passes at once.
    snapshot: bool,
    stopped: bool,
    /// The shortest time from one frame to the next.
    pace: Duration,
    next: Instant,
}

impl Gate {
    /// An open gate that lets a frame pass every `pace`.
    pub fn new(pace: Duration) -> Self {
        let next = Instant::now();
        let state = State { paused: false, snapshot: false, stopped: false, pace, next };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut self.lock());
        self.changed.notify_all();
    }

    /// Pauses or goes on.
    pub fn pause(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    /// Whether frames wait.
    pub fn paused(&self) -> bool {
        self.lock().paused
    }

    /// Lets the next frame pass, even during a pause.
    pub fn snapshot(&self) {
        self.change(|state| state.snapshot = true);
    }

    /// Lets nothing pass any more.
    pub fn stop(&self) {
        self.change(|state| state.stopped = true);
    }

    /// Waits until a frame may pass, beating `pulse` meanwhile; false once it is stopped.
    fn wait(&self, pulse: &Pulse) -> bool {
        let mut state = self.lock();
        loop {
            pulse.beat();
            if state.stopped || state.snapshot {
                return !state.stopped;
            }
            let left = state.next.saturating_duration_since(Instant::now());
            let rest = match state.paused {
                true => BEAT,
                false if left.is_zero() => return true,
                false => left.min(BEAT),
            };
            let waited = self.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a frame that has come may pass, and if so, whether it is the snapshot that was asked for.
    fn pass(&self) -> Option<bool> {
        let mut state = self.lock();
        let snapshot = std::mem::take(&mut state.snapshot);
        if state.stopped || (state.paused && !snapshot) {
            return None;
        }
        state.next = Instant::now() + state.pace;
        Some(snapshot)
    }
}

/// Keeps predictions in the outbox, and lets each photo go when its prediction is safe there.
pub struct Keeper {
    outbox: Arc<Outbox>,
    source: Arc<dyn Source>,
    /// Called with each record.
    fresh: Box<dyn Fn() + Send + Sync>,
    /// Photos whose records are not safe yet, oldest first.
    waiting: Mutex<VecDeque<Kept>>,
}

struct Kept {
    number: u64,
    frame: Frame,
    /// Why it could not be classified.
    rejected: Option<String>,
}

impl Keeper {
    /// Keeps in `outbox` what becomes of the frames of `source`, and calls `fresh` each time.
    pub fn new(
        outbox: Arc<Outbox>,
        source: Arc<dyn Source>,
        fresh: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { outbox, source, fresh: Box::new(fresh), waiting: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(
        &self,
        frame: Frame,
        kind: Kind,
        rejected: Option<String>,
        json: impl FnOnce(u64) -> Vec<u8>,
    ) {
        let number = self.outbox.append(kind, &frame.id, json);
        // What is not a file is gone anyway: nobody has to hold it until its prediction is safe.
        if frame.file.is_some() {
            self.lock().push_back(Kept { number, frame, rejected });
        }
        (self.fresh)();
        self.settle();
    }

    /// Lets go the photos whose predictions are safe by now.
    pub fn settle(&self) {
        let mut waiting = self.lock();
        while waiting.front().is_some_and(|kept| self.outbox.settled(kept.number)) {
            let Kept { frame, rejected, .. } = waiting.pop_front().expect("there is a first one");
            self.let_go(&frame, rejected.as_deref());
        }
    }

    fn let_go(&self, frame: &Frame, rejected: Option<&str>) {
        let moved = match rejected {
            Some(reason) => self.source.reject(frame, reason),
            None => self.source.finish(frame),
        };
        if let Err(error) = moved {
            let file = frame.file.as_ref().map(|file| &file.name);
            tracing::error!(file, %error, "cannot move or remove photo");
        }
    }
}

/// The last frame that was classified.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The picture, in memory.
    pub picture: Arc<Picture>,
    /// What was said of it, which has no sequence yet.
    pub prediction: Arc<Prediction>,
    /// When it was captured.
    pub captured_at: SystemTime,
    /// When it was classified.
    pub classified_at: SystemTime,
    /// Whether it was asked for.
    pub snapshot: bool,
}

/// What the classifying thread needs.
pub struct Classifier {
    /// From pictures to answers.
    pub pipeline: Pipeline,
    /// The variants.
    pub lineup: Arc<Lineup>,
    /// When frames may pass.
    pub gate: Arc<Gate>,
    /// Where predictions go.
    pub keeper: Arc<Keeper>,
    /// Counts.
    pub stats: Arc<Mutex<Stats>>,
    /// Name of the kind of source.
    pub source: &'static str,
    /// Frames that differ less than this from the last one are passed over.
    pub min_change: f64,
    /// Called with each frame that was classified.
    pub seen: Box<dyn Fn(Seen) + Send>,
    /// Called with what goes wrong and belongs to no photo.
    pub failed: Box<dyn Fn(Failure) + Send>,
}

impl Classifier {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Classifies frame after frame until `frames` is closed or the gate is stopped. A photo that cannot
    /// be classified is put aside; a model that cannot classify ends it.
    ///
    /// # Errors
    /// When the model fails.
    pub fn run(&self, frames: &Handoff) -> Result<()> {
        let mut last = Last::default();
        let pulse = frames.taking();
        while self.gate.wait(pulse) {
            let Some(frame) = frames.take() else { break };
            let snapshot = loop {
                match self.gate.pass() {
                    Some(snapshot) => break Some(snapshot),
                    // The pause began before it came: a photo waits, a picture would be too old then.
                    None if frame.file.is_some() && self.gate.wait(pulse) => {}
                    None => break None,
                }
            };
            if let Some(snapshot) = snapshot {
                self.classify(frame, snapshot, &mut last)?;
            }
        }
        Ok(())
    }

    fn classify(&self, mut frame: Frame, snapshot: bool, last: &mut Last) -> Result<()> {
        if self.keeper.outbox.knows(&frame.id) == Some(Kind::Prediction) {
            tracing::debug!(id = frame.id, "was classified before the last stop");
            self.keeper.let_go(&frame, None);
            return Ok(());
        }
        let wait = frame.found_at.elapsed();
        let file = frame.file.as_ref().map(|file| file.name.clone());
        let decoded = match self.pipeline.decode(&mut frame.picture) {
            Ok(decoded) => decoded,
            Err(ClassifyError::Gone) => {
                tracing::debug!(file, "photo was taken away");
                self.keeper.let_go(&frame, None);
                return Ok(());
            }
            Err(error) => {
                self.reject(frame, error.to_string(), last);
                return Ok(());
            }
        };
        if self.is_known(&decoded, last) && !snapshot {
            self.stats().skip();
            self.keeper.let_go(&frame, None);
            return Ok(());
        }
        // What a photo waited for in its folder is not held against it.
        let age = if file.is_some() { Duration::ZERO } else { wait };
        let chosen = self.pipeline.classify(&decoded, |spent| self.lineup.choose(age + spent));
        let (answer, chosen) = match chosen {
            Ok(chosen) => chosen,
            Err(error @ ClassifyError::Model(_)) => {
                tracing::error!(%error, "the model failed, the frame stays");
                (self.failed)(Failure::new("model", None, error.to_string()));
                return Err(error.into());
            }
            Err(error) => {
                self.reject(frame, error.to_string(), last);
                return Ok(());
            }
        };
        self.lineup.observe(&chosen, answer.after_decoding());
        let (model, budget) = (&chosen.model, chosen.budget);
        let in_time = budget.map(|budget| age + answer.age() <= budget);
        self.stats().count(&model.name, age + answer.age(), in_time);
        let mut prediction = Prediction {
            schema: event::SCHEMA,
            id: frame.id.clone(),
            sequence: 0,
            source: self.source.into(),
            file,
            captured_at: event::timestamp(frame.captured_at),
            variant: model.name.clone(),
            timings_ms: answer.timings(wait),
            budget_ms: budget.map(event::milliseconds),
            in_time,
            top: answer.top,
            replayed: false,
        };
        tracing::debug!(
            source = self.source,
            file = prediction.file,
            variant = prediction.variant,
            class = prediction.top[0].label,
            probability = prediction.top[0].probability,
            latency_ms = prediction.timings_ms.total,
            "classified"
        );
        let picture = std::mem::replace(&mut frame.picture, Picture::Encoded(Vec::new()));
        let captured_at = frame.captured_at;
        // Before anybody can hear of it, and order something that is about it.
        let (picture, seen) = (Arc::new(picture), Arc::new(prediction.clone()));
        let classified_at = SystemTime::now();
        (self.seen)(Seen { picture, prediction: seen, captured_at, classified_at, snapshot });
        self.keeper.keep(frame, Kind::Prediction, None, |sequence| {
            prediction.sequence = sequence;
            event::json(&prediction)
        });
        Ok(())
    }

    /// Whether a frame hardly differs from the last one that was classified; if not, it becomes that.
    fn is_known(&self, decoded: &Decoded, last: &mut Last) -> bool {
        if self.min_change == 0.0 {
            return false;
        }
        let thumb = self.pipeline.thumb(decoded, self.lineup.set().manifest.preprocess.resize);
        let known =
            last.thumb.as_ref().is_some_and(|last| last.difference(&thumb) < self.min_change);
        if !known {
            last.thumb = Some(thumb);
        }
        known
    }

    /// A photo is put aside, and told of. Of a live source's broken pictures one is told now and then.
    fn reject(&self, frame: Frame, reason: String, last: &mut Last) {
        self.stats().reject();
        let Some(file) = frame.file.as_ref().map(|file| file.name.clone()) else {
            last.broken += 1;
            if last.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                last.told = Some(Instant::now());
                let frames = std::mem::take(&mut last.broken);
                tracing::warn!(source = self.source, frames, error = reason, "a frame is broken");
                let before = match frames {
                    1 => String::new(),
                    _ => format!(" (and {} frames before it)", frames - 1),
                };
                (self.failed)(Failure::new("frame", None, reason + &before).about(&frame.id));
            }
            return;
        };
        if self.keeper.outbox.knows(&frame.id) == Some(Kind::Failure) {
            tracing::debug!(id = frame.id, error = reason, "was rejected before the last stop");
            self.keeper.let_go(&frame, Some(&reason));
            return;
        }
        tracing::warn!(source = self.source, file, error = reason, "photo rejected");
        let failure = Failure::new("photo", Some(file), reason.clone()).about(&frame.id);
        self.keeper.keep(frame, Kind::Failure, Some(reason), |_| event::json(&failure));
    }
}

/// What the frames before leave behind.
#[derive(Default)]
struct Last {
    /// The last frame that was classified, for comparison.
    thumb: Option<Thumb>,
    /// Frames that could not be classified and were not told of.
    broken: u64,
    /// When such a frame was told of.
    told: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_frames_pass_at_its_pace() {
        let (gate, pulse) = (Gate::new(Duration::from_millis(20)), Pulse::default());
        let start = Instant::now();
        for _ in 0..3 {
            assert!(gate.wait(&pulse));
            assert_eq!(gate.pass(), Some(false));
        }
        assert!(start.elapsed() >= Duration::from_millis(40));
    }

    #[test]
    fn a_snapshot_passes_a_pause_alone() {
        let (gate, pulse) = (Gate::new(Duration::from_secs(3600)), Pulse::default());
        assert_eq!((gate.wait(&pulse), gate.pass()), (true, Some(false)));
        gate.pause(true);
        assert_eq!(gate.pass(), None);
        gate.snapshot();
        assert_eq!((gate.wait(&pulse), gate.pass(), gate.pass()), (true, Some(true), None));
        gate.stop();
        assert_eq!((gate.wait(&pulse), gate.pass()), (false, None));
    }
}
