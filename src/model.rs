//! One variant, loaded and ready to run: the only user of tract.
//!
//! tract reads the graph and runs it. Before it sees the graph, the layers that our own kernels are
//! faster at are taken out and become ops of our own: `convolution`, `quantized` and `linear`. It must
//! not know where inputs come from or what the classes mean.

mod chain;
mod convolution;
mod linear;
mod op;
mod quantized;
mod weights;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use thiserror::Error;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::pb::GraphProto;
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::{Isa, Parallel};

use crate::config::{self, ConfigError, Precision};
use crate::manifest::{ModelSet, SetError, Variant};

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

/// The environment variable that names an instruction set in place of the fastest one.
const KERNELS: &str = "VGGD_KERNELS";

/// The threads that run models: one pool, shared by every model that is loaded with it. Its threads
/// sleep between frames.
#[derive(Clone)]
pub struct Engine {
    executor: Executor,
    isa: Isa,
    precision: Precision,
    /// Nanoseconds spent in layers that are bound by reading weights.
    reading: Arc<AtomicU64>,
}

impl Engine {
    /// The engine that `model` describes, on the instruction set that the environment variable
    /// `VGGD_KERNELS` names, or else on the fastest one.
    ///
    /// # Errors
    /// [`ConfigError`] for an instruction set that this machine lacks.
    pub fn configured(model: &config::Model) -> Result<Self, ConfigError> {
        let engine = Self { precision: model.precision, ..Self::new(model.threads) };
        let isa = match std::env::var(KERNELS) {
            Ok(name) => named(&name)?,
            Err(_) => engine.isa,
        };
        let engine = Self { isa, ..engine };
        if engine.precision == Precision::Half && !isa.has_half() {
            tracing::warn!(kernels = %isa, "half precision is not faster here, using float32");
        }
        Ok(engine)
    }

    /// An engine of `threads` threads, or of as many as there are cores for 0, that computes in
    /// float32 on the fastest instruction set.
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            threads => threads,
        };
        let executor = match threads {
            1 => Executor::SingleThread,
            threads => Executor::multithread_with_name(threads, "vggd-engine"),
        };
        let isa = Isa::detect();
        Self { executor, isa, precision: Precision::F32, reading: Arc::default() }
    }

    /// How many threads run a model.
    pub fn threads(&self) -> usize {
        match &self.executor {
            Executor::MultiThread(pool) => pool.current_num_threads(),
            _ => 1,
        }
    }

    /// Time spent so far in layers that are bound by reading weights, the fully connected ones.
    pub fn reading(&self) -> Duration {
        Duration::from_nanos(self.reading.load(Ordering::Relaxed))
    }

    /// The instruction set that the kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What the kernels are: the instruction set, and the precision if it is not float32.
    pub fn kernels(&self) -> String {
        match (self.precision, self.isa.has_half()) {
            (Precision::F32, _) => self.isa.to_string(),
            (Precision::Half, true) => format!("{} half", self.isa),
            (Precision::Half, false) => format!("{} (half is not faster here)", self.isa),
        }
    }

    /// The precision of convolutions: half only where that is faster.
    fn precision(&self) -> vggd_kernels::Precision {
        match self.precision {
            Precision::Half if self.isa.has_half() => vggd_kernels::Precision::Half,
            _ => vggd_kernels::Precision::Single,
        }
    }
}

fn named(name: &str) -> Result<Isa, ConfigError> {
    Isa::by_name(name).ok_or_else(|| {
        let all: Vec<String> = Isa::all().iter().map(Isa::to_string).collect();
        let problem =
            format!("not an instruction set of this machine, which has {}", all.join(", "));
        ConfigError::new(KERNELS, name, problem)
    })
}

impl Parallel for Engine {
    fn threads(&self) -> usize {
        self.threads()
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match &self.executor {
            Executor::MultiThread(pool) => pool.scope(|scope| {
                for index in 0..tasks {
                    scope.spawn(move |_| task(index));
                }
            }),
            _ => (0..tasks).for_each(task),
        }
    }
}

/// A variant in memory.
pub struct Model {
    /// Its name in the manifest.
    pub name: String,
    /// Height and width of its input in pixels.
    pub side: usize,
    plan: Arc<TypedRunnableModel>,
    engine: Engine,
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
        Ok(Self { name: variant.name.clone(), side: variant.side(), plan, engine: engine.clone() })
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
        let logits =
            multithread_tract_scope(self.engine.executor.clone(), run).map_err(|error| {
                ModelError::Graph { path: PathBuf::from(&self.name), message: format!("{error:#}") }
            })?;
        match logits.iter().all(|logit| logit.is_finite()) {
            true => Ok(logits),
            false => Err(ModelError::NotFinite(self.name.clone())),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_instruction_set_must_be_there() {
        assert_eq!(named("plain"), Ok(Isa::PLAIN));
        let error = named("vax").unwrap_err().to_string();
        assert!(error.starts_with("VGGD_KERNELS = 'vax': not an instruction set"), "{error}");
        assert!(error.ends_with("plain"), "{error}");
    }

    #[test]
    fn half_is_float32_where_it_is_not_faster() {
        for isa in Isa::all() {
            let engine = Engine { isa, precision: Precision::Half, ..Engine::new(1) };
            let half = engine.precision() == vggd_kernels::Precision::Half;
            assert_eq!(half, isa.has_half());
            assert_eq!(engine.kernels() == format!("{isa} half"), half);
        }
        assert_eq!(Engine::new(1).precision(), vggd_kernels::Precision::Single);
    }
}
