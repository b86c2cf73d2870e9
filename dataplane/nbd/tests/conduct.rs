//! How the server conducts itself towards clients that are fast, slow, wrong or gone.
#![allow(missing_docs, reason = "test code")]

mod support;

use std::sync::atomic::Ordering;

use farshore_nbd::{Refusal, limits};
use support::{
    BLOCK_STATUS, CACHE, DISC, FAILS, FLUSH, FULL, LIES, Memory, PANICS, READ, Running, TRIM,
    WRITE, WRITE_ZEROES, request, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: u64 = 1 << 20;
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

#[tokio::test]
async fn carries_out_every_command() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    client.write(1, 8192, &[7; 8192]).await;
    assert_eq!(client.reply().await, (1, 0));
    client.send(READ, 2, 4096, 8192).await;
    assert_eq!(client.reply().await, (2, 0));
    assert_eq!(client.data(8192).await, [vec![0; 4096], vec![7; 4096]].concat());
    assert_eq!(client.ask(WRITE_ZEROES, 1, 8192, 4096).await, 0);
    assert_eq!(server.memory.durable_writes.load(Ordering::SeqCst), 1);
    assert_eq!(server.memory.allocated_blocks(), 1);
    assert_eq!(client.ask(WRITE_ZEROES, 2, 8192, 4096).await, 0);
    assert_eq!(server.memory.allocated_blocks(), 2);
    assert_eq!(client.ask(TRIM, 0, 0, 1 << 20).await, 0);
    assert_eq!(server.memory.allocated_blocks(), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).await, 0);
    assert_eq!(client.ask(FLUSH, 1, 0, 0).await, 0);
    assert_eq!(server.memory.flushes.load(Ordering::SeqCst), 2);
    assert_eq!(client.ask(CACHE, 0, 0, 1 << 20).await, 0);
    assert_eq!(client.ask(READ, 0, SIZE, 0).await, 0);
    client.send(DISC, 9, 0, 0).await;
    assert!(client.rest().await.is_empty());
    assert_eq!(server.counters.requests.load(Ordering::Relaxed), 9);
    assert_eq!(server.counters.written_bytes.load(Ordering::Relaxed), 8192);
    assert_eq!(server.counters.read_bytes.load(Ordering::Relaxed), 8192);
    server.stop().await;
}

#[tokio::test]
async fn refuses_by_name_and_goes_on() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    let big = limits::PAYLOAD_BYTES_MAX + 512;
    let cases = [
        (READ, 0, SIZE, 512, EINVAL, Refusal::ReadPastEnd),
        (READ, 0, u64::MAX, 512, EINVAL, Refusal::ReadPastEnd),
        (READ, 0, 0, big, EOVERFLOW, Refusal::ReadTooLong),
        (READ, 4, 0, 512, EINVAL, Refusal::FlagUnknown),
        (READ, 0, 1, 512, EINVAL, Refusal::Misaligned),
        (TRIM, 0, SIZE - 512, 1024, EINVAL, Refusal::ReadPastEnd),
        (WRITE_ZEROES, 0, SIZE - 512, 1024, ENOSPC, Refusal::WritePastEnd),
        (WRITE_ZEROES, 16, 0, 512, ENOTSUP, Refusal::ZeroingNotFast),
        (WRITE_ZEROES, 0x8000, 0, 512, EINVAL, Refusal::FlagUnknown),
        (BLOCK_STATUS, 0, 0, 512, EINVAL, Refusal::StatusNotAgreed),
        (FLUSH, 0, 512, 512, EINVAL, Refusal::FlushNotBare),
        (999, 0, 0, 512, EINVAL, Refusal::CommandUnknown),
    ];
    for (command, flags, offset, length, errno, refusal) in cases {
        let before = server.counters.refused(refusal);
        assert_eq!(client.ask(command, flags, offset, length).await, errno, "{refusal:?}");
        assert_eq!(server.counters.refused(refusal), before + 1);
    }
    // The data of a refused write are not taken for requests.
    client.write(5, SIZE - 512, &[0xab; 70_144]).await;
    assert_eq!(client.reply().await, (5, ENOSPC));
    client.write(6, 1, &[0xab; 512]).await;
    assert_eq!(client.reply().await, (6, EINVAL));
    assert_eq!(client.ask(READ, 0, 0, 512).await, 0);
    assert_eq!(server.memory.allocated_blocks(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_read_only_disk_takes_no_change() {
    let server = Running::tcp(Memory::new(SIZE).read_only()).await;
    let mut client = server.client().await;
    client.write(1, 0, &[1; 512]).await;
    assert_eq!(client.reply().await, (1, EPERM));
    assert_eq!(client.ask(TRIM, 0, 0, 512).await, EPERM);
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 512).await, EPERM);
    assert_eq!(client.ask(READ, 0, 0, 512).await, 0);
    assert_eq!(server.counters.refused(Refusal::ReadOnly), 3);
    server.stop().await;
}

#[tokio::test]
async fn tells_the_backends_errors_and_survives_its_bugs() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    assert_eq!(client.ask(READ, 0, FAILS, 512).await, EIO);
    client.write(2, FULL, &[1; 512]).await;
    assert_eq!(client.reply().await, (2, ENOSPC));
    assert_eq!(server.counters.backend_errors.load(Ordering::Relaxed), 2);
    assert_eq!(client.ask(READ, 0, LIES, 512).await, EIO);
    assert_eq!(client.ask(READ, 0, 0, 512).await, 0);
    // A request that can never be answered ends its connection instead of leaving its client waiting.
    client.send(READ, 3, PANICS, 512).await;
    assert!(client.rest().await.is_empty());
    let mut other = server.client().await;
    assert_eq!(other.ask(READ, 0, 0, 512).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_slow_request_holds_up_no_other() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    server.memory.held_from.store(SIZE / 2, Ordering::SeqCst);
    let mut client = server.client().await;
    client.send(READ, 1, SIZE / 2, 512).await;
    client.send(READ, 2, 0, 512).await;
    assert_eq!(client.reply().await, (2, 0));
    client.data(512).await;
    server.memory.gate.add_permits(1);
    assert_eq!(client.reply().await, (1, 0));
    client.data(512).await;
    server.stop().await;
}

#[tokio::test]
async fn carries_out_no_more_than_its_limits_at_once() {
    let server = Running::tcp(Memory::new(64 << 20)).await;
    server.memory.held_from.store(0, Ordering::SeqCst);
    let most = limits::REQUESTS_IN_FLIGHT_MAX as usize;
    let mut client = server.client().await;
    for cookie in 0..200 {
        client.send(TRIM, cookie, 0, 512).await;
    }
    until("requests begin", || server.memory.now() == most).await;
    server.memory.gate.add_permits(200);
    let mut cookies = Vec::new();
    for _ in 0..200 {
        cookies.push(client.reply().await.0);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, (0..200).collect::<Vec<_>>());
    assert_eq!(server.memory.peak.swap(0, Ordering::SeqCst), most);

    for cookie in 0..5 {
        client.send(READ, cookie, 0, limits::PAYLOAD_BYTES_MAX).await;
    }
    let two = (limits::PAYLOAD_BYTES_IN_FLIGHT_MAX / limits::PAYLOAD_BYTES_MAX) as usize;
    until("reads begin", || server.memory.now() == two).await;
    server.memory.gate.add_permits(5);
    for _ in 0..5 {
        client.reply().await;
        client.data(limits::PAYLOAD_BYTES_MAX as usize).await;
    }
    assert_eq!(server.memory.peak.load(Ordering::SeqCst), two);
    server.stop().await;
}

#[tokio::test]
async fn a_disconnect_waits_for_what_is_in_flight() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    server.memory.held_from.store(0, Ordering::SeqCst);
    let mut client = server.client().await;
    client.write(1, 0, &[9; 512]).await;
    client.send(DISC, 2, 0, 0).await;
    until("the write begins", || server.memory.now() == 1).await;
    server.memory.gate.add_permits(1);
    assert_eq!(client.reply().await, (1, 0));
    assert!(client.rest().await.is_empty());
    assert_eq!(server.memory.bytes()[..512], [9; 512]);
    until("it is closed", || server.counters.connections_open.load(Ordering::Relaxed) == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_write_begun_is_done_though_its_client_is_gone() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    server.memory.held_from.store(0, Ordering::SeqCst);
    let mut client = server.client().await;
    client.write(1, 0, &[9; 512]).await;
    until("the write begins", || server.memory.now() == 1).await;
    drop(client);
    server.memory.gate.add_permits(1);
    until("the write is done", || server.memory.bytes()[..512] == [9; 512]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_write_cut_short_is_not_done_at_all() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut client = server.client().await;
    client.stream.write_all(&request(WRITE, 0, 1, 0, 4096)).await.unwrap();
    client.stream.write_all(&[9; 4095]).await.unwrap();
    drop(client);
    until("it is counted", || server.counters.refused(Refusal::CutShort) == 1).await;
    assert_eq!(server.memory.allocated_blocks(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_violation_ends_its_connection_only() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut innocent = server.client().await;
    let mut client = server.client().await;
    server.memory.held_from.store(0, Ordering::SeqCst);
    client.send(READ, 1, 0, 512).await;
    client.stream.write_all(&[0xff; 28]).await.unwrap();
    until("it is counted", || server.counters.refused(Refusal::RequestMagicWrong) == 1).await;
    // What was asked for before is answered.
    server.memory.gate.add_permits(1);
    assert_eq!(client.reply().await, (1, 0));
    assert_eq!(client.rest().await.len(), 512);

    let mut client = server.client().await;
    client.send(WRITE, 1, 0, limits::PAYLOAD_BYTES_MAX + 512).await;
    assert!(client.rest().await.is_empty());
    assert_eq!(server.counters.refused(Refusal::WriteTooLong), 1);

    let mut stranger = server.connect().await;
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = stranger.read_to_end(&mut heard).await;
    assert_eq!(server.counters.refused(Refusal::ClientFlagsUnknown), 1);

    server.memory.gate.add_permits(1);
    assert_eq!(innocent.ask(READ, 0, 0, 512).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut clients = Vec::new();
    for _ in 0..limits::CONNECTIONS_MAX {
        clients.push(server.client().await);
    }
    let mut heard = Vec::new();
    let _ = server.connect().await.read_to_end(&mut heard).await;
    assert!(heard.is_empty());
    assert_eq!(server.counters.refused(Refusal::ConnectionsTooMany), 1);
    for client in &mut clients {
        assert_eq!(client.ask(READ, 0, 0, 512).await, 0);
    }
    drop(clients.pop());
    let open = || server.counters.connections_open.load(Ordering::Relaxed);
    until("a place is free", || open() < limits::CONNECTIONS_MAX as u64).await;
    assert_eq!(server.client().await.ask(READ, 0, 0, 512).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_crowd_that_only_connects_keeps_no_client_out() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut first = server.client().await;
    let mut crowd = Vec::new();
    for _ in 0..4 * limits::HANDSHAKES_MAX {
        crowd.push(server.connect().await);
    }
    assert_eq!(server.client().await.ask(READ, 0, 0, 512).await, 0);
    assert_eq!(first.ask(READ, 0, 0, 512).await, 0, "who is there stays");
    let open = || server.counters.connections_open.load(Ordering::Relaxed);
    let most = limits::HANDSHAKES_MAX as u64 + 2;
    until("the oldest of them are gone", || open() <= most).await;
    assert!(server.counters.refused(Refusal::HandshakesTooMany) > 0);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_stranger_is_shown_out() {
    let server = Running::tcp(Memory::new(SIZE)).await;
    let mut silent = server.connect().await;
    let begun = tokio::time::Instant::now();
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard.len(), 18);
    assert!(begun.elapsed() >= limits::HANDSHAKE_DEADLINE);
    assert_eq!(server.counters.refused(Refusal::HandshakeTooSlow), 1);
    server.stop().await;
}

#[tokio::test]
async fn shutdown_finishes_what_was_begun_and_answers_nothing_else() {
    let mut server = Running::tcp(Memory::new(SIZE)).await;
    server.memory.held_from.store(0, Ordering::SeqCst);
    let mut idle = server.client().await;
    let mut client = server.client().await;
    client.write(1, 0, &[9; 512]).await;
    until("the write begins", || server.memory.now() == 1).await;
    server.begin_stop();
    assert!(idle.rest().await.is_empty());
    client.write(2, 512, &[8; 512]).await;
    assert!(!server.serving.is_finished());
    server.memory.gate.add_permits(1);
    assert_eq!(client.reply().await, (1, 0));
    // An error would be one of the disk to a guest; without an answer its client asks again later.
    assert!(client.rest().await.is_empty());
    let memory = std::sync::Arc::clone(&server.memory);
    server.stop().await;
    assert_eq!(memory.bytes()[..1024], [[9; 512], [0; 512]].concat());
}

/// A client that waits for a disk that hangs would not reconnect.
#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_connections_although_the_disk_hangs() {
    let mut server = Running::tcp(Memory::new(SIZE)).await;
    server.memory.held_from.store(0, Ordering::SeqCst);
    let mut client = server.client().await;
    client.write(1, 0, &[9; 512]).await;
    until("the write begins", || server.memory.now() == 1).await;
    server.begin_stop();
    assert!(client.rest().await.is_empty());
    assert!(!server.serving.is_finished(), "what was begun is carried through");
    server.memory.gate.add_permits(1);
    let memory = std::sync::Arc::clone(&server.memory);
    server.stop().await;
    assert_eq!(memory.bytes()[..512], [9; 512]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_replies_does_not_stop_the_shutdown() {
    let mut server = Running::tcp(Memory::new(64 << 20)).await;
    let mut client = server.client().await;
    for cookie in 0..4 {
        client.send(READ, cookie, 0, limits::PAYLOAD_BYTES_MAX).await;
    }
    // And one that is in the middle of a write.
    let mut writer = server.client().await;
    writer.stream.write_all(&request(WRITE, 0, 1, 0, 4096)).await.unwrap();
    let requests = || server.counters.requests.load(Ordering::Relaxed);
    until("the requests arrive", || requests() >= 4).await;
    let begun = tokio::time::Instant::now();
    server.begin_stop();
    (&mut server.serving).await.unwrap();
    assert!(begun.elapsed() >= limits::SHUTDOWN_GRACE);
    assert!(begun.elapsed() < limits::SHUTDOWN_GRACE * 2);
}

/// A small generator with a seed, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[tokio::test]
async fn agrees_with_a_plain_array_over_any_requests() {
    let size = 64 * 4096;
    let server = Running::tcp(Memory::new(size)).await;
    let mut client = server.client().await;
    let mut model = vec![0_u8; usize::try_from(size).unwrap()];
    let mut dice = Dice(0x5eed);
    for cookie in 0..3000 {
        let command =
            [READ, WRITE, TRIM, WRITE_ZEROES, FLUSH, 77][usize::try_from(dice.roll(6)).unwrap()];
        // Mostly good ranges, some off the grid, some past the end.
        let grid = if dice.roll(10) == 0 { 1 } else { 512 };
        let offset = dice.roll((size + 8192) / grid) * grid;
        let length = u32::try_from(dice.roll(20_000 / grid) * grid).unwrap();
        let byte = u8::try_from(dice.roll(256)).unwrap();
        let data = vec![byte; length as usize];
        match command {
            WRITE => client.write(cookie, offset, &data).await,
            FLUSH => client.send(FLUSH, cookie, 0, 0).await,
            _ => client.send(command, cookie, offset, length).await,
        }
        let (answered, error) = client.reply().await;
        assert_eq!(answered, cookie);
        let past = offset + u64::from(length) > size;
        let off = !offset.is_multiple_of(512) || !length.is_multiple_of(512);
        let expected = match command {
            FLUSH => 0,
            77 => EINVAL,
            READ | TRIM if past => EINVAL,
            _ if past => ENOSPC,
            _ if off => EINVAL,
            _ => 0,
        };
        assert_eq!(error, expected, "command {command} at {offset} of {length}");
        if error != 0 || command == FLUSH {
            continue;
        }
        let from = usize::try_from(offset).unwrap();
        let range = &mut model[from..from + length as usize];
        match command {
            READ => assert!(client.data(length as usize).await == range, "at {offset} of {length}"),
            WRITE => range.fill(byte),
            _ => range.fill(0),
        }
    }
    assert!(server.memory.bytes() == model);
    server.stop().await;
}
