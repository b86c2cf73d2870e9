//! A thread that writes to a disk over NBD and notes what was issued and acknowledged.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::image::BLOCK_BYTES;
use crate::nbd::Client;
use crate::oracle::{Kind, WriteLog, block};
use crate::random::Random;
use crate::wait;

/// Blocks of the longest write.
const WRITE_BLOCKS_MAX: u64 = 16;
/// Time between two writes: several hundred per second, and the machine has time for the rest.
const PAUSE: Duration = Duration::from_millis(2);
/// How long an export may be away after its server was killed.
const RECONNECT_LIMIT: Duration = Duration::from_secs(60);

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    log: Arc<Mutex<WriteLog>>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Starts writing to the export that `uri` finds; it is asked again after each break.
    ///
    /// # Errors
    /// If nothing answers at the first URI.
    pub fn start(seed: u64, uri: impl Fn() -> Result<String> + Send + 'static) -> Result<Self> {
        let client = Client::connect(&uri()?)?;
        let log = Arc::new(Mutex::new(WriteLog::new(client.size)?));
        let is_stopping = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&log), Arc::clone(&is_stopping));
        let thread = thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let mut run = Run { client, log: shared, random: Random::new(seed) };
            while !stop.load(Ordering::Relaxed) {
                if run.step().is_err() {
                    run.client = reconnect(&uri)?;
                }
                thread::sleep(PAUSE);
            }
            run.client.flush().context("flush at the end")?;
            run.client.disconnect().context("say goodbye")
        })?;
        Ok(Self { log, is_stopping, thread: Some(thread) })
    }

    /// The log of all writes.
    pub fn log(&self) -> MutexGuard<'_, WriteLog> {
        lock(&self.log)
    }

    /// Waits until `writes` more were acknowledged.
    ///
    /// # Errors
    /// If that takes longer than `limit`, or the writer has ended.
    pub fn progress(&self, writes: usize, limit: Duration) -> Result<()> {
        let goal = self.log().issued() + writes;
        wait::until("the writer to go on", limit, || {
            let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if has_ended {
                return Err(anyhow!("the writer has ended: its export did not come back"));
            }
            Ok((self.log().acked() >= goal).then_some(()))
        })
    }

    /// Ends the writing, with a flush.
    ///
    /// # Errors
    /// What ended the thread before its time.
    pub fn stop(&mut self) -> Result<()> {
        self.is_stopping.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(end)) => end.context("write over NBD"),
            Some(Err(_)) => Err(anyhow!("the writer panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

fn lock(log: &Mutex<WriteLog>) -> MutexGuard<'_, WriteLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reconnect(uri: &impl Fn() -> Result<String>) -> Result<Client> {
    wait::until("the export to come back", RECONNECT_LIMIT, || {
        Ok(uri().and_then(|uri| Client::connect(&uri)).ok())
    })
}

struct Run {
    client: Client,
    log: Arc<Mutex<WriteLog>>,
    random: Random,
}

impl Run {
    /// One write, and now and then a flush.
    fn step(&mut self) -> io::Result<()> {
        let (first, blocks) = self.place();
        let kind = if self.random.below(10) == 0 { Kind::Zeroes } else { Kind::Data };
        let version = lock(&self.log).issue(first, blocks, kind);
        let offset = (first * BLOCK_BYTES) as u64;
        match kind {
            Kind::Zeroes => {
                let bytes = u32::try_from(blocks * BLOCK_BYTES).expect("a write is small");
                self.client.write_zeroes(offset, bytes)?;
            }
            Kind::Data => {
                let bytes: Vec<u8> =
                    (first..first + blocks).flat_map(|n| block(n as u64, version)).collect();
                let is_durable = self.random.below(8) == 0;
                self.client.write(offset, &bytes, is_durable)?;
            }
        }
        lock(&self.log).acknowledge(version);
        if self.random.below(16) == 0 {
            self.client.flush()?;
        }
        Ok(())
    }

    /// Half of the writes fall into the first sixteenth of the disk, so that blocks are rewritten.
    fn place(&mut self) -> (usize, usize) {
        let disk = self.client.size / BLOCK_BYTES as u64;
        let area = if self.random.below(2) == 0 { disk / 16 } else { disk };
        let blocks = 1 + self.random.below(WRITE_BLOCKS_MAX);
        let first = self.random.below(area.max(blocks + 1) - blocks);
        let index = |number: u64| usize::try_from(number).expect("the log has indexed the disk");
        (index(first), index(blocks))
    }
}
