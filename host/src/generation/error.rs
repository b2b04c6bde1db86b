//! Errors of the inside, as clients see them. The only place of this daemon where one becomes the other.

use wire_api::node::{CODE_STALE_FENCE, CODE_STALE_REVISION};
use wire_api::{ApiError, ErrorKind};

use crate::lifecycle::{LifecycleError, code};
use crate::prompt::PromptError;
use crate::worker::message::FailureCode;

/// A prompt that could not be made.
pub fn of_prompt(error: &PromptError) -> ApiError {
    let kind = match error {
        PromptError::InvalidInput(_) => ErrorKind::InvalidRequest,
        PromptError::Unsupported(_) => ErrorKind::Unsupported,
        PromptError::BadFile { .. } => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// A model that cannot be had, or a command that was refused.
pub fn of_lifecycle(error: &LifecycleError) -> ApiError {
    match error {
        LifecycleError::NotFound(name) => ApiError::model_not_found(name),
        LifecycleError::Conflict { .. } => ApiError::new(ErrorKind::Conflict, error.to_string()),
        LifecycleError::StaleRevision { .. } => {
            ApiError::new(ErrorKind::Conflict, error.to_string()).with_code(CODE_STALE_REVISION)
        }
        LifecycleError::StaleFence { .. } => {
            ApiError::new(ErrorKind::Conflict, error.to_string()).with_code(CODE_STALE_FENCE)
        }
        LifecycleError::Leased { .. } => {
            ApiError::new(ErrorKind::Conflict, error.to_string()).with_code("leased").with_retry_after(1)
        }
        LifecycleError::Busy { .. } => {
            ApiError::new(ErrorKind::Conflict, error.to_string()).with_code("model_busy").with_retry_after(1)
        }
        LifecycleError::Invalid(message) => ApiError::new(ErrorKind::InvalidRequest, message.clone()),
        LifecycleError::Unavailable { failure, .. } => {
            let kind = match failure.code.as_str() {
                code::NOT_RESOLVED => ErrorKind::NotFound,
                code::OUT_OF_MEMORY => ErrorKind::OutOfMemory,
                code::NO_PLUGIN | code::NO_DEVICE | code::UNSUPPORTED | code::INVALID => {
                    ErrorKind::Unsupported
                }
                _ => ErrorKind::Unavailable,
            };
            let mut api = ApiError::new(kind, error.to_string()).with_code(failure.code.clone());
            api.retryable = failure.retryable;
            match failure.next_attempt_in_ms {
                Some(ms) => api.with_retry_after(u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX)),
                None if failure.retryable => api.with_retry_after(5),
                None => api,
            }
        }
    }
}

/// A sequence that failed.
pub(super) fn of_sequence(
    code: FailureCode,
    message: &str,
    retryable: bool,
    retry_after_ms: Option<u32>,
) -> ApiError {
    let kind = match code {
        FailureCode::InvalidInput => ErrorKind::InvalidRequest,
        FailureCode::Unsupported => ErrorKind::Unsupported,
        FailureCode::OutOfMemory => ErrorKind::OutOfMemory,
        FailureCode::DeviceLost => ErrorKind::Unavailable,
        FailureCode::Internal => ErrorKind::Internal,
    };
    let mut error = ApiError::new(kind, message);
    error.retryable = retryable;
    match retry_after_ms {
        Some(ms) if retryable => error.with_retry_after(ms.div_ceil(1000)),
        None if retryable => error.with_retry_after(1),
        _ => error,
    }
}
