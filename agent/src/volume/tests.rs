use super::*;
use crate::capture::sample::Pace;
use crate::capture::splitter::Served;
use crate::capture::{Step, Steps};
use crate::fake_node::{FakeDial, FakeNode, Point};
use crate::faulty_files::FaultyFiles;
use bytes::Bytes;
use farshore_api::agent::{AgentVolumeReport, MarkRequest, NodeAddress, VolumeState};
use farshore_api::machine::Capture;
use farshore_nbd::Backend;
use farshore_proto::MarkKind;
use farshore_proto::frame::RefusalReason;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::time::Instant;
use uuid::Uuid;

mod damage;
mod disks;
mod faults;
mod full;
mod grown;
mod held;
mod lineage;
mod replicate;
mod sampled;
mod serving;
mod sick;
mod sizes;

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// An agent's volume with its disk, and a node.
struct Rig {
    dir: tempfile::TempDir,
    files: FaultyFiles,
    node: Arc<FakeNode>,
    assigned: watch::Sender<AgentVolume>,
    log_bytes_max: u64,
    sample_rate: u64,
    running: Option<Live>,
}

struct Live {
    stop: watch::Sender<bool>,
    facts: Arc<Facts>,
    task: tokio::task::JoinHandle<()>,
    clock: Clock,
    points: Arc<Points>,
}

impl Rig {
    fn new(size_bytes: u64, capture: Capture) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let disk = dir.path().join("disk.img");
        std::fs::File::create(&disk).unwrap().set_len(size_bytes).unwrap();
        let node = NodeAddress {
            id: Uuid::from_u128(7),
            address: "127.0.0.1:1".to_owned(),
            generation_min: 0,
            server_name: "node".to_owned(),
        };
        let volume = AgentVolume {
            volume: Uuid::from_u128(42),
            machine: "web".to_owned(),
            disk: disk.to_str().unwrap().to_owned(),
            capture,
            nbd_port: None,
            mark_interval_ms: 100,
            epoch: 1,
            size_bytes: None,
            node,
            marks_requested: Vec::new(),
        };
        let assigned = watch::Sender::new(volume);
        let log_bytes_max = 256 * MIB;
        let (node, files) = (FakeNode::new(size_bytes), FaultyFiles::good());
        // Fast: every other test shows that nothing is taken for a difference.
        let sample_rate = 256 * MIB;
        Self { dir, files, node, assigned, log_bytes_max, sample_rate, running: None }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn disk_bytes(&self) -> Vec<u8> {
        std::fs::read(self.disk()).unwrap()
    }

    fn log_dir(&self) -> PathBuf {
        let volume = Uuid::from_u128(42).to_string();
        self.dir.path().join("volumes").join(volume).join("hrl")
    }

    fn env(&self, steps: Steps) -> Env {
        Env {
            data: self.dir.path().to_owned(),
            allowed: Allowed::find(&[], &self.dir.path().join("allow")).unwrap(),
            files: self.files.shared(),
            reads: Reads::portable(),
            dial: Arc::new(FakeDial(Arc::clone(&self.node))),
            points: Arc::new(Points::default()),
            clock: Clock::start(),
            log_bytes_max: self.log_bytes_max,
            pace: Pace::new(self.sample_rate),
            steps,
        }
    }

    fn start(&mut self, steps: Steps) {
        let env = self.env(steps);
        let (clock, points) = (env.clock, Arc::clone(&env.points));
        let (stop, stopped) = watch::channel(false);
        let facts = Arc::new(Facts::default());
        let run = run(Arc::new(env), self.assigned.subscribe(), Arc::clone(&facts), stopped);
        let task = tokio::spawn(run);
        self.running = Some(Live { stop, facts, task, clock, points });
    }

    fn live(&self) -> &Live {
        self.running.as_ref().unwrap()
    }

    fn report(&self) -> AgentVolumeReport {
        let live = self.live();
        live.facts.report(&self.assigned.borrow(), live.clock)
    }

    /// Waits until the report is as wanted.
    async fn until(&self, what: &str, mut holds: impl FnMut(&AgentVolumeReport) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let report = self.report();
            if holds(&report) {
                return;
            }
            assert!(Instant::now() < deadline, "not {what}: {report:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn until_protected(&self) {
        self.until("protected", |report| report.state == VolumeState::Protected).await;
    }

    /// The disk as a client of the splitter sees it.
    async fn served(&self) -> Served {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(splitter) = self.live().facts.splitter() {
                return Served(splitter);
            }
            assert!(Instant::now() < deadline, "not served: {:?}", self.report());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks for a mark and waits until it is in the vault.
    async fn point(&self) -> Point {
        let point = Uuid::now_v7();
        self.assigned.send_modify(|volume| {
            let kind = PointKind::Crash;
            volume.marks_requested.push(MarkRequest { point, kind });
        });
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = self.node.point(point.into()) {
                // As the control plane does once it was reported.
                self.assigned.send_modify(|volume| {
                    volume.marks_requested.retain(|request| request.point != point);
                });
                return found;
            }
            assert!(Instant::now() < deadline, "no point: {:?}", self.report());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The next point is the disk, byte for byte.
    async fn assert_point_is_disk(&self) {
        let point = self.point().await;
        let disk = self.disk_bytes();
        let (image, behind) = point.image.split_at(disk.len());
        let differs = disk.chunks(4096).zip(image.chunks(4096)).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first block that differs");
        assert!(behind.len() < 4096 && behind.iter().all(|byte| *byte == 0), "behind the end");
    }

    /// Kills the agent: nothing of it runs on, nothing is stopped in order.
    async fn kill(&mut self) {
        let live = self.running.take().unwrap();
        let splitter = live.facts.splitter();
        live.task.abort();
        let _ = live.task.await;
        drop(live.facts);
        if let Some(splitter) = splitter {
            tokio::time::timeout(DEADLINE, splitter.settled()).await.expect("it settles");
        }
    }

    async fn stop(&mut self) {
        let live = self.running.take().unwrap();
        live.stop.send_replace(true);
        tokio::time::timeout(DEADLINE, live.task).await.expect("it stops").unwrap();
    }
}

/// Done whatever becomes of a test: what its disk holds up would hold up its end.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A random change of a disk of `size` bytes.
async fn change(served: &Served, random: &mut Random, size: u64) -> io::Result<()> {
    let sectors = size / 512;
    let most = if random.below(4) == 0 { 600 } else { 24 };
    let length = 1 + random.below(most);
    let first = random.below(sectors - length);
    let (offset, bytes) = (first * 512, length * 512);
    let (grid, fua) = (random.below(2) == 0, random.below(8) == 0);
    let (offset, bytes) =
        if grid { (offset / 4096 * 4096, bytes.next_multiple_of(4096)) } else { (offset, bytes) };
    let bytes = bytes.min(size - offset);
    let failed = |error| io::Error::other(error);
    match random.below(10) {
        0 => {
            let (length, trim) = (u32::try_from(bytes).unwrap(), random.below(2) == 0);
            served.write_zeroes(offset, length, trim, fua).await.map_err(failed)
        }
        1 => served.flush().await.map_err(failed),
        _ => {
            let byte = u8::try_from(1 + random.below(255)).unwrap();
            let data = Bytes::from(vec![byte; usize::try_from(bytes).unwrap()]);
            served.write(offset, data, fua).await.map_err(failed)
        }
    }
}
