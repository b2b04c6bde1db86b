//! Rotary position embedding: frequencies, their scaling, and the rotation.
//!
//! Angles are f32 whatever the model's dtype, and the rotation is computed in f32 and rounded once. Positions
//! are absolute; a model with several position rows per token says which row each frequency takes.
//!
//! Off the host the rotation is candle-nn's. There text is rotated in the dtype of the activations, as the
//! reference does, and a vision tower's patches in f32; cosines and sines are uploaded once per step.

use std::f64::consts::PI;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use crate::device::on_host;
use crate::error::{Error, Result};
use crate::kernel::{Shared, pool};
use crate::slice;

/// How frequencies are stretched for contexts longer than the model was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// As none up to the original context, which is then the longest that can be served: beyond it the
    /// reference changes the angles of keys it has already cached.
    Dynamic,
    /// Long wavelengths divided, short ones kept, those between blended.
    Llama3 {
        /// What long wavelengths are divided by.
        factor: f64,
        /// `low_freq_factor`
        low: f64,
        /// `high_freq_factor`
        high: f64,
        /// Context the model was first trained on.
        original: f64,
    },
    /// Blended between extrapolation and interpolation, and attention sharpened.
    Yarn {
        /// Extension of the context.
        factor: f64,
        /// Context the model was first trained on.
        original: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
        /// Round the blend's ends to whole dimensions.
        truncate: bool,
    },
    /// Each frequency divided by a number of its own (a GGUF's `rope_freqs`).
    PerFrequency(Vec<f32>),
}

/// What the `rope_*` keys of a configuration say.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Dimensions of a head that are rotated, the first ones.
    pub rotary_dim: usize,
    /// Scaling of the frequencies.
    pub scaling: Scaling,
}

/// Keys of a rope object that mean something here.
const KNOWN_KEYS: [&str; 18] = [
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "partial_rotary_factor",
    "mrope_section",
    "mrope_interleaved",
    "finetuned",
    "max_position_embeddings",
];

impl RotaryConfig {
    /// No scaling, all dimensions rotated.
    pub fn plain(theta: f64, head_dim: usize) -> Self {
        Self { theta, head_dim, rotary_dim: head_dim, scaling: Scaling::None }
    }

    /// Reads the old spelling (`rope_theta` and `rope_scaling`) and the new one (`rope_parameters`) from a
    /// model's configuration, `partial_rotary_factor` included. Unknown types and keys are refused.
    pub fn from_json(config: &Map<String, Value>, head_dim: usize) -> Result<Self> {
        let empty = Map::new();
        let object = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(Error::Unsupported(format!("`{key}` is {other}, not an object"))),
        };
        let rope = match object("rope_parameters")? {
            Some(map) => map,
            None => object("rope_scaling")?.unwrap_or(&empty),
        };
        if let Some(key) = rope.keys().find(|key| !KNOWN_KEYS.contains(&key.as_str())) {
            return Err(Error::Unsupported(format!("rope setting `{key}` is unknown to this build")));
        }
        let either = |key: &str| rope.get(key).or_else(|| config.get(key)).and_then(Value::as_f64);
        let theta = either("rope_theta").unwrap_or(10000.0);
        let part = either("partial_rotary_factor").unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * part) as usize;
        let scaling = scaling(rope, config)?;
        Ok(Self { theta, head_dim, rotary_dim, scaling })
    }

    /// Frequencies `[rotary_dim / 2]`, and what cos and sin are multiplied by.
    fn frequencies(&self) -> Result<(Vec<f32>, f32)> {
        let half = self.rotary_dim / 2;
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > self.head_dim {
            return Err(Error::Unsupported(format!(
                "{} of {} dimensions of a head cannot be rotated in pairs",
                self.rotary_dim, self.head_dim
            )));
        }
        let plain = (0..half).map(|j| self.theta.powf(-2.0 * j as f64 / self.rotary_dim as f64));
        let mut magnitude = 1.0;
        let inverse: Vec<f64> = match &self.scaling {
            Scaling::None | Scaling::Dynamic => plain.collect(),
            Scaling::Linear { factor } => plain.map(|inv| inv / factor).collect(),
            Scaling::Llama3 { factor, low, high, original } => plain
                .map(|inv| {
                    let wavelength = 2.0 * PI / inv;
                    if wavelength < original / high {
                        inv
                    } else if wavelength > original / low {
                        inv / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * inv / factor + smooth * inv
                    }
                })
                .collect(),
            Scaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => {
                magnitude = *attention_factor;
                let (low, high) = self.yarn_range(*original, *beta_fast, *beta_slow, *truncate);
                plain
                    .enumerate()
                    .map(|(j, inv)| {
                        let ramp = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        inv / factor * ramp + inv * (1.0 - ramp)
                    })
                    .collect()
            }
            Scaling::PerFrequency(factors) => {
                if factors.len() != half {
                    return Err(Error::Unsupported(format!(
                        "{} rope factors for {half} frequencies",
                        factors.len()
                    )));
                }
                plain.zip(factors).map(|(inv, factor)| inv / f64::from(*factor)).collect()
            }
        };
        Ok((inverse.into_iter().map(|inv| inv as f32).collect(), magnitude as f32))
    }

    /// Dimensions between which YaRN blends.
    fn yarn_range(&self, original: f64, fast: f64, slow: f64, truncate: bool) -> (f64, f64) {
        let dim = self.rotary_dim as f64;
        let at = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (at(fast), at(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        (low, if low == high { high + 0.001 } else { high })
    }
}

fn scaling(rope: &Map<String, Value>, config: &Map<String, Value>) -> Result<Scaling> {
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
    let kind = kind.unwrap_or("default");
    let number = |key: &str| rope.get(key).and_then(Value::as_f64);
    let needed = |key: &str| {
        number(key).ok_or_else(|| Error::Unsupported(format!("rope type `{kind}` needs `{key}`")))
    };
    let original = || {
        number("original_max_position_embeddings")
            .or_else(|| config.get("max_position_embeddings").and_then(Value::as_f64))
            .ok_or_else(|| Error::Unsupported("rope scaling needs the original context length".into()))
    };
    Ok(match kind {
        "default" | "mrope" => Scaling::None,
        "linear" => Scaling::Linear { factor: needed("factor")? },
        "dynamic" => Scaling::Dynamic,
        "llama3" => Scaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original: original()?,
        },
        "yarn" => {
            let factor = needed("factor")?;
            let sharpness = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
            let attention_factor = number("attention_factor").unwrap_or_else(|| {
                match (number("mscale"), number("mscale_all_dim")) {
                    (Some(one), Some(all)) if one != 0.0 && all != 0.0 => sharpness(one) / sharpness(all),
                    _ => sharpness(1.0),
                }
            });
            Scaling::Yarn {
                factor,
                original: original()?,
                beta_fast: number("beta_fast").unwrap_or(32.0),
                beta_slow: number("beta_slow").unwrap_or(1.0),
                attention_factor,
                truncate: rope.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            }
        }
        other => {
            return Err(Error::Unsupported(format!(
                "rope type `{other}` is unknown; default, linear, dynamic, llama3 and yarn are served"
            )));
        }
    })
}

/// Which dimensions form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `(d, d + R/2)`: HuggingFace checkpoints.
    Halves,
    /// `(2d, 2d + 1)`: llama GGUFs, whose query and key rows are stored in that order.
    Adjacent,
}

/// Frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse: Vec<f32>,
    magnitude: f32,
    pairs: Pairs,
}

impl Rotary {
    /// Computes the frequencies.
    pub fn new(config: &RotaryConfig, pairs: Pairs) -> Result<Self> {
        let (inverse, magnitude) = config.frequencies()?;
        Ok(Self { inverse, magnitude, pairs })
    }

    /// Cos and sin for absolute positions, one per token.
    pub fn at(&self, positions: &[u32]) -> Angles {
        self.at_axes([positions; 3], &|_| 0)
    }

    /// Cos and sin for three rows of positions: frequency `j` takes row `axis(j)`.
    pub fn at_axes(&self, positions: [&[u32]; 3], axis: &dyn Fn(usize) -> usize) -> Angles {
        let half = self.inverse.len();
        let rows: Vec<&[u32]> = (0..half).map(|j| positions[axis(j)]).collect();
        let tokens = positions[0].len();
        let mut angles = Vec::with_capacity(tokens * half);
        for token in 0..tokens {
            angles.extend(rows.iter().zip(&self.inverse).map(|(row, inv)| row[token] as f32 * inv));
        }
        Angles::new(&angles, half, self.magnitude, self.pairs)
    }
}

/// Cos and sin of a step's tokens.
#[derive(Debug, Clone)]
pub struct Angles {
    /// `[tokens, half]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    pairs: Pairs,
    /// Rotate in f32 off the host as well.
    wide: bool,
    /// Both where the activations are, in the dtype of the rotation.
    placed: OnceLock<(Tensor, Tensor)>,
}

impl Angles {
    fn new(angles: &[f32], half: usize, magnitude: f32, pairs: Pairs) -> Self {
        let scaled = |f: fn(f32) -> f32| angles.iter().map(|&angle| f(angle) * magnitude).collect();
        let (cos, sin) = (scaled(f32::cos), scaled(f32::sin));
        Self { cos, sin, half, pairs, wide: false, placed: OnceLock::new() }
    }

    /// From angles `[tokens, rotary_dim / 2]` computed elsewhere (a vision tower), halves paired.
    pub fn from_angles(angles: &[f32], half: usize) -> Self {
        Self { wide: true, ..Self::new(angles, half, 1.0, Pairs::Halves) }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.cos.len() / self.half
    }

    /// `[tokens, rotary_dim]`, the half repeated, as the reference shows it.
    pub fn cos(&self) -> Result<Tensor> {
        self.repeated(&self.cos)
    }

    /// `[tokens, rotary_dim]`, the half repeated, as the reference shows it.
    pub fn sin(&self) -> Result<Tensor> {
        self.repeated(&self.sin)
    }

    fn repeated(&self, values: &[f32]) -> Result<Tensor> {
        let half = Tensor::from_slice(values, (self.tokens(), self.half), &Device::Cpu)?;
        Ok(Tensor::cat(&[&half, &half], 1)?)
    }

    /// Rotates `x [tokens, heads, head_dim]`; dimensions past the rotated ones stay as they are.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, head_dim) = x.dims3()?;
        if tokens != self.tokens() || head_dim < 2 * self.half {
            return Err(Error::Internal(format!("rotation of {} tokens for {:?}", self.tokens(), x.dims())));
        }
        if !on_host(x.device()) {
            return self.apply_placed(x);
        }
        let mut values = slice::to_vec(x)?;
        let row = heads * head_dim;
        let shared = Shared(values.as_mut_ptr());
        pool::split(tokens, (1 << 14) / row.max(1) + 1, &|start, end| {
            for token in start..end {
                // SAFETY: each token has `row` values of its own in a vector of `tokens · row`.
                let heads = unsafe { std::slice::from_raw_parts_mut(shared.at(token * row), row) };
                let at = token * self.half;
                let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
                for head in heads.chunks_exact_mut(head_dim) {
                    rotate(head, cos, sin, self.pairs);
                }
            }
        });
        slice::tensor(values, x.dims(), DType::F32)?.to_dtype(x.dtype()).map_err(Into::into)
    }
}

impl Angles {
    fn apply_placed(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, head_dim) = x.dims3()?;
        let dtype = if self.wide { DType::F32 } else { x.dtype() };
        let (cos, sin) = self.placed_on(x.device(), dtype)?;
        let turned = x.narrow(2, 0, 2 * self.half)?.to_dtype(dtype)?.contiguous()?;
        let turned = match self.pairs {
            Pairs::Halves => candle_nn::rotary_emb::rope_thd(&turned.unsqueeze(0)?, cos, sin)?.squeeze(0)?,
            Pairs::Adjacent => {
                // Tokens as a batch of one position each, whose angles are their own.
                let each = (tokens, 1, self.half);
                let turned = turned.reshape((tokens, heads, 1, 2 * self.half))?;
                candle_nn::rotary_emb::rope_i(&turned, &cos.reshape(each)?, &sin.reshape(each)?)?
                    .squeeze(2)?
            }
        };
        let turned = turned.to_dtype(x.dtype())?;
        if head_dim == 2 * self.half {
            return Ok(turned);
        }
        let rest = x.narrow(2, 2 * self.half, head_dim - 2 * self.half)?;
        Ok(Tensor::cat(&[&turned, &rest.contiguous()?], 2)?)
    }

    fn placed_on(&self, device: &Device, dtype: DType) -> Result<&(Tensor, Tensor)> {
        if let Some(placed) = self.placed.get() {
            return Ok(placed);
        }
        let place = |values: &[f32]| -> Result<Tensor> {
            Ok(Tensor::from_slice(values, (self.tokens(), self.half), device)?.to_dtype(dtype)?)
        };
        let placed = (place(&self.cos)?, place(&self.sin)?);
        Ok(self.placed.get_or_init(|| placed))
    }
}

fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], pairs: Pairs) {
    let half = cos.len();
    match pairs {
        Pairs::Halves => {
            let (first, rest) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        Pairs::Adjacent => {
            for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<RotaryConfig> {
        let json: Value = serde_json::from_str(text).expect("JSON");
        RotaryConfig::from_json(json.as_object().expect("an object"), 16)
    }

    fn frequencies(text: &str) -> (Vec<f32>, f32) {
        config(text).and_then(|config| config.frequencies()).expect("frequencies")
    }

    #[test]
    fn scaling_changes_frequencies_as_published() {
        let plain: Vec<f64> = (0..8).map(|j| 10000f64.powf(-f64::from(j) / 8.0)).collect();
        let (linear, magnitude) = frequencies(r#"{"rope_scaling": {"type": "linear", "factor": 4.0}}"#);
        assert_eq!(magnitude, 1.0);
        for (got, plain) in linear.iter().zip(&plain) {
            assert!((f64::from(*got) - plain / 4.0).abs() < 1e-7);
        }
        // Blended between dimensions 0 and 4: worked out by hand for a context of 256 stretched four times.
        let (yarn, magnitude) = frequencies(
            r#"{"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 256}}"#,
        );
        assert!((f64::from(magnitude) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-6);
        for (j, (got, plain)) in yarn.iter().zip(&plain).enumerate() {
            let ramp = (j as f64 / 4.0).min(1.0);
            let expected = plain / 4.0 * ramp + plain * (1.0 - ramp);
            assert!((f64::from(*got) - expected).abs() < 1e-7, "dimension {j}: {got}, not {expected}");
        }
    }

    #[test]
    fn part_of_a_head_may_be_rotated_and_the_rest_stays() {
        let config = config(r#"{"rope_parameters": {"partial_rotary_factor": 0.5}}"#).expect("a config");
        assert_eq!(config.rotary_dim, 8);
        let angles = Rotary::new(&config, Pairs::Halves).expect("frequencies").at(&[3]);
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let x = Tensor::from_vec(x, (1, 1, 16), &Device::Cpu).expect("a tensor");
        let got = slice::to_vec(&angles.apply(&x).expect("a rotation")).expect("numbers");
        assert_eq!(got[8..], (8..16).map(|i| i as f32).collect::<Vec<_>>());
        let (sin, cos) = 3f32.sin_cos();
        assert!((got[0] - (0.0 * cos - 4.0 * sin)).abs() < 1e-6 && (got[4] - 4.0 * cos).abs() < 1e-6);
    }

    #[test]
    fn neighbours_are_the_halves_in_another_order() {
        let config = RotaryConfig::plain(10000.0, 16);
        let rotated = |pairs, values: Vec<f32>| {
            let angles = Rotary::new(&config, pairs).expect("frequencies").at(&[7]);
            let x = Tensor::from_vec(values, (1, 1, 16), &Device::Cpu).expect("a tensor");
            slice::to_vec(&angles.apply(&x).expect("a rotation")).expect("numbers")
        };
        let halves: Vec<f32> = (0..16).map(|i| (i as f32).sin()).collect();
        let order: Vec<usize> = (0..16).map(|i| i / 2 + 8 * (i % 2)).collect();
        let neighbours = order.iter().map(|&i| halves[i]).collect();
        let (halves, neighbours) = (rotated(Pairs::Halves, halves), rotated(Pairs::Adjacent, neighbours));
        assert_eq!(order.iter().map(|&i| halves[i]).collect::<Vec<_>>(), neighbours);
    }

    #[test]
    fn frequencies_may_follow_different_rows_of_positions() {
        let rotary = Rotary::new(&RotaryConfig::plain(10000.0, 6), Pairs::Halves).expect("frequencies");
        let mixed = rotary.at_axes([&[5], &[9], &[2]], &|j| j);
        let single = [rotary.at(&[5]), rotary.at(&[9]), rotary.at(&[2])];
        for (j, single) in single.iter().enumerate() {
            assert_eq!((mixed.cos[j], mixed.sin[j]), (single.cos[j], single.sin[j]));
        }
    }

    #[test]
    fn unknown_kinds_are_refused_by_name() {
        for (text, named) in [
            (r#"{"rope_scaling": {"type": "spiral", "factor": 2.0}}"#, "spiral"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "factor"),
            (r#"{"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}}"#, "twist"),
            (r#"{"rope_scaling": 7}"#, "rope_scaling"),
        ] {
            let error = config(text).expect_err("it is refused").to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        let odd = config(r#"{"partial_rotary_factor": 0.2}"#).and_then(|config| config.frequencies());
        assert!(matches!(odd, Err(Error::Unsupported(_))));
    }
}
