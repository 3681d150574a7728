//! What follows what in a graph, and the two windows that our kernels know.

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

/// The one node that reads `name`, if it is an `operator` with the attributes `needed` and none that
/// is not `plain`.
pub(super) fn reader<'a>(
    graph: &'a GraphProto,
    name: &str,
    operator: &str,
    needed: &[&str],
    plain: fn(&AttributeProto) -> bool,
) -> Option<&'a NodeProto> {
    let mut readers = graph.node.iter().filter(|node| node.input.iter().any(|i| i == name));
    let node = readers.next()?;
    let has = |needed: &&str| node.attribute.iter().any(|attribute| attribute.name == **needed);
    let fits = node.op_type == operator
        && needed.iter().all(has)
        && node.attribute.iter().all(plain)
        && readers.next().is_none();
    fits.then_some(node)
}

/// Height and width of what a convolution gives for an input of height and width `size`, with the
/// pooling that may follow it.
pub(super) fn output_size(size: usize, pool: bool) -> usize {
    if pool { size / 2 } else { size }
}

/// Without these a convolution has no padding.
pub(super) const CONVOLUTION_NEEDS: &[&str] = &["pads"];

/// Without these a pooling has stride 1.
pub(super) const POOLING_NEEDS: &[&str] = &["strides"];

/// Whether a convolution's attribute is that of 3x3, stride 1, padding 1.
pub(super) fn is_3x3(attribute: &AttributeProto) -> bool {
    match attribute.name.as_str() {
        "kernel_shape" => attribute.ints == [3, 3],
        "pads" => attribute.ints == [1, 1, 1, 1],
        "strides" | "dilations" => attribute.ints == [1, 1],
        "group" => attribute.i == 1,
        _ => false,
    }
}

/// Whether a pooling's attribute is that of 2x2, stride 2.
pub(super) fn is_2x2(attribute: &AttributeProto) -> bool {
    match attribute.name.as_str() {
        "kernel_shape" | "strides" => attribute.ints == [2, 2],
        "pads" => attribute.ints == [0, 0, 0, 0],
        "dilations" => attribute.ints == [1, 1],
        "ceil_mode" => attribute.i == 0,
        _ => false,
    }
}
