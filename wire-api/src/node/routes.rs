//! Paths and headers of the node API, written once.

use std::fmt::Write as _;

/// Devices, memory, CPU level, plugins and builds.
pub const DISCOVERY: &str = "/discovery";
/// What is loaded, loading or wanted.
pub const MODELS: &str = "/models";
/// Loads a model.
pub const LOAD: &str = "/models/load";
/// Unloads a model.
pub const UNLOAD: &str = "/models/unload";
/// Grants, renews and releases leases of memory.
pub const LEASES: &str = "/leases";
/// Liveness: the process answers.
pub const HEALTH: &str = "/health";
/// Readiness: every desired model has produced a token.
pub const READY: &str = "/ready";
/// What runs here.
pub const VERSION: &str = "/version";
/// Prometheus metrics.
pub const METRICS: &str = "/metrics";
/// Text to token ids.
pub const TOKENIZE: &str = "/tokenize";
/// Token ids to text.
pub const DETOKENIZE: &str = "/detokenize";

/// The fence of the lease a command acts under (`u64`, decimal).
pub const FENCE_HEADER: &str = "x-cortex-fence";
/// The residency revision a command was planned on (`u64`, decimal).
pub const REVISION_HEADER: &str = "x-cortex-residency-revision";
/// How long a client is willing to wait for a cold model, in seconds; 0 is not at all.
pub const WAIT_HEADER: &str = "x-cortex-wait";
/// Fields of the request that a translation had to drop.
pub const DROPPED_HEADER: &str = "x-cortex-dropped";

/// The path of a model's progress events. Ids hold slashes, so they are percent-encoded.
pub fn model_events(model: &str) -> String {
    format!("{MODELS}/{}/events", encode_segment(model))
}

/// The path of one lease.
pub fn lease(id: &super::LeaseId) -> String {
    format!("{LEASES}/{}", encode_segment(id.as_str()))
}

/// Percent-encodes all but unreserved characters, so that an id is one path segment.
pub fn encode_segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// Joins a configured endpoint and a path, whatever slashes the endpoint ends in.
pub fn join(endpoint: &str, path: &str) -> String {
    format!("{}/{}", endpoint.trim_end_matches('/'), path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_one_segment() {
        assert_eq!(model_events("org/name@main:f.gguf"), "/models/org%2Fname%40main%3Af.gguf/events");
        assert_eq!(model_events("smol"), "/models/smol/events");
    }

    #[test]
    fn slashes_do_not_pile_up() {
        for endpoint in ["http://n:1", "http://n:1/", "http://n:1//"] {
            assert_eq!(join(endpoint, "/models"), "http://n:1/models");
            assert_eq!(join(endpoint, "models"), "http://n:1/models");
        }
    }
}
