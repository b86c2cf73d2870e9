//! Removing what is committed, and starting again.

use super::LogError;
use super::lane::Turn;
use super::recovery;
use super::still::Still;
use super::writer::{Broken, Log, Part, active, create, empty, file_name};
use farshore_proto::limits::HRL_HEADER_BYTES;
use farshore_proto::{Imprint, Seq};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

impl Log {
    /// Removes the files in which everything is at or below `committed`; blocks.
    ///
    /// # Errors
    /// `Io` if a file cannot be removed, or whoever appends takes too long; the log is whole all the same.
    pub fn trim(&self, committed: Seq) -> Result<(), LogError> {
        let Some(turn) = self.lane.enter() else {
            let source = io::ErrorKind::TimedOut.into();
            return Err(LogError::Io { action: "trim", path: self.dir.clone(), source });
        };
        loop {
            let path = {
                let writer = self.lock();
                let is_over = |next: &Part| next.first <= committed.next();
                if !writer.parts.get(1).is_some_and(is_over) {
                    break;
                }
                writer.parts[0].path.clone()
            };
            match self.files.remove(&path) {
                // Removed by an attempt that was told otherwise.
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(LogError::Io { action: "remove", path, source });
                }
                _ => {}
            }
            let mut writer = self.lock();
            if let Some(part) = writer.parts.pop_front() {
                writer.bytes -= part.end;
                writer.unsynced.retain(|file| !Arc::ptr_eq(file, &part.file));
                writer.no_space_until = None;
            }
        }
        let is_done = {
            let writer = self.lock();
            self.publish(&writer);
            writer.parts.len() == 1
                && writer.next <= committed.next()
                && active(&writer).end > HRL_HEADER_BYTES as u64 + self.file_bytes / 2
        };
        if is_done { self.recycle(&turn) } else { Ok(()) }
    }

    /// Empties the only file, everything in which is committed, and names it by the next seq.
    ///
    /// The name comes first, durably: a file that is shorter than its name says would have lost
    /// something. If the rest is cut short, opening the log ends it.
    pub(super) fn recycle(&self, _turn: &Turn<'_>) -> Result<(), LogError> {
        let (first, file, old) = {
            let writer = self.lock();
            let part = active(&writer);
            (writer.next, Arc::clone(&part.file), part.path.clone())
        };
        let path = self.dir.join(file_name(first));
        if old != path {
            let renamed = self.files.rename(&old, &path);
            let action = "rename";
            renamed.map_err(|source| LogError::Io { action, path: old, source })?;
            let mut writer = self.lock();
            writer.parts.back_mut().expect("the log has a file").path.clone_from(&path);
        }
        let synced = self.files.sync_dir(&self.dir);
        let emptied = synced.and_then(|()| empty(&file, &path, self.volume, first));
        let mut writer = self.lock();
        let emptied = match emptied {
            Ok(emptied) => emptied,
            Err(source) => {
                writer.broken = Some(Broken::NotEmptied);
                return Err(LogError::Io { action: "empty", path, source });
            }
        };
        writer.broken = None;
        writer.bytes -= active(&writer).end - emptied.end;
        let part = writer.parts.back_mut().expect("the log has a file");
        *part = emptied;
        writer.no_space_until = None;
        if writer.unsynced.is_empty() {
            writer.unsynced.push(file);
        }
        self.publish(&writer);
        Ok(())
    }

    /// Drops everything in the log and goes on at `next`; blocks until that is durable.
    ///
    /// # Errors
    /// `Io` if a file cannot be made or removed.
    pub fn restart(&self, next: Seq) -> Result<(), LogError> {
        let _turn = self.lane.wait();
        {
            let mut writer = self.lock();
            writer.breaches += 1;
            writer.restarts += 1;
        }
        let error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LogError::Io { action, path, source }
        };
        self.files.create_dir_all(&self.dir).map_err(error("create", &self.dir))?;
        // A log that could not be opened has files that it knows nothing of.
        for (_, path) in recovery::list(&*self.files, &self.dir)? {
            self.files.remove(&path).map_err(error("remove", &path))?;
        }
        let part = create(&*self.files, &self.dir, self.volume, next)
            .map_err(error("create a file in", &self.dir))?;
        self.files.sync_dir(&self.dir).map_err(error("sync", &self.dir))?;
        let mut writer = self.lock();
        (writer.next, writer.previous) = (next, Imprint::default());
        writer.still = Still::default();
        writer.bytes = part.end;
        writer.unsynced = vec![Arc::clone(&part.file)];
        writer.parts = VecDeque::from([part]);
        writer.is_dir_synced = true;
        writer.broken = None;
        writer.no_space_until = None;
        if std::mem::take(&mut writer.is_closed) {
            writer.held = None;
        }
        self.publish(&writer);
        Ok(())
    }
}
