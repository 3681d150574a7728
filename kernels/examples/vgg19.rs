//! Times every layer of VGG-19 and the whole network, with made-up weights:
//! `cargo run --release --example vgg19 [threads [isa [single|half [widths]]]]`. Sixteen `widths`
//! with commas between them are those of a pruned network.

use std::hint::black_box;
use std::time::{Duration, Instant};
use vggd_kernels::convolution::Algorithm;
use vggd_kernels::pool::{Caller, Pool};
use vggd_kernels::{Conv3x3, Direct3x3, Fuse, Isa, Precision, layout};

/// Output channels, side, whether a max-pool follows.
const LAYERS: [(usize, usize, bool); 16] = [
    (64, 224, false),
    (64, 224, true),
    (128, 112, false),
    (128, 112, true),
    (256, 56, false),
    (256, 56, false),
    (256, 56, false),
    (256, 56, true),
    (512, 28, false),
    (512, 28, false),
    (512, 28, false),
    (512, 28, true),
    (512, 14, false),
    (512, 14, false),
    (512, 14, false),
    (512, 14, true),
];
const REPEATS: usize = 30;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(1, |n| n.parse().expect("a number of threads"));
    let isa = arguments.next().map_or(Isa::detect(), |name| {
        Isa::by_name(&name).expect("an instruction set of this machine")
    });
    let precision = match arguments.next().as_deref() {
        Some("half") => Precision::Half,
        _ => Precision::Single,
    };
    let mut widths = LAYERS.map(|(out, ..)| out);
    if let Some(list) = arguments.next() {
        for (width, text) in widths.iter_mut().zip(list.split(',')) {
            *width = text.parse().expect("a number of channels");
        }
    }
    let parallel = Pool::new("vgg19", threads, Caller::Works, |_| {});
    let mut layers = Vec::new();
    for (pair, (_, side, pool)) in widths.windows(2).zip(&LAYERS[1..]) {
        layers.push((pair[0], pair[1], *side, *pool));
    }

    let weights = vec![0.01; 512 * 512 * 9];
    let start = Instant::now();
    let convolutions: Vec<Conv3x3> = layers
        .iter()
        .map(|&(i, o, side, _)| {
            let algorithm = Algorithm::choose(isa, precision, i, side, side);
            Conv3x3::new(isa, algorithm, o, i, &weights[..o * i * 9], &weights[..o])
        })
        .collect();
    let packing = start.elapsed();
    let bytes: usize = convolutions.iter().map(Conv3x3::packed_bytes).sum();
    let scratch = layers
        .iter()
        .zip(&convolutions)
        .map(|((_, _, side, _), c)| c.scratch_len(*side, *side, threads));
    let mut scratch = vec![0.0; scratch.max().unwrap_or(0)];
    let largest = layout::blocked_len(64, 224, 224);
    let (mut input, mut output) = (vec![0.01; largest], vec![0.01; largest]);
    let width = widths[0];
    let first = Direct3x3::new(isa, width, 3, &weights[..width * 27], &weights[..width]);
    let image = vec![0.01; 3 * 224 * 224];
    let mut stem_scratch = vec![0.0; convolutions[0].scratch_len_after(&first, 224, 224, threads)];
    let (mut alone, mut stem) = (Duration::MAX, Duration::MAX);
    let mut best = vec![Duration::MAX; layers.len()];
    let mut whole = Duration::MAX;
    for _ in 0..REPEATS {
        let start = Instant::now();
        let rows = &mut output[..layout::blocked_len(width, 224, 224)];
        first.run(&parallel, &image, 224, 224, rows, true, &mut stem_scratch);
        alone = alone.min(start.elapsed());
        let begin = Instant::now();
        let half = &mut output[..layout::blocked_len(widths[1], 112, 112)];
        let fuse = Fuse { relu: true, pool: true };
        let after = &mut stem_scratch;
        convolutions[0].run_after(&first, &parallel, &image, 224, 224, half, fuse, after);
        stem = stem.min(begin.elapsed());
        std::mem::swap(&mut input, &mut output);
        let mut in_stem = Duration::ZERO;
        for (layer, &(i, o, side, pool)) in layers.iter().enumerate() {
            let start = Instant::now();
            let out_side = if pool { side / 2 } else { side };
            convolutions[layer].run(
                &parallel,
                &input[..layout::blocked_len(i, side, side)],
                side,
                side,
                &mut output[..layout::blocked_len(o, out_side, out_side)],
                Fuse { relu: true, pool },
                &mut scratch,
            );
            if layer == 0 {
                in_stem = start.elapsed();
            }
            best[layer] = best[layer].min(start.elapsed());
            std::mem::swap(&mut input, &mut output);
        }
        whole = whole.min(begin.elapsed() - in_stem);
    }
    black_box(&input);
    println!("{} with {threads} threads", convolutions[0].kernel());
    println!("packed {} MB of weights in {packing:.0?}", bytes >> 20);
    let macs = |&(i, o, side, _): &(usize, usize, usize, bool)| i * o * side * side * 9;
    let first_macs = 3 * width * 224 * 224 * 9;
    report(&format!("3 -> {width} at 224"), alone, first_macs);
    report("  with the next", stem, first_macs + macs(&layers[0]));
    for (layer, time) in layers.iter().zip(&best) {
        report(&format!("{} -> {} at {}", layer.0, layer.1, layer.2), *time, macs(layer));
    }
    let all = first_macs + layers.iter().map(macs).sum::<usize>();
    let sum: Duration = best[1..].iter().sum();
    report("sum of best", sum + stem, all);
    report("all together", whole, all);
}

fn report(name: &str, time: Duration, macs: usize) {
    let rate = macs as f64 / time.as_secs_f64() / 1e9;
    println!("{name:16} {:8.3} ms {rate:7.1} GMAC/s direct", time.as_secs_f64() * 1e3);
}
