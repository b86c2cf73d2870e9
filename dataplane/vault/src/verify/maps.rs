//! That maps open and say what the logs say.

use super::Report;
use crate::blocks::Source;
use crate::chain::Chain;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::map::{self, Base, Ids};
use crate::vault::Vault;
use crate::view::Build;
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::VOLUME_BLOCKS_MAX;
use farshore_proto::{BlockRange, Seq, VolumeId};
use std::collections::BTreeSet;

/// Opens the maps of a volume at `seqs`, listed before its epochs were read; if `read_data`, compares each
/// with what the logs say.
pub(super) async fn check(
    vault: &Vault,
    volume: VolumeId,
    mut seqs: BTreeSet<Seq>,
    epochs: &[EpochBody],
    read_data: bool,
    report: &mut Report,
) -> Result<(), VaultError> {
    if read_data && !seqs.is_empty() {
        compare(vault, volume, epochs, &mut seqs, report).await?;
    }
    for seq in seqs {
        let opened = open(vault, volume, epochs, seq, Ids::Drop, report).await?;
        if opened.is_some() && read_data {
            let what = format!("is at seq {seq}, at which the logs have no recovery point");
            report.add(ObjectName::map(volume, seq, 0), 0, what);
        }
    }
    Ok(())
}

async fn open(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    seq: Seq,
    ids: Ids,
    report: &mut Report,
) -> Result<Option<Base>, VaultError> {
    match map::load(vault, volume, epochs, seq, ids).await {
        Ok(base) => {
            report.maps += 1;
            Ok(Some(base))
        }
        // One that is deleted meanwhile is no problem: it is derived.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => {
            report.add_error(ObjectName::map(volume, seq, 0), error)?;
            Ok(None)
        }
    }
}

/// Reads the volume and compares it at each of `seqs`; takes out those that it came by.
async fn compare(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    seqs: &mut BTreeSet<Seq>,
    report: &mut Report,
) -> Result<(), VaultError> {
    let mut build = Build::new(Ids::Keep);
    let Ok(mut chain) = Chain::begin(vault, volume, epochs.to_vec()) else { return Ok(()) };
    while !seqs.is_empty() {
        let point = match chain.next().await {
            Ok(Some(found)) => build.take(&chain, &found)?,
            Ok(None) => break,
            Err(error) if error.is_unavailable() => return Err(error),
            // What is wrong with the logs is named when they are read on their own.
            Err(_) => break,
        };
        let Some(seq) = point.map(|point| point.seq).filter(|seq| seqs.remove(seq)) else {
            continue;
        };
        let Some(base) = open(vault, volume, epochs, seq, Ids::Keep, report).await? else {
            continue;
        };
        let name = ObjectName::map(volume, seq, 0);
        if (base.build.point(), base.build.end()) != (build.point(), build.end()) {
            report.add(name, 0, "does not say of its recovery point what the logs say");
        } else if let Some(block) = difference(&build, &base.build) {
            let what = format!("differs from what the logs say, first at block {block}");
            report.add(name, 0, what);
        }
    }
    Ok(())
}

/// The first block that the two have differently.
fn difference(one: &Build, other: &Build) -> Option<u64> {
    let whole = BlockRange { block: 0, count: VOLUME_BLOCKS_MAX };
    let (mut ones, mut others) = (one.map.runs(whole), other.map.runs(whole));
    let (mut left, mut right) = (ones.next(), others.next());
    loop {
        let ((a, a_source), (b, b_source)) = match (left, right) {
            (None, None) => return None,
            (Some((run, _)), None) | (None, Some((run, _))) => return Some(run.block),
            (Some(left), Some(right)) => (left, right),
        };
        let is_same = one.stored(&a_source) == other.stored(&b_source);
        if a.block != b.block || !is_same {
            return Some(a.block.min(b.block));
        }
        // The same blocks may be cut differently.
        let count = a.count.min(b.count);
        left = behind(a, a_source, count).or_else(|| ones.next());
        right = behind(b, b_source, count).or_else(|| others.next());
    }
}

/// What is left of a run behind its first blocks.
fn behind(run: BlockRange, source: Source, count: u64) -> Option<(BlockRange, Source)> {
    let left = BlockRange { block: run.block + count, count: run.count - count };
    (left.count > 0).then(|| (left, source.skip(count)))
}
