//! A tiny VGG-19 for tests: the whole topology, few channels, weights out of a generator.
//!
//! It recognises nothing, but is a network all the same: numbers neither vanish nor explode on
//! their way through 19 layers, and different photos get different answers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::build::BuildError;
use crate::import::{Import, import};
use crate::labels;
pub use crate::random::Random;
use crate::set::WriteError;
use crate::source;
use crate::tensor::Tensor;
use crate::topology::{BASELINE_SIDE, CONVOLUTIONS, LINEARS, Topology};

/// Widths of the tiny network, 600,000 parameters.
pub fn topology(classes: usize) -> Topology {
    Topology {
        channels: [16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64],
        hidden: [128, 128],
        classes,
    }
}

/// Writes the tiny network as a safetensors file, the same one every time.
///
/// # Errors
/// Whatever the file system gives.
pub fn write(path: &Path, classes: usize) -> io::Result<()> {
    source::write(path, &tensors(&topology(classes)))
}

/// Makes a model set of the tiny network: `folder/set`, which is returned, and what it is imported
/// from, `folder/tiny.safetensors` and `folder/labels.txt`.
///
/// # Errors
/// [`BuildError`].
pub fn set(folder: &Path, classes: usize) -> Result<PathBuf, BuildError> {
    let request = Import {
        source: folder.join("tiny.safetensors"),
        labels: folder.join("labels.txt"),
        preprocess: Default::default(),
        out: folder.join("set"),
        name: "tiny".to_owned(),
        force: false,
    };
    write(&request.source, classes).map_err(WriteError::io(&request.source))?;
    let text = labels::text(&labels(classes));
    fs::write(&request.labels, text).map_err(WriteError::io(&request.labels))?;
    import(&request, &mut ())?;
    Ok(request.out)
}

/// Labels for it: `class 0`, `class 1` and so on.
pub fn labels(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("class {class}")).collect()
}

/// Random weights under torchvision's names.
///
/// Each filter's weights add up to zero and have the variance 3 / fan-in: activations after a ReLU
/// have all much the same mean, and a filter that sees it gives the same answer to every photo.
pub fn tensors(topology: &Topology) -> BTreeMap<String, Tensor<'static>> {
    let mut random = Random::new(19);
    let mut tensors = BTreeMap::new();
    let convolutions = (CONVOLUTIONS.into_iter())
        .zip(topology.convolution_inputs())
        .zip(topology.channels)
        .map(|((index, inputs), outputs)| {
            let shape = vec![outputs, inputs, 3, 3];
            (format!("features.{index}"), shape)
        });
    let linears = (LINEARS.into_iter())
        .zip(topology.linear_inputs(BASELINE_SIDE))
        .zip(topology.linear_outputs())
        .map(|((index, inputs), outputs)| (format!("classifier.{index}"), vec![outputs, inputs]));
    for (name, shape) in convolutions.chain(linears) {
        let fan_in = shape[1..].iter().product();
        let gain = (3.0 / fan_in as f32).sqrt();
        let mut weights = Vec::new();
        for _ in 0..shape[0] {
            let row: Vec<f32> = (0..fan_in).map(|_| gain * random.normal()).collect();
            let mean = row.iter().sum::<f32>() / fan_in as f32;
            weights.extend(row.iter().map(|weight| weight - mean));
        }
        let biases = (0..shape[0]).map(|_| 0.05 * random.normal()).collect();
        let bias = Tensor::new(vec![shape[0]], biases);
        tensors.insert(format!("{name}.bias"), bias);
        tensors.insert(format!("{name}.weight"), Tensor::new(shape, weights));
    }
    tensors
}
