//! The targets, and the table of them.

mod derived;
mod frames;
mod kept_files;
mod machines;
mod maps;
mod memory_files;
mod nbd;
mod nbd_model;
mod objects;
mod register;
mod sealed;
mod sealed_maps;
mod segment;
mod streams;
mod text;

use crate::Target;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Most memory of a target whose input is small and whose decoder owes it nothing but small values.
const LITTLE: usize = 256 * KIB;

macro_rules! target {
    ($name:literal, $module:ident, $run:ident, $samples:ident, $memory:expr) => {
        Target {
            name: $name,
            run: $module::$run,
            samples: $module::$samples,
            memory_bytes_max: $memory,
        }
    };
}

/// Every target, in the order of `docs/formats/README.md`.
pub const TARGETS: &[Target] = &[
    target!("frame", frames, frame, frame_samples, LITTLE),
    target!("hrl_header", streams, hrl_header, hrl_header_samples, LITTLE),
    target!("hrl_frames", streams, hrl_frames, hrl_frames_samples, LITTLE),
    target!("journal_file", streams, journal_file, journal_file_samples, LITTLE),
    target!("journal_group", streams, journal_group, journal_group_samples, LITTLE),
    target!("journal_entries", streams, journal_entries, journal_entries_samples, LITTLE),
    target!("segment_header", segment, header, header_samples, LITTLE),
    target!("segment_table", segment, table, table_samples, 4 * MIB),
    target!("epoch_object", objects, epoch_object, epoch_object_samples, LITTLE),
    target!("epoch_body", objects, epoch_body, epoch_body_samples, LITTLE),
    target!("map_object", maps, map_object, map_object_samples, LITTLE),
    target!("map_body", maps, map_body, map_body_samples, 4 * MIB),
    target!("map_pages_object", maps, pages_object, pages_object_samples, LITTLE),
    target!("map_directory", maps, directory, directory_samples, MIB),
    target!("map_page", maps, page, page_samples, 4 * MIB),
    target!("index_run_object", derived, index_run_object, index_run_object_samples, LITTLE),
    target!("index_run_body", derived, index_run_body, index_run_body_samples, 4 * MIB),
    target!("checkpoint_object", derived, checkpoint_object, checkpoint_object_samples, LITTLE),
    target!("checkpoint_body", derived, checkpoint_body, checkpoint_body_samples, LITTLE),
    target!("revision_object", derived, revision_object, revision_object_samples, LITTLE),
    target!("revision_body", derived, revision_body, revision_body_samples, MIB),
    target!("horizon_object", derived, horizon_object, horizon_object_samples, LITTLE),
    target!("horizon_body", derived, horizon_body, horizon_body_samples, LITTLE),
    target!("register_object", register, object, object_samples, LITTLE),
    target!("register_body", register, body, body_samples, 4 * MIB),
    target!("machine_object", machines, machine_object, machine_object_samples, LITTLE),
    target!("machine_body", machines, machine_body, machine_body_samples, LITTLE),
    target!("group_object", machines, group_object, group_object_samples, LITTLE),
    target!("group_body", machines, group_body, group_body_samples, LITTLE),
    target!("base_object", derived, base_object, base_object_samples, LITTLE),
    target!("base_body", derived, base_body, base_body_samples, LITTLE),
    target!("vault_object", objects, vault_object, vault_object_samples, LITTLE),
    target!("key_object", objects, key_object, key_object_samples, LITTLE),
    target!("recovery_key", text, recovery_key, recovery_key_samples, LITTLE),
    target!("decompress", sealed, decompress, decompress_samples, 3 * MIB),
    target!("sealed_journal", sealed, journal, journal_samples, 9 * MIB),
    target!("sealed_segment", segment, sealed, sealed_samples, 64 * MIB),
    target!("sealed_epoch", sealed, epoch, epoch_samples, LITTLE),
    target!("sealed_map", sealed_maps, manifest, manifest_samples, 40 * MIB),
    target!("sealed_map_pages", sealed_maps, pages, pages_samples, 40 * MIB),
    target!("sealed_index_run", sealed, index_run, index_run_samples, 40 * MIB),
    target!("sealed_checkpoint", sealed, checkpoint, checkpoint_samples, 40 * MIB),
    target!("sealed_revision", sealed, revision, revision_samples, MIB),
    target!("sealed_horizon", sealed, horizon, horizon_samples, 40 * MIB),
    target!("sealed_register", register, sealed, sealed_samples, 40 * MIB),
    target!("sealed_machine", machines, sealed_machine, sealed_machine_samples, LITTLE),
    target!("sealed_group", machines, sealed_group, sealed_group_samples, LITTLE),
    target!("sealed_base", sealed, base, base_samples, 40 * MIB),
    target!("object_names", text, object_names, object_names_samples, LITTLE),
    target!("chunk_index", kept_files, chunk_index, chunk_index_samples, 8 * MIB),
    target!("overlay_map", kept_files, overlay_map, overlay_map_samples, MIB),
    target!("intent_file", kept_files, intent, intent_samples, LITTLE),
    target!("hashes_file", kept_files, hashes, hashes_samples, LITTLE),
    target!("prints_file", kept_files, prints, prints_samples, LITTLE),
    target!("unknown_file", kept_files, unknown, unknown_samples, LITTLE),
    target!("volume_state", kept_files, state, state_samples, LITTLE),
    target!("hrl_log", kept_files, log, log_samples, 16 * MIB),
    target!("upgrade_request", text, upgrade_request, upgrade_request_samples, LITTLE),
    target!("enrolment_token", text, enrolment_token, enrolment_token_samples, LITTLE),
    target!("identity_uri", text, identity_uri, identity_uri_samples, LITTLE),
    target!("point_selector", text, point_selector, point_selector_samples, LITTLE),
    target!("nbd_address", text, nbd_address, nbd_address_samples, LITTLE),
    target!("nbd_conversation", nbd, conversation, conversation_samples, 40 * MIB),
];
