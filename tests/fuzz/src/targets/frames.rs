//! Frames of a session, header and body.

use crate::{checksum, taken};
use farshore_proto::DecodeError;
use farshore_proto::frame::{Control, FrameHeader, FrameKind};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};

/// A frame as a session reads it: the header alone decides how much follows.
pub(super) fn frame(bytes: &[u8]) {
    checksum::both(bytes, FRAME_HEADER_BYTES, whole);
    // A body that fits its header, so that what is in it is reached.
    if let Some((head, body)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let mut fitting = head.to_vec();
        let kind = fitting[4];
        if kind != 3 && kind != 4 {
            fitting[32..36].copy_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        }
        fitting[36..40].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        checksum::put_right(&mut fitting, FRAME_HEADER_BYTES);
        whole(&[&fitting, body].concat());
    }
}

fn whole(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return };
    let Ok(header) = FrameHeader::decode(head) else { return };
    assert_eq!(header.encode(), *head, "one encoding of a header");
    assert!(header.body_bytes <= FRAME_BODY_BYTES_MAX, "a body is bounded by its header");
    assert_eq!(header.kind.is_stream(), header.seq.0 > 0);
    let Some(body) = rest.get(..header.body_bytes) else { return };
    if matches!(header.kind, FrameKind::Write | FrameKind::Zero) {
        if header.check_body(body).is_ok() {
            taken();
        }
        return;
    }
    match Control::decode(&header, body) {
        Ok(control) => {
            let again = control.encode_in(header.stamp, header.previous);
            // Flags of a mark that a reader may ignore are not laid out again.
            let is_later = header.kind == FrameKind::Mark && body[25] & 0xf0 != 0;
            if !is_later {
                assert_eq!(again, bytes[..FRAME_HEADER_BYTES + header.body_bytes]);
            }
            must_go_on(&control);
            taken();
        }
        Err(DecodeError::Truncated { .. }) => panic!("a body of the length in its header is whole"),
        Err(_) => {}
    }
}

/// Whoever gets the frame counts on from the seqs in it.
fn must_go_on(control: &Control) {
    match control {
        Control::Hello(hello) => {
            let _ = (hello.first_seq.next(), hello.last_seq.next().next());
        }
        Control::Welcome(welcome) => {
            let _ = (welcome.received.next().next(), welcome.journaled.next());
        }
        Control::Ack(ack) => {
            let _ = (ack.journaled.next(), ack.committed.next());
        }
        Control::Mark(seq, _) => {
            let _ = seq.next();
        }
        Control::Refusal(_) | Control::Alive => {}
    }
}

pub(super) fn frame_samples() -> Vec<Vec<u8>> {
    [
        &include_bytes!("../../../../dataplane/proto/testdata/v1/frame-hello.bin")[..],
        include_bytes!("../../../../dataplane/proto/testdata/v1/frame-welcome.bin"),
        include_bytes!("../../../../dataplane/proto/testdata/v1/frame-write.bin"),
        include_bytes!("../../../../dataplane/proto/testdata/v1/frame-zero.bin"),
        include_bytes!("../../../../dataplane/proto/testdata/v2/frame-mark.bin"),
        include_bytes!("../../../../dataplane/proto/testdata/v1/frame-ack.bin"),
        include_bytes!("../../../../dataplane/proto/testdata/v1/frame-refusal.bin"),
        include_bytes!("../../../../dataplane/proto/testdata/v1/frame-alive.bin"),
    ]
    .map(<[u8]>::to_vec)
    .into()
}
