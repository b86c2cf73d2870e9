//! The first frame.

use super::{Act, Case, View, case};
use crate::frame::{Frame, Hello, kind, reason};

const FIRST: &str = "The agent's first frame is the hello";
const OWN: &str = "Neither sends the other's";
const LENGTH: &str = "hello 72–512";
const FEATURES: &str =
    "A node refuses (protocol) a hello with a bit of *must understand* that it does not know";
const VOLUME: &str = "the same as in the request";
const EPOCH: &str = "the epoch under which the agent was told to write; ≥ 1";
const SIZE: &str = "of the disk in bytes, 1 to 64 TiB";
const LOWEST: &str = "lowest seq in the agent's log; ≥ 1 and ≤ last seq + 1";
const LIFE: &str = "drawn at each start of the agent, so that two runs differ; ≥ 1";
const OVERTAKEN: &str = "1 if the last session was ended as overtaken; else 0";
const ASSIGNED: &str = "a volume that the control plane gave to that agent and this node";
const STAMP: &str = "a generation has a life; both are 0 outside the stream";
const OTHERS: &str = "0 for the others";

const TIB: u64 = 1 << 40;

const fn wrong(
    field: &'static str,
    sentence: &'static str,
    name: &'static str,
    bytes: super::Bytes,
) -> Case {
    case(sentence, field, name, Act::First(bytes), reason::PROTOCOL)
}

const fn judged(why: u16, sentence: &'static str, name: &'static str, bytes: super::Bytes) -> Case {
    case(sentence, "", name, Act::First(bytes), why)
}

/// The good hello, changed.
fn but(view: &View<'_>, change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let mut hello = view.stream.hello();
    change(&mut hello);
    hello.frame().bytes()
}

/// The good hello as a frame, changed.
fn framed(view: &View<'_>, change: impl FnOnce(&mut Frame)) -> Vec<u8> {
    let mut frame = view.stream.hello().frame();
    change(&mut frame);
    frame.bytes()
}

pub(super) const CASES: &[Case] = &[
    wrong("", FIRST, "a write first", |view| super::write(view).bytes()),
    wrong("", FIRST, "a zero first", |view| super::good(view).bytes()),
    wrong("", FIRST, "a mark first", |view| {
        Frame::mark(view.stream.next, &crate::frame::Mark::prompt()).bytes()
    }),
    // Not even its body is waited for, let alone kept.
    wrong("", FIRST, "the header of a large write first", |view| {
        let large = vec![0; 1 << 20];
        Frame::write(view.stream.next, 0, large).bytes()[..48].to_vec()
    }),
    wrong("", FIRST, "noise first", |_| {
        (0..4096_u32).map(|n| ((n * n) >> 4).to_le_bytes()[0]).collect()
    }),
    wrong("", OWN, "a welcome first", |_| Frame::of(kind::WELCOME, vec![0; 48]).bytes()),
    wrong("", OWN, "an ack first", |_| Frame::of(kind::ACK, vec![0; 16]).bytes()),
    wrong("", OWN, "a refusal first", |_| Frame::of(kind::REFUSAL, vec![1, 0]).bytes()),
    wrong("header+32", LENGTH, "a hello of 71 bytes", |view| framed(view, |f| f.body.truncate(71))),
    wrong("header+32", LENGTH, "a hello of 513 bytes", |view| {
        framed(view, |f| f.body.resize(513, 0))
    }),
    wrong("header+32", LENGTH, "a hello of no bytes", |view| framed(view, |f| f.body.clear())),
    wrong("header+8", OTHERS, "a hello with a seq", |view| framed(view, |f| f.seq = 1)),
    wrong("header+16", OTHERS, "a hello with a block", |view| framed(view, |f| f.block = 1)),
    wrong("header+24", OTHERS, "a hello with a count", |view| framed(view, |f| f.count = 1)),
    wrong("header+28", STAMP, "a hello with a life in its header", |view| {
        framed(view, |f| f.life = 1)
    }),
    wrong("hello+0", FEATURES, "a compressed payload that is needed", |view| {
        but(view, |hello| hello.must = 1)
    }),
    wrong("hello+0", FEATURES, "the last feature", |view| {
        but(view, |hello| (hello.must, hello.may) = (1 << 31, u32::MAX))
    }),
    wrong("hello+8", VOLUME, "another volume than in the request", |view| {
        let other = view.other.into_bytes();
        but(view, |hello| hello.volume = other)
    }),
    wrong("hello+24", EPOCH, "epoch 0", |view| but(view, |hello| hello.epoch = 0)),
    wrong("hello+32", SIZE, "a disk of nothing", |view| but(view, |hello| hello.size = 0)),
    wrong("hello+32", SIZE, "a disk over 64 TiB", |view| {
        but(view, |hello| hello.size = 64 * TIB + 4096)
    }),
    wrong("hello+32", SIZE, "the largest number", |view| but(view, |hello| hello.size = u64::MAX)),
    wrong("hello+40", LOWEST, "first seq 0", |view| but(view, |hello| hello.first_seq = 0)),
    wrong("hello+40", LOWEST, "first seq beyond the last", |view| {
        but(view, |hello| hello.first_seq = hello.last_seq + 2)
    }),
    wrong("hello+48", LOWEST, "last seq below the first", |view| {
        but(view, |hello| (hello.first_seq, hello.last_seq) = (3, 1))
    }),
    wrong("hello+60", LIFE, "life 0", |view| but(view, |hello| hello.life = 0)),
    wrong("hello+64", OVERTAKEN, "overtaken 2", |view| but(view, |hello| hello.overtaken = 2)),
    wrong("hello+65", "| 65 | 7 | reserved | zero |", "reserved bytes", |view| {
        but(view, |hello| hello.reserved = [0, 0, 0, 0, 0, 0, 1])
    }),
    judged(reason::FENCED, EPOCH, "the epoch before", |view| but(view, |hello| hello.epoch -= 1)),
    judged(reason::UNAVAILABLE, EPOCH, "an epoch to come", |view| {
        but(view, |hello| hello.epoch += 1)
    }),
    judged(reason::UNAVAILABLE, EPOCH, "the largest epoch", |view| {
        but(view, |hello| hello.epoch = u64::MAX)
    }),
    judged(reason::SIZE, SIZE, "a disk that shrank", |view| but(view, |hello| hello.size -= 4096)),
    judged(reason::SIZE, SIZE, "a byte more", |view| but(view, |hello| hello.size += 1)),
    judged(reason::SIZE, SIZE, "a byte less", |view| but(view, |hello| hello.size -= 1)),
    judged(reason::SIZE, SIZE, "a disk that grew", |view| but(view, |hello| hello.size += 4096)),
    judged(reason::GAP, LOWEST, "a log that begins behind what the node has", |view| {
        but(view, |hello| {
            hello.first_seq = hello.last_seq + 2;
            hello.last_seq += 9;
        })
    }),
    case(
        ASSIGNED,
        "",
        "another machine's volume",
        Act::Foreign(|view| view.other),
        reason::NOT_ASSIGNED,
    ),
    case(
        ASSIGNED,
        "",
        "a volume of nobody",
        Act::Foreign(|_| uuid::Uuid::from_u128(7)),
        reason::NOT_ASSIGNED,
    ),
];
