//! What crosses between a host (`neuron`, `cortex`) and a plugin (`.so`): types, verbs, version, layout.
//!
//! The ABI is C-shaped. Plain `#[repr(C)]` data goes in, plain data comes out, and nothing that owns heap
//! memory ever changes hands: each side has its own allocator. Strings and arrays are borrowed for the
//! length of one call; results go into memory the caller lent; objects that live longer stay with their
//! maker and are named by a [`Handle`] or an id. `abi_stable` verifies the layout of every type below when a
//! library is opened; it is not used as a programming model.
//!
//! Growth: within a major version, a verb may be appended to a vtable and a word taken from a `reserved`
//! field. Anything else is a new major. The layout snapshot test makes every change visible.
//!
//! This crate must never depend on anything but `abi_stable`, and must contain no behaviour beyond reading
//! and filling its own types.

pub mod arch;
pub mod host;
pub mod plugin;
pub mod primitive;
pub mod strategy;

pub use plugin::{Plugin, PluginRef};
pub use primitive::{Code, Failure, Handle, Slice, SliceMut, Str};

#[doc(hidden)]
pub use abi_stable;

/// Version of this ABI. A host loads every plugin of the same major version.
///
/// It is this crate's own version: `abi_stable` stores that in every layout and refuses another major.
pub const ABI_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name of the one symbol a plugin exports: an `abi_stable` library header for [`Plugin`].
pub const ROOT_SYMBOL: &str = "neuron_plugin_root";

/// Name of the ELF section that holds the plugin's [descriptor](plugin#descriptor), readable without
/// running any of the plugin's code.
pub const DESCRIPTOR_SECTION: &str = ".neuron.plugin";
