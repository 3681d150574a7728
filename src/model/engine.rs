//! What models run on: threads, an instruction set, a precision, and the packed weights that models have in
//! common. It must not know any model.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vggd_kernels::convolution::Algorithm;
use vggd_kernels::pool::Caller;
use vggd_kernels::{Conv3x3, Isa, Parallel, Pool};

use super::shared::Shared;
use super::weights::{Place, Rounded};
use crate::config::{self, ConfigError, Precision};

/// The environment variable that names an instruction set in place of the fastest one.
const KERNELS: &str = "VGGD_KERNELS";

/// The threads that run models: one pool, shared by every model that is loaded with it. Its threads
/// sleep between frames.
#[derive(Clone)]
pub struct Engine {
    /// None: the calling thread.
    pool: Option<Arc<Pool>>,
    pub(super) isa: Isa,
    precision: Precision,
    /// Nanoseconds spent in layers that are bound by reading weights.
    pub(super) reading: Arc<AtomicU64>,
    /// The convolutions of the models that are in memory.
    convolutions: Shared<Source, Conv3x3>,
    /// What is rounded of their weights, by where these lie and how many they are.
    rounded: Shared<(Vec<Place>, usize), Rounded>,
}

/// What a packed convolution is made of, on one instruction set and in one precision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub(super) weights: Vec<Place>,
    pub(super) bias: Vec<Place>,
    /// Output and input channels.
    pub(super) channels: [usize; 2],
    pub(super) algorithm: Algorithm,
}

impl Engine {
    /// The engine that `model` describes, on the instruction set that the environment variable
    /// `VGGD_KERNELS` names, or else on the fastest one.
    ///
    /// # Errors
    /// [`ConfigError`] for an instruction set that this machine lacks.
    pub fn configured(model: &config::Model) -> Result<Self, ConfigError> {
        let isa = match std::env::var(KERNELS) {
            Ok(name) => named(&name)?,
            Err(_) => Isa::detect(),
        };
        let engine = Self {
            isa,
            precision: model.precision,
            pool: pool(model.threads, model.pin),
            ..Self::new(1)
        };
        if engine.precision == Precision::Half && !isa.has_half() {
            tracing::info!(kernels = %isa, "half precision is not faster for convolutions here, which stay float32");
        }
        Ok(engine)
    }

    /// An engine of `threads` threads, or of as many as there are cores for 0, that computes in
    /// float32 on the fastest instruction set.
    pub fn new(threads: usize) -> Self {
        Self {
            pool: pool(threads, false),
            isa: Isa::detect(),
            precision: Precision::F32,
            reading: Arc::default(),
            convolutions: Shared::default(),
            rounded: Shared::default(),
        }
    }

    /// How many threads run a model.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.threads())
    }

    /// Time spent so far in layers that are bound by reading weights, the fully connected ones.
    pub fn reading(&self) -> Duration {
        Duration::from_nanos(self.reading.load(Ordering::Relaxed))
    }

    /// The instruction set that the kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What the kernels are: the instruction set, and the precision if it is not float32.
    pub fn kernels(&self) -> String {
        match (self.precision, self.isa.has_half()) {
            (Precision::F32, _) => self.isa.to_string(),
            (Precision::Half, true) => format!("{} half", self.isa),
            (Precision::Half, false) => format!("{} half, convolutions f32", self.isa),
        }
    }

    /// The precision of convolutions: half only where that is faster.
    pub(super) fn precision(&self) -> vggd_kernels::Precision {
        match self.precision {
            Precision::Half if self.isa.has_half() => vggd_kernels::Precision::Half,
            _ => vggd_kernels::Precision::Single,
        }
    }

    /// Whether fully connected layers multiply by bfloat16, whatever the instruction set.
    pub(super) fn rounds(&self) -> bool {
        self.precision == Precision::Half
    }

    /// The fastest algorithm for a convolution of so many input channels and this height and width.
    pub(super) fn algorithm(&self, in_channels: usize, size: usize) -> Algorithm {
        Algorithm::choose(self.isa, self.precision(), in_channels, size, size)
    }

    /// The convolution that is made of `source`: that of another model in memory, or else a new one.
    pub(super) fn packed(&self, source: Source, pack: impl FnOnce() -> Conv3x3) -> Arc<Conv3x3> {
        self.convolutions.get(source, pack)
    }

    /// What `round` makes of `count` weights at these places, likewise.
    pub(super) fn rounded(
        &self,
        weights: Vec<Place>,
        count: usize,
        round: impl FnOnce() -> Rounded,
    ) -> Arc<Rounded> {
        self.rounded.get((weights, count), round)
    }

    /// What `make` gives for each number up to `count`. As many threads as run models work at it,
    /// but others, so that frames go on meanwhile.
    pub(super) fn each<T: Send + Sync>(
        &self,
        count: usize,
        make: impl Fn(usize) -> T + Sync,
    ) -> Vec<T> {
        let made: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(slot) = made.get(index) else { break };
                slot.get_or_init(|| make(index));
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.threads().min(count) {
                scope.spawn(work);
            }
            work();
        });
        made.into_iter().map(|slot| slot.into_inner().expect("each slot is filled")).collect()
    }
}

impl Parallel for Engine {
    fn threads(&self) -> usize {
        self.threads()
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match &self.pool {
            Some(pool) => pool.run(tasks, task),
            None => (0..tasks).for_each(task),
        }
    }
}

/// As many threads as asked for, or one per core for 0; each stays on a core of its own if `pin`.
fn pool(threads: usize, pin: bool) -> Option<Arc<Pool>> {
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, |cores| cores.get()),
        threads => threads,
    };
    let cores = if pin { cores() } else { Vec::new() };
    if threads == 1 && cores.is_empty() {
        return None;
    }
    // What the calling thread starts would stay on its core as well.
    let caller = if cores.is_empty() { Caller::Works } else { Caller::Sleeps };
    let start = move |index: usize| {
        if let Some(core) = cores.get(index % cores.len().max(1)) {
            let mut one = CpuSet::new();
            one.set(*core);
            if let Err(error) = sched_setaffinity(None, &one) {
                tracing::warn!("cannot keep a thread on core {core}: {error}");
            }
        }
    };
    Some(Arc::new(Pool::new("vggd-engine", threads, caller, start)))
}

/// The cores that this process may run on.
fn cores() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
}

fn named(name: &str) -> Result<Isa, ConfigError> {
    Isa::by_name(name).ok_or_else(|| {
        let all: Vec<String> = Isa::all().iter().map(Isa::to_string).collect();
        let problem =
            format!("not an instruction set of this machine, which has {}", all.join(", "));
        ConfigError::new(KERNELS, name, problem)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};

    use vggd_kernels::Tile;

    use super::*;

    #[test]
    fn a_named_instruction_set_must_be_there() {
        assert_eq!(named("plain"), Ok(Isa::PLAIN));
        let error = named("vax").unwrap_err().to_string();
        assert!(error.starts_with("VGGD_KERNELS = 'vax': not an instruction set"), "{error}");
        assert!(error.ends_with("plain"), "{error}");
    }

    #[test]
    fn convolutions_are_float32_where_half_is_not_faster() {
        for isa in Isa::all() {
            let engine = Engine { isa, precision: Precision::Half, ..Engine::new(1) };
            let half = engine.precision() == vggd_kernels::Precision::Half;
            assert_eq!(half, isa.has_half());
            assert_eq!(engine.kernels() == format!("{isa} half"), half);
            assert!(engine.rounds());
        }
        let single = Engine::new(1);
        assert_eq!(single.precision(), vggd_kernels::Precision::Single);
        assert!(!single.rounds());
    }

    #[test]
    fn models_share_what_is_packed_of_the_same_weights() {
        let engine = Engine::new(1);
        let single = vggd_kernels::Precision::Single;
        let [two, four] = [Tile::Two, Tile::Four].map(|tile| Algorithm::Winograd(single, tile));
        let pack = || Conv3x3::new(Isa::PLAIN, four, 1, 1, &[0.0; 9], &[0.0]);
        let source = Source {
            weights: vec![Place { file: (1, 2, 3, 4), offset: 0 }],
            bias: Vec::new(),
            channels: [1, 1],
            algorithm: four,
        };
        let first = engine.packed(source.clone(), pack);
        let same = |other: Source| Arc::ptr_eq(&first, &engine.clone().packed(other, pack));
        assert!(same(source.clone()));
        let elsewhere = vec![Place { file: (1, 2, 3, 4), offset: 36 }];
        assert!(!same(Source { weights: elsewhere, ..source.clone() }));
        assert!(!same(Source { channels: [1, 2], ..source.clone() }));
        assert!(!same(Source { algorithm: two, ..source.clone() }));

        let places = || vec![Place { file: (1, 2, 3, 4), offset: 0 }];
        let first = engine.rounded(places(), 6, || Rounded::zeroed(6));
        let same = |places, count| {
            let other = engine.clone().rounded(places, count, || Rounded::zeroed(count));
            Arc::ptr_eq(&first, &other)
        };
        assert!(same(places(), 6));
        assert!(!same(places(), 4));
        assert!(!same(vec![Place { file: (1, 2, 3, 5), offset: 0 }], 6));
    }

    #[test]
    fn each_thread_has_a_core_if_asked_for() {
        let here = cores();
        let on = |pin| {
            let engine = Engine { pool: pool(here.len(), pin), ..Engine::new(1) };
            let seen: Mutex<Vec<Vec<usize>>> = Mutex::default();
            let all = Barrier::new(here.len());
            engine.run(here.len(), &|_| {
                seen.lock().unwrap().push(cores());
                all.wait();
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort();
            seen
        };
        assert_eq!(on(true), here.iter().map(|core| vec![*core]).collect::<Vec<_>>());
        assert_eq!(on(false), vec![here.clone(); here.len()]);
    }

    #[test]
    fn each_number_is_made_once_and_in_order() {
        for threads in [1, 3] {
            let made = Engine::new(threads).each(100, |index| index * 2);
            assert_eq!(made, (0..100).map(|index| index * 2).collect::<Vec<_>>());
        }
        assert!(Engine::new(2).each(0, |index| index).is_empty());
    }
}
