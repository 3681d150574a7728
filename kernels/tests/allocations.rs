//! Once a network is ready, no kernel asks for memory, nor does handing out its work to a pool.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use vggd_kernels::layout::blocked_len;
use vggd_kernels::linear::{BLOCK, linear_bf16, linear_f32, linear_i8b64};
use vggd_kernels::pool::Caller;
use vggd_kernels::quantized::{self, Parameters, QConv3x3};
use vggd_kernels::{Conv3x3, Direct3x3, Fuse, Isa, Pool, Precision, Tile, convolution};

/// The system's memory, and how often any thread asked for some.
struct Counting(AtomicUsize);

#[global_allocator]
static MEMORY: Counting = Counting(AtomicUsize::new(0));

// SAFETY: it is the system's allocator that answers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Output and input channels; all kernels' blocks are full, and some panels are not.
const CHANNELS: [usize; 2] = [48, 64];

const SIDE: usize = 28;

/// Fails if `run` asks for memory every time. Once it may: a thread of the pool that only now begins
/// does.
fn asks_for_none(kernel: &str, mut run: impl FnMut()) {
    let asked = |_| {
        let before = MEMORY.0.load(Ordering::Relaxed);
        run();
        MEMORY.0.load(Ordering::Relaxed) - before
    };
    let fewest = (0..8).map(asked).min().expect("eight runs");
    assert_eq!(fewest, 0, "{kernel} asked for memory {fewest} times");
}

#[test]
fn a_frame_asks_for_no_memory() {
    for caller in [Caller::Works, Caller::Sleeps] {
        let pool = Pool::new("test", 2, caller, |_| {});
        for isa in Isa::all() {
            float(isa, &pool);
            integer(isa, &pool);
            linear(isa);
        }
    }
}

fn float(isa: Isa, pool: &Pool) {
    let [out, inner] = CHANNELS;
    let fuse = Fuse { relu: true, pool: true };
    let mut output = vec![0.0; blocked_len(out, SIDE / 2, SIDE / 2)];
    let (weights, bias) = (vec![0.01; inner * 3 * 9], vec![0.1; inner]);
    let stem = Direct3x3::new(isa, inner, 3, &weights, &bias);
    let (image, input) = (vec![0.5; 3 * SIDE * SIDE], vec![0.5; blocked_len(inner, SIDE, SIDE)]);
    let (weights, bias) = (vec![0.01; out * inner * 9], vec![0.1; out]);
    for algorithm in [
        convolution::Algorithm::Winograd(Precision::Single, Tile::choose(isa, SIDE, SIDE)),
        convolution::Algorithm::Winograd(Precision::Half, Tile::choose(isa, SIDE, SIDE)),
        convolution::Algorithm::Matrix,
    ] {
        let conv = Conv3x3::new(isa, algorithm, out, inner, &weights, &bias);
        let mut scratch = vec![0.0; conv.scratch_len(SIDE, SIDE, 2)];
        asks_for_none(conv.kernel(), || {
            conv.run(pool, &input, SIDE, SIDE, &mut output, fuse, &mut scratch);
        });
        let mut scratch = vec![0.0; conv.scratch_len_after(&stem, SIDE, SIDE, 2)];
        asks_for_none(stem.kernel(), || {
            conv.run_after(&stem, pool, &image, SIDE, SIDE, &mut output, fuse, &mut scratch);
        });
    }
}

fn integer(isa: Isa, pool: &Pool) {
    let [out_channels, in_channels] = CHANNELS;
    let weights: Vec<i8> = (0..out_channels * in_channels * 9).map(|i| (i % 251) as i8).collect();
    let (bias, scales) = (vec![0; out_channels], vec![1e-4; out_channels]);
    let (weights, bias, scales) = (&weights[..], &bias[..], &scales[..]);
    let parameters = Parameters { out_channels, in_channels, weights, bias, scales, zero: 0 };
    let input = vec![3; blocked_len(in_channels, SIDE, SIDE)];
    let mut output = vec![0; blocked_len(out_channels, SIDE, SIDE)];
    for algorithm in
        [quantized::Algorithm::Direct, quantized::Algorithm::Winograd, quantized::Algorithm::Matrix]
    {
        let conv = QConv3x3::new(isa, algorithm, &parameters);
        let mut scratch = vec![0; conv.scratch_len(SIDE, SIDE, 2)];
        asks_for_none(conv.kernel(), || {
            conv.run(pool, &input, SIDE, SIDE, &mut output, false, &mut scratch);
        });
    }
}

fn linear(isa: Isa) {
    let (rows, columns) = (16, 4 * BLOCK);
    let (x, bias, mut y) = (vec![0.5; columns], vec![0.1; rows], vec![0.0; rows]);
    let (single, half) = (vec![0.01; rows * columns], vec![0x3c00; rows * columns]);
    let (bytes, scales) = (vec![3; rows * columns], vec![0.01; rows * columns / BLOCK]);
    asks_for_none("linear_f32", || linear_f32(isa, &single, &bias, &x, &mut y));
    asks_for_none("linear_bf16", || linear_bf16(isa, &half, &bias, &x, &mut y));
    asks_for_none("linear_i8b64", || linear_i8b64(isa, &bytes, &scales, &bias, &x, &mut y));
}
