//! An opened plugin: what it offers, and the calls that belong to no model.

use std::collections::HashMap;
use std::fs::File;
use std::os::raw::c_int;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use plugin_abi::abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError};
use plugin_abi::arch::{DeviceInfo, Plan};
use plugin_abi::host::{self, Phase};
use plugin_abi::{Failure, PluginRef, ROOT_SYMBOL, plugin, strategy};
use serde::{Deserialize, Serialize};

use crate::conversion::{owned, owned_list};
use crate::descriptor::{Descriptor, read_descriptor};
use crate::error::{PluginError, check};
use crate::identity::FileIdentity;
use crate::layout;
use crate::model::Model;
use crate::refusal::{Cause, Refusal};
use crate::services::HostServices;
use crate::source::{LoadOptions, Source, with_lent};
use crate::trust::Policy;

/// The file stays mapped even when glibc thinks nobody uses it (`dlfcn.h`, Linux).
const RTLD_NODELETE: c_int = 0x1000;

/// An opened plugin. A copyable name for something that lives as long as the process.
#[derive(Clone, Copy)]
pub struct Plugin(&'static Opened);

struct Opened {
    root: PluginRef,
    path: PathBuf,
    build: BuildInfo,
    architectures: Vec<ArchitectureInfo>,
    routers: Vec<StrategyInfo>,
    evictors: Vec<StrategyInfo>,
}

/// How a plugin was compiled, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// Plugin name, e.g. `llama`.
    pub name: String,
    /// Plugin version, semver.
    pub version: String,
    /// `cpu-v2`, `cpu-v3`, `cpu-v4`, `ampere`, `ada`, `hopper`, `blackwell`.
    pub build: String,
    /// Compiler version.
    pub rustc: String,
    /// Architecture and system it was compiled for.
    pub target: String,
    /// Git revision, or empty.
    pub git: String,
    /// Compute capabilities with machine code inside, as `major * 10 + minor`; empty for CPU builds.
    pub machine_code: Vec<u16>,
    /// Lowest compute capability the contained PTX can be compiled for; 0 when there is none.
    pub ptx: u16,
    /// CUDA toolkit as `major * 1000 + minor * 10`; 0 for CPU builds.
    pub cuda: u16,
    /// Compiled with debug assertions.
    pub debug: bool,
}

/// One architecture a plugin offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchitectureInfo {
    /// Short name, e.g. `llama`.
    pub name: String,
    /// Values of `model_type` in `config.json` this serves.
    pub model_types: Vec<String>,
    /// Values of `general.architecture` in a GGUF this serves.
    pub gguf_architectures: Vec<String>,
    /// Bits of [`capability`](crate::capability).
    pub capabilities: u64,
    /// Largest world size for tensor parallelism; 1 without it.
    pub max_world: u32,
}

impl ArchitectureInfo {
    /// Whether all bits of `capability` are offered.
    pub fn can(&self, capability: u64) -> bool {
        self.capabilities & capability == capability
    }
}

/// One routing or eviction strategy a plugin offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrategyInfo {
    /// Name used in configuration, e.g. `least_tokens`.
    pub name: String,
    /// One sentence for people.
    pub summary: String,
}

impl Plugin {
    /// Opens the plugin file at `path` under the default [`Policy`], which wants file and directories owned
    /// by root or by this process's user.
    ///
    /// Opening the same version of a file again gives the same plugin, with the services it got first.
    ///
    /// # Errors
    /// A [`Refusal`] that names file and cause. Code of the file may have run by then: a file that is not
    /// known to be well-behaved belongs into [`probe_in_child`](crate::probe_in_child) first.
    pub fn open(path: &Path, services: &HostServices) -> Result<Self, Refusal> {
        Self::open_under(path, services, &Policy::default())
    }

    /// Opens the plugin file at `path` if `policy` allows it.
    ///
    /// # Errors
    /// As [`Plugin::open`].
    pub fn open_under(path: &Path, services: &HostServices, policy: &Policy) -> Result<Self, Refusal> {
        static OPENED: Mutex<Option<HashMap<FileIdentity, Plugin>>> = Mutex::new(None);
        let refuse = |cause| Refusal::new(path, cause);
        let canonical = path.canonicalize().map_err(|error| refuse(Cause::Unreadable(error.to_string())))?;
        let file = File::open(&canonical).map_err(|error| refuse(Cause::Unreadable(error.to_string())))?;
        let descriptor = read_descriptor(&file).map_err(refuse)?;
        descriptor.check().map_err(refuse)?;
        policy.check(&canonical, &file).map_err(refuse)?;
        let identity = identity(&file).map_err(refuse)?;

        // The lock is held across dlopen: a plugin's constructors never run twice at once.
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_default();
        if let Some(plugin) = opened.get(&identity) {
            return Ok(*plugin);
        }
        // glibc looks a library up by its path before it looks at the file: another version under a path
        // that was opened before must go by another name.
        let known_path = opened.values().any(|plugin| plugin.0.path == canonical);
        let root = if known_path {
            let name = own_name(file).map_err(refuse)?;
            dlopen(&name).map_err(refuse)?
        } else {
            let root = dlopen(&canonical).map_err(refuse)?;
            let now = File::open(&canonical).map_err(|error| refuse(Cause::Unreadable(error.to_string())))?;
            if self::identity(&now).map_err(refuse)? != identity {
                return Err(refuse(Cause::Replaced));
            }
            root
        };
        let plugin = Self::start(root, canonical.clone(), services).map_err(refuse)?;
        compare(&descriptor, plugin.build_info()).map_err(refuse)?;
        opened.insert(identity, plugin);
        Ok(plugin)
    }

    /// Takes a plugin that is linked into this program through the same door as one from a file.
    ///
    /// # Errors
    /// A [`Refusal`] when `init` fails or the plugin describes itself with nonsense.
    pub fn embedded(root: PluginRef, services: &HostServices) -> Result<Self, Refusal> {
        let path = PathBuf::from("embedded");
        Self::start(root, path.clone(), services).map_err(|cause| Refusal::new(&path, cause))
    }

    fn start(root: PluginRef, path: PathBuf, services: &HostServices) -> Result<Self, Cause> {
        if root.build_info().panic_unwind == 0 {
            return Err(Cause::PanicStrategy("abort".into()));
        }
        let host = services.lend();
        let mut failure = Failure::NONE;
        // SAFETY: both pointers are valid for the call; what they point to stays valid for the process.
        let code = unsafe { (root.init())(&host, &mut failure) };
        check(code, &failure).map_err(|error| Cause::Init(error.message))?;
        // SAFETY: a plugin's own text and lists are 'static, and it is never unmapped.
        let opened = unsafe { read(root, path) }.map_err(Cause::Init)?;
        Ok(Self(Box::leak(Box::new(opened))))
    }

    /// Where the file is; `embedded` for a plugin linked into this program.
    pub fn path(&self) -> &'static Path {
        &self.0.path
    }

    /// How it was compiled.
    pub fn build_info(&self) -> &'static BuildInfo {
        &self.0.build
    }

    /// The architectures it offers, sorted by name. Their index names them in other calls.
    pub fn architectures(&self) -> &'static [ArchitectureInfo] {
        &self.0.architectures
    }

    /// The routers it offers, sorted by name.
    pub fn routers(&self) -> &'static [StrategyInfo] {
        &self.0.routers
    }

    /// The evictors it offers, sorted by name.
    pub fn evictors(&self) -> &'static [StrategyInfo] {
        &self.0.evictors
    }

    /// The architecture that serves a `model_type` of `config.json`.
    pub fn architecture_for_model_type(&self, model_type: &str) -> Option<usize> {
        self.0.architectures.iter().position(|info| info.model_types.iter().any(|name| name == model_type))
    }

    /// The architecture that serves a `general.architecture` of a GGUF.
    pub fn architecture_for_gguf(&self, name: &str) -> Option<usize> {
        self.0.architectures.iter().position(|info| info.gguf_architectures.iter().any(|other| other == name))
    }

    /// Whether this build can compute on `device`; nothing touches the device before this.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) with a sentence when it cannot.
    pub fn probe(&self, device: &DeviceInfo) -> Result<(), PluginError> {
        let mut failure = Failure::NONE;
        // SAFETY: both pointers are valid for the call.
        let code = unsafe { (self.0.root.architectures().probe())(device, &mut failure) };
        check(code, &failure)
    }

    /// Memory by class on one rank, from headers alone. `architecture` indexes [`Plugin::architectures`].
    ///
    /// # Errors
    /// The plugin's own, as for [`Plugin::load`].
    pub fn plan(
        &self,
        architecture: usize,
        source: &Source,
        options: &LoadOptions,
    ) -> Result<Plan, PluginError> {
        let verb = self.0.root.architectures().plan();
        with_lent(source, options, |source, options| {
            let (mut plan, mut failure) = (Plan::default(), Failure::NONE);
            // SAFETY: all pointers are valid for the call.
            let code = unsafe { verb(index(architecture), source, options, &mut plan, &mut failure) };
            check(code, &failure).map(|()| plan)
        })
    }

    /// Fresh bytes that make ranks one group once all of them are loaded with the same ones.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn communicator_id(&self) -> Result<[u8; 128], PluginError> {
        let (mut id, mut failure) = ([0; 128], Failure::NONE);
        // SAFETY: both pointers are valid for the call.
        let code = unsafe { (self.0.root.architectures().communicator_id())(&mut id, &mut failure) };
        check(code, &failure).map(|()| id)
    }

    /// Loads one rank of a model. `progress` is told `done` of `total` bytes of a phase and answers whether to
    /// go on.
    ///
    /// # Errors
    /// [`ErrorKind`](crate::ErrorKind) says which: `Unsupported` when this plugin cannot serve the model,
    /// `OutOfMemory` with the missing bytes, `Cancelled` when `progress` said stop, `InvalidInput` for bad
    /// options or broken files.
    pub fn load(
        &self,
        architecture: usize,
        source: &Source,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Phase, u64, u64) -> bool,
    ) -> Result<Model, PluginError> {
        let verbs = self.0.root.architectures();
        let mut report = progress;
        let lent = host::Progress { context: std::ptr::from_mut(&mut report).cast(), report: tell };
        let info = with_lent(source, options, |source, options| {
            let (mut info, mut failure) = (Default::default(), Failure::NONE);
            // SAFETY: all pointers are valid for the call; `lent` borrows `report`, which outlives it.
            let code = unsafe {
                (verbs.load())(index(architecture), source, options, &lent, &mut info, &mut failure)
            };
            check(code, &failure).map(|()| info)
        })?;
        Ok(Model::new(*self, verbs, info, options.rank == 0))
    }

    pub(crate) fn root(&self) -> PluginRef {
        self.0.root
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({} {}, {})", self.0.build.name, self.0.build.version, self.0.path.display())
    }
}

/// An index no plugin has stays one.
fn index(architecture: usize) -> u32 {
    u32::try_from(architecture).unwrap_or(u32::MAX)
}

unsafe extern "C" fn tell(context: *const u8, phase: Phase, done: u64, total: u64) -> u32 {
    // SAFETY: `context` is the exclusive borrow that `load` lent for the length of its call; a plugin reports
    // from one thread at a time.
    let report = unsafe { &mut *context.cast_mut().cast::<&mut dyn FnMut(Phase, u64, u64) -> bool>() };
    let go_on = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| report(phase, done, total)));
    u32::from(!go_on.unwrap_or(false))
}

fn identity(file: &File) -> Result<FileIdentity, Cause> {
    let metadata = file.metadata().map_err(|error| Cause::Unreadable(error.to_string()))?;
    Ok(FileIdentity::of(&metadata))
}

/// A path that leads to this very file and that no other library will ever be opened by.
fn own_name(file: File) -> Result<PathBuf, Cause> {
    use std::os::fd::IntoRawFd;
    Ok(PathBuf::from(format!("/proc/self/fd/{}", file.into_raw_fd()))) // stays open: the number stays taken
}

/// Maps the library for good and verifies header and layout.
fn dlopen(path: &Path) -> Result<PluginRef, Cause> {
    // SAFETY: opening runs the library's constructors. That is what trusting a plugin means; policy, descriptor
    // and trial process have spoken before.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }
        .map_err(|error| Cause::Open(error.to_string()))?;
    // SAFETY: the symbol is compared with abi_stable's magic before anything behind it is read.
    let header = unsafe { library.get::<AbiHeaderRef>(ROOT_SYMBOL) }
        .map(|symbol| *symbol)
        .map_err(|_| Cause::NotAPlugin(format!("it exports no symbol {ROOT_SYMBOL}")));
    std::mem::forget(library); // never unmapped, refused or not
    let header: &'static LibHeader = header?.upgrade().map_err(|error| match error {
        LibraryError::InvalidAbiHeader(found) => {
            Cause::Layout(format!("it was built with abi_stable {}.{}", found.abi_major, found.abi_minor))
        }
        error => Cause::Layout(one_line(&error.to_string())),
    })?;
    layout::check(header)?;
    // SAFETY: the layout was just found compatible with PluginRef's.
    unsafe { header.init_root_module_with_unchecked_layout::<PluginRef>() }
        .map_err(|error| Cause::Init(one_line(&error.to_string())))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// # Safety
/// The plugin's text and lists must be valid.
unsafe fn read(root: PluginRef, path: PathBuf) -> Result<Opened, String> {
    // SAFETY: the caller vouches for all of them.
    unsafe {
        let architectures = (root.architectures().describe())();
        let architectures = architectures
            .as_slice()
            .iter()
            .map(|info| {
                Ok(ArchitectureInfo {
                    name: owned(info.name)?,
                    model_types: owned_list(info.model_types)?,
                    gguf_architectures: owned_list(info.gguf_architectures)?,
                    capabilities: info.capabilities,
                    max_world: info.max_world.max(1),
                })
            })
            .collect::<Result<Vec<_>, String>>()?;
        let routers = read_strategies((root.routers().describe())().as_slice())?;
        let evictors = read_strategies((root.evictors().describe())().as_slice())?;
        if architectures.is_empty() && routers.is_empty() && evictors.is_empty() {
            return Err("it offers neither an architecture nor a strategy".into());
        }
        let build = read_build(&root.build_info())?;
        unique("architecture", architectures.iter().map(|info| &info.name))?;
        unique("router", routers.iter().map(|info| &info.name))?;
        unique("evictor", evictors.iter().map(|info| &info.name))?;
        Ok(Opened { root, path, build, architectures, routers, evictors })
    }
}

unsafe fn read_build(info: &plugin::BuildInfo) -> Result<BuildInfo, String> {
    // SAFETY: the caller vouches for all texts and lists.
    unsafe {
        Ok(BuildInfo {
            name: owned(info.name)?,
            version: owned(info.version)?,
            build: owned(info.build)?,
            rustc: owned(info.rustc)?,
            target: owned(info.target)?,
            git: owned(info.git)?,
            machine_code: info.machine_code.as_slice().to_vec(),
            ptx: info.ptx,
            cuda: info.cuda,
            debug: info.debug != 0,
        })
    }
}

unsafe fn read_strategies(infos: &[strategy::StrategyInfo]) -> Result<Vec<StrategyInfo>, String> {
    // SAFETY: the caller vouches for all texts.
    infos
        .iter()
        .map(|info| unsafe { Ok(StrategyInfo { name: owned(info.name)?, summary: owned(info.summary)? }) })
        .collect()
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(format!("it offers {what} without a name"));
        }
        if !seen.insert(name) {
            return Err(format!("it offers the {what} {name} twice"));
        }
    }
    Ok(())
}

/// What a file claims before it is opened must be what it says afterwards.
fn compare(claimed: &Descriptor, found: &BuildInfo) -> Result<(), Cause> {
    let fields = [
        ("name", &claimed.name, &found.name),
        ("version", &claimed.version, &found.version),
        ("build", &claimed.build, &found.build),
        ("git", &claimed.git, &found.git),
    ];
    for (field, claimed, found) in fields {
        if claimed != found {
            return Err(Cause::Mismatch {
                field: field.into(),
                claimed: claimed.clone(),
                found: found.clone(),
            });
        }
    }
    Ok(())
}
