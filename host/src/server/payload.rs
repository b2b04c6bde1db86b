//! Request bodies: whole, bounded, and refused in our own words.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::de::DeserializeOwned;
use wire_api::{ApiError, ErrorKind};

use super::error::Refused;

/// A body as it came.
pub struct Payload(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(rejection) => {
                let text = rejection.body_text();
                let too_large = rejection.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE;
                let kind = if too_large { ErrorKind::TooLarge } else { ErrorKind::InvalidRequest };
                Err(Refused(ApiError::new(kind, format!("the request body cannot be read: {text}"))))
            }
        }
    }
}

/// Reads a JSON body of the node API.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(bytes).map_err(|error| {
        Refused(ApiError::new(ErrorKind::InvalidRequest, format!("the request body: {error}")))
    })
}
