//! `config.json`, and the settings that make the model behave as a test wants it.

use plugin_sdk::{Error, Options, Result, Source};
use serde::Deserialize;

/// Context of a `config.json` that names none, in tokens.
const DEFAULT_CONTEXT: usize = 4096;

/// What a test may ask of the model: the object `echo` in `config.json`, or the load's own options, which
/// come first. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What it answers after `<|assistant|>`, in place of the user's turn; without a marker it is repeated.
    pub script: Option<String>,
    /// Logit of the token that comes next; all others lie between 0 and 1.
    pub sharpness: f32,
    /// Every step takes at least so long.
    pub step_delay_ms: u64,
    /// Every token of a step takes at least so long.
    pub token_delay_us: u64,
    /// Loading takes at least so long.
    pub load_delay_ms: u64,
    /// Loading fails after all.
    pub load_fails: bool,
    /// Loading never ends and does not listen to cancellation.
    pub load_hangs: bool,
    /// Weights it claims to have, in bytes.
    pub weight_bytes: u64,
    /// State per token it claims to hold, in bytes.
    pub bytes_per_token: u64,
    /// Whether `fork` and `trim` work at any earlier length.
    pub fork_any_length: bool,
    /// Whether it takes images.
    pub vision: bool,
    /// What goes wrong, and when.
    pub fault: Option<Fault>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            script: None,
            sharpness: 12.0,
            step_delay_ms: 0,
            token_delay_us: 0,
            load_delay_ms: 0,
            load_fails: false,
            load_hangs: false,
            weight_bytes: 0,
            bytes_per_token: 8,
            fork_any_length: true,
            vision: true,
            fault: None,
        }
    }
}

/// Something that goes wrong on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// When a sequence is fed its token at this position (counted from 0); at any when absent.
    pub at: Option<usize>,
    /// Only in a sequence that holds this text by then.
    pub text: Option<String>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The row fails as wrong.
    InvalidInput,
    /// The row fails for want of memory.
    OutOfMemory,
    /// The batch fails as unservable.
    Unsupported,
    /// The batch fails because the device is gone.
    DeviceLost,
    /// The batch fails as a bug.
    Internal,
    /// The step panics.
    Panic,
    /// The process aborts.
    Abort,
    /// The process exits as if all were well.
    Exit,
    /// The step never returns and does not listen to cancellation.
    Hang,
    /// The row's logits are not numbers.
    Nan,
}

#[derive(Deserialize)]
struct File {
    model_type: String,
    max_position_embeddings: Option<usize>,
    echo: Option<Settings>,
}

/// Everything a load settles.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    pub(crate) max_context: usize,
}

impl Config {
    /// Reads `config.json` and the load's options.
    pub(crate) fn read(source: &Source<'_>, options: &Options<'_>) -> Result<Self> {
        let file: File = serde_json::from_str(source.config)
            .map_err(|error| Error::InvalidInput(format!("config.json is not understood: {error}")))?;
        if file.model_type != "echo" {
            return Err(Error::Unsupported(format!("model_type {:?} is not echo", file.model_type)));
        }
        if !options.quantize.is_empty() {
            return Err(Error::Unsupported("echo has no weights to quantize; leave quantize empty".into()));
        }
        let settings = if options.options.is_empty() {
            file.echo.unwrap_or_default()
        } else {
            serde_json::from_str(options.options)
                .map_err(|error| Error::InvalidInput(format!("the options are not understood: {error}")))?
        };
        let made_for = file.max_position_embeddings.unwrap_or(DEFAULT_CONTEXT);
        if made_for == 0 {
            return Err(Error::InvalidInput("max_position_embeddings is 0".into()));
        }
        let asked = if options.max_context == 0 { made_for } else { options.max_context };
        Ok(Self { settings, max_context: made_for.min(asked) })
    }
}
