//! Somebody who reads points while their volumes are written, as drills, exports and restores do: through
//! whatever map there is and the logs behind it, over the store with its delays and faults.

use crate::control::volume_of;
use crate::world::{self, Process, World};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, VolumeId};
use farshore_vault::view::{Point, PointSelector, VolumeView, flatten};
use farshore_vault::{Vault, VaultError};
use std::ops::Range;

/// Between two reads, in microseconds.
const PAUSE_US: Range<u64> = 200_000..3_000_000;

/// What happens to the reader.
#[derive(Debug)]
pub enum Event {
    /// It reads a point.
    Read,
    /// It has read one, or not.
    Done {
        /// Of this server.
        machine: usize,
        /// The point and its bytes.
        read: Result<(Point, Vec<u8>), VaultError>,
    },
}

impl World {
    /// Carries out an event of the reader.
    pub fn handle_reader(&mut self, event: Event) {
        match event {
            Event::Read => self.read_a_point(),
            Event::Done { machine, read } => {
                self.judge_read(machine, read);
                let wait = self.us(PAUSE_US);
                self.after(wait, world::Event::Reader(Event::Read));
            }
        }
    }

    fn read_a_point(&mut self) {
        let machine = self.rng.usize(0..self.size.machines);
        let older: Vec<_> = self.oracle.stream(machine).points().collect();
        let selector = match self.rng.choice(&older) {
            Some(point) if self.rng.bool() => PointSelector::Point(*point),
            _ => PointSelector::Latest,
        };
        let vault = self.store.vault();
        self.spawn(Process::Reader, async move {
            let read = read(&vault, volume_of(machine), selector).await;
            world::Event::Reader(Event::Done { machine, read })
        });
    }
}

async fn read(
    vault: &Vault,
    volume: VolumeId,
    selector: PointSelector,
) -> Result<(Point, Vec<u8>), VaultError> {
    let view = VolumeView::open(vault, volume, selector).await?;
    let count = view.size_bytes() / BLOCK_BYTES as u64;
    let pieces = view.read(BlockRange { block: 0, count }).await?;
    Ok((*view.point(), flatten(&pieces)))
}
