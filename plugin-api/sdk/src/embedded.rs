//! Building the root module from a manifest, for a file of its own and for a plugin linked into the host.

use plugin_abi::abi_stable::prefix_type::PrefixTypeTrait;
use plugin_abi::plugin::BuildInfo;
use plugin_abi::{Plugin, PluginRef, Slice, Str};

use crate::arch::Description;
use crate::error::Result;
use crate::{DeviceInfo, glue, host};

/// What a leaf crate says of itself. Made by the macros.
pub struct Manifest {
    /// Plugin name.
    pub name: &'static str,
    /// Plugin version.
    pub version: &'static str,
    /// Build; see [`build_label`].
    pub build: &'static str,
    /// Git revision, or empty.
    pub git: &'static str,
    /// Compute capabilities with machine code inside.
    pub machine_code: &'static [u16],
    /// Lowest compute capability of the PTX inside; 0 when there is none.
    pub ptx: u16,
    /// CUDA toolkit as `major * 1000 + minor * 10`; 0 for CPU builds.
    pub cuda: u16,
    /// Whether the file can compute on a device, asked after [`crate::device::fits`] said yes.
    pub probe: fn(&DeviceInfo) -> Result<()>,
    /// Bytes of the ELF descriptor, named here so that the linker keeps them; empty when embedded.
    pub descriptor: &'static [u8],
    /// Whether a panic in the leaf crate unwinds; it alone decides, whatever its libraries were built for.
    pub unwinds: bool,
    /// Whether the plugin is linked into the host.
    pub embedded: bool,
}

/// The CPU build this code was compiled for, from the target features the compiler was allowed to use.
pub const fn build_label(explicit: Option<&'static str>) -> &'static str {
    match explicit {
        Some(label) => label,
        None if cfg!(target_feature = "avx512f") => "cpu-v4",
        None if cfg!(target_feature = "avx2") => "cpu-v3",
        None => "cpu-v2",
    }
}

/// Bytes that [`descriptor`] will produce for these parts.
pub const fn descriptor_len(parts: &[&str]) -> usize {
    let mut total = 0;
    let mut index = 0;
    while index < parts.len() {
        total += parts[index].len();
        index += 1;
    }
    total
}

/// Joins the parts at compile time.
pub const fn descriptor<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut bytes = [0u8; N];
    let mut written = 0;
    let mut index = 0;
    while index < parts.len() {
        let part = parts[index].as_bytes();
        let mut offset = 0;
        while offset < part.len() {
            bytes[written] = part[offset];
            written += 1;
            offset += 1;
        }
        index += 1;
    }
    bytes
}

/// Makes the root module. Called once per file.
pub fn root(manifest: &'static Manifest) -> PluginRef {
    glue::set_manifest(manifest);
    std::hint::black_box(manifest.descriptor);
    let build_info = BuildInfo {
        name: Str::new(manifest.name),
        version: Str::new(manifest.version),
        build: Str::new(manifest.build),
        rustc: Str::new(env!("PLUGIN_SDK_RUSTC")),
        target: Str::new(env!("PLUGIN_SDK_TARGET")),
        git: Str::new(manifest.git),
        machine_code: Slice::new(manifest.machine_code),
        ptx: manifest.ptx,
        cuda: manifest.cuda,
        panic_unwind: manifest.unwinds as u8,
        debug: cfg!(debug_assertions) as u8,
        reserved: [0; 2],
    };
    Plugin {
        build_info,
        init: if manifest.embedded { host::init_embedded } else { host::init_loaded },
        architectures: glue::arch::VERBS.leak_into_prefix(),
        routers: glue::routers::VERBS.leak_into_prefix(),
        evictors: glue::evictors::VERBS.leak_into_prefix(),
    }
    .leak_into_prefix()
}

/// Description of an architecture, for tests that do not cross the boundary.
pub fn describe<A: crate::Architecture>(architecture: &A) -> Description {
    architecture.describe()
}

/// A [`PluginRef`] made of whatever is linked into this binary, without a file.
///
/// `embedded_plugin!("routers", crates: [routers])` expands to an expression.
#[macro_export]
macro_rules! embedded_plugin {
    ($name:literal) => {{
        static MANIFEST: $crate::export::Manifest = $crate::export::Manifest {
            name: $name,
            version: env!("CARGO_PKG_VERSION"),
            build: $crate::embedded::build_label(None),
            git: "",
            machine_code: &[],
            ptx: 0,
            cuda: 0,
            probe: |_| Ok(()),
            descriptor: &[],
            unwinds: cfg!(panic = "unwind"),
            embedded: true,
        };
        $crate::export::root(&MANIFEST)
    }};
}

/// Exports this `cdylib` as a plugin. The only place that defines a symbol.
///
/// `export_plugin! { name: "llama", crates: [arch_llama] }`, with an optional `probe: path::to::fn` that is
/// asked whether the libraries a device needs can be found. Without `crates`, the plugin is what this very crate
/// submits.
#[macro_export]
macro_rules! export_plugin {
    (name: $name:literal $(,)?) => {
        $crate::export_plugin! { name: $name, crates: [plugin_sdk] }
    };
    (name: $name:literal, crates: [$($library:ident),+ $(,)?] $(,)?) => {
        $crate::export_plugin! { name: $name, crates: [$($library),+], probe: |_| Ok(()) }
    };
    (name: $name:literal, crates: [$($library:ident),+ $(,)?], probe: $probe:expr $(,)?) => {
        // A library nobody mentions is dropped by the linker together with its entries.
        $(use $library as _;)+

        const BUILD: &str = $crate::embedded::build_label(option_env!("NEURON_BUILD"));
        const GIT: &str = match option_env!("NEURON_GIT") { Some(revision) => revision, None => "" };
        const DESCRIPTOR_PARTS: &[&str] = &[
            "{\"abi\":\"", $crate::export::plugin_abi::ABI_VERSION,
            "\",\"name\":\"", $name,
            "\",\"version\":\"", env!("CARGO_PKG_VERSION"),
            "\",\"build\":\"", BUILD,
            "\",\"git\":\"", GIT,
            "\",\"panic\":\"", if cfg!(panic = "unwind") { "unwind" } else { "abort" },
            "\"", $crate::device::descriptor_fields(BUILD),
            "}",
        ];

        #[used]
        #[unsafe(link_section = ".neuron.plugin")]
        static DESCRIPTOR: [u8; $crate::embedded::descriptor_len(DESCRIPTOR_PARTS)] =
            $crate::embedded::descriptor(DESCRIPTOR_PARTS);

        static MANIFEST: $crate::export::Manifest = $crate::export::Manifest {
            name: $name,
            version: env!("CARGO_PKG_VERSION"),
            build: BUILD,
            git: GIT,
            machine_code: $crate::device::machine_code(BUILD),
            ptx: $crate::device::ptx(BUILD),
            cuda: $crate::device::cuda(BUILD),
            probe: $probe,
            descriptor: &DESCRIPTOR,
            unwinds: cfg!(panic = "unwind"),
            embedded: false,
        };

        fn load_root() -> $crate::export::plugin_abi::PluginRef {
            $crate::export::root(&MANIFEST)
        }

        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub static neuron_plugin_root: $crate::export::plugin_abi::abi_stable::library::LibHeader = {
            use $crate::export::plugin_abi::{PluginRef, abi_stable::library};

            extern "C" fn constructor() -> library::RootModuleResult {
                library::__call_root_module_loader(load_root)
            }

            // SAFETY: the constructor returns a PluginRef, which is what PluginRef's constants describe.
            unsafe {
                library::LibHeader::from_constructor::<PluginRef>(constructor, library::CheckTypeLayout::Yes)
            }
        };
    };
}

/// Offers an architecture: `architecture!(Llama)` for a unit struct that implements
/// [`crate::Architecture`].
#[macro_export]
macro_rules! architecture {
    ($architecture:expr) => {
        $crate::export::inventory::submit! { $crate::export::ArchitectureEntry(&$architecture) }
    };
}

/// Offers a router: `router!("least_tokens", "one sentence", LeastTokens::from_options)`, where the last is a
/// `fn(&str) -> Result<Box<dyn Router>>` that validates a JSON object of options.
#[macro_export]
macro_rules! router {
    ($name:literal, $summary:literal, $create:expr) => {
        $crate::export::inventory::submit! {
            $crate::export::RouterEntry { name: $name, summary: $summary, create: $create }
        }
    };
}

/// Offers an evictor, like [`router!`](crate::router).
#[macro_export]
macro_rules! evictor {
    ($name:literal, $summary:literal, $create:expr) => {
        $crate::export::inventory::submit! {
            $crate::export::EvictorEntry { name: $name, summary: $summary, create: $create }
        }
    };
}
