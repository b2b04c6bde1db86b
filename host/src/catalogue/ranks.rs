//! Which file serves a model that is split over several devices.
//!
//! Ranks meet inside one copy of a plugin, so all of them compute with one file: the one that holds machine code
//! for every device, else one that the driver can compile for those it does not fit.

use plugin_loader::{Choice, Contender, DeviceInfo, choose_common_build};

use super::{ArchitectureKey, Chosen, NotServed, Snapshot};

impl Snapshot {
    /// The file that serves `key` on all of `devices`, as it was chosen for each.
    pub fn choose_ranks(
        &self,
        key: &ArchitectureKey,
        devices: &[DeviceInfo],
    ) -> Result<Vec<Chosen>, NotServed> {
        if let [device] = devices {
            return Ok(vec![self.choose(key, device)?]);
        }
        let able = self.able(key)?;
        let contenders: Vec<Contender> = able.iter().map(|able| able.contender.clone()).collect();
        let Choice { chosen, considered } = choose_common_build(&contenders, devices);
        let best = chosen.and_then(|path| able.iter().find(|able| able.contender.path == path));
        let each = best
            .and_then(|able| devices.iter().map(|device| able.chosen(device, considered.clone())).collect());
        each.ok_or_else(|| NotServed::NoCommonBuild {
            key: key.to_string(),
            reasons: considered
                .iter()
                .map(|considered| considered.verdict.reason.as_str())
                .collect::<Vec<_>>()
                .join("; "),
        })
    }
}

#[cfg(test)]
mod tests {
    use plugin_loader::{DeviceKind, cpu_device};

    use super::super::choose::tests::entry;
    use super::*;

    fn files(builds: &[&str], capabilities: &[u32]) -> Result<Vec<String>, String> {
        let gpu = |&compute_capability: &u32| DeviceInfo {
            kind: DeviceKind::CUDA,
            compute_capability,
            driver: 13000,
            ..cpu_device()
        };
        let devices: Vec<_> = capabilities.iter().map(gpu).collect();
        let entries = builds.iter().map(|build| entry(build, build, "llama")).collect();
        let snapshot = Snapshot { entries, ..Snapshot::default() };
        let chosen = snapshot.choose_ranks(&ArchitectureKey::ModelType("llama".into()), &devices);
        let names = chosen.map(|all| all.into_iter().map(|chosen| chosen.build).collect());
        names.map_err(|error| error.to_string())
    }

    #[test]
    fn ranks_share_one_build() {
        let all = ["cpu-v3", "ampere", "ada", "hopper", "blackwell"];
        let cases: [(&[u32], &[&str]); 6] = [
            (&[90], &["hopper"]),
            (&[89, 89], &["ada", "ada"]),
            (&[86, 89], &["ampere", "ampere"]),
            (&[100, 120], &["blackwell", "blackwell"]),
            // The driver compiles it for the second card, and for both.
            (&[89, 120], &["ada", "ada"]),
            (&[90, 120], &["ada", "ada"]),
        ];
        for (capabilities, expected) in cases {
            assert_eq!(files(&all, capabilities).unwrap(), expected, "{capabilities:?}");
        }
        let old = files(&all, &[86, 75]).unwrap_err();
        assert!(
            old.contains("fits all of them") && old.contains("ampere holds no machine code for"),
            "{old}"
        );
        let apart = files(&["hopper", "blackwell"], &[90, 120]).unwrap_err();
        let (first, second) =
            ("hopper holds no machine code for compute capability 12.0", "capability 9.0, only");
        assert!(apart.contains(first) && apart.contains(second), "{apart}");
    }
}
