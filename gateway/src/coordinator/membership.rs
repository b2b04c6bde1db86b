//! What other gateways and neurons tell, taken in: nodes join and leave the fleet, limits hold over all gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Coordinator, Registered, Spendings, Spent, SpentByGateway};
use crate::config::neuron::Endpoint;
use crate::config::{Neuron, NodeKind};
use crate::fleet::Fleet;
use crate::fleet::directory::Directory;
use crate::fleet::view::Health;

/// How often it is looked whether a node that no longer registers has gone down.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often gateways exchange what keys have spent.
const EXCHANGE_EVERY: Duration = Duration::from_secs(1);

/// Adds registered neurons to the fleet until dropped. `key_env`: the variable that holds the key they want.
///
/// A node that no longer registers stays for as long as it answers: it may have lost etcd, not its models.
/// What the configuration names is never changed from here.
pub fn follow(
    coordinator: &Arc<dyn Coordinator>,
    fleet: Arc<Fleet>,
    directory: Directory,
    key_env: Option<String>,
) -> JoinSet<()> {
    let mut registered = coordinator.neurons();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let configured: BTreeSet<String> = fleet.nodes().into_iter().map(|node| node.name).collect();
        let mut joined: BTreeMap<String, Neuron> = BTreeMap::new();
        loop {
            let now: Vec<Neuron> = registered
                .borrow_and_update()
                .iter()
                .filter(|neuron| !configured.contains(&neuron.name))
                .filter_map(|neuron| node(neuron, key_env.as_deref()))
                .collect();
            for neuron in &now {
                if joined.get(&neuron.name) != Some(neuron) {
                    tracing::info!(
                        node = neuron.name,
                        endpoint = neuron.endpoint,
                        "a neuron made itself known"
                    );
                    joined.insert(neuron.name.clone(), neuron.clone());
                    fleet.join(neuron.clone());
                    directory.put(neuron);
                }
            }
            let view = fleet.view();
            joined.retain(|name, _| {
                let stays = now.iter().any(|neuron| neuron.name == *name)
                    || view
                        .node(name)
                        .is_some_and(|node| matches!(node.health, Health::Up | Health::Suspect));
                if !stays {
                    tracing::info!(node = name, "the neuron has left");
                    directory.remove(name);
                    fleet.leave(name);
                }
                stays
            });
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, registered.changed()).await {
                return;
            }
        }
    });
    tasks
}

/// A registered neuron as an entry of the configuration would name it.
fn node(registered: &Registered, key_env: Option<&str>) -> Option<Neuron> {
    if Endpoint::new(&registered.endpoint).uri("/").is_none() {
        tracing::warn!(node = registered.name, endpoint = registered.endpoint, "its endpoint is no URL");
        return None;
    }
    let weight =
        if registered.weight > 0.0 && registered.weight.is_finite() { registered.weight } else { 1.0 };
    Some(Neuron {
        name: registered.name.clone(),
        endpoint: registered.endpoint.clone(),
        kind: NodeKind::Neuron,
        weight,
        api_key_env: key_env.map(str::to_owned),
        api_key_file: None,
    })
}

/// Whose limits are shared.
pub trait Limits: Send + Sync {
    /// What keys have used through this gateway since it began.
    fn spent(&self) -> Spendings;

    /// A key has used this through another gateway.
    fn charge(&self, key: &str, spent: Spent);
}

/// Exchanges what keys have spent with the other gateways until dropped. A caller that uses several gateways
/// within a second may go over a limit by what it used in that second, never for longer.
pub fn share_limits(coordinator: Arc<dyn Coordinator>, limits: Arc<dyn Limits>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut known = SpentByGateway::new();
        loop {
            tokio::time::sleep(EXCHANGE_EVERY).await;
            coordinator.tell_spent(limits.spent());
            for (key, spent) in news(&mut known, coordinator.spent_elsewhere()) {
                limits.charge(&key, spent);
            }
        }
    });
    tasks
}

/// What was spent elsewhere since the last look. What a gateway spent before it was first heard of is history.
fn news(known: &mut SpentByGateway, now: SpentByGateway) -> Vec<(String, Spent)> {
    let mut news = Vec::new();
    for (gateway, spendings) in &now {
        let Some(before) = known.get(gateway) else { continue };
        for (key, spent) in spendings {
            let before = before.get(key).copied().unwrap_or_default();
            let more = Spent {
                requests: spent.requests.saturating_sub(before.requests),
                tokens: spent.tokens.saturating_sub(before.tokens),
            };
            if more != Spent::default() {
                news.push((key.clone(), more));
            }
        }
    }
    *known = now;
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(gateway: &str, key: &str, requests: u64, tokens: u64) -> SpentByGateway {
        let spendings = Spendings::from([(key.to_owned(), Spent { requests, tokens })]);
        SpentByGateway::from([(gateway.to_owned(), spendings)])
    }

    #[test]
    fn only_what_is_new_is_charged() {
        let mut known = SpentByGateway::new();
        assert!(news(&mut known, told("b", "alice", 100, 5000)).is_empty(), "history");
        let more = vec![("alice".to_owned(), Spent { requests: 2, tokens: 50 })];
        assert_eq!(news(&mut known, told("b", "alice", 102, 5050)), more);
        assert!(news(&mut known, told("b", "alice", 102, 5050)).is_empty());
        assert!(news(&mut known, told("b", "alice", 1, 10)).is_empty(), "it began anew");
        assert!(news(&mut known, SpentByGateway::new()).is_empty(), "it is gone");
        assert!(news(&mut known, told("b", "alice", 7, 7)).is_empty(), "and back");
    }

    #[test]
    fn a_registration_becomes_an_entry_or_nothing() {
        let told = Registered { name: "a".into(), endpoint: "http://a:1".into(), weight: 0.0 };
        let entry = node(&told, Some("KEY")).expect("a node");
        assert_eq!((entry.weight, entry.api_key_env.as_deref()), (1.0, Some("KEY")));
        assert!(node(&Registered { endpoint: "not a url".into(), ..told }, None).is_none());
    }
}
