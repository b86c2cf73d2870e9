//! What agents and nodes share: their identity, and how they talk to the control plane.
//!
//! The private key is made where it is used and never leaves its directory. The first certificate
//! comes for an enrolment token that pins the CA; later ones over mutual TLS, at half of the life
//! of the one before, and are shown by every connection made from then on.

#![forbid(unsafe_code)]

mod backoff;
mod enrol;
mod files;
mod heard;
mod http;
mod identity;
mod renewal;
mod trust;

pub use backoff::Backoff;
pub use enrol::{Tokens, establish, go_on, renew_until_dropped};
pub use farshore_trust::{Shown, clock_trouble, peer_of, shown_by};
pub use http::{ClientError, ControlClient};
pub use identity::{Identity, IdentityError};
pub use trust::{Peer, client_config, server_config};
