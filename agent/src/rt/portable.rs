//! Reads with `pread` on the runtime's blocking threads.

use super::Buffer;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) async fn read(
    file: Arc<File>,
    offset: u64,
    mut buffer: Buffer,
    inside: usize,
) -> io::Result<Buffer> {
    let task = tokio::task::spawn_blocking(move || {
        file.read_exact_at(&mut buffer[..inside], offset)?;
        Ok(buffer)
    });
    task.await.map_err(io::Error::other)?
}
