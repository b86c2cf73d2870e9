//! Every byte: flipped, cut away, something behind it.

use crate::check::{Bench, Damage, kind_of, objects, piece_at};
use crate::needs::{At, Piece};
use bytes::Bytes;

/// Bytes of the inside of a frame between two that are flipped; its first and last ones all are.
const FRAME_STRIDE: usize = 41;
const FRAME_EDGE_BYTES: usize = 20;

fn flipped(whole: &Bytes, at: usize) -> Bytes {
    let mut bytes = whole.to_vec();
    bytes[at] ^= 1 << (at % 8);
    bytes.into()
}

/// The bytes of an object to flip: all, but of the inside of frames only some.
fn places(pieces: &[At]) -> Vec<usize> {
    let is_edge = |at: &At, byte: usize| {
        byte - at.range.start < FRAME_EDGE_BYTES || at.range.end - byte <= FRAME_EDGE_BYTES
    };
    let mut places = Vec::new();
    for at in pieces {
        let is_wanted = |byte: &usize| {
            !matches!(at.piece, Piece::Frame(_))
                || is_edge(at, *byte)
                || (byte - at.range.start).is_multiple_of(FRAME_STRIDE)
        };
        places.extend(at.range.clone().filter(is_wanted));
    }
    places
}

async fn flip_all(prefix: &str, share: (usize, usize)) {
    let mut bench = Bench::new().await;
    let mut turn = 0;
    for (name, pieces) in objects(&bench.world, prefix).await {
        let whole = bench.world.objects[&name].clone();
        for at in places(&pieces) {
            turn += 1;
            if turn % share.1 != share.0 {
                continue;
            }
            let damage = Damage::Bytes(flipped(&whole, at));
            let hit = piece_at(&pieces, at);
            let found = (hit.piece, hit.range.start);
            bench.check(&name, &damage, found, &format!("flip at {at}")).await;
        }
    }
    bench.tally.finish(&format!("flips in {prefix}"));
}

/// Where a cut or grown object is found to be so: what it says of its length is in its header.
fn found_at(name: &str, pieces: &[At], length: usize) -> (Piece, usize) {
    let header = pieces[0].range.end;
    let whole = pieces.last().unwrap().range.end;
    match kind_of(name) {
        _ if length < header => (Piece::Header, 0),
        "vault" | "keys" => (Piece::Header, 0),
        // The lengths in a segment's header are compared with the object's before the table is opened.
        "logs" => (Piece::Body, length.min(whole)),
        _ => (Piece::Body, 0),
    }
}

/// Lengths to cut an object to: all of a small one; around every piece of a larger one, and others.
fn lengths(pieces: &[At]) -> Vec<usize> {
    let whole = pieces.last().unwrap().range.end;
    if whole < 200 {
        return (0..whole).collect();
    }
    let mut lengths: Vec<usize> = (0..whole).step_by(23).chain([0, 1, whole - 1]).collect();
    for at in pieces {
        let (start, end) = (at.range.start, at.range.end);
        lengths.extend([start.saturating_sub(1), start, start + 1, end - 1, end - 16, end - 17]);
    }
    lengths.retain(|length| *length < whole);
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

async fn cut_all(prefix: &str) {
    let mut bench = Bench::new().await;
    for (name, pieces) in objects(&bench.world, prefix).await {
        let whole = bench.world.objects[&name].clone();
        for length in lengths(&pieces) {
            let damage = Damage::Bytes(whole.slice(..length));
            let found = found_at(&name, &pieces, length);
            bench.check(&name, &damage, found, &format!("cut to {length}")).await;
        }
        let page = [0; 4096];
        for more in [&[0][..], &[0; 16], &page, &whole] {
            let grown: Bytes = [&whole, more].concat().into();
            let found = found_at(&name, &pieces, grown.len());
            bench.check(&name, &Damage::Bytes(grown), found, "growth").await;
        }
    }
    bench.tally.finish(&format!("cuts and growths of {prefix}"));
}

#[tokio::test]
async fn a_flip_in_the_identity_or_a_key_is_named() {
    flip_all("vault", (0, 1)).await;
    flip_all("keys/", (0, 1)).await;
    flip_all("revisions/", (0, 1)).await;
}

#[tokio::test]
async fn a_flip_in_an_epoch_is_named_and_older_points_read() {
    flip_all("volumes/", (0, 1)).await;
}

#[tokio::test]
async fn a_flip_in_a_segment_is_named_and_other_points_read_1() {
    flip_all("logs/", (0, 3)).await;
}

#[tokio::test]
async fn a_flip_in_a_segment_is_named_and_other_points_read_2() {
    flip_all("logs/", (1, 3)).await;
}

#[tokio::test]
async fn a_flip_in_a_segment_is_named_and_other_points_read_3() {
    flip_all("logs/", (2, 3)).await;
}

#[tokio::test]
async fn a_flip_in_a_map_or_index_run_is_named_and_costs_nothing() {
    flip_all("maps/", (0, 1)).await;
    flip_all("pages/", (0, 1)).await;
    flip_all("index/", (0, 1)).await;
}

#[tokio::test]
async fn a_cut_or_grown_object_is_named() {
    for prefix in ["vault", "keys/", "revisions/", "volumes/", "maps/", "pages/", "index/"] {
        cut_all(prefix).await;
    }
}

#[tokio::test]
async fn a_cut_or_grown_segment_is_named() {
    cut_all("logs/").await;
}
