//! A run of fine-tuning on disk, so that it can be stopped and gone on with.
//!
//! ```text
//! run.txt               which run it is and how far it came; "key = value" lines
//! step-N.safetensors    weights and the optimizer's moments after step N, float32
//! teacher.answers       see `teacher`
//! ```
//!
//! Every file is written beside its place (`.new`), synced and renamed, run.txt last, and then those
//! steps are deleted that are neither the last nor the best. run.txt holds a checksum of each step
//! that it speaks of. The folder is the caller's to delete.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use candle_core::{Result as Computed, Tensor as Values, safetensors as file};

use super::model::Parameter;
use super::optimizer::Moments;
use super::{FinetuneError, Judgement};
use crate::digest::{Digest, hex};
use crate::network::{Layer, Network};
use crate::source::Source;
use crate::tensor::Tensor;

const FIRST_LINE: &str = "vggd-models fine-tuning 1";

const RUN: &str = "run.txt";

/// What a run was made of. Another run has another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity(pub(super) Vec<(&'static str, String)>);

/// How far a run came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Steps that were taken.
    pub(super) step: u64,
    /// Time that it took so far.
    pub(super) elapsed: Duration,
    /// How many of its judgements were made.
    pub(super) judged: u64,
    /// The network as it was given.
    pub(super) given: Judgement,
    /// The step after which it was best, if that was better than given.
    pub(super) best: Option<(u64, Judgement)>,
    /// Checksum of the file of each step.
    pub(super) files: BTreeMap<u64, u64>,
}

impl Record {
    /// Nothing is done yet.
    pub(super) fn new(given: Judgement) -> Self {
        let files = BTreeMap::new();
        Self { step: 0, elapsed: Duration::ZERO, judged: 0, given, best: None, files }
    }

    /// The best judgement so far.
    pub(super) fn best(&self) -> Judgement {
        self.best.map_or(self.given, |(_, judgement)| judgement)
    }
}

/// The folder of a run.
pub(super) struct Checkpoint {
    folder: PathBuf,
    identity: Identity,
}

impl Checkpoint {
    /// Opens the folder, making it if need be. There is a record if this run was begun there;
    /// `restart` forgets whatever run was.
    pub(super) fn open(
        folder: &Path,
        identity: Identity,
        restart: bool,
    ) -> Result<(Self, Option<Record>), FinetuneError> {
        fs::create_dir_all(folder).map_err(FinetuneError::io(folder))?;
        let checkpoint = Self { folder: folder.to_owned(), identity };
        let path = folder.join(RUN);
        let text = match fs::read_to_string(&path) {
            Ok(text) if !restart => text,
            Ok(_) => {
                fs::remove_file(&path).map_err(FinetuneError::io(&path))?;
                checkpoint.delete_all_but(&[])?;
                return Ok((checkpoint, None));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((checkpoint, None)),
            Err(error) => return Err(FinetuneError::io(&path)(error)),
        };
        let (identity, record) =
            parse(&text).ok_or_else(|| FinetuneError::Damaged { path: path.clone() })?;
        for (key, value) in &checkpoint.identity.0 {
            let found = identity.get(*key).cloned().unwrap_or_default();
            if found != *value {
                let (what, path) = (*key, folder.to_owned());
                return Err(FinetuneError::Other { path, what, found, expected: value.clone() });
            }
        }
        Ok((checkpoint, Some(record)))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes what there is at `record.step`, and deletes what is not needed any more.
    pub(super) fn save(
        &self,
        record: &mut Record,
        parameters: &[Parameter],
        moments: &[Moments],
    ) -> Result<(), FinetuneError> {
        let step = record.step;
        if let Entry::Vacant(missing) = record.files.entry(step) {
            let path = self.step(step);
            let new = with_suffix(&path);
            let mut tensors = HashMap::new();
            let mut digest = Digest::new();
            for (parameter, moments) in parameters.iter().zip(moments) {
                for (name, values) in named(parameter, moments) {
                    digest = checksum(digest, values)?;
                    tensors.insert(name, values.clone());
                }
            }
            file::save(&tensors, &new)?;
            replace(&new, &path).map_err(FinetuneError::io(&path))?;
            missing.insert(digest.end());
        }
        let best = record.best.map(|(step, _)| step);
        record.files.retain(|kept, _| *kept == step || Some(*kept) == best);
        let path = self.folder.join(RUN);
        let new = with_suffix(&path);
        fs::write(&new, self.text(record))
            .and_then(|()| replace(&new, &path))
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .map_err(FinetuneError::io(&path))?;
        self.delete_all_but(&record.files.keys().copied().collect::<Vec<_>>())
    }

    /// Reads what was written at `record.step`, and checks the best too.
    pub(super) fn restore(
        &self,
        record: &Record,
        parameters: &[Parameter],
        moments: &[Moments],
    ) -> Result<(), FinetuneError> {
        let best = record.best.map(|(step, _)| step).filter(|step| *step != record.step);
        for step in best.into_iter().chain([record.step]) {
            let path = self.step(step);
            let source = self.source(&path)?;
            let mut digest = Digest::new();
            for (parameter, moments) in parameters.iter().zip(moments) {
                for (name, values) in named(parameter, moments) {
                    let tensor = self.tensor(&source, &path, &name)?;
                    if tensor.shape() != values.dims() {
                        return Err(FinetuneError::Damaged { path });
                    }
                    let stored = tensor.values();
                    digest = digest.values(&stored);
                    if step == record.step {
                        let stored = Values::from_slice(&stored, values.dims(), values.device())?;
                        values.slice_set(&stored, 0, 0)?;
                    }
                }
            }
            self.check(&path, record, step, digest)?;
        }
        Ok(())
    }

    /// The network after `step`; layers that did not learn are those of `student`.
    pub(super) fn network(
        &self,
        record: &Record,
        step: u64,
        student: &Network<'_>,
    ) -> Result<Network<'static>, FinetuneError> {
        let path = self.step(step);
        let source = self.source(&path)?;
        let mut digest = Digest::new();
        let mut take = |name: String, given: &Tensor<'_>| -> Result<_, FinetuneError> {
            let mut values = given.values().into_owned();
            if source.names().any(|found| *found == name) {
                let tensor = self.tensor(&source, &path, &name)?;
                digest = digest.values(&tensor.values());
                for part in ["first", "second"] {
                    let moment = self.tensor(&source, &path, &format!("{name}.{part}"))?;
                    digest = digest.values(&moment.values());
                }
                values = tensor.values().into_owned();
            }
            match values.len() == given.shape().iter().product::<usize>() {
                true => Ok(Tensor::new(given.shape().to_owned(), values)),
                false => Err(FinetuneError::Damaged { path: path.clone() }),
            }
        };
        let mut layer = |given: &Layer<'_>| -> Result<_, FinetuneError> {
            let name = given.name.clone();
            let weight = take(format!("{name}.weight"), &given.weight)?;
            let bias = take(format!("{name}.bias"), &given.bias)?;
            Ok(Layer { name, weight, bias })
        };
        let convolutions = student.convolutions.iter().map(&mut layer).collect::<Result<_, _>>()?;
        let linears = student.linears.iter().map(&mut layer).collect::<Result<_, _>>()?;
        self.check(&path, record, step, digest)?;
        Ok(Network { convolutions, linears })
    }

    fn step(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}.safetensors"))
    }

    fn source(&self, path: &Path) -> Result<Source, FinetuneError> {
        Source::open(path).map_err(|_| FinetuneError::Damaged { path: path.to_owned() })
    }

    fn tensor<'a>(
        &self,
        source: &'a Source,
        path: &Path,
        name: &str,
    ) -> Result<Tensor<'a>, FinetuneError> {
        let tensor = source.tensor(name).ok().flatten();
        tensor.ok_or_else(|| FinetuneError::Damaged { path: path.to_owned() })
    }

    fn check(
        &self,
        path: &Path,
        record: &Record,
        step: u64,
        digest: Digest,
    ) -> Result<(), FinetuneError> {
        match record.files.get(&step) == Some(&digest.end()) {
            true => Ok(()),
            false => Err(FinetuneError::Damaged { path: path.to_owned() }),
        }
    }

    fn text(&self, record: &Record) -> String {
        let mut lines = vec![FIRST_LINE.to_owned()];
        let Record { step, elapsed, judged, given, best, files } = record;
        lines.extend(self.identity.0.iter().map(|(key, value)| format!("{key} = {value}")));
        lines.push(format!("step = {step}"));
        lines.push(format!("milliseconds = {}", elapsed.as_millis()));
        lines.push(format!("judged = {judged}"));
        lines.push(format!("given = {}", judgement_text(given)));
        if let Some((step, judgement)) = best {
            lines.push(format!("best = {}", judgement_text(judgement)));
            lines.push(format!("best step = {step}"));
        }
        lines.extend(files.iter().map(|(step, digest)| format!("file {step} = {}", hex(*digest))));
        lines.join("\n") + "\n"
    }

    fn delete_all_but(&self, steps: &[u64]) -> Result<(), FinetuneError> {
        let keep: Vec<PathBuf> = steps.iter().map(|step| self.step(*step)).collect();
        let io = || FinetuneError::io(&self.folder);
        for entry in fs::read_dir(&self.folder).map_err(io())? {
            let path = entry.map_err(io())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("step-") && !keep.contains(&path) {
                fs::remove_file(&path).map_err(FinetuneError::io(&path))?;
            }
        }
        Ok(())
    }
}

/// What is stored of a parameter, in this order.
fn named<'a>(parameter: &'a Parameter, moments: &'a Moments) -> [(String, &'a Values); 3] {
    let name = &parameter.name;
    [
        (name.clone(), &parameter.values),
        (format!("{name}.first"), &moments.first),
        (format!("{name}.second"), &moments.second),
    ]
}

fn checksum(mut digest: Digest, values: &Values) -> Computed<Digest> {
    const PIECE: usize = 1 << 20;
    let (rows, columns) = values.dims2()?;
    let piece = (PIECE / columns).clamp(1, rows);
    for from in (0..rows).step_by(piece) {
        let values = values.narrow(0, from, piece.min(rows - from))?;
        digest = digest.values(&values.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(digest)
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn replace(new: &Path, path: &Path) -> io::Result<()> {
    File::open(new)?.sync_all()?;
    fs::rename(new, path)
}

fn judgement_text(judgement: &Judgement) -> String {
    let Judgement { divergence, agreement, top1 } = judgement;
    let top1 = top1.map_or("-".to_owned(), |top1| top1.to_string());
    format!("{divergence} {agreement} {top1}")
}

fn parse(text: &str) -> Option<(BTreeMap<&str, String>, Record)> {
    let lines = text.strip_prefix(FIRST_LINE)?.trim_start();
    let entries: BTreeMap<&str, String> = lines
        .lines()
        .map(|line| line.split_once(" = ").map(|(key, value)| (key, value.to_owned())))
        .collect::<Option<_>>()?;
    let best = match entries.get("best") {
        Some(judgement) => Some((number(&entries, "best step")?, parse_judgement(judgement)?)),
        None => None,
    };
    let file = |(key, value): (&&str, &String)| {
        let step = key.strip_prefix("file ")?;
        Some(step.parse().ok().zip(u64::from_str_radix(value, 16).ok()))
    };
    let record = Record {
        step: number(&entries, "step")?,
        elapsed: Duration::from_millis(number(&entries, "milliseconds")?),
        judged: number(&entries, "judged")?,
        given: parse_judgement(entries.get("given")?)?,
        best,
        files: entries.iter().filter_map(file).collect::<Option<_>>()?,
    };
    Some((entries, record))
}

fn number<T: FromStr>(entries: &BTreeMap<&str, String>, key: &str) -> Option<T> {
    entries.get(key)?.parse().ok()
}

fn parse_judgement(text: &str) -> Option<Judgement> {
    let mut numbers = text.split(' ');
    let judgement = Judgement {
        divergence: numbers.next()?.parse().ok()?,
        agreement: numbers.next()?.parse().ok()?,
        top1: match numbers.next()? {
            "-" => None,
            top1 => Some(top1.parse().ok()?),
        },
    };
    Some(judgement)
}
