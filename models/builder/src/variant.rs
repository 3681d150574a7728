//! One variant: a network in the form in which it is stored and run.

use std::collections::BTreeMap;

use vggd::manifest::{Recipe, Variant, WeightFile};

use crate::calibrate::Int8;
use crate::network::{Layer, Network};
use crate::onnx::{Graph, Linear};
use crate::parts::{PartWriter, Precision};
use crate::progress::Progress;
use crate::quantize::GROUP;
use crate::scale::Fold;
use crate::set::{SetWriter, WriteError};
use crate::tensor::Tensor;
use crate::topology::{BASELINE_SIDE, POOLED_SIDE, REDUCTION};

/// In which form a network is stored, and what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Input side in pixels.
    pub side: usize,
    /// Of the convolutions.
    pub convolutions: Precision,
    /// Of the linear layers.
    pub linears: Precision,
}

impl Form {
    /// As networks are trained.
    pub const PLAIN: Self =
        Self { side: BASELINE_SIDE, convolutions: Precision::Float32, linears: Precision::Float32 };
}

/// What a variant is called, and what it is made of.
#[derive(Clone, Debug)]
pub struct Described<'a> {
    /// Its name in the manifest.
    pub name: &'a str,
    /// What was done to the network, for people.
    pub description: String,
    /// Put before the names of weight files that no variant has yet.
    pub prefix: String,
    /// The network.
    pub network: &'a Network<'a>,
    /// The form.
    pub form: Form,
    /// The convolutions in integers, where the form wants that.
    pub integers: &'a [Int8],
    /// How it was made.
    pub recipe: Option<Recipe>,
}

/// Bytes that are written for networks in these forms, when each group of tensors is written once.
pub fn work<'a>(variants: impl Iterator<Item = (&'a Network<'a>, Form)>) -> u64 {
    let size = |precision: Precision, weights: usize, scales: usize| match precision {
        Precision::Float32 => 4 * weights,
        Precision::Float16 => 2 * weights,
        Precision::Widened | Precision::Int8 => weights + 4 * scales,
    };
    let mut groups = BTreeMap::new();
    for (network, Form { side, convolutions, linears }) in variants {
        let count = |tensor: &Tensor<'_>| tensor.shape().iter().product::<usize>();
        let own = network.linears[0].weight.address();
        let biases: usize = network.linears.iter().map(|layer| 4 * layer.outputs()).sum();
        groups.insert((own, "biases", None, 0), biases);
        let filters: usize = network.convolutions.iter().map(Layer::outputs).sum();
        let weights = network.convolutions.iter().map(|layer| count(&layer.weight)).sum();
        let stored = match convolutions {
            Precision::Widened => Precision::Int8,
            precision => precision,
        };
        groups.insert((own, "features", Some(stored.name()), 0), size(stored, weights, filters));
        let depends = if convolutions == Precision::Int8 { side } else { 0 };
        groups.insert((own, "features.bias", Some(convolutions.name()), depends), 4 * filters);
        for (index, layer) in network.linears.iter().enumerate() {
            let weights = match (index, side) {
                (0, side) if side != BASELINE_SIDE => {
                    let positions = (side / REDUCTION).pow(2);
                    count(&layer.weight) / (POOLED_SIDE * POOLED_SIDE) * positions
                }
                _ => count(&layer.weight),
            };
            let side = if index == 0 { side } else { 0 };
            let name = ["first", "second", "third"][index];
            let bytes = size(linears, weights, weights / GROUP);
            groups.insert((own, name, Some(linears.name()), side), bytes);
        }
    }
    groups.into_values().map(|bytes| bytes as u64).sum()
}

/// Writes variants into a set.
pub struct VariantWriter<'a> {
    set: &'a SetWriter,
    parts: PartWriter<'a>,
}

impl<'a> VariantWriter<'a> {
    /// Goes on with a set that already has `files`.
    pub fn new(set: &'a SetWriter, files: Vec<WeightFile>, progress: &'a mut dyn Progress) -> Self {
        Self { set, parts: PartWriter::new(set, files, progress) }
    }

    /// Writes the graph, and those weights that are not there yet.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// If the side is none that [`Fold`] takes, or the linear layers' inputs do not divide into
    /// groups where they are to be int8.
    pub fn write(&mut self, variant: &Described<'_>) -> Result<Variant, WriteError> {
        let Described { network, form, prefix, .. } = variant;
        let side = match form.side {
            BASELINE_SIDE => String::new(),
            side => format!(".{side}"),
        };
        let fold = (form.side != BASELINE_SIDE)
            .then(|| Fold::new(form.side).expect("a side that can be folded"));
        let name = format!("{prefix}features");
        let convolutions = match form.convolutions {
            Precision::Int8 => self.parts.integers(&name, &side, variant.integers)?,
            precision => self.parts.convolutions(&name, &network.convolutions, precision)?,
        };
        let biases =
            self.parts.biases(&format!("{prefix}classifier.bias.bin"), &network.linears)?;
        let (first, others) = network.linears.split_at(1);
        let (precision, kind) = (form.linears, form.linears.suffix());
        let file = format!("{prefix}classifier.0{side}{kind}.bin");
        let mut weights = self.parts.linears(&file, first, precision, fold.as_ref())?;
        let file = format!("{prefix}classifier{kind}.bin");
        weights.extend(self.parts.linears(&file, others, precision, None)?);

        let linears = (weights.into_iter().zip(biases))
            .map(|(weight, bias)| Linear { weight, bias })
            .collect();
        let graph = Graph { name: variant.name.to_owned(), side: form.side, convolutions, linears };
        self.describe(variant, &graph)
    }

    /// All weight files.
    pub fn finish(self) -> Vec<WeightFile> {
        self.parts.finish()
    }

    fn describe(&self, variant: &Described<'_>, graph: &Graph) -> Result<Variant, WriteError> {
        let written = self.set.write(&format!("{}.onnx", graph.name), &graph.encode())?;
        let weights = graph.files();
        let weight_bytes: u64 = (self.parts.files().iter())
            .filter(|file| weights.contains(&file.path.as_str()))
            .map(|file| file.bytes)
            .sum();
        let topology = variant.network.topology();
        Ok(Variant {
            name: graph.name.clone(),
            description: variant.description.clone(),
            graph: written.path,
            sha256: written.sha256,
            weights: weights.into_iter().map(str::to_owned).collect(),
            input: [1, 3, graph.side, graph.side],
            output: [1, topology.classes],
            parameters: topology.parameters(graph.side),
            macs: topology.macs(graph.side),
            bytes: written.bytes + weight_bytes,
            top1: None,
            top5: None,
            agreement: None,
            divergence: None,
            recipe: variant.recipe.clone(),
        })
    }
}
