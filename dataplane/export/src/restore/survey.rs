//! What a restore would write over.

use super::{RestoreError, RestoreOptions, io_error, ours, signatures};
use farshore_disks::holders;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Symbolic links that are followed from one to the next.
const LINKS_MAX: usize = 40;

/// What kind of target it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A file that does not exist yet.
    NewFile,
    /// A file that exists.
    File,
    /// A block device.
    Device,
}

/// What is there before a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The target itself, where a symbolic link leads to.
    pub path: PathBuf,
    /// Its kind.
    pub kind: TargetKind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What is on it, in words; none if that is nothing.
    pub content: Option<String>,
    /// Who uses it, in words.
    pub holder: Option<String>,
}

impl Survey {
    /// Whether a volume of `size_bytes` may be written there.
    ///
    /// # Errors
    /// `Conflict` if somebody uses it, `Invalid` if it is too small, or holds something that may not be
    /// replaced.
    pub fn check(&self, size_bytes: u64, options: &RestoreOptions) -> Result<(), RestoreError> {
        let path = self.path.clone();
        if let Some(holder) = self.holder.clone() {
            return Err(RestoreError::InUse { path, holder });
        }
        if self.kind == TargetKind::Device && self.size_bytes < size_bytes {
            return Err(RestoreError::TooSmall {
                path,
                found: self.size_bytes,
                needed: size_bytes,
            });
        }
        match self.content.clone().filter(|_| !options.may_replace) {
            Some(content) => Err(RestoreError::NotEmpty { path, content }),
            None => Ok(()),
        }
    }
}

/// Looks at a target and changes nothing.
///
/// # Errors
/// `Invalid` if it is neither a file nor a block device, or would be a new file among the devices; `Conflict` if
/// Farshore itself lives on it; `Unavailable` if it cannot be read.
pub fn survey(path: &Path) -> Result<Survey, RestoreError> {
    let Some((path, metadata)) = find(path)? else {
        let path = resolve(path)?;
        let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
        if directory.as_deref().is_some_and(is_of_devices) {
            return Err(RestoreError::NoDevice { path });
        }
        if let Some(what) = directory.as_deref().and_then(ours::what_around) {
            return Err(RestoreError::Ours { path, what });
        }
        return Ok(Survey {
            path,
            kind: TargetKind::NewFile,
            size_bytes: 0,
            content: None,
            holder: None,
        });
    };
    let is_device = metadata.file_type().is_block_device();
    if let Some(what) = (!is_device).then(|| ours::what(&path)).flatten() {
        return Err(RestoreError::Ours { path, what });
    }
    // Who only reads a file is not hurt.
    let holder = holders::sentence(&holders::of(&metadata, false));
    let mut file = File::open(&path).map_err(io_error(&path, "open it"))?;
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(io_error(&path, "find its size"))?;
    let whole_bytes_max =
        if is_device { signatures::DEVICE_BYTES_MAX } else { signatures::FILE_BYTES_MAX };
    let found = signatures::recognise(&file, size_bytes, whole_bytes_max);
    let found = found.map_err(io_error(&path, "look at what is on it"))?;
    let content = if is_device {
        found
    } else {
        let what = |found: Option<String>| found.unwrap_or_else(|| "zeros".to_owned());
        (size_bytes > 0).then(|| format!("{size_bytes} bytes, {}", what(found)))
    };
    let kind = if is_device { TargetKind::Device } else { TargetKind::File };
    Ok(Survey { path, kind, size_bytes, content, holder })
}

/// The target that exists, all links resolved.
fn find(path: &Path) -> Result<Option<(PathBuf, Metadata)>, RestoreError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path, "look at it")(source)),
    };
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(RestoreError::NotATarget { path: path.to_owned() });
    }
    let path = fs::canonicalize(path).map_err(io_error(path, "find where it leads"))?;
    Ok(Some((path, metadata)))
}

/// What is made in such a directory lies in memory, and is gone with the next boot: a device is meant.
fn is_of_devices(directory: &Path) -> bool {
    directory.starts_with("/dev") && !directory.starts_with("/dev/shm")
}

/// Where a path leads that does not exist: a link that dangles names the file that is to be made.
fn resolve(path: &Path) -> Result<PathBuf, RestoreError> {
    let mut at = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("")).join(to),
            // No link, or nothing there.
            Err(_) => return Ok(at),
        }
    }
    Err(io_error(path, "follow it")(rustix::io::Errno::LOOP.into()))
}
