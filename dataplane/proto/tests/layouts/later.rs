//! What later programs may add to an object, and what a reader does about it: it passes over what it may
//! ignore, and refuses, by name, what it must understand.
//!
//! Here alone a value has more than one encoding: what is passed over is not written again.

use crate::bodies::{MUST, Section, bodies, join, split};
use crate::canonical::heads;
use crate::maps::{FRAME, LAYER, MAP_MARK, PAGE};
use crate::samples;
use farshore_proto::limits::{OBJECT_HEADER_BYTES_MAX, SECTIONS_MAX};
use farshore_proto::map::{Directory, Manifest, MapHeader, Page, PartHeader};
use farshore_proto::object::{ObjectHeader, ObjectKind, commit, committed};
use farshore_proto::sections::{SECTION_HEAD_BYTES, SectionKind, SectionWriter, Sections};
use farshore_proto::segment::{SegmentHeader, SlotKind};
use farshore_proto::{Attempt, DecodeError, ErrorKind, MarkKind, OtherKind};

const MUST_AT: usize = 8;
const MAY_AT: usize = 12;
const VARIANT_AT: usize = 72;
const COMPRESSION_AT: usize = 73;

/// A header, changed, with its length and checksum put right.
fn changed(good: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut head = good[..good.len() - 4].to_vec();
    change(&mut head);
    let length = u16::try_from(head.len() + 4).expect("headers are short");
    head[6..8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&head);
    head.extend(crc.to_le_bytes());
    head
}

#[test]
fn a_bit_that_must_be_understood_is_named_and_the_object_refused() {
    for (kind, good, _) in heads() {
        for bit in 0..32_u32 {
            let head = changed(&good, |head| {
                head[MUST_AT..MUST_AT + 4].copy_from_slice(&(1_u32 << bit).to_le_bytes());
            });
            let error = ObjectHeader::decode(kind, &head).unwrap_err();
            let what = kind.what();
            assert_eq!(error, DecodeError::Newer { what, feature: "feature", bit });
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("newer version"), "{error}");
        }
    }
}

/// A kind of mark from 128 on is a point all the same, and stays what it is.
#[test]
fn a_mark_of_a_later_kind_that_promises_no_less_than_a_crash_is_kept() {
    for code in [OtherKind::FIRST, 200, 255] {
        let mut bytes = samples::manifest().encode();
        bytes[MAP_MARK + 28] = code;
        let manifest = Manifest::decode(&bytes).unwrap();
        let kind = manifest.mark.unwrap().kind;
        assert_eq!((kind.code(), kind.word(), manifest.encode()), (code, "other", bytes));
        assert!(!MarkKind::ALL.contains(&kind));
    }
}

/// A code that a later program gave out is no damage.
#[test]
fn a_code_that_is_not_known_is_named_as_newer() {
    for code in 2..=255_u8 {
        let newer = |what, feature| DecodeError::Newer { what, feature, bit: code.into() };
        for (kind, good, again) in heads() {
            let head = changed(&good, |head| head[COMPRESSION_AT] = code);
            assert_eq!(again(&head), Err(newer("object", "compression")), "{kind:?}");
        }
        let slot = samples::segment_header(SlotKind::Seal).encode();
        let slot = SegmentHeader::decode(&changed(&slot, |head| head[VARIANT_AT] = code));
        assert_eq!(slot.err(), (code > 3).then(|| newer("segment", "kind")));
        let with = |mut bytes: Vec<u8>, at: usize| {
            bytes[at] = code;
            bytes
        };
        let manifest = |at| Manifest::decode(&with(samples::manifest().encode(), at)).err();
        let is_refused = (6..OtherKind::FIRST).contains(&code);
        assert_eq!(manifest(MAP_MARK + 28), is_refused.then(|| newer("mark", "kind")));
        assert_eq!(manifest(LAYER + 52), (code > 2).then(|| newer("map", "layer")));
        let directory = Directory::decode(&with(samples::directory().encode(), PAGE + 28));
        assert_eq!(directory, Err(newer("object", "compression")));
        let page = Page::decode(&with(samples::page().encode(), FRAME + 24));
        assert_eq!(page, Err(newer("object", "compression")));
    }
}

#[test]
fn a_bit_that_may_be_ignored_is_passed_over() {
    for (kind, good, again) in heads() {
        for bit in 0..32_u32 {
            let head = changed(&good, |head| {
                head[MAY_AT..MAY_AT + 4].copy_from_slice(&(1_u32 << bit).to_le_bytes());
            });
            assert_eq!(again(&head).as_ref(), Ok(&good), "{kind:?} bit {bit}");
        }
    }
}

#[test]
fn a_longer_header_is_read_over_up_to_its_limit() {
    for (kind, good, again) in heads() {
        for length in (0..=OBJECT_HEADER_BYTES_MAX + 16).filter(|length| *length != good.len()) {
            let head = changed(&good, |head| {
                head.resize(length.max(12) - 4, 0xa5);
            });
            let read = again(&head);
            let is_legal = (good.len()..=OBJECT_HEADER_BYTES_MAX).contains(&head.len());
            if is_legal && head.len().is_multiple_of(8) {
                assert_eq!(read.as_ref(), Ok(&good), "{kind:?} of {length} bytes");
                let (header, own) = ObjectHeader::decode(kind, &head).unwrap();
                assert_eq!((header.header_bytes, own.left()), (length, kind.own_bytes()));
                assert_eq!(header.whole_bytes(), length + header.body_bytes);
                // All of it is under the checksum, and under what is committed to.
                assert_eq!(committed(&head).concat().len(), length - 32 - 4);
                let mut bad = head.clone();
                bad[length - 5] ^= 1;
                let error = ObjectHeader::decode(kind, &bad).unwrap_err();
                assert_eq!(error, DecodeError::Checksum { what: kind.what() });
            } else {
                let error = read.unwrap_err();
                let value = head.len() as u64;
                assert_eq!(error, DecodeError::Range { what: "header length", value }, "{kind:?}");
            }
        }
    }
}

#[test]
fn fields_of_a_longer_header_are_where_they_were() {
    let segment = samples::segment_header(SlotKind::Segment);
    let head = changed(&segment.encode(), |head| head.resize(300, 1));
    let read = SegmentHeader::decode(&head).unwrap();
    assert_eq!((read.kind, read.frames_bytes, read.writer), (segment.kind, 20_016, segment.writer));
    assert_eq!(read.frames_offset(), 304 + 300);
    let map = samples::map_object();
    let head = changed(&map[..200], |head| head.resize(500, 1));
    let read = MapHeader::decode(&head).unwrap();
    assert_eq!((read.fields, read.at()), (samples::map_fields(), samples::MAP_AT));
    let part = samples::map_pages_object();
    let head = changed(&part[..192], |head| head.resize(500, 1));
    let read = PartHeader::decode(&head).unwrap();
    assert_eq!((read.fields, read.at()), (samples::part_fields(), samples::MAP_AT));
    let body = read.object.body_bytes as u64;
    assert_eq!(read.object_bytes(), 504 + body + samples::part_fields().pages_bytes);
}

#[test]
fn a_commitment_covers_all_of_a_header_but_itself_and_the_checksum() {
    for (kind, good, _) in heads() {
        let covered = committed(&good).concat();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let is_covered = !(120..152).contains(&at) && at < good.len() - 4;
            assert_eq!(committed(&bad).concat() != covered, is_covered, "{kind:?} byte {at}");
        }
        let mut head = good.clone();
        commit(&mut head, &[0x99; 32]);
        let (header, _) = ObjectHeader::decode(kind, &head).unwrap();
        assert_eq!((header.commitment, committed(&head).concat()), ([0x99; 32], covered));
        assert_eq!(header.attempt(), Attempt(header.salt[..8].try_into().unwrap()));
    }
}

#[test]
fn every_kind_is_its_own_and_its_header_has_whole_words() {
    for kind in ObjectKind::ALL {
        assert!(kind.header_bytes().is_multiple_of(8), "{kind:?}");
        for (other, good, _) in heads().into_iter().filter(|(other, ..)| *other != kind) {
            let error = ObjectHeader::decode(kind, &good).unwrap_err();
            assert_eq!(error, DecodeError::Magic { what: kind.what() }, "{other:?}");
        }
    }
}

#[test]
fn an_unknown_section_is_passed_over_unless_it_must_be_understood() {
    for body in bodies() {
        let free =
            (0..=9_u16).filter(|number| body.strides.iter().all(|(known, _)| known != number));
        for number in free.chain([u16::MAX]) {
            let with = |flags: u16, stride: u32, count: u32| {
                let mut sections = split(&body.good);
                let at = sections.iter().take_while(|section| section.number < number).count();
                sections.insert(at, Section::of_zeros(number, flags, stride, count));
                (body.again)(&join(&sections))
            };
            for (stride, count) in [(1, 1), (7, 3), (4096, 2), (8, 0)] {
                assert_eq!(
                    with(0, stride, count).as_ref(),
                    Ok(&body.good),
                    "{} {number}",
                    body.name
                );
                let error = with(MUST, stride, count).unwrap_err();
                let is_named = matches!(error,
                    DecodeError::Newer { feature: "section", bit, .. } if bit == u32::from(number));
                assert!(is_named, "{} {number}: {error}", body.name);
            }
        }
    }
}

#[test]
fn a_longer_record_is_read_over_and_a_shorter_one_refused() {
    for body in bodies() {
        for at in 0..split(&body.good).len() {
            let with = |stride: u32| {
                let mut sections = split(&body.good);
                sections[at] = sections[at].restrided(stride, 0x5a);
                (body.again)(&join(&sections))
            };
            let Section { number, stride, .. } = split(&body.good)[at];
            for more in [1, 4, 100] {
                let read = with(stride + more);
                assert_eq!(read.as_ref(), Ok(&body.good), "{} section {number}", body.name);
            }
            if stride > 1 {
                let error = with(stride - 1).unwrap_err();
                let value = u64::from(stride - 1);
                let is_named =
                    matches!(error, DecodeError::Range { value: found, .. } if found == value);
                assert!(is_named, "{} section {number}: {error}", body.name);
            }
        }
    }
}

#[test]
fn sections_come_in_order_once_and_not_empty() {
    for body in bodies() {
        let sections = split(&body.good);
        assert_eq!(join(&sections), body.good, "{}", body.name);
        assert!(sections.iter().all(|section| section.flags == MUST), "{}", body.name);
        for at in 0..sections.len() {
            let number = sections[at].number;
            let refused = |why: &str, change: &dyn Fn(&mut Vec<Section>)| {
                let mut changed = sections.clone();
                change(&mut changed);
                let error = (body.again)(&join(&changed)).expect_err(body.name);
                let is_damage =
                    matches!(error, DecodeError::Range { .. } | DecodeError::Reserved { .. });
                assert!(is_damage, "{} section {number} {why}: {error}", body.name);
            };
            refused("twice", &|all| all.insert(at, all[at].clone()));
            if at > 0 {
                refused("before the one in front", &|all| all.swap(at - 1, at));
            }
            refused("without records", &|all| {
                all[at].count = 0;
                all[at].records.clear();
            });
            refused("without a stride", &|all| {
                all[at].stride = 0;
                all[at].records.clear();
            });
            refused("that one need not understand", &|all| all[at].flags = 0);
            refused("with an unknown flag", &|all| all[at].flags |= 1 << 15);
        }
    }
}

const KIND: SectionKind = SectionKind { number: 3, stride: 8, max: 4, what: "test records" };

fn read(sections: &[Section]) -> Result<usize, DecodeError> {
    let body = join(sections);
    let sections = Sections::read("test body", &body, &[KIND])?;
    Ok(sections.records(&KIND).len())
}

#[test]
fn a_body_has_a_limit_of_sections_and_a_section_one_of_records() {
    let many = |count: usize| -> Vec<Section> {
        (0..u16::try_from(count).unwrap()).map(|n| Section::of_zeros(10 + n, 0, 1, 1)).collect()
    };
    assert_eq!(read(&many(SECTIONS_MAX)), Ok(0));
    let max = SECTIONS_MAX as u64;
    let error = DecodeError::Limit { what: "sections", value: max + 1, max };
    assert_eq!(read(&many(SECTIONS_MAX + 1)), Err(error));
    assert_eq!(read(&[Section::of_zeros(3, MUST, 8, 4)]), Ok(4));
    let error = DecodeError::Limit { what: "test records", value: 5, max: 4 };
    assert_eq!(read(&[Section::of_zeros(3, MUST, 8, 5)]), Err(error));
}

#[test]
fn what_a_section_says_of_its_length_is_compared_with_what_is_there() {
    for (stride, count) in [(u32::MAX, u32::MAX), (1, u32::MAX), (u32::MAX, 1), (8, 2), (9, 1)] {
        for number in [3, 9] {
            let mut section = Section::of_zeros(number, 0, 8, 1);
            (section.flags, section.stride, section.count) = (number & MUST, stride, count);
            let error = read(&[section]).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { .. }), "{stride} {count}: {error}");
        }
    }
    let mut bytes = Section::of_zeros(3, MUST, 8, 1).bytes();
    assert_eq!(bytes.len(), SECTION_HEAD_BYTES + 8);
    bytes[12] = 1;
    let error = Sections::read("test body", &bytes, &[KIND]).unwrap_err();
    assert_eq!(error, DecodeError::Reserved { what: "test body" });
    for end in 1..bytes.len() {
        bytes[12] = 0;
        let error = Sections::read("test body", &bytes[..end], &[KIND]).unwrap_err();
        assert!(matches!(error, DecodeError::Truncated { .. }), "{end}: {error}");
    }
}

#[test]
fn what_is_written_is_read_and_what_has_no_records_is_not_written() {
    let mut writer = SectionWriter::default();
    let second = SectionKind { number: 9, stride: 1, max: 100, what: "test bytes" };
    let empty = SectionKind { number: 5, ..KIND };
    writer.put(&KIND, 2, |out| out.extend(1..=16_u8));
    writer.put(&empty, 0, |_| unreachable!("nothing is asked for"));
    writer.put(&second, 3, |out| out.extend(b"abc"));
    let body = writer.finish();
    assert_eq!(split(&body).iter().map(|section| section.number).collect::<Vec<_>>(), [3, 9]);
    let sections = Sections::read("test body", &body, &[KIND, empty, second]).unwrap();
    let mut records = sections.records(&KIND);
    assert_eq!(records.next().unwrap().u64().unwrap(), 0x0807_0605_0403_0201);
    assert_eq!((records.len(), sections.records(&empty).len()), (1, 0));
    assert_eq!(sections.bytes(&second), b"abc");
    assert!(sections.record(&KIND).is_err() && sections.record(&empty).is_err());
}
