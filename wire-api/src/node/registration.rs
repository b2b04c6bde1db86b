//! A neuron making itself known to gateways through etcd: one key per node, kept by a lease.
//!
//! The node writes [`Registration`] as JSON at [`key`] under a lease that it keeps alive; when it dies the
//! lease lapses and the key goes. Gateways watch [`PREFIX`] and ask the node itself for everything else.

use serde::{Deserialize, Serialize};

/// Where neurons make themselves known.
pub const PREFIX: &str = "/cortex/fleet/neurons/";
/// How long a registration outlives the node's last sign of life, in seconds.
pub const TTL_S: u64 = 15;

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// Its name; gateways call it by that everywhere.
    pub name: String,
    /// Where gateways reach it: `http://host:port`, without `/v1`.
    pub endpoint: String,
    /// How much of the work it wants compared with others; 0 is taken for 1.
    pub weight: f32,
}

/// The key of a node.
pub fn key(name: &str) -> String {
    format!("{PREFIX}{}", super::routes::encode_segment(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_one_segment_below_the_prefix() {
        assert_eq!(key("rack 1/gpu"), "/cortex/fleet/neurons/rack%201%2Fgpu");
    }

    #[test]
    fn unknown_fields_of_newer_nodes_are_ignored() {
        let read: Registration =
            serde_json::from_str(r#"{"name":"a","endpoint":"http://a:1","later":1}"#).expect("JSON");
        assert_eq!((read.name.as_str(), read.endpoint.as_str(), read.weight), ("a", "http://a:1", 0.0));
    }
}
