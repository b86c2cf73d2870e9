//! Every rule of the frame protocol, broken (N3, P6): refused for its reason, counted, and nobody's
//! volume is touched.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use farshore_conformance::cases::{self, Act, View};
use farshore_conformance::frame::{Mark, Said, reason};
use farshore_conformance::peer::End;
use farshore_conformance::site::{Agent, Site, Volume};
use farshore_conformance::stream::Stream;
use farshore_e2e::{Part, run};

const BLOCKS: usize = 2048;

const DOCUMENT: &str = include_str!("../../../docs/formats/frame.md");

#[test]
fn every_case_names_a_sentence_of_the_document() {
    let document = DOCUMENT.split_whitespace().collect::<Vec<_>>().join(" ");
    for case in cases::all() {
        let sentence = case.sentence.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(document.contains(&sentence), "{}: {:?}", case.name, case.sentence);
    }
    let names: BTreeSet<&str> = cases::all().map(|case| case.name).collect();
    assert_eq!(names.len(), cases::all().count(), "two cases of one name");
}

/// Fields of which every value is legal: the time, the id, the interval and how many blocks are unknown are
/// not the node's to judge, nor is what later agents offer and say besides.
const FREE: [&str; 6] = ["hello+4", "hello+56", "hello+72", "mark+0", "mark+16", "mark+28"];

/// Whoever adds a field to the document adds a case here.
#[test]
fn every_field_that_an_agent_sends_is_wrong_in_some_case() {
    let mut table = "";
    let mut fields = BTreeSet::new();
    for line in DOCUMENT.lines() {
        match line {
            _ if line.starts_with("## Header") => table = "header",
            _ if line.starts_with("**Hello**") => table = "hello",
            _ if line.starts_with("**Mark**") => table = "mark",
            _ if line.starts_with("**") || line.starts_with("## ") => table = "",
            _ => {}
        }
        let offset = line.strip_prefix("| ").and_then(|rest| rest.split(' ').next());
        let offset = offset.and_then(|word| word.parse::<usize>().ok());
        if let Some(offset) = offset.filter(|_| !table.is_empty()) {
            fields.insert(format!("{table}+{offset}"));
        }
    }
    assert_eq!(fields.len(), 13 + 12 + 10, "{fields:?}");
    let broken: BTreeSet<&str> = cases::all().map(|case| case.field).collect();
    for field in &fields {
        let is_free = FREE.contains(&field.as_str());
        assert_ne!(is_free, broken.contains(field.as_str()), "{field}");
    }
    for field in broken.iter().filter(|field| !field.is_empty()) {
        assert!(fields.contains(*field), "{field} is no field");
    }
}

/// Reasons and how often the node counted them.
type Refusals = BTreeMap<String, u64>;

fn refusals(site: &Site<'_>) -> Result<Refusals> {
    let counters = site.counters()?.into_iter();
    Ok(counters.filter(|(name, _)| name.starts_with("refused.")).collect())
}

/// Fails unless the counters grew by exactly `expected` since `before`.
fn counted(site: &Site<'_>, before: &Refusals, expected: &Refusals) -> Result<()> {
    let mut grown = refusals(site)?;
    for (reason, count) in before {
        *grown.entry(reason.clone()).or_default() -= count;
    }
    grown.retain(|_, count| *count > 0);
    ensure!(grown == *expected, "the node counted {grown:?}, not {expected:?}");
    Ok(())
}

#[test]
fn every_wrong_way_is_refused_for_its_reason_and_changes_nothing() {
    run(|system| {
        let site = Site::over(system)?;
        let (good, hostile) = (site.enrol("good")?, site.enrol("hostile")?);
        let bystander = site.protect(&good, "disk")?;
        let volume = site.protect(&hostile, "disk")?;
        let mut bystanding = Stream::new(bystander.id.into_bytes(), bystander.epoch, BLOCKS);
        let mut beside = site.session(&good, &bystander, &bystanding)?;
        let node = system.pid(Part::Node)?;
        let before = refusals(&site)?;
        let mut expected = Refusals::new();
        let mut expect = |reason: &str| {
            *expected.entry(format!("refused.{reason}")).or_default() += 1;
        };

        let (volume, mut stream) = old_epoch(&site, &hostile, volume)?;
        expect("unavailable");

        let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
        for case in cases::all() {
            let mut view = View { stream: &mut stream, other: bystander.id };
            cases::play(case, &site, &hostile, &volume, &mut view)
                .with_context(|| format!("case {:?} of {:?}", case.name, case.sentence))?;
            expect(case.counted);
            *rules.entry(case.sentence).or_default() += 1;
            // Neither its own stream moved, nor does anybody else notice.
            drop(site.session(&hostile, &volume, &stream)?);
            beside.send(&bystanding.some_write());
            let journaled = bystanding.next - 1;
            while !matches!(beside.said()?, Some(Said::Ack { journaled: seq, .. }) if seq >= journaled)
            {
            }
        }
        drop(beside);
        site.same_node(node)?;
        counted(&site, &before, &expected)?;
        site.restores(&hostile, &volume, &mut stream)?;
        site.restores(&good, &bystander, &mut bystanding)?;

        println!("{} cases of {} rules", cases::all().count(), rules.len());
        rules.iter().for_each(|(rule, count)| println!("{count:4}  {rule}"));
        expected.iter().for_each(|(reason, count)| println!("{count:4}  {reason}"));
        Ok(())
    });
}

/// P6: a session goes on while its volume gets a newer epoch: it is ended at once, to be judged anew at the next
/// hello, and nothing that it says afterwards has an effect.
fn old_epoch(site: &Site<'_>, agent: &Agent, volume: Volume) -> Result<(Volume, Stream)> {
    let mut stream = Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS);
    let mut session = site.session(agent, &volume, &stream)?;
    session.send(&[stream.some_write(), stream.mark(&Mark::prompt())].concat());
    let last = stream.next - 1;
    while !matches!(session.said()?, Some(Said::Ack { committed, .. }) if committed >= last) {}

    let volume = site.next_epoch(agent, &volume)?;
    let end = session.end()?;
    ensure!(
        matches!(end, End::Refused(reason::UNAVAILABLE, _)),
        "the old epoch's session: {end:?}"
    );
    session.send(&stream.clone().some_write());

    stream.epoch = volume.epoch;
    drop(site.session(agent, &volume, &stream)?);
    Ok((volume, stream))
}

/// What looks odd and is legal must be taken, or the cases above prove too much.
#[test]
fn what_is_legal_is_taken_however_odd() {
    run(|system| {
        let site = Site::over(system)?;
        let agent = site.enrol("odd")?;
        let volume = site.protect(&agent, "disk")?;
        let mut stream = Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS);
        for (interval, may, length) in [(0, 0, 72), (u32::MAX, u32::MAX, 512)] {
            let mut hello = stream.hello();
            (hello.mark_interval, hello.may) = (interval, may);
            let mut hello = hello.frame();
            hello.body.resize(length, 0xee);
            let welcome = farshore_e2e::wait::until("a welcome", WELCOME_LIMIT, || {
                let mut peer = site.upgraded(&agent, &volume)?;
                peer.send(&hello.bytes());
                Ok(peer.said()?.filter(|said| matches!(said, Said::Welcome { .. })))
            })?;
            let nothing =
                Said::Welcome { received: 0, journaled: 0, committed: 0, imprint: [0; 3] };
            ensure!(welcome == nothing, "{welcome:?}");
        }
        let before = refusals(&site)?;
        let mut session = site.session(&agent, &volume, &stream)?;
        for frame in odd_frames(&mut stream) {
            // Byte by byte at the seams: frames need not come in one piece.
            let middle = frame.len() / 2;
            session.send(&frame[..middle]);
            session.send(&frame[middle..]);
        }
        // Closing over acks that were not read would reset the connection, and lose frames on the way.
        let last = stream.next - 1;
        while !matches!(session.said()?, Some(Said::Ack { journaled, .. }) if journaled >= last) {}
        drop(session);
        let node = system.pid(Part::Node)?;
        site.restores(&agent, &volume, &mut stream)?;
        site.same_node(node)?;
        counted(&site, &before, &Refusals::new())?;
        // Its absurd marks are in the catalogue, and keep nobody else's out of it.
        let other = site.protect(&agent, "other")?;
        let mut plain = Stream::new(other.id.into_bytes(), other.epoch, 16);
        site.restores(&agent, &other, &mut plain)?;
        for (volume, points) in [(&volume, 7), (&other, 1)] {
            let name = &volume.machine;
            let mut listed = serde_json::Value::Null;
            farshore_e2e::wait::until("all points in the catalogue", WELCOME_LIMIT, || {
                listed = system.farshore().json(&format!("point list {name}"))?;
                let found = listed["points"].as_array().map_or(0, Vec::len);
                ensure!(found <= points, "{listed}");
                Ok((found == points).then_some(()))
            })
            .with_context(|| format!("{listed}"))?;
        }
        Ok(())
    });
}

/// Good frames that few agents would send.
fn odd_frames(stream: &mut Stream) -> Vec<Vec<u8>> {
    let last_block = BLOCKS as u64 - 1;
    vec![
        // Overlapping in every way: the last writer of each block wins.
        stream.write(0, 256),
        stream.write(100, 256),
        stream.zero(120, 20),
        stream.write(125, 3),
        stream.write(99, 255),
        stream.write(0, 1),
        stream.zero(0, BLOCKS as u64),
        stream.write(last_block, 1),
        stream.zero(last_block, 1),
        stream.write(last_block - 1, 2),
        // Marks one after another, with clocks and ids that nobody believes.
        stream.mark(&Mark { time: u64::MAX, ..Mark::prompt() }),
        stream.mark(&Mark { kind: 2, flags: 0, ..Mark::prompt() }),
        stream.mark(&Mark { point: [0xff; 16], ..Mark::prompt() }),
        stream.mark(&Mark { kind: 3, unknown_blocks: u32::MAX, ..Mark::prompt() }),
        stream.mark(&Mark { kind: 4, attempt: [1; 16], member: [65534, 65535], ..Mark::prompt() }),
        stream.mark(&Mark { kind: 5, flags: 0xf1, ..Mark::prompt() }),
        // Copies, and flags of later agents that may be ignored.
        stream.flagged(0x01, 300, 4),
        stream.flagged(0xf0, 301, 1),
        stream.flagged(0xf1, 302, 1),
        stream.write(7, 200),
    ]
}

const WELCOME_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Every stage has cases, or the table lost some.
#[test]
fn every_stage_of_a_connection_has_cases() {
    let stage = |act: &Act| match act {
        Act::Plain(_) | Act::PlainCut(_) => "without TLS",
        Act::Shake(_) => "handshake",
        Act::Request(_) | Act::NoRequest => "request",
        Act::First(_) | Act::Foreign(_) => "hello",
        Act::Later(_) => "stream",
        Act::Cut(_) | Act::CutRaw(_) | Act::Reset(_) => "end",
    };
    let stages: BTreeSet<&str> = cases::all().map(|case| stage(&case.act)).collect();
    assert_eq!(stages.len(), 6, "{stages:?}");
}
