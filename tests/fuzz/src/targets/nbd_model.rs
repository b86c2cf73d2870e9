//! What an NBD server with one small disk must answer, written from the protocol document and apart
//! from the server: walks through what the client said and takes the answers off what was heard.
//!
//! Of a request with several faults any one may be told.

use super::nbd::{DISK_BYTES, NAME};
use crate::taken;
use bytes::Buf;

pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
const OPTION_BYTES_MAX: usize = 16 << 10;
const PAYLOAD_BYTES_MAX: usize = 32 << 20;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERR_UNSUP: u32 = 1 << 31 | 1;
const ERR_INVALID: u32 = 1 << 31 | 3;
const ERR_UNKNOWN: u32 = 1 << 31 | 6;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

/// Checks a conversation and what the disk holds after it.
pub(super) fn check(said: &[u8], heard: &[u8], disk: &[u8]) {
    let mut model =
        Model { said, heard, disk: vec![0; DISK_BYTES], structured: false, status: false };
    model.conversation();
    assert!(model.heard.is_empty(), "{} bytes that answer nothing", model.heard.len());
    assert!(model.disk == disk, "the disk differs");
}

struct Model<'a> {
    said: &'a [u8],
    heard: &'a [u8],
    disk: Vec<u8>,
    structured: bool,
    status: bool,
}

#[derive(Clone, Copy)]
struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: usize,
}

/// The next bytes of what the client said; `None` if it hung up before.
fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(taken)
}

fn text<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(from, 4)?.get_u32() as usize;
    take(from, length)
}

fn is_export(name: &[u8]) -> bool {
    name.is_empty() || name == NAME.as_bytes()
}

impl Model<'_> {
    fn must_hear(&mut self, count: usize) -> &[u8] {
        take(&mut self.heard, count).expect("the server hung up in the middle of an answer")
    }

    fn conversation(&mut self) -> Option<()> {
        assert_eq!(self.must_hear(18), b"NBDMAGICIHAVEOPT\x00\x03");
        let flags = take(&mut self.said, 4)?.get_u32();
        if flags & !3 != 0 {
            return None;
        }
        while !self.option(flags & 2 != 0)? {}
        loop {
            self.request()?;
        }
    }

    /// One option; whether transmission begins.
    fn option(&mut self, no_zeroes: bool) -> Option<bool> {
        let mut header = take(&mut self.said, 16)?;
        if header.get_u64() != OPTION_MAGIC {
            return None;
        }
        let (option, length) = (header.get_u32(), header.get_u32() as usize);
        if length > OPTION_BYTES_MAX {
            return None;
        }
        let data = take(&mut self.said, length)?;
        match option {
            1 => {
                is_export(data).then_some(())?;
                let about = self.about();
                let zeroes = if no_zeroes { 0 } else { 124 };
                let answer = [about, vec![0; zeroes]].concat();
                assert_eq!(self.must_hear(answer.len()), answer);
                return Some(true);
            }
            2 => {
                self.must_reply(option, ACK, Some(b""));
                return None;
            }
            3 if data.is_empty() => {
                let server = [&[0, 0, 0, 4], NAME.as_bytes()].concat();
                self.must_reply(option, SERVER, Some(&server));
                self.must_reply(option, ACK, Some(b""));
            }
            6 | 7 => match about_of(data) {
                None => self.must_reply(option, ERR_INVALID, None),
                Some((name, _)) if !is_export(name) => self.must_reply(option, ERR_UNKNOWN, None),
                Some((_, wants_name)) => {
                    let about = [vec![0, 0], self.about()].concat();
                    self.must_reply(option, INFO, Some(&about));
                    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0];
                    self.must_reply(option, INFO, Some(&sizes));
                    if wants_name {
                        self.must_reply(option, INFO, Some(&[&[0, 1], NAME.as_bytes()].concat()));
                    }
                    self.must_reply(option, ACK, Some(b""));
                    return Some(option == 7);
                }
            },
            8 if data.is_empty() => {
                self.structured = true;
                self.must_reply(option, ACK, Some(b""));
            }
            9 | 10 => self.contexts(option, data),
            3 | 8 => self.must_reply(option, ERR_INVALID, None),
            _ => self.must_reply(option, ERR_UNSUP, None),
        }
        Some(false)
    }

    /// Size and flags of the export.
    fn about(&self) -> Vec<u8> {
        let flags: u16 = if self.structured { 0b1101_1110_1101 } else { 0b1101_0110_1101 };
        [(DISK_BYTES as u64).to_be_bytes().to_vec(), flags.to_be_bytes().to_vec()].concat()
    }

    fn contexts(&mut self, option: u32, data: &[u8]) {
        let sets = option == 10;
        self.status &= !sets;
        let asked = if self.structured { queries_of(data) } else { None };
        match asked {
            None => self.must_reply(option, ERR_INVALID, None),
            Some((name, _)) if !is_export(name) => self.must_reply(option, ERR_UNKNOWN, None),
            Some((_, queries)) => {
                let is_asked = queries.contains(&&b"base:allocation"[..])
                    || !sets && (queries.is_empty() || queries.contains(&&b"base:"[..]));
                if is_asked {
                    let id = [0, 0, 0, u8::from(sets)];
                    let found = [&id[..], b"base:allocation"].concat();
                    self.must_reply(option, META_CONTEXT, Some(&found));
                    self.status |= sets;
                }
                self.must_reply(option, ACK, Some(b""));
            }
        }
    }

    /// The next reply to an option; without `data` it is an error with a text for people.
    fn must_reply(&mut self, option: u32, kind: u32, data: Option<&[u8]>) {
        let mut header = self.must_hear(20);
        assert_eq!(header.get_u64(), 0x0003_e889_0455_65a9);
        assert_eq!((header.get_u32(), header.get_u32()), (option, kind));
        let length = header.get_u32() as usize;
        let found = self.must_hear(length);
        match data {
            Some(data) => assert_eq!(found, data),
            None => assert!(std::str::from_utf8(found).is_ok(), "a text for people"),
        }
    }

    fn request(&mut self) -> Option<()> {
        let mut header = take(&mut self.said, 28)?;
        if header.get_u32() != REQUEST_MAGIC {
            return None;
        }
        let request = Request {
            flags: header.get_u16(),
            command: header.get_u16(),
            cookie: header.get_u64(),
            offset: header.get_u64(),
            length: header.get_u32() as usize,
        };
        let mut payload: &[u8] = &[];
        match request.command {
            DISC => return None,
            WRITE if request.length > PAYLOAD_BYTES_MAX => return None,
            WRITE => payload = take(&mut self.said, request.length)?,
            _ => {}
        }
        let faults = self.faults(request);
        if faults.is_empty() {
            self.must_do(request, payload);
            taken();
        } else {
            self.must_fail(request, &faults);
        }
        Some(())
    }

    /// Every error number that fits the request.
    fn faults(&self, request: Request) -> Vec<u32> {
        let Request { flags, command, offset, length, .. } = request;
        let mut faults = Vec::new();
        let mut fault = |is: bool, number: u32| {
            if is {
                faults.push(number);
            }
        };
        let known = match command {
            READ if self.structured => FUA | DF,
            WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
            BLOCK_STATUS => FUA | REQ_ONE,
            _ => FUA,
        };
        fault(flags & !known != 0, EINVAL);
        match command {
            FLUSH => fault(offset != 0 || length != 0, EINVAL),
            READ | WRITE | TRIM | CACHE | WRITE_ZEROES | BLOCK_STATUS => {
                let is_past =
                    offset.checked_add(length as u64).is_none_or(|end| end > DISK_BYTES as u64);
                let takes_space = matches!(command, WRITE | WRITE_ZEROES);
                fault(is_past, if takes_space { ENOSPC } else { EINVAL });
                fault(!offset.is_multiple_of(512) || !length.is_multiple_of(512), EINVAL);
                fault(command == READ && length > PAYLOAD_BYTES_MAX, EOVERFLOW);
                fault(command == BLOCK_STATUS && (!self.status || length == 0), EINVAL);
                fault(flags & FAST_ZERO != 0 && command == WRITE_ZEROES && length > 0, ENOTSUP);
            }
            _ => fault(true, EINVAL),
        }
        faults
    }

    fn must_fail(&mut self, request: Request, faults: &[u32]) {
        let number = if self.structured {
            let (kind, is_last, mut payload) = self.chunk(request.cookie);
            assert_eq!((kind, is_last), (1 << 15 | 1, true));
            let (number, length) = (payload.get_u32(), usize::from(payload.get_u16()));
            assert_eq!(payload.len(), length, "a text for people");
            number
        } else {
            self.simple(request.cookie)
        };
        let command = request.command;
        assert!(faults.contains(&number), "command {command} got {number}, not one of {faults:?}");
    }

    /// A simple reply; its error number.
    fn simple(&mut self, cookie: u64) -> u32 {
        let mut header = self.must_hear(16);
        assert_eq!(header.get_u32(), 0x6744_6698);
        let number = header.get_u32();
        assert_eq!(header.get_u64(), cookie);
        number
    }

    /// A chunk of a structured reply: its type, whether it is the last, its payload.
    fn chunk(&mut self, cookie: u64) -> (u16, bool, &[u8]) {
        let mut header = self.must_hear(20);
        assert_eq!(header.get_u32(), 0x668e_33ef);
        let (flags, kind) = (header.get_u16(), header.get_u16());
        assert!(flags < 2);
        assert_eq!(header.get_u64(), cookie);
        let length = header.get_u32() as usize;
        (kind, flags == 1, self.must_hear(length))
    }

    fn must_do(&mut self, request: Request, payload: &[u8]) {
        let range = match usize::try_from(request.offset) {
            Ok(start) => start..start + request.length,
            Err(_) => unreachable!("a range without fault lies on the disk"),
        };
        match request.command {
            READ if self.structured => {
                let read = self.read_in_chunks(request);
                assert!(read == self.disk[range], "another content");
                return;
            }
            READ => {
                assert_eq!(self.simple(request.cookie), 0);
                let length = request.length;
                let read = self.must_hear(length).to_vec();
                assert!(read == self.disk[range], "another content");
                return;
            }
            BLOCK_STATUS => return self.must_tell_extents(request, range.start),
            WRITE => self.disk[range].copy_from_slice(payload),
            TRIM | WRITE_ZEROES => self.disk[range].fill(0),
            _ => {}
        }
        assert_eq!(self.simple(request.cookie), 0);
    }

    fn read_in_chunks(&mut self, request: Request) -> Vec<u8> {
        let mut read = Vec::new();
        let mut contents = 0;
        loop {
            let (kind, is_last, mut payload) = self.chunk(request.cookie);
            match kind {
                0 => assert!(is_last && payload.is_empty()),
                1 => {
                    assert_eq!(payload.get_u64(), request.offset + read.len() as u64);
                    assert!(!payload.is_empty());
                    read.extend_from_slice(payload);
                }
                2 => {
                    assert_eq!(payload.get_u64(), request.offset + read.len() as u64);
                    let length = payload.get_u32() as usize;
                    assert!(length > 0 && payload.is_empty());
                    read.resize(read.len() + length, 0);
                }
                other => panic!("chunk of type {other} in a read"),
            }
            contents += usize::from(kind != 0);
            if is_last {
                break;
            }
        }
        assert_eq!(read.len(), request.length);
        assert!(request.flags & DF == 0 || contents <= 1, "in pieces against the client's will");
        read
    }

    fn must_tell_extents(&mut self, request: Request, start: usize) {
        let (kind, is_last, mut payload) = self.chunk(request.cookie);
        assert_eq!((kind, is_last), (5, true));
        let mut extents = Vec::new();
        assert_eq!(payload.get_u32(), 1);
        while payload.has_remaining() {
            extents.push((payload.get_u32() as usize, payload.get_u32()));
        }
        assert!(!extents.is_empty());
        assert!(request.flags & REQ_ONE == 0 || extents.len() == 1);
        let mut at = start;
        for (length, state) in extents {
            assert!(length > 0 && at + length <= start + request.length);
            let is_zero = self.disk[at..at + length].iter().all(|byte| *byte == 0);
            assert!(state == 0 || state == 3 && is_zero, "zeroes that are none");
            at += length;
        }
    }
}

/// Name of the export, and whether its name is wanted; nothing if the data make no sense.
fn about_of(mut data: &[u8]) -> Option<(&[u8], bool)> {
    let name = text(&mut data)?;
    let count = usize::from(take(&mut data, 2)?.get_u16());
    (data.len() == count * 2).then_some(())?;
    Some((name, data.chunks(2).any(|info| info == [0, 1])))
}

/// Name of the export, and the queries; nothing if the data make no sense.
fn queries_of(mut data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let name = text(&mut data)?;
    let count = take(&mut data, 4)?.get_u32();
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(text(&mut data)?);
    }
    data.is_empty().then_some((name, queries))
}
