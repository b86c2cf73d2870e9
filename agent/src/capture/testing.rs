//! A splitter for tests, with its parts at hand.

use super::Steps;
use super::gate::Gate;
use super::intent::{IntentMap, Life};
use super::progress::Progress;
use super::splitter::Splitter;
use super::unknown::Unknown;
use crate::clock::Clock;
use crate::disk::{Access, Disk, Recorded};
use crate::faulty_files::{FaultyFiles, time};
use crate::hrl::{Home, Log};
use crate::state::StateFile;
use farshore_engine::doubt::{Regions, Settings};
use farshore_proto::limits::blocks_of;
use farshore_proto::{Seq, VolumeId};
use std::sync::Arc;

const VOLUME: VolumeId = VolumeId([8; 16]);

/// A disk of sevens with all that the agent keeps of it.
pub(super) struct Rig {
    pub(super) files: FaultyFiles,
    pub(super) disk: Arc<Disk>,
    pub(super) log: Arc<Log>,
    pub(super) gate: Arc<Gate>,
    pub(super) splitter: Arc<Splitter>,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new(size_bytes: u64, steps: Steps) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (files, at) = (FaultyFiles::good(), |name| dir.path().join(name));
        std::fs::write(at("disk"), vec![7; usize::try_from(size_bytes).unwrap()]).unwrap();
        let disk = Disk::open(&at("disk"), Access::Write, &Recorded::default()).unwrap();
        let disk = Arc::new(disk);
        let home =
            Home { files: files.shared(), time: time(), dir: at("hrl"), limit_bytes: 64 << 20 };
        let (log, _) = Log::open_in(home, VOLUME, Seq(0), &mut |_| Ok(())).unwrap();
        let log = Arc::new(log);
        let state = StateFile::open(files.shared(), &at("state.json")).unwrap();
        let progress = Arc::new(Progress::new(Arc::new(state)));
        let unknown = Arc::new(Unknown::none(files.shared(), dir.path()));
        let regions = Regions::in_blocks(blocks_of(size_bytes));
        let life = Life { number: 1, stamps: log.stamps() };
        let (path, mut is_new) = (at("intent"), || Ok(()));
        let intents = IntentMap::open(&files.shared(), &path, VOLUME, regions, life, &mut is_new);
        let (settings, clock) = (Settings::default(), Clock::start());
        let kept = (Arc::clone(&progress), None);
        let gate = Gate::new(settings, regions, intents.unwrap(), kept, clock, steps.clone());
        let parts = (Arc::clone(&disk), Arc::clone(&log), Arc::clone(&gate));
        let splitter = Splitter::new(parts.0, parts.1, parts.2, (progress, unknown, None), steps);
        Self { files, disk, log, gate, splitter, _dir: dir }
    }
}
