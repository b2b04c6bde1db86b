//! The Qwen3.5 architecture as a loadable plugin.

plugin_sdk::export_plugin! { name: "qwen3_5", crates: [arch_qwen3_5], probe: arch_qwen3_5::probe }
