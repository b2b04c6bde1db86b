//! The books in a table of PostgreSQL, so that several gateways keep them together.
//!
//! The connection is not encrypted: the database is on this machine, in a trusted network, or behind a tunnel.

use postgres::config::Host;
use postgres::{Client, Config, NoTls};

use super::{Filter, Row, Store, UsageError, signed, unsigned};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS cortex_requests (
        request_id TEXT NOT NULL,
        unix_ms BIGINT NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        node TEXT NOT NULL,
        route TEXT NOT NULL,
        outcome TEXT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        first_token_ms DOUBLE PRECISION,
        total_ms DOUBLE PRECISION NOT NULL,
        cost DOUBLE PRECISION NOT NULL
    );
    CREATE INDEX IF NOT EXISTS cortex_requests_by_key ON cortex_requests (key, unix_ms);
";

const INSERT: &str = "INSERT INTO cortex_requests SELECT * FROM UNNEST($1::TEXT[], $2::BIGINT[], $3::TEXT[],
    $4::TEXT[], $5::TEXT[], $6::TEXT[], $7::TEXT[], $8::BIGINT[], $9::BIGINT[], $10::BIGINT[],
    $11::DOUBLE PRECISION[], $12::DOUBLE PRECISION[], $13::DOUBLE PRECISION[])";

const SELECT: &str =
    "SELECT request_id, unix_ms, key, model, node, route, outcome, prompt_tokens, cached_tokens,
    completion_tokens, first_token_ms, total_ms, cost FROM cortex_requests
    WHERE unix_ms >= $1 AND ($2::TEXT IS NULL OR key = $2) ORDER BY unix_ms";

/// Rows fetched at once when all are wanted.
const PAGE: i32 = 1000;

/// A PostgreSQL database. A connection that was lost is made again when it is next needed.
pub struct Postgres {
    config: Config,
    place: String,
    client: Option<Client>,
}

impl Postgres {
    /// Connects and makes the table where there is none.
    ///
    /// # Errors
    /// [`UsageError`] naming the server, never the password.
    pub fn open(address: &str) -> Result<Self, UsageError> {
        let config: Config = address.parse().map_err(|error: postgres::Error| UsageError::Server {
            place: "address".into(),
            reason: full(&error),
        })?;
        let mut opened = Self { place: place(&config), config, client: None };
        opened.with(|_| Ok(()))?;
        Ok(opened)
    }

    /// Does something with a connection; one that failed is not used again.
    fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Client) -> Result<T, postgres::Error>,
    ) -> Result<T, UsageError> {
        let place = self.place.clone();
        let wrong = |error: postgres::Error| UsageError::Server { place, reason: full(&error) };
        let mut client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => connect(&self.config).map_err(wrong.clone())?,
        };
        let done = act(&mut client).map_err(wrong)?;
        self.client = Some(client);
        Ok(done)
    }
}

fn connect(config: &Config) -> Result<Client, postgres::Error> {
    let mut client = config.connect(NoTls)?;
    client.batch_execute(SCHEMA)?;
    Ok(client)
}

/// Server and database, for people.
fn place(config: &Config) -> String {
    let host = config.get_hosts().first().map_or_else(
        || "localhost".to_owned(),
        |host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        },
    );
    format!("{} on {host}", config.get_dbname().unwrap_or("by default"))
}

/// The error with what caused it: the driver's own words alone say little.
fn full(error: &postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

impl Store for Postgres {
    fn write(&mut self, rows: &[Row]) -> Result<(), UsageError> {
        let texts = |of: fn(&Row) -> &str| rows.iter().map(of).collect::<Vec<_>>();
        let counts = |of: fn(&Row) -> u64| rows.iter().map(|row| signed(of(row))).collect::<Vec<_>>();
        let first: Vec<Option<f64>> = rows.iter().map(|row| row.first_token_ms).collect();
        let total: Vec<f64> = rows.iter().map(|row| row.total_ms).collect();
        let cost: Vec<f64> = rows.iter().map(|row| row.cost).collect();
        let (ids, keys) = (texts(|row| &row.request_id), texts(|row| &row.key));
        let (models, nodes) = (texts(|row| &row.model), texts(|row| &row.node));
        let (routes, outcomes) = (texts(|row| &row.route), texts(|row| &row.outcome));
        let (when, prompt) = (counts(|row| row.unix_ms), counts(|row| row.prompt_tokens));
        let (cached, completion) = (counts(|row| row.cached_tokens), counts(|row| row.completion_tokens));
        self.with(|client| {
            client.execute(
                INSERT,
                &[
                    &ids,
                    &when,
                    &keys,
                    &models,
                    &nodes,
                    &routes,
                    &outcomes,
                    &prompt,
                    &cached,
                    &completion,
                    &first,
                    &total,
                    &cost,
                ],
            )
        })
        .map(|_| ())
    }

    fn spent(&mut self, key: &str, since_unix_ms: u64) -> Result<f64, UsageError> {
        let query = "SELECT COALESCE(SUM(cost), 0.0) FROM cortex_requests WHERE key = $1 AND unix_ms >= $2";
        self.with(|client| client.query_one(query, &[&key, &signed(since_unix_ms)])?.try_get(0))
    }

    fn each(&mut self, filter: &Filter, give: &mut dyn FnMut(Row) -> bool) -> Result<(), UsageError> {
        self.with(|client| {
            let mut transaction = client.transaction()?;
            let portal = transaction.bind(SELECT, &[&signed(filter.since_unix_ms), &filter.key])?;
            loop {
                let rows = transaction.query_portal(&portal, PAGE)?;
                let last = rows.is_empty();
                for row in rows {
                    if !give(read(&row)?) {
                        return Ok(());
                    }
                }
                if last {
                    return Ok(());
                }
            }
        })
    }
}

fn read(row: &postgres::Row) -> Result<Row, postgres::Error> {
    let count = |column: usize| row.try_get(column).map(unsigned);
    Ok(Row {
        request_id: row.try_get(0)?,
        unix_ms: count(1)?,
        key: row.try_get(2)?,
        model: row.try_get(3)?,
        node: row.try_get(4)?,
        route: row.try_get::<_, String>(5)?.into(),
        outcome: row.try_get::<_, String>(6)?.into(),
        prompt_tokens: count(7)?,
        cached_tokens: count(8)?,
        completion_tokens: count(9)?,
        first_token_ms: row.try_get(10)?,
        total_ms: row.try_get(11)?,
        cost: row.try_get(12)?,
    })
}
