//! A network as tensors of candle, on any device: its answers, and the gradients of a loss.
//!
//! candle goes back through the convolutions. The linear layers are gone through by hand, because
//! the gradient of a linear weight is a product of two small matrices, and is kept as these: the
//! whole would take as much memory as the weights.

use std::thread;

use candle_core::{D, Device, Result, Tensor, Var};
use vggd::model::Engine;

use super::convolution::Convolution;
use super::{Computer, FinetuneError};
use crate::network::{Layer, Network};
use crate::prune::is_identity;
use crate::topology::{CONVOLUTIONS, POOLED, POOLED_SIDE, REDUCTION};

/// Where computing is done.
pub(super) struct Place {
    device: Device,
    engine: Engine,
}

impl Place {
    pub(super) fn new(computer: Computer, engine: &Engine) -> Result<Self> {
        let device = match computer {
            Computer::Cpu => Device::Cpu,
            Computer::Cuda(number) => Device::new_cuda(number)?,
            Computer::Metal(number) => Device::new_metal(number)?,
        };
        Ok(Self { device, engine: engine.clone() })
    }

    /// How many threads read photos: a GPU wants more of them than the CPU that it leaves idle can
    /// give, and the CPU has better things to do.
    pub(super) fn readers(&self) -> usize {
        match self.device.is_cpu() {
            true => 1,
            false => thread::available_parallelism().map_or(1, |cores| cores.get()),
        }
    }

    /// Rows of `columns` numbers.
    pub(super) fn matrix(&self, values: Vec<f32>, columns: usize) -> Result<Tensor> {
        Tensor::from_vec(values, ((), columns), &self.device)
    }
}

impl From<candle_core::Error> for FinetuneError {
    fn from(error: candle_core::Error) -> Self {
        Self::Computer(Box::new(error))
    }
}

/// A network that can learn.
pub(super) struct Model {
    device: Device,
    engine: Engine,
    /// Whether convolutions are candle's own, as they are on every device but the CPU.
    plain: bool,
    stages: Vec<Stage>,
    linears: Vec<Weights>,
    /// From the last feature map to 7 x 7, unless it has that size.
    pooling: Option<Tensor>,
}

struct Weights {
    name: String,
    weight: Var,
    bias: Var,
}

/// A convolution, and what follows it up to the next one that does not only hand its input on.
struct Stage {
    layer: Weights,
    poolings: usize,
}

/// The weights or biases of a layer, row by row what makes one output.
pub(super) struct Parameter {
    /// torchvision's name, such as `features.0.weight`.
    pub(super) name: String,
    /// Outputs x inputs (x 9), or outputs x 1; shares memory with the model.
    pub(super) values: Tensor,
    /// Whether it belongs to a linear layer.
    pub(super) linear: bool,
}

/// Derivatives of a loss by a [`Parameter`].
pub(super) enum Gradient {
    /// Of the same shape.
    Whole(Tensor),
    /// A sum over photos: outputs^T inputs.
    Product {
        /// Photos x outputs.
        outputs: Tensor,
        /// Photos x inputs.
        inputs: Tensor,
    },
}

impl Gradient {
    /// 1 x 1. For a product it is had without the product: the sum of its squares is that of
    /// (outputs outputs^T) * (inputs inputs^T).
    pub(super) fn mean_square(&self) -> Result<Tensor> {
        let (squares, count) = match self {
            Self::Whole(values) => (values.sqr()?, values.elem_count()),
            Self::Product { outputs, inputs } => {
                let squares = outputs.matmul(&outputs.t()?)? * inputs.matmul(&inputs.t()?)?;
                (squares?, outputs.dim(1)? * inputs.dim(1)?)
            }
        };
        (squares.sum_all()? / count as f64)?.reshape((1, 1))
    }

    /// This many times as large.
    pub(super) fn scaled(&self, factor: f64) -> Result<Self> {
        Ok(match self {
            Self::Whole(values) => Self::Whole((values * factor)?),
            Self::Product { outputs, inputs } => {
                Self::Product { outputs: (outputs * factor)?, inputs: inputs.clone() }
            }
        })
    }

    /// Some of its rows.
    pub(super) fn rows(&self, first: usize, count: usize) -> Result<Tensor> {
        match self {
            Self::Whole(values) => values.narrow(0, first, count),
            Self::Product { outputs, inputs } => {
                outputs.narrow(1, first, count)?.t()?.contiguous()?.matmul(inputs)
            }
        }
    }
}

impl Model {
    /// Copies `network`, for inputs of `side` x `side`.
    pub(super) fn new(network: &Network<'_>, side: usize, place: &Place) -> Result<Self> {
        let Place { device, engine } = place;
        let weights = |layer: &Layer<'_>| -> Result<Weights> {
            let shape = layer.weight.shape();
            Ok(Weights {
                name: layer.name.clone(),
                weight: Var::from_slice(&layer.weight.values(), shape, device)?,
                bias: Var::from_slice(&layer.bias.values(), shape[0], device)?,
            })
        };
        let mut stages: Vec<Stage> = Vec::new();
        for (layer, index) in network.convolutions.iter().zip(CONVOLUTIONS) {
            let poolings = usize::from(POOLED.contains(&index));
            match stages.last_mut() {
                Some(stage) if is_identity(layer) => stage.poolings += poolings,
                _ => stages.push(Stage { layer: weights(layer)?, poolings }),
            }
        }
        Ok(Self {
            device: device.clone(),
            engine: engine.clone(),
            plain: !device.is_cpu(),
            stages,
            linears: network.linears.iter().map(weights).collect::<Result<_>>()?,
            pooling: pooling(side / REDUCTION, device)?,
        })
    }

    /// What is learned, in the order of [`gradients`](Self::gradients).
    pub(super) fn parameters(&self) -> Result<Vec<Parameter>> {
        let convolutions = self.stages.iter().map(|stage| (&stage.layer, false));
        let layers = convolutions.chain(self.linears.iter().map(|layer| (layer, true)));
        let mut parameters = Vec::new();
        for (Weights { name, weight, bias }, linear) in layers {
            let weight = weight.as_detached_tensor().flatten_from(1)?;
            let bias = bias.as_detached_tensor().unsqueeze(1)?;
            for (part, values) in [("weight", weight), ("bias", bias)] {
                parameters.push(Parameter { name: format!("{name}.{part}"), values, linear });
            }
        }
        Ok(parameters)
    }

    /// Photos x 3 x side x side.
    pub(super) fn input(&self, values: Vec<f32>, side: usize) -> Result<Tensor> {
        Tensor::from_vec(values, ((), 3, side, side), &self.device)
    }

    /// Logits, photos x classes, for photos x 3 x side x side.
    pub(super) fn answer(&self, inputs: Vec<f32>, side: usize) -> Result<Vec<f32>> {
        let read = self.features(&self.input(inputs, side)?, false)?;
        let (logits, _) = self.classify(read)?;
        logits.flatten_all()?.to_vec1()
    }

    /// The value of `loss`, a function of the logits, and its gradients by all parameters.
    pub(super) fn gradients(
        &self,
        input: &Tensor,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<(f32, Vec<Gradient>)> {
        let features = self.features(input, true)?;
        let (logits, read) = self.classify(features.detach())?;
        let logits = Var::from_tensor(&logits)?;
        let loss = loss(&logits)?;
        let mut back = loss.backward()?.remove(&logits).expect("the loss depends on the logits");

        let mut linears = Vec::new();
        for (layer, inputs) in self.linears.iter().zip(read).rev() {
            let before = back.matmul(&layer.weight.as_detached_tensor())?;
            linears.push(Gradient::Whole(back.sum(0)?.unsqueeze(1)?));
            let alive = inputs.gt(&inputs.zeros_like()?)?.to_dtype(inputs.dtype())?;
            linears.push(Gradient::Product { outputs: back, inputs });
            back = (before * alive)?;
        }
        let mut of = (features * back)?.sum_all()?.backward()?;
        let mut gradients = Vec::new();
        for Stage { layer, .. } in &self.stages {
            let mut take = |by: &Var| of.remove(by).expect("the features depend on every filter");
            gradients.push(Gradient::Whole(take(&layer.weight).flatten_from(1)?));
            gradients.push(Gradient::Whole(take(&layer.bias).unsqueeze(1)?));
        }
        gradients.extend(linears.into_iter().rev());
        Ok((loss.to_scalar()?, gradients))
    }

    /// Photos x what the first linear layer reads.
    fn features(&self, input: &Tensor, tracked: bool) -> Result<Tensor> {
        let mut map = input.clone();
        for (index, stage) in self.stages.iter().enumerate() {
            map = self.convolution(&map, stage, index, tracked)?;
            for _ in 1..stage.poolings {
                map = pool(&map)?;
            }
        }
        let (photos, channels, height, width) = map.dims4()?;
        if let Some(pooling) = &self.pooling {
            map = map.reshape((photos * channels, height * width))?.matmul(pooling)?;
        }
        map.reshape((photos, ()))
    }

    /// With ReLU and one pooling, if there is any.
    fn convolution(
        &self,
        map: &Tensor,
        stage: &Stage,
        index: usize,
        tracked: bool,
    ) -> Result<Tensor> {
        let [weight, bias] = [&stage.layer.weight, &stage.layer.bias].map(|values| match tracked {
            true => values.as_tensor().clone(),
            false => values.as_detached_tensor(),
        });
        let pooled = stage.poolings > 0;
        if self.plain {
            let sums = map.conv2d(&weight, 1, 1, 1, 1)?;
            let map = sums.broadcast_add(&bias.reshape((1, (), 1, 1))?)?.relu()?;
            return if pooled { pool(&map) } else { Ok(map) };
        }
        map.apply_op3(&weight, &bias, Convolution::new(&self.engine, index > 0, pooled))
    }

    /// The logits, and what each linear layer reads.
    fn classify(&self, mut read: Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let mut inputs = Vec::new();
        for layer in &self.linears {
            if !inputs.is_empty() {
                read = read.relu()?;
            }
            let weight = layer.weight.as_detached_tensor().t()?;
            let outputs = read.matmul(&weight)?.broadcast_add(&layer.bias.as_detached_tensor())?;
            inputs.push(std::mem::replace(&mut read, outputs));
        }
        Ok((read, inputs))
    }
}

/// 2x2 max-pooling. candle's own gives a quarter of the gradient back.
fn pool(map: &Tensor) -> Result<Tensor> {
    let (photos, channels, height, width) = map.dims4()?;
    let pairs = map.reshape((photos * channels, height / 2, 2, width / 2, 2))?;
    pairs.max(D::Minus1)?.max(2)?.reshape((photos, channels, height / 2, width / 2))
}

/// torchvision's adaptive average pooling of `side` x `side` as a matrix to multiply with.
fn pooling(side: usize, device: &Device) -> Result<Option<Tensor>> {
    if side == POOLED_SIDE {
        return Ok(None);
    }
    let span = |at: usize| at * side / POOLED_SIDE..((at + 1) * side).div_ceil(POOLED_SIDE);
    let columns = POOLED_SIDE * POOLED_SIDE;
    let mut matrix = vec![0.0f32; side * side * columns];
    for column in 0..columns {
        let (rows, lines) = (span(column / POOLED_SIDE), span(column % POOLED_SIDE));
        let share = 1.0 / (rows.len() * lines.len()) as f32;
        for (y, x) in rows.flat_map(|y| lines.clone().map(move |x| (y, x))) {
            matrix[(y * side + x) * columns + column] = share;
        }
    }
    Tensor::from_vec(matrix, (side * side, columns), device).map(Some)
}

#[cfg(test)]
mod tests {
    use candle_core::IndexOp;

    use super::*;
    use crate::random::Random;
    use crate::tiny;
    use crate::topology::LINEARS;

    fn network() -> Network<'static> {
        let topology = tiny::topology(8);
        let mut tensors = tiny::tensors(&topology);
        let mut layer = |name: String| {
            let mut take = |part| tensors.remove(&format!("{name}.{part}")).unwrap();
            Layer { weight: take("weight"), bias: take("bias"), name }
        };
        Network {
            convolutions: CONVOLUTIONS.map(|at| layer(format!("features.{at}"))).into(),
            linears: LINEARS.map(|at| layer(format!("classifier.{at}"))).into(),
        }
    }

    /// Numbers between -1 and 1, photos x 3 x side x side.
    fn input(photos: usize, side: usize) -> Vec<f32> {
        let mut random = Random::new(7);
        (0..photos * 3 * side * side).map(|_| 2.0 * random.uniform() - 1.0).collect()
    }

    fn loss(logits: &Tensor) -> Result<Tensor> {
        (logits.narrow(1, 0, 1)? * 0.5)?.add(&logits.narrow(1, 3, 1)?.sqr()?)?.sum_all()
    }

    fn whole(gradient: &Gradient, parameter: &Parameter) -> Vec<f32> {
        let (rows, _) = parameter.values.dims2().unwrap();
        gradient.rows(0, rows).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn our_operations_and_candles_give_the_same_gradients() {
        let network = network();
        let place = Place::new(Computer::Cpu, &Engine::new(2)).unwrap();
        for side in [32, 64] {
            let mut model = Model::new(&network, side, &place).unwrap();
            let parameters = model.parameters().unwrap();
            let input = model.input(input(3, side), side).unwrap();
            let (value, found) = model.gradients(&input, loss).unwrap();
            model.plain = true;
            let (plain, expected) = model.gradients(&input, loss).unwrap();
            assert!((value - plain).abs() < 1e-4 * plain.abs(), "{value} {plain}");
            assert_eq!(found.len(), parameters.len());
            for ((parameter, found), expected) in parameters.iter().zip(&found).zip(&expected) {
                let (found, expected) = (whole(found, parameter), whole(expected, parameter));
                let squares = |values: &mut dyn Iterator<Item = f32>| -> f32 {
                    values.map(|value| value * value).sum()
                };
                let error = squares(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
                let size = squares(&mut expected.iter().copied());
                let distance = (error / size).sqrt();
                assert!(size > 0.0 && distance < 0.02, "{}: {distance}", parameter.name);
            }
        }
    }

    #[test]
    fn gradients_are_those_that_differences_show() {
        const STEP: f64 = 1e-4;
        let network = network();
        let place = Place::new(Computer::Cpu, &Engine::new(2)).unwrap();
        let model = Model::new(&network, 32, &place).unwrap();
        let input = model.input(input(2, 32), 32).unwrap();
        let value = || model.gradients(&input, loss).unwrap().0;
        let (_, gradients) = model.gradients(&input, loss).unwrap();
        for (parameter, gradient) in model.parameters().unwrap().iter().zip(gradients) {
            let (rows, _) = parameter.values.dims2().unwrap();
            let gradient = gradient.rows(0, rows).unwrap();
            let length = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
            let length = f64::from(length.to_scalar::<f32>().unwrap());
            let step = (gradient * (STEP / length)).unwrap();
            let given = parameter.values.copy().unwrap();
            let at = |values: Tensor| {
                parameter.values.slice_set(&values, 0, 0).unwrap();
                f64::from(value())
            };
            let slope = at((&given + &step).unwrap()) - at((&given - &step).unwrap());
            at(given);
            let slope = slope / (2.0 * STEP);
            let name = &parameter.name;
            assert!((slope / length - 1.0).abs() < 0.05, "{name}: {slope}, not {length}");
        }
    }

    #[test]
    fn a_layer_that_hands_its_input_on_is_left_out() {
        let mut network = network();
        for index in [3, 4] {
            let layer = &mut network.convolutions[index];
            let shape = layer.weight.shape().to_vec();
            let mut weight = vec![0.0; shape.iter().product()];
            (0..shape[0]).for_each(|filter| weight[(filter * shape[1] + filter) * 9 + 4] = 1.0);
            layer.weight = crate::tensor::Tensor::new(shape.clone(), weight);
            layer.bias = crate::tensor::Tensor::new(vec![shape[0]], vec![0.0; shape[0]]);
        }
        let place = Place::new(Computer::Cpu, &Engine::new(2)).unwrap();
        let answer = |network: &Network<'_>, layers: usize| {
            let model = Model::new(network, 32, &place).unwrap();
            assert_eq!(model.parameters().unwrap().len(), 2 * layers);
            model.answer(input(1, 32), 32).unwrap()
        };
        let short = answer(&network, 17);
        for index in [3, 4] {
            let layer = &mut network.convolutions[index];
            layer.bias = crate::tensor::Tensor::new(layer.bias.shape().to_vec(), vec![1e-9; 16]);
        }
        for (short, long) in short.iter().zip(answer(&network, 19)) {
            assert!((short - long).abs() < 1e-3 * long.abs().max(1.0), "{short} {long}");
        }
    }

    #[test]
    fn pooling_is_torchvisions() {
        for side in [1, 5, 8] {
            let matrix = pooling(side, &Device::Cpu).unwrap().unwrap();
            let sums = matrix.sum(0).unwrap().to_vec1::<f32>().unwrap();
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{side}");
        }
        let five = pooling(5, &Device::Cpu).unwrap().unwrap();
        let column = five.i((.., 8)).unwrap().to_vec1::<f32>().unwrap();
        let expected: Vec<f32> =
            (0..25).map(|at| if at / 5 < 2 && at % 5 < 2 { 0.25 } else { 0.0 }).collect();
        assert_eq!(column, expected);
        assert!(pooling(7, &Device::Cpu).unwrap().is_none());
    }
}
