//! A request for a model nobody has loaded: it joins the one load there is, and waits.

use std::sync::Arc;
use std::time::Instant;

use prometheus::{Histogram, IntGauge};
use wire_api::{ApiError, ErrorKind};

use super::Gateway;
use super::inference::Job;
use crate::placement::residency::Flight;

/// Counts a request among those that wait for a cold model, until dropped: the client may leave first.
struct Waits {
    waiting: IntGauge,
    took: Histogram,
    since: Instant,
}

impl Waits {
    fn begin(gateway: &Gateway, model: &str) -> Self {
        let waiting = gateway.metrics.waiting.with_label_values(&[model]);
        waiting.inc();
        let took = gateway.metrics.cold_start.with_label_values(&[model]);
        Self { waiting, took, since: Instant::now() }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.waiting.dec();
        self.took.observe(self.since.elapsed().as_secs_f64());
    }
}

/// Waits until somebody has loaded the request's model, as long as its caller is willing to.
///
/// # Errors
/// What the load came to, or 503 with how far it is when patience ends.
pub(super) async fn wait_for_load(gateway: &Arc<Gateway>, job: &Job) -> Result<(), ApiError> {
    let view = gateway.fleet.view();
    let model = view.model(&job.model).ok_or_else(|| ApiError::model_not_found(&job.model))?;
    gateway.metrics.cold_starts.with_label_values(&[&model.id]).inc();
    model.gauge.arrived();
    let mut flight = gateway.placement.make_resident(&model.id);
    let waits = Waits::begin(gateway, &model.id);
    let over = |flight: &Flight| matches!(flight, Flight::Ready | Flight::Failed(_));
    let landed = tokio::time::timeout(job.wait, flight.wait_for(over)).await;
    let landed = landed.map(|flight| flight.map(|state| state.clone()));
    drop(waits);
    let state = match landed {
        Ok(Ok(state)) => state,
        // The task that loads it is gone, or this request's patience is.
        Ok(Err(_)) => Flight::Waiting { reason: "the load was given up".into() },
        Err(_) => flight.borrow().clone(),
    };
    match state {
        Flight::Ready => Ok(()),
        Flight::Failed(error) => Err(*error),
        other => {
            let message = format!("the model '{}' is not ready yet: {}", model.id, other.line());
            let eta = other.loading().eta_s.map_or(5, |eta| eta.ceil() as u32);
            Err(ApiError::new(ErrorKind::Loading, message)
                .with_loading(other.loading())
                .with_retry_after(eta))
        }
    }
}
