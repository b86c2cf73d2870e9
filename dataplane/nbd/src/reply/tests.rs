use super::*;

const STRUCTURED: Agreed = Agreed { structured: true, allocation: true };
const SIMPLE: Agreed = Agreed { structured: false, allocation: false };

fn request(command: u16, offset: u64, length: u32) -> Request {
    Request { flags: 0, command, cookie: 0x1122, offset, length }
}

fn bytes(request: &Request, outcome: Outcome, agreed: Agreed) -> Vec<u8> {
    let mut out = encode(request, outcome, agreed);
    let length = out.remaining();
    let all = out.copy_to_bytes(length).to_vec();
    assert!(!out.has_remaining());
    all
}

/// Splits structured replies into (flags, type, payload).
fn chunks(mut bytes: &[u8]) -> Vec<(u16, u16, Vec<u8>)> {
    let mut found = Vec::new();
    while bytes.has_remaining() {
        assert_eq!(bytes.get_u32(), STRUCTURED_REPLY_MAGIC);
        let (flags, kind) = (bytes.get_u16(), bytes.get_u16());
        assert_eq!(bytes.get_u64(), 0x1122);
        let length = bytes.get_u32() as usize;
        found.push((flags, kind, bytes[..length].to_vec()));
        bytes.advance(length);
    }
    found
}

fn data(byte: u8, length: usize) -> Piece {
    Piece::from(vec![byte; length])
}

fn read(pieces: Vec<Piece>, whole: bool) -> Outcome {
    Outcome::Read { pieces, whole }
}

#[test]
fn simple_replies_have_the_documented_bytes() {
    let asked = request(command::READ, 0, 1024);
    let said = bytes(&asked, read(vec![data(7, 512), Piece::Zeroes(512)], false), SIMPLE);
    assert_eq!(said[..16], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x22]);
    assert_eq!(said[16..], [vec![7; 512], vec![0; 512]].concat());

    let failed = Outcome::Failed { errno: Errno::NoSpace, text: "full" };
    let said = bytes(&request(command::WRITE, 0, 512), failed, SIMPLE);
    assert_eq!(said, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0x11, 0x22]);
    // A write is answered simply under structured replies too.
    let said = bytes(&request(command::WRITE, 0, 512), Outcome::Done, STRUCTURED);
    assert_eq!(said.len(), 16);
}

#[test]
fn a_structured_read_tells_holes_and_joins_neighbours() {
    let pieces = vec![
        data(1, 512),
        data(2, 512),
        Piece::Zeroes(1024),
        Piece::Zeroes(0),
        Piece::Zeroes(512),
        data(3, 512),
    ];
    let said = chunks(&bytes(&request(command::READ, 4096, 3072), read(pieces, false), STRUCTURED));
    assert_eq!(said.len(), 3);
    let at = |offset: u64| offset.to_be_bytes().to_vec();
    assert_eq!(said[0], (0, 1, [at(4096), vec![1; 512], vec![2; 512]].concat()));
    assert_eq!(said[1], (0, 2, [at(5120), 1536_u32.to_be_bytes().to_vec()].concat()));
    assert_eq!(said[2], (1, 1, [at(6656), vec![3; 512]].concat()));
}

#[test]
fn an_unfragmented_read_is_one_chunk() {
    let asked = request(command::READ, 512, 1536);
    let mixed = vec![Piece::Zeroes(512), data(9, 512), Piece::Zeroes(512)];
    let said = chunks(&bytes(&asked, read(mixed, true), STRUCTURED));
    let whole = [512_u64.to_be_bytes().to_vec(), vec![0; 512], vec![9; 512], vec![0; 512]];
    assert_eq!(said, [(1, 1, whole.concat())]);
    let hole = vec![Piece::Zeroes(1024), Piece::Zeroes(512)];
    let said = chunks(&bytes(&asked, read(hole, true), STRUCTURED));
    assert_eq!((said.len(), said[0].0, said[0].1), (1, 1, 2));
}

#[test]
fn a_read_of_nothing_succeeds() {
    let asked = request(command::READ, 0, 0);
    let said = bytes(&asked, read(vec![], false), STRUCTURED);
    assert_eq!(chunks(&said), [(1, 0, vec![])]);
    assert_eq!(bytes(&asked, read(vec![], false), SIMPLE).len(), 16);
}

#[test]
fn errors_carry_a_sentence() {
    let asked = request(command::READ, 0, 512);
    let said = chunks(&bytes(&asked, Outcome::refused(Refusal::ReadPastEnd), STRUCTURED));
    let (flags, kind, payload) = &said[0];
    assert_eq!((said.len(), *flags, *kind), (1, 1, 0x8001));
    assert_eq!(payload[..4], 22_u32.to_be_bytes());
    let text = advice_on(Refusal::ReadPastEnd).as_bytes();
    assert_eq!(usize::from(u16::from_be_bytes([payload[4], payload[5]])), text.len());
    assert_eq!(&payload[6..], text);
    assert_eq!(bytes(&asked, Outcome::refused(Refusal::ReadPastEnd), SIMPLE).len(), 16);
}

#[test]
fn backend_errors_become_the_protocols_numbers() {
    use std::io;
    let number = |error: BackendError| match Outcome::from(&error) {
        Outcome::Failed { errno, .. } => errno.number(),
        other => panic!("{other:?}"),
    };
    assert_eq!(number(BackendError::Denied), 1);
    assert_eq!(number(io::Error::other("disk on fire").into()), 5);
    assert_eq!(number(io::Error::from_raw_os_error(28).into()), 28);
    assert_eq!(number(io::Error::from_raw_os_error(122).into()), 28);
    assert_eq!(number(BackendError::Unsupported), 95);
}

#[test]
fn block_status_joins_cuts_and_stops_at_one() {
    let extent = |length, holds| Extent { length, holds };
    let extents = [
        extent(512, Holds::Data),
        extent(0, Holds::Hole),
        extent(512, Holds::Data),
        extent(1024, Holds::Hole),
        extent(512, Holds::Zeroes),
        extent(1 << 40, Holds::Data),
    ];
    let told = [(1024, 0), (1024, 3), (512, 2), (512, 0)];
    assert_eq!(descriptors(3072, &extents, false), told);
    assert_eq!(descriptors(3072, &extents, true), [(1024, 0)]);
    assert_eq!(descriptors(512, &extents, false), [(512, 0)]);
    assert_eq!(descriptors(u32::MAX, &[extent(u64::MAX, Holds::Hole)], true), [(u32::MAX, 3)]);

    let asked = request(command::BLOCK_STATUS, 0, 3072);
    let said =
        chunks(&bytes(&asked, Outcome::Status { extents: extents.into(), one: true }, STRUCTURED));
    assert_eq!(said, [(1, 5, vec![0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 0])]);
}

#[test]
fn block_status_has_a_most() {
    let extents: Vec<Extent> = (0..EXTENTS_PER_REPLY_MAX + 10)
        .map(|n| Extent { length: 512, holds: if n % 2 == 0 { Holds::Data } else { Holds::Hole } })
        .collect();
    assert_eq!(descriptors(u32::MAX, &extents, false).len(), EXTENTS_PER_REPLY_MAX);
}

#[test]
fn vectored_writing_sees_every_byte_once() {
    let zeroes = u32::try_from(ZEROES_BYTES * 2 + 512).unwrap();
    let asked = request(command::READ, 0, zeroes + 1024);
    let pieces = vec![data(1, 512), Piece::Zeroes(zeroes), data(2, 512)];
    let mut out = encode(&asked, read(pieces, false), SIMPLE);
    let mut seen = Vec::new();
    let mut step = 1;
    while out.has_remaining() {
        let mut slices = [IoSlice::new(&[]); 3];
        let count = out.chunks_vectored(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
        let taken = step.min(all.len());
        seen.extend_from_slice(&all[..taken]);
        out.advance(taken);
        step = step * 2 + 1;
    }
    assert_eq!(seen.len(), 16 + 512 + zeroes as usize + 512);
    assert_eq!(&seen[16..528], [1; 512]);
    assert!(seen[528..528 + zeroes as usize].iter().all(|byte| *byte == 0));
    assert_eq!(&seen[528 + zeroes as usize..], [2; 512]);
}
