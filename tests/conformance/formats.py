"""The objects of a vault as docs/formats has them: bytes in, values out, and a refusal for all else.

Nothing here touches a store, and no code is shared with the programs that wrote the bytes.
"""

from __future__ import annotations

import hmac
import re
import struct
import uuid
from collections.abc import Callable
from typing import NamedTuple

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 2
BLOCK = 4096
TAG = 16
# segment.md, a frame: bytes of its segment's salt behind each sealed frame.
FRAME_SALT = 32
SLOT_MAX = 2**62
REGISTER_MAX = 9_999_999_999
SEQ_MAX = 2**64 - 2
SIZE_MAX = 2**46
NO_SLOT = 2**64 - 1
ZEROS, SPECIAL = 2**32 - 1, 2**32 - 16
SEGMENT, SEAL, FILL = 1, 2, 3
# object.md, what may be added: kinds of marks, roles and firmware from here on are not known, and harmless.
OTHER_CODES = 128
MARK_KINDS = {1: "crash", 2: "app", 3: "scan", 4: "file system", 5: "final"}
UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
DATA_KEY, ROOT_KEY, WITHHELD, LATER_KEYS = 1, 2, 3, 128
KEYS_MAX = 4096
PROTECTED, EXCLUDED, REMOVED = 1, 2, 3

# docs/runbooks/exit-codes.md
USAGE, INPUT, ABSENT, OUTPUT, STORE, WRONG_KEY, DAMAGED = 64, 65, 66, 73, 74, 81, 82


class Refusal(Exception):
    """Why nothing more is read: one line, and its exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Closed(Refusal):
    """keys.md, revision.md: what is under a key that was erased, or withheld from the key at hand, is not lost."""


def damaged(name: str, byte: int, what: str) -> Refusal:
    """docs/damage.md: an object that is there and does not check."""
    return Refusal(DAMAGED, f"object {name} is damaged at byte {byte}: {what}")


def newer(name: str, what: str) -> Refusal:
    """README.md: a reader refuses by name what it must understand and does not."""
    return Refusal(INPUT, f"object {name} was written by a newer version of Farshore: {what} is not known here")


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


def checks(data: bytes) -> bool:
    """README.md: whether the last 4 bytes are the CRC32C of all before them."""
    return crc32c(data[:-4]) == int.from_bytes(data[-4:], "little")


def derive(context: str, *parts: bytes, length: int = 32) -> bytes:
    """object.md, cryptography: BLAKE3 in key-derivation mode, each part preceded by its length in 8 bytes."""
    joined = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return blake3(joined, derive_key_context=f"farshore 2026 v2 {context}").digest(length)


def nonce(domain: int, counter: int) -> bytes:
    """segment.md, cryptography: domain (4 bytes) and counter (8 bytes)."""
    return struct.pack("<IQ", domain, counter)


def uid(raw: bytes) -> str:
    """README.md: ids are 16 bytes in the order of their text."""
    return str(uuid.UUID(bytes=raw))


def unseal(cipher: AESGCM, number: bytes, data: bytes, aad: bytes, compression: int, length: int) -> bytes:
    """segment.md, limits: opened, and of the recorded size, which a zstd frame must say itself."""
    opened = cipher.decrypt(number, data, aad)
    if not compression:
        return opened
    if zstandard.get_frame_parameters(opened).content_size != length:
        raise zstandard.ZstdError("another size than recorded")
    return zstandard.ZstdDecompressor().decompress(opened, max_output_size=length, allow_extra_data=False)


def front(name: str, data: bytes, magic: bytes, least: int) -> int:
    """README.md: magic and version come first. The length of the header, which is all there."""
    if len(data) < 12 or data[:4] != magic:
        raise damaged(name, 0, f"{magic.decode()} is expected")
    version, length = data[4] | data[5] << 8, data[6] | data[7] << 8
    if version > VERSION:
        raise newer(name, f"version {version}")
    if version < VERSION or length % 8 or not least <= length <= 512 or len(data) < length:
        raise damaged(name, 0, "version or header length")
    return length


def understood(name: str, data: bytes) -> None:
    """object.md: a bit of *must understand*; asked for once the header was checked."""
    must = int.from_bytes(data[8:12], "little")
    if must:
        raise newer(name, f"feature {(must & -must).bit_length() - 1}")


def flags(name: str, value: int, known: int = 0) -> None:
    """frame.md, machine.md, group.md: bits 0 to 3 of flags must be understood, 4 to 7 may be ignored."""
    if value & 0x0F & ~known:
        raise newer(name, f"flag {value:#x}")


Sections = dict[int, list[bytes]]


def sections(name: str, byte: int, body: bytes, known: dict[int, tuple[int, int]]) -> Sections:
    """object.md, layout of the body: records of each known kind, given with its stride and most records."""
    found: Sections = {}
    at, last, seen = 0, -1, 0
    while at < len(body):
        if len(body) - at < 16:
            raise damaged(name, byte, "a section ends early")
        kind, flag, stride, count, reserved = struct.unpack_from("<HHIII", body, at)
        at, seen = at + 16, seen + 1
        if kind <= last or seen > 64 or flag > 1 or reserved or not stride or not count:
            raise damaged(name, byte, "a section is not as it must be")
        if stride * count > len(body) - at:
            raise damaged(name, byte, "a section ends early")
        if kind in known:
            least, most = known[kind]
            if not flag or stride < least or count > most:
                raise damaged(name, byte, f"section {kind}")
            found[kind] = [body[where : where + least] for where in range(at, at + stride * count, stride)]
        elif flag:
            raise newer(name, f"section {kind}")
        at, last = at + stride * count, kind
    return found


def text(name: str, byte: int, records: list[bytes]) -> str:
    """README.md: bytes of UTF-8 in a section of stride 1."""
    try:
        return b"".join(records).decode()
    except UnicodeDecodeError as error:
        raise damaged(name, byte, "a text is not UTF-8") from error


# Keys and the vault


class Wrapping:
    """keys.md, key files: a recovery key or a node key, and what comes from it."""

    def __init__(self, line: str) -> None:
        found = re.fullmatch(r"FS(RK|NK)2-([0-9a-f]{64})-([0-9a-f]{8})", line.strip(), re.IGNORECASE)
        if not found:
            raise Refusal(INPUT, "the key file has neither a recovery key nor a node key of version 2")
        self.kind = 1 if found[1].upper() == "RK" else 2
        who, secret = ("recovery", "node")[self.kind - 1], bytes.fromhex(found[2])
        if derive(f"{who} key check", secret, length=4).hex() != found[3].lower():
            raise Refusal(INPUT, f"the {who} key in the key file is mistyped: its last 8 digits do not match the rest")
        self.fingerprint = derive(f"{who} key fingerprint", secret, length=8)
        self.cipher = AESGCM(derive(f"{who} key wrapping key", secret))


class Key(NamedTuple):
    """keys.md, layout: an unwrapped key of a domain, or of the vault's own (0)."""

    domain: int
    kind: int
    secret: bytes


def unwrap(name: str, data: bytes, vault: bytes, number: int, wrapping: Wrapping) -> Key:
    """keys.md, layout of the object: its checksum, its place, then the tag."""
    length = front(name, data, b"FSKY", 56)
    if len(data) != length + 64 or not checks(data):
        raise damaged(name, 0, "checksum")
    understood(name, data)
    owner, body, key, domain, kind, by, reserved, wrapper = struct.unpack_from("<16sIIIBBH8s", data, 16)
    if (owner, key, wrapper) != (vault, number, wrapping.fingerprint):
        raise damaged(name, 0, f"is key {key} of vault {uid(owner)}, wrapped by {wrapper.hex()}")
    if kind not in (DATA_KEY, ROOT_KEY, WITHHELD) and kind < LATER_KEYS or by not in (1, 2, 3):
        raise newer(name, f"kind {kind} or {by}")
    if body != 60 or reserved or (kind == ROOT_KEY and not domain) or by != wrapping.kind:
        raise damaged(name, 0, "header")
    sealed = data[length:-4]
    try:
        secret = wrapping.cipher.decrypt(sealed[:12], sealed[12:], data[:length])
    except InvalidTag as error:
        raise damaged(name, length, "the wrapped key does not open") from error
    if kind == WITHHELD and any(secret):
        raise damaged(name, length, "it is withheld, and no zeros")
    return Key(domain, kind, secret)


PARAMETERS = struct.pack("<IIIIIBBBBHHI", 4096, 4, 8, 32, 524288, 1, 1, 1, 0, 2026, 2, 0)


class Revision(NamedTuple):
    """revision.md, layout: root and first data key of each domain, own key, last key, erased ones; 0 is `vault`."""

    number: int
    domains: dict[int, tuple[int, int]]
    own: int
    last: int
    erased: list[tuple[int, int]]

    @property
    def name(self) -> str:
        """Of the object that says it."""
        return f"revisions/{self.number:010}" if self.number else "vault"

    def gone(self, key: int) -> bool:
        """Whether a key was erased."""
        return any(first <= key <= last for first, last in self.erased)


def domain_records(name: str, byte: int, records: list[bytes]) -> dict[int, tuple[int, int]]:
    """vault.md, layout of the object, section 2: domains in ascending order, the first is 1."""
    domains: dict[int, tuple[int, int]] = {}
    for record in records:
        domain, root, first, zero = struct.unpack("<IIII", record)
        if domain <= max(domains, default=0) or not root or not first or root == first or zero:
            raise damaged(name, byte, "domains")
        domains[domain] = (root, first)
    if 1 not in domains:
        raise damaged(name, byte, "no domain 1")
    return domains


def vault_object(data: bytes) -> tuple[bytes, Revision]:
    """vault.md, layout of the object: its id, and what it says of keys: the highest number it names is the last."""
    length = front("vault", data, b"FSVT", 48)
    if len(data) > 4096 or not checks(data):
        raise damaged("vault", 0, "checksum")
    understood("vault", data)
    vault, body, own, reserved = struct.unpack_from("<16sII8s", data, 16)
    if length + body + 4 != len(data) or any(reserved):
        raise damaged("vault", 0, "header")
    found = sections("vault", 0, data[length:-4], {1: (32, 1), 2: (16, 128)})
    if len(found) != 2:
        raise damaged("vault", 0, "a section is missing")
    if found[1][0] != PARAMETERS:
        raise newer("vault", "a parameter")
    domains = domain_records("vault", 0, found[2])
    named = {number for pair in domains.values() for number in pair}
    last = max(own, *named)
    if not own or own in named or last > KEYS_MAX:
        raise damaged("vault", 0, "own key, or too many keys")
    return vault, Revision(0, domains, own, last, [])


def revision_body(name: str, number: int, body: bytes) -> Revision:
    """revision.md, layout."""
    found = sections(name, 160, body, {1: (24, 1), 2: (16, 128), 3: (8, 2048)})
    if not found.keys() >= {1, 2}:
        raise damaged(name, 160, "a section is missing")
    _, own, last, zero = struct.unpack("<QIIQ", found[1][0])
    domains = domain_records(name, 160, found[2])
    named = {key for pair in domains.values() for key in pair}
    erased: list[tuple[int, int]] = []
    for record in found.get(3, []):
        low, high = struct.unpack("<II", record)
        if low < (erased[-1][1] + 2 if erased else 1) or not low <= high <= last:
            raise damaged(name, 160, "erased keys")
        erased.append((low, high))
    said = Revision(number, domains, own, last, erased)
    if not own or own in named or said.gone(own) or not max(own, *named) <= last <= KEYS_MAX or zero:
        raise damaged(name, 160, "head")
    return said


class Keyring(NamedTuple):
    """What opens the objects of one vault."""

    vault: bytes
    revision: Revision
    keys: dict[int, Key]

    def secret(self, number: int, domain: int, kind: int, user: str) -> bytes:
        """revision.md, what it means: a key that object `user` refers to; nobody reads an erased one."""
        if self.revision.gone(number):
            raise Closed(ABSENT, f"key {number} was erased; object {user} refers to it")
        key = self.keys.get(number)
        if key is None:
            raise Refusal(DAMAGED, f"key {number} is missing; object {user} refers to it")
        if key.kind == WITHHELD:
            raise Closed(WRONG_KEY, f"key {number} is withheld from the key at hand; object {user} refers to it")
        if key[:2] != (domain, kind):
            raise damaged(user, 0, f"key {number} is not of kind {kind} and domain {domain}")
        return key.secret

    def chunk_id(self, domain: int, data: bytes) -> bytes:
        """keys.md, cryptography: keyed BLAKE3-256 under the key that comes from the domain's root key."""
        root = self.secret(self.revision.domains[domain][0], domain, ROOT_KEY, self.revision.name)
        return blake3(data, key=derive("chunk id key", root, self.vault)).digest()


# Objects


class Place(NamedTuple):
    """object.md: what an object's name says of it."""

    name: str
    magic: bytes
    subject: bytes
    number: int
    part: int = 0


def revision_place(vault: bytes, number: int) -> Place:
    """revision.md: name."""
    return Place(f"revisions/{number:010}", b"FSVR", vault, number)


def epoch_place(volume: bytes, ordinal: int) -> Place:
    """epoch.md: name."""
    return Place(f"volumes/{uid(volume)}/epochs/{ordinal:010}", b"FSEP", volume, ordinal)


def slot_place(log: bytes, slot: int) -> Place:
    """segment.md: name."""
    return Place(f"logs/{uid(log)}/{slot:016x}", b"FSSG", log, slot)


def machine_place(machine: bytes, revision: int) -> Place:
    """machine.md: name."""
    return Place(f"machines/{uid(machine)}/{revision:010}", b"FSMC", machine, revision)


def group_place(group: bytes, revision: int) -> Place:
    """group.md: name."""
    return Place(f"groups/{uid(group)}/{revision:010}", b"FSGP", group, revision)


class Header(NamedTuple):
    """object.md, layout of the header, authenticated; `own` are the fields of the kind."""

    place: Place
    raw: bytes
    domain: int
    variant: int
    compression: int
    body_length: int
    raw_length: int
    salt: bytes
    own: bytes
    sealed: AESGCM | Refusal

    @property
    def cipher(self) -> AESGCM:
        """What opens the body; the header is authenticated without."""
        if isinstance(self.sealed, Refusal):
            raise self.sealed
        return self.sealed


# object.md, whose an object is; of the slots of a log, seals and fills are so too.
VAULTS_OWN = (b"FSEP", b"FSCP", b"FSHZ", b"FSRG", b"FSBS", b"FSVR")


def is_own(magic: bytes, variant: int, domain: int) -> bool:
    """object.md, whose an object is: whether it must be the vault's own; of a slot of an unknown kind, what it says."""
    if magic != b"FSSG":
        return magic in VAULTS_OWN
    return {SEGMENT: False, SEAL: True, FILL: True}.get(variant, not domain)


def derived_over(ring: Keyring, place: Place, salt: bytes) -> tuple[bytes, ...]:
    """object.md, cryptography: what is behind the data key."""
    return salt, place.magic, ring.vault, place.subject, struct.pack("<Q", place.number), struct.pack("<I", place.part)


def own_key(name: str, data: bytes) -> int:
    """revision.md, order of operations: the one key that has to be known to read a revision."""
    front(name, data, b"FSVR", 160)
    return struct.unpack_from("<I", data, 84)[0]


def open_header(ring: Keyring, place: Place, data: bytes, own: int = 4, raw_most: int = 2**16) -> Header:
    """object.md, cryptography: checksum, place and commitment are compared before anything in the header counts."""
    name, magic, subject, number, part = place
    raw = data[: front(name, data, magic, 156 + own)]
    if not checks(raw):
        raise damaged(name, 0, "the checksum of the header does not match")
    said = struct.unpack_from("<16s16sQI", raw, 16)
    wanted = (ring.vault, subject, number, part)
    if said != wanted:
        is_, should = (f"{a.hex()} {b.hex()} {c} {d}" for a, b, c, d in (said, wanted))
        raise damaged(name, 0, f"it is of vault, subject, number, part {is_}, should be of {should}")
    fields = struct.unpack_from("<IIIBBHIII32s32s", raw, 60)
    zero, domain, key, variant, compression, zero2, body_length, raw_length, vaults, salt, commitment = fields
    if vaults not in ring.keys and vaults > ring.revision.last:
        raise Refusal(DAMAGED, f"key {vaults} is missing; object {name} refers to it")
    by, parts = ring.keys.get(vaults, Key(0, 0, b"")), derived_over(ring, place, salt)
    mine = blake3(raw[:120] + raw[152:-4], key=derive("object commitment key", by.secret, *parts)).digest()
    if by[:2] != (0, DATA_KEY) or not hmac.compare_digest(mine, commitment):
        raise damaged(name, 0, "the commitment does not match")
    understood(name, raw)
    if domain and domain not in ring.revision.domains or compression > 1:
        raise newer(name, f"domain {domain} or compression {compression}")
    least = TAG if compression else raw_length + TAG
    if zero or zero2 or raw_length > raw_most or not least <= body_length <= raw_length + TAG:
        raise damaged(name, 0, "header")
    if is_own(magic, variant, domain) != (not domain) or (key == vaults) != (not domain) or not key:
        raise damaged(name, 0, f"it is of domain {domain}, key {key}, own key {vaults}")
    sealed: AESGCM | Refusal
    try:
        sealed = AESGCM(derive("object seal key", ring.secret(key, domain, DATA_KEY, name), *parts))
    except Refusal as refusal:
        sealed = refusal
    return Header(place, raw, domain, variant, compression, body_length, raw_length, salt, raw[152 : 152 + own], sealed)


def open_body(header: Header, body: bytes) -> bytes:
    """object.md, cryptography: the body, opened and decompressed."""
    try:
        return unseal(header.cipher, nonce(2, 0), body, header.raw, header.compression, header.raw_length)
    except (InvalidTag, zstandard.ZstdError) as error:
        raise damaged(header.place.name, len(header.raw), "the body does not open") from error


def open_small(ring: Keyring, place: Place, data: bytes, raw_most: int = 2**16) -> bytes:
    """object.md: the body of an object that is header and body alone, without fields of its own."""
    header = open_header(ring, place, data, raw_most=raw_most)
    at = len(header.raw)
    if header.variant or any(header.own):
        raise damaged(place.name, 0, "header")
    if len(data) != at + header.body_length:
        raise damaged(place.name, min(len(data), at + header.body_length), "it is not as long as its header says")
    return open_body(header, data[at:])


class Epoch(NamedTuple):
    """epoch.md, layout: head, label (none without its key), end of the epoch before (slot, kind), and base
    (volume, ordinal, seq, point)."""

    ordinal: int
    epoch: int
    log: bytes
    first_slot: int
    first_seq: int
    size: int
    label: str
    ended: tuple[int, int] | None = None
    base: tuple[bytes, int, int] | None = None


END_SEAL, END_RELEASE, END_WORD, END_UNWRITTEN = 1, 2, 3, 4


def open_label(ring: Keyring, place: Place, domain: int, label: bytes) -> str:
    """epoch.md, layout: the label, under a key of the volume's domain; who does not have it goes on without."""
    key, zero, salt = struct.unpack_from("<II32s", label.ljust(40, b"\0"))
    if len(label) <= 40 + TAG or not key or zero:
        raise damaged(place.name, 160, "label")
    try:
        secret = ring.secret(key, domain, DATA_KEY, place.name)
    except Refusal:
        return ""
    cipher = AESGCM(derive("object seal key", secret, *derived_over(ring, place, salt)))
    try:
        return text(place.name, 160, [cipher.decrypt(nonce(5, 0), label[40:], b"")])
    except InvalidTag as error:
        raise damaged(place.name, 160, "the label does not open") from error


def epoch_body(ring: Keyring, place: Place, body: bytes) -> Epoch:
    """epoch.md, layout."""
    name, ordinal = place.name, place.number
    found = sections(name, 160, body, {1: (64, 1), 2: (1, 184), 3: (16, 1), 4: (48, 1)})
    if 1 not in found:
        raise damaged(name, 160, "there is no head")
    epoch, log, first_slot, first_seq, size, _, domain, reserved = struct.unpack("<Q16sQQQ8sII", found[1][0])
    if domain != 1:
        raise newer(name, f"domain {domain}")
    if reserved or not epoch or first_slot > SLOT_MAX or not 1 <= first_seq <= SEQ_MAX or not 1 <= size <= SIZE_MAX:
        raise damaged(name, 160, "head")
    ended = base = None
    for record in found.get(3, []):
        slot, kind, zero = struct.unpack("<QB7s", record)
        if kind not in (END_SEAL, END_RELEASE, END_WORD, END_UNWRITTEN):
            raise newer(name, f"end {kind}")
        if any(zero) or slot > SLOT_MAX or kind == (END_UNWRITTEN if slot else END_RELEASE):
            raise damaged(name, 160, "end of the epoch before")
        ended = slot, kind
    if (ended is not None) != (ordinal > 1):
        raise damaged(name, 160, "end of the epoch before")
    for record in found.get(4, []):
        volume, base_ordinal, seq, point = base = struct.unpack("<16sQQ16s", record)
        if not base_ordinal or not 1 <= seq <= SEQ_MAX:
            raise damaged(name, 160, "base")
    label = open_label(ring, place, domain, b"".join(found[2])) if 2 in found else ""
    return Epoch(ordinal, epoch, log, first_slot, first_seq, size, label, ended, base)


# Segments


class Target(NamedTuple):
    """segment.md, targets: a segment, one attempt at a slot."""

    log: bytes
    slot: int
    attempt: bytes


class Slot(NamedTuple):
    """segment.md, layout of the object: a segment, seal or fill."""

    header: Header
    incarnation: int
    frames_length: int

    @property
    def target(self) -> Target:
        """What refers to this attempt says."""
        return Target(self.header.place.subject, self.header.place.number, self.header.salt[:8])

    @property
    def frames_at(self) -> int:
        """Byte at which the frames begin."""
        return len(self.header.raw) + self.header.body_length


def open_slot(ring: Keyring, place: Place, data: bytes) -> Slot:
    """segment.md, layout of the object: the header with the kind's own fields."""
    header = open_header(ring, place, data, 52, 2**24)
    fields = struct.unpack("<QQQQ8sQI", header.own)
    incarnation, frames, _, register, digest, checkpoint, zero = fields
    if header.variant not in (SEGMENT, SEAL, FILL):
        raise newer(place.name, f"kind {header.variant}")
    if not incarnation or zero or SLOT_MAX < checkpoint != NO_SLOT:
        raise damaged(place.name, 0, "header")
    if register > REGISTER_MAX or register == 0 and any(digest):
        raise damaged(place.name, 0, "the entry of the register")
    if header.variant != SEGMENT and (frames or header.raw_length or header.compression):
        raise damaged(place.name, 0, "a seal or fill with content")
    if len(header.raw) + header.body_length + frames > 2**26:
        raise damaged(place.name, 0, "it is longer than a segment may be")
    return Slot(header, incarnation, frames)


class Frame(NamedTuple):
    """segment.md, a frame; `at` counts from the first frame."""

    at: int
    stored: int
    length: int
    compression: int


class Chunk(NamedTuple):
    """segment.md, a chunk. Target 0 is here, and `number` its frame; else `number` is its own in the target."""

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


class Extent(NamedTuple):
    """segment.md, an extent."""

    block: int
    blocks: int
    chunk: int
    first: int


class Span(NamedTuple):
    """segment.md, a span with its extents and mark."""

    volume: bytes
    epoch: int
    first: int
    last: int
    extents: list[Extent]
    mark: Mark | None


class Table(NamedTuple):
    """segment.md, layout of the table."""

    frames: list[Frame]
    targets: list[Target]
    chunks: list[Chunk]
    spans: list[Span]


Check = Callable[[bool, str], None]


def mark_kind(name: str, kind: int) -> int:
    """object.md, what may be added: a kind of mark that is known, or is taken for a crash."""
    if max(MARK_KINDS) < kind < OTHER_CODES:
        raise newer(name, f"mark of kind {kind}")
    return kind


def kind_text(kind: int) -> str:
    """How a kind of mark is shown."""
    return MARK_KINDS.get(kind, f"other ({kind})")


def mark_record(name: str, check: Check, record: bytes) -> Mark:
    """frame.md, bodies: the mark."""
    point, time, kind, flag, zero, unknown, attempt, member, members, rest = struct.unpack("<16sQBBHI16sHH12s", record)
    flags(name, flag, known=1)
    mark_kind(name, kind)
    check(kind > 0 and not zero and not any(rest), "a mark")
    check(member < members and (members == 1) == (not any(attempt)), "a mark's member, members or attempt")
    return Mark(point, time, kind, unknown, attempt, member, members)


def frame_records(name: str, check: Check, records: list[bytes], total: int) -> list[Frame]:
    """segment.md: frames in the order of the object, which together are as long as the header says."""
    frames, at = [], 0
    for record in records:
        stored, length, compression, reserved = struct.unpack("<IIB3s", record)
        if compression > 1:
            raise newer(name, f"compression {compression}")
        over = FRAME_SALT + TAG
        check(not any(reserved) and length <= 2**20 and over <= stored <= length + over, "a frame's lengths")
        check(compression == 1 or stored == length + over, "the lengths of a frame that is not compressed")
        frames.append(Frame(at, stored, length, compression))
        at += stored
    check(at == total, "frames are not as long as the header says")
    return frames


def chunk_records(check: Check, records: list[bytes], frames: list[Frame], targets: list[Target]) -> list[Chunk]:
    """segment.md: chunks; targets are numbered in the order in which chunks come to them."""
    chunks, named = [], 0
    for record in records:
        chunk = Chunk(*struct.unpack("<32sIIII", record))
        check(1 <= chunk.blocks <= 32 and chunk.target <= named + 1, "a chunk's blocks or target")
        named = max(named, chunk.target)
        if chunk.target:
            check(not chunk.offset, "a chunk's offset")
        else:
            within = chunk.number < len(frames) and chunk.offset + chunk.blocks * BLOCK <= frames[chunk.number].length
            check(within, "a chunk beyond its frame")
        chunks.append(chunk)
    check(named == len(targets), "a target that no chunk is in")
    return chunks


def table_body(name: str, byte: int, body: bytes, frames_length: int) -> Table:
    """segment.md, layout of the table, with the rules that it states; `byte` is where the table begins."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise damaged(name, byte, what)

    strides = {1: (12, 4096), 2: (32, 131072), 3: (48, 131072), 4: (72, 16384), 5: (20, 262144), 6: (64, 16384)}
    found = sections(name, byte, body, strides)
    frames = frame_records(name, check, found.get(1, []), frames_length)
    targets = [Target(*struct.unpack("<16sQ8s", record)) for record in found.get(2, [])]
    check(len(set(targets)) == len(targets) and all(target.slot <= SLOT_MAX for target in targets), "targets")
    chunks = chunk_records(check, found.get(3, []), frames, targets)
    extents = [Extent(*struct.unpack("<QIII", record)) for record in found.get(5, [])]
    marks = [mark_record(name, check, record) for record in found.get(6, [])]
    spans: list[Span] = []
    reached: dict[bytes, int] = {}
    used = marked = 0
    for record in found.get(4, []):
        volume, epoch, first, last, previous, count, mark, _, _, zero = struct.unpack("<16sQQQQII8s3s5s", record)
        check(epoch > 0 and 1 <= first <= last <= SEQ_MAX and not any(zero), "a span")
        check(previous <= SLOT_MAX or previous == NO_SLOT, "a span's previous slot")
        check(reached.get(volume, first - 1) == first - 1, "spans of a volume do not join")
        reached[volume] = last
        mine, used = extents[used : used + count], used + count
        check(len(mine) == count and mark in (0, marked + 1) and mark <= len(marks), "a span's extents or mark")
        marked = max(marked, mark)
        end = 0
        for extent in mine:
            check(extent.blocks > 0 and end <= extent.block, "extents that overlap")
            end = extent.block + extent.blocks
            if SPECIAL <= extent.chunk < ZEROS:
                raise newer(name, f"chunk {extent.chunk}")
            if extent.chunk == ZEROS:
                check(not extent.first, "an extent of zeros")
            else:
                check(extent.chunk < len(chunks), "an extent's chunk")
                check(extent.first + extent.blocks <= chunks[extent.chunk].blocks, "an extent beyond its chunk")
        check(end <= SIZE_MAX // BLOCK, "an extent beyond the largest volume")
        spans.append(Span(volume, epoch, first, last, mine, marks[mark - 1] if mark else None))
    check(used == len(extents) and marked == len(marks), "extents or marks of no span")
    return Table(frames, targets, chunks, spans)


def open_frame(ring: Keyring, slot: Slot, frame: Frame, number: int, data: bytes) -> bytes:
    """segment.md, cryptography: frame `number` of a segment, opened and decompressed."""
    header, at = slot.header, slot.frames_at + frame.at
    name, _, log, place, _ = header.place
    sealed, salt = data[:-FRAME_SALT], data[-FRAME_SALT:]
    if salt != header.salt:
        raise damaged(name, at, f"frame {number} is of another attempt")
    aad = ring.vault + log + struct.pack("<QIIB7x", place, number, frame.length, frame.compression)
    try:
        return unseal(header.cipher, nonce(1, number), sealed, aad, frame.compression, frame.length)
    except (InvalidTag, zstandard.ZstdError) as error:
        raise damaged(name, at, f"frame {number} does not open") from error


# Machines and groups

Since = tuple[int, int]


class Disk(NamedTuple):
    """machine.md, a disk; `number` is its index, and its volume is None if it never had one."""

    number: int
    volume: bytes | None
    size: int
    since: Since
    role: int
    state: int
    name: str
    label: str
    serial: str


class Machine(NamedTuple):
    """machine.md, layout."""

    name: str
    os: str
    memory: int
    processors: int
    firmware: int
    secure_boot: bool
    disks: list[Disk]


def disk_records(name: str, records: list[bytes], texts: bytes) -> list[Disk]:
    """machine.md: disks in order of their indexes, and the texts of each."""
    disks: list[Disk] = []
    ranks, at = [], 0
    for record in records:
        (volume, size, epoch, seq, index, rank, sector, role, state, flag, *lengths, reserved) = struct.unpack(
            "<16sQQQHHBBBBHHH10s", record
        )
        flags(name, flag)
        if 4 < role < OTHER_CODES or state > REMOVED:
            raise newer(name, f"role {role} or state {state}")
        volume = volume if any(volume) else None
        ordered = not disks or index > disks[-1].number
        known = state > 0 and (state == EXCLUDED or (volume and size)) and size <= SIZE_MAX
        shape = (sector == 0 or 9 <= sector <= 16) and max(lengths) <= 128
        if not (ordered and known and shape and (not epoch) == (not seq)) or any(reserved):
            raise damaged(name, 160, f"disk {index}")
        parts = []
        for length in lengths:
            parts.append(text(name, 160, [texts[at : at + length]]))
            at += length
        disks.append(Disk(index, volume, size, (epoch, seq), role, state, *parts))
        ranks += [rank] if rank else []
    volumes = [disk.volume for disk in disks if disk.volume]
    if at != len(texts) or len(set(volumes)) != len(volumes) or sorted(ranks) != list(range(1, len(ranks) + 1)):
        raise damaged(name, 160, "texts, volumes or boot ranks of the disks")
    return disks


def machine_body(name: str, body: bytes) -> Machine:
    """machine.md, layout."""
    found = sections(name, 160, body, {1: (32, 1), 2: (1, 255), 3: (1, 255), 4: (64, 128), 5: (1, 32768)})
    if not found.keys() >= {1, 2, 4}:
        raise damaged(name, 160, "a section is missing")
    _, memory, processors, firmware, flag, reserved = struct.unpack("<QQIBB10s", found[1][0])
    flags(name, flag, known=1)
    if 2 < firmware < OTHER_CODES:
        raise newer(name, f"firmware {firmware}")
    if any(reserved) or (flag & 1 and not (firmware == 2 or firmware >= OTHER_CODES)):
        raise damaged(name, 160, "head")
    disks = disk_records(name, found[4], b"".join(found.get(5, [])))
    label, os = text(name, 160, found[2]), text(name, 160, found.get(3, []))
    return Machine(label, os, memory, processors, firmware, bool(flag & 1), disks)


class Member(NamedTuple):
    """group.md, a member."""

    machine: bytes
    volume: bytes
    since: Since
    state: int


class Group(NamedTuple):
    """group.md, layout."""

    name: str
    kind: int
    members: list[Member]


def group_body(name: str, body: bytes) -> Group:
    """group.md, layout."""
    found = sections(name, 160, body, {1: (32, 1), 2: (1, 255), 3: (56, 1024)})
    if len(found) != 3:
        raise damaged(name, 160, "a section is missing")
    _, kind, flag, reserved = struct.unpack("<QBB22s", found[1][0])
    flags(name, flag)
    members: list[Member] = []
    for record in found[3]:
        machine, volume, epoch, seq, state, flag, zero = struct.unpack("<16s16sQQBB6s", record)
        flags(name, flag)
        if state > 2:
            raise newer(name, f"state {state}")
        ordered = not members or (machine, volume) > members[-1][:2]
        if not (ordered and state and any(volume) and (not epoch) == (not seq)) or any(zero):
            raise damaged(name, 160, "a member")
        members.append(Member(machine, volume, (epoch, seq), state))
    if kind > 2:
        raise newer(name, f"kind {kind}")
    alone = kind == 2 or len({member.machine for member in members}) == 1
    if not kind or any(reserved) or not alone or len({member.volume for member in members}) != len(members):
        raise damaged(name, 160, "head or members")
    return Group(text(name, 160, found[2]), kind, members)
