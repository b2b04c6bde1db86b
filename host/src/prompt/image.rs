//! Encoded pictures to pixels.
//!
//! A picture from a request is refused by its header, before anything is decoded: number of bytes, format
//! and number of pixels are known by then. What passes comes out upright (EXIF orientation applied), opaque
//! (transparency over white) and as 8-bit RGB, the form in which architectures measure and encode it.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use sha2::{Digest, Sha256};

use super::PromptError;
use crate::worker::message::ImagePixels;

/// What a request may ask this program to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Encoded bytes of one picture.
    pub max_bytes: usize,
    /// Width times height of one picture.
    pub max_pixels: u64,
    /// Pictures in one request.
    pub max_count: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_bytes: 24 << 20, max_pixels: 64 << 20, max_count: 64 }
    }
}

const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

/// Decodes one picture. Of an animation the first frame is taken.
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<ImagePixels, PromptError> {
    if bytes.len() > limits.max_bytes {
        return Err(refused(format!(
            "it has {} bytes, at most {} are accepted",
            bytes.len(),
            limits.max_bytes
        )));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| refused(error.to_string()))?;
    if !reader.format().is_some_and(|format| FORMATS.contains(&format)) {
        return Err(refused("its format is none of PNG, JPEG, WebP, GIF, BMP".into()));
    }
    let mut allocation = Limits::default();
    allocation.max_alloc = Some(limits.max_pixels.saturating_mul(16).max(1 << 20));
    reader.limits(allocation);
    let mut decoder = reader.into_decoder().map_err(|error| refused(error.to_string()))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let orientation = decoder.orientation().map_err(|error| refused(error.to_string()))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| refused(error.to_string()))?;
    picture.apply_orientation(orientation);
    Ok(pixels(over_white(picture)))
}

fn check_size(width: u32, height: u32, limits: &ImageLimits) -> Result<(), PromptError> {
    if width == 0 || height == 0 {
        return Err(refused("it is empty".into()));
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(refused(format!(
            "it is {width}x{height}, more than the {} pixels that are accepted",
            limits.max_pixels
        )));
    }
    Ok(())
}

fn over_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    let mut opaque = RgbImage::new(picture.width(), picture.height());
    for (to, from) in opaque.pixels_mut().zip(picture.pixels()) {
        let [r, g, b, alpha] = from.0;
        to.0 = [r, g, b].map(|colour| blend(colour, alpha));
    }
    opaque
}

/// `colour` with opacity `alpha` over white, rounded to nearest.
fn blend(colour: u8, alpha: u8) -> u8 {
    let sum = u32::from(colour) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
    ((2 * sum + 255) / 510) as u8
}

fn pixels(picture: RgbImage) -> ImagePixels {
    let (width, height) = picture.dimensions();
    let rgb = picture.into_raw();
    let mut hash = Sha256::new();
    hash.update(width.to_le_bytes());
    hash.update(height.to_le_bytes());
    hash.update(&rgb);
    ImagePixels { width, height, rgb, sha256: hash.finalize().into() }
}

fn refused(reason: String) -> PromptError {
    PromptError::InvalidInput(format!("an image cannot be used: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, Rgba, RgbaImage};

    fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn message(result: Result<ImagePixels, PromptError>) -> String {
        result.expect_err("should be refused").to_string()
    }

    #[test]
    fn lossless_formats_keep_every_pixel() {
        let picture = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 100, y as u8 * 100, 7]));
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Gif] {
            let decoded = decode(&encode(&picture.clone().into(), format), &ImageLimits::default()).unwrap();
            assert_eq!((decoded.width, decoded.height), (3, 2));
            assert_eq!(decoded.rgb, *picture.as_raw(), "{format:?}");
        }
        let jpeg = decode(&encode(&picture.into(), ImageFormat::Jpeg), &ImageLimits::default()).unwrap();
        assert_eq!((jpeg.width, jpeg.height), (3, 2));
    }

    #[test]
    fn transparency_goes_over_white() {
        let picture = RgbaImage::from_pixel(1, 1, Rgba([0, 100, 255, 128]));
        let decoded = decode(&encode(&picture.into(), ImageFormat::Png), &ImageLimits::default()).unwrap();
        assert_eq!(decoded.rgb, [127, 177, 255]);
        assert_eq!((blend(9, 255), blend(9, 0)), (9, 255));
    }

    #[test]
    fn orientation_is_applied() {
        // A JPEG of 2x1 with an EXIF block that says "rotate 90 degrees clockwise to view".
        let picture =
            RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
        let plain = encode(&picture.into(), ImageFormat::Jpeg);
        let exif: &[u8] = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = plain[..2].to_vec();
        turned.extend_from_slice(&[0xff, 0xe1]);
        turned.extend_from_slice(&(exif.len() as u16 + 2).to_be_bytes());
        turned.extend_from_slice(exif);
        turned.extend_from_slice(&plain[2..]);
        let decoded = decode(&turned, &ImageLimits::default()).unwrap();
        assert_eq!((decoded.width, decoded.height), (8, 16));
        assert!(decoded.rgb[0] > 200 && decoded.rgb[2] < 60, "red is on top");
    }

    #[test]
    fn limits_are_checked_before_decoding() {
        let big = encode(&RgbImage::new(300, 200).into(), ImageFormat::Png);
        let limits = ImageLimits { max_pixels: 59_999, ..Default::default() };
        assert!(message(decode(&big, &limits)).contains("300x200"));
        let limits = ImageLimits { max_bytes: 10, ..Default::default() };
        assert!(message(decode(&big, &limits)).contains("at most 10"));
        // The header claims more than a billion pixels; there is no data behind it.
        let mut bomb = big[..33].to_vec();
        bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        assert!(decode(&bomb, &ImageLimits::default()).is_err());
        for bytes in [&b"hello"[..], b"", b"%PDF-1.4", &big[..50]] {
            assert!(decode(bytes, &ImageLimits::default()).is_err());
        }
    }

    #[test]
    fn equal_pixels_have_equal_hashes() {
        let picture = RgbImage::from_pixel(2, 2, Rgb([1, 2, 3]));
        let a = decode(&encode(&picture.clone().into(), ImageFormat::Png), &ImageLimits::default()).unwrap();
        let b = decode(&encode(&picture.into(), ImageFormat::Bmp), &ImageLimits::default()).unwrap();
        assert_eq!(a.sha256, b.sha256);
    }
}
