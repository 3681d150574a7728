//! How far a long step is, and whether it should go on.

use thiserror::Error;

/// The caller asked to stop.
#[derive(Debug, Error)]
#[error("interrupted, nothing was written")]
pub struct Interrupted;

/// Told by a long step what it does; may stop it. `()` is told and says nothing.
pub trait Progress {
    /// The step begins and will go through `bytes`, about.
    fn begin(&mut self, bytes: u64);

    /// The step begins and will go through `things`, photos or the like, which
    /// [`advance`](Self::advance) counts instead of bytes.
    fn count(&mut self, things: u64) {
        self.begin(things);
    }

    /// It is now at `what`, for people.
    fn now(&mut self, what: &str);

    /// It went through `done` more.
    ///
    /// # Errors
    /// [`Interrupted`] to stop it: it removes what it has written and returns that.
    fn advance(&mut self, done: u64) -> Result<(), Interrupted>;
}

impl Progress for () {
    fn begin(&mut self, _bytes: u64) {}

    fn now(&mut self, _what: &str) {}

    fn advance(&mut self, _done: u64) -> Result<(), Interrupted> {
        Ok(())
    }
}
