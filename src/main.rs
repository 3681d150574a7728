//! Arguments to commands to exit codes.

mod commands;
#[cfg(feature = "demo")]
mod demo;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use commands::Simulation;
use vggd::config::{self, Config, ConfigError, Precision};
use vggd::daemon;
use vggd::manifest::SetError;
use vggd::measure::Job;

/// Wrong arguments, which is also what clap exits with.
const EXIT_ARGUMENTS: u8 = 2;

/// Wrong configuration: systemd does not restart after this.
const EXIT_CONFIG: u8 = 78;

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
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch the configured folder and publish a prediction for each photo
    Run {
        #[command(flatten)]
        set: Set,
    },
    /// See every variant at work: photos through the daemon, answers over MQTT
    #[cfg(feature = "demo")]
    #[command(after_help = "\
It needs no configuration and no broker, and leaves nothing behind. The sample set is looked for in
models/sample, here or in vggd's source folder, and in /usr/share/vggd/sample.")]
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
Latency is the median of the runs; load is the time from start to first answer; memory is what the
process holds after the last run. Each variant runs in a process of its own.")]
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
        #[arg(long, value_name = "MS", default_value_t = 0.0, requires = "record", value_parser = commands::budget)]
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
    Check {
        #[command(flatten)]
        set: Set,
    },
    /// Print the documented default configuration
    Defaults,
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
struct Set {
    /// The configuration file [default: /etc/vggd/vggd.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A model set in place of the configured one
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
}

#[derive(Args)]
struct Compute {
    /// Threads, 0 for one per core [default: as configured]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Numbers that convolutions multiply: f32 or half [default: as configured]
    #[arg(long, value_name = "NUMBERS")]
    precision: Option<Precision>,
}

#[derive(Args)]
struct Timing {
    #[command(flatten)]
    compute: Compute,
    /// How many inferences to time [default: 5 for compare, 20 for bench]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,
}

impl Set {
    fn options(&self) -> daemon::Options {
        let packaged = PathBuf::from(config::DEFAULT_PATH);
        daemon::Options {
            config: self.config.clone().or(packaged.exists().then_some(packaged)),
            models: self.models.clone(),
        }
    }

    /// The configuration, with what `compute` gives in place of what is configured.
    fn load(&self, compute: &Compute) -> Result<Config, ConfigError> {
        let mut config = self.options().load()?;
        let model = &mut config.model;
        model.threads = compute.threads.unwrap_or(model.threads);
        model.precision = compute.precision.unwrap_or(model.precision);
        Ok(config)
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vggd: {error:#}");
            match error.downcast_ref() {
                Some(SetError::UnknownVariant { .. }) => ExitCode::from(EXIT_ARGUMENTS),
                _ if error.is::<ConfigError>() => ExitCode::from(EXIT_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { set } => daemon::run(&set.options(), std::future::pending())?,
        #[cfg(feature = "demo")]
        Command::Demo { models, photos, json } => {
            demo::run(&demo::Options { models, photos, json })?;
        }
        Command::Classify { photos, set, variant, compute, json } => {
            let config = set.load(&compute)?;
            return commands::classify(&config, variant.as_deref(), &photos, json);
        }
        Command::Compare { photo, set, timing, json } => {
            let config = set.load(&timing.compute)?;
            commands::compare(&config, &photo, timing.runs.unwrap_or(5), json)?;
        }
        Command::Bench { set, variant, photo, timing, profile, record, budget_ms, json } => {
            let config = set.load(&timing.compute)?;
            let runs = timing.runs.unwrap_or(20);
            let files = commands::BenchFiles { profile, record, budget_ms };
            commands::bench(&config, variant, photo, runs, &files, json)?;
        }
        Command::Simulate(simulation) => commands::simulate(&simulation)?,
        Command::Check { set } => commands::check(&set.options().load()?)?,
        Command::Defaults => print!("{}", config::DEFAULT),
        Command::Measure { photo, set, variant, timing, each, background } => {
            let config = set.load(&timing.compute)?;
            let runs = timing.runs.unwrap_or(20);
            let picture = photo.map(commands::picture).transpose()?;
            commands::measure(&Job { config, variant, runs, picture, each, background })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
