//! The usage ledger in a real PostgreSQL, started for the test on a socket of its own.
//!
//! Where none is installed the test says so and passes; `PG_BIN` names the folder of another one's programs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cortex::usage::export::{Format, export};
use cortex::usage::{Filter, Ledger, Row, Source};

struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Interrupted, it ends at once and in order; killed, it would leave its children.
        let _ = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
    }
}

fn programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("PG_BIN") {
        return Some(folder.into());
    }
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().collect();
    versions.sort_by_key(std::fs::DirEntry::file_name);
    versions.pop().map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists())
}

/// A command as a user who is not root: PostgreSQL refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
    command
}

impl Server {
    fn start(bin: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("ours");
        let data = folder.path().join("data");
        let made = unprivileged(&bin.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--username=cortex", "--pgdata"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { process: Self::run(bin, folder.path()), folder }
    }

    fn run(bin: &Path, folder: &Path) -> Child {
        let mut process = unprivileged(&bin.join("postgres"))
            .arg("-D")
            .arg(folder.join("data"))
            .arg("-k")
            .arg(folder)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "logging_collector=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres runs");
        let socket = folder.join(".s.PGSQL.5432");
        for _ in 0..600 {
            let answers = Command::new(bin.join("pg_isready")).arg("-h").arg(folder).output();
            if socket.exists() && answers.is_ok_and(|output| output.status.success()) {
                return process;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        process.kill().and_then(|()| process.wait()).expect("it can be ended");
        panic!("PostgreSQL did not come up");
    }

    fn address(&self) -> String {
        format!("host={} user=cortex dbname=postgres", self.folder.path().display())
    }
}

#[test]
fn the_books_are_kept_survive_the_server_and_can_be_exported() {
    let Some(bin) = programs() else {
        println!("SKIPPED: no PostgreSQL is installed; set PG_BIN to the folder with initdb and postgres");
        return;
    };
    let mut server = Server::start(&bin);
    let row = |key: &str, unix_ms, cost, first_token_ms| Row {
        request_id: format!("req_{unix_ms}"),
        key: key.into(),
        unix_ms,
        cost,
        first_token_ms,
        route: "chat".into(),
        ..Row::default()
    };
    let ledger = Ledger::of(Source::Postgres(server.address())).expect("a ledger");
    for unix_ms in 0..1500 {
        ledger.record(row("alice", unix_ms, 0.5, None));
    }
    ledger.record(row("bob", 7, 9.0, Some(1.5)));
    assert_eq!(ledger.spent("alice", 0).expect("it answers"), 750.0);

    // A server that goes away and comes back: what came meanwhile waits for it.
    let folder = server.folder.path().to_owned();
    let _ = Command::new("kill").args(["-INT", &server.process.id().to_string()]).status();
    server.process.wait().expect("it ended");
    ledger.record(row("alice", 2000, 0.5, None));
    server.process = Server::run(&bin, &folder);
    assert_eq!(ledger.spent("alice", 2000).expect("it answers again"), 0.5);
    assert_eq!(ledger.lost(), 0);
    drop(ledger);

    let mut text = Vec::new();
    let filter = Filter { key: Some("bob".into()), since_unix_ms: 0 };
    let source = Source::Postgres(server.address());
    export(&source, &filter, Format::Json, &mut text).expect("readable");
    let rows: Vec<serde_json::Value> = String::from_utf8(text)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0]["request_id"].as_str(), rows[0]["first_token_ms"].as_f64()),
        (Some("req_7"), Some(1.5))
    );
    let mut text = Vec::new();
    export(&source, &Filter::default(), Format::Csv, &mut text).expect("readable");
    assert_eq!(String::from_utf8(text).expect("text").lines().count(), 1503);
}

#[test]
fn a_server_that_is_not_there_is_named_without_its_password() {
    let address = "postgresql://cortex:secret@127.0.0.1:1/books";
    let error = Ledger::of(Source::Postgres(address.into())).err().expect("nothing listens").to_string();
    assert!(error.contains("books on 127.0.0.1") && !error.contains("secret"), "{error}");
}
