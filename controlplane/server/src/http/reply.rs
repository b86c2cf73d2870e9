//! Answers: values and errors into replies.

use std::convert::Infallible;
use std::future::Future;

use farshore_api::{ErrorBody, ErrorCode, ErrorDetail};
use serde::Serialize;
use tracing::{error, warn};
use warp::Reply;
use warp::http::header::RETRY_AFTER;
use warp::http::{HeaderValue, StatusCode};
use warp::reject::{self, Rejection};

use crate::error::ControlError;

/// A reply of ours.
pub(super) type Response = warp::reply::Response;

/// An error found by a filter, before a handler ran.
#[derive(Debug)]
struct Refused {
    detail: ErrorDetail,
    retry_after_s: Option<u64>,
}

impl reject::Reject for Refused {}

/// Rejects with one of our errors.
pub(super) fn refuse(code: ErrorCode, message: impl Into<String>) -> Rejection {
    reject::custom(Refused { detail: ErrorDetail::new(code, message), retry_after_s: None })
}

/// Rejects with what a handler would have answered.
pub(super) fn refuse_with(failure: &ControlError) -> Rejection {
    log(failure);
    let retry_after_s = failure.retry_after_s();
    reject::custom(Refused { detail: failure.detail(), retry_after_s })
}

/// Turns a handler's result into a reply.
pub(super) async fn answer<T: Serialize>(
    handler: impl Future<Output = Result<T, ControlError>>,
) -> Response {
    match handler.await {
        Ok(value) => warp::reply::json(&value).into_response(),
        Err(failure) => {
            log(&failure);
            refusal(failure.detail(), failure.retry_after_s())
        }
    }
}

/// Logs what a person must look at; what a caller did wrong is the caller's to read.
fn log(failure: &ControlError) {
    let cause = std::error::Error::source(failure).map(ToString::to_string);
    match failure.code() {
        ErrorCode::Internal => error!(error = %failure, cause, "request failed"),
        ErrorCode::NoSpace => warn!(error = %failure, "request failed"),
        _ => {}
    }
}

fn refusal(detail: ErrorDetail, retry_after_s: Option<u64>) -> Response {
    let status = StatusCode::from_u16(detail.code.status());
    let body = warp::reply::json(&ErrorBody::from(detail));
    let mut response =
        warp::reply::with_status(body, status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
            .into_response();
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Tells why no handler took a request.
pub(super) async fn recover(rejection: Rejection) -> Result<Response, Infallible> {
    if let Some(Refused { detail, retry_after_s }) = rejection.find() {
        return Ok(refusal(detail.clone(), *retry_after_s));
    }
    let detail = if rejection.find::<reject::InvalidQuery>().is_some() {
        let message = "the query is not acceptable: a parameter is unknown, or its value malformed";
        ErrorDetail::new(ErrorCode::InvalidRequest, message)
    } else if rejection.is_not_found() {
        ErrorDetail::new(ErrorCode::NotFound, "there is no such route; see docs/control-api.md")
    } else if rejection.find::<reject::MethodNotAllowed>().is_some() {
        let message = "this route exists, but not with this method; see docs/control-api.md";
        ErrorDetail::new(ErrorCode::MethodNotAllowed, message)
    } else if rejection.find::<warp::body::BodyDeserializeError>().is_some()
        || rejection.find::<reject::InvalidHeader>().is_some()
    {
        ErrorDetail::new(ErrorCode::InvalidRequest, "the request is malformed")
    } else {
        warn!(?rejection, "request rejected for an unforeseen reason");
        ErrorDetail::new(ErrorCode::InvalidRequest, "the request could not be read")
    };
    Ok(refusal(detail, None))
}

/// The reply to a request that took longer than anything may take.
pub(super) fn timed_out() -> Response {
    let message = "the request took too long; try again";
    refusal(ErrorDetail::new(ErrorCode::Unavailable, message), None)
}
