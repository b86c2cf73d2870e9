use super::*;
use crate::ids::{Epoch, MarkAttempt, MarkKind, PointId, VolumeId};
use crate::limits::{SEQ_CLAIMED_MAX, VOLUME_BYTES_MAX};
use crate::mark::{Mark, MarkGroup};

fn resealed(mut header: [u8; FRAME_HEADER_BYTES]) -> [u8; FRAME_HEADER_BYTES] {
    let crc = crc32c::crc32c(&header[..FRAME_HEADER_BYTES - 4]);
    header[FRAME_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// A write of two blocks with some bytes replaced and its checksum put right again.
fn patched(at: usize, bytes: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = FrameHeader::write(Seq(7), 5, &[1; 2 * BLOCK_BYTES]).encode();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    resealed(header)
}

fn hello() -> Hello {
    Hello {
        volume: VolumeId([3; 16]),
        epoch: Epoch(2),
        size_bytes: 1 << 30,
        first_seq: Seq(11),
        last_seq: Seq(20),
        mark_interval_ms: 1000,
        life: 7,
        is_overtaken: false,
    }
}

fn mark(kind: MarkKind) -> Mark {
    Mark {
        point: PointId([9; 16]),
        kind,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 5,
        group: MarkGroup::ALONE,
    }
}

fn reread(control: &Control) -> Result<Control, DecodeError> {
    let bytes = control.encode();
    let (header, body) = bytes.split_first_chunk().expect("a frame has a header");
    Control::decode(&FrameHeader::decode(header)?, body)
}

fn refused_body(control: &Control, at: usize, byte: u8) -> DecodeError {
    let bytes = control.encode();
    let (header, body) = bytes.split_first_chunk().expect("a frame has a header");
    let kind = FrameHeader::decode(header).unwrap();
    let mut body = body.to_vec();
    body[at] = byte;
    let header = FrameHeader::for_body(kind.kind, kind.seq, kind.range, &body);
    Control::decode(&header, &body).unwrap_err()
}

#[test]
fn every_single_bit_flip_of_a_header_is_refused() {
    let good = FrameHeader::write(Seq(7), 5, &[1; BLOCK_BYTES]).encode();
    FrameHeader::decode(&good).unwrap();
    for bit in 0..FRAME_HEADER_BYTES * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        FrameHeader::decode(&bad).unwrap_err();
    }
}

#[test]
fn another_magic_is_told_from_a_damaged_header() {
    let mut header = FrameHeader::zero(Seq(1), BlockRange { block: 0, count: 1 }).encode();
    header[3] = b'1';
    assert_eq!(FrameHeader::decode(&header), Err(DecodeError::Magic { what: "frame header" }));
}

#[test]
fn an_unknown_kind_is_refused() {
    let none = DecodeError::Range { what: "frame kind", value: 0 };
    assert_eq!(FrameHeader::decode(&patched(4, &[0])), Err(none));
    for code in 9..=u8::MAX {
        assert_eq!(FrameHeader::decode(&patched(4, &[code])), Err(newer("kind", code)));
    }
}

#[test]
fn a_seq_belongs_to_stream_frames_and_to_them_alone() {
    let what = "frame seq";
    for seq in [0, u64::MAX] {
        let header = patched(8, &seq.to_le_bytes());
        assert_eq!(FrameHeader::decode(&header), Err(DecodeError::Range { what, value: seq }));
    }
    let ack =
        Control::Ack(Ack { journaled: Seq(1), committed: Seq(1), gathers_in_ms: None }).encode();
    let mut header: [u8; FRAME_HEADER_BYTES] = *ack.first_chunk().unwrap();
    header[8] = 1;
    assert_eq!(FrameHeader::decode(&resealed(header)), Err(DecodeError::Range { what, value: 1 }));
}

#[test]
fn blocks_outside_the_largest_volume_are_refused() {
    for block in [VOLUME_BLOCKS_MAX - 1, VOLUME_BLOCKS_MAX, u64::MAX] {
        assert_eq!(
            FrameHeader::decode(&patched(16, &block.to_le_bytes())),
            Err(DecodeError::Range { what: "frame first block", value: block })
        );
    }
    FrameHeader::decode(&patched(16, &(VOLUME_BLOCKS_MAX - 2).to_le_bytes())).unwrap();
}

#[test]
fn oversize_and_empty_writes_are_refused_by_their_header_alone() {
    for count in [0_u32, 257, 1 << 23, (1 << 24) - 1] {
        let error = FrameHeader::decode(&patched(24, &count.to_le_bytes()[..3])).unwrap_err();
        let value = count.into();
        assert_eq!(error, DecodeError::Limit { what: "frame blocks", value, max: 256 });
        assert_eq!(error.kind(), crate::ErrorKind::Limit);
    }
    for bytes in [0_u32, 4096, (1 << 24) - 1] {
        assert_eq!(
            FrameHeader::decode(&patched(32, &bytes.to_le_bytes()[..3])),
            Err(DecodeError::Range { what: "frame body length", value: bytes.into() })
        );
    }
}

#[test]
fn a_zero_frame_is_bounded_and_has_no_body() {
    let zero = |count: u64, body_bytes: u32| {
        let mut header = FrameHeader::zero(Seq(1), BlockRange { block: 0, count: 1 }).encode();
        header[24..27].copy_from_slice(&count.to_le_bytes()[..3]);
        header[32..35].copy_from_slice(&body_bytes.to_le_bytes()[..3]);
        FrameHeader::decode(&resealed(header))
    };
    zero(ZERO_BLOCKS_MAX, 0).unwrap();
    zero(ZERO_BLOCKS_MAX + 1, 0).unwrap_err();
    zero(0, 0).unwrap_err();
    zero(1, 1).unwrap_err();
}

#[test]
fn flags_and_encodings_of_later_programs_are_refused_unless_they_may_be_ignored() {
    let write = |at: usize, byte: u8| FrameHeader::decode(&patched(at, &[byte]));
    for bit in 1..4 {
        assert_eq!(write(27, 1 << bit), Err(newer("flag", bit)));
    }
    for flags in [0x10, 0x20, 0x40, 0x80, 0xf0, 0xf1] {
        let header = write(27, flags).unwrap();
        assert_eq!(header.is_copy(), flags & 1 != 0);
        // Whoever lays it out again, as a journal that is replayed does, does not make another frame of it.
        assert_eq!(header.encode()[27], flags);
    }
    for encoding in [1, 2, u8::MAX] {
        assert_eq!(write(35, encoding), Err(newer("encoding", encoding)));
    }
    let text = write(35, 1).unwrap_err().to_string();
    assert_eq!(
        text,
        "frame: written by a newer version of Farshore (encoding 1 is not known here)"
    );
}

#[test]
fn a_copy_is_of_blocks() {
    let zero = FrameHeader::zero(Seq(1), BlockRange { block: 0, count: 1 });
    assert!(!zero.is_copy());
    let copy = FrameHeader::decode(&zero.of_copy(true).encode()).unwrap();
    assert!(copy.is_copy());
    assert_eq!(copy.of_copy(false), zero);
    let mark = Control::Mark(Seq(1), mark(MarkKind::Crash)).encode();
    let mut header: [u8; FRAME_HEADER_BYTES] = *mark.first_chunk().unwrap();
    header[27] = COPY;
    let error = FrameHeader::decode(&resealed(header)).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "frame flags", value: 1 });
}

#[test]
fn frames_outside_the_stream_name_no_blocks() {
    let ack =
        Control::Ack(Ack { journaled: Seq(1), committed: Seq(1), gathers_in_ms: None }).encode();
    for at in [16, 24] {
        let mut header: [u8; FRAME_HEADER_BYTES] = *ack.first_chunk().unwrap();
        header[at] = 1;
        FrameHeader::decode(&resealed(header)).unwrap_err();
    }
}

#[test]
fn a_body_of_another_length_or_with_another_bit_is_refused() {
    let data = [0x5a; BLOCK_BYTES];
    let header = FrameHeader::write(Seq(1), 0, &data);
    header.check_body(&data).unwrap();
    assert!(matches!(header.check_body(&data[1..]), Err(DecodeError::Truncated { .. })));
    for bit in (0..BLOCK_BYTES * 8).step_by(101) {
        let mut bad = data;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(header.check_body(&bad), Err(DecodeError::Checksum { what: "frame body" }));
    }
}

#[test]
fn control_frames_come_back_as_they_went() {
    let group = MarkGroup { attempt: MarkAttempt([7; 16]), member: 2, members: 3 };
    let mark = Mark { unknown_blocks: 9, is_prompt: true, group, ..mark(MarkKind::Final) };
    for control in [
        Control::Hello(hello()),
        Control::Welcome(Welcome {
            imprint: Imprint::default(),
            received: Seq(3),
            journaled: Seq(2),
            committed: Seq(1),
            window_bytes: 4096,
            stamp: Stamp { life: 5, generation: 6 },
        }),
        Control::Mark(Seq(77), mark),
        Control::Ack(Ack {
            journaled: Seq(SEQ_CLAIMED_MAX),
            committed: Seq(0),
            gathers_in_ms: None,
        }),
        Control::Refusal(Refusal { reason: RefusalReason::Fenced, text: "é".into() }),
    ] {
        assert_eq!(reread(&control), Ok(control));
    }
}

#[test]
fn every_reason_has_its_code_and_its_word() {
    let words: std::collections::BTreeSet<_> = (0..=u16::MAX)
        .filter_map(RefusalReason::from_code)
        .inspect(|reason| assert_eq!(RefusalReason::from_code(reason.code()), Some(*reason)))
        .map(RefusalReason::word)
        .collect();
    assert_eq!(words.len(), 9);
}

#[test]
fn a_long_refusal_is_cut_between_characters() {
    let text = "é".repeat(REFUSAL_TEXT_BYTES_MAX);
    let cut = Control::Refusal(Refusal { reason: RefusalReason::Limit, text: format!("x{text}") });
    let Ok(Control::Refusal(refusal)) = reread(&cut) else { panic!("it decodes") };
    assert_eq!(refusal.text.len(), REFUSAL_TEXT_BYTES_MAX - 1);
}

#[test]
fn a_hello_out_of_range_is_refused() {
    let cases = [
        Hello { size_bytes: 0, ..hello() },
        Hello { size_bytes: VOLUME_BYTES_MAX + BLOCK_BYTES as u64, ..hello() },
        Hello { epoch: Epoch(0), ..hello() },
        Hello { life: 0, ..hello() },
        Hello { first_seq: Seq(0), ..hello() },
        Hello { first_seq: Seq(22), ..hello() },
    ];
    for hello in cases {
        let error = reread(&Control::Hello(hello)).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{hello:?}: {error}");
    }
    // Nothing in the log: first is one past last.
    reread(&Control::Hello(Hello { first_seq: Seq(21), ..hello() })).unwrap();
    reread(&Control::Hello(Hello { first_seq: Seq(1), last_seq: Seq(0), ..hello() })).unwrap();
    reread(&Control::Hello(Hello { last_seq: Seq(SEQ_CLAIMED_MAX), ..hello() })).unwrap();
}

/// N3: an agent counts on from what a node says it has, and must not be made to count past the end.
#[test]
fn nobody_may_claim_a_seq_that_no_stream_reaches() {
    for value in [SEQ_CLAIMED_MAX + 1, u64::MAX - 1, u64::MAX] {
        let seq = Seq(value);
        let welcome = |received, journaled, committed| {
            Control::Welcome(Welcome {
                imprint: Imprint::default(),
                received,
                journaled,
                committed,
                window_bytes: 4096,
                stamp: Stamp::default(),
            })
        };
        for control in [
            Control::Hello(Hello { last_seq: seq, ..hello() }),
            Control::Hello(Hello { first_seq: seq, last_seq: seq, ..hello() }),
            welcome(seq, Seq(1), Seq(1)),
            welcome(Seq(1), seq, Seq(1)),
            welcome(Seq(1), Seq(1), seq),
            Control::Ack(Ack { journaled: seq, committed: Seq(1), gathers_in_ms: None }),
            Control::Ack(Ack { journaled: Seq(1), committed: seq, gathers_in_ms: None }),
        ] {
            let error = reread(&control).unwrap_err();
            assert!(matches!(error, DecodeError::Range { .. }), "{control:?}: {error}");
        }
    }
}

#[test]
fn reserved_bytes_of_bodies_must_be_zero() {
    let mark = mark(MarkKind::Crash);
    let welcome = Welcome {
        imprint: Imprint::default(),
        received: Seq(3),
        journaled: Seq(2),
        committed: Seq(1),
        window_bytes: 4096,
        stamp: Stamp::default(),
    };
    let cases = [
        (Control::Hello(hello()), "hello", 65..72),
        (Control::Welcome(welcome), "welcome", 47..48),
        (Control::Mark(Seq(1), mark), "frame body", 26..28),
        (Control::Mark(Seq(1), mark), "frame body", 52..64),
    ];
    for (control, what, reserved) in cases {
        for at in reserved {
            let error = refused_body(&control, at, 1);
            assert_eq!(error, DecodeError::Reserved { what }, "byte {at}");
        }
    }
    let refused = |at, byte| refused_body(&Control::Mark(Seq(1), mark), at, byte);
    assert!(matches!(refused(24, 0), DecodeError::Range { .. }));
    for (at, byte, feature, bit) in [(24, 6, "kind", 6), (25, 2, "flag", 1), (25, 9, "flag", 3)] {
        assert_eq!(refused(at, byte), DecodeError::Newer { what: "mark", feature, bit });
    }
    // A member of a group of one, an attempt of a volume alone, a member beyond the last.
    for (at, byte) in [(50, 2), (50, 0), (32, 1), (48, 1)] {
        assert!(matches!(refused(at, byte), DecodeError::Range { .. }), "byte {at}");
    }
    let refusal = Control::Refusal(Refusal { reason: RefusalReason::Gap, text: "x".into() });
    assert!(matches!(refused_body(&refusal, 0, 99), DecodeError::Range { .. }));
    assert!(matches!(refused_body(&refusal, 2, 0xff), DecodeError::Text { .. }));
}

#[test]
fn a_stamp_is_of_stream_frames_only_and_has_a_life() {
    let stamp = Stamp { life: 9, generation: 3 };
    let write = FrameHeader::write(Seq(1), 0, &[1; BLOCK_BYTES]).stamped(stamp);
    assert_eq!(FrameHeader::decode(&write.encode()).unwrap(), write);
    let refused = |header: FrameHeader| {
        let error = FrameHeader::decode(&header.encode()).unwrap_err();
        assert!(matches!(error, DecodeError::Range { what: "frame stamp", .. }), "{error}");
    };
    refused(write.stamped(Stamp { life: 0, generation: 3 }));
    let bytes = Control::Hello(hello()).encode_in(stamp, Imprint::default());
    let head = bytes.first_chunk().unwrap();
    let error = FrameHeader::decode(head).unwrap_err();
    assert!(matches!(error, DecodeError::Range { what: "frame stamp", .. }), "{error}");
    assert_eq!(Stamp::from_u64(stamp.to_u64()), stamp);
}

/// P41: a frame's imprint tells it and all before it from every other of its number.
#[test]
fn an_imprint_is_of_a_frame_and_of_its_history() {
    let write =
        |byte, previous| FrameHeader::write(Seq(7), 3, &[byte; BLOCK_BYTES]).behind(previous);
    let first = write(1, Imprint::default());
    let print = |header: &FrameHeader| imprint(&header.encode());
    assert!(print(&first).is_known());
    assert_eq!(
        FrameHeader::decode(&write(1, print(&first)).encode()).unwrap().previous,
        print(&first)
    );
    assert!(print(&first).differs(print(&write(2, Imprint::default()))), "other bytes");
    assert!(print(&first).differs(print(&write(1, print(&first)))), "another history");
    assert!(print(&first).differs(print(&first.stamped(Stamp { life: 1, generation: 1 }))));
    assert!(!print(&first).differs(print(&first)));
    assert!(
        !print(&first).differs(Imprint::default()) && !Imprint::default().differs(print(&first))
    );

    // A checksum that ends in zeros says something all the same.
    assert_eq!(Imprint::of(0x7700_0000).to_bytes(), [1, 0, 0]);
    assert_eq!(Imprint::of(0x7700_0100).to_bytes(), [0, 1, 0]);
    assert_eq!(Imprint::of(0x7765_4321).to_bytes(), [0x21, 0x43, 0x65]);

    let bytes = Control::Alive.encode_in(Stamp::default(), Imprint::of(5));
    let error = FrameHeader::decode(bytes.first_chunk().unwrap()).unwrap_err();
    assert!(matches!(error, DecodeError::Range { what: "frame previous", value: 5 }), "{error}");
}
