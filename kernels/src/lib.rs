//! The arithmetic of vggd: slices in, slices out; no files, no graph, and only the threads that
//! the caller brings.
//!
//! In the order a frame flows:
//!
//! - [`direct`]: the first 3x3 convolution, from a planar image.
//! - [`convolution`]: the other 3x3 convolutions with bias, ReLU and max-pool, in float32 or
//!   at half the width.
//! - [`quantized`]: all of them on bytes, in integers.
//! - [`linear`]: fully connected layers, a stream of weights from memory.
//!
//! Underneath:
//!
//! - [`layout`]: where an activation lies.
//! - [`parallel`]: how a kernel gets the caller's threads; [`pool`]: threads that a caller may have.
//! - `winograd`: 3x3 convolutions with fewer multiplications.
//! - `matrix`: 3x3 convolutions where registers hold whole matrices.
//! - `panels`: how output channels are cut into what registers hold.
//! - [`isa`]: what this processor can do; every kernel takes an [`Isa`].
//! - `vector`: sixteen float32 lanes, or pairs of 16 bits each, one file per instruction set.
//! - [`bfloat16`] and `float16`: numbers of that width, as bits.
//! - `integer`: sixteen int32 lanes, and what multiplies and sums, likewise.
//!
//! A kernel is written once over `vector` or `integer` and instantiated once per instruction set,
//! as a function whose name says instruction set, operation, type and tile. The plain
//! instance is the portable twin of the others, and all of them pass the same tests.

pub mod direct;

pub mod convolution;

pub mod quantized;

pub mod linear;

pub mod bfloat16;

pub mod layout;

pub mod parallel;

pub mod pool;

pub mod isa;

mod aligned;
#[cfg(any(test, target_arch = "aarch64"))]
mod float16;
mod integer;
mod matrix;
mod panels;
mod vector;
mod winograd;

#[cfg(test)]
mod random;
#[cfg(test)]
mod reference;

pub use convolution::{Conv3x3, Fuse, Precision};
pub use direct::Direct3x3;
pub use isa::Isa;
pub use parallel::{Parallel, Sequential};
pub use pool::Pool;
pub use quantized::QConv3x3;
pub use winograd::Tile;
