//! Processors, and how many threads are worth keeping busy on them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{cgroup, read};

/// This machine's processors, as this process may use them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// Name the vendor gave it; empty when unknown.
    pub model: String,
    /// x86-64 level, 1 to 4; 0 when it is not x86-64.
    pub level: u32,
    /// Instruction sets that matter for inference.
    pub features: Vec<String>,
    /// Logical processors of the machine.
    pub logical: usize,
    /// Physical cores of the machine.
    pub physical: usize,
    /// Logical processors this process may run on.
    pub affinity: Vec<usize>,
    /// Processor time the control group grants, in processors; `None` without a limit.
    pub quota: Option<f64>,
    /// Threads worth keeping busy: physical cores within affinity and quota, at least 1.
    pub threads: usize,
}

/// Looks at the processors.
pub fn look() -> Cpu {
    let affinity = affinity();
    let quota = cgroup::cpu_quota();
    let siblings = |cpu: usize| {
        read(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| cpu.to_string())
    };
    let cores = |cpus: &[usize]| cpus.iter().map(|&cpu| siblings(cpu)).collect::<BTreeSet<_>>().len().max(1);
    let online = read("/sys/devices/system/cpu/online").map(|text| parse_list(&text)).unwrap_or_default();
    let online = if online.is_empty() { affinity.clone() } else { online };
    Cpu {
        model: read("/proc/cpuinfo").and_then(|text| model_name(&text)).unwrap_or_default(),
        level: plugin_loader::cpu_device().cpu_level,
        features: features(),
        logical: online.len().max(1),
        physical: cores(&online),
        threads: threads(cores(&affinity), quota),
        affinity,
        quota,
    }
}

fn threads(cores: usize, quota: Option<f64>) -> usize {
    // A quota of 2.5 processors keeps two threads busy; a third would be stopped half of the time, and the
    // others would wait for it at every barrier.
    let granted = quota.map_or(usize::MAX, |quota| quota.floor() as usize);
    cores.min(granted).max(1)
}

fn affinity() -> Vec<usize> {
    let status = read("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = list.map(parse_list).unwrap_or_default();
    if allowed.is_empty() {
        (0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).collect()
    } else {
        allowed
    }
}

/// `0-2,5` is 0, 1, 2, 5.
fn parse_list(text: &str) -> Vec<usize> {
    let mut list = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            list.extend(first..=last);
        }
    }
    list
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<String> {
    macro_rules! detected {
        ($($feature:tt),+ $(,)?) => {
            [$(($feature, std::is_x86_feature_detected!($feature))),+]
        };
    }
    let known = detected![
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vnni",
        "avx512bf16",
        "avx512fp16",
        "avx512vbmi",
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_at_least_one_thread() {
        let cpu = look();
        assert!(cpu.threads >= 1 && cpu.threads <= cpu.affinity.len().max(1), "{cpu:?}");
        assert!(cpu.physical <= cpu.logical, "{cpu:?}");
    }

    #[test]
    fn threads_stay_within_cores_and_quota() {
        let cases = [((8, None), 8), ((8, Some(2.5)), 2), ((8, Some(0.5)), 1), ((2, Some(16.0)), 2)];
        for ((cores, quota), expected) in cases {
            assert_eq!(threads(cores, quota), expected, "{cores} cores, quota {quota:?}");
        }
    }

    #[test]
    fn lists_are_understood() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
    }
}
