//! A submission's prompt, with its images expanded.
//!
//! The text side sends one placeholder per image, because only the architecture knows how many tokens an
//! image takes. Here each placeholder becomes that many, and everything that speaks of positions moves along.

use std::sync::Arc;

use crate::worker::message::{ImagePixels, Submission};

/// An image at its place in an expanded prompt.
#[derive(Debug, Clone)]
pub struct PlacedImage {
    /// The picture.
    pub pixels: Arc<ImagePixels>,
    /// Position of its first token.
    pub position: u32,
    /// Number of its tokens.
    pub tokens: u32,
}

/// What a prefix is compared by: a token's id, or for a token of an image something made of the picture's
/// content and the token's index, with the topmost bit set.
pub type Symbol = u64;

/// A prompt ready to be fed.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// Token ids, placeholders expanded.
    pub tokens: Vec<u32>,
    /// Images in order.
    pub images: Vec<PlacedImage>,
    /// Positions where a message ends, ascending.
    pub boundaries: Vec<u32>,
}

/// Why a prompt cannot be fed.
pub type Rejection = String;

/// Checks a submission against the model before anything is measured.
pub fn check(submission: &Submission, image_token: Option<u32>, vocab_size: u32) -> Result<(), Rejection> {
    if submission.prompt.is_empty() {
        return Err("the prompt is empty".into());
    }
    if submission.max_tokens == 0 {
        return Err("max_tokens must be at least 1".into());
    }
    if let Some(token) =
        submission.prompt.iter().chain(&submission.emitted).find(|&&token| token >= vocab_size)
    {
        return Err(format!("token id {token} is outside the vocabulary of {vocab_size}"));
    }
    let placeholders =
        image_token.map_or(0, |image| submission.prompt.iter().filter(|&&token| token == image).count());
    if placeholders != submission.images.len() {
        return Err(match image_token {
            None => "this model does not take images".into(),
            Some(_) => format!(
                "the prompt has {placeholders} places for images, but {} images came with it",
                submission.images.len()
            ),
        });
    }
    for image in &submission.images {
        if image.rgb.len() != image.width as usize * image.height as usize * 3 || image.rgb.is_empty() {
            return Err(format!(
                "an image of {} x {} pixels came with {} bytes",
                image.width,
                image.height,
                image.rgb.len()
            ));
        }
    }
    if let Some((token, _)) = submission.sampling.logit_bias.iter().find(|(token, _)| *token >= vocab_size) {
        return Err(format!("logit_bias names token id {token}, outside the vocabulary of {vocab_size}"));
    }
    Ok(())
}

/// Expands the placeholders. `sizes` are the tokens each image takes.
pub fn expand(
    tokens: &[u32],
    images: Vec<ImagePixels>,
    boundaries: &[u32],
    image_token: Option<u32>,
    sizes: &[u32],
) -> Prompt {
    let mut prompt = Prompt { tokens: Vec::with_capacity(tokens.len()), ..Prompt::default() };
    let mut boundaries = boundaries.iter().peekable();
    let mut images = images.into_iter().zip(sizes);
    for (index, &token) in tokens.iter().enumerate() {
        while boundaries.next_if(|&&boundary| boundary as usize <= index).is_some() {
            push_boundary(&mut prompt);
        }
        let placed = if Some(token) == image_token { images.next() } else { None };
        match placed {
            Some((pixels, &size)) => {
                let position = prompt.tokens.len() as u32;
                prompt.tokens.extend(std::iter::repeat_n(token, size as usize));
                prompt.images.push(PlacedImage { pixels: Arc::new(pixels), position, tokens: size });
            }
            None => prompt.tokens.push(token),
        }
    }
    if boundaries.next().is_some() {
        push_boundary(&mut prompt);
    }
    prompt
}

fn push_boundary(prompt: &mut Prompt) {
    let position = prompt.tokens.len() as u32;
    if position > 0 && prompt.boundaries.last() != Some(&position) {
        prompt.boundaries.push(position);
    }
}

impl Prompt {
    /// Tokens in all.
    pub fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The symbols of the prompt's tokens.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = self.tokens.iter().map(|&token| Symbol::from(token)).collect();
        for image in &self.images {
            let mut head = [0u8; 8];
            head.copy_from_slice(&image.pixels.sha256[..8]);
            let content = u64::from_le_bytes(head);
            for index in 0..image.tokens {
                let mixed = content.wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                symbols[(image.position + index) as usize] = mixed | 1 << 63;
            }
        }
        symbols
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: u8) -> ImagePixels {
        ImagePixels { width: 1, height: 1, rgb: vec![content; 3], sha256: [content; 32] }
    }

    #[test]
    fn placeholders_grow_and_positions_move() {
        let prompt = expand(&[1, 9, 2, 9, 3], vec![image(1), image(2)], &[2, 5], Some(9), &[3, 2]);
        assert_eq!(prompt.tokens, [1, 9, 9, 9, 2, 9, 9, 3]);
        assert_eq!(
            prompt.images.iter().map(|i| (i.position, i.tokens)).collect::<Vec<_>>(),
            [(1, 3), (5, 2)]
        );
        assert_eq!(prompt.boundaries, [4, 8]);
    }

    #[test]
    fn other_pictures_make_other_symbols() {
        let symbols = |content| expand(&[1, 9], vec![image(content)], &[], Some(9), &[2]).symbols();
        assert_eq!(symbols(1), symbols(1));
        assert_ne!(symbols(1)[1], symbols(2)[1]);
        assert_ne!(symbols(1)[1], symbols(1)[2]);
        assert_eq!(symbols(1)[0], 1);
    }
}
