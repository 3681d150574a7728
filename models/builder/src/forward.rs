//! Running a float32 network layer by layer, with the daemon's kernels, to see what lies between.
//!
//! Owns the way from a photo to any layer's input or output. Knows nothing of why they are looked
//! at. The only user of crate vggd-kernels besides fine-tuning.

use vggd::model::Engine;
use vggd_kernels::convolution::Algorithm;
use vggd_kernels::layout::{CHANNEL_BLOCK, blocked_len, unblock};
use vggd_kernels::{Conv3x3, Direct3x3, Fuse, Precision};

use crate::network::{Layer, Network};
use crate::regression::times_transposed;
use crate::scale::windows;
use crate::topology::{CONVOLUTIONS, POOLED, POOLED_SIDE};

/// What flows between two convolutions.
#[derive(Clone, Debug)]
pub struct Map {
    /// How many channels.
    pub channels: usize,
    /// Height and width.
    pub side: usize,
    /// `[C / 16, side, side, 16]`, the last block filled up with zeros; an input image is planar.
    values: Vec<f32>,
    planar: bool,
}

impl Map {
    /// A normalised photo, 3 x side x side.
    ///
    /// # Panics
    /// If the length is not that of a square of three channels.
    pub fn image(values: Vec<f32>, side: usize) -> Self {
        assert_eq!(values.len(), 3 * side * side);
        Self { channels: 3, side, values, planar: true }
    }

    /// The numbers as they lie in memory.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values)
    }

    /// The numbers as they lie in memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.values)
    }

    /// The numbers as they lie in memory.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Channels x side x side.
    pub fn planar(&self) -> Vec<f32> {
        if self.planar {
            return self.values.clone();
        }
        let mut planar = vec![0.0; self.channels * self.side * self.side];
        unblock(self.channels, self.side * self.side, &self.values, &mut planar);
        planar
    }

    /// Value of `channel` at row `y` and column `x`.
    pub fn at(&self, channel: usize, y: usize, x: usize) -> f32 {
        let pixels = self.side * self.side;
        let pixel = y * self.side + x;
        if self.planar {
            return self.values[channel * pixels + pixel];
        }
        let (block, lane) = (channel / CHANNEL_BLOCK, channel % CHANNEL_BLOCK);
        self.values[(block * pixels + pixel) * CHANNEL_BLOCK + lane]
    }

    /// All channels at row `y` and column `x`.
    pub fn pixel(&self, y: usize, x: usize, to: &mut [f32]) {
        for (channel, value) in to.iter_mut().enumerate() {
            *value = self.at(channel, y, x);
        }
    }

    /// What a filter centred at row `y` and column `x` sees, in the order of its weights:
    /// channels x 3 x 3, zero beyond the border.
    pub fn patch(&self, y: usize, x: usize, to: &mut [f32]) {
        let side = self.side;
        for (ky, kx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
            let tap = ky * 3 + kx;
            let (y, x) = ((y + ky).wrapping_sub(1), (x + kx).wrapping_sub(1));
            if y >= side || x >= side {
                to[tap..].iter_mut().step_by(9).for_each(|value| *value = 0.0);
            } else if self.planar {
                let values = self.values[y * side + x..].iter().step_by(side * side);
                to[tap..].iter_mut().step_by(9).zip(values).for_each(|(to, from)| *to = *from);
            } else {
                let blocks = self.values.chunks(side * side * CHANNEL_BLOCK);
                for (block, channels) in blocks.zip(to.chunks_mut(9 * CHANNEL_BLOCK)) {
                    let lanes = &block[(y * side + x) * CHANNEL_BLOCK..][..CHANNEL_BLOCK];
                    for (to, from) in channels[tap..].iter_mut().step_by(9).zip(lanes) {
                        *to = *from;
                    }
                }
            }
        }
    }
}

/// A convolution ready to run.
pub struct Convolution {
    kernel: Kernel,
    outputs: usize,
    pooled: bool,
}

enum Kernel {
    Image(Direct3x3),
    Blocked(Conv3x3),
}

/// What of a convolution is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// What its bias is added to, and nothing after it.
    Sum,
    /// What the next layer reads: after ReLU, and after the pooling where there is one.
    Activation,
}

impl Convolution {
    /// Prepares convolution number `index` (0 to 15) of a network for an input of `input_side`.
    pub fn new(engine: &Engine, layer: &Layer<'_>, index: usize, input_side: usize) -> Self {
        let [outputs, inputs] = [layer.weight.shape()[0], layer.weight.shape()[1]];
        let (weight, bias) = (layer.weight.values(), layer.bias.values());
        let side = side_of(index, input_side);
        let kernel = if index == 0 {
            Kernel::Image(Direct3x3::new(engine.isa(), outputs, inputs, &weight, &bias))
        } else {
            let algorithm = Algorithm::choose(engine.isa(), Precision::Single, inputs, side, side);
            Kernel::Blocked(Conv3x3::new(engine.isa(), algorithm, outputs, inputs, &weight, &bias))
        };
        Self { kernel, outputs, pooled: POOLED.contains(&CONVOLUTIONS[index]) }
    }

    /// Runs it.
    ///
    /// # Panics
    /// If `input` has another number of channels.
    pub fn run(&self, engine: &Engine, input: &Map, take: Take) -> Map {
        let side = input.side;
        let relu = take == Take::Activation;
        match &self.kernel {
            Kernel::Image(kernel) => {
                let mut values = vec![0.0; blocked_len(self.outputs, side, side)];
                let mut scratch = vec![0.0; kernel.scratch_len(side, side)];
                kernel.run(engine, &input.values, side, side, &mut values, relu, &mut scratch);
                Map { channels: self.outputs, side, values, planar: false }
            }
            Kernel::Blocked(kernel) => {
                let fuse = Fuse { relu, pool: relu && self.pooled };
                let output = if fuse.pool { side / 2 } else { side };
                let mut values = vec![0.0; blocked_len(self.outputs, output, output)];
                let mut scratch = vec![0.0; kernel.scratch_len(side, side, engine.threads())];
                kernel.run(engine, &input.values, side, side, &mut values, fuse, &mut scratch);
                Map { channels: self.outputs, side: output, values, planar: false }
            }
        }
    }
}

/// Height and width of the input of convolution number `index`.
pub fn side_of(index: usize, input_side: usize) -> usize {
    let pools = CONVOLUTIONS[..index].iter().filter(|index| POOLED.contains(index)).count();
    input_side >> pools
}

/// All convolutions of a network.
pub fn convolutions(engine: &Engine, network: &Network<'_>, input_side: usize) -> Vec<Convolution> {
    (network.convolutions.iter().enumerate())
        .map(|(index, layer)| Convolution::new(engine, layer, index, input_side))
        .collect()
}

/// `image`, or what some layer gives, after all of `layers`, which follow it.
pub fn run(engine: &Engine, layers: &[Convolution], image: &Map) -> Map {
    let mut map = None;
    for layer in layers {
        map = Some(layer.run(engine, map.as_ref().unwrap_or(image), Take::Activation));
    }
    map.unwrap_or_else(|| image.clone())
}

/// The last feature map as the first linear layer reads it: channels x 7 x 7, averaged from or
/// repeated to that size as torchvision's adaptive pooling does.
pub fn pooled(map: &Map) -> Vec<f32> {
    let planar = map.planar();
    if map.side == POOLED_SIDE {
        return planar;
    }
    let windows = windows(map.side);
    let mut pooled = Vec::with_capacity(map.channels * POOLED_SIDE * POOLED_SIDE);
    for channel in planar.chunks(map.side * map.side) {
        for (rows, columns) in windows.iter().flat_map(|y| windows.iter().map(move |x| (y, x))) {
            let count = rows.len() * columns.len();
            let sum: f32 = (rows.clone())
                .flat_map(|y| columns.clone().map(move |x| (y, x)))
                .map(|(y, x)| channel[y * map.side + x])
                .sum();
            pooled.push(sum / count as f32);
        }
    }
    pooled
}

/// Logits of several photos at once, row-major, from their last feature maps as [`pooled`] gives
/// them, one after the other. Reads the weights of the linear layers once.
///
/// # Panics
/// If the maps are not as long as the first layer has columns.
pub fn classify(network: &Network<'_>, pooled: &[f32]) -> Vec<f32> {
    let rows = pooled.len() / network.linears[0].weight.shape()[1];
    let mut x = pooled.to_vec();
    for (index, layer) in network.linears.iter().enumerate() {
        x = linear(layer, &x, rows);
        if index < 2 {
            x.iter_mut().for_each(|value| *value = value.max(0.0));
        }
    }
    x
}

/// What a linear layer gives for `rows` rows of inputs, row-major, before anything after it.
///
/// # Panics
/// If a row is not as long as the layer has columns.
pub fn linear(layer: &Layer<'_>, x: &[f32], rows: usize) -> Vec<f32> {
    affine(&layer.weight.values(), &layer.bias.values(), x, rows)
}

/// X W^T + b for `rows` rows of inputs, row-major.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn affine(weight: &[f32], bias: &[f32], x: &[f32], rows: usize) -> Vec<f32> {
    let mut y = times_transposed(x, rows, weight, bias.len());
    for row in y.chunks_mut(bias.len()) {
        row.iter_mut().zip(bias.iter()).for_each(|(value, bias)| *value += bias);
    }
    y
}
