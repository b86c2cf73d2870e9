//! Headers and bodies of the frames after the welcome.

use super::{Act, Case, View, case, good, write};
use crate::frame::{Frame, Mark, kind, reason};

const MAGIC: &str = "the `2` is the version";
const KIND: &str =
    "1 hello, 2 welcome, 3 write, 4 zero, 5 mark, 6 ack, 7 refusal, 8 alive; 9 is kept";
const PREVIOUS: &str = "0 if the agent does not know it, and outside the stream";
const STAMP: &str = "a generation has a life; both are 0 outside the stream";
const SEQ: &str = "1 to 2^64 − 2 for write, zero, mark; 0 for the others";
const BLOCK: &str = "first block of a write or zero; 0 for the others";
const COUNT: &str = "1–256 for a write, 1–4,194,304 for a zero; 0 for the others";
const FLAGS: &str = "Of the others, 1 to 3 must be understood: 0; 4 to 7 may be ignored";
const COPY: &str = "bit 0 *copy*, of a write or zero";
const LENGTH: &str =
    "write: count × 4096 · zero: 0 · hello 72–512 · welcome 48–512 · mark 64 · ack 24";
const ENCODING: &str = "0 raw; 1 zstd, of a write where both took that feature; 0 for the others";
const UNKNOWN: &str = "No agent sends one and no node takes one";
const BODY_SUM: &str = "CRC32C of the body";
const SUM: &str = "CRC32C of bytes 0–43";
const LARGEST: &str = "`block + count` is at most 2^34";
const WITHIN: &str = "A write or zero ends within its volume";
const OUT_OF_RANGE: &str = "a header out of range ends the session before anything is allocated";
const MARK_KIND: &str =
    "A kind above 5 and an unknown flag among 0 to 3 are refused as a newer version's";
const MARK_NO_KIND: &str = "1 crash-consistent, 2 application-consistent, 3 scan";
const ATTEMPT: &str = "drawn for each attempt to mark several volumes at one instant";
const MEMBER: &str = "which of the group this volume is, from 0; below members";
const MEMBERS: &str = "1 for a volume alone, which has no attempt";
const MARK_LATER: &str = "| 52 | 12 | reserved | zero |";
const MARK_RESERVED: &str = "| 26 | 2 | reserved | zero |";

const BLOCKS_MAX: u64 = 1 << 34;

const fn wrong(
    field: &'static str,
    sentence: &'static str,
    name: &'static str,
    bytes: super::Bytes,
) -> Case {
    case(sentence, field, name, Act::Later(bytes), reason::PROTOCOL)
}

fn zero(view: &View<'_>, change: impl FnOnce(&mut Frame)) -> Vec<u8> {
    let mut frame = good(view);
    change(&mut frame);
    frame.bytes()
}

fn alive(previous: [u8; 3]) -> Vec<u8> {
    Frame { previous, ..Frame::of(kind::ALIVE, Vec::new()) }.bytes()
}

fn writing(view: &View<'_>, change: impl FnOnce(&mut Frame)) -> Vec<u8> {
    let mut frame = write(view);
    change(&mut frame);
    frame.bytes()
}

fn marking(view: &View<'_>, change: impl FnOnce(&mut Mark)) -> Vec<u8> {
    let mut mark = Mark::prompt();
    change(&mut mark);
    Frame::mark(view.stream.next, &mark).bytes()
}

fn marked(view: &View<'_>, change: impl FnOnce(&mut Frame)) -> Vec<u8> {
    let mut frame = Frame::mark(view.stream.next, &Mark::prompt());
    change(&mut frame);
    frame.bytes()
}

/// The header alone: the rest would be long, and must not be waited for.
fn head(bytes: Vec<u8>) -> Vec<u8> {
    bytes[..crate::frame::HEADER_BYTES].to_vec()
}

pub(super) const CASES: &[Case] = &[
    wrong("header+0", MAGIC, "another magic", |view| zero(view, |f| f.magic = *b"XSF2")),
    wrong("header+0", MAGIC, "another version", |view| zero(view, |f| f.magic = *b"FSF1")),
    wrong("header+4", KIND, "kind 0", |view| zero(view, |f| f.kind = 0)),
    wrong("header+4", UNKNOWN, "blocks that are unknown", |view| zero(view, |f| f.kind = 9)),
    wrong("header+4", KIND, "kind 10", |view| zero(view, |f| f.kind = 10)),
    wrong("header+4", KIND, "kind 255", |view| zero(view, |f| f.kind = 255)),
    wrong("header+5", PREVIOUS, "a sign of life behind a frame", |_| alive([1, 0, 0])),
    wrong("header+5", PREVIOUS, "a sign of life behind another frame", |_| alive([0, 1, 0])),
    wrong("header+5", PREVIOUS, "a sign of life behind a third frame", |_| alive([0, 0, 0x80])),
    wrong("header+8", SEQ, "a write of seq 0", |view| writing(view, |f| f.seq = 0)),
    wrong("header+8", SEQ, "a zero of seq 0", |view| zero(view, |f| f.seq = 0)),
    wrong("header+8", SEQ, "a mark of seq 0", |view| marked(view, |f| f.seq = 0)),
    wrong("header+8", SEQ, "the seq that has no next", |view| zero(view, |f| f.seq = u64::MAX)),
    wrong("header+16", BLOCK, "a mark with a block", |view| marked(view, |f| f.block = 1)),
    wrong("header+16", LARGEST, "a zero at block 2^34", |view| {
        zero(view, |f| f.block = BLOCKS_MAX)
    }),
    wrong("header+16", LARGEST, "a write that ends behind block 2^34", |view| {
        head(writing(view, |f| {
            (f.block, f.count, f.length) = (BLOCKS_MAX - 1, 2, Some(8192));
        }))
    }),
    wrong("header+16", LARGEST, "a block number that overflows", |view| {
        zero(view, |f| f.block = u64::MAX)
    }),
    wrong("header+16", LARGEST, "a sum that overflows to a small one", |view| {
        zero(view, |f| (f.block, f.count) = (u64::MAX - 1, 3))
    }),
    wrong("header+24", COUNT, "a write of no blocks", |view| {
        writing(view, |f| {
            f.count = 0;
            f.body.clear();
        })
    }),
    wrong("header+24", COUNT, "a write of 257 blocks", |view| {
        head(writing(view, |f| (f.count, f.length) = (257, Some(257 * 4096))))
    }),
    wrong("header+24", COUNT, "a zero of no blocks", |view| zero(view, |f| f.count = 0)),
    wrong("header+24", COUNT, "a zero of 4,194,305 blocks", |view| {
        zero(view, |f| f.count = 4_194_305)
    }),
    wrong("header+24", COUNT, "a mark with a count", |view| marked(view, |f| f.count = 1)),
    wrong("header+24", COUNT, "a count whose bytes overflow", |view| {
        writing(view, |f| f.count = 1 << 20)
    }),
    wrong("header+27", FLAGS, "flag 1", |view| writing(view, |f| f.flags = 1 << 1)),
    wrong("header+27", FLAGS, "flag 2 of a zero", |view| zero(view, |f| f.flags = 1 << 2)),
    wrong("header+27", FLAGS, "flag 3 of a mark", |view| marked(view, |f| f.flags = 1 << 3)),
    wrong("header+27", COPY, "a mark that is a copy", |view| marked(view, |f| f.flags = 1)),
    wrong("header+28", STAMP, "a sign of life with a life", |_| {
        Frame { life: 1, ..Frame::of(kind::ALIVE, Vec::new()) }.bytes()
    }),
    wrong("header+35", ENCODING, "a compressed write", |view| {
        writing(view, |f| {
            f.encoding = 1;
            f.body.truncate(100);
        })
    }),
    wrong("header+35", ENCODING, "encoding 2 of a body as it is", |view| {
        writing(view, |f| f.encoding = 2)
    }),
    wrong("header+35", ENCODING, "a compressed zero", |view| zero(view, |f| f.encoding = 1)),
    wrong("header+32", LENGTH, "a write longer than its blocks", |view| {
        writing(view, |f| f.body.extend([0; 4096]))
    }),
    wrong("header+32", LENGTH, "a write shorter than its blocks", |view| {
        writing(view, |f| f.count = 2)
    }),
    wrong("header+32", LENGTH, "a write one byte short", |view| {
        writing(view, |f| f.body.truncate(4095))
    }),
    wrong("header+32", LENGTH, "a zero with a body", |view| zero(view, |f| f.body = vec![0; 4096])),
    wrong("header+32", LENGTH, "a mark of 63 bytes", |view| marked(view, |f| f.body.truncate(63))),
    wrong("header+32", LENGTH, "a mark of 65 bytes", |view| marked(view, |f| f.body.push(0))),
    wrong("header+32", OUT_OF_RANGE, "a body of 16 MiB", |view| {
        writing(view, |f| f.length = Some(u32::MAX))
    }),
    wrong("header+32", OUT_OF_RANGE, "a body one over 1 MiB", |view| {
        writing(view, |f| f.length = Some((1 << 20) + 1))
    }),
    wrong("header+36", BODY_SUM, "a write whose body changed", |view| {
        let sum = crc32c::crc32c(&write(view).body);
        writing(view, |f| {
            f.body[2000] ^= 1;
            f.body_sum = Some(sum);
        })
    }),
    wrong("header+36", BODY_SUM, "a mark whose body changed", |view| {
        marked(view, |f| f.body_sum = Some(0x1234_5678))
    }),
    wrong("header+36", BODY_SUM, "a zero with a sum of something", |view| {
        zero(view, |f| f.body_sum = Some(1))
    }),
    wrong("header+40", STAMP, "a generation without a life", |view| {
        zero(view, |f| f.generation = 1)
    }),
    wrong("header+44", SUM, "a sum of something else", |view| zero(view, |f| f.sum = Some(0))),
    wrong("header+44", SUM, "a header that changed", |view| {
        let mut bytes = good(view).bytes();
        bytes[16] ^= 1;
        bytes
    }),
    wrong("", WITHIN, "a write behind the end", |view| {
        let blocks = view.stream.blocks();
        writing(view, |f| f.block = blocks)
    }),
    wrong("", WITHIN, "a zero over the end", |view| {
        let blocks = view.stream.blocks();
        zero(view, |f| (f.block, f.count) = (blocks - 1, 2))
    }),
    wrong("", WITHIN, "the largest zero", |view| zero(view, |f| f.count = 4_194_304)),
    wrong("mark+24", MARK_NO_KIND, "mark kind 0", |view| marking(view, |m| m.kind = 0)),
    wrong("mark+24", MARK_KIND, "mark kind 6", |view| marking(view, |m| m.kind = 6)),
    wrong("mark+25", MARK_KIND, "mark flag 1", |view| marking(view, |m| m.flags = 1 << 1)),
    wrong("mark+25", MARK_KIND, "mark flag 3", |view| marking(view, |m| m.flags = 1 | 1 << 3)),
    wrong("mark+32", ATTEMPT, "a member of nobody's attempt", |view| {
        marking(view, |m| m.member = [1, 3])
    }),
    wrong("mark+48", MEMBER, "a member behind the last", |view| {
        marking(view, |m| (m.attempt, m.member) = ([7; 16], [3, 3]))
    }),
    wrong("mark+50", MEMBERS, "a group of none", |view| marking(view, |m| m.member = [0, 0])),
    wrong("mark+50", MEMBERS, "a volume alone with an attempt", |view| {
        marking(view, |m| m.attempt = [7; 16])
    }),
    wrong("mark+52", MARK_LATER, "byte 52", |view| marking(view, |m| m.later[0] = 1)),
    wrong("mark+52", MARK_LATER, "byte 63", |view| marking(view, |m| m.later[11] = 1)),
    wrong("mark+26", MARK_RESERVED, "byte 26", |view| marking(view, |m| m.reserved = [1, 0])),
    wrong("mark+26", MARK_RESERVED, "byte 27", |view| marking(view, |m| m.reserved = [0, 1])),
    wrong("header+4", KIND, "a hello's header alone, as kind 1", |_| {
        head(Frame::of(kind::HELLO, vec![0; 72]).bytes())
    }),
];
