//! Where models come from, and where they are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Finding;
use crate::config::Hub;

/// A hub that has not answered by then is no use for downloads.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn check(hub: &Hub) -> Vec<Finding> {
    let offline = hub.offline.unwrap_or_else(|| is_set("HF_HUB_OFFLINE"));
    let endpoint = hub.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok());
    let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into());
    let reach = if offline {
        Finding::good("hub", "not asked: only the cache is used")
    } else {
        reachable(&endpoint).await
    };
    vec![reach, cache(hub)]
}

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

async fn reachable(endpoint: &str) -> Finding {
    let client = reqwest::Client::builder().timeout(PATIENCE).build();
    let asked = match client {
        Ok(client) => client.head(endpoint).send().await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(_) => Finding::good("hub", format!("{endpoint} answers")),
        Err(_) => Finding::notice(
            "hub",
            format!("{endpoint} does not answer"),
            "only local models and those in the cache can be loaded; see to the network, or set HF_ENDPOINT to a mirror or HF_HUB_OFFLINE=1",
        ),
    }
}

/// The folder downloads go to.
fn folder(hub: &Hub) -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    hub.cache
        .clone()
        .or_else(|| named("HF_HUB_CACHE"))
        .or_else(|| Some(named("HF_HOME")?.join("hub")))
        .or_else(|| Some(home()?.join("huggingface/hub")))
}

fn cache(hub: &Hub) -> Finding {
    let remedy = "set HF_HOME, or hub.cache in the configuration, to a folder this user may write to";
    let Some(folder) = folder(hub) else {
        return Finding::broken(
            "cache",
            "there is no folder for downloads: neither HF_HOME nor HOME is set",
            remedy,
        );
    };
    match writable(&folder) {
        Ok(()) => Finding::good("cache", format!("{} can be written", folder.display())),
        Err(error) => {
            Finding::broken("cache", format!("{} cannot be written: {error}", folder.display()), remedy)
        }
    }
}

/// Whether a file can be made in `folder`, or in the part of it that is there.
fn writable(folder: &Path) -> std::io::Result<()> {
    let there = folder.ancestors().find(|part| part.is_dir()).unwrap_or(Path::new("/"));
    let probe = there.join(format!(".neuron-doctor-{}", std::process::id()));
    std::fs::OpenOptions::new().write(true).create_new(true).open(&probe)?;
    std::fs::remove_file(probe)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_cache_that_cannot_be_written_is_broken() {
        let kept = tempfile::tempdir().unwrap();
        let hub = |cache: PathBuf| Hub { cache: Some(cache), ..Hub::default() };
        assert_eq!(cache(&hub(kept.path().join("to/be/made"))).verdict, Verdict::Good);
        assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), 0, "nothing stays behind");
        assert_eq!(cache(&hub("/proc/nothing".into())).verdict, Verdict::Broken);
    }

    #[tokio::test]
    async fn a_hub_that_is_not_there_is_noticed() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(reachable(&format!("http://{free}")).await.verdict, Verdict::Notice);
    }
}
