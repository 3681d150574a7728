//! One trained VGG-19: its weights, checked against the topology.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::batch_norm::{self, BatchNorm};
use crate::progress::{Interrupted, Progress};
use crate::source::{self, Source, TypeError};
use crate::tensor::Tensor;
use crate::topology::{CONVOLUTIONS, LINEARS, POOLED_SIDE, Topology};

/// Weights and biases, each layer fitting the one before it.
#[derive(Clone, Debug)]
pub struct Network<'a> {
    /// The 16 convolutions; weights are OIHW.
    pub convolutions: Vec<Layer<'a>>,
    /// The 3 linear layers; weights are outputs x inputs, those of the first ordered by channel,
    /// row and column of the last feature map.
    pub linears: Vec<Layer<'a>>,
}

/// One layer that has weights.
#[derive(Clone, Debug)]
pub struct Layer<'a> {
    /// torchvision's name, such as `features.0`.
    pub name: String,
    /// OIHW, or outputs x inputs.
    pub weight: Tensor<'a>,
    /// One number per output.
    pub bias: Tensor<'a>,
}

/// Why tensors are not a usable VGG-19. Each names the first tensor that does not fit.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// It is another network, or names differ from torchvision's.
    #[error(
        "tensor '{name}' is missing among the {found} tensors: this is not torchvision's VGG-19"
    )]
    Missing {
        /// The tensor looked for.
        name: String,
        /// How many others there are.
        found: usize,
    },
    /// It is another network, or layers do not fit each other.
    #[error("tensor {name} has shape {found:?}, expected {expected}: this is another network")]
    Shape {
        /// The tensor, as [`Source::title`] gives it.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that would fit, `any` where several would.
        expected: String,
    },
    /// It is another network, with more layers than VGG-19.
    #[error("tensor {name} is none of VGG-19's: this is another network")]
    Unexpected {
        /// The first tensor that is too many, as [`Source::title`] gives it.
        name: String,
    },
    /// Numbers are of a type that weights do not have: convert the file.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// Training diverged or the file is damaged: use another.
    #[error("tensor '{name}' has the value {value} at index {index}: every weight must be finite")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Position of the first such value, counted row-major.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl<'a> Network<'a> {
    /// Finds the layers in `source` by torchvision's names. Reads shapes, not weights: for those
    /// see [`check_finite`](Self::check_finite). Batch norms, if there are any, are folded into the
    /// convolutions before them, which are then in memory.
    ///
    /// # Errors
    /// [`NetworkError`] for the first tensor, in the order of the layers, that does not fit.
    pub fn read(source: &'a Source) -> Result<Self, NetworkError> {
        let mut reader = Reader { source, read: BTreeSet::new() };
        let mut network = Self { convolutions: Vec::new(), linears: Vec::new() };
        let is_normalized = batch_norm::is_in(source);
        let mut channels = 3;
        for (i, index) in CONVOLUTIONS.into_iter().enumerate() {
            let expected = [None, Some(channels), Some(3), Some(3)];
            let name = format!("features.{index}");
            let layer = if is_normalized {
                reader.normalized(i, name, &expected)?
            } else {
                reader.layer(name, &expected)?
            };
            channels = layer.outputs();
            network.convolutions.push(layer);
        }
        let mut inputs = channels * POOLED_SIDE * POOLED_SIDE;
        for index in LINEARS {
            let expected = [None, Some(inputs)];
            let layer = reader.layer(format!("classifier.{index}"), &expected)?;
            inputs = layer.outputs();
            network.linears.push(layer);
        }
        match source.names().find(|name| !reader.read.contains(*name)) {
            Some(name) => Err(NetworkError::Unexpected { name: source.title(name) }),
            None => Ok(network),
        }
    }

    /// All layers in the order of computation.
    pub fn layers(&self) -> impl Iterator<Item = &Layer<'a>> {
        self.convolutions.iter().chain(&self.linears)
    }

    /// All tensors by torchvision's names.
    pub fn tensors(&self) -> BTreeMap<String, Tensor<'a>> {
        let of = |layer: &Layer<'a>| {
            let name = |part| format!("{}.{part}", layer.name);
            [(name("weight"), layer.weight.clone()), (name("bias"), layer.bias.clone())]
        };
        self.layers().flat_map(of).collect()
    }

    /// The widths.
    pub fn topology(&self) -> Topology {
        Topology {
            channels: std::array::from_fn(|i| self.convolutions[i].outputs()),
            hidden: std::array::from_fn(|i| self.linears[i].outputs()),
            classes: self.linears[2].outputs(),
        }
    }

    /// Reads every weight and bias, and refuses NaN and infinities.
    ///
    /// # Errors
    /// [`NetworkError::NotFinite`] for the first one, or [`NetworkError::Interrupted`].
    pub fn check_finite(&self, progress: &mut dyn Progress) -> Result<(), NetworkError> {
        const PIECE: usize = 1 << 18;
        for layer in self.layers() {
            for (part, tensor) in [("weight", &layer.weight), ("bias", &layer.bias)] {
                for (piece, values) in tensor.chunks(PIECE).enumerate() {
                    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                        return Err(NetworkError::NotFinite {
                            name: format!("{}.{part}", layer.name),
                            index: piece * PIECE + at,
                            value: values[at],
                        });
                    }
                    progress.advance(4 * values.len() as u64)?;
                }
            }
        }
        Ok(())
    }
}

impl Layer<'_> {
    /// Output channels or outputs.
    pub fn outputs(&self) -> usize {
        self.bias.shape()[0]
    }
}

/// A source, and which of its tensors were read.
struct Reader<'a> {
    source: &'a Source,
    read: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn layer(
        &mut self,
        name: String,
        expected: &[Option<usize>],
    ) -> Result<Layer<'a>, NetworkError> {
        let weight = self.tensor(format!("{name}.weight"), expected)?;
        let bias = self.tensor(format!("{name}.bias"), &[Some(weight.shape()[0])])?;
        Ok(Layer { name, weight, bias })
    }

    /// Convolution number `i` with the batch norm behind it folded in.
    fn normalized(
        &mut self,
        i: usize,
        name: String,
        expected: &[Option<usize>],
    ) -> Result<Layer<'a>, NetworkError> {
        let [convolution, norm] = batch_norm::modules(i).map(|index| format!("features.{index}"));
        let weight = self.tensor(format!("{convolution}.weight"), expected)?;
        let per_channel = [Some(weight.shape()[0])];
        let bias = self.optional(format!("{convolution}.bias"), &per_channel)?;
        let mut parameter = |part| self.tensor(format!("{norm}.{part}"), &per_channel);
        let parameters = BatchNorm {
            scale: parameter("weight")?,
            shift: parameter("bias")?,
            mean: parameter("running_mean")?,
            variance: parameter("running_var")?,
        };
        let epsilon = self.optional(format!("{norm}.{}", source::EPSILON), &[Some(1)])?;
        self.read.insert(format!("{norm}.num_batches_tracked"));
        Ok(parameters.fold(name, &weight, bias.as_ref(), epsilon.as_ref()))
    }

    fn tensor(
        &mut self,
        name: String,
        expected: &[Option<usize>],
    ) -> Result<Tensor<'a>, NetworkError> {
        match self.optional(name.clone(), expected)? {
            Some(tensor) => Ok(tensor),
            None => Err(NetworkError::Missing { name, found: self.source.names().count() }),
        }
    }

    fn optional(
        &mut self,
        name: String,
        expected: &[Option<usize>],
    ) -> Result<Option<Tensor<'a>>, NetworkError> {
        let Some(tensor) = self.source.tensor(&name)? else {
            return Ok(None);
        };
        let shape = tensor.shape();
        let fits = shape.len() == expected.len()
            && (shape.iter().zip(expected)).all(|(&found, expected)| match expected {
                Some(expected) => found == *expected,
                None => found > 0,
            });
        if fits {
            self.read.insert(name);
            return Ok(Some(tensor));
        }
        let expected: Vec<String> = (expected.iter())
            .map(|length| length.map_or("any".to_owned(), |length| length.to_string()))
            .collect();
        Err(NetworkError::Shape {
            name: self.source.title(&name),
            found: shape.to_owned(),
            expected: format!("[{}]", expected.join(", ")),
        })
    }
}
