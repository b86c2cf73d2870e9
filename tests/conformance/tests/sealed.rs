//! A log is sealed under a node that lives (P6): its shard goes on with a new log, and nobody else is
//! disturbed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use farshore_conformance::frame::Said;
use farshore_conformance::site::{Agent, Site, Volume};
use farshore_conformance::source::Source;
use farshore_conformance::stream::Stream;
use farshore_e2e::{Part, run, wait};
use farshore_proto::{Slot, VolumeId};
use farshore_vault::{Access, Store, Vault, epoch, key_file, log};

const BLOCKS: usize = 256;
const LIMIT: Duration = Duration::from_secs(60);

fn shard(volume: &Volume) -> u64 {
    let bytes = volume.id.into_bytes();
    u64::from_le_bytes(std::array::from_fn(|n| bytes[8 + n])) % 2
}

/// Two volumes of two shards. Which shard has a volume follows from its id, which is drawn.
fn two(site: &Site<'_>, agent: &Agent) -> Result<(Volume, Volume)> {
    let first = site.protect(agent, "disk-0")?;
    for n in 1..40 {
        let other = site.protect(agent, &format!("disk-{n}"))?;
        if shard(&other) != shard(&first) {
            return Ok((first, other));
        }
    }
    anyhow::bail!("forty volumes of one shard");
}

/// Seals the log that holds a volume, as another node would that takes one of its volumes over.
fn seal(site: &Site<'_>, volume: &Volume) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(&site.system.endpoint("vault")?, Access::Write)?;
        let key = key_file::read(&PathBuf::from(site.system.endpoint("key_file")?))?;
        let vault = Vault::open(&store, &key).await?;
        let epochs = epoch::read_epochs(&vault, VolumeId(volume.id.into_bytes())).await?;
        let last = epochs.last().context("the volume has an epoch")?;
        log::seal(&vault, last.log, Slot(0)).await?;
        Ok(())
    })
}

#[test]
fn a_sealed_log_ends_its_shards_log_and_nothing_else() {
    run(|system| {
        let site = Site::over(system)?;
        let counters = site.counters()?;
        if std::thread::available_parallelism()?.get() < 2 {
            println!("one CPU, one shard: nothing to tell apart ({counters:?})");
            return Ok(());
        }
        let agent = site.enrol("neighbours")?;
        let (ours, other) = two(&site, &agent)?;
        let stream_of = |volume: &Volume| Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS);
        let (mut stream, mut neighbour) = (stream_of(&ours), stream_of(&other));
        site.restores(&agent, &ours, &mut stream)?;
        site.restores(&agent, &other, &mut neighbour)?;
        let node = system.pid(Part::Node)?;

        // One session of each shard stands; then the log of one is sealed.
        drop(site.session(&agent, &other, &neighbour)?);
        let mut source = Source::connect(&agent, &other, neighbour)?;
        let mut peer = site.session(&agent, &ours, &stream)?;
        seal(&site, &ours)?;
        peer.send(&stream.some_write());
        let refused = wait::until("the end of the session", LIMIT, || match peer.said()? {
            Some(Said::Ack { .. }) => Ok(None),
            end => Ok(Some(end)),
        })?;
        println!("the session ended with {refused:?}");
        // The neighbour's session streams on, on its one connection.
        source.run(50, Duration::from_secs(2))?;
        site.same_node(node)?;

        // The volume goes on under the next epoch, in the shard's new log, from what is committed.
        let ours = site.next_epoch(&agent, &ours)?;
        let mut again = Stream::new(ours.id.into_bytes(), ours.epoch, BLOCKS);
        again.next = stream.next - 1;
        let mut next = site.session(&agent, &ours, &again)?;
        next.send(&again.some_write());
        wait::until("the write to be journaled", LIMIT, || match next.said()? {
            Some(Said::Ack { journaled, .. }) => Ok((journaled + 1 == again.next).then_some(())),
            end => anyhow::bail!("no ack but {end:?}"),
        })?;
        drop(next);
        site.restores(&agent, &ours, &mut again)?;
        let mut neighbour = source.stream.clone();
        drop(source);
        site.restores(&agent, &other, &mut neighbour)?;
        site.same_node(node)
    });
}
