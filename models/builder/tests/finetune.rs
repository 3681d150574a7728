//! Fine-tuning a tiny network towards the one it was made from.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use vggd::model::Engine;
use vggd_models::finetune::{Budget, Examples, FinetuneError, Options, Outcome, View, finetune};
use vggd_models::network::{Layer, Network};
use vggd_models::progress::{Interrupted, Progress};
use vggd_models::random::Random;
use vggd_models::tensor::Tensor;
use vggd_models::tiny;
use vggd_models::topology::{CONVOLUTIONS, LINEARS};

const CLASSES: usize = 8;

/// Coarse random patterns; a crop is a brighter one, perhaps mirrored.
#[derive(Clone)]
struct Patterns {
    count: usize,
    labelled: bool,
    broken: Option<usize>,
}

impl Patterns {
    fn new(count: usize) -> Self {
        Self { count, labelled: false, broken: None }
    }
}

impl Examples for Patterns {
    fn count(&self) -> usize {
        self.count
    }

    fn name(&self, photo: usize) -> String {
        format!("{photo}.jpg")
    }

    fn label(&self, photo: usize) -> Option<usize> {
        (self.labelled && photo.is_multiple_of(2)).then_some(photo % CLASSES)
    }

    fn input(
        &self,
        photo: usize,
        view: View,
        side: usize,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        if self.broken == Some(photo) {
            return Err("cut off".into());
        }
        let mut random = Random::new(photo as u64);
        let coarse: Vec<f32> = (0..3 * 8 * 8).map(|_| 2.0 * random.normal()).collect();
        let (mirrored, gain) = match view {
            View::Whole => (false, 1.0),
            View::Crop(seed) => {
                let mut random = Random::new(seed);
                (random.uniform() < 0.5, 0.8 + 0.4 * random.uniform())
            }
        };
        let cell = side / 8;
        let value = |at: usize| {
            let (channel, y, x) = (at / (side * side), at / side % side, at % side);
            let x = if mirrored { side - 1 - x } else { x };
            gain * coarse[(channel * 8 + y / cell) * 8 + x / cell]
        };
        Ok((0..3 * side * side).map(value).collect())
    }
}

/// The tiny network with as much noise, as a share of each layer's weights.
fn network(noise: f32) -> Network<'static> {
    let mut tensors = tiny::tensors(&tiny::topology(CLASSES));
    let mut random = Random::new(99);
    let mut layer = |name: String| {
        let weight = tensors.remove(&format!("{name}.weight")).unwrap();
        let bias = tensors.remove(&format!("{name}.bias")).unwrap();
        let values = weight.values();
        let mean = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        let noisy = values.iter().map(|value| value + noise * mean.sqrt() * random.normal());
        let weight = Tensor::new(weight.shape().to_vec(), noisy.collect());
        Layer { name, weight, bias }
    };
    Network {
        convolutions: CONVOLUTIONS.map(|at| layer(format!("features.{at}"))).into(),
        linears: LINEARS.map(|at| layer(format!("classifier.{at}"))).into(),
    }
}

fn options() -> Options {
    Options {
        budget: Budget::Epochs(4),
        batch: 8,
        side: 32,
        teacher_side: 32,
        crops: 2,
        learning_rate: 3e-3,
        ..Options::default()
    }
}

fn tune(
    folder: &Path,
    photos: &Patterns,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Outcome<'static>, FinetuneError> {
    let (student, teacher) = (network(0.1), network(0.0));
    finetune(&Engine::new(2), &student, &teacher, photos, options, folder, progress)
}

fn values(network: &Network<'_>) -> Vec<f32> {
    network
        .layers()
        .flat_map(|layer| [&layer.weight, &layer.bias])
        .flat_map(|tensor| tensor.values().into_owned())
        .collect()
}

/// Interrupts after so many steps.
struct Impatient(u32);

impl Progress for Impatient {
    fn begin(&mut self, _bytes: u64) {}

    fn count(&mut self, _things: u64) {}

    fn now(&mut self, _what: &str) {}

    fn advance(&mut self, _done: u64) -> Result<(), Interrupted> {
        self.0 -= 1;
        if self.0 == 0 { Err(Interrupted) } else { Ok(()) }
    }
}

/// A run that has taken a few steps.
fn begin(folder: &Path, photos: &Patterns) {
    let error = refusal(tune(folder, photos, &options(), &mut Impatient(7)));
    assert!(matches!(error, FinetuneError::Interrupted { .. }), "{error}");
}

fn refusal(result: Result<Outcome<'_>, FinetuneError>) -> FinetuneError {
    result.map(|outcome| outcome.improved).unwrap_err()
}

#[test]
fn brings_a_student_nearer_to_its_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = tune(folder.path(), &Patterns::new(64), &options(), &mut ()).unwrap();
    let Outcome { given, best, .. } = &outcome;
    assert!(outcome.improved && best.divergence < 0.7 * given.divergence, "{given:?} {best:?}");
    assert_eq!((outcome.held_back, outcome.lessons, outcome.steps), (16, 48, 24));
    assert_eq!((given.top1, outcome.epochs, outcome.diverged), (None, 4.0, false));
    assert_ne!(values(&outcome.network), values(&network(0.1)));
    assert_eq!(outcome.network.topology(), network(0.1).topology());
}

#[test]
fn goes_on_where_it_was_interrupted() {
    let photos = Patterns::new(40);
    let options = options();
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = tune(whole.path(), &photos, &options, &mut ()).unwrap();
    let mut interrupted = 0;
    let found = loop {
        match tune(parts.path(), &photos, &options, &mut Impatient(11)) {
            Ok(outcome) => break outcome,
            Err(FinetuneError::Interrupted { path }) => assert_eq!(path, parts.path()),
            Err(error) => panic!("{error}"),
        }
        interrupted += 1;
    };
    assert!(interrupted > 2, "{interrupted}");
    assert_eq!((found.steps, found.given), (expected.steps, expected.given));
    assert!((found.best.divergence / expected.best.divergence - 1.0).abs() < 1e-3);
    let (found, expected) = (values(&found.network), values(&expected.network));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(0.1), "{found} {expected}");
    }
    let again = tune(parts.path(), &photos, &options, &mut ()).unwrap();
    assert_eq!(again.best, tune(parts.path(), &photos, &options, &mut ()).unwrap().best);
}

#[test]
fn never_hands_on_what_is_worse() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { learning_rate: 30.0, ..options() };
    let outcome = tune(folder.path(), &Patterns::new(40), &options, &mut ()).unwrap();
    assert!(!outcome.improved);
    assert_eq!(outcome.best, outcome.given);
    assert_eq!(values(&outcome.network), values(&network(0.1)));
}

#[test]
fn asks_the_teacher_once_about_each_view() {
    let folder = tempfile::tempdir().unwrap();
    let answers = folder.path().join("teacher.answers");
    let photos = Patterns::new(40);
    tune(folder.path(), &photos, &options(), &mut ()).unwrap();
    let record = 8 + 4 * CLASSES + 8;
    let asked = 24 + (16 + 2 * 24) * record;
    assert_eq!(fs::metadata(&answers).unwrap().len(), asked as u64);

    let other = Options { temperature: 2.0, restart: true, ..options() };
    tune(folder.path(), &photos, &other, &mut ()).unwrap();
    assert_eq!(fs::metadata(&answers).unwrap().len(), asked as u64);

    let file = OpenOptions::new().write(true).open(&answers).unwrap();
    file.set_len(asked as u64 - 1).unwrap();
    tune(folder.path(), &photos, &other, &mut ()).unwrap();
    assert_eq!(fs::metadata(&answers).unwrap().len(), asked as u64);
}

#[test]
fn labels_count_where_there_are_any() {
    let photos = Patterns { labelled: true, ..Patterns::new(40) };
    let tuned = |label_weight| {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { label_weight, budget: Budget::Epochs(1), ..options() };
        tune(folder.path(), &photos, &options, &mut ()).unwrap()
    };
    let (without, with) = (tuned(0.0), tuned(0.5));
    assert!(without.given.top1.is_some());
    assert_eq!(without.given, with.given);
    assert_ne!(values(&without.network), values(&with.network));
}

#[test]
fn frozen_layers_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { freeze_linears: true, budget: Budget::Epochs(1), ..options() };
    let outcome = tune(folder.path(), &Patterns::new(40), &options, &mut ()).unwrap();
    assert!(outcome.improved);
    let given = network(0.1);
    for (tuned, given) in outcome.network.layers().zip(given.layers()) {
        let same = tuned.weight.values() == given.weight.values();
        assert_eq!(same, given.name.starts_with("classifier"), "{}", given.name);
    }
}

#[test]
fn a_student_of_another_input_side_learns_too() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { teacher_side: 64, budget: Budget::Epochs(2), ..options() };
    let outcome = tune(folder.path(), &Patterns::new(40), &options, &mut ()).unwrap();
    assert!(outcome.improved, "{:?} {:?}", outcome.given, outcome.best);
}

#[test]
fn ends_when_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget::Time(Duration::from_secs(1));
    let options = Options { budget, save_every: Duration::ZERO, ..options() };
    let outcome = tune(folder.path(), &Patterns::new(40), &options, &mut ()).unwrap();
    assert!(outcome.steps > 0, "{}", outcome.steps);
    let seconds = outcome.elapsed.as_secs();
    assert!((1..60).contains(&seconds), "{seconds}");
}

#[test]
fn another_run_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let photos = Patterns::new(40);
    begin(folder.path(), &photos);
    let check = |photos: &Patterns, options: &Options, expected: &str| {
        let error = refusal(tune(folder.path(), photos, options, &mut ()));
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&Patterns::new(41), &options(), "holds a run with other photos");
    let other = Options { temperature: 4.0, ..options() };
    check(&photos, &other, "other temperature (1, not 4)");
    let other = Options { seed: 1, restart: true, ..options() };
    assert_eq!(tune(folder.path(), &photos, &other, &mut ()).unwrap().steps, 12);
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let photos = Patterns::new(40);
    let check = |name: &str, damage: fn(&mut Vec<u8>)| {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path(), &photos);
        let file = fs::read_dir(folder.path()).unwrap().find_map(|entry| {
            let path = entry.unwrap().path();
            path.file_name().unwrap().to_str().unwrap().starts_with(name).then_some(path)
        });
        let file = file.unwrap();
        let mut bytes = fs::read(&file).unwrap();
        damage(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let error = refusal(tune(folder.path(), &photos, &options(), &mut ()));
        assert!(matches!(error, FinetuneError::Damaged { .. }), "{name}: {error}");
        let fresh = Options { restart: true, budget: Budget::Epochs(1), ..options() };
        assert!(tune(folder.path(), &photos, &fresh, &mut ()).is_ok(), "{name}");
    };
    check("run.txt", |bytes| bytes.truncate(200));
    check("step-", |bytes| bytes.truncate(bytes.len() - 4));
    check("step-", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
    });
}

#[test]
fn what_cannot_be_tuned_is_refused() {
    let check = |photos: Patterns, options: Options, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        let error = refusal(tune(folder.path(), &photos, &options, &mut ()));
        assert!(error.to_string().contains(expected), "{error}");
    };
    let photos = Patterns::new(40);
    check(Patterns::new(31), options(), "31 photos are too few: 16 are held back");
    check(photos.clone(), Options { side: 100, ..options() }, "input side 100: must be");
    check(photos.clone(), Options { batch: 0, ..options() }, "batch 0: must be at least 1");
    let rate = Options { learning_rate: f64::NAN, ..options() };
    check(photos.clone(), rate, "learning rate NaN: must be above 0");
    for photo in [0, 1, 2] {
        let broken = Patterns { broken: Some(photo), ..photos.clone() };
        check(broken, options(), &format!("'{photo}.jpg': cut off"));
    }
}
