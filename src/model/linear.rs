//! Fully connected layers that use their weights in place.
//!
//! A `Gemm` of the graph whose weights are an external float32 initializer, or an int8 one behind
//! `DequantizeLinear` and `Reshape` (one scale per row and 64 columns), is taken out before tract
//! reads the graph, because tract would copy the one and widen the other to float32. A [`Linear`]
//! takes its place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tract_linalg::multithread::Executor;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use tract_onnx::tract_hir::infer::InferenceModel;
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::Isa;

use super::Engine;
use super::weights::{Files, Weights};

/// Columns that share a scale in quantized weights.
const BLOCK: usize = 64;

/// Rows of one task of the thread pool: few enough that two cores end together, many enough that
/// handing them out costs nothing.
const ROWS_PER_TASK: usize = 64;

/// Takes every fully connected layer that can be run in place out of `proto`. What it leaves there
/// is a node without weights, for [`Taken::put`] to fill once tract has parsed the graph.
pub(super) fn take(
    proto: &mut ModelProto,
    directory: &Path,
    engine: &Engine,
) -> TractResult<Vec<Taken>> {
    let graph = proto.graph.as_mut().context("no graph")?;
    let mut files = Files::new(directory);
    let layers = Layers::of(graph);
    let mut found = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        if let Some(linear) = layers.linear(node, &mut files, engine)? {
            found.push((index, linear));
        }
    }
    let mut taken = Vec::new();
    for (index, linear) in found {
        let node = &mut graph.node[index];
        node.op_type = "vggd.Linear".to_owned();
        node.input.truncate(1);
        node.attribute.clear();
        let output = node.output[0].clone();
        taken.push(Taken { output, linear });
    }
    drop_unused(graph);
    Ok(taken)
}

/// A layer that was taken out of the graph.
pub(super) struct Taken {
    output: String,
    linear: Linear,
}

impl Taken {
    /// Puts the layer in the place that [`take`] left for it.
    pub(super) fn put(self, model: &mut InferenceModel) -> TractResult<()> {
        let outlet = model
            .find_outlet_label(&self.output)
            .with_context(|| format!("no output '{}'", self.output))?;
        model.node_mut(outlet.node).op = expand(self.linear);
        Ok(())
    }
}

/// The parts of a graph that a fully connected layer is made of, by the name of what they give.
struct Layers<'a> {
    initializers: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, &'a NodeProto>,
}

impl<'a> Layers<'a> {
    fn of(graph: &'a GraphProto) -> Self {
        let initializers = graph.initializer.iter().map(|t| (t.name.as_str(), t));
        let producers = (graph.node.iter())
            .flat_map(|node| node.output.iter().map(move |name| (name.as_str(), node)));
        Self { initializers: initializers.collect(), producers: producers.collect() }
    }

    /// The layer that `node` is, if it is one that can be run in place.
    fn linear(
        &self,
        node: &NodeProto,
        files: &mut Files,
        engine: &Engine,
    ) -> TractResult<Option<Linear>> {
        let plain = |attribute: &AttributeProto| match attribute.name.as_str() {
            "transB" => attribute.i == 1,
            "alpha" | "beta" => attribute.f == 1.0,
            "transA" => attribute.i == 0,
            _ => false,
        };
        let transposed = node.attribute.iter().any(|a| a.name == "transB");
        let is_gemm = node.op_type == "Gemm" && node.input.len() == 3 && transposed;
        if !is_gemm || !node.attribute.iter().all(plain) {
            return Ok(None);
        }
        let Some(&bias) = self.initializers.get(node.input[2].as_str()) else {
            return Ok(None);
        };
        let Some(bias) = files.tensor::<f32>(bias, DataType::Float)? else {
            return Ok(None);
        };
        let rows = bias.as_slice().len();
        let Some((matrix, columns)) = self.matrix(&node.input[1], rows, files)? else {
            return Ok(None);
        };
        Ok(Some(Linear(Arc::new(Layer {
            rows,
            columns,
            matrix,
            bias,
            isa: engine.isa,
            executor: engine.executor.clone(),
        }))))
    }

    /// The weights called `name` as a matrix of `rows`, and its columns.
    fn matrix(
        &self,
        name: &str,
        rows: usize,
        files: &mut Files,
    ) -> TractResult<Option<(Matrix, usize)>> {
        if let Some(&tensor) = self.initializers.get(name) {
            let weights = files.tensor::<f32>(tensor, DataType::Float)?;
            return Ok(match (weights, &*tensor.dims) {
                (Some(weights), &[n, k]) if n as usize == rows => {
                    Some((Matrix::F32(weights), k as usize))
                }
                _ => None,
            });
        }
        let quantized = || {
            let reshape = self.producers.get(name).filter(|n| n.op_type == "Reshape")?;
            let dequantize = self.producers.get(reshape.input[0].as_str())?;
            let per_row = dequantize.attribute.iter().all(|a| a.name == "axis" && a.i == 0);
            let symmetric = dequantize.input.len() == 2 && per_row;
            if dequantize.op_type != "DequantizeLinear" || !symmetric {
                return None;
            }
            let weights = *self.initializers.get(dequantize.input[0].as_str())?;
            let scales = *self.initializers.get(dequantize.input[1].as_str())?;
            Some((weights, scales))
        };
        let Some((weights, scales)) = quantized() else {
            return Ok(None);
        };
        let &[blocks, block] = &*weights.dims else {
            return Ok(None);
        };
        let (blocks, block) = (blocks as usize, block as usize);
        if block != BLOCK || rows == 0 || !blocks.is_multiple_of(rows) {
            return Ok(None);
        }
        let weights = files.tensor::<i8>(weights, DataType::Int8)?;
        let scales = files.tensor::<f32>(scales, DataType::Float)?;
        Ok(match (weights, scales) {
            (Some(weights), Some(scales)) if scales.as_slice().len() == blocks => {
                Some((Matrix::I8 { weights, scales }, blocks / rows * BLOCK))
            }
            _ => None,
        })
    }
}

/// Removes nodes and initializers that nothing reads any more, so that tract does not load them.
fn drop_unused(graph: &mut GraphProto) {
    loop {
        let read: std::collections::HashSet<String> = (graph.node.iter())
            .flat_map(|node| node.input.iter().cloned())
            .chain(graph.output.iter().map(|output| output.name.clone()))
            .collect();
        let nodes = graph.node.len();
        graph.node.retain(|node| node.output.iter().any(|name| read.contains(name)));
        graph.initializer.retain(|tensor| read.contains(&tensor.name));
        if graph.node.len() == nodes {
            return;
        }
    }
}

enum Matrix {
    /// [rows, columns].
    F32(Weights<f32>),
    /// [rows, columns], with scales [rows, columns / 64].
    I8 { weights: Weights<i8>, scales: Weights<f32> },
}

struct Layer {
    rows: usize,
    columns: usize,
    matrix: Matrix,
    bias: Weights<f32>,
    isa: Isa,
    executor: Executor,
}

impl Layer {
    /// Rows `first..` of W x + b, as many as `y` is long.
    fn run_rows(&self, first: usize, x: &[f32], y: &mut [f32]) {
        let rows = first..first + y.len();
        let part = |row: usize, width: usize| row * width..(row + rows.len()) * width;
        let bias = &self.bias.as_slice()[rows.clone()];
        match &self.matrix {
            Matrix::F32(weights) => {
                let weights = &weights.as_slice()[part(first, self.columns)];
                vggd_kernels::linear::linear_f32(self.isa, weights, bias, x, y);
            }
            Matrix::I8 { weights, scales } => {
                let weights = &weights.as_slice()[part(first, self.columns)];
                let scales = &scales.as_slice()[part(first, self.columns / BLOCK)];
                vggd_kernels::linear::linear_i8b64(self.isa, weights, scales, bias, x, y);
            }
        }
    }

    fn run(&self, x: &[f32], y: &mut [f32]) {
        match &self.executor {
            Executor::MultiThread(pool) => pool.scope(|scope| {
                for (index, y) in y.chunks_mut(ROWS_PER_TASK).enumerate() {
                    scope.spawn(move |_| self.run_rows(index * ROWS_PER_TASK, x, y));
                }
            }),
            _ => self.run_rows(0, x, y),
        }
    }
}

/// W x + b as a tract op: input 1 x columns, output 1 x rows.
#[derive(Clone)]
struct Linear(Arc<Layer>);

impl std::fmt::Debug for Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Linear {} x {}", self.0.rows, self.0.columns)
    }
}

impl PartialEq for Linear {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Linear {}

impl Expansion for Linear {
    fn name(&self) -> StaticName {
        "vggd.Linear".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let shape = |width: usize| ShapeFactoid::from(vec![1.to_dim(), width.to_dim()]);
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].shape, shape(self.0.columns))?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].shape, shape(self.0.rows))
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Linear {
    fn name(&self) -> StaticName {
        "vggd.Linear".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Linear {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut output = Tensor::zero::<f32>(&[1, self.0.rows])?;
        let x = inputs[0].try_as_plain_ram()?;
        self.0.run(x.as_slice()?, output.try_as_plain_ram_mut()?.as_slice_mut()?);
        Ok(tvec!(output.into()))
    }
}

impl TypedOp for Linear {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = [1, self.0.columns];
        ensure!(inputs[0].shape.as_concrete() == Some(&expected), "input of {self:?}");
        Ok(tvec!(f32::fact([1, self.0.rows])))
    }

    as_op!();
}
