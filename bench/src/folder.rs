//! How large something on disk is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Bytes of all files below a folder.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
