//! Properties of decoders that have no place of their own for them: text forms, and files that a
//! program keeps for itself. Every target's samples are cut at every offset and flipped in every bit,
//! too: a target says itself what must come of it.
//!
//! Covers D1, D2, D7 and N3 of `docs/fault-model.md`.

use farshore_api::identity::{EnrolmentToken, Role};
use farshore_api::point::PointSelector;
use farshore_fuzz::{TARGETS, was_taken};
use farshore_nbd::Address;
use farshore_proto::{LogId, MapAttempt, Place, RunId, Seq, Slot, VolumeId};
use farshore_vault::layout::{ObjectName, checkpoint_of, map_of, ordinal_of, run_of, slot_of};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use uuid::Uuid;

/// Flips of one sample; a long one is flipped in every few bits only.
const FLIPS_MAX: usize = 9000;

/// D1, D2: a target panics if its decoder takes what it should not.
#[test]
fn every_sample_may_be_cut_anywhere_and_flipped_in_any_bit() {
    for target in TARGETS {
        let is_slow =
            ["chunk_index", "hashes_file", "prints_file", "overlay_map"].contains(&target.name);
        for sample in (target.samples)() {
            let step = if is_slow { sample.len().div_ceil(300) } else { 1 };
            for end in (0..sample.len()).step_by(step) {
                (target.run)(&sample[..end]);
            }
            let bits = sample.len() * 8;
            let most = if is_slow { 600 } else { FLIPS_MAX };
            for bit in (0..bits).step_by(bits.div_ceil(most).max(1)) {
                let mut bad = sample.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                (target.run)(&bad);
            }
        }
        let _ = was_taken();
    }
}

/// Good text, and what it reads back as.
type Again = fn(&str) -> Option<String>;

fn texts() -> Vec<(&'static str, String, Again)> {
    let id = Uuid::from_u128(0x6a1f_0000_0000_4000_8000_0000_0000_0001);
    let token = EnrolmentToken { ca_fingerprint: [0xc5; 32], role: Role::Node, secret: [0x3a; 32] };
    vec![
        ("token", token.to_string(), |text| Some(text.parse::<EnrolmentToken>().ok()?.to_string())),
        ("identity", Role::Agent.uri(id), |text| {
            let (role, id) = Role::from_uri(text)?;
            Some(role.uri(id))
        }),
        ("point", id.to_string(), |text| match text.parse::<PointSelector>().ok()? {
            // The first digits of an id may name it, and say so.
            PointSelector::Prefix(_) => None,
            point => Some(point.to_string()),
        }),
        ("latest", "latest".to_owned(), |text| {
            Some(text.parse::<PointSelector>().ok()?.to_string())
        }),
    ]
}

#[test]
fn no_text_is_read_cut_short() {
    for (name, good, again) in texts() {
        assert_eq!(again(&good), Some(good.clone()), "{name}");
        for end in 0..good.len() {
            assert_eq!(again(&good[..end]), None, "{name} cut at {end}");
        }
    }
}

#[test]
fn every_flipped_bit_of_a_text_is_refused_or_reads_as_it_is_written() {
    for (name, good, again) in texts() {
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(typed) = String::from_utf8(bytes) else { continue };
            // The case of digits may differ, nothing else.
            if let Some(read) = again(&typed) {
                assert!(read.eq_ignore_ascii_case(typed.trim()), "{name}: {typed} as {read}");
            }
        }
    }
}

/// An address may be cut where it still names another place, as any path may.
#[test]
fn an_address_cut_short_is_refused_or_another() {
    for good in ["unix:/run/farshore/disk.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:10809"] {
        let whole: Address = good.parse().expect("it is good");
        for end in 0..good.len() {
            assert_ne!(good[..end].parse(), Ok(whole.clone()), "cut at {end}");
        }
    }
}

proptest! {
    #[test]
    fn tokens_survive_their_text(ca: [u8; 32], secret: [u8; 32], is_node: bool) {
        let role = if is_node { Role::Node } else { Role::Agent };
        let token = EnrolmentToken { ca_fingerprint: ca, role, secret };
        prop_assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn no_text_is_a_token_by_chance(text in "(fse1\\.)?[0-9a-zA-Zé]{0,140}") {
        prop_assert!(text.parse::<EnrolmentToken>().is_err());
    }

    #[test]
    fn identities_and_points_survive_their_text(id: u128, is_node: bool) {
        let id = Uuid::from_u128(id);
        let role = if is_node { Role::Node } else { Role::Agent };
        prop_assert_eq!(Role::from_uri(&role.uri(id)), Some((role, id)));
        prop_assert_eq!(id.to_string().parse(), Ok(PointSelector::Id(id)));
    }

    #[test]
    fn addresses_survive_their_text(ip: IpAddr, port: u16, path in "[^\0]{1,100}") {
        let tcp = SocketAddr::new(ip, port);
        prop_assert_eq!(format!("tcp:{tcp}").parse(), Ok(Address::Tcp(tcp)));
        prop_assert_eq!(format!("unix:{path}").parse(), Ok(Address::Unix(path.into())));
    }

    #[test]
    fn any_text_is_an_address_or_not(text in "\\PC{0,60}") {
        let _ = text.parse::<Address>();
        let _ = text.parse::<PointSelector>();
        prop_assert!(Role::from_uri(&text).is_none());
    }

    #[test]
    fn names_of_objects_tell_their_numbers(
        id: [u8; 16], slot: u64, seq: u64, attempt: [u8; 16], part in 0..100_000_u32,
        ordinal in 0..10_000_000_000_u64,
    ) {
        let text = |name: ObjectName| name.to_string();
        prop_assert_eq!(slot_of(&text(ObjectName::slot(LogId(id), Slot(slot)))), Some(Slot(slot)));
        prop_assert_eq!(ordinal_of(&text(ObjectName::epoch(VolumeId(id), ordinal))), Some(ordinal));
        let (at, attempt) = (Place { ordinal, seq: Seq(seq) }, MapAttempt(attempt));
        let map = text(ObjectName::map(VolumeId(id), at, attempt));
        prop_assert_eq!(map_of(&map), Some((at, attempt)));
        let run = text(ObjectName::index_run(RunId(id)));
        prop_assert_eq!(run_of(&run), Some(RunId(id)));
        // No name is taken for one of another kind.
        let pages = text(ObjectName::pages(VolumeId(id), at, attempt, part));
        prop_assert!(map_of(&run).is_none() && map_of(&pages).is_none() && run_of(&map).is_none());
        for name in [&map, &pages, &run] {
            prop_assert!(slot_of(name).is_none() && ordinal_of(name).is_none());
            prop_assert!(checkpoint_of(name).is_none());
        }
    }

    #[test]
    fn no_name_of_a_stranger_is_taken(name in "[a-z0-9./+ _-]{0,60}") {
        let digits = name.rsplit('/').next().unwrap_or_default();
        if slot_of(&name).is_some() {
            prop_assert!(digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        }
        prop_assert!(map_of(&name).is_none());
        if ordinal_of(&name).is_some() {
            prop_assert!(digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit()));
        }
    }
}
