//! How far a command is, for people, on stderr: a line that is written over again and again on a terminal,
//! else one a minute, as `vggd-models` has it.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use super::table::{columns, cut};

/// From one line to the next where there is no terminal.
const PERIOD: Duration = Duration::from_secs(60);

/// From one to the next on a terminal, while they say the same.
const PACE: Duration = Duration::from_millis(100);

/// What is left of a command, and how long it has taken.
pub(super) struct Progress {
    terminal: bool,
    began: Instant,
    /// When something was told, and what.
    told: (Instant, String),
}

impl Progress {
    /// The command begins.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { terminal: stderr().is_terminal(), began: now, told: (now, String::new()) }
    }

    /// It is at `what`, and this share of all is done.
    pub(super) fn tell(&mut self, what: &str, share: f64) {
        let (at, before) = &self.told;
        let due = match self.terminal {
            true => at.elapsed() >= PACE || before != what,
            false => at.elapsed() >= PERIOD,
        };
        if !due {
            return;
        }
        let line = line(what, share, self.began.elapsed());
        match self.terminal {
            true => eprint!("\r\x1b[K{}", cut(&line, columns() - 1)),
            false => eprintln!("{line}"),
        }
        self.told = (Instant::now(), what.to_owned());
    }

    /// Makes room for something else.
    pub(super) fn clear(&mut self) {
        if self.terminal && !self.told.1.is_empty() {
            eprint!("\r\x1b[K");
            self.told.1.clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What is told when `share` of all has taken so long.
fn line(what: &str, share: f64, took: Duration) -> String {
    if share <= 0.0 {
        return what.to_owned();
    }
    let left = took.mul_f64((1.0 - share).max(0.0) / share).as_secs();
    let left = match left {
        0..100 => format!("{left} s"),
        100..6000 => format!("{} min", (left + 30) / 60),
        _ => format!("{} h", (left + 1800) / 3600),
    };
    format!("{what}: {:.0} %, {left} left", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_is_done_and_left() {
        let cases = [
            (0.0, 7, "photo"),
            (0.5, 7, "photo: 50 %, 7 s left"),
            (0.25, 40, "photo: 25 %, 2 min left"),
            (0.001, 60, "photo: 0 %, 17 h left"),
            (1.0, 60, "photo: 100 %, 0 s left"),
        ];
        for (share, seconds, expected) in cases {
            assert_eq!(line("photo", share, Duration::from_secs(seconds)), expected);
        }
    }
}
