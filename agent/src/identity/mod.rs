//! Who this agent is: a key that never leaves its directory, a certificate that the control plane
//! renews, and the CA that both trust.

mod enrol;
mod files;
mod tls;

pub use enrol::{EnrolError, enrol, renew_until_dropped};
pub use files::{Identity, IdentityError};
pub use tls::{Peer, client_config};
