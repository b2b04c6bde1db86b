//! Processor, memory, limits, GPUs.

use super::Finding;
use crate::discovery::gpu::{Gpu, Gpus, capability_text};
use crate::discovery::{self, Machine, cpu::Cpu, memory::Memory};
use crate::lifecycle::bytes;

/// Less free memory than this loads hardly any model.
const LITTLE_MEMORY: u64 = 1 << 30;

/// The CUDA a driver must know, as `major * 1000 + minor * 10`.
const CUDA_NEEDED: u32 = 13000;

/// Memory of a GPU that somebody else holds is mentioned from here on.
const OF_NOTE: u64 = 256 << 20;

/// Cards begin to slow down somewhat above this, in degrees Celsius.
const HOT: u32 = 85;

/// Fewer open files than this run out with a few hundred clients.
const FEW_FILES: u64 = 4096;

pub(super) fn check(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![processor(&machine.cpu), threads(&machine.cpu), memory(&machine.memory)];
    findings.extend(open_files(&std::fs::read_to_string("/proc/self/limits").unwrap_or_default()));
    findings.extend(gpus(&machine.gpus, discovery::gpu::kernel_module().as_deref(), nvidia_on_the_bus()));
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

fn gpus(gpus: &Gpus, module: Option<&str>, on_the_bus: usize) -> Vec<Finding> {
    if let Some(fault) = &gpus.fault {
        return vec![match (module, on_the_bus) {
            (None, 0) => Finding::good("gpu", "no NVIDIA GPU; models run on the processor"),
            (None, count) => Finding::notice(
                "gpu",
                format!("{count} NVIDIA GPU(s), but no driver is loaded: {fault}"),
                "install NVIDIA's driver and see that nvidia-smi lists them; models run on the processor meanwhile",
            ),
            (Some(module), _) => Finding::notice(
                "gpu",
                format!("NVIDIA's kernel module {module} is loaded, but: {fault}"),
                "in a container, pass the GPUs through (--gpus all), libraries included",
            ),
        }];
    }
    let driver = gpus.driver.as_ref().map_or("", |driver| driver.version.as_str());
    let mut findings = Vec::new();
    if gpus.all.is_empty() {
        findings.push(Finding::notice(
            "gpu",
            format!("NVIDIA's driver {driver} is loaded but shows no GPU"),
            "in a container, pass the GPUs through (--gpus all); otherwise see what dmesg says of NVRM",
        ));
    } else if gpus.driver.as_ref().is_some_and(|driver| (1..CUDA_NEEDED).contains(&driver.cuda)) {
        findings.push(Finding::notice(
            "gpu",
            format!("NVIDIA's driver {driver} knows CUDA 12 at most; plugins are built with CUDA 13"),
            "upgrade NVIDIA's driver to 580 or newer",
        ));
    } else {
        findings.push(Finding::good("gpu", format!("{} GPU(s), driver {driver}", gpus.all.len())));
    }
    findings.extend(gpus.all.iter().map(card));
    findings
        .extend(gpus.notes.iter().map(|note| Finding::notice("gpu", note, "correct CUDA_VISIBLE_DEVICES")));
    findings
}

fn card(gpu: &Gpu) -> Finding {
    let mut message = format!("{} {}", gpu.id(), gpu.name);
    match &gpu.fault {
        Some(fault) if gpu.hidden => return Finding::good("gpu", format!("{message} is not used: {fault}")),
        Some(fault) => {
            message.push_str(&format!(" cannot be used: {fault}"));
            return Finding::notice("gpu", message, "neuron serves with the other devices meanwhile");
        }
        None => {}
    }
    message.push_str(&format!(
        ", compute capability {}, {} of {} free",
        capability_text(gpu.compute_capability),
        bytes(gpu.free_bytes),
        bytes(gpu.total_bytes)
    ));
    if gpu.others_bytes > OF_NOTE {
        message.push_str(&format!(", {} held by others", bytes(gpu.others_bytes)));
    }
    match gpu.temperature_celsius {
        Some(temperature) if temperature >= HOT => Finding::notice(
            "gpu",
            format!("{message}, {temperature} °C"),
            "it slows itself down to cool; see to its air",
        ),
        Some(temperature) => Finding::good("gpu", format!("{message}, {temperature} °C")),
        None => Finding::good("gpu", message),
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
        let missing = Gpus { fault: Some("no NVIDIA driver".into()), ..Gpus::default() };
        let verdict = |module, on_the_bus| gpus(&missing, module, on_the_bus)[0].verdict;
        assert_eq!(verdict(None, 0), Verdict::Good);
        assert_eq!(verdict(None, 2), Verdict::Notice);
        assert_eq!(verdict(Some("580.1"), 2), Verdict::Notice);
    }

    #[test]
    fn every_gpu_gets_a_line() {
        use crate::discovery::gpu::Driver;
        use crate::discovery::gpu::tests::mixed_box;
        let driver = |cuda| Some(Driver { version: "580.65.06".into(), cuda });
        let mut seen = Gpus { driver: driver(13000), all: mixed_box(), ..Gpus::default() };
        seen.all[1].temperature_celsius = Some(91);
        (seen.all[2].fault, seen.all[2].hidden) = (Some("CUDA_VISIBLE_DEVICES=\"\" hides it".into()), true);
        seen.all[3].fault = Some("it has fallen off the bus".into());
        let verdicts: Vec<_> = gpus(&seen, None, 5).iter().map(|finding| finding.verdict).collect();
        use Verdict::{Good, Notice};
        assert_eq!(verdicts, [Good, Good, Notice, Good, Notice, Good]);
        let old = gpus(&Gpus { driver: driver(12080), ..seen }, None, 5);
        assert_eq!(old[0].verdict, Notice);
        assert!(old[0].remedy.as_ref().unwrap().contains("580"));
        let none = gpus(&Gpus { driver: driver(13000), ..Gpus::default() }, None, 0);
        assert_eq!((none.len(), none[0].verdict), (1, Notice));
    }
}
