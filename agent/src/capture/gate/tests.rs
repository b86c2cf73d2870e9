use super::*;
use crate::capture::splitter::Served;
use crate::capture::testing::Rig;
use crate::capture::{Call, Step, Steps};
use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use farshore_nbd::Backend;
use std::time::Instant;

const SIZE: u64 = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Stops whoever comes by until it is told to go on.
fn stop() -> (impl Fn() + Send + Sync + 'static, Receiver<()>, Sender<()>) {
    let (reached, is_reached) = bounded(1);
    let (go, may_go) = bounded(1);
    let stop = move || {
        reached.send(()).unwrap();
        may_go.recv().unwrap();
    };
    (stop, is_reached, go)
}

/// D30: whoever writes the file next writes what the failed clearing took, with the intents that were set
/// meanwhile.
#[test]
fn what_a_failed_clearing_took_is_put_back_before_anybody_else_has_the_file() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let (stop, is_reached, go) = stop();
    let rig = Rig::new(
        SIZE,
        Steps::with_hook(move |step| match step {
            Step::BeforeClear => {
                stop();
                Err(io::Error::other("not written"))
            }
            _ => Ok(()),
        }),
    );
    let gate = &rig.gate;
    let clearing = runtime.spawn(Arc::clone(gate).write_cleared(vec![3], Durable::default()));
    is_reached.recv().unwrap();
    // From here on nothing is put back, so nobody may come to have the file, however long that takes.
    let inner = gate.lock();
    go.send(()).unwrap();
    let lane = Arc::clone(&gate.lane);
    let next = async { tokio::time::timeout(Duration::from_millis(300), lane.lock_owned()).await };
    let is_free = runtime.block_on(next).is_ok();
    drop(inner);
    assert!(!is_free, "the file is somebody else's before it was put back");
    runtime.block_on(clearing).unwrap();
    drop(gate.lane.try_lock().expect("the file is free"));
    assert_eq!(gate.lock().map.take_changes().indices(), [0]);
}

/// D5, I2: a mark that is under way and has found no doubt must be refused by the time that the write, which
/// the log does not have, leaves the gate.
#[test]
fn what_is_not_logged_refuses_marks_before_it_leaves_the_gate() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let (stop, is_reached, go) = stop();
    let rig = Rig::new(
        SIZE,
        Steps::with_disk(move |call| match call {
            Call::Read { .. } => {
                stop();
                Err(io::Error::from_raw_os_error(5))
            }
            _ => Ok(()),
        }),
    );
    let served = Served(Arc::clone(&rig.splitter));
    // The rest of the block is read back for the log.
    let writing =
        runtime.spawn(async move { served.write(512, Bytes::from(vec![1; 512]), false).await });
    is_reached.recv().unwrap();
    let breaches = rig.log.breaches();
    // Nothing leaves the gate from here on.
    let inner = rig.gate.lock();
    go.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while rig.log.breaches() == breaches {
        assert!(Instant::now() < deadline, "it waits at the gate, and marks are not refused");
        std::thread::yield_now();
    }
    assert_eq!(inner.doubt.in_doubt(), 0);
    drop(inner);
    runtime.block_on(writing).unwrap().expect("the disk has it");
    assert_eq!(rig.gate.in_doubt(), 1);
}
