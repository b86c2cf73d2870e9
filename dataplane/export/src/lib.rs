//! What is done with a view of a volume: written to a file or a disk, or served and written over.
//!
//! - [`restore`] writes all of a view.
//! - [`Export`] serves one at once; what is written meanwhile goes to an [`overlay`].

#![forbid(unsafe_code)]

mod backend;
pub mod limits;
pub mod overlay;
pub mod restore;
mod served;

pub use backend::{Disk, Watch};
pub use served::{Export, ExportError, Holds};

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_vault::VolumeView;

    fn spawnable<T: Send>(_: impl FnOnce() -> T) {}

    #[test]
    fn futures_can_be_spawned() {
        fn check(view: &'static VolumeView, export: &'static Export) {
            spawnable(|| restore::restore(view, "x".as_ref(), Default::default(), |_| {}));
            spawnable(|| export.read(0, 512));
            spawnable(|| export.write(0, bytes::Bytes::new()));
        }
        let _: fn(&'static VolumeView, &'static Export) = check;
    }
}
