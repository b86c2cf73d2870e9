"""Horizons of logs, as docs/formats has them: bytes in, values out, or a refusal."""

from __future__ import annotations

import struct
from typing import NamedTuple

from formats import REGISTER_MAX, SEQ_MAX, SLOT_MAX
from formats import Place
from formats import damaged, sections, uid

BODY_MAX = 16 << 20
HORIZON_MAX = 2**32
# checkpoint.md, flags of a volume: what must be understood.
RELEASED, BROKEN, UNKNOWN = 1, 2, 0x0C


class Tail(NamedTuple):
    """checkpoint.md, a volume: what a reader needs of it."""

    epoch: int
    last: int
    joins: bool


class Horizon(NamedTuple):
    """horizon.md, layout: what a reader needs of it."""

    number: int
    slot: int
    incarnation: int
    tails: dict[bytes, Tail]


# A log without one.
NONE = Horizon(0, 0, 0, {})


def horizon_place(log: bytes, number: int) -> Place:
    """horizon.md: name."""
    return Place(f"logs/{uid(log)}/horizon/{number:010}", b"FSHZ", log, number)


def horizon_body(name: str, number: int, body: bytes) -> Horizon:
    """horizon.md, layout; in front of its own head lie the sections of a checkpoint."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise damaged(name, 160, what)

    found = sections(name, 160, body, {1: (32, 1), 2: (88, 131_072), 3: (48, 1)})
    check(1 in found and 3 in found, "there is no head")
    slot, before, zero = struct.unpack("<Q32sQ", found[3][0])
    check(1 <= number <= HORIZON_MAX and 1 <= slot <= SLOT_MAX and not zero, "slot")
    check((number == 1) == (not any(before)), "the digest of the horizon before")
    incarnation, horizon, register, digest = struct.unpack("<QQQ8s", found[1][0])
    is_entry = register <= REGISTER_MAX and (register > 0 or not any(digest))
    check(incarnation > 0 and horizon < number and is_entry, "the head of the checkpoint")
    tails: dict[bytes, Tail] = {}
    for record in found.get(2, []):
        volume, epoch, first, last, newest, mark = struct.unpack_from("<16sQQQQQ", record)
        flags = record[83]
        check(not tails or max(tails) < volume, "volumes out of order")
        check(epoch > 0 and 1 <= first <= last <= SEQ_MAX and newest < slot and not any(record[84:88]), "a volume")
        check(not flags & UNKNOWN and (not mark or first <= mark <= last), "a mark, or flags")
        tails[volume] = Tail(epoch, last, not flags & BROKEN)
    return Horizon(number, slot, incarnation, tails)
