//! What variants are made of: tensors of a network, or computed from them, in weight files.
//!
//! A file holds what the same variants need, so that none maps what it does not read, and there is
//! each file once: a group of tensors that was written before is referred to. Owns how a group is
//! written; knows no graph.

use std::collections::HashMap;

use vggd::manifest::WeightFile;

use crate::calibrate::{Int8, Scale};
use crate::network::Layer;
use crate::progress::Progress;
use crate::quantize::{GROUP, quantize, round};
use crate::scale::Fold;
use crate::set::{SetWriter, WriteError};
use crate::tensor::{Tensor, narrow};
use crate::weights::{External, WeightWriter};

/// Numbers copied at a time.
const PIECE: usize = 1 << 18;

/// Weights and bias of a convolution.
#[derive(Clone, Debug)]
pub enum Convolution {
    /// As it is.
    Float {
        /// OIHW.
        weight: FloatWeight,
        /// One number per output channel.
        bias: External,
    },
    /// As [`crate::calibrate`] makes it.
    Int8 {
        /// OIHW.
        weight: External,
        /// One float32 per output channel.
        scale: External,
        /// One int32 per output channel.
        bias: External,
        /// What it reads.
        input: Scale,
        /// What it gives.
        output: Scale,
    },
}

/// Weights that are computed with in float32.
#[derive(Clone, Debug)]
pub enum FloatWeight {
    /// Stored in float32.
    Single(External),
    /// Stored in float16.
    Half(External),
    /// A convolution's, stored as [`crate::quantize`] makes it.
    Int8 {
        /// OIHW.
        values: External,
        /// One per filter.
        scales: External,
    },
}

impl FloatWeight {
    /// Where they are.
    pub fn external(&self) -> &External {
        match self {
            Self::Single(weight) | Self::Half(weight) | Self::Int8 { values: weight, .. } => weight,
        }
    }

    /// Where their scales are, if they have any.
    pub fn scales(&self) -> Option<&External> {
        match self {
            Self::Single(_) | Self::Half(_) => None,
            Self::Int8 { scales, .. } => Some(scales),
        }
    }
}

/// Weights of a linear layer, outputs x inputs.
#[derive(Clone, Debug)]
pub enum LinearWeight {
    /// As they are.
    Float(FloatWeight),
    /// As [`crate::quantize`] makes them.
    Int8 {
        /// Groups x [`GROUP`]; a row's groups follow each other.
        values: External,
        /// One per group.
        scales: External,
    },
}

/// How the numbers of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// float32.
    Float32,
    /// float16, computed with in float32.
    Float16,
    /// int8 with a scale per filter, computed with in float32; of convolutions only.
    Widened,
    /// int8.
    Int8,
}

impl Precision {
    /// What manifests call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Widened => "int8-float32",
            Self::Int8 => "int8",
        }
    }

    /// What is put into names of files.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Float32 => "",
            Self::Float16 => ".float16",
            Self::Widened | Self::Int8 => ".int8",
        }
    }

    /// The one that manifests call so.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Float32, Self::Float16, Self::Widened, Self::Int8];
        all.into_iter().find(|precision| precision.name() == name)
    }
}

/// Writes parts into a set, and keeps account of the files.
pub struct PartWriter<'a> {
    set: &'a SetWriter,
    progress: &'a mut dyn Progress,
    files: Vec<WeightFile>,
    /// Parts by what they were made of.
    written: HashMap<Origin, Vec<External>>,
}

/// What a group of tensors is made of: where in memory its layers are, and what was done to them.
type Origin = (Vec<usize>, Option<Precision>, usize);

impl<'a> PartWriter<'a> {
    /// Goes on with a set that already has `files`.
    pub fn new(set: &'a SetWriter, files: Vec<WeightFile>, progress: &'a mut dyn Progress) -> Self {
        Self { set, progress, files, written: HashMap::new() }
    }

    /// The float convolutions, in file `{name}.bin`; where their weights are int8, those in
    /// `{name}.int8.bin` and the biases in `{name}.bias.bin`.
    ///
    /// # Errors
    /// [`WriteError`], as from every method here.
    ///
    /// # Panics
    /// If `precision` is int8.
    pub fn convolutions(
        &mut self,
        name: &str,
        layers: &[Layer<'_>],
        precision: Precision,
    ) -> Result<Vec<Convolution>, WriteError> {
        if precision == Precision::Widened {
            let biases = self.biases(&format!("{name}.bias.bin"), layers)?;
            let origin = (addresses(layers), Some(precision), 0);
            let weights = self.group(&format!("{name}.int8.bin"), Some(origin), |writer| {
                let mut parts = Vec::new();
                for Layer { name, weight, .. } in layers {
                    let (mut values, mut scales) = (Vec::new(), Vec::new());
                    weight.rows().for_each(|row| scales.push(round(&row, &mut values)));
                    parts.extend(put_filters(writer, name, weight.shape(), &values, &scales)?);
                }
                Ok(parts)
            })?;
            let (pairs, _) = weights.as_chunks::<2>();
            let weights = pairs.iter().map(|[values, scales]| FloatWeight::Int8 {
                values: values.clone(),
                scales: scales.clone(),
            });
            let layers = weights.zip(biases);
            return Ok(layers.map(|(weight, bias)| Convolution::Float { weight, bias }).collect());
        }
        let origin = (addresses(layers), Some(precision), 0);
        let parts =
            self.group(&format!("{name}{}.bin", precision.suffix()), Some(origin), |writer| {
                let mut parts = Vec::new();
                for layer in layers {
                    parts.push(put(writer, layer, precision)?);
                    parts.push(copy(writer, &layer.name, "bias", &layer.bias)?);
                }
                Ok(parts)
            })?;
        let (pairs, _) = parts.as_chunks::<2>();
        let layers = pairs.iter().map(|[weight, bias]| Convolution::Float {
            weight: float(weight.clone(), precision),
            bias: bias.clone(),
        });
        Ok(layers.collect())
    }

    /// Convolutions in integers: weights in file `{name}.int8.bin`, biases, which depend on what is
    /// read, in `{name}{side}.int8.bias.bin`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn integers(
        &mut self,
        name: &str,
        side: &str,
        layers: &[Int8],
    ) -> Result<Vec<Convolution>, WriteError> {
        let weights = self.group(&format!("{name}.int8.bin"), None, |writer| {
            let mut parts = Vec::new();
            for Int8 { name, channels: [outputs, inputs], weight, scale, .. } in layers {
                let shape = [*outputs, *inputs, 3, 3];
                parts.extend(put_filters(writer, name, &shape, weight, scale)?);
            }
            Ok(parts)
        })?;
        let biases = self.group(&format!("{name}{side}.int8.bias.bin"), None, |writer| {
            let put = |layer: &Int8| {
                let name = format!("{}.bias.int32", layer.name);
                writer.put::<i32, _>(name, vec![layer.bias.len()], [&layer.bias].into_iter())
            };
            layers.iter().map(put).collect()
        })?;
        let (pairs, _) = weights.as_chunks::<2>();
        let layers = layers.iter().zip(pairs).zip(biases);
        let int8 = |((layer, [weight, scale]), bias): ((&Int8, &[External; 2]), External)| {
            Convolution::Int8 {
                weight: weight.clone(),
                scale: scale.clone(),
                bias,
                input: layer.input,
                output: layer.output,
            }
        };
        Ok(layers.map(int8).collect())
    }

    /// The biases of `layers`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn biases(
        &mut self,
        file: &str,
        layers: &[Layer<'_>],
    ) -> Result<Vec<External>, WriteError> {
        let addresses = layers.iter().map(|layer| layer.bias.address()).collect();
        self.group(file, Some((addresses, None, 0)), |writer| {
            (layers.iter()).map(|layer| copy(writer, &layer.name, "bias", &layer.bias)).collect()
        })
    }

    /// The weights of linear `layers`, the first of which may have a pooling folded in.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// If the layers' inputs do not divide into groups and `precision` is int8.
    pub fn linears(
        &mut self,
        file: &str,
        layers: &[Layer<'_>],
        precision: Precision,
        fold: Option<&Fold>,
    ) -> Result<Vec<LinearWeight>, WriteError> {
        let positions = fold.map_or(0, |fold| fold.columns(1));
        let origin = (addresses(layers), Some(precision), positions);
        let parts = self.group(file, Some(origin), |writer| {
            let mut parts = Vec::new();
            for (index, layer) in layers.iter().enumerate() {
                let folded = fold.filter(|_| index == 0).map(|fold| folded(layer, fold));
                let layer = folded.as_ref().unwrap_or(layer);
                match precision {
                    Precision::Int8 => parts.extend(put_groups(writer, layer)?),
                    precision => parts.push(put(writer, layer, precision)?),
                }
            }
            Ok(parts)
        })?;
        Ok(match precision {
            Precision::Int8 => {
                let (pairs, _) = parts.as_chunks::<2>();
                let int8 = |[values, scales]: &[External; 2]| LinearWeight::Int8 {
                    values: values.clone(),
                    scales: scales.clone(),
                };
                pairs.iter().map(int8).collect()
            }
            precision => {
                parts.into_iter().map(|part| LinearWeight::Float(float(part, precision))).collect()
            }
        })
    }

    /// All weight files so far, those that were there before first.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// All weight files, those that were there before first.
    pub fn finish(self) -> Vec<WeightFile> {
        self.files
    }

    /// `file`, with a number in it if there is one of that name.
    fn unused(&self, file: &str) -> String {
        let stem = file.strip_suffix(".bin").unwrap_or(file);
        let numbered = (2..).map(|number| format!("{stem}.{number}.bin"));
        let mut names = [file.to_owned()].into_iter().chain(numbered);
        names.find(|name| self.files.iter().all(|file| file.path != *name)).expect("endless")
    }

    /// Writes a file, unless there is one with the same content.
    fn group(
        &mut self,
        file: &str,
        origin: Option<Origin>,
        write: impl FnOnce(&mut WeightWriter<'_>) -> Result<Vec<External>, WriteError>,
    ) -> Result<Vec<External>, WriteError> {
        if let Some(parts) = origin.as_ref().and_then(|origin| self.written.get(origin)) {
            return Ok(parts.clone());
        }
        let file = self.unused(file);
        let mut writer = WeightWriter::create(self.set, &file, self.progress)?;
        let mut parts = write(&mut writer)?;
        let new = writer.finish()?;
        match self.files.iter().find(|file| file.sha256 == new.sha256) {
            Some(same) => {
                parts.iter_mut().for_each(|part| part.file.clone_from(&same.path));
                self.set.discard(&new.path)?;
            }
            None => self.files.push(new),
        }
        if let Some(origin) = origin {
            self.written.insert(origin, parts.clone());
        }
        Ok(parts)
    }
}

fn addresses(layers: &[Layer<'_>]) -> Vec<usize> {
    layers.iter().flat_map(|layer| [layer.weight.address(), layer.bias.address()]).collect()
}

fn float(weight: External, precision: Precision) -> FloatWeight {
    match precision {
        Precision::Float16 => FloatWeight::Half(weight),
        _ => FloatWeight::Single(weight),
    }
}

fn folded(layer: &Layer<'_>, fold: &Fold) -> Layer<'static> {
    let channels = layer.weight.shape()[1] / fold.row_length();
    let shape = vec![layer.outputs(), fold.columns(channels)];
    let values = layer.weight.rows().flat_map(|row| fold.row(&row)).collect();
    let bias = Tensor::new(layer.bias.shape().to_owned(), layer.bias.values().into_owned());
    Layer { name: layer.name.clone(), weight: Tensor::new(shape, values), bias }
}

fn copy(
    writer: &mut WeightWriter<'_>,
    layer: &str,
    part: &str,
    tensor: &Tensor<'_>,
) -> Result<External, WriteError> {
    let shape = tensor.shape().to_owned();
    writer.put::<f32, _>(format!("{layer}.{part}"), shape, tensor.chunks(PIECE))
}

fn put(
    writer: &mut WeightWriter<'_>,
    layer: &Layer<'_>,
    precision: Precision,
) -> Result<External, WriteError> {
    match precision {
        Precision::Float32 => copy(writer, &layer.name, "weight", &layer.weight),
        Precision::Float16 => {
            let shape = layer.weight.shape().to_owned();
            let pieces = layer.weight.chunks(PIECE).map(|piece| narrow(&piece));
            writer.put(format!("{}.weight.float16", layer.name), shape, pieces)
        }
        Precision::Widened | Precision::Int8 => unreachable!("int8 has forms of its own"),
    }
}

/// Filters in int8, and a scale for each.
fn put_filters(
    writer: &mut WeightWriter<'_>,
    layer: &str,
    shape: &[usize],
    values: &[i8],
    scales: &[f32],
) -> Result<[External; 2], WriteError> {
    let name = format!("{layer}.weight.int8");
    let values = writer.put::<i8, _>(name, shape.to_owned(), [values].into_iter())?;
    let name = format!("{layer}.weight.scale");
    let scales = writer.put::<f32, _>(name, vec![scales.len()], [scales].into_iter())?;
    Ok([values, scales])
}

fn put_groups(
    writer: &mut WeightWriter<'_>,
    layer: &Layer<'_>,
) -> Result<[External; 2], WriteError> {
    let groups = layer.weight.shape().iter().product::<usize>() / GROUP;
    let mut scales = Vec::with_capacity(groups);
    let rows = layer.weight.rows().map(|row| {
        let mut values = Vec::with_capacity(row.len());
        quantize(&row, &mut values, &mut scales);
        values
    });
    let name = format!("{}.weight.int8", layer.name);
    let values = writer.put::<i8, _>(name, vec![groups, GROUP], rows)?;
    let name = format!("{}.weight.scale", layer.name);
    let scales = writer.put::<f32, _>(name, vec![groups], [scales].into_iter())?;
    Ok([values, scales])
}
