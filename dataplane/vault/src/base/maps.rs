//! What the maps refer to that a base names.

use super::VolumeBase;
use crate::error::VaultError;
use crate::map::{self, Layer, open_layers};
use crate::vault::Vault;
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::VOLUME_BLOCKS_MAX;
use farshore_proto::{BlockRange, MapAttempt, Target};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The maps that a base names. Layers that they have in common are read once.
pub(crate) struct BaseMaps<'a> {
    vault: &'a Vault,
    epochs: &'a [EpochBody],
    base: &'a VolumeBase,
    opened: Vec<Arc<Layer>>,
    read: BTreeSet<MapAttempt>,
}

impl<'a> BaseMaps<'a> {
    /// Nothing is read yet.
    pub(crate) fn new(vault: &'a Vault, epochs: &'a [EpochBody], base: &'a VolumeBase) -> Self {
        Self { vault, epochs, base, opened: Vec::new(), read: BTreeSet::new() }
    }

    /// Adds what one of them refers to.
    ///
    /// # Errors
    /// `Corrupt`, with the names of both, if it cannot be read; `Unavailable`.
    pub(crate) async fn read(
        &mut self,
        name: map::Name,
        targets: &mut BTreeSet<Target>,
    ) -> Result<(), VaultError> {
        let Self { vault, epochs, base, .. } = *self;
        let unreadable = |error| map::unreadable(vault, base, name, Some(error));
        let found = map::load(vault, base.volume, epochs, name).await.map_err(unreadable)?;
        let (known, user) = (&found.manifest.layers, found.object(base.volume));
        let layers = open_layers(vault, base.volume, known, &user, &self.opened).await;
        self.opened = layers.map_err(|failed| unreadable(failed.error))?;
        let all = BlockRange { block: 0, count: VOLUME_BLOCKS_MAX };
        for layer in self.opened.iter().filter(|layer| self.read.insert(layer.attempt())) {
            for key in layer.pages_in(all) {
                let page = layer.read(vault, key, &user).await.map_err(unreadable)?;
                targets.extend(page.frames.iter().map(|frame| frame.target));
            }
        }
        Ok(())
    }
}
