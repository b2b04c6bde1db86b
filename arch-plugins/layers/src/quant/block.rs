//! Blocks of the GGUF formats, one at a time.

use half::f16;

use crate::weights::Stored;

/// A block taken apart: `value[i] = d · scale[i / sub] · (code[i] − offset) + minimum`.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// One code per value; `len` of them count.
    pub codes: [u8; 256],
    /// Values in the block.
    pub len: usize,
    /// Scale, f16 bits.
    pub d: u16,
    /// Minimum (simple formats) or scale of the minima (formats of 256), f16 bits.
    pub m: u16,
    /// Factors of the scale: per 32 values, per 16 in Q6_K (there signed).
    pub scales: [u8; 16],
    /// Factors of the minimum per 32 values.
    pub minima: [u8; 8],
    stored: Stored,
}

impl Default for Unpacked {
    fn default() -> Self {
        Self { codes: [0; 256], len: 0, d: 0, m: 0, scales: [0; 16], minima: [0; 8], stored: Stored::Q8_0 }
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Sixteen bytes of two codes each: low nibbles are the first half of 32 values.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (j, byte) in bytes[..16].iter().enumerate() {
        codes[j] = byte & 0x0f;
        codes[j + 16] = byte >> 4;
    }
}

/// Adds the fifth bits of 32 codes.
fn fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (j, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((bits >> j & 1) as u8) << 4;
    }
}

/// Eight pairs of 6-bit factors in twelve bytes.
fn six_bit_pairs(q: &[u8], scales: &mut [u8; 16], minima: &mut [u8; 8]) {
    for j in 0..8 {
        (scales[j], minima[j]) = if j < 4 {
            (q[j] & 63, q[j + 4] & 63)
        } else {
            ((q[j + 4] & 0x0f) | (q[j - 4] >> 6) << 4, (q[j + 4] >> 4) | (q[j] >> 6) << 4)
        };
    }
}

/// Takes one block apart. `bytes` is exactly one block of `stored`, a quantized format.
pub fn unpack(stored: Stored, bytes: &[u8], out: &mut Unpacked) {
    out.stored = stored;
    out.len = stored.block_len();
    match stored {
        Stored::Q4_0 => {
            out.d = word(bytes, 0);
            nibbles(&bytes[2..], &mut out.codes);
        }
        Stored::Q4_1 => {
            (out.d, out.m) = (word(bytes, 0), word(bytes, 2));
            nibbles(&bytes[4..], &mut out.codes);
        }
        Stored::Q5_0 => {
            out.d = word(bytes, 0);
            nibbles(&bytes[6..], &mut out.codes);
            fifth_bits(&bytes[2..], &mut out.codes);
        }
        Stored::Q5_1 => {
            (out.d, out.m) = (word(bytes, 0), word(bytes, 2));
            nibbles(&bytes[8..], &mut out.codes);
            fifth_bits(&bytes[4..], &mut out.codes);
        }
        Stored::Q8_0 => {
            out.d = word(bytes, 0);
            for (code, byte) in out.codes.iter_mut().zip(&bytes[2..34]) {
                *code = byte ^ 0x80; // signed to offset 128
            }
        }
        Stored::Q4K | Stored::Q5K => {
            (out.d, out.m) = (word(bytes, 0), word(bytes, 2));
            six_bit_pairs(&bytes[4..16], &mut out.scales, &mut out.minima);
            let five = stored == Stored::Q5K;
            let (high, low) = if five { (&bytes[16..48], &bytes[48..]) } else { (&bytes[..0], &bytes[16..]) };
            for chunk in 0..4 {
                for l in 0..32 {
                    let byte = low[chunk * 32 + l];
                    let (mut first, mut second) = (byte & 0x0f, byte >> 4);
                    if five {
                        first |= (high[l] >> (2 * chunk) & 1) << 4;
                        second |= (high[l] >> (2 * chunk + 1) & 1) << 4;
                    }
                    out.codes[chunk * 64 + l] = first;
                    out.codes[chunk * 64 + 32 + l] = second;
                }
            }
        }
        Stored::Q6K => {
            out.d = word(bytes, 208);
            out.scales.copy_from_slice(&bytes[192..208]);
            for n in 0..2 {
                let (low, high) = (&bytes[n * 64..], &bytes[128 + n * 32..]);
                for l in 0..32 {
                    let codes = &mut out.codes[n * 128..];
                    codes[l] = low[l] & 0x0f | (high[l] & 3) << 4;
                    codes[l + 32] = low[l + 32] & 0x0f | (high[l] >> 2 & 3) << 4;
                    codes[l + 64] = low[l] >> 4 | (high[l] >> 4 & 3) << 4;
                    codes[l + 96] = low[l + 32] >> 4 | (high[l] >> 6) << 4;
                }
            }
        }
        Stored::F32 | Stored::F16 | Stored::BF16 => unreachable!("dense formats have no blocks"),
    }
}

impl Unpacked {
    /// Appends the block's values.
    pub fn values(&self, out: &mut Vec<f32>) {
        let (d, m) = (f16::from_bits(self.d).to_f32(), f16::from_bits(self.m).to_f32());
        for (i, &code) in self.codes[..self.len].iter().enumerate() {
            let code = f32::from(code);
            out.push(match self.stored {
                Stored::Q4_0 => d * (code - 8.0),
                Stored::Q5_0 => d * (code - 16.0),
                Stored::Q8_0 => d * (code - 128.0),
                Stored::Q6K => d * f32::from(self.scales[i / 16] as i8) * (code - 32.0),
                Stored::Q4K | Stored::Q5K => {
                    d * f32::from(self.scales[i / 32]) * code - m * f32::from(self.minima[i / 32])
                }
                _ => d * code + m,
            });
        }
    }
}
