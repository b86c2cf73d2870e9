//! The vault: recovery data in an object store, readable with the store and the recovery key alone.
//!
//! - [`layout`] names objects; [`store`] puts and gets them; [`vault`] and [`key_file`] open them;
//!   [`wrappers`] says and changes which keys do.
//! - [`horizon`] says which slots may be gone, [`base`] what their volumes begin with then; [`register`] and [`gc`] delete them.
//! - [`log`] and [`epoch`] are the writing side: one put commits, create-if-absent fences.
//! - [`register`] is the one order of all that bears on deletion.
//! - [`machine`] says what a machine is made of, and which of its points have all of its disks.
//! - [`view`] reads a volume at a recovery point; [`catalog`], [`verify`] and [`stats`] say what
//!   there is and whether it is whole.
//!
//! - [`base`] says where a volume begins once history may go, and which of its points are kept.
//! - [`validate`] tries whether a store will do.
//! - [`map`] and [`runs`] write and find what is derived, to save work; nothing needs it.
//!
//! Nothing here rests on listings, clocks or renames of the store, except that `verify`, `stats` and
//! `wrappers` list, and that machines are found by a listing.

#![forbid(unsafe_code)]

pub mod base;
pub mod blocking;
mod blocks;
pub mod catalog;
pub mod chain;
pub mod checkpoint;
mod chunks;
pub mod durable;
pub mod epoch;
mod error;
pub mod fence;
pub mod fetch;
mod gapless;
pub mod gc;
pub mod horizon;
pub mod key_file;
pub mod layout;
pub mod limits;
pub mod log;
pub mod machine;
pub mod map;
mod patience;
pub mod register;
pub mod revision;
pub mod runs;
pub mod stats;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod validate;
pub mod vault;
pub mod verify;
pub mod view;
pub mod wrappers;

pub use base::VolumeBase;
pub use chain::Hole;
pub use chunks::Location;
pub use error::VaultError;
pub use patience::{Patience, Supply, Timer};
pub use store::{Access, Store, StoreError, vault_url, vault_url_of};
pub use vault::Vault;
pub use view::{Piece, Point, PointSelector, VolumeView};

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::VolumeId;

    fn spawnable<T: Send>(_: impl FnOnce() -> T) {}

    #[test]
    fn futures_can_be_spawned() {
        fn check(vault: &'static Vault) {
            let volume = VolumeId([0; 16]);
            spawnable(|| VolumeView::open(vault, volume, PointSelector::Latest));
            spawnable(|| catalog::end_of_volume(vault, volume));
            spawnable(|| fence::fence_volume(vault, volume, farshore_proto::Epoch(1), None));
            spawnable(|| verify::verify(vault, true, |_| {}));
            spawnable(|| stats::stats(vault));
            spawnable(|| log::seal(vault, farshore_proto::LogId([0; 16]), farshore_proto::Slot(0)));
            spawnable(|| map::write(vault, volume));
            spawnable(|| register::bear(vault, 0, farshore_proto::LogId([0; 16])));
            spawnable(|| async { runs::list(vault, None).await });
        }
        let _: fn(&'static Vault) = check;
    }
}
