//! The selector over made-up traces of a machine that slows down, and the command that shows it.

use std::fs;
use std::process::{Command, Output};

use vggd::simulate::trace::Scenario;
use vggd::simulate::{PI4, Policy, Summary, profile, replay};

const SEEDS: u64 = 20;
const MISS_RATE: f64 = 0.05;

/// What is promised of the mean and of each single trace.
#[test]
fn the_selector_keeps_its_promises() {
    let candidates = profile(PI4.as_bytes()).unwrap();
    for budget in [400.0, 150.0] {
        let mut gaps = Vec::new();
        for scenario in Scenario::EACH {
            let lasting = ![Scenario::Steady, Scenario::Spikes].contains(&scenario);
            let by = |policy: Policy| -> Vec<Summary> {
                let replayed = (0..SEEDS).map(|seed| {
                    let trace = scenario.trace(budget, seed);
                    replay(&candidates, &trace, &policy, MISS_RATE).unwrap().1
                });
                replayed.collect()
            };
            let (summaries, oracle) = (by(Policy::Auto), by(Policy::Oracle));
            for (seed, summary) in summaries.iter().enumerate() {
                let what = format!("{scenario}, {budget} ms, seed {seed}: {summary:?}");
                // Nobody foresees a spike, and a faster variant that would be in time costs every frame.
                let spiky = scenario == Scenario::Spikes;
                assert!(spiky || summary.avoidable_miss_rate <= MISS_RATE + 0.01, "{what}");
                assert!(summary.static_gain >= -0.015, "{what}");
                assert!(summary.recovery_frames <= 5, "{what}");
                assert!(lasting || summary.switches_per_minute <= 6.0, "{what}");
            }
            let mean = |of: fn(&Summary) -> f64, summaries: &[Summary]| {
                summaries.iter().map(of).sum::<f64>() / summaries.len() as f64
            };
            let what = format!("{scenario}, {budget} ms");
            let [gain, possible] =
                [&summaries, &oracle].map(|all| mean(|summary| summary.static_gain, all));
            assert!(gain >= -0.005, "{what}: {gain}");
            let worth = lasting && possible > 0.005;
            assert!(!worth || gain > 0.0, "{what}: {gain} of {possible}");
            let gap = mean(|summary| summary.oracle_gap, &summaries);
            assert!(gap <= 0.04, "{what}: {gap}");
            gaps.push(gap);
        }
        let gap = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!(gap <= 0.02, "{budget} ms: {gap}");
    }
}

fn vggd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vggd")).arg("simulate").args(arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_a_frame_and_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(
        path("profile.csv"),
        "variant,compute_ms,memory_ms,accuracy\nslow,300,100,0.8\nfast,100,0,0.6\n",
    )
    .unwrap();
    fs::write(
        path("trace.csv"),
        "arrival_ms,slowdown,memory_slowdown,budget_ms\n\
         0,1,1,450\n500,1.5,2,450\n1000,1,1,50\n1500,1,1,0\n",
    )
    .unwrap();
    let files = ["--trace", &path("trace.csv"), "--profile", &path("profile.csv")];
    let lines = lines(&vggd(&[&files[..], &["--policy", "slow", "--json"]].concat()));
    let totals: Vec<f64> =
        lines[..4].iter().map(|line| line["total_ms"].as_f64().unwrap()).collect();
    assert_eq!(totals, [400.0, 650.0, 400.0, 400.0]);
    let in_time: Vec<bool> =
        lines[..4].iter().map(|line| line["in_time"].as_bool().unwrap()).collect();
    assert_eq!(in_time, [true, false, false, true]);
    assert_eq!(lines[1]["frame"], 1);
    assert_eq!(lines[1]["variant"], "slow");
    assert_eq!(lines[1]["budget_ms"], 450.0);
    assert_eq!((lines.len(), &lines[4]["miss_rate"]), (5, &0.5.into()));
    let keys = [
        "effective_accuracy",
        "oracle_gap",
        "static_gain",
        "switches_per_minute",
        "recovery_frames",
    ];
    for key in keys {
        assert!(lines[4][key].is_number(), "{key}: {}", lines[4]);
    }

    // No variant can keep 50 ms: the fastest runs.
    let picture = path("picture.svg");
    let output = vggd(&[&files[..], &["--json", "--picture", &picture]].concat());
    assert_eq!(self::lines(&output)[2]["variant"], "fast");
    assert!(fs::read_to_string(picture).unwrap().trim_end().ends_with("</svg>"));
}

#[test]
fn scenarios_with_many_seeds() {
    let lines = lines(&vggd(&["--seeds", "2", "--json"]));
    let names: Vec<&str> = lines.iter().map(|line| line["scenario"].as_str().unwrap()).collect();
    assert_eq!(names, ["steady", "step", "thermal", "spikes", "memory", "budget", "all"]);
    assert!(lines.iter().all(|line| line["seeds"] == 2 && line["worst"]["oracle_gap"].is_number()));

    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.csv").display().to_string();
    let written = vggd(&["--scenario", "step", "--seed", "3", "--write-trace", &trace, "--json"]);
    let read = vggd(&["--trace", &trace, "--json"]);
    assert_eq!(self::lines(&written), self::lines(&read));
}

#[test]
fn wrong_files_and_arguments_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv").display().to_string();
    fs::write(&path, "arrival_ms,slowdown,memory_slowdown,budget_ms\n0,0,1,100\n").unwrap();
    for (arguments, code, message) in [
        (vec!["--trace", &path], 1, "trace.csv: line 2: a slowdown must be over 0"),
        (vec!["--trace", "/nowhere.csv"], 1, "/nowhere.csv: No such file"),
        (vec!["--scenario", "storm"], 2, "there are steady, step"),
        (vec!["--policy", "best", "--seeds", "1"], 2, "no variant 'best' in the profile"),
        (vec!["--scenario", "step", "--policy", "best"], 2, "no variant 'best' in the profile"),
        (vec!["--miss-rate", "2"], 2, "must be from 0 to 1"),
        (vec!["--trace", &path, "--scenario", "step"], 2, "cannot be used with"),
        (vec!["--trace", &path, "--seed", "1"], 2, "cannot be used with"),
        (vec!["--trace", &path, "--seeds", "2"], 2, "cannot be used with"),
        (vec!["--trace", &path, "--budget-ms", "9"], 2, "cannot be used with"),
        (vec!["--trace", &path, "--write-trace", &path], 2, "cannot be used with"),
        (vec!["--scenario", "step", "--seeds", "2"], 2, "cannot be used with"),
        (vec!["--picture", &path], 2, "required arguments were not provided"),
        (vec!["--write-trace", &path], 2, "required arguments were not provided"),
        (vec!["--policy", "oracle", "--miss-rate", "0.1"], 2, "--miss-rate is for --policy auto"),
    ] {
        let output = vggd(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}
