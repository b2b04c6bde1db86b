//! A gateway's presence in etcd: a lease kept alive, what is written under it, and what others write, watched.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use wire_api::node::routes::encode_segment;

use super::{FLEET, GATEWAYS, Lost, SPENT, Shared};

/// How long a gateway's turns and claims outlive it, in seconds.
const TTL_S: u64 = 10;
/// How often the lease is kept alive.
const BEAT: Duration = Duration::from_secs(2);
/// How long nothing is tried after a failure.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the gateway present until dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let ended = match shared.api.grant(TTL_S).await {
            Ok(lease) => {
                let ended = live(&shared, &lease).await;
                // If it still lives, what is under it should not outlive this session.
                let _ = shared.api.revoke(&lease).await;
                ended
            }
            Err(lost) => lost,
        };
        shared.lost(ended);
        tokio::time::sleep(PAUSE).await;
    }
}

/// One lease's life. Ends with why it did.
async fn live(shared: &Shared, lease: &str) -> Lost {
    let name = &shared.name;
    let key = format!("{GATEWAYS}{}", encode_segment(name));
    if let Err(lost) = shared.api.put(&key, name, lease).await {
        return lost;
    }
    // The first look comes before anybody is told that etcd is there: who asks then sees the others.
    match shared.api.list(FLEET).await {
        Ok((entries, _)) => shared.saw(&entries),
        Err(lost) => return lost,
    }
    shared.present(lease);
    tokio::select! {
        lost = beat(shared, lease) => lost,
        lost = repeated(shared, || look(shared)) => lost,
        lost = tell(shared, lease) => lost,
    }
}

/// Keeps the lease alive. A missed beat is said at once and forgiven while the lease may still live.
async fn beat(shared: &Shared, lease: &str) -> Lost {
    let mut missed = Duration::ZERO;
    loop {
        tokio::time::sleep(BEAT).await;
        match shared.api.keep_alive(lease).await {
            Ok(true) => {
                missed = Duration::ZERO;
                shared.present(lease);
            }
            Ok(false) => return Lost("the lease of this gateway lapsed".into()),
            Err(lost) => {
                missed += BEAT;
                if missed.as_secs() >= TTL_S {
                    return lost;
                }
                shared.lost(lost);
            }
        }
    }
}

/// Does something again whenever it has failed; the beat decides whether etcd is lost.
async fn repeated<F: Future<Output = Result<(), Lost>>>(shared: &Shared, what: impl Fn() -> F) -> Lost {
    loop {
        if let Err(lost) = what().await {
            tracing::debug!(gateway = shared.name, reason = lost.0, "a watch begins anew");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks at everything, then again whenever something changes.
async fn look(shared: &Shared) -> Result<(), Lost> {
    loop {
        let (entries, revision) = shared.api.list(FLEET).await?;
        shared.saw(&entries);
        shared.api.watch(FLEET, revision).await?.changed().await?;
    }
}

/// Tells what keys have spent, at most once a second and only when it is news.
async fn tell(shared: &Shared, lease: &str) -> Lost {
    let key = format!("{SPENT}{}", encode_segment(&shared.name));
    let mut news = shared.spent.subscribe();
    news.mark_changed();
    loop {
        if news.changed().await.is_err() {
            // Whoever tells is gone; so will this be.
            std::future::pending::<()>().await;
        }
        let told = serde_json::to_string(&*news.borrow_and_update()).unwrap_or_default();
        if shared.api.put(&key, &told, lease).await.is_err() {
            news.mark_changed();
        }
        tokio::time::sleep(PAUSE).await;
    }
}
