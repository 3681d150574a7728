//! What variants are made of: tensors of a network, or computed from them, in weight files.
//!
//! A tensor is written once, and every variant that has it refers to it. A file holds what the same
//! variants need, so that none maps what it does not read. Owns the division into files; knows no
//! graph.

use vggd::manifest::WeightFile;

use crate::network::{Layer, Network};
use crate::progress::Progress;
use crate::quantize::{GROUP, quantize};
use crate::scale::Fold;
use crate::set::{SetWriter, WriteError};
use crate::tensor::Tensor;
use crate::weights::{External, WeightWriter};

/// Numbers copied at a time.
const PIECE: usize = 1 << 18;

/// Weights and bias of a convolution.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// OIHW.
    pub weight: External,
    /// One number per output channel.
    pub bias: External,
}

/// Weights of a linear layer, outputs x inputs.
#[derive(Clone, Debug)]
pub enum LinearWeight {
    /// As they are.
    Float32(External),
    /// As [`crate::quantize`] makes them.
    Int8 {
        /// Groups x [`GROUP`]; a row's groups follow each other.
        values: External,
        /// One per group.
        scales: External,
    },
}

/// Writes parts into a set, and keeps account of the files.
pub struct PartWriter<'a> {
    set: &'a SetWriter,
    progress: &'a mut dyn Progress,
    files: Vec<WeightFile>,
}

impl<'a> PartWriter<'a> {
    /// No part written yet.
    pub fn new(set: &'a SetWriter, progress: &'a mut dyn Progress) -> Self {
        Self { set, progress, files: Vec::new() }
    }

    /// The convolutions, in a file of their own.
    ///
    /// # Errors
    /// [`WriteError`], as from every method here.
    pub fn convolutions(
        &mut self,
        file: &str,
        network: &Network<'_>,
    ) -> Result<Vec<Convolution>, WriteError> {
        self.in_file(file, |writer| {
            (network.convolutions.iter())
                .map(|layer| {
                    Ok(Convolution {
                        weight: copy(writer, &layer.name, "weight", &layer.weight)?,
                        bias: copy(writer, &layer.name, "bias", &layer.bias)?,
                    })
                })
                .collect()
        })
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
        self.in_file(file, |writer| {
            (layers.iter()).map(|layer| copy(writer, &layer.name, "bias", &layer.bias)).collect()
        })
    }

    /// The weights of linear `layers` as they are.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn float32(
        &mut self,
        file: &str,
        layers: &[Layer<'_>],
    ) -> Result<Vec<LinearWeight>, WriteError> {
        self.in_file(file, |writer| {
            (layers.iter())
                .map(|layer| copy(writer, &layer.name, "weight", &layer.weight))
                .map(|weight| weight.map(LinearWeight::Float32))
                .collect()
        })
    }

    /// The weights of linear `layers` quantized.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// If the layers' inputs do not divide into groups.
    pub fn int8(
        &mut self,
        file: &str,
        layers: &[Layer<'_>],
    ) -> Result<Vec<LinearWeight>, WriteError> {
        self.in_file(file, |writer| layers.iter().map(|layer| put_int8(writer, layer)).collect())
    }

    /// The weights of the first linear layer with a pooling folded in.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn folded(
        &mut self,
        file: &str,
        layer: &Layer<'_>,
        fold: &Fold,
    ) -> Result<LinearWeight, WriteError> {
        self.in_file(file, |writer| {
            let channels = layer.weight.shape()[1] / fold.row_length();
            let shape = vec![layer.outputs(), fold.columns(channels)];
            let rows = layer.weight.rows().map(|row| fold.row(&row));
            writer
                .put::<f32, _>(format!("{}.weight", layer.name), shape, rows)
                .map(LinearWeight::Float32)
        })
    }

    /// All weight files written.
    pub fn finish(self) -> Vec<WeightFile> {
        self.files
    }

    fn in_file<T>(
        &mut self,
        file: &str,
        write: impl FnOnce(&mut WeightWriter<'_>) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        let mut writer = WeightWriter::create(self.set, file, self.progress)?;
        let parts = write(&mut writer)?;
        self.files.push(writer.finish()?);
        Ok(parts)
    }
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

fn put_int8(writer: &mut WeightWriter<'_>, layer: &Layer<'_>) -> Result<LinearWeight, WriteError> {
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
    Ok(LinearWeight::Int8 { values, scales })
}
