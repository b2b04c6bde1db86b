//! Several gateways agreeing through etcd.
//!
//! Everything a gateway writes is under one lease of its own, so that a gateway that dies takes its turns,
//! claims and name with it:
//!
//! * `/cortex/fleet/gateways/<name>` – it is there.
//! * `/cortex/fleet/spent/<name>` – what keys have used through it.
//! * `/cortex/fleet/neurons/<name>` – written by neurons themselves ([`registration`]).
//! * `/cortex/locks/<node>/…` – who waits for a turn on a node; the oldest has it.
//! * `/cortex/loads/<model>` – who loads a model; created only if nobody does.
//!
//! What is below `/cortex/fleet/` is watched, not polled.

mod api;
mod session;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use wire_api::node::registration;
use wire_api::node::routes::encode_segment;

use super::alone::Turns;
use super::{Claim, Coordinator, Held, Lost, Registered, Spendings, SpentByGateway, Standing};
use crate::proxy::client::Client;
use api::Api;

/// What is watched.
const FLEET: &str = "/cortex/fleet/";
const GATEWAYS: &str = "/cortex/fleet/gateways/";
const SPENT: &str = "/cortex/fleet/spent/";

/// See the module. Dropping it takes the gateway off the list, at the latest when its lease lapses.
pub struct Etcd {
    shared: Arc<Shared>,
    turns: Turns,
    tickets: AtomicU64,
    _session: JoinSet<()>,
}

/// What the session keeps up to date.
struct Shared {
    api: Api,
    name: String,
    /// The lease everything is written under, or why there is none.
    lease: watch::Sender<Result<String, Lost>>,
    neurons: watch::Sender<Vec<Registered>>,
    picture: RwLock<Picture>,
    /// What this gateway has to tell of its keys.
    spent: watch::Sender<Spendings>,
}

/// What is known of the others.
#[derive(Default)]
struct Picture {
    gateways: Vec<String>,
    spent: SpentByGateway,
}

impl Etcd {
    /// Joins the gateways at `endpoints` under `name`, and keeps trying for as long as it lives.
    pub fn join(client: Client, endpoints: &[String], name: &str) -> Self {
        let shared = Arc::new(Shared {
            api: Api::new(client, endpoints),
            name: name.to_owned(),
            lease: watch::Sender::new(Err(Lost("etcd has not answered yet".into()))),
            neurons: watch::Sender::new(Vec::new()),
            picture: RwLock::default(),
            spent: watch::Sender::new(Spendings::new()),
        });
        let mut session = JoinSet::new();
        session.spawn(session::run(Arc::clone(&shared)));
        Self { shared, turns: Turns::default(), tickets: AtomicU64::new(0), _session: session }
    }

    /// Waits until etcd has answered for the first time, or this once failed to.
    pub async fn settled(&self) {
        let mut lease = self.shared.lease.subscribe();
        let _ = lease.changed().await;
    }

    /// Takes a turn: the oldest key below the node's has it.
    async fn queue(&self, node: &str) -> Result<Held, Lost> {
        let lease = self.shared.lease()?;
        let here = self.turns.take(node).await;
        let queue = format!("/cortex/locks/{}/", encode_segment(node));
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let key = format!("{queue}{}-{ticket}", encode_segment(&self.shared.name));
        // Taken back however this ends.
        let place = Place { shared: Arc::clone(&self.shared), key: key.clone() };
        self.shared.api.put(&key, &self.shared.name, &lease).await?;
        loop {
            let (waiting, revision) = self.shared.api.list(&queue).await?;
            match waiting.first() {
                Some(first) if first.key == key => return Ok(Held::new((place, here))),
                Some(_) if waiting.iter().any(|entry| entry.key == key) => {
                    self.shared.api.watch(&queue, revision).await?.changed().await?;
                }
                _ => {
                    return Err(Lost("the lease of this gateway lapsed while it waited for its turn".into()));
                }
            }
        }
    }

    async fn claim(&self, model: &str) -> Result<Claim, Lost> {
        let lease = self.shared.lease()?;
        let key = format!("/cortex/loads/{}", encode_segment(model));
        Ok(match self.shared.api.create(&key, &self.shared.name, &lease).await? {
            None => Claim::Mine(Held::new(Place { shared: Arc::clone(&self.shared), key })),
            Some(there) => Claim::Theirs { owner: there.value },
        })
    }
}

/// A key that is removed when this is dropped.
struct Place {
    shared: Arc<Shared>,
    key: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let (shared, key) = (Arc::clone(&self.shared), std::mem::take(&mut self.key));
        // Without a runtime the process is ending; the lease lapses.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // Until it is gone, or the lease that holds it is.
            let lease = shared.lease();
            while shared.api.delete(&key).await.is_err() {
                tokio::time::sleep(session::PAUSE).await;
                if shared.lease().is_ok_and(|now| lease.as_ref().is_ok_and(|then| now != *then)) {
                    return;
                }
            }
        });
    }
}

impl Shared {
    fn lease(&self) -> Result<String, Lost> {
        self.lease.borrow().clone()
    }

    fn lost(&self, why: Lost) {
        let was_there = self.lease.send_replace(Err(why.clone())).is_ok();
        if was_there {
            tracing::error!(
                reason = why.0,
                "etcd is lost: what is loaded serves on, nothing is loaded or unloaded"
            );
        }
    }

    fn present(&self, lease: &str) {
        let before = self.lease.send_replace(Ok(lease.to_owned()));
        if before.is_err() {
            tracing::info!(gateway = self.name, "agreeing with other gateways through etcd");
        }
    }

    /// Takes in what is below [`FLEET`].
    fn saw(&self, entries: &[api::Entry]) {
        let below = |prefix: &'static str| {
            entries.iter().filter_map(move |entry| Some((entry.key.strip_prefix(prefix)?, &entry.value)))
        };
        let mut neurons: Vec<Registered> = Vec::new();
        for (key, value) in below(registration::PREFIX) {
            match serde_json::from_str::<Registered>(value) {
                Ok(neuron) if !neuron.name.is_empty() => neurons.push(neuron),
                _ => tracing::warn!(key, "a neuron's registration cannot be read and is left out"),
            }
        }
        neurons.sort_by(|a, b| a.name.cmp(&b.name));
        self.neurons.send_if_modified(|known| {
            let differs = *known != neurons;
            *known = neurons;
            differs
        });
        let mut gateways: Vec<String> = below(GATEWAYS).map(|(_, value)| value.clone()).collect();
        gateways.sort();
        let own = encode_segment(&self.name);
        let others = below(SPENT).filter(|(gateway, _)| *gateway != own);
        let spent: BTreeMap<String, Spendings> = others
            .filter_map(|(gateway, value)| Some((gateway.to_owned(), serde_json::from_str(value).ok()?)))
            .collect();
        *self.picture.write().unwrap_or_else(PoisonError::into_inner) = Picture { gateways, spent };
    }
}

impl Coordinator for Etcd {
    fn lock_node<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<Held, Lost>> {
        Box::pin(self.queue(node))
    }

    fn claim_model<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Claim, Lost>> {
        Box::pin(self.claim(model))
    }

    fn standing(&self) -> Standing {
        let fault = self.shared.lease().err().map(|lost| lost.0);
        let picture = self.shared.picture.read().unwrap_or_else(PoisonError::into_inner);
        Standing {
            kind: "etcd".into(),
            reachable: fault.is_none(),
            fault,
            gateways: picture.gateways.clone(),
        }
    }

    fn neurons(&self) -> watch::Receiver<Vec<Registered>> {
        self.shared.neurons.subscribe()
    }

    fn tell_spent(&self, spent: Spendings) {
        self.shared.spent.send_if_modified(|told| {
            let differs = *told != spent;
            *told = spent;
            differs
        });
    }

    fn spent_elsewhere(&self) -> SpentByGateway {
        self.shared.picture.read().unwrap_or_else(PoisonError::into_inner).spent.clone()
    }
}
