//! From a file of trained weights to a model set of the variants that need no photos.

use std::path::PathBuf;

use vggd::manifest::{Manifest, Preprocess};
use vggd::model::Engine;

use crate::build::{Build, BuildError, Start, build};
use crate::parts::Precision;
use crate::plan::Step;
use crate::progress::Progress;
use crate::variant::Form;

/// Input side of the variant `scaled`, in pixels.
pub const SCALED_SIDE: usize = 160;

/// What to import, and where to.
#[derive(Clone, Debug)]
pub struct Import {
    /// A file of weights: safetensors, .pth or ONNX.
    pub source: PathBuf,
    /// A text file with one label per class.
    pub labels: PathBuf,
    /// How the network was trained to see photos.
    pub preprocess: Preprocess,
    /// The model set's folder.
    pub out: PathBuf,
    /// What the set is called, for people.
    pub name: String,
    /// Whether a model set that is already there is replaced.
    pub force: bool,
}

/// Writes a model set of `baseline`, `quantized` and `scaled`, and returns its manifest.
///
/// # Errors
/// [`BuildError`].
pub fn import(import: &Import, progress: &mut dyn Progress) -> Result<Manifest, BuildError> {
    let step = |name: &str, form| Step { name: name.to_owned(), changes: Vec::new(), form };
    let request = Build {
        out: import.out.clone(),
        name: import.name.clone(),
        start: Start::Weights {
            weights: import.source.clone(),
            labels: import.labels.clone(),
            preprocess: import.preprocess.clone(),
        },
        photos: None,
        calibration: 0,
        steps: vec![
            step("baseline", Form::PLAIN),
            step("quantized", Form { linears: Precision::Int8, ..Form::PLAIN }),
            step("scaled", Form { side: SCALED_SIDE, ..Form::PLAIN }),
        ],
        force: import.force,
    };
    build(&Engine::new(1), &request, progress)
}
