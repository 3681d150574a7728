//! Times the fully connected layers of VGG-19, one thread, beside a plain read of the
//! same memory: `cargo run --release --example linear [isa]`.

use std::hint::black_box;
use std::time::{Duration, Instant};
use vggd_kernels::{Isa, linear};

const LAYERS: [(usize, usize); 3] = [(4096, 25_088), (4096, 4096), (1000, 4096)];
const REPEATS: usize = 15;

fn main() {
    let isa = match std::env::args().nth(1) {
        Some(name) => Isa::by_name(&name).expect("an instruction set of this machine"),
        None => Isa::detect(),
    };
    let weights: Vec<Vec<f32>> = LAYERS.map(|(n, k)| vec![0.5; n * k]).to_vec();
    let halves: Vec<Vec<u16>> = LAYERS.map(|(n, k)| vec![0x3f00; n * k]).to_vec();
    let int8: Vec<Vec<i8>> = LAYERS.map(|(n, k)| vec![5; n * k]).to_vec();
    let scales: Vec<Vec<f32>> = LAYERS.map(|(n, k)| vec![0.5; n * k / linear::BLOCK]).to_vec();
    let x = vec![0.25; 25_088];
    let bias = vec![0.0; 4096];
    let mut y = vec![0.0; 4096];

    let float = best(|| {
        for (w, (n, k)) in weights.iter().zip(LAYERS) {
            linear::linear_f32(isa, w, &bias[..n], &x[..k], &mut y[..n]);
        }
        black_box(&y);
    });
    report("read", best(|| read(&weights)), 4);
    report("linear_f32", float, 4);
    let half = best(|| {
        for (w, (n, k)) in halves.iter().zip(LAYERS) {
            linear::linear_bf16(isa, w, &bias[..n], &x[..k], &mut y[..n]);
        }
        black_box(&y);
    });
    report("linear_bf16", half, 2);
    let quantized = best(|| {
        for ((w, s), (n, k)) in int8.iter().zip(&scales).zip(LAYERS) {
            linear::linear_i8b64(isa, w, s, &bias[..n], &x[..k], &mut y[..n]);
        }
        black_box(&y);
    });
    report("linear_i8b64", quantized, 1);
    println!("{isa}");
}

fn read(weights: &[Vec<f32>]) {
    let sums =
        weights.iter().flat_map(|w| w.chunks_exact(64)).fold([0u32; 64], |mut sums, chunk| {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum |= value.to_bits();
            }
            sums
        });
    black_box(sums);
}

fn best(mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..REPEATS).map(time).min().unwrap_or_default()
}

fn report(name: &str, time: Duration, bytes: usize) {
    let elements: usize = LAYERS.iter().map(|(n, k)| n * k).sum();
    let rate = (elements * bytes) as f64 / time.as_secs_f64() / 1e9;
    println!("{name:14} {:7.2} ms {rate:6.1} GB/s", time.as_secs_f64() * 1e3);
}
