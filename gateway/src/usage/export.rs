//! The books as text, for spreadsheets and scripts.

use std::io::Write;

use super::{Filter, Row, Source, UsageError, open};

/// How rows are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated values with a header line.
    #[default]
    Csv,
    /// One JSON object per line.
    Json,
}

const HEADER: &str = "request_id,unix_ms,key,model,node,route,outcome,prompt_tokens,cached_tokens,\
    completion_tokens,first_token_ms,total_ms,cost";

/// Writes the rows wanted, oldest first.
///
/// # Errors
/// [`UsageError`] naming the place; what cannot be written to `out` ends it silently, as a closed pipe does.
pub fn export(
    source: &Source,
    filter: &Filter,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<(), UsageError> {
    if format == Format::Csv && writeln!(out, "{HEADER}").is_err() {
        return Ok(());
    }
    // A driver may not be used where an asynchronous task waits.
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut give = |row: Row| writeln!(out, "{}", line(&row, format)).is_ok();
            open(source)?.each(filter, &mut give)
        });
        reader.join().unwrap_or(Err(UsageError::Busy))
    })
}

fn line(row: &Row, format: Format) -> String {
    if format == Format::Json {
        return serde_json::to_string(row).expect("a row is always representable as JSON");
    }
    let text = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let cells = [
        text(&row.request_id),
        row.unix_ms.to_string(),
        text(&row.key),
        text(&row.model),
        text(&row.node),
        text(&row.route),
        text(&row.outcome),
        row.prompt_tokens.to_string(),
        row.cached_tokens.to_string(),
        row.completion_tokens.to_string(),
        row.first_token_ms.map_or_else(String::new, |ms| ms.to_string()),
        row.total_ms.to_string(),
        row.cost.to_string(),
    ];
    cells.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let row = Row {
            request_id: "req,\"1\"".into(),
            unix_ms: 5,
            key: "bob".into(),
            cost: 0.25,
            ..Row::default()
        };
        assert_eq!(line(&row, Format::Csv), "\"req,\"\"1\"\"\",5,bob,,,,,0,0,0,,0,0.25");
        assert_eq!(HEADER.split(',').count(), line(&Row::default(), Format::Csv).split(',').count());
        let value: serde_json::Value = serde_json::from_str(&line(&row, Format::Json)).expect("JSON");
        assert_eq!((value["request_id"].as_str(), value["cost"].as_f64()), (Some("req,\"1\""), Some(0.25)));
        for name in HEADER.split(',') {
            assert!(value.get(name).is_some(), "{name}");
        }
    }
}
