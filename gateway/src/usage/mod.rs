//! What was used: one row per request, kept in a database, and what each key has spent of its budget.
//!
//! Rows are handed to one writer thread over a bounded channel and written in batches; a request never waits for
//! a disk or a network. The books are a SQLite file ([`sqlite`]) or a table in PostgreSQL ([`postgres`]). While the
//! database is away rows wait; when no more can wait, rows are lost, counted, and said so.

pub mod export;
pub mod postgres;
pub mod sqlite;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Rows that may wait for the database.
const QUEUE: usize = 16_384;
/// Rows written in one transaction.
const BATCH: usize = 1024;
/// How long a batch waits for more rows.
const PATIENCE: Duration = Duration::from_millis(20);
/// Pauses between attempts to write to a database that is away.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// Attempts to write what is left when the gateway ends.
const LAST_ATTEMPTS: usize = 3;
/// Longest wait for an answer about what was spent.
const ANSWER: Duration = Duration::from_secs(10);

/// One request.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
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
    pub route: Cow<'static, str>,
    /// How it ended.
    pub outcome: Cow<'static, str>,
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

/// Which rows are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this key alone.
    pub key: Option<String>,
    /// Not older than this, in milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// Where the books are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A SQLite file.
    File(PathBuf),
    /// A PostgreSQL database: `postgresql://user@host/name`.
    Postgres(String),
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
    /// The server does not answer, or refuses.
    #[error("the usage database {place}: {reason}")]
    Server {
        /// The server and database, without a password.
        place: String,
        /// Why.
        reason: String,
    },
    /// The writer does not answer.
    #[error("the usage database does not answer; what was spent is not known")]
    Busy,
}

/// Keeps rows.
pub trait Store: Send {
    /// Writes all of them or none.
    ///
    /// # Errors
    /// [`UsageError`]; they may be written again.
    fn write(&mut self, rows: &[Row]) -> Result<(), UsageError>;

    /// What a key has spent since then.
    ///
    /// # Errors
    /// [`UsageError`].
    fn spent(&mut self, key: &str, since_unix_ms: u64) -> Result<f64, UsageError>;

    /// Gives every row, oldest first, until told to stop by `false`.
    ///
    /// # Errors
    /// [`UsageError`].
    fn each(&mut self, filter: &Filter, give: &mut dyn FnMut(Row) -> bool) -> Result<(), UsageError>;
}

/// Opens the books, and makes them where there are none.
///
/// # Errors
/// [`UsageError`] naming the place.
pub fn open(source: &Source) -> Result<Box<dyn Store>, UsageError> {
    Ok(match source {
        Source::File(path) => Box::new(sqlite::Sqlite::open(path)?),
        Source::Postgres(address) => Box::new(postgres::Postgres::open(address)?),
    })
}

enum Order {
    Write(Row),
    Spent { key: String, since_unix_ms: u64, answer: SyncSender<Result<f64, UsageError>> },
}

/// The ledger. Dropping it writes what is left.
pub struct Ledger {
    orders: Option<SyncSender<Order>>,
    writer: Option<JoinHandle<()>>,
    lost: Arc<AtomicU64>,
}

impl Ledger {
    /// Opens or creates a SQLite file.
    ///
    /// # Errors
    /// [`UsageError`] naming the file.
    pub fn open(path: &Path) -> Result<Self, UsageError> {
        Self::of(Source::File(path.to_owned()))
    }

    /// Opens the books wherever they are.
    ///
    /// # Errors
    /// [`UsageError`] naming the place.
    pub fn of(source: Source) -> Result<Self, UsageError> {
        let (orders, receiver) = sync_channel(QUEUE);
        let (opened, outcome) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        // The thread opens the database itself: a driver may not be used where an asynchronous task waits.
        let writer = std::thread::Builder::new()
            .name("usage-ledger".into())
            .spawn(move || match open(&source) {
                Ok(store) => {
                    let _ = opened.send(Ok(()));
                    Writer { store, orders: receiver, lost: counted }.run();
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            })
            .expect("a thread can be started");
        outcome.recv().unwrap_or(Err(UsageError::Busy))?;
        Ok(Self { orders: Some(orders), writer: Some(writer), lost })
    }

    /// Writes a row soon.
    pub fn record(&self, row: Row) {
        let Some(orders) = &self.orders else { return };
        if orders.try_send(Order::Write(row)).is_err() {
            let before = self.lost.fetch_add(1, Ordering::Relaxed);
            if before.is_power_of_two() || before == 0 {
                tracing::error!(lost = before + 1, "the usage database cannot keep up; rows are lost");
            }
        }
    }

    /// Rows that could not be kept.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// What a key has spent since `unix_ms`, rows on their way included.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn spent(&self, key: &str, since_unix_ms: u64) -> Result<f64, UsageError> {
        let (answer, answered) = sync_channel(1);
        let order = Order::Spent { key: key.to_owned(), since_unix_ms, answer };
        let orders = self.orders.as_ref().ok_or(UsageError::Busy)?;
        match orders.try_send(order) {
            Ok(()) => answered.recv_timeout(ANSWER).unwrap_or(Err(UsageError::Busy)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(UsageError::Busy),
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(writer) = self.writer.take() {
            // The writer ends when it has written what was left; if it died, that was logged.
            let _ = writer.join();
        }
    }
}

struct Writer {
    store: Box<dyn Store>,
    orders: Receiver<Order>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while let Ok(order) = self.orders.recv() {
            // A little patience makes one transaction of many rows, and wakes this thread once for all of them.
            std::thread::sleep(PATIENCE);
            self.take(order, &mut batch);
            while let Ok(order) = self.orders.try_recv() {
                self.take(order, &mut batch);
            }
            self.write(&mut batch);
        }
    }

    fn take(&mut self, order: Order, batch: &mut Vec<Row>) {
        match order {
            Order::Write(row) => batch.push(row),
            Order::Spent { key, since_unix_ms, answer } => {
                self.write(batch);
                let _ = answer.send(self.store.spent(&key, since_unix_ms));
            }
        }
        if batch.len() >= BATCH {
            self.write(batch);
        }
    }

    /// Writes the batch, again and again while the database is away.
    fn write(&mut self, batch: &mut Vec<Row>) {
        let mut attempts = 0;
        while !batch.is_empty() {
            match self.store.write(batch) {
                Ok(()) => batch.clear(),
                Err(error) => {
                    if attempts == 0 {
                        tracing::error!(%error, rows = batch.len(), "the usage database refused rows; they wait");
                    }
                    attempts += 1;
                    if attempts >= LAST_ATTEMPTS && self.ended(batch) {
                        tracing::error!(%error, rows = batch.len(), "the gateway ends; these rows are lost");
                        self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                        batch.clear();
                        return;
                    }
                    std::thread::sleep(PAUSES[attempts.min(PAUSES.len()) - 1]);
                }
            }
        }
    }

    /// Whether nobody will give orders any more; what comes meanwhile joins the batch.
    fn ended(&self, batch: &mut Vec<Row>) -> bool {
        while batch.len() < BATCH {
            match self.orders.try_recv() {
                Ok(Order::Write(row)) => batch.push(row),
                Ok(Order::Spent { answer, .. }) => {
                    let _ = answer.send(Err(UsageError::Busy));
                }
                Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
        false
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

/// Databases' integers are signed; no count here comes near the limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// And back.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
