//! `vggd demo` as a newcomer runs it: what it prints, and that nothing is left behind or taken away.

#![cfg(feature = "demo")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{jpeg, json_lines, models, signal, vggd};
use serde_json::Value;
use tempfile::TempDir;

const VARIANTS: [&str; 3] = ["baseline", "quantized", "scaled"];

/// A folder with photos, and one for temporary files.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new(photos: u32) -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.photos()).unwrap();
        fs::create_dir(fixture.temporary()).unwrap();
        for number in 0..photos {
            fs::write(fixture.photos().join(format!("{number}.jpg")), jpeg(number)).unwrap();
        }
        fixture
    }

    fn photos(&self) -> PathBuf {
        self.folder.path().join("photos")
    }

    fn temporary(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    fn command(&self) -> Command {
        let mut command = vggd();
        command.arg("demo").arg("--models").arg(models()).arg("--photos").arg(self.photos());
        command.env("TMPDIR", self.temporary()).env("VGGD__MODEL__THREADS", "1");
        command
    }

    /// The user's photos are as they were, and no temporary file is left.
    fn check_untouched(&self, photos: u32) {
        for number in 0..photos {
            let bytes = fs::read(self.photos().join(format!("{number}.jpg"))).unwrap();
            assert!(bytes == jpeg(number), "photo {number} was changed");
        }
        assert_eq!(list(&self.temporary()), [""; 0]);
    }
}

fn list(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_variant_answers_for_every_photo_and_is_compared() {
    let fixture = Fixture::new(4);
    let output = fixture.command().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(text.starts_with("vggd demo: 4 photos, 3 variants of tiny\n"), "{text}");

    for variant in VARIANTS {
        for number in 0..4 {
            let file = format!("  {number}.jpg ");
            let answers = text.lines().filter(|line| {
                line.starts_with(&file) && line.ends_with(variant) && line.contains(" class ")
            });
            let answers: Vec<_> = answers.collect();
            assert_eq!(answers.len(), 1, "photo {number} by {variant}: {text}");
            assert!(answers[0].contains(" % ") && answers[0].contains(" ms "), "{answers:?}");
        }
    }
    let table = text.split("agrees with baseline\n").nth(1).unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().take(3).map(|line| line.split_whitespace().collect()).collect();
    for (row, variant) in rows.iter().zip(VARIANTS) {
        assert_eq!(row[0], variant);
        assert!(row[1].parse::<f64>().unwrap() > 0.0 && row[2] == "ms", "{row:?}");
        assert_eq!(row[6..], ["of", "4"], "{row:?}");
    }
    assert_eq!(rows[0][3..7], ["1.00", "x", "4", "of"]);
    let last = text.lines().last().unwrap();
    assert!(last.contains("compare --models") && last.ends_with("PHOTO"), "{last}");
    fixture.check_untouched(4);
}

#[test]
fn json_is_the_messages_alone() {
    let fixture = Fixture::new(2);
    fs::write(fixture.photos().join("bad.jpg"), "no photo").unwrap();
    let output = fixture.command().arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = json_lines(&output);
    let said = |variant: &str, file: &str| {
        let by = |line: &&Value| line["variant"] == variant && line["file"] == file;
        lines.iter().filter(by).count()
    };
    for variant in VARIANTS {
        assert!(said(variant, "0.jpg") >= 1 && said(variant, "1.jpg") == 1, "{lines:?}");
    }
    let predictions = lines.iter().filter(|line| line["top"].is_array());
    let sequences: Vec<_> = predictions.map(|line| line["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let failures: Vec<_> = lines.iter().filter(|line| line["kind"] == "photo").collect();
    assert_eq!(failures.len(), 3);
    assert!(failures.iter().all(|line| line["file"] == "bad.jpg"));
    fixture.check_untouched(2);
}

#[test]
fn a_signal_ends_it_well_and_leaves_nothing() {
    for name in ["INT", "TERM", "HUP"] {
        let fixture = Fixture::new(4);
        let mut child = fixture.command().stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.by_ref().find(|line| line.as_ref().unwrap().starts_with("  0.jpg"));
        assert!(first.is_some());
        assert_eq!(list(&fixture.temporary()).len(), 1);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
        assert!(!lines.any(|line| line.unwrap().contains("agrees with")), "{name}: not stopped");
        fixture.check_untouched(4);
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    let empty = Fixture::new(0);
    let full = Fixture::new(1);
    let none = full.folder.path().join("none");
    let mut cases = Vec::new();
    cases.push((empty.command(), 1, vec!["photos", "no JPEG, PNG or WebP"]));
    let mut command = vggd();
    command.arg("demo").arg("--models").arg(&none);
    cases.push((command, 1, vec!["none/manifest.toml", "model set"]));
    let mut command = vggd();
    command.arg("demo").arg("--models").arg(models()).arg("--photos").arg(&none);
    cases.push((command, 1, vec!["none", "No such file"]));
    let mut command = full.command();
    command.env("VGGD__MQTT__PORT", "1884");
    cases.push((command, 78, vec!["VGGD__MQTT__PORT", "mqtt.port = '1884'", "unset"]));
    for (mut command, code, parts) in cases {
        let output = command.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "no {parts:?} in: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    full.check_untouched(1);
}
