//! A router: chooses where a request goes.

use plugin_abi::strategy::{self, Candidate, RouteChoice, RoutersRef, TextBuffer};
use plugin_abi::{Failure, Handle, Slice, SliceMut, Str};

use crate::error::{ErrorKind, PluginError, check};
use crate::plugin::{Plugin, StrategyInfo};

/// The request a router is asked about. Time and randomness are inputs: equal inputs give equal answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteRequest<'a> {
    /// Stable hash of the model's id.
    pub model: u64,
    /// Stable hash of the conversation; 0 when unknown.
    pub session: u64,
    /// Counts routed requests; the rotating index of tie-breaks.
    pub ordinal: u64,
    /// Random bits for this request.
    pub seed: u64,
    /// Milliseconds since an arbitrary start.
    pub now_ms: u64,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens the answer may have.
    pub max_tokens: u32,
    /// Tokens the answer is expected to have.
    pub expected_tokens: f32,
    /// Larger is more important.
    pub priority: i32,
    /// Chained hashes of the prompt's blocks, oldest first; empty when unknown.
    pub prefix_blocks: &'a [u64],
    /// Tokens in one block.
    pub block_tokens: u32,
}

/// A router's answer, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteDecision {
    /// Index of the chosen candidate; always one of those given.
    pub index: usize,
    /// A score per candidate, smaller is better; NaN where the router gave none.
    pub scores: Vec<f64>,
    /// Why, one line per candidate as `index<TAB>reason`; empty when nobody asked.
    pub explanation: String,
}

/// A router made from its options. Thread-safe; dropping it frees it.
pub struct Router {
    verbs: RoutersRef,
    handle: Handle,
    name: String,
}

impl Plugin {
    /// Makes the router called `name`. `options` is a JSON object it validates itself, or empty.
    ///
    /// # Errors
    /// `Unsupported` when the plugin has no such router; whatever the router says of its options.
    pub fn create_router(&self, name: &str, options: &str) -> Result<Router, PluginError> {
        let verbs = self.root().routers();
        let strategy = find("router", self.routers(), name)?;
        let (mut handle, mut failure) = (Handle::NONE, Failure::NONE);
        // SAFETY: all pointers are valid for the call.
        let code = unsafe { (verbs.create())(strategy, Str::new(options), &mut handle, &mut failure) };
        check(code, &failure).map(|()| Router { verbs, handle, name: name.to_owned() })
    }
}

/// The index of a strategy by name.
pub(crate) fn find(what: &str, offered: &[StrategyInfo], name: &str) -> Result<u32, PluginError> {
    offered.iter().position(|info| info.name == name).map(|index| index as u32).ok_or_else(|| {
        let names: Vec<_> = offered.iter().map(|info| info.name.as_str()).collect();
        PluginError::new(
            ErrorKind::Unsupported,
            format!("there is no {what} called {name:?}; this plugin has {}", list(&names)),
        )
    })
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Room for the explanation of so many items.
pub(crate) fn explanation_room(wanted: bool, items: usize) -> Vec<u8> {
    vec![0; if wanted { (items * 512).clamp(4096, 1 << 20) } else { 0 }]
}

/// The part of the lent room that was written.
pub(crate) fn explanation_text(mut room: Vec<u8>, written: u64) -> String {
    room.truncate(usize::try_from(written).unwrap_or(usize::MAX));
    String::from_utf8_lossy(&room).into_owned()
}

impl Router {
    /// The name it was made under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Chooses one of `candidates`.
    ///
    /// # Errors
    /// `InvalidInput` when there is no candidate; `Internal` when the router panics or answers with something
    /// that is not a candidate.
    pub fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        want_explanation: bool,
    ) -> Result<RouteDecision, PluginError> {
        let lent = strategy::RouteRequest {
            model: request.model,
            session: request.session,
            ordinal: request.ordinal,
            seed: request.seed,
            now_ms: request.now_ms,
            prompt_tokens: request.prompt_tokens,
            max_tokens: request.max_tokens,
            expected_tokens: request.expected_tokens,
            priority: request.priority,
            prefix_blocks: Slice::new(request.prefix_blocks),
            block_tokens: request.block_tokens,
            reserved: 0,
        };
        let mut scores = vec![f64::NAN; candidates.len()];
        let mut room = explanation_room(want_explanation, candidates.len());
        let mut choice = RouteChoice {
            index: u32::MAX,
            reserved: 0,
            scores: SliceMut::new(&mut scores),
            explanation: TextBuffer { bytes: SliceMut::new(&mut room), len: 0 },
        };
        let mut failure = Failure::NONE;
        // SAFETY: the handle is live; inputs and lent memory are valid for the call and do not overlap.
        let code = unsafe {
            (self.verbs.choose())(self.handle, &lent, Slice::new(candidates), &mut choice, &mut failure)
        };
        check(code, &failure)?;
        let (index, written) = (choice.index as usize, choice.explanation.len);
        if index >= candidates.len() {
            return Err(PluginError::new(
                ErrorKind::Internal,
                format!("the router {} chose number {index} of {} candidates", self.name, candidates.len()),
            ));
        }
        Ok(RouteDecision { index, scores, explanation: explanation_text(room, written) })
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // SAFETY: the handle is live and named by nobody after this.
        unsafe { (self.verbs.free())(self.handle) };
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Router({})", self.name)
    }
}
