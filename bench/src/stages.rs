//! Each stage of the node alone, on one thread, with the functions that the node uses.
//!
//! A stage gets its input ready-made and drops its output; only its own thread's CPU time counts. Chunks
//! that come again are cut and hashed again, but compressed, sealed and put once, as the node does. What
//! is not here is what the node adds: looking chunks up, waiting, waking, copying from one stage to the next.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use farshore_codec::journal::JournalSealer;
use farshore_codec::seal::{Domain, Purpose, Sealer};
use farshore_codec::{ChunkHasher, Chunker, Compressor, DataKey, RootKey, VaultKeys, zero};
use farshore_proto::frame::FrameHeader;
use farshore_proto::journal::GroupSize;
use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, JOURNAL_GROUP_HEADER_BYTES,
    SEGMENT_FRAME_BYTES,
};
use farshore_proto::{KeyNumber, LogId, Seq, VaultId};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConnection, RootCertStore, ServerConnection, StreamOwned};

use crate::cpu;

/// zstd level of new chunks, as nodes have it by default.
const LEVEL: i32 = 1;
/// Frames of one group of the journal, about.
const GROUP_BYTES: usize = 1 << 20;
/// Neighbouring blocks that are cut in one go.
const RUN: usize = 4 << 20;
/// Bytes of one segment.
const SEGMENT: usize = 32 << 20;
const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const PAGE: usize = 4096;

/// What a stage took for all the data.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) cpu: Duration,
}

/// The blocks of an image that are not zero, one after the other: zeros are not sent.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn data_of(image: &Path) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let mut file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let mut piece = vec![0; SEGMENT];
    loop {
        let count = read_full(&mut file, &mut piece)?;
        for block in piece[..count].chunks_exact(BLOCK_BYTES) {
            if !zero::is_zero(block) {
                data.extend_from_slice(block);
            }
        }
        if count < piece.len() {
            return Ok(data);
        }
    }
}

fn read_full(from: &mut impl Read, piece: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match from.read(&mut piece[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Runs every stage; also says how many bytes are in chunks that differ.
///
/// # Errors
/// If one cannot do its work.
pub(crate) fn all(data: &[u8], folder: &Path) -> Result<(Vec<Stage>, u64)> {
    let keys = VaultKeys::derive(&RootKey::from_bytes([1; 32]), VAULT);
    let chunker = Chunker::new(&keys.chunk_key);
    let hasher = ChunkHasher::new(keys.id_key);
    let chunks: Vec<&[u8]> =
        data.chunks(RUN).flat_map(|run| chunker.cut(run).map(|range| &run[range])).collect();
    let mut ids = HashSet::new();
    let unique: Vec<&[u8]> =
        chunks.iter().copied().filter(|chunk| ids.insert(hasher.id(chunk))).collect();
    let unique = unique.concat();
    let packed = pack(&unique)?;
    let stages = [
        ("receive: TCP and TLS", receive(data)?),
        ("check: CRC32C of frames", check(data)?),
        ("journal: gather and seal", journal_seal(data)?),
        ("journal: write past the cache, sync", journal_write(data.len(), folder)?),
        ("zeros and cuts", timed(|| cut(data, &chunker))?),
        ("hash: BLAKE3 of chunks", timed(|| hash(&chunks, &hasher))?),
        ("compress: zstd 1", timed(|| compress(&unique))?),
        ("seal: AES-256-GCM", seal(&packed)?),
        ("put: write and sync segments", put(&packed, folder)?),
    ];
    let stages = stages.map(|(name, cpu)| Stage { name, cpu }).into();
    Ok((stages, unique.len() as u64))
}

fn key() -> DataKey {
    DataKey::from_bytes([7; 32])
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let before = cpu::of_thread();
    work()?;
    Ok(cpu::of_thread() - before)
}

/// Takes the bytes from a TLS 1.3 connection over loopback.
fn receive(data: &[u8]) -> Result<Duration> {
    let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()])?;
    let certificate = made.cert.der().clone();
    let private = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|why| anyhow::anyhow!("a key: {why}"))?;
    let mut server =
        rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], private)?;
    // As nodes do; unread ones would reset the connection at its end.
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let client = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<Duration> {
            let (socket, _) = listener.accept()?;
            let tls = ServerConnection::new(Arc::new(server))?;
            let mut stream = StreamOwned::new(tls, socket);
            let mut body = vec![0; FRAME_BODY_BYTES_MAX];
            timed(|| {
                while stream.read(&mut body)? > 0 {}
                Ok(())
            })
        });
        let name = ServerName::try_from("node")?;
        let tls = ClientConnection::new(Arc::new(client), name)?;
        let mut stream = StreamOwned::new(tls, TcpStream::connect(address)?);
        stream.write_all(data)?;
        stream.conn.send_close_notify();
        stream.flush()?;
        drop(stream);
        receiving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?
    })
}

fn frames(data: &[u8]) -> impl Iterator<Item = ([u8; FRAME_HEADER_BYTES], &[u8])> {
    data.chunks(FRAME_BODY_BYTES_MAX).enumerate().map(|(number, body)| {
        let number = number as u64;
        let block = number * (FRAME_BODY_BYTES_MAX / BLOCK_BYTES) as u64;
        (FrameHeader::write(Seq(number + 1), block, body).encode(), body)
    })
}

fn check(data: &[u8]) -> Result<Duration> {
    let frames: Vec<_> = frames(data).collect();
    timed(|| {
        for (header, body) in frames {
            FrameHeader::decode(&header)?.check_body(body)?;
        }
        Ok(())
    })
}

fn journal_seal(data: &[u8]) -> Result<Duration> {
    let mut sealer = JournalSealer::create(VAULT, LOG, 0, &key(), KeyNumber(1))?;
    let mut disk = vec![0; JournalSealer::disk_bytes(GROUP_BYTES)];
    timed(|| {
        for group in data.chunks(GROUP_BYTES) {
            let bytes = JournalSealer::disk_bytes(group.len());
            let start = JOURNAL_GROUP_HEADER_BYTES;
            disk[start..start + group.len()].copy_from_slice(group);
            let size = GroupSize { entries: 1, bytes: group.len() };
            sealer.seal_group(size, &mut disk[..bytes])?;
        }
        Ok(())
    })
}

fn journal_write(bytes: usize, folder: &Path) -> Result<Duration> {
    let path = folder.join("journal");
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits())?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(direct)
        .open(&path)?;
    let group = JournalSealer::disk_bytes(GROUP_BYTES).next_multiple_of(PAGE);
    let store = vec![5; group + PAGE];
    let skip = store.as_ptr().align_offset(PAGE);
    let group = &store[skip..skip + group];
    let cpu = timed(|| {
        for number in 0..bytes.div_ceil(GROUP_BYTES) {
            file.write_all_at(group, (number * group.len()) as u64)?;
            file.sync_data()?;
        }
        Ok(())
    })?;
    std::fs::remove_file(path)?;
    Ok(cpu)
}

fn cut(data: &[u8], chunker: &Chunker) -> Result<()> {
    for run in data.chunks(RUN) {
        for piece in zero::pieces(run).filter(|piece| !piece.is_zero) {
            std::hint::black_box(chunker.cut(&run[piece.range]).count());
        }
    }
    Ok(())
}

fn hash(chunks: &[&[u8]], hasher: &ChunkHasher) -> Result<()> {
    for chunk in chunks {
        std::hint::black_box(hasher.id(chunk));
    }
    Ok(())
}

/// Into memory that is there, as most of a segment's is.
fn compress(unique: &[u8]) -> Result<()> {
    let mut compressor = Compressor::new(LEVEL);
    let mut out = Vec::new();
    for raw in unique.chunks(SEGMENT_FRAME_BYTES) {
        out.clear();
        compressor.compress(raw, &mut out)?;
    }
    Ok(())
}

fn pack(unique: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut compressor = Compressor::new(LEVEL);
    let pack = |raw| -> Result<Vec<u8>> {
        let mut out = Vec::new();
        compressor.compress(raw, &mut out)?;
        Ok(out)
    };
    unique.chunks(SEGMENT_FRAME_BYTES).map(pack).collect()
}

fn seal(packed: &[Vec<u8>]) -> Result<Duration> {
    let mut sealer = Sealer::draw(&key(), Purpose::Object, &[b"bench"])?;
    let mut buffer = Vec::new();
    timed(|| {
        for frame in packed {
            buffer.clear();
            buffer.extend_from_slice(frame);
            std::hint::black_box(sealer.seal_slice(Domain::Frame, b"", &mut buffer)?);
        }
        Ok(())
    })
}

fn put(packed: &[Vec<u8>], folder: &Path) -> Result<Duration> {
    let path = folder.join("segment");
    let cpu = timed(|| {
        let mut file = File::create(&path)?;
        let mut written = 0;
        for frame in packed {
            file.write_all(frame)?;
            written += frame.len();
            if written >= SEGMENT {
                file.sync_all()?;
                (file, written) = (File::create(&path)?, 0);
            }
        }
        Ok(file.sync_all()?)
    })?;
    std::fs::remove_file(path)?;
    Ok(cpu)
}
