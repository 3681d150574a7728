//! Progress for people, on stderr: a bar on a terminal, else a line a minute; and Ctrl-C, which ends a
//! step cleanly.
//!
//! The only user of crates indicatif and signal-hook.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag;
use vggd_models::progress::{Interrupted, Progress};

pub(crate) struct Bar {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    /// When the last line was printed, where there is no terminal.
    told: Option<Instant>,
}

/// From one line to the next.
const PERIOD: Duration = Duration::from_secs(60);

impl Bar {
    /// From here on the first SIGINT or SIGTERM asks the step to stop, the second ends the program.
    pub(crate) fn new() -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in TERM_SIGNALS {
            flag::register_conditional_default(*signal, Arc::clone(&stop))?;
            flag::register(*signal, Arc::clone(&stop))?;
        }
        let bar = ProgressBar::no_length();
        let told = bar.is_hidden().then(Instant::now);
        Ok(Self { bar, stop, told })
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn start(&self, total: u64, template: &str) {
        let style = ProgressStyle::with_template(template).expect("the template is constant");
        self.bar.reset();
        self.bar.set_style(style);
        self.bar.set_length(total);
    }
}

impl Progress for Bar {
    fn begin(&mut self, bytes: u64) {
        let style = "{bar:30} {decimal_bytes:>9} of {decimal_total_bytes}  {eta:>3} left  {msg}";
        self.start(bytes, style);
    }

    fn count(&mut self, things: u64) {
        self.start(things, "{bar:30} {percent:>3} %  {eta:>3} left  {msg}");
    }

    fn now(&mut self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    fn advance(&mut self, done: u64) -> Result<(), Interrupted> {
        self.bar.inc(done);
        if self.told.is_some_and(|told| told.elapsed() > PERIOD) {
            self.told = Some(Instant::now());
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0).max(1));
            // indicatif's own estimate goes astray when steps take minutes.
            let ahead = all.saturating_sub(done) as f64 / done.max(1) as f64;
            let left = HumanDuration(self.bar.elapsed().mul_f64(ahead));
            let share = 100 * done / all;
            eprintln!("{}: {share} %, {left} left", self.bar.message());
        }
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}
