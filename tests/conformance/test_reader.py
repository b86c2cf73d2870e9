"""Holds the reader to the golden files that docs/formats names, and to vaults that are made here by the same documents.

    python3 -m unittest discover -s tests/conformance

Needs blake3, cryptography and zstandard, and no program of Farshore.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import re
import struct
import sys
import tempfile
import unittest
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import bases  # noqa: E402
import formats  # noqa: E402
import horizons  # noqa: E402
import reader  # noqa: E402
import zstandard  # noqa: E402
from blake3 import blake3  # noqa: E402
from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs/formats"
PROTO = ROOT / "dataplane/proto/testdata/v2"
CODEC = ROOT / "dataplane/codec/testdata/v2"
# keys.md, worked example: what the sealed samples are sealed with.
RECOVERY = "FSRK2-" + "42" * 32 + "-fad428ec"
NODE = "FSNK2-" + "42" * 32 + "-2ad84239"
# A paragraph that begins with the name of a sample, and the dump below it.
EXAMPLE = r"^`testdata/v2/([\w-]+\.bin)`(?=[:;, ])((?:(?!```).)*?)```text\n(.*?)```"
RING = formats.Keyring(
    b"\1" * 16,
    formats.Revision(0, {1: (2, 1)}, 3, 3, []),
    {
        1: formats.Key(1, formats.DATA_KEY, b"\x11" * 32),
        2: formats.Key(1, formats.ROOT_KEY, b"\x12" * 32),
        3: formats.Key(0, formats.DATA_KEY, b"\x13" * 32),
    },
)


def erased(ring: formats.Keyring, key: int) -> formats.Keyring:
    """revision.md: the same after a key was erased, though who has it still may find it."""
    return ring._replace(revision=ring.revision._replace(number=1, erased=[(key, key)]))


def run(first: int, length: int = 16) -> bytes:
    """The ids of the samples: bytes that count up."""
    return bytes(range(first, first + length))


@contextlib.contextmanager
def refused(test: unittest.TestCase, code: int, what: str = "") -> Iterator[None]:
    """Expects a refusal with an exit code."""
    with test.assertRaisesRegex(formats.Refusal, what) as held:
        yield
    test.assertEqual(held.exception.code, code, str(held.exception))


class WorkedExamples(unittest.TestCase):
    """The bytes that the documents print are those of the files that they name."""

    def compare(self, data: bytes, lines: list[tuple[int, str]], whole: bool) -> None:
        """Each line against the file: what stands between two … may lie anywhere between its neighbours."""
        ends = [at for at, _ in lines[1:]] + [len(data)]
        for (at, text), end in zip(lines, ends):
            runs = [bytes.fromhex(part) for part in re.split(r"…", text)]
            self.assertEqual(data[at : at + len(runs[0])], runs[0], f"{at:x}: {text}")
            where = at + len(runs[0])
            for part in runs[1:]:
                where = data.index(part, where, end if whole else len(data)) + len(part)
            if whole and not text.rstrip().endswith("…"):
                self.assertTrue(data[:end].endswith(runs[-1]), f"{at:x}: {text}")

    def test_dumps(self) -> None:
        seen = []
        for path in sorted(DOCS.glob("*.md")):
            for file, intro, block in re.findall(EXAMPLE, path.read_text(), re.M | re.S):
                found = re.findall(r"^([0-9a-f]{2,4})  ((?:[0-9a-f]{2} ?|… ?)+?)(?:  |$)", block, re.M)
                self.assertEqual(len(found), len(block.splitlines()), file)
                seen.append(file)
                with self.subTest(file=file):
                    lines = [(int(at, 16), text) for at, text in found]
                    self.compare((PROTO / file).read_bytes(), lines, "what differs" not in intro)
        # One that is not found here is not compared either.
        self.assertEqual(len(seen), 34, seen)


class Golden(unittest.TestCase):
    """The files of testdata, as the documents read them."""

    def test_vault(self) -> None:
        for name in ("vault.bin", "vault-more.bin"):
            said = formats.vault_object((PROTO / name).read_bytes())
            self.assertEqual(said, (run(0xA0), formats.Revision(0, {1: (1, 2)}, 3, 3, [])))

    def test_vault_damaged(self) -> None:
        data = (PROTO / "vault.bin").read_bytes()
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(formats.Refusal):
                formats.vault_object(bytes(changed))
        for length in range(len(data)):
            with self.assertRaises(formats.Refusal):
                formats.vault_object(data[:length])

    def test_vault_newer(self) -> None:
        data = (PROTO / "vault.bin").read_bytes()
        for at, value in ((4, 3), (8, 1), (0x30, 9), (0x40, 1)):
            changed = bytearray(data[:-4])
            changed[at] = value
            with self.subTest(at=at), refused(self, formats.INPUT, "newer"):
                formats.vault_object(bytes(changed) + struct.pack("<I", formats.crc32c(bytes(changed))))

    def test_vault_own_key(self) -> None:
        data = (PROTO / "vault.bin").read_bytes()
        for own in (0, 1, 2, 4097):
            changed = data[:36] + struct.pack("<I", own) + data[40:-4]
            with self.subTest(own=own), refused(self, formats.DAMAGED, "own key"):
                formats.vault_object(changed + struct.pack("<I", formats.crc32c(changed)))

    def test_keys(self) -> None:
        for file, text, number, kind, secret in (
            ("key.bin", RECOVERY, 2, formats.DATA_KEY, b"\x11" * 32),
            ("key-node.bin", NODE, 1, formats.ROOT_KEY, b"\x12" * 32),
        ):
            data, wrapping = (CODEC / file).read_bytes(), formats.Wrapping(f" {text.lower()}\n")
            key = formats.unwrap(file, data, RING.vault, number, wrapping)
            self.assertEqual(key, formats.Key(1, kind, secret))
            for at in range(len(data)):
                changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                with self.assertRaises(formats.Refusal):
                    formats.unwrap(file, changed, RING.vault, number, wrapping)
            with refused(self, formats.DAMAGED, "is key"):
                formats.unwrap(file, data, RING.vault, number + 1, wrapping)

    def test_key_files(self) -> None:
        for text in ("", RECOVERY[:-1] + "0", NODE.replace("NK", "RK"), RECOVERY.replace("FSRK2", "FSRK3")):
            with refused(self, formats.INPUT):
                formats.Wrapping(text)

    def test_headers_of_patterns(self) -> None:
        """Their checksum and place are real, their commitment is a pattern."""
        ring = RING._replace(vault=run(0xA0))
        for file, place in (
            ("segment-header.bin", formats.slot_place(run(0xC0), 258)),
            ("seal-header.bin", formats.slot_place(run(0xC0), 258)),
            ("fill-header.bin", formats.slot_place(run(0xC0), 258)),
        ):
            data = (PROTO / file).read_bytes()
            with self.subTest(file=file), refused(self, formats.DAMAGED, "commitment"):
                formats.open_slot(ring, place, data)
            with self.subTest(file=file), refused(self, formats.DAMAGED, "should be"):
                formats.open_slot(ring, place._replace(number=257), data)
            with self.subTest(file=file), refused(self, formats.DAMAGED, "checksum"):
                formats.open_slot(ring, place, data[:100] + b"\0" + data[101:])
        with refused(self, formats.DAMAGED, "commitment"):
            formats.open_small(ring, formats.epoch_place(run(0xB0), 2), (PROTO / "epoch-object.bin").read_bytes())

    def test_epoch(self) -> None:
        """Its label is a pattern: it is passed over without its key, and does not open with it."""
        place = formats.epoch_place(run(0xB0), 2)
        for file in ("epoch-body.bin", "epoch-body-stamped.bin"):
            body = (PROTO / file).read_bytes()
            ended, base = (770, formats.END_SEAL), (run(0xD0), 1, 40, run(0xE0))
            epoch = formats.Epoch(2, 3, run(0xC0), 258, 41, 64 << 20, "", ended, base)
            self.assertEqual(formats.epoch_body(RING._replace(keys={}), place, body), epoch)
            with refused(self, formats.DAMAGED, "label does not open"):
                formats.epoch_body(RING, place, body)
            with refused(self, formats.INPUT, "domain 2"):
                formats.epoch_body(RING, place, body[:72] + b"\2" + body[73:])
            with refused(self, formats.DAMAGED, "head"):
                formats.epoch_body(RING, place, body[:76] + b"\1" + body[77:])

    def test_epoch_sealed(self) -> None:
        data, place = (CODEC / "epoch.bin").read_bytes(), formats.epoch_place(b"\3" * 16, 2)
        ended, base = (77, formats.END_SEAL), (b"\3" * 16, 1, 640, b"\x08" * 16)
        epoch, body = formats.Epoch(2, 4, b"\2" * 16, 5, 1000, 1 << 30, "golden", ended, base), b""
        for ring, label in ((RING, "golden"), (erased(RING, 1), ""), (RING._replace(keys={3: RING.keys[3]}), "")):
            body = formats.open_small(ring, place, data)
            self.assertEqual(formats.epoch_body(ring, place, body), epoch._replace(label=label))
        with refused(self, formats.DAMAGED, "label does not open"):
            formats.epoch_body(RING, place._replace(number=3), body)
        for at in range(len(data)):
            with self.assertRaises(formats.Refusal):
                formats.open_small(RING, place, data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])
        with refused(self, formats.DAMAGED, "long"):
            formats.open_small(RING, place, data + b"\0")

    def test_revision(self) -> None:
        body = (PROTO / "revision-body.bin").read_bytes()
        said = formats.Revision(3, {1: (1, 2)}, 3, 9, [(2, 2), (5, 6)])
        self.assertEqual(formats.revision_body("", 3, body), said)
        self.assertEqual([key for key in range(10) if said.gone(key)], [2, 5, 6])
        for at, value in ((24, 0), (24, 1), (24, 5), (28, 5), (29, 255), (32, 1), (0x38, 2), (0x3C, 10), (0x40, 1),
                          (0x58, 0), (0x58, 3), (0x5C, 4), (0x60, 3), (0x64, 4), (0x64, 10)):
            with self.subTest(at=at, value=value), refused(self, formats.DAMAGED):
                formats.revision_body("", 3, body[:at] + bytes([value]) + body[at + 1 :])
        for cut in (0, 0x28):
            with refused(self, formats.DAMAGED, "section is missing"):
                formats.revision_body("", 3, body[:cut])
        with refused(self, formats.INPUT, "newer"):
            formats.revision_body("", 3, body + section(4, 1, b"x"))

    def test_revision_sealed(self) -> None:
        data, place = (CODEC / "revision.bin").read_bytes(), formats.revision_place(RING.vault, 3)
        self.assertEqual(formats.own_key("", data), 3)
        said = formats.revision_body("", 3, formats.open_small(RING, place, data))
        self.assertEqual(said, formats.Revision(3, {1: (1, 2)}, 3, 9, [(5, 6)]))
        for at in range(len(data)):
            with self.assertRaises(formats.Refusal):
                formats.open_small(RING, place, data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])

    def test_whose_the_samples_are(self) -> None:
        """object.md, whose an object is: also of those that nothing here reads."""
        of: dict[int, set[str]] = {0: set(), 1: set()}
        for path in CODEC.glob("*.bin"):
            data = path.read_bytes()
            if data[:4] in (b"FSKY", b"FSJF"):
                continue
            place = formats.Place(path.name, data[:4], data[32:48], *struct.unpack_from("<QI", data, 48))
            header = formats.open_header(RING, place, data, raw_most=2**24)
            self.assertEqual(len(formats.open_body(header, data[data[6] :][: header.body_length])), header.raw_length)
            of[header.domain].add(path.stem)
        self.assertEqual(of[0], {"base", "checkpoint", "epoch", "fill", "horizon", "register", "revision", "seal"})
        self.assertEqual(of[1], {"group", "index-run", "machine", "map", "map-pages", "segment"})

    def test_headers_that_were_not_sealed(self) -> None:
        """object.md, cryptography: the commitment is compared before any other field is judged."""
        for file, place, own in (
            ("epoch.bin", formats.epoch_place(b"\3" * 16, 2), 4),
            ("revision.bin", formats.revision_place(RING.vault, 3), 4),
            ("machine.bin", formats.machine_place(b"\6" * 16, 2), 4),
            ("segment.bin", formats.slot_place(b"\2" * 16, 7), 52),
        ):
            data = (CODEC / file).read_bytes()
            length = data[6]
            formats.open_header(RING, place, data, own)
            # Bits, reserved, domain, key, variant, compression, lengths, own key, fields of the kind.
            for at in (8, 12, 60, 64, 65, 68, 69, 72, 73, 74, 76, 80, 83, length - 5):
                changed = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 : length - 4]
                changed += struct.pack("<I", formats.crc32c(changed)) + data[length:]
                with self.subTest(file=file, at=at), refused(self, formats.DAMAGED, "commitment"):
                    formats.open_header(RING, place, changed, own)
            for key, what in ((1, "commitment"), (2, "commitment"), (0, "commitment"), (9, "key 9 is missing")):
                changed = data[:84] + struct.pack("<I", key) + data[88 : length - 4]
                changed += struct.pack("<I", formats.crc32c(changed)) + data[length:]
                with self.subTest(file=file, key=key), refused(self, formats.DAMAGED, what):
                    formats.open_header(RING, place, changed, own)

    def test_headers_newer(self) -> None:
        """object.md, what may be added: what was sealed like that is of a newer version."""
        place = formats.machine_place(b"\6" * 16, 2)
        for changes in ({"must": 1}, {"domain": 7}, {"compression": 2}):
            with self.subTest(changes=changes), refused(self, formats.INPUT, "newer"):
                formats.open_small(RING, place, seal(place, 0, bytes(4), b"", [], **changes))
        place = formats.slot_place(LOG, 7)
        for changes in ({}, {"domain": 0, "key": 3}):
            with self.subTest(changes=changes), refused(self, formats.INPUT, "kind 4"):
                formats.open_slot(RING, place, seal(place, 4, struct.pack("<Q44x", 1), b"", [], **changes))

    def test_later_codes(self) -> None:
        """object.md, what may be added: firmware, roles and kinds of marks from 128 on are not known, and harmless."""
        body = (PROTO / "machine-body.bin").read_bytes()
        manifest = (PROTO / "segment-table.bin").read_bytes()
        at = manifest.index(struct.pack("<Q", 1_767_225_600_000)) + 8
        for code, is_known in ((127, False), (128, True), (255, True)):
            changed = body[:36] + bytes((code, 0)) + body[38:]
            marked = manifest[:at] + bytes((code,)) + manifest[at + 1 :]
            with self.subTest(code=code):
                if is_known:
                    self.assertEqual(formats.machine_body("", changed).firmware, code)
                    kinds = [span.mark.kind for span in formats.table_body("", 0, marked, 20_016).spans if span.mark]
                    self.assertEqual(kinds, [code])
                    continue
                with refused(self, formats.INPUT, "newer"):
                    formats.machine_body("", changed)
                with refused(self, formats.INPUT, "newer"):
                    formats.table_body("", 0, marked, 20_016)

    def test_later_kinds_in_bases_and_maps(self) -> None:
        """base.md, map.md: a kind of mark from 128 on is kept and shown; below, one not known is newer."""
        body = (PROTO / "base-body.bin").read_bytes()
        at = body.index(struct.pack("<Q", 1_767_225_600_000)) + 8
        manifest, where = (PROTO / "map-body.bin").read_bytes(), (VOLUME, (2, 44), run(0x70))
        own = run(0x70) + run(0xE0) + struct.pack("<QI", 2, 0)
        for code, is_known in ((5, True), (6, False), (127, False), (128, True), (255, True)):
            changed = body[:at] + bytes((code,)) + body[at + 1 :]
            data = seal(bases.map_place(*where), 0, own, manifest[:76] + bytes((code,)) + manifest[77:], [])
            with self.subTest(code=code):
                if is_known:
                    self.assertEqual(bases.base_body("", 2, changed).points[0].mark.kind, code)
                    self.assertEqual(bases.open_manifest(RING, *where, data).mark, (2, 43))
                    continue
                with refused(self, formats.INPUT, f"mark of kind {code}"):
                    bases.base_body("", 2, changed)
                with refused(self, formats.INPUT, f"mark of kind {code}"):
                    bases.open_manifest(RING, *where, data)
        self.assertEqual((formats.kind_text(1), formats.kind_text(200)), ("crash", "other (200)"))

    def test_whose_an_object_is(self) -> None:
        machine, epoch = formats.machine_place(b"\6" * 16, 2), formats.epoch_place(VOLUME, 1)
        for place, domain, key in ((machine, 0, 3), (machine, 1, 3), (machine, 1, 0), (epoch, 1, 1), (epoch, 0, 1)):
            with self.subTest(place=place, domain=domain, key=key), refused(self, formats.DAMAGED, "it is of domain"):
                formats.open_header(RING, place, seal(place, 0, bytes(4), b"", [], domain=domain, key=key))
        for variant, domain, key in ((formats.SEGMENT, 0, 3), (formats.SEAL, 1, 1), (formats.FILL, 1, 1)):
            place = formats.slot_place(LOG, 7)
            with self.subTest(variant=variant), refused(self, formats.DAMAGED, "it is of domain"):
                formats.open_slot(RING, place, seal(place, variant, bytes(52), b"", [], domain=domain, key=key))
        with refused(self, formats.DAMAGED, "not of kind"):
            formats.open_small(RING, machine, seal(machine, 0, bytes(4), b"", [], key=2))

    def test_keys_that_are_not_at_hand(self) -> None:
        """revision.md, what it means: the header is authenticated all the same."""
        data, place = (CODEC / "segment.bin").read_bytes(), formats.slot_place(b"\2" * 16, 7)
        withheld = RING.keys | {1: formats.Key(1, formats.WITHHELD, bytes(32))}
        for ring, code, what in (
            (erased(RING, 1), formats.ABSENT, "key 1 was erased"),
            (RING._replace(keys=withheld), formats.WRONG_KEY, "key 1 is withheld"),
            (RING._replace(keys={3: RING.keys[3]}), formats.DAMAGED, "key 1 is missing"),
        ):
            slot = formats.open_slot(ring, place, data)
            with refused(self, code, what):
                formats.open_body(slot.header, data[208 : slot.frames_at])
            with refused(self, formats.DAMAGED, "commitment"):
                changed = data[:100] + bytes([data[100] ^ 1]) + data[101:204]
                formats.open_slot(ring, place, changed + struct.pack("<I", formats.crc32c(changed)))

    def test_table(self) -> None:
        for file in ("segment-table.bin", "segment-table-stamped.bin"):
            data = (PROTO / file).read_bytes()
            stored = struct.unpack_from("<I", data, 16)[0]
            table = formats.table_body("", 200, data, stored)
            self.assertEqual(table.frames, [formats.Frame(0, stored, 32768, 1)])
            self.assertEqual(table.targets, [formats.Target(run(0xD0), 9, run(0x70, 8))])
            chunks = [formats.Chunk(run(0x20, 32), 0, 0, 0, 8), formats.Chunk(run(0x60, 32), 1, 6, 0, 8)]
            self.assertEqual(table.chunks, chunks)
            extents = [(5, 2, 0, 1), (8, 1024, formats.ZEROS, 0), (1032, 8, 1, 0)]
            mark = formats.Mark(run(0xE0), 1767225600000, 1, 0, bytes(16), 0, 1)
            spans = [formats.Span(run(0xB0), 3, 41, 43, extents, mark), formats.Span(run(0xB0), 3, 44, 44, [], None)]
            self.assertEqual(table.spans, spans)
            with refused(self, formats.DAMAGED, "frames"):
                formats.table_body("", 200, data, stored + 1)

    def test_segment_sealed(self) -> None:
        data, place = (CODEC / "segment.bin").read_bytes(), formats.slot_place(b"\2" * 16, 7)
        slot = formats.open_slot(RING, place, data)
        self.assertEqual((slot.incarnation, slot.header.variant), (5, formats.SEGMENT))
        body = formats.open_body(slot.header, data[208 : slot.frames_at])
        table = formats.table_body(place.name, 208, body, slot.frames_length)
        frame = formats.open_frame(RING, slot, table.frames[0], 0, data[slot.frames_at :])
        self.assertEqual(frame[:16], b"farshore golden ")
        self.assertEqual(RING.chunk_id(1, frame), table.chunks[0].id)
        self.assertEqual([(span.first, span.last) for span in table.spans], [(998, 1000)])
        with refused(self, formats.DAMAGED, "does not open"):
            formats.open_frame(RING, slot, table.frames[0], 1, data[slot.frames_at :])

    def test_seal_and_fill(self) -> None:
        for file, variant in (("seal.bin", formats.SEAL), ("fill.bin", formats.FILL)):
            data = (CODEC / file).read_bytes()
            place = formats.slot_place(data[32:48], struct.unpack_from("<Q", data, 48)[0])
            slot = formats.open_slot(RING, place, data)
            self.assertEqual((slot.header.variant, formats.open_body(slot.header, data[208:])), (variant, b""))

    def test_machine(self) -> None:
        machine = formats.machine_body("", (PROTO / "machine-body.bin").read_bytes())
        self.assertEqual(machine[:6], ("db-1", "Debian 12", 4 << 30, 2, 2, True))
        disks = [
            (0, run(0xB0), 64 << 20, (3, 43), 1, formats.PROTECTED, "/dev/vda", "root", "S0"),
            (1, run(0xB1), (1 << 30) + 512, (3, 43), 3, formats.REMOVED, "/dev/vdb", "", "S1"),
            (4, None, 0, (0, 0), 0, formats.EXCLUDED, "", "", ""),
        ]
        self.assertEqual(machine.disks, disks)

    def test_group(self) -> None:
        group = formats.group_body("", (PROTO / "group-body.bin").read_bytes())
        members = [
            (run(0x80), run(0xB0), (3, 43), 1),
            (run(0x80), run(0xB1), (3, 43), 2),
            (run(0x81), run(0x21), (0, 0), 1),
        ]
        self.assertEqual(group, formats.Group("shop", 2, members))


    def test_base(self) -> None:
        base = bases.base_body("", 2, (PROTO / "base-body.bin").read_bytes())
        scan = formats.Mark(run(0xE0), 1767225600000, 3, 66_051, bytes(16), 0, 1)
        group = formats.Mark(run(0xE0), 1767225600000, 4, 0, run(0xF0), 1, 3)
        older = bases.Kept((1, 40), run(0x72), 1, 32 << 20, scan)
        newest = bases.Kept((2, 44), run(0x70), 3, 64 << 20, group)
        head = (2, (2, 44), run(0x70), run(0x40, 32), run(0xC0), 258)
        self.assertEqual(base, bases.Base(*head, [older, newest]))
        with refused(self, formats.DAMAGED, "digest"):
            bases.base_body("", 1, (PROTO / "base-body.bin").read_bytes())

    def test_base_sealed(self) -> None:
        data, place = (CODEC / "base.bin").read_bytes(), bases.base_place(b"\3" * 16, 2)
        base = bases.base_body("", 2, formats.open_small(RING, place, data, bases.BODY_MAX))
        self.assertEqual((base.at, base.slot, [kept.at for kept in base.points]), ((2, 1000), 7, [(1, 400), (2, 1000)]))
        for at in range(len(data)):
            with self.assertRaises(formats.Refusal):
                formats.open_small(RING, place, data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :], bases.BODY_MAX)

    def test_horizon_body(self) -> None:
        body = (PROTO / "horizon-body.bin").read_bytes()
        horizon = horizons.horizon_body("", 4, body)
        self.assertEqual((horizon.number, horizon.slot, horizon.incarnation), (4, 256, 4))
        tails = {run(0xB0): horizons.Tail(3, 44, True), run(0xB1): horizons.Tail(7, 1, False)}
        self.assertEqual(horizon.tails, tails)
        for number in (1, 3):
            with refused(self, formats.DAMAGED):
                horizons.horizon_body("", number, body)

    def test_horizon_sealed(self) -> None:
        data, place = (CODEC / "horizon.bin").read_bytes(), horizons.horizon_place(b"\2" * 16, 4)
        body = formats.open_small(RING, place, data, horizons.BODY_MAX)
        self.assertEqual(horizons.horizon_body("", 4, body).slot, 256)
        for at in range(len(data)):
            with self.assertRaises(formats.Refusal):
                formats.open_small(RING, place, data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :], horizons.BODY_MAX)

    def test_map_sealed(self) -> None:
        data, where = (CODEC / "map.bin").read_bytes(), (b"\3" * 16, (2, 1000), b"\6" * 16)
        manifest = bases.open_manifest(RING, *where, data)
        self.assertEqual((manifest.log, manifest.point), (b"\2" * 16, b"\4" * 16))
        for at in range(len(data)):
            with self.assertRaises(formats.Refusal):
                bases.open_manifest(RING, *where, data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])

    def test_map_part_sealed(self) -> None:
        data, place = (CODEC / "map-pages.bin").read_bytes(), bases.part_place(b"\3" * 16, (2, 1000), b"\6" * 16, 1)
        runs = list(bases.part_runs(RING, place, 2, b"\6" * 16, data))
        own, there = (formats.Target(log, slot, attempt * 8) for log, slot, attempt in
                      ((b"\2" * 16, 7, b"\x55"), (b"\x09" * 16, 6, b"\x66")))
        self.assertEqual(runs, [
            (0, 4, own, 0, b"\7" * 8, 4, 0), (4, 2, own, 0, b"\7" * 8, 4, 1), (10, 100, None, 0, b"", 0, 0),
            (200, 2, there, 3, b"\x08" * 8, 4, 1), (0xFFF0, 32, None, 0, b"", 0, 0),
        ])
        for at in range(len(data)):
            with self.assertRaises(formats.Refusal):
                list(bases.part_runs(RING, place, 2, b"\6" * 16, data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :]))


class Memory:
    """A store that is a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, name: str, start: int, length: int) -> tuple[bytes, int] | None:
        data = self.objects.get(name)
        return None if data is None else (data[start : start + length], len(data))

    def names(self, prefix: str) -> list[str]:
        below = (name[len(prefix) :] for name in self.objects if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in below})


def section(kind: int, stride: int, records: bytes) -> bytes:
    """object.md: a section that must be understood; none without records."""
    return struct.pack("<HHIII", kind, 1, stride, len(records) // stride, 0) + records if records else b""


def seal(
    place: formats.Place, variant: int, own: bytes, body: bytes, frames: list[bytes],
    domain: int | None = None, key: int | None = None, must: int = 0, compression: int = 0, own_key: int = 3,
) -> bytes:
    """object.md, segment.md: an object; the lengths of its frames stand in the body already."""
    name, magic, subject, number, _ = place
    vaults = magic in (b"FSEP", b"FSHZ", b"FSBS", b"FSVR") or variant in (formats.SEAL, formats.FILL)
    domain = int(not vaults) if domain is None else domain
    key = (own_key if vaults else 1) if key is None else key
    salt = os.urandom(32)
    parts = (salt, magic, RING.vault, subject, struct.pack("<Q", number), bytes(4))
    head = magic + struct.pack("<HHII", 2, 156 + len(own), must, 0) + RING.vault + subject
    head += struct.pack("<QII", number, 0, 0)
    head += struct.pack("<IIBBHIII", domain, key, variant, compression, 0, len(body) + 16, len(body), own_key) + salt
    head += blake3(head + own, key=formats.derive("object commitment key", secret(own_key), *parts)).digest() + own
    head += struct.pack("<I", formats.crc32c(head))
    cipher = AESGCM(formats.derive("object seal key", secret(key), *parts))
    sealed = head + cipher.encrypt(formats.nonce(2, 0), body, head)
    for n, data in enumerate(frames):
        aad = RING.vault + subject + struct.pack("<QIIB7x", number, n, len(data), 1)
        packed = zstandard.compress(data)
        sealed += cipher.encrypt(formats.nonce(1, n), packed, aad) + salt
    return sealed


def secret(number: int) -> bytes:
    """Keys of the vaults made here: those of the samples, and on."""
    return bytes([0x10 + number]) * 32


VOLUME, OTHER, LOG, MACHINE = b"\x50" * 16, b"\x51" * 16, b"\x60" * 16, b"\x70" * 16


class Made:
    """A vault that is made by the documents."""

    def __init__(self) -> None:
        self.store = Memory()
        sections_ = section(1, 32, formats.PARAMETERS) + section(2, 16, struct.pack("<IIII", 1, 2, 1, 0))
        head = b"FSVT" + struct.pack("<HHII16sII8x", 2, 48, 0, 0, RING.vault, len(sections_), 3) + sections_
        self.store.objects["vault"] = head + struct.pack("<I", formats.crc32c(head))
        self.wrapping = formats.Wrapping(RECOVERY)
        for number, key in RING.keys.items():
            self.wrap(number, key)

    def key_name(self, number: int) -> str:
        """keys.md: name of the object."""
        return f"keys/{number}/{self.wrapping.fingerprint.hex()}"

    def wrap(self, number: int, key: formats.Key) -> None:
        """keys.md: a wrapped key."""
        head = b"FSKY" + struct.pack(
            "<HHII16sIIIBBH", 2, 56, 0, 0, RING.vault, 60, number, key.domain, key.kind, 1, 0
        ) + self.wrapping.fingerprint
        made = head + bytes(12) + self.wrapping.cipher.encrypt(bytes(12), key.secret, head)
        self.store.objects[self.key_name(number)] = made + struct.pack("<I", formats.crc32c(made))

    def put(self, place: formats.Place, body: bytes, **changes: int) -> None:
        """An object of header and body alone."""
        self.store.objects[place.name] = seal(place, 0, bytes(4), body, [], **changes)

    def revise(
        self, number: int, last: int = 3, gone: tuple = (), own: int = 3, more: bytes = b"", **changes: int
    ) -> None:
        """revision.md: a revision; `gone` are ranges of erased keys."""
        body = section(1, 24, struct.pack("<QIIQ", 0, own, last, 0))
        body += section(2, 16, struct.pack("<IIII", 1, 2, 1, 0))
        body += section(3, 8, b"".join(struct.pack("<II", *pair) for pair in gone)) + more
        self.put(formats.revision_place(RING.vault, number), body, **changes)

    def epoch(
        self, ordinal: int, epoch: int, slot: int, seq: int, log: bytes = LOG, volume: bytes = VOLUME,
        base: tuple[bytes, int, int, bytes] | None = None, size: int = 1 << 20,
    ) -> None:
        body = section(1, 64, struct.pack("<Q16sQQQ8xII", epoch, log, slot, seq, size, 1, 0))
        if ordinal > 1:
            body += section(3, 16, struct.pack("<QB7x", 0, formats.END_WORD))
        if base:
            body += section(4, 48, struct.pack("<16sQQ16s", *base))
        self.put(formats.epoch_place(volume, ordinal), body)

    def slot(
        self, number: int, variant: int, incarnation: int = 1, spans: tuple = (), log: bytes = LOG, **changes: int
    ) -> None:
        """Spans are (epoch, first, last, point or mark, block, content[, volume])."""
        frames, lengths, chunks, extents, marks, records = [], b"", b"", b"", b"", b""
        for epoch, first, last, mark, block, data, *volume in spans:
            if data:
                packed = len(zstandard.compress(data)) + formats.TAG + formats.FRAME_SALT
                lengths += struct.pack("<IIB3x", packed, len(data), 1)
                chunks += struct.pack("<32sIIII", RING.chunk_id(1, data), 0, len(frames), 0, len(data) // 4096)
                extents += struct.pack("<QIII", block, len(data) // 4096, len(frames), 0)
                frames.append(data)
            if mark:
                mark = mark if len(mark) == 64 else single(mark)
                marks += mark
            records += (volume[0] if volume else VOLUME) + struct.pack(
                "<QQQQII16x", epoch, first, last, formats.NO_SLOT, bool(data), len(marks) // 64 if mark else 0
            )
        body = section(1, 12, lengths) + section(3, 48, chunks) + section(4, 72, records)
        body += section(5, 20, extents) + section(6, 64, marks)
        stored = sum(struct.unpack_from("<I", lengths, at)[0] for at in range(0, len(lengths), 12))
        own = struct.pack("<QQQQQQI", incarnation, stored, 0, 0, 0, formats.NO_SLOT, 0)
        place = formats.slot_place(log, number)
        self.store.objects[place.name] = seal(place, variant, own, body, frames, **changes)

    def open(self) -> reader.Vault:
        return reader.Vault(self.store, self.wrapping)

    def points(self, volume: bytes = VOLUME) -> list[int]:
        """Seqs of the points up to what stands in the way."""
        return [point.seq for point in self.open().points(volume)[0]]

    def image(self, volume: bytes = VOLUME) -> bytes:
        vault = self.open()
        point, extents = vault.image(volume, None)
        with tempfile.TemporaryDirectory() as folder:
            vault.write(extents, point.epoch.size, f"{folder}/disk")
            return pathlib.Path(f"{folder}/disk").read_bytes()


def single(point: bytes) -> bytes:
    """frame.md: the mark of a volume alone."""
    return struct.pack("<16sQBBHI16sHH12s", point, 0, 1, 0, 0, 0, bytes(16), 0, 1, bytes(12))


def joint(point: bytes, attempt: bytes, member: int, members: int) -> bytes:
    """frame.md: the mark of one of several volumes."""
    return struct.pack("<16sQBBHI16sHH12s", point, 0, 1, 0, 0, 0, attempt, member, members, bytes(12))


def point(number: int) -> bytes:
    """An id."""
    return bytes([number]) * 16


A, B, C = (bytes([letter]) * 4096 for letter in b"abc")


class Walk(unittest.TestCase):
    """segment.md, epoch.md, vault.md: what of a log and of a volume counts."""

    def made(self) -> Made:
        made = Made()
        made.epoch(1, 1, 4, 1)
        for number in range(4):
            made.slot(number, formats.FILL)
        made.slot(4, formats.SEGMENT, 1, ((1, 1, 2, point(1), 3, A + B),))
        made.slot(5, formats.SEGMENT, 1, ((1, 3, 3, point(2), 4, C),))
        return made

    def test_image(self) -> None:
        image = self.made().image()
        self.assertEqual(image, bytes(3 * 4096) + A + C + bytes((1 << 20) - 5 * 4096))

    def test_void_slot(self) -> None:
        made = self.made()
        made.slot(6, formats.FILL, 2)
        made.slot(7, formats.SEGMENT, 1, ((1, 4, 4, point(3), 0, C),))
        made.slot(8, formats.FILL, 1)
        made.slot(9, formats.SEGMENT, 2, ((1, 4, 5, point(4), 1, B),))
        self.assertEqual(made.points(), [2, 3, 5])
        made.slot(8, formats.SEAL, 1)
        self.assertEqual(made.points(), [2, 3], "no seal is void")

    def test_seal_ends(self) -> None:
        made = self.made()
        made.slot(6, formats.SEAL)
        made.slot(7, formats.SEGMENT, 1, ((1, 4, 4, point(3), 0, C),))
        self.assertEqual(made.points(), [2, 3])

    def test_hole(self) -> None:
        made = self.made()
        made.slot(7, formats.SEGMENT, 1, ((1, 4, 4, point(3), 0, C),))
        vault = made.open()
        self.assertEqual(([found.seq for found in vault.points(VOLUME)[0]], len(vault.warnings)), ([2, 3], 1))

    def test_lost_slot(self) -> None:
        for number, variant in ((8, formats.SEAL), (10, formats.SEGMENT), (14, formats.FILL)):
            made = self.made()
            made.slot(number, variant)
            with self.subTest(number=number), refused(self, formats.DAMAGED, "missing although"):
                made.image()

    def test_front_of_first_slot(self) -> None:
        made = self.made()
        made.slot(2, formats.SEAL)
        self.assertEqual(made.points(), [])
        made = self.made()
        del made.store.objects[formats.slot_place(LOG, 3).name]
        self.assertEqual(made.points(), [])
        for number in range(6, 9):
            made.slot(number, formats.FILL)
        self.assertEqual(made.points(), [2, 3])

    def test_repeated_span(self) -> None:
        made = self.made()
        made.slot(6, formats.SEGMENT, 1, ((1, 3, 3, point(2), 4, A),))
        made.slot(7, formats.SEGMENT, 1, ((1, 4, 4, point(3), 0, A),))
        self.assertEqual(made.image()[: 5 * 4096], A + bytes(8192) + A + C)

    def test_spans_that_do_not_join(self) -> None:
        for first, last in ((5, 5), (3, 4)):
            made = self.made()
            made.slot(6, formats.SEGMENT, 1, ((1, first, last, point(3), 0, C),))
            self.assertEqual(made.points(), [2, 3])
            with self.subTest(first=first), refused(self, formats.DAMAGED, "4 comes next"):
                made.image()

    def test_damaged_table(self) -> None:
        made = self.made()
        made.slot(6, formats.SEGMENT, 1, ((7, 1, 1, b"", 0, b"", b"\x51" * 16),))
        name = formats.slot_place(LOG, 6).name
        made.store.objects[name] = made.store.objects[name][:-1] + b"\0"
        with refused(self, formats.DAMAGED, "does not open"):
            made.image()
        made.slot(7, formats.SEGMENT, 1, ((1, 4, 4, point(3), 0, C),))
        self.assertEqual(made.points(), [2, 3, 4])

    def test_next_epoch(self) -> None:
        made = self.made()
        made.slot(5, formats.SEGMENT, 1, ((1, 3, 3, point(2), 4, C), (1, 4, 9, point(3), 0, C)))
        made.epoch(2, 5, 0, 4, b"\x61" * 16)
        self.assertEqual(made.points(), [2, 3])
        for number in range(4):
            made.slot(number, formats.FILL, log=b"\x61" * 16)
        made.slot(4, formats.SEGMENT, 1, ((5, 4, 4, point(4), 2, B),), b"\x61" * 16)
        self.assertEqual(made.image()[: 5 * 4096], bytes(8192) + B + A + C)

    def test_epochs_that_do_not_meet(self) -> None:
        for seq, what in ((3, ""), (5, "begins at seq 5"), (2, "comes next")):
            made = self.made()
            made.epoch(2, 2, 0, seq, b"\x61" * 16)
            with self.subTest(seq=seq):
                if what:
                    with refused(self, formats.DAMAGED, what):
                        made.image()
                else:
                    self.assertEqual(made.points(), [2])

    def branched(self, base: tuple[bytes, int, int, bytes], size: int = 1 << 20) -> Made:
        """Two epochs: the second goes on from a point."""
        made = self.made()
        made.epoch(2, 5, 0, 4, b"\x61" * 16, base=base, size=size)
        return made

    def test_branch(self) -> None:
        made = self.branched((VOLUME, 1, 2, point(1)))
        self.assertEqual(made.points(), [2, 3])
        self.assertEqual(made.image()[: 5 * 4096], bytes(3 * 4096) + A + B, "while it has no point it is its base")
        made.slot(0, formats.SEGMENT, 1, ((5, 4, 4, point(4), 0, B),), b"\x61" * 16)
        self.assertEqual(made.points(), [2, 3, 4])
        self.assertEqual(made.image()[: 5 * 4096], B + bytes(2 * 4096) + A + B)
        old = made.open().image(VOLUME, point(2))[0]
        self.assertEqual(old.seq, 3, "of the branch before")

    def test_branch_without_base(self) -> None:
        for base, size in (((VOLUME, 1, 1), 1 << 20), ((VOLUME, 2, 2), 1 << 20), ((VOLUME, 3, 2), 1 << 20),
                           ((b"\x51" * 16, 1, 2), 1 << 20), ((VOLUME, 1, 2), 1 << 19)):
            with self.subTest(base=base), refused(self, formats.DAMAGED, "goes on from point"):
                self.branched((*base, point(1)), size).image()
        with refused(self, formats.DAMAGED, "goes on from point"):
            self.branched((VOLUME, 1, 2, point(2))).image()

    def test_clone(self) -> None:
        made = self.made()
        clone, log = b"\x51" * 16, b"\x61" * 16
        made.epoch(1, 5, 0, 1, log, clone, (VOLUME, 1, 3, point(2)))
        self.assertEqual(made.points(clone), [])
        with refused(self, formats.ABSENT, "no such point"):
            made.image(clone)
        made.slot(0, formats.SEGMENT, 1, ((5, 1, 1, point(4), 0, B, clone),), log)
        self.assertEqual(made.image(clone)[: 5 * 4096], B + bytes(2 * 4096) + A + C)

    def test_lost_epoch(self) -> None:
        made = self.made()
        made.epoch(4, 4, 0, 4, b"\x61" * 16)
        with refused(self, formats.DAMAGED, "missing although ordinal 4 exists"):
            made.image()

    def test_another_attempt(self) -> None:
        made = self.made()
        extents = reader.Extents()
        target = formats.Target(LOG, 4, bytes(8))
        extents.put(0, 1, reader.Piece(target, 0, b"", 2, 0))
        with tempfile.TemporaryDirectory() as folder, refused(self, formats.DAMAGED, "attempt"):
            made.open().write(extents, 4096, f"{folder}/disk")

    def test_past_the_size(self) -> None:
        made = self.made()
        made.slot(6, formats.SEGMENT, 1, ((1, 4, 4, point(3), 255, A + B),))
        with refused(self, formats.DAMAGED, "past its end"):
            made.image()

    def test_wrong_key(self) -> None:
        made = self.made()
        made.wrapping = formats.Wrapping(NODE)
        with refused(self, formats.WRONG_KEY):
            made.open()
        made.wrapping = formats.Wrapping(RECOVERY)
        for number in (1, 2, 3):
            lost = made.store.objects.pop(made.key_name(number))
            with refused(self, formats.DAMAGED, f"keys/{number}/.* is missing; vault refers to it"):
                made.open()
            made.store.objects[made.key_name(number)] = lost


class Revisions(unittest.TestCase):
    """keys.md, revision.md: keys that came, went or are not for everybody, and what a later program says of a vault."""

    def made(self) -> Made:
        """Two volumes in one log, the second with nothing under key 1; key 4 is the newest of the domain."""
        made = Made()
        made.wrap(4, formats.Key(1, formats.DATA_KEY, secret(4)))
        made.revise(1, 4)
        for volume in (VOLUME, OTHER):
            made.epoch(1, 1, 4, 1, volume=volume)
        for number in range(4):
            made.slot(number, formats.FILL)
        made.slot(4, formats.SEGMENT, 1, ((1, 1, 1, point(1), 0, A),))
        made.slot(5, formats.SEGMENT, 1, ((1, 1, 1, point(2), 0, B, OTHER), (1, 2, 2, point(3), 1, C)), key=4)
        made.slot(6, formats.SEAL)
        return made

    def test_new_keys(self) -> None:
        made = self.made()
        self.assertEqual((made.points(), made.points(OTHER)), ([1, 2], [1]))
        self.assertEqual(made.image()[:8192], A + C)
        made.wrap(5, formats.Key(0, formats.DATA_KEY, secret(5)))
        made.revise(2, 5, own=5)
        made.revise(3, 5, own=5, own_key=5)
        made.slot(5, formats.SEGMENT, 2, ((1, 2, 2, point(3), 1, B),), key=4, own_key=5)
        self.assertEqual(made.image()[:8192], A + B)
        made.revise(4, 5, own=4, own_key=5)
        with refused(self, formats.DAMAGED, "not what revisions/0000000004 says"):
            made.open()
        made.revise(4, 5, own=3, own_key=3)
        with refused(self, formats.DAMAGED, "not by that of the one before"):
            made.open()

    def test_lost_key(self) -> None:
        made = self.made()
        del made.store.objects[made.key_name(4)]
        with refused(self, formats.DAMAGED, "key 4 is missing"):
            made.image()
        self.assertEqual(made.open().slot(LOG, 4)[0].header.variant, formats.SEGMENT)
        for number in (1, 3):
            made = self.made()
            del made.store.objects[made.key_name(number)]
            with refused(self, formats.DAMAGED, f"keys/{number}/.* is missing; revisions/0000000001 refers to it"):
                made.open()
        # The newest revision is lost: what it named is used.
        made = self.made()
        del made.store.objects[formats.revision_place(RING.vault, 1).name]
        with refused(self, formats.DAMAGED, "key 4 is missing"):
            made.image()

    def test_lost_revision(self) -> None:
        made = self.made()
        made.revise(3, 4, own_key=3)
        self.assertEqual(made.open().ring.revision.number, 3)
        name = formats.revision_place(RING.vault, 3).name
        made.store.objects[name] = made.store.objects[name][:-1] + b"\0"
        with refused(self, formats.DAMAGED, "does not open"):
            made.open()

    def test_erased(self) -> None:
        for kept in (True, False):
            made = self.made()
            made.revise(2, 4, ((1, 1),))
            if not kept:
                del made.store.objects[made.key_name(1)]
            vault = made.open()
            self.assertNotIn(1, vault.ring.keys)
            self.assertEqual(vault.slot(LOG, 4)[0].header.variant, formats.SEGMENT)
            self.assertEqual(made.image(OTHER)[:4096], B, "what is gone is walked over")
            with refused(self, formats.ABSENT, "key 1 was erased; object logs/.*4 refers to it"):
                made.image()
            said, problem = reader.listed(vault)
            self.assertIsNone(problem)
            erased_ = [volume["problem"] for volume in said["volumes"] if volume["volume"] == formats.uid(VOLUME)]
            self.assertIn("erased", erased_[0])

    def test_erased_domain(self) -> None:
        made = self.made()
        made.put(formats.machine_place(MACHINE, 1), b"")
        made.revise(2, 4, ((1, 2), (4, 4)))
        for number in (1, 2, 4):
            del made.store.objects[made.key_name(number)]
        said, problem = reader.listed(made.open())
        self.assertEqual((problem, [len(volume["epochs"]) for volume in said["volumes"]]), (None, [1, 1]))
        for volume in (VOLUME, OTHER):
            with refused(self, formats.ABSENT, "was erased"):
                made.image(volume)

    def test_withheld(self) -> None:
        made = self.made()
        made.wrap(1, formats.Key(1, formats.WITHHELD, bytes(32)))
        self.assertEqual(made.image(OTHER)[:4096], B)
        with refused(self, formats.WRONG_KEY, "key 1 is withheld"):
            made.image()
        made.wrap(1, formats.Key(1, formats.WITHHELD, secret(1)))
        with refused(self, formats.DAMAGED, "withheld"):
            made.open()
        made.wrap(1, RING.keys[1])
        made.wrap(3, formats.Key(0, formats.WITHHELD, bytes(32)))
        with refused(self, formats.DAMAGED):
            made.open()

    def test_kinds_of_keys(self) -> None:
        for domain, kind in ((0, 128), (1, 200), (9, 255), (0, formats.WITHHELD), (9, formats.WITHHELD)):
            made = self.made()
            made.wrap(5, formats.Key(domain, kind, bytes(32)))
            made.revise(2, 5)
            with self.subTest(domain=domain, kind=kind):
                self.assertEqual(made.image()[:8192], A + C)
        for domain, kind, code in ((1, 4, formats.INPUT), (1, 127, formats.INPUT), (0, 0, formats.INPUT),
                                   (0, formats.ROOT_KEY, formats.DAMAGED)):
            made.wrap(5, formats.Key(domain, kind, bytes(32)))
            with self.subTest(domain=domain, kind=kind), refused(self, code):
                made.open()
        made.wrap(2, formats.Key(1, 128, RING.keys[2].secret))
        made.wrap(5, formats.Key(0, 128, bytes(32)))
        with refused(self, formats.DAMAGED, "not what vault says"):
            made.open()

    def test_not_understood(self) -> None:
        """revision.md: it refuses the vault, not only the object."""
        for changes in ({"more": section(9, 1, b"x")}, {"must": 1}, {"compression": 2}):
            made = self.made()
            made.revise(2, 4, **changes)
            with self.subTest(changes=changes), refused(self, formats.INPUT, "a newer version of Farshore revised"):
                made.open()
            made.revise(3, 4)
            self.assertEqual(made.points(), [1, 2], "the newest stands for all in front of it")
        made = self.made()
        made.revise(2, 4, more=struct.pack("<HHIII", 9, 0, 1, 1, 0) + b"x")
        self.assertEqual(made.points(), [1, 2])

    def test_asked_again(self) -> None:
        """revision.md: lost is said by who has seen that there is no newer revision."""
        made = self.made()
        lost = formats.Refusal(formats.DAMAGED, "lost")
        opened: list[int] = []

        def ask(vault: reader.Vault) -> reader.Answer:
            opened.append(vault.ring.revision.number)
            made.revise(2, 4)
            return None, lost

        self.assertEqual(reader.asked(made.store, made.wrapping, ask)[1], (None, lost))
        self.assertEqual(opened, [1, 2])

        def revised(vault: reader.Vault) -> reader.Answer:
            made.revise(3, 4, more=section(9, 1, b"x"))
            raise lost

        with refused(self, formats.INPUT, "a newer version of Farshore revised"):
            reader.asked(made.store, made.wrapping, revised)

        def again(vault: reader.Vault) -> reader.Answer:
            made.revise(vault.ring.revision.number + 1, 4)
            raise lost

        made = self.made()
        with refused(self, formats.STORE, "again and again"):
            reader.asked(made.store, made.wrapping, again)

    def test_erased_while_opening(self) -> None:
        made = self.made()
        name, get = made.key_name(1), made.store.get

        def late(wanted: str, start: int, length: int) -> tuple[bytes, int] | None:
            if wanted == name and made.store.objects.pop(name, None):
                made.revise(2, 4, ((1, 1),))
            return get(wanted, start, length)

        made.store.get = late
        self.assertEqual(made.image(OTHER)[:4096], B)


class Overlaps(unittest.TestCase):
    """The last writer of each block is what is read."""

    def test_extents(self) -> None:
        for seed in range(200):
            chance = random.Random(seed)
            extents, blocks = reader.Extents(), [None] * 64
            for number in range(40):
                start = chance.randrange(64)
                count = chance.randint(1, 64 - start)
                first = chance.randrange(8)
                piece = reader.Piece(formats.Target(b"", 0, b""), number, b"", 32, first)
                piece = piece if chance.random() < 0.8 else None
                extents.put(start, count, piece)
                for block in range(start, start + count):
                    blocks[block] = piece and (number, first + block - start)
            found = [None] * 64
            for start, count, piece in sum(extents.by_target().values(), []):
                for block in range(start, start + count):
                    self.assertIsNone(found[block])
                    found[block] = (piece.number, piece.first + block - start)
            self.assertEqual(found, blocks, seed)


class MachinePoints(unittest.TestCase):
    """machine.md, which points are complete."""

    FIRST, SECOND, OTHER = (bytes([n]) * 16 for n in (0x51, 0x52, 0x53))

    def revision(self, made: Made, number: int, disks: list[tuple[bytes, int, int, int]]) -> None:
        """Disks are (volume, since epoch, since seq, state)."""
        records = b"".join(
            struct.pack("<16sQQQHHBBBBHHH10s", volume, 1 << 20, epoch, seq, at, 0, 9, 0, state, 0, 8, 0, 0, bytes(10))
            for at, (volume, epoch, seq, state) in enumerate(disks)
        )
        body = section(1, 32, bytes(32)) + section(2, 1, b"db-1") + section(4, 64, records)
        body += section(5, 1, b"".join(b"/dev/vd%c" % (97 + at) for at in range(len(disks))))
        made.put(formats.machine_place(MACHINE, number), body)

    def made(self, marks: list[tuple[bytes, int, bytes]]) -> Made:
        """A vault with one log; each mark is (volume, seq, mark)."""
        made = Made()
        for volume in (self.FIRST, self.SECOND, self.OTHER):
            made.epoch(1, 1, 4, 1, volume=volume)
        for number in range(4):
            made.slot(number, formats.FILL)
        for number, (volume, seq, mark) in enumerate(marks):
            made.slot(4 + number, formats.SEGMENT, 1, ((1, seq, seq, mark, seq, volume * 256, volume),))
        return made

    def judged(self, made: Made) -> list[tuple[int, list[str]]]:
        joined, problems, _ = reader.Machines(made.open()).joined(MACHINE)
        self.assertFalse(problems)
        return [(one.marks[0].mark.point[0], one.lacking) for one in joined]

    def test_joint_points(self) -> None:
        pair = [joint(point(2), b"\x22" * 16, member, 2) for member in range(2)]
        half = joint(point(3), b"\x33" * 16, 0, 2)
        first = [(self.FIRST, 1, single(point(1))), (self.FIRST, 2, pair[0]), (self.FIRST, 3, half)]
        made = self.made([*first, (self.SECOND, 1, pair[1])])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1)])
        lacking = ["member 1 is there 0 times"]
        self.assertEqual(self.judged(made), [(1, []), (2, lacking), (3, lacking)])
        self.revision(made, 2, [(self.FIRST, 1, 2, 1), (self.SECOND, 0, 0, 1)])
        lacking.append("disk 1 (/dev/vdb) is not in it")
        self.assertEqual(self.judged(made), [(1, []), (2, []), (3, lacking)])

    def test_removed_disk(self) -> None:
        pair = [joint(point(1), b"\x22" * 16, member, 2) for member in range(2)]
        made = self.made([(self.FIRST, 1, pair[0]), (self.SECOND, 1, pair[1]), (self.FIRST, 2, single(point(2)))])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1), (self.SECOND, 0, 0, 1)])
        self.assertEqual(self.judged(made), [(1, []), (2, ["disk 1 (/dev/vdb) is not in it"])])
        self.revision(made, 2, [(self.FIRST, 1, 2, 1), (self.SECOND, 1, 2, 3)])
        self.assertEqual(self.judged(made), [(1, []), (2, [])])

    def test_nothing_protected(self) -> None:
        marks = [(self.FIRST, 1, single(point(1))), (self.SECOND, 1, single(point(2)))]
        made = self.made(marks)
        self.revision(made, 1, [(self.FIRST, 0, 0, 3)])
        self.assertEqual(self.judged(made), [(1, ["no revision calls a disk protected"])])
        made = self.made(marks)
        self.revision(made, 1, [(self.FIRST, 0, 0, 1), (self.SECOND, 0, 0, 1)])
        # Removed, both: what comes behind is all the same of a machine with two disks.
        self.revision(made, 2, [(self.FIRST, 1, 1, 3), (self.SECOND, 1, 1, 3)])
        lacking = [[f"disk {disk} (/dev/vd{name}) is not in it"] for disk, name in ((1, "b"), (0, "a"))]
        self.assertEqual(self.judged(made), [(1, lacking[0]), (2, lacking[1])])

    def test_order(self) -> None:
        both = [joint(point(5), b"\x55" * 16, member, 2) for member in range(2)]
        second = [single(point(3)), single(point(4)), both[1], single(point(6))]
        marks = [(self.FIRST, 1, single(point(1))), (self.FIRST, 2, both[0])]
        made = self.made(marks + [(self.SECOND, 1 + at, mark) for at, mark in enumerate(second)])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1), (self.SECOND, 0, 0, 1)])
        self.assertEqual([number for number, _ in self.judged(made)], [1, 3, 4, 5, 6])

    def test_member_twice(self) -> None:
        marks = [joint(point(1), b"\x22" * 16, 0, 2)] * 2
        made = self.made([(self.FIRST, 1, marks[0]), (self.SECOND, 1, marks[1])])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1), (self.SECOND, 0, 0, 1)])
        self.assertEqual(self.judged(made), [(1, ["member 0 is there 2 times", "member 1 is there 0 times"])])

    def test_member_of_another_machine(self) -> None:
        marks = [joint(point(1), b"\x22" * 16, member, 2) for member in range(2)]
        made = self.made([(self.FIRST, 1, marks[0]), (self.OTHER, 1, marks[1])])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1)])
        self.assertEqual(self.judged(made), [(1, ["member 1 is there 0 times"])])
        members = b"".join(machine + volume + bytes(16) + b"\1" + bytes(7)
                           for machine, volume in ((MACHINE, self.FIRST), (b"\x71" * 16, self.OTHER)))
        body = section(1, 32, struct.pack("<QB23x", 0, 2)) + section(2, 1, b"shop") + section(3, 56, members)
        made.put(formats.group_place(b"\x72" * 16, 1), body)
        self.assertEqual(self.judged(made), [(1, [])])

    def test_restore(self) -> None:
        pair = [joint(point(1), b"\x22" * 16, member, 2) for member in range(2)]
        half = joint(point(2), b"\x33" * 16, 0, 2)
        made = self.made([(self.FIRST, 1, pair[0]), (self.SECOND, 1, pair[1]), (self.FIRST, 2, half)])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1), (self.SECOND, 0, 0, 1)])
        with tempfile.TemporaryDirectory() as folder:
            given = reader.parsed(["--vault", "-", "--key-file", "-", "--machine", "db-1", "--to", folder])
            done = reader.restore_machine(made.open(), given)
            self.assertEqual(sorted(os.listdir(folder)), ["0-dev-vda.raw", "1-dev-vdb.raw"])
            self.assertEqual(pathlib.Path(folder, "1-dev-vdb.raw").read_bytes()[4096:8192], self.SECOND * 256)
            self.assertEqual([one["seq"] for one in done], [1, 1])
            given.point = formats.uid(point(2))
            with refused(self, formats.INPUT, "is incomplete: member 1 is there 0 times"):
                reader.restore_machine(made.open(), given)
            given.incomplete = True
            self.assertEqual([one["seq"] for one in reader.restore_machine(made.open(), given)], [2])

    def test_lost_revision(self) -> None:
        made = self.made([(self.FIRST, 1, single(point(1)))])
        self.revision(made, 1, [(self.FIRST, 0, 0, 1)])
        self.revision(made, 3, [(self.FIRST, 1, 2, 1)])
        vault = made.open()
        self.assertEqual(sorted(reader.Machines(vault).revisions(MACHINE)), [1, 3])
        self.assertIn("missing although revision 3 exists", vault.warnings[0])
        self.assertIn("revision 2 cannot be read", self.judged(made)[0][1][0])


if __name__ == "__main__":
    unittest.main()
