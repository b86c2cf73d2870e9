//! The sampler: reads a little of a served disk all the time, and compares it with the prints of what
//! was sent.
//!
//! Drives [`farshore_engine::sampler`]. A unit is locked while it is read and compared, so that no write
//! is under way there; nothing is compared while anything is in doubt, copied or unknown. A unit that
//! differs was changed by somebody whom nobody saw (or the disk has forgotten what was written to it, or
//! we have a mistake): that is noted durably and told, and the unit is read again and sent. A block
//! of which nothing is known, as after its file was lost, is learnt from the disk.
//!
//! A scanned disk has no sampler: each pass compares all of it.

use super::prints::{Prints, UNKNOWN, print_of};
use super::splitter::{Core, Splitter};
use super::steps::Call;
use crate::clock::{Clock, unix_ms};
use crate::rt::ReadFile;
use crate::state::Difference;
use crate::stream::Stream;
use farshore_engine::doubt::Regions;
use farshore_engine::sampler::{Budget, Found, Input, Output, Sampler, Settings};
use farshore_proto::BlockRange;
use farshore_proto::limits::{BLOCK_BYTES, SAMPLE_BYTES, blocks_of};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes a second that the samplers of an agent read together, unless the operator says otherwise.
pub const RATE_DEFAULT: u64 = 1 << 20;
const UNIT_BLOCKS: u64 = (SAMPLE_BYTES / BLOCK_BYTES) as u64;
/// Between two times that noted prints are written.
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// Pause while nothing can be compared.
#[cfg(not(test))]
const IDLE_PAUSE: Duration = Duration::from_secs(1);
#[cfg(test)]
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// Between two attempts to have what differs read again.
const MEND_PAUSE: Duration = Duration::from_secs(1);

/// What the samplers of one agent share.
#[derive(Debug, Clone)]
pub struct Pace {
    budget: Arc<Mutex<Budget>>,
}

impl Pace {
    /// So many bytes a second, all disks together; none for none.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        let budget = (bytes_per_second > 0).then(|| Budget::new(bytes_per_second))?;
        Some(Self { budget: Arc::new(Mutex::new(budget)) })
    }

    /// Waits for the disk's turn.
    async fn turn(&self, clock: Clock) {
        let at = {
            let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
            budget.take(clock.now(), SAMPLE_BYTES as u64)
        };
        tokio::time::sleep_until(clock.instant(at)).await;
    }
}

/// What a sampler has done since the disk is served.
#[derive(Debug, Default)]
pub struct Sampled {
    /// Bytes that were compared.
    pub bytes: AtomicU64,
    /// Times that the whole disk was.
    pub rounds: AtomicU64,
}

/// The sampler of one served disk.
#[derive(Debug)]
pub struct Sampling {
    /// The disk.
    pub splitter: Arc<Splitter>,
    /// What was sent of it.
    pub prints: Arc<Prints>,
    /// Reads it.
    pub reads: ReadFile,
    /// Its stream.
    pub stream: Arc<Stream>,
    /// Shared with the other disks.
    pub pace: Pace,
    /// The agent's clock.
    pub clock: Clock,
}

impl Sampling {
    /// Writes prints and samples until dropped; the latter once the log joins the node's stream.
    pub async fn run(self) {
        let draw = getrandom::u64().unwrap_or_default();
        tokio::join!(self.write_prints(), async {
            // While its sender is there, which the stream has.
            let mut joined = self.stream.joined();
            while joined.wait_for(|joined| *joined).await.is_ok() {
                // A disk that grows is begun anew.
                let blocks = blocks_of(self.splitter.core.disk.size_bytes());
                let units = blocks.div_ceil(UNIT_BLOCKS);
                let mut sampler = Sampler::new(Settings::default(), units, draw);
                while blocks_of(self.splitter.core.disk.size_bytes()) == blocks {
                    self.look_once(&mut sampler, blocks).await;
                }
            }
        });
    }

    async fn write_prints(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(WRITE_PAUSE) => {}
                () = self.prints.crowded() => {}
            }
            let prints = Arc::clone(&self.prints);
            let written = self.blocking(move |_| {
                prints.write();
                Ok(())
            });
            if let Err(error) = written.await {
                tracing::error!(%error, "prints are not written");
            }
        }
    }

    async fn look_once(&self, sampler: &mut Sampler, blocks: u64) {
        if !self.splitter.is_consistent() || self.prints.is_given_up() {
            return tokio::time::sleep(IDLE_PAUSE).await;
        }
        tokio::time::sleep_until(self.clock.instant(sampler.due())).await;
        self.pace.turn(self.clock).await;
        let mut out = Vec::new();
        sampler.step(self.clock.now(), Input::Tick, &mut out);
        for output in std::mem::take(&mut out) {
            let Output::Look { unit } = output else { continue };
            let found = match self.look_at(unit_of(unit, blocks)).await {
                Ok(found) => found,
                Err(error) => {
                    let path = self.splitter.core.disk.path().display();
                    tracing::warn!(disk = %path, %error, "a sample cannot be compared");
                    Found::Nothing
                }
            };
            sampler.step(self.clock.now(), Input::Looked(found), &mut out);
        }
        self.splitter.core.sampled.rounds.fetch_max(sampler.rounds(), Ordering::Relaxed);
        for output in out {
            while let Err(error) = self.mend(output, blocks).await {
                let path = self.splitter.core.disk.path().display();
                tracing::error!(disk = %path, %error, "what differs is not read again yet: no marks");
                tokio::time::sleep(MEND_PAUSE).await;
            }
        }
    }

    async fn look_at(&self, range: BlockRange) -> io::Result<Found> {
        let core = &self.splitter.core;
        let length = usize::try_from(range.bytes()).map_err(io::Error::other)?;
        let share = self.reads.share(length).await?;
        // Held by whoever compares, even if nobody waits for that any more.
        let held = (core.locks.lock(range).await, share);
        if !self.splitter.is_consistent() || !core.unknown.within(range).is_empty() {
            return Ok(Found::Nothing);
        }
        let call = core.steps.call(Call::Read { offset: range.offset(), length: range.bytes() });
        let read = match call {
            Ok(()) => self.reads.read(range.offset(), length).await,
            Err(error) => Err(error),
        };
        let read = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
            Err(error) => {
                // Whoever reads it again finds out which blocks cannot be read.
                drop(held);
                self.doubt(range).await?;
                return Err(error);
            }
        };
        let (prints, stream) = (Arc::clone(&self.prints), Arc::clone(&self.stream));
        self.blocking(move |core| {
            let found = compare(core, &prints, range, &read)?;
            core.sampled.bytes.fetch_add(range.bytes(), Ordering::Relaxed);
            if let Some(difference) = found {
                // Before anybody hears of it: a point that is set from here on is the disk again.
                core.differs.store(true, Ordering::SeqCst);
                stream.log.breach();
                note(core, &stream, difference);
            }
            drop(held);
            Ok(if found.is_some() { Found::Difference } else { Found::Same })
        })
        .await
    }

    async fn mend(&self, output: Output, blocks: u64) -> io::Result<()> {
        match output {
            Output::Look { .. } => return Ok(()),
            Output::Mend { unit } => {
                self.doubt(unit_of(unit, blocks)).await?;
                // Its intents say so from here on.
                let stream = Arc::clone(&self.stream);
                self.blocking(move |_| {
                    if let Err(error) = stream.state.update(|state| state.differs = false) {
                        tracing::debug!(%error, "a start may read the whole disk again");
                    }
                    Ok(())
                })
                .await?;
            }
            Output::MendAll => {
                let stream = Arc::clone(&self.stream);
                self.blocking(move |_| {
                    stream.reread();
                    Ok(())
                })
                .await?;
            }
        }
        self.splitter.core.differs.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Puts blocks in doubt: they are read again and sent, and no mark is set before.
    async fn doubt(&self, range: BlockRange) -> io::Result<()> {
        self.stream.log.breach();
        let gate = self.splitter.gate();
        let pass = gate.enter(Regions::of(range)).await;
        gate.leave(pass, false);
        Ok(())
    }

    /// Work on another thread, for which an end of the capture waits.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let core = Arc::clone(&self.splitter.core);
        tokio::task::spawn_blocking(move || work(&core)).await.map_err(io::Error::other)?
    }
}

fn unit_of(unit: u64, blocks: u64) -> BlockRange {
    let block = unit * UNIT_BLOCKS;
    BlockRange { block, count: UNIT_BLOCKS.min(blocks - block) }
}

/// What of the blocks is not what was sent; what nothing is known of is learnt. The caller holds them;
/// blocks the thread.
fn compare(
    core: &Core,
    prints: &Prints,
    range: BlockRange,
    read: &[u8],
) -> io::Result<Option<Difference>> {
    let known = prints.read(range)?;
    if differing(range, &known, read).is_none() {
        for ((block, known), data) in (range.block..).zip(&known).zip(read.chunks(BLOCK_BYTES)) {
            if *known == UNKNOWN {
                prints.learn(block, print_of(data));
            }
        }
        return Ok(None);
    }
    // What the disk says to whoever asks next counts, not what one read brought.
    core.disk.forget_cached_range(range.offset(), range.bytes())?;
    let again = core.read_blocks(range)?;
    let Some((first, last)) = differing(range, &known, &again) else {
        let (path, offset) = (core.disk.path().display(), range.offset());
        tracing::error!(disk = %path, offset, "a read of the disk brought other bytes than the next");
        return Ok(None);
    };
    let offset = first * BLOCK_BYTES as u64;
    let end = ((last + 1) * BLOCK_BYTES as u64).min(core.disk.size_bytes());
    Ok(Some(Difference { offset, length: end - offset, time_unix_ms: unix_ms() }))
}

/// The first and the last block that differ.
fn differing(range: BlockRange, known: &[u32], read: &[u8]) -> Option<(u64, u64)> {
    let blocks = (range.block..).zip(known).zip(read.chunks(BLOCK_BYTES));
    let mut differ = blocks
        .filter(|((_, known), data)| **known != UNKNOWN && **known != print_of(data))
        .map(|((block, _), _)| block);
    let first = differ.next()?;
    Some((first, differ.last().unwrap_or(first)))
}

/// Notes a difference durably, before it is mended: a kill in between means that a start reads the whole disk.
fn note(core: &Core, stream: &Stream, difference: Difference) {
    let (path, volume) = (core.disk.path().display(), stream.volume);
    let Difference { offset, length, .. } = difference;
    tracing::error!(
        disk = %path, %volume, offset, length,
        "the disk is not what was sent: somebody wrote it unseen, or it forgot; it is read again"
    );
    let noted = stream.state.update(|state| {
        state.differences += 1;
        state.difference = Some(difference);
        state.differs = true;
    });
    if let Err(error) = noted {
        // It holds in memory, and the next update writes it. No mark is set before its intents are durable, or
        // void.
        tracing::warn!(disk = %path, %error, "the difference cannot be noted durably yet");
    }
}
