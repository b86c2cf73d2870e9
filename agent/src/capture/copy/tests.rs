use super::*;
use crate::capture::Steps;
use crate::capture::testing::Rig;
use crate::faulty_files::Sickness;
use crate::rt::Reads;
use futures::FutureExt;
use std::sync::atomic::AtomicU64;

/// I2: a write of the guest between the reading of a run and its frame would be followed in the log by what
/// was there before it. Time stands still, so the blocks are not let go for taking too long.
#[tokio::test(start_paused = true)]
async fn what_is_copied_is_held_until_the_log_has_it() {
    let size = 1 << 20;
    let rig = Rig::new(size, Steps::default());
    rig.files.sicken(Sickness::Hangs("hrl"));
    let reads = Reads::portable().open(rig.disk.file(), Arc::new(AtomicU64::new(size))).unwrap();
    let (_joins, is_joined) = watch::channel(true);
    let copying = tokio::spawn(Arc::clone(&rig.splitter).copy_what_is_due(reads, is_joined));
    while rig.files.hanging() == 0 {
        tokio::task::yield_now().await;
    }
    let locks = rig.splitter.core.locks.clone();
    let one = BlockRange { block: 3, count: 1 };
    let is_free = locks.lock(one).now_or_never().is_some();
    rig.files.sicken(Sickness::None);
    assert!(!is_free, "it is on its way into the log");
    drop(locks.lock(one).await);
    assert_eq!(rig.log.last(), Seq(1));
    copying.abort();
    copying.await.unwrap_err();
}
