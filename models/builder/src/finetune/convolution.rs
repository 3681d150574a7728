//! 3x3 convolution, bias, ReLU and perhaps 2x2 max-pooling as one operation of candle, and its
//! gradients, on the CPU.
//!
//! Owns how candle's NCHW becomes what crate vggd-kernels computes with. The convolution and the
//! gradient of its input, which is a convolution with the weights turned round, are that crate's;
//! the gradient of the weights is in `weights`. Of what is pooled only the largest numbers are kept,
//! and where they were. candle's own operations are the plain twin.

mod weights;

use std::sync::{Mutex, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, bail};
use vggd::model::Engine;
use vggd_kernels::convolution::Algorithm;
use vggd_kernels::layout::CHANNEL_BLOCK;
use vggd_kernels::{Conv3x3, Fuse, Parallel, Precision};

use weights::WeightGradient;

/// The most numbers in a stack of several photos, 13 MB; less in tests, so that small maps come in
/// groups too.
const GROUP: usize = if cfg!(test) { 1 << 12 } else { 3 << 20 };

/// `relu(convolution(input, weight) + bias)`, stride 1, padding 1; weights are OIHW. For one pass
/// forward and back.
pub(super) struct Convolution {
    engine: Engine,
    /// Whether the gradient of the input is wanted.
    input_gradient: bool,
    /// Whether the largest of each 2 x 2 numbers is taken; height and width are even then.
    pooled: bool,
    /// Which of the four it was, the first of several: row x 2 + column, in the order of the
    /// output.
    places: OnceLock<Vec<u8>>,
}

impl Convolution {
    pub(super) fn new(engine: &Engine, input_gradient: bool, pooled: bool) -> Self {
        Self { engine: engine.clone(), input_gradient, pooled, places: OnceLock::new() }
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "convolution-bias-relu"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let engine = &self.engine;
        let maps = Maps::of(input_layout.shape())?;
        let input = plain(input, input_layout)?;
        let (weight, bias) = (plain(weight, weight_layout)?, plain(bias, bias_layout)?);
        let group = maps.group(bias.len());
        let kernel = group.kernel(engine, weight, bias);

        let side = if self.pooled { 2 } else { 1 };
        let (height, width) = (maps.height / side, maps.width / side);
        let photo = bias.len() * height * width;
        let mut output = vec![0.0; maps.photos * photo];
        let mut places = vec![0; if self.pooled { output.len() } else { 0 }];
        let mut places_left = &mut places[..];
        let groups = output.chunks_mut(group.photos * photo);
        for (input, output) in input.chunks(group.numbers()).zip(groups) {
            let maps = Maps { photos: input.len() / maps.numbers_of_one(), ..maps };
            let stack = Stack::of(engine, input, maps);
            let sums = stack.convolved(engine, &kernel, true);
            if self.pooled {
                let (places, left) = places_left.split_at_mut(output.len());
                sums.largest(engine, output, places);
                places_left = left;
            } else {
                sums.planar(engine, output);
            }
        }
        if self.places.set(places).is_err() {
            bail!("a convolution is for one pass");
        }
        Ok((CpuStorage::F32(output), (maps.photos, bias.len(), height, width).into()))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let engine = &self.engine;
        let maps = Maps::of(input.shape())?;
        let outputs = output.dim(1)?;
        let gradient = gradient.contiguous()?;
        let (input, input_layout) = input.storage_and_layout();
        let (weight, weight_layout) = weight.storage_and_layout();
        let (output, output_layout) = output.storage_and_layout();
        let (gradient, gradient_layout) = gradient.storage_and_layout();
        let input = on_cpu(&input, input_layout)?;
        let weight = on_cpu(&weight, weight_layout)?;
        let output = on_cpu(&output, output_layout)?;
        let gradient = on_cpu(&gradient, gradient_layout)?;
        let Some(places) = self.places.get() else { bail!("there is no way back before forward") };

        let group = maps.group(outputs);
        let turned = turned(weight, outputs, maps.channels);
        let no_bias = vec![0.0; maps.channels];
        let kernel = self
            .input_gradient
            .then(|| Maps { channels: outputs, ..group }.kernel(engine, &turned, &no_bias));
        let mut of_input = vec![0.0; if self.input_gradient { input.len() } else { 0 }];
        let mut of_weight = WeightGradient::new(engine, outputs, maps.channels);
        let mut of_bias = vec![0.0; outputs];
        let per_group = group.photos * output.len() / maps.photos;
        for (index, input) in input.chunks(group.numbers()).enumerate() {
            let photos = input.len() / maps.numbers_of_one();
            let maps = Maps { photos, channels: outputs, ..maps };
            let part = index * per_group..output.len().min((index + 1) * per_group);
            let (output, gradient) = (&output[part.clone()], &gradient[part.clone()]);
            let sums = match self.pooled {
                true => Stack::before_pooling(engine, output, gradient, &places[part], maps),
                false => Stack::before_relu(engine, output, gradient, maps),
            };
            for (total, sum) in of_bias.iter_mut().zip(sums.totals(engine)) {
                *total += sum;
            }
            if let Some(kernel) = &kernel {
                let to = &mut of_input[index * group.numbers()..][..input.len()];
                sums.convolved(engine, kernel, false).planar(engine, to);
            }
            let input = Stack::of(engine, input, Maps { channels: group.channels, ..maps });
            of_weight.add(&input, &sums)?;
        }
        let shape = (maps.photos, maps.channels, maps.height, maps.width);
        let of_input = match self.input_gradient {
            true => Some(Tensor::from_vec(of_input, shape, &Device::Cpu)?),
            false => None,
        };
        let of_bias = Tensor::from_vec(of_bias, outputs, &Device::Cpu)?;
        Ok((of_input, Some(of_weight.end()?), Some(of_bias)))
    }
}

/// The numbers of a tensor in the CPU's memory.
fn on_cpu<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => plain(storage, layout),
        _ => bail!("this operation is for the CPU"),
    }
}

/// The numbers of a contiguous tensor.
fn plain<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("this operation is for contiguous tensors"),
    }
}

/// Gives each part to one of the engine's threads: `work(index, part)`.
fn each<P: Send>(
    engine: &Engine,
    parts: impl Iterator<Item = P>,
    work: &(dyn Fn(usize, P) + Sync),
) {
    let parts: Vec<_> = parts.map(|part| Mutex::new(Some(part))).collect();
    engine.run(parts.len(), &|index| {
        let part = parts[index].lock().expect("each part is taken once").take();
        work(index, part.expect("each part is taken once"));
    });
}

/// The weights of the convolution that takes gradients from `outputs` channels back to `inputs`.
fn turned(weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let mut turned = vec![0.0; weight.len()];
    for (index, kernel) in weight.chunks_exact(9).enumerate() {
        let (output, input) = (index / inputs, index % inputs);
        let to = &mut turned[(input * outputs + output) * 9..][..9];
        to.iter_mut().zip(kernel.iter().rev()).for_each(|(to, from)| *to = *from);
    }
    turned
}

/// Shape of feature maps, NCHW.
#[derive(Clone, Copy)]
struct Maps {
    photos: usize,
    channels: usize,
    height: usize,
    width: usize,
}

impl Maps {
    fn of(shape: &Shape) -> Result<Self> {
        let (photos, channels, height, width) = shape.dims4()?;
        Ok(Self { photos, channels, height, width })
    }

    fn plane(self) -> usize {
        self.height * self.width
    }

    fn numbers_of_one(self) -> usize {
        self.channels * self.plane()
    }

    fn numbers(self) -> usize {
        self.photos * self.numbers_of_one()
    }

    /// As many of the photos as go together when the others have `channels` channels.
    fn group(self, channels: usize) -> Self {
        let most = (GROUP / (self.channels.max(channels) * self.plane())).max(1);
        Self { photos: self.photos.div_ceil(self.photos.div_ceil(most)), ..self }
    }

    /// Of a stack of these.
    fn rows(self) -> usize {
        self.photos * (self.height + 1) - 1
    }

    fn blocks(self) -> usize {
        self.channels.div_ceil(CHANNEL_BLOCK)
    }

    /// The convolution of a stack of these.
    fn kernel(self, engine: &Engine, weight: &[f32], bias: &[f32]) -> Conv3x3 {
        let (isa, channels) = (engine.isa(), self.channels);
        let algorithm =
            Algorithm::choose(isa, Precision::Single, channels, self.rows(), self.width);
        Conv3x3::new(isa, algorithm, bias.len(), channels, weight, bias)
    }
}

/// Photos below each other with a row of zeros between them, so that weights are read once for all
/// of them: `[C / 16, rows, W, 16]`.
struct Stack {
    maps: Maps,
    values: Vec<f32>,
}

/// One number of each of sixteen channels.
type Lanes = [f32; CHANNEL_BLOCK];

/// Where some rows of a block of channels are.
#[derive(Clone, Copy)]
struct Place {
    /// The first channel's plane, counted over all photos.
    plane: usize,
    /// How many channels there are from it on.
    lanes: usize,
    /// The first row in its photo.
    y: usize,
}

impl Stack {
    /// From NCHW.
    fn of(engine: &Engine, planar: &[f32], maps: Maps) -> Self {
        Self::filled(engine, maps, 1, &|Place { plane, lanes, y }, pixels| {
            for lane in 0..lanes {
                let from = (plane + lane) * maps.plane() + y * maps.width;
                for (pixel, value) in pixels.iter_mut().zip(&planar[from..]) {
                    pixel[lane] = *value;
                }
            }
        })
    }

    /// The gradient of what a ReLU read, from its output and the gradient of that, NCHW.
    fn before_relu(engine: &Engine, output: &[f32], gradient: &[f32], maps: Maps) -> Self {
        Self::filled(engine, maps, 1, &|Place { plane, lanes, y }, pixels| {
            for lane in 0..lanes {
                let from = (plane + lane) * maps.plane() + y * maps.width;
                let values = output[from..].iter().zip(&gradient[from..]);
                for (pixel, (output, gradient)) in pixels.iter_mut().zip(values) {
                    pixel[lane] = if *output > 0.0 { *gradient } else { 0.0 };
                }
            }
        })
    }

    /// The same where a pooling follows the ReLU; `output`, `gradient` and `places` are its.
    fn before_pooling(
        engine: &Engine,
        output: &[f32],
        gradient: &[f32],
        places: &[u8],
        maps: Maps,
    ) -> Self {
        let (width, plane_size) = (maps.width / 2, maps.plane() / 4);
        Self::filled(engine, maps, 2, &|Place { plane, lanes, y }, pixels| {
            for (lane, plane) in (plane..plane + lanes).enumerate() {
                let from = plane * plane_size + y / 2 * width;
                for x in 0..width {
                    if output[from + x] > 0.0 {
                        let place = usize::from(places[from + x]);
                        let at = place / 2 * maps.width + 2 * x + place % 2;
                        pixels[at][lane] = gradient[from + x];
                    }
                }
            }
        })
    }

    /// Each `rows` rows of each block as `fill` writes them; they are zero before.
    fn filled(
        engine: &Engine,
        maps: Maps,
        rows: usize,
        fill: &(dyn Fn(Place, &mut [Lanes]) + Sync),
    ) -> Self {
        let block_size = maps.rows() * maps.width * CHANNEL_BLOCK;
        let mut values = vec![0.0; maps.blocks() * block_size];
        each(engine, values.chunks_mut(block_size), &|block, values| {
            let (pixels, _) = values.as_chunks_mut();
            let first = block * CHANNEL_BLOCK;
            let lanes = CHANNEL_BLOCK.min(maps.channels - first);
            for (photo, pixels) in pixels.chunks_mut((maps.height + 1) * maps.width).enumerate() {
                let plane = photo * maps.channels + first;
                let (pixels, _) = pixels.split_at_mut(maps.plane());
                for (y, pixels) in pixels.chunks_mut(rows * maps.width).enumerate() {
                    fill(Place { plane, lanes, y: y * rows }, pixels);
                }
            }
        });
        Self { maps, values }
    }

    fn convolved(&self, engine: &Engine, kernel: &Conv3x3, relu: bool) -> Self {
        let (height, width) = (self.maps.rows(), self.maps.width);
        let maps = Maps { channels: kernel.out_channels(), ..self.maps };
        let mut values = vec![0.0; maps.blocks() * height * width * CHANNEL_BLOCK];
        let mut scratch = vec![0.0; kernel.scratch_len(height, width, engine.threads())];
        let fuse = Fuse { relu, pool: false };
        kernel.run(engine, &self.values, height, width, &mut values, fuse, &mut scratch);
        Self { maps, values }
    }

    /// To NCHW.
    fn planar(&self, engine: &Engine, to: &mut [f32]) {
        let maps = self.maps;
        let parts = (to.chunks_mut(maps.numbers_of_one()))
            .flat_map(|photo| photo.chunks_mut(CHANNEL_BLOCK * maps.plane()));
        each(engine, parts, &|index, to| {
            for y in 0..maps.height {
                let from = self.row(index, y);
                for (lane, plane) in to.chunks_mut(maps.plane()).enumerate() {
                    let to = &mut plane[y * maps.width..][..maps.width];
                    for (value, pixel) in to.iter_mut().zip(from) {
                        *value = pixel[lane];
                    }
                }
            }
        });
    }

    /// The largest of each 2 x 2 numbers, to NCHW of half the height and width, and which of them.
    fn largest(&self, engine: &Engine, to: &mut [f32], places: &mut [u8]) {
        let maps = self.maps;
        let (width, plane_size) = (maps.width / 2, maps.plane() / 4);
        let [photo, block] = [maps.channels * plane_size, CHANNEL_BLOCK * plane_size];
        let to = to.chunks_mut(photo).flat_map(|photo| photo.chunks_mut(block));
        let places = places.chunks_mut(photo).flat_map(|photo| photo.chunks_mut(block));
        each(engine, to.zip(places), &|index, (to, places)| {
            for y in 0..maps.height / 2 {
                let [upper, lower] = [2 * y, 2 * y + 1].map(|y| self.row(index, y));
                for (x, (upper, lower)) in upper.chunks(2).zip(lower.chunks(2)).enumerate() {
                    let (mut most, mut place) = (upper[0], [0; CHANNEL_BLOCK]);
                    for (at, pixel) in [(1, upper[1]), (2, lower[0]), (3, lower[1])] {
                        for lane in 0..CHANNEL_BLOCK {
                            let larger = pixel[lane] > most[lane];
                            most[lane] = if larger { pixel[lane] } else { most[lane] };
                            place[lane] = if larger { at } else { place[lane] };
                        }
                    }
                    let at = y * width + x;
                    let planes = to.chunks_mut(plane_size).zip(places.chunks_mut(plane_size));
                    for ((to, places), (most, place)) in planes.zip(most.into_iter().zip(place)) {
                        (to[at], places[at]) = (most, place);
                    }
                }
            }
        });
    }

    /// Row `y` of block number `index`, counted photo by photo.
    fn row(&self, index: usize, y: usize) -> &[Lanes] {
        let maps = self.maps;
        let (photo, block) = (index / maps.blocks(), index % maps.blocks());
        let row = block * maps.rows() + photo * (maps.height + 1) + y;
        self.pixels(row * maps.width, maps.width)
    }

    fn pixels(&self, first: usize, count: usize) -> &[Lanes] {
        let values = &self.values[first * CHANNEL_BLOCK..][..count * CHANNEL_BLOCK];
        values.as_chunks().0
    }

    /// Sum of each channel, filled up to whole blocks.
    fn totals(&self, engine: &Engine) -> Vec<f32> {
        let block_size = self.maps.rows() * self.maps.width;
        let mut totals = vec![0.0; self.maps.blocks() * CHANNEL_BLOCK];
        each(engine, totals.chunks_mut(CHANNEL_BLOCK), &|block, totals| {
            for pixel in self.pixels(block * block_size, block_size) {
                totals.iter_mut().zip(pixel).for_each(|(total, value)| *total += value);
            }
        });
        totals
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::random::Random;

    fn random(seed: u64, shape: &[usize]) -> Var {
        let mut random = Random::new(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal()).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn distance(found: &Tensor, expected: &Tensor) -> f32 {
        let square = |values: &Tensor| -> f32 {
            values.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
        };
        (square(&(found - expected).unwrap()) / square(expected)).sqrt()
    }

    /// Where each number is the largest, its gradient; candle's own pooling gives a quarter of it.
    fn pooled(maps: &Tensor) -> Tensor {
        let (photos, channels, height, width) = maps.dims4().unwrap();
        let pairs = (photos * channels, height / 2, 2, width / 2, 2);
        let largest = maps.reshape(pairs).unwrap().max(4).unwrap().max(2).unwrap();
        largest.reshape((photos, channels, height / 2, width / 2)).unwrap()
    }

    #[test]
    fn equals_candles_own_operations_and_their_gradients() {
        let engine = Engine::new(2);
        let check = |photos, inputs, outputs, height, width, pool| {
            let what = format!("{photos} x {inputs} to {outputs} x {height} x {width}, {pool}");
            let input = random(1, &[photos, inputs, height, width]);
            let weight = random(2, &[outputs, inputs, 3, 3]);
            let bias = random(3, &[outputs]);
            let convolution = Convolution::new(&engine, true, pool);
            let found = input.apply_op3(&weight, &bias, convolution).unwrap();
            let expected = input.conv2d(&weight, 1, 1, 1, 1).unwrap();
            let expected = expected.broadcast_add(&bias.reshape((1, (), 1, 1)).unwrap());
            let expected = expected.unwrap().relu().unwrap();
            let expected = if pool { pooled(&expected) } else { expected };
            let back = random(4, expected.dims());
            assert!(distance(&found, &expected) < 1e-5, "{what}");
            let gradients = [found, expected]
                .map(|output| (output * back.as_detached_tensor()).unwrap().backward().unwrap());
            for (name, of) in [("input", &input), ("weight", &weight), ("bias", &bias)] {
                let [found, expected] = gradients.each_ref().map(|of_all| of_all.get(of).unwrap());
                let distance = distance(found, expected);
                assert!(distance < 2e-5, "{name} of {what}: {distance}");
            }
        };
        for pool in [false, true] {
            check(1, 3, 16, 8, 8, pool);
            check(2, 16, 16, 2, 2, pool);
            check(5, 16, 32, 14, 14, pool);
            check(3, 40, 24, 6, 10, pool);
            check(4, 5, 17, 6, 2, pool);
        }
        check(2, 1, 1, 1, 1, false);
        check(3, 20, 24, 7, 9, false);
    }

    #[test]
    fn one_of_several_equal_ones_gets_all_of_the_gradient() {
        let engine = Engine::new(1);
        let input = Var::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = random(2, &[1, 1, 3, 3]).zeros_like().unwrap();
        let bias = Var::from_vec(vec![3.0f32], 1, &Device::Cpu).unwrap();
        let convolution = Convolution::new(&engine, true, true);
        let output = input.apply_op3(&weight, &bias, convolution).unwrap();
        let gradients = output.backward().unwrap();
        assert_eq!(gradients.get(&bias).unwrap().to_vec1::<f32>().unwrap(), [1.0]);
    }
}
