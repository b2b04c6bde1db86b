//! A fleet in disorder, on a clock of its own: nodes die and fall silent, loads fail, questions come late and
//! answers get lost, clocks jump, people meddle, clients vanish, and two gateways decide at once. What is
//! promised holds all the same: no model is loaded twice, none is evicted that is pinned, busy or has just
//! come, no reservation is lost, nobody starves.
//!
//! The seed is printed; `SIMULATION_SEED`, `SIMULATION_STEPS` and `SIMULATION_RUNS` repeat, lengthen or
//! multiply a run. Hours pass in seconds.

mod dice;
mod network;
mod node;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cortex::config::{Catalogue, Config};
use cortex::fleet::directory::Directory;
use cortex::fleet::identity::seed_random_bits;
use cortex::fleet::{Fleet, poll};
use cortex::metrics::Metrics;
use cortex::placement::residency::Flight;
use cortex::placement::route::Step;
use cortex::placement::{Placement, Policy, background};
use cortex::strategies::Strategies;
use tokio::task::JoinSet;
use tokio::time::Instant;

use dice::Dice;
use network::{Network, Weather};
use node::{Needs, Node, Rules};

const MODELS: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "pinned"];
const NODES: [&str; 3] = ["a", "b", "c"];
const LOAD_WAIT_S: u64 = 300;

/// Simulations share the process's random bits: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// One gateway: placement with everything that keeps it informed.
struct Gateway {
    placement: Arc<Placement>,
    _tasks: [JoinSet<()>; 2],
}

fn settings(router: &str, evictor: &str) -> Config {
    let mut text = format!(
        "[routing]\nstrategy = {router:?}\n[eviction]\nstrategy = {evictor:?}\nmin_residency_s = 5\n\
         turn_after_s = 10\nidle_timeout_s = 400\ndefrag_after_cycles = 50\n[gateway]\nload_wait_s = {LOAD_WAIT_S}\n"
    );
    for node in NODES {
        text.push_str(&format!("[[neurons]]\nname = {node:?}\nendpoint = \"http://{node}:1\"\n"));
    }
    Config::parse(&text, Path::new("simulation"), []).expect("settings")
}

impl Gateway {
    fn start(network: &Network, router: &str, evictor: &str) -> Self {
        let config = settings(router, evictor);
        let catalogue = "[[models]]\nid = \"pinned\"\npinned_on = [\"a\"]\n";
        let catalogue = Catalogue::parse(catalogue, Path::new("simulation")).expect("a catalogue");
        let fleet = Arc::new(Fleet::new(config.neurons.clone(), catalogue, config.polling.misses));
        let timeout = Duration::from_millis(config.polling.timeout_ms);
        let nodes = Directory::new(Arc::new(network.clone()), timeout, &fleet.nodes());
        let strategies = Strategies::open(&[]).expect("embedded");
        let placement = Arc::new(Placement::new(
            Arc::clone(&fleet),
            nodes.clone(),
            strategies.router(router, &toml::Table::new()).expect("a router"),
            strategies.evictor(evictor, &toml::Table::new()).expect("an evictor"),
            Policy::of(&config),
            Arc::new(Metrics::default()),
        ));
        let polling = poll::start(fleet, nodes, Duration::from_secs(1));
        let keeping = background::start(Arc::clone(&placement), Duration::from_secs(1));
        Self { placement, _tasks: [polling, keeping] }
    }
}

/// How clients fared.
#[derive(Default)]
struct Ends {
    whole: AtomicU64,
    refused: AtomicU64,
    left: AtomicU64,
    longest_wait_ms: AtomicU64,
}

/// A request, as the gateway's front serves one; true when it was answered.
async fn ask(
    network: &Network,
    placement: &Arc<Placement>,
    model: &str,
    work: Duration,
    wait: &AtomicU64,
) -> bool {
    let began = Instant::now();
    let facts = placement.new_facts();
    let mut tried = Vec::new();
    for _ in 0..8 {
        let view = placement.fleet().view();
        match placement.route(&view, model, &facts, "req", &tried) {
            Ok(Step::Load) => {
                let mut flight = placement.make_resident(model);
                let landed =
                    flight.wait_for(|flight| matches!(flight, Flight::Ready | Flight::Failed(_))).await;
                if !matches!(landed.as_deref(), Ok(Flight::Ready)) {
                    return false;
                }
            }
            Ok(Step::Go(mut placed)) => {
                let name = placed.node.name.clone();
                tokio::time::sleep(Duration::from_millis(2)).await;
                let begun = Serving::begin(network, &name, model);
                let Some(serving) = begun else {
                    placed.ticket.failed();
                    tried.push(placed.node.hash);
                    continue;
                };
                wait.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
                tokio::time::sleep(work).await;
                let whole = serving.whole();
                if whole {
                    placed.ticket.succeeded()
                } else {
                    placed.ticket.failed()
                }
                return whole;
            }
            Err(_) => return false,
        }
    }
    false
}

/// A request that a node works on, until it is dropped.
struct Serving {
    network: Network,
    node: String,
    model: String,
    serial: u64,
    boot: u64,
    over: bool,
}

impl Serving {
    fn begin(network: &Network, node: &str, model: &str) -> Option<Self> {
        let mut there = network.node(node);
        if !there.alive {
            return None;
        }
        let (serial, boot) = (there.begin(model)?, there.boot);
        drop(there);
        let (node, model) = (node.to_owned(), model.to_owned());
        Some(Self { network: network.clone(), node, model, serial, boot, over: false })
    }

    fn end(&mut self) -> bool {
        self.over = true;
        let mut node = self.network.node(&self.node);
        if node.boot != self.boot || !node.alive {
            return false;
        }
        let there = node.end(&self.model, self.serial);
        if !there {
            let line = format!("{} went while it was answering", self.model);
            node.violations.push(line);
        }
        there
    }

    fn whole(mut self) -> bool {
        self.end()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.over {
            self.end();
        }
    }
}

fn fleet(rules: Rules) -> Vec<Node> {
    let all: BTreeMap<&'static str, Needs> = MODELS
        .iter()
        .enumerate()
        .map(|(index, model)| {
            (*model, Needs { bytes: 38, load: Duration::from_millis(200 + 900 * index as u64) })
        })
        .collect();
    NODES
        .iter()
        .map(|name| {
            let mut can_load = all.clone();
            if *name != "a" {
                can_load.remove("pinned");
            }
            let mut node = Node::new(name, 100, can_load);
            node.rules = rules;
            // What the gateways promise is a little more than what is checked, for the way there and back.
            node.min_residency = Duration::from_millis(4_000);
            node.pinned = (*name == "a").then_some("pinned");
            node
        })
        .collect()
}

/// One step of disorder.
fn disturb(dice: &mut Dice, network: &Network) {
    let name = *dice.pick(&network.names());
    let mut node = network.node(name);
    match dice.roll(10) {
        0 if dice.once_in(4) => node.die(),
        1..=2 => node.alive = true,
        3 => node.mute = dice.once_in(4),
        4 => node.loads_fail = dice.once_in(3),
        5 => node.meddle(),
        6 => node.clock_offset_ms = dice.roll(2 * 86_400_000) as i64 - 86_400_000,
        _ => node.mute = false,
    }
}

/// What one run came to.
struct Outcome {
    violations: Vec<String>,
    ends: Arc<Ends>,
    loads: u64,
    evictions: u64,
    reloads: u64,
    starved: Vec<String>,
    virtual_s: u64,
}

async fn run(seed: u64, steps: u64, rules: Rules) -> Outcome {
    seed_random_bits(seed);
    let mut dice = Dice::new(seed);
    let strategies = Strategies::open(&[]).expect("embedded");
    let routers: Vec<String> = strategies.routers().iter().map(|info| info.name.clone()).collect();
    let evictors: Vec<String> = strategies.evictors().iter().map(|info| info.name.clone()).collect();
    let (router, evictor) = (dice.pick(&routers).clone(), dice.pick(&evictors).clone());
    let began = Instant::now();
    let network = Network::new(fleet(rules), dice.bits());
    let gateways = [0, 1].map(|_| Gateway::start(&network, &router, &evictor));
    tokio::time::sleep(Duration::from_secs(3)).await;
    network.set_weather(Weather { late_once_in: 150, lost_once_in: 150 });
    let ends: Arc<Ends> = Arc::default();
    let mut clients = JoinSet::new();
    for _ in 0..steps {
        match dice.roll(8) {
            0 => disturb(&mut dice, &network),
            1..=3 => tokio::time::sleep(Duration::from_millis(dice.roll(1500))).await,
            _ => {
                let (network, ends) = (network.clone(), Arc::clone(&ends));
                let placement = Arc::clone(&gateways[dice.roll(2) as usize].placement);
                let model = *dice.pick(&MODELS);
                let work = Duration::from_millis(dice.roll(3000));
                let patience = dice.once_in(5).then(|| Duration::from_millis(dice.roll(5000)));
                clients.spawn(async move {
                    let request = ask(&network, &placement, model, work, &ends.longest_wait_ms);
                    let end = match patience {
                        Some(patience) => tokio::time::timeout(patience, request).await.ok(),
                        None => Some(request.await),
                    };
                    let counter = match end {
                        Some(true) => &ends.whole,
                        Some(false) => &ends.refused,
                        None => &ends.left,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                });
            }
        }
    }
    // The weather clears: whoever waits is served or told, and every model can be had from either gateway.
    network.set_weather(Weather { late_once_in: 0, lost_once_in: 0 });
    for name in network.names() {
        let mut node = network.node(name);
        (node.alive, node.mute, node.loads_fail) = (true, false, false);
    }
    let mut starved = Vec::new();
    if tokio::time::timeout(Duration::from_secs(3 * LOAD_WAIT_S), async {
        while clients.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        starved.push(format!("{} clients wait for ever", clients.len()));
    }
    // Breakers that opened in the storm have closed again by then, and what was late has arrived.
    tokio::time::sleep(Duration::from_secs(250)).await;
    let waits = AtomicU64::new(0);
    for model in MODELS {
        for gateway in &gateways {
            if !ask(&network, &gateway.placement, model, Duration::from_millis(10), &waits).await {
                starved.push(format!("{model} cannot be had in calm weather"));
            }
        }
    }
    let counters: u64 = gateways.iter().map(|g| g.placement.fleet().gauges().inflight()).sum();
    let underway: u32 = network.names().iter().map(|name| network.node(name).inflight()).sum();
    if counters != 0 || underway != 0 {
        starved.push(format!("{counters} requests are still counted, {underway} still worked on"));
    }
    let mut outcome = Outcome {
        violations: Vec::new(),
        ends,
        loads: 0,
        evictions: 0,
        reloads: gateways.iter().map(|g| g.placement.metrics().reloads.get()).sum(),
        starved,
        virtual_s: began.elapsed().as_secs(),
    };
    for name in network.names() {
        let node = network.node(name);
        outcome.violations.extend(node.violations.iter().map(|line| format!("{name}: {line}")));
        outcome.loads += node.loads;
        outcome.evictions += node.evictions;
    }
    println!("seed {seed}: router {router}, evictor {evictor}");
    outcome
}

fn simulate(seed: u64, steps: u64, rules: Rules) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(seed, steps, rules))
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

const KEPT: Rules = Rules { guards: true, idle_check: true };

#[test]
fn promises_hold_in_disorder() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let first = from_environment("SIMULATION_SEED", u64::from(std::process::id()) * 1000);
    let steps = from_environment("SIMULATION_STEPS", 2000);
    for seed in first..first + from_environment("SIMULATION_RUNS", 2) {
        println!("SIMULATION_SEED={seed} SIMULATION_STEPS={steps} SIMULATION_RUNS=1 repeats this:");
        let outcome = simulate(seed, steps, KEPT);
        let [whole, refused, left] = [&outcome.ends.whole, &outcome.ends.refused, &outcome.ends.left]
            .map(|counter| counter.load(Ordering::Relaxed));
        println!(
            "{} s passed; {whole} answered, {refused} refused, {left} left; longest wait {} ms; {} loads, {} \
             unloads, {} reloads",
            outcome.virtual_s,
            outcome.ends.longest_wait_ms.load(Ordering::Relaxed),
            outcome.loads,
            outcome.evictions,
            outcome.reloads
        );
        assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
        assert!(outcome.starved.is_empty(), "{:#?}", outcome.starved);
        assert!(whole > refused, "most requests are answered in spite of it all");
        assert!(outcome.loads > 20 && outcome.evictions > 10, "nothing happened");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let tell = |outcome: &Outcome| {
        let ends = [&outcome.ends.whole, &outcome.ends.refused, &outcome.ends.left];
        (ends.map(|end| end.load(Ordering::Relaxed)), outcome.loads, outcome.evictions)
    };
    let (one, two) = (simulate(7, 400, KEPT), simulate(7, 400, KEPT));
    assert_eq!(tell(&one), tell(&two));
}

/// A simulation that cannot fail proves nothing: without the checks it stands for, it must.
#[test]
fn a_node_that_checks_nothing_is_caught() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (what, rules) in [
        ("fence and revision", Rules { guards: false, ..KEPT }),
        ("work in flight", Rules { idle_check: false, ..KEPT }),
    ] {
        let caught = (0..12).any(|seed| !simulate(seed, 2000, rules).violations.is_empty());
        assert!(caught, "nodes no longer check {what}, and nobody noticed");
    }
}
