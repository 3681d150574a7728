//! The variants that may run: which of them are in memory, and which one classifies the next frame.
//!
//! A frame never waits for a model: the selector chooses among all candidates, and what it chooses is
//! loaded beside the classification if need be, which goes on with the best of those that are there. So
//! there must be room for both, and under a memory limit a variant without room beside the one that runs is
//! not chosen. The set may be another one from one frame to the next. It must not know where frames come
//! from or who gives orders.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::control::Chooser;
use crate::event::duration;
use crate::manifest::{ModelSet, SetError, Variant};
use crate::model::{Engine, Model, ModelError, footprint};
use crate::profile::Cost;
use crate::select::{Choice, Profile, Selector};

/// How long a variant is kept in memory that `auto` does not choose.
pub const IDLE: Duration = Duration::from_secs(600);

/// How long a model is left alone that cannot be loaded, or had to make room for another one.
const SPURNED: Duration = Duration::from_secs(60);

/// Probabilities of being in time below which a budget is not kept any more, and above which it is again.
const KEPT: (f64, f64) = (0.5, 0.9);

/// What a lineup keeps to.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who chooses.
    pub chooser: Chooser,
    /// The latency budget, if there is one.
    pub budget: Option<Duration>,
    /// The share of frames that may be late.
    pub miss_rate: f64,
    /// The most resident memory, in MiB, if it is limited.
    pub memory_limit: Option<u64>,
    /// A variant that `auto` has not chosen for this long is dropped from memory.
    pub idle: Duration,
}

/// Variants of one set, shared by the threads that classify, load and take orders.
pub struct Lineup {
    engine: Engine,
    idle: Duration,
    inner: Mutex<Inner>,
    /// Something changed that a thread may wait for.
    changed: Condvar,
}

/// Why a variant does not run.
#[derive(Debug, Error)]
pub enum LineupError {
    /// It needs too much memory: choose another one, or raise the limit.
    #[error("variant '{variant}' needs {needed} MiB, more than model.memory_limit = {limit}")]
    TooLarge {
        /// Its name.
        variant: String,
        /// What it needs, in MiB.
        needed: u64,
        /// What there is.
        limit: u64,
    },
    /// There is no such variant: choose one that there is.
    #[error(transparent)]
    Unknown(SetError),
    /// It cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
}

struct Inner {
    set: Arc<ModelSet>,
    chooser: Chooser,
    budget: Option<Duration>,
    /// Index of the variant that runs if nobody chooses, or as long as nothing is profiled.
    fixed: usize,
    miss_rate: f64,
    memory_limit: Option<u64>,
    /// One for each variant of the set.
    places: Vec<Place>,
    /// The choice among `candidates`, as soon as there are any.
    selector: Option<Selector>,
    /// The selector's index to the set's.
    candidates: Vec<usize>,
    /// The variant that was chosen last, or is to begin.
    running: Option<usize>,
    /// The variant that should be loaded.
    wanted: Option<usize>,
    /// Whether the budget is kept, if there is one and that is known.
    kept: Option<bool>,
    stopping: bool,
}

/// What there is for a frame.
struct Weighed {
    /// Index of the variant that runs, if any is in memory.
    next: Option<usize>,
    /// The one that would be better, and is not in memory.
    missing: Option<usize>,
    /// What is expected of the better one, if that is known.
    best: Option<Choice>,
}

/// A variant in memory, or the room for it.
#[derive(Clone)]
struct Place {
    model: Option<Arc<Model>>,
    /// When it was last chosen, could not be loaded, or had to go.
    since: Option<Instant>,
    /// What it costs, once it was timed.
    cost: Option<Cost>,
    /// What it must take in memory, in MiB, by its files and its graph: what is known until it is timed.
    least_mb: u64,
}

/// The model for a frame.
pub struct Chosen {
    /// What runs.
    pub model: Arc<Model>,
    /// The budget that holds for the frame.
    pub budget: Option<Duration>,
    set: Arc<ModelSet>,
    index: usize,
}

/// How the choice stands for a frame that came now.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Whose variants these are.
    pub set: Arc<ModelSet>,
    /// Who chooses.
    pub chooser: Chooser,
    /// The latency budget, if there is one.
    pub budget: Option<Duration>,
    /// The share of frames that may be late.
    pub miss_rate: f64,
    /// Index of the variant that would run, if any is in memory.
    pub next: Option<usize>,
    /// The better one, which is not in memory so far.
    pub missing: Option<usize>,
    /// One for each variant of the set.
    pub variants: Vec<Prospect>,
}

/// How a variant stands.
#[derive(Clone, Copy, Debug)]
pub struct Prospect {
    /// Whether it is in memory.
    pub loaded: bool,
    /// Whether the selector may choose it.
    pub standing: Standing,
    /// What to expect of it, once it was timed.
    pub choice: Option<Choice>,
}

/// Whether the selector may choose a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Candidate,
    /// It takes more memory than it may.
    TooLarge,
    /// It takes more memory than the one that runs leaves.
    Crowded,
    /// What it takes is not known so far.
    Untimed,
    /// What it is worth is not in the manifest.
    Unevaluated,
}

impl std::borrow::Borrow<Model> for Chosen {
    fn borrow(&self) -> &Model {
        &self.model
    }
}

impl Lineup {
    /// A lineup of `set` with nothing in memory so far; `known` says what a variant costs, if it was timed.
    pub fn new(
        set: ModelSet,
        engine: &Engine,
        terms: Terms,
        known: impl Fn(&ModelSet, &Variant) -> Option<Cost>,
    ) -> Self {
        let Terms { chooser, budget, miss_rate, memory_limit, idle } = terms;
        let places = places(&set, engine, known);
        let mut inner = Inner {
            set: Arc::new(set),
            chooser,
            budget,
            fixed: 0,
            miss_rate,
            memory_limit,
            places,
            selector: None,
            candidates: Vec::new(),
            running: None,
            wanted: None,
            kept: None,
            stopping: false,
        };
        inner.select(&[]);
        let (inner, changed) = (Mutex::new(inner), Condvar::new());
        Self { engine: engine.clone(), idle, inner, changed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set that is in use.
    pub fn set(&self) -> Arc<ModelSet> {
        self.lock().set.clone()
    }

    /// The name of the variant that is to begin where `variant` is configured: that one if it is fixed; else
    /// the one that would be chosen by what is known, or the configured one if nothing is, or if that does
    /// not fit into memory, the most accurate one that does.
    ///
    /// # Errors
    /// [`LineupError::TooLarge`] or [`LineupError::Unknown`].
    pub fn first(&self, variant: &str) -> Result<String, LineupError> {
        let inner = self.lock();
        let first = inner.first(variant)?;
        Ok(inner.set.manifest.variants[first].name.clone())
    }

    /// Loads the variant that is to begin; it is the one for which nobody need choose.
    ///
    /// # Errors
    /// [`LineupError`].
    pub fn begin(&self, name: &str) -> Result<(), LineupError> {
        let set = self.set();
        let index = set.position(name).map_err(LineupError::Unknown)?;
        let model = Model::load(&set, &set.manifest.variants[index], &self.engine)?;
        let mut inner = self.lock();
        inner.places[index].hold(Arc::new(model));
        (inner.fixed, inner.running) = (index, Some(index));
        inner.judge_now();
        Ok(())
    }

    /// Who chooses now, and within which budget.
    pub fn orders(&self) -> (Chooser, Option<Duration>) {
        let inner = self.lock();
        (inner.chooser.clone(), inner.budget)
    }

    /// Whether what runs keeps the budget; nothing without one, or if that cannot be known.
    pub fn budget_kept(&self) -> Option<bool> {
        self.lock().kept
    }

    /// The model for a frame that has taken `spent` so far. Waits only if nothing is in memory, and
    /// then for the variant that is being loaded.
    pub fn choose(&self, spent: Duration) -> Chosen {
        let mut inner = self.lock();
        loop {
            let picked = inner.pick(spent);
            if inner.wanted.is_some() {
                self.changed.notify_all();
            }
            if let Some(index) = picked {
                let model = inner.places[index].model.clone().expect("what is picked is in memory");
                inner.places[index].since = Some(Instant::now());
                if inner.running.replace(index) != Some(index) {
                    // The one before may have to go.
                    self.changed.notify_all();
                }
                return Chosen { model, budget: inner.budget, set: inner.set.clone(), index };
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Learns how long what was chosen took from then on.
    pub fn observe(&self, chosen: &Chosen, took: Duration) {
        let mut inner = self.lock();
        if !Arc::ptr_eq(&inner.set, &chosen.set) {
            return;
        }
        let candidate = inner.candidate(chosen.index);
        if let (Some(candidate), Some(selector)) = (candidate, &mut inner.selector) {
            selector.observe(candidate, took);
        }
    }

    /// How the choice stands for a frame that came now.
    pub fn outlook(&self) -> Outlook {
        let inner = self.lock();
        let weighed = inner.weigh(Duration::ZERO);
        let prospect = |index: usize| Prospect {
            loaded: inner.places[index].model.is_some(),
            standing: inner.standing(index),
            choice: inner.expect(index, Duration::ZERO),
        };
        Outlook {
            set: inner.set.clone(),
            chooser: inner.chooser.clone(),
            budget: inner.budget,
            miss_rate: inner.miss_rate,
            next: weighed.as_ref().and_then(|weighed| weighed.next),
            missing: weighed.and_then(|weighed| weighed.missing),
            variants: (0..inner.places.len()).map(prospect).collect(),
        }
    }

    /// Whether a variant may be loaded a second time, beside what is in memory.
    ///
    /// # Errors
    /// A sentence that says how much memory is missing, or that the set has no such variant any more.
    pub fn room(&self, variant: &Variant) -> Result<(), String> {
        let inner = self.lock();
        let Some(limit) = inner.memory_limit else { return Ok(()) };
        let index = inner.set.position(&variant.name).map_err(|error| error.to_string())?;
        let left =
            limit.saturating_sub(inner.held().map(|at| inner.places[at].resident_mb()).sum());
        match inner.places[index].peak_mb() {
            needed if needed <= left => Ok(()),
            needed => Err(format!(
                "needs {needed} MiB, and of model.memory_limit = {limit} {left} MiB are free"
            )),
        }
    }

    /// How many times slower than undisturbed computing and memory are, while the selector chooses.
    pub fn slowdown(&self) -> Option<[f64; 2]> {
        let inner = self.lock();
        let selector = inner.selector.as_ref().filter(|_| inner.chooser == Chooser::Auto)?;
        Some(selector.slowdown())
    }

    /// Ends [`keep_loaded`](Self::keep_loaded), when no more frames come.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Sets the budget of the frames to come.
    pub fn set_budget(&self, budget: Option<Duration>) {
        let mut inner = self.lock();
        inner.budget = budget;
        inner.judge_now();
    }

    /// Sets the share of frames that may be late.
    pub fn set_miss_rate(&self, miss_rate: f64) {
        let mut inner = self.lock();
        inner.miss_rate = miss_rate;
        let before = inner.candidates.clone();
        inner.select(&before);
    }

    /// Lets the selector choose from now on.
    ///
    /// # Errors
    /// A sentence that says what is missing for it.
    pub fn choose_automatically(&self) -> Result<(), String> {
        let mut inner = self.lock();
        evaluated(&inner.set)?;
        tracing::info!(before = inner.chooser.word(), "the variant is chosen for each frame");
        inner.chooser = Chooser::Auto;
        inner.judge_now();
        Ok(())
    }

    /// Loads the variant `name` and runs it from then on. Takes as long as loading takes, while frames are
    /// classified as before; the one that runs until then stays in memory even if both need more than the
    /// limit.
    ///
    /// # Errors
    /// [`LineupError`]; then nothing has changed.
    pub fn fix(&self, name: &str) -> Result<(), LineupError> {
        loop {
            let mut inner = self.lock();
            let index = inner.set.position(name).map_err(LineupError::Unknown)?;
            inner.fits(index)?;
            let set = inner.set.clone();
            if inner.places[index].model.is_none() {
                inner.make_room(index);
                drop(inner);
                let model = self.load(&set, index)?;
                inner = self.lock();
                if !Arc::ptr_eq(&inner.set, &set) {
                    continue;
                }
                inner.places[index].hold(model);
            }
            tracing::info!(variant = name, before = inner.chooser.word(), "variant switched");
            inner.chooser = Chooser::Fixed(name.to_owned());
            (inner.fixed, inner.running) = (index, Some(index));
            inner.drop_unused(self.idle);
            inner.judge_now();
            self.changed.notify_all();
            return Ok(());
        }
    }

    /// Goes over to another set, or the same one with other variants, between two frames: to what `chooser`
    /// says, or if that chooses to the variant that runs now, or else to that which would begin where
    /// `variant` is configured. What both sets have the same stays in memory, and what was learned stays
    /// known. Takes as long as loading takes, while frames are classified as before.
    ///
    /// # Errors
    /// [`LineupError`]; then nothing has changed.
    pub fn adopt(
        &self,
        set: ModelSet,
        chooser: Chooser,
        variant: &str,
        known: impl Fn(&ModelSet, &Variant) -> Option<Cost>,
    ) -> Result<(), LineupError> {
        let places = places(&set, &self.engine, known);
        let set = Arc::new(set);
        let draft = self.lock().over(&set, &chooser, places.clone());
        let index = match (&chooser, draft.running) {
            (Chooser::Fixed(name), _) => draft.first(name)?,
            (Chooser::Auto, Some(running)) if draft.fits(running).is_ok() => running,
            (Chooser::Auto, _) => draft.first(variant)?,
        };
        let model = match &draft.places[index].model {
            Some(model) => model.clone(),
            None => {
                self.lock().make_room_for(draft.places[index].peak_mb());
                self.load(&set, index)?
            }
        };
        let mut inner = self.lock();
        let mut next = inner.over(&set, &chooser, places);
        next.places[index].hold(model);
        (next.fixed, next.running) = (index, Some(index));
        *inner = next;
        inner.drop_unused(self.idle);
        inner.judge_now();
        tracing::info!(
            set = %set.directory.display(),
            variants = ?set.names(),
            variant = set.manifest.variants[index].name,
            "model set taken over"
        );
        self.changed.notify_all();
        Ok(())
    }

    /// Variants that must still be timed: not those that must take more memory than they may.
    pub fn untimed(&self) -> (Arc<ModelSet>, Vec<usize>) {
        let inner = self.lock();
        let able = |&index: &usize| inner.places[index].cost.is_none() && inner.fits(index).is_ok();
        (inner.set.clone(), (0..inner.places.len()).filter(able).collect())
    }

    /// Tells what a variant of `set` costs: it becomes a candidate, unless the set is not in use any more.
    pub fn learn(&self, set: &Arc<ModelSet>, index: usize, cost: Cost) {
        let mut inner = self.lock();
        if !Arc::ptr_eq(&inner.set, set) {
            return;
        }
        inner.places[index].cost = Some(cost);
        let before: Vec<usize> =
            inner.candidates.iter().map(|&it| if it == index { usize::MAX } else { it }).collect();
        inner.select(&before);
        inner.judge_now();
    }

    /// Loads what is wanted and drops what is not used any more, until stopped.
    pub fn keep_loaded(&self) {
        let mut inner = self.lock();
        loop {
            inner.drop_unused(self.idle);
            if inner.stopping {
                return;
            }
            // It may have been wanted again while it was loaded.
            let wanted = inner.wanted.take();
            let wanted = wanted.filter(|&index| inner.places[index].model.is_none());
            if let Some(index) = wanted.filter(|&index| inner.make_room(index)) {
                let set = inner.set.clone();
                drop(inner);
                let loaded = self.load(&set, index);
                inner = self.lock();
                if Arc::ptr_eq(&inner.set, &set) {
                    let place = &mut inner.places[index];
                    match loaded {
                        Ok(model) => place.hold(model),
                        Err(error) => {
                            place.since = Some(Instant::now());
                            let variant = &set.manifest.variants[index].name;
                            tracing::error!(variant, %error, "cannot load a variant, going on without it");
                        }
                    }
                }
                self.changed.notify_all();
                continue;
            }
            let rest = (self.idle / 10).clamp(Duration::from_millis(10), SPURNED);
            let woken = self.changed.wait_timeout(inner, rest);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn load(&self, set: &ModelSet, index: usize) -> Result<Arc<Model>, ModelError> {
        let variant = &set.manifest.variants[index];
        let start = Instant::now();
        let model = Model::load(set, variant, &self.engine)?;
        let load_ms = start.elapsed().as_millis() as u64;
        tracing::info!(variant = variant.name, load_ms, "variant loaded");
        Ok(Arc::new(model))
    }
}

impl Place {
    fn hold(&mut self, model: Arc<Model>) {
        self.model = Some(model);
        self.since = Some(Instant::now());
    }

    /// What it takes in memory while it runs, in MiB, as far as that is known.
    fn resident_mb(&self) -> u64 {
        self.cost.map_or(self.least_mb, |cost| cost.rss_mb)
    }

    /// What it takes at the most, in MiB: where memory was short when it was timed, less was resident than
    /// would be.
    fn peak_mb(&self) -> u64 {
        self.least_mb.max(self.cost.map_or(0, |cost| cost.peak_rss_mb))
    }

    /// Whether it is left alone for now.
    fn is_spurned(&self) -> bool {
        self.model.is_none() && self.since.is_some_and(|since| since.elapsed() < SPURNED)
    }
}

impl Inner {
    /// The same with another set: what is the same in both goes on.
    fn over(&self, set: &Arc<ModelSet>, chooser: &Chooser, mut places: Vec<Place>) -> Self {
        let before: Vec<Option<usize>> =
            set.manifest.variants.iter().map(|variant| self.same(set, variant)).collect();
        for (place, before) in places.iter_mut().zip(&before) {
            if let Some(old) = before.map(|before| &self.places[before]) {
                (place.model, place.since) = (old.model.clone(), old.since);
                place.cost = place.cost.or(old.cost);
            }
        }
        let now = |old: usize| before.iter().position(|&before| before == Some(old));
        let candidates: Vec<usize> =
            self.candidates.iter().map(|&old| now(old).unwrap_or(usize::MAX)).collect();
        let mut next = Self {
            set: set.clone(),
            chooser: chooser.clone(),
            fixed: 0,
            places,
            selector: self.selector.clone(),
            candidates: Vec::new(),
            running: self.running.and_then(now),
            wanted: None,
            ..*self
        };
        next.select(&candidates);
        next
    }

    /// The variant of this set that is the same as one of another set, in all that a model is made of.
    fn same(&self, set: &ModelSet, variant: &Variant) -> Option<usize> {
        let alike = self.set.labels == set.labels
            && self.set.manifest.preprocess == set.manifest.preprocess;
        let index = self.set.position(&variant.name).ok().filter(|_| alike)?;
        let old = &self.set.manifest.variants[index];
        let same = old.input == variant.input && self.set.digest(old) == set.digest(variant);
        same.then_some(index)
    }

    /// As [`Lineup::first`].
    fn first(&self, variant: &str) -> Result<usize, LineupError> {
        let configured = self.set.position(variant).map_err(LineupError::Unknown)?;
        let selector = self.selector.as_ref().filter(|_| self.chooser == Chooser::Auto);
        let choice =
            selector.and_then(|selector| selector.pick(self.left(Duration::ZERO), |_| true));
        if let Some(choice) = choice {
            return Ok(self.candidates[choice.variant]);
        }
        let problem = match self.fits(configured) {
            Ok(()) => return Ok(configured),
            Err(problem) => problem,
        };
        let able = (0..self.places.len()).filter(|&index| self.fits(index).is_ok());
        let accuracy = |index: &usize| self.set.manifest.variants[*index].accuracy().unwrap_or(0.0);
        let best = able.max_by(|a, b| accuracy(a).total_cmp(&accuracy(b)));
        best.filter(|_| self.chooser == Chooser::Auto).ok_or(problem)
    }

    /// Whether a variant fits into memory alone, as far as is known.
    fn fits(&self, index: usize) -> Result<(), LineupError> {
        let (Some(limit), needed) = (self.memory_limit, self.places[index].peak_mb()) else {
            return Ok(());
        };
        let variant = || self.set.manifest.variants[index].name.clone();
        match needed <= limit {
            true => Ok(()),
            false => Err(LineupError::TooLarge { variant: variant(), needed, limit }),
        }
    }

    /// Whether a variant is in memory, or fits there beside the one that runs. One that does not even fit alone
    /// must go in any case, and does not count.
    fn is_reachable(&self, index: usize) -> bool {
        let stays =
            |&running: &usize| self.places[running].model.is_some() && self.fits(running).is_ok();
        let beside = self.running.filter(stays).map_or(0, |at| self.places[at].resident_mb());
        let fits = |limit| beside + self.places[index].peak_mb() <= limit;
        self.places[index].model.is_some() || self.memory_limit.is_none_or(fits)
    }

    /// Indices of the variants in memory.
    fn held(&self) -> impl Iterator<Item = usize> {
        (0..self.places.len()).filter(|&index| self.places[index].model.is_some())
    }

    /// The selector's index of a variant.
    fn candidate(&self, index: usize) -> Option<usize> {
        self.candidates.iter().position(|&candidate| candidate == index)
    }

    /// What is left of the budget.
    fn left(&self, spent: Duration) -> Duration {
        self.budget.map_or(Duration::MAX, |budget| budget.saturating_sub(spent))
    }

    /// What to expect of a variant, if it was timed.
    fn expect(&self, index: usize, spent: Duration) -> Option<Choice> {
        let candidate = self.candidate(index)?;
        Some(self.selector.as_ref()?.expect(candidate, self.left(spent)))
    }

    /// The variant for a frame, of those in memory; asks for a better one if that is not there.
    fn pick(&mut self, spent: Duration) -> Option<usize> {
        let Weighed { next, missing, best } = self.weigh(spent)?;
        if missing.is_some() || self.chooser != Chooser::Auto {
            self.wanted = missing;
        }
        self.judge(best);
        next
    }

    /// What there is for a frame that has taken `spent` so far; nothing if no variant may run now.
    fn weigh(&self, spent: Duration) -> Option<Weighed> {
        let present = |index: usize| self.places[index].model.is_some();
        let Some(selector) = self.selector.as_ref().filter(|_| self.chooser == Chooser::Auto)
        else {
            let (next, missing) = match present(self.fixed) {
                true => (Some(self.fixed), None),
                false => (self.held().next(), Some(self.fixed)),
            };
            return Some(Weighed { next, missing, best: self.expect(self.fixed, spent) });
        };
        let left = self.left(spent);
        let able = |candidate: usize| {
            let index = self.candidates[candidate];
            self.is_reachable(index) && !self.places[index].is_spurned()
        };
        let there = |candidate: usize| present(self.candidates[candidate]);
        let Some(best) = selector.pick(left, able) else {
            // What is in memory was not timed, and nothing else may be loaded.
            let next = self.held().next()?;
            return Some(Weighed { next: Some(next), missing: None, best: None });
        };
        let index = self.candidates[best.variant];
        let (next, missing) = match present(index) {
            true => (Some(index), None),
            false => {
                let second = selector.pick(left, there);
                (second.map(|choice| self.candidates[choice.variant]), Some(index))
            }
        };
        let next = next.or_else(|| self.held().next());
        Some(Weighed { next, missing, best: Some(best) })
    }

    /// Whether the selector may choose a variant.
    fn standing(&self, index: usize) -> Standing {
        if self.fits(index).is_err() {
            return Standing::TooLarge;
        }
        match self.places[index].cost {
            _ if self.set.manifest.variants[index].accuracy().is_none() => Standing::Unevaluated,
            None => Standing::Untimed,
            Some(_) if self.chooser == Chooser::Auto && !self.is_reachable(index) => {
                Standing::Crowded
            }
            Some(_) => Standing::Candidate,
        }
    }

    /// Sees whether the budget is kept, for a frame that came now.
    fn judge_now(&mut self) {
        let best = self.weigh(Duration::ZERO).and_then(|weighed| weighed.best);
        self.judge(best);
    }

    /// Takes in whether the best there is keeps the budget, and says so when it does not any more, and when
    /// it does again.
    fn judge(&mut self, best: Option<Choice>) {
        let before = self.kept;
        self.kept = self.budget.and(best).map(|best| match before {
            Some(false) => best.usually > KEPT.1,
            _ => best.usually >= KEPT.0,
        });
        let expected_ms = best.map_or(0, |best| best.expected.as_millis() as u64);
        match (before, self.kept) {
            (None | Some(true), Some(false)) => match &self.chooser {
                Chooser::Auto => {
                    tracing::warn!(
                        expected_ms,
                        "no variant keeps the budget, the fastest one runs"
                    );
                }
                Chooser::Fixed(variant) => {
                    tracing::warn!(expected_ms, variant, "the variant does not keep the budget");
                }
            },
            (Some(false), Some(true)) => {
                tracing::info!(expected_ms, "the budget can be kept again");
            }
            _ => {}
        }
    }

    /// Makes the selector anew, among what was timed and fits into memory. It goes on from what was learned:
    /// `before` are the candidates until now.
    fn select(&mut self, before: &[usize]) {
        let (mut profiles, mut known) = (Vec::new(), Vec::new());
        self.candidates.clear();
        for index in 0..self.places.len() {
            let Some(cost) = self.places[index].cost else { continue };
            let variant = &self.set.manifest.variants[index];
            if self.fits(index).is_err() {
                let peak_rss_mb = self.places[index].peak_mb();
                let variant = &variant.name;
                tracing::info!(variant, peak_rss_mb, "does not fit into model.memory_limit");
                continue;
            }
            let (compute, memory) = (duration(cost.compute_ms), duration(cost.memory_ms));
            // Nobody chooses in a set in which it is not known.
            let accuracy = variant.accuracy().unwrap_or(0.0);
            profiles.push(Profile { compute, memory, accuracy });
            known.push(before.iter().position(|&old| old == index));
            self.candidates.push(index);
        }
        self.selector = (!profiles.is_empty()).then(|| match &self.selector {
            Some(selector) => selector.renewed(&profiles, self.miss_rate, &known),
            None => Selector::new(&profiles, self.miss_rate),
        });
    }

    /// Drops what is not needed: all but the fixed variant, or what the selector has not chosen for long.
    fn drop_unused(&mut self, idle: Duration) {
        let fixed = match self.chooser {
            Chooser::Auto => None,
            // Until it is there, something must run.
            Chooser::Fixed(_) if self.places[self.fixed].model.is_none() => return,
            Chooser::Fixed(_) => Some(self.fixed),
        };
        if fixed.is_none() && self.selector.is_none() {
            return;
        }
        for index in self.held().collect::<Vec<_>>() {
            let since = self.places[index].since;
            let unused = match fixed {
                Some(fixed) => index != fixed,
                None => {
                    let idle = since.is_none_or(|since| since.elapsed() >= idle);
                    let too_large = || self.fits(index).is_err();
                    self.running != Some(index) && (idle || too_large())
                }
            };
            if unused {
                let place = &mut self.places[index];
                (place.model, place.since) = (None, None);
                let variant = &self.set.manifest.variants[index].name;
                tracing::info!(variant, "dropped from memory, it is not used");
            }
        }
    }

    /// Drops variants, the longest unused first but never the one that runs, until `index` fits into the
    /// memory limit; whether it does then.
    fn make_room(&mut self, index: usize) -> bool {
        self.make_room_for(self.places[index].peak_mb())
    }

    fn make_room_for(&mut self, needed_mb: u64) -> bool {
        let Some(limit) = self.memory_limit else { return true };
        loop {
            let stays = |at: &usize| self.fits(*at).is_ok();
            let sum: u64 = self.held().filter(stays).map(|at| self.places[at].resident_mb()).sum();
            if sum + needed_mb <= limit {
                return true;
            }
            let others = self.held().filter(|&at| self.running != Some(at));
            let Some(oldest) = others.min_by_key(|&at| self.places[at].since) else { return false };
            let place = &mut self.places[oldest];
            (place.model, place.since) = (None, Some(Instant::now()));
            let variant = &self.set.manifest.variants[oldest].name;
            tracing::info!(variant, "dropped from memory, to make room");
        }
    }
}

/// Room for each variant of a set, with what is known of it.
fn places(
    set: &ModelSet,
    engine: &Engine,
    known: impl Fn(&ModelSet, &Variant) -> Option<Cost>,
) -> Vec<Place> {
    let place = |variant: &Variant| {
        // A graph that cannot be read is told of when its variant is loaded.
        let least = footprint(set, variant, engine).unwrap_or(variant.bytes);
        let cost = known(set, variant);
        Place { model: None, since: None, cost, least_mb: least >> 20 }
    };
    set.manifest.variants.iter().map(place).collect()
}

/// Whether a set has what choosing among its variants needs.
///
/// # Errors
/// A sentence that says what to do.
pub fn evaluated(set: &ModelSet) -> Result<(), String> {
    match set.manifest.variants.iter().find(|variant| variant.accuracy().is_none()) {
        None => Ok(()),
        Some(variant) => Err(format!(
            "needs the accuracy of variant '{}', which is not in the manifest; run \
             vggd-models evaluate {} --photos DIR",
            variant.name,
            set.directory.display()
        )),
    }
}
