"""Bases of volumes, and the maps that they name, as docs/formats has them: bytes in, values out, or a refusal."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag

from formats import BLOCK, SEQ_MAX, SIZE_MAX, SLOT_MAX, SPECIAL, ZEROS
from formats import Keyring, Mark, Place, Target
from formats import damaged, mark_kind, mark_record, newer, nonce, open_body, open_header, sections, uid, unseal

BODY_MAX = 16 << 20
FULL, DELTA = 1, 2
# map.md: an epoch's ordinal and a seq.
At = tuple[int, int]


def digest(data: bytes) -> bytes:
    """base.md: BLAKE3-256 of an object as it is stored."""
    return blake3(data).digest()


def base_place(volume: bytes, number: int) -> Place:
    """base.md: name."""
    return Place(f"volumes/{uid(volume)}/bases/{number:010}", b"FSBS", volume, number)


def at_text(at: At) -> str:
    """map.md: a place in a name."""
    return f"{at[0]:010}-{at[1]:020}"


class Kept(NamedTuple):
    """base.md, a point that is kept."""

    at: At
    map: bytes
    epoch: int
    size: int
    mark: Mark


class Base(NamedTuple):
    """base.md, layout."""

    number: int
    at: At
    map: bytes
    manifest: bytes
    log: bytes
    slot: int
    points: list[Kept]


def base_body(name: str, number: int, body: bytes) -> Base:
    """base.md, layout."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise damaged(name, 160, what)

    found = sections(name, 160, body, {1: (128, 1), 2: (112, 65_536)})
    check(1 in found, "there is no head")
    before, ordinal, seq, attempt, manifest, log, slot, zero = struct.unpack("<32sQQ16s32s16sQQ", found[1][0])
    check((number == 1) == (not any(before)), "the digest of the base before")
    check(ordinal > 0 and 1 <= seq <= SEQ_MAX and slot <= SLOT_MAX and not zero, "head")
    points: list[Kept] = []
    for record in found.get(2, []):
        point_ordinal, point_seq, own, epoch, size = struct.unpack_from("<QQ16sQQ", record)
        kept = Kept((point_ordinal, point_seq), own, epoch, size, mark_record(name, check, record[48:112]))
        check(point_ordinal > 0 and 1 <= point_seq <= SEQ_MAX and epoch > 0 and 1 <= size <= SIZE_MAX, "a point")
        check(kept.at <= (ordinal, seq) and (kept.at < (ordinal, seq) or own == attempt), "a point above the place")
        if points:
            last = points[-1]
            same, ascends = (last.epoch, last.size) == (epoch, size), last.at[0] < point_ordinal and last.epoch < epoch
            check(last.at[1] < point_seq and (same if last.at[0] == point_ordinal else ascends), "points out of order")
        points.append(kept)
    return Base(number, (ordinal, seq), attempt, manifest, log, slot, points)


# Maps


class Layer(NamedTuple):
    """map.md, a layer, with the length of each of its parts."""

    at: At
    attempt: bytes
    runs: int
    kind: int
    parts: list[tuple[int, int]]


class Manifest(NamedTuple):
    """map.md, layout: what a reader needs of it."""

    log: bytes
    slot: int
    size: int
    mark: At | None
    point: bytes
    layers: list[Layer]


class Run(NamedTuple):
    """pages.md, a run: blocks of a chunk of a segment, or zeros, where there is no target."""

    block: int
    count: int
    target: Target | None
    number: int
    check: bytes
    blocks: int
    first: int


def map_place(volume: bytes, at: At, attempt: bytes) -> Place:
    """map.md: name."""
    return Place(f"maps/{uid(volume)}/{at_text(at)}/{uid(attempt)}", b"FSMP", volume, at[1])


def part_place(volume: bytes, at: At, attempt: bytes, part: int) -> Place:
    """pages.md: name."""
    return Place(f"pages/{uid(volume)}/{at_text(at)}/{uid(attempt)}/{part:05}", b"FSPG", volume, at[1], part)


def open_manifest(ring: Keyring, volume: bytes, at: At, attempt: bytes, data: bytes) -> Manifest:
    """map.md, layout."""
    place = map_place(volume, at, attempt)
    name = place.name
    header = open_header(ring, place, data, own=44, raw_most=BODY_MAX)
    own_attempt, point, ordinal, zero = struct.unpack("<16s16sQI", header.own)
    if header.variant or zero or (own_attempt, ordinal) != (attempt, at[0]):
        raise damaged(name, 0, "it is not the map of its name")
    if len(data) != len(header.raw) + header.body_length:
        raise damaged(name, len(header.raw), "it is not as long as its header says")
    found = sections(name, len(header.raw), open_body(header, data[len(header.raw) :]),
                     {1: (64, 1), 2: (56, 64), 3: (16, 65_536)})
    if 1 not in found or 2 not in found:
        raise damaged(name, 200, "a section is missing")
    log, slot, size, mark_ordinal, mark_seq, _, _, kind, rest = struct.unpack("<16sQQQQQIB3s", found[1][0])
    if slot > SLOT_MAX or not 1 <= size <= SIZE_MAX or any(rest):
        raise damaged(name, 200, "head")
    mark_kind(name, kind)
    parts = [struct.unpack("<IIQ", record) for record in found.get(3, [])]
    layers, used = [], 0
    for record in found[2]:
        layer_ordinal, seq, by, runs, _, count, layer_kind, reserved = struct.unpack("<QQ16sQQIB3s", record)
        if layer_kind not in (FULL, DELTA):
            raise newer(name, f"layer of kind {layer_kind}")
        own = [(front, length) for front, _, length in parts[used : used + count]]
        if len(own) != count or bool(count) != bool(runs) or any(reserved):
            raise damaged(name, 200, "a layer")
        used += count
        layers.append(Layer((layer_ordinal, seq), by, runs, layer_kind, own))
    kinds = [layer.kind for layer in layers]
    if used != len(parts) or kinds != [DELTA] * (len(kinds) - 1) + [FULL]:
        raise damaged(name, 200, "layers or parts")
    return Manifest(log, slot, size, (mark_ordinal, mark_seq) if kind else None, point, layers)


def part_runs(ring: Keyring, place: Place, ordinal: int, attempt: bytes, data: bytes) -> Iterator[Run]:
    """pages.md: the runs of all pages of a part."""
    name = place.name
    header = open_header(ring, place, data, own=36, raw_most=BODY_MAX)
    own_attempt, own_ordinal, length, zero = struct.unpack("<16sQQI", header.own)
    if header.variant or zero or (own_attempt, own_ordinal) != (attempt, ordinal):
        raise damaged(name, 0, "it is not the part of its name")
    at = len(header.raw) + header.body_length
    if len(data) != at + length:
        raise damaged(name, min(len(data), at + length), "it is not as long as its header says")
    body = open_body(header, data[len(header.raw) : at])
    found = sections(name, len(header.raw), body, {1: (32, 4096), 2: (8, 2**18), 3: (4, 2**21)})
    reached = 0
    for number, record in enumerate(found.get(1, [])):
        first, end, runs, stored, raw, compression, reserved = struct.unpack("<QQIIIB3s", record)
        if compression > 1:
            raise newer(name, f"compression {compression}")
        if first < reached or end <= first or any(reserved) or stored > len(data) - at or raw > 1024 + 4096 * 104:
            raise damaged(name, len(header.raw), "a page")
        aad = ring.vault + place.subject + struct.pack("<QIIB7x", place.number, number, raw, compression)
        try:
            page = unseal(header.cipher, nonce(4, number), data[at : at + stored], aad, compression, raw)
        except (InvalidTag, zstandard.ZstdError) as error:
            raise damaged(name, at, f"page {number} does not open") from error
        mine = list(page_runs(name, at, page))
        if len(mine) != runs or mine[0].block != first or mine[-1].block + mine[-1].count != end:
            raise damaged(name, at, "a page is not what the directory says")
        yield from mine
        at, reached = at + stored, end


def page_runs(name: str, byte: int, page: bytes) -> Iterator[Run]:
    """pages.md, a page."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise damaged(name, byte, what)

    strides = {2: (32, 4096), 3: (28, 4096), 4: (16, 4096), 5: (8, 4096), 6: (20, 4096)}
    found = sections(name, byte, page, strides)
    targets = [Target(*struct.unpack("<16sQ8s", record)) for record in found.get(2, [])]
    frames = [struct.unpack_from("<I", record)[0] for record in found.get(3, [])]
    chunks = [struct.unpack("<IIII", record) for record in found.get(4, [])]
    checks = found.get(5, [])
    check(all(frame < len(targets) for frame in frames) and len(checks) == len(chunks), "frames or checks")
    check(all(chunk[0] < len(frames) and 1 <= chunk[3] <= 32 for chunk in chunks), "chunks")
    end = 0
    for record in found.get(6, []):
        block, count, chunk, first = struct.unpack("<QIII", record)
        check(count > 0 and end <= block, "runs that overlap")
        end = block + count
        if SPECIAL <= chunk < ZEROS:
            raise newer(name, f"chunk {chunk}")
        if chunk == ZEROS:
            yield Run(block, count, None, 0, b"", 0, 0)
            continue
        check(chunk < len(chunks) and first + count <= chunks[chunk][3], "a run beyond its chunk")
        frame, number, _, blocks = chunks[chunk]
        yield Run(block, count, targets[frames[frame]], number, checks[chunk], blocks, first)


def map_runs(
    ring: Keyring, volume: bytes, manifest: Manifest, get: Callable[[Place], bytes]
) -> Iterator[Run]:
    """map.md: what a block holds is said by the newest layer that covers it, so the oldest comes first."""
    for layer in reversed(manifest.layers):
        runs = 0
        for number, (_, length) in enumerate(layer.parts):
            place = part_place(volume, layer.at, layer.attempt, number)
            data = get(place)
            if len(data) != length:
                raise damaged(place.name, min(len(data), length), "it is not as long as its map says")
            for run in part_runs(ring, place, layer.at[0], layer.attempt, data):
                if run.block * BLOCK >= SIZE_MAX or (run.target is None and layer.kind == FULL):
                    raise damaged(place.name, 0, "a run")
                yield run
                runs += 1
        if runs != layer.runs:
            name = part_place(volume, layer.at, layer.attempt, 0).name
            raise damaged(name, 0, "its runs are not as many as its map says")
