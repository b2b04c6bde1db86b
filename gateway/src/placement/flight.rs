//! How a load stands, for everybody who waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use wire_api::ApiError;
use wire_api::error::LoadingState;

use super::Placement;

/// How a load stands.
#[derive(Debug, Clone)]
pub enum Flight {
    /// Waiting for a place.
    Waiting {
        /// What for.
        reason: String,
    },
    /// Making room.
    Evicting {
        /// Where.
        node: String,
        /// Who goes.
        victims: Vec<String>,
    },
    /// Under way.
    Loading {
        /// Where.
        node: String,
        /// How far.
        state: LoadingState,
    },
    /// It serves.
    Ready,
    /// It does not.
    Failed(Box<ApiError>),
}

impl Flight {
    /// One line for a waiting client.
    pub fn line(&self) -> String {
        match self {
            Self::Waiting { reason } => format!("waiting: {reason}"),
            Self::Evicting { node, victims } => {
                format!("making room on {node}: unloading {}", victims.join(", "))
            }
            Self::Loading { node, state } => {
                let percent = state.progress.map_or_else(String::new, |p| format!(" {:.0}%", p * 100.0));
                let eta = state.eta_s.map_or_else(String::new, |eta| format!(" eta {eta:.0}s"));
                format!("loading on {node}: {}{percent}{eta}", state.state)
            }
            Self::Ready => "ready".into(),
            Self::Failed(error) => format!("failed: {error}"),
        }
    }

    /// The same for a client that is turned away meanwhile.
    pub fn loading(&self) -> LoadingState {
        match self {
            Self::Loading { state, .. } => state.clone(),
            Self::Evicting { .. } => LoadingState { state: "evicting".into(), progress: None, eta_s: None },
            _ => LoadingState { state: "queued".into(), progress: None, eta_s: None },
        }
    }
}

/// The loads under way, one per model.
#[derive(Default)]
pub struct Flights(pub(super) Mutex<HashMap<String, watch::Receiver<Flight>>>);

impl Flights {
    /// The loads under way, by model.
    pub fn list(&self) -> Vec<(String, Flight)> {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> =
            flights.iter().map(|(model, flight)| (model.clone(), flight.borrow().clone())).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }
}

/// Takes a model off the list of loads under way, however its task ends.
pub(super) struct Landed<'a> {
    pub placement: &'a Placement,
    pub model: &'a str,
}

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        self.placement.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.model);
    }
}
