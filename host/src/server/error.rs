//! Refusals on their way out: an [`ApiError`] as an HTTP response.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use wire_api::{ApiError, Dialect, ErrorKind};

/// An error as it leaves the server, in the OpenAI envelope.
#[derive(Debug)]
pub struct Refused(pub ApiError);

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status =
            StatusCode::from_u16(error.status(Dialect::OpenAi)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(
                status = status.as_u16(),
                code = error.code,
                message = error.message,
                "request failed"
            );
        } else {
            tracing::debug!(
                status = status.as_u16(),
                code = error.code,
                message = error.message,
                "request refused"
            );
        }
        let mut response = (status, Json(error.openai_body())).into_response();
        for (name, value) in error.headers() {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

/// No route by this path.
pub async fn no_route(uri: Uri) -> Refused {
    let message = format!("there is nothing at {}; the README lists the routes", uri.path());
    Refused(ApiError::new(ErrorKind::NotFound, message).with_code("unknown_route"))
}

/// The path exists, but not for this method.
pub async fn wrong_method(method: Method, uri: Uri) -> Refused {
    let message = format!("{} does not take {method}", uri.path());
    Refused(ApiError::new(ErrorKind::MethodNotAllowed, message))
}
