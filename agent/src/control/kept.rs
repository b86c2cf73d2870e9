//! What an agent knows of its volumes, kept for its next start: `assignments.json` and a second copy of it,
//! each replaced as a whole and with a checksum behind what it says.
//!
//! A server that boots without its control plane has its disks by these files alone (I13): a damaged one must
//! not take them away, nor name another disk.

use super::known::{Assigned, Known};
use crate::durable::replace;
use crate::files::Files;
use farshore_proto::wire::put_crc;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// In the order in which they are written.
const NAMES: [&str; 2] = ["assignments.json", "assignments.copy.json"];
/// Between two attempts to write them.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longer than that is told.
const WRITE_TIME_MAX: Duration = Duration::from_secs(2);

/// The files, and what is wrong with them.
#[derive(Debug)]
pub struct Kept {
    files: Arc<dyn Files>,
    dir: PathBuf,
    /// Of the newest that was written or read: one of the two may be older.
    number: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Kept {
    /// In the agent's directory.
    #[must_use]
    pub fn new(files: Arc<dyn Files>, dir: &Path) -> Self {
        Self { files, dir: dir.to_owned(), number: AtomicU64::new(0), trouble: Mutex::default() }
    }

    /// What the agent knew in its last run; none if neither file says it. Blocks.
    #[must_use]
    pub fn load(&self) -> Option<Assigned> {
        let found = NAMES.iter().filter_map(|name| {
            let path = self.dir.join(name);
            match self.files.read(&path).and_then(|bytes| decode(&bytes)) {
                Ok(found) => Some(found),
                Err(error) => {
                    if error.kind() != io::ErrorKind::NotFound {
                        tracing::warn!(path = %path.display(), %error, "assignments cannot be used");
                    }
                    None
                }
            }
        });
        let (number, known) = found.max_by_key(|(number, _)| *number)?;
        self.number.fetch_max(number, Ordering::SeqCst);
        Some(Arc::new(known))
    }

    /// Writes both files; blocks.
    fn write(&self, known: &Known) -> io::Result<()> {
        let bytes = encode(known, self.number.fetch_add(1, Ordering::SeqCst) + 1)?;
        // The second although the first failed: one is enough for a start.
        let written = NAMES.map(|name| replace(&*self.files, &self.dir.join(name), &bytes));
        written.into_iter().collect()
    }

    /// That the next start may not know the disks of this one, in words; none if it does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn told(&self, written: io::Result<()>) -> bool {
        let trouble = written.err().map(|error| {
            let dir = self.dir.display();
            format!(
                "the agent's directory {dir} does not take which disks it serves ({error}): a start without \
                 the control plane would not serve them; give it space and permissions there"
            )
        });
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != trouble {
            if let Some(trouble) = &trouble {
                tracing::warn!(trouble, "assignments are not kept");
            }
            known.clone_from(&trouble);
        }
        trouble.is_none()
    }
}

/// Keeps the files as the agent knows its volumes, until dropped. What cannot be written is told and tried
/// again.
pub async fn keep(kept: Arc<Kept>, mut assigned: watch::Receiver<Option<Assigned>>) {
    loop {
        let known = assigned.borrow_and_update().clone();
        let mut is_kept = true;
        if let Some(known) = known {
            let writer = Arc::clone(&kept);
            let mut writing = tokio::task::spawn_blocking(move || writer.write(&known));
            let written = match tokio::time::timeout(WRITE_TIME_MAX, &mut writing).await {
                Ok(written) => written,
                Err(_) => {
                    let _is_kept = kept.told(Err(io::Error::other("it hangs")));
                    writing.await
                }
            };
            is_kept = kept.told(written.map_err(io::Error::other).flatten());
        }
        tokio::select! {
            changed = assigned.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(RETRY_PAUSE), if !is_kept => {}
        }
    }
}

/// The line behind the text: which write it is of, and the checksum of both.
#[derive(Serialize, Deserialize)]
struct Last {
    number: u64,
    crc32c: u32,
}

fn last_line(text: &[u8], number: u64) -> io::Result<Vec<u8>> {
    let mut bytes = text.to_vec();
    bytes.extend_from_slice(&number.to_le_bytes());
    let end = bytes.len();
    put_crc(&mut bytes, 0);
    let crc32c = bytes[end..].try_into().map_or(0, u32::from_le_bytes);
    let mut line = serde_json::to_vec(&Last { number, crc32c }).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

fn encode(known: &Known, number: u64) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(known).map_err(io::Error::other)?;
    text.push(b'\n');
    let line = last_line(&text, number)?;
    text.extend_from_slice(&line);
    Ok(text)
}

/// What a file says, and which write it is of; 0 if it is of an agent of before there were two.
fn decode(bytes: &[u8]) -> io::Result<(u64, Known)> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let end = bytes.strip_suffix(b"}\n").and_then(|rest| rest.iter().rposition(|b| *b == b'\n'));
    let (text, line) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
    let parse = |error: serde_json::Error| invalid(&error.to_string());
    let number = match line {
        // One value, and no line behind it.
        [] => 0,
        line => {
            let last: Last = serde_json::from_slice(line).map_err(parse)?;
            if last_line(text, last.number)? != line {
                return Err(invalid("the checksum is wrong"));
            }
            last.number
        }
    };
    Ok((number, serde_json::from_slice(text).map_err(parse)?))
}

#[cfg(test)]
mod tests {
    use super::super::known::{KnownVolume, Word};
    use super::*;
    use crate::faulty_files::{FaultyFiles, Sickness};
    use farshore_api::agent::{AgentVolume, NodeAddress};
    use farshore_api::machine::Capture;
    use std::time::Instant;
    use uuid::Uuid;

    fn known(version: u64) -> Known {
        let volume = AgentVolume {
            volume: Uuid::from_u128(7),
            machine: "web".to_owned(),
            disk: "/dev/vdb".to_owned(),
            capture: Capture::Nbd,
            nbd_port: Some(10_809),
            mark_interval_ms: 1000,
            epoch: 3,
            size_bytes: Some(1 << 40),
            node: NodeAddress {
                id: Uuid::from_u128(9),
                address: "127.0.0.1:1".to_owned(),
                server_name: "node".to_owned(),
                generation_min: 2,
            },
            marks_requested: Vec::new(),
        };
        let volumes = vec![KnownVolume { volume, word: Word::Silent }];
        Known { version, volumes, detached: vec![Uuid::from_u128(1)] }
    }

    fn kept(dir: &Path, files: &FaultyFiles) -> Arc<Kept> {
        Arc::new(Kept::new(files.shared(), dir))
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(20), "not {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// P42: one damaged file, whichever and however, takes no disk away and names no other.
    #[test]
    fn a_damaged_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept(dir.path(), &FaultyFiles::good());
        assert_eq!(kept.load(), None, "a new agent");
        kept.write(&known(5)).unwrap();
        for name in NAMES {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            let flips = (0..good.len() * 8).step_by(3).map(|bit| {
                let mut bytes = good.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            });
            let cuts = (0..good.len()).map(|end| good[..end].to_vec());
            for bytes in flips.chain(cuts) {
                std::fs::write(&path, &bytes).unwrap();
                assert_eq!(kept.load().as_deref(), Some(&known(5)), "{name}: {bytes:?}");
            }
            std::fs::remove_file(&path).unwrap();
            assert_eq!(kept.load().as_deref(), Some(&known(5)), "without {name}");
            std::fs::write(&path, &good).unwrap();
        }
    }

    /// The agent is newer than what it finds.
    #[test]
    fn a_file_of_before_the_checksum_is_taken() {
        let text = serde_json::to_vec_pretty(&known(5)).unwrap();
        assert_eq!(decode(&text).unwrap(), (0, known(5)));
    }

    /// P42: of two files that differ the newer counts, whichever it is.
    #[test]
    fn the_newer_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = FaultyFiles::good();
        let kept = kept(dir.path(), &files);
        for (version, name) in [(1, ""), (2, NAMES[0]), (3, NAMES[1]), (4, NAMES[0])] {
            files.refuse((!name.is_empty()).then_some(name));
            assert_eq!(kept.write(&known(version)).is_ok(), name.is_empty());
            // The catalogue's own number may go back.
            let again = Kept::new(files.shared(), dir.path());
            assert_eq!(again.load().as_deref(), Some(&known(version)), "{name}");
        }
    }

    /// P42: a directory that hangs takes nothing either.
    #[tokio::test]
    async fn a_directory_that_hangs_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let files = FaultyFiles::good();
        files.sicken(Sickness::Hangs("assignments"));
        let kept = kept(dir.path(), &files);
        let assigned = watch::Sender::new(Some(Arc::new(known(1))));
        let keeping = tokio::spawn(keep(Arc::clone(&kept), assigned.subscribe()));
        until("told", || kept.trouble().is_some_and(|why| why.contains("it hangs"))).await;
        files.sicken(Sickness::None);
        until("over", || kept.trouble().is_none()).await;
        assert_eq!(kept.load().as_deref(), Some(&known(1)));
        keeping.abort();
    }

    /// P42: what a directory does not take is told, and written once it does.
    #[tokio::test]
    async fn a_directory_that_takes_nothing_is_told_of_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = FaultyFiles::good();
        files.sicken(Sickness::Full);
        let kept = kept(dir.path(), &files);
        let assigned = watch::Sender::new(Some(Arc::new(known(1))));
        let keeping = tokio::spawn(keep(Arc::clone(&kept), assigned.subscribe()));
        until("told", || kept.trouble().is_some_and(|why| why.contains("would not serve"))).await;
        assert_eq!(kept.load(), None);
        // Nothing else happens, but that there is room again.
        files.sicken(Sickness::None);
        until("over", || kept.trouble().is_none()).await;
        assert_eq!(kept.load().as_deref(), Some(&known(1)));
        assigned.send_replace(Some(Arc::new(known(2))));
        until("newer", || kept.load().as_deref() == Some(&known(2))).await;
        // A start that finds one copy makes the other.
        keeping.abort();
        std::fs::write(dir.path().join(NAMES[0]), "{").unwrap();
        let found = watch::Sender::new(kept.load());
        let keeping = tokio::spawn(keep(Arc::clone(&kept), found.subscribe()));
        let first = dir.path().join(NAMES[0]);
        until("mended", || std::fs::read(&first).is_ok_and(|bytes| decode(&bytes).is_ok())).await;
        keeping.abort();
    }
}
