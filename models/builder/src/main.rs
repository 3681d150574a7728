//! `vggd-models`: the command line. What it does is in the library.

mod arguments;
mod bar;
mod commands;
mod report;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Fetch(arguments) => commands::fetch(arguments),
        Command::Import(arguments) => commands::import(arguments),
        Command::Prune(arguments) => commands::prune(arguments),
        Command::Finetune(arguments) => commands::finetune(arguments),
        Command::Quantize(arguments) => commands::quantize(arguments),
        Command::Scale(arguments) => commands::scale(arguments),
        Command::Build(arguments) => commands::build(arguments),
        Command::Adapt(arguments) => commands::adapt(arguments),
        Command::Evaluate(arguments) => commands::evaluate(arguments),
        Command::Measure(arguments) => commands::measure(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vggd-models: {error:#}");
            ExitCode::FAILURE
        }
    }
}
