use super::*;
use crate::testing::{Call, Counted, World, counted};
use farshore_proto::{Attempt, ErrorKind, Slot};

fn log(n: u64) -> LogId {
    LogId((u128::from(n) + 1).to_be_bytes())
}

fn targets(slots: impl IntoIterator<Item = u64>) -> BTreeSet<Target> {
    let target = |slot| Target { log: log(0), slot: Slot(slot), attempt: Attempt([7; 8]) };
    slots.into_iter().map(target).collect()
}

fn condemnation(slots: impl IntoIterator<Item = u64>) -> Statement {
    Statement::Condemnation(targets(slots))
}

fn verdict(of: u64, slots: impl IntoIterator<Item = u64>) -> Statement {
    Statement::Verdict { of, targets: targets(slots) }
}

/// All that a reader refuses.
fn refused(reader: &Reader) -> BTreeSet<Target> {
    reader.condemned().targets().copied().collect()
}

/// All that is condemned for who has nothing that was learnt before.
async fn condemned(vault: &Vault) -> BTreeSet<Target> {
    let mut reader = Reader::default();
    reader.refresh(vault).await.unwrap();
    refused(&reader)
}

/// A vault with these entries in its register.
async fn world(statements: impl IntoIterator<Item = Statement>) -> World {
    let world = World::new(1, 1).await;
    for statement in statements {
        append(&world.vault, 0, statement).await.unwrap();
    }
    world
}

fn births(n: u64) -> impl Iterator<Item = Statement> {
    (1..=n).map(|n| Statement::birth(log(n)))
}

/// The vault of a world, through a store that counts.
fn through(world: &World) -> (Vault, Arc<Counted>) {
    let (store, counted) = counted(&world.vault);
    (world.vault.through(store), counted)
}

fn file(world: &World, number: u64) -> std::path::PathBuf {
    world.file(&ObjectName::register(number))
}

#[tokio::test]
async fn each_entry_is_made_behind_the_one_before_and_the_newest_says_all() {
    let world = world([]).await;
    let vault = &world.vault;
    assert_eq!(newest(vault, 0).await.unwrap(), Entry::default());
    let statements = [
        Statement::birth(log(1)),
        condemnation(1..4),
        Statement::birth(log(2)),
        verdict(2, [2]),
        Statement::Ended(log(1)),
        condemnation([9]),
    ];
    let mut before = Entry::default();
    for (number, statement) in (1..).zip(statements) {
        let entry = append(vault, 0, statement.clone()).await.unwrap();
        assert_eq!((entry.number, entry.statement.as_ref()), (number, Some(&statement)));
        assert_eq!(entry.before, before.digest);
        assert_eq!(read(vault, number).await.unwrap(), entry);
        for known in 0..=number {
            assert_eq!(newest(vault, known).await.unwrap(), entry);
        }
        before = entry;
    }
    assert_eq!(before.state.logs, [(log(2), 3)].into());
    assert_eq!(before.state.open, [(2, Some(4)), (6, None)].into());
    assert_eq!(condemned(vault).await, targets([2, 9]));
    let swept = append(vault, 0, Statement::Swept { of: 2 }).await.unwrap();
    assert_eq!(swept.state.open, [(6, None)].into());
    assert_eq!(condemned(vault).await, targets([9]));
}

#[tokio::test]
async fn what_the_register_rules_out_makes_no_entry() {
    let world = world([Statement::birth(log(1)), condemnation(1..4)]).await;
    let vault = &world.vault;
    for statement in [Statement::birth(log(1)), verdict(2, [4]), Statement::Swept { of: 2 }] {
        let error = append(vault, 0, statement).await.unwrap_err();
        assert!(matches!(error, VaultError::Refused { .. }), "{error}");
    }
    assert_eq!(newest(vault, 0).await.unwrap().number, 2);
}

#[tokio::test]
async fn a_log_is_born_once() {
    let world = world(births(3)).await;
    let vault = &world.vault;
    let bear = async |n| bear(vault, 0, log(n)).await.unwrap().1;
    assert_eq!((bear(2).await, bear(4).await, bear(4).await), (2, 4, 4));
    assert_eq!(newest(vault, 0).await.unwrap().number, 4);
}

/// Nothing is linear in history.
#[tokio::test]
async fn the_newest_of_many_is_found_in_few_rounds_from_wherever_one_looks() {
    let world = world(births(300)).await;
    let (vault, counted) = through(&world);
    for known in [0, 1, 2, 7, 8, 100, 150, 295, 296, 299, 300] {
        let before = counted.trail().len();
        assert_eq!(newest(&vault, known).await.unwrap().number, 300, "from {known}");
        let asked = counted.trail().len() - before;
        assert!(asked <= 48, "from {known}: {asked}");
    }
    let before = counted.trail().len();
    newest(&vault, 300).await.unwrap();
    assert_eq!(counted.trail().len() - before, 5, "four behind it, and itself");
}

#[tokio::test]
async fn a_lost_entry_in_front_of_the_newest_holds_nobody_up() {
    for lost in 2..=4 {
        let world = world(births(5)).await;
        std::fs::remove_file(file(&world, lost)).unwrap();
        assert_eq!(newest(&world.vault, 1).await.unwrap().number, 5);
        let entry = append(&world.vault, 1, Statement::birth(log(9))).await.unwrap();
        assert_eq!((entry.number, entry.state.logs.len()), (6, 6), "{lost}");
        let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
        let object = ObjectName::register(lost);
        assert!(report.problems.iter().any(|problem| problem.object == object), "{report:?}");
    }
    // The last one leaves no trace, but for who knew of it.
    let world = world(births(5)).await;
    std::fs::remove_file(file(&world, 5)).unwrap();
    assert_eq!(newest(&world.vault, 0).await.unwrap().number, 4);
    let error = newest(&world.vault, 5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("gc/0000000005"), "{error}");
}

#[tokio::test]
async fn an_entry_opens_only_in_its_place() {
    let world = world(births(4)).await;
    std::fs::copy(file(&world, 2), file(&world, 4)).unwrap();
    let error = newest(&world.vault, 0).await.unwrap_err();
    assert!(error.to_string().contains("register entry 2"), "{error}");
    let error = append(&world.vault, 0, Statement::birth(log(9))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// Makes the birth of a log the next entry, and takes it away again.
async fn taken_away(world: &World, n: u64) -> Vec<u8> {
    let entry = append(&world.vault, 0, Statement::birth(log(n))).await.unwrap();
    let bytes = std::fs::read(file(world, entry.number)).unwrap();
    std::fs::remove_file(file(world, entry.number)).unwrap();
    bytes
}

/// Who makes n has read n − 1: another's entry there is read, and the statement decided anew.
#[tokio::test]
async fn who_was_not_first_decides_anew() {
    let world = world(births(1)).await;
    // Another log is born first: ours comes behind it.
    let (vault, counted) = through(&world);
    let others = taken_away(&world, 7).await;
    counted.outrun(&ObjectName::register(2), file(&world, 2), others);
    let entry = append(&vault, 0, Statement::birth(log(8))).await.unwrap();
    assert_eq!(entry.number, 3);
    assert_eq!(entry.state.logs, [(log(1), 1), (log(7), 2), (log(8), 3)].into());
    // The same log is born first, by another process: it is not born twice.
    let others = taken_away(&world, 9).await;
    counted.outrun(&ObjectName::register(4), file(&world, 4), others);
    assert_eq!(bear(&vault, 0, log(9)).await.unwrap().1, 4);
    assert_eq!(newest(&vault, 0).await.unwrap().number, 4);
}

#[tokio::test]
async fn an_entry_whose_answer_was_lost_is_not_made_twice() {
    let world = world(births(2)).await;
    let (vault, counted) = through(&world);
    counted.lose_answers();
    let entry = append(&vault, 0, condemnation(1..4)).await.unwrap();
    assert_eq!((entry.number, newest(&world.vault, 0).await.unwrap()), (3, entry));
}

#[tokio::test]
async fn many_make_entries_at_once_and_none_is_lost() {
    let world = world([]).await;
    let born = (0..12).map(|n| bear(&world.vault, 0, log(n)));
    let mut born: Vec<u64> =
        futures::future::try_join_all(born).await.unwrap().into_iter().map(|(_, n)| n).collect();
    born.sort_unstable();
    assert_eq!(born, (1..=12).collect::<Vec<_>>());
    assert_eq!(newest(&world.vault, 0).await.unwrap().state.logs.len(), 12);
}

#[tokio::test]
async fn a_reader_reads_what_is_condemned_only_once() {
    let world = world([Statement::birth(log(1)), condemnation(1..4), condemnation([9])]).await;
    let (vault, counted) = through(&world);
    let mut reader = Reader::default();
    assert!(reader.refresh(&vault).await.unwrap());
    let read = |number: u64| {
        let name = ObjectName::register(number).to_string();
        let is_it = |(call, path): &(Call, object_store::path::Path)| {
            *call == Call::Get && path.as_ref() == name
        };
        counted.trail().iter().filter(|entry| is_it(entry)).count()
    };
    assert_eq!((reader.newest().number, refused(&reader)), (3, targets([1, 2, 3, 9])));
    let before = read(2);
    append(&world.vault, 0, verdict(3, [])).await.unwrap();
    assert!(reader.refresh(&vault).await.unwrap());
    assert_eq!((reader.newest().number, refused(&reader)), (4, targets(1..4)));
    assert_eq!(read(2), before, "it was read");
    assert!(!reader.refresh(&vault).await.unwrap(), "there is nothing new");
    // What cannot be read changes nothing.
    append(&world.vault, 0, verdict(2, [1])).await.unwrap();
    let (kept, bytes) = (file(&world, 5), std::fs::read(file(&world, 5)).unwrap());
    std::fs::write(&kept, &bytes[1..]).unwrap();
    reader.refresh(&vault).await.unwrap_err();
    assert_eq!((reader.newest().number, refused(&reader)), (4, targets(1..4)));
    std::fs::write(&kept, bytes).unwrap();
    assert_eq!(reader.bear(&vault, log(4)).await.unwrap(), 6);
    assert_eq!((reader.newest().number, refused(&reader)), (6, targets([1])));
    assert_eq!(reader.bear(&vault, log(4)).await.unwrap(), 6);
    // What was swept may come back: it is refused for as long as the reader lives.
    append(&world.vault, 0, Statement::Swept { of: 2 }).await.unwrap();
    append(&world.vault, 0, Statement::Swept { of: 3 }).await.unwrap();
    assert!(reader.refresh(&vault).await.unwrap());
    assert_eq!((reader.newest().number, refused(&reader)), (8, targets([1])));
    // Of one that it never saw the verdict on it refuses what that names.
    append(&world.vault, 0, condemnation([20, 21])).await.unwrap();
    reader.refresh(&vault).await.unwrap();
    append(&world.vault, 0, verdict(9, [21])).await.unwrap();
    append(&world.vault, 0, Statement::Swept { of: 9 }).await.unwrap();
    reader.refresh(&vault).await.unwrap();
    assert_eq!(refused(&reader), targets([1, 21]));
    // Condemned, judged and swept between two looks: a stopped reader's log was sealed, nobody waited for it.
    append(&world.vault, 0, condemnation([30, 31])).await.unwrap();
    append(&world.vault, 0, verdict(12, [30])).await.unwrap();
    append(&world.vault, 0, Statement::Swept { of: 12 }).await.unwrap();
    assert!(reader.refresh(&vault).await.unwrap());
    assert_eq!(refused(&reader), targets([1, 21, 30]));
    // Another entry under a number that was read.
    std::fs::remove_file(file(&world, 14)).unwrap();
    append(&world.vault, 0, Statement::birth(log(9))).await.unwrap();
    let error = reader.refresh(&vault).await.unwrap_err();
    assert!(matches!(error, VaultError::Register { .. }), "{error}");
}

/// A register in which 1, 3, 5 and 7 were swept: by entries 3, 6, 9 and 12.
fn swept() -> Vec<Statement> {
    let pass = |n: u64| {
        let of = 3 * n + 2;
        [condemnation([2 * n + 1, 99]), verdict(of, [2 * n + 1]), Statement::Swept { of }]
    };
    let passes = (0..4).flat_map(pass);
    [Statement::birth(log(1))].into_iter().chain(passes).collect()
}

/// Who has what was learnt before knows all that verdicts named since, and nothing before that needs to be.
#[tokio::test]
async fn a_reader_behind_an_entry_refuses_what_verdicts_behind_it_name() {
    let world = world(swept()).await;
    for (cleared, known) in [
        (0, vec![1, 3, 5, 7]),
        (1, vec![1, 3, 5, 7]),
        (2, vec![1, 3, 5, 7]),
        (3, vec![3, 5, 7]),
        (5, vec![3, 5, 7]),
        (6, vec![5, 7]),
        (12, vec![]),
        (13, vec![]),
    ] {
        let at = match cleared {
            0 => At::default(),
            number => read(&world.vault, number).await.unwrap().at(),
        };
        let reader = Reader::behind(&world.vault, at).await.unwrap();
        assert_eq!(reader.condemned().behind, cleared);
        assert_eq!(refused(&reader), targets(known), "behind {cleared}");
        assert_eq!(reader.newest().number, 13);
    }
    // What is open is refused, behind whichever entry.
    append(&world.vault, 0, condemnation([50, 51])).await.unwrap();
    let at = append(&world.vault, 0, verdict(14, [51])).await.unwrap().at();
    let mut reader = Reader::behind(&world.vault, at).await.unwrap();
    assert_eq!(reader.condemned().judged, targets([51]).into_iter().collect());
    // Once it is swept, who was cleared of it has nothing of it.
    append(&world.vault, 0, Statement::Swept { of: 14 }).await.unwrap();
    assert!(reader.refresh(&world.vault).await.unwrap());
    assert_eq!(refused(&reader), targets([]));
}

/// Who has nothing begins with the newest; what comes behind that it keeps in mind, whenever somebody asks.
#[tokio::test]
async fn a_reader_of_who_has_nothing_keeps_in_mind_what_comes_from_then_on() {
    let world = world(swept()).await;
    let mut reader = Reader::default();
    reader.refresh(&world.vault).await.unwrap();
    assert_eq!((reader.condemned().behind, refused(&reader)), (13, targets([])));
    for statement in [condemnation([5]), verdict(14, [5]), Statement::Swept { of: 14 }] {
        append(&world.vault, 0, statement).await.unwrap();
    }
    reader.refresh(&world.vault).await.unwrap();
    assert_eq!((reader.condemned().behind, refused(&reader)), (13, targets([5])));
}

#[tokio::test]
async fn what_was_swept_is_let_go_of_once_nothing_that_was_learnt_names_it() {
    let world = world(swept()).await;
    let mut reader = Reader::behind(&world.vault, At::default()).await.unwrap();
    for (cleared, known) in [(2, vec![1, 3, 5, 7]), (6, vec![5, 7]), (4, vec![5, 7]), (13, vec![])]
    {
        reader.cleared(cleared);
        assert_eq!(refused(&reader), targets(known), "{cleared}");
    }
}

#[tokio::test]
async fn a_reader_behind_an_entry_notices_another_one_and_one_that_is_missing() {
    let world = world(swept()).await;
    let at = read(&world.vault, 3).await.unwrap().at();
    let other = At { digest: [7; 8], ..at };
    for at in [other, At { number: 13, ..other }, At { number: 14, ..at }, At { number: 40, ..at }]
    {
        let error = Reader::behind(&world.vault, at).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{at:?}: {error}");
    }
    std::fs::remove_file(file(&world, 9)).unwrap();
    let error = Reader::behind(&world.vault, at).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("gc/0000000009"), "{error}");
    let behind = read(&world.vault, 10).await.unwrap().at();
    let reader = Reader::behind(&world.vault, behind).await.unwrap();
    assert_eq!(refused(&reader), targets([7]));
}

#[tokio::test]
async fn what_verdicts_name_is_read_for_any_stretch_once() {
    let world = world(swept()).await;
    let (vault, counted) = through(&world);
    let mut judged = Judged::default();
    let mut steps = 0;
    for (behind, to, known) in [
        (8, 8, vec![]),
        (6, 9, vec![5]),
        (7, 8, vec![5]),
        (3, 9, vec![3, 5]),
        (10, 12, vec![3, 5, 7]),
        (0, 13, vec![1, 3, 5, 7]),
    ] {
        judged.reach(&vault, behind, to).await.unwrap();
        let found = (0..100).filter(|slot| judged.contains(targets([*slot]).first().unwrap()));
        assert_eq!(found.collect::<Vec<_>>(), known, "behind {behind} to {to}");
        steps += 1;
    }
    assert_eq!((steps, counted.trail().len()), (6, 13), "each entry is read once");
    // Apart from what was read: what lies between is read, too.
    let mut judged = Judged::default();
    judged.reach(&vault, 0, 3).await.unwrap();
    judged.reach(&vault, 8, 9).await.unwrap();
    assert!(judged.contains(targets([3]).first().unwrap()));
    let error = judged.reach(&vault, 0, 14).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let error = judged.reach(&vault, 0, 1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

/// The problems of a vault, each with its object.
async fn problems(world: &World) -> Vec<(String, String)> {
    let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
    report.problems.into_iter().map(|p| (p.object.to_string(), p.what)).collect()
}

fn statements() -> [Statement; 7] {
    [
        Statement::birth(log(1)),
        condemnation(1..4),
        Statement::birth(log(2)),
        verdict(2, [1, 3]),
        Statement::birth(log(3)),
        Statement::Swept { of: 2 },
        Statement::Ended(log(1)),
    ]
}

#[tokio::test]
async fn verify_reads_all_entries() {
    let world = world(statements()).await;
    let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
    assert_eq!((report.register_entries, report.is_whole()), (7, true), "{report:?}");
}

#[tokio::test]
async fn verify_names_an_entry_that_is_missing_or_damaged() {
    let world = world(statements()).await;
    std::fs::remove_file(file(&world, 3)).unwrap();
    let bytes = std::fs::read(file(&world, 6)).unwrap();
    std::fs::write(file(&world, 6), &bytes[..bytes.len() - 1]).unwrap();
    let found = problems(&world).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].0, "gc/0000000003");
    assert_eq!(found[0].1, "is missing although gc/0000000004 exists");
    assert_eq!(found[1].0, "gc/0000000006");
    // However many are missing, and with few behind them.
    for number in 1..=6 {
        let _gone = std::fs::remove_file(file(&world, number));
    }
    let found = problems(&world).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, "is missing although gc/0000000007 exists");
}

/// An entry of who had not read the one before, or did not keep to the rules.
#[tokio::test]
async fn verify_compares_each_entry_with_the_one_before() {
    let sealed = |world: &World, number, body: &RegisterBody| {
        let keys = world.vault.seal_keys();
        let object = seal_register(world.vault.id(), number, keys, body).unwrap();
        std::fs::write(file(world, number), object).unwrap();
    };
    let world = world(statements()).await;
    let last = newest(&world.vault, 0).await.unwrap();
    let body = |state: State| RegisterBody {
        before: last.digest,
        statement: Statement::birth(log(5)),
        state,
    };
    let good = after(&last.state, 8, &Statement::birth(log(5)), &BTreeSet::new()).unwrap();
    sealed(&world, 8, &body(good.clone()));
    assert_eq!(problems(&world).await, []);
    sealed(&world, 8, &RegisterBody { before: [9; 32], ..body(good.clone()) });
    let found = problems(&world).await;
    assert_eq!(found[0].1, "is not made behind the gc/0000000007 that is there");
    let mut forgetful = good;
    forgetful.logs.remove(&log(2));
    sealed(&world, 8, &body(forgetful));
    let found = problems(&world).await;
    assert_eq!(found[0].1, "has another state than its statement makes of the one before");
    // A verdict on what was not condemned.
    let condemned = append_behind(&world, &last, condemnation(1..4)).await;
    let statement = verdict(8, [1, 9]);
    let state = after(&condemned.state, 9, &statement, &targets([1, 9])).unwrap();
    sealed(&world, 9, &RegisterBody { before: condemned.digest, statement, state });
    let found = problems(&world).await;
    assert!(found[0].1.starts_with("states what it may not: condemnation 8"), "{found:?}");
}

/// Makes the entry behind one anew.
async fn append_behind(world: &World, last: &Entry, statement: Statement) -> Entry {
    std::fs::remove_file(file(world, last.number + 1)).unwrap();
    append(&world.vault, last.number, statement).await.unwrap()
}

/// What a later program added to the state would not be in the next entry of this one.
#[tokio::test]
async fn nothing_is_put_behind_an_entry_of_which_a_later_program_says_more() {
    let world = world(births(2)).await;
    let last = newest(&world.vault, 0).await.unwrap();
    let Entry { before, statement, state, .. } = last.clone();
    let body = RegisterBody { before, statement: statement.unwrap(), state };
    let place = farshore_proto::register::place(world.vault.id(), 2);
    world.outgrow(&ObjectName::register(2), place, body.encode());
    let found = newest(&world.vault, 0).await.unwrap();
    assert_eq!((found.number, &found.state), (2, &last.state), "it is read all the same");
    let error = append(&world.vault, 0, Statement::birth(log(9))).await.unwrap_err();
    assert!(matches!(error, VaultError::Outgrown { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("gc/0000000002"), "{error}");
    assert_eq!(bear(&world.vault, 0, log(2)).await.unwrap().1, 2, "what is there needs no entry");
}

/// Floors say whether a log's newest horizon is lost, also where the newest entry states what this program does not know.
#[tokio::test]
async fn the_floors_of_an_entry_that_states_what_is_not_known_are_read() {
    let world = world([Statement::birth(log(0)), condemnation([5]), verdict(2, [5])]).await;
    let last = newest(&world.vault, 0).await.unwrap();
    assert_eq!(last.state.floors, [(log(0), Slot(6))].into());
    assert_eq!(floors(&world.vault).await.unwrap(), last.state.floors);
    let body = RegisterBody {
        before: last.digest,
        statement: Statement::Swept { of: 2 },
        state: after(&last.state, 4, &Statement::Swept { of: 2 }, &BTreeSet::new()).unwrap(),
    };
    let mut later = body.encode();
    // The code of the statement, in the head: 16 bytes of the section and the digest in front of it.
    later[16 + 32] = 77;
    let place = farshore_proto::register::place(world.vault.id(), 4);
    world.outgrow(&ObjectName::register(4), place, later);
    assert_eq!(newest(&world.vault, 0).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(floors(&world.vault).await.unwrap(), last.state.floors);
    // With what is damaged they are not known, and hold nobody up.
    std::fs::write(file(&world, 4), "damaged").unwrap();
    assert_eq!(floors(&world.vault).await.unwrap(), BTreeMap::new());
}
