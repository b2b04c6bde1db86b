//! Memory of the host, within the limit of this process's control group.

use serde::{Deserialize, Serialize};

use super::{cgroup, read};

/// Host memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What this process may use in all.
    pub total_bytes: u64,
    /// What could be allocated now without swapping.
    pub available_bytes: u64,
    /// Limit of the control group; `None` without one.
    pub limit_bytes: Option<u64>,
}

/// Looks at the memory as it is now.
pub fn look() -> Memory {
    let text = read("/proc/meminfo").unwrap_or_default();
    within(meminfo(&text, "MemTotal:"), meminfo(&text, "MemAvailable:"), cgroup::memory())
}

fn within(total: u64, available: u64, group: Option<(u64, u64)>) -> Memory {
    match group {
        Some((limit, used)) if limit < total => Memory {
            total_bytes: limit,
            available_bytes: available.min(limit - used),
            limit_bytes: Some(limit),
        },
        _ => Memory { total_bytes: total, available_bytes: available, limit_bytes: None },
    }
}

fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Resident memory of this process, in bytes; 0 when unknown.
pub fn resident_bytes() -> u64 {
    read("/proc/self/status").map_or(0, |status| meminfo(&status, "VmRSS:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        let memory = look();
        assert!(memory.total_bytes >= memory.available_bytes && memory.available_bytes > 0, "{memory:?}");
        assert!(resident_bytes() > 1 << 16);
    }

    #[test]
    fn a_groups_limit_counts() {
        let memory = within(1000, 800, Some((500, 450)));
        assert_eq!((memory.total_bytes, memory.available_bytes, memory.limit_bytes), (500, 50, Some(500)));
        let free = within(1000, 800, Some((5000, 450)));
        assert_eq!((free.total_bytes, free.available_bytes, free.limit_bytes), (1000, 800, None));
    }
}
