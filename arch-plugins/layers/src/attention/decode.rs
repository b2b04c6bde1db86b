//! Attention of one new token of each sequence: the kernels of `cuda/decode.cu`.
//!
//! All sequences of a step go together. A block takes one key/value head and a span of keys, so that a long sequence keeps
//! a whole GPU busy; a second kernel puts the spans together. The new tokens' keys and values are stored on the way.

use crate::device::launch::{Address, Argument, Grid, Launcher, SHARED_LIMIT, shared};
use crate::error::Result;

const MAX_SEQUENCES: usize = 64;
const SPAN: usize = 256;
const THREADS: u32 = 128;

/// The sequences of a launch, as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences {
    keys: [Address; MAX_SEQUENCES],
    values: [Address; MAX_SEQUENCES],
    capacity: [i32; MAX_SEQUENCES],
    token: [i32; MAX_SEQUENCES],
    position: [i32; MAX_SEQUENCES],
    from: [i32; MAX_SEQUENCES],
}

/// Counts and sizes, as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    splits: i32,
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    fn shared_values(self) -> usize {
        self.heads / self.kv_heads.max(1) * (self.head_dim + SPAN)
    }

    /// Do the kernels take heads like these?
    pub(super) fn fit(self) -> bool {
        self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_dim.is_multiple_of(32)
            && (32..=1024).contains(&self.head_dim)
            && self.shared_values() * size_of::<f32>() <= SHARED_LIMIT
    }
}

/// One sequence: its keys and values `[kv heads, capacity, head_dim]`, its token in the step, where that comes to stand, and
/// the first key it sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub keys: Address,
    pub values: Address,
    pub capacity: usize,
    pub token: usize,
    pub position: usize,
    pub from: usize,
}

impl Sequence {
    fn spans(&self) -> usize {
        self.position / SPAN - self.from / SPAN + 1
    }
}

/// `[q, k, v]` of the step's tokens, `[tokens, heads or kv heads, head_dim]`, in bf16 or f32 like the caches; writes the
/// sequences' rows of `out [tokens, heads, head_dim]`.
pub(super) fn attend<L: Launcher>(
    launcher: &L,
    bf16: bool,
    heads: Heads,
    scale: f32,
    [q, k, v]: [Address; 3],
    sequences: &[Sequence],
    out: Address,
) -> Result<()> {
    use Argument::{Address as At, Float};
    let (one, two) = match bf16 {
        true => ("decode_attend_bf16", "decode_merge_bf16"),
        false => ("decode_attend_f32", "decode_merge_f32"),
    };
    for sequences in sequences.chunks(MAX_SEQUENCES) {
        let splits = sequences.iter().map(Sequence::spans).max().unwrap_or(0);
        let shape = Shape {
            heads: heads.heads as i32,
            kv_heads: heads.kv_heads as i32,
            head_dim: heads.head_dim as i32,
            splits: splits as i32,
        };
        let parts = launcher.memory(sequences.len() * heads.heads * splits * (heads.head_dim + 2))?;
        let grid = Grid {
            blocks: [heads.kv_heads as u32, splits as u32, sequences.len() as u32],
            threads: THREADS,
            shared_bytes: shared(heads.shared_values(), "attention with heads this large")?,
        };
        let all = || Argument::Sequences(Box::new(by_value(sequences)));
        let arguments =
            [At(q), At(k), At(v), all(), Argument::Shape(shape), Float(scale), At(launcher.address(&parts))];
        launcher.launch(one, grid, &arguments)?;
        let grid = Grid {
            blocks: [heads.heads as u32, sequences.len() as u32, 1],
            threads: heads.head_dim as u32,
            shared_bytes: 0,
        };
        let arguments = [At(launcher.address(&parts)), all(), Argument::Shape(shape), At(out)];
        launcher.launch(two, grid, &arguments)?;
    }
    Ok(())
}

fn by_value(sequences: &[Sequence]) -> Sequences {
    let mut all = Sequences {
        keys: [0; MAX_SEQUENCES],
        values: [0; MAX_SEQUENCES],
        capacity: [0; MAX_SEQUENCES],
        token: [0; MAX_SEQUENCES],
        position: [0; MAX_SEQUENCES],
        from: [0; MAX_SEQUENCES],
    };
    for (i, sequence) in sequences.iter().enumerate() {
        (all.keys[i], all.values[i]) = (sequence.keys, sequence.values);
        (all.capacity[i], all.token[i]) = (sequence.capacity as i32, sequence.token as i32);
        (all.position[i], all.from[i]) = (sequence.position as i32, sequence.from as i32);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::launch::emulated::{Noise, at, distance, emulators};

    /// Attention of one token in f64: its values over keys `from ..= position` of one head.
    fn reference(q: &[f32], keys: &[f32], values: &[f32], dim: usize, scale: f32) -> Vec<f32> {
        let scores: Vec<f64> = keys
            .chunks_exact(dim)
            .map(|k| q.iter().zip(k).map(|(q, k)| f64::from(q * scale) * f64::from(*k)).sum::<f64>().exp())
            .collect();
        let sum: f64 = scores.iter().sum();
        let of =
            |d: usize| values.chunks_exact(dim).zip(&scores).map(|(v, s)| f64::from(v[d]) * s).sum::<f64>();
        (0..dim).map(|d| (of(d) / sum) as f32).collect()
    }

    struct Case {
        heads: Heads,
        /// Position and first key seen, of each sequence.
        sequences: Vec<(usize, usize)>,
    }

    /// Runs a case, with everything rounded to bf16 first when asked to.
    fn check(case: &Case, bf16: bool) {
        let Heads { heads, kv_heads, head_dim: dim } = case.heads;
        let (group, tokens) = (heads / kv_heads, case.sequences.len());
        let mut noise = Noise(7);
        let round = |x: f32| if bf16 { half::bf16::from_f32(x).to_f32() } else { x };
        let mut many = |count: usize| -> Vec<f32> { noise.many(count).into_iter().map(round).collect() };
        let (q, k, v) =
            (many(tokens * heads * dim), many(tokens * kv_heads * dim), many(tokens * kv_heads * dim));
        let capacity = case.sequences.iter().map(|(position, _)| position + 3).max().unwrap();
        let caches: Vec<[Vec<f32>; 2]> =
            (0..tokens).map(|_| [many(kv_heads * capacity * dim), many(kv_heads * capacity * dim)]).collect();
        let scale = (dim as f32).sqrt().recip();
        let mut expected = Vec::new();
        for (t, (&(position, from), [keys, values])) in case.sequences.iter().zip(&caches).enumerate() {
            for h in 0..heads {
                let seen = |cache: &[f32], new: &[f32]| {
                    let start = h / group * capacity * dim;
                    let mut seen = cache[start + from * dim..start + position * dim].to_vec();
                    seen.extend_from_slice(&new[(t * kv_heads + h / group) * dim..][..dim]);
                    seen
                };
                let q = &q[(t * heads + h) * dim..][..dim];
                expected.extend(reference(q, &seen(keys, &k), &seen(values, &v), dim, scale));
            }
        }
        // bf16 as 16 bits, or f32: bytes either way.
        let bytes = |values: &[f32]| -> Vec<u64> {
            let bytes: Vec<u8> = match bf16 {
                true => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
                false => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            bytes
                .chunks(8)
                .map(|c| u64::from_le_bytes(std::array::from_fn(|i| c.get(i).copied().unwrap_or(0))))
                .collect()
        };
        let back = |words: &[u64]| -> Vec<f32> {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            match bf16 {
                true => {
                    bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
                false => {
                    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
                }
            }
        };
        let limit = if bf16 { 4e-3 } else { 2e-6 };
        for emulator in emulators() {
            let (q, k, v) = (bytes(&q), bytes(&k), bytes(&v));
            let placed: Vec<[Vec<u64>; 2]> =
                caches.iter().map(|both| both.each_ref().map(|x| bytes(x))).collect();
            let out = bytes(&vec![f32::NAN; expected.len()]);
            let address = |words: &[u64]| words.as_ptr() as Address;
            let sequences: Vec<Sequence> = case
                .sequences
                .iter()
                .zip(&placed)
                .enumerate()
                .map(|(token, (&(position, from), [keys, values]))| {
                    let (keys, values) = (address(keys), address(values));
                    Sequence { keys, values, capacity, token, position, from }
                })
                .collect();
            let inputs = [address(&q), address(&k), address(&v)];
            attend(&emulator, bf16, case.heads, scale, inputs, &sequences, address(&out))
                .expect("it launches");
            let got = back(&out);
            let got = &got[..expected.len()];
            assert!(distance(got, &expected) < limit, "{:?}: {}", case.sequences, distance(got, &expected));
            // The new token is where it belongs, and nothing else was written.
            for (t, ([keys, _], [before, _])) in placed.iter().zip(&caches).enumerate() {
                let (position, keys) = (case.sequences[t].0, back(keys));
                for head in 0..kv_heads {
                    let start = (head * capacity + position) * dim;
                    let new = &back(&k)[(t * kv_heads + head) * dim..][..dim];
                    assert_eq!(&keys[start..start + dim], new);
                    assert_eq!(keys[start + dim..][..2 * dim], before[start + dim..][..2 * dim]);
                }
            }
        }
    }

    #[test]
    fn a_token_attends_as_written_on_paper() {
        let small = Heads { heads: 4, kv_heads: 2, head_dim: 32 };
        let sequences = vec![(0, 0), (5, 0), (255, 0), (256, 0), (700, 0), (700, 690), (513, 200)];
        for bf16 in [false, true] {
            check(&Case { heads: small, sequences: sequences.clone() }, bf16);
        }
        let wide = Heads { heads: 6, kv_heads: 1, head_dim: 160 };
        check(&Case { heads: wide, sequences: vec![(300, 0)] }, true);
    }

    #[test]
    fn more_sequences_than_a_launch_takes_are_all_served() {
        let heads = Heads { heads: 1, kv_heads: 1, head_dim: 32 };
        check(&Case { heads, sequences: (0..MAX_SEQUENCES + 2).map(|i| (i % 5, 0)).collect() }, false);
    }

    #[test]
    fn heads_that_do_not_fit_are_known_beforehand() {
        assert!(Heads { heads: 32, kv_heads: 8, head_dim: 128 }.fit());
        assert!(Heads { heads: 16, kv_heads: 2, head_dim: 256 }.fit());
        assert!(!Heads { heads: 4, kv_heads: 2, head_dim: 24 }.fit());
        assert!(!Heads { heads: 128, kv_heads: 1, head_dim: 128 }.fit());
    }

    #[test]
    fn gates_are_those_of_the_cpu() {
        use crate::device::launch::elementwise;
        let mut noise = Noise(9);
        let (gates, x): (Vec<f32>, Vec<f32>) =
            (noise.many(300).iter().map(|x| 20.0 * x).collect(), noise.many(300));
        for emulator in emulators() {
            for silu in [false, true] {
                let out = vec![f32::NAN; 300];
                let arguments = [
                    Argument::Address(at(&gates)),
                    Argument::Address(at(&x)),
                    Argument::Int(i32::from(silu)),
                    Argument::Int(300),
                    Argument::Address(at(&out)),
                ];
                emulator.launch("gate_f32", elementwise(300, 1), &arguments).expect("it launches");
                let sigmoid = |g: f32| 1.0 / (1.0 + (-g).exp());
                let one = |(g, x): (&f32, &f32)| x * sigmoid(*g) * if silu { *g } else { 1.0 };
                let expected: Vec<f32> = gates.iter().zip(&x).map(one).collect();
                assert!(distance(&out, &expected) < 1e-5, "silu {silu}");
            }
        }
    }

    #[test]
    fn constants_are_those_of_the_kernels() {
        let source = include_str!("../../cuda/decode.cu");
        for (name, value) in [("MAX_SEQUENCES", MAX_SEQUENCES), ("SPAN", SPAN), ("THREADS", THREADS as usize)]
        {
            let line = format!("#define {name} {value}");
            assert!(source.lines().any(|l| l == line || l.starts_with(&format!("{line} "))), "{name}");
        }
    }
}
