//! How agents and nodes talk to the control plane: their identity and an HTTPS client.
//!
//! The private key is made where it is used and never leaves its directory. The first certificate
//! comes for an enrolment token that pins the CA; later ones over mutual TLS, at half of the life
//! of the one before.

#![forbid(unsafe_code)]

mod http;
mod identity;
mod trust;

pub use http::{ClientError, ControlClient};
pub use identity::{Identity, IdentityError, enrol};
pub use trust::{client_config, install_crypto, peer_of, server_config};
