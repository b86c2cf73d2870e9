//! Files in memory, for decoders that open what they read.

use farshore_agent::files::{FileIo, Files};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One directory tree without directories.
#[derive(Debug, Default)]
pub(super) struct MemoryFiles(Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>);

#[derive(Debug, Default)]
pub(super) struct MemoryFile(Mutex<Vec<u8>>);

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryFiles {
    /// With one file in it.
    pub(super) fn with(path: &Path, bytes: &[u8]) -> Arc<Self> {
        let file = Arc::new(MemoryFile(Mutex::new(bytes.to_vec())));
        Arc::new(Self(Mutex::new([(path.to_owned(), file)].into())))
    }

    /// What a file holds; nothing if there is none.
    pub(super) fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        lock(&self.0).get(path).map(|file| lock(&file.0).clone())
    }

    fn find(&self, path: &Path) -> io::Result<Arc<MemoryFile>> {
        lock(&self.0).get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for MemoryFiles {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        let file = self.open_or_create(path)?;
        file.set_len(0)?;
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        Ok(self.find(path)?)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        Ok(Arc::clone(lock(&self.0).entry(path.to_owned()).or_default()) as Arc<dyn FileIo>)
    }

    fn exists(&self, path: &Path) -> bool {
        lock(&self.0).contains_key(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.bytes(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let names = lock(&self.0);
        let inside = names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name().map(OsString::from)).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        lock(&self.0).remove(path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.find(from)?;
        let mut names = lock(&self.0);
        names.remove(from);
        names.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl FileIo for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = lock(&self.0);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let range = bytes.get(start..start.saturating_add(buffer.len()));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, written: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = lock(&self.0);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + written.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(written);
        Ok(())
    }

    fn write_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.write_all_at(
            &slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>(),
            offset,
        )
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        lock(&self.0).resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}
