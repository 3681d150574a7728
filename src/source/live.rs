//! What cameras and streams have in common: a reader on a thread of its own gives pictures, may fail or
//! fall silent at any time, and is started again, after longer and longer pauses.
//!
//! Owns the deadline, the pauses and what is told of all this. It knows neither cameras nor commands.
//!
//! A reader is not waited for, or not for long: one that hangs in a system call cannot be stopped. Nobody
//! listens to it any more, and it ends as soon as it notices.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Condition, Frame, Handoff, Picture};
use crate::config::SourceKind;
use crate::pulse::Pulse;

/// The first pause before a reader is started again, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// A source that has readers.
pub(super) struct Live {
    kind: SourceKind,
    /// How long a reader may give no picture.
    timeout: Duration,
    events: Sender<(u64, Event)>,
    /// What [`run`](Self::run) takes.
    inbox: Mutex<Option<Receiver<(u64, Event)>>>,
}

enum Event {
    /// The source is open: what it is, and how it was opened.
    Opened(String),
    /// A picture and its age.
    Picture(Picture, Duration),
    /// So many pictures were not reported.
    Dropped(u64),
    /// The reader ends, and why.
    Failed(String),
    Stop,
}

/// A reader's way to its source. Nothing that is reported counts once another reader was started.
#[derive(Clone)]
pub(super) struct Reports {
    reader: u64,
    wanted: Arc<AtomicU64>,
    events: Sender<(u64, Event)>,
}

impl Reports {
    /// The source is open; in words, what it is and how it was opened.
    pub(super) fn opened(&self, detail: String) {
        self.send(Event::Opened(detail));
    }

    /// A picture that was taken `age` ago.
    pub(super) fn picture(&self, picture: Picture, age: Duration) {
        self.send(Event::Picture(picture, age));
    }

    /// So many pictures were passed over because newer ones came.
    #[cfg_attr(not(feature = "camera"), expect(dead_code))]
    pub(super) fn dropped(&self, count: u64) {
        if count > 0 {
            self.send(Event::Dropped(count));
        }
    }

    /// It is over, and why.
    pub(super) fn failed(&self, why: String) {
        self.send(Event::Failed(why));
    }

    /// Whether somebody listens; a reader ends if not.
    pub(super) fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) == self.reader
    }

    fn send(&self, event: Event) {
        if self.wanted() {
            self.events.send((self.reader, event)).ok();
        }
    }
}

/// A reader that was started.
pub(super) trait Reader {
    /// Makes an end of it, as far as that can be done soon; `failed` if it said that it ends. Says why it
    /// ended if that is known better now.
    fn close(self, failed: bool) -> Option<String>;
}

/// How listening to a reader ended.
enum End {
    Failed(String),
    /// The deadline passed; what was said of the source.
    Silent(String),
    Stopped,
}

impl Live {
    /// Of the kind `kind`; a reader may give no picture for `timeout`.
    pub(super) fn new(kind: SourceKind, timeout: Duration) -> Self {
        let (events, inbox) = channel();
        Self { kind, timeout, events, inbox: Mutex::new(Some(inbox)) }
    }

    /// Makes [`run`](Self::run) return.
    pub(super) fn stop(&self) {
        self.events.send((0, Event::Stop)).ok();
    }

    /// Starts a reader whenever there is none, and hands on what it gives, the newest first. Returns
    /// after [`stop`](Self::stop), or when the handoff is closed.
    pub(super) fn run<R: Reader>(
        &self,
        handoff: &Handoff,
        tell: &dyn Fn(Condition),
        start: impl Fn(Reports) -> io::Result<R>,
    ) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let inbox = inbox.expect("a source runs once");
        let wanted = Arc::new(AtomicU64::new(0));
        let mut teller = Teller { source: self.kind.as_str(), tell, last: None };
        let mut pause = PAUSE.0;
        for number in 1.. {
            wanted.store(number, Ordering::Relaxed);
            let events = self.events.clone();
            let reports = Reports { reader: number, wanted: wanted.clone(), events };
            let mut worked = None;
            let why = match start(reports) {
                Err(error) => format!("cannot be started: {error}"),
                Ok(reader) => {
                    let end = self.listen(&inbox, number, handoff, &mut teller, &mut worked);
                    wanted.store(0, Ordering::Relaxed);
                    match end {
                        End::Stopped => {
                            reader.close(false);
                            return;
                        }
                        End::Failed(why) => reader.close(true).unwrap_or(why),
                        End::Silent(what) => {
                            reader.close(false);
                            format!("{what}: no picture for {} s", self.timeout.as_secs_f32())
                        }
                    }
                }
            };
            if worked.is_some_and(|since: Instant| since.elapsed() >= PAUSE.1) {
                pause = PAUSE.0;
            }
            teller.tell(Condition { working: false, detail: why });
            if stopped_within(&inbox, handoff.giving(), pause.mul_f64(0.5 + fastrand::f64() / 2.0))
            {
                return;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Hands on what reader `number` gives, as long as it does; `worked` becomes the time of its first
    /// picture.
    fn listen(
        &self,
        inbox: &Receiver<(u64, Event)>,
        number: u64,
        handoff: &Handoff,
        teller: &mut Teller<'_>,
        worked: &mut Option<Instant>,
    ) -> End {
        let mut detail = "not open yet".to_owned();
        let mut deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match handoff.giving().receive(inbox, left) {
                Ok((_, Event::Stop)) => return End::Stopped,
                Ok((reader, _)) if reader != number => {}
                Ok((_, Event::Opened(how))) => detail = how,
                Ok((_, Event::Dropped(count))) => handoff.dropped_before(count),
                Ok((_, Event::Failed(why))) => return End::Failed(why),
                Ok((_, Event::Picture(picture, age))) => {
                    teller.tell(Condition { working: true, detail: detail.clone() });
                    if !handoff.replace(Frame::live(picture, age)) {
                        return End::Stopped;
                    }
                    worked.get_or_insert_with(Instant::now);
                    deadline = Instant::now() + self.timeout;
                }
                Err(_) => return End::Silent(detail),
            }
        }
    }
}

/// Whether it is stopped before `pause` is over.
fn stopped_within(inbox: &Receiver<(u64, Event)>, pulse: &Pulse, pause: Duration) -> bool {
    let end = Instant::now() + pause;
    loop {
        match pulse.receive(inbox, end.saturating_duration_since(Instant::now())) {
            Ok((_, Event::Stop)) => return true,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Tells and logs what changes.
struct Teller<'a> {
    source: &'static str,
    tell: &'a dyn Fn(Condition),
    last: Option<Condition>,
}

impl Teller<'_> {
    fn tell(&mut self, condition: Condition) {
        if self.last.as_ref() != Some(&condition) {
            let (source, detail) = (self.source, &condition.detail);
            match condition.working {
                true => tracing::info!(source, detail, "source works"),
                false => tracing::error!(
                    source,
                    error = detail,
                    "source does not work, trying again and again"
                ),
            }
            (self.tell)(condition.clone());
            self.last = Some(condition);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn picture() -> Picture {
        Picture::Encoded(Vec::new())
    }

    /// A reader that is a thread, and whether it was closed as failed.
    struct Closed<'a>(&'a Mutex<Vec<bool>>);

    impl Reader for Closed<'_> {
        fn close(self, failed: bool) -> Option<String> {
            self.0.lock().unwrap().push(failed);
            None
        }
    }

    /// Runs a source whose readers do what `read` says, given their number from 1, until `enough` of
    /// what was told. Returns that, and how readers were closed.
    fn check(
        timeout: Duration,
        read: impl Fn(u64, Reports) + Sync,
        enough: impl Fn(&[Condition]) -> bool,
    ) -> (Vec<Condition>, Vec<bool>) {
        let live = Live::new(SourceKind::Stream, timeout);
        let (handoff, closed) = (Handoff::default(), Mutex::default());
        let (told, changed) = (Mutex::new(Vec::new()), Condvar::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                let tell = |condition| {
                    told.lock().unwrap().push(condition);
                    changed.notify_all();
                };
                live.run(&handoff, &tell, |reports| {
                    let read = &read;
                    scope.spawn(move || read(reports.reader, reports));
                    Ok(Closed(&closed))
                });
            });
            let wait = changed.wait_timeout_while(told.lock().unwrap(), SOON, |told| !enough(told));
            let (told, timeout) = wait.unwrap();
            drop(told);
            live.stop();
            assert!(!timeout.timed_out());
        });
        (told.into_inner().unwrap(), closed.into_inner().unwrap())
    }

    fn condition(working: bool, detail: &str) -> Condition {
        Condition { working, detail: detail.to_owned() }
    }

    #[test]
    fn a_reader_that_fails_is_replaced_and_it_is_told_once() {
        let read = |number, reports: Reports| match number {
            1..=2 => reports.failed("no such camera".to_owned()),
            _ => {
                reports.opened("a camera".to_owned());
                reports.picture(picture(), Duration::ZERO);
            }
        };
        let (told, closed) = check(SOON, read, |told| told.len() == 2);
        assert_eq!(told, [condition(false, "no such camera"), condition(true, "a camera")]);
        assert_eq!(closed, [true, true, false]);
    }

    #[test]
    fn a_reader_that_hangs_is_left_alone_and_what_it_says_later_does_not_count() {
        let (ended, late) = channel::<bool>();
        let ended = Mutex::new(ended);
        let read = |number, reports: Reports| {
            reports.opened(format!("camera {number}"));
            reports.picture(picture(), Duration::ZERO);
            if number == 1 {
                while reports.wanted() {
                    thread::yield_now();
                }
                reports.failed("much too late".to_owned());
                ended.lock().unwrap().send(true).unwrap();
            } else {
                while reports.wanted() {
                    reports.picture(picture(), Duration::ZERO);
                    thread::sleep(Duration::from_millis(1));
                }
            }
        };
        let (told, closed) = check(Duration::from_millis(50), read, |told| told.len() == 3);
        assert!(late.recv_timeout(SOON).unwrap());
        let silent = condition(false, "camera 1: no picture for 0.05 s");
        assert_eq!(told, [condition(true, "camera 1"), silent, condition(true, "camera 2")]);
        assert_eq!(closed, [false, false]);
    }

    #[test]
    fn stopping_waits_for_nothing() {
        let live = Live::new(SourceKind::Stream, Duration::from_secs(3600));
        let handoff = Handoff::default();
        let (sender, hangs) = channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let closed = Mutex::default();
        thread::scope(|scope| {
            let run = scope.spawn(|| {
                live.run(&handoff, &|_| {}, |_| {
                    let hangs = hangs.clone();
                    thread::spawn(move || hangs.lock().unwrap().recv());
                    Ok(Closed(&closed))
                });
            });
            live.stop();
            run.join().unwrap();
        });
        assert_eq!(*closed.lock().unwrap(), [false]);
        drop(sender);
    }

    #[test]
    fn a_closed_handoff_ends_it() {
        let live = Live::new(SourceKind::Stream, SOON);
        let handoff = Handoff::default();
        handoff.close();
        let closed = Mutex::default();
        live.run(&handoff, &|_| {}, |reports| {
            reports.picture(picture(), Duration::ZERO);
            Ok(Closed(&closed))
        });
        assert_eq!(*closed.lock().unwrap(), [false]);
    }
}
