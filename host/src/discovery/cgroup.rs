//! Limits of the control group this process runs in, versions 1 and 2.

use std::path::{Path, PathBuf};

use super::read;

const MOUNT: &str = "/sys/fs/cgroup";

/// Values of memory limits above this mean "no limit" (version 1 writes a page-rounded `i64::MAX`).
const NO_LIMIT: u64 = 1 << 60;

/// Files named `name` of this process's group and every group above it, nearest first. `controller` is only
/// asked for in version 1.
fn files(controller: &str, name: &str) -> Vec<PathBuf> {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    files_of(&groups, Path::new(MOUNT), controller, name)
}

fn files_of(groups: &str, mount: &Path, controller: &str, name: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = if controllers.is_empty() {
            mount.to_owned()
        } else if controllers.split(',').any(|other| other == controller) {
            mount.join(controller)
        } else {
            continue;
        };
        let group = Path::new(group.trim_start_matches('/'));
        // In a container the path may be the host's: then only the root of the mount is there.
        paths.extend(group.ancestors().map(|part| root.join(part).join(name)));
        paths.push(root.join(name));
    }
    paths.dedup();
    paths
}

fn numbers(paths: Vec<PathBuf>) -> impl Iterator<Item = u64> {
    paths.into_iter().filter_map(|path| read(path)?.trim().parse().ok())
}

/// Processor time this group may use, in processors; `None` without a limit.
pub(super) fn cpu_quota() -> Option<f64> {
    let version_2 = files("cpu", "cpu.max").into_iter().filter_map(|path| parse_cpu_max(&read(path)?));
    let quotas = files("cpu", "cpu.cfs_quota_us").into_iter().filter_map(|path| {
        let quota: f64 = read(&path)?.trim().parse().ok()?;
        let period: f64 = read(path.with_file_name("cpu.cfs_period_us"))?.trim().parse().ok()?;
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    });
    version_2.chain(quotas).reduce(f64::min)
}

/// `200000 100000` is two processors, `max 100000` is no limit.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then(|| quota / period)
}

/// Bytes this group may use, and uses now; `None` without a limit. Of nested limits, the one with the least
/// room left.
pub(super) fn memory() -> Option<(u64, u64)> {
    let limits = files("memory", "memory.max").into_iter().chain(files("memory", "memory.limit_in_bytes"));
    limits
        .filter_map(|path| {
            let limit = numbers(vec![path.clone()]).next().filter(|&limit| limit < NO_LIMIT)?;
            let (used, inactive) = if path.ends_with("memory.max") {
                (path.with_file_name("memory.current"), "inactive_file ")
            } else {
                (path.with_file_name("memory.usage_in_bytes"), "total_inactive_file ")
            };
            let used = numbers(vec![used]).next()?;
            // Page cache that nobody maps gives way when the group is short of memory.
            let statistics = read(path.with_file_name("memory.stat")).unwrap_or_default();
            let cache = statistics.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
            Some((limit, used.saturating_sub(cache.unwrap_or(0)).min(limit)))
        })
        .min_by_key(|(limit, used)| limit - used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let mount = Path::new("/m");
        let version_2 = files_of("0::/a/b\n", mount, "memory", "memory.max");
        assert_eq!(version_2[0], Path::new("/m/a/b/memory.max"));
        assert!(version_2.contains(&"/m/a/memory.max".into()) && version_2.contains(&"/m/memory.max".into()));
        let version_1 = files_of("4:cpu,cpuacct:/x\n3:memory:/y\n", mount, "memory", "memory.limit_in_bytes");
        assert_eq!(version_1[0], Path::new("/m/memory/y/memory.limit_in_bytes"));
        assert!(!version_1.iter().any(|path| path.to_string_lossy().contains("/x")));
    }

    #[test]
    fn quotas_are_processors() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max(""), None);
    }
}
