//! The disk is served as long as it serves, whatever the control plane says or does not say.

use super::*;
use crate::control::{Known, KnownVolume, Word};
use crate::service::Service;

/// A client's connection to the served disk, of which nothing is asked.
pub(super) fn connected(report: &AgentVolumeReport) -> std::os::unix::net::UnixStream {
    let uri = report.nbd_uri.clone().expect("the disk is served");
    let path = uri.split_once("?socket=").expect("it is a socket").1;
    std::os::unix::net::UnixStream::connect(path).unwrap()
}

struct Host {
    rig: Rig,
    service: Arc<Service>,
    known: watch::Sender<Option<Arc<Known>>>,
    follow: tokio::task::JoinHandle<()>,
}

impl Host {
    fn start(rig: Rig) -> Self {
        Self::start_with(rig, Steps::default())
    }

    fn start_with(rig: Rig, steps: Steps) -> Self {
        let env = rig.env(steps);
        let service = Service::new(env);
        let known = watch::Sender::new(None);
        let follow = tokio::spawn(Arc::clone(&service).follow(known.subscribe()));
        Self { rig, service, known, follow }
    }

    fn say(&self, word: Word, detached: bool) {
        let volume = self.rig.assigned.borrow().clone();
        let detached = if detached { vec![volume.volume] } else { Vec::new() };
        let volumes = vec![KnownVolume { volume, word }];
        self.known.send_replace(Some(Arc::new(Known { version: 1, volumes, detached })));
    }

    async fn until(&self, what: &str, holds: impl Fn(Option<&AgentVolumeReport>) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self.service.reports(None).first()) {
            assert!(Instant::now() < deadline, "not {what}: {:?}", self.service.reports(None));
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn until_protected(&self) {
        self.until("protected", |report| {
            report.is_some_and(|report| report.state == VolumeState::Protected)
        })
        .await;
    }

    fn ended(&self) -> Vec<Uuid> {
        self.service.ended(&[self.rig.assigned.borrow().volume])
    }
}

/// P11: silence takes no disk away and is not called protected; a detach waits for the last client.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_is_served_until_it_is_detached_and_its_last_client_has_left() {
    let host = Host::start(Rig::new(4 * MIB, Capture::Nbd));
    host.say(Word::Assigned, false);
    host.until_protected().await;
    // P42: what is wrong with the agent is wrong with each of its volumes.
    let told = &host.service.reports(Some("its directory is full"))[0];
    assert_eq!(
        (told.state, told.detail.as_str()),
        (VolumeState::Degraded, "its directory is full")
    );
    let client = connected(&host.service.reports(None)[0]);
    for (word, text) in [(Word::Silent, "no node is named"), (Word::Fenced, "was failed over")] {
        host.say(word, false);
        host.until(text, |report| {
            report.is_some_and(|report| {
                report.detail.contains(text)
                    && report.nbd_uri.is_some()
                    && report.state != VolumeState::Protected
            })
        })
        .await;
    }
    // Its data goes on as if nothing had been said.
    host.say(Word::Assigned, false);
    host.until_protected().await;
    host.say(Word::Detached, true);
    host.until("ending", |report| {
        report.is_some_and(|report| report.detail.contains("until its last client has left"))
    })
    .await;
    // Longer than the agent looks for clients that have left.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(host.service.reports(None)[0].nbd_uri.is_some() && host.ended().is_empty());
    drop(client);
    host.until("gone", |report| report.is_none()).await;
    assert_eq!(host.ended().len(), 1, "the control plane hears it");
    host.say(Word::Assigned, false);
    host.until_protected().await;
    host.follow.abort();
    host.service.stop().await;
}

/// P11: another capture of a volume is an explicit change, and waits for the clients of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_capture_begins_when_the_clients_of_the_first_have_left() {
    let host = Host::start(Rig::new(4 * MIB, Capture::Nbd));
    host.say(Word::Assigned, false);
    host.until_protected().await;
    let client = connected(&host.service.reports(None)[0]);
    host.rig.assigned.send_modify(|volume| volume.capture = Capture::Scan);
    host.say(Word::Assigned, false);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(host.service.reports(None)[0].nbd_uri.is_some(), "it is served");
    drop(client);
    host.until("scanned", |report| {
        report.is_some_and(|report| {
            report.nbd_uri.is_none() && report.state == VolumeState::Protected
        })
    })
    .await;
    host.follow.abort();
    host.service.stop().await;
}

/// D28: a volume that hangs on its way to its end keeps no other from beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_volume_that_hangs_at_its_end_holds_up_no_other() {
    let (hangs, hung) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (holding, waiting) = (Arc::clone(&hangs), Arc::clone(&hung));
    let steps = Steps::with_disk(move |call| {
        while call == crate::capture::Call::Sync && holding.load(Ordering::SeqCst) {
            waiting.store(true, Ordering::SeqCst);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    });
    let host = Host::start_with(Rig::new(4 * MIB, Capture::Nbd), steps);
    host.say(Word::Assigned, false);
    host.until_protected().await;
    hangs.store(true, Ordering::SeqCst);
    host.say(Word::Detached, true);
    host.until("hanging", |_| hung.load(Ordering::SeqCst)).await;
    let mut other = host.rig.assigned.borrow().clone();
    let disk = host.rig.dir.path().join("other.img");
    std::fs::File::create(&disk).unwrap().set_len(4 * MIB).unwrap();
    (other.volume, other.disk) = (Uuid::from_u128(43), disk.to_str().unwrap().to_owned());
    let volumes = vec![KnownVolume { volume: other, word: Word::Assigned }];
    host.known.send_replace(Some(Arc::new(Known { version: 2, volumes, detached: Vec::new() })));
    host.until("served", |_| {
        let reports = host.service.reports(None);
        reports.iter().any(|report| report.volume.as_u128() == 43 && report.nbd_uri.is_some())
    })
    .await;
    hangs.store(false, Ordering::SeqCst);
    host.until("gone", |_| {
        host.service.reports(None).iter().all(|report| report.volume.as_u128() == 43)
    })
    .await;
    host.follow.abort();
    host.service.stop().await;
}
