//! Who uses a disk or file: what is written to it then goes into something that lives.

use rustix::fs::{major, minor};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Disks that are made of others are looked through this deep.
const DEPTH_MAX: usize = 4;

/// Who uses it, as a sentence's end; none if nobody that can be seen from here. What another mount
/// namespace or another machine does is not seen: a device is opened exclusively besides.
pub(super) fn holder(path: &Path, metadata: &Metadata) -> Option<String> {
    if metadata.file_type().is_block_device() {
        let number = device_number(metadata.rdev());
        return of_device(&number, 0)
            .or_else(|| of_whole_disk(&number))
            .or_else(|| opened(metadata));
    }
    behind_loop(path, metadata).or_else(|| swap(metadata)).or_else(|| opened(metadata))
}

fn device_number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// Mounted, used as swap, part of something else, or one of its partitions is.
fn of_device(number: &str, depth: usize) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(at) = mounted_at(&mounts, number) {
        return Some(format!("it is mounted at {at}"));
    }
    let sys = PathBuf::from(format!("/sys/dev/block/{number}"));
    if let Some(holder) = names_in(&sys.join("holders")).into_iter().next() {
        let name = fs::read_to_string(sys.join("holders").join(&holder).join("dm/name"));
        let name = name.map(|name| format!(" ({})", name.trim())).unwrap_or_default();
        return Some(format!("{holder}{name} is made of it"));
    }
    for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let path = line.split_ascii_whitespace().next().unwrap_or_default();
        let is_it = fs::metadata(path).is_ok_and(|found| {
            found.file_type().is_block_device() && device_number(found.rdev()) == number
        });
        if is_it {
            return Some("it is used as swap".to_owned());
        }
    }
    if depth == DEPTH_MAX {
        return None;
    }
    names_in(&sys).into_iter().find_map(|part| {
        let dir = sys.join(&part);
        let number =
            fs::read_to_string(dir.join("dev")).ok().filter(|_| dir.join("partition").exists())?;
        of_device(number.trim(), depth + 1)
            .map(|why| format!("its partition {part} is in use: {why}"))
    })
}

/// The disk that a partition is of, if that is used as a whole.
fn of_whole_disk(number: &str) -> Option<String> {
    let sys = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
    if !sys.join("partition").exists() {
        return None;
    }
    let whole = sys.parent()?;
    let holder = names_in(&whole.join("holders")).into_iter().next()?;
    Some(format!("its disk is in use: {holder} is made of it"))
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Where mountinfo says that the device is mounted.
fn mounted_at(mounts: &str, number: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let is_it = fields.next()? == number;
        let at = fields.nth(1)?;
        is_it.then(|| at.replace("\\040", " "))
    })
}

/// The loop device that shows this file as a disk.
fn behind_loop(path: &Path, metadata: &Metadata) -> Option<String> {
    names_in(Path::new("/sys/block")).into_iter().find_map(|name| {
        let file = fs::read(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        let file = String::from_utf8_lossy(&file);
        let file = Path::new(file.trim_end());
        // The same file may have another name where the loop device was made.
        let is_it = file == path || fs::metadata(file).is_ok_and(|found| is_same(&found, metadata));
        is_it.then(|| format!("it is behind the disk /dev/{name}"))
    })
}

fn swap(metadata: &Metadata) -> Option<String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let is_it = swaps.lines().skip(1).any(|line| {
        let path = line.split_ascii_whitespace().next().unwrap_or_default();
        fs::metadata(path).is_ok_and(|found| is_same(&found, metadata))
    });
    is_it.then(|| "it is used as swap".to_owned())
}

fn is_same(found: &Metadata, metadata: &Metadata) -> bool {
    if metadata.file_type().is_block_device() {
        return found.file_type().is_block_device() && found.rdev() == metadata.rdev();
    }
    (found.dev(), found.ino()) == (metadata.dev(), metadata.ino())
}

/// Another process that has it open for writing: an agent that serves it, a guest that runs on it.
fn opened(metadata: &Metadata) -> Option<String> {
    let own = std::process::id().to_string();
    names_in(Path::new("/proc")).into_iter().filter(|pid| *pid != own).find_map(|pid| {
        let _: u32 = pid.parse().ok()?;
        let dir = PathBuf::from("/proc").join(&pid);
        let is_writer = names_in(&dir.join("fd")).into_iter().any(|fd| {
            let is_it = fs::metadata(dir.join("fd").join(&fd)).is_ok_and(|f| is_same(&f, metadata));
            is_it && writes(&fs::read_to_string(dir.join("fdinfo").join(&fd)).unwrap_or_default())
        });
        if !is_writer {
            return None;
        }
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        Some(format!("{} (process {pid}) has it open for writing", name.trim()))
    })
}

/// Whether a descriptor with this description can write: the last octal digit of its flags has the
/// access mode in its two lowest bits.
fn writes(description: &str) -> bool {
    let flags = description.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn mounts_are_found_by_their_number() {
        let mounts =
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 / /my\\040disk rw - xfs /dev/b rw\n";
        assert_eq!(mounted_at(mounts, "8:2").as_deref(), Some("/my disk"));
        assert_eq!(mounted_at(mounts, "8:20"), None);
        assert_eq!(mounted_at("garbage\n", "8:2"), None);
    }

    #[test]
    fn only_writers_hold_a_file_and_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, "x").unwrap();
        let path = fs::canonicalize(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(holder(&path, &metadata), None);
        let open = |how: &str| {
            let script = format!("exec 3{how}\"$0\"; echo open; exec sleep 60");
            let mut child = Command::new("/bin/sh")
                .args(["-c", &script])
                .arg(&path)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 4]).unwrap();
            let found = holder(&path, &metadata);
            child.kill().unwrap();
            child.wait().unwrap();
            (child.id(), found)
        };
        let (pid, found) = open(">>");
        let found = found.unwrap();
        assert!(
            found.contains(&format!("process {pid}")) && found.contains("for writing"),
            "{found}"
        );
        assert_eq!(open("<").1, None, "who only reads is not hurt");
    }

    #[test]
    fn the_disk_that_the_root_is_on_is_mounted() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let number = mounts.lines().next().unwrap().split_ascii_whitespace().nth(2).unwrap();
        assert!(of_device(number, 0).unwrap().starts_with("it is mounted at "), "{number}");
    }
}
