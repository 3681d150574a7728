//! The teacher's answers, each computed once.
//!
//! ```text
//! teacher.answers   24 bytes: "VGGDTCH1", checksum of the teacher and its input side, classes
//!                   then records: key, one float32 per class, checksum of both
//! ```
//!
//! Numbers are little-endian, and of 64 bits where nothing else is said. Records are appended; what
//! follows the last sound one is cut off when the file is opened, and all of it when it is another
//! teacher's. Whoever deletes the folder deletes it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::FinetuneError;
use super::examples::{Examples, Seen, Split, read};
use super::model::{Model, Place};
use crate::digest::Digest;
use crate::network::Network;
use crate::tensor::Number;

/// The file's name in its folder.
pub(super) const FILE_NAME: &str = "teacher.answers";

const MAGIC: [u8; 8] = *b"VGGDTCH1";

/// A network that knows better, and what it has said so far.
pub(super) struct Teacher<'a> {
    network: &'a Network<'a>,
    side: usize,
    classes: usize,
    place: &'a Place,
    /// In memory from the first question on that the answers do not hold.
    model: Option<Model>,
    answers: HashMap<u64, Vec<f32>>,
    file: File,
    path: PathBuf,
}

impl<'a> Teacher<'a> {
    /// Opens the answers in `folder`, those to inputs of `side` x `side`. `digest` is that of the
    /// network.
    pub(super) fn open(
        network: &'a Network<'a>,
        digest: u64,
        side: usize,
        place: &'a Place,
        folder: &Path,
    ) -> Result<Self, FinetuneError> {
        let path = folder.join(FILE_NAME);
        let io = FinetuneError::io(&path);
        let classes = network.topology().classes;
        let digest = Digest::new().word(digest).word(side as u64).end();
        let header = [MAGIC, digest.to_le_bytes(), (classes as u64).to_le_bytes()].concat();
        let open = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).create(true).truncate(false).open(&path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let mut answers = HashMap::new();
            let mut sound = header.len();
            if bytes.starts_with(&header) {
                for record in bytes[header.len()..].chunks_exact(record_length(classes)) {
                    let Some((key, answer)) = parse(record) else { break };
                    answers.insert(key, answer);
                    sound += record.len();
                }
            } else {
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&header)?;
            }
            file.set_len(sound as u64)?;
            file.seek(SeekFrom::End(0))?;
            Ok((file, answers))
        };
        let (file, answers) = open().map_err(io)?;
        Ok(Self { network, side, classes, place, model: None, answers, file, path })
    }

    /// Logits, photos x classes. `inputs` are those of a student whose input has `side`.
    pub(super) fn answer(
        &mut self,
        examples: &dyn Examples,
        split: &Split,
        seen: &[Seen],
        inputs: &[f32],
        side: usize,
    ) -> Result<Vec<f32>, FinetuneError> {
        let unknown: Vec<usize> = (0..seen.len())
            .filter(|&at| !self.answers.contains_key(&split.key(seen[at])))
            .collect();
        if !unknown.is_empty() {
            let asked: Vec<Seen> = unknown.iter().map(|&at| seen[at]).collect();
            let inputs = match side == self.side {
                true => {
                    let photos: Vec<_> = inputs.chunks(3 * side * side).collect();
                    unknown.iter().flat_map(|&at| photos[at]).copied().collect()
                }
                false => read(examples, &asked, self.side, self.place.readers())?,
            };
            self.ask(split, &asked, inputs)?;
        }
        Ok(seen.iter().flat_map(|seen| &self.answers[&split.key(*seen)]).copied().collect())
    }

    fn ask(
        &mut self,
        split: &Split,
        asked: &[Seen],
        inputs: Vec<f32>,
    ) -> Result<(), FinetuneError> {
        if self.model.is_none() {
            self.model = Some(Model::new(self.network, self.side, self.place)?);
        }
        let model = self.model.as_ref().expect("it was just made");
        let logits = model.answer(inputs, self.side)?;
        let mut records = Vec::new();
        for (seen, answer) in asked.iter().zip(logits.chunks(self.classes)) {
            let key = split.key(*seen);
            records.extend(key.to_le_bytes());
            records.extend(f32::bytes(answer));
            records.extend(Digest::new().word(key).values(answer).end().to_le_bytes());
            self.answers.insert(key, answer.to_vec());
        }
        self.file.write_all(&records).map_err(FinetuneError::io(&self.path))
    }
}

fn record_length(classes: usize) -> usize {
    2 * size_of::<u64>() + classes * size_of::<f32>()
}

fn parse(record: &[u8]) -> Option<(u64, Vec<f32>)> {
    let (key, rest) = record.split_first_chunk()?;
    let (values, checksum) = rest.split_last_chunk()?;
    let key = u64::from_le_bytes(*key);
    let (values, _) = values.as_chunks();
    let answer: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    let sound = Digest::new().word(key).values(&answer).end() == u64::from_le_bytes(*checksum);
    sound.then_some((key, answer))
}
