//! The root of a plugin: what `dlopen` and one symbol lead to.
//!
//! # Descriptor
//! The ELF section [`crate::DESCRIPTOR_SECTION`] holds one JSON object, so that a host can read what a file
//! claims to be before any of its code runs:
//! `{"abi":"1.0.0","name":"llama","version":"0.1.0","build":"ampere","git":"…","panic":"unwind",
//! "machine_code":[80],"ptx":80,"cuda":13000}`; the last three are absent from CPU builds. A reader ignores
//! keys it does not know.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;

use crate::arch::ArchitecturesRef;
use crate::host::Host;
use crate::primitive::{Code, Failure, Slice, Str};
use crate::strategy::{EvictorsRef, RoutersRef};

/// How this file was compiled. Baked in; equal to the descriptor where both speak of the same thing.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct BuildInfo {
    /// Plugin name, e.g. `llama`: lower case, digits, `-` and `_`.
    pub name: Str,
    /// Plugin version, semver.
    pub version: Str,
    /// `cpu-v2`, `cpu-v3`, `cpu-v4`, `ampere`, `ada`, `hopper`, `blackwell`.
    pub build: Str,
    /// Compiler version.
    pub rustc: Str,
    /// Target triple's architecture and OS.
    pub target: Str,
    /// Git revision, or empty.
    pub git: Str,
    /// Compute capabilities with machine code inside, as `major * 10 + minor`; empty for CPU builds.
    pub machine_code: Slice<u16>,
    /// Lowest compute capability the contained PTX can be compiled for; 0 when there is none.
    pub ptx: u16,
    /// CUDA toolkit as `major * 1000 + minor * 10`; 0 for CPU builds.
    pub cuda: u16,
    /// 1 when the plugin was compiled with `panic = "unwind"`; a host refuses anything else.
    pub panic_unwind: u8,
    /// 1 when compiled with debug assertions.
    pub debug: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

// SAFETY: every pointer inside refers to 'static data of the plugin, which is never unmapped.
unsafe impl Sync for BuildInfo {}
// SAFETY: as above.
unsafe impl Send for BuildInfo {}

/// The root module. A family the plugin does not implement is an empty vtable list.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRef)))]
#[sabi(missing_field(option))]
pub struct Plugin {
    /// How this file was compiled.
    pub build_info: BuildInfo,
    /// Called once before anything else, from the thread that will own the plugin's work.
    /// The host's services stay valid until the process ends.
    pub init: unsafe extern "C" fn(host: *const Host, failure: *mut Failure) -> Code,
    /// Model architectures.
    pub architectures: ArchitecturesRef,
    /// Routing strategies.
    pub routers: RoutersRef,
    /// Eviction strategies.
    #[sabi(last_prefix_field)]
    pub evictors: EvictorsRef,
}

impl RootModule for PluginRef {
    abi_stable::declare_root_module_statics! {PluginRef}
    const BASE_NAME: &'static str = "neuron_plugin";
    const NAME: &'static str = "neuron_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new(crate::ABI_VERSION);
}
