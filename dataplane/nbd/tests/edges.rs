//! The edges of the protocol that no client library reaches: raw bytes, in every order and cut anywhere.
//!
//! Covers N1 and N3 of `docs/fault-model.md` for NBD clients.
#![allow(missing_docs, clippy::unwrap_used, reason = "test code")]

mod support;

use std::sync::atomic::Ordering;

use bytes::{Buf, BufMut};
use farshore_nbd::{Refusal, limits};
use support::{
    BLOCK_STATUS, CACHE, DISC, FLUSH, Memory, READ, Running, TRIM, WRITE, WRITE_ZEROES, request,
    until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SIZE: u64 = 1 << 20;
const EINVAL: u32 = 22;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const LIST_CONTEXTS: u32 = 9;
const SET_CONTEXTS: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(0x4948_4156_454f_5054);
    out.put_u32(number);
    out.put_u32(u32::try_from(data.len()).unwrap());
    out.put_slice(data);
    out
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(u32::try_from(text.len()).unwrap());
    out.put_slice(text.as_bytes());
    out
}

fn export(name: &str) -> Vec<u8> {
    [string(name), vec![0, 0]].concat()
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.put_u32(u32::try_from(queries.len()).unwrap());
    queries.iter().for_each(|query| out.put_slice(&string(query)));
    out
}

/// A client in the middle of its negotiation.
struct Haggling(TcpStream);

impl Haggling {
    async fn begin(server: &Running, flags: u32) -> Self {
        let mut stream = server.connect().await;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).await.unwrap();
        stream.write_all(&flags.to_be_bytes()).await.unwrap();
        Self(stream)
    }

    /// The final reply to an option, and the data of the replies before it.
    async fn ask(&mut self, number: u32, data: &[u8]) -> (u32, Vec<Vec<u8>>) {
        self.0.write_all(&option(number, data)).await.unwrap();
        let mut before = Vec::new();
        loop {
            let mut header = [0; 20];
            self.0.read_exact(&mut header).await.unwrap();
            let mut header = header.as_slice();
            assert_eq!(header.get_u64(), 0x0003_e889_0455_65a9);
            assert_eq!(header.get_u32(), number);
            let (kind, length) = (header.get_u32(), header.get_u32());
            let mut data = vec![0; length as usize];
            self.0.read_exact(&mut data).await.unwrap();
            if kind == ACK || kind & 1 << 31 != 0 {
                return (kind, before);
            }
            before.push(data);
        }
    }

    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.0.read_to_end(&mut rest).await;
        rest
    }

    /// Whether a query of block status is answered with extents, when transmission has begun.
    async fn has_status(&mut self, is_structured: bool) -> bool {
        self.0.write_all(&request(BLOCK_STATUS, 0, 5, 0, 4096)).await.unwrap();
        if !is_structured {
            let mut simple = [0; 16];
            self.0.read_exact(&mut simple).await.unwrap();
            assert_eq!(simple[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22]);
            return false;
        }
        let mut header = [0; 20];
        self.0.read_exact(&mut header).await.unwrap();
        let (kind, length) =
            (u16::from_be_bytes([header[6], header[7]]), header[16..].as_ref().get_u32());
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        assert!(kind == 5 || payload[..4] == EINVAL.to_be_bytes(), "kind {kind}");
        kind == 5
    }
}

fn orders(of: &[u32]) -> Vec<Vec<u32>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (index, first) in of.iter().enumerate() {
        let rest = [&of[..index], &of[index + 1..]].concat();
        all.extend(orders(&rest).into_iter().map(|order| [vec![*first], order].concat()));
    }
    all
}

#[tokio::test]
async fn options_in_every_order_agree_on_what_they_should() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut with_status = 0;
    for order in orders(&[LIST, INFO, STRUCTURED, LIST_CONTEXTS, SET_CONTEXTS]) {
        let mut client = Haggling::begin(&server, 3).await;
        let (mut is_structured, mut is_set) = (false, false);
        for number in &order {
            let query = contexts("disk", &["base:allocation"]);
            let (data, expected) = match *number {
                LIST => (Vec::new(), ACK),
                INFO => (export(""), ACK),
                STRUCTURED => {
                    is_structured = true;
                    (Vec::new(), ACK)
                }
                // Contexts come with structured replies only.
                _ if !is_structured => (query, ERR_INVALID),
                number => {
                    is_set |= number == SET_CONTEXTS;
                    (query, ACK)
                }
            };
            assert_eq!(client.ask(*number, &data).await.0, expected, "{number} in {order:?}");
        }
        assert_eq!(client.ask(GO, &export("disk")).await.0, ACK);
        assert_eq!(client.has_status(is_structured).await, is_set, "{order:?}");
        with_status += usize::from(is_set);
    }
    assert_eq!(with_status, 60, "in half of the 120 orders");
    server.stop().await;
}

/// What is set one after the other, the answers, and whether there is block status then.
type Sets<'a> = (&'a [&'a [u8]], &'a [u32], bool);

#[tokio::test]
async fn the_last_choice_of_contexts_counts() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let base = contexts("disk", &["base:allocation"]);
    let cases: [Sets<'_>; 5] = [
        (&[&base, &base], &[ACK, ACK], true),
        (&[&base, &contexts("disk", &[])], &[ACK, ACK], false),
        (&[&base, &contexts("disk", &["qemu:x"])], &[ACK, ACK], false),
        (&[&base, &contexts("other", &["base:allocation"])], &[ACK, ERR_UNKNOWN], false),
        (&[&base, b"nonsense"], &[ACK, ERR_INVALID], false),
    ];
    for (sets, answers, has_status) in cases {
        let mut client = Haggling::begin(&server, 3).await;
        // Twice is as good as once.
        for _ in 0..2 {
            assert_eq!(client.ask(STRUCTURED, &[]).await.0, ACK);
        }
        for (set, answer) in sets.iter().zip(answers) {
            assert_eq!(client.ask(SET_CONTEXTS, set).await.0, *answer);
        }
        assert_eq!(client.ask(GO, &export("")).await.0, ACK);
        assert_eq!(client.has_status(true).await, has_status);
    }
    server.stop().await;
}

#[tokio::test]
async fn options_that_are_not_here_are_refused_and_nothing_changes() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = Haggling::begin(&server, 3).await;
    let big = vec![0xee; limits::OPTION_BYTES_MAX as usize];
    let before = server.counters.refused(Refusal::OptionUnsupported);
    let unknown = [0, 4, STARTTLS, EXTENDED_HEADERS, 12, 255, 1 << 31, u32::MAX];
    for number in unknown {
        for data in [&[][..], b"x", &big] {
            assert_eq!(client.ask(number, data).await.0, ERR_UNSUP, "option {number}");
        }
    }
    let after = server.counters.refused(Refusal::OptionUnsupported);
    assert_eq!(after - before, 3 * unknown.len() as u64);
    // Extended headers were not agreed on: structured replies and short requests still are.
    assert_eq!(client.ask(STRUCTURED, &[]).await.0, ACK);
    assert_eq!(client.ask(GO, &export("disk")).await.0, ACK);
    client.0.write_all(&request(READ, 0, 9, 0, 512)).await.unwrap();
    let mut header = [0; 20];
    client.0.read_exact(&mut header).await.unwrap();
    assert_eq!(header[..4], [0x66, 0x8e, 0x33, 0xef]);
    server.stop().await;
}

#[tokio::test]
async fn an_option_too_long_ends_the_connection_before_its_data_is_read() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    for length in [limits::OPTION_BYTES_MAX + 1, 1 << 20, u32::MAX] {
        for number in [GO, LIST, EXTENDED_HEADERS, 77] {
            let mut client = Haggling::begin(&server, 3).await;
            let mut head = option(number, &[]);
            head[12..].copy_from_slice(&length.to_be_bytes());
            client.0.write_all(&head).await.unwrap();
            assert!(client.rest().await.is_empty());
        }
    }
    assert_eq!(server.counters.refused(Refusal::OptionTooLong), 12);
    server.stop().await;
}

#[tokio::test]
async fn handshake_flags_are_those_offered_or_the_end() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    for flags in 0..4 {
        let mut client = Haggling::begin(&server, flags).await;
        client.0.write_all(&option(EXPORT_NAME, b"disk")).await.unwrap();
        let zeroes = if flags & 2 == 0 { 124 } else { 0 };
        let mut about = vec![0; 10 + zeroes];
        client.0.read_exact(&mut about).await.unwrap();
        assert_eq!(about[..8], SIZE.to_be_bytes());
        client.0.write_all(&request(READ, 0, 3, 0, 512)).await.unwrap();
        let mut reply = [0; 16 + 512];
        client.0.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    }
    for bit in 2..32 {
        let mut client = Haggling::begin(&server, 3 | 1 << bit).await;
        assert!(client.rest().await.is_empty(), "bit {bit}");
    }
    assert_eq!(server.counters.refused(Refusal::ClientFlagsUnknown), 30);
    server.stop().await;
}

#[tokio::test]
async fn an_abort_is_acknowledged_and_the_end_at_any_time() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let said: [&[u32]; 4] = [&[], &[STRUCTURED], &[STRUCTURED, LIST], &[LIST, LIST, STRUCTURED]];
    for options in said {
        let mut client = Haggling::begin(&server, 3).await;
        for number in options {
            assert_eq!(client.ask(*number, &[]).await.0, ACK);
        }
        assert_eq!(client.ask(ABORT, &[]).await.0, ACK);
        // Nothing of what comes behind it is answered.
        let _ = client.0.write_all(&option(LIST, &[])).await;
        assert!(client.rest().await.is_empty());
    }
    server.stop().await;
}

#[tokio::test]
async fn cookies_come_back_as_they_are() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    for cookie in [0, 1, u64::MAX, 1 << 63, 0x2560_9513_6744_6698] {
        for (command, offset) in [(READ, 0), (TRIM, 0), (READ, SIZE), (WRITE_ZEROES, SIZE)] {
            client.send(command, cookie, offset, 512).await;
            let (answered, error) = client.reply().await;
            assert_eq!(answered, cookie);
            if command == READ && error == 0 {
                client.data(512).await;
            }
        }
    }
    // The same one on many requests at once is the client's business: each is answered.
    server.memory.held_from.store(0, Ordering::SeqCst);
    for _ in 0..10 {
        client.send(TRIM, 7, 0, 512).await;
    }
    until("all begin", || server.memory.now() == 10).await;
    server.memory.gate.add_permits(10);
    for _ in 0..10 {
        assert_eq!(client.reply().await, (7, 0));
    }
    server.stop().await;
}

#[tokio::test]
async fn unknown_commands_are_invalid_whatever_else_they_say() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    for command in [8, 9, 100, 0x7fff, 0xfffe, 0xffff] {
        for flags in [0, 1, 0xffff] {
            for (offset, length) in [(0, 0), (0, 512), (u64::MAX, u32::MAX)] {
                assert_eq!(client.ask(command, flags, offset, length).await, EINVAL);
            }
        }
    }
    assert_eq!(server.counters.refused(Refusal::CommandUnknown), 54);
    assert_eq!(client.ask(READ, 0, 0, 512).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_flush_has_no_range() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    for (offset, length) in [(0, 1), (1, 0), (512, 512), (u64::MAX, u32::MAX)] {
        assert_eq!(client.ask(FLUSH, 0, offset, length).await, EINVAL);
    }
    assert_eq!(server.memory.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).await, 0);
    assert_eq!(server.memory.flushes.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_read_behind_a_goodbye() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    let mut said = request(DISC, 0xffff, 1, 77, 77);
    said.extend(request(WRITE, 0, 2, 0, 512));
    said.extend([9; 512]);
    client.stream.write_all(&said).await.unwrap();
    assert!(client.rest().await.is_empty());
    assert_eq!(server.memory.allocated_blocks(), 0);
    assert_eq!(server.counters.requests.load(Ordering::Relaxed), 0);
    server.stop().await;
}

/// A whole conversation: options, then a write, a hint, a read and a goodbye.
fn conversation() -> Vec<u8> {
    let mut said = 3_u32.to_be_bytes().to_vec();
    said.extend(option(LIST, &[]));
    said.extend(option(STRUCTURED, &[]));
    said.extend(option(SET_CONTEXTS, &contexts("disk", &["base:allocation"])));
    said.extend(option(GO, &export("disk")));
    said.extend(request(WRITE, 1, 1, 4096, 512));
    said.extend([9; 512]);
    said.extend(request(CACHE, 0, 2, 0, 4096));
    said.extend(request(READ, 0, 3, 4096, 512));
    said.extend(request(DISC, 0, 4, 0, 0));
    said
}

#[tokio::test]
async fn a_conversation_may_come_in_any_pieces() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let said = conversation();
    let mut heard = Vec::new();
    for piece in [1, 7, 61, said.len()] {
        let mut stream = server.connect().await;
        stream.set_nodelay(true).unwrap();
        for part in said.chunks(piece) {
            stream.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        heard.push(all);
    }
    assert!(heard[0].ends_with(&[9; 512]));
    assert!(heard.iter().all(|all| *all == heard[0]));
    server.stop().await;
}

/// N1: wherever the connection ends, a request is done whole or not at all, and the place is free.
#[tokio::test]
async fn a_conversation_may_end_at_any_byte() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let said = conversation();
    let write_end = said.len() - 3 * 28;
    for end in 0..said.len() {
        server.memory.fill(4096, &[0; 512]);
        let mut stream = server.connect().await;
        stream.write_all(&said[..end]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        let is_written = server.memory.bytes()[4096..4096 + 512] == [9; 512];
        assert_eq!(is_written, end >= write_end, "cut at {end}");
    }
    let open = || server.counters.connections_open.load(Ordering::Relaxed);
    until("every place is free", || open() == 0).await;
    let mut other = server.client().await;
    assert_eq!(other.ask(READ, 0, 0, 512).await, 0);
    server.stop().await;
}

/// N3: one flipped bit in what a client says is refused, or is another thing that clients may say.
#[tokio::test]
async fn a_conversation_with_a_flipped_bit_harms_nobody() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let said = conversation();
    for bit in (0..said.len() * 8).step_by(3) {
        let mut bad = said.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut stream = server.connect().await;
        // The server may have hung up before all of it is sent.
        let _ = stream.write_all(&bad).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let open = || server.counters.connections_open.load(Ordering::Relaxed);
    until("every place is free", || open() == 0).await;
    // What a write may have changed is its own block or another whole one.
    let bytes = server.memory.bytes();
    for sector in bytes.chunks(512) {
        let is_whole =
            sector.iter().all(|byte| *byte == 0) || sector.iter().filter(|b| **b != 9).count() <= 1;
        assert!(is_whole);
    }
    assert_eq!(server.client().await.ask(READ, 0, 0, 512).await, 0);
    server.stop().await;
}
