//! How long each variant takes on this machine when nothing disturbs: timed once, in a process of
//! its own, and kept in a file, a JSON object. What was timed on another processor, with another
//! number of threads or by another version counts for nothing, and neither does a variant whose
//! files have changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::manifest::{ModelSet, Variant};
use crate::measure::{Job, Measurement};
use crate::model::Engine;

/// What a variant costs. Times are in milliseconds, memory in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Time outside the layers that are bound by reading weights.
    pub compute_ms: f64,
    /// Time in those layers.
    pub memory_ms: f64,
    /// Resident memory while it runs.
    pub rss_mb: u64,
    /// The most resident memory, which is while it is loaded.
    pub peak_rss_mb: u64,
}

/// How often a variant is run to time it.
const RUNS: u32 = 7;

/// What times depend on besides the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Machine {
    version: String,
    processor: String,
    kernels: String,
    threads: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    machine: Machine,
    /// By the digest of the variant's files.
    costs: BTreeMap<String, Cost>,
}

/// Costs that are known, and the file that keeps them.
#[derive(Clone, Debug)]
pub struct Profiles {
    path: PathBuf,
    kept: Kept,
}

impl Profiles {
    /// Those of this machine with this engine that the file at `path` keeps; none if there is no
    /// such file.
    pub fn open(path: &Path, engine: &Engine) -> Self {
        let machine = Machine {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            processor: processor(),
            kernels: engine.kernels(),
            threads: engine.threads(),
        };
        let file = path.display().to_string();
        let costs = match fs::read(path).map(|text| serde_json::from_slice::<Kept>(&text)) {
            Ok(Ok(kept)) if kept.machine == machine => kept.costs,
            Ok(Ok(kept)) => {
                tracing::info!(file, before = ?kept.machine, now = ?machine, "profile is out of date");
                BTreeMap::new()
            }
            Ok(Err(error)) => {
                tracing::warn!(file, %error, "profile is unreadable and will be made again");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        Self { path: path.to_owned(), kept: Kept { machine, costs } }
    }

    /// What a variant costs, if that is known.
    pub fn of(&self, set: &ModelSet, variant: &Variant) -> Option<Cost> {
        self.kept.costs.get(&set.digest(variant)).copied()
    }

    /// Keeps what a variant was found to cost. A file that cannot be written is only logged.
    pub fn keep(&mut self, set: &ModelSet, variant: &Variant, cost: Cost) {
        self.kept.costs.insert(set.digest(variant), cost);
        if let Err(error) = self.save() {
            tracing::warn!(file = %self.path.display(), %error, "cannot keep the profile");
        }
    }

    /// Replaces the file whole.
    fn save(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&self.kept).expect("a profile is JSON");
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(new, &self.path)
    }
}

impl Cost {
    /// Times a variant of `set` with the threads and the precision of `config`.
    ///
    /// # Errors
    /// When the variant cannot be run.
    pub fn measure(config: &Config, set: &ModelSet, variant: &Variant) -> Result<Self> {
        let name = variant.name.clone();
        let mut config = config.clone();
        config.model.set.clone_from(&set.directory);
        let job = Job {
            config,
            variant: name.clone(),
            runs: RUNS,
            picture: None,
            each: false,
            background: false,
        };
        let cost = Self::from(&job.spawn()?);
        tracing::info!(
            variant = name,
            compute_ms = cost.compute_ms,
            memory_ms = cost.memory_ms,
            rss_mb = cost.rss_mb,
            "variant timed"
        );
        Ok(cost)
    }
}

impl From<&Measurement> for Cost {
    /// The cost by the fastest run, which is the least disturbed one.
    fn from(measurement: &Measurement) -> Self {
        Self {
            compute_ms: (measurement.min_ms - measurement.memory_ms).max(0.0),
            memory_ms: measurement.memory_ms,
            rss_mb: measurement.rss_mb,
            peak_rss_mb: measurement.peak_rss_mb,
        }
    }
}

/// The processor's name, as far as the system tells.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let known = ["model name", "Model", "Hardware", "CPU part"].into_iter().find_map(value);
    known.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const COST: Cost = Cost { compute_ms: 5.0, memory_ms: 1.5, rss_mb: 40, peak_rss_mb: 50 };

    #[test]
    fn a_profile_is_stale_as_soon_as_anything_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample");
        let set = ModelSet::open(&sample).unwrap();
        let variant = &set.manifest.variants[0];
        let known = |threads| Profiles::open(&path, &Engine::new(threads)).of(&set, variant);
        assert_eq!(known(1), None);
        Profiles::open(&path, &Engine::new(1)).keep(&set, variant, COST);
        assert_eq!(known(1), Some(COST));
        assert_eq!(known(2), None, "another number of threads");

        let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for key in ["version", "processor", "kernels", "threads"] {
            let mut other = kept.clone();
            other["machine"][key] = match &kept["machine"][key] {
                Value::Number(_) => json!(99),
                _ => json!("another"),
            };
            assert_ne!(other, kept);
            fs::write(&path, other.to_string()).unwrap();
            assert_eq!(known(1), None, "another {key}");
        }
        fs::write(&path, kept.to_string()).unwrap();
        assert_eq!(known(1), Some(COST));
        for broken in [&kept.to_string()[..40], "", "[]"] {
            fs::write(&path, broken).unwrap();
            assert_eq!(known(1), None, "{broken}");
        }
    }

    #[test]
    fn a_variant_whose_files_have_changed_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sample");
        let mut set = ModelSet::open(&sample).unwrap();
        let mut profiles = Profiles::open(&folder.path().join("profile.json"), &Engine::new(1));
        let variant = set.manifest.variants[0].clone();
        profiles.keep(&set, &variant, COST);
        // Neither its name nor its accuracy is in its files.
        let renamed = Variant { name: "renamed".to_owned(), top1: Some(0.1), ..variant.clone() };
        assert_eq!(profiles.of(&set, &renamed), Some(COST));
        let graph = Variant { sha256: "0".repeat(64), ..variant.clone() };
        assert_eq!(profiles.of(&set, &graph), None);
        let file = set.manifest.files.iter_mut().find(|file| variant.weights.contains(&file.path));
        file.unwrap().sha256 = "0".repeat(64);
        assert_eq!(profiles.of(&set, &variant), None);
    }
}
