//! `neuron doctor`: what keeps neuron from working well on this machine, and what to do about it.
//!
//! Looks, and changes nothing. Each check says one sentence and, where something is wrong, one remedy.

mod hub;
mod machine;
mod node;

use std::process::ExitCode;

use serde::Serialize;

use super::{ConfigFile, log};
use crate::discovery;

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron doctor
  neuron doctor --config /etc/neuron/neuron.toml
  neuron doctor --json | jq '.[] | select(.verdict != \"good\")'

Ends with status 1 when something is broken; what could only be better does not count.")]
pub struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// It works, but could work better.
    Notice,
    /// It does not work.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, message: message.into(), remedy: None }
    }

    fn notice(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Notice, message: message.into(), remedy: Some(remedy.into()) }
    }

    fn broken(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Broken, message: message.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything, and says how it is.
pub async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    log::start("off");
    let findings = examine(&options.file).await;
    if options.json {
        println!("{}", serde_json::to_string(&findings)?);
    } else {
        print!("{}", picture(&findings));
    }
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Broken);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(file: &ConfigFile) -> Vec<Finding> {
    let machine = discovery::look();
    let mut findings = machine::check(&machine);
    match file.load() {
        Err(error) => {
            findings.push(Finding::broken(
                "configuration",
                format!("{error:#}"),
                "correct it; `neuron config show` reads it again",
            ));
        }
        Ok(loaded) => {
            let source = loaded
                .path
                .as_ref()
                .map_or_else(|| "no file, defaults".into(), |path| path.display().to_string());
            findings.push(Finding::good("configuration", source));
            findings.extend(node::check(&loaded.config, &machine).await);
            findings.extend(hub::check(&loaded.config.hub).await);
        }
    }
    findings
}

fn picture(findings: &[Finding]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Notice => "note",
            Verdict::Broken => "FAIL",
        };
        text.push_str(&format!("{mark}  {:width$}  {}\n", finding.check, finding.message));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("      {:width$}  → {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broken_configuration_is_a_finding() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("neuron.toml");
        std::fs::write(&path, "lissten = \"x\"").unwrap();
        let findings = examine(&ConfigFile { config: Some(path), plugins: Vec::new() }).await;
        let finding = findings.iter().find(|finding| finding.check == "configuration").unwrap();
        assert_eq!(finding.verdict, Verdict::Broken);
        assert!(finding.message.contains("did you mean 'listen'"), "{}", finding.message);
        let text = picture(&findings);
        assert!(text.contains("FAIL  configuration") && text.contains("→ correct it"), "{text}");
    }
}
