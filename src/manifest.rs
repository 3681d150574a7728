//! Model sets: a folder with `manifest.toml`, `labels.txt`, ONNX graphs and weight files.
//!
//! Owns what a set says about itself: which variants there are, which files they are made of, what
//! they cost. It reads no graph and knows nothing of how a variant is run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The manifest format that this program writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// Name of the manifest in a model set's folder.
pub const FILE_NAME: &str = "manifest.toml";

/// What a variant cannot be called: orders and the configuration mean something else by it.
const RESERVED: &str = "auto";

/// The most characters of a variant's name.
const LONGEST_NAME: usize = 255;

/// The largest input side, in pixels.
const LARGEST_SIDE: usize = 4096;

/// `manifest.toml` as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the set is called, for people.
    pub name: String,
    /// File with one label per line, in the order of the classes.
    pub labels: String,
    /// How a photo becomes the network's input.
    pub preprocess: Preprocess,
    /// Weight files, each listed once however many variants read it.
    #[serde(rename = "file", default)]
    pub files: Vec<WeightFile>,
    /// The variants, the baseline first.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
}

/// Normalisation and framing, the same for every variant of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// The shorter side is resized to this multiple of the input side before the centre crop
    /// (256/224 for torchvision's weights).
    pub resize: f64,
    /// Subtracted from each channel, RGB, after scaling to 0..1.
    pub mean: [f32; 3],
    /// Divides each channel, RGB, after the mean is subtracted.
    pub std: [f32; 3],
}

impl Default for Preprocess {
    /// What torchvision's ImageNet weights were trained with.
    fn default() -> Self {
        Self { resize: 256.0 / 224.0, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

/// One file of weights that graphs refer to as ONNX external data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightFile {
    /// Path in the set's folder.
    pub path: String,
    /// SHA-256 of its content, lower-case hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// One runnable form of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// What the configuration calls it.
    pub name: String,
    /// What was done to the network, for people.
    pub description: String,
    /// ONNX file in the set's folder.
    pub graph: String,
    /// SHA-256 of the graph file, lower-case hexadecimal.
    pub sha256: String,
    /// The weight files that the graph reads: paths of [`Manifest::files`].
    pub weights: Vec<String>,
    /// Input shape, NCHW; N is 1 and C is 3.
    pub input: [usize; 4],
    /// Output shape: 1 x classes.
    pub output: [usize; 2],
    /// Weights and biases of the network; scales of quantized weights are not counted.
    pub parameters: u64,
    /// Multiply-accumulates of one inference, convolutions and fully connected layers.
    pub macs: u64,
    /// Size of the graph and of all weight files it reads.
    pub bytes: u64,
    /// Share of labelled photos whose first answer is right, 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Share of labelled photos with the right answer among the first five, 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Share of photos whose first answer equals the baseline's, 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Mean Kullback-Leibler divergence of its answers from the baseline's, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// How it was made, for the program that makes sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

/// What a variant is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Digest of the network as float32, and of all that was done to get it.
    pub network: String,
    /// How the convolutions are stored: `float32`, `float16`, `int8`, or `int8-float32` for int8
    /// that is widened to compute with it.
    pub convolutions: String,
    /// How the linear layers are stored.
    pub linears: String,
    /// Digest of the calibration photos, where the form depends on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub photos: Option<String>,
}

impl Variant {
    /// The share of photos that it gets right, or of those on which it agrees with the baseline where
    /// no labels were known; nothing if it was not evaluated.
    pub fn accuracy(&self) -> Option<f64> {
        self.top1.or(self.agreement)
    }

    /// The input's height and width in pixels.
    pub fn side(&self) -> usize {
        self.input[2]
    }
}

/// Why a model set cannot be used. Each message names the file.
#[derive(Debug, Error)]
pub enum SetError {
    /// A file cannot be read: give the right folder, or its permissions.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The manifest is not TOML of the expected form: the set is damaged or not one.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// The set contradicts itself or its files: make or copy it again.
    #[error("{}: {message}", path.display())]
    Invalid {
        /// The file that is wrong.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// No such variant: choose one of those that there are.
    #[error("no variant '{name}' in {}, which has {}", path.display(), known.join(", "))]
    UnknownVariant {
        /// What was asked for.
        name: String,
        /// The set's folder.
        path: PathBuf,
        /// The names there are.
        known: Vec<String>,
    },
}

/// A manifest that was found sound, with its folder and labels.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSet {
    /// The folder that all paths of the manifest are relative to.
    pub directory: PathBuf,
    /// What `manifest.toml` says.
    pub manifest: Manifest,
    /// One label per class.
    pub labels: Vec<String>,
}

impl ModelSet {
    /// Reads `manifest.toml` and the labels in `directory`, and checks that every file it names is
    /// there with the right size. Contents are checked by [`verify`](Self::verify) only, because
    /// that reads hundreds of megabytes.
    ///
    /// # Errors
    /// [`SetError`] with the file that is missing or wrong.
    pub fn open(directory: &Path) -> Result<Self, SetError> {
        let path = directory.join(FILE_NAME);
        let text = fs::read_to_string(&path)
            .map_err(|error| SetError::Io { path: path.clone(), error })?;
        let manifest: Manifest = toml::from_str(&text).map_err(|error| SetError::Syntax {
            path: path.clone(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let invalid = |message| SetError::Invalid { path, message };
        check(&manifest).map_err(invalid)?;

        let path = directory.join(&manifest.labels);
        let text = fs::read_to_string(&path)
            .map_err(|error| SetError::Io { path: path.clone(), error })?;
        let labels: Vec<String> = text.lines().map(str::to_owned).collect();
        let classes = manifest.variants[0].output[1];
        if labels.len() != classes {
            let message = format!("{} labels for {classes} classes", labels.len());
            return Err(SetError::Invalid { path, message });
        }

        let set = Self { directory: directory.to_owned(), manifest, labels };
        for file in &set.manifest.files {
            set.check_size(file)?;
        }
        Ok(set)
    }

    /// The variant of that name.
    ///
    /// # Errors
    /// [`SetError::UnknownVariant`], which lists the names there are.
    pub fn variant(&self, name: &str) -> Result<&Variant, SetError> {
        self.position(name).map(|index| &self.manifest.variants[index])
    }

    /// The place of the variant of that name in the manifest.
    ///
    /// # Errors
    /// [`SetError::UnknownVariant`], which lists the names there are.
    pub fn position(&self, name: &str) -> Result<usize, SetError> {
        let found = self.manifest.variants.iter().position(|variant| variant.name == name);
        found.ok_or_else(|| SetError::UnknownVariant {
            name: name.to_owned(),
            path: self.directory.clone(),
            known: self.names(),
        })
    }

    /// Names of all variants, in the manifest's order.
    pub fn names(&self) -> Vec<String> {
        self.manifest.variants.iter().map(|variant| variant.name.clone()).collect()
    }

    /// What the files of `variant` contain, in one word: it changes with any of them.
    pub fn digest(&self, variant: &Variant) -> String {
        let mut hasher = Sha256::new();
        hasher.update(&variant.sha256);
        for weights in &variant.weights {
            let file = self.manifest.files.iter().find(|file| file.path == *weights);
            hasher.update(file.map_or("", |file| &file.sha256));
        }
        hex(&hasher.finalize())
    }

    /// Reads the graph of `variant`, checked against its SHA-256.
    ///
    /// # Errors
    /// [`SetError::Io`] or [`SetError::Invalid`].
    pub fn read_graph(&self, variant: &Variant) -> Result<Vec<u8>, SetError> {
        let path = self.directory.join(&variant.graph);
        match fs::read(&path) {
            Ok(bytes) if hex(&Sha256::digest(&bytes)) == variant.sha256 => Ok(bytes),
            Ok(_) => Err(SetError::Invalid {
                path,
                message: "content differs from the manifest's SHA-256".to_owned(),
            }),
            Err(error) => Err(SetError::Io { path, error }),
        }
    }

    /// Compares every graph and weight file with its SHA-256. Reads the whole set.
    ///
    /// # Errors
    /// [`SetError`] for the first file that differs.
    pub fn verify(&self) -> Result<(), SetError> {
        self.verify_telling(|_, _| {})
    }

    /// The same, told of each stretch of a weight file: its name, and how many bytes that was.
    ///
    /// # Errors
    /// The same.
    pub fn verify_telling(&self, mut read: impl FnMut(&str, usize)) -> Result<(), SetError> {
        for variant in &self.manifest.variants {
            self.read_graph(variant)?;
        }
        for file in &self.manifest.files {
            let path = self.directory.join(&file.path);
            let found = sha256(&path, |bytes| read(&file.path, bytes))
                .map_err(|error| SetError::Io { path: path.clone(), error })?;
            if found != file.sha256 {
                let message = "content differs from the manifest's SHA-256".to_owned();
                return Err(SetError::Invalid { path, message });
            }
        }
        Ok(())
    }

    fn check_size(&self, file: &WeightFile) -> Result<(), SetError> {
        let path = self.directory.join(&file.path);
        match fs::metadata(&path) {
            Ok(found) if found.len() == file.bytes => Ok(()),
            Ok(found) => Err(SetError::Invalid {
                path,
                message: format!("{} bytes, should be {}", found.len(), file.bytes),
            }),
            Err(error) => Err(SetError::Io { path, error }),
        }
    }
}

/// SHA-256 of a file, lower-case hexadecimal. Tells `read` how many bytes it has read each time.
fn sha256(path: &Path, mut read: impl FnMut(usize)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            length => {
                hasher.update(&buffer[..length]);
                read(length);
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.format != FORMAT {
        return Err(format!("format {}, this vggd reads format {FORMAT}", manifest.format));
    }
    let Some(first) = manifest.variants.first() else {
        return Err("no variant".to_owned());
    };
    let Preprocess { resize, mean, std } = &manifest.preprocess;
    let sane = mean.iter().all(|mean| mean.abs() <= 1e3)
        && std.iter().all(|std| (1e-6..=1e3).contains(std));
    if !(sane && (0.1..=10.0).contains(resize)) {
        return Err(format!("preprocess: resize {resize}, mean {mean:?}, std {std:?}"));
    }
    let paths = (manifest.files.iter().map(|file| &file.path))
        .chain(manifest.variants.iter().map(|variant| &variant.graph))
        .chain([&manifest.labels]);
    for path in paths {
        let mut parts = Path::new(path).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(format!("'{path}' is not the name of a file in the set"));
        }
    }
    for (index, variant) in manifest.variants.iter().enumerate() {
        let name = &variant.name;
        if name.is_empty() || name == RESERVED || name.chars().count() > LONGEST_NAME {
            return Err(format!("a variant cannot be called '{name}'"));
        }
        if manifest.variants[..index].iter().any(|v| v.name == *name) {
            return Err(format!("two variants are called '{name}'"));
        }
        let [n, c, height, width] = variant.input;
        if (n, c) != (1, 3) || height != width || !(1..=LARGEST_SIDE).contains(&height) {
            return Err(format!("variant '{name}': input {:?}", variant.input));
        }
        if variant.output != first.output || variant.output[0] != 1 || variant.output[1] == 0 {
            return Err(format!("variant '{name}': output {:?}", variant.output));
        }
        for share in [variant.top1, variant.top5, variant.agreement].into_iter().flatten() {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("variant '{name}': {share} is not a share from 0 to 1"));
            }
        }
        for weights in &variant.weights {
            if !manifest.files.iter().any(|file| file.path == *weights) {
                return Err(format!("variant '{name}': '{weights}' is no [[file]]"));
            }
        }
    }
    Ok(())
}
