//! The identity's files under `DATA/identity`: `key.pem`, `cert.pem`, `ca.pem`.
//!
//! Order of operations: the key is written before it is enrolled, the certificate last; an identity
//! without a certificate is none.

use crate::durable::{private_dir, replace};
use farshore_proto::ErrorKind;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {what}; enrol the agent again with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A key cannot be made.
    #[error("cannot make a key")]
    Key {
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

impl IdentityError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Unavailable,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Key { .. } => ErrorKind::Internal,
        }
    }
}

#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The agent's identity. The certificate can be replaced while it is in use.
pub struct Identity {
    dir: PathBuf,
    key: KeyPair,
    ca: CertificateDer<'static>,
    current: Mutex<Current>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Identity").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity; none if the agent is not enrolled. Blocks.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(certificate) = read(&dir.join("cert.pem"))? else { return Ok(None) };
        let ca = require(&dir.join("ca.pem"))?;
        let key = Self::key(dir)?;
        let ca = parse_certificate(&dir.join("ca.pem"), &ca)?;
        let current = current(&dir.join("cert.pem"), &certificate, &key)?;
        Ok(Some(Self { dir: dir.to_owned(), key, ca, current: Mutex::new(current) }))
    }

    /// The key in `dir`, made if there is none. Blocks.
    pub(super) fn key(dir: &Path) -> Result<KeyPair, IdentityError> {
        let path = dir.join("key.pem");
        if let Some(pem) = read(&path)? {
            return KeyPair::from_pem(&pem)
                .map_err(|error| IdentityError::Damaged { path, what: error.to_string() });
        }
        private_dir(dir).map_err(failed("create", dir))?;
        let key = KeyPair::generate().map_err(|source| IdentityError::Key { source })?;
        replace(&path, key.serialize_pem().as_bytes()).map_err(failed("write", &path))?;
        Ok(key)
    }

    /// Writes what an enrolment brought, and reads it back. Blocks.
    pub(super) fn save(
        dir: &Path,
        certificate_pem: &str,
        ca_pem: &str,
    ) -> Result<Self, IdentityError> {
        for (name, pem) in [("ca.pem", ca_pem), ("cert.pem", certificate_pem)] {
            let path = dir.join(name);
            replace(&path, pem.as_bytes()).map_err(failed("write", &path))?;
        }
        let path = dir.join("cert.pem");
        Self::load(dir)?.ok_or(IdentityError::Damaged { path, what: "it is gone".to_owned() })
    }

    /// Takes a new certificate for the same key. Blocks.
    pub(super) fn renew(&self, certificate_pem: &str) -> Result<(), IdentityError> {
        let path = self.dir.join("cert.pem");
        let current = current(&path, certificate_pem, &self.key)?;
        replace(&path, certificate_pem.as_bytes()).map_err(failed("write", &path))?;
        *self.lock() = current;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A certificate request for the key.
    pub(super) fn request(key: &KeyPair) -> Result<String, IdentityError> {
        let params = CertificateParams::default();
        let request = params.serialize_request(key).and_then(|request| request.pem());
        request.map_err(|source| IdentityError::Key { source })
    }

    /// A certificate request for this identity's key.
    pub(super) fn renewal(&self) -> Result<String, IdentityError> {
        Self::request(&self.key)
    }

    /// The CA that everybody trusts.
    #[must_use]
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The certificate to show, with its key.
    #[must_use]
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.lock().certified)
    }

    /// How long until half of the certificate's life is over.
    #[must_use]
    pub fn until_renewal(&self) -> Duration {
        let current = self.lock();
        let life = current.not_after.duration_since(current.not_before).unwrap_or_default();
        let due = current.not_before + life / 2;
        due.duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// Whether the certificate is not valid any more.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.lock().not_after < SystemTime::now()
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn require(path: &Path) -> Result<String, IdentityError> {
    let damaged = || IdentityError::Damaged { path: path.to_owned(), what: "it is gone".into() };
    read(path)?.ok_or_else(damaged)
}

fn parse_certificate(path: &Path, pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| IdentityError::Damaged { path: path.to_owned(), what: error.to_string() })
}

fn current(path: &Path, pem: &str, key: &KeyPair) -> Result<Current, IdentityError> {
    let damaged = |what: String| IdentityError::Damaged { path: path.to_owned(), what };
    let certificate = parse_certificate(path, pem)?;
    let (_, parsed) =
        X509Certificate::from_der(&certificate).map_err(|error| damaged(error.to_string()))?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    let not_before = time(parsed.validity().not_before.timestamp());
    let not_after = time(parsed.validity().not_after.timestamp());
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|what| damaged(what.into()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(vec![certificate], key, &provider)
        .map_err(|error| damaged(format!("certificate and key do not fit: {error}")))?;
    Ok(Current { certified: Arc::new(certified), not_before, not_after })
}
