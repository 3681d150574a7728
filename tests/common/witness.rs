//! What other people's programs and the full-size reference model say, where they can be had.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that can import `modules`: VGGD_PYTHON, or python3. Without one it is [`missing`].
pub fn python(modules: &str) -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("VGGD_PYTHON").unwrap_or("python3".into()));
    let reason = match Command::new(&python).args(["-c", &format!("import {modules}")]).output() {
        Ok(output) if output.status.success() => return Some(python),
        Ok(output) => {
            let trace = String::from_utf8_lossy(&output.stderr).into_owned();
            trace.lines().last().unwrap_or_default().to_owned()
        }
        Err(error) => error.to_string(),
    };
    let python = python.display();
    missing(&format!("{python} must import {modules}, see VGGD_PYTHON: {reason}"));
    None
}

/// A test does not run for want of a program, and says so; with VGGD_REQUIRE_WITNESS=1 it fails.
pub fn missing(reason: &str) {
    assert_ne!(std::env::var("VGGD_REQUIRE_WITNESS").as_deref(), Ok("1"), "{reason}");
    not_run(reason);
}

/// The folder of the full-size reference model and its photos: VGGD_REFERENCE, or
/// ../shared/reference beside the checkout.
pub fn reference() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    let folder = std::env::var_os("VGGD_REFERENCE").map_or(beside, PathBuf::from);
    if folder.join("expand.py").exists() {
        return Some(folder);
    }
    not_run(&format!("no reference model in {}, see VGGD_REFERENCE", folder.display()));
    None
}

/// Every `step`th photo of a folder of the reference.
pub fn reference_photos(reference: &Path, folder: &str, step: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(reference.join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    paths.into_iter().step_by(step).collect()
}

/// Past the test harness, which hides what a passing test prints.
pub fn not_run(reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "NOT RUN: {reason}").unwrap();
}
