//! `vault key …` on a bare store: which keys open a vault.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::run::Ran;
use crate::vault::Bench;

impl Bench {
    fn node_key(&self) -> PathBuf {
        self.root.path().join("node.key")
    }

    /// Makes a vault and a node key of it, and returns that key's fingerprint.
    fn with_node_key() -> (Self, String) {
        let bench = Self::new();
        bench.run(&["init"]);
        let added = bench.add().json();
        (bench, added["fingerprint"].as_str().unwrap().to_owned())
    }

    fn add(&self) -> Ran {
        let to = self.node_key();
        self.run(&["key", "add", "--to", to.to_str().unwrap(), "--output", "json"])
    }

    fn list(&self) -> Value {
        self.run(&["key", "list", "--output", "json"]).json()
    }

    /// Names of the wrapped keys.
    fn objects(&self) -> usize {
        let keys = fs::read_dir(self.vault().join("keys")).unwrap();
        keys.map(|key| fs::read_dir(key.unwrap().path()).unwrap().count()).sum()
    }
}

#[test]
fn a_new_vault_has_a_root_key_and_two_data_keys_for_its_recovery_key() {
    let bench = Bench::new();
    bench.run(&["init"]);
    let list = bench.list();
    let wrappers = &list["keys"][0]["wrappers"];
    let fingerprint = wrappers[0]["fingerprint"].as_str().unwrap();
    let wrappers = json!([
        { "fingerprint": fingerprint, "kind": "recovery", "in_hand": true, "damage": null },
    ]);
    let keys = json!([
        { "number": 1, "domain": 1, "kind": "root", "wrappers": wrappers },
        { "number": 2, "domain": 1, "kind": "data", "wrappers": wrappers },
        { "number": 3, "domain": 0, "kind": "data", "wrappers": wrappers },
    ]);
    assert_eq!(list, json!({ "vault": list["vault"], "keys": keys }));
    let text = bench.run(&["key", "list", "--output", "table"]).stdout;
    let row = format!("recovery {fingerprint}  in hand");
    assert_eq!(text.matches(&row).count(), 3, "{text}");
    assert!(text.contains("3    own     data"), "{text}");
}

#[test]
fn a_node_key_is_made_once_and_opens_the_vault_alone() {
    let bench = Bench::new();
    bench.run(&["init"]);
    let first = bench.add().json();
    let expected = json!({
        "vault": first["vault"], "fingerprint": first["fingerprint"], "kind": "node",
        "key_file": bench.node_key(), "key_created": true, "wrapped": 3,
    });
    assert_eq!(first, expected);
    let text = fs::read_to_string(bench.node_key()).unwrap();
    assert!(text.starts_with("FSNK2-"), "the text is that of a node key");
    assert_eq!(fs::metadata(bench.node_key()).unwrap().permissions().mode() & 0o777, 0o600);
    // Said again, nothing is overwritten and nothing is left to be done.
    let again = bench.add().json();
    assert_eq!((&again["key_created"], &again["wrapped"]), (&json!(false), &json!(0)));
    assert_eq!(again["fingerprint"], first["fingerprint"]);
    assert_eq!(fs::read_to_string(bench.node_key()).unwrap(), text);
    assert_eq!(bench.objects(), 6);
    // It reads all there is, and lists itself as the one in hand.
    assert_eq!(bench.run_with(&bench.node_key(), &["volumes"]).stdout, "no volumes\n");
    let list = bench.run_with(&bench.node_key(), &["key", "list", "-o", "json"]).json();
    for key in list["keys"].as_array().unwrap() {
        let wrappers = key["wrappers"].as_array().unwrap();
        assert_eq!(wrappers.len(), 2);
        for wrapper in wrappers {
            let is_node = wrapper["kind"] == "node";
            assert_eq!(wrapper["in_hand"], json!(is_node));
            assert_eq!(wrapper["fingerprint"] == first["fingerprint"], is_node);
        }
    }
    assert_eq!(bench.run(&["verify", "-o", "json"]).json()["whole"], true);
}

#[test]
fn a_file_that_holds_something_else_takes_no_node_key() {
    let bench = Bench::new();
    bench.run(&["init"]);
    for content in [fs::read(bench.key()).unwrap(), b"precious".to_vec()] {
        fs::write(bench.node_key(), &content).unwrap();
        fs::set_permissions(bench.node_key(), fs::Permissions::from_mode(0o600)).unwrap();
        let ran = bench.add();
        assert_eq!(ran.code, 65, "{}", ran.stderr);
        assert!(ran.stderr.contains("node.key"), "{}", ran.stderr);
        assert_eq!(fs::read(bench.node_key()).unwrap(), content);
    }
    assert!(bench.add().stderr.contains("neither a recovery key nor a node key"));
    assert_eq!(bench.objects(), 3);
}

/// What makes and takes keys is the operator's alone.
#[test]
fn a_node_key_adds_and_removes_nothing_and_makes_no_vault() {
    let (bench, fingerprint) = Bench::with_node_key();
    let other = bench.root.path().join("other");
    for args in [
        &["key", "add", "--to", other.to_str().unwrap()][..],
        &["key", "remove", &fingerprint, "--yes"],
        &["init"],
    ] {
        let ran = bench.run_with(&bench.node_key(), args);
        assert_eq!(ran.code, 65, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("this is a node key; a recovery key is needed here"));
    }
    assert!(!other.exists());
    assert_eq!(bench.objects(), 6);
}

#[test]
fn a_removed_key_opens_nothing_and_the_recovery_key_goes_on() {
    let (bench, fingerprint) = Bench::with_node_key();
    let remove = ["key", "remove", &fingerprint];
    let ran = bench.run(&[&remove[..], &["--dry-run"]].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    let named = format!("would remove the node key {fingerprint}: 3 objects of the vault ");
    assert!(ran.stderr.contains(&named), "{}", ran.stderr);
    bench.run(&remove).fails(64, "nothing was done", "say --yes");
    assert_eq!(bench.objects(), 6);
    let ran = bench.run(&[&remove[..], &["--yes", "--output", "table"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("until the vault's keys are rotated"), "{}", ran.stdout);
    assert_eq!(bench.objects(), 3);
    let ran = bench.run_with(&bench.node_key(), &["volumes"]);
    assert_eq!(ran.code, 81, "{}", ran.stderr);
    let text = ran.stderr.clone();
    assert!(
        text.contains(&format!("the node key {fingerprint} is no key of this vault")),
        "{text}"
    );
    let ours = bench.list()["keys"][0]["wrappers"][0]["fingerprint"].as_str().unwrap().to_owned();
    assert!(text.contains(&ours), "{text}");
    assert_eq!(bench.run(&["volumes"]).stdout, "no volumes\n");
    let again = bench.run(&[&remove[..], &["--yes"]].concat());
    again.fails(66, &format!("no key with fingerprint {fingerprint}"), "`farshore vault key list`");
}

#[test]
fn what_was_removed_is_told_to_programs() {
    let (bench, fingerprint) = Bench::with_node_key();
    let removed = bench.run(&["key", "remove", &fingerprint, "--yes", "-o", "json"]).json();
    let objects = [1, 2, 3].map(|number| format!("keys/{number}/{fingerprint}"));
    let expected = json!({
        "vault": removed["vault"], "fingerprint": fingerprint, "kind": "node", "removed": objects,
    });
    assert_eq!(removed, expected);
}

/// I15: no verb destroys the last copy of anything.
#[test]
fn the_last_recovery_key_is_never_removed() {
    let (bench, _) = Bench::with_node_key();
    let list = bench.list();
    let wrappers = list["keys"][0]["wrappers"].as_array().unwrap();
    let ours = wrappers.iter().find(|wrapper| wrapper["in_hand"] == true).unwrap();
    let ours = ours["fingerprint"].as_str().unwrap();
    for consent in ["--yes", "--dry-run"] {
        let ran = bench.run(&["key", "remove", ours, consent]);
        assert_eq!(ran.code, 79, "{}", ran.stderr);
        assert!(ran.stderr.contains("is the last recovery key of this vault"), "{}", ran.stderr);
    }
    assert_eq!(bench.objects(), 6);
    let ran = bench.run(&["key", "remove", "hunter2", "--yes"]);
    assert_eq!(ran.code, 64, "{}", ran.stderr);
    assert!(ran.stderr.contains("a fingerprint has 16 hex digits"), "{}", ran.stderr);
}

#[test]
fn a_damaged_wrapped_key_is_listed_and_can_be_removed() {
    let (bench, fingerprint) = Bench::with_node_key();
    fs::write(bench.vault().join(format!("keys/2/{fingerprint}")), "garbage").unwrap();
    let ran = bench.run(&["key", "list", "-o", "json"]);
    assert_eq!(ran.code, 82, "{}", ran.stderr);
    let list: Value = serde_json::from_str(&ran.stdout).unwrap();
    let wrappers = list["keys"][1]["wrappers"].as_array().unwrap();
    let damaged = wrappers.iter().find(|wrapper| wrapper["fingerprint"] == *fingerprint).unwrap();
    assert_eq!(damaged["kind"], Value::Null);
    assert!(damaged["damage"].as_str().unwrap().contains("is damaged"), "{damaged}");
    assert_eq!(bench.run(&["verify"]).code, 82);
    assert_eq!(bench.run(&["key", "remove", &fingerprint, "--yes"]).code, 0);
    assert_eq!(bench.run(&["verify", "-o", "json"]).json()["whole"], true);
}
