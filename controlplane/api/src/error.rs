//! The body of every failed reply, and what its code means.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Body of every reply that is not 2xx: `{"error": {"code", "message", "kind"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The one error of the request.
    pub error: ErrorDetail,
}

/// What went wrong, with which object, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorDetail {
    /// Stable name of the error, for programs.
    pub code: ErrorCode,
    /// One sentence for people. It may change; do not match on it.
    pub message: String,
    /// What the caller does about it.
    pub kind: ErrorKind,
}

impl ErrorDetail {
    /// An error with the kind that belongs to `code`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), kind: code.kind() }
    }
}

impl From<ErrorDetail> for ErrorBody {
    fn from(error: ErrorDetail) -> Self {
        Self { error }
    }
}

/// What the caller of a failed operation does. The same words as in the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Retry with backoff.
    Unavailable,
    /// Slow down, then retry.
    Throttled,
    /// Stop writing for good: a newer epoch owns this.
    Fenced,
    /// Read again and decide again.
    Conflict,
    /// Fix the request or the settings; never retry as is.
    Invalid,
    /// The named object does not exist.
    NotFound,
    /// Stored data is damaged: a person must look.
    Corrupt,
    /// Too large or too many: send less.
    Limit,
    /// A fault in Farshore: report it.
    Internal,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $kind:ident;)+) => {
        /// Stable name of an error. Each has one HTTP status and one [`ErrorKind`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)+
            /// A code that this version does not know.
            #[serde(other)]
            Unknown,
        }

        impl ErrorCode {
            /// Every code that the server can answer with.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The code as it stands in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ Self::Unknown => "unknown" }
            }

            /// HTTP status of a reply with this code.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ Self::Unknown => 500 }
            }

            /// What the caller does about it.
            #[must_use]
            pub const fn kind(self) -> ErrorKind {
                match self { $(Self::$name => ErrorKind::$kind,)+ Self::Unknown => ErrorKind::Unknown }
            }
        }
    };
}

error_codes! {
    /// The request's body, query or a value in it is not acceptable.
    InvalidRequest = "invalid_request", 400, Invalid;
    /// No credential, or one that is not accepted.
    Unauthenticated = "unauthenticated", 401, Invalid;
    /// The enrolment token is unknown, used, expired or for another control plane.
    TokenRefused = "token_refused", 401, Invalid;
    /// The credential is good, but its role may not do this.
    Forbidden = "forbidden", 403, Invalid;
    /// The named object or route does not exist.
    NotFound = "not_found", 404, NotFound;
    /// The route exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", 405, Invalid;
    /// An object of that name, or with that disk, exists already.
    AlreadyExists = "already_exists", 409, Conflict;
    /// The object is not in a state that allows this.
    WrongState = "wrong_state", 409, Conflict;
    /// A newer epoch owns the volume.
    Fenced = "fenced", 409, Fenced;
    /// A request with a body must state its length.
    LengthRequired = "length_required", 411, Invalid;
    /// The body is larger than the limit.
    BodyTooLarge = "body_too_large", 413, Limit;
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", 415, Invalid;
    /// Too many attempts; wait a second.
    TooManyRequests = "too_many_requests", 429, Throttled;
    /// A fault of the control plane; its log has the details.
    Internal = "internal", 500, Internal;
    /// The control plane stops, is overloaded or misses something that it needs.
    Unavailable = "unavailable", 503, Unavailable;
    /// The control plane's disk is full.
    NoSpace = "no_space", 507, Limit;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_and_write_as_their_names() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).unwrap(), *code);
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn unknown_codes_are_read_as_unknown() {
        let body: ErrorBody = serde_json::from_str(
            r#"{"error":{"code":"from_the_future","message":"m","kind":"novel"}}"#,
        )
        .unwrap();
        assert_eq!(body.error.code, ErrorCode::Unknown);
        assert_eq!(body.error.kind, ErrorKind::Unknown);
    }
}
