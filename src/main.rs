//! Arguments to commands to exit codes.

mod arguments;
mod commands;
#[cfg(feature = "demo")]
mod demo;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use vggd::config::{self, Config, ConfigError};
use vggd::daemon;
use vggd::logging;
use vggd::manifest::SetError;
use vggd::measure::Job;

use crate::arguments::{Arguments, Command, Compute, Set};

/// Wrong arguments, which is also what clap exits with.
const EXIT_ARGUMENTS: u8 = 2;

/// Wrong configuration: systemd does not restart after this.
const EXIT_CONFIG: u8 = 78;

impl Set {
    fn options(&self, json: bool) -> daemon::Options {
        let packaged = PathBuf::from(config::DEFAULT_PATH);
        daemon::Options {
            config: self.config.clone().or(packaged.exists().then_some(packaged)),
            models: self.models.clone(),
            json,
        }
    }

    /// The configuration, with what `compute` gives in place of what is configured.
    fn load(&self, compute: &Compute) -> Result<Config, ConfigError> {
        let mut config = self.options(false).load()?;
        let model = &mut config.model;
        model.threads = compute.threads.unwrap_or(model.threads);
        model.precision = compute.precision.unwrap_or(model.precision);
        Ok(config)
    }
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let json = matches!(command, Command::Run { json: true, .. });
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            logging::fatal(&format!("{error:#}"), json);
            match error.downcast_ref() {
                Some(SetError::UnknownVariant { .. }) => ExitCode::from(EXIT_ARGUMENTS),
                _ if error.is::<commands::Misused>() => ExitCode::from(EXIT_ARGUMENTS),
                _ if error.is::<ConfigError>() => ExitCode::from(EXIT_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { set, json } => daemon::run(&set.options(json), std::future::pending())?,
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
        Command::Check { set, json } => {
            let loaded = set.options(false).load().map_err(anyhow::Error::from);
            let checked = loaded.and_then(|config| commands::check(&config, json));
            if let (Err(error), true) = (&checked, json) {
                commands::faulty(error)?;
            }
            checked?;
        }
        Command::Defaults { json } => commands::defaults(json)?,
        Command::Measure { photo, set, variant, timing, each, background } => {
            let config = set.load(&timing.compute)?;
            let runs = timing.runs.unwrap_or(20);
            let picture = photo.map(commands::picture).transpose()?;
            Job { config, variant, runs, picture, each, background }.report()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
