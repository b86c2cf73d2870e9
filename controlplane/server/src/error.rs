//! Why a call could not be done, apart from how that is told over HTTP.

use farshore_api::{ErrorCode, ErrorDetail, ErrorKind};

use crate::db::{DatabaseError, MigrationError};

/// Why the control plane did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The named object does not exist.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// Kind of object, for people.
        what: &'static str,
        /// What it was called.
        name: String,
    },
    /// The name, or the disk, is taken.
    #[error("{what} `{name}` exists already; {hint}")]
    AlreadyExists {
        /// Kind of object, for people.
        what: &'static str,
        /// What it is called.
        name: String,
        /// What to do.
        hint: &'static str,
    },
    /// The object's state does not allow this.
    #[error("{what} `{name}` {why}")]
    WrongState {
        /// Kind of object, for people.
        what: &'static str,
        /// What it is called.
        name: String,
        /// Its state, and what to do.
        why: String,
    },
    /// A value in the request is not acceptable.
    #[error("`{field}` {why}")]
    Invalid {
        /// Name of the value in the request.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No credential, or not an accepted one.
    #[error("{why}")]
    Unauthenticated {
        /// What is missing or wrong with it.
        why: &'static str,
    },
    /// A certificate is over, or one of two clocks is wrong.
    #[error("{why}")]
    Ended {
        /// Both times, and what to do.
        why: String,
    },
    /// The credential's role may not do this.
    #[error("{why}")]
    Forbidden {
        /// Who may.
        why: &'static str,
    },
    /// The enrolment token is unknown, used, expired, or of another control plane.
    #[error(
        "the enrolment token is not accepted: it works once and expires; create a new one with \
         `farshore agent token`"
    )]
    TokenRefused,
    /// More calls than this caller has coming.
    #[error("too many calls from here; try again in {retry_after_s} s")]
    TooManyRequests {
        /// When the next one is looked at.
        retry_after_s: u64,
    },
    /// Another call changes the same thing at the same moment.
    #[error("another call is changing {what}; try again")]
    Busy {
        /// What is being changed.
        what: &'static str,
    },
    /// The control plane's disk is full.
    #[error("the disk of the control plane's data directory is full; free some space on it")]
    NoSpace,
    /// The database does not answer in time or refuses.
    #[error("the control plane's database failed")]
    Database {
        /// What SQLite said.
        #[source]
        source: DatabaseError,
    },
    /// The database could not be brought to this version's schema.
    #[error("the control plane's database cannot be brought to this version")]
    Migration {
        /// Which step failed.
        #[source]
        source: MigrationError,
    },
    /// A stored value is not what this version wrote.
    #[error("the control plane's database holds an unreadable `{column}`")]
    Unreadable {
        /// Column of the value.
        column: &'static str,
    },
    /// A certificate could not be made.
    #[error("the certificate request is not acceptable: {source}")]
    Certificate {
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// The control plane stops.
    #[error("the control plane is stopping; try again")]
    Stopping,
}

impl ControlError {
    /// The code that this is told with.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            Self::WrongState { .. } => ErrorCode::WrongState,
            Self::Invalid { .. } | Self::Certificate { .. } => ErrorCode::InvalidRequest,
            Self::Unauthenticated { .. } | Self::Ended { .. } => ErrorCode::Unauthenticated,
            Self::Forbidden { .. } => ErrorCode::Forbidden,
            Self::TokenRefused => ErrorCode::TokenRefused,
            Self::TooManyRequests { .. } => ErrorCode::TooManyRequests,
            Self::NoSpace => ErrorCode::NoSpace,
            Self::Database { .. } | Self::Migration { .. } | Self::Unreadable { .. } => {
                ErrorCode::Internal
            }
            Self::Stopping | Self::Busy { .. } => ErrorCode::Unavailable,
        }
    }

    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.code().kind()
    }

    /// In how many seconds the caller should try again, where that is known.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::TooManyRequests { retry_after_s } => Some(*retry_after_s),
            _ => None,
        }
    }

    /// What is told over HTTP: the sentence, without causes that belong in the log only.
    #[must_use]
    pub fn detail(&self) -> ErrorDetail {
        ErrorDetail::new(self.code(), farshore_api::text::cleaned(&self.to_string()))
    }
}

impl From<rcgen::Error> for ControlError {
    fn from(source: rcgen::Error) -> Self {
        Self::Certificate { source }
    }
}
