"""Makes every mistake that libnbd lets one make, and checks the errors. Argument: the server's URI."""

import errno
import sys

import nbd

SIZE = 4 << 20
uri = sys.argv[1]


def connect():
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    return handle


def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, f"{call.__name__}{arguments}: {error.errno}"
    else:
        raise AssertionError(f"{call.__name__}{arguments} succeeded")


h = connect()
assert h.get_size() == SIZE
assert h.get_structured_replies_negotiated()

# Past the end, across the end, and at an offset that wraps around.
fails(errno.EINVAL, h.pread, 512, SIZE)
fails(errno.EINVAL, h.pread, 1024, SIZE - 512)
fails(errno.EINVAL, h.pread, 512, 2**64 - 512)
fails(errno.ENOSPC, h.pwrite, b"x" * 1024, SIZE - 512)
fails(errno.ENOSPC, h.trim, 512, SIZE)
fails(errno.ENOSPC, h.zero, 1 << 30, SIZE - 512)
fails(errno.EINVAL, h.cache, 512, SIZE)
fails(errno.EINVAL, h.block_status, 512, SIZE, lambda *_: 0)

# Too long. Over 64 MiB libnbd itself says no.
fails(errno.EOVERFLOW, h.pread, (32 << 20) + 512, 0)

# Off the grid.
fails(errno.EINVAL, h.pread, 511, 0)
fails(errno.EINVAL, h.pwrite, b"x" * 512, 1)

# Flags that the command does not have, or that nobody has.
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.trim, 512, 0, 1 << 14)
fails(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)

# Of no bytes.
assert h.pread(0, 0) == b""
assert h.pread(0, SIZE) == b""
h.pwrite(b"", 0)
h.trim(0, 0)
h.zero(0, SIZE)
fails(errno.ENOSPC, h.zero, 0, SIZE + 512)
fails(errno.EINVAL, h.block_status, 0, 0, lambda *_: 0)

# The connection has seen all that and still works: data, holes, one piece, extents.
h.pwrite(b"a" * 4096, 4096, nbd.CMD_FLAG_FUA)
expected = b"\0" * 4096 + b"a" * 4096 + b"\0" * 4096
assert h.pread(12288, 0) == expected
assert h.pread(12288, 0, nbd.CMD_FLAG_DF) == expected

pieces = []
buffer = h.pread_structured(
    12288, 0, lambda data, offset, status, error: pieces.append((len(data), offset, status)) or 0
)
assert buffer == expected
assert sorted(pieces, key=lambda piece: piece[1]) == [
    (4096, 0, nbd.READ_HOLE),
    (4096, 4096, nbd.READ_DATA),
    (4096, 8192, nbd.READ_HOLE),
], pieces
pieces.clear()
h.pread_structured(
    12288,
    0,
    lambda data, offset, status, error: pieces.append((len(data), offset, status)) or 0,
    nbd.CMD_FLAG_DF,
)
assert pieces == [(12288, 0, nbd.READ_DATA)], pieces

extents = []
h.block_status(12288, 0, lambda context, offset, entries, error: extents.extend(entries) or 0)
assert extents == [4096, 3, 4096, 0, 4096, 3], extents
extents.clear()
h.block_status(
    12288, 0, lambda context, offset, entries, error: extents.extend(entries) or 0, nbd.CMD_FLAG_REQ_ONE
)
assert extents == [4096, 3], extents
h.flush()
h.shutdown()

# Without structured replies: the same data, and no block status.
h = nbd.NBD()
h.set_strict_mode(0)
h.set_request_structured_replies(False)
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated()
assert h.pread(12288, 0) == expected
fails(errno.EINVAL, h.pread, 512, SIZE)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
h.shutdown()

# An export that is not here, then one that is, on the same connection.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.set_export_name("elsewhere")
fails(errno.ENOENT, h.opt_info)
h.set_export_name("disk")
h.opt_info()
assert h.get_size() == SIZE
h.opt_go()
assert h.pread(4096, 4096) == b"a" * 4096
h.shutdown()

print("all as documented")
