//! Counters that outlive a view: what this gateway itself has under way and has measured.
//!
//! Polled figures are up to a second old. What the gateway sent since then it knows better, and
//! keeps here: requests under way, latencies, arrival rates, learned sizes and load times.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::identity::now_ms;

/// Half-life of arrival rates.
const RATE_HALF_LIFE_MS: f64 = 600_000.0;
/// Time in which a latency peak fades to 1/e.
const PEAK_DECAY_MS: f64 = 10_000.0;
/// Failures in a row that open a node's breaker.
const BREAKER_FAILURES: u32 = 5;
/// How long an open breaker stays open before one probe is let through.
const BREAKER_OPEN_MS: u64 = 30_000;

/// All gauges, by node and model.
#[derive(Default)]
pub struct Gauges {
    nodes: Mutex<HashMap<String, Arc<NodeGauge>>>,
    models: Mutex<HashMap<String, Arc<ModelGauge>>>,
    replicas: Mutex<HashMap<(String, String), Arc<ReplicaGauge>>>,
}

impl Gauges {
    /// The gauge of a node.
    pub fn node(&self, name: &str) -> Arc<NodeGauge> {
        of(&self.nodes, name)
    }

    /// The gauge of a model over the whole fleet.
    pub fn model(&self, id: &str) -> Arc<ModelGauge> {
        of(&self.models, id)
    }

    /// The gauge of a model on a node.
    pub fn replica(&self, node: &str, model: &str) -> Arc<ReplicaGauge> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(replicas.entry((node.to_owned(), model.to_owned())).or_default())
    }

    /// Requests under way over the whole fleet.
    pub fn inflight(&self) -> u64 {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.values().map(|gauge| u64::from(gauge.inflight())).sum()
    }
}

fn of<T: Default>(map: &Mutex<HashMap<String, Arc<T>>>, name: &str) -> Arc<T> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gauge) = map.get(name) {
        return Arc::clone(gauge);
    }
    Arc::clone(map.entry(name.to_owned()).or_default())
}

/// A value averaged over time: recent samples count more.
#[derive(Debug, Clone, Copy, Default)]
struct Average {
    value: f64,
    samples: u64,
}

impl Average {
    fn add(&mut self, sample: f64, weight: f64) {
        self.value = if self.samples == 0 { sample } else { self.value + weight * (sample - self.value) };
        self.samples += 1;
    }
}

/// What is known of a node beyond its own figures.
#[derive(Default)]
pub struct NodeGauge {
    inflight: AtomicU32,
    draining: AtomicBool,
    cycles: AtomicU32,
    breaker: Mutex<Breaker>,
    memo: Mutex<f64>,
    /// Held while a decision changes what is loaded on the node. Fair: waiters get it in order.
    pub changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    opened_ms: Option<u64>,
    probing: bool,
}

/// Whether a node's breaker lets requests through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It does.
    Closed,
    /// It does not, after failures in a row.
    Open,
    /// It lets one through, to see.
    HalfOpen,
}

impl NodeGauge {
    /// Requests of this gateway under way there.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Whether an operator wants no new work sent there.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Sends no new work there, or does again.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Loads and unloads since the node was last tidied.
    pub fn cycles(&self) -> u32 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// Counts a load or unload.
    pub fn count_cycle(&self) {
        self.cycles.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins counting cycles anew.
    pub fn reset_cycles(&self) {
        self.cycles.store(0, Ordering::Relaxed);
    }

    /// The number the evictor left last time.
    pub fn memo(&self) -> f64 {
        *self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the number the evictor leaves.
    pub fn set_memo(&self, memo: f64) {
        *self.memo.lock().unwrap_or_else(PoisonError::into_inner) = memo;
    }

    /// How the breaker stands.
    pub fn breaker(&self) -> BreakerState {
        let breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.opened_ms {
            None => BreakerState::Closed,
            Some(opened) if breaker.probing || now_ms().saturating_sub(opened) < BREAKER_OPEN_MS => {
                BreakerState::Open
            }
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Takes the one probe a half-open breaker lets through. True for a closed one.
    pub fn admit(&self) -> bool {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.opened_ms {
            None => true,
            Some(opened) if breaker.probing || now_ms().saturating_sub(opened) < BREAKER_OPEN_MS => false,
            Some(_) => {
                breaker.probing = true;
                true
            }
        }
    }

    /// A request got an answer.
    pub fn succeeded(&self) {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if breaker.failures != 0 || breaker.opened_ms.is_some() {
            *breaker = Breaker::default();
        }
    }

    /// The node did not answer, or broke off.
    pub fn failed(&self) {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.failures = breaker.failures.saturating_add(1);
        if breaker.failures >= BREAKER_FAILURES || breaker.probing {
            breaker.opened_ms = Some(now_ms());
            breaker.probing = false;
        }
    }

    /// A probe ended without telling anything (the client left).
    pub fn undecided(&self) {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).probing = false;
    }
}

/// What is known of a model over the whole fleet.
#[derive(Default)]
pub struct ModelGauge {
    inflight: AtomicU32,
    learned: Mutex<Learned>,
}

#[derive(Default)]
struct Learned {
    rate_per_ms: f64,
    rated_ms: u64,
    answer_tokens: Average,
    load_s: HashMap<String, Average>,
    bytes: u64,
}

impl ModelGauge {
    /// Requests of this gateway under way for the model.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Counts an arrival.
    pub fn arrived(&self) {
        let now = now_ms();
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let decay = decay_since(learned.rated_ms, now, RATE_HALF_LIFE_MS);
        // Each arrival adds what keeps the average right: ln 2 per half-life.
        learned.rate_per_ms = learned.rate_per_ms * decay + std::f64::consts::LN_2 / RATE_HALF_LIFE_MS;
        learned.rated_ms = now;
    }

    /// Requests per second lately.
    pub fn rate_per_s(&self) -> f32 {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        (learned.rate_per_ms * decay_since(learned.rated_ms, now_ms(), RATE_HALF_LIFE_MS) * 1000.0) as f32
    }

    /// Tokens an answer is expected to have: what they had lately, at most `limit`.
    pub fn expected_tokens(&self, limit: Option<u64>) -> f32 {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = if learned.answer_tokens.samples == 0 { 512.0 } else { learned.answer_tokens.value };
        limit.map_or(usual, |limit| usual.min(limit as f64)) as f32
    }

    /// An answer had so many tokens.
    pub fn answered(&self, tokens: u64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.answer_tokens.add(tokens as f64, 0.05);
    }

    /// A load on `node` took so long.
    pub fn loaded(&self, node: &str, seconds: f64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.load_s.entry(node.to_owned()).or_default().add(seconds, 0.3);
    }

    /// Expected seconds of a load on `node`: measured there, or elsewhere, or read at 1 GB/s.
    pub fn load_s(&self, node: &str, bytes: u64) -> f64 {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = || {
            let known = learned.load_s.values().map(|average| average.value);
            known.fold(None, |most: Option<f64>, value| Some(most.map_or(value, |most| most.max(value))))
        };
        let assumed = || 2.0 + bytes as f64 / 1e9;
        learned.load_s.get(node).map(|average| average.value).or_else(elsewhere).unwrap_or_else(assumed)
    }

    /// Memory the model was seen to take; 0 when it was never seen.
    pub fn bytes(&self) -> u64 {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// The model takes this much.
    pub fn saw_bytes(&self, bytes: u64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.bytes = learned.bytes.max(bytes);
    }
}

fn decay_since(then_ms: u64, now_ms: u64, half_life_ms: f64) -> f64 {
    (-(now_ms.saturating_sub(then_ms) as f64) / half_life_ms).exp2()
}

/// What is known of a model on a node beyond the node's own figures.
#[derive(Default)]
pub struct ReplicaGauge {
    inflight: AtomicU32,
    pending_prefill: AtomicU64,
    last_used_ms: AtomicU64,
    closed: AtomicBool,
    pinned: AtomicBool,
    latency: Mutex<Latency>,
}

#[derive(Default)]
struct Latency {
    first_token_s: f64,
    measured_ms: u64,
    inter_token_s: Average,
}

impl ReplicaGauge {
    /// Requests of this gateway under way there for the model.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::SeqCst)
    }

    /// Prompt tokens of this gateway's requests that have no first token yet.
    pub fn pending_prefill(&self) -> u64 {
        self.pending_prefill.load(Ordering::Relaxed)
    }

    /// When this gateway last sent a request there; 0 is never.
    pub fn last_used_ms(&self) -> u64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    /// Whether routing there has stopped, because the model is about to go.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether an operator wants it to stay.
    pub fn pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Keeps it there whoever wants its place, or no longer.
    pub fn set_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    /// Stops routing there; what is under way goes on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Routes there again.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// A first token came after `seconds`. A peak counts at once and fades slowly.
    pub fn first_token(&self, seconds: f64) {
        let now = now_ms();
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = (-(now.saturating_sub(latency.measured_ms) as f64) / PEAK_DECAY_MS).exp();
        latency.first_token_s = if seconds > latency.first_token_s {
            seconds
        } else {
            latency.first_token_s * weight + seconds * (1.0 - weight)
        };
        latency.measured_ms = now;
    }

    /// Tokens came `seconds` apart.
    pub fn inter_token(&self, seconds: f64) {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).inter_token_s.add(seconds, 0.1);
    }

    /// Seconds to the first token and between tokens; 0 where nothing was measured.
    pub fn latency_s(&self) -> (f32, f32) {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        (latency.first_token_s as f32, latency.inter_token_s.value as f32)
    }
}

/// A request under way: counted from here until dropped, whatever happens in between.
pub struct Ticket {
    node: Arc<NodeGauge>,
    model: Arc<ModelGauge>,
    replica: Arc<ReplicaGauge>,
    prompt_tokens: u64,
    prefilled: bool,
    settled: bool,
}

impl Ticket {
    /// Counts a request in. None when routing there has just stopped.
    pub fn take(
        node: &Arc<NodeGauge>,
        model: &Arc<ModelGauge>,
        replica: &Arc<ReplicaGauge>,
        prompt_tokens: u64,
    ) -> Option<Self> {
        if !node.admit() {
            return None;
        }
        replica.inflight.fetch_add(1, Ordering::SeqCst);
        // Counted first and checked after, as an eviction closes first and counts after: one of both sees
        // the other.
        if replica.closed() {
            replica.inflight.fetch_sub(1, Ordering::SeqCst);
            node.undecided();
            return None;
        }
        node.inflight.fetch_add(1, Ordering::Relaxed);
        model.inflight.fetch_add(1, Ordering::Relaxed);
        replica.pending_prefill.fetch_add(prompt_tokens, Ordering::Relaxed);
        replica.last_used_ms.store(now_ms(), Ordering::Relaxed);
        Some(Self {
            node: Arc::clone(node),
            model: Arc::clone(model),
            replica: Arc::clone(replica),
            prompt_tokens,
            prefilled: false,
            settled: false,
        })
    }

    /// The replica it counts for.
    pub fn replica(&self) -> &ReplicaGauge {
        &self.replica
    }

    /// The model it counts for.
    pub fn model(&self) -> &ModelGauge {
        &self.model
    }

    /// The prompt has been computed.
    pub fn prefilled(&mut self) {
        if !self.prefilled {
            self.prefilled = true;
            self.replica.pending_prefill.fetch_sub(self.prompt_tokens, Ordering::Relaxed);
        }
    }

    /// The node answered.
    pub fn succeeded(&mut self) {
        if !self.settled {
            self.settled = true;
            self.node.succeeded();
        }
    }

    /// The node failed.
    pub fn failed(&mut self) {
        self.settled = true;
        self.node.failed();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.prefilled();
        if !self.settled {
            self.node.undecided();
        }
        self.replica.last_used_ms.store(now_ms(), Ordering::Relaxed);
        self.replica.inflight.fetch_sub(1, Ordering::SeqCst);
        self.node.inflight.fetch_sub(1, Ordering::Relaxed);
        self.model.inflight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges() -> (Arc<NodeGauge>, Arc<ModelGauge>, Arc<ReplicaGauge>) {
        Default::default()
    }

    #[test]
    fn a_ticket_counts_until_it_is_dropped() {
        let (node, model, replica) = gauges();
        let mut ticket = Ticket::take(&node, &model, &replica, 100).expect("open");
        assert_eq!((node.inflight(), model.inflight(), replica.inflight()), (1, 1, 1));
        assert_eq!(replica.pending_prefill(), 100);
        ticket.prefilled();
        ticket.prefilled();
        assert_eq!(replica.pending_prefill(), 0);
        drop(ticket);
        assert_eq!((node.inflight(), model.inflight(), replica.inflight()), (0, 0, 0));
        drop(Ticket::take(&node, &model, &replica, 7));
        assert_eq!(replica.pending_prefill(), 0);
    }

    #[test]
    fn nothing_is_sent_to_a_replica_that_is_about_to_go() {
        let (node, model, replica) = gauges();
        replica.close();
        assert!(Ticket::take(&node, &model, &replica, 1).is_none());
        assert_eq!(replica.inflight(), 0);
        replica.open();
        assert!(Ticket::take(&node, &model, &replica, 1).is_some());
    }

    #[test]
    fn a_breaker_opens_after_failures_in_a_row_only() {
        let (node, ..) = gauges();
        for _ in 0..10 {
            for _ in 0..BREAKER_FAILURES - 1 {
                node.failed();
            }
            node.succeeded();
        }
        assert_eq!(node.breaker(), BreakerState::Closed);
        for _ in 0..BREAKER_FAILURES {
            node.failed();
        }
        assert_eq!(node.breaker(), BreakerState::Open);
        assert!(!node.admit());
        node.breaker.lock().expect("unpoisoned").opened_ms = Some(now_ms() - BREAKER_OPEN_MS);
        assert_eq!(node.breaker(), BreakerState::HalfOpen);
        assert!(node.admit(), "one probe");
        assert!(!node.admit(), "and only one");
        node.failed();
        assert_eq!(node.breaker(), BreakerState::Open);
        node.succeeded();
        assert_eq!(node.breaker(), BreakerState::Closed);
    }

    #[test]
    fn learned_figures() {
        let model = ModelGauge::default();
        assert_eq!(model.expected_tokens(Some(100)), 100.0);
        assert_eq!(model.expected_tokens(None), 512.0);
        model.answered(40);
        assert_eq!(model.expected_tokens(Some(100)), 40.0);
        assert_eq!(model.load_s("a", 3_000_000_000), 5.0);
        model.loaded("b", 9.0);
        assert_eq!(model.load_s("a", 3_000_000_000), 9.0);
        model.loaded("a", 4.0);
        assert_eq!(model.load_s("a", 3_000_000_000), 4.0);
        assert_eq!(model.rate_per_s(), 0.0);
        for _ in 0..100 {
            model.arrived();
        }
        assert!(model.rate_per_s() > 0.1, "{}", model.rate_per_s());
        model.saw_bytes(5);
        model.saw_bytes(3);
        assert_eq!(model.bytes(), 5);
    }

    #[test]
    fn a_latency_peak_counts_at_once() {
        let replica = ReplicaGauge::default();
        replica.first_token(0.1);
        replica.first_token(2.0);
        assert_eq!(replica.latency_s().0, 2.0);
        replica.first_token(0.1);
        assert!(replica.latency_s().0 > 1.9);
    }
}
