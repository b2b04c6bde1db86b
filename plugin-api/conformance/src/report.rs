//! What was found out about a plugin, for people and for programs.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a promise fared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "detail", rename_all = "snake_case")]
pub enum Verdict {
    /// Kept in everything that was tried.
    Kept,
    /// Broken: what was expected and what happened.
    Broken(String),
    /// Not tried: why.
    Skipped(String),
}

/// One promise of one part of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `file`, or `architecture NAME`, `router NAME`, `evictor NAME`.
    pub subject: String,
    /// Short name of the promise, stable across versions.
    pub promise: String,
    /// The promise, as a sentence.
    pub says: String,
    /// How it fared.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// All that was found out about one file. Displays as a list for people; serialises for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// Every promise, in the order they were tried.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether no promise was broken.
    pub fn passed(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The promises that were broken.
    pub fn broken(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Broken(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file.display())?;
        let mut subject = "";
        for finding in &self.findings {
            if subject != finding.subject {
                subject = &finding.subject;
                writeln!(f, "\n{subject}")?;
            }
            match &finding.verdict {
                Verdict::Kept => writeln!(f, "  kept     {}", finding.says)?,
                Verdict::Broken(how) => {
                    writeln!(f, "  BROKEN   {}\n           {}: {how}", finding.says, finding.promise)?;
                }
                Verdict::Skipped(why) => writeln!(f, "  skipped  {}\n           {why}", finding.says)?,
            }
        }
        let count = |wanted: fn(&Verdict) -> bool| {
            self.findings.iter().filter(|finding| wanted(&finding.verdict)).count()
        };
        write!(
            f,
            "\n{} kept, {} broken, {} skipped",
            count(|verdict| *verdict == Verdict::Kept),
            count(|verdict| matches!(verdict, Verdict::Broken(_))),
            count(|verdict| matches!(verdict, Verdict::Skipped(_)))
        )
    }
}
