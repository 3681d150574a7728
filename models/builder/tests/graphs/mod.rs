//! Writes VGG-19s as ONNX graphs, as other programs do.

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};
use vggd_models::tensor::Tensor;

use crate::saved::Tensors;

/// Ways to write a graph.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialects {
    /// Tensors are called after the node, not after torchvision.
    pub(crate) zoo: bool,
    /// Initializers are also inputs of the graph.
    pub(crate) inputs: bool,
    /// Numbers are in `float_data`, not in `raw_data`.
    pub(crate) floats: bool,
    /// Float16, with a Cast behind it.
    pub(crate) half: bool,
    /// Float16 as integers of variable length.
    pub(crate) half_integers: bool,
    /// Linear layers are MatMul and Add.
    pub(crate) matmul: bool,
    /// Weights of linear layers are inputs x outputs.
    pub(crate) by_columns: bool,
    /// Weights of linear layers are inputs x outputs, with a Transpose behind them.
    pub(crate) turned: bool,
    /// Numbers are in other files.
    pub(crate) external: bool,
}

pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int.into();
    AttributeProto { name: name.to_owned(), r#type, i, ..AttributeProto::default() }
}

fn half_bits(value: f32) -> u16 {
    let tensor = value.to_bits();
    let exponent = ((tensor >> 23) & 0xff) as i32 - 112;
    let sign = (tensor >> 16 & 0x8000) as u16;
    if exponent <= 0 {
        sign
    } else {
        sign | (exponent as u16) << 10 | (tensor >> 13 & 0x3ff) as u16
    }
}

/// The network as a graph, as other programs would write it.
pub(crate) fn graph(tensors: &Tensors, dialects: &Dialects) -> ModelProto {
    let mut graph = GraphProto::default();
    let mut value = "data".to_owned();
    graph.input.push(ValueInfoProto { name: value.clone(), ..ValueInfoProto::default() });
    let add = |graph: &mut GraphProto, tensor: &str| -> String {
        let name = if dialects.zoo {
            format!("vgg0_{}", graph.initializer.len())
        } else {
            tensor.to_owned()
        };
        let is_matrix = tensors[tensor].shape().len() == 2;
        let turned = is_matrix && (dialects.matmul || dialects.by_columns || dialects.turned);
        let (dims, values) = laid_out(&tensors[tensor], turned);
        let mut initializer = TensorProto { name: name.clone(), dims, ..TensorProto::default() };
        let bits = || values.iter().map(|value| half_bits(*value));
        let bytes: Vec<u8> = if dialects.half {
            bits().flat_map(u16::to_le_bytes).collect()
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        let is_half = dialects.half || dialects.half_integers;
        let data_type = if is_half { DataType::Float16 } else { DataType::Float };
        initializer.data_type = data_type.into();
        if dialects.half_integers {
            initializer.int32_data = bits().map(i32::from).collect();
        } else if dialects.floats {
            initializer.float_data = values;
        } else if dialects.external {
            initializer.data_location = Some(DataLocation::External.into());
            let entry =
                |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
            initializer.external_data =
                vec![entry("location", name.clone()), entry("offset", "5".to_owned())];
        } else {
            initializer.raw_data = bytes;
        }
        if dialects.inputs {
            graph.input.push(ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() });
        }
        graph.initializer.push(initializer);
        let mut name = name;
        if is_half {
            let cast = format!("{name}_cast");
            graph.node.push(node("Cast", &[&name], &cast));
            name = cast;
        }
        if is_matrix && dialects.turned {
            let turned = format!("{name}_turned");
            graph.node.push(node("Transpose", &[&name], &turned));
            name = turned;
        }
        name
    };
    for index in 0..37 {
        let next = format!("features{index}");
        let module = format!("features.{index}");
        if tensors.contains_key(&format!("{module}.weight")) {
            let weight = add(&mut graph, &format!("{module}.weight"));
            let bias = add(&mut graph, &format!("{module}.bias"));
            graph.node.push(node("Conv", &[&value, &weight, &bias], &next));
        } else if [4, 9, 18, 27, 36].contains(&index) {
            graph.node.push(node("MaxPool", &[&value], &next));
        } else {
            graph.node.push(node("Relu", &[&value], &next));
        }
        value = next;
    }
    graph.node.push(node("Shape", &[&value], "shape"));
    graph.node.push(node("Gather", &["shape", "zero"], "batch"));
    graph.node.push(node("Reshape", &[&value, "batch"], "flat"));
    value = "flat".to_owned();
    for index in [0, 3, 6] {
        let module = format!("classifier.{index}");
        let weight = add(&mut graph, &format!("{module}.weight"));
        let bias = add(&mut graph, &format!("{module}.bias"));
        let next = format!("linear{index}");
        if dialects.matmul {
            let product = format!("product{index}");
            graph.node.push(node("MatMul", &[&value, &weight], &product));
            let sum = if index == 3 { [&bias, &product] } else { [&product, &bias] };
            graph.node.push(node("Add", &sum.map(String::as_str), &next));
        } else {
            let mut gemm = node("Gemm", &[&value, &weight, &bias], &next);
            gemm.attribute = vec![int("transB", (!dialects.by_columns).into())];
            graph.node.push(gemm);
        }
        if index != 6 {
            graph.node.push(node("Relu", &[&next], &format!("relu{index}")));
            graph.node.push(node(
                "Dropout",
                &[&format!("relu{index}")],
                &format!("dropout{index}"),
            ));
        }
        value = if index == 6 { next } else { format!("dropout{index}") };
    }
    graph.node.push(node("Softmax", &[&value], "answer"));
    ModelProto { ir_version: 7, graph: Some(graph), ..ModelProto::default() }
}

/// Shape and numbers, transposed or not.
fn laid_out(tensor: &Tensor<'_>, transposed: bool) -> (Vec<i64>, Vec<f32>) {
    let mut dims: Vec<i64> = tensor.shape().iter().map(|&length| length as i64).collect();
    if !transposed {
        return (dims, tensor.values().into_owned());
    }
    let rows: Vec<Vec<f32>> = tensor.rows().map(|row| row.into_owned()).collect();
    dims.reverse();
    let values = (0..rows[0].len()).flat_map(|column| rows.iter().map(move |row| row[column]));
    (dims, values.collect())
}
