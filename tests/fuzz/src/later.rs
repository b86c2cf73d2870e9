//! What later programs may add to an object, found by hand: a reader passes over it. Of bytes that have none of
//! it, a value has one encoding.

use farshore_proto::DecodeError;
use farshore_proto::limits::OBJECT_HEADER_BYTES_MAX;
use farshore_proto::object::ObjectKind;

/// The sections of a body: their numbers, and the bytes of a record of each.
pub(crate) type Strides = &'static [(u16, u32)];

pub(crate) const TABLE: Strides = &[(1, 12), (2, 32), (3, 48), (4, 72), (5, 20), (6, 64)];
pub(crate) const EPOCH: Strides = &[(1, 64), (2, 1), (3, 16), (4, 48)];
pub(crate) const MANIFEST: Strides = &[(1, 64), (2, 56), (3, 16)];
pub(crate) const DIRECTORY: Strides = &[(1, 32), (2, 8), (3, 4)];
pub(crate) const PAGE: Strides = &[(2, 32), (3, 28), (4, 16), (5, 8), (6, 20)];
pub(crate) const INDEX_RUN: Strides = &[(2, 32), (3, 44)];
pub(crate) const CHECKPOINT: Strides = &[(1, 32), (2, 88)];
pub(crate) const REVISION: Strides = &[(1, 24), (2, 16), (3, 8)];
pub(crate) const HORIZON: Strides = &[(1, 32), (2, 88), (3, 48)];
pub(crate) const REGISTER: Strides = &[(1, 64), (2, 32), (3, 24), (4, 32)];
pub(crate) const MACHINE: Strides = &[(1, 32), (2, 1), (3, 1), (4, 64), (5, 1)];
pub(crate) const GROUP: Strides = &[(1, 32), (2, 1), (3, 56)];
pub(crate) const BASE: Strides = &[(1, 128), (2, 112)];

/// Where the header at the front of an object ends, as it says itself; the kind's own if that cannot be.
pub(crate) fn head_end(object: &[u8], kind: ObjectKind) -> usize {
    let own = kind.header_bytes();
    let Some(head) = object.first_chunk::<8>() else { return own };
    let says = usize::from(u16::from_le_bytes([head[6], head[7]]));
    if (own..=OBJECT_HEADER_BYTES_MAX).contains(&says) { says } else { own }
}

/// Whether a header is longer than the kind's own, or has bits that may be ignored.
fn in_head(head: &[u8], kind: ObjectKind) -> bool {
    head_end(head, kind) != kind.header_bytes() || head[12..16] != [0; 4]
}

/// Whether a body that decodes has a section or a length of records that is not known here, or flags that may
/// be ignored.
pub(crate) fn in_body(body: &[u8], strides: Strides) -> bool {
    let mut rest = body;
    while let Some((head, behind)) = rest.split_first_chunk::<16>() {
        let number = u16::from_le_bytes([head[0], head[1]]);
        let stride = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let count = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let records = behind.split_at_checked(stride as usize * count as usize);
        let Some((records, next)) = records else { return false };
        if !strides.contains(&(number, stride)) || in_flags(number, records, strides) {
            return true;
        }
        rest = next;
    }
    false
}

/// Whether marks of a table or a base, volumes of a checkpoint, or machines, groups and what they list have flags that may be
/// ignored.
fn in_flags(number: u16, records: &[u8], strides: Strides) -> bool {
    let (stride, at) = match number {
        6 if strides == TABLE => (64, 25),
        2 if strides == CHECKPOINT || strides == HORIZON => (88, 83),
        1 if strides == MACHINE => (32, 21),
        4 if strides == MACHINE => (64, 47),
        1 if strides == GROUP => (32, 9),
        3 if strides == GROUP => (56, 49),
        2 if strides == BASE => (112, 73),
        _ => return false,
    };
    records.chunks_exact(stride).any(|record| record[at] & 0xf0 != 0)
}

/// Checks that `again`, what was read of a header and laid out again, is the header, but for what was passed
/// over.
pub(crate) fn must_be_head(
    object: &[u8],
    again: &[u8],
    kind: ObjectKind,
    decode: impl Fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
) {
    assert_eq!(decode(again).as_deref(), Ok(again), "what is known of it has one encoding");
    if !in_head(object, kind) {
        assert_eq!(again, &object[..kind.header_bytes()], "two encodings of one header");
    }
}

/// Checks that `again`, what was read of a body and laid out again, is the body, but for what was passed over.
pub(crate) fn must_be_body(
    body: &[u8],
    again: &[u8],
    strides: Strides,
    decode: impl Fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
) {
    assert_eq!(decode(again).as_deref(), Ok(again), "what is known of it has one encoding");
    if !in_body(body, strides) {
        assert_eq!(again, body, "two encodings of one body");
    }
}
