//! That the segments in front of horizons are whole which the maps of kept points refer to: no scan of a log comes to them.

use super::{Report, data};
use crate::base::{BaseMaps, VolumeBase};
use crate::chunks::ChunkReader;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::vault::Vault;
use farshore_proto::epoch::EpochBody;
use farshore_proto::{LogId, Slot, Target};
use std::collections::{BTreeMap, BTreeSet};

/// Reads them, with all their frames.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Where scans of the logs began.
    pub(super) horizons: BTreeMap<LogId, Slot>,
    /// What was read.
    seen: BTreeSet<Target>,
}

impl Kept {
    /// Reads what the maps of a base refer to. Maps that do not open are named where bases are.
    pub(super) async fn check(
        &mut self,
        reader: &ChunkReader,
        (vault, epochs, base): (&Vault, &[EpochBody], &VolumeBase),
        report: &mut Report,
    ) -> Result<(), VaultError> {
        let mut maps = BaseMaps::new(vault, epochs, base);
        let kept = base.body.points.iter().map(|point| (point.at, point.map));
        for name in kept.chain([base.map()]) {
            let mut targets = BTreeSet::new();
            match maps.read(name, &mut targets).await {
                Err(error) if error.is_unavailable() => return Err(error),
                Err(_) => continue,
                Ok(()) => {}
            }
            let user = ObjectName::map(base.volume, name.0, name.1);
            for target in targets {
                if self.is_passed(target) && self.seen.insert(target) {
                    segment(reader, vault, (target, &user), report).await?;
                }
            }
        }
        Ok(())
    }

    fn is_passed(&self, target: Target) -> bool {
        // Logs that are not listed hold nothing that a scan came to.
        self.horizons.get(&target.log).is_none_or(|horizon| target.slot < *horizon)
    }
}

async fn segment(
    reader: &ChunkReader,
    vault: &Vault,
    (target, user): (Target, &ObjectName),
    report: &mut Report,
) -> Result<(), VaultError> {
    let Target { log, slot, .. } = target;
    let name = ObjectName::slot(log, slot);
    match reader.segment(target, user).await {
        Ok(segment) => {
            report.segments += 1;
            data::check(vault, log, slot, &segment, report).await
        }
        Err(VaultError::Replaced { object, .. }) => {
            report.add(
                object,
                0,
                format!("is not the segment that {user} refers to: that one is lost"),
            );
            Ok(())
        }
        Err(error) => report.add_error(name, error),
    }
}
