//! A request under way, counted wherever it counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ModelGauge, NodeGauge, ReplicaGauge};
use crate::fleet::identity::now_ms;

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
}
