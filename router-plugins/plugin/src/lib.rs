//! All routing and eviction strategies as a loadable plugin.

plugin_sdk::export_plugin! { name: "strategies", crates: [routers, evictors] }
