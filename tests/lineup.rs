//! Which variants are in memory: loaded beside the frames, within a limit.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{beats, evaluated, until};
use vggd::config::Config;
use vggd::control::Chooser;
use vggd::lineup::Lineup;
use vggd::manifest::ModelSet;
use vggd::model::{Engine, Model};
use vggd::profile::Cost;
use vggd::pulse::Pulse;

/// A lineup that begins with the first variant of the set at `path`, whose variants cost what `costs`
/// says: milliseconds, and MiB while it runs and while it is loaded.
fn lineup(path: &Path, limit: Option<u64>, costs: [(f64, u64, u64); 3]) -> Lineup {
    let set = ModelSet::open(path).unwrap();
    let mut config = Config::load(None).unwrap();
    config.model.threads = 1;
    let engine = Engine::configured(&config.model).unwrap();
    let first = Model::load(&set, &set.manifest.variants[0], &engine).unwrap();
    let budget = Some(Duration::from_millis(100));
    let lineup = Lineup::new(&set, &engine, first, Chooser::Auto, budget, 0.05, limit).unwrap();
    for (index, (compute_ms, rss_mb, peak_rss_mb)) in costs.into_iter().enumerate() {
        lineup.learn(index, Cost { compute_ms, memory_ms: 0.0, rss_mb, peak_rss_mb });
    }
    lineup
}

/// What classifies a frame that has taken `spent` milliseconds before.
fn chosen(lineup: &Lineup, spent: u64) -> String {
    lineup.choose(Duration::from_millis(spent), &Pulse::default()).model.name.clone()
}

/// Does `check` while a thread loads what is wanted.
fn loading(lineup: &Lineup, check: impl FnOnce()) {
    /// Ends the thread even if the check fails.
    struct Stop<'a>(&'a Lineup);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(lineup);
        scope.spawn(|| lineup.keep_loaded());
        check();
    });
}

#[test]
fn a_variant_is_loaded_beside_the_frames_and_takes_over_then() {
    let (_folder, path) = evaluated();
    let lineup = lineup(&path, None, [(50.0, 100, 120), (40.0, 80, 90), (20.0, 60, 70)]);
    // Nobody loads: the one that is there goes on, though another one would be in time.
    for _ in 0..3 {
        assert_eq!(chosen(&lineup, 75), "baseline");
    }
    loading(&lineup, || {
        until("the fast one takes over", || chosen(&lineup, 75) == "scaled");
        assert_eq!(chosen(&lineup, 0), "baseline");
    });
    // Both are still in memory.
    assert_eq!([chosen(&lineup, 0), chosen(&lineup, 75)], ["baseline", "scaled"]);
}

#[test]
fn what_does_not_fit_the_memory_limit_is_no_candidate() {
    let (_folder, path) = evaluated();
    let costs = [(50.0, 100, 120), (40.0, 80, 90), (20.0, 60, 70)];
    for (limit, expected) in [(120, "baseline"), (119, "quantized"), (89, "scaled")] {
        let lineup = lineup(&path, Some(limit), costs);
        loading(&lineup, || {
            until(&format!("{expected} takes over"), || chosen(&lineup, 0) == expected);
        });
        assert_eq!(chosen(&lineup, 0), expected, "{limit} MiB");
    }
}

#[test]
fn a_variant_whose_files_alone_do_not_fit_is_not_timed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample");
    let set = ModelSet::open(&path).unwrap();
    let engine = Engine::configured(&Config::load(None).unwrap().model).unwrap();
    let untimed = |limit| {
        let first = Model::load(&set, set.variant("pruned-int8-scaled").unwrap(), &engine).unwrap();
        let lineup = Lineup::new(&set, &engine, first, Chooser::Auto, None, 0.05, limit).unwrap();
        lineup.untimed().into_iter().map(|at| set.names()[at].clone()).collect::<Vec<_>>()
    };
    assert_eq!(untimed(None), set.names());
    assert_eq!(untimed(Some(14)), ["pruned-quantized-scaled", "pruned-int8-scaled"]);
    assert!(untimed(Some(1)).is_empty());
}

#[test]
fn a_variant_makes_room_for_another_one_when_both_do_not_fit() {
    let (_folder, path) = evaluated();
    let costs = [(50.0, 100, 120), (40.0, 80, 90), (20.0, 60, 70)];
    let lineup = lineup(&path, Some(150), costs);
    loading(&lineup, || {
        until("the fast one takes over", || chosen(&lineup, 75) == "scaled");
    });
    // The other one had to go, and nobody brings it back now: frames go on with what is there.
    assert_eq!(chosen(&lineup, 0), "scaled");
}

#[test]
fn a_frame_that_waits_for_a_variant_beats() {
    let (_folder, path) = evaluated();
    let costs = [(50.0, 100, 120), (40.0, 80, 90), (20.0, 60, 70)];
    let lineup = lineup(&path, Some(150), costs);
    for graph in ["quantized.onnx", "scaled.onnx"] {
        fs::remove_file(path.join(graph)).unwrap();
    }
    loading(&lineup, || {
        // The one that is there has to go, for one that cannot be loaded, nor the third.
        assert_eq!(chosen(&lineup, 75), "baseline");
        until("nothing is in memory", || lineup.outlook().variants.iter().all(|it| !it.loaded));
        let pulse = Pulse::default();
        std::thread::scope(|scope| {
            scope.spawn(|| lineup.choose(Duration::from_millis(75), &pulse));
            beats("the frame", &pulse);
            lineup.fix("baseline").unwrap();
        });
    });
}
