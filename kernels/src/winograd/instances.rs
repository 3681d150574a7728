//! The kernels of each instruction set.

use super::half::{self, RoundInputs, RoundWeights, round_inputs, round_weights};
use super::product::{Product, product};
use super::transform::{Input, Output, Weights, input, output, weights};
use crate::convolution::Precision;
use crate::isa::{Isa, Kind};
use crate::layout::CHANNEL_BLOCK;
#[cfg(any(test, target_arch = "aarch64"))]
use crate::vector::Float16;
use crate::vector::Int16;
#[cfg(target_arch = "aarch64")]
use crate::vector::neon::Neon;
use crate::vector::plain::Plain;
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2::Avx2, avx512::Avx512};

/// The stages of one instruction set.
pub(crate) struct Kernels {
    pub(crate) name: &'static str,
    /// Blocks of output channels of a panel.
    pub(super) vectors: usize,
    /// What rounds transformed weights and inputs to pairs, if they are.
    pub(super) round: Option<Round>,
    /// For a panel of `vectors` blocks, and of one more if there are two: for one tile, two tiles and
    /// so on.
    product: &'static [&'static [unsafe fn(&Product)]],
    /// Of F(2x2, 3x3).
    pub(super) two: Transforms,
    /// Of F(4x4, 3x3).
    pub(super) four: Transforms,
}

/// The transforms of one tile size.
pub(super) struct Transforms {
    pub(super) weights: unsafe fn(&mut Weights),
    pub(super) input: unsafe fn(&Input),
    pub(super) output: unsafe fn(&Output),
}

/// The stages between transforms and products of pairs.
pub(super) struct Round {
    pub(super) weights: unsafe fn(&mut RoundWeights),
    pub(super) inputs: unsafe fn(&RoundInputs),
}

impl Kernels {
    /// Elements of transformed weights or inputs in a block of channels.
    pub(super) fn elements(&self) -> usize {
        if self.round.is_some() { half::PAIRS } else { CHANNEL_BLOCK }
    }

    /// Tiles that one product takes at most.
    pub(super) fn tiles(&self) -> usize {
        self.product[0].len()
    }

    /// A panel of `vectors` blocks times `count` tiles, in as few and as equal parts as possible.
    ///
    /// # Safety
    ///
    /// The layouts of [`Product`] with at least `count` tiles.
    #[inline(always)]
    pub(super) unsafe fn multiply(&self, job: &Product, vectors: usize, count: usize) {
        let (product, panel) = (self.product[vectors - self.vectors], vectors * CHANNEL_BLOCK);
        let parts = count.div_ceil(product.len());
        let row = self.elements() * panel;
        for part in 0..parts {
            let (first, end) = (count * part / parts, count * (part + 1) / parts);
            let job = Product {
                inputs: job.inputs.wrapping_add(first * self.elements()),
                input_scales: job.input_scales.wrapping_add(first),
                to: job.to.wrapping_add(first * CHANNEL_BLOCK),
                ahead: job.ahead.wrapping_add(job.in_blocks * row / 4 * part / parts),
                ahead_step: row / 4 / parts,
                ..*job
            };
            // SAFETY: the caller's, for a part of the tiles; these kernels are only
            // handed out where their instructions are.
            unsafe { product[end - first - 1](&job) }
        }
    }
}

/// The plain twin of products in float16.
#[cfg(test)]
pub(crate) static TWIN: &Kernels = &plain_float16::KERNELS;

impl Kernels {
    /// The kernels for `isa`; half as wide ones are the plain ones where [`Isa::has_half`] says no.
    pub(crate) fn of(isa: Isa, precision: Precision) -> &'static Kernels {
        match (precision, isa.kind()) {
            #[cfg(target_arch = "x86_64")]
            (Precision::Half, Kind::Avx2) => &avx2_half::KERNELS,
            #[cfg(target_arch = "x86_64")]
            (Precision::Half, Kind::Vnni | Kind::Amx) => &avx512_half::KERNELS,
            #[cfg(target_arch = "aarch64")]
            (Precision::Half, Kind::NeonHalf) => &neon_half::KERNELS,
            (Precision::Half, _) => &plain_half::KERNELS,
            (Precision::Single, kind) => single(kind),
        }
    }
}

fn single(kind: Kind) -> &'static Kernels {
    match kind {
        Kind::Plain => &plain::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Vnni | Kind::Amx => &avx512::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Kind::Neon | Kind::NeonDot | Kind::NeonHalf => &neon::KERNELS,
        #[cfg(target_arch = "arm")]
        Kind::Neon32 => &neon32::KERNELS,
    }
}

macro_rules! instance {
    ($module:ident, $vector:ty, [$($panel:literal: $tiles:tt),+], $name:literal $(, $features:literal)?) => {
        mod $module {
            use super::*;

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                vectors: instance!(@first $($panel)+),
                round: None,
                product: &[$(&instance!(@tiles $panel $tiles)),+],
                two: transforms::<4>(),
                four: transforms::<6>(),
            };

            instance!(@transforms $vector $(, $features)?);

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply<const P: usize, const T: usize>(job: &Product) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { product::<$vector, P, T>(job) }
            }
        }
    };
    (half $number:ty, $module:ident, $vector:ty, [$($panel:literal: $tiles:tt),+], $name:literal
     $(, $features:literal)?) => {
        mod $module {
            use super::*;

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                vectors: instance!(@first $($panel)+),
                round: Some(Round { weights: round_all_weights, inputs: round_all_inputs }),
                product: &[$(&instance!(@tiles $panel $tiles)),+],
                two: transforms::<4>(),
                four: transforms::<6>(),
            };

            instance!(@transforms $vector $(, $features)?);

            $(#[target_feature(enable = $features)])?
            unsafe fn round_all_weights(job: &mut RoundWeights) {
                round_weights::<$number>(job)
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn round_all_inputs(job: &RoundInputs) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { round_inputs::<$vector, $number>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply<const P: usize, const T: usize>(job: &Product) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { half::product::<$vector, $number, P, T>(job) }
            }
        }
    };
    (@transforms $vector:ty $(, $features:literal)?) => {
        pub(super) const fn transforms<const S: usize>() -> Transforms {
            Transforms {
                weights: transform_weights::<S>,
                input: transform_input::<S>,
                output: transform_output::<S>,
            }
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn transform_weights<const S: usize>(job: &mut Weights) {
            weights::<S>(job)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn transform_input<const S: usize>(job: &Input) {
            // SAFETY: this function has the features; the layouts are the caller's.
            unsafe { input::<$vector, S>(job) }
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn transform_output<const S: usize>(job: &Output) {
            // SAFETY: this function has the features; the layouts are the caller's.
            unsafe { output::<$vector, S>(job) }
        }
    };
    (@first $first:literal $($other:literal)*) => { $first };
    (@tiles $panel:literal [$($tiles:literal)*]) => { [$(multiply::<$panel, $tiles>),*] };
}

instance!(plain, Plain, [1: [1 2 3 4]], "plain_winograd_f32_16x4");
#[cfg(target_arch = "x86_64")]
instance!(avx2, Avx2, [1: [1 2 3 4 5 6]], "avx2_winograd_f32_16x6", "avx2,fma");
#[cfg(target_arch = "x86_64")]
instance!(
    avx512,
    Avx512,
    [2: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 3: [1 2 3 4 5 6 7 8 9]],
    "avx512_winograd_f32_32x14",
    "avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "aarch64")]
instance!(neon, Neon, [1: [1 2 3 4 5]], "neon_winograd_f32_16x5", "neon");

/// Products in assembly between the transforms of plain Rust.
#[cfg(target_arch = "arm")]
mod neon32 {
    use super::*;
    use crate::winograd::neon32::product as multiply;

    pub(super) static KERNELS: Kernels = Kernels {
        name: "neon32_winograd_f32_16x3",
        vectors: 1,
        round: None,
        product: &[&[multiply::<1>, multiply::<2>, multiply::<3>]],
        two: plain::transforms::<4>(),
        four: plain::transforms::<6>(),
    };
}

instance!(half Int16, plain_half, Plain, [1: [1 2 3 4]], "plain_winograd_i16_16x4");
#[cfg(target_arch = "x86_64")]
instance!(half Int16, avx2_half, Avx2, [1: [1 2 3 4 5 6]], "avx2_winograd_i16_16x6", "avx2,fma");
#[cfg(target_arch = "x86_64")]
instance!(
    half Int16,
    avx512_half,
    Avx512,
    [2: [1 2 3 4 5 6 7 8 9 10 11 12 13], 3: [1 2 3 4 5 6 7 8 9]],
    "avx512_winograd_i16_32x13",
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);
#[cfg(target_arch = "aarch64")]
instance!(
    half Float16,
    neon_half,
    Neon,
    [1: [1 2 3 4 5 6 7 8]],
    "neonhalf_winograd_f16_16x8",
    "neon,fp16"
);
#[cfg(test)]
instance!(half Float16, plain_float16, Plain, [1: [1 2 3 4]], "plain_winograd_f16_16x4");
