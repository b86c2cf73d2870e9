//! Text from operators, peers and stores.

use crate::taken;
use farshore_api::identity::{EnrolmentToken, Role};
use farshore_api::point::PointSelector;
use farshore_codec::WrappingKey;
use farshore_nbd::Address;
use farshore_proto::keys::Fingerprint;
use farshore_proto::{KeyNumber, LogId, MapAttempt, Place, RunId, Seq, Slot, VolumeId};
use farshore_vault::layout::{self, ObjectName};

// The source of a program, which no crate can name, read here as a module.
#[path = "../../../../dataplane/node/src/shard/upgrade.rs"]
mod upgrade;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

pub(super) fn recovery_key(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(key) = WrappingKey::parse(text) else { return };
    let written = key.to_text();
    assert!(text.trim().eq_ignore_ascii_case(&written), "only space and case may differ");
    assert_eq!(WrappingKey::parse(&written).map(|key| key.wrapper()), Ok(key.wrapper()));
    taken();
}

pub(super) fn recovery_key_samples() -> Vec<Vec<u8>> {
    let key = "42".repeat(32);
    let (text, node) = (format!("FSRK2-{key}-fad428ec"), format!("FSNK2-{key}-2ad84239"));
    vec![text.clone().into_bytes(), format!("\n {text}\r\n").into_bytes(), node.into_bytes()]
}

/// The request that begins a session: complete requests are found wherever they are cut, and
/// incomplete ones never taken for others.
pub(super) fn upgrade_request(bytes: &[u8]) {
    let Ok(Some((volume, used))) = upgrade::parse(bytes) else { return };
    let request = &bytes[..used];
    assert!(used <= bytes.len() && upgrade::parse(request).is_ok_and(|found| found.is_some()));
    let is_cut = upgrade::parse(&request[..used - 1]);
    assert!(is_cut.is_ok_and(|found| found.is_none()), "a request without its end");
    let said = String::from_utf8_lossy(request).to_lowercase();
    assert!(said.contains("farshore/2") && said.contains("upgrade"));
    assert_eq!(volume.to_string().parse(), Ok(volume));
    taken();
}

pub(super) fn upgrade_request_samples() -> Vec<Vec<u8>> {
    let request = |head: &str, tail: &str| {
        let path = "/v1/volumes/6a1f0000-0000-4000-8000-000000000001/stream";
        format!(
            "GET {path} HTTP/1.1\r\n{head}Connection: Upgrade\r\nUpgrade: farshore/2\r\n{tail}\r\n"
        )
        .into_bytes()
    };
    let mut early = request("Host: n.node.farshore\r\n", "");
    early.extend_from_slice(b"FSF2\x01");
    vec![request("Host: n.node.farshore\r\n", ""), request("", "X: y\r\n"), early]
}

/// Names of objects as a store lists them.
pub(super) fn object_names(bytes: &[u8]) {
    let Some(name) = text(bytes) else { return };
    let last = |parts: usize| {
        let all: Vec<&str> = name.rsplit('/').take(parts).collect();
        all.into_iter().rev().collect::<Vec<_>>().join("/")
    };
    let ends = |object: ObjectName, parts: usize| {
        let object = object.to_string();
        assert!(object.ends_with(&last(parts)), "{name} is not the end of {object}");
        taken();
    };
    if let Some(slot) = layout::slot_of(name) {
        ends(ObjectName::slot(LogId([1; 16]), slot), 1);
    }
    if let Some(ordinal) = layout::ordinal_of(name) {
        ends(ObjectName::epoch(VolumeId([1; 16]), ordinal), 1);
    }
    if let Some((at, attempt)) = layout::map_of(name) {
        ends(ObjectName::map(VolumeId([1; 16]), at, attempt), 2);
    }
    if let Some((key, wrapper)) = layout::key_of(name) {
        ends(ObjectName::key(key, wrapper), 2);
    }
    if let Some(run) = layout::run_of(name) {
        ends(ObjectName::index_run(run), 2);
    }
}

/// The last place that a name has room for.
const AT: Place = Place { ordinal: 9_999_999_999, seq: Seq(u64::MAX) };

pub(super) fn object_names_samples() -> Vec<Vec<u8>> {
    [
        ObjectName::slot(LogId([0xab; 16]), Slot(0x1f)),
        ObjectName::slot(LogId([0xab; 16]), Slot(u64::MAX)),
        ObjectName::epoch(VolumeId([0x11; 16]), 9_999_999_999),
        ObjectName::map(VolumeId([0x11; 16]), AT, MapAttempt([0x33; 16])),
        ObjectName::index_run(RunId([0x22; 16])),
        ObjectName::key(KeyNumber(u32::MAX), Fingerprint([0xab; 8])),
    ]
    .map(|name| name.to_string().into_bytes())
    .into()
}

pub(super) fn enrolment_token(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(token) = text.parse::<EnrolmentToken>() else { return };
    assert!(text.trim().eq_ignore_ascii_case(&token.to_string()), "only space and case may differ");
    assert_eq!(token.to_string().parse(), Ok(token));
    taken();
}

pub(super) fn enrolment_token_samples() -> Vec<Vec<u8>> {
    [Role::Agent, Role::Node]
        .map(|role| EnrolmentToken { ca_fingerprint: [0xc5; 32], role, secret: [0x3a; 32] })
        .map(|token| token.to_string().into_bytes())
        .into()
}

pub(super) fn identity_uri(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some((role, id)) = Role::from_uri(text) {
        assert_eq!(role.uri(id), text);
        taken();
    }
}

pub(super) fn identity_uri_samples() -> Vec<Vec<u8>> {
    let id = uuid::Uuid::from_u128(0x6a1f_0000_0000_4000_8000_0000_0000_0001);
    vec![Role::Agent.uri(id).into_bytes(), Role::Node.uri(id).into_bytes()]
}

pub(super) fn point_selector(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match text.parse::<PointSelector>() {
        Ok(point) => {
            assert_eq!(point.to_string().parse(), Ok(point));
            taken();
        }
        Err(error) => assert!(error.text.chars().count() <= 64),
    }
}

pub(super) fn point_selector_samples() -> Vec<Vec<u8>> {
    [
        "latest",
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "01890a5d-ac9",
        "2026-01-31T13:30:00.250+01:30",
        "2026-01-31 12:00",
        "1h 30 minutes ago",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

pub(super) fn nbd_address(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(address) = text.parse::<Address>() else { return };
    let scheme = match address {
        Address::Tcp(_) => "tcp:",
        Address::Unix(_) => "unix:",
    };
    assert_eq!(format!("{scheme}{address}").parse(), Ok(address.clone()));
    assert!(address.uri("disk").is_ascii());
    taken();
}

pub(super) fn nbd_address_samples() -> Vec<Vec<u8>> {
    ["unix:/run/farshore/disk.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:0"]
        .map(|text| text.as_bytes().to_vec())
        .into()
}
