//! What all keepers of a node share: its settings, its books, the list of its models.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use wire_api::node::load::LoadRequest;
use wire_api::node::{DeviceId, JobId, ModelId};

use super::entry::Entry;
use super::leases::Leases;
use super::memory::{Accounts, Room};
use super::{ModelsOptions, Resolver};
use crate::catalogue::Catalogue;
use crate::discovery::Machine;
use crate::discovery::memory::Memory;
use crate::metrics::Metrics;

/// What all keepers share.
pub(super) struct Shared {
    pub options: ModelsOptions,
    pub catalogue: Catalogue,
    pub resolver: Arc<dyn Resolver>,
    pub metrics: Metrics,
    pub accounts: Accounts,
    pub leases: Leases,
    pub entries: Mutex<BTreeMap<ModelId, Arc<Entry>>>,
    pub declared: Mutex<HashMap<ModelId, LoadRequest>>,
    pub revision: watch::Sender<u64>,
    pub jobs: AtomicU64,
    pub loads: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Shared {
    pub fn entries(&self) -> MutexGuard<'_, BTreeMap<ModelId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Main memory this node's models may use.
    pub fn main_memory(&self, machine: &Memory) -> Room {
        let limit = self.options.memory_bytes.unwrap_or(u64::MAX);
        Room::of_the_machine(machine.total_bytes.min(limit), machine.available_bytes.min(limit))
    }

    /// Memory of every device that can be used.
    pub fn rooms(&self, machine: &Machine) -> Vec<Room> {
        let gpus = machine
            .gpus
            .usable()
            .map(|gpu| Room::of_a_gpu(DeviceId(gpu.id()), gpu.total_bytes, gpu.free_bytes));
        std::iter::once(self.main_memory(&machine.memory)).chain(gpus).collect()
    }

    /// Something about what is resident has changed.
    pub fn changed(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Takes a model off the list, if it is still this one.
    pub fn forget(&self, entry: &Arc<Entry>) {
        let mut entries = self.entries();
        if entries.get(&entry.id).is_some_and(|current| Arc::ptr_eq(current, entry)) {
            entries.remove(&entry.id);
        }
    }

    pub fn next_job(&self) -> JobId {
        JobId(format!("job-{}", self.jobs.fetch_add(1, Ordering::Relaxed) + 1))
    }
}
