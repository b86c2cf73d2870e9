//! Every target over its kept corpus, and over thousands of changes to it that follow from a seed.
//!
//! Covers D1, D2, D3, N1 and N3 of `docs/fault-model.md` and R25 of what is asked of decoders: any
//! bytes in place of good ones are refused or mean one thing, and take no more memory than is their
//! due. `FARSHORE_FUZZ_CHANGES` sets how many changes are tried.

use farshore_fuzz::mutate::{Dice, mutate};
use farshore_fuzz::{INPUT_BYTES_MAX, TARGETS, Target, was_taken};
use peak_alloc::PeakAlloc;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const SEED: u64 = 0x00fa_2507;
const CHANGES: usize = 20_000;
/// A slow target makes do with fewer.
const TIME_MAX: Duration = Duration::from_secs(4);
const KEPT_BYTES_MAX: u64 = 1 << 20;

fn kept(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = target.corpus();
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}; {WRITE}", folder.display()));
    let mut files: Vec<_> =
        entries.map(|entry| entry.expect("the folder is listed").path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("an input is read");
        (path, bytes)
    };
    files.into_iter().map(read).collect()
}

const WRITE: &str = "`FARSHORE_WRITE_CORPUS=1` writes the samples of a new target";

/// Runs one input; says what is wrong, if anything is.
fn attempt(target: Target, bytes: &[u8]) -> Result<(), String> {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let end = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let taken = MEMORY.peak_usage().saturating_sub(before);
    match end {
        Err(_) => Err("it panicked, see above".to_owned()),
        Ok(()) if taken > target.memory_bytes_max => {
            Err(format!("it took {taken} bytes of memory, {} is the most", target.memory_bytes_max))
        }
        Ok(()) => Ok(()),
    }
}

fn run(name: &str) {
    let target = Target::named(name).expect("the table has it");
    let kept = kept(target);
    assert!(!kept.is_empty());
    for (path, bytes) in &kept {
        if let Err(what) = attempt(target, bytes) {
            panic!("{}: {what}", path.display());
        }
    }
    let changes = std::env::var("FARSHORE_FUZZ_CHANGES")
        .map_or(CHANGES, |text| text.parse().expect("a number of changes"));
    let mut dice = Dice::new(SEED);
    let begun = Instant::now();
    let (mut done, mut taken) = (0, 0);
    while done < changes && begun.elapsed() < TIME_MAX {
        let (base, other) = (&kept[dice.roll(kept.len())].1, &kept[dice.roll(kept.len())].1);
        let bytes = mutate(&mut dice, base, other, INPUT_BYTES_MAX);
        if let Err(what) = attempt(target, &bytes) {
            let find = std::env::temp_dir().join(format!("farshore-fuzz-{name}-{done}"));
            fs::write(&find, &bytes).expect("a find is written");
            let replay = format!("cargo xtask fuzz {name} --replay {}", find.display());
            panic!("change {done} of seed {SEED:#x}: {what}; again: {replay}");
        }
        done += 1;
        taken += usize::from(was_taken());
    }
    println!("{name}: {} kept inputs, {done} changes of seed {SEED:#x}, {taken} taken", kept.len());
    assert!(taken > 0, "whatever is changed is refused: the target tests nothing else");
}

macro_rules! each_target {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

each_target! {
    frame hrl_header hrl_frames journal_file journal_group journal_entries segment_header
    segment_table epoch_object epoch_body map_object map_body map_pages_object map_directory
    map_page index_run_object index_run_body checkpoint_object checkpoint_body revision_object revision_body horizon_object horizon_body register_object register_body machine_object
    machine_body group_object group_body base_object base_body vault_object key_object recovery_key decompress
    sealed_journal sealed_segment sealed_epoch sealed_map sealed_map_pages sealed_index_run
    sealed_checkpoint sealed_revision sealed_horizon sealed_register sealed_machine sealed_group sealed_base
    object_names chunk_index overlay_map intent_file hashes_file prints_file unknown_file
    volume_state hrl_log upgrade_request enrolment_token identity_uri point_selector nbd_address
    nbd_conversation
}

#[test]
fn every_target_is_tested_and_documented_and_has_a_corpus() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, TESTED);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let table = fs::read_to_string(format!("{root}/docs/formats/README.md")).unwrap();
    let mut bytes = 0;
    for target in TARGETS {
        assert!(
            table.contains(&format!("`{}`", target.name)),
            "{} is not in docs/formats",
            target.name
        );
        for (path, input) in kept(*target) {
            let is_short = input.len() <= INPUT_BYTES_MAX;
            assert!(is_short, "{} is longer than is tried", path.display());
            bytes += input.len() as u64;
        }
    }
    assert!(bytes <= KEPT_BYTES_MAX, "the kept corpus has {bytes} bytes");
    let folders = fs::read_dir(format!("{root}/tests/fuzz/corpus")).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a corpus of no target");
}

/// A target whose samples are refused tests nothing. (A conversation that ends before any request is
/// one all the same.)
#[test]
fn samples_are_kept_in_the_corpus() {
    for target in TARGETS {
        let folder = target.corpus();
        for (number, sample) in (target.samples)().iter().enumerate() {
            let path = folder.join(format!("sample-{number}"));
            if !path.exists() && std::env::var_os("FARSHORE_WRITE_CORPUS").is_some() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, sample).unwrap();
            }
            assert!(path.exists(), "{} is not kept; {WRITE}", path.display());
            attempt(*target, sample).unwrap_or_else(|what| panic!("{}: {what}", target.name));
            let is_goodbye = target.name == "nbd_conversation" && number == 2;
            assert!(was_taken() || is_goodbye, "{}: sample {number} is refused", target.name);
        }
    }
}
