//! From a trained network, or from a set that there is, to a set of variants.
//!
//! ```text
//! networks   each change to the network gives a new one: from the set where it is there already,
//!            else from the work folder, else made and put there
//! variants   those whose recipe has not changed are taken over as they are, the others written
//! ```
//!
//! The work folder, `PARENT/.NAME.work`, lies beside the set and is deleted when the set is
//! complete; a build that was stopped goes on with what is in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vggd::manifest::{self, Manifest, ModelSet, Preprocess, Recipe, Variant};
use vggd::model::Engine;

use crate::calibrate::{CalibrateError, calibrate};
use crate::digest::{Digest, hex};
use crate::finetune::{self, FinetuneError, finetune};
use crate::labels::{self, LabelsError};
use crate::network::{Network, NetworkError};
use crate::parts::Precision;
use crate::photos::{Photos, PhotosError};
use crate::plan::{Change, Step};
use crate::progress::{Interrupted, Progress};
use crate::prune::{self, PruneError, Target, prune};
use crate::quantize::GROUP;
use crate::set::{SetWriter, WriteError};
use crate::source::{self, Source, SourceError};
use crate::topology::BASELINE_SIDE;
use crate::variant::{Described, Form, VariantWriter, work};

/// Goes up when the same recipe gives something else than it did.
const VERSION: u64 = 1;

/// What the first changes are applied to.
#[derive(Clone, Debug)]
pub enum Start {
    /// Trained weights, and a text file with one label per class. Variants of the set that are not
    /// made go.
    Weights {
        /// safetensors, .pth or ONNX.
        weights: PathBuf,
        /// One label per line.
        labels: PathBuf,
        /// How the network was trained to see photos.
        preprocess: Preprocess,
    },
    /// The float32 network of a variant of the set. All variants of the set stay.
    Variant(String),
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Build {
    /// The model set's folder.
    pub out: PathBuf,
    /// What the set is called, for people.
    pub name: String,
    /// From what.
    pub start: Start,
    /// Calibration photos.
    pub photos: Option<PathBuf>,
    /// How many of them are used.
    pub calibration: usize,
    /// The variants.
    pub steps: Vec<Step>,
    /// Whether a set that is already there is replaced, or a variant in it made again. What of a
    /// replaced set is still right is taken over.
    pub force: bool,
}

/// Why there is no new set. Whatever was in its place is untouched.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Give the right labels.
    #[error(transparent)]
    Labels(#[from] LabelsError),
    /// Give the right weights.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The weights are readable, but not those of a VGG-19.
    #[error("{}: {error}", path.display())]
    Network {
        /// The file of weights.
        path: PathBuf,
        /// What does not fit.
        error: NetworkError,
    },
    /// Labels and weights are not of the same network: give the labels it was trained with.
    #[error(
        "{}: {labels} labels, but the network tells {classes} classes apart; give the labels it \
         was trained with",
        path.display()
    )]
    Classes {
        /// The file of labels.
        path: PathBuf,
        /// How many it has.
        labels: usize,
        /// How many there should be.
        classes: usize,
    },
    /// Widths that int8 weights do not come in.
    #[error(
        "{}: tensor '{name}' has {columns} columns, which groups of {GROUP} with a scale each do \
         not divide evenly; use a network of other widths",
        path.display()
    )]
    Columns {
        /// The file of weights.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Inputs of its layer.
        columns: usize,
    },
    /// Replacing the set would delete what it is made from: move that elsewhere.
    #[error("{}: lies in the folder that is to be replaced, {}; move it out", path.display(), out.display())]
    Inside {
        /// The file of weights, or the folder of photos.
        path: PathBuf,
        /// The folder.
        out: PathBuf,
    },
    /// The set that is to be extended cannot be used.
    #[error(transparent)]
    Set(#[from] manifest::SetError),
    /// A variant of that name is there already: give another name, or replace it.
    #[error("{} has a variant '{name}' already; give another name, or replace it with --force", out.display())]
    Taken {
        /// The name.
        name: String,
        /// The set.
        out: PathBuf,
    },
    /// The set has no float32 form of the network that is to be changed.
    #[error(
        "{} has the network of variant '{variant}' only as {form}; start from a variant whose \
         weights are float32 at 224 x 224, or build the set again",
        out.display()
    )]
    NotFloat {
        /// The variant.
        variant: String,
        /// What it is.
        form: String,
        /// The set.
        out: PathBuf,
    },
    /// Give a folder of photos.
    #[error("variant '{0}' needs calibration photos; give a folder of photos, no labels needed")]
    NoPhotos(String),
    /// Photos cannot be used.
    #[error(transparent)]
    Photos(#[from] PhotosError),
    /// Pruning failed.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// Tuning failed.
    #[error(transparent)]
    Finetune(#[from] FinetuneError),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The set or something on its way could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<CalibrateError> for BuildError {
    fn from(error: CalibrateError) -> Self {
        match error {
            CalibrateError::Photos(error) => error.into(),
            CalibrateError::Interrupted(error) => error.into(),
        }
    }
}

/// Builds the set and returns its manifest.
///
/// # Errors
/// [`BuildError`].
pub fn build(
    engine: &Engine,
    build: &Build,
    progress: &mut dyn Progress,
) -> Result<Manifest, BuildError> {
    let existing = match &build.start {
        Start::Variant(_) => Some(ModelSet::open(&build.out)?),
        Start::Weights { .. } => ModelSet::open(&build.out).ok(),
    };
    let base = Base::open(build, existing.as_ref(), progress)?;
    let photos = CalibrationPhotos::open(build, &base)?;
    check_fit(build, &base)?;

    let set =
        SetWriter::create(&build.out, build.force || matches!(build.start, Start::Variant(_)))?;
    check_outside(build, set.place())?;
    let workshop = Workshop {
        engine,
        photos: photos.as_ref(),
        existing: existing.as_ref(),
        base: &base,
        work: work_folder(set.place()),
    };
    let mut planned: Vec<Planned<'_>> =
        build.steps.iter().map(|step| workshop.plan(step)).collect();
    if build.force && matches!(build.start, Start::Variant(_)) {
        planned.iter_mut().for_each(|planned| planned.reused = None);
    }
    if let (Start::Variant(_), false, Some(existing)) = (&build.start, build.force, &existing) {
        let is_taken = |name: &String| existing.manifest.variants.iter().any(|v| v.name == *name);
        let other = planned.iter().filter(|planned| planned.reused.is_none());
        if let Some(name) = other.map(|planned| &planned.step.name).find(|name| is_taken(name)) {
            return Err(BuildError::Taken { name: name.clone(), out: build.out.clone() });
        }
    }
    let kept = workshop.kept(&build.start, &planned);

    for planned in planned.iter().filter(|planned| planned.reused.is_none()) {
        workshop.make(planned, progress)?;
    }
    let manifest = workshop.write(&set, build, &planned, kept, progress)?;
    set.publish(&manifest)?;
    match fs::remove_dir_all(&workshop.work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(WriteError::Io { path: workshop.work, error }.into())
        }
        _ => Ok(manifest),
    }
}

/// The network that everything is made from.
struct Base {
    path: PathBuf,
    source: Source,
    digest: u64,
    /// The network that it was once made from itself, if that is another: the first of the set.
    teacher: Option<Source>,
    labels: Vec<String>,
    preprocess: Preprocess,
}

impl Base {
    fn open(
        build: &Build,
        existing: Option<&ModelSet>,
        progress: &mut dyn Progress,
    ) -> Result<Self, BuildError> {
        let mut teacher = None;
        let (path, known, labels, preprocess) = match &build.start {
            Start::Weights { weights, labels, preprocess } => {
                (weights.clone(), None, labels::read(labels)?, preprocess.clone())
            }
            Start::Variant(name) => {
                let set = existing.expect("opened before");
                let float = plain(set, name)?;
                let first = set.names()[0].to_owned();
                if plain(set, &first).is_ok_and(|first| first.graph != float.graph) {
                    teacher = Some(plain_source(set, &first)?);
                }
                let known = float.recipe.as_ref().map(|recipe| recipe.network.clone());
                let preprocess = set.manifest.preprocess.clone();
                (set.directory.join(&float.graph), known, set.labels.clone(), preprocess)
            }
        };
        let source = Source::open(&path)?;
        let network = Network::read(&source).map_err(network_error(&path))?;
        let topology = network.topology();
        if let (Start::Weights { labels: file, .. }, true) =
            (&build.start, labels.len() != topology.classes)
        {
            let (path, labels, classes) = (file.clone(), labels.len(), topology.classes);
            return Err(BuildError::Classes { path, labels, classes });
        }
        progress.begin(4 * topology.parameters(BASELINE_SIDE));
        progress.now("checking weights");
        network.check_finite(progress).map_err(network_error(&path))?;
        let recorded = known.and_then(|network| u64::from_str_radix(&network, 16).ok());
        let computed = || Digest::new().word(VERSION).network(&network).end();
        let digest = recorded.unwrap_or_else(computed);
        Ok(Self { path, source, digest, teacher, labels, preprocess })
    }

    fn network(&self) -> Network<'_> {
        Network::read(&self.source).expect("it was read before")
    }

    /// What changed networks are tuned towards.
    fn teacher(&self) -> Result<Network<'_>, BuildError> {
        let source = self.teacher.as_ref().unwrap_or(&self.source);
        Network::read(source).map_err(network_error(&self.path))
    }
}

/// The network of a variant of a set, as it was trained or tuned.
///
/// # Errors
/// [`BuildError`] when the set has no such variant, or only in another form.
pub(crate) fn plain_source(set: &ModelSet, variant: &str) -> Result<Source, BuildError> {
    Ok(Source::open(&set.directory.join(&plain(set, variant)?.graph))?)
}

/// The variant of the set that holds the network of the variant `name` in float32.
fn plain<'a>(set: &'a ModelSet, name: &str) -> Result<&'a Variant, BuildError> {
    let variant = set.variant(name)?;
    float_of(set, variant).ok_or_else(|| BuildError::NotFloat {
        variant: name.to_owned(),
        form: variant.description.clone(),
        out: set.directory.clone(),
    })
}

/// The variant of the set that holds the network of `variant` as it was trained or tuned.
fn float_of<'a>(set: &'a ModelSet, variant: &'a Variant) -> Option<&'a Variant> {
    let is_plain = |variant: &&Variant| {
        variant.side() == BASELINE_SIDE
            && (variant.recipe.as_ref()).is_none_or(|recipe| form_of(recipe) == ["float32"; 2])
    };
    let Some(recipe) = &variant.recipe else {
        return Some(variant).filter(is_plain);
    };
    (set.manifest.variants.iter())
        .filter(|other| other.recipe.as_ref().is_some_and(|r| r.network == recipe.network))
        .find(is_plain)
}

fn form_of(recipe: &Recipe) -> [&str; 2] {
    [&recipe.convolutions, &recipe.linears]
}

/// Photos to calibrate and to tune on.
struct CalibrationPhotos {
    /// All there are, to tune on.
    all: Photos,
    /// As many as the calibration is to use.
    sample: Photos,
}

impl CalibrationPhotos {
    /// Finds them, where a step needs them.
    fn open(build: &Build, base: &Base) -> Result<Option<Self>, BuildError> {
        let needs =
            |step: &&Step| !step.changes.is_empty() || step.form.convolutions == Precision::Int8;
        let Some(needing) = build.steps.iter().find(needs) else {
            return Ok(None);
        };
        let folder =
            (build.photos.as_ref()).ok_or_else(|| BuildError::NoPhotos(needing.name.clone()))?;
        let all = Photos::open(folder, &base.labels, &base.preprocess)?;
        let sample = all.lessons().sample(build.calibration);
        Ok(Some(Self { all, sample }))
    }
}

fn check_fit(build: &Build, base: &Base) -> Result<(), BuildError> {
    if !build.steps.iter().any(|step| step.form.linears == Precision::Int8) {
        return Ok(());
    }
    for layer in &base.network().linears {
        let columns = layer.weight.shape()[1];
        if !columns.is_multiple_of(GROUP) {
            let name = format!("{}.weight", layer.name);
            return Err(BuildError::Columns { path: base.path.clone(), name, columns });
        }
    }
    Ok(())
}

fn check_outside(build: &Build, out: &Path) -> Result<(), BuildError> {
    let weights = match &build.start {
        Start::Weights { weights, .. } => Some(weights),
        Start::Variant(_) => None,
    };
    for path in weights.into_iter().chain(&build.photos) {
        match path.canonicalize() {
            Ok(path) if path.starts_with(out) => {
                return Err(BuildError::Inside { path, out: out.to_owned() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn work_folder(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.work"))
}

fn network_error(path: &Path) -> impl FnOnce(NetworkError) -> BuildError {
    let path = path.to_owned();
    |error| match error {
        NetworkError::Interrupted(interrupted) => interrupted.into(),
        error => BuildError::Network { path, error },
    }
}

/// A variant with what is known of it.
struct Planned<'a> {
    step: &'a Step,
    /// Digests of the network after each change, the base first.
    networks: Vec<u64>,
    recipe: Recipe,
    /// It is in the set as it should be.
    reused: Option<&'a Variant>,
}

struct Workshop<'a> {
    engine: &'a Engine,
    photos: Option<&'a CalibrationPhotos>,
    existing: Option<&'a ModelSet>,
    base: &'a Base,
    work: PathBuf,
}

impl<'a> Workshop<'a> {
    fn plan(&self, step: &'a Step) -> Planned<'a> {
        let digest_of = |photos: fn(&CalibrationPhotos) -> &Photos| {
            self.photos.map_or(0, |found| photos(found).digest())
        };
        let mut networks = vec![self.base.digest];
        for change in &step.changes {
            let before = *networks.last().expect("never empty");
            let digest = Digest::new().word(before).word(match change {
                Change::Prune(_) => digest_of(|photos| &photos.sample),
                Change::Finetune(_) => digest_of(|photos| &photos.all),
            });
            networks.push(digest.bytes(format!("{change:?}").as_bytes()).end());
        }
        let Form { side, convolutions, linears } = step.form;
        let recipe = Recipe {
            network: hex(*networks.last().expect("never empty")),
            convolutions: convolutions.name().to_owned(),
            linears: linears.name().to_owned(),
            photos: (convolutions == Precision::Int8)
                .then(|| hex(digest_of(|photos| &photos.sample))),
        };
        let same = |variant: &&Variant| {
            variant.name == step.name
                && variant.side() == side
                && variant.recipe.as_ref() == Some(&recipe)
        };
        let reused = self.existing.and_then(|set| set.manifest.variants.iter().find(same));
        Planned { step, networks, recipe, reused }
    }

    /// Variants of the set that stay although they are not planned.
    fn kept(&self, start: &Start, planned: &[Planned<'_>]) -> Vec<&'a Variant> {
        match (start, self.existing) {
            (Start::Variant(_), Some(set)) => (set.manifest.variants.iter())
                .filter(|variant| planned.iter().all(|p| p.step.name != variant.name))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Where the network of that digest is, if there is one.
    fn find(&self, digest: u64) -> Option<PathBuf> {
        if digest == self.base.digest {
            return Some(self.base.path.clone());
        }
        let work = self.work.join(format!("{}.safetensors", hex(digest)));
        if work.is_file() {
            return Some(work);
        }
        let set = self.existing?;
        let of = |v: &&Variant| v.recipe.as_ref().is_some_and(|r| r.network == hex(digest));
        let float = set.manifest.variants.iter().find(of).and_then(|v| float_of(set, v))?;
        Some(set.directory.join(&float.graph))
    }

    /// What lies at `path`. The base is mapped once, for each mapping counts as memory.
    fn open(&self, path: &Path) -> Result<Source, SourceError> {
        match path == self.base.path {
            true => Ok(self.base.source.clone()),
            false => Source::open(path),
        }
    }

    /// Makes the networks of a variant that are not there yet.
    fn make(&self, planned: &Planned<'_>, progress: &mut dyn Progress) -> Result<(), BuildError> {
        for (change, pair) in planned.step.changes.iter().zip(planned.networks.windows(2)) {
            if self.find(pair[1]).is_some() {
                continue;
            }
            let path = self.find(pair[0]).expect("made before");
            let source = self.open(&path)?;
            let network = Network::read(&source).map_err(network_error(&path))?;
            let photos =
                self.photos.ok_or_else(|| BuildError::NoPhotos(planned.step.name.clone()))?;
            let changed = match change {
                Change::Prune(target) => {
                    let options = prune::Options::new(*target);
                    let photos = &photos.sample;
                    prune(self.engine, &network, photos, &options, self.folder()?, progress)?
                }
                Change::Finetune(minutes) => {
                    let teacher = self.base.teacher()?;
                    let options = finetune::Options {
                        budget: finetune::Budget::Time(std::time::Duration::from_secs_f64(
                            60.0 * minutes,
                        )),
                        ..finetune::Options::default()
                    };
                    let folder = self.work.join(format!("{}.finetune", hex(pair[1])));
                    let outcome = finetune(
                        self.engine,
                        &network,
                        &teacher,
                        &photos.all,
                        &options,
                        &folder,
                        progress,
                    )?;
                    outcome.network
                }
            };
            self.keep(&changed, pair[1])?;
        }
        Ok(())
    }

    /// The work folder, which is there.
    fn folder(&self) -> Result<&Path, BuildError> {
        fs::create_dir_all(&self.work).map_err(WriteError::io(&self.work))?;
        Ok(&self.work)
    }

    fn keep(&self, network: &Network<'_>, digest: u64) -> Result<(), BuildError> {
        let path = self.folder()?.join(format!("{}.safetensors", hex(digest)));
        let part = path.with_extension("part");
        source::write(&part, &network.tensors())
            .and_then(|()| fs::rename(&part, &path))
            .map_err(WriteError::io(&path))?;
        Ok(())
    }

    fn write(
        &self,
        set: &SetWriter,
        build: &Build,
        planned: &[Planned<'_>],
        kept: Vec<&Variant>,
        progress: &mut dyn Progress,
    ) -> Result<Manifest, BuildError> {
        let reused = planned.iter().filter_map(|planned| planned.reused);
        let stay: Vec<&Variant> = kept.iter().copied().chain(reused).collect();
        let mut files = Vec::new();
        if let Some(existing) = self.existing {
            for file in &existing.manifest.files {
                if stay.iter().any(|variant| variant.weights.contains(&file.path)) {
                    set.link(&existing.directory.join(&file.path), &file.path)?;
                    files.push(file.clone());
                }
            }
            for variant in &stay {
                set.link(&existing.directory.join(&variant.graph), &variant.graph)?;
            }
        }
        let new: Vec<&Planned<'_>> = planned.iter().filter(|p| p.reused.is_none()).collect();
        let mut paths: Vec<(u64, PathBuf)> = Vec::new();
        for planned in &new {
            let digest = *planned.networks.last().expect("never empty");
            if !paths.iter().any(|path| path.0 == digest) {
                paths.push((digest, self.find(digest).expect("made before")));
            }
        }
        let sources = paths.iter().map(|path| self.open(&path.1)).collect::<Result<Vec<_>, _>>()?;
        let networks = (sources.iter().zip(&paths))
            .map(|(source, path)| Network::read(source).map_err(network_error(&path.1)))
            .collect::<Result<Vec<_>, _>>()?;
        let network = |planned: &Planned<'_>| {
            let digest = planned.networks.last();
            let at = paths.iter().position(|path| Some(&path.0) == digest);
            &networks[at.expect("opened before")]
        };
        let mut integers = Vec::new();
        for planned in planned {
            let Form { side, convolutions, .. } = planned.step.form;
            integers.push(if planned.reused.is_none() && convolutions == Precision::Int8 {
                let name = &planned.step.name;
                let photos = self.photos.ok_or_else(|| BuildError::NoPhotos(name.clone()))?;
                progress.now(&format!("{name}: ranges of activations"));
                calibrate(self.engine, network(planned), &photos.sample, side, progress)?
            } else {
                Vec::new()
            });
        }
        progress.begin(work(new.iter().map(|planned| (network(planned), planned.step.form))));
        let mut writer = VariantWriter::new(set, files, progress);
        let mut variants: Vec<Variant> = kept.into_iter().cloned().collect();
        for (planned, integers) in planned.iter().zip(&integers) {
            variants.push(match planned.reused {
                Some(variant) => variant.clone(),
                None => {
                    let step = planned.step;
                    writer.write(&Described {
                        name: &step.name,
                        description: describe(step),
                        prefix: match step.changes.is_empty() {
                            true => String::new(),
                            false => format!("{}.", first_of(planned, build)),
                        },
                        network: network(planned),
                        form: step.form,
                        integers,
                        recipe: Some(planned.recipe.clone()),
                    })?
                }
            });
        }
        let files = writer.finish();
        let labels = set.write("labels.txt", labels::text(&self.base.labels).as_bytes())?;
        Ok(Manifest {
            format: manifest::FORMAT,
            name: build.name.clone(),
            labels: labels.path,
            preprocess: self.base.preprocess.clone(),
            files,
            variants,
        })
    }
}

/// The first variant with the network of `planned`, by which its files are called.
fn first_of<'a>(planned: &Planned<'_>, build: &'a Build) -> &'a str {
    let same = |step: &&Step| step.changes == planned.step.changes;
    &build.steps.iter().find(same).expect("the variant itself").name
}

/// What was done, for people.
fn describe(step: &Step) -> String {
    let mut parts = Vec::new();
    for change in &step.changes {
        parts.push(match change {
            Change::Prune(Target::Ratio(ratio)) => {
                format!("{:.0} % of the filters pruned from conv3_1 on", 100.0 * ratio)
            }
            Change::Prune(Target::Macs(share)) => {
                format!("filters pruned to {:.0} % of the MACs", 100.0 * share)
            }
            Change::Prune(Target::Parameters(share)) => {
                format!("filters pruned to {:.0} % of the parameters", 100.0 * share)
            }
            Change::Prune(Target::Hidden([first, second])) => {
                format!("{first} and {second} hidden units")
            }
            Change::Finetune(minutes) => format!("fine-tuned for {minutes} minutes"),
        });
    }
    let Form { side, convolutions, linears } = step.form;
    match (convolutions, linears) {
        (Precision::Int8, _) => parts.push("int8".to_owned()),
        (_, Precision::Int8) => parts.push("linear layers int8".to_owned()),
        (Precision::Float16, _) => parts.push("stored as float16".to_owned()),
        (Precision::Widened, _) => parts.push("stored as int8 and float16".to_owned()),
        _ if parts.is_empty() && side == BASELINE_SIDE => {
            parts.push("as it was trained: float32".to_owned());
        }
        _ => {}
    }
    parts.push(match side {
        BASELINE_SIDE => format!("{side} x {side}"),
        side => format!("{side} x {side}, pooling folded into the first linear layer"),
    });
    parts.join(", ")
}
