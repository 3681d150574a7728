//! Manifests that somebody has changed: taken or refused in words, never worse.

mod common;

use std::fs;
use std::path::Path;

use common::models;
use proptest::prelude::*;
use vggd::manifest::{FILE_NAME, ModelSet};

/// A folder with the tiny set's files and this manifest.
fn folder(manifest: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        std::os::unix::fs::symlink(&path, folder.path().join(name)).unwrap();
    }
    fs::remove_file(folder.path().join(FILE_NAME)).unwrap();
    fs::write(folder.path().join(FILE_NAME), manifest).unwrap();
    folder
}

fn manifest() -> String {
    fs::read_to_string(models().join(FILE_NAME)).unwrap()
}

/// Opens the set and uses what it says; what is wrong, in words.
fn open(folder: &Path) -> Result<(), String> {
    let set = ModelSet::open(folder).map_err(|error| error.to_string())?;
    for variant in &set.manifest.variants {
        assert!(!set.digest(variant).is_empty() && variant.side() > 0 && variant.output[1] > 0);
        assert!(variant.accuracy().is_none_or(|share| (0.0..=1.0).contains(&share)));
    }
    set.verify().map_err(|error| error.to_string())
}

#[test]
fn what_is_wrong_is_named() {
    let cases = [
        ("format = 1", "format = 2", "format 2, this vggd reads format 1"),
        ("name = \"scaled\"", "name = \"auto\"", "a variant cannot be called 'auto'"),
        ("name = \"scaled\"", "name = \"\"", "a variant cannot be called ''"),
        ("name = \"scaled\"", "name = \"baseline\"", "two variants are called 'baseline'"),
        ("name = \"scaled\"", "name = \"scaled\"\ntop1 = nan", "NaN is not a share"),
        ("name = \"scaled\"", "name = \"scaled\"\nagreement = 1.5", "1.5 is not a share"),
        ("baseline.onnx", "../baseline.onnx", "is not the name of a file in the set"),
        ("baseline.onnx", "other.onnx", "No such file"),
        ("0.225", "0.0", "preprocess: "),
        ("224", "1000000000", "input [1, 3, 1000000000, 1000000000]"),
    ];
    for (old, new, expected) in cases {
        let text = manifest();
        assert!(text.contains(old), "{old} in {text}");
        let found = open(folder(text.replace(old, new).as_bytes()).path());
        let found = found.expect_err(new);
        assert!(found.contains(expected), "{new}: {found}");
    }
    open(folder(manifest().as_bytes()).path()).unwrap();
}

/// A value that a key might be given.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        proptest::collection::vec(any::<u32>(), 0..5).prop_map(|numbers| format!("{numbers:?}")),
        any::<String>().prop_map(|text| format!("{text:?}")),
        Just("nan".to_owned()),
        Just("{}".to_owned()),
    ]
}

proptest! {
    #[test]
    fn any_value_of_any_key_is_taken_or_refused(line in any::<prop::sample::Index>(), value in value()) {
        let text = manifest();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let line = line.get_mut(&mut lines);
        if let Some((key, _)) = line.clone().split_once(" = ") {
            *line = format!("{key} = {value}");
        }
        open(folder(lines.join("\n").as_bytes()).path()).ok();
    }

    #[test]
    fn any_bytes_are_taken_or_refused(
        at in any::<prop::sample::Index>(), length in 0usize..200, bytes in any::<Vec<u8>>()
    ) {
        let mut text = manifest().into_bytes();
        let start = at.index(text.len());
        let end = (start + length).min(text.len());
        text.splice(start..end, bytes);
        open(folder(&text).path()).ok();
    }
}
