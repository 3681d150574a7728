//! Weights out of an ONNX graph, whatever they are called there.
//!
//! Follows the graph's input from node to node, and names what a node reads after its place in the
//! chain, as torchvision counts its modules: `features.N` is the Nth Conv, BatchNormalization, Relu
//! or MaxPool, `classifier.3 K` the Kth Gemm, or MatMul and Add. Graphs of this program say so
//! themselves: their nodes have these names.
//!
//! Operators that would change what a network computes, and that VGG-19 does not have, are an error
//! that names the node. Numbers stay in the file, or in the further files that hold them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Component, Path, PathBuf};

use prost::{DecodeError, Message};
use thiserror::Error;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{NodeProto, StringStringEntryProto, ValueInfoProto};

use super::{Bytes, EPSILON, Entries, Entry, count, map};
use crate::tensor::{Number, Stored};

/// Why a graph's weights cannot be used.
#[derive(Debug, Error)]
pub enum OnnxError {
    /// The file is cut off or damaged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The file is another kind of protobuf, or damaged.
    #[error("no graph in it")]
    NoGraph,
    /// It is another network.
    #[error(
        "node '{node}' computes {operator}, which VGG-19 does not, or not there: this is another \
         network"
    )]
    Operator {
        /// The node, or what it computes if it has no name.
        node: String,
        /// What it does.
        operator: String,
    },
    /// The graph is quantized.
    #[error(
        "the weights of node '{node}' are int8, which loses accuracy for good; give a float32 graph"
    )]
    Int8 {
        /// The node, or what it computes if it has no name.
        node: String,
    },
    /// The graph computes its weights: simplify it.
    #[error(
        "'{name}', which node '{node}' reads, is no initializer; fold constants in the graph first"
    )]
    NotStored {
        /// The node, or what it computes if it has no name.
        node: String,
        /// The value.
        name: String,
    },
    /// A layer of another kind.
    #[error("node '{node}' has {attribute} {value}, expected {expected}")]
    Attribute {
        /// The node, or what it computes if it has no name.
        node: String,
        /// The attribute.
        attribute: &'static str,
        /// Its value.
        value: f32,
        /// What VGG-19 has there.
        expected: f32,
    },
    /// The file is damaged.
    #[error("tensor '{name}' has shape {shape:?} and {bytes} bytes, which do not fit")]
    Length {
        /// The initializer.
        name: String,
        /// Its shape.
        shape: Vec<i64>,
        /// How long it is.
        bytes: usize,
    },
    /// Someone tries to read other files with it, or the file is damaged.
    #[error("tensor '{name}' refers to '{location}', which is not in the folder of the graph")]
    Outside {
        /// The initializer.
        name: String,
        /// The file.
        location: String,
    },
    /// Put the graph's other files beside it.
    #[error("tensor '{name}' is in {}: {error}", path.display())]
    Io {
        /// The initializer.
        name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The other file is cut off, or of another graph.
    #[error("tensor '{name}' ends at byte {end} of {}, which has {bytes}", path.display())]
    Cut {
        /// The initializer.
        name: String,
        /// The file.
        path: PathBuf,
        /// Where the tensor would end.
        end: u64,
        /// The file's size.
        bytes: usize,
    },
}

/// What is read of a ModelProto.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(string, tag = "2")]
    producer: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

/// What is read of a GraphProto.
#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Initializer>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<ValueInfoProto>,
}

/// A TensorProto; numbers are read as bytes, which unlike numbers stay in the file.
#[derive(Clone, PartialEq, Message)]
struct Initializer {
    #[prost(int64, repeated, tag = "1")]
    shape: Vec<i64>,
    #[prost(enumeration = "DataType", tag = "2")]
    data_type: i32,
    /// Packed, so the same bytes as `raw`.
    #[prost(bytes = "bytes", tag = "4")]
    floats: Bytes,
    /// Packed, so one variable-length integer per number.
    #[prost(bytes = "bytes", tag = "5")]
    integers: Bytes,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "bytes", tag = "9")]
    raw: Bytes,
    #[prost(message, repeated, tag = "13")]
    external: Vec<StringStringEntryProto>,
    #[prost(enumeration = "DataLocation", tag = "14")]
    location: i32,
}

/// Finds the tensors of a graph; `folder` is the one that its other files are in.
pub(super) fn read(file: &Bytes, folder: &Path) -> Result<Entries, OnnxError> {
    let model = Model::decode(file.clone())?;
    let graph = model.graph.ok_or(OnnxError::NoGraph)?;
    let initializers: HashMap<_, _> =
        (graph.initializers.iter()).map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let inputs = graph.inputs.iter().map(|input| input.name.as_str());
    let mut walk = Walk {
        is_ours: model.producer == env!("CARGO_PKG_NAME"),
        chain: inputs.filter(|input| !initializers.contains_key(input)).collect(),
        initializers,
        constants: HashMap::new(),
        modules: 0,
        linears: 0,
        unbiased: None,
        files: Files { folder, open: HashMap::new() },
        entries: Entries::new(),
    };
    for node in &graph.nodes {
        walk.node(node)?;
    }
    Ok(walk.entries)
}

/// A graph as far as it was followed.
struct Walk<'a> {
    /// Whether nodes have torchvision's names.
    is_ours: bool,
    initializers: HashMap<&'a str, &'a Initializer>,
    /// Nodes that do not depend on the graph's input, by what they compute.
    constants: HashMap<&'a str, &'a NodeProto>,
    /// Values that do, but for their shapes.
    chain: HashSet<&'a str>,
    /// How many modules of `features` there were.
    modules: usize,
    /// How many linear layers there were.
    linears: usize,
    /// The linear layer that may still get a bias, and what it computes.
    unbiased: Option<(String, &'a str)>,
    files: Files<'a>,
    entries: Entries,
}

impl<'a> Walk<'a> {
    fn node(&mut self, node: &'a NodeProto) -> Result<(), OnnxError> {
        if !node.input.iter().any(|input| self.chain.contains(input.as_str())) {
            self.constants.extend(node.output.iter().map(|output| (output.as_str(), node)));
            return Ok(());
        }
        let within_features = self.linears == 0;
        match node.op_type.as_str() {
            "Conv" if within_features => {
                let module = self.module(node);
                self.parameter(node, 1, &format!("{module}.weight"), false)?;
                self.parameter(node, 2, &format!("{module}.bias"), false)?;
            }
            "BatchNormalization" if within_features => {
                let module = self.module(node);
                let parts = ["weight", "bias", "running_mean", "running_var"];
                for (input, part) in (1..).zip(parts) {
                    self.parameter(node, input, &format!("{module}.{part}"), false)?;
                }
                let epsilon = number(node, "epsilon").unwrap_or(1e-5);
                let bytes = Bytes::copy_from_slice(f32::bytes(&[epsilon]));
                let name = format!("{module}.{EPSILON}");
                let entry = Entry::dense(name.clone(), vec![1], Stored::F32, bytes);
                self.entries.extend(entry.map(|entry| (name, entry)));
            }
            "Relu" | "MaxPool" if within_features => drop(self.module(node)),
            "Gemm" | "MatMul" => self.linear(node)?,
            "Add" => self.bias(node)?,
            "Relu" | "AveragePool" | "GlobalAveragePool" | "Flatten" | "Reshape" | "Squeeze"
            | "Dropout" | "Identity" | "Cast" | "Softmax" | "LogSoftmax" => {}
            "Shape" => return Ok(()),
            "QuantizeLinear"
            | "DequantizeLinear"
            | "DynamicQuantizeLinear"
            | "QLinearConv"
            | "QLinearMatMul"
            | "ConvInteger"
            | "MatMulInteger" => {
                return Err(OnnxError::Int8 { node: title(node) });
            }
            _ => return Err(operator(node)),
        }
        self.chain.extend(node.output.iter().map(String::as_str));
        Ok(())
    }

    /// The name of the next module of `features`.
    fn module(&mut self, node: &NodeProto) -> String {
        self.modules += 1;
        let counted = || format!("features.{}", self.modules - 1);
        if self.is_ours { node.name.clone() } else { counted() }
    }

    fn linear(&mut self, node: &'a NodeProto) -> Result<(), OnnxError> {
        let expect = |attribute, expected| match number(node, attribute) {
            Some(value) if value != expected => {
                Err(OnnxError::Attribute { node: title(node), attribute, value, expected })
            }
            _ => Ok(()),
        };
        expect("alpha", 1.0)?;
        expect("beta", 1.0)?;
        expect("transA", 0.0)?;
        let counted = || format!("classifier.{}", 3 * self.linears);
        let module = if self.is_ours { node.name.clone() } else { counted() };
        self.linears += 1;
        let by_columns = number(node, "transB").unwrap_or(0.0) == 0.0;
        self.parameter(node, 1, &format!("{module}.weight"), by_columns)?;
        self.parameter(node, 2, &format!("{module}.bias"), false)?;
        let has_bias = node.input.get(2).is_some_and(|bias| !bias.is_empty());
        let output = node.output.first().filter(|_| !has_bias);
        self.unbiased = output.map(|output| (module, output.as_str()));
        Ok(())
    }

    /// An addition, of a bias to what the linear layer before it computes.
    fn bias(&mut self, node: &'a NodeProto) -> Result<(), OnnxError> {
        let Some((module, output)) = self.unbiased.take() else {
            return Err(operator(node));
        };
        let bias = match &node.input[..] {
            [a, _] if a == output => 1,
            [_, b] if b == output => 0,
            _ => return Err(operator(node)),
        };
        self.parameter(node, bias, &format!("{module}.bias"), false)
    }

    /// Adds the tensor that is input number `input` of a node, if the node has it.
    fn parameter(
        &mut self,
        node: &'a NodeProto,
        input: usize,
        name: &str,
        transposed: bool,
    ) -> Result<(), OnnxError> {
        let Some(value) = node.input.get(input).filter(|value| !value.is_empty()) else {
            return Ok(());
        };
        let (tensor, turned) = self.initializer(node, value)?;
        let mut entry = match self.scales(value) {
            Some(scales) => self.files.widened(tensor, scales)?,
            None => self.files.entry(tensor)?,
        };
        match (transposed ^ turned, &entry.shape[..]) {
            (true, &[rows, columns]) => {
                entry.strides = Some(vec![1, columns]);
                entry.shape = vec![columns, rows];
            }
            (_, &[_, _]) => {}
            _ if turned => {
                return Err(OnnxError::NotStored { node: title(node), name: value.clone() });
            }
            _ => {}
        }
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// The scales of a value that is a filter's int8 weights times a scale each.
    fn scales(&self, value: &str) -> Option<&'a Initializer> {
        let node = self.constants.get(value).filter(|node| node.op_type == "DequantizeLinear")?;
        let per_filter = node.input.len() == 2 && number(node, "axis") == Some(0.0);
        let of = |name: &String| self.initializers.get(name.as_str()).copied();
        let (values, scales) = (of(&node.input[0])?, of(node.input.get(1)?)?);
        (per_filter && values.shape.len() == 4 && scales.shape == values.shape[..1])
            .then_some(scales)
    }

    /// The initializer behind a value, and whether it is transposed on its way.
    fn initializer(
        &self,
        node: &'a NodeProto,
        value: &'a str,
    ) -> Result<(&'a Initializer, bool), OnnxError> {
        let (mut at, mut transposed, mut changed) = (value, false, false);
        for _ in 0..=self.constants.len() {
            if let Some(tensor) = self.initializers.get(at).filter(|_| !changed) {
                return Ok((tensor, transposed));
            }
            let Some(constant) = self.constants.get(at) else {
                break;
            };
            match constant.op_type.as_str() {
                "Cast" | "Identity" => {}
                "Transpose" => transposed = !transposed,
                "DequantizeLinear" if self.scales(at).is_some() => {}
                "DequantizeLinear" => return Err(OnnxError::Int8 { node: title(node) }),
                _ => changed = true,
            }
            let Some(input) = constant.input.first() else {
                break;
            };
            at = input;
        }
        Err(OnnxError::NotStored { node: title(node), name: value.to_owned() })
    }
}

/// The files that initializers are in.
struct Files<'a> {
    folder: &'a Path,
    /// Those beside the graph's own, by location.
    open: HashMap<&'a str, Bytes>,
}

impl<'a> Files<'a> {
    fn entry(&mut self, tensor: &'a Initializer) -> Result<Entry, OnnxError> {
        let shape = shape(tensor)?;
        let called = tensor.name.clone();
        let stored = match stored(tensor.data_type()) {
            Ok(stored) => stored,
            Err(other) => {
                let bytes = Bytes::new();
                return Ok(Entry { called, shape, strides: None, stored: Err(other), bytes });
            }
        };
        let bytes = self.bytes(tensor, &shape, stored.size())?;
        let length = bytes.len();
        Entry::dense(called, shape, stored, bytes).ok_or_else(|| length_error(tensor, length))
    }

    /// int8 filters times a scale each.
    fn widened(
        &mut self,
        values: &'a Initializer,
        scales: &'a Initializer,
    ) -> Result<Entry, OnnxError> {
        let [shape, filters] = [shape(values)?, shape(scales)?];
        let bytes = self.bytes(values, &shape, 1)?;
        let steps = self.bytes(scales, &filters, 4)?;
        let (steps, rest) = steps.as_chunks::<4>();
        let row = shape[1..].iter().product::<usize>();
        if values.data_type() != DataType::Int8
            || scales.data_type() != DataType::Float
            || !rest.is_empty()
            || bytes.len() != steps.len() * row
        {
            return Err(length_error(values, bytes.len()));
        }
        let floats = (bytes.chunks(row.max(1)).zip(steps))
            .flat_map(|(row, step)| {
                row.iter().map(|&byte| f32::from(byte.cast_signed()) * f32::from_le_bytes(*step))
            })
            .flat_map(f32::to_le_bytes)
            .collect::<Vec<u8>>();
        let entry = Entry::dense(values.name.clone(), shape, Stored::F32, floats.into());
        entry.ok_or_else(|| length_error(values, bytes.len()))
    }

    /// The numbers of a tensor, of `size` bytes each.
    fn bytes(
        &mut self,
        tensor: &'a Initializer,
        shape: &[usize],
        size: usize,
    ) -> Result<Bytes, OnnxError> {
        let length = count(shape).and_then(|count| count.checked_mul(size));
        let length = length.ok_or_else(|| length_error(tensor, 0))?;
        if tensor.location() == DataLocation::External {
            self.external(tensor, length as u64)
        } else if !tensor.raw.is_empty() {
            Ok(tensor.raw.clone())
        } else if size == 4 {
            Ok(tensor.floats.clone())
        } else if size == 2 {
            Ok(halves(&tensor.integers)?)
        } else {
            Ok(Bytes::new())
        }
    }

    /// The `size` bytes of a tensor in another file.
    fn external(&mut self, tensor: &'a Initializer, size: u64) -> Result<Bytes, OnnxError> {
        let name = || tensor.name.clone();
        let entry = |key| {
            let mut entries = tensor.external.iter();
            entries.find(|entry| entry.key == key).map(|entry| entry.value.as_str())
        };
        let location = entry("location").unwrap_or_default();
        let mut parts = Path::new(location).components();
        let is_inside = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !is_inside {
            return Err(OnnxError::Outside { name: name(), location: location.to_owned() });
        }
        let path = self.folder.join(location);
        let file = match self.open.get(location) {
            Some(file) => file.clone(),
            None => {
                let error = |error| OnnxError::Io { name: name(), path: path.clone(), error };
                let file = map(&path).map_err(error)?;
                self.open.insert(location, file.clone());
                file
            }
        };
        let place = |key, default| match entry(key).map(str::parse) {
            None => Ok(default),
            Some(Ok(place)) => Ok(place),
            Some(Err(_)) => {
                Err(OnnxError::Length { name: name(), shape: tensor.shape.clone(), bytes: 0 })
            }
        };
        let (from, length): (u64, u64) = (place("offset", 0)?, place("length", size)?);
        let end = from.saturating_add(length);
        if end > file.len() as u64 {
            return Err(OnnxError::Cut { name: name(), path, end, bytes: file.len() });
        }
        Ok(file.slice(from as usize..end as usize))
    }
}

fn shape(tensor: &Initializer) -> Result<Vec<usize>, OnnxError> {
    let lengths = tensor.shape.iter().map(|length| usize::try_from(*length));
    lengths.collect::<Result<_, _>>().map_err(|_| length_error(tensor, 0))
}

fn length_error(tensor: &Initializer, bytes: usize) -> OnnxError {
    OnnxError::Length { name: tensor.name.clone(), shape: tensor.shape.clone(), bytes }
}

/// How numbers of a type are stored, or what safetensors calls a type that weights do not have.
fn stored(data_type: DataType) -> Result<Stored, String> {
    match data_type {
        DataType::Float => Ok(Stored::F32),
        DataType::Float16 => Ok(Stored::F16),
        DataType::Bfloat16 => Ok(Stored::Bf16),
        DataType::Double => Err("F64".to_owned()),
        DataType::Int8 => Err("I8".to_owned()),
        DataType::Uint8 => Err("U8".to_owned()),
        DataType::Int32 => Err("I32".to_owned()),
        DataType::Int64 => Err("I64".to_owned()),
        other => Err(format!("{other:?}").to_uppercase()),
    }
}

/// Numbers of 16 bits, each of which was written as an integer of variable length.
fn halves(mut integers: &[u8]) -> Result<Bytes, DecodeError> {
    let mut bytes = Vec::new();
    while !integers.is_empty() {
        let bits = prost::decode_length_delimiter(&mut integers)?;
        bytes.extend_from_slice(&(bits as u16).to_le_bytes());
    }
    Ok(bytes.into())
}

/// The value of an attribute, if the node has it.
fn number(node: &NodeProto, attribute: &str) -> Option<f32> {
    let attribute = node.attribute.iter().find(|found| found.name == attribute)?;
    Some(if attribute.i == 0 { attribute.f } else { attribute.i as f32 })
}

fn operator(node: &NodeProto) -> OnnxError {
    OnnxError::Operator { node: title(node), operator: node.op_type.clone() }
}

/// What a node is called, or what it computes if it has no name.
fn title(node: &NodeProto) -> String {
    match &node.name {
        name if name.is_empty() => node.output.first().cloned().unwrap_or_default(),
        name => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_the_file() {
        let numbers: Vec<u8> = (0..64).collect();
        for (raw, floats) in [(numbers.clone(), vec![]), (vec![], numbers.clone())] {
            let weight = Initializer {
                shape: vec![4, 4],
                data_type: DataType::Float.into(),
                name: "w".to_owned(),
                raw: raw.into(),
                floats: floats.into(),
                ..Initializer::default()
            };
            let node = NodeProto {
                op_type: "MatMul".to_owned(),
                input: vec!["x".to_owned(), "w".to_owned()],
                ..NodeProto::default()
            };
            let input = ValueInfoProto { name: "x".to_owned(), ..ValueInfoProto::default() };
            let graph =
                Graph { nodes: vec![node], initializers: vec![weight], inputs: vec![input] };
            let model = Model { producer: String::new(), graph: Some(graph) };
            let file = Bytes::from(model.encode_to_vec());
            let entries = read(&file, Path::new("")).unwrap();
            let found = entries["classifier.0.weight"].bytes.as_ptr_range();
            let file = file.as_ptr_range();
            assert!(file.contains(&found.start) && found.end <= file.end);
        }
    }
}
