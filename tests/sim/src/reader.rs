//! Who reads the vault while others write: opens a volume at its newest point or at one that it knows,
//! reads all of it in pieces, lists points, again and again, beside writers, seals, takeovers and trouble of
//! the store. The views are the vault's own; what comes back is judged by [`crate::oracle`].
//!
//! Its own troubles are that the store is away for it alone, in the middle of a read, that it is stopped
//! for a while, and that it is killed. Some reads are patient, in virtual time. Chance is its own, so that
//! a seed tells the same story whether somebody reads or not.

use crate::control::volume_of;
use crate::world::{self, Process, World};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, Timestamp, VolumeId};
use farshore_vault::catalog::list_points;
use farshore_vault::view::{Point, PointSelector, VolumeView, flatten};
use farshore_vault::{Patience, Vault, VaultError};
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

/// What happens to the reader.
#[derive(Debug)]
pub enum Event {
    /// It may begin to read.
    Go,
    /// The store is away for it, for so long.
    CutOff(Duration),
    /// It reaches the store again.
    Reached,
    /// It is stopped, for so long.
    Stopped(Duration),
    /// It goes on.
    GoesOn,
    /// It is killed, and what it read is gone.
    Killed,
    /// What it wanted was read, or not.
    Done(Box<Done>),
}

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The list of points.
    List,
    /// The volume at its newest point.
    Latest,
    /// The volume at a point that the vault was seen to hold.
    Known(Point),
}

/// What is wanted, and what the vault held when it was.
#[derive(Debug, Clone)]
pub struct Want {
    /// Whose volume.
    pub machine: usize,
    /// What of it.
    pub what: What,
    /// The points that the vault held for sure.
    pub held: Vec<Point>,
    /// How long each read outlasts a store that is away.
    pub patience: Duration,
    /// Requests that had failed until then.
    failed: u64,
    since: Timestamp,
}

/// What was read.
#[derive(Debug)]
pub enum Read {
    /// All points.
    Points(Vec<Point>),
    /// A view was opened; the bytes of it, or the error and how long was waited until then.
    Volume(Point, Result<Vec<u8>, (VaultError, Duration)>),
}

/// How it ended.
pub type Done = Result<Read, VaultError>;

/// The reader.
#[derive(Debug)]
pub struct Reader {
    rng: fastrand::Rng,
    reading: Option<Want>,
    is_over: bool,
}

/// Between two reads, in microseconds.
const PAUSE_US: Range<u64> = 100_000..1_500_000;
/// When trouble comes, behind the begin of a read, in microseconds.
const TROUBLE_US: Range<u64> = 0..1_500_000;
/// How long trouble lasts, in microseconds.
const LASTING_US: Range<u64> = 100_000..5_000_000;
/// Longest patience, in microseconds.
const PATIENCE_US_MAX: u64 = 20_000_000;
/// Between two pieces of a volume, in microseconds.
const BETWEEN_US: Range<u64> = 0..400_000;
/// Blocks of a piece.
const PIECE_BLOCKS: Range<u64> = 20..300;
/// No read takes longer: a few pieces, the longest patience and the longest trouble for each.
const READ_MS_MAX: u64 = 200_000;

impl Reader {
    /// A reader that has read nothing.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { rng, reading: None, is_over: false }
    }

    /// No further reads.
    pub fn stop(&mut self) {
        self.is_over = true;
    }

    /// Whether it reads nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reading.is_none()
    }

    /// One line about where it stands.
    #[must_use]
    pub fn standing(&self) -> String {
        match &self.reading {
            Some(Want { machine, what, since, .. }) => {
                format!("the reader reads {what:?} of volume {machine} since {} ms", since.0)
            }
            None => "the reader is idle".to_owned(),
        }
    }

    fn us(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range))
    }

    /// Carries out an event.
    pub fn handle(&mut self, world: &mut World, event: Event) {
        let process = Process::Reader;
        match event {
            Event::Go => {
                if self.is_idle() && !self.is_over {
                    self.begin(world);
                }
                self.judge_patience(world);
                let pause = self.us(PAUSE_US);
                world.after(pause, world::Event::Reader(Event::Go));
            }
            Event::CutOff(time) => {
                world.tell(process, || format!("reaches no store for {time:?}"));
                world.store.cut_reader_off(true);
                world.after(time, world::Event::Reader(Event::Reached));
            }
            Event::Reached => world.store.cut_reader_off(false),
            Event::Stopped(time) => {
                world.tell(process, || format!("is stopped for {time:?}"));
                world.pause(process);
                world.after(time, world::Event::Reader(Event::GoesOn));
            }
            Event::GoesOn => world.resume(process),
            Event::Killed => {
                world.tell(process, || "is killed".to_owned());
                world.end_life(process);
                self.reading = None;
            }
            Event::Done(done) => self.done(world, *done),
        }
    }

    fn begin(&mut self, world: &mut World) {
        let machine = self.rng.usize(0..world.size.machines);
        let held = world.points_held(machine);
        let known = self.rng.choice(&held).copied();
        let what = match (self.rng.u32(0..8), known) {
            (0, _) => What::List,
            (1..=3, Some(point)) => What::Known(point),
            _ => What::Latest,
        };
        let is_patient = self.rng.bool();
        let patience = if is_patient { self.us(0..PATIENCE_US_MAX) } else { Duration::ZERO };
        let (failed, since) = (world.store.failed_reads(), world.now());
        let want = Want { machine, what, held, patience, failed, since };
        world.tell(Process::Reader, || {
            let held = want.held.last().map(|point| point.seq);
            format!(
                "wants {what:?} of volume {machine}, held up to {held:?}, patient for {patience:?}"
            )
        });
        self.trouble(world);
        let reading = Reading {
            vault: world.store.readers_vault(),
            volume: volume_of(machine),
            piece: self.rng.u64(PIECE_BLOCKS),
            between: self.us(BETWEEN_US),
            patience: world.patience(patience),
        };
        let (sleep, clock) = (world.sleeper(), world.clock());
        world.spawn(Process::Reader, async move {
            let done = reading.read(what, sleep, clock).await;
            world::Event::Reader(Event::Done(Box::new(done)))
        });
        self.reading = Some(want);
    }

    /// What happens to it in the middle of this read.
    fn trouble(&mut self, world: &mut World) {
        let (wait, time) = (self.us(TROUBLE_US), self.us(LASTING_US));
        let event = match self.rng.u32(0..16) {
            0..=2 => Event::CutOff(time),
            3 => Event::Stopped(time),
            4 => Event::Killed,
            _ => return,
        };
        world.after(wait, world::Event::Reader(event));
    }

    fn done(&mut self, world: &mut World, done: Done) {
        let Some(want) = self.reading.take() else { return };
        world.tell(Process::Reader, || match &done {
            Ok(Read::Points(points)) => format!("has {} points", points.len()),
            Ok(Read::Volume(point, Ok(_))) => format!("has read the point at {}", point.seq),
            Ok(Read::Volume(point, Err((error, waited)))) => {
                format!("has opened the point at {}, and after {waited:?}: {error}", point.seq)
            }
            Err(error) => format!("has opened nothing: {error}"),
        });
        let has_failed = world.store.failed_reads() > want.failed;
        world.oracle.judge_read(&want, &done, has_failed);
    }

    fn judge_patience(&self, world: &mut World) {
        if let Some(Want { machine, what, since, .. }) = &self.reading
            && world.now().since_ms(*since) > READ_MS_MAX
        {
            let what = format!("volume {machine}: {what:?} is read for ever");
            world.oracle.violate("liveness", what);
        }
    }
}

/// A read on its way.
struct Reading {
    vault: Vault,
    volume: VolumeId,
    piece: u64,
    between: Duration,
    patience: Patience,
}

impl Reading {
    async fn read<S: Future<Output = ()>>(
        self,
        what: What,
        sleep: impl Fn(Duration) -> S,
        clock: impl Fn() -> Duration,
    ) -> Done {
        let Self { vault, volume, piece, between, patience } = self;
        let selector = match what {
            What::List => return list_points(&vault, volume).await.map(Read::Points),
            What::Latest => PointSelector::Latest,
            // Two ways to the same point.
            What::Known(point) if point.seq.0.is_multiple_of(2) => PointSelector::Seq(point.seq),
            What::Known(point) => PointSelector::Point(point.id),
        };
        let view = VolumeView::open(&vault, volume, selector).await?.with_patience(patience);
        let point = *view.point();
        let blocks = view.size_bytes() / BLOCK_BYTES as u64;
        let mut bytes = Vec::new();
        let mut block = 0;
        while block < blocks {
            sleep(between).await;
            let range = BlockRange { block, count: piece.min(blocks - block) };
            let begun = clock();
            match view.read(range).await {
                Ok(pieces) => bytes.extend_from_slice(&flatten(&pieces)),
                Err(error) => return Ok(Read::Volume(point, Err((error, clock() - begun)))),
            }
            block = range.end();
        }
        Ok(Read::Volume(point, Ok(bytes)))
    }
}
