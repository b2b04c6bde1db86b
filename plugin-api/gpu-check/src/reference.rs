//! What PyTorch makes of the same device in the same run, where there is a Python that has it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs the bundle's script; its JSON, or the reason why there is none.
pub fn measure(python: &Path, bundle: &Path, tiny: bool) -> Value {
    let script = bundle.join("reference.py");
    let mut command = Command::new(python);
    command.arg(&script);
    if tiny {
        command.arg("--tiny");
    }
    println!("measuring the reference with {} …", python.display());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return json!({"missing": format!("cannot start {}: {error}", python.display())}),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| line.starts_with('{'));
    match last.and_then(|line| serde_json::from_str(line).ok()) {
        Some(measured) if output.status.success() => measured,
        _ => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            json!({"missing": complaint.lines().last().unwrap_or("it said nothing")})
        }
    }
}
