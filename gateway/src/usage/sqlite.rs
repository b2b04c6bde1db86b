//! The books in a SQLite file.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use super::{Filter, Row, Store, UsageError, signed, unsigned};

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

const SELECT: &str =
    "SELECT request_id, unix_ms, key, model, node, route, outcome, prompt_tokens, cached_tokens,
    completion_tokens, first_token_ms, total_ms, cost FROM requests
    WHERE unix_ms >= ?1 AND (?2 IS NULL OR key = ?2) ORDER BY unix_ms";

/// A SQLite file.
pub struct Sqlite {
    connection: Connection,
    path: PathBuf,
}

impl Sqlite {
    /// Opens or creates it.
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
        Ok(Self { connection, path: path.to_owned() })
    }

    fn wrong(&self, source: rusqlite::Error) -> UsageError {
        UsageError::Database { path: self.path.clone(), source }
    }

    fn write_all(&mut self, rows: &[Row]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO requests VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?;
            for row in rows {
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

    fn give_each(&self, filter: &Filter, give: &mut dyn FnMut(Row) -> bool) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare(SELECT)?;
        let mut rows = query.query(params![signed(filter.since_unix_ms), filter.key])?;
        while let Some(row) = rows.next()? {
            let count = |column: usize| row.get(column).map(unsigned);
            let row = Row {
                request_id: row.get(0)?,
                unix_ms: count(1)?,
                key: row.get(2)?,
                model: row.get(3)?,
                node: row.get(4)?,
                route: row.get::<_, String>(5)?.into(),
                outcome: row.get::<_, String>(6)?.into(),
                prompt_tokens: count(7)?,
                cached_tokens: count(8)?,
                completion_tokens: count(9)?,
                first_token_ms: row.get(10)?,
                total_ms: row.get(11)?,
                cost: row.get(12)?,
            };
            if !give(row) {
                break;
            }
        }
        Ok(())
    }
}

impl Store for Sqlite {
    fn write(&mut self, rows: &[Row]) -> Result<(), UsageError> {
        self.write_all(rows).map_err(|source| self.wrong(source))
    }

    fn spent(&mut self, key: &str, since_unix_ms: u64) -> Result<f64, UsageError> {
        let query = "SELECT COALESCE(SUM(cost), 0.0) FROM requests WHERE key = ?1 AND unix_ms >= ?2";
        let spent = self.connection.query_row(query, params![key, signed(since_unix_ms)], |row| row.get(0));
        spent.map_err(|source| self.wrong(source))
    }

    fn each(&mut self, filter: &Filter, give: &mut dyn FnMut(Row) -> bool) -> Result<(), UsageError> {
        self.give_each(filter, give).map_err(|source| self.wrong(source))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ledger;
    use super::*;

    #[test]
    fn rows_survive_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("usage.sqlite");
        let row = |key: &str, unix_ms, cost| Row { key: key.into(), unix_ms, cost, ..Row::default() };
        let ledger = Ledger::open(&path).expect("a ledger");
        for unix_ms in 0..2000 {
            ledger.record(row("alice", unix_ms, 0.5));
        }
        ledger.record(row("bob", 5, 9.0));
        assert_eq!(ledger.spent("alice", 0).expect("readable"), 1000.0, "rows on their way are counted");
        drop(ledger);
        let ledger = Ledger::open(&path).expect("again");
        assert_eq!(ledger.spent("alice", 1990).expect("readable"), 5.0);
        assert_eq!(ledger.spent("nobody", 0).expect("readable"), 0.0);
        assert_eq!(ledger.lost(), 0);
        let mut found = Vec::new();
        let filter = Filter { key: Some("alice".into()), since_unix_ms: 1998 };
        let mut keep = |row: Row| {
            found.push(row.unix_ms);
            true
        };
        Sqlite::open(&path).expect("again").each(&filter, &mut keep).expect("readable");
        assert_eq!(found, [1998, 1999]);
    }

    #[test]
    fn what_is_no_database_is_refused_by_name() {
        let error = Ledger::open(Path::new("/nowhere/usage.sqlite")).err().expect("no folder").to_string();
        assert!(error.contains("/nowhere/usage.sqlite"), "{error}");
    }
}
