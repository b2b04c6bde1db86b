//! The Qwen3 architecture as a loadable plugin.

plugin_sdk::export_plugin! { name: "qwen3", crates: [arch_qwen3], probe: arch_qwen3::probe }
