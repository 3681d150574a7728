//! Which variants are in memory: loaded beside the frames, within a limit, and of which set.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{evaluated, until};
use vggd::config::Config;
use vggd::control::Chooser;
use vggd::lineup::{IDLE, Lineup, LineupError, Standing, Terms};
use vggd::manifest::ModelSet;
use vggd::model::Engine;
use vggd::profile::Cost;

/// What each variant of the tiny set costs: milliseconds, and MiB while it runs and while it is loaded.
const COSTS: [(f64, u64, u64); 3] = [(50.0, 100, 120), (40.0, 80, 90), (20.0, 60, 70)];

fn terms(memory_limit: Option<u64>) -> Terms {
    let budget = Some(Duration::from_millis(100));
    Terms { chooser: Chooser::Auto, budget, miss_rate: 0.05, memory_limit, idle: IDLE }
}

fn cost((compute_ms, rss_mb, peak_rss_mb): (f64, u64, u64)) -> Cost {
    Cost { compute_ms, memory_ms: 0.0, rss_mb, peak_rss_mb }
}

/// The set at `path`, not timed.
fn untimed(path: &Path, terms: Terms) -> Lineup {
    let mut config = Config::load(None).unwrap();
    config.model.threads = 1;
    let engine = Engine::configured(&config.model).unwrap();
    Lineup::new(ModelSet::open(path).unwrap(), &engine, terms, |_, _| None)
}

/// A lineup of the tiny set that begins with its first variant and then learns what all cost.
fn timed(path: &Path, terms: Terms) -> Lineup {
    let lineup = untimed(path, terms);
    lineup.begin("baseline").unwrap();
    let set = lineup.set();
    for (index, costs) in COSTS.into_iter().enumerate() {
        lineup.learn(&set, index, cost(costs));
    }
    lineup
}

fn lineup(path: &Path, limit: Option<u64>) -> Lineup {
    timed(path, terms(limit))
}

/// What classifies a frame that has taken `spent` milliseconds before.
fn chosen(lineup: &Lineup, spent: u64) -> String {
    lineup.choose(Duration::from_millis(spent)).model.name.clone()
}

/// The variants in memory.
fn loaded(lineup: &Lineup) -> Vec<String> {
    let outlook = lineup.outlook();
    let variants = outlook.set.names().into_iter().zip(&outlook.variants);
    variants.filter(|(_, prospect)| prospect.loaded).map(|(name, _)| name).collect()
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
    let lineup = lineup(&path, None);
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
    for (limit, expected) in [(120, "baseline"), (119, "quantized"), (89, "scaled")] {
        let lineup = lineup(&path, Some(limit));
        loading(&lineup, || {
            until(&format!("{expected} takes over"), || chosen(&lineup, 0) == expected);
            until("what does not fit goes", || loaded(&lineup) == [expected]);
        });
        assert_eq!(chosen(&lineup, 0), expected, "{limit} MiB");
    }
}

#[test]
fn the_one_that_runs_never_makes_room_for_another_one() {
    let (_folder, path) = evaluated();
    // Too little for any other beside it.
    let crowded = lineup(&path, Some(150));
    let standing = crowded.outlook().variants.iter().map(|it| it.standing).collect::<Vec<_>>();
    assert_eq!(standing, [Standing::Candidate, Standing::Crowded, Standing::Crowded]);
    loading(&crowded, || {
        for _ in 0..20 {
            assert_eq!(chosen(&crowded, 75), "baseline");
        }
    });
    assert_eq!(loaded(&crowded), ["baseline"]);
    assert_eq!(crowded.outlook().missing, None);

    // Enough for two: the one that does not run goes.
    let lineup = lineup(&path, Some(190));
    loading(&lineup, || {
        until("the fastest takes over", || chosen(&lineup, 75) == "scaled");
        assert_eq!(loaded(&lineup), ["baseline", "scaled"]);
        until("the one between takes over", || chosen(&lineup, 45) == "quantized");
        assert_eq!(loaded(&lineup), ["quantized", "scaled"]);
    });
}

#[test]
fn what_was_never_timed_counts_by_its_graph() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample");
    let untimed_within = |limit| {
        let lineup = untimed(&path, terms(limit));
        let (set, untimed) = lineup.untimed();
        untimed.into_iter().map(|at| set.names()[at].clone()).collect::<Vec<_>>()
    };
    let set = ModelSet::open(&path).unwrap();
    assert_eq!(untimed_within(None), set.names());
    assert!(untimed_within(Some(1)).is_empty());
    // Convolutions in float32 take more than their files, those in int8 do not.
    let least = |name: &str| {
        let found = (1..).find(|&limit| untimed_within(Some(limit)).contains(&name.to_owned()));
        (found.unwrap(), set.variant(name).unwrap().bytes >> 20)
    };
    let (float, files) = least("baseline");
    assert!(float > files + files / 4, "{float} MiB, {files} MiB of files");
    let (int8, files) = least("pruned-int8-scaled");
    assert!((files..=files + 1).contains(&int8), "{int8} MiB, {files} MiB of files");

    // It counts when others are loaded, too.
    let lineup = untimed(&path, terms(Some(float + 2)));
    lineup.begin("baseline").unwrap();
    let refused = lineup.room(set.variant("baseline").unwrap()).unwrap_err();
    assert_eq!(
        refused,
        format!("needs {float} MiB, and of model.memory_limit = {} 2 MiB are free", float + 2)
    );
}

#[test]
fn what_begins_fits() {
    let (_folder, path) = evaluated();
    let known = |set: &ModelSet, variant: &vggd::manifest::Variant| {
        Some(cost(COSTS[set.position(&variant.name).unwrap()]))
    };
    let engine = Engine::new(1);
    let first = |limit, chooser, budget_ms, variant: &str| {
        let budget = Some(Duration::from_millis(budget_ms));
        let terms = Terms { chooser, budget, ..terms(limit) };
        let lineup = Lineup::new(ModelSet::open(&path).unwrap(), &engine, terms, known);
        lineup.first(variant).map_err(|error| error.to_string())
    };
    let fixed =
        |limit, variant: &str| first(limit, Chooser::Fixed(variant.to_owned()), 100, variant);
    assert_eq!(fixed(None, "baseline").unwrap(), "baseline");
    assert_eq!(fixed(Some(120), "baseline").unwrap(), "baseline");
    let refused = fixed(Some(119), "baseline").unwrap_err();
    assert_eq!(refused, "variant 'baseline' needs 120 MiB, more than model.memory_limit = 119");
    // What is known of the machine chooses at once.
    for (limit, budget_ms, expected) in
        [(None, 100, "baseline"), (None, 30, "scaled"), (Some(119), 100, "quantized")]
    {
        let first = first(limit, Chooser::Auto, budget_ms, "baseline").unwrap();
        assert_eq!(first, expected, "{limit:?}, {budget_ms} ms");
    }

    // When nothing was timed, the configured one begins, or else the most accurate one that can.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample");
    let begins = |limit| untimed(&path, terms(limit)).first("baseline");
    assert_eq!(begins(None).unwrap(), "baseline");
    let small = begins(Some(14)).unwrap();
    assert_ne!(small, "baseline");
    assert!(matches!(begins(Some(1)), Err(LineupError::TooLarge { .. })));
}

#[test]
fn a_variant_that_does_not_fit_cannot_be_ordered() {
    let (_folder, path) = evaluated();
    let lineup = lineup(&path, Some(100));
    lineup.fix("quantized").unwrap();
    assert_eq!(
        (chosen(&lineup, 0), loaded(&lineup)),
        ("quantized".into(), vec!["quantized".into()])
    );
    let refused = lineup.fix("baseline").unwrap_err().to_string();
    assert_eq!(refused, "variant 'baseline' needs 120 MiB, more than model.memory_limit = 100");
    assert!(lineup.fix("nonesuch").is_err());
    assert_eq!(lineup.orders().0, Chooser::Fixed("quantized".to_owned()));
    assert_eq!(chosen(&lineup, 0), "quantized");
}

#[test]
fn what_is_not_chosen_any_more_is_dropped() {
    let (_folder, path) = evaluated();
    let lineup = timed(&path, Terms { idle: Duration::from_secs(1), ..terms(None) });
    loading(&lineup, || {
        until("the fast one takes over", || chosen(&lineup, 75) == "scaled");
        until("it is alone", || loaded(&lineup) == ["scaled"]);
    });
}

#[test]
fn what_was_being_loaded_does_not_stay_beside_a_fixed_variant() {
    let (_folder, path) = evaluated();
    let lineup = lineup(&path, None);
    loading(&lineup, || {
        for _ in 0..5 {
            lineup.choose_automatically().unwrap();
            // One that is not there is asked for, and another one fixed meanwhile.
            chosen(&lineup, 75);
            lineup.fix("baseline").unwrap();
            chosen(&lineup, 75);
        }
        lineup.choose_automatically().unwrap();
        chosen(&lineup, 75);
        lineup.fix("quantized").unwrap();
        until("the fixed one is alone", || loaded(&lineup) == ["quantized"]);
    });
    assert_eq!(loaded(&lineup), ["quantized"]);
}

#[test]
fn a_budget_is_kept_or_not_with_hysteresis() {
    let (_folder, path) = evaluated();
    let lineup = timed(&path, Terms { budget: None, ..terms(None) });
    assert_eq!(lineup.budget_kept(), None);
    let kept = |micros| {
        lineup.set_budget(Some(Duration::from_micros(micros)));
        lineup.budget_kept()
    };
    // The fastest takes 20 ms, with some deviation: a little less than that is no reason to change one's mind.
    assert_eq!([kept(100_000), kept(20_100)], [Some(true); 2]);
    assert_eq!([kept(15_000), kept(20_100)], [Some(false); 2]);
    assert_eq!([kept(100_000), kept(20_100)], [Some(true); 2]);
    // A frame that has taken its time before.
    chosen(&lineup, 20);
    assert_eq!(lineup.budget_kept(), Some(false));
    lineup.set_budget(None);
    assert_eq!(lineup.budget_kept(), None);
    // A fixed variant keeps it or does not, too.
    lineup.fix("baseline").unwrap();
    assert_eq!([kept(100_000), kept(30_000)], [Some(true), Some(false)]);
}

#[test]
fn changes_of_what_may_be_chosen_leave_what_was_learned() {
    let (_folder, path) = evaluated();
    let lineup = lineup(&path, None);
    for _ in 0..30 {
        let chosen = lineup.choose(Duration::ZERO);
        lineup.observe(&chosen, Duration::from_millis(100));
    }
    let slowdown = lineup.slowdown().unwrap();
    assert!(slowdown[0] > 1.5, "{slowdown:?}");
    lineup.set_miss_rate(0.1);
    assert_eq!(lineup.slowdown(), Some(slowdown));
    lineup.learn(&lineup.set(), 2, cost((25.0, 60, 70)));
    assert_eq!(lineup.slowdown(), Some(slowdown));
    let mut set = ModelSet::clone(&lineup.set());
    set.manifest.variants.remove(1);
    lineup.adopt(set, Chooser::Auto, "baseline", |_, _| None).unwrap();
    assert_eq!(lineup.slowdown(), Some(slowdown));
}

#[test]
fn another_set_takes_over_between_two_frames_and_keeps_what_is_the_same() {
    let (_folder, path) = evaluated();
    let lineup = lineup(&path, None);
    let before = lineup.choose(Duration::ZERO);
    assert_eq!(before.model.name, "baseline");

    // Other accuracies and one variant less: the model stays.
    let mut set = ModelSet::clone(&lineup.set());
    set.manifest.variants.remove(1);
    set.manifest.variants[0].top1 = Some(0.5);
    lineup.adopt(set, Chooser::Auto, "baseline", |_, _| None).unwrap();
    let after = lineup.choose(Duration::ZERO);
    assert!(Arc::ptr_eq(&before.model, &after.model));
    // What was chosen from the set before tells nothing of this one.
    lineup.observe(&before, Duration::from_secs(9));
    loading(&lineup, || {
        // The other one is the more accurate one now.
        until("accuracies count", || chosen(&lineup, 0) == "scaled");
    });

    // Other labels: the same files, but another model.
    let mut set = ModelSet::clone(&lineup.set());
    set.labels.iter_mut().for_each(|label| label.insert_str(0, "new "));
    let fixed = Chooser::Fixed("baseline".to_owned());
    lineup.adopt(set, fixed, "scaled", |_, _| None).unwrap();
    let last = lineup.choose(Duration::ZERO);
    assert!(last.model.labels[0].starts_with("new "));
    assert_eq!((last.model.name.as_str(), loaded(&lineup)), ("baseline", vec!["baseline".into()]));

    // One that cannot be loaded changes nothing.
    let mut set = ModelSet::clone(&lineup.set());
    set.manifest.variants[0].sha256 = "0".repeat(64);
    let refused = lineup.adopt(set, Chooser::Fixed("baseline".into()), "baseline", |_, _| None);
    assert!(matches!(refused, Err(LineupError::Model(_))));
    assert!(Arc::ptr_eq(&last.model, &lineup.choose(Duration::ZERO).model));
    fs::remove_dir_all(&path).unwrap();
}
