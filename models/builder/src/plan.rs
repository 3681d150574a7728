//! Plans: a TOML file that says which variants to make of which network.
//!
//! Owns what can be written there and what it means; does nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::parts::Precision;
use crate::prune::{self, Target};
use crate::scale::Fold;
use crate::topology::BASELINE_SIDE;
use crate::variant::Form;

/// The variants that are made when a plan names none.
pub const DEFAULT_VARIANTS: &str = include_str!("plan/default.toml");

/// A plan as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What the set is called, for people.
    pub name: Option<String>,
    /// Trained weights: safetensors, .pth or ONNX.
    pub weights: PathBuf,
    /// Text file with one label per line.
    pub labels: PathBuf,
    /// The model set's folder.
    pub out: PathBuf,
    /// Folder with calibration photos; not needed where no step looks at photos.
    pub photos: Option<PathBuf>,
    /// How many of them are used; fine-tuning uses all.
    #[serde(default = "calibration")]
    pub calibration: usize,
    /// The variants, the baseline first.
    #[serde(rename = "variant", default)]
    pub variants: Vec<PlannedVariant>,
}

/// Photos that a calibration uses when nothing else is said.
pub const CALIBRATION: usize = 200;

fn calibration() -> usize {
    CALIBRATION
}

/// A variant as it is written: another one, and what is done to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedVariant {
    /// What it is called.
    pub name: String,
    /// The variant that it is made from; the trained network without this.
    pub from: Option<String>,
    /// Which filters go.
    pub prune: Option<PlannedPruning>,
    /// How long it is tuned after that, in minutes.
    pub finetune_minutes: Option<f64>,
    /// What becomes int8: `linear` layers, or `all` layers.
    pub quantize: Option<Quantized>,
    /// Input side in pixels.
    pub side: Option<usize>,
    /// In how few bits weights are stored that are computed with in float32.
    pub storage: Option<Storage>,
}

/// Pruning as it is written.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedPruning {
    /// This share of the filters of every layer from conv3_1 on.
    pub ratio: Option<f64>,
    /// Down to this share of the multiply-accumulates.
    pub macs: Option<f64>,
    /// Down to this share of the parameters.
    pub parameters: Option<f64>,
    /// Down to so many units in the two hidden layers of the classifier.
    pub hidden: Option<[usize; 2]>,
}

impl PlannedPruning {
    fn target(self) -> Result<Target, String> {
        let Self { ratio, macs, parameters, hidden } = self;
        let named = [
            ratio.map(Target::Ratio),
            macs.map(Target::Macs),
            parameters.map(Target::Parameters),
            hidden.map(Target::Hidden),
        ];
        let mut named = named.into_iter().flatten();
        let target = named.next().unwrap_or(Target::Ratio(prune::RATIO));
        match named.next() {
            None => Ok(target),
            Some(_) => Err("prune has one of ratio, macs, parameters and hidden".to_owned()),
        }
    }
}

/// How weights are stored that are widened to float32 before anything is computed with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// All as float16.
    Float16,
    /// Those of convolutions as int8 with a scale per filter, the others as float16.
    Int8,
}

/// What becomes int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantized {
    /// The linear layers.
    Linear,
    /// Convolutions and linear layers.
    All,
}

/// Why a plan cannot be carried out.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The plan.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file says something that plans do not.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The plan.
        path: PathBuf,
        /// What, with line and column.
        message: String,
    },
    /// A variant cannot be made as it is written.
    #[error("variant '{variant}': {message}")]
    Variant {
        /// Its name.
        variant: String,
        /// What is wrong.
        message: String,
    },
}

/// A change to the network itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Fewer filters.
    Prune(Target),
    /// Tuned for so many minutes.
    Finetune(f64),
}

/// A variant as it is made: changes to the trained network, in order, and then a form.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is called.
    pub name: String,
    /// From the trained network on.
    pub changes: Vec<Change>,
    /// In which it is stored.
    pub form: Form,
}

impl Plan {
    /// Reads a plan; paths in it are taken from the folder that it lies in.
    ///
    /// # Errors
    /// [`PlanError::Io`] or [`PlanError::Syntax`].
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = fs::read_to_string(path)
            .map_err(|error| PlanError::Io { path: path.to_owned(), error })?;
        let mut plan: Self = toml::from_str(&text).map_err(|error| PlanError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for path in [&mut plan.weights, &mut plan.labels, &mut plan.out] {
            *path = folder.join(&*path);
        }
        plan.photos = plan.photos.map(|photos| folder.join(photos));
        if plan.variants.is_empty() {
            plan.variants = default_variants();
        }
        Ok(plan)
    }
}

/// A plan's list of variants alone.
#[derive(Deserialize)]
struct Variants {
    variant: Vec<PlannedVariant>,
}

/// Those of [`DEFAULT_VARIANTS`].
pub fn default_variants() -> Vec<PlannedVariant> {
    let variants: Variants = toml::from_str(DEFAULT_VARIANTS).expect("the default plan is valid");
    variants.variant
}

/// What there is already: variants by name, with their changes and form.
pub type Known = BTreeMap<String, (Vec<Change>, Form)>;

/// Works out what each variant is made of.
///
/// # Errors
/// [`PlanError::Variant`] for the first that cannot be made.
pub fn steps(variants: &[PlannedVariant]) -> Result<Vec<Step>, PlanError> {
    let mut known = Known::new();
    let mut steps: Vec<Step> = Vec::new();
    for variant in variants {
        let wrong = |message: String| PlanError::Variant { variant: variant.name.clone(), message };
        check_name(&variant.name).map_err(wrong)?;
        let base = match &variant.from {
            None => (Vec::new(), Form::PLAIN),
            Some(from) => known.get(from).cloned().ok_or_else(|| {
                let before: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
                wrong(format!("made from '{from}', but before it are only: {}", before.join(", ")))
            })?,
        };
        let (changes, form) = change(base, variant).map_err(wrong)?;
        if known.insert(variant.name.clone(), (changes.clone(), form)).is_some() {
            return Err(wrong("there are two of this name".to_owned()));
        }
        steps.push(Step { name: variant.name.clone(), changes, form });
    }
    Ok(steps)
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.is_empty() && !name.starts_with('.') && name.chars().all(fits) {
        return Ok(());
    }
    Err("a name is made of letters, digits, '-', '_' and '.', and does not begin with '.'".into())
}

/// What `variant` makes of a base.
pub fn change(
    (mut changes, mut form): (Vec<Change>, Form),
    variant: &PlannedVariant,
) -> Result<(Vec<Change>, Form), String> {
    if let Some(planned) = variant.prune {
        let target = planned.target()?;
        prune::check(target).map_err(|error| error.to_string())?;
        changes.push(Change::Prune(target));
    }
    if let Some(minutes) = variant.finetune_minutes {
        if !(minutes > 0.0 && minutes.is_finite()) {
            return Err(format!("finetune_minutes = {minutes}: must be more than 0"));
        }
        changes.push(Change::Finetune(minutes));
    }
    if let Some(side) = variant.side {
        if side != BASELINE_SIDE {
            Fold::new(side).map_err(|error| error.to_string())?;
        }
        form.side = side;
    }
    let [convolutions, linears] = match variant.storage {
        None => [Precision::Float32; 2],
        Some(Storage::Float16) => [Precision::Float16; 2],
        Some(Storage::Int8) => [Precision::Widened, Precision::Float16],
    };
    for (own, stored) in [(&mut form.convolutions, convolutions), (&mut form.linears, linears)] {
        if *own == Precision::Float32 {
            *own = stored;
        }
    }
    match variant.quantize {
        Some(Quantized::Linear) => form.linears = Precision::Int8,
        Some(Quantized::All) => {
            (form.convolutions, form.linears) = (Precision::Int8, Precision::Int8);
        }
        None => {}
    }
    Ok((changes, form))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_of(text: &str) -> Result<Vec<Step>, String> {
        let variants: Variants = toml::from_str(text).map_err(|error| error.to_string())?;
        steps(&variants.variant).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_plan_has_the_variants_that_are_promised() {
        let steps = steps(&default_variants()).unwrap();
        let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
        let expected = [
            "baseline",
            "pruned",
            "quantized",
            "pruned-quantized",
            "scaled",
            "pruned-quantized-scaled",
            "int8",
            "pruned-int8-scaled",
        ];
        assert_eq!(names, expected);
        let last = &steps[7];
        assert!(matches!(last.changes[0], Change::Prune(_)));
        assert_eq!(last.form.side, 160);
        assert_eq!(last.form.convolutions, Precision::Int8);
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        for (text, message) in [
            ("[[variant]]\nname = 'a'\nfrom = 'b'", "'b'"),
            ("[[variant]]\nname = 'a'\n[[variant]]\nname = 'a'", "two of this name"),
            ("[[variant]]\nname = 'a/b'", "a name is made of"),
            ("[[variant]]\nname = 'a'\nside = 100", "100"),
            ("[[variant]]\nname = 'a'\nprune = { ratio = 1.5 }", "1.5"),
            ("[[variant]]\nname = 'a'\nprune = { ratio = 0.1, macs = 0.5 }", "one of ratio, macs"),
            ("[[variant]]\nname = 'a'\nfinetune_minutes = 0.0", "more than 0"),
            ("[[variant]]\nname = 'a'\nquantise = 'all'", "quantise"),
        ] {
            let error = steps_of(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
