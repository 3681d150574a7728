//! What the service manager hears: that the start goes on, that the daemon is ready, how it fares, that it
//! lives. The only user of sd_notify. It must not know what the parts do whose pulses it looks at.
//!
//! Without a service manager nobody hears anything, and nothing else is different. A message that cannot
//! be sent is lost: there is nobody to tell.
//!
//! The watchdog is fed as long as every part has stamped its [`Pulse`] lately: a part may take as long as
//! [`STUCK_AFTER`] for one thing, be it an inference or a wait for a model to be loaded, or as long as
//! the watchdog's time, if that is longer. A board that is slower still needs a longer `WatchdogSec=`.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::pulse::Pulse;

/// A part that has not got on for this long is stuck, unless the watchdog is more patient: more than
/// a large model takes to load from an SD card.
pub const STUCK_AFTER: Duration = Duration::from_secs(120);

/// How often the status is looked at, and the watchdog fed if it does not want it more often.
const REFRESH: Duration = Duration::from_secs(10);

/// For how much longer the manager is asked to wait during the start, and how often.
const EXTENSION: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));

/// The start may take this long from one step to the next.
const STEP_WITHIN: Duration = Duration::from_secs(300);

fn send(states: &[NotifyState]) {
    sd_notify::notify(states).ok();
}

/// The start is over.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The end has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// The configuration is being read again; it is [`ready`] again when what is returned is dropped.
pub fn reloading() -> Reload {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
    Reload
}

/// A reload that is under way.
#[must_use]
pub struct Reload;

impl Drop for Reload {
    fn drop(&mut self) {
        ready();
    }
}

/// A start that may take long: until it is dropped the manager is asked for more time again and again, as
/// long as one [`step`](Self::step) follows the other within five minutes.
pub struct Start {
    steps: Pulse,
    _goes_on: Sender<()>,
}

impl Start {
    /// The start begins.
    pub fn begin() -> Self {
        let steps = Pulse::default();
        let (_goes_on, ended) = channel();
        let start = Self { steps: steps.clone(), _goes_on };
        let extend = move || {
            let (extension, pause) = EXTENSION;
            while steps.age() < STEP_WITHIN {
                send(&[NotifyState::ExtendTimeoutUsec(extension.as_micros() as u32)]);
                if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        // Without the thread the start has the manager's own limit.
        thread::Builder::new().name("start".to_owned()).spawn(extend).ok();
        start
    }

    /// It got on.
    pub fn step(&self) {
        self.steps.beat();
    }
}

/// Tells that the daemon lives and how it fares, until it is dropped: feeds the watchdog while no part is
/// `stuck` for longer than the time that it is asked about, and shows what `glance` says whenever that has
/// changed.
pub async fn report(stuck: impl Fn(Duration) -> Option<&'static str>, glance: impl Fn() -> String) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(REFRESH, |watchdog| REFRESH.min(watchdog / 3));
    let limit = watchdog.map_or(STUCK_AFTER, |watchdog| STUCK_AFTER.max(watchdog));
    let (mut shown, mut before) = (String::new(), None);
    loop {
        let now = stuck(limit);
        let status = match now {
            Some(part) => format!("{part} is stuck"),
            None => glance(),
        };
        let mut states = Vec::new();
        if shown != status {
            states.push(NotifyState::Status(&status));
        }
        if now.is_none() && watchdog.is_some() {
            states.push(NotifyState::Watchdog);
        }
        if now.is_some() && now != before {
            tracing::error!(part = now, limit_s = limit.as_secs(), "stuck, the watchdog starves");
        }
        if !states.is_empty() {
            send(&states);
        }
        (shown, before) = (status, now);
        tokio::time::sleep(every).await;
    }
}
