//! Fully connected layers that use their weights in place, or at half the width.
//!
//! A `Gemm` of the graph whose weights are an external float32 or float16 initializer, or an int8 one behind
//! `DequantizeLinear` and `Reshape` (one scale per row and 64 columns), is taken out before tract
//! reads the graph, because tract would copy the one and widen the other to float32.
//!
//! At half precision those that are floats are rounded to bfloat16 at load, once for all models in memory:
//! they are bound by reading weights, and half as many bytes take half the time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::Parallel;
use vggd_kernels::linear::{linear_bf16, linear_f32, linear_i8b64};

use super::Engine;
use super::op::{Layer, Taken};
use super::weights::{Files, Floats, Parts, Rounded, Weights, stored_bytes};

/// Columns that share a scale in quantized weights.
const BLOCK: usize = 64;

/// Rows of one task of the thread pool: few enough that two cores end together, many enough that
/// handing them out costs nothing.
const ROWS_PER_TASK: usize = 64;

/// Takes every fully connected layer that can be run in place out of `graph`.
pub(super) fn take(
    graph: &mut GraphProto,
    files: &mut Files,
    engine: &Engine,
) -> TractResult<Vec<Taken>> {
    let parts = Parts::of(graph);
    let mut found = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        if let Some(linear) = parts.linear(node, files, engine)? {
            found.push((index, linear));
        }
    }
    let mut taken = Vec::new();
    for (index, linear) in found {
        let node = &mut graph.node[index];
        let (input, output) = (node.input[0].clone(), node.output[0].clone());
        taken.push(Taken::leave(node, input, output, linear));
    }
    Ok(taken)
}

/// How many bytes less than they are stored in the weights take when they are rounded.
pub(super) fn rounding_saves(graph: &GraphProto, engine: &Engine) -> u64 {
    let parts = Parts::of(graph);
    let layers = graph.node.iter().filter(|node| engine.rounds() && is_linear(node));
    let stored = layers.filter_map(|node| parts.initializers.get(node.input[1].as_str()));
    let floats = stored.filter(|weights| weights.data_type == DataType::Float as i32);
    floats.map(|weights| stored_bytes(weights) / 2).sum()
}

/// Whether a node is W x + b with W as [rows, columns].
fn is_linear(node: &NodeProto) -> bool {
    let plain = |attribute: &AttributeProto| match attribute.name.as_str() {
        "transB" => attribute.i == 1,
        "alpha" | "beta" => attribute.f == 1.0,
        "transA" => attribute.i == 0,
        _ => false,
    };
    let transposed = node.attribute.iter().any(|a| a.name == "transB");
    let is_gemm = node.op_type == "Gemm" && node.input.len() == 3 && transposed;
    is_gemm && node.attribute.iter().all(plain)
}

impl Parts<'_> {
    /// The layer that `node` is, if it is one that can be run in place.
    fn linear(
        &self,
        node: &NodeProto,
        files: &mut Files,
        engine: &Engine,
    ) -> TractResult<Option<Linear>> {
        if !is_linear(node) {
            return Ok(None);
        }
        let Some((bias, _)) = self.floats(&node.input[2], files)? else { return Ok(None) };
        let bias = bias.ready();
        let rows = bias.as_slice().len();
        let Some((matrix, columns)) = self.matrix(&node.input[1], rows, files, engine)? else {
            return Ok(None);
        };
        Ok(Some(Linear { rows, columns, matrix, bias, engine: engine.clone() }))
    }

    /// The weights called `name` as a matrix of `rows`, and its columns.
    fn matrix(
        &self,
        name: &str,
        rows: usize,
        files: &mut Files,
        engine: &Engine,
    ) -> TractResult<Option<(Matrix, usize)>> {
        if let Some((weights, dims)) = self.floats(name, files)? {
            let &[n, k] = dims else { return Ok(None) };
            let matrix = || match engine.rounds() {
                true => Matrix::rounded(&weights, [rows, k as usize], engine),
                false => Matrix::F32(weights.ready()),
            };
            return Ok((n as usize == rows).then(|| (matrix(), k as usize)));
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

enum Matrix {
    /// [rows, columns].
    F32(Weights<f32>),
    /// [rows, columns].
    Bf16(Arc<Rounded>),
    /// [rows, columns], with scales [rows, columns / 64].
    I8 { weights: Weights<i8>, scales: Weights<f32> },
}

impl Matrix {
    fn rounded(weights: &Floats, [rows, columns]: [usize; 2], engine: &Engine) -> Self {
        Self::Bf16(engine.rounded(weights.places(), rows * columns, || {
            let mut rounded = Rounded::zeroed(rows * columns);
            let length = ROWS_PER_TASK * columns.max(1);
            // Each part is locked once, by the one task that writes it.
            let parts: Vec<_> = rounded.as_mut_slice().chunks_mut(length).map(Mutex::new).collect();
            engine.each(parts.len(), |index| {
                let mut part = parts[index].lock().expect("a part has one task");
                weights.round(index * length, &mut part);
            });
            drop(parts);
            rounded
        }))
    }
}

/// W x + b: input 1 x columns, output 1 x rows.
struct Linear {
    rows: usize,
    columns: usize,
    matrix: Matrix,
    bias: Weights<f32>,
    engine: Engine,
}

impl Linear {
    /// Rows `first..` of W x + b, as many as `y` is long.
    fn run_rows(&self, first: usize, x: &[f32], y: &mut [f32]) {
        let (isa, rows) = (self.engine.isa, first..first + y.len());
        let part = |width: usize| rows.start * width..rows.end * width;
        let bias = &self.bias.as_slice()[rows.clone()];
        match &self.matrix {
            Matrix::F32(weights) => {
                let weights = &weights.as_slice()[part(self.columns)];
                linear_f32(isa, weights, bias, x, y);
            }
            Matrix::Bf16(weights) => {
                let weights = &weights.as_slice()[part(self.columns)];
                linear_bf16(isa, weights, bias, x, y);
            }
            Matrix::I8 { weights, scales } => {
                let weights = &weights.as_slice()[part(self.columns)];
                let scales = &scales.as_slice()[part(self.columns / BLOCK)];
                linear_i8b64(isa, weights, scales, bias, x, y);
            }
        }
    }
}

impl Layer for Linear {
    fn input(&self) -> TVec<usize> {
        tvec!(1, self.columns)
    }

    fn output(&self) -> TVec<usize> {
        tvec!(1, self.rows)
    }

    fn run(&self, x: &[f32], y: &mut [f32]) {
        let start = Instant::now();
        // Each part is locked once, by the one task that writes it.
        let parts: Vec<_> = y.chunks_mut(ROWS_PER_TASK).map(Mutex::new).collect();
        self.engine.run(parts.len(), &|index| {
            let mut part = parts[index].lock().expect("a part has one task");
            self.run_rows(index * ROWS_PER_TASK, x, &mut part);
        });
        let spent = start.elapsed().as_nanos() as u64;
        self.engine.reading.fetch_add(spent, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Linear {} x {}", self.rows, self.columns)
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::TensorProto;

    use super::*;
    use crate::config::{Config, Precision};

    #[test]
    fn rounding_saves_half_of_what_is_stored_as_float32() {
        let mut config = Config::load(None).unwrap();
        config.model.precision = Precision::Half;
        let half = Engine::configured(&config.model).unwrap();
        let name = str::to_owned;
        let attribute = AttributeProto { name: name("transB"), i: 1, ..Default::default() };
        let check = |data_type: DataType, expected| {
            let weights = TensorProto {
                name: name("w"),
                dims: vec![10, 64],
                data_type: data_type as i32,
                ..Default::default()
            };
            let node = NodeProto {
                op_type: name("Gemm"),
                input: ["x", "w", "b"].map(name).to_vec(),
                attribute: vec![attribute.clone()],
                ..Default::default()
            };
            let graph =
                GraphProto { node: vec![node], initializer: vec![weights], ..Default::default() };
            assert_eq!(rounding_saves(&graph, &half), expected, "{data_type:?}");
            assert_eq!(rounding_saves(&graph, &Engine::new(1)), 0, "{data_type:?}");
        };
        check(DataType::Float, 10 * 64 * 2);
        check(DataType::Int8, 0);
    }
}
