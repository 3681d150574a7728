//! What each command does: arguments in, one call into the library, a report out.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use vggd::config::Config;
use vggd::manifest::{Manifest, ModelSet, Preprocess, Recipe};
use vggd::measure::Job;
use vggd::model::Engine;
use vggd_models::adapt::{Adapt, adapt as fit};
use vggd_models::build::{Build, Start, build as make};
use vggd_models::evaluate::{evaluate as judge, record};
use vggd_models::fetch::{self, Fetch, Patience};
use vggd_models::import::{self, Import};
use vggd_models::parts::Precision;
use vggd_models::photos::Photos;
use vggd_models::picture;
use vggd_models::plan::{self, Plan, PlannedPruning, PlannedVariant, Quantized, Step};
use vggd_models::variant::Form;

use crate::arguments::{
    AdaptArguments, AddArguments, BuildArguments, EvaluateArguments, FetchArguments,
    FinetuneArguments, ImportArguments, Layers, MeasureArguments, PruneArguments,
    QuantizeArguments, ScaleArguments,
};
use crate::bar::Bar;
use crate::report;

pub(crate) fn fetch(arguments: FetchArguments) -> Result<()> {
    let name = fetch::name_in(&arguments.url);
    let out = match arguments.out {
        Some(out) if !out.is_dir() => out,
        folder => {
            let name = name.context("--url has no file name, give one with --out")?;
            folder.unwrap_or_default().join(name)
        }
    };
    let named = out.file_name().and_then(|name| fetch::sha256_prefix(name.to_str()?));
    let sha256_prefix = named.or_else(|| fetch::sha256_prefix(name?)).map(str::to_owned);
    let patience = Patience::default();
    let request = Fetch { url: arguments.url.clone(), out: out.clone(), sha256_prefix, patience };
    let mut bar = Bar::new().context("cannot wait for signals")?;
    let result = fetch::fetch(&request, &mut bar);
    bar.clear();
    report::fetched(&result?, arguments.json)?;
    Ok(())
}

pub(crate) fn import(arguments: ImportArguments) -> Result<()> {
    let name = arguments.name.unwrap_or_else(|| {
        let stem = arguments.source.file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    });
    let request = Import {
        source: arguments.source,
        labels: arguments.labels,
        preprocess: Preprocess::default(),
        out: arguments.out,
        name,
        force: arguments.force,
    };
    let mut bar = Bar::new().context("cannot wait for signals")?;
    let result = import::import(&request, &mut bar);
    bar.clear();
    let manifest = result?;
    if arguments.json {
        report::json(&manifest.variants)?;
    } else {
        report::table(&manifest, &request.out)?;
    }
    Ok(())
}

pub(crate) fn prune(arguments: PruneArguments) -> Result<()> {
    let PruneArguments { add: arguments, ratio, macs, parameters, hidden } = arguments;
    let hidden = hidden.and_then(|units| units.try_into().ok());
    let prune = PlannedPruning { ratio, macs, parameters, hidden };
    add(arguments, "pruned", PlannedVariant { prune: Some(prune), ..PlannedVariant::default() })
}

pub(crate) fn finetune(arguments: FinetuneArguments) -> Result<()> {
    let FinetuneArguments { add: arguments, minutes } = arguments;
    let change = PlannedVariant { finetune_minutes: Some(minutes), ..PlannedVariant::default() };
    add(arguments, "tuned", change)
}

pub(crate) fn quantize(arguments: QuantizeArguments) -> Result<()> {
    let QuantizeArguments { add: arguments, layers } = arguments;
    let (quantize, suffix) = match layers {
        Layers::Linear => (Quantized::Linear, "quantized"),
        Layers::All => (Quantized::All, "int8"),
    };
    let change = PlannedVariant { quantize: Some(quantize), ..PlannedVariant::default() };
    add(arguments, suffix, change)
}

pub(crate) fn scale(arguments: ScaleArguments) -> Result<()> {
    let ScaleArguments { add: arguments, side } = arguments;
    let change = PlannedVariant { side: Some(side), ..PlannedVariant::default() };
    add(arguments, "scaled", change)
}

/// Adds one variant to a set.
fn add(arguments: AddArguments, suffix: &str, change: PlannedVariant) -> Result<()> {
    let AddArguments { set: out, from, name, photos, calibration, force, threads, json } =
        arguments;
    let set = ModelSet::open(&out)?;
    let variant = set.variant(&from)?;
    let form = form(variant.side(), variant.recipe.as_ref());
    let (changes, form) = plan::change((Vec::new(), form), &change).map_err(anyhow::Error::msg)?;
    let name = name.unwrap_or_else(|| match from.as_str() {
        "baseline" => suffix.to_owned(),
        from => format!("{from}-{suffix}"),
    });
    let request = Build {
        name: set.manifest.name.clone(),
        out,
        start: Start::Variant(from),
        photos,
        calibration,
        steps: vec![Step { name, changes, form }],
        force,
    };
    run(&request, threads, json)
}

/// The form that a variant of a set has.
fn form(side: usize, recipe: Option<&Recipe>) -> Form {
    let named = |name: &String| Precision::named(name).unwrap_or(Precision::Float32);
    match recipe {
        Some(recipe) => Form {
            side,
            convolutions: named(&recipe.convolutions),
            linears: named(&recipe.linears),
        },
        None => Form { side, ..Form::PLAIN },
    }
}

pub(crate) fn build(arguments: BuildArguments) -> Result<()> {
    let plan = Plan::read(&arguments.plan)?;
    let stem = plan.weights.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let request = Build {
        name: plan.name.unwrap_or(stem),
        out: plan.out,
        start: Start::Weights {
            weights: plan.weights,
            labels: plan.labels,
            preprocess: Preprocess::default(),
        },
        photos: plan.photos,
        calibration: plan.calibration,
        steps: plan::steps(&plan.variants)?,
        force: true,
    };
    run(&request, arguments.threads, arguments.json)
}

fn run(request: &Build, threads: usize, json: bool) -> Result<()> {
    let mut bar = Bar::new().context("cannot wait for signals")?;
    let result = make(&Engine::new(threads), request, &mut bar);
    bar.clear();
    print(&result?, &request.out, json)
}

fn print(manifest: &Manifest, out: &Path, json: bool) -> Result<()> {
    if json {
        report::json(&manifest.variants)?;
    } else {
        report::table(manifest, out)?;
    }
    Ok(())
}

pub(crate) fn adapt(arguments: AdaptArguments) -> Result<()> {
    let AdaptArguments { photos, set, from, out, name, force, threads, json } = arguments;
    let name =
        name.unwrap_or_else(|| out.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let request = Adapt { photos, set, from, out, name, force };
    let mut bar = Bar::new().context("cannot wait for signals")?;
    let result = fit(&Engine::new(threads), &request, &mut bar);
    bar.clear();
    let outcome = result?;
    if json {
        report::json(&[outcome.estimate])?;
    } else {
        report::adapted(&outcome, &request.out)?;
    }
    Ok(())
}

pub(crate) fn evaluate(arguments: EvaluateArguments) -> Result<()> {
    let set = ModelSet::open(&arguments.set)?;
    let photos = Photos::open(&arguments.photos, &set.labels, &set.manifest.preprocess)?;
    let photos = photos.sample(arguments.count.unwrap_or(usize::MAX));
    let variants: Vec<_> = match arguments.variant.is_empty() {
        true => set.manifest.variants.iter().collect(),
        false => {
            arguments.variant.iter().map(|name| set.variant(name)).collect::<Result<_, _>>()?
        }
    };
    let mut bar = Bar::new().context("cannot wait for signals")?;
    let engine = Engine::new(arguments.threads);
    let result = judge(&engine, &set, &variants, &photos, &mut bar);
    bar.clear();
    let mut evaluations = result?;
    if arguments.runs > 0 {
        for evaluation in &mut evaluations {
            let measured = job(&set, &evaluation.variant, arguments.threads, arguments.runs)?;
            evaluation.measured = Some(measured.spawn()?);
        }
    }
    if let Some(path) = &arguments.picture {
        let svg = picture::draw(&set.manifest.name, &evaluations);
        fs::write(path, svg).with_context(|| path.display().to_string())?;
    }
    if !arguments.dry_run {
        record(&arguments.set, &evaluations)?;
    }
    if arguments.json {
        report::json(&evaluations)?;
    } else {
        report::evaluations(&evaluations)?;
    }
    Ok(())
}

pub(crate) fn measure(arguments: MeasureArguments) -> Result<()> {
    let MeasureArguments { models, variant, threads, precision, runs } = arguments;
    let set = ModelSet::open(&models)?;
    let mut job = job(&set, &variant, threads, runs)?;
    job.config.model.precision = precision;
    job.report()
}

fn job(set: &ModelSet, variant: &str, threads: usize, runs: u32) -> Result<Job> {
    let mut config = Config::load(None)?;
    config.model.set.clone_from(&set.directory);
    config.model.threads = threads;
    Ok(Job {
        config,
        variant: variant.to_owned(),
        runs,
        picture: None,
        each: false,
        background: false,
    })
}
