//! Maps: what a volume holds at a place of its stream. A manifest lists layers; a layer is parts; a part is pages.
//!
//! Layout and rules: `docs/formats/map.md` and `docs/formats/pages.md`.

mod manifest;
mod page;
mod part;

pub use manifest::{Layer, LayerKind, Manifest, MapFields, MapHeader, MapMark, PartShape};
pub use page::{CHECK_BYTES, FrameAt, Page, PageChunk};
pub use part::{Directory, PageAt, PartFields, PartHeader, REGION_BLOCKS};

pub(crate) use manifest::OWN_BYTES;
pub(crate) use part::OWN_BYTES as PART_OWN_BYTES;
