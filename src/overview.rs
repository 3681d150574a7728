//! Everything about a running daemon that may be looked at, put together at the moment when somebody
//! asks: for people, for programs, for the service manager. It changes nothing, and it must not know who
//! asks, nor how.

mod history;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;

use crate::board::Board;
use crate::classify::{Gate, Seen};
use crate::compare::Turn;
use crate::config::Config;
use crate::control::{Chooser, State};
use crate::event::{self, Prediction, milliseconds};
use crate::lineup::{Lineup, Outlook, Standing, evaluated};
use crate::measure;
use crate::metrics::{Figure, Metrics};
use crate::outbox::Outbox;
use crate::publish::Health;
use crate::pulse::{self, Pulse};
use crate::source::Handoff;
use crate::stats::{self, Stats, Totals};
use crate::thermal::{Thermal, Throttled};

pub use self::history::{History, Point};

/// The parts of a daemon, and the last frames.
pub struct Overview {
    /// As it was at the start; what changed since is with the parts.
    pub config: Config,
    /// The variants, those in memory, and the choice.
    pub lineup: Arc<Lineup>,
    /// Pauses.
    pub gate: Arc<Gate>,
    /// Frames on their way.
    pub handoff: Arc<Handoff>,
    /// Predictions on their way.
    pub outbox: Arc<Outbox>,
    /// The connection to the broker.
    pub health: Arc<Health>,
    /// Counts.
    pub stats: Arc<Mutex<Stats>>,
    /// What is seen, and by which source.
    pub board: Arc<Board>,
    /// Whether a comparison is under way.
    pub turn: Turn,
    /// When the daemon was started.
    pub started_at: SystemTime,
    /// The last frame that was classified. Its prediction has no sequence yet.
    pub last: watch::Sender<Option<Seen>>,
    /// Times of each stage.
    pub metrics: Metrics,
    /// Signs of life of each part.
    pub pulses: Vec<(&'static str, Pulse)>,
    /// Latencies of the last minutes, the oldest first.
    pub history: History,
}

/// How everything stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// [`event::SCHEMA`].
    pub schema: u32,
    /// What its topics start with.
    pub device: String,
    /// Of this program.
    pub version: &'static str,
    /// When it was started, RFC 3339, UTC.
    pub started_at: String,
    /// Who chooses: `auto`, or a variant.
    pub variant: String,
    /// Whether `auto` can be chosen.
    pub automatic: bool,
    /// The budget, if one is set.
    pub budget_ms: Option<f64>,
    /// The share of frames that may be late.
    pub miss_rate: f64,
    /// Whether frames wait.
    pub paused: bool,
    /// The variant of the last frame.
    pub running: Option<String>,
    /// All of the set, in its order.
    pub variants: Vec<Candidate>,
    /// Why it is this variant, in a sentence.
    pub why: String,
    /// Where frames come from.
    pub source: event::Origin,
    /// Where predictions go.
    pub broker: Broker,
    /// What happened to frames since the start.
    #[serde(flatten)]
    pub totals: Totals,
    /// Frames of a live source that gave way to newer ones.
    pub dropped: u64,
    /// What waits for the broker.
    pub outbox: stats::Outbox,
    /// How many times slower than undisturbed computing and memory are, while the variant is chosen for
    /// each frame.
    pub slowdown: Option<[f64; 2]>,
    /// What is seen.
    pub state: event::State,
    /// The last prediction.
    pub last: Option<Prediction>,
    /// Whether the last frame may be shown.
    pub frame: bool,
    /// The largest photo that is taken for a comparison.
    pub max_upload_mb: u64,
    /// Whether a comparison is under way.
    pub comparing: bool,
    /// What changes all the time.
    #[serde(flatten)]
    pub machine: Machine,
}

/// How the machine fares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// The hottest thermal zone, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// What a Raspberry Pi's firmware says.
    pub throttled: Option<Throttled>,
    /// Resident memory of the daemon, in MiB.
    pub rss_mb: Option<u64>,
}

/// The connection to the broker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Broker {
    /// Host and port.
    pub address: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// How often there was one again.
    pub reconnects: u64,
}

/// A variant, and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// What the configuration calls it.
    pub name: String,
    /// What was done to the network.
    pub description: String,
    /// Side of its input, in pixels.
    pub input: usize,
    /// Size of its files.
    pub bytes: u64,
    /// Weights and biases.
    pub parameters: u64,
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// What choosing goes by: top-1, or the agreement where no labels were known.
    pub accuracy: Option<f64>,
    /// Share of photos whose first answer is right.
    pub top1: Option<f64>,
    /// Share of photos with the right answer among the first five.
    pub top5: Option<f64>,
    /// Share of photos whose first answer is the baseline's.
    pub agreement: Option<f64>,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Whether it classified the last frame.
    pub chosen: bool,
    /// How long it should take now, if that is known.
    pub expected_ms: Option<f64>,
    /// Probability that it keeps the budget, if there is one.
    pub in_time: Option<f64>,
    /// Why it runs or does not, in a few words.
    pub reason: &'static str,
}

impl Overview {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame was classified.
    pub fn see(&self, seen: Seen) {
        self.history.add(Point::new(&seen));
        self.metrics.observe(&seen.prediction);
        self.last.send_replace(Some(seen));
    }

    /// What may be set, as it is now.
    pub fn orders(&self) -> State {
        let (variant, budget) = self.lineup.orders();
        State { variant, budget, paused: self.gate.paused() }
    }

    /// The first part that did not get on within `limit`.
    pub fn stuck(&self, limit: Duration) -> Option<&'static str> {
        pulse::first_older(&self.pulses, limit)
    }

    /// How it goes, in a few words.
    pub fn glance(&self) -> String {
        let glance = self.stats().glance();
        let paused = if self.gate.paused() { "; paused" } else { "" };
        let away = if self.health.connected() { "" } else { "; no broker" };
        format!("{glance}{paused}{away}")
    }

    fn outbox(&self) -> stats::Outbox {
        let outbox = self.outbox.status();
        stats::Outbox { pending: outbox.pending, bytes: outbox.bytes, dropped: outbox.dropped }
    }

    /// What happened since it was asked for the last time, and how the machine fares.
    pub fn message(&self) -> stats::Message {
        stats::Message {
            at: event::timestamp(SystemTime::now()),
            summary: self.stats().take(),
            dropped: self.handoff.dropped(),
            outbox: self.outbox(),
            reconnects: self.health.reconnects(),
            slowdown: self.lineup.slowdown(),
            rss_mb: measure::memory("VmRSS:").ok(),
            thermal: Thermal::now(),
        }
    }

    /// How everything stands.
    pub fn status(&self) -> Status {
        let (outlook, thermal) = (self.lineup.outlook(), Thermal::now());
        let (totals, running) = {
            let stats = self.stats();
            (stats.totals(), stats.variant().map(str::to_owned))
        };
        let state = self.board.message();
        let last = self.last.borrow().as_ref().map(|seen| Prediction::clone(&seen.prediction));
        let mqtt = &self.config.mqtt;
        Status {
            schema: event::SCHEMA,
            device: mqtt.topic(),
            version: env!("CARGO_PKG_VERSION"),
            started_at: event::timestamp(self.started_at),
            variant: outlook.chooser.word().to_owned(),
            automatic: evaluated(&outlook.set).is_ok(),
            budget_ms: outlook.budget.map(milliseconds),
            miss_rate: outlook.miss_rate,
            paused: self.gate.paused(),
            variants: candidates(&outlook, running.as_deref()),
            why: why(&outlook),
            running,
            source: state.source.clone(),
            broker: Broker {
                address: format!("{}:{}", mqtt.host, mqtt.port),
                connected: self.health.connected(),
                reconnects: self.health.reconnects(),
            },
            totals,
            dropped: self.handoff.dropped(),
            outbox: self.outbox(),
            slowdown: self.lineup.slowdown().map(|factors| factors.map(|f| event::round(f, 3))),
            state,
            last,
            frame: self.config.web.frame,
            max_upload_mb: self.config.web.max_upload_mb,
            comparing: self.turn.is_taken(),
            machine: Machine {
                temperature_c: thermal.temperature_c.map(|degrees| event::round(degrees, 1)),
                throttled: thermal.throttled,
                rss_mb: measure::memory("VmRSS:").ok(),
            },
        }
    }

    /// How everything stands, for Prometheus.
    pub fn metrics(&self) -> String {
        let status = self.status();
        let counter = Figure::counter;
        let flag = |name, help, holds| Figure::gauge(name, help, f64::from(u8::from(holds)));
        let Totals { frames, late, rejected, skipped, switches } = status.totals;
        let version = vec![("version", status.version.to_owned())];
        let expected = status.variants.iter().filter_map(|variant| {
            Some((vec![("variant", variant.name.clone())], variant.expected_ms? / 1e3))
        });
        let slowdown = status.slowdown.into_iter().flat_map(|[compute, memory]| {
            [("compute", compute), ("memory", memory)]
                .map(|(work, factor)| (vec![("work", work.to_owned())], factor))
        });
        let running = status.variants.iter().map(|variant| {
            (vec![("variant", variant.name.clone())], f64::from(u8::from(variant.chosen)))
        });
        let machine = &status.machine;
        let megabytes = machine.rss_mb.map(|rss| (rss << 20) as f64);
        let kept = status.state.budget_kept.map(|kept| f64::from(u8::from(kept)));
        let held_back = machine.throttled.map(|throttled| f64::from(u8::from(throttled.any())));
        self.metrics.text(&[
            counter("frames", "Frames that were classified", frames),
            counter("late_frames", "Classified frames that were not in time", late),
            counter("rejected_frames", "Frames that could not be classified", rejected),
            counter("skipped_frames", "Frames that hardly differed from the one before", skipped),
            counter("dropped_frames", "Frames that gave way to newer ones", status.dropped),
            counter("variant_switches", "Changes of the variant", switches),
            Figure::gauges("variant_running", "Whether it classified the last frame", running),
            Figure::gauges("variant_expected", "What a variant should take now", expected)
                .unit("seconds"),
            Figure::gauges("slowdown", "How many times slower work is than undisturbed", slowdown),
            Figure::gauge("budget", "The latency budget", status.budget_ms.map(|ms| ms / 1e3))
                .unit("seconds"),
            Figure::gauge("budget_kept", "Whether what runs keeps the budget", kept),
            flag("paused", "Whether frames wait", status.paused),
            flag("source_working", "Whether the source gives frames", status.source.working),
            flag("broker_connected", "Whether there is a broker", status.broker.connected),
            counter("broker_reconnects", "Connections after the first", status.broker.reconnects),
            Figure::gauge(
                "outbox_messages",
                "Messages that the broker has not acknowledged",
                status.outbox.pending as f64,
            ),
            Figure::gauge("outbox_size", "What they take on disk", status.outbox.bytes as f64)
                .unit("bytes"),
            counter(
                "outbox_dropped_messages",
                "Messages that were given up for want of room since the outbox was made",
                status.outbox.dropped,
            ),
            Figure::gauge("temperature", "The hottest thermal zone", machine.temperature_c)
                .unit("celsius"),
            Figure::gauge("throttled", "Whether the firmware holds the board back", held_back),
            Figure::gauge("resident_memory", "Resident memory", megabytes).unit("bytes"),
            Figure::gauges("build_info", "Of this program", [(version, 1.0)]),
        ])
    }
}

fn candidates(outlook: &Outlook, running: Option<&str>) -> Vec<Candidate> {
    let variants = outlook.set.manifest.variants.iter().zip(&outlook.variants).enumerate();
    let candidate = variants.map(|(index, (variant, prospect))| {
        let choice = prospect.choice;
        let late = outlook.budget.is_some()
            && choice.is_some_and(|choice| choice.in_time < 1.0 - outlook.miss_rate);
        let reason = match prospect.standing {
            _ if outlook.chooser == Chooser::Fixed(variant.name.clone()) => "always this one",
            Standing::Unevaluated => "its accuracy is not known",
            Standing::Untimed => "not timed so far",
            Standing::TooLarge => "does not fit into model.memory_limit",
            Standing::Crowded => "does not fit into memory beside the one that runs",
            Standing::Candidate if matches!(outlook.chooser, Chooser::Fixed(_)) => "not chosen",
            Standing::Candidate if outlook.next == Some(index) && late => "likeliest to be in time",
            Standing::Candidate if outlook.next == Some(index) => "most accurate in time",
            Standing::Candidate if outlook.missing == Some(index) => "being loaded",
            Standing::Candidate if late => "too slow",
            Standing::Candidate => "less accurate",
        };
        Candidate {
            name: variant.name.clone(),
            description: variant.description.clone(),
            input: variant.side(),
            bytes: variant.bytes,
            parameters: variant.parameters,
            macs: variant.macs,
            accuracy: variant.accuracy(),
            top1: variant.top1,
            top5: variant.top5,
            agreement: variant.agreement,
            loaded: prospect.loaded,
            chosen: running == Some(&variant.name),
            expected_ms: choice.map(|choice| milliseconds(choice.expected)),
            in_time: choice
                .filter(|_| outlook.budget.is_some())
                .map(|choice| event::round(choice.in_time, 4)),
            reason,
        }
    });
    candidate.collect()
}

/// Why the next frame's variant is what it is.
fn why(outlook: &Outlook) -> String {
    let name = |index: usize| &outlook.set.manifest.variants[index].name;
    let budget = outlook.budget.map(milliseconds);
    let Some(next) = outlook.next else { return "no variant is in memory".to_owned() };
    let variant = name(next);
    if let Chooser::Fixed(_) = outlook.chooser {
        return format!("{variant} runs because it was chosen for all frames");
    }
    if let Some(missing) = outlook.missing {
        return format!("{variant} runs while {} is loaded", name(missing));
    }
    let Some(choice) = outlook.variants[next].choice else {
        return format!("{variant} runs until variants are timed");
    };
    let expected = choice.expected.as_secs_f64() * 1e3;
    if let Some(budget) = budget.filter(|_| choice.in_time < 0.5) {
        return format!(
            "no variant keeps {budget} ms; {variant} comes nearest with {expected:.0} ms"
        );
    }
    let mut bounds = passed_over(outlook, next);
    let budget = match budget {
        None => ", and there is no budget".to_owned(),
        Some(budget) => {
            bounds.push(format!("keeps {budget} ms"));
            let in_time = choice.in_time * 100.0;
            format!(": it should take {expected:.0} ms and be in time with {in_time:.0} %")
        }
    };
    let bounds = match bounds.is_empty() {
        true => String::new(),
        false => format!(" that {}", bounds.join(" and ")),
    };
    format!("{variant} is the most accurate variant{bounds}{budget}")
}

/// What more accurate variants than `next` lack, whatever the budget.
fn passed_over(outlook: &Outlook, next: usize) -> Vec<String> {
    let variants = &outlook.set.manifest.variants;
    let better = |index: &usize| variants[*index].accuracy() > variants[next].accuracy();
    let standings = (0..variants.len()).filter(better).map(|at| outlook.variants[at].standing);
    let standings = standings.collect::<Vec<_>>();
    let lacks = [
        (Standing::TooLarge, "fits into model.memory_limit"),
        (Standing::Crowded, "fits into memory beside the one that runs"),
        (Standing::Untimed, "is timed so far"),
    ];
    let lacks = lacks.into_iter().filter(|(standing, _)| standings.contains(standing));
    lacks.map(|(_, words)| words.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineup::Prospect;
    use crate::manifest::ModelSet;
    use crate::select::{Profile, Selector};

    /// Why `next` runs, when the variants of the sample set stand like this and take 100, 90, 80 … ms.
    fn reason(next: usize, budget_ms: Option<u64>, standing: &dyn Fn(usize) -> Standing) -> String {
        let set = Arc::new(ModelSet::open("models/sample".as_ref()).unwrap());
        let count = set.manifest.variants.len();
        let profile = |at: usize| Profile {
            compute: Duration::from_millis(100 - 10 * at as u64),
            memory: Duration::ZERO,
            accuracy: 0.5,
        };
        let selector = Selector::new(&(0..count).map(profile).collect::<Vec<_>>(), 0.05);
        let budget = budget_ms.map(Duration::from_millis);
        let prospect = |at| Prospect {
            loaded: true,
            standing: standing(at),
            choice: Some(selector.expect(at, budget.unwrap_or(Duration::MAX))),
        };
        let variants = (0..count).map(prospect).collect();
        let (chooser, next) = (Chooser::Auto, Some(next));
        why(&Outlook { set, chooser, budget, miss_rate: 0.05, next, missing: None, variants })
    }

    #[test]
    fn the_reason_names_what_keeps_better_variants_out() {
        let all = |_: usize| Standing::Candidate;
        let large = |at: usize| match at {
            0..4 => Standing::TooLarge,
            _ => Standing::Candidate,
        };
        let untimed = |at: usize| match at {
            0 => Standing::TooLarge,
            2 => Standing::Untimed,
            _ => Standing::Candidate,
        };
        let scaled = "scaled is the most accurate variant";
        let sure = "it should take 60 ms and be in time with 100 %";
        let fits = "that fits into model.memory_limit";
        type Standings = fn(usize) -> Standing;
        let cases: [(Option<u64>, Standings, String); 6] = [
            (None, all, format!("{scaled}, and there is no budget")),
            (None, large, format!("{scaled} {fits}, and there is no budget")),
            (None, untimed, format!("{scaled} {fits} and is timed so far, and there is no budget")),
            (Some(500), all, format!("{scaled} that keeps 500 ms: {sure}")),
            (Some(500), large, format!("{scaled} {fits} and keeps 500 ms: {sure}")),
            (Some(5), large, "no variant keeps 5 ms; scaled comes nearest with 60 ms".to_owned()),
        ];
        for (budget_ms, standing, expected) in cases {
            assert_eq!(reason(4, budget_ms, &standing), expected);
        }
    }
}
