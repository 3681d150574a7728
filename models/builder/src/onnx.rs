//! Graphs: VGG-19 in standard ONNX operators, its weights external.
//!
//! The only user of tract, and only of its protobuf types. Names are torchvision's: node
//! `features.4` is the module that torchvision calls so, initializers are its parameters. An int8
//! layer reads
//!
//! ```text
//! classifier.0.weight.int8 [groups, 64] -+
//! classifier.0.weight.scale [groups] ----+- DequantizeLinear, axis 0 - Reshape [N, K] - Gemm
//! ```
//!
//! which is a scale per row and 64 columns without the blocked DequantizeLinear of opset 21, that
//! few runtimes know. Half-precision weights go through a `Cast` to float32, int8 weights of filters
//! that are computed with in float32 through a `DequantizeLinear`. Between int8 convolutions flow
//! bytes:
//!
//! ```text
//! input - QuantizeLinear - QLinearConv - [MaxPool] - QLinearConv … - DequantizeLinear - Flatten
//! ```
//!
//! where the zero of the outputs is byte 0, so that QLinearConv cuts off what a ReLU would.

use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

use crate::calibrate::Scale;
use crate::parts::{Convolution, FloatWeight, LinearWeight};
use crate::tensor::Element;
use crate::topology::{CONVOLUTIONS, LINEARS, POOLED};
use crate::weights::External;

/// Version of ONNX's file format: what goes with [`OPERATOR_SET`].
pub const IR_VERSION: i64 = 8;

/// Version of the standard operators.
pub const OPERATOR_SET: i64 = 13;

/// One variant.
#[derive(Clone, Debug)]
pub struct Graph {
    /// What the variant is called.
    pub name: String,
    /// Height and width of `input`, a multiple of 32.
    pub side: usize,
    /// The 16 convolutions.
    pub convolutions: Vec<Convolution>,
    /// The 3 linear layers; the first has a column per number in the last feature map.
    pub linears: Vec<Linear>,
}

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its weights.
    pub weight: LinearWeight,
    /// One number per output.
    pub bias: External,
}

impl Graph {
    /// The file: `input` [1, 3, side, side] to `logits` [1, classes].
    pub fn encode(&self) -> Vec<u8> {
        let classes = self.linears[2].bias.shape[0];
        let mut body = Body { value: "input".to_owned(), ..Body::default() };
        for (layer, index) in self.convolutions.iter().zip(CONVOLUTIONS) {
            match layer {
                Convolution::Float { weight, bias } => body.convolution(index, weight, bias),
                Convolution::Int8 { .. } => body.integer_convolution(index, layer),
            }
            if POOLED.contains(&index) {
                body.pool(index);
            }
        }
        if let Some(Convolution::Int8 { output, .. }) = self.convolutions.last() {
            let parameters = body.scale("features", *output);
            body.chain("DequantizeLinear", "dequantize".to_owned(), &parameters, vec![]);
        }
        body.flatten();
        for (layer, index) in self.linears.iter().zip(LINEARS) {
            body.linear(index, layer);
        }
        let graph = GraphProto {
            name: self.name.clone(),
            node: body.nodes,
            initializer: body.initializers,
            input: vec![value_info("input", &[1, 3, self.side, self.side])],
            output: vec![value_info("logits", &[1, classes])],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: IR_VERSION,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPERATOR_SET }],
            producer_name: env!("CARGO_PKG_NAME").to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }

    /// The weight files that it reads, each once, in the order of the layers.
    pub fn files(&self) -> Vec<&str> {
        let mut files = Vec::new();
        for tensor in self.tensors() {
            if !files.contains(&tensor.file.as_str()) {
                files.push(&tensor.file);
            }
        }
        files
    }

    /// Everything external that it reads.
    pub fn tensors(&self) -> impl Iterator<Item = &External> {
        let convolutions = self.convolutions.iter().flat_map(|layer| {
            let (weight, bias, scale) = match layer {
                Convolution::Float { weight, bias } => (weight.external(), bias, weight.scales()),
                Convolution::Int8 { weight, bias, scale, .. } => (weight, bias, Some(scale)),
            };
            [weight, bias].into_iter().chain(scale)
        });
        let linears = self.linears.iter().flat_map(|layer| {
            let (weight, scales) = match &layer.weight {
                LinearWeight::Float(weight) => (weight.external(), None),
                LinearWeight::Int8 { values, scales } => (values, Some(scales)),
            };
            [weight, &layer.bias].into_iter().chain(scales)
        });
        convolutions.chain(linears)
    }
}

/// A graph so far, as a chain: each node reads what the last one made.
#[derive(Default)]
struct Body {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    value: String,
}

impl Body {
    fn convolution(&mut self, index: usize, weight: &FloatWeight, bias: &External) {
        let parameters = [self.float(weight), self.external(bias)];
        self.chain("Conv", format!("features.{index}"), &parameters, window());
        self.chain("Relu", format!("features.{}", index + 1), &[], vec![]);
    }

    fn integer_convolution(&mut self, index: usize, layer: &Convolution) {
        let Convolution::Int8 { weight, scale, bias, input, output } = layer else { return };
        let name = format!("features.{index}");
        let read = if index == 0 {
            let read = self.scale("input", *input);
            self.chain("QuantizeLinear", "quantize".to_owned(), &read, vec![]);
            read
        } else {
            self.scale(&format!("{name}.input"), *input)
        };
        let zero = self.inline(
            format!("{name}.weight.zero"),
            DataType::Int8,
            vec![scale.shape[0] as i64],
            vec![0; scale.shape[0]],
        );
        let weights = [self.external(weight), self.external(scale), zero];
        let written = self.scale(&format!("{name}.output"), *output);
        let bias = self.external(bias);
        let parameters = [&read[..], &weights, &written, &[bias]].concat();
        self.chain("QLinearConv", name, &parameters, window());
    }

    fn pool(&mut self, index: usize) {
        let attributes = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
        self.chain("MaxPool", format!("features.{}", index + 2), &[], attributes);
    }

    fn flatten(&mut self) {
        self.chain("Flatten", "flatten".to_owned(), &[], vec![]);
    }

    fn linear(&mut self, index: usize, layer: &Linear) {
        let name = format!("classifier.{index}");
        let weight = match &layer.weight {
            LinearWeight::Float(weight) => self.float(weight),
            LinearWeight::Int8 { values, scales } => {
                self.dequantize(&name, layer.bias.shape[0], values, scales)
            }
        };
        let parameters = [weight, self.external(&layer.bias)];
        self.chain("Gemm", name, &parameters, vec![int("transB", 1)]);
        if index == LINEARS[2] {
            let last = self.nodes.last_mut().expect("the layer was just added");
            last.output = vec!["logits".to_owned()];
        } else {
            self.chain("Relu", format!("classifier.{}", index + 1), &[], vec![]);
        }
    }

    fn dequantize(
        &mut self,
        layer: &str,
        rows: usize,
        values: &External,
        scales: &External,
    ) -> String {
        let columns = values.length as usize / rows;
        let inputs = vec![self.external(values), self.external(scales)];
        let groups = format!("{layer}.weight.groups");
        let name = format!("{layer}.weight.dequantize");
        let attributes = vec![int("axis", 0)];
        self.node("DequantizeLinear", name, inputs, groups.clone(), attributes);

        let lengths = [rows as i64, columns as i64];
        let bytes = lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
        let shape = format!("{layer}.weight.shape");
        let shape = self.inline(shape, DataType::Int64, vec![2], bytes);
        let name = format!("{layer}.weight.reshape");
        let weight = format!("{layer}.weight");
        self.node("Reshape", name, vec![groups, shape], weight.clone(), vec![]);
        weight
    }

    /// A float32 weight, widened where it is stored in fewer bits.
    fn float(&mut self, weight: &FloatWeight) -> String {
        let stored = self.external(weight.external());
        let scales = weight.scales().map(|scales| self.external(scales));
        let (operator, attribute) = match weight {
            FloatWeight::Single(_) => return stored,
            FloatWeight::Half(_) => ("Cast", int("to", i64::from(DataType::Float as i32))),
            FloatWeight::Int8 { .. } => ("DequantizeLinear", int("axis", 0)),
        };
        let name = format!("{stored}.float32");
        let inputs = [Some(stored), scales].into_iter().flatten().collect();
        self.node(operator, name.clone(), inputs, name.clone(), vec![attribute]);
        name
    }

    /// Scale and zero of bytes, as two inputs of a node.
    fn scale(&mut self, name: &str, Scale { scale, zero }: Scale) -> [String; 2] {
        let bytes = scale.to_le_bytes().to_vec();
        let scale = self.inline(format!("{name}.scale"), DataType::Float, vec![], bytes);
        let zero = self.inline(format!("{name}.zero"), DataType::Uint8, vec![], vec![zero]);
        [scale, zero]
    }

    /// A small initializer in the graph itself.
    fn inline(&mut self, name: String, kind: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> String {
        self.initializers.push(TensorProto {
            name: name.clone(),
            data_type: kind.into(),
            dims,
            raw_data: bytes,
            ..TensorProto::default()
        });
        name
    }

    fn chain(
        &mut self,
        operator: &str,
        name: String,
        parameters: &[String],
        attributes: Vec<AttributeProto>,
    ) {
        let mut inputs = vec![std::mem::replace(&mut self.value, name.clone())];
        inputs.extend_from_slice(parameters);
        self.node(operator, name.clone(), inputs, name, attributes);
    }

    fn node(
        &mut self,
        operator: &str,
        name: String,
        input: Vec<String>,
        output: String,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            op_type: operator.to_owned(),
            name,
            input,
            output: vec![output],
            attribute,
            ..NodeProto::default()
        });
    }

    fn external(&mut self, tensor: &External) -> String {
        let entries = [
            ("location", tensor.file.clone()),
            ("offset", tensor.offset.to_string()),
            ("length", tensor.length.to_string()),
        ];
        let element = match tensor.element {
            Element::Float32 => DataType::Float,
            Element::Float16 => DataType::Float16,
            Element::Int8 => DataType::Int8,
            Element::Int32 => DataType::Int32,
        };
        self.initializers.push(TensorProto {
            name: tensor.name.clone(),
            data_type: element.into(),
            dims: tensor.shape.iter().map(|&length| length as i64).collect(),
            data_location: Some(DataLocation::External.into()),
            external_data: (entries.into_iter())
                .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
                .collect(),
            ..TensorProto::default()
        });
        tensor.name.clone()
    }
}

/// Of a convolution.
fn window() -> Vec<AttributeProto> {
    vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])]
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int.into(),
        i: value,
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Ints.into(),
        ints: values.to_owned(),
        ..AttributeProto::default()
    }
}

fn value_info(name: &str, shape: &[usize]) -> ValueInfoProto {
    let dim = (shape.iter())
        .map(|&length| Dimension {
            value: Some(dimension::Value::DimValue(length as i64)),
            ..Dimension::default()
        })
        .collect();
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float.into(),
        shape: Some(TensorShapeProto { dim }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
