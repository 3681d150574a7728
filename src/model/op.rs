//! What takes the place of nodes of the graph: tract's traits, written once for all of our layers.

use std::sync::Arc;

use tract_onnx::tract_hir::infer::InferenceModel;
use tract_onnx::tract_hir::internal::*;

/// A part of the network that is computed by kernels of our own: float32 in, float32 out.
pub(super) trait Layer: std::fmt::Debug + Send + Sync {
    /// Shape of the input.
    fn input(&self) -> TVec<usize>;

    /// Shape of the output.
    fn output(&self) -> TVec<usize>;

    /// Writes every element of `y`.
    fn run(&self, x: &[f32], y: &mut [f32]);
}

/// A layer that was taken out of the graph. In its place is left a node without weights, which tract
/// parses as an operator that it does not know.
pub(super) struct Taken {
    output: String,
    layer: Arc<dyn Layer>,
}

impl Taken {
    /// Makes of `node` the place for `layer`, reading `input` and giving `output`.
    pub(super) fn leave(
        node: &mut tract_onnx::pb::NodeProto,
        input: String,
        output: String,
        layer: impl Layer + 'static,
    ) -> Self {
        node.op_type = "vggd".to_owned();
        node.input = vec![input];
        node.output = vec![output.clone()];
        node.attribute.clear();
        Self { output, layer: Arc::new(layer) }
    }

    /// Puts the layer into the place that was left for it.
    pub(super) fn put(self, model: &mut InferenceModel) -> TractResult<()> {
        let place = model.find_outlet_label(&self.output);
        let place = place.with_context(|| format!("no output '{}'", self.output))?;
        model.node_mut(place.node).op = expand(LayerOp(self.layer));
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct LayerOp(Arc<dyn Layer>);

impl PartialEq for LayerOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for LayerOp {}

impl Expansion for LayerOp {
    fn name(&self) -> StaticName {
        "vggd".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let shape = |shape: TVec<usize>| {
            ShapeFactoid::from(shape.iter().map(ToDim::to_dim).collect::<TVec<TDim>>())
        };
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].shape, shape(self.0.input()))?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].shape, shape(self.0.output()))
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

impl Op for LayerOp {
    fn name(&self) -> StaticName {
        "vggd".into()
    }

    op_as_typed_op!();
}

impl EvalOp for LayerOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut output = Tensor::zero::<f32>(&self.0.output())?;
        let x = inputs[0].try_as_plain_ram()?;
        self.0.run(x.as_slice()?, output.try_as_plain_ram_mut()?.as_slice_mut()?);
        Ok(tvec!(output.into()))
    }
}

impl TypedOp for LayerOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = self.0.input();
        ensure!(inputs[0].shape.as_concrete() == Some(&*expected), "input of {self:?}");
        Ok(tvec!(f32::fact(self.0.output())))
    }

    as_op!();
}
