//! What placement does unasked: keep pinned models loaded, let idle ones go, recycle tired workers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plugin_loader::{EvictRequest, Purpose, Resident};
use tokio::task::JoinSet;

use super::Placement;
use super::room::{is_pinned, residents};
use crate::config::NodeKind;
use crate::fleet::gauge::BreakerState;
use crate::fleet::identity::{now_ms, random_bits};
use crate::fleet::view::{FleetView, Health, NodeView};

/// How long a model that could not be loaded is left alone.
const RETRY: Duration = Duration::from_secs(30);

/// Keeps house until dropped.
pub fn start(placement: Arc<Placement>, interval: Duration) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let pinning = Arc::new(Mutex::new(HashSet::new()));
        loop {
            tokio::time::sleep(interval).await;
            placement.export_health();
            placement.keep_pinned(&pinning);
            placement.spread(&pinning);
            placement.sweep().await;
            placement.recycle().await;
        }
    });
    tasks
}

type Pinning = Arc<Mutex<HashSet<(String, String)>>>;

impl Placement {
    fn export_health(&self) {
        self.metrics.coordinator_up.set(i64::from(self.coordinator.standing().reachable));
        self.metrics.thrash_ratio.set(self.thrash.ratio(now_ms()));
        for node in &self.fleet.view().nodes {
            let up = matches!(node.health, Health::Up | Health::Suspect);
            self.metrics.node_up.with_label_values(&[&node.name]).set(i64::from(up));
            let open = node.gauge.breaker() != BreakerState::Closed;
            self.metrics.breaker_open.with_label_values(&[&node.name]).set(i64::from(open));
        }
    }

    /// Loads what the catalogue pins to a node that does not have it.
    fn keep_pinned(self: &Arc<Self>, pinning: &Pinning) {
        let view = self.fleet.view();
        for model in &view.models {
            let Some(spec) = &model.spec else { continue };
            for node in &spec.pinned_on {
                let missing = model.on(node).is_some_and(|replica| {
                    replica.node.usable() && replica.residency == plugin_loader::Residency::LOADABLE
                });
                if missing {
                    self.bring(pinning, (model.id.clone(), node.clone()), "a pinned model");
                }
            }
        }
    }

    /// Makes the further replicas the router wished for, where more than one request had it wish so.
    fn spread(self: &Arc<Self>, pinning: &Pinning) {
        let wishes = std::mem::take(&mut *self.wishes.lock().unwrap_or_else(PoisonError::into_inner));
        for (key, _) in wishes.into_iter().filter(|(_, times)| *times > 1) {
            self.bring(pinning, key, "a further replica");
        }
    }

    /// Loads a model on a node, once at a time; after a failure it is left alone for a while.
    fn bring(self: &Arc<Self>, pinning: &Pinning, key: (String, String), what: &'static str) {
        if !pinning.lock().is_ok_and(|mut pinning| pinning.insert(key.clone())) {
            return;
        }
        let (placement, pinning) = (Arc::clone(self), Arc::clone(pinning));
        tokio::spawn(async move {
            if let Err(error) = placement.load_on(&key.0, &key.1).await {
                tracing::warn!(model = %key.0, node = %key.1, %error, what, "could not be loaded");
                tokio::time::sleep(RETRY).await;
            }
            if let Ok(mut pinning) = pinning.lock() {
                pinning.remove(&key);
            }
        });
    }

    /// Unloads what has been idle beyond its limit.
    async fn sweep(&self) {
        let view = self.fleet.view();
        for node in view.nodes.iter().filter(|node| node.usable() && node.kind == NodeKind::Neuron) {
            for model in self.overstayed(&view, node) {
                if let Err(error) = self.unload(&model, &node.name, "idle", true).await {
                    tracing::info!(model, node = %node.name, %error, "an idle model stays");
                }
            }
        }
    }

    fn overstayed(&self, view: &FleetView, node: &NodeView) -> Vec<String> {
        let loaded = residents(view, node, &self.policy);
        let table: Vec<Resident> = loaded
            .iter()
            .map(|(resident, model, replica, status)| {
                let pinned = is_pinned(model, replica, status);
                let may_go =
                    resident.eligible != 0 && resident.inflight == 0 && !pinned && !replica.gauge.closed();
                Resident { eligible: u32::from(may_go), ..*resident }
            })
            .collect();
        if table.iter().all(|resident| resident.eligible == 0) {
            return Vec::new();
        }
        let request = EvictRequest {
            purpose: Purpose::SWEEP,
            class: u32::MAX,
            need_bytes: 0,
            now_ms: now_ms(),
            priority: i32::MAX,
            seed: random_bits(),
            memo: node.gauge.memo(),
        };
        match self.evictor.choose(&request, &table, false) {
            Ok(decision) => decision.victims.iter().map(|index| loaded[*index].1.id.clone()).collect(),
            Err(error) => {
                tracing::error!(evictor = self.evictor.name(), %error, "the evictor failed; nothing is swept");
                Vec::new()
            }
        }
    }

    /// Loads an idle model afresh on a node that has loaded and unloaded many times: a new worker process
    /// begins with unfragmented memory.
    async fn recycle(self: &Arc<Self>) {
        if self.policy.defrag_after_cycles == 0 {
            return;
        }
        let view = self.fleet.view();
        for node in view.nodes.iter().filter(|node| node.usable() && node.kind == NodeKind::Neuron) {
            if node.gauge.cycles() < self.policy.defrag_after_cycles {
                continue;
            }
            let loaded = residents(&view, node, &self.policy);
            if loaded.iter().any(|(resident, ..)| resident.inflight > 0) {
                continue;
            }
            for (_, model, ..) in loaded {
                tracing::info!(node = %node.name, model = %model.id, "recycling an idle worker");
                if self.unload(&model.id, &node.name, "recycle", true).await.is_ok()
                    && let Err(error) = self.load_on(&model.id, &node.name).await
                {
                    tracing::warn!(node = %node.name, model = %model.id, %error, "a recycled model did not come back");
                }
            }
            node.gauge.reset_cycles();
        }
    }
}
