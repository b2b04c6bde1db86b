//! Interleaved M-RoPE: rotary embedding over three position axes, time, height and width.
//!
//! Every rotary frequency belongs to one axis. Height and width take every third frequency each, as far as their
//! sections reach, and time takes the rest; so each axis sees low and high frequencies alike. The sections
//! are *not* contiguous blocks. For text the three positions are equal and this is ordinary rotary embedding.

use candle_core::{DType, Device, Result, Tensor};

/// Where a token stands on the three axes: time, height, width.
pub type Position = [u32; 3];

/// Frequencies and the axis each one reads.
#[derive(Clone, Debug)]
pub struct InterleavedRotary {
    inverse: Vec<f32>,
    axis: Vec<usize>,
}

impl InterleavedRotary {
    /// `rotary_dim` is the number of rotated dimensions of a head; `section` counts the frequencies of time,
    /// height and width, together `rotary_dim / 2`.
    pub fn new(theta: f64, rotary_dim: usize, section: [usize; 3]) -> Self {
        let half = rotary_dim / 2;
        let inverse = (0..half).map(|j| theta.powf(-2.0 * j as f64 / rotary_dim as f64) as f32).collect();
        Self { inverse, axis: (0..half).map(|j| axis_of(j, section)).collect() }
    }

    /// Cosines and sines for these positions, `[tokens, rotary_dim / 2]` each. Angles are f32 whatever `dtype` is.
    pub fn tables(&self, positions: &[Position], dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let angles = positions
            .iter()
            .flat_map(|p| self.inverse.iter().zip(&self.axis).map(|(inverse, &axis)| p[axis] as f32 * inverse))
            .collect::<Vec<_>>();
        let angles = Tensor::from_vec(angles, (positions.len(), self.inverse.len()), device)?;
        Ok((angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?))
    }
}

/// The axis frequency `j` reads.
fn axis_of(j: usize, section: [usize; 3]) -> usize {
    let [_, height, width] = section;
    match j % 3 {
        1 if j < 3 * height => 1,
        2 if j < 3 * width => 2,
        _ => 0,
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
    fn text_is_ordinary_rotary() {
        let rotary = InterleavedRotary::new(100.0, 16, [3, 3, 2]);
        let (cos, sin) = rotary.tables(&[[7, 7, 7]], DType::F32, &Device::Cpu).expect("tables");
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (cos.flatten_all().unwrap().to_vec1().unwrap(), sin.flatten_all().unwrap().to_vec1().unwrap());
        for j in 0..8 {
            let angle = 7.0 * 100f64.powf(-(j as f64) / 8.0);
            assert!((f64::from(cos[j]) - angle.cos()).abs() < 1e-6);
            assert!((f64::from(sin[j]) - angle.sin()).abs() < 1e-6);
        }
    }
}
