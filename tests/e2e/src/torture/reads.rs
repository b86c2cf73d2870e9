//! A recovery point that is read while the store is away.

use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::faults::Struck;
use super::site::{Guest, Site};
use crate::image;
use crate::nbd::Client;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

impl Site {
    /// A drill's disk is read from its first byte to its last while the vault is away for `hold`: its
    /// reads wait, go on when the vault is back, and bring the right bytes (S13).
    pub(super) fn store_away_while_read(&self, hold: Duration) -> Result<Struck> {
        let guest = self.guests.last().context("there are guests")?;
        let machine = &guest.machine;
        let point = machine.mark()?;
        let (expected, found) = (self.system.path("drill.point"), self.system.path("drill.read"));
        machine.export(&point, &expected)?;
        let points = guest.points(&self.system)?;
        let listed = points.iter().find(|listed| listed.id == point);
        guest.judge(&expected, listed.with_context(|| format!("{point} is not listed"))?)?;
        let (id, uri) = self.drill(guest, &point)?;
        let done = self.read_without_a_vault(&uri, &found, hold);
        let cleaned = self.system.farshore().ok(&format!("failover cleanup {id} --yes"));
        let struck = done?;
        cleaned?;
        image::compare(&expected, &found).context("what was read of the drill is not the point")?;
        fs::remove_file(&expected)?;
        fs::remove_file(&found)?;
        Ok(struck)
    }

    /// Starts a drill; its id, and where it is served.
    fn drill(&self, guest: &Guest, point: &str) -> Result<(String, String)> {
        let line = format!("failover drill {} --point {point} --serve-only", guest.machine.name);
        let drill: Value = self.system.farshore().json(&line)?;
        let text = |name: &str| {
            let text = drill[name].as_str().map(str::to_owned);
            text.with_context(|| format!("the drill has no {name}: {drill}"))
        };
        Ok((text("id")?, text("nbd_uri")?))
    }

    fn read_without_a_vault(&self, uri: &str, to: &Path, hold: Duration) -> Result<Struck> {
        let client = Client::connect(uri)?;
        let begun = Instant::now();
        let mut reading = None;
        let struck = self.vault_away(hold, || {
            reading = Some(read_all(client)?);
            Ok(())
        });
        let struck = struck?;
        let reading = reading.context("nothing was read")?;
        let read = reading.join().map_err(|_| anyhow!("the reader panicked"))?;
        let (bytes, ended) = read.context("a read of the drill did not wait for the vault")?;
        // Or it tells nothing of a vault that is away.
        ensure!(ended.duration_since(begun) >= hold, "the drill was read without its vault");
        fs::write(to, bytes).with_context(|| format!("write {}", to.display()))?;
        Ok(struck)
    }
}

/// The bytes of a disk, and when the last of them was read.
type Reading = JoinHandle<Result<(Vec<u8>, Instant)>>;

/// Reads a disk in a thread of its own.
fn read_all(mut client: Client) -> Result<Reading> {
    let read = move || {
        let mut bytes = vec![0; usize::try_from(client.size)?];
        for (number, part) in bytes.chunks_mut(READ_BYTES).enumerate() {
            client.read((number * READ_BYTES) as u64, part)?;
        }
        let ended = Instant::now();
        client.disconnect()?;
        Ok((bytes, ended))
    };
    thread::Builder::new().name("reader".to_owned()).spawn(read).context("start a reader")
}
