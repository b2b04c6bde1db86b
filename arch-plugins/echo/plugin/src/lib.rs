//! The echo architecture as a loadable plugin.

plugin_sdk::export_plugin! { name: "echo", crates: [arch_echo] }
