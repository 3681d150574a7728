//! How a kernel asks for threads without having any.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The caller's threads.
pub trait Parallel: Sync {
    /// How many tasks can run at the same time, at least 1.
    fn threads(&self) -> usize;

    /// Runs `task(0)`, …, `task(tasks - 1)`, each exactly once, in any order and on any
    /// threads, and returns when all have returned.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Clone, Copy)]
pub struct Sequential;

impl Parallel for Sequential {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// Gives the items `0..items` to one worker per thread as each becomes free:
/// `work(worker, item)`, with no worker number at two places at the same time.
pub(crate) fn share(parallel: &dyn Parallel, items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let next = AtomicUsize::new(0);
    parallel.run(parallel.threads().max(1).min(items), &|worker| {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                break;
            }
            work(worker, item);
        }
    });
}

/// A slice of which several workers write disjoint parts.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Parts<'_, T> {}

// SAFETY: the elements are Send, and `at` leaves it to the caller that parts are disjoint.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as for Send.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Parts { start: slice.as_mut_ptr(), length: slice.len(), slice: PhantomData }
    }

    /// The element at `offset`, to be written from there on for `count` elements.
    ///
    /// # Safety
    ///
    /// While the pointer is used, no other worker uses these elements, unless both
    /// only read.
    pub(crate) unsafe fn at(self, offset: usize, count: usize) -> *mut T {
        assert!(
            offset.checked_add(count).is_some_and(|end| end <= self.length),
            "elements {offset} to {offset} + {count} of {}",
            self.length
        );
        self.start.wrapping_add(offset)
    }
}
