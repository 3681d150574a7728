//! The program as it is called: exit codes, what is on stdout and what is on stderr.

use std::path::Path;
use std::process::{Command, Output};

use vggd_models::tiny;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vggd-models"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn import_says_what_it_made() {
    let folder = tempfile::tempdir().unwrap();
    tiny::set(folder.path(), 10).unwrap();
    let import = ["import", "tiny.safetensors", "--labels", "labels.txt", "--out"];

    let table = run(folder.path(), &[&import[..], &["a"]].concat());
    assert_eq!(table.status.code(), Some(0));
    assert_eq!(text(&table.stderr), "");
    let lines: Vec<&str> = text(&table.stdout).lines().collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(lines[0].starts_with("variant"));
    assert!(lines[3].starts_with("scaled     160 x 160"));
    assert!(lines[..4].iter().all(|line| line.len() == lines[0].len()));
    assert_eq!(lines[5], "a");

    let json = run(folder.path(), &[&import[..], &["b", "--json"]].concat());
    assert_eq!(json.status.code(), Some(0));
    let names: Vec<_> = (text(&json.stdout).lines())
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|variant| variant["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["baseline", "quantized", "scaled"]);
}

#[test]
fn failures_have_exit_codes_and_one_line() {
    let folder = tempfile::tempdir().unwrap();
    tiny::set(folder.path(), 10).unwrap();
    let good = ["import", "tiny.safetensors", "--labels", "labels.txt", "--out", "set"];
    for (arguments, code, words) in [
        (&good[..], 1, "set: exists and is not empty"),
        (&["import", "labels.txt", "--labels", "labels.txt", "--out", "x"], 1, "labels.txt: not a"),
        (&good[..4], 2, "--out <DIR>"),
        (&["import", "--help-me"], 2, "--help-me"),
        (&[], 2, "Usage"),
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty());
        let message = text(&output.stderr);
        assert!(message.contains(words), "{arguments:?}: {message}");
        if code == 1 {
            assert!(message.starts_with("vggd-models: "), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}

#[test]
fn evaluate_times_each_variant_in_a_process_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    tiny::set(folder.path(), 10).unwrap();
    let photos = concat!(env!("CARGO_MANIFEST_DIR"), "/../sample/photos");
    let output = run(folder.path(), &["evaluate", "set", "--photos", photos, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        assert!(line["measured"]["median_ms"].as_f64().is_some_and(|time| time > 0.0), "{line}");
    }
}

#[test]
fn help_shows_examples() {
    let output = run(Path::new("."), &["import", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for words in ["Examples:", "--labels <LABELS.txt>", "Exit codes", "scaled     float32, 160"] {
        assert!(help.contains(words), "no '{words}' in: {help}");
    }
}
