//! Entries of the register: heads, opened bodies, sealed.

use super::derived::plain_head;
use super::sealed::{
    Body, VAULT, in_each_way, must_be, must_be_of_the_body, ring, seal_object, sealer,
};
use crate::{later, taken};
use farshore_codec::register::open_register;
use farshore_proto::limits::OBJECT_BODY_BYTES_MAX;
use farshore_proto::object::ObjectKind;
use farshore_proto::register::{RegisterBody, place};

/// Which entry the kept body is of.
const ENTRY: u64 = 10;
/// Which one the kept object is.
const SEALED_ENTRY: u64 = 6;

pub(super) fn object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Register);
}

pub(super) fn object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/register-object.bin").to_vec(),
        SEALED.to_vec(),
    ]
}

pub(super) fn body(bytes: &[u8]) {
    let decode = |bytes: &[u8]| RegisterBody::decode(bytes, ENTRY);
    let Ok(body) = decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::REGISTER, again);
    let numbers = body.state.logs.values().chain(body.state.open.keys());
    let numbers = numbers.chain(body.state.open.values().flatten());
    assert!(numbers.into_iter().all(|number| (1..=ENTRY).contains(number)));
    taken();
}

pub(super) fn body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v2/register-body.bin").to_vec()]
}

pub(super) fn sealed(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        return must_be(open_register(input, VAULT, SEALED_ENTRY, &ring).is_ok(), input, SEALED);
    };
    let place = place(VAULT, ENTRY);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open_register(&object, VAULT, ENTRY, &ring) {
        Ok(opened) => body.must_hold_but_for_later(&opened.encode(), later::REGISTER),
        Err(error) => must_be_of_the_body(&error),
    }
}

const SEALED: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/register.bin");

pub(super) fn sealed_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/register-body.bin");
    in_each_way(SEALED, body)
}
