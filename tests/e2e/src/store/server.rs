//! A store server of its own for a test.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::azurite;
use crate::command::binaries;
use crate::wait;

const START_LIMIT: Duration = Duration::from_secs(60);
/// Bucket or container of every server.
const BUCKET: &str = "vaults";
/// The credential of every S3 server.
const KEY_ID: &str = "farshore-test";
const SECRET: &str = "a-secret-of-this-test";
/// SeaweedFS listens for gRPC so much above each of its ports.
const GRPC_OFFSET: u16 = 10_000;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// S3, with conditional puts that answer 412.
    SeaweedFs,
    /// Azure Blob, where an object that exists answers 409.
    Azurite,
    /// S3 as `rclone serve s3` speaks it: it ignores `If-None-Match`.
    Rclone,
}

/// A running store. Dropped, it is gone with all that it held.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    child: Child,
    folder: TempDir,
    /// Where it listens.
    pub port: u16,
}

impl Server {
    /// Starts a server with an empty bucket and waits until it answers.
    ///
    /// # Errors
    /// If it is not installed or does not answer in time.
    pub fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("farshore-store-").tempdir()?;
        let port = free_port()?;
        let log = File::create(folder.path().join("store.log")).context("create store.log")?;
        let mut command = match kind {
            Kind::SeaweedFs => seaweedfs(folder.path(), port)?,
            Kind::Azurite => azurite(folder.path(), port)?,
            Kind::Rclone => rclone(folder.path(), port)?,
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {kind:?}"))?;
        let mut server = Self { kind, child, folder, port };
        server.wait_until_it_answers().with_context(|| server.log())?;
        Ok(server)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        wait::until(&format!("{:?} to answer", self.kind), START_LIMIT, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{:?} ended with {status}", self.kind);
            }
            Ok(TcpStream::connect(address).ok().map(drop))
        })?;
        match self.kind {
            Kind::Azurite => azurite::make_container(self.port, BUCKET),
            // It listens long before its parts know each other.
            Kind::SeaweedFs => wait::until("SeaweedFS to be ready", START_LIMIT, || {
                let log = fs::read_to_string(self.folder.path().join("store.log"))?;
                Ok(log.contains("running and ready").then_some(()))
            }),
            Kind::Rclone => Ok(()),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("store.log")).unwrap_or_default()
    }

    /// URL of a vault in a folder of the bucket.
    #[must_use]
    pub fn vault(&self, folder: &str) -> String {
        self.in_bucket(BUCKET, folder)
    }

    /// URL of a folder in another bucket.
    #[must_use]
    pub fn in_bucket(&self, bucket: &str, folder: &str) -> String {
        let scheme = match self.kind {
            Kind::Azurite => "az",
            Kind::SeaweedFs | Kind::Rclone => "s3",
        };
        format!("{scheme}://{bucket}/{folder}")
    }

    /// What the environment must say to reach it.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment_at(self.port)
    }

    /// As [`Self::environment`], by way of a port that leads there.
    #[must_use]
    pub fn environment_at(&self, port: u16) -> Vec<(String, String)> {
        let pairs = match self.kind {
            Kind::Azurite => {
                vec![("AZURE_STORAGE_CONNECTION_STRING", azurite::connection_string(port))]
            }
            Kind::SeaweedFs | Kind::Rclone => vec![
                ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
                ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ],
        };
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Variables with something in them that the store must not accept, one at a time.
    #[must_use]
    pub fn wrong_credentials(&self) -> Vec<(&'static str, String)> {
        match self.kind {
            Kind::Azurite => {
                let string = azurite::connection_string(self.port);
                let other_key = string.replace("AccountKey=Eby8", "AccountKey=Eby9");
                vec![("AZURE_STORAGE_CONNECTION_STRING", other_key)]
            }
            Kind::SeaweedFs | Kind::Rclone => vec![
                ("AWS_ACCESS_KEY_ID", "somebody-else".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "another-secret".to_owned()),
            ],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("cannot end {:?}: {error}", self.kind);
        }
    }
}

/// What `cargo xtask servers` left below `target/servers`: a program, or a folder of modules.
///
/// # Errors
/// If it is not there.
pub fn installed(path: &str) -> Result<PathBuf> {
    let target = binaries()?;
    let target = target.parent().context("the folder that cargo builds into")?;
    let path = target.join("servers").join(path);
    ensure!(path.exists(), "{} is missing: run `cargo xtask servers`", path.display());
    Ok(path)
}

fn seaweedfs(folder: &Path, port: u16) -> Result<Command> {
    let mut command = Command::new(installed("seaweedfs/bin/weed")?);
    command
        .current_dir(folder)
        .env("AWS_ACCESS_KEY_ID", KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"])
        .arg(format!("-dir={}", folder.display()))
        .arg(format!("-bucket={BUCKET}"))
        .arg(format!("-s3.port={port}"));
    for part in ["master", "filer", "volume", "admin"] {
        command.arg(format!("-{part}.port={}", free_port()?));
    }
    Ok(command)
}

fn azurite(folder: &Path, port: u16) -> Result<Command> {
    let mut command = Command::new("node");
    command
        .current_dir(folder)
        .arg(installed("azurite/node_modules/azurite/dist/src/blob/main.js")?)
        .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--silent"])
        .args(["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]);
    Ok(command)
}

fn rclone(folder: &Path, port: u16) -> Result<Command> {
    fs::create_dir(folder.join(BUCKET)).context("create the bucket")?;
    let mut command = Command::new(installed("rclone/bin/rclone")?);
    command
        .current_dir(folder)
        .env("RCLONE_CONFIG", folder.join("rclone.conf"))
        .args(["serve", "s3", "--addr", &format!("127.0.0.1:{port}")])
        .args(["--auth-key", &format!("{KEY_ID},{SECRET}")])
        .arg(folder);
    Ok(command)
}

/// A port that nobody listens on right now, neither there nor where its gRPC twin would be.
fn free_port() -> Result<u16> {
    for _ in 0..1000 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let Some(twin) = port.checked_add(GRPC_OFFSET) else { continue };
        if TcpListener::bind(("127.0.0.1", twin)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no pair of ports is free")
}
