//! What must never be served or taken for the disk, and that a mistake in the check of it is found.

use super::{Access, Disk, Recorded};
use crate::loops::{Loop, not_tried, run};
use farshore_proto::bugs::{Bug, switch_on};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const BYTES: u64 = 16 << 20;

/// Something that must hold: says what does not. None where the machine is said to lack what it takes.
type Rule = fn(&Path) -> Option<Result<(), String>>;

const RULES: [(Bug, Rule); 8] = [
    (Bug::MountedIsServed, mounted),
    (Bug::MountedIsServed, swapped_to),
    (Bug::MountedIsServed, under_another_loop_device),
    (Bug::MountedIsServed, device_opened_by_another),
    (Bug::WrittenIsServed, file_opened_by_another),
    (Bug::NameIsIdentity, another_disk_under_the_name),
    (Bug::SecondNameIsServed, second_name),
    (Bug::OthersWritesUnseen, written_by_another),
];

fn file(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    path
}

fn open(path: &Path) -> Result<Disk, String> {
    let recorded = Recorded::default();
    Disk::open(path, Access::Write, &recorded).map_err(|error| error.to_string())
}

/// A disk is refused, in these words.
fn refused(opened: Result<Disk, String>, words: &str) -> Result<(), String> {
    match opened {
        Ok(disk) => Err(format!("{} is taken: {words:?} was to be said", disk.path().display())),
        Err(error) if error.contains(words) => Ok(()),
        Err(error) => Err(format!("refused otherwise than by {words:?}: {error}")),
    }
}

fn mounted(folder: &Path) -> Option<Result<(), String>> {
    let device = Loop::over(&file(folder, "disk"))?;
    let at = folder.join("at");
    std::fs::create_dir(&at).unwrap();
    let is_mounted = run(Command::new("mkfs.ext4").args(["-q", &device.0])).is_some()
        && run(Command::new("mount").arg(&device.0).arg(&at)).is_some();
    if !is_mounted {
        not_tried("no file system can be made and mounted");
        return None;
    }
    let found = refused(open(device.0.as_ref()), "is mounted at");
    run(Command::new("umount").arg(&at)).unwrap();
    Some(found)
}

fn swapped_to(folder: &Path) -> Option<Result<(), String>> {
    let device = Loop::over(&file(folder, "disk"))?;
    let is_swap = run(Command::new("mkswap").arg(&device.0)).is_some()
        && run(Command::new("swapon").arg(&device.0)).is_some();
    if !is_swap {
        not_tried("nothing can be swapped to");
        return None;
    }
    let found = refused(open(device.0.as_ref()), "is used as swap");
    run(Command::new("swapoff").arg(&device.0)).unwrap();
    Some(found)
}

fn under_another_loop_device(folder: &Path) -> Option<Result<(), String>> {
    let below = Loop::over(&file(folder, "disk"))?;
    let above = Loop::over(below.0.as_ref())?;
    Some(refused(open(below.0.as_ref()), &format!("{} stands on it", above.0)))
}

/// A process that has something open for writing, until it is dropped.
struct Writer(Child);

impl Writer {
    fn of(path: &Path) -> Self {
        let open = File::options().write(true).open(path).unwrap();
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(open).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn device_opened_by_another(folder: &Path) -> Option<Result<(), String>> {
    let device = Loop::over(&file(folder, "disk"))?;
    let _writer = Writer::of(device.0.as_ref());
    Some(refused(open(device.0.as_ref()), "has it open for writing"))
}

fn file_opened_by_another(folder: &Path) -> Option<Result<(), String>> {
    let path = file(folder, "disk");
    let _writer = Writer::of(&path);
    Some(refused(open(&path), "has it open for writing"))
}

fn another_disk_under_the_name(folder: &Path) -> Option<Result<(), String>> {
    let name = file(folder, "disk");
    let recorded = {
        let disk = open(&name).unwrap();
        Recorded { size_bytes: Some(BYTES), identity: Some(disk.identity().clone()) }
    };
    std::fs::rename(file(folder, "another"), &name).unwrap();
    let opened = Disk::open(&name, Access::Write, &recorded).map_err(|error| error.to_string());
    Some(refused(opened, "is another one"))
}

/// A file and the loop device over it are the same bytes.
fn second_name(folder: &Path) -> Option<Result<(), String>> {
    let path = file(folder, "disk");
    let device = Loop::over(&path)?;
    // Both are only read: nothing but the word of this agent keeps them apart.
    let first = Disk::open(&path, Access::Read, &Recorded::default()).unwrap();
    let second = Disk::open(device.0.as_ref(), Access::Read, &Recorded::default());
    let found = refused(second.map_err(|error| error.to_string()), "is captured already");
    drop(first);
    Some(found)
}

fn written_by_another(folder: &Path) -> Option<Result<(), String>> {
    let path = file(folder, "disk");
    let disk = open(&path).unwrap();
    let other = File::options().write(true).open(&path).unwrap();
    other.write_all_at(&[7; 4096], 8192).unwrap();
    let is_told = disk.disturbance().is_some();
    Some(if is_told { Ok(()) } else { Err("nobody tells of another's write".to_owned()) })
}

fn tried(rule: Rule) -> Option<Result<(), String>> {
    let folder = tempfile::tempdir().unwrap();
    rule(folder.path())
}

/// D11 D12 D13 D14: each of them on its own.
#[test]
fn nothing_that_others_have_or_that_is_another_disk_is_taken() {
    for (bug, rule) in RULES {
        assert_eq!(tried(rule).unwrap_or(Ok(())), Ok(()), "a rule that {} breaks", bug.name());
    }
}

#[test]
fn each_seeded_bug_of_a_disk_is_found() {
    for (bug, rule) in RULES {
        switch_on(&[bug]);
        let found = tried(rule);
        switch_on(&[]);
        let Some(found) = found else { continue };
        let what = found.expect_err(bug.name());
        println!("{}: {what}", bug.name());
    }
}

/// Otherwise a bug could be listed that no test looks for.
#[test]
fn every_bug_of_a_disk_has_a_rule() {
    let others = Bug::ALL.into_iter().filter(|bug| !bug.is_simulated());
    let elsewhere = [
        Bug::AgeByAgentsClock,
        Bug::LeftBranchTakenForTail,
        Bug::RunsUnderOneNumber,
        Bug::HorizonNotReadAgain,
        Bug::BasesReadBeforeSlots,
        Bug::VerdictWithoutAnswers,
        Bug::SealBelowHorizon,
        Bug::FillBelowHorizon,
        Bug::HorizonPassedOver,
        Bug::LossTakenForEnd,
        Bug::AttemptNotCompared,
        Bug::FencesSwept,
        Bug::UnbornOverlooked,
        Bug::MembersCounted,
        Bug::SweptFoundAgain,
        Bug::AnswerByNumber,
    ];
    let of_disks = others.filter(|bug| !elsewhere.contains(bug));
    assert!(of_disks.into_iter().all(|bug| RULES.iter().any(|(of, _)| *of == bug)));
}
