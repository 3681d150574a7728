//! The kernels of each instruction set.

use super::Parameters;
use super::direct::{Border, DirectKernels, Pixels, border, pack as pack_direct, pixels};
use super::matrix::{MatrixKernels, PLAIN, Store, store};
use super::transform::{Input, Output, input, output};
use super::winograd::{Product, WinogradKernels, pack as pack_winograd, product};
use crate::integer::Dot;
#[cfg(target_arch = "aarch64")]
use crate::integer::neon::{NeonLong, NeonQuads, NeonSums, NeonWords};
use crate::integer::plain::{PlainDot, PlainSums, PlainWords};
#[cfg(target_arch = "x86_64")]
use crate::integer::{
    avx2::{Avx2Pairs, Avx2Sums, Avx2Words},
    avx512::{Avx512Pairs, Avx512Sums, VnniPairs, VnniQuads},
};
use crate::isa::{Isa, Kind};
use crate::panels::Panels;

/// What one instruction set has.
pub(super) struct Kernels {
    /// Blocks of output channels of a panel.
    pub(super) vectors: usize,
    pub(super) direct: DirectKernels,
    pub(super) winograd: WinogradKernels,
    pub(super) matrix: MatrixKernels,
}

/// The kernels for `isa`.
pub(super) fn of(isa: Isa) -> &'static Kernels {
    match isa.kind() {
        Kind::Plain => &plain::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Vnni => &vnni::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Kind::Amx => &amx::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => &neon::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Kind::NeonDot | Kind::NeonHalf => &neondot::KERNELS,
        #[cfg(target_arch = "arm")]
        Kind::Neon32 => &plain::KERNELS,
    }
}

/// A module of kernels: what multiplies in `direct` and in `winograd`, words, sums, vectors of a
/// panel, pixels or tiles, their names. Products of matrices are the plain ones.
macro_rules! instance {
    ($module:ident, [$direct:ty, $winograd:ty, $words:ty, $sums:ty], $speed:literal,
     [$($panel:literal: $tiles:tt),+], [$direct_name:literal, $winograd_name:literal],
     $matrix:expr $(, $features:literal)?) => {
        mod $module {
            use super::*;

            pub(super) static KERNELS: Kernels = Kernels {
                vectors: instance!(@first $($panel)+),
                direct: DirectKernels {
                    name: $direct_name,
                    group: <$direct>::GROUP,
                    offset: <$direct>::OFFSET,
                    speed: $speed,
                    element: size_of::<<$direct as Dot>::Input>(),
                    pack: pack_direct::<$direct>,
                    border: add_border,
                    pixels: &[$(&instance!(@tiles some_pixels $panel $tiles)),+],
                },
                winograd: WinogradKernels {
                    name: $winograd_name,
                    pack: pack_transformed,
                    input: transform_input,
                    product: &[$(&instance!(@tiles multiply $panel $tiles)),+],
                    output: transform_output,
                },
                matrix: MatrixKernels { store: store_sums, ..$matrix },
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn store_sums(job: &Store<'_>) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { store::<$sums>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn add_border(job: &Border) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { border::<$direct>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn some_pixels<const P: usize, const T: usize>(job: &Pixels) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { pixels::<$direct, P, T>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn pack_transformed(parameters: &Parameters<'_>, panels: Panels, to: &mut [u8]) {
                pack_winograd::<$winograd>(parameters, panels, to)
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn transform_input(job: &Input) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { input::<$words>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply<const P: usize, const T: usize>(job: &Product) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { product::<$winograd, P, T>(job) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn transform_output(job: &Output) {
                // SAFETY: this function has the features; the layouts are the caller's.
                unsafe { output::<$sums>(job) }
            }
        }
    };
    (@first $first:literal $($other:literal)*) => { $first };
    (@tiles $kernel:ident $panel:literal [$($tiles:literal)*]) => { [$($kernel::<$panel, $tiles>),*] };
}

const PLAIN_MATRIX: MatrixKernels = MatrixKernels {
    name: "plain_matrix_u8i8_32x32",
    fast: false,
    products: &PLAIN,
    store: store::<PlainSums>,
};

#[cfg(target_arch = "x86_64")]
const AMX_MATRIX: MatrixKernels = MatrixKernels {
    name: "amx_matrix_u8i8_32x32",
    fast: true,
    products: &crate::matrix::amx::bytes::KERNELS,
    ..PLAIN_MATRIX
};

instance!(
    plain,
    [PlainDot, PlainDot, PlainWords, PlainSums],
    1,
    [1: [1 2 3 4]],
    ["plain_direct3x3_u8i8_16x4", "plain_winograd_u8i8_16x4"],
    PLAIN_MATRIX
);
#[cfg(target_arch = "x86_64")]
instance!(
    avx2,
    [Avx2Pairs, Avx2Pairs, Avx2Words, Avx2Sums],
    1,
    [1: [1 2 3 4 5 6]],
    ["avx2_direct3x3_u8i8_16x6", "avx2_winograd_u8i8_16x6"],
    PLAIN_MATRIX,
    "avx2,fma"
);
#[cfg(target_arch = "x86_64")]
instance!(
    avx512,
    [Avx512Pairs, Avx512Pairs, Avx2Words, Avx512Sums],
    1,
    [2: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 3: [1 2 3 4 5 6 7 8 9]],
    ["avx512_direct3x3_u8i8_32x14", "avx512_winograd_u8i8_32x14"],
    PLAIN_MATRIX,
    "avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "x86_64")]
instance!(
    vnni,
    [VnniQuads, VnniPairs, Avx2Words, Avx512Sums],
    2,
    [2: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 3: [1 2 3 4 5 6 7 8 9]],
    ["avx512vnni_direct3x3_u8i8_32x14", "avx512vnni_winograd_u8i8_32x14"],
    PLAIN_MATRIX,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);
#[cfg(target_arch = "x86_64")]
instance!(
    amx,
    [VnniQuads, VnniPairs, Avx2Words, Avx512Sums],
    2,
    [2: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 3: [1 2 3 4 5 6 7 8 9]],
    ["avx512vnni_direct3x3_u8i8_32x14", "avx512vnni_winograd_u8i8_32x14"],
    AMX_MATRIX,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);
#[cfg(target_arch = "aarch64")]
instance!(
    neon,
    [NeonLong, NeonLong, NeonWords, NeonSums],
    1,
    [1: [1 2 3 4 5 6]],
    ["neon_direct3x3_u8i8_16x6", "neon_winograd_u8i8_16x6"],
    PLAIN_MATRIX,
    "neon"
);
#[cfg(target_arch = "aarch64")]
instance!(
    neondot,
    [NeonQuads, NeonLong, NeonWords, NeonSums],
    8,
    [1: [1 2 3 4 5 6]],
    ["neondot_direct3x3_u8i8_16x6", "neon_winograd_u8i8_16x6"],
    PLAIN_MATRIX,
    "neon,dotprod"
);
