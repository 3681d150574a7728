//! VGG-19 in a few loops, to compare with: nothing is shared with what is tested but the weights.

use std::collections::BTreeMap;

use vggd_models::tensor::Tensor;

/// Channels of square planes, row-major.
pub(crate) struct Map {
    pub(crate) channels: Vec<Vec<f32>>,
    pub(crate) side: usize,
}

pub(crate) fn logits(weights: &BTreeMap<String, Tensor<'_>>, mut map: Map) -> Vec<f32> {
    for block in [&[0, 2][..], &[5, 7], &[10, 12, 14, 16], &[19, 21, 23, 25], &[28, 30, 32, 34]] {
        for index in block {
            let name = format!("features.{index}");
            map = convolve_relu(weights, &name, &map);
        }
        map = max_pool(&map);
    }
    let mut values = adaptive_average_pool(&map, 7);
    for index in [0, 3, 6] {
        values = linear(weights, &format!("classifier.{index}"), &values);
        if index != 6 {
            values.iter_mut().for_each(|value| *value = value.max(0.0));
        }
    }
    values
}

fn convolve_relu(weights: &BTreeMap<String, Tensor<'_>>, name: &str, map: &Map) -> Map {
    let kernels = weights[&format!("{name}.weight")].values();
    let biases = weights[&format!("{name}.bias")].values();
    let side = map.side;
    let channels = (biases.iter())
        .zip(kernels.chunks(9 * map.channels.len()))
        .map(|(&bias, kernels)| {
            let mut plane = vec![bias; side * side];
            for (input, kernel) in map.channels.iter().zip(kernels.chunks(9)) {
                for (tap, weight) in kernel.iter().enumerate() {
                    add_shifted(&mut plane, input, side, tap / 3, tap % 3, *weight);
                }
            }
            plane.iter_mut().for_each(|value| *value = value.max(0.0));
            plane
        })
        .collect();
    Map { channels, side }
}

/// plane[y][x] += weight * input[y + down - 1][x + right - 1], zero outside.
fn add_shifted(
    plane: &mut [f32],
    input: &[f32],
    side: usize,
    down: usize,
    right: usize,
    weight: f32,
) {
    for y in 0..side {
        let Some(from) = (y + down).checked_sub(1).filter(|from| *from < side) else {
            continue;
        };
        let row = &mut plane[y * side..][..side];
        let input = &input[from * side..][..side];
        let (row, input) = match right {
            0 => (&mut row[1..], &input[..side - 1]),
            1 => (row, input),
            _ => (&mut row[..side - 1], &input[1..]),
        };
        for (value, input) in row.iter_mut().zip(input) {
            *value += weight * input;
        }
    }
}

fn max_pool(map: &Map) -> Map {
    let side = map.side / 2;
    let channels = (map.channels.iter())
        .map(|plane| {
            (0..side * side)
                .map(|i| {
                    let at = 2 * (i / side) * map.side + 2 * (i % side);
                    let pair = |at: usize| plane[at].max(plane[at + 1]);
                    pair(at).max(pair(at + map.side))
                })
                .collect()
        })
        .collect();
    Map { channels, side }
}

fn adaptive_average_pool(map: &Map, to: usize) -> Vec<f32> {
    let mut pooled = Vec::new();
    for plane in &map.channels {
        for i in 0..to * to {
            let (mut sum, mut count) = (0.0, 0.0);
            for y in (i / to) * map.side / to..((i / to + 1) * map.side).div_ceil(to) {
                for x in (i % to) * map.side / to..((i % to + 1) * map.side).div_ceil(to) {
                    sum += plane[y * map.side + x];
                    count += 1.0;
                }
            }
            pooled.push(sum / count);
        }
    }
    pooled
}

fn linear(weights: &BTreeMap<String, Tensor<'_>>, name: &str, values: &[f32]) -> Vec<f32> {
    let matrix = weights[&format!("{name}.weight")].values();
    let biases = weights[&format!("{name}.bias")].values();
    (biases.iter().zip(matrix.chunks(values.len())))
        .map(|(bias, row)| bias + row.iter().zip(values).map(|(w, v)| w * v).sum::<f32>())
        .collect()
}
