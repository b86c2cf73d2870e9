use super::*;
use farshore_proto::{Attempt, LogId, Slot, Target};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tempfile::TempDir;

const VAULT: VaultId = VaultId([1; 16]);
const HEADER_BYTES: u64 = 4096;
const ENTRY_BYTES: u64 = 64;
/// The first file of ordinary chunks.
const ENTRIES: &str = "chunks-0000000000";

/// An id as a hash gives it, the same for the same number.
fn id(number: u64) -> ChunkId {
    let mut state = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 32];
    for word in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (mixed ^ (mixed >> 31)).to_be_bytes();
    }
    ChunkId(bytes)
}

fn location(number: u64) -> Location {
    let byte = u8::try_from(number % 5).unwrap();
    Location {
        target: Target {
            log: LogId([byte; 16]),
            slot: Slot(number / 100),
            attempt: Attempt([byte; 8]),
        },
        chunk: u32::try_from(number % 100).unwrap(),
        // None is small.
        blocks: u32::try_from(number % 28).unwrap() + 4,
    }
}

fn chunks(numbers: Range<u64>) -> Vec<(ChunkId, Location)> {
    numbers.map(|number| (id(number), location(number))).collect()
}

/// An index that the next start goes on with.
fn begun(mut index: Index) -> Index {
    while index.load_some().unwrap() {}
    if index.cleared().is_none() {
        index.clear(Condemned::default()).unwrap();
    }
    index
}

fn open(dir: &TempDir) -> Index {
    begun(Index::open(dir.path(), VAULT).unwrap())
}

fn look(index: &mut Index, ids: &[ChunkId]) -> Vec<Option<Location>> {
    index.lookup(ids, &Condemned::default())
}

fn filled(dir: &TempDir, count: u64) -> Index {
    let mut index = open(dir);
    index.insert(&chunks(0..count)).unwrap();
    index
}

fn knows(index: &mut Index, numbers: Range<u64>) -> usize {
    let ids: Vec<_> = numbers.clone().map(id).collect();
    let found = look(index, &ids);
    assert_eq!(found.len(), ids.len());
    for (number, found) in numbers.zip(&found) {
        assert!(found.is_none_or(|found| found == location(number)), "chunk {number}");
    }
    found.iter().flatten().count()
}

fn damage(dir: &TempDir, name: &str, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(dir.path().join(name)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn cut(dir: &TempDir, name: &str, len: u64) {
    OpenOptions::new().write(true).open(dir.path().join(name)).unwrap().set_len(len).unwrap();
}

#[test]
fn what_was_inserted_is_found_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let mut index = open(&dir);
    assert!(index.is_empty());
    for start in (0..5000).step_by(700) {
        index.insert(&chunks(start..start + 700)).unwrap();
        assert_eq!(knows(&mut index, 0..start + 700), usize::try_from(start).unwrap() + 700);
    }
    assert_eq!(index.len(), 5600);
    assert_eq!(knows(&mut index, 1_000_000..1_005_000), 0);
}

#[test]
fn it_is_all_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 3000));
    let mut index = open(&dir);
    assert_eq!(index.len(), 3000);
    assert_eq!(knows(&mut index, 0..3000), 3000);
    assert_eq!((index.counters().entries_bad, index.counters().entries_cut), (0, 0));
    index.insert(&chunks(3000..3100)).unwrap();
    drop(index);
    let mut index = open(&dir);
    assert_eq!(knows(&mut index, 0..3100), 3100);
}

#[test]
fn neighbours_share_a_page() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 6400));
    let mut index = open(&dir);
    assert_eq!(knows(&mut index, 0..6400), 6400);
    assert_eq!(index.counters().pages_read, 100);
}

#[test]
fn pages_are_given_up_when_there_are_too_many() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 64 * 4400);
    for round in 0..2 {
        let ids: Vec<_> = (0..4400).rev().map(|page| id(page * 64)).collect();
        assert_eq!(look(&mut index, &ids).iter().flatten().count(), 4400, "round {round}");
    }
    assert!(index.counters().pages_read > 4400);
}

#[test]
fn equal_tags_are_told_apart_by_the_whole_id() {
    let dir = TempDir::new().unwrap();
    let mut index = open(&dir);
    let twin = |last: u64| {
        let mut bytes = [0x77; 32];
        bytes[24..].copy_from_slice(&last.to_be_bytes());
        ChunkId(bytes)
    };
    let twins: Vec<_> = (0..300).map(|n| (twin(n), location(n))).collect();
    index.insert(&twins[..150]).unwrap();
    let absent: Vec<_> = twins[150..].iter().map(|(id, _)| *id).collect();
    assert!(look(&mut index, &absent).iter().all(Option::is_none));
    assert!(index.counters().tag_collisions >= 150 * 150);
    index.insert(&twins[150..]).unwrap();
    for (id, expected) in &twins {
        assert_eq!(look(&mut index, &[*id]), [Some(*expected)]);
    }
    drop(index);
    let mut index = open(&dir);
    assert_eq!(index.len(), 300);
    for (id, expected) in &twins {
        assert_eq!(look(&mut index, &[*id]), [Some(*expected)]);
    }
}

#[test]
fn a_chunk_inserted_again_elsewhere_moves_and_takes_no_more_memory() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 100);
    let entries = index.entries.count();
    index.insert(&chunks(0..100)).unwrap();
    assert_eq!(index.entries.count(), entries, "the same is not written again");
    let there = location(42).target;
    let moved = Location { target: Target { slot: Slot(9999), ..there }, ..location(42) };
    index.insert(&[(id(42), moved), (id(42), location(1))]).unwrap();
    assert_eq!(look(&mut index, &[id(42)]), [Some(moved)]);
    assert_eq!((index.len(), index.entries.count()), (100, entries + 1));
    drop(index);
    let mut index = open(&dir);
    assert_eq!(look(&mut index, &[id(42)]), [Some(moved)]);
    assert_eq!(index.len(), entries + 1, "both are in the file");
}

#[test]
fn a_torn_end_is_cut_at_every_length() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 10));
    let whole = fs::read(dir.path().join(ENTRIES)).unwrap();
    for len in (HEADER_BYTES..=HEADER_BYTES + 10 * ENTRY_BYTES).rev() {
        fs::write(dir.path().join(ENTRIES), &whole[..usize::try_from(len).unwrap()]).unwrap();
        let left = (len - HEADER_BYTES) / ENTRY_BYTES;
        let mut index = open(&dir);
        assert_eq!(knows(&mut index, 0..10) as u64, left, "length {len}");
        index.insert(&chunks(20..30)).unwrap();
        drop(index);
        let mut index = open(&dir);
        assert_eq!(knows(&mut index, 0..30) as u64, left + 10, "length {len}");
        assert_eq!(index.counters().entries_bad, 0);
    }
}

#[test]
fn an_end_of_zeros_is_cut() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 10));
    cut(&dir, ENTRIES, HEADER_BYTES + 70 * ENTRY_BYTES + 5);
    let mut index = open(&dir);
    assert_eq!(index.counters().entries_cut, 60);
    assert_eq!(knows(&mut index, 0..10), 10);
    assert_eq!(index.entries.count(), 10);
}

#[test]
fn a_damaged_entry_is_a_miss_and_counted() {
    for bit in 0..ENTRY_BYTES * 8 {
        let dir = TempDir::new().unwrap();
        drop(filled(&dir, 10));
        let at = HEADER_BYTES + 4 * ENTRY_BYTES + bit / 8;
        let byte = fs::read(dir.path().join(ENTRIES)).unwrap()[usize::try_from(at).unwrap()];
        damage(&dir, ENTRIES, at, &[byte ^ 1 << (bit % 8)]);
        let mut index = open(&dir);
        assert_eq!(index.counters().entries_bad, 1, "bit {bit}");
        assert_eq!(knows(&mut index, 0..10), 9, "bit {bit}");
    }
}

#[test]
fn damage_after_the_opening_is_a_miss_too() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 10);
    damage(&dir, ENTRIES, HEADER_BYTES + 4 * ENTRY_BYTES, &[0; 8]);
    assert_eq!(knows(&mut index, 0..10), 9);
    assert_eq!(index.counters().entries_bad, 1);
    let again = (id(4), location(4));
    index.insert(&[again]).unwrap();
    assert_eq!(look(&mut index, &[again.0]), [Some(again.1)]);
}

#[test]
fn a_log_number_that_came_to_mean_another_log_is_noticed() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 10));
    // The file of logs lost its last records in a power cut; others got their numbers.
    cut(&dir, "logs", 64 + 3 * 32);
    let mut index = open(&dir);
    assert_eq!(knows(&mut index, 0..10), 6);
    let of = |log: u8, number| {
        let there = location(number);
        Location { target: Target { log: LogId([log; 16]), ..there.target }, ..there }
    };
    let (stranger, other) = (of(0xcc, 3), of(0xdd, 4));
    index.insert(&[(id(100), stranger), (id(101), other)]).unwrap();
    drop(index);
    let mut index = open(&dir);
    assert_eq!(knows(&mut index, 0..10), 6);
    assert_eq!(look(&mut index, &[id(100), id(101)]), [Some(stranger), Some(other)]);
}

#[test]
fn an_index_of_another_vault_is_refused_until_it_is_reset() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 10));
    let other = VaultId([2; 16]);
    let error = Index::open(dir.path(), other).unwrap_err();
    assert!(matches!(error, IndexError::OtherVault { found: VAULT, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    fs::write(dir.path().join("chunks-0000000007"), "").unwrap();
    assert!(fs::exists(dir.path().join("cleared")).unwrap());
    let mut index = Index::reset(dir.path(), other).unwrap();
    assert_eq!((knows(&mut index, 0..10), index.cleared()), (0, None));
}

#[test]
fn a_damaged_header_is_named() {
    for (name, bytes) in [(ENTRIES, HEADER_BYTES), ("logs", 64)] {
        let dir = TempDir::new().unwrap();
        drop(filled(&dir, 10));
        let path = dir.path().join(name);
        for at in [0, 4, 9, 30, bytes - 1] {
            let at = usize::try_from(at).unwrap();
            let mut bad = fs::read(&path).unwrap();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = Index::open(dir.path(), VAULT).unwrap_err();
            assert!(matches!(error, IndexError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
        }
        cut(&dir, name, bytes / 2);
        let error = Index::open(dir.path(), VAULT).unwrap_err();
        assert!(matches!(error, IndexError::Damaged { .. }), "{error}");
    }
}

#[test]
fn a_second_opening_is_refused_while_the_first_lasts() {
    let dir = TempDir::new().unwrap();
    let index = filled(&dir, 1);
    let error = Index::open(dir.path(), VAULT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    drop(index);
    open(&dir);
}

#[test]
fn a_million_chunks_take_under_8_bytes_each() {
    const COUNT: u64 = 1_000_000;
    let dir = TempDir::new().unwrap();
    let mut index = open(&dir);
    let mut worst = 0.0_f64;
    for start in (0..COUNT).step_by(10_000) {
        index.insert(&chunks(start..start + 10_000)).unwrap();
        if index.len() >= 64 << 10 {
            worst = worst.max(index.memory_bytes() as f64 / index.len() as f64);
        }
    }
    assert!(worst <= 8.0, "{worst} bytes a chunk");
    assert_eq!(index.len() as u64, COUNT);
    drop(index);
    let mut index = open(&dir);
    assert_eq!(index.len() as u64, COUNT);
    assert!(index.memory_bytes() as u64 <= COUNT * 8);
    assert_eq!(knows(&mut index, 0..COUNT) as u64, COUNT);
    assert_eq!(knows(&mut index, COUNT..COUNT + 100_000), 0);
}

/// Four files of 128 ordinary chunks and two of small ones.
const LITTLE: Room = Room { file_entries: 128, files: 4, small_files: 2 };

fn little(dir: &TempDir) -> Index {
    begun(Index::begin(dir.path(), VAULT, LITTLE).unwrap())
}

fn small(numbers: Range<u64>) -> Vec<(ChunkId, Location)> {
    let small = |(id, location)| (id, Location { blocks: 1, ..location });
    chunks(numbers).into_iter().map(small).collect()
}

fn files(dir: &TempDir) -> Vec<String> {
    let names = fs::read_dir(dir.path()).unwrap().map(|found| found.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_oldest_give_way_and_what_is_asked_for_stays() {
    let dir = TempDir::new().unwrap();
    let mut index = little(&dir);
    index.insert(&chunks(0..512)).unwrap();
    assert_eq!(knows(&mut index, 0..512), 512, "all four files are full");
    // The first file is the next to go. Some of it is found by somebody.
    let kept: Vec<ChunkId> = (0..10).map(id).collect();
    for round in 0..20 {
        assert!(look(&mut index, &kept).iter().all(Option::is_some), "round {round}");
        let first = 512 + round * 100;
        index.insert(&chunks(first..first + 100)).unwrap();
    }
    assert_eq!(knows(&mut index, 0..10), 10);
    assert_eq!(knows(&mut index, 10..1900), 0, "nobody asked for them");
    assert_eq!(knows(&mut index, 2400..2512), 112);
    assert!(index.len() <= 5 * 128, "{} are known", index.len());
    let written = index.written();
    drop(index);
    assert_eq!(files(&dir).len(), 2 + 4, "{:?}", files(&dir));
    let mut index = little(&dir);
    assert_eq!((knows(&mut index, 0..10), knows(&mut index, 2400..2512)), (10, 112));
    assert_eq!(index.written(), written);
}

#[test]
fn any_number_of_small_chunks_pushes_out_no_others() {
    let dir = TempDir::new().unwrap();
    let mut index = little(&dir);
    index.insert(&chunks(0..500)).unwrap();
    for first in (10_000..20_000).step_by(100) {
        index.insert(&small(first..first + 100)).unwrap();
    }
    assert_eq!(knows(&mut index, 0..500), 500);
    let newest: Vec<ChunkId> = (19_900..20_000).map(id).collect();
    assert!(look(&mut index, &newest).iter().all(Option::is_some));
    assert!(index.len() <= 500 + 3 * 128, "{} are known", index.len());
    drop(index);
    let mut index = little(&dir);
    assert_eq!(knows(&mut index, 0..500), 500);
    assert!(look(&mut index, &newest).iter().all(Option::is_some));
}

#[test]
fn it_is_used_while_it_is_loaded() {
    const COUNT: u64 = 100_000;
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, COUNT));
    let mut index = Index::begin(dir.path(), VAULT, Room::default()).unwrap();
    assert_eq!((knows(&mut index, 0..100), index.is_loaded()), (0, false));
    // One of them moves before it is loaded; another is new.
    let there = location(42).target;
    let moved = Location { target: Target { slot: Slot(9999), ..there }, ..location(42) };
    index.insert(&[(id(42), moved), (id(COUNT), location(COUNT))]).unwrap();
    let mut steps = 0;
    while index.load_some().unwrap() {
        steps += 1;
        assert_eq!(look(&mut index, &[id(42), id(COUNT)]), [Some(moved), Some(location(COUNT))]);
    }
    assert!(index.is_loaded() && steps > 3, "{steps} steps");
    assert_eq!(knows(&mut index, 43..COUNT + 1) as u64, COUNT + 1 - 43);
    assert_eq!(look(&mut index, &[id(42)]), [Some(moved)], "the newer one counts");
    drop(index);
    let mut index = open(&dir);
    assert_eq!(look(&mut index, &[id(42)]), [Some(moved)]);
    assert_eq!(knows(&mut index, 43..COUNT + 1) as u64, COUNT + 1 - 43);
}

#[test]
fn what_was_written_is_less_only_where_some_was_lost() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 100);
    index.insert(&small(200..210)).unwrap();
    assert_eq!(index.written(), 110);
    drop(index);
    assert_eq!(open(&dir).written(), 110);
    cut(&dir, ENTRIES, HEADER_BYTES + 40 * ENTRY_BYTES + 3);
    assert_eq!(open(&dir).written(), 50);
}

/// Up to entry `number`, verdicts name the segments of these slots of all logs of the samples.
fn judged(number: u64, slots: impl IntoIterator<Item = u64>) -> Condemned {
    let at = At { number, digest: [5; 8] };
    let named = |slot| (slot * 100..(slot + 1) * 100).map(|number| location(number).target);
    let judged = slots.into_iter().flat_map(named).collect();
    Condemned { at, judged, ..Condemned::default() }
}

#[test]
fn what_verdicts_name_is_cleared_for_good() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 5000);
    index.clear(judged(7, [0, 3, 4, 49])).unwrap();
    for round in 0..2 {
        assert_eq!(index.cleared(), Some(judged(7, []).at), "round {round}");
        assert_eq!((index.len(), index.counters().entries_bad), (4600, 0), "round {round}");
        for cleared in [0..100, 300..500, 4900..5000] {
            assert_eq!(knows(&mut index, cleared), 0);
        }
        for kept in [100..300, 500..4900] {
            assert_eq!(knows(&mut index, kept.clone()) as u64, kept.end - kept.start);
        }
        drop(index);
        index = open(&dir);
    }
    // A chunk of those is found where else it is.
    let elsewhere = location(2222);
    index.insert(&[(id(1), elsewhere)]).unwrap();
    assert_eq!(look(&mut index, &[id(1)]), [Some(elsewhere)]);
}

#[test]
fn what_is_refused_is_not_found_nor_written_again() {
    let dir = TempDir::new().unwrap();
    let mut index = little(&dir);
    index.insert(&chunks(0..500)).unwrap();
    let elsewhere = location(900);
    index.insert(&[(id(7), elsewhere)]).unwrap();
    // The file that they are in is the next to go.
    let ids: Vec<ChunkId> = (0..10).map(id).collect();
    let written = index.written();
    let refused = judged(3, [0]);
    let found = index.lookup(&ids, &refused);
    assert_eq!(found.iter().flatten().collect::<Vec<_>>(), [&elsewhere], "where else it is");
    assert_eq!(index.written(), written);
    let open = Condemned { open: refused.judged, ..Condemned::default() };
    assert_eq!(index.lookup(&ids[..7], &open), [None; 7]);
    assert!(look(&mut index, &ids).iter().all(Option::is_some));
    assert_eq!(index.written(), written + 9, "they are of use");
}

#[test]
fn it_is_used_while_it_is_cleared() {
    let dir = TempDir::new().unwrap();
    let mut index = little(&dir);
    index.insert(&chunks(0..500)).unwrap();
    index.begin_clearing(Arc::new(judged(9, [1, 4])));
    let (mut next, mut steps) = (1000, 0);
    let synced = loop {
        if let Some(synced) = index.clear_some().unwrap() {
            break synced;
        }
        steps += 1;
        // Files go meanwhile, and others come in their places.
        if steps % 100 == 50 {
            index.insert(&chunks(next..next + 50)).unwrap();
            next += 50;
            assert_eq!(knows(&mut index, next - 50..next), 50, "step {steps}");
        }
    };
    assert!(steps > 1000 && next > 1400, "{steps} steps, up to {next}");
    assert_eq!(index.cleared(), Some(At::default()), "it is not durable yet");
    index.synced(synced().unwrap());
    assert_eq!(index.cleared(), Some(judged(9, []).at));
    for round in 0..2 {
        assert_eq!(knows(&mut index, next - 300..next), 300, "round {round}");
        assert_eq!((knows(&mut index, 100..200), knows(&mut index, 400..500)), (0, 0));
        drop(index);
        index = little(&dir);
    }
}

/// A write that failed may leave whole entries behind the last one: the next start would find them.
#[test]
fn what_a_failed_write_left_is_cut_off_when_it_is_cleared() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 10);
    let bytes = fs::read(dir.path().join(ENTRIES)).unwrap();
    let (first, count) = (usize::try_from(HEADER_BYTES).unwrap(), 5 * ENTRY_BYTES);
    let left = &bytes[first..first + usize::try_from(count).unwrap()];
    damage(&dir, ENTRIES, HEADER_BYTES + 10 * ENTRY_BYTES, left);
    index.clear(judged(3, [0])).unwrap();
    assert_eq!(knows(&mut index, 0..10), 0);
    drop(index);
    assert_eq!(knows(&mut open(&dir), 0..10), 0);
}

/// An earlier run may have cleared without coming to make it durable.
#[test]
fn all_files_are_made_durable_whatever_was_cleared_in_them() {
    let dir = TempDir::new().unwrap();
    let mut index = little(&dir);
    index.insert(&chunks(0..400)).unwrap();
    index.insert(&small(600..610)).unwrap();
    drop(index);
    let index = little(&dir);
    assert_eq!(index.entries.to_sync().unwrap().len(), 5);
}

/// Without a word up to where it was cleared nobody can tell what of it was deleted since.
#[test]
fn an_index_that_does_not_say_where_it_was_cleared_is_begun_anew() {
    let spoil: [fn(&Path); 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, b"").unwrap(),
        |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[30] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path| {
            let other = files::encode_cleared(VaultId([2; 16]), At::default());
            fs::write(path, other).unwrap();
        },
    ];
    for (n, spoil) in spoil.into_iter().enumerate() {
        let dir = TempDir::new().unwrap();
        drop(filled(&dir, 10));
        let mut index = open(&dir);
        assert_eq!(knows(&mut index, 0..10), 10);
        drop(index);
        spoil(&dir.path().join("cleared"));
        let mut index = Index::open(dir.path(), VAULT).unwrap();
        assert_eq!((index.cleared(), knows(&mut index, 0..10)), (None, 0), "{n}");
    }
}

/// What does not check may check again, once its log has its number back: then nobody would clear it.
#[test]
fn what_does_not_check_is_cleared_too() {
    let dir = TempDir::new().unwrap();
    drop(filled(&dir, 10));
    cut(&dir, "logs", 64 + 3 * 32);
    let mut index = open(&dir);
    assert_eq!((knows(&mut index, 0..10), index.counters().entries_bad), (6, 2));
    index.clear(judged(1, [0])).unwrap();
    index.insert(&chunks(1000..1010)).unwrap();
    drop(index);
    let mut index = open(&dir);
    assert_eq!((knows(&mut index, 0..10), knows(&mut index, 1000..1010)), (0, 10));
}

#[test]
fn what_cannot_be_made_durable_is_not_cleared() {
    let dir = TempDir::new().unwrap();
    let mut index = filled(&dir, 10);
    index.begin_clearing(Arc::new(judged(1, [0])));
    let synced = loop {
        if let Some(synced) = index.clear_some().unwrap() {
            break synced;
        }
    };
    // A folder is in the way of the file that says it.
    fs::create_dir_all(dir.path().join("cleared.new/full")).unwrap();
    let error = synced().unwrap_err();
    assert!(error.to_string().contains("cleared"), "{error}");
    drop(index);
    fs::remove_dir_all(dir.path().join("cleared.new")).unwrap();
    assert_eq!(open(&dir).cleared(), Some(At::default()), "as it was before");
}
