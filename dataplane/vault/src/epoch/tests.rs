use super::*;
use crate::testing::World;
use farshore_proto::{Epoch, ErrorKind, LogId, Seq, Slot};

fn body(epoch: u64, log: u8, first_seq: u64) -> EpochBody {
    EpochBody {
        epoch: Epoch(epoch),
        log: LogId([log; 16]),
        first_slot: Slot(0),
        first_seq: Seq(first_seq),
        size_bytes: 1 << 20,
        stamp: farshore_proto::Stamp::default(),
        label: "db-1 /dev/vda".to_owned(),
    }
}

#[tokio::test]
async fn a_claim_wins_once_and_may_be_repeated() {
    let world = World::new(0, 0).await;
    let volume = VolumeId([9; 16]);
    assert!(read_epochs(&world.vault, volume).await.unwrap().is_empty());
    for (ours, ordinal) in [(body(3, 1, 1), 1), (body(5, 2, 40), 2)] {
        for _ in 0..2 {
            let claimed = claim(&world.vault, volume, &ours).await.unwrap();
            assert_eq!(claimed, Claim::Claimed { ordinal });
        }
    }
    let epochs = read_epochs(&world.vault, volume).await.unwrap();
    assert_eq!(epochs, [body(3, 1, 1), body(5, 2, 40)]);
    // The same or an older epoch is too late, whoever asks.
    for late in [body(3, 1, 1), body(4, 7, 50), body(5, 7, 40)] {
        let lost = claim(&world.vault, volume, &late).await.unwrap();
        assert_eq!(lost, Claim::Lost { newest: body(5, 2, 40) });
    }
}

#[tokio::test]
async fn of_two_that_claim_at_once_one_wins() {
    let world = World::new(0, 0).await;
    for round in 0..16 {
        let volume = VolumeId([round; 16]);
        let (a, b) = (body(2, 1, 1), body(2, 2, 1));
        let (a, b) = tokio::join!(claim(&world.vault, volume, &a), claim(&world.vault, volume, &b));
        let won =
            [a.unwrap(), b.unwrap()].iter().filter(|c| matches!(c, Claim::Claimed { .. })).count();
        assert_eq!(won, 1);
    }
}

#[tokio::test]
async fn a_claim_that_goes_back_or_has_too_long_a_label_is_refused() {
    let world = World::new(0, 0).await;
    let volume = VolumeId([9; 16]);
    claim(&world.vault, volume, &body(1, 1, 40)).await.unwrap();
    let error = claim(&world.vault, volume, &body(2, 1, 39)).await.unwrap_err();
    assert!(matches!(error, VaultError::EpochOrder { .. }), "{error}");
    let label = "x".repeat(LABEL_BYTES_MAX + 1);
    let long = EpochBody { label, ..body(2, 1, 40) };
    let error = claim(&world.vault, volume, &long).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert_eq!(read_epochs(&world.vault, volume).await.unwrap().len(), 1);
}

/// A store that is away when a later epoch is asked for has not said that one is there.
#[tokio::test]
async fn an_epoch_that_could_not_be_asked_for_makes_none_a_lost_one() {
    let world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    for ordinal in 2..=7 {
        let (store, counted) = crate::testing::counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        counted.refuse(&ObjectName::epoch(volume, ordinal).to_string());
        let read = read_epochs(&vault, volume).await;
        if ordinal <= 2 + EPOCHS_BEHIND {
            assert!(read.unwrap_err().is_unavailable(), "ordinal {ordinal}");
        } else {
            assert_eq!(read.unwrap().len(), 1, "ordinal {ordinal} says nothing of the end");
        }
    }
    // One that is there is missed by name all the same.
    let later = world.file(&ObjectName::epoch(volume, 3));
    std::fs::copy(world.file(&ObjectName::epoch(volume, 1)), later).unwrap();
    let error = read_epochs(&world.vault, volume).await.unwrap_err();
    assert!(matches!(error, VaultError::LostEpoch { .. }), "{error}");
}
