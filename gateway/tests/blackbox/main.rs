//! The gateway as its clients see it, in front of scripted nodes. Every test has its own nodes, gateway and
//! ports; nothing is timed but by what happens.

mod access;
mod carriage;
mod client;
mod cold;
mod continuation;
mod dialects;
mod fake_etcd;
mod gateway;
mod health;
mod node;
mod operations;
mod routing;
mod streams;
mod survival;
mod together;
