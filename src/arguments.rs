//! What the command line may say, and how it is explained. It does nothing itself: the binary obeys it, and
//! `examples/pages.rs` makes manual pages and completions of it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, value_parser};
use vggd::config::Precision;
use vggd::event::LONGEST_MS;
use vggd::simulate::Policy;
use vggd::simulate::trace::Scenario;

/// VGG-19 on a small board: classifies photos, publishes predictions over MQTT
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  vggd classify --models DIR photo.jpg
  vggd compare --models DIR photo.jpg
  vggd run --config /etc/vggd/vggd.toml

Exit codes: 0 done or stopped, 1 failed, 2 wrong arguments, 78 wrong configuration"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Classify what comes from the configured source and publish a prediction for each frame
    #[command(after_help = "\
It logs to stderr, or to the journal, where every value is a field (journalctl -o json). Predictions come
over MQTT and from the page, as JSON.

Examples:
  vggd run --config vggd.toml
  vggd run --config vggd.toml --json | jq 'select(.level != \"INFO\")'
  VGGD__MODEL__VARIANT=scaled vggd run --config vggd.toml --models DIR")]
    Run {
        #[command(flatten)]
        set: Set,
        /// Log to stdout, one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// See every variant at work: photos through the daemon, answers over MQTT
    #[cfg(feature = "demo")]
    #[command(after_help = "\
It needs no configuration and no broker, and leaves nothing behind. The sample set is looked for in
models/sample, here or in vggd's source folder, and in /usr/share/vggd/sample.

Examples:
  vggd demo
  vggd demo --models DIR --photos DIR
  vggd demo --json | jq .variant")]
    Demo {
        /// A model set in place of the sample
        #[arg(long, value_name = "DIR")]
        models: Option<PathBuf>,
        /// A folder of photos in place of the sample's; they are copied
        #[arg(long, value_name = "DIR")]
        photos: Option<PathBuf>,
        /// Print the messages as they arrive, one JSON object a line on stdout
        #[arg(long)]
        json: bool,
    },
    /// Classify photos once and print the five likeliest classes
    #[command(after_help = "Example:\n  vggd classify --models DIR --variant scaled *.jpg --json")]
    Classify {
        /// Photos: JPEG, PNG or WebP
        #[arg(required = true, value_name = "PHOTO")]
        photos: Vec<PathBuf>,
        #[command(flatten)]
        set: Set,
        /// A variant of the set [default: the configured one]
        #[arg(long)]
        variant: Option<String>,
        #[command(flatten)]
        compute: Compute,
        /// One JSON object a photo on stdout
        #[arg(long)]
        json: bool,
    },
    /// Run every variant of the set on one photo and show what each costs and says
    #[command(after_help = "\
Latency is that of the photo: decoding and preprocessing it, and the median inference of the runs;
speed-up is of inference alone, over the first variant; load is the time from start to first answer;
memory is what the process holds after the last run. Each variant runs in a process of its own. Lines
are as long as the terminal is wide, or as COLUMNS says.

Examples:
  vggd compare --models DIR photo.jpg
  vggd compare --models DIR --runs 20 --threads 1 photo.jpg
  vggd compare --models DIR --json photo.jpg | jq '[.variant, .median_ms]'")]
    Compare {
        /// The photo: JPEG, PNG or WebP
        photo: PathBuf,
        #[command(flatten)]
        set: Set,
        #[command(flatten)]
        timing: Timing,
        /// One JSON object a variant on stdout
        #[arg(long)]
        json: bool,
    },
    /// Time each variant of the set, in a process of its own
    #[command(after_help = "\
With --profile and --record, what was measured goes into files that simulate reads: the times of all
variants, and how much slower than its fastest run each run of one variant was, in computing and in
reading weights.

Examples:
  vggd bench --models DIR --runs 50
  vggd bench --models DIR --profile profile.csv
  vggd bench --models DIR --variant quantized --runs 1000 --record trace.csv
  vggd simulate --trace trace.csv --profile profile.csv")]
    Bench {
        #[command(flatten)]
        set: Set,
        /// Only this variant
        #[arg(long)]
        variant: Option<String>,
        /// Classify this photo instead of noise
        #[arg(long)]
        photo: Option<PathBuf>,
        #[command(flatten)]
        timing: Timing,
        /// Write what each variant takes, as CSV; the set must have been evaluated
        #[arg(long, value_name = "FILE", conflicts_with = "variant")]
        profile: Option<PathBuf>,
        /// Write how the machine slowed the variant down, run by run, as CSV
        #[arg(long, value_name = "FILE", requires = "variant")]
        record: Option<PathBuf>,
        /// The budget in what is recorded; 0: none
        #[arg(long, value_name = "MS", default_value_t = 0.0, requires = "record", value_parser = budget)]
        budget_ms: f64,
        /// One JSON object a variant on stdout
        #[arg(long)]
        json: bool,
    },
    /// See what choosing variants at run time does: replay slowdowns of a machine, without a model
    #[command(after_help = "\
A trace is CSV with the header arrival_ms,slowdown,memory_slowdown,budget_ms, a profile has
variant,compute_ms,memory_ms,accuracy; a frame takes compute_ms x slowdown + memory_ms x
memory_slowdown. Without --trace and --scenario every scenario is replayed with many seeds. Late
\"needlessly\" is what some variant would have had in time; the oracle knows each frame beforehand.

Examples:
  vggd simulate
  vggd simulate --scenario thermal --budget-ms 400 --picture thermal.svg
  vggd simulate --trace trace.csv --profile profile.csv --policy quantized --json")]
    Simulate(Simulation),
    /// Check the configuration, the model set with its checksums, and the folders, then exit
    #[command(after_help = "\
What is wrong is said on stderr, with --json also on stdout as {\"ok\": false, \"error\": …}; the exit
code is 78 then.

Examples:
  vggd check --config vggd.toml
  vggd check --config vggd.toml --models DIR --json")]
    Check {
        #[command(flatten)]
        set: Set,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Print the documented default configuration
    #[command(after_help = "\
Examples:
  vggd defaults > vggd.toml
  vggd defaults --json | jq .mqtt")]
    Defaults {
        /// Only keys and values, as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Measure one variant in this process; "-" reads the photo from stdin
    #[command(hide = true)]
    Measure {
        photo: Option<PathBuf>,
        #[command(flatten)]
        set: Set,
        #[arg(long)]
        variant: String,
        #[command(flatten)]
        timing: Timing,
        #[arg(long)]
        each: bool,
        #[arg(long)]
        background: bool,
    },
}

#[derive(Args)]
pub(crate) struct Set {
    /// The configuration file [default: /etc/vggd/vggd.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A model set in place of the configured one
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Compute {
    /// Threads, 0 for one per core [default: as configured]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Numbers that layers multiply by: f32 or half [default: as configured]
    #[arg(long, value_name = "NUMBERS")]
    pub(crate) precision: Option<Precision>,
}

#[derive(Args)]
pub(crate) struct Timing {
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// How many inferences to time [default: 5 for compare, 20 for bench]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) runs: Option<u32>,
}

/// What to replay, and what to show of it.
#[derive(Args)]
pub(crate) struct Simulation {
    /// A trace to replay
    #[arg(long, value_name = "FILE", group = "one", conflicts_with = "scenario")]
    pub(crate) trace: Option<PathBuf>,
    /// A made-up trace: steady, step, thermal, spikes, memory, budget or all
    #[arg(long, value_name = "NAME", group = "one")]
    pub(crate) scenario: Option<Scenario>,
    /// The budget in made-up traces; 0: none
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 400.0,
        value_parser = budget,
        conflicts_with = "trace"
    )]
    pub(crate) budget_ms: f64,
    /// Which of the made-up traces of that kind, or the first of many
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "trace")]
    pub(crate) seed: u64,
    /// How many traces of each scenario
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = value_parser!(u64).range(1..=10_000),
        conflicts_with = "one"
    )]
    pub(crate) seeds: u64,
    /// What each variant takes undisturbed [default: a board like a Raspberry Pi 4]
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,
    /// Who chooses: auto, oracle, or always the variant of that name
    #[arg(long, value_name = "POLICY", default_value = "auto")]
    pub(crate) policy: Policy,
    /// Share of frames that auto may let be late [default: 0.05]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) miss_rate: Option<f64>,
    /// Draw the trace, as SVG
    #[arg(long, value_name = "FILE", requires = "one")]
    pub(crate) picture: Option<PathBuf>,
    /// Write the made-up trace
    #[arg(long, value_name = "FILE", requires = "scenario", conflicts_with = "trace")]
    pub(crate) write_trace: Option<PathBuf>,
    /// One JSON object a frame on stdout, and the summary last; or one a scenario
    #[arg(long)]
    pub(crate) json: bool,
}

/// A budget in milliseconds, as an argument.
fn budget(text: &str) -> Result<f64, String> {
    let budget = text.parse().map_err(|_| "not a number of milliseconds")?;
    let sane = (0.0..=LONGEST_MS).contains(&budget);
    if sane { Ok(budget) } else { Err("must be from 0 to 3600000".to_owned()) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| "not a number")?;
    if (0.0..1.0).contains(&share) { Ok(share) } else { Err("must be from 0 to 1".to_owned()) }
}
