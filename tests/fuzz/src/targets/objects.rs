//! Small objects of a vault: its identity, its keys, the epochs of a volume.

use super::derived::plain_head;
use crate::{checksum, later, taken};
use farshore_proto::KeyNumber;
use farshore_proto::epoch::EpochBody;
use farshore_proto::keys::KeyObject;
use farshore_proto::limits::{DOMAINS_MAX, LABEL_BYTES_MAX};
use farshore_proto::object::ObjectKind;
use farshore_proto::vault::{Parameters, VaultObject};

pub(super) fn vault_object(bytes: &[u8]) {
    checksum::both(bytes, bytes.len().max(4), |bytes| {
        if let Ok(object) = VaultObject::decode(bytes) {
            // What later programs say besides is passed over.
            let again = object.encode();
            assert_eq!(VaultObject::decode(&again), Ok(object.clone()));
            assert!(again.len() <= bytes.len() && object.domains.len() <= DOMAINS_MAX);
            assert!(object.parameters == Parameters::THIS && object.last_key() > KeyNumber(1));
            taken();
        }
    });
}

pub(super) fn vault_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/vault.bin").to_vec(),
        include_bytes!("../../../../dataplane/proto/testdata/v2/vault-more.bin").to_vec(),
    ]
}

pub(super) fn key_object(bytes: &[u8]) {
    checksum::both(bytes, bytes.len().max(4), |bytes| {
        if let Ok(object) = KeyObject::decode(bytes) {
            assert_eq!(object.encode(), bytes);
            assert!(bytes.starts_with(&object.aad()), "all of the header is authenticated");
            taken();
        }
    });
}

pub(super) fn key_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/key.bin").to_vec(),
        include_bytes!("../../../../dataplane/proto/testdata/v2/key-more.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/key.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/key-node.bin").to_vec(),
    ]
}

pub(super) fn epoch_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Epoch);
}

pub(super) fn epoch_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/epoch-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/epoch.bin").to_vec(),
    ]
}

pub(super) fn epoch_body(bytes: &[u8]) {
    let Ok((body, label)) = EpochBody::decode(bytes) else { return };
    let again =
        |bytes: &[u8]| EpochBody::decode(bytes).map(|(body, label)| body.encode(label.as_ref()));
    later::must_be_body(bytes, &body.encode(label.as_ref()), later::EPOCH, again);
    let is_short = |sealed: &Vec<u8>| (17..=LABEL_BYTES_MAX + 16).contains(&sealed.len());
    assert!(label.is_none_or(|label| is_short(&label.sealed)) && body.epoch.0 > 0);
    let _ = body.first_seq.next();
    taken();
}

pub(super) fn epoch_body_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/epoch-body.bin").to_vec(),
        include_bytes!("../../../../dataplane/proto/testdata/v2/epoch-body-stamped.bin").to_vec(),
    ]
}
