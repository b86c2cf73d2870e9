//! What each volume may hold of the cache.

use super::{Entry, Held, Output, SHARD_VOLUMES_MAX, SHARED_OF_CACHE, Shard, VolumeId};

impl Shard {
    /// A frame was taken.
    pub(super) fn hold(&mut self, entry: &Entry) {
        self.held_bytes += entry.cost_bytes();
        if let Some(volume) = self.volumes.get_mut(&entry.volume) {
            volume.held_bytes += entry.cost_bytes();
            self.holding.insert(entry.volume);
        }
    }

    /// Frames are in the vault.
    pub(super) fn let_go(&mut self, frames: &[Held]) {
        for frame in frames {
            self.held_bytes -= frame.cost_bytes;
            let Some(volume) = self.volumes.get_mut(&frame.volume) else { continue };
            volume.held_bytes -= frame.cost_bytes;
            if volume.held_bytes == 0 {
                self.holding.remove(&frame.volume);
            }
        }
    }

    /// H5: when the part that is shared is full, holds sessions back whose volumes have more than an
    /// equal share; lets them go on when theirs or the whole has gone down.
    ///
    /// Until then whoever has something may use what others do not.
    pub(super) fn share_out(&mut self, out: &mut Vec<Output>) {
        let (part, whole) = SHARED_OF_CACHE;
        let shared = self.settings.cache_bytes / whole * part;
        let share = shared / self.holding.len().max(1);
        if self.held_bytes >= shared {
            let over = |id: &&VolumeId| {
                let held = self.volumes.get(id).map_or(0, |volume| volume.held_bytes);
                held >= share && !self.held.contains(id)
            };
            let over: Vec<VolumeId> = self.holding.iter().filter(over).copied().collect();
            for id in over {
                let Some(volume) = self.volumes.get_mut(&id) else { continue };
                volume.is_held = true;
                self.held.insert(id);
                out.extend(volume.session.map(|session| Output::Hold { session }));
            }
            return;
        }
        let has_room = self.held_bytes < shared / 4 * 3;
        let under = |id: &&VolumeId| {
            let held = self.volumes.get(id).map_or(0, |volume| volume.held_bytes);
            has_room || held < share / 4 * 3
        };
        let under: Vec<VolumeId> = self.held.iter().filter(under).copied().collect();
        for id in under {
            self.held.remove(&id);
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            volume.is_held = false;
            out.extend(volume.session.map(|session| Output::Release { session }));
        }
    }

    /// A volume that was taken away is forgotten once nothing of it is held: a long-lived node would
    /// count it for ever.
    pub(super) fn forget_if_revoked(&mut self, id: VolumeId) {
        let is_revoked = self.volumes.get(&id).is_some_and(|volume| volume.is_revoked);
        if is_revoked && self.is_idle(id) {
            self.volumes.remove(&id);
        }
    }

    /// Whether one more volume can be claimed. At the limit those go that nobody has a session of: first the
    /// ones that nobody came for since the log was read, which may be another node's by now without a word
    /// to this one.
    pub(super) fn has_room(&mut self) -> bool {
        while self.volumes.len() + self.claims.len() >= SHARD_VOLUMES_MAX {
            let idle = self.volumes.iter().filter(|(id, _)| self.is_idle(**id));
            let Some((id, _)) = idle.min_by_key(|(_, volume)| volume.holder.is_some()) else {
                return false;
            };
            let id = *id;
            self.volumes.remove(&id);
        }
        true
    }

    /// Whether the vault knows all that this shard does of a volume, and whoever comes for it may as well claim
    /// it anew.
    fn is_idle(&self, id: VolumeId) -> bool {
        self.volumes.get(&id).is_some_and(|volume| {
            let is_free = volume.session.is_none() && volume.held_bytes == 0;
            is_free && volume.stream.is_settled() && volume.contest.is_none()
        }) && !self.claims.contains_key(&id)
    }
}
