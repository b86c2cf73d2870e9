//! The data directory of an `up`: what lies where, and who holds it.

use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use farshore_api::Exit;
use farshore_api::identity::Certificate;
use farshore_program::private_dir;
use farshore_trust::shown_by;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use uuid::Uuid;

use crate::failure::{Failure, Outcome};
use crate::output::shell_word;

use super::supervisor::Child;

/// The programs of the children.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Those beside the running program.
    ///
    /// # Errors
    /// `SystemMissing` naming the one that is not there.
    pub(super) fn find() -> Outcome<Self> {
        let own = std::env::current_exe().map_err(|error| {
            Failure::new(Exit::SystemMissing, format!("cannot tell where farshore is: {error}"))
        })?;
        let directory = own.parent().unwrap_or(Path::new("/")).to_owned();
        let programs = Self { directory };
        for child in Child::ALL {
            let path = programs.path(child);
            if !path.is_file() {
                let message = format!("the program {} is missing", path.display());
                return Err(Failure::new(Exit::SystemMissing, message).hint(
                    "keep farshore, farshore-control, farshore-node and farshore-agent in one \
                     directory; `cargo build` puts them there",
                ));
            }
        }
        Ok(programs)
    }

    /// Path of a child's program.
    pub(super) fn path(&self, child: Child) -> PathBuf {
        self.directory.join(program_name(child))
    }
}

/// File name of a child's program.
pub(super) fn program_name(child: Child) -> String {
    format!("farshore-{child}")
}

/// Held for as long as the directory is used.
const LOCK_FILE: &str = "up.lock";

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    data: PathBuf,
}

impl Site {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// `CannotCreate`, `Denied`, `NoSpace`.
    pub(super) fn open(data: &Path) -> Outcome<Self> {
        let make = |path: &Path| {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
                Failure::io("make the directory", path, &error, Exit::CannotCreate)
            })
        };
        private_dir(data, LOCK_FILE)
            .map_err(|error| Failure::io("make the directory", data, &error, Exit::CannotCreate))?;
        let data = data
            .canonicalize()
            .map_err(|error| Failure::io("open the directory", data, &error, Exit::CannotCreate))?;
        if data.to_str().is_none() {
            let message = format!("the path {} is not valid UTF-8", data.display());
            return Err(Failure::new(Exit::Usage, message).hint("choose another --data"));
        }
        let site = Self { data };
        make(&site.logs())?;
        make(&site.tokens())?;
        Ok(site)
    }

    /// A directory that is there, as it is.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn existing(data: &Path) -> Outcome<Self> {
        let data = data
            .canonicalize()
            .map_err(|error| Failure::io("open the directory", data, &error, Exit::InputOutput))?;
        Ok(Self { data })
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// `Conflict` if another `up` has it.
    pub(super) fn lock(&self) -> Outcome<Lock> {
        let path = self.data.join(LOCK_FILE);
        let failed = |error: &std::io::Error| Failure::io("lock", &path, error, Exit::CannotCreate);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(&error))?;
        let lock = || flock(&file, FlockOperation::NonBlockingLockExclusive);
        match rustix::io::retry_on_intr(lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only for the message: without it the message is shorter.
                let _ = Read::by_ref(&mut file).take(16).read_to_string(&mut holder);
                let holder = holder.trim();
                let holder =
                    if holder.is_empty() { String::new() } else { format!(" (pid {holder})") };
                let data = shell_word(&self.data);
                return Err(Failure::new(
                    Exit::Conflict,
                    format!("another `farshore up`{holder} runs on {data}"),
                )
                .hint(format!(
                    "use it with FARSHORE_DATA={data}, stop it, or choose another --data"
                )));
            }
            Err(error) => return Err(failed(&error.into())),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|error| failed(&error))?;
        Ok(Lock { _file: file })
    }

    /// The directory itself, absolute.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Directory that belongs to a child.
    pub(super) fn child(&self, child: Child) -> PathBuf {
        self.data.join(child.name())
    }

    /// Directory of the logs.
    pub(super) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Log of a child.
    pub(super) fn log(&self, child: Child) -> PathBuf {
        self.logs().join(format!("{child}.log"))
    }

    /// Log of the supervisor.
    pub(super) fn own_log(&self) -> PathBuf {
        self.logs().join("up.log")
    }

    /// The vault if no other is named.
    pub(super) fn default_vault(&self) -> PathBuf {
        self.data.join("vault")
    }

    /// The vault's recovery key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.data.join("recovery.key")
    }

    /// The key with which its node opens the vault.
    pub(super) fn node_key_file(&self) -> PathBuf {
        self.data.join("node.key")
    }

    /// CA that the control plane makes at its first start.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.child(Child::Control).join("ca.pem")
    }

    /// Token of the operator that the control plane makes at its first start.
    pub(super) fn token_file(&self) -> PathBuf {
        self.child(Child::Control).join("operator.token")
    }

    /// Directory of the enrolment tokens.
    fn tokens(&self) -> PathBuf {
        self.data.join("enrol")
    }

    /// Enrolment token of a child, until it is enrolled.
    pub(super) fn enrolment_token(&self, child: Child) -> PathBuf {
        self.tokens().join(format!("{child}.token"))
    }

    /// The id that a child had when it was last enrolled.
    pub(super) fn identity(&self, child: Child) -> Option<Uuid> {
        let text = std::fs::read(self.child(child).join("identity.json")).ok()?;
        serde_json::from_slice(&text).ok().map(|certificate: Certificate| certificate.id)
    }

    /// Whether a child is enrolled and its certificate is valid now. It has ended when the system was down
    /// for a day, and has not begun when the clock was ahead at its issue and was put right since. What is
    /// wrong with a damaged one, the child tells.
    pub(super) fn is_enrolled(&self, child: Child) -> bool {
        let Ok(text) = std::fs::read(self.child(child).join("identity.json")) else { return false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        serde_json::from_slice(&text).map_or(true, |certificate: Certificate| {
            begins(&certificate) <= now && Duration::from_secs(certificate.expires_at_unix_s) > now
        })
    }
}

/// When a certificate starts working, since 1970; 0 of one that cannot be read.
fn begins(certificate: &Certificate) -> Duration {
    let leaf = CertificateDer::from_pem_slice(certificate.certificate_pem.as_bytes()).ok();
    let shown = leaf.and_then(|leaf| shown_by(&leaf));
    shown.map_or(Duration::ZERO, |shown| Duration::from_secs(shown.begins_s))
}

/// Holds a data directory until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_api::Role;
    use rcgen::{CertificateParams, KeyPair, SanType};

    /// Gives the agent a certificate that is valid between two times.
    fn certify(site: &Site, id: Uuid, begins: SystemTime, ends: SystemTime) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        (params.not_before, params.not_after) = (begins.into(), ends.into());
        let name = Role::Agent.uri(id).try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(name));
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let certificate = Certificate {
            id,
            role: Role::Agent,
            certificate_pem: pem.clone(),
            ca_pem: pem,
            expires_at_unix_s: ends.duration_since(UNIX_EPOCH).unwrap().as_secs(),
        };
        let dir = site.child(Child::Agent);
        std::fs::create_dir_all(&dir).unwrap();
        let text = serde_json::to_vec(&certificate).unwrap();
        std::fs::write(dir.join("identity.json"), text).unwrap();
    }

    #[test]
    fn a_certificate_that_is_not_valid_now_is_no_enrolment_and_keeps_its_id() {
        let data = tempfile::tempdir().unwrap();
        let site = Site::open(&data.path().join("data")).unwrap();
        assert!(!site.is_enrolled(Child::Agent));
        let (now, day, id) = (SystemTime::now(), Duration::from_secs(86_400), Uuid::from_u128(7));
        for (begins, ends, is_enrolled) in [
            (now - day, now + day, true),
            (now - day * 2, now - day, false),
            (now + day, now + day * 2, false),
        ] {
            certify(&site, id, begins, ends);
            assert_eq!(site.is_enrolled(Child::Agent), is_enrolled, "{begins:?} to {ends:?}");
            assert_eq!(site.identity(Child::Agent), Some(id));
        }
    }

    #[test]
    fn a_directory_is_held_by_one_at_a_time() {
        let data = tempfile::tempdir().unwrap();
        let site = Site::open(&data.path().join("new/dir")).unwrap();
        let lock = site.lock().unwrap();
        let failure = site.lock().unwrap_err();
        assert_eq!(failure.code, Exit::Conflict.code());
        let pid = std::process::id().to_string();
        assert!(failure.message.contains(&pid), "{failure}");
        drop(lock);
        site.lock().unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("file");
        std::fs::write(&file, "").unwrap();
        let failure = Site::open(&file.join("data")).unwrap_err();
        assert!(failure.message.contains("file/data"), "{failure}");
        assert_eq!(failure.code, Exit::CannotCreate.code());
    }
}
