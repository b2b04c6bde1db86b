//! Rules a compiler does not know: which room may use which, where `unsafe` may stand, links that lead
//! somewhere. What is longest is printed, not judged.

mod arrows;
mod lengths;
mod links;
mod sources;

use anyhow::{Result, bail};

/// Checks everything, prints every violation, fails if there was one.
pub fn run() -> Result<()> {
    let files = sources::tracked()?;
    let mut violations = arrows::check()?;
    violations.extend(links::check(&files)?);
    violations.extend(sources::check(&files)?);
    lengths::print(&files)?;
    if violations.is_empty() {
        println!("tidy: {} files, no violation", files.len());
        return Ok(());
    }
    for violation in &violations {
        println!("tidy: {violation}");
    }
    bail!("{} violations", violations.len())
}
