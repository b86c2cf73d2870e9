//! Opening a map: all its parts, checked to be of one attempt and in block order.

use super::{Ids, start};
use crate::chain::Start;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{MAP_PARTS_AHEAD_MAX, SEALED_OBJECT_BYTES_MAX};
use crate::store::StoreError;
use crate::vault::Vault;
use crate::view::{Build, Point};
use farshore_codec::map::{MapPlace, open_map};
use farshore_proto::epoch::EpochBody;
use farshore_proto::map::{MapBody, MapHeader};
use farshore_proto::object::ObjectKind;
use farshore_proto::{Seq, VolumeId};
use futures::StreamExt;

/// What a view begins with instead of an empty volume.
#[derive(Debug)]
pub(crate) struct Base {
    /// The volume as the map has it, at its point.
    pub(crate) build: Build,
    /// Where reading goes on.
    pub(crate) start: Start,
}

/// Opens the map of a volume at `seq`.
///
/// # Errors
/// `Corrupt` if a part is missing or damaged, or the map contradicts itself or the epochs;
/// `Unavailable`.
pub(crate) async fn load(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    seq: Seq,
    ids: Ids,
) -> Result<Base, VaultError> {
    let name = ObjectName::map(volume, seq, 0);
    let contradicts = |object: ObjectName| {
        let url = vault.url().to_owned();
        VaultError::Map { url, object }
    };
    let (first, body) = open_part(vault, volume, seq, 0).await?;
    let head = body.head;
    let Some(start) = start(epochs, &head, seq) else { return Err(contradicts(name)) };
    let point = Point {
        id: first.fields.point,
        seq,
        epoch: epochs[start.epoch].epoch,
        kind: head.kind,
        unknown_blocks: head.unknown_blocks,
        time_unix_ms: head.time_unix_ms,
        size_bytes: head.size_bytes,
    };
    let mut build = Build::at(point, start, ids);
    let mut floor = build.add_part(vault, &body, 0)?.ok_or_else(|| contradicts(name))?;
    let parts = futures::stream::iter(1..first.fields.parts);
    let parts = parts.map(|part| open_part(vault, volume, seq, part));
    let mut parts = std::pin::pin!(parts.buffered(MAP_PARTS_AHEAD_MAX));
    while let Some(part) = parts.next().await {
        let (header, body) = part?;
        let object = ObjectName::map(volume, seq, header.part());
        if header.fields != first.fields || body.head != head {
            return Err(contradicts(object));
        }
        floor = build.add_part(vault, &body, floor)?.ok_or_else(|| contradicts(object))?;
    }
    Ok(Base { build, start })
}

async fn open_part(
    vault: &Vault,
    volume: VolumeId,
    seq: Seq,
    part: u32,
) -> Result<(MapHeader, MapBody), VaultError> {
    let name = ObjectName::map(volume, seq, part);
    let object = match vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await {
        Ok(object) => object,
        Err(StoreError::NotFound { url, .. }) if part > 0 => {
            let user = ObjectName::map(volume, seq, 0);
            return Err(VaultError::Lost { url, object: name, user });
        }
        Err(error) => return Err(error.into()),
    };
    let at = MapPlace { vault: vault.id(), volume, seq, part };
    let open = move |vault: &Vault| open_map(&object, at, vault.ring());
    vault.open_aside(name, ObjectKind::Map, open).await
}
