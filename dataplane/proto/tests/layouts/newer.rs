//! What later programs of a version may add: what must be understood is refused by name, what may be
//! ignored is passed over.

use crate::samples;
use farshore_proto::frame::{Control, FrameHeader};
use farshore_proto::hrl::HrlHeader;
use farshore_proto::journal::JournalFileHeader;
use farshore_proto::limits::GREETING_BYTES_MAX;
use farshore_proto::{DecodeError, ErrorKind};
use proptest::prelude::*;

type Decode = fn(&[u8]) -> Result<String, DecodeError>;

/// A layout with bits for what later programs add: good bytes, and where the bits are, first those that must
/// be understood.
struct Layout {
    what: &'static str,
    good: Vec<u8>,
    bits: usize,
    /// Puts the checksums right.
    seal: fn(&mut [u8]),
    decode: Decode,
}

fn layouts() -> Vec<Layout> {
    let frame = |name: &str| {
        let frames = samples::control_frames();
        frames.into_iter().find(|(found, _)| *found == name).expect("a known name").1
    };
    let greeting = |what, good| Layout { what, good, bits: 48, seal: seal_frame, decode: greeting };
    let header = |what, good, decode| Layout { what, good, bits: 8, seal: seal_header, decode };
    vec![
        greeting("hello", frame("frame-hello")),
        greeting("welcome", frame("frame-welcome")),
        header("hrl header", samples::hrl_header().encode().to_vec(), |bytes| {
            let bytes = bytes.try_into().expect("as long as it was");
            HrlHeader::decode(bytes).map(|header| format!("{header:?}"))
        }),
        header("journal file header", samples::journal_file_header().encode(), |bytes| {
            JournalFileHeader::decode(bytes).map(|header| format!("{header:?}"))
        }),
    ]
}

/// What a hello or welcome says.
fn greeting(bytes: &[u8]) -> Result<String, DecodeError> {
    let (head, body) = bytes.split_first_chunk().expect("a frame has a header");
    let header = FrameHeader::decode(head)?;
    Control::decode(&header, body).map(|control| format!("{control:?}"))
}

fn seal_frame(frame: &mut [u8]) {
    let body = crc32c::crc32c(&frame[48..]);
    let [length @ .., _] = u32::try_from(frame.len() - 48).expect("it is small").to_le_bytes();
    frame[32..35].copy_from_slice(&length);
    frame[36..40].copy_from_slice(&body.to_le_bytes());
    seal_header(&mut frame[..48]);
}

fn seal_header(header: &mut [u8]) {
    let end = header.len() - 4;
    let crc = crc32c::crc32c(&header[..end]);
    header[end..].copy_from_slice(&crc.to_le_bytes());
}

/// What the bytes say with some of them replaced.
fn with(layout: &Layout, at: usize, bytes: &[u8]) -> Result<String, DecodeError> {
    let mut changed = layout.good.clone();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    (layout.seal)(&mut changed);
    (layout.decode)(&changed)
}

#[test]
fn each_bit_that_must_be_understood_is_refused_by_name() {
    for layout in layouts() {
        for bit in 0..32 {
            let error = with(&layout, layout.bits, &(1_u32 << bit).to_le_bytes()).unwrap_err();
            let what = layout.what;
            assert_eq!(error, DecodeError::Newer { what, feature: "feature", bit });
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let text = format!(
                "{what}: written by a newer version of Farshore (feature {bit} is not known here)"
            );
            assert_eq!(error.to_string(), text);
        }
    }
}

/// The bits come first: whatever else a later program says in other ways, they say that it does.
#[test]
fn a_bit_is_refused_before_what_it_may_change() {
    for layout in layouts() {
        let mut changed = layout.good.clone();
        let end = changed.len() - if layout.bits == 8 { 4 } else { 0 };
        changed[layout.bits + 4..end].fill(0xff);
        changed[layout.bits + 1] = 2;
        (layout.seal)(&mut changed);
        let error = (layout.decode)(&changed).unwrap_err();
        assert!(matches!(error, DecodeError::Newer { bit: 9, .. }), "{}: {error}", layout.what);
    }
}

#[test]
fn bodies_under_a_key_are_refused_by_name() {
    let layout =
        layouts().into_iter().find(|layout| layout.what == "hrl header").expect("it is there");
    for key in [1_u32, 7, u32::MAX] {
        let error = with(&layout, 40, &key.to_le_bytes()).unwrap_err();
        let newer = DecodeError::Newer { what: "hrl header", feature: "key", bit: key };
        assert_eq!(error, newer);
    }
}

#[test]
fn a_greeting_is_bounded() {
    for layout in layouts().into_iter().filter(|layout| layout.bits == 48) {
        let good = (layout.decode)(&layout.good).unwrap();
        let mut long = layout.good.clone();
        long.resize(48 + GREETING_BYTES_MAX, 0xee);
        (layout.seal)(&mut long);
        assert_eq!((layout.decode)(&long).unwrap(), good);
        long.push(0xee);
        (layout.seal)(&mut long);
        let error = (layout.decode)(&long).unwrap_err();
        assert!(matches!(error, DecodeError::Range { what: "frame body length", .. }), "{error}");
        let mut short = layout.good.clone();
        short.pop();
        (layout.seal)(&mut short);
        (layout.decode)(&short).unwrap_err();
    }
}

proptest! {
    #[test]
    fn bits_that_may_be_ignored_are_passed_over(which in 0..4_usize, may: u32) {
        let layout = &layouts()[which];
        let said = with(layout, layout.bits + 4, &may.to_le_bytes());
        prop_assert_eq!(said, (layout.decode)(&layout.good));
    }

    #[test]
    fn unknown_bits_are_refused_by_the_lowest(which in 0..4_usize, must in 1_u32.., may: u32) {
        let layout = &layouts()[which];
        let bits = [must.to_le_bytes(), may.to_le_bytes()].concat();
        let (what, bit) = (layout.what, must.trailing_zeros());
        let newer = DecodeError::Newer { what, feature: "feature", bit };
        prop_assert_eq!(with(layout, layout.bits, &bits), Err(newer));
    }

    /// Fields behind those that are known, with bits that may be ignored.
    #[test]
    fn later_fields_are_passed_over(
        which in 0..4_usize, may: u32, tail in proptest::collection::vec(any::<u8>(), 1..400),
    ) {
        let layout = &layouts()[which];
        let mut changed = layout.good.clone();
        changed[layout.bits + 4..layout.bits + 8].copy_from_slice(&may.to_le_bytes());
        let room = match layout.what {
            "hrl header" => 44..60,
            "journal file header" => 152..4092,
            _ => {
                changed.resize(layout.good.len() + tail.len(), 0);
                layout.good.len()..changed.len()
            }
        };
        for (byte, later) in changed[room].iter_mut().zip(tail) {
            *byte = later;
        }
        (layout.seal)(&mut changed);
        prop_assert_eq!((layout.decode)(&changed), (layout.decode)(&layout.good));
    }

    /// Noise anywhere, checksums right: the frame, another, or refused; never a panic.
    #[test]
    fn greetings_of_any_bytes_end(
        which in 0..2_usize, body in proptest::collection::vec(any::<u8>(), 0..600), must in any::<bool>(),
    ) {
        let layout = &layouts()[which];
        let mut bytes = [&layout.good[..48], &body].concat();
        if !must && bytes.len() >= 52 {
            bytes[48..52].fill(0);
        }
        (layout.seal)(&mut bytes);
        let _ = (layout.decode)(&bytes);
    }
}
