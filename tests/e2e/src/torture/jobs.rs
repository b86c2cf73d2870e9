//! Guests: jobs as fio has them, each on a connection of its own, noting all they do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::watch::Violations;
use crate::image::BLOCK_BYTES;
use crate::nbd::Client;
use crate::oracle::{Kind, WriteLog};
use crate::random::Random;
use crate::wait;

/// How long an export may be away after its server was killed.
const RECONNECT_LIMIT: Duration = Duration::from_secs(120);
/// Time between two looks of a lane that waits.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Between the seeds of two logs of one disk; those of other disks and runs are not so far apart.
const SEED_STEP: u64 = 1 << 48;

/// What a lane does.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// Small writes into the first sixteenth of the disk.
    Hot,
    /// 4 to 256 KiB anywhere.
    Random,
    /// 64 to 256 KiB, one behind the other.
    Sequential,
    /// Zeros and trims of 4 to 256 KiB anywhere, small writes into the hot part, many flushes.
    Zeroing,
}

const JOBS: [Job; 4] = [Job::Hot, Job::Random, Job::Sequential, Job::Zeroing];

impl Job {
    /// Blocks of its requests, each as likely as often as it stands here.
    const fn sizes(self) -> &'static [u64] {
        match self {
            Self::Hot => &[1, 1, 1, 2, 4],
            Self::Random => &[1, 1, 2, 4, 8, 16, 32, 64],
            Self::Sequential => &[16, 32, 64],
            Self::Zeroing => &[1, 2, 8, 32, 64],
        }
    }

    /// Pause between two requests: together some megabytes a second.
    const fn pause_ms(self) -> u64 {
        match self {
            Self::Hot => 5,
            Self::Random | Self::Zeroing => 40,
            Self::Sequential => 120,
        }
    }

    /// One write in so many is to be on the disk when it is answered.
    const fn durable_one_in(self) -> u64 {
        match self {
            Self::Hot | Self::Random => 8,
            Self::Sequential | Self::Zeroing => 24,
        }
    }
}

#[derive(Debug)]
struct Shared {
    log: Mutex<WriteLog>,
    uri: String,
    /// What the disk held when the log began.
    base: Mutex<File>,
    violations: Arc<Violations>,
    is_stopping: AtomicBool,
    is_paused: AtomicBool,
    lanes: Vec<Lane>,
    /// The longest that a request on a connection that held took, in milliseconds.
    slowest_ms: AtomicU64,
    breaks: AtomicU64,
    reads: AtomicU64,
}

#[derive(Debug, Default)]
struct Lane {
    answered: AtomicU64,
    is_parked: AtomicBool,
}

/// The jobs on one disk.
#[derive(Debug)]
pub(super) struct Jobs {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Jobs {
    /// Starts every job on the export at `uri`, whose disk held what is in `base`.
    pub(super) fn start(
        seed: u64,
        uri: &str,
        base: &Path,
        violations: &Arc<Violations>,
        slowness: u64,
    ) -> Result<Self> {
        let base = File::open(base).with_context(|| format!("open {}", base.display()))?;
        let bytes = base.metadata()?.len();
        let shared = Arc::new(Shared {
            log: Mutex::new(WriteLog::with_seed(bytes, seed)?),
            uri: uri.to_owned(),
            base: Mutex::new(base),
            violations: Arc::clone(violations),
            is_stopping: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            lanes: JOBS.iter().map(|_| Lane::default()).collect(),
            slowest_ms: AtomicU64::new(0),
            breaks: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        for (number, job) in JOBS.into_iter().enumerate() {
            let client = Client::connect(uri)?;
            let worker = Worker {
                shared: Arc::clone(&shared),
                number: u32::try_from(number)?,
                job,
                disk_blocks: bytes / BLOCK_BYTES as u64,
                client,
                random: Random::new(seed.wrapping_mul(31).wrapping_add(number as u64)),
                cursor: 0,
                slowness,
            };
            let name = format!("{job:?}");
            threads.push(thread::Builder::new().name(name).spawn(move || worker.run())?);
        }
        Ok(Self { shared, threads })
    }

    /// The log of all writes.
    pub(super) fn log(&self) -> MutexGuard<'_, WriteLog> {
        self.shared.log()
    }

    /// Waits until every lane has had so many more answers.
    pub(super) fn progress(&self, answers: u64, limit: Duration) -> Result<()> {
        let count = |lane: &Lane| lane.answered.load(Ordering::Relaxed);
        let goals: Vec<u64> = self.shared.lanes.iter().map(|lane| count(lane) + answers).collect();
        wait::until("every job to go on", limit, || {
            self.shared.violations.check()?;
            let mut lanes = self.shared.lanes.iter().zip(&goals);
            Ok(lanes.all(|(lane, goal)| count(lane) >= *goal).then_some(()))
        })
    }

    /// Answers that all lanes have had.
    pub(super) fn answers(&self) -> u64 {
        self.shared.lanes.iter().map(|lane| lane.answered.load(Ordering::Relaxed)).sum()
    }

    /// Lets no lane begin anything new, and waits until all have flushed and rest.
    pub(super) fn pause(&self, limit: Duration) -> Result<()> {
        self.shared.is_paused.store(true, Ordering::SeqCst);
        wait::until("every job to rest", limit, || {
            self.shared.violations.check()?;
            let mut lanes = self.shared.lanes.iter();
            Ok(lanes.all(|lane| lane.is_parked.load(Ordering::SeqCst)).then_some(()))
        })
    }

    /// While all lanes rest: the disk was put back to what is in `base`. From now on a new log counts;
    /// returns the one that ended.
    pub(super) fn roll_back(&self, base: &Path) -> Result<WriteLog> {
        let file = File::open(base).with_context(|| format!("open {}", base.display()))?;
        let bytes = file.metadata()?.len();
        let mut log = self.shared.log();
        // Blocks of before must not pass for blocks of from now on.
        let fresh = WriteLog::with_seed(bytes, log.seed().wrapping_add(SEED_STEP))?;
        *self.shared.base() = file;
        Ok(std::mem::replace(&mut *log, fresh))
    }

    /// Lets all lanes go on.
    pub(super) fn resume(&self) {
        self.shared.is_paused.store(false, Ordering::SeqCst);
    }

    /// Ends all lanes.
    pub(super) fn stop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared.violations.note("a job panicked".to_owned());
            }
        }
    }

    /// The longest that a request took on a connection that held.
    pub(super) fn slowest(&self) -> Duration {
        Duration::from_millis(self.shared.slowest_ms.load(Ordering::Relaxed))
    }

    /// Connections that broke, and blocks read back.
    pub(super) fn breaks_and_reads(&self) -> (u64, u64) {
        let shared = &self.shared;
        (shared.breaks.load(Ordering::Relaxed), shared.reads.load(Ordering::Relaxed))
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, WriteLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn base(&self) -> MutexGuard<'_, File> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }
}

struct Worker {
    shared: Arc<Shared>,
    number: u32,
    job: Job,
    disk_blocks: u64,
    client: Client,
    random: Random,
    cursor: u64,
    /// Multiplies the pauses.
    slowness: u64,
}

impl Worker {
    fn run(mut self) {
        while !self.shared.is_stopping() {
            let is_paused = self.shared.is_paused.load(Ordering::SeqCst);
            let begun = Instant::now();
            let done = if is_paused { self.client.flush() } else { self.step() };
            let done = done.map_err(|error| (error, begun.elapsed()));
            if let Err((error, after)) = done {
                if let Err(end) = self.connect_again(&error, after) {
                    self.shared.violations.note(format!("{:?} gave up: {end:#}", self.job));
                    return;
                }
                continue;
            }
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.shared.slowest_ms.fetch_max(took, Ordering::Relaxed);
            if is_paused {
                self.rest();
            } else {
                self.lane().answered.fetch_add(1, Ordering::Relaxed);
                let pause = self.job.pause_ms() * self.slowness;
                thread::sleep(Duration::from_millis(pause / 2 + self.random.below(pause)));
            }
        }
    }

    fn lane(&self) -> &Lane {
        &self.shared.lanes[self.number as usize]
    }

    fn rest(&self) {
        self.lane().is_parked.store(true, Ordering::SeqCst);
        while self.shared.is_paused.load(Ordering::SeqCst) && !self.shared.is_stopping() {
            thread::sleep(LOOK_PAUSE);
        }
        self.lane().is_parked.store(false, Ordering::SeqCst);
    }

    /// One request.
    fn step(&mut self) -> io::Result<()> {
        if self.random.below(12) == 0 {
            return self.read_back();
        }
        let is_zeroing = matches!(self.job, Job::Zeroing);
        let (first, blocks) = self.place();
        if is_zeroing && self.random.below(2) == 0 {
            self.zero(first, blocks)?;
        } else if is_zeroing {
            let first = first % (self.disk_blocks / 16);
            self.write(first, blocks.min(8))?;
        } else {
            self.write(first, blocks)?;
        }
        let one_in = if is_zeroing { 6 } else { 24 };
        if self.random.below(one_in) == 0 { self.client.flush() } else { Ok(()) }
    }

    fn place(&mut self) -> (u64, u64) {
        let sizes = self.job.sizes();
        let choice = self.random.below(sizes.len() as u64);
        let blocks = sizes[usize::try_from(choice).expect("an index")];
        let room = self.disk_blocks - blocks;
        let first = match self.job {
            Job::Hot => self.random.below(self.disk_blocks / 16),
            Job::Random | Job::Zeroing => self.random.below(room),
            Job::Sequential => {
                let first = if self.cursor > room { 0 } else { self.cursor };
                self.cursor = first + blocks;
                first
            }
        };
        (first, blocks)
    }

    fn issue(&self, first: u64, blocks: u64, kind: Kind) -> usize {
        let index = |number: u64| usize::try_from(number).expect("the log has indexed the disk");
        self.shared.log().issue_by(self.number, index(first), index(blocks), kind)
    }

    fn write(&mut self, first: u64, blocks: u64) -> io::Result<()> {
        let version = self.issue(first, blocks, Kind::Data);
        let mut bytes = Vec::with_capacity(usize::try_from(blocks).unwrap_or(0) * BLOCK_BYTES);
        for number in first..first + blocks {
            bytes.extend(WriteLog::bytes_of(self.shared.log().seed(), number, version));
        }
        let is_durable = self.random.below(self.job.durable_one_in()) == 0;
        self.client.write(first * BLOCK_BYTES as u64, &bytes, is_durable)?;
        self.shared.log().acknowledge(version);
        Ok(())
    }

    fn zero(&mut self, first: u64, blocks: u64) -> io::Result<()> {
        let version = self.issue(first, blocks, Kind::Zeroes);
        let offset = first * BLOCK_BYTES as u64;
        let bytes = u32::try_from(blocks * BLOCK_BYTES as u64).expect("a request is small");
        // A trimmed block reads as zeros here: the splitter says so.
        if self.random.below(3) == 0 {
            self.client.trim(offset, bytes)?;
        } else {
            self.client.write_zeroes(offset, bytes)?;
        }
        self.shared.log().acknowledge(version);
        Ok(())
    }

    /// Reads a block and holds it against the log.
    fn read_back(&mut self) -> io::Result<()> {
        let number = self.random.below(self.disk_blocks);
        let offset = number * BLOCK_BYTES as u64;
        let from = self.shared.log().moment();
        let (mut bytes, mut base) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        self.client.read(offset, &mut bytes)?;
        self.shared.base().read_exact_at(&mut base, offset)?;
        let number = usize::try_from(number).expect("the log has indexed the disk");
        let checked = self.shared.log().check_read(number, &bytes, &base, from);
        if let Err(error) = checked {
            self.shared.violations.note(format!("{error:#}"));
        }
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// After a break: the guest's disk comes back, or the guest has seen something it must not.
    fn connect_again(&mut self, error: &io::Error, after: Duration) -> Result<()> {
        match (self.client.refusal(), error.kind()) {
            (None, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                bail!("no answer within {} s", after.as_secs());
            }
            (None, _) => {}
            (Some(number), _) => bail!("the guest was answered with error {number}: {error}"),
        }
        self.shared.breaks.fetch_add(1, Ordering::Relaxed);
        let client = wait::until("the export to come back", RECONNECT_LIMIT, || {
            if self.shared.is_stopping() {
                bail!("told to stop");
            }
            Ok(Client::connect(&self.shared.uri).ok())
        });
        match client {
            Ok(client) => self.client = client,
            Err(_) if self.shared.is_stopping() => return Ok(()),
            Err(error) => return Err(error),
        }
        // The server of then is gone: what it has not done, it never will.
        self.shared.log().lose(self.number);
        Ok(())
    }
}
