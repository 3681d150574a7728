//! Threads that sleep between frames and are awake within one.
//!
//! A network is some thirty pieces of parallel work, one after the other, with microseconds between them:
//! to wake a thread for each would take longer than some of them. Who has nothing to do looks out for
//! work for a short time, and only then sleeps. Handing out work allocates nothing.

use std::any::Any;
use std::hint;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::parallel::Parallel;

/// How long a thread looks out for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(50);

/// Threads for one caller at a time; another one has to do with its own meanwhile.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    caller: Caller,
    turn: Mutex<()>,
}

/// What a thread does that has work for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It is one of the threads.
    Works,
    /// It waits, and leaves its core to the threads.
    Sleeps,
}

struct Shared {
    state: Mutex<State>,
    /// How many pieces of work there have been.
    pieces: AtomicUsize,
    /// The next task of this one.
    next: AtomicUsize,
    /// How many helpers are at it.
    busy: AtomicUsize,
}

#[derive(Default)]
struct State {
    work: Option<Work>,
    panic: Option<Box<dyn Any + Send>>,
    ended: bool,
}

#[derive(Clone)]
struct Work {
    tasks: usize,
    task: Task<'static>,
    caller: Thread,
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

impl Pool {
    /// A pool of `threads`, at least 1, of which each that is its own is called `name` and its index,
    /// and begins with `start(index)`. Those are as many, or one less where the caller works too.
    ///
    /// # Panics
    /// If the system gives no more threads.
    pub fn new(
        name: &str,
        threads: usize,
        caller: Caller,
        start: impl Fn(usize) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            pieces: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        });
        let start = Arc::new(start);
        let helpers = (usize::from(caller == Caller::Works)..threads.max(1)).map(|index| {
            let (shared, start) = (shared.clone(), start.clone());
            let help = move || {
                start(index);
                shared.help();
            };
            let builder = thread::Builder::new().name(format!("{name}-{index}"));
            builder.spawn(help).expect("threads can be started")
        });
        Self { helpers: helpers.collect(), shared, caller, turn: Mutex::default() }
    }

    /// Gives `work` to the helpers.
    fn begin(&self, work: Work) -> Piece<'_> {
        let others = work.tasks - usize::from(self.caller == Caller::Works);
        let piece = Piece { pool: self, tasks: work.tasks };
        self.shared.next.store(0, Ordering::Relaxed);
        *self.shared.state() = State { work: Some(work), ..State::default() };
        self.shared.pieces.fetch_add(1, Ordering::Release);
        for helper in self.helpers.iter().take(others) {
            helper.thread().unpark();
        }
        piece
    }
}

impl Parallel for Pool {
    fn threads(&self) -> usize {
        self.helpers.len() + usize::from(self.caller == Caller::Works)
    }

    fn run(&self, tasks: usize, task: Task<'_>) {
        let works = self.caller == Caller::Works;
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if turn.is_none() || works && tasks.min(self.threads()) < 2 {
            return (0..tasks).for_each(task);
        }
        // SAFETY: nobody uses the borrow any more once `piece` is dropped, which it is here also
        // when a task panics.
        let task = unsafe { mem::transmute::<Task<'_>, Task<'static>>(task) };
        let piece = self.begin(Work { tasks, task, caller: thread::current() });
        if works {
            self.shared.work(tasks, task);
        }
        drop(piece);
        if let Some(panic) = self.shared.state().panic.take() {
            resume_unwind(panic);
        }
    }
}

/// Work that helpers may be at.
struct Piece<'a> {
    pool: &'a Pool,
    tasks: usize,
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        let Pool { shared, caller, .. } = self.pool;
        let patience = match caller {
            Caller::Works => PATIENCE,
            Caller::Sleeps => {
                wait(Duration::ZERO, || shared.next.load(Ordering::Relaxed) >= self.tasks);
                Duration::ZERO
            }
        };
        // From here on no helper begins.
        shared.state().work = None;
        wait(patience, || shared.busy.load(Ordering::Acquire) == 0);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs tasks until none is left.
    fn work(&self, tasks: usize, task: Task<'_>) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                break;
            }
            task(index);
        }
    }

    /// What a helper does.
    fn help(&self) {
        let mut seen = 0;
        loop {
            wait(PATIENCE, || self.pieces.load(Ordering::Acquire) != seen);
            let Work { tasks, task, caller } = {
                let state = self.state();
                if state.ended {
                    return;
                }
                seen = self.pieces.load(Ordering::Acquire);
                let Some(work) = state.work.clone() else { continue };
                self.busy.fetch_add(1, Ordering::Relaxed);
                work
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(tasks, task))) {
                self.state().panic = Some(panic);
                self.next.store(tasks, Ordering::Relaxed);
            }
            if self.busy.fetch_sub(1, Ordering::Release) == 1 {
                caller.unpark();
            }
        }
    }
}

/// Returns when `ready` says so: asks all the time for as long as `patience`, and then each time that
/// the thread is unparked.
fn wait(patience: Duration, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() < patience {
            (0..32).for_each(|_| hint::spin_loop());
        } else {
            thread::park();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.pieces.fetch_add(1, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            helper.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread::ThreadId;

    use super::*;

    const CALLERS: [Caller; 2] = [Caller::Works, Caller::Sleeps];

    fn pools() -> impl Iterator<Item = Pool> {
        let pool = |threads| CALLERS.map(|caller| Pool::new("test", threads, caller, |_| {}));
        [1, 2, 4].into_iter().flat_map(pool)
    }

    #[test]
    fn every_task_runs_once_and_is_done_when_run_returns() {
        for pool in pools() {
            for tasks in [0, 1, 2, 3, 7, 100] {
                for _ in 0..200 {
                    let mut done = vec![0; tasks];
                    let cells: Vec<Mutex<&mut i32>> = done.iter_mut().map(Mutex::new).collect();
                    pool.run(tasks, &|index| **cells[index].lock().unwrap() += 1);
                    drop(cells);
                    assert_eq!(
                        done,
                        vec![1; tasks],
                        "{:?}, {} threads",
                        pool.caller,
                        pool.threads()
                    );
                }
            }
        }
    }

    #[test]
    fn all_threads_work_and_no_other() {
        for pool in pools() {
            let (threads, seen) = (pool.threads(), Mutex::<HashSet<ThreadId>>::default());
            let all = Barrier::new(threads);
            // Nobody gets past the barrier who has not all the others beside.
            pool.run(threads, &|_| {
                seen.lock().unwrap().insert(thread::current().id());
                all.wait();
            });
            let seen = seen.into_inner().unwrap();
            assert_eq!(seen.len(), threads);
            let here = seen.contains(&thread::current().id());
            assert_eq!(here, pool.caller == Caller::Works);
        }
    }

    #[test]
    fn threads_that_sleep_wake_up() {
        for pool in pools() {
            for _ in 0..5 {
                thread::sleep(4 * PATIENCE);
                let all = Barrier::new(pool.threads());
                pool.run(pool.threads(), &|_| {
                    all.wait();
                });
            }
        }
    }

    #[test]
    fn whoever_comes_when_it_is_taken_works_alone() {
        for pool in pools() {
            let count = AtomicUsize::new(0);
            let add = |_| count.fetch_add(1, Ordering::Relaxed);
            pool.run(4, &|_| {
                let inner: Mutex<HashSet<ThreadId>> = Mutex::default();
                pool.run(3, &|index| {
                    inner.lock().unwrap().insert(thread::current().id());
                    add(index);
                });
                if pool.threads() > 1 {
                    assert_eq!(inner.into_inner().unwrap(), [thread::current().id()].into());
                }
            });
            assert_eq!(count.into_inner(), 12);
        }
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_lives_on() {
        for pool in pools() {
            for bad in 0..4 {
                let run = || pool.run(4, &|index| assert_ne!(index, bad, "as it should"));
                assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
                let count = AtomicUsize::new(0);
                pool.run(4, &|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(count.into_inner(), 4);
            }
        }
    }

    #[test]
    fn each_thread_of_its_own_begins_with_its_number() {
        for (caller, expected) in CALLERS.into_iter().zip([vec![1, 2], vec![0, 1, 2]]) {
            let begun = Arc::new(Mutex::new(Vec::new()));
            let list = begun.clone();
            drop(Pool::new("test", 3, caller, move |index| list.lock().unwrap().push(index)));
            let mut begun = begun.lock().unwrap().clone();
            begun.sort();
            assert_eq!(begun, expected);
        }
    }
}
