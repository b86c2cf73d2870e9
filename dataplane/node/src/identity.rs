//! Who this node's peers are.

use farshore_api::identity::Role;
use farshore_client::{Shown, shown_by};

/// The agent that a peer's certificate names, and which certificate it is.
pub(crate) fn agent_of(certificate_der: &[u8]) -> Option<Shown> {
    shown_by(certificate_der).filter(|shown| shown.role == Role::Agent)
}
