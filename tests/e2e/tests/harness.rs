//! The harness against a server that is not ours: what it reports of Farshore can be believed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::wait;
use farshore_e2e::writer::Writer;

/// qemu-nbd on a Unix socket; ends with its one client.
struct Server(Child);

impl Server {
    fn start(disk: &Path, socket: &Path) -> Result<Self> {
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--format=raw", "--discard=unmap", "--socket"])
            .arg(socket)
            .arg(disk)
            .stdin(Stdio::null())
            .spawn()
            .context("start qemu-nbd (package qemu-utils)")?;
        wait::until("qemu-nbd", Duration::from_secs(20), || Ok(socket.exists().then_some(())))?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_writer_and_its_oracle_agree_with_another_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (disk, base) = (folder.path().join("disk"), folder.path().join("base"));
    let socket = folder.path().join("nbd sock");
    image::make(&disk, 8 * MIB, Content::Mixed(3))?;
    std::fs::copy(&disk, &base)?;
    let server = Server::start(&disk, &socket)?;
    let uri = format!("nbd+unix:///?socket={}", socket.display()).replace(' ', "%20");

    let mut writer = Writer::start(11, {
        let uri = uri.clone();
        move || Ok(uri.clone())
    })?;
    writer.progress(300, Duration::from_secs(60))?;
    writer.stop()?;
    let log = writer.log();
    assert_eq!(log.acked(), log.issued(), "nothing broke");

    let mut client = Client::connect(&uri)?;
    assert_eq!(client.size, 8 * MIB);
    let mut bytes = vec![0; 4096];
    client.read(0, &mut bytes)?;
    assert!(client.read(8 * MIB, &mut bytes).is_err(), "behind the end");
    client.disconnect()?;
    drop(server);

    let standing = log.check_disk(&disk, &base)?;
    assert!(standing.written_blocks > 300, "{standing:?}");
    let prefix = log.check_point(&disk, &base, log.acked(), log.issued())?;
    assert_eq!(prefix.version, log.issued());
    Ok(())
}
