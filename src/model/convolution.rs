//! The convolutions, from the input to the last pooling, as one layer.
//!
//! A chain of `Conv` (3x3, stride 1, padding 1), `Relu` and `MaxPool` (2x2, stride 2) that starts at
//! the graph's input runs on kernels of our own: directly for the few channels of the input, by
//! Winograd's algorithm after it. Weights are transformed once, at load. Activations stay in the
//! kernels' blocks of channels all the way, in buffers that are made once.

use std::sync::{Mutex, PoisonError};

use tract_linalg::multithread::Executor;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};
use tract_onnx::tract_hir::internal::*;
use vggd_kernels::layout::{blocked_len, unblock};
use vggd_kernels::{Conv3x3, Direct3x3, Fuse, Parallel, Tile};

use super::Engine;
use super::op::{Layer, Taken};
use super::weights::Files;

/// Takes the chain of convolutions that starts at the input of `graph` out of it, if there is one.
pub(super) fn take(
    graph: &mut GraphProto,
    files: &mut Files,
    engine: &Engine,
    side: usize,
) -> TractResult<Option<Taken>> {
    let steps = steps(graph);
    let [first, rest @ ..] = &*steps else { return Ok(None) };
    if first.fuse.pool {
        return Ok(None);
    }
    let Some((weights, bias, [channels, inputs])) = parameters(graph, first.node, files)? else {
        return Ok(None);
    };
    let stem = Direct3x3::new(engine.isa, channels, inputs, weights.as_slice(), bias.as_slice());
    let mut layer = Convolutions {
        engine: engine.clone(),
        side,
        stem_relu: first.fuse.relu,
        stem,
        stem_channels: [inputs, channels],
        steps: Vec::new(),
        buffers: Mutex::default(),
    };
    let mut end = first.output;
    for step in rest {
        let (channels, size) = layer.end();
        match parameters(graph, step.node, files)? {
            Some((weights, bias, [out, inner])) if inner == channels => {
                let (weights, bias) = (weights.as_slice(), bias.as_slice());
                let tile = Tile::choose(size, size);
                let convolution = Conv3x3::new(engine.isa, tile, out, inner, weights, bias);
                layer.steps.push(Winograd { convolution, fuse: step.fuse, size });
            }
            _ => break,
        }
        end = step.output;
    }
    layer.buffers = Mutex::new(Buffers::of(&layer));
    let (input, output) = (graph.input[0].name.clone(), end.to_owned());
    let place = (graph.node.iter()).position(|node| node.output.contains(&output));
    let place = &mut graph.node[place.expect("a step is a node")];
    Ok(Some(Taken::leave(place, input, output, layer)))
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
    let reader = |name: &str, operator: &str, plain: fn(&AttributeProto) -> bool| {
        let mut readers = graph.node.iter().filter(|node| node.input.iter().any(|i| i == name));
        let node = readers.next()?;
        let fits = node.op_type == operator && node.attribute.iter().all(plain);
        (fits && readers.next().is_none()).then_some(node)
    };
    let mut steps = Vec::new();
    let mut at = graph.input.first().map_or("", |input| input.name.as_str());
    while let Some(node) = reader(at, "Conv", is_3x3) {
        let mut step = Step { node, fuse: Fuse::default(), output: &node.output[0] };
        if let Some(relu) = reader(step.output, "Relu", |_| false) {
            step.fuse.relu = true;
            step.output = &relu.output[0];
        }
        if let Some(pool) = reader(step.output, "MaxPool", is_2x2) {
            step.fuse.pool = true;
            step.output = &pool.output[0];
        }
        at = step.output;
        steps.push(step);
    }
    steps
}

fn is_3x3(attribute: &AttributeProto) -> bool {
    match attribute.name.as_str() {
        "kernel_shape" => attribute.ints == [3, 3],
        "pads" => attribute.ints == [1, 1, 1, 1],
        "strides" | "dilations" => attribute.ints == [1, 1],
        "group" => attribute.i == 1,
        _ => false,
    }
}

fn is_2x2(attribute: &AttributeProto) -> bool {
    match attribute.name.as_str() {
        "kernel_shape" | "strides" => attribute.ints == [2, 2],
        "pads" => attribute.ints == [0, 0, 0, 0],
        "dilations" => attribute.ints == [1, 1],
        "ceil_mode" => attribute.i == 0,
        _ => false,
    }
}

type Parameters = (super::weights::Weights<f32>, super::weights::Weights<f32>, [usize; 2]);

/// Weights (OIHW), bias and the numbers of output and input channels of a `Conv`.
fn parameters(
    graph: &GraphProto,
    node: &NodeProto,
    files: &mut Files,
) -> TractResult<Option<Parameters>> {
    // Attributes that are left out would mean no padding and, for strides, 1.
    let padded = node.attribute.iter().any(|attribute| attribute.name == "pads");
    let tensor = |index: usize| {
        let name = node.input.get(index)?;
        graph.initializer.iter().find(|tensor| tensor.name == *name)
    };
    let (Some(weights), Some(bias), true) = (tensor(1), tensor(2), padded) else {
        return Ok(None);
    };
    let &[out, inner, 3, 3] = &*weights.dims else { return Ok(None) };
    if *bias.dims != [out] {
        return Ok(None);
    }
    let weights = files.tensor::<f32>(weights, DataType::Float)?;
    let bias = files.tensor::<f32>(bias, DataType::Float)?;
    Ok(weights.zip(bias).map(|(weights, bias)| (weights, bias, [out as usize, inner as usize])))
}

struct Convolutions {
    engine: Engine,
    /// Height and width of the input.
    side: usize,
    stem: Direct3x3,
    /// Input and output channels of the stem.
    stem_channels: [usize; 2],
    stem_relu: bool,
    steps: Vec<Winograd>,
    buffers: Mutex<Buffers>,
}

/// A convolution after the first.
struct Winograd {
    convolution: Conv3x3,
    fuse: Fuse,
    /// Height and width of its input.
    size: usize,
}

impl Winograd {
    fn output_size(&self) -> usize {
        if self.fuse.pool { self.size / 2 } else { self.size }
    }

    fn output_len(&self) -> usize {
        let size = self.output_size();
        blocked_len(self.convolution.out_channels(), size, size)
    }
}

/// Two activations, of which each layer reads one and writes the other, and scratch memory.
#[derive(Default)]
struct Buffers {
    activations: [Vec<f32>; 2],
    scratch: Vec<f32>,
}

impl Buffers {
    fn of(layer: &Convolutions) -> Self {
        let (side, threads) = (layer.side, layer.engine.threads());
        let stem = blocked_len(layer.stem_channels[1], side, side);
        let mut lengths = [stem, 0];
        let mut scratch = layer.stem.scratch_len(side, side);
        for (index, step) in layer.steps.iter().enumerate() {
            let length = &mut lengths[(index + 1) % 2];
            *length = step.output_len().max(*length);
            let needed = step.convolution.scratch_len(step.size, step.size, threads);
            scratch = needed.max(scratch);
        }
        Self { activations: lengths.map(|length| vec![0.0; length]), scratch: vec![0.0; scratch] }
    }
}

impl Convolutions {
    /// Channels and height of the output.
    fn end(&self) -> (usize, usize) {
        match self.steps.last() {
            Some(step) => (step.convolution.out_channels(), step.output_size()),
            None => (self.stem_channels[1], self.side),
        }
    }
}

impl Layer for Convolutions {
    fn input(&self) -> TVec<usize> {
        tvec!(1, self.stem_channels[0], self.side, self.side)
    }

    fn output(&self) -> TVec<usize> {
        let (channels, size) = self.end();
        tvec!(1, channels, size, size)
    }

    fn run(&self, x: &[f32], y: &mut [f32]) {
        // What a panic left in the buffers does not matter: each run writes before it reads.
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { activations: [from, to], scratch } = &mut *buffers;
        let (mut from, mut to) = (from, to);
        let side = self.side;
        let mut length = blocked_len(self.stem_channels[1], side, side);
        let stem = &mut from[..length];
        self.stem.run(&self.engine, x, side, side, stem, self.stem_relu, scratch);
        for step in &self.steps {
            let (input, output) = (&from[..length], &mut to[..step.output_len()]);
            let Winograd { convolution, fuse, size } = step;
            convolution.run(&self.engine, input, *size, *size, output, *fuse, scratch);
            std::mem::swap(&mut from, &mut to);
            length = step.output_len();
        }
        let (channels, size) = self.end();
        unblock(channels, size * size, &from[..length], y);
    }
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

impl std::fmt::Debug for Convolutions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} convolutions from {}", 1 + self.steps.len(), self.side)
    }
}
