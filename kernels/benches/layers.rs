//! What each layer of VGG-19 takes with each kernel, one thread, on every instruction set of this
//! machine. Layers of the same shape are there once.

#![allow(missing_docs)]

use std::collections::HashSet;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use vggd_kernels::convolution;
use vggd_kernels::layout::blocked_len;
use vggd_kernels::linear::{BLOCK, linear_bf16, linear_f32, linear_i8b64};
use vggd_kernels::quantized::{Algorithm, Parameters, QConv3x3};
use vggd_kernels::{Conv3x3, Direct3x3, Fuse, Isa, Precision, Sequential, Tile};

/// Input channels, output channels, side, whether a max-pool follows.
const CONVOLUTIONS: [(usize, usize, usize, bool); 9] = [
    (3, 64, 224, false),
    (64, 64, 224, true),
    (64, 128, 112, false),
    (128, 128, 112, true),
    (128, 256, 56, false),
    (256, 256, 56, false),
    (256, 512, 28, false),
    (512, 512, 28, false),
    (512, 512, 14, false),
];

/// Rows and columns.
const LINEAR: [(usize, usize); 3] = [(4096, 25_088), (4096, 4096), (1000, 4096)];

/// A kernel that serves several instruction sets is timed once.
struct Layer<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    timed: HashSet<String>,
}

impl<'a> Layer<'a> {
    fn new(criterion: &'a mut Criterion, name: String, work: Throughput) -> Self {
        let mut group = criterion.benchmark_group(name);
        group.throughput(work).sampling_mode(SamplingMode::Flat);
        Layer { group, timed: HashSet::new() }
    }

    fn time(&mut self, kernel: impl Into<String>, mut work: impl FnMut()) {
        let kernel = kernel.into();
        if self.timed.insert(kernel.clone()) {
            self.group.bench_function(kernel, |bencher| bencher.iter(&mut work));
        }
    }
}

fn single(layer: &mut Layer<'_>, (inner, out, side, pool): (usize, usize, usize, bool)) {
    let (weights, bias) = (vec![0.01; out * inner * 9], vec![0.1; out]);
    let to = if pool { side / 2 } else { side };
    let mut output = vec![0.0; blocked_len(out, to, to)];
    for isa in Isa::all() {
        if inner == 3 {
            let image = vec![0.5; inner * side * side];
            let direct = Direct3x3::new(isa, out, inner, &weights, &bias);
            let mut scratch = vec![0.0; direct.scratch_len(side, side)];
            layer.time(direct.kernel(), || {
                direct.run(&Sequential, &image, side, side, &mut output, true, &mut scratch);
            });
            continue;
        }
        let input = vec![0.5; blocked_len(inner, side, side)];
        let tile = Tile::choose(isa, side, side);
        let algorithms = [
            convolution::Algorithm::Winograd(Precision::Single, tile),
            convolution::Algorithm::Winograd(Precision::Half, tile),
            convolution::Algorithm::Matrix,
        ];
        for algorithm in algorithms {
            let conv = Conv3x3::new(isa, algorithm, out, inner, &weights, &bias);
            if conv.kernel().starts_with("plain_matrix") {
                continue;
            }
            let mut scratch = vec![0.0; conv.scratch_len(side, side, 1)];
            let fuse = Fuse { relu: true, pool };
            layer.time(conv.kernel(), || {
                conv.run(&Sequential, &input, side, side, &mut output, fuse, &mut scratch);
            });
        }
    }
}

fn quantized(layer: &mut Layer<'_>, (inner, out, side, pool): (usize, usize, usize, bool)) {
    let weights: Vec<i8> = (0..out * inner * 9).map(|index| (index % 251) as i8).collect();
    let (bias, scales) = (vec![0; out], vec![1e-4; out]);
    let parameters = Parameters {
        out_channels: out,
        in_channels: inner,
        weights: &weights,
        bias: &bias,
        scales: &scales,
        zero: 0,
    };
    let input = vec![3; blocked_len(inner, side, side)];
    let to = if pool { side / 2 } else { side };
    let mut output = vec![0; blocked_len(out, to, to)];
    let algorithms = match inner {
        3 => &[Algorithm::Direct][..],
        _ => &[Algorithm::Direct, Algorithm::Winograd, Algorithm::Matrix],
    };
    for isa in Isa::all() {
        for &algorithm in algorithms {
            let conv = QConv3x3::new(isa, algorithm, &parameters);
            if conv.kernel().starts_with("plain_matrix") {
                continue;
            }
            let mut scratch = vec![0; conv.scratch_len(side, side, 1)];
            layer.time(conv.kernel(), || {
                conv.run(&Sequential, &input, side, side, &mut output, pool, &mut scratch);
            });
        }
    }
}

fn linear(criterion: &mut Criterion, rows: usize, columns: usize) {
    let (x, bias, mut y) = (vec![0.25; columns], vec![0.0; rows], vec![0.0; rows]);
    let name = |kernel: &str| format!("{kernel} {columns} to {rows}");

    let weights = vec![0.5; rows * columns];
    let bytes = Throughput::Bytes(size_of_val(&*weights) as u64);
    let mut layer = Layer::new(criterion, name("linear_f32"), bytes);
    for isa in Isa::all() {
        layer.time(isa.name(), || linear_f32(isa, black_box(&weights), &bias, &x, &mut y));
    }
    drop((layer, weights));

    let weights = vec![0x3f00; rows * columns];
    let bytes = Throughput::Bytes(size_of_val(&*weights) as u64);
    let mut layer = Layer::new(criterion, name("linear_bf16"), bytes);
    for isa in Isa::all() {
        layer.time(isa.name(), || linear_bf16(isa, black_box(&weights), &bias, &x, &mut y));
    }
    drop((layer, weights));

    let (weights, scales) = (vec![5; rows * columns], vec![0.5; rows * columns / BLOCK]);
    let bytes = Throughput::Bytes(size_of_val(&*weights) as u64);
    let mut layer = Layer::new(criterion, name("linear_i8b64"), bytes);
    for isa in Isa::all() {
        layer.time(isa.name(), || {
            linear_i8b64(isa, black_box(&weights), &scales, &bias, &x, &mut y);
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .configure_from_args();
    for shape @ (inner, out, side, pool) in CONVOLUTIONS {
        let pool = if pool { ", pooled" } else { "" };
        let name = format!("{inner} to {out} at {side}{pool}");
        let products = Throughput::Elements((inner * out * side * side * 9) as u64);
        let mut layer = Layer::new(&mut criterion, name, products);
        single(&mut layer, shape);
        quantized(&mut layer, shape);
    }
    for (rows, columns) in LINEAR {
        linear(&mut criterion, rows, columns);
    }
    criterion.final_summary();
}
