use super::*;
use farshore_proto::ErrorKind;
use proptest::prelude::*;

const MAX: usize = 1 << 20;

fn random(count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

fn text(count: usize) -> Vec<u8> {
    let words = ["server ", "disk ", "journal ", "vault ", "point ", "0x7f ", "\n"];
    let picks = random(count);
    let bytes = picks.iter().flat_map(|pick| words[usize::from(*pick) % words.len()].bytes());
    bytes.take(count).collect()
}

fn open(compression: Compression, stored: &[u8], raw_bytes: usize) -> Result<Vec<u8>, CodecError> {
    let mut out = b"before".to_vec();
    decompress("test", compression, stored, raw_bytes, MAX, &mut out).inspect_err(|_| {
        assert_eq!(out, b"before", "an error leaves the output alone");
    })?;
    Ok(out.split_off(6))
}

#[test]
fn what_compresses_is_compressed_and_what_does_not_is_stored() {
    let mut compressor = Compressor::new(1);
    for (raw, expected) in [
        (text(512 << 10), Compression::Zstd),
        (vec![0; 4096], Compression::Zstd),
        (random(512 << 10), Compression::Raw),
        (random(4096), Compression::Raw),
        (random(100), Compression::Raw),
        (Vec::new(), Compression::Raw),
    ] {
        let mut out = vec![9];
        let compression = compressor.compress(&raw, &mut out).unwrap();
        assert_eq!(compression, expected, "{} bytes", raw.len());
        assert_eq!(out[0], 9, "output is appended");
        assert!(out.len() - 1 <= raw.len());
        assert_eq!(open(compression, &out[1..], raw.len()).unwrap(), raw);
    }
}

#[test]
fn a_pass_takes_a_step_at_a_time_and_ends_as_if_it_were_one() {
    let raw = text((512 << 10) + 4096);
    for level in [1, 3, 9] {
        let mut compressor = Compressor::new(level);
        let mut out = vec![9];
        // A pass that is given up leaves nothing behind.
        let mut given_up = compressor.begin(&raw, &mut out).unwrap();
        assert_eq!(compressor.step(&mut given_up, &raw, &mut out).unwrap(), None);
        out.truncate(given_up.start());
        let mut pass = compressor.begin(&raw, &mut out).unwrap();
        let mut steps = 1;
        while compressor.step(&mut pass, &raw, &mut out).unwrap().is_none() {
            steps += 1;
        }
        assert_eq!(steps, raw.len().div_ceil(STEP_BYTES));
        assert_eq!(open(Compression::Zstd, &out[1..], raw.len()).unwrap(), raw);
        let at_once = zstd::bulk::compress(&raw, level).unwrap();
        assert_eq!(out[1..], at_once, "level {level}");
    }
}

#[test]
fn a_saving_under_a_sixteenth_is_not_worth_it() {
    let mut compressor = Compressor::new(1);
    // Random but for one part in twenty (saves too little) or in ten (saves enough).
    for (zeros, expected) in [(20, Compression::Raw), (10, Compression::Zstd)] {
        let mut raw = random(400_000);
        let zeroed = raw.len() / zeros;
        raw[..zeroed].fill(0);
        let mut out = Vec::new();
        assert_eq!(compressor.compress(&raw, &mut out).unwrap(), expected, "1/{zeros} zeros");
    }
}

#[test]
fn the_probe_tells_random_bytes_from_others() {
    assert!(looks_random(&random(8192)));
    assert!(looks_random(&random(512 << 10)));
    assert!(!looks_random(&text(512 << 10)));
    assert!(!looks_random(&random(100)), "too little to judge");
    let half: Vec<u8> = [random(256 << 10), vec![0; 256 << 10]].concat();
    assert!(!looks_random(&half));
    let hex: Vec<u8> = hex::encode(random(64 << 10)).into_bytes();
    assert!(!looks_random(&hex));
}

#[test]
fn levels_beyond_those_of_zstd_become_the_nearest() {
    assert_eq!(Compressor::new(1000).level(), zstd_safe::max_c_level());
    let mut compressor = Compressor::new(i32::MIN);
    assert_eq!(compressor.level(), zstd_safe::min_c_level());
    compressor.set_level(3);
    let raw = text(100_000);
    let mut out = Vec::new();
    let compression = compressor.compress(&raw, &mut out).unwrap();
    assert_eq!(open(compression, &out, raw.len()).unwrap(), raw);
}

#[test]
fn a_bomb_is_refused_before_anything_is_allocated() {
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    assert!(bomb.len() < 64 << 10);
    // Honest about its size: over the limit of what is opened.
    let error = open(Compression::Zstd, &bomb, 256 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    // Recorded as small: it says otherwise itself.
    let error = open(Compression::Zstd, &bomb, 4096).unwrap_err();
    assert_eq!(error, CodecError::Length { what: "test", expected: 4096, found: 256 << 20 });
    // Claims to be small itself: zstd stops at what it claimed.
    let mut liar = zstd::bulk::compress(&vec![0; 4096], 1).unwrap();
    let blocks = bomb.len() - 9;
    liar.truncate(7);
    liar.extend_from_slice(&bomb[9..9 + blocks]);
    let mut out = Vec::new();
    assert!(decompress("test", Compression::Zstd, &liar, 4096, MAX, &mut out).is_err());
    assert!(out.capacity() <= 2 * 4096, "{}", out.capacity());
}

#[test]
fn a_frame_without_its_size_or_with_more_behind_it_is_refused() {
    let raw = text(10_000);
    let sized = zstd::bulk::compress(&raw, 1).unwrap();
    open(Compression::Zstd, &sized, raw.len()).unwrap();
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_contentsize(false).unwrap();
    std::io::Write::write_all(&mut encoder, &raw).unwrap();
    let unsized_frame = encoder.finish().unwrap();
    assert!(open(Compression::Zstd, &unsized_frame, raw.len()).is_err());
    let twice = [sized.clone(), sized.clone()].concat();
    assert!(open(Compression::Zstd, &twice, raw.len()).is_err());
    assert!(open(Compression::Zstd, &twice, 2 * raw.len()).is_err());
    // zstd itself would skip this one without a word.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7];
    let skipped = [sized.as_slice(), &skippable].concat();
    assert!(open(Compression::Zstd, &skipped, raw.len()).is_err());
    let trailing = [sized.as_slice(), &[0]].concat();
    assert!(open(Compression::Zstd, &trailing, raw.len()).is_err());
}

#[test]
fn a_window_beyond_ours_is_refused() {
    let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
    compressor.set_parameter(CParameter::WindowLog(20)).unwrap();
    let raw = text(2 << 20);
    let mut frame = compressor.compress(&raw).unwrap();
    assert_eq!(frame[4] & 0x20, 0, "the frame has a window byte");
    let mut out = Vec::new();
    decompress("test", Compression::Zstd, &frame, raw.len(), 4 << 20, &mut out).unwrap();
    frame[5] = 21 << 3;
    let error =
        decompress("test", Compression::Zstd, &frame, raw.len(), 4 << 20, &mut out).unwrap_err();
    assert_eq!(error, CodecError::Limit { what: "test", value: 1 << 31, max: 1 << 24 });
}

#[test]
fn raw_bytes_of_another_length_are_refused() {
    let error = open(Compression::Raw, &[1, 2, 3], 4).unwrap_err();
    assert_eq!(error, CodecError::Length { what: "test", expected: 4, found: 3 });
}

#[test]
fn every_truncation_is_refused() {
    let raw = text(3000);
    let stored = zstd::bulk::compress(&raw, 1).unwrap();
    for len in 0..stored.len() {
        assert!(open(Compression::Zstd, &stored[..len], raw.len()).is_err(), "length {len}");
    }
}

proptest! {
    #[test]
    fn any_bytes_come_back(raw in proptest::collection::vec(0_u8..9, 0..9000), level in -3..6) {
        let mut compressor = Compressor::new(level);
        let mut out = Vec::new();
        let compression = compressor.compress(&raw, &mut out).unwrap();
        prop_assert!(out.len() <= raw.len());
        prop_assert_eq!(open(compression, &out, raw.len()).unwrap(), raw);
    }

    #[test]
    fn no_bytes_make_it_panic(stored in proptest::collection::vec(any::<u8>(), 0..300), raw_bytes in 0_usize..5000) {
        let framed = [&[0x28, 0xb5, 0x2f, 0xfd], stored.as_slice()].concat();
        for bytes in [stored, framed] {
            if let Ok(out) = open(Compression::Zstd, &bytes, raw_bytes) {
                prop_assert_eq!(out.len(), raw_bytes);
            }
        }
    }
}
