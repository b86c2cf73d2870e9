//! `vault machines` and `vault restore --machine`: from a store and its key alone.

use std::fs;
use std::path::PathBuf;

use farshore_proto::MachineId;
use farshore_proto::machine::{Disk, DiskRole, DiskState, Firmware};
use farshore_vault::key_file;
use farshore_vault::layout::ObjectName;
use farshore_vault::testing::image_bytes;
use farshore_vault::testing::machines::{
    CACHE, DB, KnownPoint, Machines, SHOP, STRAY, WEB, disk, machine, put_next,
};
use serde_json::{Value, json};

use crate::run::{Ran, command};

/// A vault with machines, and where its key is.
pub(crate) struct Bench {
    pub(crate) all: Machines,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self { all: now(Machines::new()) };
        key_file::create(&bench.key(), &bench.all.world.recovery).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.all.world.folder.path().join(name)
    }

    fn key(&self) -> PathBuf {
        self.path("recovery.key")
    }

    /// `farshore vault ARGS`, not run yet.
    pub(crate) fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = command();
        command.env("FARSHORE_KEY_FILE", self.key()).arg("vault").args(args);
        command.arg("--vault").arg(format!("file://{}", self.path("vault").display()));
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--output", "json"]].concat()).json()
    }

    /// The point of a machine with an id that ends in this byte.
    pub(crate) fn point(&self, machine: MachineId, id: u8) -> KnownPoint {
        let points = self.all.points_of(machine);
        points.into_iter().find(|point| point.id.0[0] == id).unwrap()
    }

    /// Restores a point to a new directory of this name, and gives what it printed.
    fn restore(&self, machine: &str, point: &str, to: &str, more: &[&str]) -> Ran {
        let to = self.path(to);
        let args =
            ["restore", "--machine", machine, "--point", point, "--to", to.to_str().unwrap()];
        self.run(&[&args, more, &["--output", "json"]].concat())
    }

    /// Checks that a directory has the disks of a point and nothing else.
    fn holds(&self, to: &str, point: &KnownPoint) {
        let mut files: Vec<String> = fs::read_dir(self.path(to))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let mut expected = Vec::new();
        for (index, _, image) in &point.disks {
            let letter = char::from(b'a' + u8::try_from(*index).unwrap());
            let name = format!("disk-{index}-vd{letter}.raw");
            let bytes = fs::read(self.path(to).join(&name)).unwrap();
            assert!(bytes == image_bytes(image), "{to}/{name}");
            expected.push(name);
        }
        assert_eq!(files, expected);
    }

    fn damage(&self, name: &ObjectName) {
        self.damage_at(name, |_| 260);
    }

    /// Changes the byte of an object of so many bytes.
    fn damage_at(&self, name: &ObjectName, at: impl FnOnce(usize) -> usize) {
        let file = self.all.world.file(name);
        let mut bytes = fs::read(&file).unwrap();
        let at = at(bytes.len());
        bytes[at] ^= 1;
        fs::write(file, bytes).unwrap();
    }

    /// The slot that holds the mark with an id that ends in this byte.
    fn slot(&self, id: u8) -> ObjectName {
        let points = &self.all.world.points;
        let known = points.iter().find(|point| point.id.0[0] == id).unwrap();
        ObjectName::slot(self.all.world.logs[0].id, known.slot)
    }
}

pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

#[test]
fn the_machines_of_a_vault_are_listed_and_the_volumes_of_none() {
    let bench = Bench::new();
    let json = bench.json(&["machines", "--points"]);
    let machines = json["machines"].as_array().unwrap();
    let names: Vec<&Value> = machines.iter().map(|machine| &machine["name"]).collect();
    assert_eq!(names, ["db-1", "web-1", "cache-1"]);
    let [db, web, cache] = machines.as_slice() else { panic!("{json}") };
    assert_eq!((&db["machine"], &db["revision"]), (&json!(DB.to_string()), &json!(2)));
    assert_eq!((&db["firmware"], &web["firmware"]), (&json!("uefi"), &json!("bios")));
    assert_eq!(cache["firmware"], "unknown");
    assert_eq!((&db["groups"], &cache["groups"]), (&json!(["shop"]), &json!([])));
    let disks = web["disks"].as_array().unwrap();
    let roles: Vec<_> =
        disks.iter().map(|disk| (&disk["index"], &disk["role"], &disk["state"])).collect();
    let row = |index: u16, role: &str, state: &str| (json!(index), json!(role), json!(state));
    let expected = [
        row(0, "boot", "protected"),
        row(1, "data", "protected"),
        row(2, "scratch", "excluded"),
        row(3, "data", "protected"),
    ];
    assert_eq!(roles, expected.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>());
    assert_eq!(
        (&disks[0]["size_bytes"], &disks[0]["sector_bytes"]),
        (&json!(96 * 4096), &json!(512))
    );
    assert_eq!(disks[0]["volume"], json!(bench.all.volume(2).to_string()));
    assert_eq!(disks[2]["volume"], Value::Null);
    let newest =
        |machine: &Value| machine["newest_complete"]["point"].as_str().unwrap()[..2].to_owned();
    assert_eq!((newest(db), newest(web), newest(cache)), ("06".into(), "06".into(), "09".into()));
    assert_eq!((&db["points"], &db["incomplete_points"]), (&json!(6), &json!(3)));
    let volumes = json["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0]["volume"], json!(bench.all.volume(STRAY).to_string()));
    let text = bench.run(&["machines", "--points", "--output", "table"]).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("db-1 ") && lines[1].contains("uefi"), "{text}");
    assert!(lines[1].ends_with("2023-11-14T22:13:26Z crash"), "{text}");
    assert!(lines[2].trim_start().starts_with("1 /dev/vdb"), "{text}");
    assert!(text.contains("scratch excluded"), "{text}");
    assert!(text.contains("Volumes that no machine names:"), "{text}");
    // Points are looked for only where they are asked for.
    let json = bench.json(&["machines"]);
    assert_eq!(json["machines"][0]["name"], "db-1");
    assert!(json["machines"][0].get("points").is_none(), "{json}");
    let text = bench.run(&["machines", "--output", "table"]).stdout;
    assert!(text.contains("/dev/vdb") && !text.contains("crash"), "{text}");
}

#[test]
fn all_disks_of_a_complete_point_are_restored_byte_for_byte() {
    let bench = Bench::new();
    let ran = bench.restore("db-1", "latest", "latest", &[]);
    // What is newer and lacks something is not passed over without a word.
    assert!(ran.stderr.contains("2 newer points of machine db-1 lack something"), "{}", ran.stderr);
    let json = ran.json();
    assert_eq!(json["newer_incomplete"], 2);
    let six = bench.point(DB, 6);
    bench.holds("latest", &six);
    assert_eq!((&json["point"], &json["complete"]), (&json!(six.id.to_string()), &json!(true)));
    assert_eq!((&json["firmware"], json["disks"].as_array().unwrap().len()), (&json!("uefi"), 2));
    assert_eq!(json["disks"][1]["to"], json!(bench.path("latest/disk-1-vdb.raw").to_str()));
    // By id of the machine, digits of the point, time, and of one with one disk.
    bench.restore(&WEB.to_string(), "0303", "three", &[]).json();
    bench.holds("three", &bench.point(WEB, 3));
    bench.restore("db-1", "2023-11-14T22:13:24Z", "time", &[]).json();
    bench.holds("time", &bench.point(DB, 2));
    bench.restore("db-1", &bench.point(DB, 1).id.to_string(), "first", &[]).json();
    bench.holds("first", &bench.point(DB, 1));
    bench.restore("cache-1", "latest", "cache", &[]).json();
    bench.holds("cache", &bench.point(CACHE, 9));
}

#[test]
fn a_point_that_lacks_disks_is_restored_only_when_that_is_asked_for() {
    let bench = Bench::new();
    let five = bench.point(DB, 5);
    let ran = bench.restore("db-1", &five.id.to_string(), "five", &[]);
    ran.fails(
        65,
        "member 2 of 2 is not in the vault; disk 1",
        "choose another point, or say --incomplete",
    );
    assert!(!bench.path("five").exists());
    let ran = bench.restore("db-1", &five.id.to_string(), "five", &["--incomplete"]);
    assert!(ran.stderr.contains("is not complete"), "{}", ran.stderr);
    let json = ran.json();
    assert_eq!(json["complete"], false);
    assert_eq!(json["lacking"][0], "member 2 of 2 is not in the vault");
    bench.holds("five", &five);
    // The latest of all, and of a group of which another machine's disk lacks.
    bench.restore("db-1", "latest", "any", &["--incomplete"]).json();
    bench.holds("any", &bench.point(DB, 8));
    bench.restore("web-1", "latest", "whole", &[]).json();
    bench.holds("whole", &bench.point(WEB, 6));
    bench
        .run(&[
            "restore",
            "--volume",
            &bench.all.volume(0).to_string(),
            "--incomplete",
            "--to",
            "x",
        ])
        .usage();
}

#[test]
fn nothing_is_written_over_and_a_dry_run_writes_nothing() {
    let bench = Bench::new();
    let ran = bench.restore("db-1", "latest", "to", &["--dry-run"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("would write 2 disks of 768.00 KiB"), "{}", ran.stderr);
    assert!(!bench.path("to").exists());
    // One of the two is there already: the other one is not written either.
    fs::create_dir(bench.path("to")).unwrap();
    let second = bench.path("to/disk-1-vdb.raw");
    fs::write(&second, "precious").unwrap();
    bench.restore("db-1", "0606", "to", &[]).fails(79, "not empty", "say --force to replace it");
    assert_eq!(fs::read_dir(bench.path("to")).unwrap().count(), 1);
    assert_eq!(fs::read(&second).unwrap(), b"precious");
    bench.restore("db-1", "latest", "to", &["--force"]).json();
    bench.holds("to", &bench.point(DB, 6));
    fs::write(bench.path("file"), "x").unwrap();
    bench.restore("db-1", "0606", "file", &[]).fails(
        65,
        "file is not a directory",
        "name a directory",
    );
}

#[test]
fn the_points_of_a_machine_say_what_they_lack() {
    let bench = Bench::new();
    let json = bench.json(&["points", "--machine", "db-1"]);
    let complete: Vec<bool> =
        json["points"].as_array().unwrap().iter().map(|point| point["complete"] == true).collect();
    assert_eq!(complete, [true, true, false, true, false, false]);
    assert_eq!(json["points"][4]["lacking"], json!(["member 5 of 5 is not in the vault"]));
    let text = bench.run(&["points", "--machine", "db-1", "--output", "table"]).stdout;
    assert!(text.contains("0,1    member 5 of 5 is not in the vault"), "{text}");
    bench.run(&["points"]).usage();
    bench
        .run(&["points", "--machine", "db-1", "--volume", &bench.all.volume(0).to_string()])
        .usage();
}

#[test]
fn machines_that_are_not_there_or_not_alone_are_told() {
    let bench = Bench::new();
    bench.restore("nobody", "latest", "x", &[]).fails(
        66,
        "there is no machine nobody",
        "`farshore vault machines`",
    );
    bench.restore("db-1", "ffff", "x", &[]).fails(
        66,
        "machine db-1 has no recovery point whose id begins",
        "`farshore vault points --machine db-1`",
    );
    // Of no other use than a variable that is not set.
    let ran = bench.restore("", "latest", "x", &[]);
    ran.usage();
    assert!(ran.stderr.contains("a value is required for '--machine <NAME>'"), "{}", ran.stderr);
    let ran = bench.run(&["points", "--volume", "db-1"]);
    ran.usage();
    assert!(ran.stderr.contains("name a machine with --machine"), "{}", ran.stderr);
    let twin = MachineId([0x31; 16]);
    let body = machine(
        "db-1",
        Firmware::Bios,
        vec![disk(0, Some(bench.all.volume(STRAY)), DiskRole::Boot)],
    );
    now(put_next(&bench.all.world, twin, 0, &body));
    let ran = bench.restore("db-1", "latest", "x", &[]);
    ran.fails(64, "several machines have the name db-1", "give the id");
    assert!(ran.stderr.contains(&twin.to_string()) && ran.stderr.contains(&DB.to_string()));
    bench.restore(&DB.to_string(), "latest", "x", &[]).json();
    bench.holds("x", &bench.point(DB, 6));
}

#[test]
fn damage_is_named_and_what_is_whole_is_shown() {
    let bench = Bench::new();
    bench.damage(&ObjectName::machine(DB, 2));
    let ran = bench.run(&["machines", "--output", "json"]);
    assert_eq!(ran.code, 82, "{}", ran.stderr);
    assert!(ran.stderr.contains(&ObjectName::machine(DB, 2).to_string()), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(json["machines"][0]["damage"].as_str().unwrap().contains("damaged"));
    assert_eq!(json["machines"][1]["damage"], Value::Null);
    assert_eq!(json["machines"][0]["disks"].as_array().unwrap().len(), 1, "as revision 1 has them");
    bench.restore("db-1", "latest", "x", &[]).fails(82, "is damaged", "put the object back");
    assert!(!bench.path("x").exists());
    // A stream that ends in damage: the latest is not known, one in front of it is.
    let six = bench.point(WEB, 6);
    let known = bench.all.world.points.iter().find(|point| point.id == six.id).unwrap();
    bench.damage(&ObjectName::slot(bench.all.world.logs[0].id, known.slot));
    bench.restore("web-1", "latest", "y", &[]).fails(
        82,
        "is damaged",
        "name a point in front of the damage",
    );
    let ran = bench.restore("web-1", "0303", "y", &[]);
    assert!(ran.stderr.contains("only the points in front of the damage"), "{}", ran.stderr);
    ran.json();
    bench.holds("y", &bench.point(WEB, 3));
}

/// A point that may be there is never called one that is not in the vault.
#[test]
fn what_may_be_behind_damage_is_told_with_the_damage() {
    let bench = Bench::new();
    let (slot, six) = (bench.slot(6), bench.point(WEB, 6));
    bench.damage(&slot);
    for point in ["0606", &six.id.to_string()] {
        let ran = bench.restore("web-1", point, "x", &[]);
        assert_eq!(ran.code, 82, "{}", ran.stderr);
        assert!(ran.stderr.contains("has no recovery point"), "{}", ran.stderr);
        assert!(ran.stderr.contains("in front of the damage: "), "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("object {slot} is damaged")), "{}", ran.stderr);
    }
    // A member on another machine's volume.
    let bench = Bench::new();
    let epoch = ObjectName::epoch(bench.all.volume(4), 1);
    bench.damage_at(&epoch, |_| 170);
    let ran = bench.restore("db-1", "0606", "x", &[]);
    assert_eq!(ran.code, 82, "{}", ran.stderr);
    let sentence = "is not complete: member 5 of 5 was not found: ";
    assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("object {epoch} is damaged")), "{}", ran.stderr);
    let ran = bench.restore("db-1", "latest", "two", &[]);
    assert!(ran.stderr.contains(&format!("object {epoch} is damaged")), "{}", ran.stderr);
    ran.json();
    bench.holds("two", &bench.point(DB, 2));
}

#[test]
fn damage_to_a_disk_that_was_removed_does_not_refuse_the_latest() {
    let mut bench = Bench::new();
    let place = |number: usize| {
        let volume = &bench.all.world.volumes[number];
        (volume.epoch, volume.seq.next())
    };
    let of = |index: u16| Some(bench.all.volume(usize::from(index)));
    let disks = (0..2_u16).map(|index| Disk {
        since: place(usize::from(index)),
        state: if index == 0 { DiskState::Protected } else { DiskState::Removed },
        ..disk(index, of(index), if index == 0 { DiskRole::Boot } else { DiskRole::Data })
    });
    let body = machine("db-1", Firmware::Uefi, disks.collect());
    now(put_next(&bench.all.world, DB, 2, &body));
    now(bench.all.alone(DB, 0, true));
    bench.damage_at(&ObjectName::epoch(bench.all.volume(1), 1), |_| 170);
    bench.restore("db-1", "latest", "x", &[]).json();
    bench.holds("x", &bench.point(DB, 10));
}

/// The newest slot but one is missing: whether it ever was there, nobody knows.
#[test]
fn a_hole_at_the_end_is_told() {
    let bench = Bench::new();
    let slot = bench.slot(9);
    fs::remove_file(bench.all.world.file(&slot)).unwrap();
    for to in ["x", "y"] {
        let point = if to == "x" { "latest" } else { "2023-11-14 22:13:59Z" };
        let ran = bench.restore("cache-1", point, to, &[]);
        let warning = format!("warning: object {slot} is missing although slot");
        assert!(ran.stderr.contains(&warning), "{}", ran.stderr);
        ran.json();
        bench.holds(to, &bench.point(CACHE, 4));
    }
}

#[test]
fn a_restore_that_fails_says_which_disks_are_finished() {
    let mut bench = Bench::new();
    now(bench.all.alone(DB, 1, false));
    now(bench.all.together(&[(DB, 0, 0), (DB, 1, 1)], 2));
    // Only the second disk has data there.
    bench.damage_at(&bench.slot(10), |bytes| bytes - 1);
    let ran = bench.restore("db-1", "latest", "x", &[]);
    assert_eq!(ran.code, 82, "{}", ran.stderr);
    let first = bench.path("x/disk-0-vda.raw").display().to_string();
    assert!(ran.stderr.contains(&format!("finished: disk 0 ({first})\n")), "{}", ran.stderr);
    let id = bench.point(DB, 11).id;
    let hint = format!("finished at point {id}: disk 0 ({first}); a restore");
    assert!(ran.stderr.contains(&hint), "{}", ran.stderr);
    assert!(fs::read(first).unwrap() == image_bytes(&bench.point(DB, 11).disks[0].2));
}

#[test]
fn a_boot_that_fails_leaves_no_directory() {
    let bench = Bench::new();
    let over = bench.path("over").display().to_string();
    let ran = bench.run(&["boot", "--machine", "nobody", "--overlay", &over]);
    ran.fails(66, "there is no machine nobody", "`farshore vault machines`");
    assert!(!bench.path("over").exists());
    // Nor one that fails later, if nothing is in it; one that was there stays.
    let epoch = ObjectName::epoch(bench.all.volume(5), 1);
    bench.damage_at(&epoch, |_| 170);
    for is_there in [false, true] {
        if is_there {
            fs::create_dir(bench.path("over")).unwrap();
        }
        let ran = bench.run(&["boot", "--machine", "cache-1", "--overlay", &over]);
        assert_eq!(ran.code, 82, "{}", ran.stderr);
        assert_eq!(bench.path("over").exists(), is_there);
    }
}

/// A point of a time is one that has all, and what would do besides is said only if it would.
#[test]
fn a_time_before_all_points_and_one_with_points_that_lack_something_are_told_apart() {
    let bench = Bench::new();
    let ran = bench.restore("db-1", "2001-01-01 00:00", "x", &[]);
    let sentence =
        "machine db-1 has no complete recovery point that is not after 2001-01-01T00:00:00";
    ran.fails(66, sentence, "`farshore vault points --machine db-1` shows what there is");
    let ran = bench.restore("db-1", "90 years ago", "x", &[]);
    ran.fails(66, "that is at least 90years old", "`farshore vault points");
    // Nothing is left of the second disk: all points but the first lack it, and that one lacks its revision.
    fs::remove_dir_all(bench.path("vault/volumes").join(bench.all.volume(1).to_string())).unwrap();
    fs::remove_file(bench.all.world.file(&ObjectName::machine(DB, 1))).unwrap();
    let ran = bench.restore("db-1", "latest", "x", &[]);
    let hint = "there are points that lack something: `farshore vault points --machine db-1` shows what, \
                --incomplete takes the newest of them";
    ran.fails(66, "error: machine db-1 has no complete recovery point\n", hint);
    fs::remove_dir_all(bench.path("vault/volumes")).unwrap();
    let ran = bench.restore("db-1", "latest", "x", &[]);
    ran.fails(66, "error: machine db-1 has no recovery point\n", "`farshore vault verify`");
    assert!(!bench.path("x").exists());
}

/// What points lack may be known to a group alone: its damage is shown, and told where it may matter.
#[test]
fn the_damage_of_a_group_is_shown() {
    let bench = Bench::new();
    let group = ObjectName::group(SHOP, 1);
    bench.damage(&group);
    let ran = bench.run(&["machines", "--output", "json"]);
    assert_eq!(ran.code, 82, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("object {group} is damaged")), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    let [damaged] = json["damaged_groups"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&damaged["group"], &damaged["name"]), (&json!(SHOP.to_string()), &Value::Null));
    assert_eq!(json["machines"][0]["damage"], Value::Null);
    let text = bench.run(&["machines", "--output", "table"]).stdout;
    assert!(text.contains("Groups that are damaged") && text.contains(&SHOP.to_string()), "{text}");
    let warning =
        format!("members of points may be there that are called lacking: {}", damaged["damage"]);
    let warning = warning.replace('"', "");
    for ran in
        [bench.run(&["points", "--machine", "db-1"]), bench.restore("db-1", "latest", "x", &[])]
    {
        assert!(ran.code == 0 && ran.stderr.contains(&warning), "{}", ran.stderr);
    }
    bench.holds("x", &bench.point(DB, 2));
}

#[test]
fn a_key_that_is_gone_from_the_vault_and_places_that_cannot_be_made_are_told_with_what_to_do() {
    let bench = Bench::new();
    fs::write(bench.path("file"), "x").unwrap();
    bench.restore("db-1", "0202", "file/x", &[]).fails(73, "cannot make", "name another directory");
    let overlay = bench.path("file").display().to_string();
    let ran = bench.run(&["boot", "--machine", "cache-1", "--overlay", &overlay]);
    ran.fails(79, "cannot make the directory", "name another directory with --overlay");
    fs::remove_dir_all(bench.path("vault/keys/1")).unwrap();
    fs::create_dir(bench.path("vault/keys/1")).unwrap();
    let ran = bench.run(&["machines"]);
    ran.fails(82, "object keys/1/", "nothing in the vault can be read without it");
}
