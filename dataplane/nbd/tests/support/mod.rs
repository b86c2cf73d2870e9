//! A disk in memory that can be made to wait, fail and lie, and a client that sends what it is told.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(missing_docs, unreachable_pub, missing_debug_implementations, reason = "test code")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "test code")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use farshore_nbd::{Address, Backend, BackendError, Counters, Extent, Holds, Piece, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

const BLOCK: usize = 4096;

/// A sparse disk of 4 KiB blocks.
pub struct Memory {
    disk: Mutex<Disk>,
    pub size: u64,
    read_only: bool,
    pub fast_zero: bool,
    /// Calls at this offset or above wait for a permit of the gate.
    pub held_from: AtomicU64,
    pub gate: Semaphore,
    pub flushes: AtomicUsize,
    pub durable_writes: AtomicUsize,
    now: AtomicUsize,
    pub peak: AtomicUsize,
}

struct Disk {
    bytes: Vec<u8>,
    is_allocated: Vec<bool>,
}

/// Offsets at which the disk misbehaves, in blocks beyond what other tests use.
pub const FAILS: u64 = 100 * 4096;
pub const LIES: u64 = 101 * 4096;
pub const PANICS: u64 = 102 * 4096;
pub const FULL: u64 = 103 * 4096;

impl Memory {
    pub fn new(size: u64) -> Self {
        let bytes = vec![0; usize::try_from(size).unwrap()];
        let is_allocated = vec![false; bytes.len().div_ceil(BLOCK)];
        Self {
            disk: Mutex::new(Disk { bytes, is_allocated }),
            size,
            read_only: false,
            fast_zero: false,
            held_from: AtomicU64::new(u64::MAX),
            gate: Semaphore::new(0),
            flushes: AtomicUsize::new(0),
            durable_writes: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.disk.lock().unwrap().bytes.clone()
    }

    pub fn fill(&self, offset: usize, data: &[u8]) {
        let mut disk = self.disk.lock().unwrap();
        disk.bytes[offset..offset + data.len()].copy_from_slice(data);
        let blocks = offset / BLOCK..(offset + data.len()).div_ceil(BLOCK);
        disk.is_allocated[blocks].fill(true);
    }

    pub fn allocated_blocks(&self) -> usize {
        self.disk.lock().unwrap().is_allocated.iter().filter(|is| **is).count()
    }

    /// Calls being carried out.
    pub fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    async fn enter(&self, offset: u64) -> Inside<'_> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        let inside = Inside(self);
        if offset >= self.held_from.load(Ordering::SeqCst) {
            self.gate.acquire().await.unwrap().forget();
        }
        inside
    }

    fn zero(&self, offset: u64, length: u32, may_trim: bool) {
        let (offset, length) = (usize::try_from(offset).unwrap(), length as usize);
        self.fill(offset, &vec![0; length]);
        if may_trim {
            let whole = offset.div_ceil(BLOCK)..(offset + length) / BLOCK;
            if whole.start < whole.end {
                self.disk.lock().unwrap().is_allocated[whole].fill(false);
            }
        }
    }

    /// Runs of one allocation within a range.
    fn runs(&self, offset: u64, length: u32) -> Vec<(usize, usize, bool)> {
        let disk = self.disk.lock().unwrap();
        let (mut at, length) = (usize::try_from(offset).unwrap(), length as usize);
        let end = at + length;
        let mut runs: Vec<(usize, usize, bool)> = Vec::new();
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            let is_allocated = disk.is_allocated[at / BLOCK];
            match runs.last_mut() {
                Some(run) if run.2 == is_allocated => run.1 = next,
                _ => runs.push((at, next, is_allocated)),
            }
            at = next;
        }
        runs
    }
}

struct Inside<'m>(&'m Memory);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Memory {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn is_zeroing_fast(&self) -> bool {
        self.fast_zero
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, BackendError> {
        let _inside = self.enter(offset).await;
        match offset {
            FAILS => return Err(std::io::Error::other("a bad sector").into()),
            LIES => return Ok(vec![Piece::Zeroes(length + 512)]),
            PANICS => {
                tokio::task::yield_now().await;
                panic!("the disk has a bug");
            }
            _ => {}
        }
        let runs = self.runs(offset, length);
        let disk = self.disk.lock().unwrap();
        Ok(runs
            .into_iter()
            .map(|(from, to, is_allocated)| match is_allocated {
                true => Piece::Data(Bytes::copy_from_slice(&disk.bytes[from..to])),
                false => Piece::Zeroes(u32::try_from(to - from).unwrap()),
            })
            .collect())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BackendError> {
        let _inside = self.enter(offset).await;
        if offset == FULL {
            return Err(BackendError::NoSpace);
        }
        self.fill(usize::try_from(offset).unwrap(), &data);
        self.durable_writes.fetch_add(usize::from(fua), Ordering::SeqCst);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u32,
        may_trim: bool,
        fua: bool,
    ) -> Result<(), BackendError> {
        let _inside = self.enter(offset).await;
        self.zero(offset, length, may_trim);
        self.durable_writes.fetch_add(usize::from(fua), Ordering::SeqCst);
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u32, _fua: bool) -> Result<(), BackendError> {
        let _inside = self.enter(offset).await;
        self.zero(offset, length, true);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BackendError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn extents(
        &self,
        offset: u64,
        length: u32,
        count_max: usize,
    ) -> Result<Vec<Extent>, BackendError> {
        Ok(self
            .runs(offset, length)
            .into_iter()
            .take(count_max)
            .map(|(from, to, is_allocated)| Extent {
                length: (to - from) as u64,
                holds: if is_allocated { Holds::Data } else { Holds::Hole },
            })
            .collect())
    }
}

/// A disk of 64 TiB that keeps nothing: every other block of its first 128 MiB is data, all zeroes.
pub struct Vast;

impl Vast {
    const SIZE: u64 = 64 << 40;
    const STRIPES_END: u64 = 128 << 20;
}

impl Backend for Vast {
    fn size_bytes(&self) -> u64 {
        Self::SIZE
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn read(&self, _offset: u64, length: u32) -> Result<Vec<Piece>, BackendError> {
        Ok(vec![Piece::Zeroes(length)])
    }

    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<(), BackendError> {
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u32,
        _may_trim: bool,
        fua: bool,
    ) -> Result<(), BackendError> {
        self.trim(offset, length, fua).await
    }

    async fn trim(&self, offset: u64, length: u32, _fua: bool) -> Result<(), BackendError> {
        assert!(length > 0 && offset + u64::from(length) <= Self::SIZE, "the server checks ranges");
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
        let (mut at, end) = (offset, offset + u64::from(length));
        let mut found = Vec::new();
        while at < end && found.len() < count_max {
            let is_striped = at < Self::STRIPES_END;
            let next = if is_striped { (at / 4096 + 1) * 4096 } else { end };
            let is_data = is_striped && (at / 4096).is_multiple_of(2);
            let holds = if is_data { Holds::Data } else { Holds::Hole };
            found.push(Extent { length: next.min(end) - at, holds });
            at = next;
        }
        Ok(found)
    }
}

/// A server being served, and the means to stop it.
pub struct Running {
    pub uri: String,
    pub address: Address,
    pub memory: Arc<Memory>,
    pub counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    pub serving: JoinHandle<()>,
}

impl Running {
    pub async fn start(address: Address, name: &str, memory: Memory) -> Self {
        let memory = Arc::new(memory);
        let server = Server::bind(&address, name, Arc::clone(&memory)).await.unwrap();
        let (uri, address, counters) = (server.uri(), server.address().clone(), server.counters());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(async { drop(stopped.await) }));
        Self { uri, address, memory, counters, stop: Some(stop), serving }
    }

    pub async fn tcp(memory: Memory) -> Self {
        Self::start(Address::Tcp("127.0.0.1:0".parse().unwrap()), "disk", memory).await
    }

    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn stop(mut self) {
        self.begin_stop();
        self.serving.await.unwrap();
    }

    pub async fn connect(&self) -> TcpStream {
        let Address::Tcp(address) = self.address else { panic!("not TCP") };
        TcpStream::connect(address).await.unwrap()
    }

    /// A client that has chosen the export, with simple replies.
    pub async fn client(&self) -> Raw {
        let mut stream = self.connect().await;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).await.unwrap();
        let mut said = Vec::new();
        said.put_u32(3);
        said.put_u64(0x4948_4156_454f_5054);
        said.put_u32(1);
        said.put_u32(0);
        stream.write_all(&said).await.unwrap();
        let mut about = [0; 10];
        stream.read_exact(&mut about).await.unwrap();
        Raw { stream }
    }
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

/// A client that checks nothing.
pub struct Raw {
    pub stream: TcpStream,
}

pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(0x2560_9513);
    out.put_u16(flags);
    out.put_u16(command);
    out.put_u64(cookie);
    out.put_u64(offset);
    out.put_u32(length);
    out
}

impl Raw {
    pub async fn send(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        self.stream.write_all(&request(command, 0, cookie, offset, length)).await.unwrap();
    }

    pub async fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        let whole = [&request(WRITE, 0, cookie, offset, length), data].concat();
        self.stream.write_all(&whole).await.unwrap();
    }

    /// The next reply: cookie and error number.
    pub async fn reply(&mut self) -> (u64, u32) {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).await.unwrap();
        let mut header = header.as_slice();
        assert_eq!(header.get_u32(), 0x6744_6698);
        let error = header.get_u32();
        (header.get_u64(), error)
    }

    pub async fn data(&mut self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data).await.unwrap();
        data
    }

    /// Asks one thing and returns the error number.
    pub async fn ask(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        self.stream.write_all(&request(command, flags, 1, offset, length)).await.unwrap();
        let (cookie, error) = self.reply().await;
        assert_eq!(cookie, 1);
        if command == READ && error == 0 {
            self.data(length as usize).await;
        }
        error
    }

    /// Waits for the server to close, and returns what it still said.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.stream.read_to_end(&mut rest).await;
        rest
    }
}

/// Waits until something is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in 20 s");
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
