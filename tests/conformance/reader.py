#!/usr/bin/env python3
"""Reads a Farshore vault from docs/formats alone: no code is shared with the programs that wrote it.

    reader.py --vault DIR|s3://BUCKET/PREFIX --key-file FILE --list
    reader.py --vault … --key-file FILE --volume ID --point latest|ID --to DIR
    reader.py --vault … --key-file FILE --machine NAME|ID --point latest|ID [--incomplete] --to DIR

The vault is only read. S3 takes AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and
AWS_REGION from the environment. What was done is JSON on standard output; a refusal is one line on standard error, with
an exit code of docs/runbooks/exit-codes.md. From PyPI it needs blake3, cryptography and zstandard.
"""

from __future__ import annotations

import argparse
import bisect
import datetime
import hashlib
import hmac
import http.client
import json
import os
import re
import sys
import urllib.parse
import uuid
import xml.etree.ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import bases
import formats
import horizons
from bases import Base, Kept
from formats import ABSENT, BLOCK, DAMAGED, INPUT, OUTPUT, STORE, USAGE, WRONG_KEY
from formats import Chunk, Closed, Epoch, Machine, Mark, Place, Refusal, Revision, Since, Slot, Span, Table, Target
from formats import damaged, uid
from horizons import Horizon

FIRST_READ = 64 * 1024
SMALL_READ = 128 * 1024
WHOLE_READ = 128 << 20
WINDOW = 4
NEXT = 3
PROBES = [WINDOW << power for power in range(20)]
EPOCHS_MAX = 2**20
BASES = 64
BASES_MAX = 2**20
REVISIONS_MAX = 65_536
REOPENED = 8


# Stores


class Directory:
    """A vault in a directory: names of objects are paths below it (vault.md, objects)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, name: str, start: int, length: int) -> tuple[bytes, int] | None:
        """Bytes of an object and its whole length; None if it is not there."""
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                file.seek(start)
                return file.read(length), os.fstat(file.fileno()).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Refusal(STORE, f"object {name} cannot be read: {error.strerror}") from error

    def names(self, prefix: str) -> list[str]:
        """What lies directly below a prefix that ends in a slash."""
        try:
            return sorted(os.listdir(os.path.join(self.path, prefix)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise Refusal(STORE, f"{prefix} cannot be listed: {error.strerror}") from error


class S3:
    """A vault below a prefix of a bucket, asked in path style and signed with AWS Signature Version 4."""

    def __init__(self, bucket: str, prefix: str, environ: dict[str, str]) -> None:
        try:
            endpoint = urllib.parse.urlsplit(environ["AWS_ENDPOINT_URL"])
            self.access, self.secret = environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]
        except KeyError as error:
            raise Refusal(USAGE, f"s3:// needs {error.args[0]} in the environment") from error
        self.token = environ.get("AWS_SESSION_TOKEN")
        self.region = environ.get("AWS_REGION", "us-east-1")
        self.bucket, self.prefix = bucket, prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.host = endpoint.netloc
        kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(endpoint.netloc, timeout=120)

    def signed(self, path: str, query: str, extra: dict[str, str]) -> dict[str, str]:
        """Headers of a GET, with its signature."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        headers = {"host": self.host, "x-amz-content-sha256": empty, "x-amz-date": now, **extra}
        if self.token:
            headers["x-amz-security-token"] = self.token
        listed = ";".join(sorted(headers))
        lines = "".join(f"{key}:{headers[key]}\n" for key in sorted(headers))
        request = f"GET\n{path}\n{query}\n{lines}\n{listed}\n{empty}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = ("AWS4" + self.secret).encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"Credential={self.access}/{scope}, SignedHeaders={listed}, Signature={key.hex()}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}"
        return headers

    def ask(self, path: str, query: str, extra: dict[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One GET; what breaks on the way is asked for again a few times."""
        path = urllib.parse.quote(path, safe="/-_.~")
        trouble = ""
        for _ in range(4):
            try:
                url = f"{path}?{query}" if query else path
                self.connection.request("GET", url, headers=self.signed(path, query, extra))
                answer = self.connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                trouble = str(error) or type(error).__name__
                continue
            if answer.status < 500:
                return answer.status, answer.headers, body
            trouble = f"status {answer.status}"
        raise Refusal(STORE, f"the store does not answer for {path}: {trouble}")

    def get(self, name: str, start: int, length: int) -> tuple[bytes, int] | None:
        """Bytes of an object and its whole length; None if it is not there."""
        path = f"/{self.bucket}/{self.prefix}{name}"
        status, headers, body = self.ask(path, "", {"range": f"bytes={start}-{start + length - 1}"})
        if status == 404:
            return None
        if status == 206:
            return body, int(headers["content-range"].rpartition("/")[2])
        if status == 200:
            return body[start : start + length], len(body)
        if status == 416:
            return b"", int((headers["content-range"] or "*/0").rpartition("/")[2])
        raise Refusal(STORE, f"object {name} cannot be read: the store says {status}")

    def names(self, prefix: str) -> list[str]:
        """What lies directly below a prefix that ends in a slash."""
        found: list[str] = []
        full = self.prefix + prefix
        more = {"delimiter": "/", "list-type": "2", "prefix": full}
        while True:
            query = "&".join(f"{key}={urllib.parse.quote(more[key], safe='-_.~')}" for key in sorted(more))
            status, _, body = self.ask(f"/{self.bucket}", query, {})
            if status != 200:
                raise Refusal(STORE, f"{prefix} cannot be listed: the store says {status}")
            root = xml.etree.ElementTree.fromstring(body)
            space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
            for path in (f"{space}Contents/{space}Key", f"{space}CommonPrefixes/{space}Prefix"):
                found += [element.text[len(full) :].strip("/") for element in root.findall(path) if element.text]
            token = root.findtext(f"{space}NextContinuationToken")
            if not token:
                return sorted(found)
            more["continuation-token"] = token


Store = Directory | S3


def store_at(url: str) -> Store:
    """The store that a URL or path names."""
    if url.startswith("s3://"):
        bucket, _, prefix = url[len("s3://") :].partition("/")
        return S3(bucket, prefix, dict(os.environ))
    return Directory(urllib.parse.unquote(url[len("file://") :]) if url.startswith("file://") else url)


# What a volume holds


class Piece(NamedTuple):
    """Part of a chunk: where it lies, what it must be (its id; in a map the first bytes of it), and its first block."""

    target: Target
    number: int
    id: bytes
    blocks: int
    first: int


class Extents:
    """Block ranges without overlap and what they hold; what is not in it is zeros."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.held: list[tuple[int, Piece]] = []

    def put(self, block: int, count: int, piece: Piece | None) -> None:
        """The last writer of a run of blocks; None is zeros."""
        end = block + count
        low = bisect.bisect_left(self.starts, block)
        if low and self.held[low - 1][0] > block:
            low -= 1
        high = bisect.bisect_left(self.starts, end, low)
        starts, held = [], []
        if low < high and self.starts[low] < block:
            starts.append(self.starts[low])
            held.append((block, self.held[low][1]))
        if piece is not None:
            starts.append(block)
            held.append((end, piece))
        if low < high and self.held[high - 1][0] > end:
            last, was = self.held[high - 1]
            starts.append(end)
            held.append((last, was._replace(first=was.first + end - self.starts[high - 1])))
        self.starts[low:high], self.held[low:high] = starts, held

    def by_target(self) -> dict[Target, list[tuple[int, int, Piece]]]:
        """First block, count and content of each range, by the segment that it is in."""
        found: dict[Target, list[tuple[int, int, Piece]]] = defaultdict(list)
        for start, (end, piece) in zip(self.starts, self.held):
            found[piece.target].append((start, end - start, piece))
        return found


class Point(NamedTuple):
    """A mark in its volume's stream: the place is (epoch, seq)."""

    volume: bytes
    epoch: Epoch
    seq: int
    mark: Mark

    @property
    def place(self) -> Since:
        """checkpoint.md: ordinals and epochs ascend together, so (epoch, seq) is one place."""
        return self.epoch.epoch, self.seq


def resolve(slot: Slot, table: Table, span: Span) -> Iterator[tuple[int, int, Piece | None]]:
    """segment.md: extents of a span with the segments that their chunks are in; None is zeros."""
    for block, count, number, first in span.extents:
        piece = None
        if number != formats.ZEROS:
            chunk = table.chunks[number]
            here = not chunk.target
            target = slot.target if here else table.targets[chunk.target - 1]
            piece = Piece(target, number if here else chunk.number, chunk.id, chunk.blocks, first)
        yield block, count, piece


class Vault:
    """A vault that a key has opened."""

    def __init__(self, store: Store, wrapping: formats.Wrapping) -> None:
        self.store = store
        self.warnings: list[str] = []
        got = store.get("vault", 0, FIRST_READ)
        if got is None:
            if store.names("keys/"):
                raise Refusal(DAMAGED, "object vault is missing although keys are there")
            raise Refusal(ABSENT, "there is no vault here")
        self.vault, made = formats.vault_object(got[0])
        self.wrapping = wrapping
        self.ring = self.opened(made)

    # Keys

    def revised(self, number: int) -> int:
        """revision.md, order of operations: the newest revision, from `number` on."""
        return self.newest(lambda n: formats.revision_place(self.vault, n), REVISIONS_MAX, number)

    def opened(self, made: Revision) -> formats.Keyring:
        """revision.md, what it means: by the newest revision, asked for again before a key is said to be lost."""
        number = self.revised(0)
        while True:
            try:
                said = self.revision(made, number) if number else made
                return formats.Keyring(self.vault, said, self.keys(made, said))
            except Refusal:
                seen, number = number, self.revised(number)
                if number == seen:
                    raise

    def before(self, made: Revision, number: int) -> Revision | None:
        """The revision in front of the newest; None if it is lost or not understood."""
        try:
            is_there = self.exists(formats.revision_place(self.vault, number))
            return self.revision(made, number, follows=False) if is_there else None
        except Refusal:
            return None

    def revision(self, made: Revision, number: int, follows: bool = True) -> Revision:
        """revision.md, order of operations: one that is not understood refuses the vault."""
        place = formats.revision_place(self.vault, number)
        data = self.whole(place, "vault")
        try:
            own = formats.own_key(place.name, data)
            ring = formats.Keyring(self.vault, made, {own: self.key(own, place.name)})
            said = formats.revision_body(place.name, number, formats.open_small(ring, place, data))
            # revision.md, order of operations: each goes by the key that the one before says.
            before = made if number == 1 or not follows else self.before(made, number - 1)
            if follows and before and before.own != own:
                raise damaged(place.name, 0, f"it goes by key {own}, not by that of the one before")
            return said
        except Refusal as refusal:
            if refusal.code != INPUT:
                raise
            raise Refusal(INPUT, f"a newer version of Farshore revised the vault: {refusal}") from refusal

    def key_name(self, number: int) -> str:
        """keys.md: the name of a key for the wrapper at hand."""
        return f"keys/{number}/{self.wrapping.fingerprint.hex()}"

    def key(self, number: int, user: str) -> formats.Key:
        """keys.md, order of operations: a key that must be there, unless none is for what opens the vault."""
        wrapper = self.wrapping.fingerprint.hex()
        name = self.key_name(number)
        got = self.store.get(name, 0, FIRST_READ)
        if got is not None:
            return formats.unwrap(name, got[0], self.vault, number, self.wrapping)
        others = {other for number_ in self.store.names("keys/") for other in self.store.names(f"keys/{number_}/")}
        if others and wrapper not in others:
            raise Refusal(WRONG_KEY, f"the key {wrapper} is none of this vault")
        raise Refusal(DAMAGED, f"object {name} is missing; {user} refers to it")

    def keys(self, made: Revision, said: Revision) -> dict[int, formats.Key]:
        """keys.md, order of operations: 1 to the last but for the erased, which are what `vault` and revision say."""
        numbers = [number for number in range(1, said.last + 1) if not said.gone(number)]
        keys = {}
        for number in numbers:
            # One that came later and is lost takes with it what is sealed under it, and nothing else.
            is_needed = number <= made.last or number == said.own
            if is_needed or self.store.get(self.key_name(number), 0, 1) is not None:
                keys[number] = self.key(number, said.name)
        for revision in (made, said):
            named = [(revision.own, 0, formats.DATA_KEY)]
            for domain, (root, first) in revision.domains.items():
                named += [(root, domain, formats.ROOT_KEY), (first, domain, formats.DATA_KEY)]
            for number, domain, kind in named:
                if said.gone(number) and domain:
                    continue
                key = keys.get(number)
                if key is None and number > made.last and number != said.own:
                    continue
                if key is None or key[:2] != (domain, kind) and not (domain and key.kind == formats.WITHHELD):
                    raise damaged(self.key_name(number), 0, f"it is not what {revision.name} says")
        return keys

    # Objects of a list

    def exists(self, place: Place) -> bool:
        """Whether there is an object, whatever it holds."""
        return self.store.get(place.name, 0, 1) is not None

    def small(self, place: Place) -> bytes | None:
        """The body of an object that is not a segment; None if it is not there."""
        got = self.store.get(place.name, 0, SMALL_READ)
        return None if got is None else formats.open_small(self.ring, place, got[0])

    def ids(self, prefix: str) -> list[bytes]:
        """vault.md, objects: ids that a listing finds; what is called otherwise belongs to nothing."""
        return [uuid.UUID(name).bytes for name in self.store.names(prefix) if re.fullmatch(formats.UUID, name)]

    def epochs(self, volume: bytes) -> tuple[list[Epoch], Refusal | None]:
        """epoch.md, order of operations: 1, 2, … until "not found", the next 3 looked at as well."""
        found: list[Epoch] = []
        ordinal = 1
        while ordinal <= EPOCHS_MAX:
            place = formats.epoch_place(volume, ordinal)
            try:
                body = self.small(place)
                if body is None:
                    next_ = range(ordinal + 1, ordinal + NEXT + 1)
                    behind = [n for n in next_ if self.exists(formats.epoch_place(volume, n))]
                    if not behind:
                        break
                    if not self.exists(place):
                        raise Refusal(DAMAGED, f"object {place.name} is missing although ordinal {behind[0]} exists")
                    continue
                epoch = formats.epoch_body(self.ring, place, body)
                if found and (epoch.epoch <= found[-1].epoch or epoch.first_seq < found[-1].first_seq):
                    raise damaged(place.name, 160, "it is not of a later epoch than the one before it")
            except Refusal as refusal:
                return found, refusal
            found.append(epoch)
            ordinal += 1
        if not found:
            return found, Refusal(ABSENT, f"there is no volume {uid(volume)} in this vault")
        return found, None

    # Bases

    def newest(self, place: Callable[[int], Place], max_: int, number: int = 0) -> int:
        """The highest of a list, of which the newest says all that counts: one that is lost is passed over."""
        while number < max_:
            near = [n for n in range(number + 1, number + NEXT + 2) if self.exists(place(n))]
            if not near:
                break
            number = near[-1]
        return number

    def base(self, volume: bytes) -> Base | None:
        """base.md, order of operations: the newest of 1, 2, …; one that does not open refuses the volume."""
        number = self.newest(lambda n: bases.base_place(volume, n), BASES_MAX)
        if not number:
            return None
        place = bases.base_place(volume, number)
        body = formats.open_small(self.ring, place, self.whole(place, place.name), bases.BODY_MAX)
        return bases.base_body(place.name, number, body)

    def horizon(self, log: bytes) -> Horizon:
        """horizon.md, order of operations: the newest of 1, 2, …; one that does not open refuses the log."""
        number = self.newest(lambda n: horizons.horizon_place(log, n), horizons.HORIZON_MAX)
        if not number:
            return horizons.NONE
        place = horizons.horizon_place(log, number)
        body = formats.open_small(self.ring, place, self.whole(place, place.name), horizons.BODY_MAX)
        return horizons.horizon_body(place.name, number, body)

    def still(self, log: bytes, horizon: Horizon) -> None:
        """horizon.md: what was found at the end of a log counts only while there is no newer horizon."""
        place = horizons.horizon_place(log, horizon.number + 1)
        if self.exists(place):
            raise Refusal(STORE, f"history was let go while it was read (object {place.name} is new): try again")

    def whole(self, place: Place, user: str) -> bytes:
        """All bytes of an object that `user` names."""
        got = self.store.get(place.name, 0, WHOLE_READ)
        if got is None:
            raise Refusal(DAMAGED, f"object {place.name} is missing; {user} refers to it")
        return got[0]

    def mapped(self, volume: bytes, base: Base, at: Since, attempt: bytes, kept: Kept | None) -> Extents:
        """base.md: what a map holds that the base names, as its own or as that of a point."""
        user, place = bases.base_place(volume, base.number).name, bases.map_place(volume, at, attempt)
        data = self.whole(place, user)
        manifest = bases.open_manifest(self.ring, volume, at, attempt, data)
        says = (bases.digest(data), manifest.log, manifest.slot)
        if at == base.at and says != (base.manifest, base.log, base.slot):
            raise damaged(place.name, 0, f"it is not the map that {user} names")
        if kept and (manifest.mark, manifest.point, manifest.size) != (at, kept.mark.point, kept.size):
            raise damaged(place.name, 0, f"it is not of the point that {user} names")
        extents = Extents()
        for run in bases.map_runs(self.ring, volume, manifest, lambda part: self.whole(part, place.name)):
            piece = Piece(run.target, run.number, run.check, run.blocks, run.first) if run.target else None
            extents.put(run.block, run.count, piece)
        return extents

    # Logs

    def slot(self, log: bytes, number: int) -> tuple[Slot, bytes, int] | None:
        """segment.md: the header of a slot, bytes behind it that came along, the length of the object."""
        place = formats.slot_place(log, number)
        got = self.store.get(place.name, 0, FIRST_READ)
        if got is None:
            return None
        slot = formats.open_slot(self.ring, place, got[0])
        return slot, got[0][len(slot.header.raw) :], got[1]

    def table(self, slot: Slot, behind: bytes, total: int) -> Table:
        """segment.md: the table of a segment, if the object is as long as it should be."""
        name, at = slot.header.place.name, len(slot.header.raw)
        if total != slot.frames_at + slot.frames_length:
            raise damaged(name, min(total, slot.frames_at + slot.frames_length), "it is not as long as its header says")
        missing = slot.header.body_length - len(behind)
        if missing > 0:
            behind += self.read(name, at + len(behind), missing)
        body = formats.open_body(slot.header, behind[: slot.header.body_length])
        return formats.table_body(name, at, body, slot.frames_length)

    def read(self, name: str, start: int, length: int) -> bytes:
        """Bytes of an object that was there a moment ago."""
        got = self.store.get(name, start, length)
        if got is None or len(got[0]) != length:
            raise damaged(name, start, "it ends early")
        return got[0]

    def ends(self, log: bytes, number: int) -> bool:
        """segment.md, order of operations: whether a log ends at a missing slot. False: it is there after all."""
        near = [n for n in range(number + 1, number + WINDOW) if self.exists(formats.slot_place(log, n))]
        seals = [n for n in near if (got := self.slot(log, n)) and got[0].header.variant == formats.SEAL]
        far = [number + step for step in PROBES if self.exists(formats.slot_place(log, number + step))]
        place = formats.slot_place(log, number)
        if self.exists(place):
            return False
        if seals or far:
            raise Refusal(DAMAGED, f"object {place.name} is missing although slot {(seals + far)[0]} exists")
        if near:
            self.warnings.append(f"object {place.name} is missing although slot {near[0]} exists: "
                                 "there may have been newer points")
        return True

    def walk(
        self, log: bytes, first: int, horizon: Horizon = horizons.NONE
    ) -> Iterator[tuple[Slot, bytes, int] | Refusal]:
        """segment.md, order of operations: the slots that count from `first` on, void ones read over.

        Also looks at the 4 slots in front. What is wrong there is handed on: whether spans join tells if it matters.
        horizon.md: never at one below the horizon, whatever is there.
        """
        incarnation, number = horizon.incarnation, max(horizon.slot, first - WINDOW)
        while True:
            try:
                got = self.slot(log, number)
                if got is None:
                    if self.ends(log, number):
                        self.still(log, horizon)
                        return
                    continue
            except Refusal as refusal:
                if number >= first or refusal.code != DAMAGED:
                    raise
                yield refusal
                number += 1
                continue
            slot = got[0]
            if slot.header.variant == formats.SEAL:
                self.still(log, horizon)
                return
            if slot.incarnation >= incarnation:
                incarnation = slot.incarnation
                if slot.header.variant == formats.SEGMENT and number >= first:
                    yield got
            number += 1

    def spans(
        self, volume: bytes, epoch: Epoch, end: int | None, base: Base | None
    ) -> Iterator[tuple[Slot, Table, Span]]:
        """vault.md, reading a volume: the spans of one epoch, joined, below `end` where the next epoch begins.

        base.md: those above the place of the base, whose slot may be gone.
        """
        seq, first, broken = epoch.first_seq, epoch.first_slot, None
        if base and base.at[0] == epoch.ordinal:
            seq, first = base.at[1] + 1, base.slot
            if base.log != epoch.log or base.slot < epoch.first_slot or not epoch.first_seq < seq <= (end or seq):
                place = bases.base_place(volume, base.number)
                raise Refusal(DAMAGED, f"object {place.name} contradicts the epochs of its volume")
        horizon = self.horizon(epoch.log)
        tail = horizon.tails.get(volume)
        if first < horizon.slot and tail and seq != end:
            # horizon.md: what lay below has to be known.
            known = tail.epoch < epoch.epoch or tail.epoch == epoch.epoch and tail.joins and tail.last < seq
            if not known:
                place = horizons.horizon_place(epoch.log, horizon.number)
                raise Refusal(DAMAGED, f"object {place.name} says more of volume {uid(volume)} than what is left of it")
        walk = self.walk(epoch.log, first, horizon)
        while seq != end:
            got = next(walk, None)
            if got is None:
                break
            try:
                if isinstance(got, Refusal):
                    raise got
                table = self.table(*got)
            except Refusal as refusal:
                if refusal.code != DAMAGED and not isinstance(refusal, Closed):
                    raise
                broken = broken or refusal
                continue
            slot = got[0]
            for span in table.spans:
                if (span.volume, span.epoch) != (volume, epoch.epoch) or span.last < seq or seq == end:
                    continue
                what = f"seqs {span.first} to {span.last} of volume {uid(volume)}"
                if span.first != seq or (end is not None and span.last >= end):
                    raise broken or damaged(slot.header.place.name, len(slot.header.raw), f"{what}, {seq} comes next")
                if span.extents and (span.extents[-1].block + span.extents[-1].blocks - 1) * BLOCK >= epoch.size:
                    raise damaged(slot.header.place.name, len(slot.header.raw), f"{what} reach past its end")
                broken = None
                yield slot, table, span
                seq = span.last + 1
        if broken and seq != end:
            raise broken
        if base and base.at[0] == epoch.ordinal and base.at[1] + 1 == seq != end and base.slot >= horizon.slot:
            place = formats.slot_place(epoch.log, base.slot)
            if not self.exists(place):
                user = bases.base_place(volume, base.number)
                raise Refusal(DAMAGED, f"object {place.name} is missing; {user.name} refers to it")
        if end is not None and seq != end:
            place = formats.epoch_place(volume, epoch.ordinal + 1)
            held = f"log {uid(epoch.log)} holds the volume up to {seq - 1}"
            raise Refusal(DAMAGED, f"object {place.name} begins at seq {end}, but {held}")

    def stream(self, volume: bytes, base: Base | None) -> Iterator[tuple[Slot, Table, Span, Epoch] | Epoch | Base]:
        """vault.md, reading a volume: each epoch, and all its spans that count; ends with what stands in the way.

        base.md: in the place of what lies at and below it, the base.
        """
        epochs, problem = self.epochs(volume)
        if base and base.at[0] > len(epochs) - bool(problem):
            raise problem or Refusal(DAMAGED, f"object {bases.base_place(volume, base.number).name} is of no epoch")
        for epoch, following in zip(epochs, [*epochs[1:], None]):
            if following is None and problem:
                raise problem
            if base and epoch.ordinal < base.at[0]:
                continue
            yield base if base and epoch.ordinal == base.at[0] else epoch
            for slot, table, span in self.spans(volume, epoch, following.first_seq if following else None, base):
                yield slot, table, span, epoch
        if problem:
            raise problem

    def points(self, volume: bytes) -> tuple[list[Point], Refusal | None]:
        """The points of a volume in the order of its stream, and what stood in the way of more."""
        found: list[Point] = []
        try:
            base = self.base(volume)
            found += self.kept(volume, base)
            for got in self.stream(volume, base):
                if isinstance(got, (Epoch, Base)):
                    continue
                _, _, span, epoch = got
                if span.mark:
                    found.append(Point(volume, epoch, span.last, span.mark))
        except Refusal as refusal:
            return found, refusal
        return found, None

    def kept(self, volume: bytes, base: Base | None) -> list[Point]:
        """base.md: the points that are kept, of epochs that can be read."""
        if base is None:
            return []
        epochs, problem = self.epochs(volume)
        points = [kept for kept in base.points if kept.at[0] <= len(epochs) - bool(problem)]
        return [Point(volume, epochs[kept.at[0] - 1], kept.at[1], kept.mark) for kept in points]

    # Content

    def based(self, volume: bytes, epoch: Epoch, depth: int) -> tuple[Point, Extents]:
        """epoch.md, branches: what an epoch with a base begins with."""
        of, ordinal, seq, wanted = epoch.base
        place = formats.epoch_place(volume, epoch.ordinal)
        broken = Refusal(DAMAGED, f"object {place.name} goes on from point {uid(wanted)} at place {ordinal}-{seq} of "
                                  f"volume {uid(of)}, which is not there")
        epochs = self.epochs(of)[0]
        if depth >= BASES or ordinal > len(epochs) or (of == volume and ordinal >= epoch.ordinal):
            raise broken
        try:
            point, extents = self.image(of, (epochs[ordinal - 1].epoch, seq), depth + 1)
        except Refusal as refusal:
            if refusal.code not in (DAMAGED, ABSENT) or isinstance(refusal, Closed):
                raise
            raise broken from refusal
        if point.mark.point != wanted or point.epoch.size > epoch.size:
            raise broken
        return point, extents

    def image(self, volume: bytes, wanted: bytes | Since | None, depth: int = 0) -> tuple[Point, Extents]:
        """vault.md, reading a volume: all spans up to and including a mark, given by point or place; else the last."""
        base = self.base(volume)
        kept = list(zip(self.kept(volume, base), base.points)) if base else []
        for own, says in reversed(kept):
            if wanted in (own.mark.point, own.place):
                return own, self.mapped(volume, base, says.at, says.map, says)
        extents, point = Extents(), None
        pending: list[tuple[int, int, Piece | None]] = []
        latest: Callable[[], tuple[Point, Extents]] | None = None
        for got in self.stream(volume, base):
            if isinstance(got, Base):
                epochs = self.epochs(volume)[0][: got.at[0]]
                if isinstance(wanted, tuple) and wanted <= (epochs[-1].epoch, got.at[1]):
                    break
                extents = self.mapped(volume, got, got.at, got.map, None)
                latest = self.latest(volume, got, epochs, kept, depth)
                continue
            if isinstance(got, Epoch):
                if got.base:
                    latest = None
                    start, extents = self.based(volume, got, depth)
                    pending, point = [], start if start.volume == volume and wanted is None else None
                continue
            slot, table, span, epoch = got
            pending += resolve(slot, table, span)
            here = Point(volume, epoch, span.last, span.mark) if span.mark else None
            if here and wanted in (None, here.mark.point, here.place):
                for block, count, piece in pending:
                    extents.put(block, count, piece)
                pending, point = [], here
                if wanted is not None:
                    break
        if point is None and latest and wanted is None:
            return latest()
        if point is None:
            gone = f", or {bases.base_place(volume, base.number).name} does not keep it" if base else ""
            raise Refusal(ABSENT, f"volume {uid(volume)} has no such point{gone}")
        return point, extents

    def latest(
        self, volume: bytes, base: Base, epochs: list[Epoch], kept: list[tuple[Point, Kept]], depth: int
    ) -> Callable[[], tuple[Point, Extents]] | None:
        """base.md: the latest point where none is above the place: the newest on its branch that is listed."""
        branch = next((epoch for epoch in reversed(epochs) if epoch.base), None)
        own = [one for one in kept if branch is None or one[0].epoch.ordinal >= branch.ordinal]
        if own:
            point, says = own[-1]
            return lambda: (point, self.mapped(volume, base, says.at, says.map, says))
        if branch and branch.base and branch.base[0] == volume:
            return lambda: self.based(volume, branch, depth)
        return None

    def write(self, extents: Extents, size: int, path: str) -> None:
        """Writes an image to a sparse file, one frame after the other; epoch.md: cut at the size."""
        try:
            with open(path + ".part", "wb") as file:
                file.truncate(size)
                for target, wanted in sorted(extents.by_target().items()):
                    for at, data in self.content(target, wanted):
                        file.seek(at)
                        file.write(data[: size - at])
            os.replace(path + ".part", path)
        except OSError as error:
            raise Refusal(OUTPUT, f"{path} cannot be written: {error.strerror}") from error
        finally:
            if os.path.exists(path + ".part"):
                os.unlink(path + ".part")

    def content(self, target: Target, wanted: list[tuple[int, int, Piece]]) -> Iterator[tuple[int, bytes]]:
        """segment.md, cryptography: bytes of chunks that lie in one segment, each compared with its id."""
        place = formats.slot_place(target.log, target.slot)
        got = self.slot(target.log, target.slot)
        if got is None or got[0].target != target:
            attempt = target.attempt.hex()
            raise Refusal(DAMAGED, f"object {place.name} of attempt {attempt} is missing; chunks are in it")
        slot, table = got[0], self.table(*got)
        frames: dict[int, dict[Chunk, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
        for block, count, piece in wanted:
            chunk = table.chunks[piece.number] if piece.number < len(table.chunks) else None
            is_it = chunk and not chunk.target and chunk.id.startswith(piece.id) and chunk.blocks == piece.blocks
            if not chunk or not is_it:
                raise damaged(place.name, len(slot.header.raw), f"chunk {piece.number} is not what refers to it says")
            frames[chunk.number][chunk].append((block, count, piece.first))
        for number in sorted(frames):
            frame = table.frames[number]
            sealed = self.read(place.name, slot.frames_at + frame.at, frame.stored)
            opened = formats.open_frame(self.ring, slot, frame, number, sealed)
            for chunk, extents in frames[number].items():
                data = opened[chunk.offset : chunk.offset + chunk.blocks * BLOCK]
                if self.ring.chunk_id(slot.header.domain, data) != chunk.id:
                    raise damaged(place.name, slot.frames_at + frame.at, "a chunk is not what its id says")
                for block, count, first in extents:
                    yield block * BLOCK, data[first * BLOCK : (first + count) * BLOCK]


# Machines


class Joined(NamedTuple):
    """machine.md, which points are complete: a point of a machine, and what it lacks."""

    marks: list[Point]
    lacking: list[str]
    revision: int


class Machines:
    """The machines of a vault, and their points."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.known: dict[bytes, tuple[list[Point], Refusal | None]] = {}

    def newest(self, prefix: str, place: Callable[[bytes, int], Place], subject: bytes) -> int:
        """machine.md, order of operations: the newest revision, from the highest that a listing shows on."""
        listed = self.vault.store.names(f"{prefix}/{uid(subject)}/")
        newest = max((int(name) for name in listed if re.fullmatch("[0-9]{10}", name)), default=0)
        while True:
            behind = [n for n in range(newest + 1, newest + NEXT + 2) if self.vault.exists(place(subject, n))]
            if not behind:
                return newest
            newest = behind[-1]

    def revisions(self, machine: bytes) -> dict[int, Machine]:
        """machine.md: the newest revision, which must open, and those before it that do."""
        newest = self.newest("machines", formats.machine_place, machine)
        found: dict[int, Machine] = {}
        for number in range(newest, 0, -1):
            place = formats.machine_place(machine, number)
            try:
                body = self.vault.small(place)
                if body is None:
                    raise Refusal(DAMAGED, f"object {place.name} is missing although revision {newest} exists")
                found[number] = formats.machine_body(place.name, body)
            except Refusal as refusal:
                if number == newest:
                    raise
                self.vault.warnings.append(str(refusal))
        return found

    def find(self, wanted: str) -> bytes:
        """The machine of a name or id."""
        named: list[bytes] = []
        problem: Refusal | None = None
        for machine in self.vault.ids("machines/"):
            if wanted == uid(machine):
                return machine
            try:
                revisions = self.revisions(machine)
            except Refusal as refusal:
                problem = refusal
                continue
            if revisions[max(revisions)].name == wanted:
                named.append(machine)
        if len(named) != 1:
            raise problem or Refusal(ABSENT, f"{len(named)} machines of this vault are called {wanted}")
        return named[0]

    def points_of(self, volume: bytes) -> tuple[list[Point], Refusal | None]:
        """The points of a volume, read once."""
        if volume not in self.known:
            self.known[volume] = self.vault.points(volume)
        return self.known[volume]

    def elsewhere(self, machine: bytes, attempt: bytes, own: set[bytes]) -> list[Point]:
        """machine.md, step 3: marks of an attempt on other members of the groups that name the machine."""
        volumes: set[bytes] = set()
        for group in self.vault.ids("groups/"):
            place = formats.group_place(group, self.newest("groups", formats.group_place, group))
            try:
                members = formats.group_body(place.name, self.vault.small(place) or b"").members
            except Closed as closed:
                self.vault.warnings.append(str(closed))
                continue
            if machine in {member.machine for member in members}:
                volumes |= {member.volume for member in members} - own
        points = [point for volume in sorted(volumes) for point in self.points_of(volume)[0]]
        return [point for point in points if point.mark.attempt == attempt]

    def joined(self, machine: bytes) -> tuple[list[Joined], list[Refusal], list[Refusal]]:
        """machine.md, which points are complete: the points in order, what hides others, what of that the latest."""
        revisions = self.revisions(machine)
        disks = [disk for disk in revisions[max(revisions)].disks if disk.volume]
        groups: dict[bytes | Point, list[Point]] = defaultdict(list)
        order: list[bytes | Point] = []
        problems: list[tuple[int, Refusal]] = []
        for disk in disks:
            points, problem = self.points_of(disk.volume)
            problems += [(disk.state, problem)] if problem else []
            front: dict[bytes | Point, list[bytes | Point]] = {}
            fresh: list[bytes | Point] = []
            for point in points:
                key = point.mark.attempt if any(point.mark.attempt) else point
                if key not in groups:
                    fresh.append(key)
                elif fresh and key not in fresh:
                    front[key], fresh = fresh, []
                groups[key].append(point)
            order = [key for placed in order for key in (*front.get(placed, []), placed)] + fresh
        joined = [self.judged(machine, revisions, groups[key]) for key in order]
        return joined, [hid for _, hid in problems], [hid for state, hid in problems if state == formats.PROTECTED]

    def judged(self, machine: bytes, revisions: dict[int, Machine], marks: list[Point]) -> Joined:
        """machine.md, steps 3 to 5: what a point lacks."""
        mark, have = marks[0].mark, {point.volume: point for point in marks}
        there = list(marks)
        if len(there) < mark.members:
            there += self.elsewhere(machine, mark.attempt, set(have))
        lacking = [
            f"member {member} is there {times} times"
            for member in range(mark.members)
            if (times := sum(point.mark.member == member for point in there)) != 1
        ]
        if any(point.mark.members != mark.members for point in there):
            lacking.append("its marks do not agree on how many members there are")
        if any(point.mark.point != mark.point for point in marks):
            lacking.append("its disks do not agree on the point")
        for number in range(max(revisions), 0, -1):
            if number not in revisions:
                lacking.append(f"revision {number} cannot be read: which disks were protected is not known")
                break
            disks = revisions[number].disks
            protected = [disk for disk in disks if disk.state == formats.PROTECTED and disk.volume]
            later = any(disk.since > have[disk.volume].place for disk in disks if disk.volume in have)
            if protected and (number == 1 or not later):
                absent = [disk for disk in protected if disk.volume not in have]
                lacking += [f"disk {disk.number} ({disk.name or uid(disk.volume)}) is not in it" for disk in absent]
                break
            lacking += ["no revision calls a disk protected"] if number == 1 else []
        return Joined(marks, lacking, number)


# Command line


def point_json(point: Point) -> dict[str, object]:
    """A point as it is printed."""
    mark = point.mark
    return {
        "point": uid(mark.point), "volume": uid(point.volume), "ordinal": point.epoch.ordinal,
        "epoch": point.epoch.epoch, "seq": point.seq, "time_unix_ms": mark.time, "kind": formats.kind_text(mark.kind),
        "unknown_blocks": mark.unknown, "member": mark.member, "members": mark.members,
    }


def epoch_json(epoch: Epoch) -> dict[str, object]:
    """An epoch as it is printed."""
    base = [uid(epoch.base[0]), *epoch.base[1:3], uid(epoch.base[3])] if epoch.base else None
    return {**epoch._asdict(), "log": uid(epoch.log), "base": base}


def listed(vault: Vault) -> tuple[dict[str, object], Refusal | None]:
    """All machines and volumes with their epochs and points, and the first thing that stood in the way."""
    machines = Machines(vault)
    volumes: list[dict[str, object]] = []
    named: list[dict[str, object]] = []
    problems: list[Refusal] = []
    for volume in vault.ids("volumes/"):
        points, problem = machines.points_of(volume)
        epochs = [epoch_json(epoch) for epoch in vault.epochs(volume)[0]]
        problems += [problem] if problem and not isinstance(problem, Closed) else []
        volumes.append({"volume": uid(volume), "epochs": epochs, "points": [point_json(point) for point in points],
                        "problem": str(problem) if problem else None})
    for machine in vault.ids("machines/"):
        try:
            revisions = machines.revisions(machine)
        except Closed as closed:
            vault.warnings.append(str(closed))
            continue
        newest = revisions[max(revisions)]
        disks = [{**disk._asdict(), "volume": uid(disk.volume) if disk.volume else None} for disk in newest.disks]
        joined = [
            {"point": uid(marks[0].mark.point), "disks": [uid(point.volume) for point in marks],
             "complete": not lacking, "lacking": lacking}
            for marks, lacking, _ in machines.joined(machine)[0]
        ]
        named.append({"machine": uid(machine), "revision": max(revisions), **newest._asdict(),
                      "disks": disks, "points": joined})
    return {"vault": uid(vault.ring.vault), "machines": named, "volumes": volumes}, next(iter(problems), None)


def parse_id(text: str, what: str) -> bytes:
    """An id as text."""
    try:
        return uuid.UUID(text).bytes
    except ValueError as error:
        raise Refusal(USAGE, f"{what} is no id: {text}") from error


def restore_volume(vault: Vault, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One volume to a file that is called by its id."""
    volume = parse_id(arguments.volume, "--volume")
    wanted = None if arguments.point == "latest" else parse_id(arguments.point, "--point")
    point, extents = vault.image(volume, wanted)
    path = os.path.join(arguments.to, f"{uid(volume)}.raw")
    vault.write(extents, point.epoch.size, path)
    return [{**point_json(point), "size": point.epoch.size, "file": path}]


def restore_machine(vault: Vault, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All disks of one point of a machine, to files that are called by index and name."""
    machines = Machines(vault)
    machine = machines.find(arguments.machine)
    joined, problems, serious = machines.joined(machine)
    if arguments.point == "latest":
        for problem in serious:
            raise problem
        fit = sorted((one for one in joined if not one.lacking), key=lambda one: one.revision)
        fit = joined if arguments.incomplete else fit
    else:
        id_ = parse_id(arguments.point, "--point")
        fit = [one for one in joined if any(point.mark.point == id_ for point in one.marks)]
    if not fit:
        raise next(iter(problems), Refusal(ABSENT, f"machine {arguments.machine} has no such point"))
    marks, lacking, _ = fit[-1]
    if lacking and not arguments.incomplete:
        raise Refusal(INPUT, f"point {uid(marks[0].mark.point)} is incomplete: {'; '.join(lacking)}")
    revisions = machines.revisions(machine)
    disks = {disk.volume: disk for disk in revisions[max(revisions)].disks}
    done = []
    for mark in marks:
        point, extents = vault.image(mark.volume, mark.place)
        disk = disks[mark.volume]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", disk.name).strip("-.")
        path = os.path.join(arguments.to, f"{disk.number}-{name}.raw" if name else f"{disk.number}.raw")
        vault.write(extents, point.epoch.size, path)
        done.append({**point_json(point), "size": point.epoch.size, "file": path, "complete": not lacking})
    return done


Answer = tuple[object, Refusal | None]


def asked(store: Store, wrapping: formats.Wrapping, ask: Callable[[Vault], Answer]) -> tuple[Vault, Answer]:
    """revision.md, what it means: nothing is said to be lost while there is a newer revision: opened again."""
    for _ in range(REOPENED):
        vault = Vault(store, wrapping)
        try:
            answer = ask(vault)
        except Refusal as refusal:
            answer = None, refusal
        number = vault.ring.revision.number
        if not (answer[1] or vault.warnings) or vault.revised(number) == number:
            return vault, answer
    raise Refusal(STORE, "the vault was revised again and again while it was read: try again")


def run(arguments: argparse.Namespace) -> None:
    """What the command line asks for."""
    try:
        with open(arguments.key_file, encoding="ascii", errors="replace") as file:
            wrapping = formats.Wrapping(file.read(FIRST_READ))
    except OSError as error:
        raise Refusal(ABSENT, f"key file {arguments.key_file} cannot be read: {error.strerror}") from error

    def ask(vault: Vault) -> Answer:
        if arguments.list:
            return listed(vault)
        try:
            os.makedirs(arguments.to, exist_ok=True)
        except OSError as error:
            raise Refusal(OUTPUT, f"{arguments.to} cannot be made: {error.strerror}") from error
        return (restore_machine if arguments.machine else restore_volume)(vault, arguments), None

    vault, (done, problem) = asked(store_at(arguments.vault), wrapping, ask)
    if done is None and problem:
        raise problem
    print(json.dumps(done, indent=1), flush=True)
    for warning in dict.fromkeys(vault.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if problem:
        raise problem


class Arguments(argparse.ArgumentParser):
    """A command line that is wrong is a refusal like others."""

    def error(self, message: str) -> NoReturn:
        raise Refusal(USAGE, message)


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Arguments(description="Reads a Farshore vault from its documents alone.")
    parser.add_argument("--vault", required=True, help="a directory, file:///path or s3://BUCKET/PREFIX")
    parser.add_argument("--key-file", required=True, help="file with the recovery key, or with a node key")
    parser.add_argument("--point", default="latest", help="latest, or the id of a point")
    parser.add_argument("--to", help="directory for the files")
    parser.add_argument("--incomplete", action="store_true", help="also write a point of which disks are lacking")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="list machines, volumes, their epochs and points, as JSON")
    what.add_argument("--volume", help="id of the volume to write")
    what.add_argument("--machine", help="name or id of the machine to write")
    arguments = parser.parse_args(words)
    if not arguments.list and not arguments.to:
        parser.error("--to is missing")
    return arguments


def main() -> int:
    """Runs, and turns a refusal into its line and exit code."""
    try:
        run(parsed(sys.argv[1:]))
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
