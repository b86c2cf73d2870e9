"""Drives a server through libnbd over every edge that libnbd can reach, and prints one line per case.

Arguments: the kind of disk behind the server, and its URI. Kinds:

  plain   4 MiB, empty at first, slow at zeroing
  sealed  4 MiB, read-only, full of the byte 0x5e
  quick   4 MiB, empty, quick at zeroing
  vast    64 TiB of which every other block of the first 128 MiB is data

Source of what is right: doc/proto.md of the NetworkBlockDevice project.
"""

import errno
import itertools
import os
import socket
import sys

import nbd

kind, uri = sys.argv[1:]
MIB = 1 << 20
TIB = 1 << 40
SIZE = 64 * TIB if kind == "vast" else 4 * MIB
BIGGEST = 32 * MIB
NAME = "disk"
cases = []


def case(*kinds):
    """Marks a function as a case for these kinds of disk."""

    def mark(function):
        if kind in kinds:
            cases.append(function)
        return function

    return mark


def handle(structured=True, contexts=("base:allocation",)):
    h = nbd.NBD()
    # All that libnbd would catch itself goes to the server.
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    for context in contexts:
        h.add_meta_context(context)
    return h


def connect(**how):
    h = handle(**how)
    h.connect_uri(uri)
    return h


def haggle(**how):
    """A connection that is still choosing its options."""
    h = handle(**how)
    h.set_opt_mode(True)
    h.connect_uri(uri)
    return h


def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, f"{call.__name__}{arguments[1:]}: {error.errno}, not {number}"
    else:
        raise AssertionError(f"{call.__name__}{arguments[1:]} succeeded")


def extents_of(h, length, offset, flags=0):
    found = []
    h.block_status(length, offset, lambda name, at, entries, error: found.extend(entries) or 0, flags)
    return list(zip(found[::2], found[1::2]))


def chunks_of(h, length, offset, flags=0):
    found = []
    note = lambda data, at, status, error: found.append((at, len(data), status)) or 0
    buffer = h.pread_structured(length, offset, note, flags)
    return buffer, sorted(found)


# Handshake and options


@case("plain", "sealed")
def handshake_flags_of_every_kind():
    both = nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES
    for flags in (0, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, nbd.HANDSHAKE_FLAG_NO_ZEROES, both):
        h = handle()
        h.set_handshake_flags(flags)
        h.connect_uri(uri)
        assert h.get_size() == SIZE
        # What follows the handshake is where it should be.
        assert len(h.pread(4096, 0)) == 4096
        assert h.get_structured_replies_negotiated() == bool(flags & nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
        h.shutdown()


@case("plain")
def export_names():
    h = haggle()
    for name in ("elsewhere", "dis", "disk2", "Disk", " disk", "disk/", "x" * 4096, "\u00fc\u4e16" * 100):
        h.set_export_name(name)
        fails(errno.ENOENT, h.opt_info)
        fails(errno.ENOENT, h.opt_go)
    for name in ("", NAME):
        h.set_export_name(name)
        h.opt_info()
        assert h.get_size() == SIZE
    h.opt_go()
    assert h.get_size() == SIZE
    h.shutdown()


@case("plain")
def an_unknown_name_without_an_error_reply_ends_the_connection():
    h = handle()
    h.set_handshake_flags(0)
    h.set_export_name("elsewhere")
    try:
        h.connect_unix(uri.split("socket=")[1])
        raise AssertionError("connected")
    except nbd.Error:
        pass
    connect().shutdown()


@case("plain")
def the_list_of_exports():
    h = haggle()
    for _ in range(3):
        found = []
        assert h.opt_list(lambda name, about: found.append(name) or 0) == 1
        assert found == [NAME]
    h.opt_abort()


@case("plain")
def an_abort_ends_the_conversation():
    h = haggle()
    h.opt_abort()
    assert h.aio_is_closed() or h.aio_is_dead()
    connect().shutdown()


@case("plain")
def options_in_any_order():
    def listed(h):
        assert h.opt_list(lambda *_: 0) == 1

    def informed(h):
        h.opt_info()
        assert h.get_size() == SIZE

    def contexts(h):
        assert h.opt_list_meta_context(lambda name: 0) == 1

    def unknown(h):
        h.set_export_name("elsewhere")
        fails(errno.ENOENT, h.opt_info)
        h.set_export_name("")

    for order in itertools.permutations((listed, informed, contexts, unknown)):
        h = haggle()
        for option in order:
            option(h)
        h.opt_go()
        assert extents_of(h, 4096, 0)
        h.shutdown()


@case("plain")
def queries_for_contexts():
    for queries, expected in (
        ((), ["base:allocation"]),
        (("base:",), ["base:allocation"]),
        (("base:allocation",), ["base:allocation"]),
        (("base:allocation", "base:", "base:allocation"), ["base:allocation"]),
        (("qemu:", "base:allocation"), ["base:allocation"]),
        (("qemu:",), []),
        (("base:alloc",), []),
        (("base:allocation:",), []),
        (("x-nobody:knows",), []),
        (("qemu:dirty-bitmap:" + "b" * 200,) * 60, []),
    ):
        h = haggle(contexts=queries)
        found = []
        count = h.opt_list_meta_context(lambda name: found.append(name) or 0)
        assert (count, found) == (len(expected), expected), (queries, found)
        h.opt_abort()


@case("plain")
def contexts_that_are_not_here_are_left_out():
    h = connect(contexts=("qemu:dirty-bitmap:b", "base:allocation", "x-nobody:knows"))
    assert h.can_meta_context("base:allocation")
    assert not h.can_meta_context("qemu:dirty-bitmap:b")
    assert not h.can_meta_context("x-nobody:knows")
    assert extents_of(h, 4096, 0) == [(4096, 3)]
    h.shutdown()
    h = connect(contexts=("qemu:dirty-bitmap:b",))
    fails(errno.EINVAL, extents_of, h, 4096, 0)
    assert len(h.pread(512, 0)) == 512
    h.shutdown()


@case("plain")
def without_structured_replies_there_are_no_contexts():
    h = connect(structured=False)
    assert not h.get_structured_replies_negotiated()
    assert not h.can_meta_context("base:allocation")
    assert not h.can_df()
    assert h.pread(12288, 0) == bytes(12288)
    fails(errno.EINVAL, extents_of, h, 4096, 0)
    fails(errno.EINVAL, h.pread, 512, SIZE)
    fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
    h.shutdown()


@case("plain")
def tls_is_not_here():
    if not nbd.NBD().supports_tls():
        return
    h = handle()
    h.set_tls(nbd.TLS_ALLOW)
    h.set_tls_verify_peer(False)
    h.connect_uri(uri)
    assert not h.get_tls_negotiated()
    assert len(h.pread(512, 0)) == 512
    h.shutdown()
    h = handle()
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_verify_peer(False)
    try:
        h.connect_uri(uri)
        raise AssertionError("connected in the clear")
    except nbd.Error:
        pass


@case("plain", "sealed", "quick", "vast")
def what_the_export_says_of_itself():
    h = handle()
    h.set_full_info(True)
    h.connect_uri(uri)
    assert h.get_size() == SIZE
    assert h.get_canonical_export_name() == NAME
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
    assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == BIGGEST
    is_sealed = kind == "sealed"
    assert h.is_read_only() == is_sealed
    for can in (h.can_trim, h.can_zero, h.can_fast_zero):
        assert can() != is_sealed, can.__name__
    for can in (h.can_flush, h.can_fua, h.can_cache, h.can_df, h.can_multi_conn):
        assert can(), can.__name__
    assert not h.is_rotational()
    h.shutdown()


@case("plain")
def block_sizes_are_told_even_if_nobody_asks():
    h = handle()
    h.set_request_block_size(False)
    h.connect_uri(uri)
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
    fails(errno.EINVAL, h.pread, 1, 0)
    h.shutdown()


# Requests that are refused


@case("plain", "vast")
def ranges_past_the_end():
    h = connect()
    for length, offset in ((512, SIZE), (1024, SIZE - 512), (512, 2**63), (512, 2**64 - 512), (1024, 2**64 - 512)):
        fails(errno.EINVAL, h.pread, length, offset)
        fails(errno.EINVAL, h.cache, length, offset)
        fails(errno.EINVAL, extents_of, h, length, offset)
        fails(errno.EINVAL, h.trim, length, offset)
        fails(errno.ENOSPC, h.pwrite, bytes(length), offset)
        fails(errno.ENOSPC, h.zero, length, offset)
    assert len(h.pread(512, SIZE - 512)) == 512
    h.shutdown()


@case("plain")
def ranges_of_no_bytes():
    h = connect()
    for offset in (0, 4096, SIZE):
        assert h.pread(0, offset) == b""
        h.pwrite(b"", offset)
        h.trim(0, offset)
        h.zero(0, offset)
        h.cache(0, offset)
        fails(errno.EINVAL, extents_of, h, 0, offset)
    fails(errno.EINVAL, h.pread, 0, SIZE + 512)
    fails(errno.ENOSPC, h.pwrite, b"", SIZE + 512)
    fails(errno.ENOSPC, h.zero, 0, SIZE + 512)
    h.shutdown()


@case("plain")
def ranges_off_the_grid():
    h = connect()
    before = h.pread(8192, 0)
    for length, offset in ((1, 0), (511, 0), (513, 0), (512, 1), (512, 511), (4095, 512)):
        fails(errno.EINVAL, h.pread, length, offset)
        fails(errno.EINVAL, h.pwrite, b"x" * length, offset)
        fails(errno.EINVAL, h.trim, length, offset)
        fails(errno.EINVAL, h.zero, length, offset)
        fails(errno.EINVAL, h.cache, length, offset)
        fails(errno.EINVAL, extents_of, h, length, offset)
    assert h.pread(8192, 0) == before
    h.shutdown()


@case("vast")
def requests_at_and_over_the_longest():
    h = connect()
    assert len(h.pread(BIGGEST, 128 * MIB)) == BIGGEST
    fails(errno.EOVERFLOW, h.pread, BIGGEST + 512, 0)
    fails(errno.EOVERFLOW, h.pread, 64 * MIB, 0)
    h.pwrite(bytes(BIGGEST), 0)
    # Longer than that is on its way already when the server learns of it: it hangs up.
    try:
        h.pwrite(bytes(BIGGEST + 512), 0)
        raise AssertionError("written")
    except nbd.Error:
        pass
    assert h.aio_is_dead() or h.aio_is_closed()
    connect().shutdown()


@case("vast")
def long_requests_without_payload():
    h = connect()
    longest = 2**32 - 512
    for offset in (0, 128 * MIB, 63 * TIB, SIZE - longest):
        h.trim(longest, offset)
        h.zero(longest, offset)
        h.zero(longest, offset, nbd.CMD_FLAG_NO_HOLE)
        h.cache(longest, offset)
    assert extents_of(h, longest, TIB) == [(longest, 3)]
    h.shutdown()


@case("plain")
def flags_that_a_command_does_not_have():
    h = connect()
    everything = 0xFFFF
    known = {
        h.pread: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_DF,
        h.pwrite: nbd.CMD_FLAG_FUA,
        h.trim: nbd.CMD_FLAG_FUA,
        h.zero: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
        h.cache: nbd.CMD_FLAG_FUA,
        h.block_status: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE,
    }
    for command, flags in known.items():
        argument = bytes(512) if command == h.pwrite else 512
        more = (lambda *_: 0,) if command == h.block_status else ()
        for bit in range(16):
            if 1 << bit & flags:
                continue
            fails(errno.EINVAL, command, argument, SIZE - 512, *more, 1 << bit)
        fails(errno.EINVAL, command, argument, SIZE - 512, *more, everything)
    for bit in range(1, 16):
        fails(errno.EINVAL, h.flush, 1 << bit)
    h.shutdown()


@case("sealed")
def a_read_only_disk_is_not_changed():
    h = connect()
    for flags in (0, nbd.CMD_FLAG_FUA):
        fails(errno.EPERM, h.pwrite, b"x" * 512, 0, flags)
        fails(errno.EPERM, h.trim, 512, 0, flags)
        fails(errno.EPERM, h.zero, 512, 0, flags)
    fails(errno.EPERM, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.EPERM, h.zero, 512, 0, nbd.CMD_FLAG_NO_HOLE)
    h.flush()
    h.cache(4096, 0)
    assert h.pread(8192, 0) == b"\x5e" * 8192
    assert extents_of(h, SIZE, 0) == [(SIZE, 0)]
    h.shutdown()


# What the requests do


@case("plain")
def data_holes_and_extents_agree():
    h = connect()
    h.zero(SIZE, 0)
    h.pwrite(b"a" * 4096, 4096, nbd.CMD_FLAG_FUA)
    expected = bytes(4096) + b"a" * 4096 + bytes(4096)
    assert h.pread(12288, 0) == expected
    buffer, chunks = chunks_of(h, 12288, 0)
    assert buffer == expected
    hole, data = nbd.READ_HOLE, nbd.READ_DATA
    assert chunks == [(0, 4096, hole), (4096, 4096, data), (8192, 4096, hole)], chunks
    # In one piece, holes spelled out; a hole alone may stay one.
    buffer, chunks = chunks_of(h, 12288, 0, nbd.CMD_FLAG_DF)
    assert (buffer, chunks) == (expected, [(0, 12288, data)]), chunks
    assert chunks_of(h, 4096, 0, nbd.CMD_FLAG_DF)[1] == [(0, 4096, hole)]
    assert extents_of(h, 12288, 0) == [(4096, 3), (4096, 0), (4096, 3)]
    assert extents_of(h, 12288, 0, nbd.CMD_FLAG_REQ_ONE) == [(4096, 3)]
    assert extents_of(h, 512, 4096 + 512) == [(512, 0)]
    assert sum(length for length, _ in extents_of(h, SIZE, 0)) == SIZE
    h.shutdown()


@case("plain", "quick")
def zeroing_with_and_without_a_hole():
    h = connect()
    fast = nbd.CMD_FLAG_FAST_ZERO
    for flags, state in ((0, 3), (nbd.CMD_FLAG_NO_HOLE, 0), (nbd.CMD_FLAG_FUA, 3)):
        h.pwrite(b"b" * 16384, 0)
        h.zero(8192, 4096, flags)
        assert h.pread(16384, 0) == b"b" * 4096 + bytes(8192) + b"b" * 4096
        assert extents_of(h, 8192, 4096) == [(8192, state)], flags
    h.pwrite(b"b" * 16384, 0)
    if kind == "quick":
        h.zero(8192, 4096, fast)
        h.zero(512, 0, fast | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
        assert h.pread(16384, 0) == bytes(512) + b"b" * 3584 + bytes(8192) + b"b" * 4096
    else:
        # Not fast means not done: the client writes the zeroes in another way.
        fails(errno.ENOTSUP, h.zero, 8192, 4096, fast)
        assert h.pread(16384, 0) == b"b" * 16384
    fails(errno.ENOSPC, h.zero, 1024, SIZE - 512, fast)
    h.trim(16384, 0)
    h.shutdown()


@case("plain")
def fua_is_taken_by_every_command():
    h = connect()
    fua = nbd.CMD_FLAG_FUA
    h.pwrite(b"c" * 512, 0, fua)
    assert h.pread(512, 0, fua) == b"c" * 512
    h.cache(512, 0, fua)
    h.zero(512, 0, fua)
    h.trim(4096, 0, fua)
    h.flush(fua)
    found = []
    h.block_status(4096, 0, lambda *_: found.append(1) or 0, fua)
    assert found
    h.shutdown()


@case("plain")
def many_requests_at_once_are_each_answered_once():
    h = connect()
    blocks, base = 256, 2 * MIB
    pattern = lambda n: nbd.Buffer.from_bytearray(bytearray([n]) * 4096)
    writes = [h.aio_pwrite(pattern(n), base + n * 4096) for n in range(blocks)]
    bad = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(512)), SIZE) for _ in range(50)]
    while h.aio_in_flight():
        h.poll(-1)
    assert all(h.aio_command_completed(cookie) for cookie in writes)
    for cookie in bad:
        fails(errno.ENOSPC, h.aio_command_completed, cookie)
    assert len(set(writes + bad)) == blocks + 50
    buffers = [nbd.Buffer(4096) for _ in range(blocks)]
    reads = [h.aio_pread(buffer, base + n * 4096) for n, buffer in enumerate(buffers)]
    while h.aio_in_flight():
        h.poll(-1)
    assert all(h.aio_command_completed(cookie) for cookie in reads)
    for n, buffer in enumerate(buffers):
        assert buffer.to_bytearray() == bytearray([n]) * 4096, n
    h.trim(blocks * 4096, base)
    h.shutdown()


@case("plain")
def several_connections_see_one_disk():
    handles = [connect() for _ in range(16)]
    for n, h in enumerate(handles):
        h.pwrite(bytes([n + 1]) * 512, n * 512)
    # One flush covers what was answered on all.
    handles[0].flush()
    expected = b"".join(bytes([n + 1]) * 512 for n in range(16))
    assert all(h.pread(8192, 0) == expected for h in handles)
    # One too many is closed before it says a word.
    try:
        connect()
        raise AssertionError("a 17th connection")
    except nbd.Error:
        pass
    for h in handles:
        h.shutdown()


@case("plain")
def a_connection_lost_in_the_middle_of_a_write():
    path = uri.split("socket=")[1]
    probe = connect()
    probe.pwrite(b"d" * 8192, 0)
    for sent in (0, 1, 512, 4096, 8191):
        h = handle()
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(path)
        h.connect_socket(os.dup(raw.fileno()))
        head = (0x25609513).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(16) + (8192).to_bytes(4, "big")
        raw.sendall(head + b"e" * sent)
        raw.shutdown(socket.SHUT_RDWR)
        raw.close()
        del h
        # Nothing of it was done, and a new connection goes on.
        assert probe.pread(8192, 0) == b"d" * 8192, sent
        again = connect()
        again.pwrite(b"d" * 8192, 0)
        again.shutdown()
    probe.trim(8192, 0)
    probe.shutdown()


@case("plain")
def a_goodbye_with_requests_on_the_way():
    h = connect()
    buffer = nbd.Buffer.from_bytearray(bytearray(b"f" * 65536))
    for n in range(32):
        h.aio_pwrite(buffer, n * 65536)
    # Sends the goodbye behind the requests and waits until the server has closed.
    h.shutdown()
    h = connect()
    assert h.pread(32 * 65536, 0) == b"f" * 32 * 65536
    h.trim(32 * 65536, 0)
    h.shutdown()


@case("vast")
def more_extents_than_one_reply_holds():
    h = connect()
    offset, seen = 0, []
    while offset < 128 * MIB:
        found = extents_of(h, 128 * MIB - offset, offset)
        assert 0 < len(found) <= 8192
        seen += found
        offset += sum(length for length, _ in found)
    assert seen == [(4096, 0 if n % 2 == 0 else 3) for n in range(32768)]
    h.shutdown()


@case("vast")
def offsets_beyond_32_bits():
    h = connect()
    for offset in (2**32 - 512, 2**32, 2**40, 2**45, SIZE - 512):
        assert h.pread(512, offset) == bytes(512)
        h.pwrite(bytes(512), offset)
        assert extents_of(h, 512, offset) == [(512, 3)]
    h.shutdown()


for function in cases:
    try:
        function()
    except BaseException:
        print(f"FAILED {function.__name__}", flush=True)
        raise
    print(f"ok {function.__name__}", flush=True)
