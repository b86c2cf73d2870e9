use super::*;
use std::collections::{HashMap, HashSet};

fn recipe() -> Recipe {
    Recipe {
        seed: 1,
        sources: 10,
        mix: "4KiB:70,16KiB:30".parse().unwrap(),
        zeros: 0,
        duplicates: 0,
        compressible: 50,
        volume_blocks: 1 << 18,
    }
}

fn bytes(content: &Content, source: u32, write: u64) -> Vec<u8> {
    let mut out = Vec::new();
    content.append(&content.write(source, write), &mut out);
    out
}

#[test]
fn a_write_follows_from_seed_source_and_number() {
    let (one, again) = (Content::new(recipe()), Content::new(recipe()));
    let other = Content::new(Recipe { seed: 2, ..recipe() });
    for write in 0..50 {
        assert_eq!(bytes(&one, 3, write), bytes(&again, 3, write));
        assert_eq!(one.write(3, write), again.write(3, write));
        assert_ne!(bytes(&one, 3, write), bytes(&one, 4, write));
        assert_ne!(bytes(&one, 3, write), bytes(&other, 3, write));
    }
}

/// Sizes of many fresh blocks before and after zstd level 1, in runs as long as the node's frames.
fn saved_percent(compressible: u32) -> f64 {
    let content = Content::new(Recipe { compressible, ..recipe() });
    let (mut before, mut after) = (0, 0);
    for run in 0..4 {
        let mut data = Vec::new();
        let mut write = run * 1000;
        while data.len() < 512 << 10 {
            content.append(&content.write(0, write), &mut data);
            write += 1;
        }
        before += data.len();
        after += zstd::bulk::compress(&data, 1).unwrap().len();
    }
    100.0
        - 100.0 * f64::from(u32::try_from(after).unwrap())
            / f64::from(u32::try_from(before).unwrap())
}

#[test]
fn zstd_saves_about_what_was_asked_for() {
    for compressible in [0, 25, 50, 75, 90, 100] {
        let saved = saved_percent(compressible);
        println!("compressible {compressible}: zstd level 1 saves {saved:.1} %");
        let asked = f64::from(compressible);
        assert!((asked - 7.0..=asked + 1.0).contains(&saved), "{compressible}: {saved:.1}");
    }
}

#[test]
fn fresh_blocks_are_all_different() {
    for compressible in [0, 50, 100] {
        let content = Content::new(Recipe { compressible, ..recipe() });
        let mut seen = HashSet::new();
        for source in 0..10 {
            for write in 0..200 {
                for block in bytes(&content, source, write).chunks(BLOCK_BYTES) {
                    assert!(seen.insert(block.to_vec()), "source {source}, write {write}");
                }
            }
        }
    }
}

#[test]
fn duplicates_repeat_what_was_due_before_and_are_as_many_as_asked_for() {
    let content = Content::new(Recipe { duplicates: 60, zeros: 10, ..recipe() });
    // Content to the lowest number under which it was sent.
    let mut first: HashMap<Vec<u8>, u64> = HashMap::new();
    let (mut repeated, mut zeros, mut all) = (0, 0, 0);
    for write in 0..400 {
        let of_number: Vec<_> = (0..10).map(|source| bytes(&content, source, write)).collect();
        for data in &of_number {
            all += 1;
            if data.iter().all(|byte| *byte == 0) {
                zeros += 1;
            } else if first.get(data).is_some_and(|number| *number < write) {
                repeated += 1;
            }
        }
        for data in of_number {
            first.entry(data).or_insert(write);
        }
    }
    assert_eq!(all, 4000);
    assert!((2250..2550).contains(&repeated), "{repeated} of {all} are duplicates");
    assert!((330..470).contains(&zeros), "{zeros} of {all} are zeros");
}

#[test]
fn even_all_duplicates_or_all_zeros_come_to_an_end() {
    let content = Content::new(Recipe { duplicates: 100, ..recipe() });
    let origins: HashSet<_> = (0..1000).map(|write| content.write(0, write).origin).collect();
    assert!(origins.len() <= 10, "{origins:?}");
    let content = Content::new(Recipe { zeros: 100, ..recipe() });
    assert!((0..100).all(|write| content.write(0, write).origin == Origin::Zeros));
}

#[test]
fn writes_lie_in_the_volume_and_all_over_it() {
    let content = Content::new(Recipe { volume_blocks: 1003, ..recipe() });
    let writes: Vec<_> = (0..2000).map(|write| content.write(1, write)).collect();
    assert!(writes.iter().all(|write| write.block + u64::from(write.blocks) <= 1003));
    assert!(writes.iter().all(|write| write.block % u64::from(write.blocks) == 0));
    let high = writes.iter().filter(|write| write.block >= 500).count();
    assert!((900..1100).contains(&high), "{high} of 2000 in the higher half");
    let large = writes.iter().filter(|write| write.blocks == 4).count();
    assert!((520..680).contains(&large), "{large} of 2000 are large");
}
