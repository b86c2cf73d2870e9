//! What a failover may rely on.

use super::Oracle;
use farshore_proto::{Epoch, Seq};

/// A volume was taken from every writer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fence {
    machine: usize,
    epoch: Epoch,
    end: Seq,
}

impl Oracle {
    /// A failover took a volume, and it ends at `end`: nothing that was acked committed before is missing.
    pub fn fenced(&mut self, machine: usize, epoch: Epoch, end: Seq) {
        self.counts.fences += 1;
        let before = self.acked.range((machine, Epoch(0))..(machine, epoch));
        if let Some((under, acked)) =
            before.map(|((_, under), acked)| (*under, *acked)).max_by_key(|(_, acked)| *acked)
            && acked > end
        {
            let what = format!(
                "volume {machine}: {acked} was acked committed under epoch {under}, the fence under epoch \
                 {epoch} finds its end at {end}"
            );
            self.violate("I12", what);
        }
        self.fences.push(Fence { machine, epoch, end });
    }

    /// Nothing behind a fence is acked committed under an epoch before it.
    pub(super) fn acked_committed(&mut self, machine: usize, epoch: Epoch, committed: Seq) {
        let acked = self.acked.entry((machine, epoch)).or_default();
        *acked = committed.max(*acked);
        let of = |fence: &&Fence| fence.machine == machine && fence.epoch > epoch;
        if let Some(fence) = self.fences.iter().filter(of).find(|fence| committed > fence.end) {
            let what = format!(
                "volume {machine}: {committed} is acked committed under epoch {epoch}, the fence under \
                 epoch {} was at {}",
                fence.epoch, fence.end
            );
            self.violate("I12", what);
        }
    }
}
