//! The bodies of objects, and their sections taken apart and put together by hand.

use crate::samples::{self, delta_directory, unmarked_manifest};
use farshore_proto::DecodeError;
use farshore_proto::base::BaseBody;
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::epoch::EpochBody;
use farshore_proto::group::GroupBody;
use farshore_proto::horizon::HorizonBody;
use farshore_proto::index_run::IndexRun;
use farshore_proto::machine::MachineBody;
use farshore_proto::map::{Directory, Manifest, Page};
use farshore_proto::register::RegisterBody;
use farshore_proto::revision::RevisionBody;
use farshore_proto::segment::Table;

/// Bit of a section that a reader must understand.
pub(crate) const MUST: u16 = 1;

/// A section as bytes say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) number: u16,
    pub(crate) flags: u16,
    pub(crate) stride: u32,
    pub(crate) count: u32,
    pub(crate) records: Vec<u8>,
}

impl Section {
    pub(crate) fn of_zeros(number: u16, flags: u16, stride: u32, count: u32) -> Self {
        let bytes = wide(stride) * wide(count);
        Self { number, flags, stride, count, records: vec![0; bytes] }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.number.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.stride.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend([0; 4]);
        out.extend(&self.records);
        out
    }

    /// The same records, each of another length: cut, or filled with `fill`.
    pub(crate) fn restrided(&self, stride: u32, fill: u8) -> Self {
        let (old, new) = (wide(self.stride), wide(stride));
        let resized = |record: &[u8]| {
            let mut record = record.to_vec();
            record.resize(new, fill);
            record
        };
        let records = self.records.chunks(old).flat_map(resized).collect();
        Self { stride, records, ..self.clone() }
    }
}

fn wide(count: u32) -> usize {
    usize::try_from(count).expect("32 bits fit")
}

/// Takes a body apart, as far as it is whole.
pub(crate) fn split(body: &[u8]) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut rest = body;
    while let Some((head, behind)) = rest.split_first_chunk::<16>() {
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let long =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (stride, count) = (long(4), long(8));
        let bytes = u64::from(stride) * u64::from(count);
        let Some((records, next)) =
            behind.split_at_checked(usize::try_from(bytes).expect("64-bit"))
        else {
            break;
        };
        let (number, flags) = (short(0), short(2));
        sections.push(Section { number, flags, stride, count, records: records.to_vec() });
        rest = next;
    }
    sections
}

pub(crate) fn join(sections: &[Section]) -> Vec<u8> {
    sections.iter().flat_map(Section::bytes).collect()
}

/// The body with so many records of zeros in one of its sections.
pub(crate) fn with_records(body: &[u8], number: u16, count: usize) -> Vec<u8> {
    let mut sections = split(body);
    let section = sections.iter_mut().find(|section| section.number == number).expect("it has one");
    let count = u32::try_from(count).expect("limits fit");
    *section = Section::of_zeros(number, MUST, section.stride, count);
    join(&sections)
}

/// A body and its decoder.
pub(crate) struct Body {
    pub(crate) name: &'static str,
    pub(crate) good: Vec<u8>,
    /// Decodes, and encodes what came of it.
    pub(crate) again: fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
    /// Its sections, and the bytes of a record of each.
    pub(crate) strides: &'static [(u16, u32)],
}

const TABLE: &[(u16, u32)] = &[(1, 12), (2, 32), (3, 48), (4, 72), (5, 20), (6, 64)];
const EPOCH: &[(u16, u32)] = &[(1, 64), (2, 1), (3, 16), (4, 48)];
const MANIFEST: &[(u16, u32)] = &[(1, 64), (2, 56), (3, 16)];
const DIRECTORY: &[(u16, u32)] = &[(1, 32), (2, 8), (3, 4)];
const PAGE: &[(u16, u32)] = &[(2, 32), (3, 28), (4, 16), (5, 8), (6, 20)];
const RUN: &[(u16, u32)] = &[(1, 16), (2, 32), (3, 44)];
const CHECKPOINT: &[(u16, u32)] = &[(1, 32), (2, 88)];
const REVISION: &[(u16, u32)] = &[(1, 24), (2, 16), (3, 8)];
const HORIZON: &[(u16, u32)] = &[(1, 32), (2, 88), (3, 48)];
const REGISTER: &[(u16, u32)] = &[(1, 64), (2, 32), (3, 24), (4, 32)];
const MACHINE: &[(u16, u32)] = &[(1, 32), (2, 1), (3, 1), (4, 64), (5, 1)];
const GROUP: &[(u16, u32)] = &[(1, 32), (2, 1), (3, 56)];
const BASE: &[(u16, u32)] = &[(1, 128), (2, 112)];

pub(crate) fn bodies() -> Vec<Body> {
    type Again = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;
    let table: Again = |bytes| Ok(Table::decode(bytes)?.encode());
    let epoch: Again =
        |bytes| EpochBody::decode(bytes).map(|(body, label)| body.encode(label.as_ref()));
    let revision: Again = |bytes| Ok(RevisionBody::decode(bytes)?.encode());
    let manifest: Again = |bytes| Ok(Manifest::decode(bytes)?.encode());
    let directory: Again = |bytes| Ok(Directory::decode(bytes)?.encode());
    let page: Again = |bytes| Ok(Page::decode(bytes)?.encode());
    let run: Again = |bytes| Ok(IndexRun::decode(bytes)?.encode());
    let checkpoint: Again =
        |bytes| Ok(CheckpointBody::decode(bytes, samples::CHECKPOINT_SLOT)?.encode());
    let horizon: Again = |bytes| Ok(HorizonBody::decode(bytes, samples::HORIZON)?.encode());
    let register: Again = |bytes| Ok(RegisterBody::decode(bytes, samples::ENTRY)?.encode());
    let machine: Again = |bytes| Ok(MachineBody::decode(bytes)?.encode());
    let group: Again = |bytes| Ok(GroupBody::decode(bytes)?.encode());
    let base: Again = |bytes| Ok(BaseBody::decode(bytes, samples::BASE_NUMBER)?.encode());
    let body = |name, good, again, strides| Body { name, good, again, strides };
    vec![
        body("table", samples::table().encode(), table, TABLE),
        body("table with stamps", samples::stamped_table().encode(), table, TABLE),
        body(
            "epoch body",
            samples::epoch_body().encode(Some(&samples::sealed_label())),
            epoch,
            EPOCH,
        ),
        body(
            "epoch body with a stamp",
            samples::stamped_epoch_body().encode(Some(&samples::sealed_label())),
            epoch,
            EPOCH,
        ),
        body("map body", samples::manifest().encode(), manifest, MANIFEST),
        body("map body without a mark", unmarked_manifest().encode(), manifest, MANIFEST),
        body("map directory", samples::directory().encode(), directory, DIRECTORY),
        body("map delta directory", delta_directory().encode(), directory, DIRECTORY),
        body("map page", samples::page().encode(), page, PAGE),
        body("map page of zeros", samples::zero_page().encode(), page, PAGE),
        body("index run body", samples::index_run().encode(), run, RUN),
        body("checkpoint body", samples::checkpoint().encode(), checkpoint, CHECKPOINT),
        body("revision body", samples::revision().encode(), revision, REVISION),
        body("horizon body", samples::horizon().encode(), horizon, HORIZON),
        body("register body", samples::register().encode(), register, REGISTER),
        body("machine body", samples::machine_body().encode(), machine, MACHINE),
        body("group body", samples::group_body().encode(), group, GROUP),
        body("base body", samples::base().encode(), base, BASE),
    ]
}

/// Whether a body makes use of what later programs may add: a section that this one does not know, records
/// that are longer, flags that may be ignored.
pub(crate) fn is_of_later(body: &[u8], strides: &[(u16, u32)]) -> bool {
    split(body).iter().any(|section| {
        let is_known = strides.contains(&(section.number, section.stride));
        !is_known || has_later_flags(section, strides)
    })
}

/// Of marks in a table and a base, of volumes in a checkpoint, and of machines, groups and what they list the upper half of the
/// flags may be ignored.
fn has_later_flags(section: &Section, strides: &[(u16, u32)]) -> bool {
    let flags_at = match section.number {
        6 if strides == TABLE => 25,
        2 if strides == CHECKPOINT || strides == HORIZON => 83,
        1 if strides == MACHINE => 21,
        4 if strides == MACHINE => 47,
        1 if strides == GROUP => 9,
        3 if strides == GROUP => 49,
        2 if strides == BASE => 73,
        _ => return false,
    };
    let mut records = section.records.chunks(wide(section.stride));
    records.any(|record| record[flags_at] & 0xf0 != 0)
}
