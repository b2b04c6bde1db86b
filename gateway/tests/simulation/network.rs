//! The way between gateways and nodes: questions are late, answers get lost, nodes do not answer at all.
//!
//! A question that is on its way arrives, even when whoever asked has given up meanwhile. That is what
//! fences are for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use cortex::fleet::transport::{Question, Transport};
use futures_util::future::BoxFuture;
use http::Method;
use serde::Serialize;
use wire_api::node::discovery::Discovery;
use wire_api::{ApiError, Dialect, ErrorKind};

use crate::dice::Dice;
use crate::node::Node;

/// How bad the weather is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// One question in so many is very late; 0 is never.
    pub late_once_in: u64,
    /// One answer in so many is lost; 0 is never.
    pub lost_once_in: u64,
}

/// All nodes, and the way to them.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    nodes: BTreeMap<&'static str, Mutex<Node>>,
    dice: Mutex<Dice>,
    weather: Mutex<Weather>,
}

impl Network {
    pub fn new(nodes: Vec<Node>, seed: u64) -> Self {
        Self(Arc::new(Inner {
            nodes: nodes.into_iter().map(|node| (node.name, Mutex::new(node))).collect(),
            dice: Mutex::new(Dice::new(seed)),
            weather: Mutex::new(Weather { late_once_in: 0, lost_once_in: 0 }),
        }))
    }

    pub fn node(&self, name: &str) -> MutexGuard<'_, Node> {
        self.0.nodes[name].lock().expect("unpoisoned")
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.0.nodes.keys().copied().collect()
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.0.weather.lock().expect("unpoisoned") = weather;
    }

    /// How long the next question travels, and whether its answer comes back.
    fn fate(&self) -> (Duration, bool) {
        let weather = *self.0.weather.lock().expect("unpoisoned");
        let mut dice = self.0.dice.lock().expect("unpoisoned");
        let late = weather.late_once_in > 0 && dice.once_in(weather.late_once_in);
        let travel = if late { 500 + dice.roll(200_000) } else { 1 + dice.roll(20) };
        let lost = weather.lost_once_in > 0 && dice.once_in(weather.lost_once_in);
        (Duration::from_millis(travel), lost)
    }

    /// What the node does with a question, now that it is there.
    async fn arrive(&self, name: &str, question: &Question) -> Option<(u16, Bytes)> {
        {
            let node = self.node(name);
            if !node.alive || node.mute {
                return None;
            }
        }
        let path = question.uri.path();
        Some(match (&question.method, path) {
            (&Method::GET, "/models") => ok(&self.node(name).models()),
            (&Method::GET, "/discovery") => ok(&Discovery { name: name.to_owned(), ..Discovery::default() }),
            (&Method::POST, "/leases") => answer(self.node(name).grant(&read(&question.body))),
            (&Method::DELETE, path) => {
                self.node(name).release(path.trim_start_matches("/leases/"));
                ok(&())
            }
            (&Method::POST, "/models/load") => {
                let taken = self.node(name).load(&read(&question.body));
                answer(taken.map(|(answer, work)| {
                    if let Some((model, needs, serial)) = work {
                        let (network, name) = (self.clone(), name.to_owned());
                        tokio::spawn(async move {
                            tokio::time::sleep(needs.load).await;
                            network.node(&name).loaded(&model, serial);
                        });
                    }
                    answer
                }))
            }
            (&Method::POST, "/models/unload") => {
                let request = read(&question.body);
                let begun = self.node(name).begin_unload(&request);
                match begun {
                    Err(error) => refusal(&error),
                    Ok(serial) => {
                        while !self.node(name).drained(request.model.as_str(), serial) {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        ok(&self.node(name).end_unload(&request, serial))
                    }
                }
            }
            _ => refusal(&ApiError::new(ErrorKind::NotFound, path)),
        })
    }
}

impl Transport for Network {
    fn ask(&self, question: Question) -> BoxFuture<'static, Result<(u16, Bytes), String>> {
        let network = self.clone();
        let name = question.uri.host().unwrap_or_default().to_owned();
        let (travel, lost) = network.fate();
        let on_its_way = tokio::spawn(async move {
            tokio::time::sleep(travel).await;
            let answer = network.arrive(&name, &question).await;
            (answer, network.node(&name).alive)
        });
        Box::pin(async move {
            let (answer, alive) = on_its_way.await.map_err(|error| error.to_string())?;
            match answer {
                Some(answer) if !lost => Ok(answer),
                None if !alive => Err("connection refused".into()),
                _ => {
                    // Nothing ever comes; the asker's patience ends it.
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    Err("timed out".into())
                }
            }
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> T {
    serde_json::from_slice(body).expect("the gateway writes JSON")
}

fn ok<T: Serialize>(answer: &T) -> (u16, Bytes) {
    (200, serde_json::to_vec(answer).expect("JSON").into())
}

fn answer<T: Serialize>(outcome: Result<T, ApiError>) -> (u16, Bytes) {
    match outcome {
        Ok(answer) => ok(&answer),
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &ApiError) -> (u16, Bytes) {
    (error.status(Dialect::OpenAi), serde_json::to_vec(&error.openai_body()).expect("JSON").into())
}
