//! What was used: one row per request, kept in SQLite, and what each key has spent of its budget.
//!
//! Rows are handed to one writer thread over a bounded channel and written in batches; a request
//! never waits for a disk. When the writer cannot keep up, rows are dropped and counted, and said so.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, params};

/// Rows that may wait for the disk.
const QUEUE: usize = 16_384;
/// Rows written in one transaction.
const BATCH: usize = 1024;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS requests (
        request_id TEXT NOT NULL,
        unix_ms INTEGER NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        node TEXT NOT NULL,
        route TEXT NOT NULL,
        outcome TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        first_token_ms REAL,
        total_ms REAL NOT NULL,
        cost REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS requests_by_key ON requests (key, unix_ms);
";

/// One request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// Its id.
    pub request_id: String,
    /// When it came, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The key's name; empty without keys.
    pub key: String,
    /// The model.
    pub model: String,
    /// The node.
    pub node: String,
    /// The route.
    pub route: &'static str,
    /// How it ended.
    pub outcome: &'static str,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Of these, from a cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// To the first content.
    pub first_token_ms: Option<f64>,
    /// To the end.
    pub total_ms: f64,
    /// What it cost.
    pub cost: f64,
}

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The database does not open or is none.
    #[error("the usage database {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// The ledger. Dropping it writes what is left.
pub struct Ledger {
    rows: Option<SyncSender<Row>>,
    writer: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Ledger {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// [`UsageError`] naming the file.
    pub fn open(path: &Path) -> Result<Self, UsageError> {
        let wrong = |source| UsageError::Database { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(wrong)?;
        // Readers and the writer do not block each other, and a crash loses no committed row.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(wrong)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(wrong)?;
        connection.execute_batch(SCHEMA).map_err(wrong)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("usage-ledger".into())
            .spawn(move || write_all(connection, &receiver))
            .expect("a thread can be started");
        Ok(Self { rows: Some(sender), writer: Some(writer), path: path.to_owned() })
    }

    /// Writes a row soon.
    pub fn record(&self, row: Row) {
        let Some(rows) = &self.rows else { return };
        match rows.try_send(row) {
            Ok(()) => {}
            Err(TrySendError::Full(row)) => {
                tracing::warn!(request = row.request_id, "the usage database cannot keep up; a row is lost");
            }
            Err(TrySendError::Disconnected(_)) => {
                tracing::error!("the usage database is gone; a row is lost")
            }
        }
    }

    /// What a key has spent since `unix_ms`.
    ///
    /// # Errors
    /// [`UsageError`] naming the file.
    pub fn spent(&self, key: &str, since_unix_ms: u64) -> Result<f64, UsageError> {
        let query = || {
            Connection::open(&self.path)?.query_row(
                "SELECT COALESCE(SUM(cost), 0) FROM requests WHERE key = ?1 AND unix_ms >= ?2",
                params![key, signed(since_unix_ms)],
                |row| row.get(0),
            )
        };
        query().map_err(|source| UsageError::Database { path: self.path.clone(), source })
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.rows = None;
        if let Some(writer) = self.writer.take() {
            // The writer ends when it has written what was left; if it died, that was logged.
            let _ = writer.join();
        }
    }
}

fn write_all(mut connection: Connection, rows: &Receiver<Row>) {
    while let Ok(first) = rows.recv() {
        let mut batch = vec![first];
        // A little patience makes one transaction of many rows.
        while batch.len() < BATCH
            && let Ok(row) = rows.recv_timeout(Duration::from_millis(20))
        {
            batch.push(row);
        }
        if let Err(error) = write_batch(&mut connection, &batch) {
            tracing::error!(%error, rows = batch.len(), "the usage database refused rows; they are lost");
        }
    }
}

/// SQLite's integers are signed; no count here comes near the limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn write_batch(connection: &mut Connection, batch: &[Row]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO requests VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?;
        for row in batch {
            insert.execute(params![
                row.request_id,
                signed(row.unix_ms),
                row.key,
                row.model,
                row.node,
                row.route,
                row.outcome,
                signed(row.prompt_tokens),
                signed(row.cached_tokens),
                signed(row.completion_tokens),
                row.first_token_ms,
                row.total_ms,
                row.cost
            ])?;
        }
    }
    transaction.commit()
}

/// Prints the ledger as comma-separated values.
///
/// # Errors
/// [`UsageError`] naming the file; what cannot be written to `out` ends it silently.
pub fn export(path: &Path, out: &mut dyn std::io::Write) -> Result<(), UsageError> {
    let wrong = |source| UsageError::Database { path: path.to_owned(), source };
    let connection = Connection::open(path).map_err(wrong)?;
    let mut query = connection.prepare("SELECT * FROM requests ORDER BY unix_ms").map_err(wrong)?;
    let header = query.column_names().collect::<Vec<_>>().join(",");
    let columns = query.column_count();
    let mut rows = query.query([]).map_err(wrong)?;
    let mut ended = writeln!(out, "{header}").is_err();
    while let Some(row) = rows.next().map_err(wrong)? {
        let cells: Vec<String> = (0..columns).map(|column| cell(row.get_ref(column).ok())).collect();
        ended = ended || writeln!(out, "{}", cells.join(",")).is_err();
        if ended {
            break;
        }
    }
    Ok(())
}

fn cell(value: Option<rusqlite::types::ValueRef<'_>>) -> String {
    use rusqlite::types::ValueRef;
    match value {
        Some(ValueRef::Integer(number)) => number.to_string(),
        Some(ValueRef::Real(number)) => number.to_string(),
        Some(ValueRef::Text(text)) => {
            let text = String::from_utf8_lossy(text);
            if text.contains([',', '"', '\n']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text.into_owned()
            }
        }
        _ => String::new(),
    }
}

/// What a key has spent within its window.
#[derive(Debug, Clone, Default)]
pub struct Spending(Arc<Mutex<f64>>);

impl Spending {
    /// So much already.
    pub fn of(cost: f64) -> Self {
        Self(Arc::new(Mutex::new(cost)))
    }

    /// What was spent.
    pub fn cost(&self) -> f64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much, and no more than that.
    pub fn set(&self, cost: f64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = cost;
    }

    /// Spends more.
    pub fn add(&self, cost: f64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_a_restart_and_can_be_exported() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("usage.sqlite");
        let row = |key: &str, unix_ms, cost| Row {
            request_id: format!("req,{unix_ms}"),
            key: key.into(),
            unix_ms,
            cost,
            route: "chat",
            outcome: "complete",
            ..Row::default()
        };
        let ledger = Ledger::open(&path).expect("a ledger");
        for unix_ms in 0..2000 {
            ledger.record(row("alice", unix_ms, 0.5));
        }
        ledger.record(row("bob", 5, 9.0));
        drop(ledger);
        let ledger = Ledger::open(&path).expect("again");
        assert_eq!(ledger.spent("alice", 0).expect("readable"), 1000.0);
        assert_eq!(ledger.spent("alice", 1990).expect("readable"), 5.0);
        assert_eq!(ledger.spent("nobody", 0).expect("readable"), 0.0);
        let mut text = Vec::new();
        export(&path, &mut text).expect("readable");
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text.lines().count(), 2002);
        assert!(
            text.starts_with("request_id,unix_ms,key") && text.contains("\"req,5\",5,bob,"),
            "{}",
            &text[..300]
        );
    }

    #[test]
    fn what_is_no_database_is_refused_by_name() {
        let error = Ledger::open(Path::new("/nowhere/usage.sqlite")).err().expect("no folder").to_string();
        assert!(error.contains("/nowhere/usage.sqlite"), "{error}");
    }
}
