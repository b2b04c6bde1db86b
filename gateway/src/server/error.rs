//! Errors as answers, in the caller's dialect.

use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use wire_api::rate_limits::RateLimits;
use wire_api::{ApiError, Dialect};

use crate::fleet::identity::unix_ms;

/// The header a request's id is told in.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The answer an error becomes.
pub fn response(error: &ApiError, dialect: Dialect, request_id: &str) -> Response {
    let body = error.body(dialect, Some(request_id).filter(|id| !id.is_empty())).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        StatusCode::from_u16(error.status(dialect)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in error.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    identify(&mut response, dialect, request_id);
    response
}

/// Tells the caller what is left of its limits. What a node behind this gateway says of its own is replaced.
pub fn tell_limits(response: &mut Response, limits: &RateLimits, dialect: Dialect) {
    for (name, value) in limits.headers(dialect, unix_ms() / 1000) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
}

/// Names the request in the answer's headers.
pub fn identify(response: &mut Response, dialect: Dialect, request_id: &str) {
    let Ok(value) = HeaderValue::from_str(request_id) else { return };
    if request_id.is_empty() {
        return;
    }
    if dialect == Dialect::Anthropic {
        response.headers_mut().insert(HeaderName::from_static("request-id"), value.clone());
    }
    response.headers_mut().insert(REQUEST_ID, value);
}
