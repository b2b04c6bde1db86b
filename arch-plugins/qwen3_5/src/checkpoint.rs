//! A checkpoint's parts: what its configuration promises, and where in the name tree they are.
//!
//! The decoder's tensors are below `model.language_model.` (below `model.` in some re-saved text checkpoints and in a GGUF), the
//! head is at the top, the tower below `model.visual.`. The draft head `mtp.*` is left alone.

use layers::batch::{Batch, Decoder, EncodedImage};
use layers::trace::Trace;
use layers::weights::Weights;
use layers::{Error, Result, Tensor};

use crate::config::Config;
use crate::image::{ImageProcessor, Rgb};
use crate::model::{Conventions, Images, Qwen3_5};
use crate::state::State;
use crate::vision::VisionTower;

/// What a checkpoint says it is.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: Config,
    /// How images are prepared; `None` without a tower or without a `preprocessor_config.json`.
    pub processor: Option<ImageProcessor>,
    /// How the files keep their tensors.
    pub conventions: Conventions,
}

impl Checkpoint {
    /// From the texts of `config.json` and `preprocessor_config.json`; a GGUF has its metadata instead.
    pub fn new(config: &str, preprocessor: &str, w: &Weights) -> Result<Self> {
        let Some(metadata) = w.gguf() else { return Self::from_json(config, preprocessor) };
        let table = w.shape("model.embed_tokens.weight")?.first().copied().unwrap_or(0);
        let is_linear = |i: usize| w.contains(&format!("model.layers.{i}.linear_attn.out_proj.weight"));
        let config = Config::from_gguf(metadata, table, !w.contains("lm_head.weight"), is_linear)?;
        Ok(Self { config, processor: None, conventions: Conventions::GGUF })
    }

    fn from_json(config: &str, preprocessor: &str) -> Result<Self> {
        let config = Config::from_json(config)?;
        let conventions = Conventions::SAFETENSORS;
        let Some(vision) = config.vision.as_ref().filter(|_| !preprocessor.trim().is_empty()) else {
            return Ok(Self { config, processor: None, conventions });
        };
        let processor = ImageProcessor::from_json(preprocessor)?;
        let asked = (processor.patch_size, processor.temporal_patch_size, processor.merge_size);
        let built = (vision.patch_size, vision.temporal_patch_size, vision.merge_size);
        if asked != built {
            return Err(Error::InvalidInput(format!(
                "preprocessor_config.json cuts patches of {asked:?} (patch, temporal, merge), the vision tower reads \
                 {built:?}"
            )));
        }
        Ok(Self { config, processor: Some(processor), conventions })
    }

    /// Loads everything but does not insist that every tensor was used.
    pub fn load(&self, w: &Weights) -> Result<Model> {
        if self.conventions == Conventions::GGUF && w.placement().comm.world() > 1 {
            return Err(Error::Unsupported(
                "a GGUF of this family keeps its value heads in an order that does not divide over ranks; load it \
                 on one rank, or the safetensors checkpoint on several"
                    .into(),
            ));
        }
        let nested = w.pp("model.language_model");
        let core = if nested.names().is_empty() { w.pp("model") } else { nested };
        let vision = self.config.vision.as_ref().zip(self.config.image_token);
        let images = vision.map(|(vision, token)| Images { token, merge_size: vision.merge_size });
        let decoder = Qwen3_5::load(&core, &w.pp("lm_head"), &self.config.text, images, self.conventions)?;
        let tower = vision.map(|(vision, _)| VisionTower::load(&w.pp("model.visual"), vision)).transpose()?;
        Ok(Model { decoder, tower, processor: self.processor.clone() })
    }

    /// Beginnings of the names of tensors that may be in the files without being used.
    pub fn unused(&self) -> Vec<String> {
        let mut unused = vec!["mtp.".to_string()];
        if self.config.vision.is_none() {
            unused.push("model.visual.".into());
        }
        if self.config.text.tie_word_embeddings {
            unused.push("lm_head.".into());
        }
        // A GGUF keeps the draft head as further blocks.
        let layers = self.config.text.layers.len();
        unused.extend((layers..layers + self.config.draft_layers).map(|i| format!("model.layers.{i}.")));
        unused
    }
}

/// The decoder with its eyes, on one rank.
pub struct Model {
    /// The decoder.
    pub decoder: Qwen3_5,
    /// The tower, if the checkpoint has one.
    pub tower: Option<VisionTower>,
    /// How images are prepared.
    pub processor: Option<ImageProcessor>,
}

impl Model {
    fn eyes(&self) -> Result<(&VisionTower, &ImageProcessor)> {
        let Some(tower) = &self.tower else {
            return Err(Error::Unsupported("this checkpoint has no vision tower".into()));
        };
        let Some(processor) = &self.processor else {
            return Err(Error::Unsupported(
                "this checkpoint has no preprocessor_config.json, which says how its images are prepared"
                    .into(),
            ));
        };
        Ok((tower, processor))
    }
}

impl Decoder for Model {
    type State = State;

    fn new_state(&self) -> State {
        self.decoder.new_state()
    }

    fn forward(&self, batch: &mut Batch<'_, State>, trace: &Trace) -> Result<Tensor> {
        self.decoder.forward(batch, trace)
    }

    fn measure_image(&self, width: usize, height: usize) -> Result<usize> {
        let (_, processor) = self.eyes()?;
        Ok(processor.grid(width, height)?.merged(processor.merge_size).patches())
    }

    fn encode_image(&self, width: usize, height: usize, rgb: &[u8]) -> Result<EncodedImage> {
        let (tower, processor) = self.eyes()?;
        let patches = processor.patches(&Rgb { width, height, pixels: rgb.to_vec() })?;
        let grid = (1, patches.grid.height, patches.grid.width);
        Ok(EncodedImage { embeddings: tower.forward(&patches, &Trace::off(), "image")?, grid })
    }
}
