//! The convolutions of an int8 variant, from the input to the last pooling, as one layer.
//!
//! A chain of `QuantizeLinear`, `QLinearConv` (3x3, stride 1, padding 1; weights with a scale per
//! output channel, byte 0 for the zero of what it gives), `MaxPool` (2x2, stride 2) and
//! `DequantizeLinear` that starts at the graph's input runs on kernels of our own, which give the
//! same bytes. Weights are packed once, at load; activations stay in the kernels' blocks of channels,
//! in buffers that are made once.

use std::sync::{Mutex, PoisonError};

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::layout::blocked_len;
use vggd_kernels::quantized::{Algorithm, Parameters, dequantize, quantize};
use vggd_kernels::{Isa, QConv3x3};

use super::Engine;
use super::chain::{CONVOLUTION_NEEDS, POOLING_NEEDS, is_2x2, is_3x3, output_size, reader};
use super::op::{Layer, Taken};
use super::weights::{Files, Parts, Weights};

/// Takes the chain of convolutions in integers that starts at the input of `graph` out of it, if there
/// is one.
pub(super) fn take(
    graph: &mut GraphProto,
    files: &mut Files,
    engine: &Engine,
    side: usize,
) -> TractResult<Option<Taken>> {
    let Some(chain) = Chain::of(graph) else { return Ok(None) };
    let parts = Parts::of(graph);
    let (Some(input), Some(output)) =
        (Scale::of(&parts, chain.quantize), Scale::of(&parts, chain.dequantize))
    else {
        return Ok(None);
    };
    let (mut found, mut size) = (Vec::<(QLinear, bool, usize)>::new(), side);
    for step in &chain.steps {
        let Some(layer) = QLinear::of(&parts, step.node, files)? else { return Ok(None) };
        if found.last().is_some_and(|(last, ..)| last.channels[0] != layer.channels[1]) {
            return Ok(None);
        }
        found.push((layer, step.pool, size));
        size = output_size(size, step.pool);
    }
    let layers = engine.each(found.len(), |index| {
        let (layer, pool, size) = &found[index];
        Convolution { kernel: layer.pack(engine.isa, *size), pool: *pool, size: *size }
    });
    let (read, given) = (graph.input[0].name.clone(), chain.dequantize.output[0].clone());
    let buffers = Mutex::new(Buffers::of(&layers, engine.threads()));
    let engine = engine.clone();
    let layer = Convolutions { engine, layers, input, output, buffers };
    let place = graph.node.iter_mut().find(|node| node.output.contains(&given));
    Ok(Some(Taken::leave(place.expect("the chain ends in a node"), read, given, layer)))
}

/// The nodes that follow each other from the input on. What lies between two of them is read by nobody
/// else.
struct Chain<'a> {
    quantize: &'a NodeProto,
    /// At least one.
    steps: Vec<Step<'a>>,
    dequantize: &'a NodeProto,
}

/// A convolution of the graph, and whether a pooling follows it.
struct Step<'a> {
    node: &'a NodeProto,
    pool: bool,
}

impl<'a> Chain<'a> {
    fn of(graph: &'a GraphProto) -> Option<Self> {
        let none = |_: &AttributeProto| false;
        let quantize = reader(graph, &graph.input.first()?.name, "QuantizeLinear", &[], none)?;
        let (mut steps, mut at) = (Vec::new(), quantize.output.first()?);
        while let Some(node) = reader(graph, at, "QLinearConv", CONVOLUTION_NEEDS, is_3x3) {
            at = node.output.first()?;
            let pool = reader(graph, at, "MaxPool", POOLING_NEEDS, is_2x2);
            if let Some(pool) = pool {
                at = pool.output.first()?;
            }
            steps.push(Step { node, pool: pool.is_some() });
        }
        let dequantize = reader(graph, at, "DequantizeLinear", &[], none)?;
        (!steps.is_empty()).then_some(Self { quantize, steps, dequantize })
    }
}

/// How numbers are bytes: value = scale x (byte - zero).
#[derive(Clone, Copy)]
struct Scale {
    scale: f32,
    zero: u8,
}

impl Scale {
    /// Of a `QuantizeLinear` or `DequantizeLinear` for bytes.
    fn of(parts: &Parts<'_>, node: &NodeProto) -> Option<Self> {
        let [_, scale, zero] = &node.input[..] else { return None };
        Some(Self { scale: positive(parts, scale)?, zero: byte(parts, zero)? })
    }
}

/// What a `QLinearConv` computes with.
struct QLinear {
    /// OIHW.
    weights: Weights<i8>,
    bias: Weights<i32>,
    /// Output bytes per unit of the sums, one per output channel.
    scales: Vec<f32>,
    /// Byte of the input that stands for 0.
    zero: u8,
    /// Output and input channels.
    channels: [usize; 2],
}

impl QLinear {
    /// The convolution for an input of this height and width.
    fn pack(&self, isa: Isa, size: usize) -> QConv3x3 {
        let [out_channels, in_channels] = self.channels;
        let parameters = Parameters {
            out_channels,
            in_channels,
            weights: self.weights.as_slice(),
            bias: self.bias.as_slice(),
            scales: &self.scales,
            zero: self.zero,
        };
        QConv3x3::new(isa, Algorithm::choose(isa, &parameters, size, size), &parameters)
    }

    fn of(parts: &Parts<'_>, node: &NodeProto, files: &mut Files) -> TractResult<Option<Self>> {
        let [_, x_scale, x_zero, weights, w_scale, w_zero, y_scale, y_zero, bias] = &node.input[..]
        else {
            return Ok(None);
        };
        let initializer = |name: &String| parts.initializers.get(name.as_str()).copied();
        let (Some(weights), Some(w_scale), Some(w_zero), Some(bias)) =
            (initializer(weights), initializer(w_scale), initializer(w_zero), initializer(bias))
        else {
            return Ok(None);
        };
        let &[out, inner, 3, 3] = &*weights.dims else { return Ok(None) };
        let per_filter = [w_scale, w_zero, bias].iter().all(|tensor| tensor.dims == [out]);
        let symmetric = inline(w_zero, DataType::Int8, out as usize)
            .is_some_and(|zeros| zeros.iter().all(|zero| *zero == 0));
        let (Some(x_scale), Some(y_scale), Some(zero), Some(0), true, true) = (
            positive(parts, x_scale),
            positive(parts, y_scale),
            byte(parts, x_zero),
            byte(parts, y_zero),
            per_filter,
            symmetric,
        ) else {
            return Ok(None);
        };
        let (Some(weights), Some(w_scales), Some(bias)) = (
            files.tensor::<i8>(weights, DataType::Int8)?,
            files.tensor::<f32>(w_scale, DataType::Float)?,
            files.tensor::<i32>(bias, DataType::Int32)?,
        ) else {
            return Ok(None);
        };
        // In the order in which onnxruntime multiplies.
        let scales: Vec<f32> =
            w_scales.as_slice().iter().map(|scale| x_scale * scale / y_scale).collect();
        let usable = scales.iter().all(|scale| scale.is_finite() && *scale >= 0.0);
        let channels = [out as usize, inner as usize];
        Ok(usable.then_some(Self { weights, bias, scales, zero, channels }))
    }
}

/// A float32 in the graph itself, if it is greater than 0.
fn positive(parts: &Parts<'_>, name: &str) -> Option<f32> {
    let bytes = inline(parts.initializers.get(name)?, DataType::Float, 1)?;
    let value = f32::from_le_bytes(bytes.try_into().ok()?);
    (value > 0.0 && value.is_finite()).then_some(value)
}

/// A byte in the graph itself.
fn byte(parts: &Parts<'_>, name: &str) -> Option<u8> {
    inline(parts.initializers.get(name)?, DataType::Uint8, 1)?.first().copied()
}

/// The bytes of an initializer of `count` elements in the graph itself.
fn inline(tensor: &TensorProto, data_type: DataType, count: usize) -> Option<&[u8]> {
    let fits = tensor.data_type == data_type as i32
        && tensor.external_data.is_empty()
        && tensor.dims.iter().product::<i64>() == count as i64;
    (fits && !tensor.raw_data.is_empty()).then_some(&*tensor.raw_data)
}

struct Convolutions {
    engine: Engine,
    /// At least one.
    layers: Vec<Convolution>,
    input: Scale,
    output: Scale,
    buffers: Mutex<Buffers>,
}

struct Convolution {
    kernel: QConv3x3,
    pool: bool,
    /// Height and width of its input.
    size: usize,
}

impl Convolution {
    fn input_len(&self) -> usize {
        blocked_len(self.kernel.in_channels(), self.size, self.size)
    }

    fn output_size(&self) -> usize {
        output_size(self.size, self.pool)
    }

    fn output_len(&self) -> usize {
        blocked_len(self.kernel.out_channels(), self.output_size(), self.output_size())
    }
}

/// Two activations, of which each layer reads one and writes the other, and scratch memory.
struct Buffers {
    activations: [Vec<u8>; 2],
    scratch: Vec<u8>,
}

impl Buffers {
    fn of(layers: &[Convolution], threads: usize) -> Self {
        let (mut lengths, mut scratch) = ([layers[0].input_len(), 0], 0);
        for (index, layer) in layers.iter().enumerate() {
            let length = &mut lengths[(index + 1) % 2];
            *length = layer.output_len().max(*length);
            scratch = layer.kernel.scratch_len(layer.size, layer.size, threads).max(scratch);
        }
        Self { activations: lengths.map(|length| vec![0; length]), scratch: vec![0; scratch] }
    }
}

impl Convolutions {
    fn first(&self) -> &Convolution {
        self.layers.first().expect("at least one convolution")
    }

    fn last(&self) -> &Convolution {
        self.layers.last().expect("at least one convolution")
    }
}

impl Layer for Convolutions {
    fn input(&self) -> TVec<usize> {
        let first = self.first();
        tvec!(1, first.kernel.in_channels(), first.size, first.size)
    }

    fn output(&self) -> TVec<usize> {
        let last = self.last();
        tvec!(1, last.kernel.out_channels(), last.output_size(), last.output_size())
    }

    fn run(&self, x: &[f32], y: &mut [f32]) {
        // What a panic left in the buffers does not matter: each run writes before it reads.
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { activations: [from, to], scratch } = &mut *buffers;
        let (mut from, mut to) = (from, to);
        let (first, last) = (self.first(), self.last());
        let Scale { scale, zero } = self.input;
        let bytes = &mut from[..first.input_len()];
        quantize(first.kernel.in_channels(), first.size * first.size, x, scale, zero, bytes);
        for layer in &self.layers {
            let (input, output) = (&from[..layer.input_len()], &mut to[..layer.output_len()]);
            let Convolution { kernel, pool, size } = layer;
            kernel.run(&self.engine, input, *size, *size, output, *pool, scratch);
            std::mem::swap(&mut from, &mut to);
        }
        let (pixels, Scale { scale, zero }) = (last.output_size().pow(2), self.output);
        let bytes = &from[..last.output_len()];
        dequantize(last.kernel.out_channels(), pixels, bytes, scale, zero, y);
    }
}

impl std::fmt::Debug for Convolutions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} convolutions in integers from {}", self.layers.len(), self.first().size)
    }
}
