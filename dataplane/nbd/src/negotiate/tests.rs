//! Raw bytes in, raw bytes out.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::counters::Counters;
use crate::incoming::Signal;

fn export() -> Export {
    Export {
        name: "disk".to_owned(),
        size_bytes: 1 << 20,
        is_read_only: false,
        can_multi_conn: true,
        is_zeroing_fast: false,
    }
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(length_of(data));
    out.put_slice(data);
    out
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(length_of(text.as_bytes()));
    out.put_slice(text.as_bytes());
    out
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.put_u16(u16::try_from(infos.len()).unwrap());
    infos.iter().for_each(|info| data.put_u16(*info));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.put_u32(u32::try_from(queries.len()).unwrap());
    queries.iter().for_each(|query| data.put_slice(&string(query)));
    data
}

/// Option, type, data.
type Reply = (u32, u32, Vec<u8>);

/// Splits what the server said.
fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut found = Vec::new();
    while bytes.has_remaining() {
        assert_eq!(bytes.get_u64(), OPTION_REPLY_MAGIC);
        let (option, kind, length) = (bytes.get_u32(), bytes.get_u32(), bytes.get_u32() as usize);
        found.push((option, kind, bytes[..length].to_vec()));
        bytes.advance(length);
    }
    found
}

/// Asks one option of a fresh negotiation.
fn ask(asked: u32, data: &[u8]) -> (Next, Option<Refusal>, Vec<Reply>) {
    let export = export();
    let mut negotiation = Negotiation::begin(&export, 3).unwrap();
    negotiation.agreed.structured = true;
    let mut out = Vec::new();
    let (next, refusal) = negotiation.answer(asked, data, &mut out);
    (next, refusal, replies(&out))
}

/// A whole conversation: what the client says at once, what the server says, how it ends.
async fn converse(said: &[u8]) -> (io::Result<Option<Agreed>>, Vec<u8>, Arc<Counters>) {
    let (client, server) = tokio::io::duplex(1 << 20);
    let (mut from_server, mut to_server) = tokio::io::split(client);
    let (reader, mut writer) = tokio::io::split(server);
    to_server.write_all(said).await.unwrap();
    to_server.shutdown().await.unwrap();
    let counters = Arc::<Counters>::default();
    let ledger = Ledger::new(Arc::clone(&counters), 1);
    let mut incoming = Incoming::new(reader, Arc::new(Signal::new()));
    let ended = negotiate(&mut incoming, &mut writer, &export(), &ledger).await;
    drop((incoming, writer));
    let mut heard = Vec::new();
    from_server.read_to_end(&mut heard).await.unwrap();
    (ended, heard, counters)
}

#[test]
fn greets_with_the_documented_bytes() {
    assert_eq!(greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn refuses_flags_that_were_not_offered() {
    let export = export();
    assert!(Negotiation::begin(&export, 0).is_ok());
    for flags in [4, 1 << 31, u32::MAX] {
        let refused = Negotiation::begin(&export, flags).unwrap_err();
        assert_eq!(refused, Refusal::ClientFlagsUnknown);
    }
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    for (asked, next) in [(option::GO, Next::Transmission), (option::INFO, Next::Option)] {
        let (then, refusal, said) = ask(asked, &go("disk", &[info::NAME, 77]));
        assert_eq!((then, refusal), (next, None));
        let kinds: Vec<u32> = said.iter().map(|reply| reply.1).collect();
        let info = option_reply::INFO;
        assert_eq!(kinds, [info, info, info, option_reply::ACK]);
        // Size 1 MiB; flags: everything but read-only, rotational and resize.
        assert_eq!(said[0].2, [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0b1101, 0b1110_1101]);
        assert_eq!(said[1].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
        assert_eq!(said[2].2, b"\x00\x01disk");
    }
}

#[test]
fn the_empty_name_is_the_default_and_others_are_unknown() {
    assert_eq!(ask(option::GO, &go("", &[])).0, Next::Transmission);
    for asked in [option::GO, option::INFO] {
        let (next, refusal, said) = ask(asked, &go("other", &[]));
        assert_eq!((next, refusal), (Next::Option, Some(Refusal::ExportUnknown)));
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].1, option_reply::ERR_UNKNOWN);
    }
    let (next, refusal, said) = ask(option::EXPORT_NAME, b"other");
    assert_eq!((next, refusal), (Next::Close, Some(Refusal::ExportUnknown)));
    assert!(said.is_empty());
}

#[test]
fn read_only_exports_offer_no_changes() {
    let export = Export { is_read_only: true, can_multi_conn: false, ..export() };
    assert_eq!(export.flags(Agreed::default()), 0b100_0000_1111);
}

#[test]
fn data_that_make_no_sense_are_invalid() {
    let mut lying_name = go("disk", &[]);
    lying_name[3] = 200;
    let mut lying_count = contexts("disk", &["base:allocation"]);
    lying_count[8] = 0xff;
    let mut trailing = contexts("disk", &["base:allocation"]);
    trailing.push(0);
    let wrong: [(u32, &[u8]); 8] = [
        (option::GO, b""),
        (option::GO, &lying_name),
        (option::GO, &go("disk", &[1, 2])[..12]),
        (option::LIST, b"x"),
        (option::STRUCTURED_REPLY, b"x"),
        (option::SET_META_CONTEXT, &lying_count),
        (option::SET_META_CONTEXT, &trailing),
        (option::LIST_META_CONTEXT, b"\0\0\0"),
    ];
    for (asked, data) in wrong {
        let (next, refusal, said) = ask(asked, data);
        assert_eq!((next, refusal), (Next::Option, Some(Refusal::OptionInvalid)), "{asked}");
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].0, said[0].1), (asked, option_reply::ERR_INVALID));
    }
}

#[test]
fn no_cut_off_or_flipped_option_is_more_than_refused() {
    let whole = [
        (option::GO, go("disk", &[1, 2, 3])),
        (option::INFO, go("", &[3])),
        (option::SET_META_CONTEXT, contexts("disk", &["base:allocation", "qemu:"])),
        (option::LIST_META_CONTEXT, contexts("disk", &["base:"])),
    ];
    for (asked, data) in whole {
        for end in 0..data.len() {
            assert_eq!(ask(asked, &data[..end]).1, Some(Refusal::OptionInvalid), "{asked} {end}");
            for bit in 0..8 {
                let mut flipped = data.clone();
                flipped[end] ^= 1 << bit;
                let (_, _, said) = ask(asked, &flipped);
                assert!(!said.is_empty());
            }
        }
    }
}

#[test]
fn lists_and_selects_the_one_context() {
    let found = |kind, data: &[u8]| {
        let (_, refusal, said) = ask(kind, data);
        assert_eq!(refusal, None);
        assert_eq!(said.last().unwrap().1, option_reply::ACK);
        said[..said.len() - 1].iter().map(|reply| reply.2.clone()).collect::<Vec<_>>()
    };
    let listed = b"\0\0\0\0base:allocation".to_vec();
    let set = b"\0\0\0\x01base:allocation".to_vec();
    let (list, select) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    assert_eq!(found(list, &contexts("disk", &[])), std::slice::from_ref(&listed));
    assert_eq!(found(list, &contexts("", &["base:"])), std::slice::from_ref(&listed));
    assert_eq!(found(list, &contexts("", &["x-y:", "base:allocation"])), [listed]);
    assert!(found(list, &contexts("disk", &["qemu:dirty-bitmap:"])).is_empty());
    assert_eq!(found(select, &contexts("disk", &["base:allocation"])), [set]);
    assert!(found(select, &contexts("disk", &["base:"])).is_empty());
    assert!(found(select, &contexts("disk", &[])).is_empty());
}

#[test]
fn contexts_need_structured_replies_and_are_replaced() {
    let export = export();
    let mut negotiation = Negotiation::begin(&export, 3).unwrap();
    let (select, wanted) = (option::SET_META_CONTEXT, contexts("disk", &["base:allocation"]));
    let mut out = Vec::new();
    assert_eq!(negotiation.answer(select, &wanted, &mut out).1, Some(Refusal::OptionInvalid));
    assert_eq!(negotiation.answer(option::STRUCTURED_REPLY, b"", &mut out).1, None);
    assert_eq!(negotiation.answer(select, &wanted, &mut out).1, None);
    assert_eq!(negotiation.agreed, Agreed { structured: true, allocation: true });
    let (_, refusal) = negotiation.answer(select, &contexts("other", &[]), &mut out);
    assert_eq!(refusal, Some(Refusal::ExportUnknown));
    assert_eq!(negotiation.agreed, Agreed { structured: true, allocation: false });
}

#[tokio::test]
async fn unknown_options_do_not_end_the_conversation() {
    let mut said = 3_u32.to_be_bytes().to_vec();
    // STARTTLS, extended headers, and a number nobody has.
    for unknown in [5, 11, 0xdead_beef] {
        said.extend(option(unknown, b"whatever"));
    }
    said.extend(option(option::LIST, b""));
    said.extend(option(option::STRUCTURED_REPLY, b""));
    said.extend(option(option::GO, &go("disk", &[])));
    let (ended, heard, counters) = converse(&said).await;
    assert_eq!(ended.unwrap(), Some(Agreed { structured: true, allocation: false }));
    assert_eq!(counters.refused(Refusal::OptionUnsupported), 3);
    let replies = replies(&heard[18..]);
    for (reply, unknown) in replies.iter().zip([5, 11, 0xdead_beef]) {
        assert_eq!((reply.0, reply.1), (unknown, option_reply::ERR_UNSUP));
    }
    assert_eq!(replies[3], (option::LIST, option_reply::SERVER, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(replies.last().unwrap().1, option_reply::ACK);
}

#[tokio::test]
async fn export_name_answers_with_and_without_zeroes() {
    for (flags, zeroes) in [(3_u32, 0), (1, 124), (0, 124)] {
        let mut said = flags.to_be_bytes().to_vec();
        said.extend(option(option::EXPORT_NAME, b"disk"));
        let (ended, heard, _) = converse(&said).await;
        assert_eq!(ended.unwrap(), Some(Agreed::default()));
        assert_eq!(heard.len(), 18 + 8 + 2 + zeroes);
        assert_eq!(&heard[18..26], &(1_u64 << 20).to_be_bytes());
        assert!(heard[28..].iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn abort_is_acknowledged() {
    let mut said = 3_u32.to_be_bytes().to_vec();
    said.extend(option(option::ABORT, b""));
    let (ended, heard, _) = converse(&said).await;
    assert_eq!(ended.unwrap(), None);
    assert_eq!(replies(&heard[18..]), [(option::ABORT, option_reply::ACK, vec![])]);
}

#[tokio::test]
async fn closes_on_what_is_not_the_protocol() {
    let flags = 3_u32.to_be_bytes();
    let mut long = OPTION_MAGIC.to_be_bytes().to_vec();
    long.put_u32(option::GO);
    long.put_u32(u32::MAX);
    let wrong: [(Vec<u8>, Refusal); 4] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Refusal::ClientFlagsUnknown),
        ([&flags[..], b"GET / HTTP/1.1\r\n\r\n"].concat(), Refusal::OptionMagicWrong),
        ([&flags[..], &long].concat(), Refusal::OptionTooLong),
        ([&flags[..], &option(option::EXPORT_NAME, b"no")[..]].concat(), Refusal::ExportUnknown),
    ];
    for (said, refusal) in wrong {
        let (ended, heard, counters) = converse(&said).await;
        assert_eq!(ended.unwrap(), None, "{refusal:?}");
        assert_eq!(heard, greeting());
        assert_eq!(counters.refused(refusal), 1);
    }
}

#[tokio::test]
async fn an_end_inside_an_option_is_an_error_and_between_options_is_not() {
    let mut said = 3_u32.to_be_bytes().to_vec();
    assert_eq!(converse(&said).await.0.unwrap(), None);
    said.extend(option(option::GO, &go("disk", &[])));
    for end in 5..said.len() {
        let error = converse(&said[..end]).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
