//! One variant, loaded and ready to run: the only user of tract.
//!
//! tract reads the graph and runs it. Before it sees the graph, the layers that our own kernels are
//! faster at are taken out and become ops of our own: `convolution`, `quantized` and `linear`. It must
//! not know where inputs come from; what photos must go through to become one, and what the classes are
//! called, it only hands on.

mod chain;
mod convolution;
mod engine;
mod linear;
mod op;
mod quantized;
mod shared;
mod weights;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use thiserror::Error;
use tract_onnx::pb::GraphProto;
use tract_onnx::tract_hir::internal::*;

pub use engine::Engine;

use crate::manifest::{ModelSet, Preprocess, SetError, Variant};

/// Why a variant cannot be loaded or run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// Its files are missing or damaged: copy or make the set again.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The graph is not what this program can run: make the set again with a matching version.
    #[error("{}: {message}", path.display())]
    Graph {
        /// The graph file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The network gave an output that is no number: its weights are damaged.
    #[error("variant '{0}' gave a logit that is not finite")]
    NotFinite(String),
}

/// A variant in memory.
pub struct Model {
    /// Its name in the manifest.
    pub name: String,
    /// Height and width of its input in pixels.
    pub side: usize,
    /// How a photo becomes its input, as its set says.
    pub rule: Preprocess,
    /// What its set calls the classes.
    pub labels: Vec<String>,
    plan: Arc<TypedRunnableModel>,
}

impl Model {
    /// Reads the graph of `variant`, maps its weights and prepares it for `engine`.
    ///
    /// # Errors
    /// [`ModelError::Set`] for a missing or changed file, [`ModelError::Graph`] for a graph that
    /// cannot be run.
    pub fn load(set: &ModelSet, variant: &Variant, engine: &Engine) -> Result<Self, ModelError> {
        let bytes = set.read_graph(variant)?;
        let plan =
            plan(&bytes, &set.directory, variant, engine).map_err(|error| ModelError::Graph {
                path: set.directory.join(&variant.graph),
                message: format!("{error:#}"),
            })?;
        let (rule, labels) = (set.manifest.preprocess.clone(), set.labels.clone());
        Ok(Self { name: variant.name.clone(), side: variant.side(), rule, labels, plan })
    }

    /// The logits, one per class, for an input of 1 x 3 x side x side (NCHW, normalised).
    ///
    /// # Errors
    /// [`ModelError::NotFinite`], or [`ModelError::Graph`] when an op fails.
    ///
    /// # Panics
    /// When the input has another length.
    pub fn infer(&self, input: &[f32]) -> Result<Vec<f32>, ModelError> {
        assert_eq!(input.len(), 3 * self.side * self.side, "input length");
        let run = || -> TractResult<Vec<f32>> {
            let input = Tensor::from_shape(&[1, 3, self.side, self.side], input)?;
            let output = self.plan.run(tvec!(input.into()))?;
            Ok(output[0].try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        };
        let logits = run().map_err(|error| ModelError::Graph {
            path: PathBuf::from(&self.name),
            message: format!("{error:#}"),
        })?;
        match logits.iter().all(|logit| logit.is_finite()) {
            true => Ok(logits),
            false => Err(ModelError::NotFinite(self.name.clone())),
        }
    }
}

/// What the weights of `variant` take once it is loaded for `engine`, in bytes, as far as its graph tells:
/// convolutions in float32 as the kernels multiply by them, linear layers rounded if they are, all else as it
/// lies in the files. What runs need besides is not in it.
///
/// # Errors
/// [`ModelError`], as for [`Model::load`].
pub fn footprint(set: &ModelSet, variant: &Variant, engine: &Engine) -> Result<u64, ModelError> {
    let bytes = set.read_graph(variant)?;
    let proto = tract_onnx::pb::ModelProto::decode(&*bytes);
    let graph = proto.ok().and_then(|proto| proto.graph).ok_or_else(|| ModelError::Graph {
        path: set.directory.join(&variant.graph),
        message: "no graph".to_owned(),
    })?;
    let stored: u64 = graph.initializer.iter().map(weights::stored_bytes).sum();
    let added = convolution::packing_adds(&graph, engine, variant.side());
    Ok((stored + added).saturating_sub(linear::rounding_saves(&graph, engine)))
}

fn plan(
    graph: &[u8],
    directory: &Path,
    variant: &Variant,
    engine: &Engine,
) -> TractResult<Arc<TypedRunnableModel>> {
    let mut proto = tract_onnx::pb::ModelProto::decode(graph)?;
    let graph = proto.graph.as_mut().context("no graph")?;
    let mut files = weights::Files::new(directory);
    let mut taken = linear::take(graph, &mut files, engine)?;
    taken.extend(convolution::take(graph, &mut files, engine, variant.side())?);
    taken.extend(quantized::take(graph, &mut files, engine, variant.side())?);
    drop_unread(graph);
    let folder = directory.to_str().context("the folder's name is not UTF-8")?;
    let mut model = tract_onnx::onnx().parse(&proto, Some(folder))?.model;
    for layer in taken {
        layer.put(&mut model)?;
    }
    model
        .with_input_fact(0, f32::fact(variant.input).into())?
        .with_output_fact(0, f32::fact(variant.output).into())?
        .into_typed()?
        .into_optimized()?
        .into_runnable()
}

/// Removes nodes and initializers that nothing reads any more, so that tract does not load them.
fn drop_unread(graph: &mut GraphProto) {
    loop {
        let outputs = graph.output.iter().map(|output| output.name.clone());
        let inputs = graph.node.iter().flat_map(|node| node.input.iter().cloned());
        let read: HashSet<String> = inputs.chain(outputs).collect();
        let nodes = graph.node.len();
        graph.node.retain(|node| node.output.iter().any(|name| read.contains(name)));
        graph.initializer.retain(|tensor| read.contains(&tensor.name));
        if graph.node.len() == nodes {
            return;
        }
    }
}
