//! What a worker is told of CUDA before it starts: which GPUs there are for it, where the libraries lie, where
//! the driver may keep what it compiles.
//!
//! Libraries read these variables once, at first use, so they have to be right before the process begins. A
//! worker is left only the GPUs of its own ranks, by UUID, in rank order: whatever goes wrong in it cannot reach
//! another model's card, and ordinals inside it need no translation.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::protocol::RankDevice;

/// Where workers find CUDA's libraries and keep compiled kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Folders with CUDA's libraries, looked through before the system's.
    pub libs: Vec<PathBuf>,
    /// Folder for kernels the driver compiles; a folder of the user's cache when absent.
    pub cache: Option<PathBuf>,
}

/// Compiled kernels kept at most, in bytes. The driver's own limit drops those of a second plugin.
const CACHE_BYTES: u64 = 4 << 30;

impl CudaOptions {
    /// The variables for a worker whose ranks compute on `devices`, whose UUIDs are `uuids` (empty for the
    /// processor). `inherited` is this process's environment: what an operator set there stays as it is.
    pub fn environment(
        &self,
        devices: &[RankDevice],
        uuids: &[&str],
        inherited: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<(OsString, OsString)> {
        let mut all: Vec<(OsString, OsString)> = Vec::new();
        let mut set = |name: &str, value: OsString| all.push((name.into(), value));
        set("CUDA_VISIBLE_DEVICES", visible(devices, uuids).into());
        if devices.iter().all(RankDevice::is_cpu) {
            return all;
        }
        set("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into());
        if !self.libs.is_empty()
            && let Ok(joined) = std::env::join_paths(&self.libs)
        {
            set("NEURON_CUDA_LIBS", joined);
        }
        match self.cache_folder(&inherited) {
            Ok(folder) => {
                set("CUDA_CACHE_PATH", folder.into());
                if inherited("CUDA_CACHE_MAXSIZE").is_none() {
                    set("CUDA_CACHE_MAXSIZE", CACHE_BYTES.to_string().into());
                }
            }
            Err(why) => tracing::warn!("kernels are compiled anew at every load: {why}"),
        }
        if inherited("CUDA_MODULE_LOADING").is_none() {
            // Loading a kernel may wait for those that run. Where ranks wait for each other inside one, that
            // can be for ever; so they load all before the first.
            let loading = if devices.len() > 1 { "EAGER" } else { "LAZY" };
            set("CUDA_MODULE_LOADING", loading.into());
        }
        all
    }

    /// A folder the driver may write to.
    fn cache_folder(&self, inherited: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
        let named = |name: &str| inherited(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = self
            .cache
            .clone()
            .or_else(|| named("CUDA_CACHE_PATH"))
            .or_else(|| named("CACHE_DIRECTORY").map(|folder| folder.join("cuda")))
            .or_else(|| named("XDG_CACHE_HOME").map(|folder| folder.join("neuron/cuda")))
            .or_else(|| named("HOME").map(|folder| folder.join(".cache/neuron/cuda")));
        let folder = folder.ok_or("there is neither cuda.cache nor a home folder; set one")?;
        writable(&folder).map_err(|error| {
            format!("{} cannot be written to ({error}); set cuda.cache", folder.display())
        })?;
        Ok(folder)
    }
}

/// `GPU-a,GPU-b`; empty for the processor, so that nothing in the worker opens a GPU by the way.
fn visible(devices: &[RankDevice], uuids: &[&str]) -> String {
    let names = devices.iter().zip(uuids).filter_map(|(device, uuid)| match device {
        RankDevice::Cpu { .. } => None,
        RankDevice::Cuda { number, .. } if uuid.is_empty() => Some(number.to_string()),
        RankDevice::Cuda { .. } => Some((*uuid).to_owned()),
    });
    names.collect::<Vec<_>>().join(",")
}

fn writable(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let trial = folder.join(format!(".neuron-{}", std::process::id()));
    std::fs::write(&trial, b"")?;
    std::fs::remove_file(trial)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: RankDevice = RankDevice::Cpu { level: 3, total_bytes: 0, free_bytes: 0 };

    fn gpu(number: u32, ordinal: u32) -> RankDevice {
        RankDevice::Cuda {
            number,
            ordinal,
            compute_capability: 90,
            pci_address: 0,
            driver: 13000,
            total_bytes: 0,
            free_bytes: 0,
        }
    }

    fn value(all: &[(OsString, OsString)], name: &str) -> Option<String> {
        let found = all.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.to_string_lossy().into_owned())
    }

    #[test]
    fn a_worker_sees_its_own_gpus_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("deep/cache");
        let options = CudaOptions { libs: vec!["/a".into(), "/b".into()], cache: Some(cache.clone()) };
        let nothing = |_: &str| None;
        let on_cpu = options.environment(&[CPU], &[""], nothing);
        assert_eq!(on_cpu, [("CUDA_VISIBLE_DEVICES".into(), "".into())]);

        let one = options.environment(&[gpu(3, 0)], &["GPU-c"], nothing);
        for (name, expected) in [
            ("CUDA_VISIBLE_DEVICES", "GPU-c"),
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
            ("NEURON_CUDA_LIBS", "/a:/b"),
            ("CUDA_CACHE_PATH", cache.to_str().unwrap()),
            ("CUDA_CACHE_MAXSIZE", "4294967296"),
            ("CUDA_MODULE_LOADING", "LAZY"),
        ] {
            assert_eq!(value(&one, name).as_deref(), Some(expected), "{name}");
        }
        assert!(cache.is_dir());
        let two = options.environment(&[gpu(3, 0), gpu(1, 1)], &["GPU-c", "GPU-a"], nothing);
        assert_eq!(value(&two, "CUDA_VISIBLE_DEVICES").as_deref(), Some("GPU-c,GPU-a"));
        assert_eq!(value(&two, "CUDA_MODULE_LOADING").as_deref(), Some("EAGER"));
        let unnamed = options.environment(&[gpu(3, 0)], &[""], nothing);
        assert_eq!(value(&unnamed, "CUDA_VISIBLE_DEVICES").as_deref(), Some("3"));
    }

    #[test]
    fn what_an_operator_set_stays() {
        let folder = tempfile::tempdir().unwrap();
        let home: OsString = folder.path().into();
        let inherited = |name: &str| match name {
            "HOME" => Some(home.clone()),
            "CUDA_MODULE_LOADING" | "CUDA_CACHE_MAXSIZE" => Some("mine".into()),
            _ => None,
        };
        let all = CudaOptions::default().environment(&[gpu(0, 0)], &["GPU-a"], inherited);
        for name in ["CUDA_MODULE_LOADING", "CUDA_CACHE_MAXSIZE", "NEURON_CUDA_LIBS"] {
            assert_eq!(value(&all, name), None, "{name}");
        }
        let cache = value(&all, "CUDA_CACHE_PATH").unwrap();
        assert!(cache.ends_with(".cache/neuron/cuda"), "{cache}");
        let nowhere = CudaOptions { cache: Some("/proc/none".into()), ..CudaOptions::default() };
        assert_eq!(value(&nowhere.environment(&[gpu(0, 0)], &["GPU-a"], inherited), "CUDA_CACHE_PATH"), None);
    }
}
