//! Where tokens stand on the three position axes.
//!
//! A counter walks through the prompt. A text token stands at the counter on all three axes and moves it by one. An image's
//! tokens share the time at which the image begins and differ in height and width; after the last of them the counter
//! moves by the longer side of the image, not by the number of its tokens.
//!
//! The counter belongs to the sequence, as the KV cache does: it survives a prompt cut anywhere, even inside an image,
//! and it is copied with a fork. The causal mask never reads these positions; it counts tokens.

use std::ops::Range;

use layers::mistake::{Mistake, made};

use crate::image::Grid;

/// Where a token stands: time, height, width.
pub type Position = [u32; 3];

/// The axis rotary frequency `j` reads: 0 time, 1 height, 2 width.
///
/// Height and width take every third frequency each, as far as their sections reach, and time takes the rest, so that each
/// axis sees low and high frequencies alike. The sections are not contiguous blocks.
pub fn axis_of(j: usize, section: [usize; 3]) -> usize {
    let [time, height, width] = section;
    if made(Mistake::ContiguousAxes) {
        return usize::from(j >= time) + usize::from(j >= time + height);
    }
    match j % 3 {
        1 if j < 3 * height => 1,
        2 if j < 3 * width => 2,
        _ => 0,
    }
}

/// An image's tokens in a sequence, by the index of the first and by its grid of tokens (not of patches).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageTokens {
    /// Index of the image's first token in the sequence.
    pub start: usize,
    /// Rows and columns of tokens.
    pub grid: Grid,
}

impl ImageTokens {
    /// Indices of the image's tokens in the sequence.
    pub fn span(&self) -> Range<usize> {
        self.start..self.start + self.grid.height * self.grid.width
    }
}

/// How far a sequence has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Tokens in the sequence.
    tokens: usize,
    /// The next position; inside an image, the position at which that image began.
    position: usize,
}

impl Counter {
    /// Tokens in the sequence.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How far positions are ahead of token indices. Negative after an image, which has more tokens than its sides
    /// are long.
    pub fn rope_delta(&self) -> i64 {
        self.position as i64 - self.tokens as i64
    }

    /// Positions of the next `count` tokens; `images` are those that overlap them, in order.
    pub fn advance(&mut self, count: usize, images: &[ImageTokens]) -> Vec<Position> {
        (0..count).map(|_| self.next(images)).collect()
    }

    fn next(&mut self, images: &[ImageTokens]) -> Position {
        let index = self.tokens;
        self.tokens += 1;
        let image = images.iter().find(|image| image.span().contains(&index));
        let Some(image) = image.filter(|_| !made(Mistake::PlainPositions)) else {
            let position = self.position as u32;
            self.position += 1;
            return [position; 3];
        };
        let (row, column) =
            ((index - image.start) / image.grid.width, (index - image.start) % image.grid.width);
        let begin = self.position;
        if self.tokens == image.span().end {
            self.position += if made(Mistake::AdvanceByTokens) {
                image.span().len()
            } else {
                image.grid.height.max(image.grid.width)
            };
        }
        [begin as u32, (begin + row) as u32, (begin + column) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_alternate_as_far_as_the_sections_reach() {
        let axes = |half: usize, section| (0..half).map(|j| axis_of(j, section)).collect::<Vec<_>>();
        assert_eq!(axes(8, [3, 3, 2]), [0, 1, 2, 0, 1, 2, 0, 1]);
        let published = axes(32, [11, 11, 10]);
        assert_eq!(published.iter().filter(|&&a| a == 1).count(), 11);
        assert_eq!(published.iter().filter(|&&a| a == 2).count(), 10);
        assert_eq!((published[30], published[31]), (0, 1));
        // A short width section leaves its later turns to time.
        assert_eq!(axes(8, [5, 2, 1]), [0, 1, 2, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn an_image_between_words() {
        let image = ImageTokens { start: 2, grid: Grid { height: 2, width: 3 } };
        let mut counter = Counter::default();
        let positions = counter.advance(10, &[image]);
        let axis = |i: usize| positions.iter().map(|p| p[i]).collect::<Vec<_>>();
        assert_eq!(axis(0), [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]);
        assert_eq!(axis(1), [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]);
        assert_eq!(axis(2), [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]);
        assert_eq!(counter.rope_delta(), -3);
        assert_eq!(counter.advance(1, &[]), [[7; 3]]);
    }

    #[test]
    fn cuts_do_not_move_anything() {
        let images = [
            ImageTokens { start: 1, grid: Grid { height: 3, width: 2 } },
            ImageTokens { start: 7, grid: Grid { height: 1, width: 4 } },
        ];
        let mut whole = Counter::default();
        let expected = whole.advance(14, &images);
        for first in 0..14 {
            for second in 0..14 - first {
                let mut counter = Counter::default();
                let mut positions = counter.advance(first, &images);
                positions.extend(counter.advance(second, &images));
                positions.extend(counter.advance(14 - first - second, &images));
                assert_eq!(positions, expected, "cut after {first} and {second} more");
                assert_eq!(counter, whole);
            }
        }
    }
}
