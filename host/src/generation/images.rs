//! A request's pictures: fetched, checked, decoded.

use wire_api::ApiError;
use wire_api::openai::content::ImageUrl;

use super::{blocking, of_prompt};
use crate::prompt::fetch::ImageSource;
use crate::prompt::image::{ImageLimits, decode};
use crate::worker::message::ImagePixels;

/// Where pictures come from and how large they may be. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pictures {
    source: ImageSource,
    limits: ImageLimits,
}

impl Pictures {
    /// Pictures from `source` within `limits`.
    pub fn new(source: ImageSource, limits: ImageLimits) -> Self {
        Self { source, limits }
    }

    /// All pictures of a request, in order.
    pub async fn fetch(&self, wanted: &[ImageUrl]) -> Result<Vec<ImagePixels>, ApiError> {
        if wanted.len() > self.limits.max_count {
            let message = format!("{} images, at most {} are accepted", wanted.len(), self.limits.max_count);
            return Err(ApiError::invalid("messages", message).with_code("too_many_images"));
        }
        let mut pictures = Vec::with_capacity(wanted.len());
        for image in wanted {
            let bytes = self.source.bytes(image).await.map_err(|error| of_prompt(&error))?;
            let limits = self.limits;
            let picture = blocking(move || decode(&bytes, &limits)).await?;
            pictures.push(picture.map_err(|error| of_prompt(&error))?);
        }
        Ok(pictures)
    }
}
