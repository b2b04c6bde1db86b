//! Which files serve a model that is split over several devices.
//!
//! Ranks share one file when one holds machine code for every device: then they share what the file keeps for
//! its process, and compute with the very same code. Only where no file does, each rank opens the build made
//! for its own device; those must be of one plugin, version and revision, because the ranks add up each other's
//! numbers. PTX is the last resort here as everywhere.

use plugin_loader::{Choice, Contender, DeviceInfo, Fit, choose_common_build};

use super::choose::no_build;
use super::{ArchitectureKey, Chosen, NotServed, Snapshot};

impl Snapshot {
    /// The file that serves `key` on each of `devices`, as many as there are devices.
    pub fn choose_ranks(
        &self,
        key: &ArchitectureKey,
        devices: &[DeviceInfo],
    ) -> Result<Vec<Chosen>, NotServed> {
        if let Some(shared) = self.shared(key, devices)? {
            return Ok(shared);
        }
        let own: Vec<Chosen> =
            devices.iter().map(|device| self.choose(key, device)).collect::<Result<_, _>>()?;
        let differ = own.iter().any(|chosen| self.origin(chosen) != self.origin(&own[0]));
        if !differ {
            return Ok(own);
        }
        let these = own.iter().map(|chosen| {
            format!("{} {} ({}, {})", chosen.plugin, chosen.version, chosen.build, chosen.path.display())
        });
        Err(NotServed::Mixed { these: these.collect::<Vec<_>>().join(" and ") })
    }

    /// One file for all ranks, if one holds machine code for every device.
    fn shared(
        &self,
        key: &ArchitectureKey,
        devices: &[DeviceInfo],
    ) -> Result<Option<Vec<Chosen>>, NotServed> {
        let able = self.able(key)?;
        let contenders: Vec<Contender> = able.iter().map(|able| able.contender.clone()).collect();
        let Choice { chosen, considered } = choose_common_build(&contenders, devices);
        let best = considered.first().and_then(|best| best.verdict.fit);
        let Some(path) = chosen.filter(|_| best.is_some_and(|fit| fit > Fit::Compiled)) else {
            // Where a device has no build at all, its own sentence is the one to give.
            return match devices {
                [] => Err(no_build(key, &considered)),
                _ => Ok(None),
            };
        };
        let able = able.iter().find(|able| able.contender.path == path);
        Ok(able
            .and_then(|able| devices.iter().map(|device| able.chosen(device, considered.clone())).collect()))
    }

    /// What files must have in common to compute together.
    fn origin(&self, chosen: &Chosen) -> (String, String, String) {
        let entry = self.entries.iter().find(|entry| entry.path == chosen.path);
        let git = entry.and_then(|entry| Some(entry.descriptor.as_ref()?.git.clone())).unwrap_or_default();
        (chosen.plugin.clone(), chosen.version.clone(), git)
    }
}

#[cfg(test)]
mod tests {
    use plugin_loader::{DeviceKind, cpu_device};

    use super::super::choose::tests::entry;
    use super::*;

    fn gpu(compute_capability: u32) -> DeviceInfo {
        DeviceInfo { kind: DeviceKind::CUDA, compute_capability, driver: 13000, ..cpu_device() }
    }

    fn files(snapshot: &Snapshot, capabilities: &[u32]) -> Result<Vec<String>, String> {
        let devices: Vec<_> = capabilities.iter().map(|&capability| gpu(capability)).collect();
        let chosen = snapshot.choose_ranks(&ArchitectureKey::ModelType("llama".into()), &devices);
        let names = chosen.map(|all| all.into_iter().map(|chosen| chosen.build).collect());
        names.map_err(|error| error.to_string())
    }

    #[test]
    fn ranks_share_a_build_where_one_runs_everywhere() {
        let builds = ["cpu-v3", "ampere", "ada", "hopper", "blackwell"];
        let mut snapshot = Snapshot {
            entries: builds.iter().map(|build| entry(build, build, "llama")).collect(),
            ..Snapshot::default()
        };
        let cases: [(&[u32], &[&str]); 6] = [
            (&[90], &["hopper"]),
            (&[89, 89], &["ada", "ada"]),
            (&[86, 89], &["ampere", "ampere"]),
            (&[100, 120], &["blackwell", "blackwell"]),
            (&[89, 120], &["ada", "blackwell"]),
            (&[86, 90, 86], &["ampere", "hopper", "ampere"]),
        ];
        for (capabilities, expected) in cases {
            assert_eq!(files(&snapshot, capabilities).unwrap(), expected, "{capabilities:?}");
        }
        let old = files(&snapshot, &[86, 75]).unwrap_err();
        assert!(old.contains("ampere holds no machine code for compute capability 7.5"), "{old}");

        let hopper = snapshot.entries.iter_mut().find(|entry| entry.path.ends_with("hopper")).unwrap();
        hopper.descriptor.as_mut().unwrap().git = "another".into();
        let mixed = files(&snapshot, &[86, 90]).unwrap_err();
        assert!(mixed.contains("do not belong together") && mixed.contains("(hopper, hopper)"), "{mixed}");
        assert!(files(&snapshot, &[90, 90]).is_ok());
    }
}
