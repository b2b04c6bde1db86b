//! Qwen3.5: a decoder in which most layers mix tokens with a Gated DeltaNet and every few layers with gated full
//! attention.
//!
//! ```text
//! x = embed(tokens), image placeholders replaced by what the vision tower saw
//! for each layer:   x = x + mixer(norm(x))        mixer: GatedDeltaNet or GatedAttention
//!                   x = x + ffn(norm(x))          ffn: SwiGLU, or a mixture beside a shared expert
//! logits = head(norm(x))
//! ```
//!
//! All RMS norms scale by `1 + w`, except the gated one inside the DeltaNet. Only full attention knows positions.

use layers::attention::KvRow;
use layers::batch::{Batch, BatchRow, Decoder};
use layers::embedding::{Embedding, Head};
use layers::feed_forward::FeedForward;
use layers::gated_delta_net::{DeltaState, KeyHeads};
use layers::linear::{Bias, HeadSplit};
use layers::mlp::SwiGlu;
use layers::moe::{MoeConfig, SparseMoe};
use layers::norm::{RmsNorm, Scale};
use layers::rotary::{Angles, Pairs, Rotary};
use layers::trace::Trace;
use layers::weights::Weights;
use layers::{Error, Result, Tensor};

use crate::attention::GatedAttention;
use crate::config::{FfnConfig, LayerKind, TextConfig};
use crate::delta_net::GatedDeltaNet;
use crate::image::Grid;
use crate::positions::{ImageTokens, Position, axis_of};
use crate::state::{State, StateShape};

/// The decoder on one rank.
pub struct Qwen3_5 {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Head,
    rotary: Rotary,
    mrope_section: [usize; 3],
    images: Option<Images>,
    state: StateShape,
}

struct Layer {
    input_norm: RmsNorm,
    mixer: Mixer,
    post_norm: RmsNorm,
    ffn: FeedForward,
}

#[allow(clippy::large_enum_variant, reason = "one per layer, never moved after loading")]
enum Mixer {
    /// `index` counts the layers with a KV cache.
    Full { attention: GatedAttention, index: usize },
    /// `index` counts the layers with a recurrent state.
    Linear { delta_net: GatedDeltaNet, index: usize },
}

impl Decoder for Qwen3_5 {
    type State = State;

    fn new_state(&self) -> State {
        self.state.empty()
    }

    fn forward(&self, batch: &mut Batch<'_, State>, trace: &Trace) -> Result<Tensor> {
        for row in &mut batch.rows {
            row.state.kv.reserve(row.len)?;
        }
        let mut x = self.embed(batch)?;
        let angles = self.angles(&mut batch.rows, trace)?;
        for (i, layer) in self.layers.iter().enumerate() {
            batch.cancel.check()?;
            trace.tap(|| format!("hidden/{i}"), || Ok(x.clone()))?;
            x = layer.forward(&x, &angles, &mut batch.rows, trace, &format!("layer{i}"))?;
        }
        trace.tap(|| format!("hidden/{}", self.layers.len()), || Ok(x.clone()))?;
        trace.tap(|| "hidden/final", || self.norm.forward(&x))?;
        for row in &mut batch.rows {
            row.state.kv.commit(row.len);
        }
        if batch.logits_of.is_empty() {
            return Ok(x);
        }
        let wanted = Tensor::new(batch.logits_of.as_slice(), x.device())?;
        self.lm_head.forward(&self.norm.forward(&x.index_select(&wanted, 0)?)?)
    }
}

impl Layer {
    fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        rows: &mut [BatchRow<'_, State>],
        trace: &Trace,
        scope: &str,
    ) -> Result<Tensor> {
        let x = (x + self.mixer.forward(&self.input_norm.forward(x)?, angles, rows, trace, scope)?)?;
        let y = self.ffn.forward(&self.post_norm.forward(&x)?, trace, scope)?;
        Ok((x + y)?)
    }
}

impl Mixer {
    fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        rows: &mut [BatchRow<'_, State>],
        trace: &Trace,
        scope: &str,
    ) -> Result<Tensor> {
        match self {
            Mixer::Full { attention, index } => {
                let mut rows: Vec<KvRow<'_>> = rows
                    .iter_mut()
                    .map(|row| KvRow { cache: &mut row.state.kv, offset: row.offset, len: row.len })
                    .collect();
                attention.forward(x, angles, *index, &mut rows, trace, scope)
            }
            Mixer::Linear { delta_net, index } => {
                let spans: Vec<_> = rows.iter().map(|row| row.offset..row.offset + row.len).collect();
                let mut states: Vec<&mut DeltaState> =
                    rows.iter_mut().map(|row| &mut row.state.delta[*index]).collect();
                delta_net.forward(x, &spans, &mut states, trace, scope)
            }
        }
    }
}

impl Qwen3_5 {
    /// Embeddings of all tokens; where a row has an image, the tower's rows in their place.
    fn embed(&self, batch: &Batch<'_, State>) -> Result<Tensor> {
        let x = self.embed_tokens.forward(batch.tokens)?;
        let mut pieces = Vec::new();
        let mut done = 0;
        for row in &batch.rows {
            for image in &row.images {
                let count = image.embeddings.dim(0)?;
                let first = image.position.max(row.position);
                let last = (image.position + count).min(row.position + row.len);
                if first >= last {
                    continue;
                }
                let at = row.offset + first - row.position;
                if at > done {
                    pieces.push(x.narrow(0, done, at - done)?);
                }
                pieces.push(
                    image.embeddings.narrow(0, first - image.position, last - first)?.to_dtype(x.dtype())?,
                );
                done = at + last - first;
                self.expect_placeholders(&batch.tokens[at..done])?;
            }
        }
        if batch.tokens.len() > done {
            pieces.push(x.narrow(0, done, batch.tokens.len() - done)?);
        }
        Ok(Tensor::cat(&pieces, 0)?)
    }

    fn expect_placeholders(&self, tokens: &[u32]) -> Result<()> {
        let placeholder = self.images.map(|images| images.token);
        match tokens.iter().find(|&&token| Some(token) != placeholder) {
            Some(token) => Err(Error::InvalidInput(format!("token {token} stands where an image is"))),
            None => Ok(()),
        }
    }

    /// Rotary angles of all tokens; advances every sequence's position counter.
    fn angles(&self, rows: &mut [BatchRow<'_, State>], trace: &Trace) -> Result<Angles> {
        let mut positions: Vec<Position> = Vec::new();
        let merge_size = self.images.map_or(1, |images| images.merge_size);
        for row in rows {
            let images: Vec<ImageTokens> = row
                .images
                .iter()
                .map(|image| {
                    let (_, height, width) = image.grid;
                    ImageTokens { start: image.position, grid: Grid { height, width }.merged(merge_size) }
                })
                .collect();
            positions.extend(row.state.counter.advance(row.len, &images));
        }
        let axes: [Vec<u32>; 3] = std::array::from_fn(|axis| positions.iter().map(|p| p[axis]).collect());
        let angles = self.rotary.at_axes([&axes[0], &axes[1], &axes[2]], &|j| axis_of(j, self.mrope_section));
        trace.tap(|| "rope/cos", || angles.cos())?;
        trace.tap(|| "rope/sin", || angles.sin())?;
        trace.tap(
            || "position_ids",
            || Ok(Tensor::from_vec(axes.concat(), (3, axes[0].len()), &layers::Device::Cpu)?),
        )?;
        Ok(angles)
    }
}

/// How a container keeps this family's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conventions {
    /// Whether stored norm weights still miss their `1 +`.
    pub norm: Scale,
    /// Order of the value heads.
    pub value_heads: KeyHeads,
}

impl Conventions {
    /// Checkpoints as they are published.
    pub const SAFETENSORS: Self = Self { norm: Scale::Offset, value_heads: KeyHeads::Grouped };
    /// llama.cpp's converter adds the one and cycles the value heads through the key heads.
    pub const GGUF: Self = Self { norm: Scale::Plain, value_heads: KeyHeads::Tiled };
}

/// Images, as far as they concern the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// Token id that stands for one.
    pub token: u32,
    /// Side, in patches, of the block that becomes one token.
    pub merge_size: usize,
}

impl Qwen3_5 {
    /// `core` is the scope of the decoder's tensors, `head` that of `lm_head`.
    pub fn load(
        core: &Weights,
        head: &Weights,
        config: &TextConfig,
        images: Option<Images>,
        conventions: Conventions,
    ) -> Result<Self> {
        let placement = core.placement();
        let split =
            HeadSplit::of(config.attention.heads, config.attention.kv_heads, placement.comm.as_ref())?;
        let layers = (0..config.layers.len())
            .map(|i| Layer::load(&core.pp("layers").pp(i), config, i, &split, conventions))
            .collect::<Result<Vec<_>>>()?;
        let embed_tokens = Embedding::load(&core.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
        let lm_head = if config.tie_word_embeddings {
            Head::tied(&embed_tokens)
        } else {
            Head::load(head, config.vocab_size, config.hidden_size)?
        };
        Ok(Self {
            norm: RmsNorm::load(&core.pp("norm"), config.hidden_size, config.rms_norm_eps, conventions.norm)?,
            rotary: Rotary::new(&config.attention.rotary, Pairs::Halves)?,
            mrope_section: config.attention.mrope_section,
            images,
            state: StateShape::of(
                config,
                split.kv_heads.len(),
                conventions.value_heads,
                placement.comm.world(),
                placement.kept(),
            ),
            embed_tokens,
            layers,
            lm_head,
        })
    }
}

impl Layer {
    fn load(
        w: &Weights,
        config: &TextConfig,
        i: usize,
        split: &HeadSplit,
        conventions: Conventions,
    ) -> Result<Self> {
        let kind = config.layers[i];
        let index = config.layers[..i].iter().filter(|&&earlier| earlier == kind).count();
        let norm =
            |name| RmsNorm::load(&w.pp(name), config.hidden_size, config.rms_norm_eps, conventions.norm);
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            mixer: match kind {
                LayerKind::Full => Mixer::Full {
                    attention: GatedAttention::load(&w.pp("self_attn"), config, split, conventions.norm)?,
                    index,
                },
                LayerKind::Linear => Mixer::Linear {
                    delta_net: GatedDeltaNet::load(&w.pp("linear_attn"), config, conventions.value_heads)?,
                    index,
                },
            },
            post_norm: norm("post_attention_layernorm")?,
            ffn: feed_forward(&w.pp("mlp"), config)?,
        })
    }
}

fn feed_forward(w: &Weights, config: &TextConfig) -> Result<FeedForward> {
    let hidden_size = config.hidden_size;
    match config.ffn {
        FfnConfig::Dense { intermediate_size } => {
            Ok(FeedForward::Dense(SwiGlu::load(w, hidden_size, intermediate_size, Bias::None)?))
        }
        FfnConfig::Mixture { experts, experts_per_token, expert_size, shared_size } => {
            let shared_size = Some(shared_size);
            let mixture = MoeConfig {
                hidden_size,
                experts,
                experts_per_token,
                expert_size,
                renormalise: true,
                shared_size,
            };
            Ok(FeedForward::Mixture(SparseMoe::load(w, &mixture)?))
        }
    }
}
