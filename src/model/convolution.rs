//! The convolutions, from the input to the last pooling, as one layer.
//!
//! A chain of `Conv` (3x3, stride 1, padding 1), `Relu` and `MaxPool` (2x2, stride 2) that starts at
//! the graph's input runs on kernels of our own: directly for the few channels of the input, by the
//! fastest algorithm after it. Weights are packed once, at load. Activations stay in the
//! kernels' blocks of channels all the way, in buffers that are made once. Models in memory share what
//! is packed of the same weights.

use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::layout::{blocked_len, unblock};
use vggd_kernels::{Conv3x3, Direct3x3, Fuse};

use super::chain::{CONVOLUTION_NEEDS, POOLING_NEEDS, is_2x2, is_3x3, output_size, reader};
use super::engine::{Engine, Source};
use super::op::{Layer, Taken};
use super::weights::{Files, Floats, Parts, stored_bytes};

/// Takes the chain of convolutions that starts at the input of `graph` out of it, if there is one of
/// at least two.
pub(super) fn take(
    graph: &mut GraphProto,
    files: &mut Files,
    engine: &Engine,
    side: usize,
) -> TractResult<Option<Taken>> {
    let (steps, parts) = (steps(graph), Parts::of(graph));
    let Some((first, rest)) = steps.split_first() else { return Ok(None) };
    let stem = parameters(&parts, first.node, files)?;
    let (Some(stem), true) = (stem, first.fuse == Fuse { relu: true, pool: false }) else {
        return Ok(None);
    };
    let [mut channels, inputs] = stem.channels;
    let (weights, bias) = (stem.weights.numbers(), stem.bias.numbers());
    let stem = Direct3x3::new(engine.isa, channels, inputs, &weights, &bias);
    let (mut found, mut size, mut end) = (Vec::new(), side, "");
    for step in rest {
        let Some(parameters) =
            parameters(&parts, step.node, files)?.filter(|found| found.channels[1] == channels)
        else {
            break;
        };
        channels = parameters.channels[0];
        found.push((parameters, step.fuse, size));
        size = output_size(size, step.fuse.pool);
        end = step.output;
    }
    if found.is_empty() {
        return Ok(None);
    }
    let rest = engine.each(found.len(), |index| {
        let (parameters, fuse, size) = &found[index];
        Convolution { convolution: parameters.pack(engine, *size), fuse: *fuse, size: *size }
    });
    let (input, output) = (graph.input[0].name.clone(), end.to_owned());
    let buffers = Mutex::new(Buffers::of(&stem, &rest, side, engine.threads()));
    let engine = engine.clone();
    let layer = Convolutions { engine, inputs, side, stem, rest, channels, size, buffers };
    let place = graph.node.iter_mut().find(|node| node.output.contains(&output));
    Ok(Some(Taken::leave(place.expect("a step is a node"), input, output, layer)))
}

/// How many bytes more than they are stored in the filters of the chain take when they are packed.
pub(super) fn packing_adds(graph: &GraphProto, engine: &Engine, side: usize) -> u64 {
    let (parts, mut size, mut added) = (Parts::of(graph), side, 0u64);
    // The first stays as it is, and is small.
    for (index, step) in steps(graph).iter().enumerate() {
        let filters = step.node.input.get(1).and_then(|name| parts.filters(name));
        if let Some((&[out, inner, 3, 3], stored)) = filters.map(|it| (&*it.dims, stored_bytes(it)))
            && index > 0
        {
            let kernel = engine.algorithm(inner as usize, size).packed_bytes() as u64;
            added += (kernel * out as u64 * inner as u64).saturating_sub(stored);
        }
        size = output_size(size, step.fuse.pool);
    }
    added
}

/// A convolution of the graph with what follows it.
struct Step<'a> {
    node: &'a NodeProto,
    fuse: Fuse,
    /// Name of what it gives, ReLU and pooling included.
    output: &'a str,
}

/// The convolutions that follow each other from the input on. What lies between two of them is read
/// by nobody else.
fn steps(graph: &GraphProto) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut at = graph.input.first().map_or("", |input| input.name.as_str());
    while let Some(node) = reader(graph, at, "Conv", CONVOLUTION_NEEDS, is_3x3) {
        let mut step = Step { node, fuse: Fuse::default(), output: &node.output[0] };
        if let Some(relu) = reader(graph, step.output, "Relu", &[], |_| false) {
            step.fuse.relu = true;
            step.output = &relu.output[0];
        }
        if let Some(pool) = reader(graph, step.output, "MaxPool", POOLING_NEEDS, is_2x2) {
            step.fuse.pool = true;
            step.output = &pool.output[0];
        }
        at = step.output;
        steps.push(step);
    }
    steps
}

/// What a `Conv` computes with.
struct Parameters {
    /// OIHW.
    weights: Floats,
    bias: Floats,
    /// Output and input channels.
    channels: [usize; 2],
}

impl Parameters {
    /// The convolution for an input of this height and width.
    fn pack(&self, engine: &Engine, size: usize) -> Arc<Conv3x3> {
        let channels @ [out, inner] = self.channels;
        let algorithm = engine.algorithm(inner, size);
        let (weights, bias) = (self.weights.places(), self.bias.places());
        engine.packed(Source { weights, bias, channels, algorithm }, || {
            let (weights, bias) = (self.weights.numbers(), self.bias.numbers());
            Conv3x3::new(engine.isa, algorithm, out, inner, &weights, &bias)
        })
    }
}

/// The parameters of a `Conv`, if they can be used as they are stored.
fn parameters(
    parts: &Parts<'_>,
    node: &NodeProto,
    files: &mut Files,
) -> TractResult<Option<Parameters>> {
    let [_, weights, bias] = &node.input[..] else { return Ok(None) };
    let Some((weights, &[out, inner, 3, 3])) = parts.floats(weights, files)? else {
        return Ok(None);
    };
    let bias = parts.floats(bias, files)?.filter(|(_, dims)| **dims == [out]);
    let channels = [out as usize, inner as usize];
    Ok(bias.map(|(bias, _)| Parameters { weights, bias, channels }))
}

struct Convolutions {
    engine: Engine,
    /// Channels of the input, and its height and width.
    inputs: usize,
    side: usize,
    /// The first convolution; what it gives never leaves the cache.
    stem: Direct3x3,
    /// The others, at least one.
    rest: Vec<Convolution>,
    /// Channels of the output, and its height and width.
    channels: usize,
    size: usize,
    buffers: Mutex<Buffers>,
}

/// A convolution after the first.
struct Convolution {
    convolution: Arc<Conv3x3>,
    fuse: Fuse,
    /// Height and width of its input.
    size: usize,
}

impl Convolution {
    fn output_size(&self) -> usize {
        output_size(self.size, self.fuse.pool)
    }

    fn output_len(&self) -> usize {
        let size = self.output_size();
        blocked_len(self.convolution.out_channels(), size, size)
    }
}

/// Two activations, of which each layer reads one and writes the other, and scratch memory.
struct Buffers {
    activations: [Vec<f32>; 2],
    scratch: Vec<f32>,
}

impl Buffers {
    fn of(stem: &Direct3x3, rest: &[Convolution], side: usize, threads: usize) -> Self {
        let first = &rest[0].convolution;
        let mut lengths = [0, 0];
        let mut scratch = first.scratch_len_after(stem, side, side, threads);
        for (index, layer) in rest.iter().enumerate() {
            lengths[index % 2] = layer.output_len().max(lengths[index % 2]);
            let needed = layer.convolution.scratch_len(layer.size, layer.size, threads);
            scratch = needed.max(scratch);
        }
        Self { activations: lengths.map(|length| vec![0.0; length]), scratch: vec![0.0; scratch] }
    }
}

impl Layer for Convolutions {
    fn input(&self) -> TVec<usize> {
        tvec!(1, self.inputs, self.side, self.side)
    }

    fn output(&self) -> TVec<usize> {
        tvec!(1, self.channels, self.size, self.size)
    }

    fn run(&self, x: &[f32], y: &mut [f32]) {
        // What a panic left in the buffers does not matter: each run writes before it reads.
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { activations: [from, to], scratch } = &mut *buffers;
        let (mut from, mut to) = (from, to);
        let (engine, side) = (&self.engine, self.side);
        let (first, rest) = self.rest.split_first().expect("at least one convolution");
        let mut length = first.output_len();
        let output = &mut from[..length];
        first.convolution.run_after(&self.stem, engine, x, side, side, output, first.fuse, scratch);
        for layer in rest {
            let (input, output) = (&from[..length], &mut to[..layer.output_len()]);
            let Convolution { convolution, fuse, size } = layer;
            convolution.run(engine, input, *size, *size, output, *fuse, scratch);
            std::mem::swap(&mut from, &mut to);
            length = layer.output_len();
        }
        unblock(self.channels, self.size * self.size, &from[..length], y);
    }
}

impl std::fmt::Debug for Convolutions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} convolutions from {}", 1 + self.rest.len(), self.side)
    }
}
