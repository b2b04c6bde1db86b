//! What the text side and the engine say to each other.
//!
//! Plain serialisable data, so that the same messages cross a worker's socket and an in-process
//! channel in tests. Text never appears here: the supervisor tokenises, detokenises, matches stop
//! strings and parses reasoning and tool calls; the engine knows token ids, pixels and numbers.

use serde::{Deserialize, Serialize};

/// One sequence to generate: everything the engine needs, and everything a replay needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// Prompt token ids. Each image is one single placeholder id here, in the order of `images`;
    /// the engine replaces it by as many copies as the architecture measures for that image.
    pub prompt: Vec<u32>,
    /// Decoded pictures, one per placeholder.
    pub images: Vec<ImagePixels>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most tokens to emit, `emitted` included. At least 1.
    pub max_tokens: u32,
    /// Ids that end the sequence. Empty when the caller asked to ignore the end of sequence.
    pub stop_tokens: Vec<u32>,
    /// `None`: no log probabilities. `Some(k)`: the chosen token's and those of the `k` likeliest.
    pub top_logprobs: Option<u8>,
    /// Tokens this sequence already emitted elsewhere; generation goes on after them. Empty for a new request.
    pub emitted: Vec<u32>,
    /// Positions in `prompt` (before image expansion) where a message ends, ascending: good places for a snapshot.
    pub boundaries: Vec<u32>,
}

/// A decoded picture: upright, opaque, 8-bit RGB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePixels {
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
    /// Row-major `[height, width, 3]`, exactly `height * width * 3` bytes.
    #[serde(with = "serde_bytes")]
    pub rgb: Vec<u8>,
    /// SHA-256 of width, height (both u32 little endian) and `rgb`: the key of an embedding cache.
    pub sha256: [u8; 32],
}

/// How the next token is chosen. Randomness is a pure function of `seed` and position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus mass in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this fraction of the likeliest; 0 drops none.
    pub min_p: f32,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Subtracted once from the logit of every token generated so far.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token generated so far.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Added to single logits before anything else, `(token id, bias)`.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    /// Deterministic choice of the likeliest token, nothing penalised.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

/// What happens to a sequence, in order: `Started`, any number of `Token`, then one of `Finished` or `Failed`.
/// `Failed` may also come first or instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SequenceEvent {
    /// The prompt was admitted and its reusable prefix found.
    Started {
        /// Prompt length after image expansion.
        prompt_tokens: u32,
        /// Tokens of it that came from the prefix cache.
        cached_tokens: u32,
        /// Why not more came from the cache; `None` when all that can be reused was.
        miss_reason: Option<MissReason>,
    },
    /// One more token. Tokens of `Submission::emitted` are not repeated, stop tokens are not reported.
    Token {
        /// Token id.
        id: u32,
        /// Present when `Submission::top_logprobs` asked for it.
        logprob: Option<TokenLogprob>,
    },
    /// The sequence ended.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Prompt length after image expansion.
        prompt_tokens: u32,
        /// Tokens emitted, `Submission::emitted` included, the stop token not.
        completion_tokens: u32,
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: u32,
        /// Where the time went.
        timings: Timings,
    },
    /// The sequence failed; nothing follows.
    Failed {
        /// Which of the five kinds of error this is.
        code: FailureCode,
        /// One sentence for people.
        message: String,
        /// Whether sending the same request again may help.
        retryable: bool,
        /// When it may help, in milliseconds from now; `None` when that is not known.
        retry_after_ms: Option<u32>,
    },
}

/// Why a prompt was not served from the prefix cache as far as it could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissReason {
    /// The cache is switched off.
    Disabled,
    /// Nothing has been cached yet.
    Empty,
    /// No cached prompt starts like this one.
    NoCommonPrefix,
    /// A cached prompt starts like this one but goes on differently.
    Diverged,
    /// The common prefix is shorter than the smallest piece the cache hands out.
    TooShort,
    /// The common prefix holds no snapshot of this architecture's recurrent state.
    NoSnapshot,
    /// A longer prefix was cached once and has been given up for memory since.
    Evicted,
}

impl MissReason {
    /// One word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Empty => "empty",
            Self::NoCommonPrefix => "no_common_prefix",
            Self::Diverged => "diverged",
            Self::TooShort => "too_short",
            Self::NoSnapshot => "no_snapshot",
            Self::Evicted => "evicted",
        }
    }
}

/// Log probability of a chosen token and of the likeliest alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Natural logarithm of the probability of the chosen token.
    pub logprob: f32,
    /// `(token id, logprob)` of the likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// A stop token was chosen.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// Nobody wants the rest.
    Cancelled,
}

/// The five kinds of error that cross a boundary; each has one reaction (docs/ARCHITECTURE.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureCode {
    /// The request itself is wrong.
    InvalidInput,
    /// This model or build cannot do it.
    Unsupported,
    /// No room now.
    OutOfMemory,
    /// The device or the worker is gone.
    DeviceLost,
    /// A bug.
    Internal,
}

/// Time per phase of one sequence, in milliseconds, measured where the work happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Submission to admission.
    pub queue_ms: f32,
    /// Admission to the first token.
    pub prefill_ms: f32,
    /// First token to the last.
    pub decode_ms: f32,
}
