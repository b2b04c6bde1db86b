//! The llama architecture as a loadable plugin.

plugin_sdk::export_plugin! { name: "llama", crates: [arch_llama], probe: arch_llama::probe }
