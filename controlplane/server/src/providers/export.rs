//! The export: `farshore-node export` serves a recovery point read-write on an overlay.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use farshore_api::failover::ExportListen;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::confine::Confinement;
use super::process::{Launch, Trust};
use super::{ProviderError, process};
use crate::db::Process;

/// How long an export may take to serve: it reads the volume's newest map and the extents above it.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often the ready file is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Longest path of a Unix socket (`sun_path` without its zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Begins the names of folders with what was written over points that earlier tries took.
const ASIDE: &str = "before-";

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
        private_dir(&self.guest_dir())?;
        private_dir(&self.control_dir())
    }

    /// Where a machine works: its user may pass through, and has in it what was handed to it.
    #[must_use]
    pub fn guest_dir(&self) -> PathBuf {
        self.dir.join("guest")
    }

    /// Hands what the machine needs to the user that it runs as. The disk's socket is a new one after
    /// each start of the export.
    ///
    /// # Errors
    /// `File`.
    pub fn hand_over(&self, confinement: &Confinement) -> Result<(), ProviderError> {
        if !confinement.has_user() {
            return Ok(());
        }
        for dir in [self.guest_dir(), self.socket_dir()] {
            confinement.let_through(&dir)?;
        }
        let console = self.console();
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&console)
            .map_err(|source| ProviderError::file("create", &console, source))?;
        let own = [console, self.firmware_variables(), self.socket(), self.control_dir()];
        // Not every firmware has variables, and not every disk is served on a socket.
        own.iter().filter(|path| path.exists()).try_for_each(|path| confinement.hand_over(path))
    }

    /// A path as a program sees it that works in the guest's directory.
    #[must_use]
    pub fn for_guest(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.guest_dir()).unwrap_or(path).to_owned()
    }

    /// Where the machine finds its disk, which is served at `nbd_uri`.
    #[must_use]
    pub fn disk_for_guest(&self, nbd_uri: &str) -> OsString {
        let socket = self.socket();
        let is_here = socket.to_str().and_then(|socket| nbd_uri.strip_suffix(socket));
        let mut uri = OsString::from(is_here.unwrap_or(nbd_uri));
        if is_here.is_some() {
            uri.push(self.for_guest(&socket));
        }
        uri
    }

    /// The socket on which QEMU takes commands. It makes it, so the directory is its own.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.control_dir().join("qmp.sock")
    }

    fn control_dir(&self) -> PathBuf {
        self.socket_dir().join("own")
    }

    /// Space that the overlay takes, and those that were put aside; none if there is none.
    #[must_use]
    pub fn overlay_bytes(&self) -> Option<u64> {
        let aside = self.list().unwrap_or_default().into_iter().map(|entry| entry.path());
        let aside = aside.filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ASIDE))
        });
        let overlays = aside.map(|path| path.join("overlay")).chain([self.overlay()]);
        let bytes = overlays.filter_map(|path| {
            let overlay = fs::metadata(path).ok()?;
            Some(overlay.blocks().saturating_mul(512))
        });
        bytes.reduce(u64::saturating_add)
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
        self.guest_dir().join("console.log")
    }

    /// What the machine's firmware remembers.
    #[must_use]
    pub fn firmware_variables(&self) -> PathBuf {
        self.guest_dir().join("firmware-variables.fd")
    }

    fn socket(&self) -> PathBuf {
        self.socket_dir().join("nbd.sock")
    }

    /// The sockets lie in the guest's directory, unless their paths are longer than the kernel takes:
    /// then in a private directory under the system's temporary one.
    fn socket_dir(&self) -> PathBuf {
        let near = self.guest_dir();
        let longest = near.join("own/qmp.sock");
        if longest.as_os_str().len() <= SOCKET_PATH_BYTES_MAX { near } else { self.far_dir() }
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

    /// Puts what was written over another point aside, where it stays until all is removed: an earlier try
    /// took that one. From here on the overlay is of `point`.
    fn keep_overlay_of(&self, point: Uuid) -> Result<(), ProviderError> {
        let note = self.dir.join("point");
        match fs::read_to_string(&note) {
            Ok(before) if before == point.to_string() => return Ok(()),
            Ok(before) => match before.parse() {
                Ok(before) => self.put_overlay_aside(before)?,
                // Cut off by a power cut. The overlay itself says whose it is, and is refused if it is
                // another point's.
                Err(_) => {
                    warn!(path = %note.display(), "whose overlay this is was not noted durably")
                }
            },
            // The first try.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(ProviderError::file("read", note, error)),
        }
        let new = note.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&new)?;
            file.write_all(point.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &note)?;
            fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| ProviderError::file("write", note, error))
    }

    fn put_overlay_aside(&self, before: Uuid) -> Result<(), ProviderError> {
        let aside = self.dir.join(format!("{ASIDE}{before}"));
        private_dir(&aside)?;
        for entry in self.list()? {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("overlay") {
                fs::rename(entry.path(), aside.join(&name))
                    .map_err(|error| ProviderError::file("put aside", entry.path(), error))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<fs::DirEntry>, ProviderError> {
        let read = || fs::read_dir(&self.dir)?.collect::<io::Result<Vec<_>>>();
        read().map_err(|error| ProviderError::file("read", &self.dir, error))
    }

    /// Exports of this failover, noted down or not.
    ///
    /// # Errors
    /// `File` if that cannot be found out.
    pub fn exports(&self) -> Result<Vec<Process>, ProviderError> {
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
            // A newer version's way: nobody but us gets in by a socket.
            ExportListen::Unix | ExportListen::Unknown => {
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
    /// `KeyMissing`, `Missing`, `Start`, `File`, `Unseen`, `Lasting`; `OverlayMissing` if it served before and its overlay
    /// is gone: the point alone would silently be without what was written.
    pub async fn start(&self, files: &Files) -> Result<Process, ProviderError> {
        let mut found = files.exports()?.into_iter();
        if let Some(export) = found.next() {
            // The overlay takes one only; another waits for nothing.
            for stray in found {
                process::stop(stray).await?;
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
        files.keep_overlay_of(self.point)?;
        process::start(&Launch {
            program: self.program,
            arguments: &self.arguments(files),
            trust: Trust::Store,
            dir: None,
            log: &files.export_log(),
            hint: "put it beside farshore-control, or name its directory with --farshore-bin-dir",
        })
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

    /// C9: a retry takes a newer point than the try before; what was written over that one is kept.
    #[test]
    fn an_overlay_of_another_point_is_put_aside_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), Uuid::from_u128(1));
        files.create().unwrap();
        assert_eq!(files.overlay_bytes(), None);
        let (first, second) = (Uuid::from_u128(2), Uuid::from_u128(3));
        files.keep_overlay_of(first).unwrap();
        for name in ["overlay", "overlay.map"] {
            fs::write(files.dir().join(name), [1; 4096]).unwrap();
        }
        let bytes = files.overlay_bytes();
        files.keep_overlay_of(first).unwrap();
        assert!(files.overlay().exists(), "it is of this point");
        files.keep_overlay_of(second).unwrap();
        assert!(!files.overlay().exists() && !files.dir().join("overlay.map").exists());
        let aside = files.dir().join(format!("before-{first}"));
        assert!(aside.join("overlay").exists() && aside.join("overlay.map").exists());
        assert!(bytes.is_some() && files.overlay_bytes() == bytes, "a clean-up names it");
        files.keep_overlay_of(second).unwrap();
        files.remove().unwrap();
        assert!(!aside.exists());
    }

    /// C9: an export that runs before it is noted whose overlay it writes may be killed with an overlay that
    /// the next try takes for its own.
    #[tokio::test]
    async fn nothing_is_exported_before_it_is_noted_of_which_point_its_overlay_is() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("export");
        let mut script = OpenOptions::new();
        let script = script.create(true).write(true).mode(0o700).open(&program);
        script.unwrap().write_all(b"#!/bin/sh\nwhile :; do sleep 1; done\n").unwrap();
        let files = Files::new(dir.path(), Uuid::from_u128(1));
        files.create().unwrap();
        let export = Export {
            program: &program,
            vault: "file:///v",
            key_file: Path::new("/dev/null"),
            volume: Uuid::nil(),
            point: Uuid::from_u128(2),
            listen: ExportListen::Unix,
            served_at: None,
        };
        // In the way of the note.
        let in_the_way = files.dir().join("point.new");
        fs::create_dir(&in_the_way).unwrap();
        let refused = export.start(&files).await;
        let started = files.exports().unwrap();
        for export in &started {
            process::stop(*export).await.unwrap();
        }
        assert!(matches!(refused, Err(ProviderError::File { .. })), "{refused:?}");
        assert!(started.is_empty(), "{started:?}");
        fs::remove_dir(&in_the_way).unwrap();
        let export = export.start(&files).await.unwrap();
        process::stop(export).await.unwrap();
        let noted = fs::read_to_string(files.dir().join("point")).unwrap();
        assert_eq!(noted, Uuid::from_u128(2).to_string());
    }

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
        for far in [Files::new(&long, id).socket(), Files::new(&long, id).control()] {
            assert!(far.as_os_str().len() <= SOCKET_PATH_BYTES_MAX, "{}", far.display());
        }
    }

    #[test]
    fn a_machine_finds_its_disk_from_where_it_works() {
        let files = Files::new(Path::new("/srv"), Uuid::from_u128(1));
        let uri = format!("nbd+unix:///?socket={}", files.socket().display());
        assert_eq!(files.disk_for_guest(&uri), "nbd+unix:///?socket=nbd.sock");
        assert_eq!(files.disk_for_guest("nbd://127.0.0.1:4000"), "nbd://127.0.0.1:4000");
        let files = Files::new(&PathBuf::from(format!("/{}", "d".repeat(90))), Uuid::from_u128(1));
        let uri = format!("nbd+unix:///?socket={}", files.socket().display());
        assert_eq!(files.disk_for_guest(&uri), *uri, "it lies elsewhere");
    }
}
