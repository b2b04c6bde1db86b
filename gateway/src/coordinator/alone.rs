//! One gateway by itself: turns are taken within this process, and nobody needs to be asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Claim, Coordinator, Held, Lost, Registered, Spendings, SpentByGateway, Standing};

/// The turns of every node, taken in order of arrival.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for a turn on a node.
    pub async fn take(&self, node: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(node.to_owned()).or_default())
        };
        turn.lock_owned().await
    }
}

/// See the module.
pub struct Alone {
    turns: Turns,
    neurons: watch::Sender<Vec<Registered>>,
}

impl Default for Alone {
    fn default() -> Self {
        Self { turns: Turns::default(), neurons: watch::Sender::new(Vec::new()) }
    }
}

impl Coordinator for Alone {
    fn lock_node<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<Held, Lost>> {
        Box::pin(async { Ok(Held::new(self.turns.take(node).await)) })
    }

    /// Loads of this process are shared before anybody claims one.
    fn claim_model<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Claim, Lost>> {
        Box::pin(async { Ok(Claim::Mine(Held::new(()))) })
    }

    fn standing(&self) -> Standing {
        Standing { kind: "alone".into(), reachable: true, ..Standing::default() }
    }

    fn neurons(&self) -> watch::Receiver<Vec<Registered>> {
        self.neurons.subscribe()
    }

    fn tell_spent(&self, _: Spendings) {}

    fn spent_elsewhere(&self) -> SpentByGateway {
        SpentByGateway::new()
    }
}
