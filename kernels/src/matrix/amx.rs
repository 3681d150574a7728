//! Products in the tile registers of AMX, in assembly: its intrinsics are not stable. A register holds
//! sixteen rows of 64 bytes: sixteen pixels, or the weights of sixteen output channels by four bytes, or
//! the sums of both. Knows what `matrix` knows, and an instruction for each type of numbers.

use std::arch::asm;

use super::{BLOCK, GROUP, Kernels, Product, SUM};
use crate::vector::LANES;

/// What `ldtilecfg` reads: every register has sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Shapes this thread's tile registers.
///
/// # Safety
///
/// AMX, and Linux's permission to use it, see [`crate::isa`].
unsafe fn begin() {
    // SAFETY: the caller's. The compiler does not use tile registers.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) }
}

/// Gives this thread's tile registers back, so that nothing is kept of them while it waits.
///
/// # Safety
///
/// As [`begin`] has it.
unsafe fn end() {
    // SAFETY: the caller's.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// A load of a register, so many bytes after place `x` in a row of inputs or weights, which are so many
/// bytes apart.
macro_rules! load {
    ($register:literal, $from:literal, $x:literal, $apart:literal, $after:literal) => {
        concat!(
            "tileloadd ",
            $register,
            ", [{",
            $from,
            "} + 1 * {row} + ",
            $x,
            " * ",
            $apart,
            " + ",
            $after,
            "]\n",
        )
    };
}

/// One tap of two tiles by two blocks, of which `x` is the place in its row.
macro_rules! two_tiles_by_two {
    ($multiply:literal, $x:literal) => {
        concat!(
            load!("tmm4", "inputs", $x, 64, 0),
            load!("tmm6", "weights", $x, 2048, 0),
            load!("tmm7", "weights", $x, 2048, 1024),
            load!("tmm5", "inputs", $x, 64, 1024),
            $multiply,
            " tmm0, tmm4, tmm6\n",
            $multiply,
            " tmm1, tmm4, tmm7\n",
            $multiply,
            " tmm2, tmm5, tmm6\n",
            $multiply,
            " tmm3, tmm5, tmm7\n",
        )
    };
}

/// One tap of one tile by two blocks.
macro_rules! tile_by_two {
    ($multiply:literal, $x:literal) => {
        concat!(
            load!("tmm4", "inputs", $x, 64, 0),
            load!("tmm6", "weights", $x, 2048, 0),
            load!("tmm7", "weights", $x, 2048, 1024),
            $multiply,
            " tmm0, tmm4, tmm6\n",
            $multiply,
            " tmm1, tmm4, tmm7\n",
        )
    };
}

/// One tap of one tile by three blocks.
macro_rules! tile_by_three {
    ($multiply:literal, $x:literal) => {
        concat!(
            load!("tmm4", "inputs", $x, 64, 0),
            load!("tmm5", "weights", $x, 3072, 0),
            load!("tmm6", "weights", $x, 3072, 1024),
            load!("tmm7", "weights", $x, 3072, 2048),
            $multiply,
            " tmm0, tmm4, tmm5\n",
            $multiply,
            " tmm1, tmm4, tmm6\n",
            $multiply,
            " tmm2, tmm4, tmm7\n",
        )
    };
}

/// A product of some tiles by a panel: what multiplies, how many blocks the panel has, what is done for
/// a tap, and what before all taps and after them.
macro_rules! product {
    ($name:ident, $multiply:literal, $panel:literal, $tap:ident, [$($zero:literal)*], [$($store:literal)*]) => {
        /// Tiles by a panel, as the name says.
        ///
        /// # Safety
        ///
        /// As [`begin`](super::begin) has it, which this thread has called; the layouts of [`Product`],
        /// with at least one group.
        pub(crate) unsafe fn $name(job: &Product) {
            // SAFETY: the caller's; the sums and the registers named are written.
            unsafe {
                asm!(
                    $($zero,)*
                    "2:",
                    "mov {rows:e}, 3",
                    "3:",
                    $tap!($multiply, 0),
                    $tap!($multiply, 1),
                    $tap!($multiply, 2),
                    "add {inputs}, {next_row}",
                    "add {weights}, {row_of_weights}",
                    "dec {rows:e}",
                    "jnz 3b",
                    "add {inputs}, {next_group}",
                    "dec {groups}",
                    "jnz 2b",
                    $($store,)*
                    inputs = inout(reg) job.inputs => _,
                    weights = inout(reg) job.weights => _,
                    groups = inout(reg) job.groups => _,
                    rows = out(reg) _,
                    row = in(reg) GROUP,
                    next_row = in(reg) job.next_row,
                    next_group = in(reg) job.next_group - 3 * job.next_row,
                    to = in(reg) job.to,
                    to_row = in(reg) $panel * LANES * SUM,
                    row_of_weights = const 3 * $panel * BLOCK,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        }
    };
}

/// The products of one type of numbers.
macro_rules! products {
    ($(#[$what:meta])* $numbers:ident, $multiply:literal) => {
        $(#[$what])*
        pub(crate) mod $numbers {
            use super::*;

            product!(
                one_by_two,
                $multiply,
                2,
                tile_by_two,
                ["tilezero tmm0" "tilezero tmm1"],
                [
                    "tilestored [{to} + 1 * {to_row}], tmm0"
                    "tilestored [{to} + 1 * {to_row} + 64], tmm1"
                ]
            );

            product!(
                two_by_two,
                $multiply,
                2,
                two_tiles_by_two,
                ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
                [
                    "tilestored [{to} + 1 * {to_row}], tmm0"
                    "tilestored [{to} + 1 * {to_row} + 64], tmm1"
                    "tilestored [{to} + 1 * {to_row} + 2048], tmm2"
                    "tilestored [{to} + 1 * {to_row} + 2048 + 64], tmm3"
                ]
            );

            product!(
                one_by_three,
                $multiply,
                3,
                tile_by_three,
                ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2"],
                [
                    "tilestored [{to} + 1 * {to_row}], tmm0"
                    "tilestored [{to} + 1 * {to_row} + 64], tmm1"
                    "tilestored [{to} + 1 * {to_row} + 128], tmm2"
                ]
            );

            pub(crate) static KERNELS: Kernels = Kernels {
                begin,
                end,
                product: [&[one_by_two, two_by_two], &[one_by_three]],
            };
        }
    };
}

products!(
    /// Unsigned bytes by int8, in int32.
    bytes,
    "tdpbusd"
);
products!(
    /// Bfloat16, in float32; what is smaller than its smallest normal number is taken as zero.
    bfloat16,
    "tdpbf16ps"
);
