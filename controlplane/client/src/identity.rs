//! The files `identity.json` and `identity.key` of an agent or node.
//!
//! Order of operations: the key is on the disk before anybody certifies it, the certificate is
//! written last. A key without a certificate is no identity yet.

use crate::files::{close_to_others, private_dir, read, replace};
use crate::heard::Heard;
use crate::http::ClientError;
use crate::renewal::Renewal;
use farshore_api::identity::{Certificate, MalformedToken, Role};
use farshore_trust::{peer_of, shown_apart, shown_time};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use uuid::Uuid;
use x509_parser::prelude::{FromDer, X509Certificate};

const KEY_FILE: &str = "identity.key";
const CERTIFICATE_FILE: &str = "identity.json";

/// Why there is no identity, or no new certificate for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error(
        "{} is damaged: {what}; delete {KEY_FILE} and {CERTIFICATE_FILE} there and enrol again with \
         a new token",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There is none, and no token to get one.
    #[error(
        "{} holds no identity yet: make a token with `farshore {role} token` and give it with \
         --token-file",
        dir.display()
    )]
    NotEnrolled {
        /// Where it would be.
        dir: PathBuf,
        /// Who asks.
        role: Role,
    },
    /// The token's text is not a token.
    #[error("{}: {error}", path.display())]
    Token {
        /// The file that held the text.
        path: PathBuf,
        /// What is wrong with it.
        error: MalformedToken,
    },
    /// The token enrols something else.
    #[error("the token enrols {token}s, not {wanted}s; make one with `farshore {wanted} token`")]
    Role {
        /// What it enrols.
        token: Role,
        /// Who asks.
        wanted: Role,
    },
    /// A key or certificate request cannot be made.
    #[error("cannot make a key: {0}")]
    Key(rcgen::Error),
    /// The control plane did not give a certificate.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// The control plane gave a certificate that is of no use.
    #[error("the control plane gave a certificate that cannot be used: {what}")]
    Answer {
        /// What is wrong with it.
        what: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate that fits the key, and what it says.
#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
    renewal: Renewal,
}

/// Who this process is: a key, the newest certificate for it, and the CA to trust.
///
/// The certificate is replaced while it is in use; settings made by [`crate::client_config`] and
/// [`crate::server_config`] show the newest one.
pub struct Identity {
    dir: PathBuf,
    id: Uuid,
    role: Role,
    ca_pem: String,
    ca: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
    key: KeyPair,
    current: Mutex<Current>,
    /// Told when the control plane took the certificate after it had refused it.
    due: Notify,
    heard: Heard,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity of a directory; none if there is none yet. Blocks.
    ///
    /// # Errors
    /// `File` or `Damaged`.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(CERTIFICATE_FILE);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let certificate: Certificate =
            serde_json::from_str(&text).map_err(|error| damaged(&path, error.to_string()))?;
        let key_path = dir.join(KEY_FILE);
        close_to_others(&key_path).map_err(failed("close to others", &key_path))?;
        let key = read_text(&key_path)?.ok_or_else(|| damaged(&key_path, "it is missing"))?;
        let key = KeyPair::from_pem(&key).map_err(|error| damaged(&key_path, error.to_string()))?;
        Self::new(dir, key, &certificate).map(Some).map_err(|what| damaged(&path, what))
    }

    /// The key in `dir`, made if there is none or none that can be read. Blocks.
    pub(crate) fn key(dir: &Path) -> Result<KeyPair, IdentityError> {
        let path = dir.join(KEY_FILE);
        close_to_others(&path).map_err(failed("close to others", &path))?;
        if let Some(key) = read_text(&path)?.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            return Ok(key);
        }
        private_dir(dir).map_err(failed("create", dir))?;
        let key = KeyPair::generate().map_err(IdentityError::Key)?;
        replace(&path, &key.serialize_pem()).map_err(failed("write", &path))?;
        Ok(key)
    }

    /// Keeps what an enrolment brought for `key`, which is in `dir` already. Blocks.
    pub(crate) fn keep(
        dir: &Path,
        key: KeyPair,
        certificate: &Certificate,
    ) -> Result<Self, IdentityError> {
        let identity = Self::new(dir, key, certificate).map_err(unusable)?;
        write_certificate(dir, certificate)?;
        Ok(identity)
    }

    fn new(dir: &Path, key: KeyPair, certificate: &Certificate) -> Result<Self, String> {
        let current = Mutex::new(Current::of(certificate, &key)?);
        let (dir, ca_pem) = (dir.to_owned(), certificate.ca_pem.clone());
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|error| format!("no CA certificate: {error}"))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(|error| format!("no CA certificate: {error}"))?;
        let (roots, &Certificate { id, role, .. }) = (Arc::new(roots), certificate);
        let (due, heard) = (Notify::new(), Heard::default());
        Ok(Self { dir, id, role, ca_pem, ca, roots, key, current, due, heard })
    }

    /// Takes a new certificate for the same key: first onto the disk, then into use. Blocks.
    pub(crate) fn take(&self, mut certificate: Certificate) -> Result<(), IdentityError> {
        if (certificate.role, certificate.id) != (self.role, self.id) {
            return Err(unusable("it is another identity's"));
        }
        // A renewal is a new certificate; it never changes whom this process trusts.
        certificate.ca_pem.clone_from(&self.ca_pem);
        let current = Current::of(&certificate, &self.key).map_err(unusable)?;
        write_certificate(&self.dir, &certificate)?;
        *self.lock() = current;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's or node's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Agent or node.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The CA that everybody trusts.
    #[must_use]
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// The certificate to show, with its key.
    #[must_use]
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.lock().certified)
    }

    /// How long until half of the certificate's life is over, by this machine's clock or by time that has
    /// passed.
    #[must_use]
    pub fn until_renewal(&self) -> Duration {
        self.lock().renewal.until(passed(), SystemTime::now())
    }

    /// Whether the certificate is not valid any more.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.lock().not_after < SystemTime::now()
    }

    /// Waits `longest`, or until the control plane took the certificate after it had refused it; whether it
    /// did.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn wait_until_due(&self, longest: Duration) -> bool {
        tokio::select! {
            () = self.due.notified() => true,
            () = tokio::time::sleep(longest) => false,
        }
    }

    /// The control plane did what was asked for with the certificate.
    pub(crate) fn control_took(&self) {
        if self.lock().renewal.taken() {
            self.due.notify_one();
        }
    }

    /// The control plane let nobody in with the certificate.
    pub(crate) fn control_refused(&self) {
        self.lock().renewal.refused();
    }

    /// The control plane answered just now.
    pub(crate) fn control_answered(&self) {
        self.heard.answered(Instant::now());
    }

    /// Whether another's certificate that ends, or ended, at `ends_s` (Unix time) is taken: one that
    /// has ended is for as long as its holder may have been unable to renew it, because the control
    /// plane is away or has just come back.
    #[must_use]
    pub fn takes(&self, ends_s: u64) -> bool {
        self.heard.takes(ends_s, Instant::now(), SystemTime::now())
    }

    /// What is wrong with the time of the certificate, for people; none while it is valid.
    ///
    /// Either the certificate or this machine's clock is wrong: both are told.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble_at(SystemTime::now())
    }

    /// As [`Identity::trouble`], with a clock that shows `now`.
    #[must_use]
    pub fn trouble_at(&self, now: SystemTime) -> Option<String> {
        let (from, to) = {
            let current = self.lock();
            (current.not_before, current.not_after)
        };
        if (from..=to).contains(&now) {
            return None;
        }
        let what = if now > to { "has expired" } else { "is not valid yet" };
        let apart = shown_apart(now, if now > to { to } else { from });
        Some(format!(
            "the certificate of {role} {id} {what}: this machine's clock says {now}, the certificate \
             is valid from {from} to {to}, {apart} away; check the clock, or enrol again with a token from \
             `farshore {role} token --id {id}`",
            role = self.role,
            id = self.id,
            now = shown_time(now),
            from = shown_time(from),
            to = shown_time(to),
        ))
    }

    /// A certificate request for the key.
    pub(crate) fn request_pem(&self) -> Result<String, IdentityError> {
        request_pem(&self.key)
    }
}

impl Current {
    /// Checks that `certificate` is what it says and fits the key; the error says what is wrong.
    fn of(certificate: &Certificate, key: &KeyPair) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(certificate.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("no certificate: {error}"))?;
        let leaf = chain.first().ok_or("no certificate")?;
        if peer_of(leaf) != Some((certificate.role, certificate.id)) {
            let Certificate { role, id, .. } = certificate;
            return Err(format!("the certificate does not name {role} {id}"));
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
        let not_before = time(parsed.validity().not_before.timestamp());
        let not_after = time(parsed.validity().not_after.timestamp());
        let key = PrivateKeyDer::try_from(key.serialize_der())?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|error| format!("certificate and key do not fit: {error}"))?;
        let renewal = Renewal::new(not_before, not_after, passed());
        Ok(Self { certified: Arc::new(certified), not_before, not_after, renewal })
    }
}

/// Monotonic time, from the first call on.
fn passed() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// A certificate request for a key.
pub(crate) fn request_pem(key: &KeyPair) -> Result<String, IdentityError> {
    let request = CertificateParams::default().serialize_request(key);
    request.and_then(|request| request.pem()).map_err(IdentityError::Key)
}

/// Reads a text of ours; one that is no text is damaged.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, IdentityError> {
    read(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => damaged(path, error.to_string()),
        _ => failed("read", path)(error),
    })
}

fn write_certificate(dir: &Path, certificate: &Certificate) -> Result<(), IdentityError> {
    let path = dir.join(CERTIFICATE_FILE);
    let text = serde_json::to_string_pretty(certificate).map_err(io::Error::from);
    text.and_then(|text| replace(&path, &text)).map_err(failed("write", &path))
}

fn damaged(path: &Path, what: impl Into<String>) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), what: what.into() }
}

fn unusable(what: impl Into<String>) -> IdentityError {
    IdentityError::Answer { what: what.into() }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |error| IdentityError::File { action, path, error }
}
