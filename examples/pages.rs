//! Writes what packages have beside the programs into a folder each: manual pages and shell completions, made
//! of their own arguments. Packages are built without the demo:
//!
//! ```sh
//! cargo run --example pages --no-default-features --features camera -- target/pages
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};

#[allow(dead_code)]
#[path = "../src/arguments.rs"]
mod vggd_arguments;

#[allow(dead_code)]
#[path = "../models/builder/src/arguments.rs"]
mod models_arguments;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("pages: which folder to write to?");
        return ExitCode::from(2);
    };
    let programs = [vggd_arguments::Arguments::command, models_arguments::Arguments::command];
    for program in programs {
        let folder = folder.join(program().get_name());
        if let Err(error) = write(&folder, program) {
            eprintln!("pages: {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn write(folder: &Path, program: fn() -> Command) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let name = program().get_name().to_owned();
        generate_to(shell, &mut program(), name, folder)?;
    }
    clap_mangen::generate_to(program().disable_help_subcommand(true), folder)
}
