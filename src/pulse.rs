//! Signs of life: a thread or task stamps its pulse whenever it gets on, also when there is nothing to do,
//! and whoever holds a copy sees how long ago that was. It must not know who looks, nor why.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, LazyLock, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a wait that beats lasts at most before it beats again.
pub const BEAT: Duration = Duration::from_secs(2);

/// When pulses began to be counted.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When somebody last got on. Copies share it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<AtomicU64>);

impl Default for Pulse {
    /// A pulse that beats now.
    fn default() -> Self {
        let pulse = Self(Arc::default());
        pulse.beat();
        pulse
    }
}

impl Pulse {
    /// Stamps it.
    pub fn beat(&self) {
        self.0.store(BEGINNING.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago it was stamped, to the millisecond.
    pub fn age(&self) -> Duration {
        let beat = Duration::from_millis(self.0.load(Ordering::Relaxed));
        BEGINNING.elapsed().saturating_sub(beat)
    }

    /// What `inbox` receives within `patience`, beating meanwhile.
    ///
    /// # Errors
    /// As [`Receiver::recv_timeout`].
    pub fn receive<T>(
        &self,
        inbox: &Receiver<T>,
        patience: Duration,
    ) -> Result<T, RecvTimeoutError> {
        let start = Instant::now();
        loop {
            self.beat();
            let left = patience.saturating_sub(start.elapsed());
            match inbox.recv_timeout(left.min(BEAT)) {
                Err(RecvTimeoutError::Timeout) if left > BEAT => {}
                received => return received,
            }
        }
    }

    /// Waits until `holds` is false, looking at each change and beating meanwhile.
    pub fn wait_while<'a, T>(
        &self,
        changed: &Condvar,
        mut guard: MutexGuard<'a, T>,
        mut holds: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        loop {
            self.beat();
            let waited = changed.wait_timeout_while(guard, BEAT, &mut holds);
            let (still, result) = waited.unwrap_or_else(PoisonError::into_inner);
            if !result.timed_out() {
                return still;
            }
            guard = still;
        }
    }
}

/// The first of these pulses that did not beat within `limit`, by its name.
pub fn first_older(pulses: &[(&'static str, Pulse)], limit: Duration) -> Option<&'static str> {
    pulses.iter().find(|(_, pulse)| pulse.age() > limit).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_pulse_ages_until_it_beats_and_copies_share_it() {
        let pulse = Pulse::default();
        let copy = pulse.clone();
        thread::sleep(Duration::from_millis(30));
        assert!(copy.age() >= Duration::from_millis(29), "{:?}", copy.age());
        let before = copy.age();
        pulse.beat();
        assert!(copy.age() < before);
    }

    /// Looks at `pulse` until it has aged and then beaten while somebody else waits.
    fn beats_meanwhile(pulse: &Pulse) {
        let deadline = Instant::now() + 20 * BEAT;
        let mut oldest = Duration::ZERO;
        while pulse.age() + BEAT / 2 > oldest {
            assert!(Instant::now() < deadline, "it does not beat");
            oldest = oldest.max(pulse.age());
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_wait_for_a_message_beats_and_still_hears_it() {
        let pulse = Pulse::default();
        let (sender, inbox) = channel();
        thread::scope(|scope| {
            let copy = pulse.clone();
            let heard = scope.spawn(move || copy.receive(&inbox, 100 * BEAT));
            beats_meanwhile(&pulse);
            sender.send(7).unwrap();
            assert_eq!(heard.join().unwrap(), Ok(7));
        });
    }

    #[test]
    fn a_wait_for_a_message_ends_in_time() {
        let (sender, inbox) = channel::<()>();
        let start = Instant::now();
        let patience = BEAT + BEAT / 4;
        let heard = Pulse::default().receive(&inbox, patience);
        assert_eq!(heard, Err(RecvTimeoutError::Timeout));
        assert!(start.elapsed() >= patience);
        drop(sender);
        let heard = Pulse::default().receive(&inbox, patience);
        assert_eq!(heard, Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_wait_for_a_change_beats_and_still_sees_it() {
        let pulse = Pulse::default();
        let (waiting, changed) = (Mutex::new(true), Condvar::new());
        thread::scope(|scope| {
            let seen = scope
                .spawn(|| *pulse.wait_while(&changed, waiting.lock().unwrap(), |waiting| *waiting));
            beats_meanwhile(&pulse);
            *waiting.lock().unwrap() = false;
            changed.notify_all();
            assert!(!seen.join().unwrap());
        });
    }

    #[test]
    fn one_part_that_does_not_get_on_is_named_until_it_does() {
        let limit = Duration::from_millis(40);
        let pulses = vec![("capture", Pulse::default()), ("classify", Pulse::default())];
        thread::sleep(2 * limit);
        pulses[0].1.beat();
        assert_eq!(first_older(&pulses, limit), Some("classify"));
        assert_eq!(first_older(&pulses, Duration::from_secs(120)), None);
        pulses[1].1.beat();
        pulses[0].1.beat();
        assert_eq!(first_older(&pulses, limit), None);
    }
}
