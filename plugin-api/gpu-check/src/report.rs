//! What a run came to, for machines as JSON and for people as a table.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use plugin_loader::BuildInfo;
use serde::Serialize;
use serde_json::{Value, json};

use crate::device::Found;

/// Everything that was run, and everything that was not.
#[derive(Debug, Serialize)]
pub struct Report {
    device: Value,
    plugins: Vec<Value>,
    checks: Vec<Check>,
    skipped: Vec<Skipped>,
    /// Bytes per second of copies on the device.
    pub bandwidth: Option<f64>,
    /// What PyTorch measured in the same run.
    pub reference: Option<Value>,
    /// Speeds.
    pub measured: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Check {
    subject: String,
    right: bool,
    said: String,
}

#[derive(Debug, Serialize)]
struct Skipped {
    subject: String,
    reason: String,
}

/// Speeds of one model.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// The shape.
    pub model: String,
    /// Quantization while loading, or empty.
    pub quantize: String,
    /// Seconds to load.
    pub load_s: f64,
    /// Weights as they lie in memory.
    pub weight_bytes: u64,
    /// Memory taken by loading.
    pub held_bytes: u64,
    /// Tokens of a prompt.
    pub prompt_tokens: u32,
    /// Tokens of a prompt per second.
    pub prefill_tokens_per_s: f64,
    /// Multiplications and additions with weights per second.
    pub prefill_flops_per_s: f64,
    /// Single tokens.
    pub decode: Vec<Decode>,
}

/// Speed of single tokens.
#[derive(Debug, Serialize)]
pub struct Decode {
    /// Sequences together.
    pub batch: u32,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Tokens per second of all sequences.
    pub tokens_per_s: f64,
    /// Bytes of weights and state read per second.
    pub bytes_per_s: f64,
}

impl Report {
    /// Of a run on this device.
    pub fn new(device: &Found) -> Self {
        Self {
            device: serde_json::to_value(device).unwrap_or_default(),
            plugins: Vec::new(),
            checks: Vec::new(),
            skipped: Vec::new(),
            bandwidth: None,
            reference: None,
            measured: Vec::new(),
        }
    }

    /// A plugin that was used.
    pub fn plugin(&mut self, name: &str, path: &Path, build: &BuildInfo) {
        self.plugins.push(json!({"name": name, "path": path, "build": build}));
    }

    /// Something that was run, and what it said.
    pub fn check<T: Into<String>>(&mut self, subject: &str, outcome: Result<T, String>) {
        let right = outcome.is_ok();
        let said = outcome.map_or_else(|error| error, Into::into);
        println!(
            "{} {subject}{}{said}",
            if right { "ok  " } else { "FAIL" },
            if said.is_empty() { "" } else { ": " }
        );
        self.checks.push(Check { subject: subject.into(), right, said });
    }

    /// Something that was not run, and why.
    pub fn skipped(&mut self, subject: &str, reason: &str) {
        println!("skip {subject}: {reason}");
        self.skipped.push(Skipped { subject: subject.into(), reason: reason.into() });
    }

    /// Whether something was run and nothing is wrong.
    pub fn is_green(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.right)
    }

    /// Writes `results.json` and `results.txt`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(self)? + "\n")
            .and_then(|()| std::fs::write(folder.join("results.txt"), format!("{self}\n")))
            .with_context(|| format!("cannot write into {}", folder.display()))
    }

    /// A rate beside the memory's, as a share of it.
    fn share(&self, rate: f64) -> String {
        self.bandwidth.map_or_else(String::new, |bandwidth| format!("{:.0} %", 100.0 * rate / bandwidth))
    }

    /// The device's rate of bf16 matrix products, if PyTorch measured it.
    fn matrix_rate(&self) -> Option<f64> {
        self.reference.as_ref()?["matrix_flops_per_s"].as_f64()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.device["name"].as_str().unwrap_or_default())?;
        if let Some(bandwidth) = self.bandwidth {
            writeln!(f, "memory copies: {:.0} GB/s", bandwidth / 1e9)?;
        }
        if let Some(rate) = self.matrix_rate() {
            writeln!(f, "bf16 matrix products: {:.0} TFLOP/s", rate / 1e12)?;
        }
        if !self.measured.is_empty() {
            writeln!(
                f,
                "\n{:<16} {:<6} {:>9} {:>13} {:>9} {:>7}   {:>5} {:>9} {:>9} {:>8}",
                "model",
                "quant",
                "weights",
                "prompt tok/s",
                "TFLOP/s",
                "share",
                "batch",
                "step",
                "tok/s",
                "memory"
            )?;
        }
        for measured in &self.measured {
            let share = self.matrix_rate().map_or_else(String::new, |rate| {
                format!("{:.0} %", 100.0 * measured.prefill_flops_per_s / rate)
            });
            for (number, decode) in measured.decode.iter().enumerate() {
                if number == 0 {
                    write!(
                        f,
                        "{:<16} {:<6} {:>6.2} GB {:>13.0} {:>9.2} {share:>7}",
                        measured.model,
                        if measured.quantize.is_empty() { "bf16" } else { &measured.quantize },
                        measured.weight_bytes as f64 / 1e9,
                        measured.prefill_tokens_per_s,
                        measured.prefill_flops_per_s / 1e12
                    )?;
                } else {
                    write!(f, "{:65}", "")?;
                }
                writeln!(
                    f,
                    "   {:>5} {:>6.2} ms {:>9.1} {:>8}",
                    decode.batch,
                    decode.step_ms,
                    decode.tokens_per_s,
                    self.share(decode.bytes_per_s)
                )?;
            }
        }
        if let Some(reference) = &self.reference {
            writeln!(f, "reference: {reference}")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "not run: {}: {}", skipped.subject, skipped.reason)?;
        }
        let wrong: Vec<&Check> = self.checks.iter().filter(|check| !check.right).collect();
        for check in &wrong {
            writeln!(f, "WRONG: {}: {}", check.subject, check.said)?;
        }
        write!(f, "{} of {} checks are right", self.checks.len() - wrong.len(), self.checks.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Asked;

    #[test]
    fn a_run_of_nothing_is_not_green_and_shares_are_of_what_was_measured() {
        let device = Asked::Cpu.look().expect("a processor");
        let mut report = Report::new(&device);
        assert!(!report.is_green());
        report.check("one", Ok("fine"));
        report.skipped("two", "no room");
        assert!(report.is_green());
        report.bandwidth = Some(100e9);
        report.reference = Some(json!({"matrix_flops_per_s": 2e12}));
        let decode = Decode { batch: 1, step_ms: 10.0, tokens_per_s: 100.0, bytes_per_s: 50e9 };
        report.measured.push(Measured {
            model: "m".into(),
            quantize: String::new(),
            load_s: 1.0,
            weight_bytes: 1 << 30,
            held_bytes: 0,
            prompt_tokens: 64,
            prefill_tokens_per_s: 1000.0,
            prefill_flops_per_s: 1e12,
            decode: vec![decode],
        });
        let text = report.to_string();
        for part in ["100 GB/s", "2 TFLOP/s", "50 %", "100.0", "not run: two: no room", "1 of 1 checks"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        report.check::<String>("three", Err("off by one".into()));
        assert!(!report.is_green() && report.to_string().contains("WRONG: three: off by one"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        report.write(folder.path()).expect("written");
        let json = std::fs::read_to_string(folder.path().join("results.json")).expect("readable");
        assert!(serde_json::from_str::<Value>(&json).is_ok_and(|json| json["checks"][1]["right"] == false));
    }
}
