//! The commands that run once: what they print, and how they exit.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Output, Stdio};

use common::{jpeg, models, run, schema, vggd};
use serde_json::Value;
use tempfile::TempDir;

const VARIANTS: [&str; 3] = ["baseline", "quantized", "scaled"];

fn photos(count: u32) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = (0..count).map(|number| {
        let path = folder.path().join(format!("{number}.jpg"));
        fs::write(&path, jpeg(number)).unwrap();
        path
    });
    let paths = paths.collect();
    (folder, paths)
}

/// The objects of JSON lines, each as `config/schema` says of that command.
fn json_lines(command: &str, output: &Output) -> Vec<Value> {
    let lines = common::json_lines(output);
    for line in &lines {
        let checked = schema::check(&format!("cli-{command}"), line.to_string().as_bytes());
        assert_eq!(checked, Ok(()), "{line}");
    }
    lines
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn classify_prints_a_line_per_photo_and_goes_on_after_a_bad_one() {
    let (folder, paths) = photos(2);
    let bad = folder.path().join("bad.jpg");
    fs::write(&bad, "no photo").unwrap();
    let mut command = vggd();
    command.arg("classify").arg("--models").arg(models());
    command.arg(&paths[0]).arg(&bad).arg(&paths[1]).args(["--variant", "scaled", "--json"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("bad.jpg"), "{error}");
    let lines = json_lines("classify", &output);
    assert_eq!(lines.len(), 2);
    for (line, path) in lines.iter().zip(&paths) {
        assert_eq!(keys(line), BTreeSet::from(["file", "variant", "top", "timings_ms"]));
        assert_eq!(line["file"], path.to_str().unwrap());
        assert_eq!(line["variant"], "scaled");
        assert_eq!(line["top"].as_array().unwrap().len(), 5);
        assert_eq!(keys(&line["top"][0]), BTreeSet::from(["class", "label", "probability"]));
    }

    command = vggd();
    let output =
        command.arg("classify").arg("--models").arg(models()).args(&paths).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("class ").count(), 10, "{text}");
}

#[test]
fn compare_shows_every_variant_on_one_photo() {
    let (_folder, paths) = photos(1);
    let photo = paths[0].to_str().unwrap();
    let set = models().to_str().unwrap();
    let output = run(&["compare", photo, "--models", set, "--runs", "3", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = json_lines("compare", &output);
    assert_eq!(lines.iter().map(|line| &line["variant"]).collect::<Vec<_>>(), VARIANTS);
    for line in &lines {
        assert_eq!(line["file"], photo);
        for key in ["median_ms", "load_ms", "bytes", "rss_mb", "input"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key} in {line}");
        }
        assert!(!line["description"].as_str().unwrap().is_empty(), "{line}");
        assert_eq!(line["median_ms"], line["timings_ms"]["inference"]);
        let same = line["top"][0]["class"] == lines[0]["top"][0]["class"];
        assert_eq!(line["agrees"], same);
    }

    let described: Vec<&str> =
        lines.iter().map(|line| line["description"].as_str().unwrap()).collect();
    let output = run(&["compare", photo, "--models", set, "--runs", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = ["latency", "decode", "inference", "load", "memory", "agrees", "top 5"];
    for word in VARIANTS.iter().chain(&rows).chain(&described) {
        assert!(text.contains(word), "{text}");
    }
}

/// What a command prints where lines have so many characters, in colour or not.
fn printed(arguments: &[&str], columns: &str, colour: bool) -> String {
    let mut command = vggd();
    command.args(arguments).env("COLUMNS", columns);
    for name in ["CLICOLOR", "CLICOLOR_FORCE", "NO_COLOR"] {
        command.env_remove(name);
    }
    if colour {
        command.env("CLICOLOR_FORCE", "1");
    }
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tables_fit_the_terminal_and_are_aligned() {
    let (_folder, paths) = photos(1);
    let photo = paths[0].to_str().unwrap();
    let set = models().to_str().unwrap();
    let compare = ["compare", photo, "--models", set, "--runs", "1"];
    // How many blocks of variants there are: all three beside each other, two, or one.
    for (columns, blocks) in [("200", 1), ("60", 2), ("40", 3)] {
        let text = printed(&compare, columns, false);
        assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
        let table = text.split("\n\n").skip(2).collect::<Vec<_>>().join("\n");
        for line in table.lines() {
            assert!(line.chars().count() <= columns.parse().unwrap(), "{columns}: {text}");
        }
        assert_eq!(text.matches("  input").count(), blocks, "{columns}: {text}");
        for name in VARIANTS {
            // Each row has a cell where its variant's name begins, and a gap before it.
            let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
            let heads = lines.iter().enumerate().filter(|(_, line)| line.starts_with(&[' '; 10]));
            let (at, head) = heads
                .map(|(at, line)| (at, line.iter().collect::<String>()))
                .find(|(_, line)| line.contains(name))
                .unwrap_or_else(|| panic!("{name}: {text}"));
            let column = head.find(name).unwrap();
            for row in &lines[at + 1..at + 12] {
                assert_eq!(&row[column - 2..column], [' ', ' '], "{columns} {name}: {text}");
                assert_ne!(row[column], ' ', "{columns} {name}: {text}");
            }
        }
        let bars: Vec<_> = text.split_whitespace().filter(|word| word.starts_with('█')).collect();
        assert!(bars.len() == 3 && bars.contains(&"██████████"), "{text}");
    }
    let bench = printed(&["bench", "--models", set, "--runs", "1"], "70", false);
    assert!(bench.lines().all(|line| line.chars().count() <= 70) && bench.contains('█'), "{bench}");
    assert!(!printed(&["bench", "--models", set, "--runs", "1"], "40", false).contains('█'));
}

#[test]
fn colours_are_for_terminals_and_those_who_force_them() {
    let (_folder, paths) = photos(1);
    let set = models().to_str().unwrap();
    let cases = [
        ["compare", paths[0].to_str().unwrap(), "--models", set, "--runs", "1"],
        ["bench", "--models", set, "--variant=scaled", "--runs", "1"],
    ];
    for arguments in cases {
        let plain = printed(&arguments, "80", false);
        assert!(!plain.contains('\x1b'), "{plain}");
        let coloured = printed(&arguments, "80", true);
        assert!(coloured.contains("\x1b[1mscaled\x1b[0m"), "{coloured:?}");
        assert!(coloured.contains("\x1b[36m█"), "{coloured:?}");
    }
}

#[test]
fn a_photo_that_is_none_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.jpg");
    fs::write(&bad, "no photo").unwrap();
    let (bad, set) = (bad.to_str().unwrap(), models().to_str().unwrap());
    for photo in [bad, "none.jpg"] {
        for arguments in [
            vec!["compare", photo, "--models", set],
            vec!["bench", "--photo", photo, "--models", set],
        ] {
            let output = run(&arguments);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(error.lines().count() == 1 && error.contains(photo), "{error}");
        }
    }
}

#[test]
fn bench_writes_what_simulate_reads() {
    let (folder, set) = common::evaluated();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (set, profile, trace) = (set.display().to_string(), path("p.csv"), path("t.csv"));
    let bench = ["bench", "--models", &set, "--threads", "1", "--json"];
    let output = run(&[&bench[..], &["--runs", "2", "--profile", &profile]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record = ["--variant", "scaled", "--runs", "7", "--record", &trace, "--budget-ms", "9"];
    let output = run(&[&bench[..], &record].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let simulate = ["simulate", "--trace", &trace, "--profile", &profile, "--json"];
    let lines = common::json_lines(&run(&simulate));
    assert_eq!((lines.len(), &lines[7]["frames"]), (8, &7.into()));
    assert_eq!(lines[6]["budget_ms"], 9.0);

    // A set without accuracies makes no profile.
    let plain = models().display().to_string();
    let output = run(&["bench", "--models", &plain, "--profile", &profile]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("vggd-models evaluate"));
}

#[test]
fn bench_prints_the_words_of_a_comparison_with_others() {
    let set = models().to_str().unwrap();
    let output = run(&["bench", "--models", set, "--threads", "2", "--runs", "5", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = json_lines("bench", &output);
    assert_eq!(lines.iter().map(|line| &line["variant"]).collect::<Vec<_>>(), VARIANTS);
    for line in &lines {
        assert_eq!(line["threads"], 2);
        let value = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        assert!(value("min_ms") <= value("median_ms") && value("median_ms") <= value("p95_ms"));
        assert!(value("p95_ms") <= value("p99_ms") && value("load_ms") > 0.0);
        assert!(value("peak_rss_mb") > 0.0);
    }
    let output = run(&["bench", "--models", set, "--variant", "scaled", "--runs", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("scaled") && !text.contains("baseline"), "{text}");
}

#[test]
fn bench_computes_at_half_width_and_names_its_kernels() {
    let set = models().to_str().unwrap();
    let bench = ["bench", "--models", set, "--runs", "1", "--variant", "scaled", "--json"];
    let kernels = |more: &[&str]| {
        let output = run(&[&bench[..], more].concat());
        assert!(output.status.success(), "{output:?}");
        json_lines("bench", &output)[0]["kernels"].as_str().unwrap().to_owned()
    };
    let single = kernels(&[]);
    assert!(!single.contains("half"), "{single}");
    let half = kernels(&["--precision", "half"]);
    assert!(half.starts_with(&single) && half.contains("half"), "{half}");
}

#[test]
fn check_names_what_is_wrong_and_exits_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vggd.toml");
    let good = format!(
        "[source]\ndirectory = '{}'\n[model]\nset = '{}'\n",
        folder.path().join("incoming").display(),
        models().display()
    );
    fs::create_dir(folder.path().join("incoming")).unwrap();
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        run(&["check", "--config", file.to_str().unwrap()])
    };
    let output = check(&good);
    assert!(output.status.success(), "{output:?}");
    let lines = json_lines("check", &run(&["check", "--json", "--config", file.to_str().unwrap()]));
    assert_eq!((lines.len(), &lines[0]["ok"]), (1, &true.into()));
    let name = file.display().to_string();
    let cases = [
        (
            format!("{good}vairant = 'scaled'\n"),
            vec![&*name, "'model.vairant'", "'scaled'", "'model.variant'"],
        ),
        (format!("{good}variant = 'x'\n"), vec![&*name, "model.variant = 'x'", "quantized"]),
        (format!("{good}threads = 'all'\n"), vec![&*name, "model.threads = 'all'"]),
        (format!("{good}[mqtt]\nport = 0\n"), vec![&*name, "mqtt.port = '0'"]),
        (good.replace("incoming", "vggd.toml"), vec![&*name, "source.directory = "]),
        (good.replace("/set", "/none"), vec![&*name, "model.set = ", "manifest.toml"]),
        (
            format!("{good}[mqtt]\nusername = 'u'\npassword_file = '/none'\n"),
            vec![&*name, "mqtt.password_file = '/none'"],
        ),
    ];
    for (text, expected) in cases {
        let output = check(&text);
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        for part in expected {
            assert!(error.contains(part), "no {part} in: {error}");
        }
        let output = run(&["check", "--json", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{text}");
        let said = &json_lines("check", &output)[0];
        assert_eq!((keys(said), &said["ok"]), (BTreeSet::from(["ok", "error"]), &false.into()));
        assert_eq!(format!("vggd: {}\n", said["error"].as_str().unwrap()), error);
        let output = run(&["run", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{text}");
    }
}

#[test]
fn a_damaged_set_is_found_by_check() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    fs::create_dir(&set).unwrap();
    for entry in fs::read_dir(models()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), set.join(entry.file_name())).unwrap();
    }
    let manifest = fs::read_to_string(set.join("manifest.toml")).unwrap();
    let path = manifest.lines().find_map(|line| line.strip_prefix("path = ")).unwrap();
    let weights = set.join(path.trim_matches('"'));
    let mut bytes = fs::read(&weights).unwrap();
    bytes[100] ^= 1;
    fs::write(&weights, bytes).unwrap();

    let file = folder.path().join("vggd.toml");
    fs::write(&file, format!("[source]\ndirectory = '{}'\n", folder.path().display())).unwrap();
    let arguments =
        ["check", "--config", file.to_str().unwrap(), "--models", set.to_str().unwrap()];
    let output = run(&arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(error.contains(weights.to_str().unwrap()) && error.contains("SHA-256"), "{error}");
}

#[test]
fn wrong_arguments_exit_with_2_and_the_defaults_are_a_valid_file() {
    for arguments in [&["classify"][..], &["nonsense"], &["bench", "--threads", "x"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let defaults = run(&["defaults"]);
    assert_eq!(String::from_utf8(defaults.stdout).unwrap(), vggd::config::DEFAULT);
    let defaults = common::json_lines(&run(&["defaults", "--json"]));
    let known: Value = toml::from_str(vggd::config::DEFAULT).unwrap();
    assert_eq!(defaults, [known]);
    let set = models().to_str().unwrap();
    let output = run(&["classify", "none.jpg", "--models", set, "--variant", "x"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("'x'") && error.contains("quantized"), "{error}");
}

#[test]
fn a_run_logs_as_json_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vggd.toml");
    let [incoming, outbox] = ["incoming", "outbox"].map(|name| folder.path().join(name));
    let config = format!(
        "[source]\ndirectory = '{}'\n[outbox]\ndirectory = '{}'\n[web]\nlisten = 'off'\n",
        incoming.display(),
        outbox.display()
    );
    fs::write(&path, config).unwrap();
    fs::create_dir(&incoming).unwrap();
    let mut command = vggd();
    command.args(["run", "--json", "--config"]).arg(&path).arg("--models").arg(models());
    let mut child = common::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut events = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["message"] == "ready" {
            common::signal(&child, "TERM");
        }
        events.push(event);
    }
    assert!(child.wait().unwrap().success(), "{events:?}");
    assert!(events.iter().any(|event| event["message"] == "ready"), "{events:?}");
    for event in &events {
        assert!(["timestamp", "level", "message"].map(|key| event[key].is_string()) == [true; 3]);
    }

    fs::write(&path, "[model]\nvariant = 1\n").unwrap();
    let output = run(&["run", "--json", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let [event] = &common::json_lines(&output)[..] else { panic!("one event") };
    assert_eq!(event["level"], "ERROR");
    assert!(event["error"].as_str().unwrap().contains("model.variant"), "{event}");
}
