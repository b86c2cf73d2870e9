//! Whatever an encoder lays out, its decoder reads back.

use crate::samples;
use farshore_proto::epoch::{EndKind, Ended, EpochBase, EpochBody, SealedLabel};
use farshore_proto::frame::{Ack, Control, FrameHeader, Hello, Refusal, RefusalReason, Welcome};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::journal::{GroupHeader, JournalFileHeader, entries, put_entry};
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, JOURNAL_ALIGN_BYTES, JOURNAL_GROUP_BYTES_MAX,
    JOURNAL_GROUP_ENTRIES_MAX, MAP_PART_BYTES_MAX, MAP_PARTS_MAX, REGISTER_MAX,
    SEGMENT_FRAME_BYTES_MAX, SEQ_CLAIMED_MAX, SLOT_MAX, VOLUME_BLOCKS_MAX, ZERO_BLOCKS_MAX,
};
use farshore_proto::map::{MapFields, MapHeader, PartFields, PartHeader};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::object::{ObjectHeader, ObjectKind, ObjectPlace};
use farshore_proto::register::At;
use farshore_proto::segment::{
    ChunkPlace, Compression, Extent, ExtentSource, SegmentChunk, SegmentFrame, SegmentHeader,
    SlotKind, SlotWriter, Span, Table,
};
use farshore_proto::{
    Attempt, BlockRange, ChunkId, Domain, Epoch, Imprint, KeyNumber, LogId, MapAttempt,
    MarkAttempt, MarkKind, Place, PointId, Seq, Slot, Stamp, Target, VaultId, VolumeId,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub(crate) fn seq() -> impl Strategy<Value = Seq> {
    prop_oneof![1..1000_u64, 1..u64::MAX].prop_map(Seq)
}

/// An entry of the register, or none.
pub(crate) fn entry() -> impl Strategy<Value = At> {
    let entry = (1..=REGISTER_MAX, any::<[u8; 8]>());
    option::of(entry)
        .prop_map(|entry| entry.map_or(At::NONE, |(number, digest)| At { number, digest }))
}

pub(crate) fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![0..1000_u64, 0..=SLOT_MAX.0].prop_map(Slot)
}

fn mark() -> impl Strategy<Value = Mark> {
    let group = prop_oneof![
        Just(MarkGroup::ALONE),
        (1..=u8::MAX, any::<u16>(), 2..=u16::MAX).prop_map(|(attempt, member, members)| {
            let attempt = MarkAttempt([attempt; 16]);
            MarkGroup { attempt, member: member % members, members }
        }),
    ];
    let kind = prop::sample::select(MarkKind::ALL.to_vec());
    (any::<[u8; 16]>(), kind, any::<u32>(), any::<bool>(), any::<u64>(), group).prop_map(
        |(point, kind, unknown_blocks, is_prompt, time_unix_ms, group)| Mark {
            point: PointId(point),
            kind,
            unknown_blocks,
            is_prompt,
            time_unix_ms,
            group,
        },
    )
}

/// A seq that a peer may say it has.
fn claim() -> impl Strategy<Value = u64> {
    prop_oneof![0..1000_u64, 0..=SEQ_CLAIMED_MAX]
}

fn size_bytes() -> impl Strategy<Value = u64> {
    (1..=VOLUME_BLOCKS_MAX).prop_map(|blocks| blocks * BLOCK_BYTES as u64)
}

pub(crate) fn imprint() -> impl Strategy<Value = Imprint> {
    any::<[u8; 3]>().prop_map(Imprint::from_bytes)
}

pub(crate) fn stamp() -> impl Strategy<Value = Stamp> {
    prop_oneof![
        Just(Stamp::default()),
        (1_u32.., any::<u32>()).prop_map(|(life, generation)| Stamp { life, generation }),
    ]
}

fn ended() -> impl Strategy<Value = Ended> {
    let kind = prop_oneof![Just(EndKind::Seal), Just(EndKind::Word)];
    prop_oneof![
        (kind, slot()).prop_map(|(kind, slot)| Ended { kind, slot }),
        (1_u64..1 << 62).prop_map(|slot| Ended { kind: EndKind::Release, slot: Slot(slot) }),
        Just(Ended { kind: EndKind::Unwritten, slot: Slot(0) }),
    ]
}

fn base() -> impl Strategy<Value = EpochBase> {
    let of = (any::<[u8; 16]>(), 1_u64.., seq(), any::<[u8; 16]>());
    of.prop_map(|(volume, ordinal, seq, point)| EpochBase {
        volume: VolumeId(volume),
        at: Place { ordinal, seq },
        point: PointId(point),
    })
}

fn control() -> impl Strategy<Value = Control> {
    let hello =
        (any::<[u8; 16]>(), 1_u64.., size_bytes(), 1..=SEQ_CLAIMED_MAX, claim(), any::<u32>())
            .prop_flat_map(|hello| (Just(hello), 1_u32.., any::<bool>()))
            .prop_map(|(hello, life, is_overtaken)| {
                let (volume, epoch, size_bytes, a, b, mark_interval_ms) = hello;
                Control::Hello(Hello {
                    volume: VolumeId(volume),
                    epoch: Epoch(epoch),
                    size_bytes,
                    first_seq: Seq(a.min(b).max(1)),
                    last_seq: Seq(a.max(b)),
                    mark_interval_ms,
                    life,
                    is_overtaken,
                })
            });
    let watermarks = (claim(), claim(), claim(), any::<u32>(), stamp(), imprint());
    let welcome = watermarks.prop_map(|(a, b, c, window_bytes, stamp, imprint)| {
        Control::Welcome(Welcome {
            imprint,
            received: Seq(a),
            journaled: Seq(b),
            committed: Seq(c),
            window_bytes,
            stamp,
        })
    });
    // 2^32 - 1 says nothing.
    let ack = (claim(), claim(), option::of(0..u32::MAX)).prop_map(|(a, b, gathers_in_ms)| {
        Control::Ack(Ack { journaled: Seq(a), committed: Seq(b), gathers_in_ms })
    });
    let reason = prop::sample::select(vec![
        RefusalReason::Protocol,
        RefusalReason::NotAssigned,
        RefusalReason::Fenced,
        RefusalReason::Size,
        RefusalReason::Gap,
        RefusalReason::Unavailable,
        RefusalReason::Limit,
        RefusalReason::Overtaken,
        RefusalReason::Contested,
    ]);
    let refusal = (reason, "\\PC{0,100}")
        .prop_map(|(reason, text)| Control::Refusal(Refusal { reason, text }));
    let mark = (seq(), mark()).prop_map(|(seq, mark)| Control::Mark(seq, mark));
    prop_oneof![hello, welcome, ack, refusal, mark]
}

/// A run of writes, zeros and marks as they follow each other in a stream.
fn stream() -> impl Strategy<Value = Vec<(FrameHeader, Vec<u8>)>> {
    let bytes = (1..3_usize, any::<u8>());
    let write = (seq(), 0..VOLUME_BLOCKS_MAX - 2, bytes, stamp(), imprint(), any::<bool>())
        .prop_map(|(seq, block, (blocks, byte), stamp, previous, is_copy)| {
            let data = vec![byte; blocks * BLOCK_BYTES];
            let header = FrameHeader::write(seq, block, &data).of_copy(is_copy);
            (header.stamped(stamp).behind(previous), data)
        });
    let zero =
        (seq(), 1..=ZERO_BLOCKS_MAX, any::<prop::sample::Index>()).prop_map(|(seq, count, at)| {
            let room =
                usize::try_from(VOLUME_BLOCKS_MAX - count + 1).expect("below 2^34 and 64-bit");
            let range = BlockRange { block: at.index(room) as u64, count };
            (FrameHeader::zero(seq, range), Vec::new())
        });
    let mark = (seq(), mark(), stamp(), imprint()).prop_map(|(seq, mark, stamp, previous)| {
        let frame = Control::Mark(seq, mark).encode_in(stamp, previous);
        let (header, body) = frame.split_first_chunk().expect("a frame has a header");
        (FrameHeader::decode(header).expect("just laid out"), body.to_vec())
    });
    vec(prop_oneof![write, zero, mark], 0..6)
}

prop_compose! {
    fn frames()(
        frames in vec((0..=1_048_624_u32, 4096..=1_048_576_u32, any::<bool>()), 1..5),
    ) -> Vec<SegmentFrame> {
        frames
            .into_iter()
            .map(|(stored_bytes, raw_bytes, is_raw)| SegmentFrame {
                stored_bytes,
                raw_bytes,
                compression: if is_raw { Compression::Raw } else { Compression::Zstd },
            })
            .collect()
    }
}

fn chunk(frames: Vec<SegmentFrame>) -> impl Strategy<Value = SegmentChunk> {
    let log = prop::sample::select(vec![samples::LOG, samples::OTHER_LOG]);
    let target = (log, slot(), 0..3_u8).prop_map(|(log, slot, attempt)| Target {
        log,
        slot,
        attempt: Attempt([attempt; 8]),
    });
    let blocks_max = u32::try_from(CHUNK_BLOCKS_MAX).expect("it is small");
    (
        any::<[u8; 32]>(),
        any::<bool>(),
        any::<prop::sample::Index>(),
        target,
        any::<u32>(),
        1..=blocks_max,
    )
        .prop_map(move |(id, is_here, at, target, chunk, blocks)| {
            let frame = at.index(frames.len());
            let blocks = blocks.min(frames[frame].raw_bytes / 4096);
            let place = if is_here {
                let room = frames[frame].raw_bytes - blocks * 4096;
                ChunkPlace::Here {
                    frame: u32::try_from(frame).expect("there are few"),
                    offset: chunk % (room + 1),
                }
            } else {
                ChunkPlace::There { target, chunk }
            };
            SegmentChunk { id: ChunkId(id), blocks, place }
        })
}

fn extents(chunks: Vec<SegmentChunk>) -> impl Strategy<Value = Vec<Extent>> {
    let one = (0..1000_u64, any::<bool>(), any::<prop::sample::Index>(), any::<(u32, u32)>());
    vec(one, 0..8).prop_map(move |picks| {
        let mut block = 0;
        let mut out = Vec::new();
        for (gap, is_zero, at, (a, b)) in picks {
            block += gap;
            let (count, source) = if is_zero {
                (u64::from(a) + 1, ExtentSource::Zero)
            } else {
                let chunk = at.index(chunks.len());
                let first = a % chunks[chunk].blocks;
                let count = b % (chunks[chunk].blocks - first) + 1;
                let chunk = u32::try_from(chunk).expect("there are few");
                (count.into(), ExtentSource::Chunk { chunk, first })
            };
            let count = count.min(u32::MAX.into()).min(VOLUME_BLOCKS_MAX - block);
            if count > 0 {
                out.push(Extent { range: BlockRange { block, count }, source });
            }
            block += count;
            if block + 2000 >= VOLUME_BLOCKS_MAX {
                break;
            }
        }
        out
    })
}

fn table() -> impl Strategy<Value = Table> {
    frames()
        .prop_flat_map(|frames| (Just(frames.clone()), vec(chunk(frames), 1..6)))
        .prop_flat_map(|(frames, chunks)| {
            let span = (
                any::<[u8; 16]>(),
                1_u64..,
                (seq(), 0..1000_u64),
                (option::of(mark()), stamp(), imprint(), option::of(slot())),
                extents(chunks.clone()),
            )
                .prop_map(|(volume, epoch, (first_seq, more), known, extents)| {
                    let (mark, stamp, imprint, previous) = known;
                    Span {
                        volume: VolumeId(volume),
                        epoch: Epoch(epoch),
                        first_seq,
                        last_seq: Seq(first_seq.0.saturating_add(more).min(u64::MAX - 1)),
                        previous,
                        mark,
                        stamp,
                        imprint,
                        extents,
                    }
                });
            (Just(frames), Just(chunks), vec(span, 0..4))
        })
        .prop_map(|(frames, chunks, spans)| Table { frames, chunks, spans })
}

prop_compose! {
    /// What all objects have, of a kind; a variant and a place are the kind's business.
    fn object(kind: ObjectKind)(
        vault: [u8; 16], subject: [u8; 16], number: u64, part: u32, domain in 1_u32..,
        key in 1_u32.., own_key in 1_u32.., raw in 0..=kind.body_bytes_max(), saved: prop::sample::Index, is_raw: bool,
        salt: [u8; 32], commitment: [u8; 32],
    ) -> ObjectHeader {
        let saved = if is_raw { 0 } else { saved.index(raw + 1) };
        let key = if key == own_key { key ^ 2 } else { key };
        under(ObjectHeader {
            place: ObjectPlace { kind, vault: VaultId(vault), subject, number, part },
            domain: Domain(domain),
            key: KeyNumber(key.max(1)),
            own_key: KeyNumber(own_key),
            variant: 0,
            compression: if is_raw { Compression::Raw } else { Compression::Zstd },
            body_bytes: raw - saved + 16,
            body_raw_bytes: raw,
            salt,
            commitment,
            header_bytes: kind.header_bytes(),
        })
    }
}

/// The header of an object whose body goes by the vault's own key, if it is of such a kind.
fn under(object: ObjectHeader) -> ObjectHeader {
    match object.place.kind.is_own(object.variant) {
        Some(true) => ObjectHeader { domain: Domain::OWN, key: object.own_key, ..object },
        _ => object,
    }
}

proptest! {
    #[test]
    fn control_frames(control in control()) {
        let bytes = control.encode();
        let (header, body) = bytes.split_first_chunk().expect("a frame has a header");
        let header = FrameHeader::decode(header).unwrap();
        prop_assert_eq!(header.body_bytes, body.len());
        prop_assert_eq!(Control::decode(&header, body), Ok(control));
    }

    #[test]
    fn frames_of_a_log(frames in stream()) {
        let file: Vec<u8> =
            frames.iter().flat_map(|(header, body)| [&header.encode()[..], body].concat()).collect();
        let mut rest = &file[..];
        for (header, body) in &frames {
            let (read, bytes) = frame_at(rest).unwrap();
            prop_assert_eq!((&read, bytes), (header, &body[..]));
            rest = &rest[48 + bytes.len()..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn entries_of_a_group(frames in stream(), volume: [u8; 16], epoch in 1_u64..) {
        let mut plain = Vec::new();
        for (header, body) in &frames {
            put_entry(&mut plain, VolumeId(volume), Epoch(epoch), &header.encode(), body);
        }
        let read: Result<Vec<_>, _> = entries(&plain).collect();
        let read = read.unwrap();
        prop_assert_eq!(read.len(), frames.len());
        for (entry, (header, body)) in read.iter().zip(&frames) {
            prop_assert_eq!((entry.volume, entry.epoch), (VolumeId(volume), Epoch(epoch)));
            prop_assert_eq!((&entry.header, entry.body), (header, &body[..]));
        }
    }

    #[test]
    fn headers_of_files(
        id: [u8; 16], other: [u8; 16], salt: [u8; 32], commitment: [u8; 32],
        seq in seq(), number: u64, key: u32, plain_bytes in 0..=JOURNAL_GROUP_BYTES_MAX,
        entries in 0..=JOURNAL_GROUP_ENTRIES_MAX,
    ) {
        let hrl = HrlHeader { volume: VolumeId(id), first_seq: seq };
        prop_assert_eq!(HrlHeader::decode(&hrl.encode()), Ok(hrl));
        let file = JournalFileHeader {
            vault: VaultId(id), log: LogId(other), number, key: KeyNumber(key), salt, commitment,
        };
        prop_assert_eq!(JournalFileHeader::decode(&file.encode()), Ok(file));
        let group = GroupHeader { file: number, group: seq.0, plain_bytes, entries };
        prop_assert_eq!(GroupHeader::decode(&group.encode()), Ok(group));
        prop_assert!(group.disk_bytes().is_multiple_of(JOURNAL_ALIGN_BYTES));
        prop_assert!(group.disk_bytes() >= 64 + plain_bytes + 16);
    }

    #[test]
    fn epoch_bodies(
        epoch in 1_u64.., log: [u8; 16], slot in slot(), first_seq in seq(), size_bytes in size_bytes(),
        stamp in stamp(), label in option::of((1_u32.., any::<[u8; 32]>(), vec(any::<u8>(), 17..=144))), ended in option::of(ended()), base in option::of(base()),
    ) {
        let body = EpochBody {
            epoch: Epoch(epoch), log: LogId(log), first_slot: slot, first_seq, size_bytes,
            stamp, label: String::new(), ended, base,
        };
        let label = label.map(|(key, salt, sealed)| SealedLabel { key: KeyNumber(key), salt, sealed });
        prop_assert_eq!(EpochBody::decode(&body.encode(label.as_ref())), Ok((body, label)));
    }

    #[test]
    fn segment_headers(
        object in object(ObjectKind::Slot), slot in slot(),
        kind in prop::sample::select(vec![SlotKind::Segment, SlotKind::Seal, SlotKind::Fill]),
        frames_bytes in 0..=(32 * SEGMENT_FRAME_BYTES_MAX) as u64,
        incarnation: u64, horizon: u64, register in entry(), checkpoint in option::of(slot()),
    ) {
        let place = SegmentHeader::place(object.place.vault, LogId(object.place.subject), slot);
        let header = SegmentHeader {
            object: under(ObjectHeader { place, variant: kind.code(), ..object }),
            kind,
            frames_bytes: if kind == SlotKind::Segment { frames_bytes } else { 0 },
            writer: SlotWriter { incarnation, horizon, register, checkpoint },
        };
        let mut bytes = header.encode();
        prop_assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        prop_assert_eq!((header.slot(), header.log().0), (slot, object.place.subject));
        bytes.push(1);
        prop_assert_eq!(SegmentHeader::decode(&bytes), Ok(header), "what follows is not its business");
    }

    #[test]
    fn map_headers(
        object in object(ObjectKind::Map), seq in seq(), ordinal in 1_u64.., attempt: [u8; 16],
        point in option::of(1_u128..),
    ) {
        let ObjectPlace { vault, subject, .. } = object.place;
        let object = ObjectHeader { place: MapHeader::place(vault, VolumeId(subject), seq), ..object };
        let point = point.map(|point| PointId(point.to_le_bytes()));
        let fields = MapFields { attempt: MapAttempt(attempt), point, ordinal };
        let bytes = object.encode(|own| fields.put(own));
        let header = MapHeader { object, fields };
        prop_assert_eq!(MapHeader::decode(&bytes), Ok(header));
        prop_assert_eq!(header.at(), Place { ordinal, seq });
    }

    #[test]
    fn map_part_headers(
        object in object(ObjectKind::Pages), seq in seq(), ordinal in 1_u64.., attempt: [u8; 16],
        part in 0..u32::try_from(MAP_PARTS_MAX).unwrap(), pages_bytes in 0..=MAP_PART_BYTES_MAX,
    ) {
        let ObjectPlace { vault, subject, .. } = object.place;
        let place = PartHeader::place(vault, VolumeId(subject), seq, part);
        let object = ObjectHeader { place, ..object };
        let fields = PartFields { attempt: MapAttempt(attempt), ordinal, pages_bytes };
        let bytes = object.encode(|own| fields.put(own));
        let header = PartHeader { object, fields };
        prop_assert_eq!(PartHeader::decode(&bytes), Ok(header));
        prop_assert_eq!(header.at(), Place { ordinal, seq });
        let front = (object.header_bytes + object.body_bytes) as u64;
        prop_assert_eq!(header.object_bytes(), front + pages_bytes);
    }

    #[test]
    fn headers_without_fields(
        epoch in object(ObjectKind::Epoch), run in object(ObjectKind::IndexRun),
        checkpoint in object(ObjectKind::Checkpoint), horizon in object(ObjectKind::Horizon), entry in object(ObjectKind::Register), machine in object(ObjectKind::Machine),
        group in object(ObjectKind::Group), base in object(ObjectKind::Base),
        revision in object(ObjectKind::Revision),
    ) {
        for header in [epoch, run, checkpoint, horizon, entry, machine, group, base, revision] {
            let bytes = header.encode(|own| own.extend([0; 4]));
            let (read, own) = ObjectHeader::decode(header.place.kind, &bytes).unwrap();
            prop_assert_eq!((read, own.left()), (header, 4));
        }
    }

    #[test]
    fn tables(table in table()) {
        prop_assert_eq!(Table::decode(&table.encode()), Ok(table));
    }
}
