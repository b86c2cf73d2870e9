//! Who somebody is: roles, enrolment tokens, certificates.
//!
//! An identity is the SAN URI `spiffe://farshore/<role>/<uuid>` of a certificate that the control
//! plane's CA signed. A node's certificate also has the DNS name [`node_server_name`], which agents
//! ask for when they connect to it.
//!
//! **Enrolment.** The operator creates a token ([`CreateToken`]); its text pins the CA. The agent or
//! node opens TLS to the control plane, accepts the connection only if the chain that the server
//! sends (leaf, then CA) holds a certificate that [`EnrolmentToken::pins`] and the leaf is signed by
//! it, then posts [`EnrolRequest`]. From then on it trusts the `ca_pem` of the reply.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name in the control plane's own certificate, next to `localhost` and the loopback addresses.
pub const CONTROL_SERVER_NAME: &str = "control.farshore";

/// What a certificate's holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs on a protected server.
    Agent,
    /// Receives, journals and ships changes.
    Node,
}

impl Role {
    /// `agent` or `node`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Node => "node",
        }
    }

    /// The SAN URI of the identity `id` in this role.
    #[must_use]
    pub fn uri(self, id: Uuid) -> String {
        format!("spiffe://farshore/{self}/{id}")
    }

    /// Reads what [`Role::uri`] writes; nothing else is accepted.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<(Self, Uuid)> {
        let (role, id) = uri.strip_prefix("spiffe://farshore/")?.split_once('/')?;
        let role: Self = role.parse().ok()?;
        let id = Uuid::parse_str(id).ok()?;
        (role.uri(id) == uri).then_some((role, id))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "agent" => Ok(Self::Agent),
            "node" => Ok(Self::Node),
            _ => Err(UnknownRole),
        }
    }
}

/// The text is neither `agent` nor `node`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is either agent or node")]
pub struct UnknownRole;

/// DNS name in a node's certificate: `<uuid>.node.farshore`.
#[must_use]
pub fn node_server_name(node: Uuid) -> String {
    format!("{node}.node.farshore")
}

/// Bytes of a certificate's serial number.
pub const SERIAL_BYTES: usize = 20;

/// What serial numbers of ours begin with: positive, and not zero (RFC 5280 §4.1.2.2).
const SERIAL_TAG: u8 = 0x46;

/// A certificate's serial number: a tag, the certificate's generation (big-endian), random bytes.
///
/// Each certificate of an identity has a greater generation than the one before. It stands in the
/// certificate itself, so that those who take one (nodes, agents, a control plane whose catalogue
/// was set back) can tell an older from a newer one without asking anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial([u8; SERIAL_BYTES]);

impl Serial {
    /// The serial number of a certificate of `generation`.
    #[must_use]
    pub fn new(generation: u64, random: [u8; SERIAL_BYTES - 9]) -> Self {
        let mut bytes = [SERIAL_TAG; SERIAL_BYTES];
        bytes[1..9].copy_from_slice(&generation.to_be_bytes());
        bytes[9..].copy_from_slice(&random);
        Self(bytes)
    }

    /// Reads what stands in a certificate; `None` if it is none of ours.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; SERIAL_BYTES] = bytes.try_into().ok()?;
        (bytes[0] == SERIAL_TAG).then_some(Self(bytes))
    }

    /// As it stands in a certificate.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SERIAL_BYTES] {
        &self.0
    }

    /// A short name of the certificate, for tables of what it may do.
    #[must_use]
    pub fn as_key(&self) -> Uuid {
        let mut key = [0; 16];
        key.copy_from_slice(&self.0[SERIAL_BYTES - 16..]);
        Uuid::from_bytes(key)
    }

    /// The certificate's place in the row of its identity's certificates, from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|n| self.0[1 + n]))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

/// Where an identity stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its newest certificate is good.
    #[default]
    Valid,
    /// Its newest certificate has ended; it may still be renewed for
    /// [`crate::limits::EXPIRED_SECONDS_MAX`].
    Expired,
    /// An operator took it away.
    Revoked,
    /// Two hold its key: a copy of its directory runs somewhere, or it was set back to an older
    /// state while the newer one goes on.
    Cloned,
}

impl Standing {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Cloned => "cloned",
        }
    }
}

/// What is known of an agent's or node's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// Whether it may call.
    pub standing: Standing,
    /// Generation of the newest certificate.
    pub generation: u64,
    /// When the newest certificate ends.
    pub expires_at_unix_s: u64,
    /// For `cloned`: which two holders were seen, and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned: Option<String>,
}

/// What a revocation stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The identity.
    pub id: Uuid,
    /// Machines whose replication it carried.
    pub machines: Vec<String>,
}

/// Asks for an enrolment token. Operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What the token enrols.
    pub role: Role,
    /// The identity to enrol again: one whose certificate ran out, or that lost its key. It keeps its
    /// id and with it its machines or volumes. A new identity if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Uuid>,
    /// Seconds until it expires, 1 to [`crate::limits::TOKEN_TTL_SECONDS_MAX`]; default one hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A new enrolment token. This reply is the only place where its text ever appears.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Text of the token ([`EnrolmentToken`]). It works once.
    pub token: String,
    /// When it stops working.
    pub expires_at_unix_s: u64,
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Token")
            .field("expires_at_unix_s", &self.expires_at_unix_s)
            .finish_non_exhaustive()
    }
}

/// Turns a token and a certificate request into an identity.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// Text of the enrolment token.
    pub token: String,
    /// PKCS#10 request in PEM. Everything in it but the public key is ignored.
    pub csr_pem: String,
}

impl fmt::Debug for EnrolRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EnrolRequest").finish_non_exhaustive()
    }
}

/// Asks for a new certificate for the same identity and the same key; renew at half of the old one's
/// life. Another key takes an enrolment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// PKCS#10 request in PEM. Everything in it but the public key is ignored.
    pub csr_pem: String,
}

/// A certificate and the CA that signed it. Answer to [`EnrolRequest`] and [`RenewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The identity: an agent's or a node's id.
    pub id: Uuid,
    /// What it is.
    pub role: Role,
    /// The leaf certificate.
    pub certificate_pem: String,
    /// The CA to trust, for the control plane, nodes and agents alike.
    pub ca_pem: String,
    /// When the certificate stops working.
    pub expires_at_unix_s: u64,
}

const TOKEN_PREFIX: &str = "fse1.";
const TOKEN_BYTES: usize = 32 + 1 + 32;

/// A parsed enrolment token.
///
/// Text form: `fse1.` and the lower-case hex of 65 bytes: BLAKE3-256 of the CA certificate's DER
/// (32) ‖ role (1; 1 agent, 2 node) ‖ secret (32).
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// BLAKE3-256 of the CA certificate's DER.
    pub ca_fingerprint: [u8; 32],
    /// What the token enrols.
    pub role: Role,
    /// Random; whoever knows it may enrol once.
    pub secret: [u8; 32],
}

impl EnrolmentToken {
    /// Whether `certificate_der` is the CA that this token names.
    #[must_use]
    pub fn pins(&self, certificate_der: &[u8]) -> bool {
        blake3::Hash::from(self.ca_fingerprint) == fingerprint(certificate_der)
    }

    /// What names the token without telling it: the hash of its secret, in hex.
    #[must_use]
    pub fn id(&self) -> String {
        blake3::hash(&self.secret).to_hex().to_string()
    }
}

fn fingerprint(certificate_der: &[u8]) -> blake3::Hash {
    blake3::hash(certificate_der)
}

/// BLAKE3-256 of a certificate's DER, as in [`EnrolmentToken::ca_fingerprint`].
#[must_use]
pub fn certificate_fingerprint(certificate_der: &[u8]) -> [u8; 32] {
    fingerprint(certificate_der).into()
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EnrolmentToken").field("role", &self.role).finish_non_exhaustive()
    }
}

impl fmt::Display for EnrolmentToken {
    /// Writes the secret form: for the operator's eyes, never for a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Agent => 1_u8,
            Role::Node => 2,
        };
        write!(
            formatter,
            "{TOKEN_PREFIX}{}{}{}",
            hex::encode(self.ca_fingerprint),
            hex::encode([role]),
            hex::encode(self.secret)
        )
    }
}

impl FromStr for EnrolmentToken {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let digits = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(MalformedToken)?;
        let mut bytes = [0_u8; TOKEN_BYTES];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| MalformedToken)?;
        let mut ca_fingerprint = [0_u8; 32];
        ca_fingerprint.copy_from_slice(&bytes[..32]);
        let role = match bytes[32] {
            1 => Role::Agent,
            2 => Role::Node,
            _ => return Err(MalformedToken),
        };
        let mut secret = [0_u8; 32];
        secret.copy_from_slice(&bytes[33..]);
        Ok(Self { ca_fingerprint, role, secret })
    }
}

/// The text is not an enrolment token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment token: it starts with `fse1.` and has 135 characters")]
pub struct MalformedToken;

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            ca_fingerprint: certificate_fingerprint(b"ca"),
            role: Role::Node,
            secret: [7; 32],
        }
    }

    #[test]
    fn a_token_survives_its_text_form_and_pins_its_ca() {
        let text = token().to_string();
        assert_eq!(text.len(), 135);
        let parsed: EnrolmentToken = text.parse().unwrap();
        assert_eq!(parsed, token());
        assert!(parsed.pins(b"ca"));
        assert!(!parsed.pins(b"another"));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let text = token().to_string();
        for bad in ["", "fse1.", "fse1.zz", &text[..134], &text.replace("fse1", "fse2")] {
            assert_eq!(bad.parse::<EnrolmentToken>(), Err(MalformedToken), "{bad}");
        }
        let unknown_role = text.replacen("02070707", "03070707", 1);
        assert_eq!(unknown_role.parse::<EnrolmentToken>(), Err(MalformedToken));
    }

    #[test]
    fn debug_forms_hold_no_secret() {
        assert!(!format!("{:?}", token()).contains("0707"));
        let reply = Token { token: token().to_string(), expires_at_unix_s: 1 };
        assert!(!format!("{reply:?}").contains("fse1"));
    }

    #[test]
    fn a_serial_number_tells_the_generation() {
        let serial = Serial::new(7, [9; 11]);
        assert_eq!(serial.generation(), 7);
        assert_eq!(Serial::from_bytes(serial.as_bytes()), Some(serial));
        let mut other = *serial.as_bytes();
        other[0] = 1;
        assert_eq!(Serial::from_bytes(&other), None);
        assert_eq!(Serial::from_bytes(&serial.as_bytes()[1..]), None);
        assert_eq!(Serial::new(u64::MAX, [0; 11]).generation(), u64::MAX);
    }

    #[test]
    fn uris_are_read_back_exactly() {
        let id = Uuid::from_u128(5);
        assert_eq!(Role::from_uri(&Role::Agent.uri(id)), Some((Role::Agent, id)));
        for bad in [
            "spiffe://farshore/agent/",
            "spiffe://farshore/operator/00000000-0000-0000-0000-000000000005",
            "spiffe://farshore/agent/00000000000000000000000000000005",
            "spiffe://elsewhere/agent/00000000-0000-0000-0000-000000000005",
        ] {
            assert_eq!(Role::from_uri(bad), None, "{bad}");
        }
    }
}
