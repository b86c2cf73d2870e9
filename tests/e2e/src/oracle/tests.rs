use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

const BLOCKS: usize = 8;

struct Disk {
    folder: TempDir,
    bytes: Vec<u8>,
    log: WriteLog,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bytes = vec![7; BLOCKS * BLOCK_BYTES];
        fs::write(folder.path().join("base"), &bytes).unwrap();
        let log = WriteLog::new(bytes.len() as u64).unwrap();
        Self { folder, bytes, log }
    }

    fn put(&mut self, number: usize, bytes: &[u8]) {
        self.bytes[number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES].copy_from_slice(bytes);
    }

    fn write(&mut self, number: usize) -> usize {
        let version = self.log.issue(number, 1, Kind::Data);
        self.put(number, &block(number as u64, version));
        self.log.acknowledge(version);
        version
    }

    fn zero(&mut self, number: usize) -> usize {
        let version = self.log.issue(number, 1, Kind::Zeroes);
        self.put(number, &[0; BLOCK_BYTES]);
        self.log.acknowledge(version);
        version
    }

    fn save(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, &self.bytes).unwrap();
        path
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    fn check(&self) -> Result<Standing> {
        self.log.check_disk(&self.save("disk"), &self.base())
    }
}

#[test]
fn accepts_a_disk_that_holds_every_acknowledged_write() {
    let mut disk = Disk::new();
    disk.write(1);
    disk.write(2);
    disk.zero(1);
    assert_eq!(disk.check().unwrap(), Standing { version: 3, written_blocks: 2 });
}

#[test]
fn finds_a_lost_write() {
    let mut disk = Disk::new();
    let old = disk.write(1);
    disk.write(1);
    disk.put(1, &block(1, old));
    assert!(format!("{:#}", disk.check().unwrap_err()).contains("block 1 holds version 1"));
    disk.put(1, &[7; BLOCK_BYTES]);
    assert!(disk.check().is_err());
}

#[test]
fn finds_a_changed_byte_and_a_write_in_another_place() {
    let mut disk = Disk::new();
    disk.write(1);
    disk.bytes[5 * BLOCK_BYTES + 9] ^= 1;
    assert!(format!("{:#}", disk.check().unwrap_err()).contains("nobody wrote"));
    let mut disk = Disk::new();
    let version = disk.write(1);
    disk.put(2, &block(1, version));
    assert!(disk.check().is_err());
}

#[test]
fn an_unacknowledged_write_may_be_there_or_not() {
    let mut disk = Disk::new();
    disk.write(3);
    let version = disk.log.issue(3, 1, Kind::Data);
    disk.check().unwrap();
    disk.put(3, &block(3, version));
    disk.check().unwrap();
}

#[test]
fn a_point_is_a_prefix_and_nothing_else() {
    let mut disk = Disk::new();
    disk.write(1);
    disk.write(2);
    let point = disk.save("point");
    let hole = disk.log.issued();
    disk.write(3);
    disk.write(1);
    let standing = disk.log.check_point(&point, &disk.base(), 0, 4).unwrap();
    assert_eq!(standing.version, hole);
    assert!(disk.log.check_point(&point, &disk.base(), 3, 4).is_err(), "older than its mark");
    assert!(disk.log.check_point(&point, &disk.base(), 0, 1).is_err(), "newer than its mark");

    // Block 1 has the newest write, block 3 lacks one before it: no prefix.
    disk.put(3, &[7; BLOCK_BYTES]);
    let torn = disk.save("torn");
    assert!(disk.log.check_point(&torn, &disk.base(), 0, 4).is_err());
}

#[test]
fn a_point_may_end_in_zeros() {
    let mut disk = Disk::new();
    disk.write(1);
    disk.zero(2);
    let point = disk.save("point");
    disk.write(2);
    let standing = disk.log.check_point(&point, &disk.base(), 0, 3).unwrap();
    assert_eq!(standing.version, 2);
}

#[test]
fn zeros_on_a_disk_of_zeros_count_as_written() {
    let mut disk = Disk::new();
    disk.bytes.fill(0);
    fs::write(disk.base(), &disk.bytes).unwrap();
    disk.write(1);
    disk.zero(1);
    disk.check().unwrap();
    disk.write(1);
    disk.put(1, &[0; BLOCK_BYTES]);
    assert!(disk.check().is_err(), "the last write is missing");
}

impl Disk {
    fn prefix(&self, name: &str) -> Result<Prefix> {
        let image = self.save(name);
        self.log.check_prefix(&image, &self.base(), Moment::START, Moment::END)
    }
}

#[test]
fn of_two_writes_at_one_time_either_may_win_but_not_an_older_one() {
    let mut disk = Disk::new();
    let old = disk.write(1);
    let left = disk.log.issue_by(1, 1, 1, Kind::Data);
    let right = disk.log.issue_by(2, 1, 1, Kind::Data);
    disk.log.acknowledge(right);
    disk.log.acknowledge(left);
    for (version, is_good) in [(left, true), (right, true), (old, false)] {
        disk.put(1, &block(1, version));
        assert_eq!(disk.check().is_ok(), is_good, "version {version}");
        assert!(disk.prefix("point").is_ok(), "each was the newest at some time");
    }
}

#[test]
fn a_lost_write_may_be_there_until_it_is_overwritten() {
    let mut disk = Disk::new();
    disk.write(1);
    let lost = disk.log.issue_by(1, 1, 1, Kind::Data);
    disk.log.lose(1);
    disk.put(1, &block(1, lost));
    disk.check().unwrap();
    disk.write(1);
    disk.put(1, &block(1, lost));
    assert!(disk.check().is_err(), "it came back");
}

#[test]
fn a_prefix_has_one_moment_for_all_lanes() {
    let mut disk = Disk::new();
    let slow = disk.log.issue_by(1, 1, 1, Kind::Data);
    let before = disk.write(2);
    disk.write(3);
    disk.log.acknowledge(slow);
    // The slow write was on its way all the time: it may be in or not.
    disk.prefix("without").unwrap();
    disk.put(1, &block(1, slow));
    disk.prefix("with").unwrap();
    // The third came after the second was answered.
    disk.put(2, &[7; BLOCK_BYTES]);
    let error = format!("{:#}", disk.prefix("torn").unwrap_err());
    assert!(error.contains("block 3") && error.contains("block 2"), "{error}");
    disk.put(2, &block(2, before));
    disk.prefix("whole").unwrap();
}

#[test]
fn a_write_is_in_a_prefix_as_a_whole() {
    let mut disk = Disk::new();
    disk.write(5);
    let wide = disk.log.issue_by(1, 4, 3, Kind::Data);
    for number in 4..7 {
        disk.put(number, &block(number as u64, wide));
    }
    disk.log.acknowledge(wide);
    disk.prefix("whole").unwrap();
    disk.put(6, &[7; BLOCK_BYTES]);
    let error = format!("{:#}", disk.prefix("part").unwrap_err());
    assert!(error.contains("in part") && error.contains("block 6"), "{error}");
}

#[test]
fn zeros_fit_only_where_all_of_them_were_there_at_one_time() {
    let mut disk = Disk::new();
    disk.zero(1);
    disk.write(1);
    disk.zero(2);
    disk.write(2);
    disk.zero(1);
    disk.zero(2);
    disk.prefix("both, at the end").unwrap();
    disk.put(2, &[7; BLOCK_BYTES]);
    disk.prefix("the first, before the second").unwrap();
    let mut disk = Disk::new();
    disk.zero(1);
    disk.write(1);
    disk.zero(2);
    disk.put(1, &[0; BLOCK_BYTES]);
    disk.write(2);
    disk.put(2, &[0; BLOCK_BYTES]);
    assert!(disk.prefix("never").is_err(), "the first was overwritten before the second came");
}

#[test]
fn blocks_of_another_seed_are_nobodys() {
    let mut disk = Disk::new();
    disk.log = WriteLog::with_seed((BLOCKS * BLOCK_BYTES) as u64, 9).unwrap();
    let version = disk.log.issue(1, 1, Kind::Data);
    disk.log.acknowledge(version);
    disk.put(1, &block(1, version));
    assert!(disk.check().is_err());
    let content = disk.log.content(1, version);
    disk.put(1, &content);
    disk.check().unwrap();
}

#[test]
fn a_read_sees_what_was_acknowledged_before_it() {
    let mut disk = Disk::new();
    let old = disk.write(1);
    let before = disk.log.moment();
    let new = disk.write(1);
    let after = disk.log.moment();
    let base = [7; BLOCK_BYTES];
    disk.log.check_read(1, &block(1, old), &base, before).unwrap();
    disk.log.check_read(1, &block(1, new), &base, after).unwrap();
    assert!(disk.log.check_read(1, &block(1, old), &base, after).is_err());
}
