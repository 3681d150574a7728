//! Every variant computes what onnxruntime computes from the same file.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::witness::{python, reference, reference_photos};
use common::{jpeg, models};
use vggd::config::{self, Config};
use vggd::manifest::{ModelSet, Variant};
use vggd::model::{Engine, Model};
use vggd::pipeline::Pipeline;
use vggd::preprocess::{self, Limits};
use vggd::source::Picture;
use vggd_models::build::{Build, Start, build};
use vggd_models::parts::Precision;
use vggd_models::plan;
use vggd_models::prune::Target;
use vggd_models::variant::Form;

/// What the witness imports.
const MODULES: &str = "numpy, onnx, onnxruntime";

/// Largest difference of a logit, as a share of the logits' range.
const FLOAT: f32 = 1e-3;

/// The same where activations are bytes, for single photos: a sum in the middle between two bytes may
/// become either, and all layers behind see that. Half of the photos must not meet with it.
const BYTES: f32 = 0.25;

fn check_set(python: &Path, directory: &Path, photos: &[Vec<u8>]) {
    let set = ModelSet::open(directory).unwrap();
    for variant in &set.manifest.variants {
        check_variant(python, &set, variant, photos);
    }
}

fn check_variant(python: &Path, set: &ModelSet, variant: &Variant, photos: &[Vec<u8>]) {
    let limits = Limits { max_pixels: 1 << 24 };
    let inputs: Vec<Vec<f32>> = (photos.iter())
        .map(|bytes| preprocess::decode(bytes, &limits).unwrap())
        .map(|photo| preprocess::to_input(&photo, variant.side(), &set.manifest.preprocess))
        .collect();
    let theirs = onnxruntime(python, &set.directory.join(&variant.graph), &inputs);
    let is_bytes = variant.recipe.as_ref().is_some_and(|recipe| recipe.convolutions == "int8");
    let tolerated = if is_bytes { BYTES } else { FLOAT };
    for threads in [1, 2] {
        let engine = Engine::new(threads);
        let model = Model::load(set, variant, &engine).unwrap();
        let mut same = 0;
        for (number, (input, theirs)) in inputs.iter().zip(&theirs).enumerate() {
            let ours = model.infer(input).unwrap();
            let what = format!("{}, photo {number}, {threads} threads", variant.name);
            same += usize::from(compare(&what, tolerated, &ours, theirs) <= FLOAT);
        }
        assert!(2 * same >= inputs.len(), "{}: only {same} photos", variant.name);
    }
}

/// The largest difference of a logit, as a share of their range.
fn compare(what: &str, tolerated: f32, ours: &[f32], theirs: &[f32]) -> f32 {
    let (low, high) =
        (theirs.iter().copied().reduce(f32::min), theirs.iter().copied().reduce(f32::max));
    let range = high.unwrap() - low.unwrap();
    assert!(range > 0.1, "{what}: all logits are alike");
    let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= tolerated * range, "{what}: {difference} of {range}");
    difference / range
}

fn onnxruntime(python: &Path, graph: &Path, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("inputs"), folder.path().join("logits"));
    let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(&source, bytes).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/witness.py");
    let status = Command::new(python).arg(script).args([graph, &source, &target]).status();
    assert!(status.unwrap().success(), "onnxruntime failed on {}", graph.display());
    let logits: Vec<f32> = fs::read(target)
        .unwrap()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    logits.chunks_exact(logits.len() / inputs.len()).map(<[f32]>::to_vec).collect()
}

#[test]
fn the_tiny_set_computes_what_onnxruntime_computes() {
    let Some(python) = python(MODULES) else { return };
    let photos: Vec<_> = (0..8).map(jpeg).collect();
    check_set(&python, models(), &photos);
}

/// The set that comes with the source.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/sample");

fn sample_photos() -> Vec<PathBuf> {
    let photos = fs::read_dir(Path::new(SAMPLE).join("photos")).unwrap();
    let photos = photos.map(|entry| entry.unwrap().path());
    let photos = photos.filter(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    photos.collect()
}

#[test]
fn the_sample_set_computes_what_onnxruntime_computes() {
    let Some(python) = python(MODULES) else { return };
    let photos: Vec<_> = sample_photos().iter().map(|path| fs::read(path).unwrap()).collect();
    check_set(&python, Path::new(SAMPLE), &photos);
}

/// Where half precision is not faster for convolutions, only linear layers differ.
#[test]
fn logits_at_half_precision_are_within_a_hundredth_of_float32() {
    let set = ModelSet::open(Path::new(SAMPLE)).unwrap();
    let mut config = Config::load(None).unwrap();
    config.model.precision = config::Precision::Half;
    let half = Engine::configured(&config.model).unwrap();
    let pipeline = Pipeline::new(&config.source);
    let photos = sample_photos();
    for name in ["baseline", "quantized", "pruned-quantized-scaled"] {
        let variant = set.variant(name).unwrap();
        let [single, half] =
            [&Engine::new(2), &half].map(|engine| Model::load(&set, variant, engine).unwrap());
        for photo in &photos {
            let decoded = pipeline.decode(&mut Picture::File(photo.to_owned())).unwrap();
            let input = pipeline.prepare(&decoded, &single).input;
            let [single, half] = [&single, &half].map(|model| model.infer(&input).unwrap());
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
            let off = norm(&mut single.iter().zip(&half).map(|(a, b)| a - b));
            let share = (off / norm(&mut single.iter().copied())).sqrt();
            assert!(share <= 0.01, "{name}, {}: relative L2 {share}", photo.display());
        }
    }
}

#[test]
fn the_default_plan_computes_what_onnxruntime_computes() {
    let Some(python) = python(MODULES) else { return };
    let folder = tempfile::tempdir().unwrap();
    let photos: Vec<_> = (0..8).map(jpeg).collect();
    let calibration = folder.path().join("photos");
    fs::create_dir(&calibration).unwrap();
    for (number, photo) in photos.iter().enumerate() {
        fs::write(calibration.join(format!("{number}.jpg")), photo).unwrap();
    }
    vggd_models::tiny::set(folder.path(), 10).unwrap();
    let mut steps = plan::steps(&plan::default_variants()).unwrap();
    for change in steps.iter_mut().flat_map(|step| &mut step.changes) {
        *change = plan::Change::Prune(Target::Ratio(0.4));
    }
    for (name, convolutions) in [("half", Precision::Float16), ("bytes", Precision::Widened)] {
        let form = Form { convolutions, linears: Precision::Float16, ..Form::PLAIN };
        steps.push(plan::Step { name: name.to_owned(), changes: Vec::new(), form });
    }
    let request = Build {
        out: folder.path().join("built"),
        name: "tiny".to_owned(),
        start: Start::Weights {
            weights: folder.path().join("tiny.safetensors"),
            labels: folder.path().join("labels.txt"),
            preprocess: Default::default(),
        },
        photos: Some(calibration),
        calibration: 8,
        steps,
        force: false,
    };
    build(&Engine::new(2), &request, &mut ()).unwrap();
    check_set(&python, &request.out, &photos);
}

#[test]
fn the_reference_set_computes_what_onnxruntime_computes() {
    let (Some(python), Some(reference)) = (python(MODULES), reference()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let import = vggd_models::import::Import {
        source: folder.path().join("vgg19.safetensors"),
        labels: reference.join("imagenet-labels.txt"),
        preprocess: Default::default(),
        out: folder.path().join("set"),
        name: "reference".to_owned(),
        force: false,
    };
    let script = reference.join("expand.py");
    let status = Command::new(&python).arg(script).arg(&import.source).status();
    assert!(status.unwrap().success(), "the reference model could not be expanded");
    vggd_models::import::import(&import, &mut ()).unwrap();

    let photos = reference_photos(&reference, "evaluation", 10);
    let photos: Vec<_> = photos.into_iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(photos.len(), 50);
    check_set(&python, &import.out, &photos);
}
