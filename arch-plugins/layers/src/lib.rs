//! Parts that two or more architectures share.
//!
//! A model is written with these parts so that it reads like its paper: weight formats, quantization,
//! tensor parallelism and CPU kernels are properties of a layer, not of a model. Everything a model touches
//! is a candle [`Tensor`] of shape `[tokens, features]`, all sequences of a step side by side.
//!
//! Nothing here knows an architecture, and nothing here talks to the network or a clock.

pub mod activation;
pub mod attention;
pub mod batch;
pub mod comm;
pub mod decoder;
pub mod device;
pub mod embedding;
pub mod error;
pub mod feed_forward;
pub mod gated_delta_net;
pub mod grouped_attention;
pub mod kernel;
pub mod kv;
pub mod linear;
pub mod mistake;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod placement;
pub mod planning;
pub mod quant;
pub mod rotary;
pub mod sequences;
pub mod serving;
mod slice;
pub mod trace;
pub mod weights;

pub use candle_core::{DType, Device, Tensor};
pub use error::{Error, Result};
