//! What is said when a model cannot be made resident: one code per cause, and whether waiting helps.

use std::collections::HashMap;

use wire_api::error::LoadingState;
use wire_api::node::events::LoadPhase;
use wire_api::node::models::ModelStatus;
use wire_api::{ApiError, ErrorKind};

use crate::fleet::node_client::NodeError;
use crate::fleet::view::ModelView;

pub(super) fn loading_state(status: Option<&ModelStatus>) -> LoadingState {
    let progress = status.and_then(|status| status.progress.as_ref());
    LoadingState {
        state: progress.map_or(LoadPhase::Queued, |progress| progress.phase).as_str().to_owned(),
        progress: progress.and_then(|progress| progress.fraction()),
        eta_s: progress.and_then(|progress| progress.eta_ms).map(|ms| ms as f32 / 1000.0),
    }
}

pub(super) fn load_failed(node: &str, status: Option<&ModelStatus>) -> ApiError {
    let failure = status.and_then(|status| status.failure.as_ref());
    let message = failure.map_or("the load ended without a word", |failure| failure.message.as_str());
    let mut error = ApiError::new(ErrorKind::Unavailable, format!("{node} could not load it: {message}"))
        .with_code("load_failed");
    error.retryable = failure.is_none_or(|failure| failure.retryable);
    if error.retryable {
        error = error.with_retry_after(10);
    }
    error
}

pub(super) fn lost(node: &str, when: &str) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, format!("{node} fell silent {when}"))
        .with_code("node_lost")
        .with_retry_after(5)
}

pub(super) fn does_not_fit(model: &ModelView, missing_bytes: u64) -> ApiError {
    let missing = missing_bytes as f64 / (1u64 << 30) as f64;
    let mut error = ApiError::new(
        ErrorKind::OutOfMemory,
        format!(
            "the model '{}' does not fit: {missing:.2} GiB are missing, whatever else is unloaded",
            model.id
        ),
    )
    .with_code("no_capacity");
    error.retryable = false;
    error
}

pub(super) fn no_place(model: &ModelView, failed: &HashMap<u64, ApiError>, missing: Option<u64>) -> ApiError {
    if let Some(error) = failed.values().next() {
        return error.clone();
    }
    if let Some(missing_bytes) = missing {
        return does_not_fit(model, missing_bytes);
    }
    ApiError::new(ErrorKind::Unavailable, format!("no node that may load '{}' answers", model.id))
        .with_code("no_node")
        .with_retry_after(5)
}

/// What a node said, under a code that names the step.
pub(super) fn node_said(error: NodeError, code: &str) -> ApiError {
    let text = error.to_string();
    match error {
        NodeError::Refused { error, .. } => {
            let mut said = *error;
            said.message = text;
            said.code = code.to_owned();
            if said.kind == ErrorKind::Internal || said.kind == ErrorKind::Unsupported {
                said.kind = ErrorKind::Unavailable;
            }
            said
        }
        _ => ApiError::new(ErrorKind::Unavailable, text).with_code(code).with_retry_after(5),
    }
}
