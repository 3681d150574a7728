//! `vggd-models`: the command line. What it does is in the library.

mod bar;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use vggd_models::import::{Import, import};

use crate::bar::Bar;

/// Make vggd model sets: variants of one trained VGG-19, as ordinary ONNX.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Import(ImportArguments),
}

/// Make a model set from trained weights: the variants that need no training
///
/// The set is a folder with manifest.toml, labels.txt, ONNX graphs and weight files. Its variants:
///
///   baseline   as it was trained: float32, 224 x 224
///   quantized  linear layers as int8, one scale per row and 64 columns
///   scaled     float32, 160 x 160; the adaptive pooling is folded into the first linear layer
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
struct ImportArguments {
    /// Trained weights: a safetensors file with torchvision's VGG-19 names and shapes, in
    /// float32, float16 or bfloat16
    #[arg(value_name = "FILE.safetensors")]
    source: PathBuf,

    /// Text file with one label per line, in the order of the classes
    #[arg(long, value_name = "LABELS.txt")]
    labels: PathBuf,

    /// Folder for the model set; made if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// What the set is called [default: the name of the weights' file]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,

    /// Replace the model set that is in DIR, once the new one is complete
    #[arg(long)]
    force: bool,

    /// Print one JSON object per variant, one per line, instead of a table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vggd-models import vgg19.safetensors --labels imagenet-labels.txt --out models/vgg19
  vggd-models import birds.safetensors --labels birds.txt --out birds --name Birds --force
  vggd-models import vgg19.safetensors --labels labels.txt --out set --json | jq .bytes

Exit codes: 0 the set is in DIR; 1 it is not, and DIR is as it was; 2 wrong arguments.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Import(arguments) => run_import(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vggd-models: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_import(arguments: ImportArguments) -> Result<()> {
    let name = arguments.name.unwrap_or_else(|| {
        let stem = arguments.source.file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    });
    let request = Import {
        source: arguments.source,
        labels: arguments.labels,
        out: arguments.out,
        name,
        force: arguments.force,
    };
    let mut bar = Bar::new().context("cannot wait for signals")?;
    let result = import(&request, &mut bar);
    bar.clear();
    let manifest = result?;
    if arguments.json {
        report::json(&manifest)?;
    } else {
        report::table(&manifest, &request.out)?;
    }
    Ok(())
}
