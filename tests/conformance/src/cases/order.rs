//! Good frames in a wrong order, and connections that end where they must not.

use super::{Act, Case, Expect, case, good, write};
use crate::frame::{Frame, imprint, kind, reason};

const ONCE: &str = "It says it once";
const OWN: &str = "welcome, ack and refusal are the node's";
const NEXT: &str =
    "The node refuses a seq that is not the next one, so a stream has no gap and no frame twice";
const BEHIND: &str = "a frame that says it is behind another than the newest that it has";
const AFTER: &str = "what the agent still sends is not read";
const BETWEEN: &str = "A connection ends between two frames, not inside one";

const fn wrong(sentence: &'static str, name: &'static str, bytes: super::Bytes) -> Case {
    case(sentence, "", name, Act::Later(bytes), reason::PROTOCOL)
}

const fn cut(name: &'static str, act: Act) -> Case {
    let expect = Expect::Refused(reason::PROTOCOL);
    Case { name, sentence: BETWEEN, field: "", act, expect, counted: "truncated" }
}

pub(super) const CASES: &[Case] = &[
    wrong(ONCE, "a second hello", |view| view.stream.hello().frame().bytes()),
    wrong(OWN, "a welcome", |_| Frame::of(kind::WELCOME, vec![0; 32]).bytes()),
    wrong(OWN, "an ack", |_| Frame::of(kind::ACK, vec![0; 16]).bytes()),
    wrong(OWN, "a refusal", |_| Frame::of(kind::REFUSAL, vec![1, 0]).bytes()),
    wrong(OWN, "a long refusal that is no text", |_| {
        let mut body = vec![0xff; 514];
        body[..2].copy_from_slice(&[1, 0]);
        Frame::of(kind::REFUSAL, body).bytes()
    }),
    wrong(NEXT, "a frame twice", |view| view.stream.some_write().repeat(2)),
    wrong(NEXT, "an old frame again", |view| {
        let old = view.stream.some_write();
        let mut bytes =
            [old.as_slice(), &view.stream.some_write(), &view.stream.some_write()].concat();
        bytes.extend(old);
        bytes
    }),
    wrong(NEXT, "a frame left out", |view| {
        let mut bytes = view.stream.some_write();
        bytes.extend(Frame::zero(view.stream.next + 1, 0, 1).bytes());
        bytes
    }),
    wrong(NEXT, "two frames swapped", |view| {
        let next = view.stream.next;
        [Frame::zero(next + 1, 0, 1).bytes(), Frame::zero(next, 0, 1).bytes()].concat()
    }),
    wrong(NEXT, "the last seq there is", |view| Frame { seq: u64::MAX - 1, ..good(view) }.bytes()),
    wrong(NEXT, "a mark at the place of the frame before", |view| {
        let mut bytes = view.stream.some_write();
        bytes.extend(Frame::mark(view.stream.next - 1, &crate::frame::Mark::prompt()).bytes());
        bytes
    }),
    case(
        BEHIND,
        "header+5",
        "a frame of another history",
        Act::Later(|view| {
            let mut bytes = view.stream.some_write();
            let previous = imprint(&bytes).map(|byte| !byte);
            bytes.extend(Frame { previous, ..good(view) }.bytes());
            bytes
        }),
        reason::GAP,
    ),
    wrong(AFTER, "good frames behind a bad one", |view| {
        let mut bytes = Frame { kind: 9, ..good(view) }.bytes();
        for seq in view.stream.next..view.stream.next + 20 {
            bytes.extend(Frame::write(seq, 0, vec![0xee; 4096]).bytes());
        }
        bytes
    }),
    wrong(AFTER, "a mebibyte behind a bad frame", |view| {
        let mut bytes = Frame { generation: 9, ..good(view) }.bytes();
        bytes.resize(1 << 20, 0xa5);
        bytes
    }),
    cut("half a header", Act::Cut(|view| good(view).bytes()[..24].to_vec())),
    cut("one byte of a header", Act::Cut(|view| good(view).bytes()[..1].to_vec())),
    cut("a header without its body", Act::Cut(|view| write(view).bytes()[..48].to_vec())),
    cut(
        "half a body",
        Act::Cut(|view| {
            let mut bytes = view.stream.some_write();
            bytes.extend(&write(view).bytes()[..2000]);
            bytes
        }),
    ),
    cut(
        "half a header, and not even goodbye",
        Act::CutRaw(|view| good(view).bytes()[..24].to_vec()),
    ),
    cut(
        "half a body, and not even goodbye",
        Act::CutRaw(|view| write(view).bytes()[..2000].to_vec()),
    ),
    Case {
        expect: Expect::Gone,
        counted: "connection",
        ..cut("half a body, then a reset", Act::Reset(|view| write(view).bytes()[..2000].to_vec()))
    },
];
