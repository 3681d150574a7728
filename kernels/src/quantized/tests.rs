//! Every instance against the definition, byte for byte.

use super::*;
use crate::random::Random;
use crate::reference::Threads;

#[derive(Debug, Clone, Copy)]
struct Case {
    out_channels: usize,
    in_channels: usize,
    height: usize,
    width: usize,
    zero: u8,
    values: Values,
    pool: bool,
    threads: usize,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
enum Values {
    /// Anything.
    Random,
    /// Weights and inputs of the largest magnitude, in random places.
    Ends,
    /// All inputs and all weights the same.
    All(u8, i8),
}

/// The sums with their bias, `[out_channels, height, width]`.
fn sums(case: Case, input: &[u8], parameters: &Parameters<'_>) -> Vec<i32> {
    let Case { out_channels, in_channels, height, width, zero, .. } = case;
    let mut sums = Vec::new();
    for o in 0..out_channels {
        for pixel in 0..height * width {
            let (y, x) = (pixel / width, pixel % width);
            let mut sum = parameters.bias[o];
            for i in 0..in_channels {
                for tap in 0..9 {
                    let (y, x) = (y + tap / 3, x + tap % 3);
                    if (1..=height).contains(&y) && (1..=width).contains(&x) {
                        let byte = input[(i * height + y - 1) * width + x - 1];
                        let weight = parameters.weights[(o * in_channels + i) * 9 + tap];
                        sum += i32::from(weight) * (i32::from(byte) - i32::from(zero));
                    }
                }
            }
            sums.push(sum);
        }
    }
    sums
}

/// Planar outputs by the definition.
fn expected(case: Case, input: &[u8], parameters: &Parameters<'_>) -> Vec<u8> {
    let Case { height, width, .. } = case;
    let pixels = height * width;
    let sums = sums(case, input, parameters);
    let bytes: Vec<u8> = (sums.iter().enumerate())
        .map(|(index, &sum)| sum as f32 * parameters.scales[index / pixels])
        .map(|scaled| scaled.round_ties_even().clamp(0.0, 255.0) as u8)
        .collect();
    if !case.pool {
        return bytes;
    }
    let mut pooled = Vec::new();
    for plane in bytes.chunks_exact(pixels) {
        for y in 0..height / 2 {
            for x in 0..width / 2 {
                let at = 2 * y * width + 2 * x;
                let upper = plane[at].max(plane[at + 1]);
                pooled.push(upper.max(plane[at + width]).max(plane[at + width + 1]));
            }
        }
    }
    pooled
}

/// `[C, pixels]` to blocks, with `rest` in the lanes after the last channel.
fn block(channels: usize, pixels: usize, planar: &[u8], rest: u8) -> Vec<u8> {
    let mut blocked = vec![rest; blocked_len(channels, pixels, 1)];
    for (index, &byte) in planar.iter().enumerate() {
        let (channel, pixel) = (index / pixels, index % pixels);
        let block = channel / CHANNEL_BLOCK * pixels + pixel;
        blocked[block * CHANNEL_BLOCK + channel % CHANNEL_BLOCK] = byte;
    }
    blocked
}

fn check(case: Case) {
    let Case { out_channels, in_channels, height, width, zero, pool, .. } = case;
    let mut random = Random(case.seed);
    let mut byte = |ends: [i32; 2]| match case.values {
        Values::Random => ends[0] + random.below((ends[1] - ends[0] + 1) as usize) as i32,
        Values::Ends => ends[random.below(2)],
        Values::All(input, weight) => {
            i32::from(if ends[0] == 0 { input as i16 } else { weight.into() })
        }
    };
    let (pixels, weights) = (height * width, out_channels * in_channels * 9);
    let input: Vec<u8> = (0..in_channels * pixels).map(|_| byte([0, 255]) as u8).collect();
    let weights: Vec<i8> = (0..weights).map(|_| byte([-128, 127]) as i8).collect();
    // Powers of two make many ties.
    let scales: Vec<f32> = (0..out_channels)
        .map(|_| match random.below(3) {
            0 => (0.5f32).powi(random.below(18) as i32),
            1 => 0.0,
            _ => (random.float() + 1.0) / (1 << random.below(14)) as f32,
        })
        .collect();
    let bias: Vec<i32> =
        (0..out_channels).map(|_| random.below(1 << 20) as i32 - (1 << 19)).collect();
    let (bias_of, scales_of) = (&bias, &scales);
    let parameters = Parameters {
        out_channels,
        in_channels,
        weights: &weights,
        bias: bias_of,
        scales: scales_of,
        zero,
    };
    let expected = expected(case, &input, &parameters);
    let pixels_out = expected.len() / out_channels;
    let expected = block(out_channels, pixels_out.max(1), &expected, 0);
    let input = block(in_channels, pixels, &input, 0xaa);
    for isa in Isa::all() {
        for algorithm in [Algorithm::Direct, Algorithm::Winograd, Algorithm::Matrix] {
            if algorithm == Algorithm::Winograd && zero != 0 {
                continue;
            }
            let conv = QConv3x3::new(isa, algorithm, &parameters);
            let out = if pool { (height / 2) * (width / 2) } else { pixels };
            let mut output = vec![0x55; blocked_len(out_channels, out, 1)];
            let mut scratch = vec![0x77; conv.scratch_len(height, width, case.threads)];
            let threads = Threads(case.threads);
            conv.run(&threads, &input, height, width, &mut output, pool, &mut scratch);
            let what = format!("{} {case:?}", conv.kernel());
            for (index, (found, expected)) in output.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{what}: element {index}");
            }
        }
    }
}

#[test]
fn random_shapes() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let zero = if random.below(3) == 0 { random.below(256) as u8 } else { 0 };
        check(Case {
            out_channels: 1 + random.below(70),
            in_channels: 1 + random.below(40),
            height: 1 + random.below(20),
            width: 1 + random.below(40),
            zero,
            values: if random.below(2) == 0 { Values::Random } else { Values::Ends },
            pool: random.below(2) == 0,
            threads: 1 + random.below(3),
            seed,
        });
    }
}

#[test]
fn many_tiles_and_batches() {
    check(Case {
        out_channels: 100,
        in_channels: 17,
        height: 63,
        width: 70,
        zero: 0,
        values: Values::Random,
        pool: true,
        threads: 2,
        seed: 1,
    });
}

/// So many inputs that products of matrices take them band by band.
#[test]
fn many_rows() {
    for (seed, pool) in [(1, false), (2, true)] {
        check(Case {
            out_channels: 5,
            in_channels: 17,
            height: 131,
            width: 127,
            zero: 3 * (seed as u8 - 1),
            values: Values::Random,
            pool,
            threads: 3,
            seed,
        });
    }
}

#[test]
fn extreme_values() {
    let all = [(255, -128), (255, 127), (0, -128), (128, -128)];
    let values = all.map(|(input, weight)| Values::All(input, weight));
    for (seed, values) in values.into_iter().chain([Values::Ends; 3]).enumerate() {
        check(Case {
            out_channels: 20,
            in_channels: 512,
            height: 6,
            width: 9,
            zero: 0,
            values,
            pool: false,
            threads: 1,
            seed: seed as u64,
        });
    }
}

#[test]
fn as_many_channels_as_fit() {
    for (seed, weight) in [(0, -128), (1, 127)] {
        check(Case {
            out_channels: 3,
            in_channels: winograd::MOST_CHANNELS,
            height: 4,
            width: 4,
            zero: 0,
            values: Values::All(255, weight),
            pool: false,
            threads: 2,
            seed,
        });
    }
}

#[test]
fn quantizing_rounds_to_even_and_comes_back() {
    let values = [-10.0, -0.76, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 0.26, 200.0, f32::NAN];
    let mut bytes = vec![9; blocked_len(1, values.len(), 1)];
    quantize(1, values.len(), &values, 0.5, 3, &mut bytes);
    let found: Vec<u8> = bytes.iter().step_by(CHANNEL_BLOCK).copied().collect();
    assert_eq!(found[..10], [0, 1, 1, 3, 3, 3, 5, 5, 4, 255]);
    assert!(bytes[1..CHANNEL_BLOCK].iter().all(|&byte| byte == 3));
    let mut back = [0.0; 11];
    dequantize(1, values.len(), &bytes, 0.5, 3, &mut back);
    assert_eq!(back[..6], [-1.5, -1.0, -1.0, 0.0, 0.0, 0.0]);
}

#[test]
#[should_panic(expected = "QConv3x3: input of 79 elements where 400 are needed")]
fn a_wrong_length_is_refused() {
    let parameters = Parameters {
        out_channels: 1,
        in_channels: 3,
        weights: &[0; 27],
        bias: &[0],
        scales: &[0.0],
        zero: 0,
    };
    let conv = QConv3x3::new(Isa::PLAIN, Algorithm::Direct, &parameters);
    let mut scratch = vec![0; conv.scratch_len(5, 5, 1)];
    conv.run(&Threads(1), &[0; 79], 5, 5, &mut [0; 400], false, &mut scratch);
}
