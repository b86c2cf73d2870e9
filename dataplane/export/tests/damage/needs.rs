//! What is where in an object, and which points need it.

use crate::world::World;
use crate::write::{Home, Point};
use bytes::Bytes;
use farshore_codec::map::{MapPlace, PartOpener};
use farshore_proto::map::PartHeader;
use farshore_proto::object::{ObjectKind, ObjectPlace};
use farshore_proto::segment::SegmentHeader;
use farshore_proto::{LogId, Place, Seq, Slot, VolumeId};
use farshore_vault::layout::ObjectName;
use farshore_vault::log::read_segment;
use std::collections::BTreeSet;
use std::ops::Range;

/// A piece of an object that is checked as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// In front; without it nothing is known of the object.
    Header,
    /// What is sealed behind the header: a segment's table, the body of another object.
    Body,
    /// A frame of a segment.
    Frame(u32),
}

/// Where a piece is.
#[derive(Debug, Clone)]
pub(crate) struct At {
    pub(crate) piece: Piece,
    pub(crate) range: Range<usize>,
}

/// The pieces of an object, in order.
pub(crate) async fn pieces(world: &World, name: &str) -> Vec<At> {
    let bytes = &world.objects[name];
    let header = match name.split('/').next().unwrap() {
        "logs" if name.contains("/checkpoints/") => ObjectKind::Checkpoint.header_bytes(),
        "logs" => return segment_pieces(world, name, bytes).await,
        "volumes" => ObjectKind::Epoch.header_bytes(),
        "maps" => ObjectKind::Map.header_bytes(),
        "pages" => return part_pieces(world, bytes),
        "index" => ObjectKind::IndexRun.header_bytes(),
        _ => return vec![At { piece: Piece::Header, range: 0..bytes.len() }],
    };
    vec![
        At { piece: Piece::Header, range: 0..header },
        At { piece: Piece::Body, range: header..bytes.len() },
    ]
}

/// Header, directory and pages of a part of a map.
fn part_pieces(world: &World, bytes: &Bytes) -> Vec<At> {
    let PartHeader { object: header, fields } = PartHeader::decode(bytes).unwrap();
    let ObjectPlace { vault, subject, number, part, .. } = header.place;
    let at = Place { ordinal: fields.ordinal, seq: Seq(number) };
    let place = MapPlace { vault, volume: VolumeId(subject), at, attempt: fields.attempt };
    let (head, front) = (header.header_bytes, header.whole_bytes());
    let opener =
        PartOpener::open(&bytes[..front], &place, part, world.writer.vault.ring()).unwrap();
    let mut pieces = vec![
        At { piece: Piece::Header, range: 0..head },
        At { piece: Piece::Body, range: head..front },
    ];
    for number in 0..opener.pages().len() {
        let range = opener.page_range(number);
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        pieces.push(At { piece: Piece::Frame(u32::try_from(number).unwrap()), range });
    }
    pieces
}

async fn segment_pieces(world: &World, name: &str, bytes: &Bytes) -> Vec<At> {
    let header = SegmentHeader::decode(bytes).unwrap();
    let (log, slot, head) = (header.log(), header.slot(), header.object.header_bytes);
    assert_eq!(ObjectName::slot(log, slot).to_string(), name);
    let frames = read_segment(&world.writer.vault, log, slot).await.unwrap().frames;
    let table_end = header.object.whole_bytes();
    let mut pieces = vec![
        At { piece: Piece::Header, range: 0..head },
        At { piece: Piece::Body, range: head..table_end },
    ];
    for (number, range) in (0..).zip(frames) {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        pieces.push(At { piece: Piece::Frame(number), range });
    }
    pieces
}

/// Whether a point can be read, without maps, only if this piece of this object is whole.
pub(crate) fn needs(world: &World, point: &Point, name: &str, piece: Piece) -> bool {
    let mut parts = name.split('/');
    match parts.next().unwrap() {
        "volumes" => needs_epoch(world, point, name),
        // They are derived.
        "logs" if name.contains("/checkpoints/") => false,
        "logs" => {
            let id: LogId = parts.next().unwrap().parse().unwrap();
            let slot = Slot(u64::from_str_radix(parts.next().unwrap(), 16).unwrap());
            let log = world.writer.logs.iter().position(|log| log.id == id).unwrap();
            needs_slot(world, point, log, slot, piece)
        }
        // Nothing but opening the vault needs them.
        "vault" | "keys" => false,
        _ => false,
    }
}

/// The epochs up to its own, and the next one: it says where its own ends.
fn needs_epoch(world: &World, point: &Point, name: &str) -> bool {
    let last = point.epoch as u64 + 2;
    (1..=last).any(|ordinal| world.epoch(point.volume, ordinal) == name)
}

fn needs_slot(world: &World, point: &Point, log: usize, slot: Slot, piece: Piece) -> bool {
    let is_home = |home: &Home| (home.log, home.slot) == (log, slot);
    let held: BTreeSet<u32> =
        point.homes.iter().filter(|home| is_home(home)).map(|home| home.frame).collect();
    if let Piece::Frame(number) = piece {
        return held.contains(&number);
    }
    if !held.is_empty() {
        return true;
    }
    let volume = &world.writer.volumes[point.volume];
    (0..=point.epoch).filter(|epoch| volume.epochs[*epoch].log == log).any(|epoch| {
        let of_epoch = volume.puts.iter().filter(|put| put.epoch == epoch);
        let mut slots = of_epoch.filter(|put| put.last <= point.seq).map(|put| put.slot);
        match piece {
            // It tells whether the slot is void, so it is asked of every slot on the way.
            Piece::Header => {
                let last = slots.next_back();
                last.is_some_and(|last| (volume.epochs[epoch].first_slot..=last).contains(&slot))
            }
            // That the stream joins tells that nothing of the volume is in a table.
            _ => slots.any(|put| put == slot),
        }
    })
}
