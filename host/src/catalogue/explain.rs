//! What serves each architecture on each device of a machine, and why: the answer to `neuron plugins`.

use super::{Chosen, NotServed, Snapshot};
use crate::device::found;
use crate::device::plugin::device_info;
use crate::discovery::Machine;
use crate::worker::protocol::RankDevice;

/// One device of the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceReport {
    /// What the node calls it.
    pub id: String,
    /// Its product name.
    pub name: String,
    /// What it is; for a GPU, as if it were the worker's only one.
    pub device: RankDevice,
    /// Why it cannot be used, whatever plugins there are.
    pub fault: Option<String>,
    /// Per architecture, the file that serves it there, or why none does. Empty for a device with a fault.
    pub served: Vec<(String, Result<Chosen, NotServed>)>,
}

impl DeviceReport {
    /// Whether any model could be loaded there.
    pub fn serves_something(&self) -> bool {
        self.served.iter().any(|(_, chosen)| chosen.is_ok())
    }
}

/// Every device, the processor first.
pub fn explain(snapshot: &Snapshot, machine: &Machine) -> Vec<DeviceReport> {
    let cpu = DeviceReport {
        id: "cpu-0".to_owned(),
        name: machine.cpu.model.clone(),
        device: found::cpu(machine),
        fault: None,
        served: Vec::new(),
    };
    let gpus = machine.gpus.all.iter().map(|gpu| DeviceReport {
        id: gpu.id(),
        name: gpu.name.clone(),
        device: found::cuda(gpu, machine.gpus.driver.as_ref(), 0),
        fault: gpu.fault.clone(),
        served: Vec::new(),
    });
    let architectures = snapshot.architectures();
    let mut all: Vec<DeviceReport> = std::iter::once(cpu).chain(gpus).collect();
    for report in all.iter_mut().filter(|report| report.fault.is_none()) {
        let info = device_info(&report.device);
        let served = architectures.iter().map(|(name, key)| (name.clone(), snapshot.choose(key, &info)));
        report.served = served.collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::*;
    use crate::discovery::gpu::tests::mixed_box;
    use crate::discovery::gpu::{Driver, Gpus};

    #[test]
    fn every_device_is_explained() {
        let mut machine = crate::discovery::look();
        machine.cpu.level = 3;
        let driver = Some(Driver { version: "580.65.06".into(), cuda: 13000 });
        machine.gpus = Gpus { driver, all: mixed_box(), ..Gpus::default() };
        machine.gpus.all[1].fault = Some("it burns".into());
        let builds = ["cpu-v3", "ampere", "ada", "hopper", "blackwell"];
        let entries = builds.iter().map(|build| entry(build, build, "llama")).collect();
        let reports = explain(&Snapshot { entries, ..Snapshot::default() }, &machine);
        let chosen: Vec<(&str, Option<&str>)> = reports
            .iter()
            .map(|report| {
                let build =
                    report.served.first().and_then(|(_, chosen)| Some(chosen.as_ref().ok()?.build.as_str()));
                (report.id.as_str(), build)
            })
            .collect();
        let expected = [
            ("cpu-0", Some("cpu-v3")),
            ("cuda-0", None),
            ("cuda-1", None),
            ("cuda-2", Some("ada")),
            ("cuda-3", Some("blackwell")),
            ("cuda-4", Some("hopper")),
        ];
        assert_eq!(chosen, expected);
        assert!(reports[1].served[0].1.is_err() && reports[2].served.is_empty());
        assert!(reports[4].serves_something() && !reports[1].serves_something());
    }
}
