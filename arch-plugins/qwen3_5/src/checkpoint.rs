//! A checkpoint's parts: what its configuration promises, and where in the name tree they are.
//!
//! The decoder's tensors are below `model.language_model.` (below `model.` in some re-saved text checkpoints), the head is
//! at the top, the tower below `model.visual.`. The draft head `mtp.*` is left alone.

use layers::weights::Weights;
use layers::{Error, Result};

use crate::config::Config;
use crate::image::ImageProcessor;
use crate::model::{Conventions, Qwen3_5, Vision};
use crate::vision::VisionTower;

/// Tensors that are in checkpoints and not used here.
const UNUSED: [&str; 1] = ["mtp."];

/// What a checkpoint says it is.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: Config,
    /// How images are prepared; `None` without a tower or without a `preprocessor_config.json`.
    pub processor: Option<ImageProcessor>,
}

/// What a checkpoint becomes on one rank.
pub struct Parts {
    /// The decoder.
    pub decoder: Qwen3_5,
    /// The tower, if the checkpoint has one.
    pub tower: Option<VisionTower>,
}

impl Checkpoint {
    /// From the texts of `config.json` and `preprocessor_config.json`; the latter may be empty.
    pub fn from_json(config: &str, preprocessor: &str) -> Result<Self> {
        let config = Config::from_json(config)?;
        let Some(vision) = config.vision.as_ref().filter(|_| !preprocessor.trim().is_empty()) else {
            return Ok(Self { config, processor: None });
        };
        let processor = ImageProcessor::from_json(preprocessor)?;
        let asked = (processor.patch_size, processor.temporal_patch_size, processor.merge_size);
        let built = (vision.patch_size, vision.temporal_patch_size, vision.merge_size);
        if asked != built {
            return Err(Error::InvalidInput(format!(
                "preprocessor_config.json cuts patches of {asked:?} (patch, temporal, merge), the vision tower reads {built:?}"
            )));
        }
        Ok(Self { config, processor: Some(processor) })
    }

    /// Loads everything; a tensor that is missing, or that nothing asked for, is an error that names it.
    pub fn load(&self, w: &Weights, conventions: Conventions) -> Result<Parts> {
        let nested = w.pp("model.language_model");
        let core = if nested.names().is_empty() { w.pp("model") } else { nested };
        let vision = self.config.vision.as_ref().zip(self.config.image_token);
        let eyes = vision.map(|(vision, image_token)| Vision { image_token, merge_size: vision.merge_size });
        let decoder = Qwen3_5::load(&core, &w.pp("lm_head"), &self.config.text, eyes, conventions)?;
        let visual = w.pp("model.visual");
        let tower = vision.map(|(vision, _)| VisionTower::load(&visual, vision)).transpose()?;
        let mut unused = UNUSED.to_vec();
        if tower.is_none() {
            unused.push("model.visual.");
        }
        if self.config.text.tie_word_embeddings {
            unused.push("lm_head.");
        }
        w.finish(&unused)?;
        Ok(Parts { decoder, tower })
    }
}
