//! Histories of a vault: volumes written, cut into points, moved between logs whose writers crash.

use super::{BLOCKS, World};
use proptest::prelude::*;
use proptest::sample::Index;

/// One thing that happens to a world of three volumes and two logs.
#[derive(Debug, Clone)]
pub enum Step {
    /// Blocks are written.
    Write {
        /// The volume.
        volume: usize,
        /// First block.
        block: u64,
        /// So many.
        count: u64,
        /// What their content follows from.
        seed: u32,
    },
    /// A span ends.
    End {
        /// The volume.
        volume: usize,
        /// Whether with a mark.
        is_mark: bool,
    },
    /// What is ready for a log is put.
    Commit {
        /// The log.
        log: usize,
    },
    /// A volume goes to a log.
    Move {
        /// The volume.
        volume: usize,
        /// The log.
        log: usize,
    },
    /// A volume goes on from a point, its own or another's, if there is one.
    GoOn {
        /// The volume.
        volume: usize,
        /// The log that it goes to.
        log: usize,
        /// Which of all points.
        point: Index,
    },
    /// The writer of a log begins a new run.
    Crash {
        /// The log.
        log: usize,
    },
    /// A log gets a checkpoint.
    Checkpoint {
        /// The log.
        log: usize,
    },
}

const VOLUMES: usize = 3;
const LOGS: usize = 2;

fn step() -> impl Strategy<Value = Step> {
    // Few different contents at few places, so that chunks repeat.
    let seed = prop_oneof![1 => Just(0_u32), 3 => (1..6_u32).prop_map(|seed| seed * 1000)];
    let write =
        (0..VOLUMES, 0..BLOCKS / 4, 1..24_u64, seed).prop_map(|(volume, block, count, seed)| {
            Step::Write { volume, block: block * 4, count, seed }
        });
    prop_oneof![
        8 => write,
        4 => (0..VOLUMES, any::<bool>()).prop_map(|(volume, is_mark)| Step::End { volume, is_mark }),
        3 => (0..LOGS).prop_map(|log| Step::Commit { log }),
        1 => (0..VOLUMES, 0..LOGS).prop_map(|(volume, log)| Step::Move { volume, log }),
        1 => (0..VOLUMES, 0..LOGS, any::<Index>())
            .prop_map(|(volume, log, point)| Step::GoOn { volume, log, point }),
        1 => (0..LOGS).prop_map(|log| Step::Crash { log }),
        1 => (0..LOGS).prop_map(|log| Step::Checkpoint { log }),
    ]
}

/// Any history.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..60)
}

/// The world after it.
pub async fn world_of(steps: Vec<Step>) -> World {
    let mut world = World::new(VOLUMES, LOGS).await;
    for step in steps {
        match step {
            Step::Write { volume, block, count, seed } => world.write(volume, block, count, seed),
            Step::End { volume, is_mark } => world.end_span(volume, is_mark),
            Step::Commit { log } => drop(world.commit(log).await),
            Step::Move { volume, log } => world.claim(volume, log).await,
            Step::GoOn { volume, log, point } => {
                let points = world.committed_points();
                if !points.is_empty() {
                    world.go_on_from(volume, log, point.get(&points)).await;
                }
            }
            Step::Crash { log } => world.logs[log].incarnation += 1,
            Step::Checkpoint { log } => world.checkpoint(log).await,
        }
    }
    world
}
