//! The built-in routers and evictors as a loadable plugin.

plugin_sdk::export_plugin! { name: "strategies", crates: [routers, evictors] }
