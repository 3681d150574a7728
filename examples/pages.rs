//! Writes what packages have beside the binary into a folder: manual pages and shell completions, made of
//! its own arguments. Packages are built without the demo:
//!
//! ```sh
//! cargo run --example pages --no-default-features --features camera -- target/pages
//! ```

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

#[allow(dead_code)]
#[path = "../src/arguments.rs"]
mod arguments;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("pages: which folder to write to?");
        return ExitCode::from(2);
    };
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pages: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut command = arguments::Arguments::command();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command, "vggd", folder)?;
    }
    clap_mangen::generate_to(command.disable_help_subcommand(true), folder)
}
