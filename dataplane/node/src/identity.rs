//! Who this node's peers are.

use farshore_api::identity::Role;
use farshore_client::peer_of;
use uuid::Uuid;

/// The agent that a peer's certificate names.
pub(crate) fn agent_of(certificate_der: &[u8]) -> Option<Uuid> {
    peer_of(certificate_der).filter(|(role, _)| *role == Role::Agent).map(|(_, id)| id)
}
