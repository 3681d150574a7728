//! Sets built from plans, and sets that get another variant.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vggd::manifest::{Manifest, ModelSet, Preprocess};
use vggd::model::{Engine, Model};
use vggd_models::build::{Build, BuildError, Start, build};
use vggd_models::evaluate::{evaluate, record};
use vggd_models::forward::{self, Map, Take};
use vggd_models::judge;
use vggd_models::network::Network;
use vggd_models::parts::Precision;
use vggd_models::photos::Photos;
use vggd_models::plan::{self, Change, PlannedVariant, Step};
use vggd_models::progress::{Interrupted, Progress};
use vggd_models::prune::{Options, Target, prune};
use vggd_models::source::{self, Source};
use vggd_models::tensor::Tensor;
use vggd_models::tiny;
use vggd_models::variant::Form;

const CLASSES: usize = 10;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(photos: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        tiny::write(&path.join("tiny.safetensors"), CLASSES).unwrap();
        let labels: String = tiny::labels(CLASSES).iter().map(|l| format!("{l}\n")).collect();
        fs::write(path.join("labels.txt"), labels).unwrap();
        fs::create_dir(path.join("photos")).unwrap();
        for number in 0..photos {
            let photo = image::RgbImage::from_fn(256, 240, |x, y| {
                let wave = |scale| ((x * scale + y * (number % 7 + 1) + number * 37) % 256) as u8;
                image::Rgb([wave(1 + number % 5), wave(3), wave(7)])
            });
            photo.save(path.join(format!("photos/{number}.png"))).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn request(&self, steps: Vec<Step>) -> Build {
        Build {
            out: self.path("set"),
            name: "tiny".to_owned(),
            start: Start::Weights {
                weights: self.path("tiny.safetensors"),
                labels: self.path("labels.txt"),
                preprocess: Default::default(),
            },
            photos: Some(self.path("photos")),
            calibration: 8,
            steps,
            force: true,
        }
    }

    fn build(&self, steps: Vec<Step>) -> Manifest {
        build(&Engine::new(2), &self.request(steps), &mut ()).unwrap()
    }

    fn set(&self) -> ModelSet {
        let set = ModelSet::open(&self.path("set")).unwrap();
        set.verify().unwrap();
        set
    }
}

fn step(name: &str, changes: &[Change], form: Form) -> Step {
    Step { name: name.to_owned(), changes: changes.to_owned(), form }
}

/// The default plan, with more pruning, since the tiny network's layers are a block or two wide.
fn default_steps() -> Vec<Step> {
    let mut steps = plan::steps(&plan::default_variants()).unwrap();
    for change in steps.iter_mut().flat_map(|step| &mut step.changes) {
        *change = Change::Prune(Target::Ratio(0.4));
    }
    steps
}

fn inodes(folder: &Path) -> BTreeMap<String, u64> {
    (fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().ino()))
        .collect()
}

fn widths(set: &ModelSet, variant: &str) -> Vec<usize> {
    let path = set.directory.join(&set.variant(variant).unwrap().graph);
    let source = Source::open(&path).unwrap();
    Network::read(&source).unwrap().topology().channels.to_vec()
}

#[test]
fn the_default_plan_is_built_and_what_has_not_changed_is_taken_over() {
    let place = Place::new(12);
    let manifest = place.build(default_steps());
    let set = place.set();
    assert_eq!(set.manifest, manifest);
    assert_eq!(set.names().len(), 8);
    let pruned = widths(&set, "pruned");
    assert_eq!(pruned, [16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32, 64]);
    let baseline = set.variant("baseline").unwrap();
    for (name, side, smaller) in [
        ("pruned", 224, true),
        ("quantized", 224, false),
        ("scaled", 160, true),
        ("pruned-quantized-scaled", 160, true),
        ("int8", 224, false),
        ("pruned-int8-scaled", 160, true),
    ] {
        let variant = set.variant(name).unwrap();
        assert_eq!(variant.side(), side, "{name}");
        assert_eq!(variant.macs < baseline.macs, smaller, "{name}");
    }
    let shared = |a: &str, b: &str| {
        let weights = |name| set.variant(name).unwrap().weights.clone();
        weights(a).iter().filter(|file| weights(b).contains(file)).count()
    };
    assert_eq!(shared("baseline", "quantized"), 2);
    assert_eq!(shared("quantized", "int8"), 3);
    assert_eq!(shared("pruned", "pruned-quantized"), 2);
    assert!(!place.path(".set.work").exists());

    let photos = Photos::open(&place.path("photos"), &[], &Preprocess::default()).unwrap();
    let engine = Engine::new(2);
    let all: Vec<_> = set.manifest.variants.iter().collect();
    let judged = evaluate(&engine, &set, &all, &photos, &mut ()).unwrap();
    for evaluation in &judged {
        let limit = match evaluation.variant.as_str() {
            "baseline" => 1e-12,
            "quantized" => 0.01,
            _ => f64::INFINITY,
        };
        assert!(evaluation.divergence < limit, "{evaluation:?}");
        assert_eq!(evaluation.top1, None);
    }
    record(&place.path("set"), &judged).unwrap();
    assert_eq!(place.set().variant("baseline").unwrap().agreement, Some(1.0));

    let before = inodes(&place.path("set"));
    let mut steps = default_steps();
    steps.truncate(6);
    steps.push(step("small", &[], Form { side: 96, ..Form::PLAIN }));
    let manifest = place.build(steps);
    let after = inodes(&place.path("set"));
    assert_eq!(manifest.variants.last().unwrap().name, "small");
    assert_eq!(manifest.variants[1].agreement, set_agreement(&judged, "pruned"));
    for name in ["baseline.onnx", "pruned.onnx", "pruned.features.bin", "classifier.0.bin"] {
        assert_eq!(before[name], after[name], "{name} was written again");
    }
    assert!(!after.contains_key("int8.onnx") && !after.contains_key("features.int8.bin"));
    place.set();
}

fn set_agreement(judged: &[vggd_models::evaluate::Evaluation], variant: &str) -> Option<f64> {
    let found = judged.iter().find(|evaluation| evaluation.variant == variant)?;
    Some((found.agreement * 1e6).round() / 1e6)
}

#[test]
fn variants_are_added_to_a_set() {
    let place = Place::new(12);
    place.build(vec![step("baseline", &[], Form::PLAIN)]);
    let add = |from: &str, step: Step, force: bool| {
        let start = Start::Variant(from.to_owned());
        let request = Build { start, force, ..place.request(vec![step]) };
        build(&Engine::new(1), &request, &mut ())
    };
    let fewer = [Change::Prune(Target::Macs(0.9))];
    let manifest = add("baseline", step("fewer", &fewer, Form::PLAIN), false).unwrap();
    let [baseline, pruned] = &manifest.variants[..] else { panic!("{manifest:?}") };
    let share = pruned.macs as f64 / baseline.macs as f64;
    assert!((0.8..=0.9).contains(&share), "{share}");
    let set = place.set();
    assert!(widths(&set, "fewer").iter().all(|width| width % 16 == 0));

    let int8 = Form { linears: Precision::Int8, ..Form::PLAIN };
    add("fewer", step("fewer-quantized", &[], int8), false).unwrap();
    // The network of a quantized variant is that of the float32 one.
    let scaled = Form { side: 160, ..int8 };
    add("fewer-quantized", step("fewer-quantized-scaled", &[], scaled), false).unwrap();
    let set = place.set();
    assert_eq!(set.names(), ["baseline", "fewer", "fewer-quantized", "fewer-quantized-scaled"]);
    let engine = Engine::new(2);
    for variant in &set.manifest.variants {
        let model = Model::load(&set, variant, &engine).unwrap();
        let input = vec![0.5; 3 * variant.side() * variant.side()];
        assert_eq!(model.infer(&input).unwrap().len(), CLASSES);
    }

    let again = add("baseline", step("fewer", &[], Form::PLAIN), false);
    assert!(matches!(again, Err(BuildError::Taken { .. })), "{again:?}");
    add("baseline", step("fewer", &[], Form { side: 96, ..Form::PLAIN }), true).unwrap();
    assert_eq!(place.set().variant("fewer").unwrap().side(), 96);
    let gone = add("fewer-quantized", step("other", &fewer, Form::PLAIN), false);
    assert!(matches!(gone, Err(BuildError::NotFloat { .. })), "{gone:?}");
}

/// The tiny network with filters that give that share of what another one does: whoever reads them
/// can do without them.
fn redundant(path: &Path, share: f32) {
    let mut tensors = tiny::tensors(&tiny::topology(CLASSES));
    for index in [19, 21, 23, 25, 28, 30, 32] {
        for part in ["weight", "bias"] {
            let tensor = tensors.get_mut(&format!("features.{index}.{part}")).unwrap();
            let shape = tensor.shape().to_owned();
            let mut values = tensor.values().into_owned();
            let row = values.len() / shape[0];
            for at in (shape[0] - 16) * row..values.len() {
                values[at] = share * values[at - (shape[0] - 16) * row];
            }
            *tensor = Tensor::new(shape, values);
        }
    }
    source::write(path, &tensors).unwrap();
}

fn answers(engine: &Engine, network: &Network<'_>, photos: &Photos) -> Vec<f32> {
    let layers = forward::convolutions(engine, network, 224);
    let features = (0..photos.len()).flat_map(|photo| {
        let mut map = Map::image(photos.input(photo, 224).unwrap(), 224);
        for layer in &layers {
            map = layer.run(engine, &map, Take::Activation);
        }
        forward::pooled(&map)
    });
    forward::classify(network, &features.collect::<Vec<_>>())
}

#[test]
fn correction_takes_back_what_other_filters_know() {
    let place = Place::new(16);
    let engine = Engine::new(2);
    let photos = Photos::open(&place.path("photos"), &[], &Preprocess::default()).unwrap();
    let [source, silent] = [0.5, 0.0].map(|share| {
        let path = place.path(&format!("{share}.safetensors"));
        redundant(&path, share);
        Source::open(&path).unwrap()
    });
    let network = Network::read(&source).unwrap();
    let whole = answers(&engine, &network, &photos);
    let divergence =
        |other: &Network<'_>| judge::divergence(&whole, &answers(&engine, other, &photos), CLASSES);
    let uncorrected = divergence(&Network::read(&silent).unwrap());
    for target in [Target::Ratio(0.3), Target::Macs(0.9), Target::Parameters(0.9)] {
        let options = Options::new(target);
        let scratch = place.folder.path();
        let pruned = prune(&engine, &network, &photos, &options, scratch, &mut ()).unwrap();
        let corrected = divergence(&pruned);
        assert!(corrected < 0.1 * uncorrected, "{target:?}: {corrected}, {uncorrected} without");
    }
}

#[test]
fn a_narrowed_classifier_answers_much_as_the_whole_one() {
    let place = Place::new(40);
    let engine = Engine::new(2);
    let photos = Photos::open(&place.path("photos"), &[], &Preprocess::default()).unwrap();
    let source = Source::open(&place.path("tiny.safetensors")).unwrap();
    let network = Network::read(&source).unwrap();
    let (options, scratch) = (Options::new(Target::Hidden([64, 64])), place.folder.path());
    let narrow = prune(&engine, &network, &photos, &options, scratch, &mut ()).unwrap();
    assert_eq!(narrow.topology().hidden, [64, 64]);
    assert_eq!(narrow.topology().channels, network.topology().channels);

    // The first units of each layer as they are.
    let mut tensors = tiny::tensors(&tiny::topology(CLASSES));
    for (name, [rows, columns]) in [
        ("classifier.0", [64, usize::MAX]),
        ("classifier.3", [64, 64]),
        ("classifier.6", [usize::MAX, 64]),
    ] {
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
        let kept = tensors[&weight].rows().take(rows);
        let kept: Vec<Vec<f32>> = kept.map(|row| row[..row.len().min(columns)].to_vec()).collect();
        let shape = vec![kept.len(), kept[0].len()];
        let biases = tensors[&bias].values()[..kept.len()].to_vec();
        tensors.insert(weight, Tensor::new(shape, kept.concat()));
        tensors.insert(bias, Tensor::new(vec![biases.len()], biases));
    }
    let path = place.path("cut.safetensors");
    source::write(&path, &tensors).unwrap();
    let source = Source::open(&path).unwrap();
    let cut = Network::read(&source).unwrap();

    let [whole, narrow, cut] =
        [&network, &narrow, &cut].map(|network| answers(&engine, network, &photos));
    let [narrow, cut] = [narrow, cut].map(|other| judge::divergence(&whole, &other, CLASSES));
    assert!(narrow < 0.2 * cut, "{narrow}, {cut} without training");
}

#[test]
fn a_pruned_variant_is_tuned_towards_the_baseline_of_its_set() {
    let place = Place::new(40);
    let pruned = [Change::Prune(Target::Ratio(0.5))];
    place.build(vec![step("baseline", &[], Form::PLAIN), step("pruned", &pruned, Form::PLAIN)]);
    let tuned = step("tuned", &[Change::Finetune(0.1)], Form::PLAIN);
    let start = Start::Variant("pruned".to_owned());
    let request = Build { start, force: false, ..place.request(vec![tuned]) };
    let engine = Engine::new(2);
    build(&engine, &request, &mut ()).unwrap();

    let set = place.set();
    let photos = Photos::open(&place.path("photos"), &[], &Preprocess::default()).unwrap();
    let variants: Vec<_> = set.manifest.variants.iter().collect();
    let judged = evaluate(&engine, &set, &variants, &photos, &mut ()).unwrap();
    let [_, pruned, tuned] = &judged[..] else { panic!("{judged:?}") };
    assert_eq!((pruned.macs, tuned.variant.as_str()), (tuned.macs, "tuned"));
    assert!(tuned.divergence < pruned.divergence, "{tuned:?}, {pruned:?}");
}

/// Stops when it has been told of so much.
struct Stop(u64);

impl Progress for Stop {
    fn begin(&mut self, _bytes: u64) {}

    fn now(&mut self, _what: &str) {}

    fn advance(&mut self, _done: u64) -> Result<(), Interrupted> {
        self.0 = self.0.saturating_sub(1);
        if self.0 == 0 { Err(Interrupted) } else { Ok(()) }
    }
}

#[test]
fn a_build_that_was_stopped_leaves_nothing_but_its_work_and_goes_on_with_it() {
    let place = Place::new(8);
    let steps = || {
        let prune = vec![Change::Prune(Target::Ratio(0.4))];
        let int8 = Form { convolutions: Precision::Int8, linears: Precision::Int8, side: 224 };
        vec![step("baseline", &[], Form::PLAIN), step("int8", &prune, int8)]
    };
    let engine = Engine::new(2);
    let mut stopped_with_work = 0;
    for after in [1, 30, 140, 170, 260] {
        let result = build(&engine, &place.request(steps()), &mut Stop(after));
        assert!(matches!(&result, Err(error) if error.to_string().contains("interrupted")));
        assert!(!place.path("set").exists());
        let work = place.path(".set.work");
        stopped_with_work += u32::from(work.exists());
    }
    assert!(stopped_with_work > 0, "no stop came after the network was pruned");
    let kept = inodes(&place.path(".set.work"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    place.build(steps());
    let found = fs::read_dir(place.folder.path()).unwrap();
    let hidden: Vec<_> = (found.map(|e| e.unwrap().file_name().into_string().unwrap()))
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    place.set();
}

#[test]
fn what_cannot_be_built_says_why() {
    let place = Place::new(1);
    let prune = vec![step("p", &[Change::Prune(Target::Macs(0.001))], Form::PLAIN)];
    let message =
        |request: &Build| build(&Engine::new(1), request, &mut ()).unwrap_err().to_string();
    let request = place.request(prune);
    let error = message(&request);
    assert!(error.contains("no less than"), "{error}");
    let error = message(&Build { photos: None, ..request.clone() });
    assert!(error.contains("'p' needs calibration photos"), "{error}");
    let error = message(&Build { photos: Some(place.path("nothing")), ..request.clone() });
    assert!(error.contains("nothing"), "{error}");
    fs::write(place.path("photos/broken.jpg"), "no photo").unwrap();
    let prune = vec![step("p", &[Change::Prune(Target::Macs(0.9))], Form::PLAIN)];
    let error = message(&place.request(prune));
    assert!(error.contains("broken.jpg"), "{error}");
    let variants = [PlannedVariant { name: "a".into(), side: Some(300), ..Default::default() }];
    assert!(plan::steps(&variants).unwrap_err().to_string().contains("300"));
    assert!(!place.path("set").exists());
}
