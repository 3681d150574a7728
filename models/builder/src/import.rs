//! From a file of trained weights to a model set of the variants that need no training.
//!
//! | weight file | what | baseline | quantized | scaled |
//! | --- | --- | --- | --- | --- |
//! | `features.bin` | convolutions | x | x | x |
//! | `classifier.bias.bin` | biases of the linear layers | x | x | x |
//! | `classifier.0.bin` | first linear layer | x | | |
//! | `classifier.bin` | second and third linear layer | x | | x |
//! | `classifier.int8.bin` | linear layers as int8, and scales | | x | |
//! | `classifier.0.160.bin` | first linear layer, pooling folded in | | | x |

use std::path::{Path, PathBuf};

use thiserror::Error;
use vggd::manifest::{self, Manifest, Preprocess, Variant, WeightFile};

use crate::labels::{self, LabelsError};
use crate::network::{Network, NetworkError};
use crate::onnx::{Graph, Linear};
use crate::parts::{LinearWeight, PartWriter};
use crate::progress::{Interrupted, Progress};
use crate::quantize::GROUP;
use crate::scale::Fold;
use crate::set::{SetWriter, WriteError};
use crate::source::{Source, SourceError};
use crate::topology::{BASELINE_SIDE, Topology};

/// Input side of the variant `scaled`, in pixels.
pub const SCALED_SIDE: usize = 160;

/// What to import, and where to.
#[derive(Clone, Debug)]
pub struct Import {
    /// A safetensors file with torchvision's names.
    pub source: PathBuf,
    /// A text file with one label per class.
    pub labels: PathBuf,
    /// The model set's folder.
    pub out: PathBuf,
    /// What the set is called, for people.
    pub name: String,
    /// Whether a model set that is already there is replaced.
    pub force: bool,
}

/// Why there is no model set. Whatever was in its place is untouched.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Give the right labels.
    #[error(transparent)]
    Labels(#[from] LabelsError),
    /// Give the right weights.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The weights are readable, but not those of a VGG-19.
    #[error("{}: {error}", path.display())]
    Network {
        /// The file of weights.
        path: PathBuf,
        /// What does not fit.
        error: NetworkError,
    },
    /// Labels and weights are not of the same network: give the labels it was trained with.
    #[error(
        "{}: {labels} labels, but the network tells {classes} classes apart; give the labels it \
         was trained with",
        path.display()
    )]
    Classes {
        /// The file of labels.
        path: PathBuf,
        /// How many it has.
        labels: usize,
        /// How many there should be.
        classes: usize,
    },
    /// Widths that int8 weights do not come in.
    #[error(
        "{}: tensor '{name}' has {columns} columns, which groups of {GROUP} with a scale each do \
         not divide evenly; use a network of other widths",
        path.display()
    )]
    Columns {
        /// The file of weights.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Inputs of its layer.
        columns: usize,
    },
    /// Replacing the set would delete what it is made from: move that elsewhere.
    #[error("{}: lies in the folder that is to be replaced, {}; move it out", path.display(), out.display())]
    Inside {
        /// The file of weights.
        path: PathBuf,
        /// The folder.
        out: PathBuf,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The set could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes the model set and returns its manifest.
///
/// # Errors
/// [`ImportError`].
pub fn import(import: &Import, progress: &mut dyn Progress) -> Result<Manifest, ImportError> {
    let labels = labels::read(&import.labels)?;
    let source = Source::open(&import.source)?;
    let network = Network::read(&source).map_err(network_error(&import.source))?;
    check_fit(import, &network, labels.len())?;

    let set = SetWriter::create(&import.out, import.force)?;
    check_outside(&import.source, set.place())?;

    progress.begin(work(&network.topology()));
    progress.now("checking weights");
    (network.check_finite(progress)).map_err(network_error(&import.source))?;

    let (graphs, files) = write_parts(&set, &network, progress)?;
    let topology = network.topology();
    let variants = (graphs.iter())
        .map(|(graph, description)| write_graph(&set, graph, description, &topology, &files))
        .collect::<Result<_, _>>()?;
    let labels = set.write("labels.txt", labels::text(&labels).as_bytes())?;
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: import.name.clone(),
        labels: labels.path,
        preprocess: Preprocess::default(),
        files,
        variants,
    };
    set.publish(&manifest)?;
    Ok(manifest)
}

fn check_fit(import: &Import, network: &Network<'_>, labels: usize) -> Result<(), ImportError> {
    let classes = network.topology().classes;
    if labels != classes {
        return Err(ImportError::Classes { path: import.labels.clone(), labels, classes });
    }
    for layer in &network.linears {
        let columns = layer.weight.shape()[1];
        if !columns.is_multiple_of(GROUP) {
            return Err(ImportError::Columns {
                path: import.source.clone(),
                name: format!("{}.weight", layer.name),
                columns,
            });
        }
    }
    Ok(())
}

fn check_outside(source: &Path, out: &Path) -> Result<(), ImportError> {
    match source.canonicalize() {
        Ok(path) if path.starts_with(out) => Err(ImportError::Inside { path, out: out.to_owned() }),
        _ => Ok(()),
    }
}

/// Bytes read and written, for the progress.
fn work(topology: &Topology) -> u64 {
    let linear = |side| -> u64 {
        (topology.linear_inputs(side).into_iter())
            .zip(topology.linear_outputs())
            .map(|(input, output)| (input * output) as u64)
            .sum()
    };
    let folded = (topology.linear_inputs(SCALED_SIDE)[0] * topology.hidden[0]) as u64;
    let float32 = 2 * topology.parameters(BASELINE_SIDE) + folded;
    let int8 = linear(BASELINE_SIDE);
    4 * float32 + int8 + 4 * int8 / GROUP as u64
}

type Described = (Graph, &'static str);

fn write_parts(
    set: &SetWriter,
    network: &Network<'_>,
    progress: &mut dyn Progress,
) -> Result<(Vec<Described>, Vec<WeightFile>), WriteError> {
    let fold = Fold::new(SCALED_SIDE).expect("a side that can be folded");
    let (first, others) = network.linears.split_at(1);

    let mut parts = PartWriter::new(set, progress);
    let convolutions = parts.convolutions("features.bin", network)?;
    let biases = parts.biases("classifier.bias.bin", &network.linears)?;
    let first_float32 = parts.float32("classifier.0.bin", first)?;
    let others_float32 = parts.float32("classifier.bin", others)?;
    let int8 = parts.int8("classifier.int8.bin", &network.linears)?;
    let folded = parts.folded("classifier.0.160.bin", &first[0], &fold)?;
    let files = parts.finish();

    let graph = |name: &str, side, weights: Vec<LinearWeight>| Graph {
        name: name.to_owned(),
        side,
        convolutions: convolutions.clone(),
        linears: (weights.into_iter().zip(biases.clone()))
            .map(|(weight, bias)| Linear { weight, bias })
            .collect(),
    };
    let baseline = [first_float32, others_float32.clone()].concat();
    let scaled = [vec![folded], others_float32].concat();
    let graphs = vec![
        (graph("baseline", BASELINE_SIDE, baseline), "as it was trained: float32, 224 x 224"),
        (
            graph("quantized", BASELINE_SIDE, int8),
            "linear layers int8, one scale per row and 64 columns",
        ),
        (
            graph("scaled", SCALED_SIDE, scaled),
            "float32, 160 x 160, pooling folded into the first linear layer",
        ),
    ];
    Ok((graphs, files))
}

fn write_graph(
    set: &SetWriter,
    graph: &Graph,
    description: &str,
    topology: &Topology,
    files: &[WeightFile],
) -> Result<Variant, WriteError> {
    let written = set.write(&format!("{}.onnx", graph.name), &graph.encode())?;
    let weights = graph.files();
    let weight_bytes: u64 = (files.iter())
        .filter(|file| weights.contains(&file.path.as_str()))
        .map(|file| file.bytes)
        .sum();
    Ok(Variant {
        name: graph.name.clone(),
        description: description.to_owned(),
        graph: written.path,
        sha256: written.sha256,
        weights: weights.into_iter().map(str::to_owned).collect(),
        input: [1, 3, graph.side, graph.side],
        output: [1, topology.classes],
        parameters: topology.parameters(graph.side),
        macs: topology.macs(graph.side),
        bytes: written.bytes + weight_bytes,
        top1: None,
        top5: None,
        agreement: None,
    })
}

fn network_error(path: &Path) -> impl FnOnce(NetworkError) -> ImportError {
    let path = path.to_owned();
    |error| match error {
        NetworkError::Interrupted(interrupted) => interrupted.into(),
        error => ImportError::Network { path, error },
    }
}
