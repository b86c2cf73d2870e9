//! The export: `farshore-node export` serves a recovery point read-write on an overlay.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farshore_api::failover::ExportListen;
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::process::Trust;
use super::{ProviderError, process};
use crate::db::Process;

/// How long an export may take to serve: it reads the volume's newest map and the extents above it.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often the ready file is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Longest path of a Unix socket (`sun_path` without its zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The files of one failover.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
    id: Uuid,
}

impl Files {
    /// Files of the failover `id` under `failovers`.
    #[must_use]
    pub fn new(failovers: &Path, id: Uuid) -> Self {
        Self { dir: failovers.join(id.to_string()), id }
    }

    /// Makes the directory, for this user only.
    ///
    /// # Errors
    /// `File`.
    pub fn create(&self) -> Result<(), ProviderError> {
        private_dir(&self.dir)
    }

    fn ready(&self) -> PathBuf {
        self.dir.join("ready.json")
    }

    fn overlay(&self) -> PathBuf {
        self.dir.join("overlay")
    }

    /// Log of the export.
    #[must_use]
    pub fn export_log(&self) -> PathBuf {
        self.dir.join("export.log")
    }

    /// Log of QEMU.
    #[must_use]
    pub fn machine_log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }

    /// The machine's serial console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What the machine's firmware remembers.
    #[must_use]
    pub fn firmware_variables(&self) -> PathBuf {
        self.dir.join("firmware-variables.fd")
    }

    /// The socket lies beside the other files, unless that path is longer than the kernel takes:
    /// then in a private directory under the system's temporary one.
    fn socket(&self) -> PathBuf {
        let near = self.dir.join("nbd.sock");
        if near.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return near;
        }
        self.far_dir().join("nbd.sock")
    }

    fn far_dir(&self) -> PathBuf {
        std::env::temp_dir().join(format!("farshore-{}", self.id.simple()))
    }

    /// Removes everything.
    ///
    /// # Errors
    /// `File` if something cannot be removed.
    pub fn remove(&self) -> Result<(), ProviderError> {
        for dir in [&self.far_dir(), &self.dir] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ProviderError::file("remove", dir, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what an export that never became ready left behind.
    fn remove_stale(&self) -> Result<(), ProviderError> {
        for path in [self.ready(), self.overlay(), self.socket()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ProviderError::file("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Exports of this failover, noted down or not.
    #[must_use]
    pub fn exports(&self) -> Vec<Process> {
        process::find("--ready-file", self.ready().as_os_str())
    }
}

fn private_dir(dir: &Path) -> Result<(), ProviderError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| ProviderError::file("create", dir, source))
}

/// What an export is to serve.
#[derive(Debug, Clone)]
pub struct Export<'a> {
    /// The `farshore-node` program.
    pub program: &'a Path,
    /// The vault.
    pub vault: &'a str,
    /// The recovery key.
    pub key_file: &'a Path,
    /// The volume.
    pub volume: Uuid,
    /// The point.
    pub point: Uuid,
    /// How to listen.
    pub listen: ExportListen,
}

impl Export<'_> {
    fn arguments(&self, files: &Files) -> Vec<OsString> {
        let listen = match self.listen {
            ExportListen::Unix => {
                let mut listen = OsString::from("unix:");
                listen.push(files.socket());
                listen
            }
            ExportListen::Tcp => "tcp:127.0.0.1:0".into(),
        };
        vec![
            "export".into(),
            "--vault".into(),
            self.vault.into(),
            "--key-file".into(),
            self.key_file.into(),
            "--volume".into(),
            self.volume.to_string().into(),
            "--point".into(),
            self.point.to_string().into(),
            "--overlay".into(),
            files.overlay().into(),
            "--listen".into(),
            listen,
            "--ready-file".into(),
            files.ready().into(),
        ]
    }

    /// Starts the export on a fresh overlay. Exports of this failover that were never noted down
    /// are ended first.
    ///
    /// # Errors
    /// `KeyMissing`, `Missing`, `Start`, `File`.
    pub async fn start(&self, files: &Files) -> Result<Process, ProviderError> {
        if !self.key_file.exists() {
            return Err(ProviderError::KeyMissing { path: self.key_file.into() });
        }
        for stray in files.exports() {
            process::stop(stray).await;
        }
        files.create()?;
        if self.listen == ExportListen::Unix
            && let Some(parent) = files.socket().parent()
        {
            private_dir(parent)?;
        }
        files.remove_stale()?;
        let hint = "put it beside farshore-control, or name its directory with --farshore-bin-dir";
        let arguments = self.arguments(files);
        process::start(self.program, &arguments, Trust::Store, &files.export_log(), hint)
    }
}

/// What an export writes when it serves. It may say more than this.
#[derive(Debug, Deserialize)]
struct Ready {
    nbd_uri: String,
}

/// Waits until the export serves and returns where.
///
/// # Errors
/// `Ended` if it ended, `NotReady` if it takes longer than two minutes.
///
/// # Cancel safety
/// Safe: it only looks.
pub async fn ready(files: &Files, export: Process) -> Result<String, ProviderError> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        // Whether it lives is looked at first, so that what a process wrote last is seen.
        let is_alive = process::is_alive(export);
        let ready = fs::read(files.ready()).ok();
        if let Some(ready) = ready.and_then(|r| serde_json::from_slice::<Ready>(&r).ok())
            && is_alive
        {
            return Ok(ready.nbd_uri);
        }
        let log = files.export_log();
        if !is_alive {
            let last_line = process::last_line(&log);
            return Err(ProviderError::Ended { what: "the export", last_line, log });
        }
        if Instant::now() >= deadline {
            return Err(ProviderError::NotReady { what: "the export", waited: READY_TIMEOUT, log });
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_data_directory_gets_a_short_socket() {
        let id = Uuid::from_u128(1);
        let near = Files::new(Path::new("/srv/farshore/failovers"), id).socket();
        assert!(near.starts_with("/srv/farshore"));
        let long = PathBuf::from(format!("/{}", "d".repeat(90)));
        let far = Files::new(&long, id).socket();
        assert!(far.as_os_str().len() <= SOCKET_PATH_BYTES_MAX, "{}", far.display());
    }
}
