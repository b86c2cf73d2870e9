use super::*;
use farshore_api::agent::{Difference, SampleReport};
use farshore_api::machine::{Volume, VolumeStats};

fn machine() -> Machine {
    Machine {
        name: "web".to_owned(),
        id: Uuid::from_u128(1),
        state: MachineState::Protected,
        state_detail: String::new(),
        rpo_seconds: Some(1.25),
        policy: "default".to_owned(),
        mark_interval_ms: 1_000,
        capture: Capture::Nbd,
        agent: Uuid::from_u128(2),
        node: Some(Uuid::from_u128(3)),
        epoch: 1,
        volumes: vec![Volume {
            id: Uuid::from_u128(4),
            disk: "/d.img".to_owned(),
            identity: Some("wwid naa.5000".to_owned()),
            size_bytes: 1 << 30,
            progress: 1.0,
            sent_seq: 12,
            journaled_seq: 11,
            committed_seq: 10,
            nbd_uri: Some("nbd+unix:///?socket=/s".to_owned()),
            samples: Some(SampleReport {
                bytes: 3 << 30,
                rounds: 2,
                differences: 1,
                last: Some(Difference {
                    offset: 81_920,
                    length: 4_096,
                    time_unix_ms: 1_795_824_000_000,
                }),
            }),
            stats: VolumeStats::default(),
        }],
        last_point: None,
        created_at_unix_ms: 0,
    }
}

#[test]
fn a_machine_in_json_has_the_promised_fields() {
    let json = serde_json::to_value(machine()).unwrap();
    assert_eq!(json["state"], "protected");
    assert_eq!(json["rpo_seconds"], 1.25);
    let volume = &json["volumes"][0];
    assert_eq!(volume["id"], Uuid::from_u128(4).to_string());
    assert_eq!(volume["progress"], 1.0);
    assert_eq!(volume["journaled_seq"], 11);
    assert_eq!(volume["committed_seq"], 10);
    assert_eq!(volume["nbd_uri"], "nbd+unix:///?socket=/s");
}

#[test]
fn a_machine_for_people_says_how_it_stands() {
    let text = show(&machine());
    for line in [
        "state:",
        "protected",
        "wwid naa.5000",
        "1.2 s",
        "12 sent, 11 journaled, 10 committed",
        "nbd+unix",
        "reconnect-delay=300",
        "3.00 GiB, all of it 2 times",
        "1, the last of 4.00 KiB at byte 81920, seen 2026-11-28",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("detail:"));
    let mut unserved = machine();
    unserved.volumes[0].nbd_uri = None;
    assert!(!show(&unserved).contains("reconnect"), "there is nothing to connect to");
    let text = list(&Machines { machines: vec![machine()] });
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("NAME  STATE"), "{text}");
    assert!(lines.next().unwrap().contains("100 %"), "{text}");
    assert_eq!(list(&Machines { machines: vec![] }), "no machines are protected\n");
}

#[test]
fn names_that_would_change_the_url_are_refused() {
    for bad in ["../policies", "a/b", "a?x", "", "A"] {
        assert_eq!(check_name("machine", bad).unwrap_err().code, Exit::Usage.code(), "{bad}");
    }
    check_name("machine", "web-1").unwrap();
}

#[test]
fn mark_intervals_have_limits() {
    assert_eq!(mark_interval_ms(Duration::from_secs(1)).unwrap(), 1_000);
    assert!(mark_interval_ms(Duration::from_millis(999)).is_err());
    assert!(mark_interval_ms(Duration::from_secs(86_401)).is_err());
    assert!(mark_interval_ms(Duration::MAX).is_err());
}

#[test]
fn a_missing_disk_is_named() {
    let failure = existing(Path::new("/no/such.img")).unwrap_err();
    assert_eq!(failure.code, Exit::NotFound.code());
    assert_eq!(failure.message, "the disk /no/such.img does not exist");
    assert!(failure.hint.is_some());
}
