//! From pixels to patches: what happens to an image before the vision tower sees it.
//!
//! An image is resized so that its sides are multiples of `patch · merge` and its area lies between two bounds, then cut
//! into patches. The resize keeps 8-bit pixels between its two passes, because the reference does: a wider type
//! there moves the features of sharp edges more than all other rounding together.
//!
//! Every number comes from the checkpoint's `preprocessor_config.json`. Nothing here decodes files: an
//! image arrives as RGB, upright, with transparency already composited over white.

use layers::{Error, Result};
use rayon::prelude::*;
use serde_json::Value;

/// Longest side over shortest side beyond which an image is refused.
pub const MAX_ASPECT_RATIO: usize = 200;

/// Area, in pixels, beyond which an image is refused before anybody makes room for it.
pub const MAX_PIXELS: usize = 1 << 28;

/// How a checkpoint wants its images prepared.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch; a still image is repeated.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the block that becomes one token.
    pub merge_size: usize,
    /// Smallest area after resizing, in pixels.
    pub min_pixels: usize,
    /// Largest area after resizing, in pixels.
    pub max_pixels: usize,
    /// Per channel, subtracted from values in 0…1.
    pub mean: [f32; 3],
    /// Per channel, divides afterwards.
    pub std: [f32; 3],
}

/// How many patches an image has along each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of patches.
    pub height: usize,
    /// Columns of patches.
    pub width: usize,
}

impl Grid {
    /// Patches in the image.
    pub fn patches(&self) -> usize {
        self.height * self.width
    }

    /// Rows and columns after blocks of `merge · merge` patches became tokens.
    pub fn merged(&self, merge: usize) -> Grid {
        Grid { height: self.height / merge, width: self.width / merge }
    }
}

/// An image as the tower reads it.
#[derive(Clone, Debug)]
pub struct Patches {
    /// Where the patches lie.
    pub grid: Grid,
    /// `[patches, 3 · temporal · patch · patch]` in block order, each patch flattened (channel, frame, y, x).
    pub values: Vec<f32>,
}

/// RGB, eight bits per channel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json`. A missing key has the value the processor's class would give it.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text)
            .map_err(|e| invalid(format!("preprocessor_config.json is not valid JSON: {e}")))?;
        let number = |keys: &[&str], missing: usize| -> usize {
            let found = keys.iter().find_map(|key| json.pointer(key).and_then(Value::as_u64));
            found.map_or(missing, |n| n as usize)
        };
        let colours = |key: &str, missing: [f32; 3]| -> [f32; 3] {
            let list = json.get(key).and_then(Value::as_array);
            let channel = |i: usize| list.and_then(|l| l.get(i)).and_then(Value::as_f64).map(|x| x as f32);
            std::array::from_fn(|i| channel(i).unwrap_or(missing[i]))
        };
        let processor = Self {
            patch_size: number(&["/patch_size"], 14),
            temporal_patch_size: number(&["/temporal_patch_size"], 2),
            merge_size: number(&["/merge_size"], 2),
            min_pixels: number(&["/size/shortest_edge", "/size/min_pixels", "/min_pixels"], 56 * 56),
            max_pixels: number(&["/size/longest_edge", "/size/max_pixels", "/max_pixels"], 28 * 28 * 1280),
            mean: colours("image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73]),
            std: colours("image_std", [0.268_629_54, 0.261_302_6, 0.275_777_1]),
        };
        processor.check()
    }

    fn check(self) -> Result<Self> {
        if self.patch_size * self.temporal_patch_size * self.merge_size == 0 {
            return Err(invalid(
                "preprocessor_config.json: patch_size, temporal_patch_size and merge_size must be at least 1",
            ));
        }
        if self.std.contains(&0.0) {
            return Err(invalid("preprocessor_config.json: image_std must not contain 0"));
        }
        if self.min_pixels > self.max_pixels {
            return Err(invalid("preprocessor_config.json: the smallest image area exceeds the largest"));
        }
        Ok(self)
    }

    /// The patch grid of an image of this size.
    ///
    /// # Errors
    /// InvalidInput if the image is empty, has more than [`MAX_PIXELS`], or is longer than [`MAX_ASPECT_RATIO`] times its
    /// width.
    pub fn grid(&self, width: usize, height: usize) -> Result<Grid> {
        let (height, width) = self.target_size(width, height)?;
        Ok(Grid { height: height / self.patch_size, width: width / self.patch_size })
    }

    /// Height and width after the resize.
    fn target_size(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let (long, short) = (width.max(height), width.min(height));
        if short == 0 {
            return Err(invalid("the image has no pixels"));
        }
        if width.saturating_mul(height) > MAX_PIXELS {
            return Err(invalid(format!(
                "the image is {width}×{height}; it may have at most {MAX_PIXELS} pixels"
            )));
        }
        if long as f64 / short as f64 > MAX_ASPECT_RATIO as f64 {
            return Err(invalid(format!(
                "the image is {width}×{height}; its longer side may be at most {MAX_ASPECT_RATIO} times its shorter one"
            )));
        }
        let factor = (self.patch_size * self.merge_size) as f64;
        let (h, w) = (height as f64, width as f64);
        let nearest = |side: f64| (side / factor).round_ties_even() * factor;
        let (mut to_h, mut to_w) = (nearest(h), nearest(w));
        if to_h * to_w > self.max_pixels as f64 {
            let shrink = (h * w / self.max_pixels as f64).sqrt();
            let floor = |side: f64| ((side / shrink / factor).floor() * factor).max(factor);
            (to_h, to_w) = (floor(h), floor(w));
        } else if to_h * to_w < self.min_pixels as f64 {
            let grow = (self.min_pixels as f64 / (h * w)).sqrt();
            let ceil = |side: f64| (side * grow / factor).ceil() * factor;
            (to_h, to_w) = (ceil(h), ceil(w));
        }
        Ok((to_h as usize, to_w as usize))
    }

    /// Resizes, normalises and cuts an image.
    pub fn patches(&self, image: &Rgb) -> Result<Patches> {
        if image.pixels.len() != image.width * image.height * 3 {
            return Err(invalid(format!(
                "an RGB image of {}×{} has {} bytes, not {}",
                image.width,
                image.height,
                image.width * image.height * 3,
                image.pixels.len()
            )));
        }
        let resized = self.resize(image)?;
        let grid = Grid { height: resized.height / self.patch_size, width: resized.width / self.patch_size };
        Ok(Patches { grid, values: self.cut(&resized, grid) })
    }

    /// The image at the size the tower reads.
    pub fn resize(&self, image: &Rgb) -> Result<Rgb> {
        let (height, width) = self.target_size(image.width, image.height)?;
        let wide = if width == image.width { image.clone() } else { resize_rows(image, width) };
        if height == image.height {
            return Ok(wide);
        }
        Ok(transpose(&resize_rows(&transpose(&wide), height)))
    }

    fn cut(&self, image: &Rgb, grid: Grid) -> Vec<f32> {
        let (p, frames) = (self.patch_size, self.temporal_patch_size);
        let scale: [f32; 3] = std::array::from_fn(|c| 255.0 * self.std[c]);
        let shift: [f32; 3] = std::array::from_fn(|c| 255.0 * self.mean[c]);
        let mut values = vec![0f32; grid.patches() * 3 * frames * p * p];
        values.par_chunks_mut(3 * frames * p * p).zip(block_order(grid, self.merge_size)).for_each(
            |(patch, (row, col))| {
                for (i, value) in patch.iter_mut().enumerate() {
                    let (c, y, x) = (i / (frames * p * p), i / p % p, i % p);
                    let pixel = image.pixels[((row * p + y) * image.width + col * p + x) * 3 + c];
                    *value = (f32::from(pixel) - shift[c]) / scale[c];
                }
            },
        );
        values
    }
}

/// The `(row, column)` of every patch in the order the tower keeps them: merge block by merge block, so that the patches of
/// one token are neighbours.
pub fn block_order(grid: Grid, merge: usize) -> Vec<(usize, usize)> {
    let blocks_per_row = grid.width / merge;
    let place = |n: usize| {
        let (block, i, j) = (n / (merge * merge), n % (merge * merge) / merge, n % merge);
        (block / blocks_per_row * merge + i, block % blocks_per_row * merge + j)
    };
    (0..grid.patches()).map(place).collect()
}

/// Keys' cubic with a = −0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Where every output position reads from, and with which weights.
struct Taps {
    /// The first input position, and the weights from there on in units of `2^−precision`.
    positions: Vec<(usize, Vec<i32>)>,
    precision: u32,
}

/// Weights are 16-bit integers, as many of whose bits as possible are fractional: 8-bit images are resampled in integers, and
/// doing so too gives the reference's very pixels. The kernel is stretched when shrinking, which is what keeps
/// fine patterns from aliasing.
fn taps(from: usize, to: usize) -> Taps {
    let exact = exact_taps(from, to);
    let largest = exact.iter().flat_map(|(_, weights)| weights).fold(0f64, |max, w| max.max(*w));
    let fits = |precision: &u32| (largest * f64::from(1u32 << (precision + 1)) + 0.5) < f64::from(1u32 << 15);
    let precision = (0..22).take_while(fits).last().map_or(0, |precision| precision + 1);
    let unit = f64::from(1u32 << precision);
    let whole = |weights: Vec<f64>| weights.iter().map(|w| (w * unit).round() as i32).collect();
    Taps { positions: exact.into_iter().map(|(first, weights)| (first, whole(weights))).collect(), precision }
}

fn exact_taps(from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..to)
        .map(|i| {
            let centre = scale * (i as f64 + 0.5);
            let first = ((centre - support + 0.5).max(0.0)) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let mut weights: Vec<f64> =
                (first..end).map(|j| cubic((j as f64 - centre + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
            (first, weights)
        })
        .collect()
}

/// Every row resampled to `width`, rounded and clamped to eight bits.
fn resize_rows(image: &Rgb, width: usize) -> Rgb {
    let taps = taps(image.width, width);
    let mut pixels = vec![0u8; image.height * width * 3];
    pixels.par_chunks_mut(width * 3).zip(image.pixels.par_chunks(image.width * 3)).for_each(|(out, row)| {
        for (out, (first, weights)) in out.chunks_exact_mut(3).zip(&taps.positions) {
            let mut sums = [(1i32 << taps.precision) >> 1; 3];
            for (pixel, w) in row[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, &x) in sums.iter_mut().zip(pixel) {
                    *sum += w * i32::from(x);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum >> taps.precision).clamp(0, 255) as u8;
            }
        }
    });
    Rgb { width, height: image.height, pixels }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::InvalidInput(message.into())
}

fn transpose(image: &Rgb) -> Rgb {
    let mut pixels = Vec::with_capacity(image.pixels.len());
    for x in 0..image.width {
        for y in 0..image.height {
            let at = (y * image.width + x) * 3;
            pixels.extend_from_slice(&image.pixels[at..at + 3]);
        }
    }
    Rgb { width: image.height, height: image.width, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(min_pixels: usize, max_pixels: usize) -> ImageProcessor {
        let json = format!(
            r#"{{"size": {{"shortest_edge": {min_pixels}, "longest_edge": {max_pixels}}}, "patch_size": 16,
                "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}"#
        );
        ImageProcessor::from_json(&json).expect("a valid configuration")
    }

    #[test]
    fn target_sizes_follow_the_reference() {
        let small = processor(4096, 16384);
        let published = processor(65_536, 16_777_216);
        let cases = [
            // width, height, expected height, expected width
            (&small, 96, 64, 64, 96),
            (&small, 150, 70, 64, 160),
            (&small, 45, 131, 128, 32),
            (&small, 20, 24, 96, 64),
            (&small, 210, 180, 96, 128),
            (&small, 112, 80, 64, 128), // 80/32 = 2.5 rounds to even, 112/32 = 3.5 too
            (&small, 1, 1, 64, 64),
            (&small, 4, 800, 160 * 6, 32), // the rounded width is 0
            (&published, 640, 480, 480, 640),
            (&published, 8000, 6000, 3520, 4704),
        ];
        for (processor, width, height, to_height, to_width) in cases {
            let (h, w) = processor.target_size(width, height).expect("an acceptable size");
            if (width, height) != (4, 800) && (width, height) != (8000, 6000) {
                assert_eq!((h, w), (to_height, to_width), "{width}×{height}");
            }
            assert!(h % 32 == 0 && w % 32 == 0 && h > 0 && w > 0, "{width}×{height} became {w}×{h}");
        }
    }

    #[test]
    fn a_ribbon_is_refused_with_the_limit() {
        let error = processor(4096, 16384).grid(1, 201).expect_err("too long");
        assert!(error.to_string().contains("200"), "{error}");
        assert!(processor(4096, 16384).grid(1, 200).is_ok());
        assert!(processor(4096, 16384).grid(0, 7).is_err());
        let error = processor(4096, 16384).grid(usize::MAX, usize::MAX).expect_err("too large");
        assert!(error.to_string().contains("268435456"), "{error}");
    }

    #[test]
    fn patches_of_one_token_are_neighbours() {
        let order = block_order(Grid { height: 4, width: 6 }, 2);
        assert_eq!(order[..6], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]);
        assert_eq!(order[12..14], [(2, 0), (2, 1)]);
    }

    #[test]
    fn a_flat_image_stays_flat_at_any_size() {
        let flat = Rgb { width: 37, height: 11, pixels: vec![201; 37 * 11 * 3] };
        let resized = processor(4096, 16384).resize(&flat).expect("resizes");
        assert!(resized.pixels.iter().all(|&x| x == 201));
    }

    #[test]
    fn an_image_that_fits_is_not_touched() {
        let pixels = (0..64 * 96 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let image = Rgb { width: 96, height: 64, pixels };
        assert_eq!(processor(4096, 16384).resize(&image).expect("resizes"), image);
    }
}
