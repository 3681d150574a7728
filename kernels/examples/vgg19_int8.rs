//! Times every convolution of VGG-19 in integers, with made-up weights, by every algorithm but the
//! plain product of matrices, which is there for the tests:
//! `cargo run --release --example vgg19_int8 [threads [isa]]`. The fastest one counts in the
//! sum of the best, the chosen one is marked.

use std::hint::black_box;
use std::time::{Duration, Instant};
use vggd_kernels::pool::{Caller, Pool};
use vggd_kernels::quantized::{Algorithm, Parameters, QConv3x3};
use vggd_kernels::{Isa, layout};

/// Input channels, output channels, side, whether a max-pool follows, and how often.
const LAYERS: [(usize, usize, usize, bool, u32); 13] = [
    (3, 64, 224, false, 1),
    (64, 64, 224, true, 1),
    (64, 128, 112, false, 1),
    (128, 128, 112, true, 1),
    (128, 256, 56, false, 1),
    (256, 256, 56, false, 2),
    (256, 256, 56, true, 1),
    (256, 512, 28, false, 1),
    (512, 512, 28, false, 1),
    (512, 512, 28, false, 1),
    (512, 512, 28, true, 1),
    (512, 512, 14, false, 3),
    (512, 512, 14, true, 1),
];
const ALGORITHMS: [Algorithm; 3] = [Algorithm::Direct, Algorithm::Winograd, Algorithm::Matrix];
const REPEATS: usize = 30;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(1, |n| n.parse().expect("a number of threads"));
    let isa = arguments.next().map_or(Isa::detect(), |name| {
        Isa::by_name(&name).expect("an instruction set of this machine")
    });
    let parallel = Pool::new("vgg19", threads, Caller::Works, |_| {});
    let weights: Vec<i8> = (0..512 * 512 * 9).map(|index| (index % 251) as i8).collect();
    let (bias, scales) = ([0; 512], [1e-4; 512]);
    let parameters = |o: usize, i: usize| Parameters {
        out_channels: o,
        in_channels: i,
        weights: &weights[..o * i * 9],
        bias: &bias[..o],
        scales: &scales[..o],
        zero: 0,
    };
    let start = Instant::now();
    let convolutions = LAYERS.map(|(i, o, ..)| {
        ALGORITHMS.map(|algorithm| QConv3x3::new(isa, algorithm, &parameters(o, i)))
    });
    println!("packing all {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let largest = layout::blocked_len(64, 224, 224);
    let (input, mut output) = (vec![3; largest], vec![0; largest]);
    let mut best = [[Duration::MAX; ALGORITHMS.len()]; LAYERS.len()];
    let mut scratch = vec![0; 32 << 20];
    for _ in 0..REPEATS {
        for ((layer, both), best) in LAYERS.iter().zip(&convolutions).zip(&mut best) {
            let &(i, o, side, pool, _) = layer;
            let input = &input[..layout::blocked_len(i, side, side)];
            let out = if pool { side / 2 } else { side };
            for (convolution, best) in both.iter().zip(best) {
                if convolution.kernel().starts_with("plain_matrix") {
                    continue;
                }
                let output = &mut output[..layout::blocked_len(o, out, out)];
                let start = Instant::now();
                convolution.run(&parallel, input, side, side, output, pool, &mut scratch);
                *best = start.elapsed().min(*best);
                black_box(output);
            }
        }
    }
    let mut total = [0.0; 2];
    for ((layer, both), best) in LAYERS.iter().zip(&convolutions).zip(&best) {
        let &(i, o, side, pool, times) = layer;
        let chosen = Algorithm::choose(isa, &parameters(o, i), side, side);
        let products = (i * o * side * side * 9) as f64;
        let seconds = best.map(|best| best.as_secs_f64());
        print!("{i:4} {o:4} {side:4} {} x {times}:", if pool { "pool" } else { "    " });
        for (algorithm, seconds) in ALGORITHMS.iter().zip(seconds) {
            if seconds == Duration::MAX.as_secs_f64() {
                continue;
            }
            let mark = if chosen == *algorithm { "*" } else { " " };
            let (time, rate) = (seconds * 1e3, products / seconds / 1e9);
            print!(" {algorithm:?} {time:7.3} ms {rate:6.1} G/s{mark}");
            if chosen == *algorithm {
                total[1] += seconds * f64::from(times);
            }
        }
        println!();
        total[0] += seconds.into_iter().fold(f64::INFINITY, f64::min) * f64::from(times);
        black_box(both);
    }
    println!("{} best {:.2} ms, chosen {:.2} ms", isa, total[0] * 1e3, total[1] * 1e3);
}
