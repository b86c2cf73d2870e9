//! Who this node is, and who its peers are.

use crate::failure::Failure;
use farshore_api::exit::Exit;
use farshore_api::identity::Role;
use farshore_client::{Identity, enrol, peer_of};
use std::path::Path;
use uuid::Uuid;

/// The agent that a peer's certificate names.
pub(crate) fn agent_of(certificate_der: &[u8]) -> Option<Uuid> {
    peer_of(certificate_der).filter(|(role, _)| *role == Role::Agent).map(|(_, id)| id)
}

/// The node's identity: the one it has, or a new one for the token.
///
/// # Errors
/// If there is neither, or enrolment fails.
pub(crate) async fn establish(
    dir: &Path,
    control_url: &str,
    token_file: Option<&Path>,
) -> anyhow::Result<Identity> {
    if let Some(identity) = Identity::load(dir)? {
        return Ok(identity);
    }
    let Some(token_file) = token_file else {
        let text = format!(
            "{} holds no identity yet: make a token with `farshore node token` and give it with \
             --token-file",
            dir.display()
        );
        return Err(Failure::new(Exit::Denied, text).into());
    };
    Ok(enrol(dir, control_url, token_file, Role::Node).await?)
}
