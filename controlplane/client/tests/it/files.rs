//! Identity files that are not what they should be.

use crate::authority::{Authority, HOUR};
use farshore_api::identity::Role;
use farshore_client::{Identity, IdentityError};
use rcgen::KeyPair;
use std::fs;
use std::path::Path;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(9);

/// Writes an identity as enrolment does, and hands back its JSON.
fn write(dir: &Path) -> String {
    let key = KeyPair::generate().unwrap();
    let certificate = Authority::new().certify((Role::Node, ID), &key, (HOUR, HOUR));
    let json = serde_json::to_string_pretty(&certificate).unwrap();
    fs::write(dir.join("identity.json"), &json).unwrap();
    fs::write(dir.join("identity.key"), key.serialize_pem()).unwrap();
    json
}

/// What is told of the identity in `dir`, which is damaged.
fn damage(dir: &Path, name: &str) -> String {
    match Identity::load(dir) {
        Err(error @ IdentityError::Damaged { .. }) => {
            let told = error.to_string();
            assert!(told.starts_with(&dir.join(name).display().to_string()), "{told}");
            assert!(told.contains("delete identity.key and identity.json there and enrol again"));
            told
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_never_enrolled_has_no_identity() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Identity::load(&dir.path().join("absent")).unwrap().is_none());
    assert!(Identity::load(dir.path()).unwrap().is_none());
    write(dir.path());
    assert_eq!(Identity::load(dir.path()).unwrap().unwrap().id(), ID);
    fs::remove_file(dir.path().join("identity.json")).unwrap();
    assert!(Identity::load(dir.path()).unwrap().is_none(), "a key alone is none");
}

#[test]
fn damaged_certificates_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let json = write(dir.path());
    let other = Uuid::from_u128(10).to_string();
    let cases: [(Vec<u8>, &str); 9] = [
        (Vec::new(), "EOF"),
        (json.as_bytes()[..json.len() / 2].to_vec(), "EOF"),
        (b"{}".to_vec(), "missing field"),
        (vec![0xff; 64], "UTF-8"),
        (vec![b' '; 2 << 20], "too long"),
        (json.replace("BEGIN CERTIFICATE", "BEGIN SOMETHING").into(), "no certificate"),
        (json.replace(&ID.to_string(), &other).into(), "does not name"),
        (json.replace(r#""role": "node""#, r#""role": "agent""#).into(), "does not name"),
        (json.replace(r#""ca_pem": "-----BEGIN"#, r#""ca_pem": ""#).into(), "no CA certificate"),
    ];
    for (bytes, what) in cases {
        fs::write(dir.path().join("identity.json"), bytes).unwrap();
        let told = damage(dir.path(), "identity.json");
        assert!(told.contains(what), "{what}: {told}");
    }
}

#[test]
fn damaged_keys_are_told() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let path = dir.path().join("identity.key");
    let key = fs::read(&path).unwrap();
    for bytes in [Vec::new(), key[..key.len() / 2].to_vec(), vec![0; 64], vec![b' '; 2 << 20]] {
        fs::write(&path, bytes).unwrap();
        damage(dir.path(), "identity.key");
    }
    fs::remove_file(&path).unwrap();
    assert!(damage(dir.path(), "identity.key").contains("missing"));
    fs::write(&path, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(damage(dir.path(), "identity.json").contains("do not fit"), "somebody else's key");
}

#[test]
fn a_file_that_cannot_be_read_is_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("identity.json")).unwrap();
    let error = Identity::load(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::File { action: "read", .. }), "{error:?}");
}

#[test]
fn the_key_is_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let identity = Identity::load(dir.path()).unwrap().unwrap();
    let printed = format!("{identity:?}");
    assert_eq!(printed, format!("Identity {{ id: {ID}, role: Node, .. }}"));
}
