//! Sets for own classes, from a folder of photos for each.

use std::fs;
use std::path::{Path, PathBuf};

use vggd::manifest::ModelSet;
use vggd::model::Engine;
use vggd_models::adapt::{Adapt, AdaptError, Outcome, adapt};
use vggd_models::evaluate::evaluate;
use vggd_models::photos::Photos;
use vggd_models::random::Random;
use vggd_models::tiny;

const CLASSES: [&str; 3] = ["checks", "noise", "stripes"];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tiny::set(folder.path(), 10).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Photos of patterns; `class_of` says into which class's folder each goes.
    fn photos(&self, folder: &str, first: u32, count: u32, class_of: impl Fn(u32, usize) -> usize) {
        for number in first..first + count {
            for kind in 0..CLASSES.len() {
                let photo = pattern(kind, number);
                let class = CLASSES[class_of(number, kind)];
                let place = self.path(folder).join(class);
                fs::create_dir_all(&place).unwrap();
                photo.save(place.join(format!("{number:03}-{kind}.png"))).unwrap();
            }
        }
    }

    fn adapt(&self, photos: &str) -> Result<Outcome, AdaptError> {
        let request = Adapt {
            photos: self.path(photos),
            set: self.path("set"),
            from: "baseline".to_owned(),
            out: self.path("own"),
            name: "own".to_owned(),
            force: true,
        };
        adapt(&Engine::new(2), &request, &mut ())
    }
}

fn pattern(kind: usize, number: u32) -> image::RgbImage {
    let mut random = Random::new(u64::from(number));
    let size = 12 + number % 5;
    let base = 60.0 * random.uniform();
    image::RgbImage::from_fn(240, 230, |x, y| {
        let bright = match kind {
            0 => (x / size + y / size).is_multiple_of(2),
            1 => random.uniform() < 0.5,
            _ => (y / size).is_multiple_of(2),
        };
        let value = base + if bright { 150.0 } else { 20.0 } + 10.0 * random.uniform();
        image::Rgb([value as u8; 3])
    })
}

#[test]
fn classes_are_learned_and_the_estimate_holds_on_other_photos() {
    let place = Place::new();
    place.photos("photos", 0, 10, |_, kind| kind);
    place.photos("others", 50, 8, |_, kind| kind);
    let Outcome { manifest, estimate } = place.adapt("photos").unwrap();
    assert_eq!(estimate.photos, 30);
    assert!(estimate.top1 > 0.8, "{estimate:?}");
    let [low, high] = estimate.interval;
    assert!(low < estimate.top1 && estimate.top1 <= high);
    let counted: Vec<_> = estimate.classes.iter().map(|c| (c.label.as_str(), c.photos)).collect();
    assert_eq!(counted, CLASSES.map(|class| (class, 10)));

    let set = ModelSet::open(&place.path("own")).unwrap();
    set.verify().unwrap();
    assert_eq!(set.manifest, manifest);
    assert_eq!(set.labels, CLASSES);
    assert_eq!(set.names(), ["baseline", "quantized", "scaled"]);
    let photos =
        Photos::open(&place.path("others"), &set.labels, &set.manifest.preprocess).unwrap();
    let baseline = [set.variant("baseline").unwrap()];
    let judged = evaluate(&Engine::new(2), &set, &baseline, &photos, &mut ()).unwrap();
    let top1 = judged[0].top1.unwrap().share;
    assert!(top1 > 0.8, "{top1}");
    assert!(!leftovers(place.folder.path()), "work was left behind");
}

fn leftovers(folder: &Path) -> bool {
    let mut names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_string_lossy().starts_with('.'))
}

#[test]
fn what_cannot_be_learned_is_not_claimed() {
    let place = Place::new();
    // Each folder has as many of each pattern.
    place.photos("photos", 0, 12, |number, kind| (kind + number as usize) % 3);
    let estimate = place.adapt("photos").unwrap().estimate;
    assert!(estimate.top1 < 0.6, "{estimate:?}");
}

#[test]
fn folders_that_make_no_classes_are_refused_and_say_what_to_do() {
    let place = Place::new();
    place.photos("few", 0, 3, |_, kind| kind);
    place.photos("one", 0, 6, |_, _| 1);
    place.photos("unsorted", 0, 6, |_, kind| kind);
    pattern(0, 1).save(place.path("unsorted/stray.png")).unwrap();
    for (folder, message) in [
        ("few", "class 'checks' has 3 photos, at least 5 are needed"),
        ("one", "has photos of 'noise' only"),
        ("unsorted", "stray.png: lies in no class's folder"),
        ("set", "no photos"),
    ] {
        let error = place.adapt(folder).unwrap_err().to_string();
        assert!(error.contains(message), "{folder}: {error}");
        assert!(!place.path("own").exists());
    }
}
