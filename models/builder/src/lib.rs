//! Makes vggd model sets: variants of one trained VGG-19, as ordinary ONNX with external data.
//!
//! The way of a network from the file it was trained into to a set on disk:
//!
//! ```text
//! FILE.safetensors   source: mapped, not read
//!   Network          network: the 38 tensors, checked against the topology, which is fixed but for
//!                    its widths; a tensor borrows from the file or owns what was computed
//!   parts            parts: weight files, each tensor once, computed while it is written
//!                      quantize: int8, one scale per row and 64 columns
//!                      scale: another input side, pooling folded into the first linear layer
//!   graphs           onnx: one graph per variant, which refers to parts by file and offset
//!   DIR              set: written beside its place, checksummed, moved there in one step
//! ```
//!
//! [`import`] is the command that strings them together. Nothing here runs a network, and nothing
//! in the daemon depends on this crate; its tests use [`tiny`].

#[cfg(target_endian = "big")]
compile_error!("ONNX and safetensors are little-endian, and this crate maps them as they are");

pub mod import;

pub mod labels;
pub mod network;
pub mod source;
pub mod tensor;
pub mod topology;

pub mod onnx;
pub mod parts;
pub mod quantize;
pub mod scale;

pub mod progress;
pub mod set;
pub mod weights;

pub mod tiny;
