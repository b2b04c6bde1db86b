//! Strategy plugins: a router chooses where a request goes, an evictor chooses what makes room.
//!
//! A strategy chooses and never acts. Everything it may use is in the snapshot it is given: time, seed and
//! ordinal included. Equal inputs give equal answers; a strategy has no clock, no randomness of its own, no
//! files and no network. The host filters before (health, capability, tenancy, eligibility) and checks the
//! answer after.

use abi_stable::StableAbi;

use crate::primitive::{Code, Failure, Handle, Slice, SliceMut, Str};

/// One strategy a plugin offers. All text is `'static` data of the plugin.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct StrategyInfo {
    /// Name used in configuration, e.g. `least_tokens`.
    pub name: Str,
    /// One sentence for people.
    pub summary: Str,
}

/// How a candidate stands to the requested model.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency(pub u32);

impl Residency {
    /// Loaded and ready.
    pub const RESIDENT: Self = Self(0);
    /// Being loaded.
    pub const LOADING: Self = Self(1);
    /// Could be loaded there.
    pub const LOADABLE: Self = Self(2);
}

/// The request a router is asked about.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RouteRequest {
    /// Stable hash of the model's id.
    pub model: u64,
    /// Stable hash of the conversation the request belongs to; 0 when unknown.
    pub session: u64,
    /// Counts the requests this gateway has routed; the rotating index of tie-breaks.
    pub ordinal: u64,
    /// Random bits for this request.
    pub seed: u64,
    /// Milliseconds since an arbitrary start; only differences mean anything.
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
    pub prefix_blocks: Slice<u64>,
    /// Tokens in one block of `prefix_blocks`.
    pub block_tokens: u32,
    /// Zero.
    pub reserved: u32,
}

/// One place a request could go: a node, and how the model stands there.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Candidate {
    /// Stable hash of the node's name.
    pub node: u64,
    /// How the model stands there.
    pub residency: Residency,
    /// Requests that can run at once; 0 when unknown.
    pub slots: u32,
    /// Requests this gateway has under way there for the model.
    pub inflight: u32,
    /// Requests the node reports as running for the model.
    pub running: u32,
    /// Requests the node reports as queued for the model.
    pub queued: u32,
    /// Prompt tokens of this request already cached there.
    pub cached_tokens: u32,
    /// Prompt tokens waiting to be prefilled there.
    pub pending_prefill_tokens: u64,
    /// Tokens of context held by running requests there.
    pub active_tokens: u64,
    /// Prefill speed in tokens per second; 0 when unknown.
    pub prefill_tokens_per_s: f32,
    /// Decode speed of one sequence in tokens per second; 0 when unknown.
    pub decode_tokens_per_s: f32,
    /// Share of the KV memory in use, 0 to 1.
    pub kv_used: f32,
    /// Peak-EWMA of time to first token in seconds; 0 when unknown.
    pub first_token_s: f32,
    /// EWMA of the time between tokens in seconds; 0 when unknown.
    pub inter_token_s: f32,
    /// Operator's weight, 1 by default.
    pub weight: f32,
    /// Age of the node's figures in milliseconds.
    pub metrics_age_ms: u32,
    /// Expected seconds until the model is ready there; 0 when resident.
    pub load_s: f32,
    /// Expected seconds lost later by the models that would have to go; 0 when none.
    pub eviction_regret_s: f32,
    /// Models that would have to go.
    pub evictions: u32,
    /// 1 when making room would displace a model of higher class.
    pub priority_violation: u32,
    /// Devices of the node that can hold the model.
    pub devices: u32,
    /// Memory free there.
    pub free_bytes: u64,
    /// Memory the node has.
    pub total_bytes: u64,
    /// Memory the model needs there.
    pub need_bytes: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Text a strategy writes into memory the host lent.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct TextBuffer {
    /// The loan; empty when nobody wants the text.
    pub bytes: SliceMut<u8>,
    /// Bytes written.
    pub len: u64,
}

/// A router's answer.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RouteChoice {
    /// Index of the chosen candidate.
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// A score per candidate where the host lent memory for them; smaller is better.
    pub scores: SliceMut<f64>,
    /// Why, for people: one line per candidate, `index<TAB>term=value …`.
    pub explanation: TextBuffer,
}

/// The verbs of the router family. `strategy` is an index into what `describe` returned.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RoutersRef)))]
#[sabi(missing_field(option))]
pub struct Routers {
    /// The routers in this file, sorted by name; `'static`.
    pub describe: unsafe extern "C" fn() -> Slice<StrategyInfo>,
    /// Makes a router from its options, a JSON object it validates itself.
    pub create:
        unsafe extern "C" fn(strategy: u32, options: Str, router: *mut Handle, failure: *mut Failure) -> Code,
    /// Drops a router.
    pub free: unsafe extern "C" fn(router: Handle),
    /// Chooses. Thread-safe.
    #[sabi(last_prefix_field)]
    pub choose: unsafe extern "C" fn(
        router: Handle,
        request: *const RouteRequest,
        candidates: Slice<Candidate>,
        choice: *mut RouteChoice,
        failure: *mut Failure,
    ) -> Code,
}

/// Why an evictor is asked.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose(pub u32);

impl Purpose {
    /// Bytes are needed for a load.
    pub const NEED: Self = Self(0);
    /// Nothing is needed; name what has outlived its welcome.
    pub const SWEEP: Self = Self(1);
}

/// What an evictor is asked for.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct EvictRequest {
    /// Why.
    pub purpose: Purpose,
    /// Residency class of the model that wants in; larger is higher.
    pub class: u32,
    /// Bytes that must become free, beyond what is free already.
    pub need_bytes: u64,
    /// Milliseconds since an arbitrary start; only differences mean anything.
    pub now_ms: u64,
    /// Priority of the model that wants in; larger is more important.
    pub priority: i32,
    /// Zero.
    pub reserved: u32,
    /// Random bits for this decision.
    pub seed: u64,
    /// The value the strategy left in [`EvictChoice::memo`] last time on this node; 0 at first.
    pub memo: f64,
}

/// A model that is loaded on the node.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Resident {
    /// Stable hash of the model's id.
    pub model: u64,
    /// Bytes that become free when it goes.
    pub bytes: u64,
    /// When it was loaded.
    pub loaded_ms: u64,
    /// When it last served.
    pub last_used_ms: u64,
    /// Requests it has served since it was loaded.
    pub uses: u64,
    /// Requests under way.
    pub inflight: u32,
    /// Residency class; larger is higher.
    pub class: u32,
    /// Operator's priority; larger is more important.
    pub priority: i32,
    /// 1 when the host allows it to go: idle, unpinned, long enough resident, no higher class.
    pub eligible: u32,
    /// Requests per second it is expected to get.
    pub rate_per_s: f32,
    /// Seconds to load it again.
    pub reload_s: f32,
    /// Seconds of prefill its cached prefixes are worth.
    pub warm_s: f32,
    /// Zero.
    pub reserved32: u32,
    /// Idle time after which it should go, in milliseconds; 0 means never.
    pub idle_limit_ms: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// An evictor's answer.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct EvictChoice {
    /// Memory for indices of victims, as many as there are residents.
    pub victims: SliceMut<u32>,
    /// Victims written, in the order they should go.
    pub victim_count: u32,
    /// Zero.
    pub reserved: u32,
    /// A score per resident where the host lent memory for them; the smallest goes first.
    pub scores: SliceMut<f64>,
    /// One number the host keeps per node and hands back next time.
    pub memo: f64,
    /// Why, for people: one line per resident, `index<TAB>term=value …`.
    pub explanation: TextBuffer,
}

/// The verbs of the evictor family. `strategy` is an index into what `describe` returned.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = EvictorsRef)))]
#[sabi(missing_field(option))]
pub struct Evictors {
    /// The evictors in this file, sorted by name; `'static`.
    pub describe: unsafe extern "C" fn() -> Slice<StrategyInfo>,
    /// Makes an evictor from its options, a JSON object it validates itself.
    pub create: unsafe extern "C" fn(
        strategy: u32,
        options: Str,
        evictor: *mut Handle,
        failure: *mut Failure,
    ) -> Code,
    /// Drops an evictor.
    pub free: unsafe extern "C" fn(evictor: Handle),
    /// Chooses victims; none when the need cannot be met. Thread-safe.
    #[sabi(last_prefix_field)]
    pub choose: unsafe extern "C" fn(
        evictor: Handle,
        request: *const EvictRequest,
        residents: Slice<Resident>,
        choice: *mut EvictChoice,
        failure: *mut Failure,
    ) -> Code,
}
