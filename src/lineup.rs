//! The variants that may run: which of them are in memory, and which one classifies the next frame.
//!
//! A frame never waits for a model, as long as one is in memory: the selector chooses among all
//! candidates, and what it chooses is loaded beside the classification if need be, which goes on with
//! the best of those that are there. It must not know where frames come from or who gives orders.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::Chooser;
use crate::event::duration;
use crate::manifest::{ModelSet, SetError, Variant};
use crate::model::{Engine, Model, ModelError};
use crate::profile::Cost;
use crate::pulse::{BEAT, Pulse};
use crate::select::{Choice, Profile, Selector};

/// A variant that `auto` has not chosen for this long is dropped from memory.
const IDLE: Duration = Duration::from_secs(600);

/// How long a model is left alone that cannot be loaded, or had to make room for another one.
const SPURNED: Duration = Duration::from_secs(60);

/// Variants of one set, shared by the threads that classify, load and take orders.
pub struct Lineup {
    set: ModelSet,
    engine: Engine,
    memory_limit: Option<u64>,
    inner: Mutex<Inner>,
    /// Something changed that a thread may wait for.
    changed: Condvar,
}

struct Inner {
    chooser: Chooser,
    budget: Option<Duration>,
    /// Index of the variant that runs if nobody chooses, or as long as nothing is profiled.
    fixed: usize,
    miss_rate: f64,
    /// What is known of each variant of the set.
    costs: Vec<Option<Cost>>,
    /// The choice among `candidates`, as soon as there are any.
    selector: Option<Selector>,
    /// The selector's index to the set's.
    candidates: Vec<usize>,
    places: Vec<Place>,
    /// The variant that should be loaded.
    wanted: Option<usize>,
    /// Whether the last frame could not be in time.
    hopeless: bool,
    stopping: bool,
}

/// What there is for a frame.
struct Weighed {
    /// Index of the variant that runs, if any is in memory.
    next: Option<usize>,
    /// The one that would be better, and is not in memory.
    missing: Option<usize>,
    /// What the selector expects of the best one, if it chooses.
    best: Option<Choice>,
}

/// A variant in memory, or the room for it.
#[derive(Clone, Default)]
struct Place {
    model: Option<Arc<Model>>,
    /// When it was last chosen, could not be loaded, or had to go.
    since: Option<Instant>,
}

/// The model for a frame.
pub struct Chosen {
    /// What runs.
    pub model: Arc<Model>,
    /// The budget that holds for the frame.
    pub budget: Option<Duration>,
    index: usize,
}

/// How the choice stands for a frame that came now.
#[derive(Clone, Debug)]
pub struct Outlook {
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
    /// What to expect of it, of a candidate.
    pub choice: Option<Choice>,
}

/// Whether the selector may choose a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Candidate,
    /// It takes more memory than it may.
    TooLarge,
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
    /// A lineup of `set` in which `first` is in memory and fixed.
    ///
    /// # Errors
    /// [`SetError`] when `first` is no variant of the set.
    pub fn new(
        set: &ModelSet,
        engine: &Engine,
        first: Model,
        chooser: Chooser,
        budget: Option<Duration>,
        miss_rate: f64,
        memory_limit: Option<u64>,
    ) -> Result<Self, SetError> {
        let count = set.manifest.variants.len();
        let fixed = set.position(&first.name)?;
        let mut places = vec![Place::default(); count];
        places[fixed].model = Some(Arc::new(first));
        let inner = Inner {
            chooser,
            budget,
            fixed,
            miss_rate,
            costs: vec![None; count],
            selector: None,
            candidates: Vec::new(),
            places,
            wanted: None,
            hopeless: false,
            stopping: false,
        };
        let (set, engine) = (set.clone(), engine.clone());
        Ok(Self { set, engine, memory_limit, inner: Mutex::new(inner), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who chooses now, and within which budget.
    pub fn orders(&self) -> (Chooser, Option<Duration>) {
        let inner = self.lock();
        (inner.chooser.clone(), inner.budget)
    }

    /// The model for a frame that has taken `spent` so far. Waits only if nothing is in memory, and
    /// then for the variant that is being loaded, beating `pulse` meanwhile.
    pub fn choose(&self, spent: Duration, pulse: &Pulse) -> Chosen {
        let mut inner = self.lock();
        loop {
            if let Some(index) = inner.pick(spent) {
                let model = inner.places[index].model.clone().expect("what is picked is in memory");
                inner.places[index].since = Some(Instant::now());
                if inner.wanted.is_some() {
                    self.changed.notify_all();
                }
                return Chosen { model, budget: inner.budget, index };
            }
            self.changed.notify_all();
            pulse.beat();
            let woken = self.changed.wait_timeout(inner, BEAT);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Learns how long what was chosen took from then on.
    pub fn observe(&self, chosen: &Chosen, took: Duration) {
        let mut inner = self.lock();
        let candidate = inner.candidates.iter().position(|&index| index == chosen.index);
        if let (Some(candidate), Some(selector)) = (candidate, &mut inner.selector) {
            selector.observe(candidate, took);
        }
    }

    /// How the choice stands for a frame that came now.
    pub fn outlook(&self) -> Outlook {
        let inner = self.lock();
        let left = inner.budget.unwrap_or(Duration::MAX);
        let weighed = inner.weigh(Duration::ZERO);
        let prospect = |(index, variant): (usize, &Variant)| {
            let candidate = inner.candidates.iter().position(|&at| at == index);
            Prospect {
                loaded: inner.places[index].model.is_some(),
                standing: inner.standing(index, variant, self.memory_limit),
                choice: candidate.and_then(|at| Some(inner.selector.as_ref()?.expect(at, left))),
            }
        };
        Outlook {
            chooser: inner.chooser.clone(),
            budget: inner.budget,
            miss_rate: inner.miss_rate,
            next: weighed.as_ref().and_then(|weighed| weighed.next),
            missing: weighed.and_then(|weighed| weighed.missing),
            variants: self.set.manifest.variants.iter().enumerate().map(prospect).collect(),
        }
    }

    /// Whether the variant `index` may be loaded a second time, beside what is in memory.
    ///
    /// # Errors
    /// A sentence that says how much memory is missing.
    pub fn room(&self, index: usize) -> Result<(), String> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        let inner = self.lock();
        let variants = &self.set.manifest.variants;
        let held = (0..variants.len()).filter(|&at| inner.places[at].model.is_some());
        let held = held.map(|at| match inner.costs[at] {
            Some(cost) => cost.rss_mb,
            None => files_mb(&variants[at]),
        });
        let left = limit.saturating_sub(held.sum());
        match peak_mb(inner.costs[index], &variants[index]) {
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
        self.lock().budget = budget;
    }

    /// Sets the share of frames that may be late.
    pub fn set_miss_rate(&self, miss_rate: f64) {
        let mut inner = self.lock();
        inner.miss_rate = miss_rate;
        inner.select(&self.set, self.memory_limit);
    }

    /// Lets the selector choose from now on.
    ///
    /// # Errors
    /// A sentence that says what is missing for it.
    pub fn choose_automatically(&self) -> Result<(), String> {
        evaluated(&self.set)?;
        let mut inner = self.lock();
        tracing::info!(before = inner.chooser.word(), "the variant is chosen for each frame");
        inner.chooser = Chooser::Auto;
        Ok(())
    }

    /// Loads the variant `name` and runs it from then on. Takes as long as loading takes, while
    /// frames are classified as before.
    ///
    /// # Errors
    /// [`ModelError`]; then nothing has changed.
    pub fn fix(&self, name: &str) -> Result<(), ModelError> {
        let index = self.set.position(name)?;
        if self.lock().places[index].model.is_none() {
            self.load(index)?;
        }
        let mut inner = self.lock();
        tracing::info!(variant = name, before = inner.chooser.word(), "variant switched");
        inner.chooser = Chooser::Fixed(name.to_owned());
        inner.fixed = index;
        // Nobody chooses the others any more.
        for (other, place) in inner.places.iter_mut().enumerate() {
            if other != index {
                place.model = None;
            }
        }
        Ok(())
    }

    /// Whether somebody must still time variants, and which: not those whose files alone are more than fits
    /// into memory.
    pub fn untimed(&self) -> Vec<usize> {
        let inner = self.lock();
        let variants = &self.set.manifest.variants;
        let able = |index: usize| {
            let standing = inner.standing(index, &variants[index], self.memory_limit);
            inner.costs[index].is_none() && standing != Standing::TooLarge
        };
        (0..variants.len()).filter(|&index| able(index)).collect()
    }

    /// Tells what a variant costs: it becomes a candidate.
    pub fn learn(&self, index: usize, cost: Cost) {
        let mut inner = self.lock();
        inner.costs[index] = Some(cost);
        inner.select(&self.set, self.memory_limit);
    }

    /// Loads what is wanted and drops what is not used any more, until stopped.
    pub fn keep_loaded(&self) {
        let mut inner = self.lock();
        while !inner.stopping {
            // It may have been wanted again while it was loaded.
            let wanted = inner.wanted.take();
            if let Some(index) = wanted.filter(|&index| inner.places[index].model.is_none()) {
                self.make_room(&mut inner, index);
                drop(inner);
                if let Err(error) = self.load(index) {
                    let variant = &self.set.manifest.variants[index].name;
                    tracing::error!(variant, %error, "cannot load a variant, going on without it");
                    self.lock().places[index].since = Some(Instant::now());
                }
                inner = self.lock();
                continue;
            }
            let woken = self.changed.wait_timeout(inner, IDLE / 10);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
            self.drop_idle(&mut inner);
        }
    }

    /// Drops what the selector has not chosen for long, all but the latest.
    fn drop_idle(&self, inner: &mut Inner) {
        if inner.chooser != Chooser::Auto || inner.selector.is_none() {
            return;
        }
        let latest = inner.places.iter().filter_map(|place| place.since).max();
        for (place, variant) in inner.places.iter_mut().zip(&self.set.manifest.variants) {
            let idle = place.since.is_none_or(|since| since.elapsed() > IDLE);
            if place.model.is_some() && idle && place.since != latest {
                tracing::info!(variant = variant.name, "dropped from memory, it was not used");
                *place = Place::default();
            }
        }
    }

    fn load(&self, index: usize) -> Result<(), ModelError> {
        let variant = &self.set.manifest.variants[index];
        let start = Instant::now();
        let model = Model::load(&self.set, variant, &self.engine)?;
        let load_ms = start.elapsed().as_millis() as u64;
        tracing::info!(variant = variant.name, load_ms, "variant loaded");
        let place = Place { model: Some(Arc::new(model)), since: Some(Instant::now()) };
        self.lock().places[index] = place;
        self.changed.notify_all();
        Ok(())
    }

    /// Drops variants, the longest unused first, until `index` fits into the memory limit; the one in
    /// use too, if need be.
    fn make_room(&self, inner: &mut Inner, index: usize) {
        let Some(limit) = self.memory_limit else { return };
        let cost = |inner: &Inner, index: usize| inner.costs[index].map_or(0, |cost| cost.rss_mb);
        let peak = inner.costs[index].map_or(0, |cost| cost.peak_rss_mb);
        loop {
            let held = (0..inner.places.len()).filter(|&at| inner.places[at].model.is_some());
            let held: Vec<usize> = held.collect();
            let sum: u64 = held.iter().map(|&at| cost(inner, at)).sum();
            let Some(&oldest) = held.iter().min_by_key(|&&at| inner.places[at].since) else {
                return;
            };
            if sum + peak <= limit {
                return;
            }
            inner.places[oldest] = Place { model: None, since: Some(Instant::now()) };
        }
    }
}

impl Inner {
    /// The variant for a frame, of those in memory; asks for a better one if that is not there.
    fn pick(&mut self, spent: Duration) -> Option<usize> {
        let Weighed { next, missing, best } = self.weigh(spent)?;
        if missing.is_some() || best.is_none() {
            self.wanted = missing;
        }
        if let Some(best) = best {
            self.tell(best);
        }
        next
    }

    /// What there is for a frame that has taken `spent` so far; nothing if no variant may run now.
    fn weigh(&self, spent: Duration) -> Option<Weighed> {
        let present = |index: usize| self.places[index].model.is_some();
        let Some(selector) = self.selector.as_ref().filter(|_| self.chooser == Chooser::Auto)
        else {
            let (next, missing) = match present(self.fixed) {
                true => (Some(self.fixed), None),
                false => (None, Some(self.fixed)),
            };
            return Some(Weighed { next, missing, best: None });
        };
        let left = match self.budget {
            Some(budget) => budget.saturating_sub(spent),
            None => Duration::MAX,
        };
        let spurned = |place: &Place| {
            place.model.is_none() && place.since.is_some_and(|since| since.elapsed() < SPURNED)
        };
        let able = |candidate: usize| !spurned(&self.places[self.candidates[candidate]]);
        let best = selector.pick(left, able)?;
        let index = self.candidates[best.variant];
        let there = |candidate: usize| present(self.candidates[candidate]);
        let (next, missing) = match present(index) {
            true => (Some(index), None),
            false => {
                let second = selector.pick(left, there);
                (second.map(|choice| self.candidates[choice.variant]), Some(index))
            }
        };
        // What is in memory may not be profiled.
        let next = next.or_else(|| (0..self.places.len()).find(|&index| present(index)));
        Some(Weighed { next, missing, best: Some(best) })
    }

    /// Whether the selector may choose a variant.
    fn standing(&self, index: usize, variant: &Variant, memory_limit: Option<u64>) -> Standing {
        let peak = peak_mb(self.costs[index], variant);
        match self.costs[index] {
            _ if memory_limit.is_some_and(|limit| peak > limit) => Standing::TooLarge,
            _ if variant.accuracy().is_none() => Standing::Unevaluated,
            None => Standing::Untimed,
            Some(_) => Standing::Candidate,
        }
    }

    /// Says once when no variant keeps the budget any more, and once when one does again.
    fn tell(&mut self, best: Choice) {
        let hopeless = best.in_time < 0.5;
        if hopeless == self.hopeless {
            return;
        }
        self.hopeless = hopeless;
        let expected_ms = best.expected.as_millis() as u64;
        match hopeless {
            true => {
                tracing::warn!(expected_ms, "no variant keeps the budget, the fastest one runs")
            }
            false => tracing::info!(expected_ms, "the budget can be kept again"),
        }
    }

    /// Makes the selector anew, among what is profiled, has an accuracy and fits into memory.
    fn select(&mut self, set: &ModelSet, memory_limit: Option<u64>) {
        let mut profiles = Vec::new();
        self.candidates.clear();
        for (index, variant) in set.manifest.variants.iter().enumerate() {
            let (Some(cost), Some(accuracy)) = (self.costs[index], variant.accuracy()) else {
                continue;
            };
            let peak_rss_mb = peak_mb(Some(cost), variant);
            if self.standing(index, variant, memory_limit) == Standing::TooLarge {
                tracing::info!(
                    variant = variant.name,
                    peak_rss_mb,
                    "does not fit into model.memory_limit"
                );
                continue;
            }
            let (compute, memory) = (duration(cost.compute_ms), duration(cost.memory_ms));
            profiles.push(Profile { compute, memory, accuracy });
            self.candidates.push(index);
        }
        self.selector = (!profiles.is_empty()).then(|| Selector::new(&profiles, self.miss_rate));
    }
}

/// What a variant takes in memory at the most, in MiB, as far as that is known: where memory was short when
/// it was timed, less of its files was resident than would be.
fn peak_mb(cost: Option<Cost>, variant: &Variant) -> u64 {
    files_mb(variant).max(cost.map_or(0, |cost| cost.peak_rss_mb))
}

/// What a variant's files take in memory, in MiB.
fn files_mb(variant: &Variant) -> u64 {
    variant.bytes >> 20
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
