//! cortex: one address in front of many neurons.
//!
//! A request is peeked at, given a place by a router strategy, and passed through byte for byte; a
//! model that nobody has loaded is made resident first, where an evictor strategy finds the room.
//! Policy is a pure function behind the plugin interface; mechanism is here.
//!
//! * [`config`] – `cortex.toml` and `models.toml`, refused by name where they are wrong.
//! * [`fleet`] – one immutable [`FleetView`](fleet::view::FleetView), replaced whole by the poller.
//! * [`strategies`] – routers and evictors through the plugin interface, linked in or from files.
//! * [`coordinator`] – what several gateways agree on.
//! * [`placement`] – where a request goes, and what must happen on a node before it can.
//! * [`proxy`] – bytes to a node and back, unbuffered.
//! * [`server`] – the gateway's own doors: dialects, catalogue, administration, metrics.
//! * [`keys`] – who may ask for what, and how much.
//! * [`usage`] – what was used, one row per request.
//! * [`metrics`] – what is counted.
//! * [`telemetry`] – traces, for who collects them.
//! * [`cli`] – the command line.
//!
//! It never touches a tensor and never depends on the host: what it knows of a node, the node said.

pub mod cli;
pub mod config;
pub mod coordinator;
pub mod fleet;
pub mod keys;
pub mod metrics;
pub mod placement;
pub mod proxy;
pub mod server;
pub mod strategies;
pub mod telemetry;
pub mod usage;
