//! Whole objects in the wrong place: another's, another vault's, an older run's; and headers whose
//! checksum was mended after they were changed.

use crate::check::{Bench, Damage, kind_of};
use crate::needs::Piece;
use crate::world::{A, B, C, LAST, REFILLED, SEAL, World, key_name};
use bytes::Bytes;
use farshore_codec::segment::slot_without_data;
use farshore_proto::VaultId;
use farshore_proto::segment::{SlotKind, SlotWriter};
use farshore_vault::verify::Problem;

#[tokio::test]
async fn an_object_in_the_place_of_any_other_is_named() {
    let mut bench = Bench::new().await;
    let names = bench.world.names("");
    for name in &names {
        for other in names.iter().filter(|other| *other != name) {
            let theirs = Damage::Bytes(bench.world.objects[other].clone());
            let how = format!("{other} in place");
            // What is too short to be one of its kind, or too long, is told before anything else.
            bench.check(name, &theirs, (Piece::Header, 0), &how).await;
        }
    }
    bench.tally.finish("objects in the place of others");
}

#[tokio::test]
async fn an_object_of_a_vault_with_the_same_keys_is_named() {
    let mut bench = Bench::new().await;
    let twin = World::of(VaultId([0x78; 16])).await;
    for name in bench.world.names("") {
        // Runs and attempts have random names: the one in the same place of the list.
        let folder = format!("{}/", name.split('/').next().unwrap());
        let mine = bench.world.names(&folder).iter().position(|other| *other == name);
        let theirs = mine.map_or_else(|| name.clone(), |at| twin.names(&folder)[at].clone());
        let theirs = Damage::Bytes(twin.objects[&theirs].clone());
        bench.check(&name, &theirs, (Piece::Header, 0), "that of another vault").await;
    }
    bench.tally.finish("objects of a vault with the same keys");
}

#[tokio::test]
async fn the_identity_and_keys_of_a_vault_with_the_same_recovery_key_open_nothing_here() {
    let bench = Bench::new().await;
    let twin = World::of(VaultId([0x78; 16])).await;
    for name in [
        "vault".to_owned(),
        key_name(1),
        key_name(2),
        key_name(3),
        key_name(4),
        "revisions/0000000001".to_owned(),
    ] {
        bench.full.apply(&name, &Damage::Bytes(twin.objects[&name].clone())).await;
    }
    let vault = bench.full.reopen().await.unwrap();
    for point in &bench.world.writer.points {
        let error = crate::check::read(&bench.world, &vault, point, &[]).await.unwrap_err();
        let first = bench.world.epoch(point.volume, 1);
        assert!(error.to_string().contains(&format!("object {first} is damaged at byte 0")));
        assert!(error.to_string().contains("in vault 77777777"), "{error}");
    }
}

impl Bench {
    /// Damages an object: each point reads as it was or is refused, and `verify` finds fault with
    /// something. Returns what it found, and the texts of the refusals by volume.
    async fn look(&mut self, name: &str, bytes: Bytes) -> (Vec<Problem>, Vec<(usize, String)>) {
        self.look_at(name, bytes, (0, 1)).await
    }

    /// As `look`, with only one of `share.1` points.
    async fn look_at(
        &mut self,
        name: &str,
        bytes: Bytes,
        share: (usize, usize),
    ) -> (Vec<Problem>, Vec<(usize, String)>) {
        self.apply(name, &Damage::Bytes(bytes)).await;
        let mut refused = Vec::new();
        for side in [&self.full, &self.bare] {
            for point in self.world.writer.points.iter().skip(share.0).step_by(share.1) {
                let image = crate::write::image_bytes(&point.image);
                match crate::check::read(&self.world, &side.vault, point, &image).await {
                    Ok(()) => self.tally.points_read += 1,
                    Err(error) => refused.push((point.volume, error.to_string())),
                }
            }
        }
        self.tally.tried += 1;
        self.tally.points_refused += refused.len();
        let problems = self.full.verify().await.problems;
        let whole = Damage::Bytes(self.world.objects[name].clone());
        self.apply(name, &whole).await;
        (problems, refused)
    }
}

/// Where the checksum of an object lies that covers its header.
fn checksum_at(name: &str, whole: &[u8]) -> usize {
    let end = match kind_of(name) {
        "vault" | "keys" => whole.len(),
        _ => usize::from(u16::from_le_bytes([whole[6], whole[7]])),
    };
    end - 4
}

/// `bytes` with a checksum that fits, where it lies at `at`.
fn mended(mut bytes: Vec<u8>, at: usize) -> Bytes {
    let checksum = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes.into()
}

async fn change_headers(prefixes: &[&str]) {
    let mut bench = Bench::new().await;
    let names = bench.world.names("");
    let is_wanted = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(prefix));
    for name in names.iter().filter(is_wanted) {
        let whole = bench.world.objects[name].clone();
        let checksum = checksum_at(name, &whole);
        assert_eq!(mended(whole.to_vec(), checksum), whole, "the checksum of {name} is there");
        for at in 0..checksum {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << (at % 8);
            let bytes = mended(bytes, checksum);
            let (problems, refused) = bench.look_at(name, bytes, (at % 7, 7)).await;
            let is_it = |problem: &Problem| {
                problem.object.to_string() == *name || problem.what.contains(name)
            };
            if problems.iter().any(is_it) {
                bench.tally.named_by_verify += 1;
            } else {
                let kind = kind_of(name);
                let detail = || format!("byte {at} of {name}: {problems:?}");
                bench.tally.blame(&format!("verify does not name {kind}"), detail);
            }
            for (volume, text) in refused.into_iter().filter(|(_, text)| !text.contains(name)) {
                let detail = || format!("byte {at} of {name}, volume {volume}: {text}");
                bench.tally.blame("the error does not name it", detail);
            }
        }
    }
    bench.tally.finish(&format!("changed headers with good checksums in {prefixes:?}"));
}

/// A flipped bit in a header is told by its checksum. One whose checksum fits again is what somebody
/// makes who can write the store but has no key.
#[tokio::test]
async fn a_changed_header_of_a_segment_with_a_good_checksum_is_named() {
    change_headers(&["logs/"]).await;
}

#[tokio::test]
async fn a_changed_header_of_another_object_with_a_good_checksum_is_named() {
    change_headers(&["vault", "keys/", "revisions/", "volumes/", "maps/", "pages/", "index/"])
        .await;
}

/// The header says which run put a segment. Who lowers that does not make it void in silence.
#[tokio::test]
async fn a_segment_that_is_made_void_is_named() {
    let mut bench = Bench::new().await;
    let name = bench.world.slot(0, LAST.0);
    let mut bytes = bench.world.objects[&name].to_vec();
    assert_eq!(bytes[152], 2, "the run");
    bytes[152] = 1;
    let at = checksum_at(&name, &bytes);
    let (problems, refused) = bench.look(&name, mended(bytes, at)).await;
    let is_it = |problem: &Problem| problem.object.to_string() == name && problem.offset == 0;
    assert!(problems.iter().any(is_it), "{problems:#?}");
    assert!(!refused.is_empty());
    for (volume, text) in refused {
        assert!(text.contains(&format!("object {name} is damaged at byte 0")), "{volume}: {text}");
    }
}

/// A crashed run sealed it for this very slot, but its put lost. Nothing in the vault tells that, but it
/// holds the same stream, so no point reads wrong.
#[tokio::test]
async fn what_a_crashed_run_built_for_a_slot_never_makes_a_point_read_wrong() {
    let mut bench = Bench::new().await;
    let name = bench.world.slot(0, REFILLED.0);
    let stale = bench.world.stale.clone();
    let (_, refused) = bench.look(&name, stale).await;
    for (volume, text) in refused {
        assert!(text.contains("comes next") || text.contains(&name), "{volume}: {text}");
    }
}

/// In a slot behind those of a later run it is void, and what was there is missed.
#[tokio::test]
async fn a_segment_of_an_older_run_behind_a_newer_one_counts_for_nothing() {
    let mut bench = Bench::new().await;
    let name = bench.world.slot(0, LAST.0);
    let mut run = bench.world.writer.clone();
    run.logs[0].incarnation = 1;
    run.logs[0].next = LAST;
    let (problems, refused) = bench.look(&name, run.build(0)).await;
    let objects: Vec<String> = problems.iter().map(|problem| problem.object.to_string()).collect();
    for volume in [A, B] {
        assert!(objects.contains(&bench.world.epoch(volume, 2)), "{problems:#?}");
    }
    // Volume c has no later epoch that would miss it: its last point is not found.
    let of_c: Vec<&String> =
        refused.iter().filter(|(volume, _)| *volume == C).map(|(_, text)| text).collect();
    assert!(of_c.len() == 2 && of_c.iter().all(|text| text.contains("no recovery point")));
    for (volume, text) in refused {
        // What goes on from a map misses the chunks that were there.
        let is_told = text.contains("begins at seq") || text.contains(&name);
        assert!(volume == C || is_told, "{volume}: {text}");
    }
}

/// Only who has the data key can make one. What it cuts off is missed by what goes on from it.
#[tokio::test]
async fn a_seal_in_the_place_of_a_segment_is_missed_by_later_epochs() {
    let mut bench = Bench::new().await;
    let name = bench.world.slot(0, REFILLED.0);
    let vault = bench.world.writer.vault.clone();
    let keys = vault.seal_keys();
    let log = bench.world.writer.logs[0].id;
    let (at, writer) = ((vault.id(), log, REFILLED), SlotWriter::of_run(1));
    let seal = slot_without_data(SlotKind::Seal, at, writer, keys).unwrap();
    let (problems, refused) = bench.look(&name, seal.into()).await;
    let objects: Vec<String> = problems.iter().map(|problem| problem.object.to_string()).collect();
    for volume in [A, B] {
        assert!(objects.contains(&bench.world.epoch(volume, 2)), "{problems:#?}");
    }
    for (volume, text) in refused {
        let is_told = match volume {
            C => text.contains("no recovery point"),
            _ => text.contains("begins at seq") || text.contains(&name),
        };
        assert!(is_told, "{volume}: {text}");
    }
}

/// The seal's slot holds a segment of another slot: who reads to the end of the log is told.
#[tokio::test]
async fn a_segment_in_the_place_of_the_seal_is_named_and_all_points_read() {
    let mut bench = Bench::new().await;
    let seal = bench.world.slot(0, SEAL.0);
    let segment = bench.world.objects[&bench.world.slot(0, LAST.0)].clone();
    let (problems, refused) = bench.look(&seal, segment).await;
    assert_eq!(refused, []);
    assert!(problems.iter().any(|problem| problem.object.to_string() == seal), "{problems:#?}");
}
