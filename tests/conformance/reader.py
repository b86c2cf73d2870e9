#!/usr/bin/env python3
"""Reads a Farshore vault from docs/formats alone: no code is shared with the programs that wrote it.

    reader.py --vault DIR|s3://BUCKET/PREFIX --key-file FILE --list
    reader.py --vault … --key-file FILE --volume ID --point latest|ID --to DIR

The vault is only read. S3 takes AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and
AWS_REGION from the environment. A refusal is one line on standard error; its exit code is of docs/runbooks/exit-codes.md.
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
import struct
import sys
import urllib.parse
import uuid
import xml.etree.ElementTree
from collections import defaultdict
from dataclasses import dataclass
from typing import Iterator, NamedTuple, Optional, Union

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 2
BLOCK = 4096
TAG = 16
# segment.md, layout of the object: bytes of the salt in front of each sealed frame.
FRAME_SALT = 0
SLOT_MAX = 2**62
VOLUME_BLOCKS_MAX = 2**34
NO_SLOT = 2**64 - 1
ZEROS = 2**32 - 1
WINDOW = 4
FIRST_READ = 64 * 1024
EPOCHS_MAX = 2**20
KEYS_MAX = 4096
SEGMENT, SEAL, FILL = 1, 2, 3
MARK_KINDS = {1: "crash", 2: "app", 3: "scan", 4: "file system", 5: "final"}


class Refusal(Exception):
    """Why nothing more is read: one line, and an exit code of docs/runbooks/exit-codes.md."""

    code = 1


class Usage(Refusal):
    """The command line is wrong."""

    code = 64


class Newer(Refusal):
    """README.md: what must be understood and is not known."""

    code = 65


class Absent(Refusal):
    """What was named does not exist."""

    code = 66


class Unreadable(Refusal):
    """The store or a file does not do what was asked."""

    code = 74


class WrongKey(Refusal):
    """keys.md: the key is not one of this vault."""

    code = 81


class Damaged(Refusal):
    """docs/damage.md: an object does not check, or is lost."""

    code = 82

    @classmethod
    def at(cls, name: str, byte: int, what: str) -> Damaged:
        """An object that is there and does not check."""
        return cls(f"object {name} is damaged at byte {byte}: {what}")


# Stores


class Directory:
    """A vault in a directory: names of objects are paths below it (vault.md, objects)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, name: str, start: int, length: int) -> Optional[tuple[bytes, int]]:
        """Bytes of an object and its whole length; None if it is not there."""
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                file.seek(start)
                return file.read(length), os.fstat(file.fileno()).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unreadable(f"object {name} cannot be read: {error.strerror}") from error

    def names(self, prefix: str) -> list[str]:
        """What lies directly below a prefix that ends in a slash."""
        try:
            return sorted(os.listdir(os.path.join(self.path, prefix)))
        except (FileNotFoundError, NotADirectoryError):
            return []


class S3:
    """A vault below a prefix of a bucket, asked in path style and signed with AWS Signature Version 4."""

    def __init__(self, bucket: str, prefix: str, environ: dict[str, str]) -> None:
        try:
            endpoint = urllib.parse.urlsplit(environ["AWS_ENDPOINT_URL"])
            self.access, self.secret = environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]
        except KeyError as error:
            raise Usage(f"s3:// needs {error.args[0]} in the environment") from error
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
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={listed}, Signature={key.hex()}"
        )
        return headers

    def ask(self, path: str, query: str, extra: dict[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One GET; what breaks on the way is asked for again a few times."""
        path = urllib.parse.quote(path, safe="/-_.~")
        for attempt in range(4):
            try:
                url = f"{path}?{query}" if query else path
                self.connection.request("GET", url, headers=self.signed(path, query, extra))
                answer = self.connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                trouble = str(error)
                continue
            if answer.status < 500:
                return answer.status, answer.headers, body
            trouble = f"status {answer.status}"
        raise Unreadable(f"the store does not answer for {path}: {trouble}")

    def get(self, name: str, start: int, length: int) -> Optional[tuple[bytes, int]]:
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
        raise Unreadable(f"object {name} cannot be read: the store says {status}")

    def names(self, prefix: str) -> list[str]:
        """What lies directly below a prefix that ends in a slash."""
        found: list[str] = []
        full = self.prefix + prefix
        more = {"delimiter": "/", "list-type": "2", "prefix": full}
        while True:
            query = "&".join(f"{key}={urllib.parse.quote(more[key], safe='-_.~')}" for key in sorted(more))
            status, _, body = self.ask(f"/{self.bucket}", query, {})
            if status != 200:
                raise Unreadable(f"{prefix} cannot be listed: the store says {status}")
            root = xml.etree.ElementTree.fromstring(body)
            space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
            for path in (f"{space}Contents/{space}Key", f"{space}CommonPrefixes/{space}Prefix"):
                found += [element.text[len(full) :].strip("/") for element in root.findall(path) if element.text]
            token = root.findtext(f"{space}NextContinuationToken")
            if not token:
                return sorted(found)
            more["continuation-token"] = token


Store = Union[Directory, S3]


def store_at(url: str) -> Store:
    """The store that a URL or path names."""
    if url.startswith("s3://"):
        bucket, _, prefix = url[len("s3://") :].partition("/")
        return S3(bucket, prefix, dict(os.environ))
    path = urllib.parse.unquote(url[len("file://") :]) if url.startswith("file://") else url
    return Directory(path)


# What all formats share


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC32C_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """README.md: CRC32C (Castagnoli)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ CRC32C_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def derive(context: str, *parts: bytes, length: int = 32) -> bytes:
    """object.md, cryptography: BLAKE3 in key-derivation mode, each part preceded by its length in 8 bytes."""
    joined = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return blake3(joined, derive_key_context=f"farshore 2026 v2 {context}").digest(length)


def nonce(domain: int, counter: int) -> bytes:
    """segment.md, cryptography: a nonce is domain (4 bytes) and counter (8 bytes)."""
    return struct.pack("<IQ", domain, counter)


def uid(raw: bytes) -> str:
    """README.md: ids are 16 bytes in the order of their text."""
    return str(uuid.UUID(bytes=raw))


def decompress(data: bytes, length: int) -> bytes:
    """segment.md, limits: zstd frames must say their size, and it must be the recorded one."""
    if zstandard.get_frame_parameters(data).content_size != length:
        raise zstandard.ZstdError("another size than recorded")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=length, allow_extra_data=False)


class Front(NamedTuple):
    """What all objects of a vault begin with: magic, version, header length, bits."""

    length: int
    must: int

    @classmethod
    def read(cls, name: str, data: bytes, magic: bytes, least: int) -> Front:
        """vault.md, keys.md, object.md: the first 12 bytes; the bits count once the checksum was compared."""
        if len(data) < 12 or data[:4] != magic:
            raise Damaged.at(name, 0, f"not {magic.decode()}")
        version, length, must = struct.unpack_from("<HHI", data, 4)
        if version > VERSION:
            raise Newer(f"object {name} is of version {version}: a newer version of Farshore wrote it")
        if version < VERSION:
            raise Damaged.at(name, 0, f"version {version}")
        if length % 8 or not least <= length <= 512 or len(data) < length:
            raise Damaged.at(name, 0, "header length")
        return cls(length, must)

    def understood(self, name: str) -> None:
        """object.md: a bit of *must understand* that is not known."""
        if self.must:
            raise Newer(f"object {name} needs {self.must:#x} understood: a newer version of Farshore wrote it")


def sections(name: str, byte: int, body: bytes, known: dict[int, tuple[int, int]]) -> dict[int, list[bytes]]:
    """object.md, layout of the body: records of each known kind, which maps to its stride and most records."""
    found: dict[int, list[bytes]] = {}
    at, last, seen = 0, -1, 0
    while at < len(body):
        if len(body) - at < 16:
            raise Damaged.at(name, byte, "a section ends early")
        kind, flags, stride, count, reserved = struct.unpack_from("<HHIII", body, at)
        at, seen = at + 16, seen + 1
        if kind <= last or seen > 64 or flags > 1 or reserved or not stride or not count:
            raise Damaged.at(name, byte, "sections are not as they must be")
        if stride * count > len(body) - at:
            raise Damaged.at(name, byte, "a section ends early")
        if kind in known:
            least, most = known[kind]
            if not flags or stride < least or count > most:
                raise Damaged.at(name, byte, f"section {kind}")
            found[kind] = [body[where : where + least] for where in range(at, at + stride * count, stride)]
        elif flags:
            raise Newer(f"object {name} has section {kind}: a newer version of Farshore wrote it")
        at, last = at + stride * count, kind
    return found


# Keys and the vault


class Wrapping:
    """keys.md, key files: a recovery key or a node key, and what comes from it."""

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"FS(RK|NK)([0-9]+)-([0-9a-f]{64})-([0-9a-f]{8})", text.strip(), re.IGNORECASE)
        if not found:
            raise Newer("the key file has no recovery key or node key")
        if int(found[2]) != VERSION:
            raise Newer(f"the key file is of version {found[2]}")
        kind = "recovery" if found[1].upper() == "RK" else "node"
        secret = bytes.fromhex(found[3])
        if derive(f"{kind} key check", secret, length=4).hex() != found[4].lower():
            raise Newer("the key in the key file is mistyped: its check does not fit")
        self.kind = 1 if kind == "recovery" else 2
        self.fingerprint = derive(f"{kind} key fingerprint", secret, length=8)
        self.wraps = AESGCM(derive(f"{kind} key wrapping key", secret))


class Key(NamedTuple):
    """keys.md: an unwrapped key."""

    domain: int
    kind: int
    secret: bytes


def unwrap(name: str, data: bytes, vault: bytes, number: int, wrapping: Wrapping) -> Key:
    """keys.md, layout of the object: checksum, place, then the tag."""
    front = Front.read(name, data, b"FSKY", 56)
    if len(data) != front.length + 64 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Damaged.at(name, 0, "checksum")
    front.understood(name)
    owner, length, key, domain, kind, by, reserved, wrapper = struct.unpack_from("<16sIIIBBH8s", data, 16)
    if (owner, key, wrapper) != (vault, number, wrapping.fingerprint):
        raise Damaged.at(name, 0, f"is key {key} of vault {uid(owner)} wrapped by {wrapper.hex()}")
    if kind not in (1, 2) or by not in (1, 2, 3):
        raise Newer(f"object {name} is of kind {kind}, {by}: a newer version of Farshore wrote it")
    if length != 60 or reserved or not domain or by != wrapping.kind:
        raise Damaged.at(name, 0, "header")
    head, rest = data[: front.length], data[front.length : -4]
    try:
        return Key(domain, kind, wrapping.wraps.decrypt(rest[:12], rest[12:], head))
    except InvalidTag as error:
        raise Damaged.at(name, front.length, "tag of the wrapped key") from error


PARAMETERS = struct.pack("<IIIIIBBBBHHI", 4096, 4, 8, 32, 524288, 1, 1, 1, 0, 2026, 2, 0)


def vault_object(data: bytes) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """vault.md, layout of the object: id, and root key and data key of each domain."""
    front = Front.read("vault", data, b"FSVT", 48)
    if len(data) > 4096 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Damaged.at("vault", 0, "checksum")
    front.understood("vault")
    vault, length, reserved = struct.unpack_from("<16sI12s", data, 16)
    if front.length + length + 4 != len(data) or any(reserved):
        raise Damaged.at("vault", 0, "header")
    found = sections("vault", 0, data[front.length : -4], {1: (32, 1), 2: (16, 128)})
    if len(found) != 2:
        raise Damaged.at("vault", 0, "a section is missing")
    if found[1][0] != PARAMETERS:
        raise Newer("object vault has parameters that are not known: a newer version of Farshore wrote it")
    domains: dict[int, tuple[int, int]] = {}
    for record in found[2]:
        domain, root, first, reserved = struct.unpack("<IIII", record)
        if domain <= max(domains, default=0) or not root or not first or root == first or reserved:
            raise Damaged.at("vault", 0, "domains")
        domains[domain] = (root, first)
    if 1 not in domains:
        raise Damaged.at("vault", 0, "no domain 1")
    return vault, domains


# Objects


@dataclass
class Header:
    """object.md, layout of the header, authenticated; `own` are the fields of the kind."""

    name: str
    raw: bytes
    domain: int
    variant: int
    compression: int
    body_length: int
    raw_length: int
    salt: bytes
    own: bytes
    cipher: AESGCM
    total: int


class Epoch(NamedTuple):
    """epoch.md, layout: the head, and the label."""

    ordinal: int
    epoch: int
    log: bytes
    first_slot: int
    first_seq: int
    size: int
    label: str


class Target(NamedTuple):
    """segment.md, targets: a segment, one attempt at a slot."""

    log: bytes
    slot: int
    attempt: bytes


class Frame(NamedTuple):
    """segment.md: where a sealed frame lies in the object, and what it is."""

    at: int
    stored: int
    length: int
    compression: int


class Chunk(NamedTuple):
    """segment.md: a chunk. `target` 0 is here, and `number` its frame; else its number in the target."""

    id: bytes
    target: int
    number: int
    offset: int
    blocks: int


class Mark(NamedTuple):
    """frame.md, mark: a recovery point."""

    point: bytes
    time: int
    kind: int
    unknown: int
    attempt: bytes
    member: int
    members: int


class Span(NamedTuple):
    """segment.md: a piece of one volume's stream; its extents are (block, count, chunk, first)."""

    volume: bytes
    epoch: int
    first: int
    last: int
    extents: list[tuple[int, int, int, int]]
    mark: Optional[Mark]


class Table(NamedTuple):
    """segment.md, layout of the table."""

    frames: list[Frame]
    targets: list[Target]
    chunks: list[Chunk]
    spans: list[Span]


TABLE = {1: (12, 4096), 2: (32, 131072), 3: (48, 131072), 4: (72, 16384), 5: (20, 262144), 6: (64, 16384)}


def parse_mark(name: str, byte: int, record: bytes) -> Mark:
    """frame.md, bodies: the mark."""
    point, time, kind, flags, zero, unknown, attempt, member, members, rest = struct.unpack("<16sQBBHI16sHH12s", record)
    if kind > 5 or flags & 0b1110:
        raise Newer(f"object {name} has a mark of kind {kind}, flags {flags}: a newer version of Farshore wrote it")
    if not kind or zero or any(rest) or member >= members or (members == 1) != (not any(attempt)):
        raise Damaged.at(name, byte, "a mark is not as it must be")
    return Mark(point, time, kind, unknown, attempt, member, members)


def parse_table(name: str, byte: int, body: bytes, frames_length: int) -> Table:
    """segment.md, layout of the table, with every rule that it states; `byte` is where the table begins."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise Damaged.at(name, byte, what)

    found = sections(name, byte, body, TABLE)
    frames, at = [], 0
    for record in found.get(1, []):
        stored, length, compression, reserved = struct.unpack("<IIB3s", record)
        if compression > 1:
            raise Newer(f"object {name} has compression {compression}: a newer version of Farshore wrote it")
        frames.append(Frame(at, stored, length, compression))
        extra = FRAME_SALT + TAG
        check(not any(reserved) and length <= 2**20 and extra <= stored <= length + extra, "a frame's lengths")
        check(compression == 1 or stored == length + extra, "a frame's lengths")
        at += stored
    check(at == frames_length, "frames are not as long as the header says")
    targets = [Target(*struct.unpack("<16sQ8s", record)) for record in found.get(2, [])]
    check(all(target.slot <= SLOT_MAX for target in targets) and len(set(targets)) == len(targets), "targets")
    chunks, named = [], 0
    for record in found.get(3, []):
        chunk = Chunk(*struct.unpack("<32sIIII", record))
        check(1 <= chunk.blocks <= 32 and chunk.target <= named + 1, "a chunk")
        named = max(named, chunk.target)
        if chunk.target:
            check(not chunk.offset, "a chunk")
        else:
            check(chunk.number < len(frames), "a chunk")
            check(chunk.offset + chunk.blocks * BLOCK <= frames[chunk.number].length, "a chunk beyond its frame")
        chunks.append(chunk)
    check(named == len(targets), "a target that no chunk is in")
    extents = [struct.unpack("<QIII", record) for record in found.get(5, [])]
    marks = [parse_mark(name, byte, record) for record in found.get(6, [])]
    spans: list[Span] = []
    reached: dict[bytes, int] = {}
    used = marked = 0
    for record in found.get(4, []):
        volume, epoch, first, last, previous, count, mark, _, _, reserved = struct.unpack("<16sQQQQII8s3s5s", record)
        check(epoch > 0 and 1 <= first <= last < 2**64 - 1 and not any(reserved), "a span")
        check(previous <= SLOT_MAX or previous == NO_SLOT, "a span's previous slot")
        check(reached.get(volume, first - 1) == first - 1, "spans of a volume do not join")
        reached[volume] = last
        mine, used = extents[used : used + count], used + count
        check(len(mine) == count and mark in (0, marked + 1), "a span's extents or mark")
        marked = max(marked, mark)
        check(marked <= len(marks), "a span's mark")
        end = 0
        for block, blocks, chunk, start in mine:
            check(blocks > 0 and end <= block, "extents overlap")
            end = block + blocks
            check(end <= VOLUME_BLOCKS_MAX, "an extent beyond the largest volume")
            if chunk == ZEROS:
                check(not start, "an extent of zeros")
            else:
                check(chunk < len(chunks) and start + blocks <= chunks[chunk].blocks, "an extent beyond its chunk")
        spans.append(Span(volume, epoch, first, last, mine, marks[mark - 1] if mark else None))
    check(used == len(extents) and marked == len(marks), "extents or marks of no span")
    return Table(frames, targets, chunks, spans)


class Slot(NamedTuple):
    """segment.md, layout of the object: header of a segment, seal or fill, with its own fields."""

    header: Header
    target: Target
    incarnation: int
    frames_length: int


class Point(NamedTuple):
    """A mark in its volume's stream: the place is (ordinal, seq)."""

    epoch: Epoch
    seq: int
    mark: Mark


class Vault:
    """A vault that a key has opened."""

    def __init__(self, store: Store, wrapping: Wrapping) -> None:
        self.store = store
        got = store.get("vault", 0, FIRST_READ)
        if got is None:
            if store.names("keys/"):
                raise Damaged("object vault is missing although keys are there")
            raise Absent("there is no vault")
        self.id, self.domains = vault_object(got[0])
        self.warnings: list[str] = []
        self.keys = self.read_keys(wrapping)
        self.chunk_keys = {
            domain: derive("chunk id key", self.keys[root].secret, self.id)
            for domain, (root, _) in self.domains.items()
        }

    def read_keys(self, wrapping: Wrapping) -> dict[int, Key]:
        """keys.md, order of operations: 1, 2, … until one does not exist for this key."""
        keys: dict[int, Key] = {}
        wrapper = wrapping.fingerprint.hex()
        for number in range(1, KEYS_MAX + 1):
            name = f"keys/{number}/{wrapper}"
            got = self.store.get(name, 0, 4096)
            if got is None:
                break
            keys[number] = unwrap(name, got[0], self.id, number, wrapping)
        if not keys and self.store.names("keys/1/"):
            raise WrongKey("the key is not one of this vault")
        for domain, pair in self.domains.items():
            for number, kind in zip(pair, (2, 1)):
                if number not in keys:
                    raise Damaged(f"object keys/{number}/{wrapper} is missing; vault refers to it")
                if keys[number][:2] != (domain, kind):
                    raise Damaged.at(f"keys/{number}/{wrapper}", 0, "is not what the vault says")
        return keys

    # Objects

    def open_header(
        self, magic: bytes, name: str, subject: bytes, number: int, own: int
    ) -> Optional[tuple[Header, bytes]]:
        """object.md: the header, authenticated, and the bytes behind it that came along; None if it is not there."""
        got = self.store.get(name, 0, FIRST_READ)
        if got is None:
            return None
        data, total = got
        front = Front.read(name, data, magic, 156 + own)
        raw = data[: front.length]
        if crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise Damaged.at(name, 0, "checksum of the header")
        vault, its, where, part, zero = struct.unpack_from("<16s16sQII", raw, 16)
        if (vault, its, where, part) != (self.id, subject, number, 0):
            is_, should = (f"{uid(a)}/{uid(b)}/{c}/{d}" for a, b, c, d in
                           ((vault, its, where, part), (self.id, subject, number, 0)))
            raise Damaged.at(name, 0, f"is {is_}, should be {should}")
        fields = struct.unpack_from("<IIBBHIII32s32s", raw, 64)
        domain, key, variant, compression, zero2, body_length, raw_length, zero3, salt, commitment = fields
        if key not in self.keys:
            raise Damaged(f"object keys/{key} is missing; {name} refers to it")
        parts = (self.keys[key].secret, salt, magic, vault, its, struct.pack("<Q", where), struct.pack("<I", part))
        said = blake3(raw[:120] + raw[152:-4], key=derive("object commitment key", *parts)).digest()
        if not hmac.compare_digest(said, commitment):
            raise Damaged.at(name, 0, "commitment")
        front.understood(name)
        if domain not in self.domains or compression > 1:
            raise Newer(f"object {name} has domain {domain}, compression {compression}: a newer version wrote it")
        if self.keys[key][:2] != (domain, 1):
            raise Damaged.at(name, 0, f"key {key} is no data key of domain {domain}")
        least = raw_length + TAG if not compression else TAG
        if zero or zero2 or zero3 or raw_length > 2**24 or not least <= body_length <= raw_length + TAG:
            raise Damaged.at(name, 0, "header")
        cipher = AESGCM(derive("object seal key", *parts))
        mine = raw[152 : 152 + own]
        return Header(name, raw, domain, variant, compression, body_length, raw_length, salt, mine, cipher, total), \
            data[front.length :]

    def open_body(self, header: Header, behind: bytes, frames_length: int = 0) -> bytes:
        """object.md, cryptography: the body, opened and decompressed."""
        at = len(header.raw)
        if header.total != at + header.body_length + frames_length:
            raise Damaged.at(header.name, min(at, header.total), "the object is not as long as its header says")
        body = behind[: header.body_length]
        if len(body) < header.body_length:
            body += self.bytes_of(header.name, at + len(body), header.body_length - len(body))
        try:
            opened = header.cipher.decrypt(nonce(2, 0), body, header.raw)
            body = decompress(opened, header.raw_length) if header.compression else opened
        except (InvalidTag, zstandard.ZstdError) as error:
            raise Damaged.at(header.name, at, "the body does not open") from error
        return body

    def bytes_of(self, name: str, start: int, length: int) -> bytes:
        """Bytes of an object that was there a moment ago."""
        got = self.store.get(name, start, length)
        if got is None:
            raise Damaged(f"object {name} is missing")
        if len(got[0]) != length:
            raise Damaged.at(name, start + len(got[0]), "the object ends early")
        return got[0]

    # Epochs

    def volumes(self) -> list[bytes]:
        """vault.md, objects: LIST finds the volumes."""
        return [uuid.UUID(name).bytes for name in self.store.names("volumes/")]

    def epoch(self, volume: bytes, ordinal: int) -> Optional[Epoch]:
        """epoch.md, layout."""
        name = f"volumes/{uid(volume)}/epochs/{ordinal:010}"
        got = self.open_header(b"FSEP", name, volume, ordinal, 4)
        if got is None:
            return None
        header, behind = got
        at = len(header.raw)
        if header.total > 4096 or header.variant or any(header.own):
            raise Damaged.at(name, 0, "header")
        found = sections(name, at, self.open_body(header, behind), {1: (56, 1), 2: (1, 128)})
        if 1 not in found:
            raise Damaged.at(name, at, "no head")
        epoch, log, first_slot, first_seq, size, _ = struct.unpack("<Q16sQQQ8s", found[1][0])
        if not epoch or first_slot > SLOT_MAX or not 1 <= first_seq < 2**64 - 1 or not 1 <= size <= 2**46:
            raise Damaged.at(name, at, "head")
        label = b"".join(found.get(2, [])).decode(errors="replace")
        return Epoch(ordinal, epoch, log, first_slot, first_seq, size, label)

    def epochs(self, volume: bytes) -> tuple[list[Epoch], Optional[Refusal]]:
        """epoch.md, order of operations: 1, 2, … until "not found", the next 3 looked at as well."""
        found: list[Epoch] = []
        for ordinal in range(1, EPOCHS_MAX + 1):
            name = f"volumes/{uid(volume)}/epochs/{ordinal:010}"
            try:
                epoch = self.epoch(volume, ordinal)
                if epoch is None:
                    behind = [n for n in range(ordinal + 1, ordinal + 4) if self.epoch(volume, n)]
                    epoch = self.epoch(volume, ordinal) if behind else None
                    if epoch is None and behind:
                        raise Damaged(f"object {name} is missing although ordinal {behind[0]} exists")
            except Refusal as refusal:
                return found, refusal
            if epoch is None:
                break
            if found and (epoch.epoch <= found[-1].epoch or epoch.first_seq < found[-1].first_seq):
                return found, Damaged.at(name, 160, "does not ascend")
            found.append(epoch)
        if not found:
            raise Absent(f"there is no volume {uid(volume)}")
        return found, None

    # Logs

    def slot(self, log: bytes, number: int) -> Optional[tuple[Slot, bytes]]:
        """segment.md, layout of the object."""
        name = f"logs/{uid(log)}/{number:016x}"
        got = self.open_header(b"FSSG", name, log, number, 44)
        if got is None:
            return None
        header, behind = got
        incarnation, frames, _, _, checkpoint, zero = struct.unpack("<QQQQQI", header.own)
        if header.variant not in (SEGMENT, SEAL, FILL):
            raise Newer(f"object {name} is of kind {header.variant}: a newer version of Farshore wrote it")
        if not incarnation or zero or (checkpoint > SLOT_MAX and checkpoint != NO_SLOT):
            raise Damaged.at(name, 0, "header")
        if header.variant != SEGMENT and (frames or header.raw_length or header.compression):
            raise Damaged.at(name, 0, "a seal or fill with content")
        if len(header.raw) + header.body_length + frames > 2**26:
            raise Damaged.at(name, 0, "longer than a segment may be")
        return Slot(header, Target(log, number, header.salt[:8]), incarnation, frames), behind

    def table(self, slot: Slot, behind: bytes) -> Table:
        """segment.md, layout of the table."""
        header = slot.header
        return parse_table(
            header.name, len(header.raw), self.open_body(header, behind, slot.frames_length), slot.frames_length
        )

    def hole(self, log: bytes, end: int) -> bool:
        """segment.md, order of operations: whether the log ends in front of a missing slot; False if it is there now."""
        near = [number for number in range(end + 1, end + WINDOW) if self.slot(log, number)]
        lost = [number for number in near if self.slot(log, number)[0].header.variant == SEAL]
        lost += [end + step for step in (2**power for power in range(2, 24)) if self.slot(log, end + step)]
        if self.slot(log, end):
            return False
        name = f"logs/{uid(log)}/{end:016x}"
        if lost:
            raise Damaged(f"object {name} is missing although slot {lost[0]} exists")
        if near:
            self.warnings.append(f"object {name} is missing, and slot {near[0]} exists: a run of the writer ended there")
        return True

    def log(self, log: bytes, first: int) -> Iterator[tuple[Slot, bytes]]:
        """segment.md: the slots that count, from `first` up to a seal or a missing one; void ones are read over."""
        incarnation, number = 0, first
        while True:
            got = self.slot(log, number)
            if got is None:
                if self.hole(log, number):
                    return
                continue
            slot = got[0]
            if slot.incarnation >= incarnation:
                incarnation = slot.incarnation
                if slot.header.variant == SEAL:
                    return
                if slot.header.variant == SEGMENT:
                    yield got
            number += 1

    def spans_of(
        self, volume: bytes, epoch: Epoch, end: Optional[int]
    ) -> Iterator[tuple[Slot, Table, Span]]:
        """vault.md, reading a volume: the spans of one epoch, joined, below `end` where the next epoch begins."""
        seq = epoch.first_seq
        broken: Optional[Refusal] = None
        if seq == end:
            return
        for slot, behind in self.log(epoch.log, max(0, epoch.first_slot - WINDOW)):
            if slot.target.slot < epoch.first_slot:
                continue
            try:
                table = self.table(slot, behind)
            except Damaged as refusal:
                broken = broken or refusal
                continue
            for span in table.spans:
                if (span.volume, span.epoch) != (volume, epoch.epoch):
                    continue
                if span.first != seq or (end is not None and span.last >= end):
                    raise broken or Damaged.at(
                        slot.header.name, len(slot.header.raw),
                        f"a span of volume {uid(volume)} is {span.first} to {span.last}, should begin at {seq}",
                    )
                broken = None
                yield slot, table, span
                seq = span.last + 1
            if seq == end:
                return
        if broken:
            raise broken
        if end is not None:
            raise Damaged(
                f"volume {uid(volume)}: epoch {epoch.ordinal + 1} begins at seq {end}, "
                f"and log {uid(epoch.log)} ends at seq {seq - 1}: an object is missing"
            )

    def stream(self, volume: bytes) -> Iterator[tuple[Epoch, Slot, Table, Span]]:
        """vault.md, reading a volume: all spans that count, in order; ends with what stands in the way."""
        epochs, problem = self.epochs(volume)
        for index, epoch in enumerate(epochs):
            following = epochs[index + 1].first_seq if index + 1 < len(epochs) else None
            if following is None and problem:
                raise problem
            for slot, table, span in self.spans_of(volume, epoch, following):
                yield epoch, slot, table, span
        if problem:
            raise problem

    # Content

    def image(self, volume: bytes, wanted: Optional[bytes]) -> tuple[Point, Extents]:
        """What a volume holds at a point, at the last one if none is wanted."""
        extents, pending, point = Extents(), [], None
        for epoch, slot, table, span in self.stream(volume):
            pending += resolve(slot, table, span)
            if span.mark and (wanted is None or span.mark.point == wanted):
                for block, count, piece in pending:
                    extents.put(block, count, piece)
                pending, point = [], Point(epoch, span.last, span.mark)
                if wanted is not None:
                    break
        if point is None:
            what = f"point {uid(wanted)}" if wanted else "point"
            raise Absent(f"volume {uid(volume)} has no {what}")
        return point, extents

    def restore(self, extents: Extents, size: int, path: str) -> None:
        """Writes an image to a sparse file, one frame after the other."""
        by_target: dict[Target, list[tuple[int, int, Piece]]] = defaultdict(list)
        for block, end, piece in extents.items():
            by_target[piece.target].append((block, end - block, piece))
        with open(path + ".part", "wb") as file:
            try:
                file.truncate(size)
                for target in sorted(by_target):
                    for at, data in self.read(target, by_target[target]):
                        file.seek(at)
                        file.write(data[: max(0, size - at)])
                os.replace(path + ".part", path)
            except BaseException:
                os.unlink(path + ".part")
                raise

    def read(self, target: Target, wanted: list[tuple[int, int, Piece]]) -> Iterator[tuple[int, bytes]]:
        """Bytes of extents whose chunks lie in one segment, each chunk compared with its id (segment.md, cryptography)."""
        name = f"logs/{uid(target.log)}/{target.slot:016x}"
        got = self.slot(target.log, target.slot)
        if got is None or got[0].target != target or got[0].header.variant != SEGMENT:
            raise Damaged(f"object {name} of attempt {target.attempt.hex()} is missing; chunks are in it")
        slot = got[0]
        table = self.table(*got)
        by_frame: dict[int, dict[Chunk, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
        for block, count, piece in wanted:
            chunk = table.chunks[piece.number] if piece.number < len(table.chunks) else None
            if chunk is None or chunk.target or (chunk.id, chunk.blocks) != (piece.id, piece.blocks):
                raise Damaged.at(name, len(slot.header.raw), f"chunk {piece.number} is not what refers to it says")
            by_frame[chunk.number][chunk].append((block, count, piece.first))
        for number in sorted(by_frame):
            frame = self.frame(slot, table.frames[number], number)
            for chunk, extents in by_frame[number].items():
                data = frame[chunk.offset : chunk.offset + chunk.blocks * BLOCK]
                if blake3(data, key=self.chunk_keys[slot.header.domain]).digest() != chunk.id:
                    raise Damaged.at(name, self.frame_at(slot, table.frames[number]), "a chunk is not what its id says")
                for block, count, first in extents:
                    yield block * BLOCK, data[first * BLOCK : (first + count) * BLOCK]

    @staticmethod
    def frame_at(slot: Slot, frame: Frame) -> int:
        """Byte of the object at which a frame begins."""
        return len(slot.header.raw) + slot.header.body_length + frame.at

    def frame(self, slot: Slot, frame: Frame, number: int) -> bytes:
        """segment.md, cryptography: a frame, opened and decompressed."""
        header, at = slot.header, self.frame_at(slot, frame)
        data = self.bytes_of(header.name, at, frame.stored)
        if data[:FRAME_SALT] != header.salt[:FRAME_SALT]:
            raise Damaged.at(header.name, at, "the frame is of another attempt")
        place = self.id + slot.target.log + struct.pack("<Q", slot.target.slot)
        aad = place + struct.pack("<IIB7x", number, frame.length, frame.compression)
        try:
            opened = header.cipher.decrypt(nonce(1, number), data[FRAME_SALT:], aad)
            opened = decompress(opened, frame.length) if frame.compression else opened
        except (InvalidTag, zstandard.ZstdError) as error:
            raise Damaged.at(header.name, at, f"frame {number} does not open") from error
        return opened


class Piece(NamedTuple):
    """Part of a chunk: where it lies, what it must be, and the first block of it."""

    target: Target
    number: int
    id: bytes
    blocks: int
    first: int


def resolve(slot: Slot, table: Table, span: Span) -> Iterator[tuple[int, int, Optional[Piece]]]:
    """segment.md: extents of a span with the segments that their chunks are in; None is zeros."""
    for block, count, number, first in span.extents:
        piece = None
        if number != ZEROS:
            chunk = table.chunks[number]
            if chunk.target:
                piece = Piece(table.targets[chunk.target - 1], chunk.number, chunk.id, chunk.blocks, first)
            else:
                piece = Piece(slot.target, number, chunk.id, chunk.blocks, first)
        yield block, count, piece


class Extents:
    """Block ranges without overlap and what they hold; what is not in it is zeros."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.held: list[tuple[int, Piece]] = []

    def put(self, block: int, count: int, piece: Optional[Piece]) -> None:
        """The last writer of a run of blocks."""
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
            was = self.held[high - 1][1]
            starts.append(end)
            held.append((self.held[high - 1][0], was._replace(first=was.first + end - self.starts[high - 1])))
        self.starts[low:high], self.held[low:high] = starts, held

    def items(self) -> Iterator[tuple[int, int, Piece]]:
        """First block, the one behind the last, and what is there."""
        for start, (end, piece) in zip(self.starts, self.held):
            yield start, end, piece


# Command line


def point_json(point: Point) -> dict[str, object]:
    """A point as `--list` prints it."""
    mark = point.mark
    return {
        "point": uid(mark.point), "ordinal": point.epoch.ordinal, "epoch": point.epoch.epoch, "seq": point.seq,
        "time_unix_ms": mark.time, "kind": MARK_KINDS[mark.kind], "unknown_blocks": mark.unknown,
        "member": mark.member, "members": mark.members,
    }


def list_vault(vault: Vault) -> tuple[dict[str, object], Optional[Refusal]]:
    """All volumes with their epochs and points, and the first thing that stood in the way."""
    volumes, first = [], None
    for volume in vault.volumes():
        points: list[dict[str, object]] = []
        epochs, problem = vault.epochs(volume)
        try:
            for epoch, _, _, span in vault.stream(volume):
                if span.mark:
                    points.append(point_json(Point(epoch, span.last, span.mark)))
        except Refusal as refusal:
            problem = refusal
        first = first or problem
        listed = [{**epoch._asdict(), "log": uid(epoch.log)} for epoch in epochs]
        volumes.append({"volume": uid(volume), "epochs": listed, "points": points,
                        "problem": str(problem) if problem else None})
    return {"vault": uid(vault.id), "volumes": volumes}, first


def parse_id(text: str, what: str) -> bytes:
    """An id as text."""
    try:
        return uuid.UUID(text).bytes
    except ValueError as error:
        raise Usage(f"{what} is no id: {text}") from error


def run(arguments: argparse.Namespace) -> None:
    """What the command line asks for."""
    try:
        with open(arguments.key_file, encoding="ascii") as file:
            wrapping = Wrapping(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise Absent(f"the key file cannot be read: {error}") from error
    vault = Vault(store_at(arguments.vault), wrapping)
    if arguments.list:
        listed, problem = list_vault(vault)
        print(json.dumps(listed, indent=1))
        if problem:
            raise problem
        return
    volume = parse_id(arguments.volume, "--volume")
    wanted = None if arguments.point == "latest" else parse_id(arguments.point, "--point")
    point, extents = vault.image(volume, wanted)
    os.makedirs(arguments.to, exist_ok=True)
    path = os.path.join(arguments.to, f"{uid(volume)}.raw")
    vault.restore(extents, point.epoch.size, path)
    for warning in vault.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps({**point_json(point), "size": point.epoch.size, "file": path}))


def main() -> int:
    """Runs, and turns a refusal into its line and exit code."""
    parser = argparse.ArgumentParser(description="Reads a Farshore vault from its documents alone.")
    parser.add_argument("--vault", required=True, help="a directory, file:///path or s3://BUCKET/PREFIX")
    parser.add_argument("--key-file", required=True, help="file with the recovery key, or with a node key")
    parser.add_argument("--point", default="latest", help="latest, or the id of a point")
    parser.add_argument("--to", help="directory for the files")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="list volumes, their epochs and points, as JSON")
    what.add_argument("--volume", help="id of the volume to write")
    arguments = parser.parse_args()
    if not arguments.list and not arguments.to:
        parser.error("--to is missing")
    try:
        run(arguments)
    except Refusal as refusal:
        print(f"reader: {refusal}", file=sys.stderr)
        return refusal.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
