//! The files `identity.json` and `identity.key` of an agent or node.

use crate::http::ClientError;
use crate::trust::pinned_config;
use farshore_api::identity::{Certificate, EnrolRequest, EnrolmentToken, MalformedToken, Role};
use farshore_api::paths;
use rcgen::{CertificateParams, KeyPair};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

const KEY_FILE: &str = "identity.key";
const CERTIFICATE_FILE: &str = "identity.json";
/// Certificates live a day; below half of that they are renewed.
const RENEW_BELOW: Duration = Duration::from_secs(12 * 3600);
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Who this process is: a certificate of the control plane's CA and its key.
#[derive(Clone)]
pub struct Identity {
    dir: PathBuf,
    certificate: Certificate,
    key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Certificate { id, role, .. } = &self.certificate;
        f.debug_struct("Identity").field("id", id).field("role", role).finish_non_exhaustive()
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged; delete it and enrol again with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
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
    #[error("the token enrols {0}s, not {1}s; make one with `farshore {1} token`")]
    Role(Role, Role),
    /// A key or certificate request cannot be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    /// The control plane did not give a certificate.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// The certificate does not fit its key or CA.
    #[error("the identity cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// A PEM text holds no certificate or key.
    #[error("not a PEM certificate or key")]
    Pem,
}

impl Identity {
    /// Reads the identity of a directory; `None` if there is none yet.
    ///
    /// # Errors
    /// `File` or `Damaged`.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(CERTIFICATE_FILE);
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let certificate = serde_json::from_str(&text)
            .map_err(|_| IdentityError::Damaged { path: path.clone() })?;
        let path = dir.join(KEY_FILE);
        let Some(key_pem) = read_if_there(&path)? else {
            return Err(IdentityError::Damaged { path });
        };
        Ok(Some(Self { dir: dir.to_owned(), certificate, key_pem }))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.certificate.id
    }

    /// The CA to trust, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.certificate.ca_pem
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate.certificate_pem
    }

    /// Its key, in PEM. Secret.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Whether it is time to renew.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now + RENEW_BELOW > Duration::from_secs(self.certificate.expires_at_unix_s)
    }

    /// A certificate request for the key.
    ///
    /// # Errors
    /// `Key` if the key cannot be read.
    pub fn request_pem(&self) -> Result<String, IdentityError> {
        request_pem(&KeyPair::from_pem(&self.key_pem)?)
    }

    /// Takes a renewed certificate and keeps it.
    ///
    /// # Errors
    /// `File` if it cannot be kept.
    pub fn replace(&mut self, certificate: Certificate) -> Result<(), IdentityError> {
        self.certificate = certificate;
        self.store()
    }

    fn store(&self) -> Result<(), IdentityError> {
        let text =
            serde_json::to_string_pretty(&self.certificate).map_err(|_| IdentityError::Pem)?;
        // Key first: a certificate without its key would look like a damaged identity.
        for (name, text) in [(KEY_FILE, &self.key_pem), (CERTIFICATE_FILE, &text)] {
            let path = self.dir.join(name);
            write_private(&self.dir, &path, text)
                .map_err(|error| IdentityError::File { path, error })?;
        }
        Ok(())
    }
}

/// Makes a key, trades the token in `token_file` for a certificate and keeps both in `dir`.
///
/// # Errors
/// By what went wrong; the token is used up only if the control plane answered.
pub async fn enrol(
    dir: &Path,
    control_url: &str,
    token_file: &Path,
    role: Role,
) -> Result<Identity, IdentityError> {
    let text = read_if_there(token_file)?.ok_or_else(|| IdentityError::File {
        path: token_file.to_owned(),
        error: io::ErrorKind::NotFound.into(),
    })?;
    let token: EnrolmentToken = text
        .trim()
        .parse()
        .map_err(|error| IdentityError::Token { path: token_file.to_owned(), error })?;
    if token.role != role {
        return Err(IdentityError::Role(token.role, role));
    }
    let key = KeyPair::generate()?;
    let request = EnrolRequest { token: text.trim().to_owned(), csr_pem: request_pem(&key)? };
    let client = crate::http::bare_client(pinned_config(token)?)?;
    let certificate: Certificate =
        crate::http::post(&client, control_url, paths::ENROL, &request).await?;
    let identity = Identity { dir: dir.to_owned(), certificate, key_pem: key.serialize_pem() };
    identity.store()?;
    Ok(identity)
}

fn request_pem(key: &KeyPair) -> Result<String, IdentityError> {
    Ok(CertificateParams::default().serialize_request(key)?.pem()?)
}

fn read_if_there(path: &Path) -> Result<Option<String>, IdentityError> {
    let wrap = |error| IdentityError::File { path: path.to_owned(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrap(error)),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text).map_err(wrap)?;
    Ok(Some(text))
}

fn write_private(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}
