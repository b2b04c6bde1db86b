//! Processor, memory, limits, GPUs.

use super::Finding;
use crate::discovery::{self, Machine, cpu::Cpu, memory::Memory};
use crate::lifecycle::bytes;

/// Less free memory than this loads hardly any model.
const LITTLE_MEMORY: u64 = 1 << 30;

/// Fewer open files than this run out with a few hundred clients.
const FEW_FILES: u64 = 4096;

pub(super) fn check(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![processor(&machine.cpu), threads(&machine.cpu), memory(&machine.memory)];
    findings.extend(open_files(&std::fs::read_to_string("/proc/self/limits").unwrap_or_default()));
    findings.push(gpus(machine, discovery::gpu::driver_version().as_deref(), nvidia_on_the_bus()));
    findings
}

fn processor(cpu: &Cpu) -> Finding {
    let name = if cpu.model.is_empty() { "unknown processor" } else { &cpu.model };
    let message = format!("{name}, x86-64-v{}: {}", cpu.level, cpu.features.join(" "));
    match cpu.level {
        0 => Finding::broken(
            "processor",
            format!("{name} is no x86-64 processor"),
            "build the plugins for this machine from source",
        ),
        1 => Finding::broken(
            "processor",
            message,
            "plugins need x86-64-v2 (SSE4.2); run neuron on a newer processor, or tell the hypervisor to show all of this one",
        ),
        2 => Finding::notice(
            "processor",
            message,
            "models run several times faster with AVX2; if the processor has it, tell the hypervisor to show it",
        ),
        _ => Finding::good("processor", message),
    }
}

fn threads(cpu: &Cpu) -> Finding {
    let mut message = format!("{} of {} physical cores can be kept busy", cpu.threads, cpu.physical);
    if cpu.affinity.len() < cpu.logical {
        message.push_str(&format!(", affinity allows {} of {} processors", cpu.affinity.len(), cpu.logical));
    }
    match cpu.quota {
        Some(quota) if quota < cpu.affinity.len() as f64 => {
            message.push_str(&format!(", the control group grants the time of {quota}"));
            if quota.fract() == 0.0 {
                return Finding::good("threads", message);
            }
            Finding::notice(
                "threads",
                message,
                "a fraction of a processor is of no use to a model; grant a whole number",
            )
        }
        _ => Finding::good("threads", message),
    }
}

fn memory(memory: &Memory) -> Finding {
    let mut message = format!("{} of {} are free", bytes(memory.available_bytes), bytes(memory.total_bytes));
    if memory.limit_bytes.is_some() {
        message.push_str(", as the control group limits it");
    }
    if memory.available_bytes < LITTLE_MEMORY {
        return Finding::notice(
            "memory",
            message,
            "only the smallest models fit; end something else, or raise the limit",
        );
    }
    Finding::good("memory", message)
}

/// From the text of `/proc/self/limits`.
fn open_files(limits: &str) -> Option<Finding> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft: u64 = line.split_whitespace().next()?.parse().ok()?;
    let message = format!("{soft} open files are allowed");
    Some(if soft < FEW_FILES {
        Finding::notice(
            "files",
            message,
            "each client is one; for many clients raise it: ulimit -n 65536, or LimitNOFILE= in the unit",
        )
    } else {
        Finding::good("files", message)
    })
}

fn gpus(machine: &Machine, driver: Option<&str>, on_the_bus: usize) -> Finding {
    match (driver, machine.gpus.len(), on_the_bus) {
        (None, _, 0) => Finding::good("gpu", "no NVIDIA GPU; models run on the processor"),
        (None, _, count) => Finding::notice(
            "gpu",
            format!("{count} NVIDIA GPU(s), but no driver is loaded"),
            "install NVIDIA's driver and see that nvidia-smi lists them; models run on the processor meanwhile",
        ),
        (Some(driver), 0, _) => Finding::notice(
            "gpu",
            format!("NVIDIA's driver {driver} is loaded but shows no GPU"),
            "in a container, pass the GPUs through (--gpus all); otherwise see what dmesg says of NVRM",
        ),
        (Some(driver), _, _) => {
            let names: Vec<&str> = machine.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
            Finding::good(
                "gpu",
                format!(
                    "{}, driver {driver}; this build of neuron loads onto the processor only",
                    names.join(", ")
                ),
            )
        }
    }
}

/// Display and compute devices of NVIDIA that the bus shows, driver or not.
fn nvidia_on_the_bus() -> usize {
    let Ok(devices) = std::fs::read_dir("/sys/bus/pci/devices") else { return 0 };
    let says = |path: std::path::PathBuf, expected: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.trim().starts_with(expected))
    };
    devices
        .filter_map(Result::ok)
        .filter(|device| {
            says(device.path().join("vendor"), "0x10de") && says(device.path().join("class"), "0x03")
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn cpu() -> Cpu {
        Cpu {
            model: "X".into(),
            level: 3,
            features: vec!["avx2".into()],
            logical: 8,
            physical: 4,
            affinity: (0..8).collect(),
            quota: None,
            threads: 4,
        }
    }

    #[test]
    fn processors_and_quotas_are_judged() {
        for (level, expected) in
            [(0, Verdict::Broken), (1, Verdict::Broken), (2, Verdict::Notice), (3, Verdict::Good)]
        {
            assert_eq!(processor(&Cpu { level, ..cpu() }).verdict, expected, "level {level}");
        }
        for (quota, expected) in [
            (None, Verdict::Good),
            (Some(2.0), Verdict::Good),
            (Some(2.5), Verdict::Notice),
            (Some(16.0), Verdict::Good),
        ] {
            assert_eq!(threads(&Cpu { quota, ..cpu() }).verdict, expected, "quota {quota:?}");
        }
    }

    #[test]
    fn memory_and_files_are_judged() {
        let little = Memory { total_bytes: 4 << 30, available_bytes: 1 << 20, limit_bytes: Some(4 << 30) };
        assert_eq!(memory(&little).verdict, Verdict::Notice);
        let line = |soft| {
            format!("Limit  Soft  Hard  Units\nMax open files            {soft}      524288    files\n")
        };
        assert_eq!(open_files(&line(1024)).map(|finding| finding.verdict), Some(Verdict::Notice));
        assert_eq!(open_files(&line(65536)).map(|finding| finding.verdict), Some(Verdict::Good));
        assert_eq!(open_files(""), None);
    }

    #[test]
    fn a_gpu_without_a_driver_is_noticed() {
        let machine = Machine { cpu: cpu(), memory: Memory::default(), gpus: Vec::new() };
        assert_eq!(gpus(&machine, None, 0).verdict, Verdict::Good);
        assert_eq!(gpus(&machine, None, 2).verdict, Verdict::Notice);
        assert_eq!(gpus(&machine, Some("580.1"), 2).verdict, Verdict::Notice);
    }
}
