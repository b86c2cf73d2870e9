//! A whole conversation of an NBD client, from its handshake flags to its last byte, against a model
//! of what the server must answer.

use super::nbd_model;
use bytes::{BufMut, Bytes};
use farshore_nbd::{Backend, BackendError, Counters, Extent, Holds, Piece, converse};
use std::io::Cursor;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use tokio::runtime::Runtime;

/// Bytes of the disk: small, so that ranges at random often meet.
pub(super) const DISK_BYTES: usize = 64 << 10;
pub(super) const NAME: &str = "disk";
const BLOCK_BYTES: usize = 4096;

fn lock(of: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk in memory on which a block of zeroes is a hole.
#[derive(Debug)]
struct Disk(Mutex<Vec<u8>>);

/// What a range of the disk holds, by blocks.
fn runs(disk: &[u8], offset: u64, length: u32) -> Vec<(bool, &[u8])> {
    let start = usize::try_from(offset).expect("the server checks ranges");
    let end = start + length as usize;
    let mut runs = Vec::new();
    let mut at = start;
    while at < end {
        let block = at / BLOCK_BYTES * BLOCK_BYTES;
        let is_hole = disk[block..block + BLOCK_BYTES].iter().all(|byte| *byte == 0);
        let next = (block + BLOCK_BYTES).min(end);
        runs.push((is_hole, &disk[at..next]));
        at = next;
    }
    runs
}

impl Disk {
    fn fill(&self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).expect("the server checks ranges");
        lock(&self.0)[start..start + data.len()].copy_from_slice(data);
    }
}

impl Backend for Disk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, BackendError> {
        let disk = lock(&self.0);
        let piece = |(is_hole, bytes): (bool, &[u8])| match u32::try_from(bytes.len()) {
            Ok(length) if is_hole => Piece::Zeroes(length),
            _ => Piece::Data(Bytes::copy_from_slice(bytes)),
        };
        Ok(runs(&disk, offset, length).into_iter().map(piece).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), BackendError> {
        self.fill(offset, &data);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u32,
        _may_trim: bool,
        _fua: bool,
    ) -> Result<(), BackendError> {
        self.fill(offset, &vec![0; length as usize]);
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u32, _fua: bool) -> Result<(), BackendError> {
        self.fill(offset, &vec![0; length as usize]);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    async fn extents(
        &self,
        offset: u64,
        length: u32,
        count_max: usize,
    ) -> Result<Vec<Extent>, BackendError> {
        let disk = lock(&self.0);
        let extent = |(is_hole, bytes): (bool, &[u8])| Extent {
            length: bytes.len() as u64,
            holds: if is_hole { Holds::Hole } else { Holds::Data },
        };
        Ok(runs(&disk, offset, length).into_iter().map(extent).take(count_max).collect())
    }
}

/// Takes what the server says.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Heard {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        lock(&self.0).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn runtime() -> Runtime {
    let made = tokio::runtime::Builder::new_current_thread().enable_time().build();
    made.expect("a runtime can be made")
}

thread_local! {
    static RUNTIME: Runtime = runtime();
}

pub(super) fn conversation(said: &[u8]) {
    let disk = Arc::new(Disk(Mutex::new(vec![0; DISK_BYTES])));
    let heard = Heard::default();
    let counters = Arc::<Counters>::default();
    RUNTIME.with(|runtime| {
        let said = Cursor::new(said.to_vec());
        let over = converse(NAME, Arc::clone(&disk), counters, said, heard.clone());
        runtime.block_on(over).expect("the export can be described");
    });
    let disk = lock(&disk.0);
    nbd_model::check(said, &lock(&heard.0), &disk);
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(nbd_model::OPTION_MAGIC);
    out.put_u32(number);
    out.put_u32(u32::try_from(data.len()).expect("it is short"));
    out.put_slice(data);
    out
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(nbd_model::REQUEST_MAGIC);
    out.put_u16(flags);
    out.put_u16(command);
    out.put_u64(cookie);
    out.put_u64(offset);
    out.put_u32(length);
    out
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(u32::try_from(text.len()).expect("it is short"));
    out.put_slice(text.as_bytes());
    out
}

fn commands() -> Vec<u8> {
    let write = |cookie, offset, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("it is short");
        [request(1, 1, cookie, offset, length), data.to_vec()].concat()
    };
    [
        write(1, 4096, &[0x5a; 512]),
        write(2, 8192, &[0x33; 1024]),
        request(0, 0, 3, 0, 16384),
        request(0, 4, 4, 0, 8192),
        request(7, 0, 5, 0, 32768),
        request(7, 8, 6, 4096, 4096),
        request(6, 2, 7, 8192, 512),
        request(6, 0x10, 8, 8192, 512),
        request(4, 0, 9, 4096, 4096),
        request(5, 0, 10, 0, 65536),
        request(3, 0, 11, 0, 0),
        request(0, 0, 12, 65536, 0),
        request(0, 0, 13, 65536, 512),
        write(14, 65536, &[1; 512]),
        request(0, 0, 15, 1, 512),
        request(9, 0, 16, 0, 512),
        request(0, 0, 17, 4096, 4096),
        request(2, 0, 18, 0, 0),
    ]
    .concat()
}

pub(super) fn conversation_samples() -> Vec<Vec<u8>> {
    let flags = 3_u32.to_be_bytes().to_vec();
    let context = [string(NAME), vec![0, 0, 0, 1], string("base:allocation")].concat();
    let all = [
        flags.clone(),
        option(3, b""),
        option(11, b""),
        option(8, b""),
        option(6, &[string(""), vec![0, 1, 0, 1]].concat()),
        option(9, &[string(""), vec![0; 4]].concat()),
        option(10, &context),
        option(7, &[string(NAME), vec![0, 0]].concat()),
        commands(),
    ];
    let oldest = [vec![0, 0, 0, 0], option(1, NAME.as_bytes()), commands()];
    let lost = [
        flags.clone(),
        option(5, b""),
        option(10, &context),
        option(7, &[string("elsewhere"), vec![0, 0]].concat()),
        option(2, b""),
    ];
    let short = [flags, option(8, b""), option(1, b""), request(0, 0, 1, 0, 512)];
    vec![all.concat(), oldest.concat(), lost.concat(), short.concat()]
}
