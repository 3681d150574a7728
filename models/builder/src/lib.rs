//! Makes vggd model sets: variants of one trained VGG-19, as ordinary ONNX with external data.
//!
//! The way of a network from the file it was trained into to a set on disk:
//!
//! ```text
//! URL                fetch: downloaded in as many attempts as it takes, and checked
//! FILE               source: safetensors, .pth or ONNX, mapped and not read
//!   Network          network: the 38 tensors, checked against the topology, which is fixed but for
//!                    its widths; a tensor borrows from the file or owns what was computed
//!   Network …        changed, as often as the plan says:
//!                      prune: fewer filters, the others refitted by regression
//!                      finetune: back-propagation towards the answers of the whole network
//!   variants         variant: a network in a form:
//!                      scale: another input side, pooling folded into the first linear layer
//!                      quantize: linear layers as int8, one scale per row and 64 columns
//!                      calibrate: convolutions as int8, from the activations of photos
//!   parts            parts: weight files, each tensor once, computed while it is written
//!   graphs           onnx: one graph per variant, which refers to parts by file and offset
//!   DIR              set: written beside its place, checksummed, moved there in one step
//! ```
//!
//! [`build`] strings them together as a [`plan`] says, [`import`] without photos; [`adapt`] refits the
//! classifier for other classes. Photos go through a network in [`forward`] and its answers are
//! compared in [`judge`]. Nothing in the daemon depends
//! on this crate; its tests use [`tiny`].

#[cfg(target_endian = "big")]
compile_error!("ONNX and safetensors are little-endian, and this crate maps them as they are");

pub mod adapt;
pub mod build;
pub mod evaluate;
pub mod import;
pub mod plan;

pub mod batch_norm;
pub mod fetch;
pub mod labels;
pub mod network;
pub mod source;
pub mod tensor;
pub mod topology;

pub mod finetune;
pub mod forward;
pub mod judge;
pub mod photos;
pub mod picture;
pub mod prune;
pub mod regression;

pub mod calibrate;
pub mod onnx;
pub mod parts;
pub mod quantize;
pub mod scale;
pub mod variant;

pub mod checksum;
pub mod digest;
pub mod progress;
pub mod random;
pub mod set;
pub mod weights;

pub mod tiny;
