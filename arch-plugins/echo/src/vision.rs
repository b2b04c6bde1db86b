//! Images: a caption made of their size and mean colour, so that tests see that the right pixels arrived.

use std::sync::Arc;

use plugin_sdk::{Encoded, Error, ImageView, Result};

/// A token stands for a square of so many pixels a side.
const PATCH: usize = 16;

/// Longest side of an image, in pixels.
const LONGEST: usize = 1024;

/// Working memory for the largest image.
pub(crate) const LARGEST_BYTES: u64 = (LONGEST * LONGEST * 3) as u64;

/// Tokens an image of this size takes.
pub(crate) fn measure(width: usize, height: usize) -> Result<usize> {
    if width == 0 || height == 0 || width > LONGEST || height > LONGEST {
        return Err(Error::InvalidInput(format!(
            "an image of {width}x{height} pixels; each side must have 1 to {LONGEST}"
        )));
    }
    Ok(width.div_ceil(PATCH) * height.div_ceil(PATCH))
}

/// Looks at an image.
pub(crate) fn encode(image: ImageView<'_>) -> Result<Encoded<Arc<str>>> {
    let tokens = measure(image.width, image.height)?;
    let pixels = (image.width * image.height) as u64;
    let mean = |channel: usize| {
        image.rgb.iter().skip(channel).step_by(3).map(|&value| u64::from(value)).sum::<u64>() / pixels
    };
    let caption =
        format!("[{}x{} #{:02x}{:02x}{:02x}]", image.width, image.height, mean(0), mean(1), mean(2));
    Ok(Encoded { bytes: caption.len() as u64, image: caption.into(), tokens })
}
