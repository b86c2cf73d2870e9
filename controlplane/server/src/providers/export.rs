//! The export: `farshore-node export` serves a recovery point read-write on an overlay.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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

    /// Makes the directories, for this user only. The one for sockets may be gone after a reboot.
    ///
    /// # Errors
    /// `File`.
    pub fn create(&self) -> Result<(), ProviderError> {
        private_dir(&self.dir)?;
        match self.socket().parent() {
            Some(parent) => private_dir(parent),
            None => Ok(()),
        }
    }

    /// The socket on which QEMU takes commands.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.socket_of("qmp.sock")
    }

    /// Space that the overlay takes; none if there is none.
    #[must_use]
    pub fn overlay_bytes(&self) -> Option<u64> {
        let blocks = fs::metadata(self.overlay()).ok()?.blocks();
        Some(blocks.saturating_mul(512))
    }

    /// Room that the overlay's file system has left.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn ready(&self) -> PathBuf {
        self.dir.join("ready.json")
    }

    fn overlay(&self) -> PathBuf {
        self.dir.join("overlay")
    }

    /// Where the export says how it serves.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.dir.join("status.json")
    }

    /// Why the export does not serve everything just now, as it says: it waits for its store, or its
    /// overlay has no room.
    #[must_use]
    pub fn export_trouble(&self) -> Option<String> {
        let text = fs::read(self.status()).ok()?;
        let status: Status = serde_json::from_slice(&text).ok()?;
        let reason = status.reason.unwrap_or_else(|| "it gives no reason".into());
        (status.state != "serving").then(|| format!("the export is {}: {reason}", status.state))
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
        self.socket_of("nbd.sock")
    }

    fn socket_of(&self, name: &str) -> PathBuf {
        let near = self.dir.join(name);
        if near.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return near;
        }
        self.far_dir().join(name)
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

    /// Removes what an export that ended said of where it serves. The overlay stays: it is the only
    /// copy of what was written.
    fn remove_stale(&self) -> Result<(), ProviderError> {
        for path in [self.ready(), self.status(), self.socket()] {
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
    /// Where it served before: clients find it there again, on the overlay that holds what they wrote.
    pub served_at: Option<&'a str>,
}

impl Export<'_> {
    fn arguments(&self, files: &Files) -> Vec<OsString> {
        let listen = match self.listen {
            ExportListen::Unix => {
                let mut listen = OsString::from("unix:");
                listen.push(files.socket());
                listen
            }
            ExportListen::Tcp => {
                let address = self.served_at.and_then(tcp_address).unwrap_or("127.0.0.1:0");
                format!("tcp:{address}").into()
            }
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
            "--status-file".into(),
            files.status().into(),
        ]
    }

    /// Takes up an export of this failover that was never noted down, or starts one on the overlay
    /// that is there.
    ///
    /// # Errors
    /// `KeyMissing`, `Missing`, `Start`, `File`; `OverlayMissing` if it served before and its overlay
    /// is gone: the point alone would silently be without what was written.
    pub async fn start(&self, files: &Files) -> Result<Process, ProviderError> {
        let mut found = files.exports().into_iter();
        if let Some(export) = found.next() {
            // The overlay takes one only; another waits for nothing.
            for stray in found {
                process::stop(stray).await;
            }
            return Ok(export);
        }
        if !self.key_file.exists() {
            return Err(ProviderError::KeyMissing { path: self.key_file.into() });
        }
        if self.served_at.is_some() && !files.overlay().exists() {
            return Err(ProviderError::OverlayMissing { path: files.overlay() });
        }
        files.create()?;
        files.remove_stale()?;
        let hint = "put it beside farshore-control, or name its directory with --farshore-bin-dir";
        let arguments = self.arguments(files);
        process::start(self.program, &arguments, Trust::Store, &files.export_log(), hint)
    }
}

/// The address in `nbd://ADDRESS/NAME`.
fn tcp_address(uri: &str) -> Option<&str> {
    uri.strip_prefix("nbd://")?.split('/').next()
}

/// What an export says of how it serves. It may say more than this.
#[derive(Debug, Deserialize)]
struct Status {
    state: String,
    reason: Option<String>,
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
    fn an_export_serves_again_where_it_served() {
        assert_eq!(tcp_address("nbd://127.0.0.1:4000/disk"), Some("127.0.0.1:4000"));
        assert_eq!(tcp_address("nbd://[::1]:4000"), Some("[::1]:4000"));
        assert_eq!(tcp_address("nbd+unix:///d?socket=/s"), None);
        let files = Files::new(Path::new("/srv"), Uuid::from_u128(1));
        let export = Export {
            program: Path::new("/p"),
            vault: "file:///v",
            key_file: Path::new("/k"),
            volume: Uuid::nil(),
            point: Uuid::nil(),
            listen: ExportListen::Tcp,
            served_at: Some("nbd://127.0.0.1:4000/disk"),
        };
        assert!(export.arguments(&files).contains(&"tcp:127.0.0.1:4000".into()));
        let first = Export { served_at: None, ..export };
        assert!(first.arguments(&files).contains(&"tcp:127.0.0.1:0".into()));
    }

    #[tokio::test]
    async fn a_point_is_not_served_without_what_was_written_over_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), Uuid::from_u128(1));
        let export = Export {
            program: Path::new("/bin/false"),
            vault: "file:///v",
            key_file: Path::new("/dev/null"),
            volume: Uuid::nil(),
            point: Uuid::nil(),
            listen: ExportListen::Unix,
            served_at: Some("nbd+unix:///d?socket=/s"),
        };
        let error = export.start(&files).await.unwrap_err();
        assert!(matches!(error, ProviderError::OverlayMissing { .. }), "{error}");
    }

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
