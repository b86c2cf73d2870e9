//! Every limit of the server, and how they relate. A client cannot make the process grow past them.

use std::time::Duration;

/// Connections served at once; one more is closed as soon as it is accepted.
///
/// `nbdcopy` opens 4 and QEMU at most 16, each a client of its own.
pub const CONNECTIONS_MAX: usize = 16;

/// Requests of one connection being carried out at once; the next is not read before one is answered.
///
/// `nbdcopy` keeps 64 in flight, QEMU 16.
pub const REQUESTS_IN_FLIGHT_MAX: u32 = 64;

/// Longest READ or WRITE, in bytes, and the maximum announced to clients.
///
/// 32 MiB is what clients assume of a server that announces nothing.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Bytes of READ and WRITE payload that one connection may have in flight.
pub const PAYLOAD_BYTES_IN_FLIGHT_MAX: u32 = 64 << 20;

/// Granularity of offsets and lengths, in bytes: a disk sector, for a disk of whole sectors.
pub const SECTOR_BYTES: u32 = 512;

/// Granularity for a disk of `size_bytes`. One that ends within a sector is served by the byte: nothing
/// coarser reaches its end.
pub const fn block_bytes_min(size_bytes: u64) -> u32 {
    if size_bytes.is_multiple_of(SECTOR_BYTES as u64) { SECTOR_BYTES } else { 1 }
}

/// Request granularity recommended to clients, in bytes: the block that the replication works with.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;

/// Longest data of one negotiation option, in bytes; a longer option ends the connection.
///
/// Room for an export name and three queries of the 4,096 bytes a protocol string may have.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;

/// Longest name an export can be given, in bytes (the protocol's recommended longest string).
pub const EXPORT_NAME_BYTES_MAX: usize = 256;

/// Descriptors in one answer to BLOCK_STATUS; the client asks again for the rest.
pub const EXTENTS_PER_REPLY_MAX: usize = 8192;

/// Receive buffer of one connection, in bytes: many small requests arrive with one system call.
pub const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// Zeroes sent from one shared block, in bytes, when a hole has to be spelled out.
pub(crate) const ZEROES_BYTES: usize = 64 << 10;

/// Connections that negotiate at once; with one more the oldest goes.
pub const HANDSHAKES_MAX: usize = 64;

/// From accepting a connection to the end of its negotiation.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a shutdown waits for clients to take the replies to their requests in flight.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Pause after a failed accept (out of file descriptors, say), so that the loop does not spin.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long binding waits for another bind in the same directory.
pub(crate) const BIND_LOCK_DEADLINE: Duration = Duration::from_secs(2);

/// Between two tries at that.
pub(crate) const BIND_LOCK_RETRY: Duration = Duration::from_millis(5);

/// Connections that the system holds for us until they are accepted.
pub(crate) const LISTEN_BACKLOG: u32 = 128;

/// Longest path of a Unix socket on Linux, in bytes (108 with its NUL).
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

// A request of the longest length must be able to start, or its connection would wait for ever.
const _: () = assert!(PAYLOAD_BYTES_MAX <= PAYLOAD_BYTES_IN_FLIGHT_MAX);
// The protocol: powers of two, preferred between 512 and 32 MiB, maximum a multiple of the minimum.
const _: () = assert!(SECTOR_BYTES.is_power_of_two());
const _: () = assert!(BLOCK_BYTES_PREFERRED.is_power_of_two());
const _: () = assert!(SECTOR_BYTES <= BLOCK_BYTES_PREFERRED);
const _: () = assert!(BLOCK_BYTES_PREFERRED <= PAYLOAD_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_MAX.is_multiple_of(SECTOR_BYTES));
// The length field of a reply chunk is 32 bits and covers an 8-byte offset too.
const _: () = assert!(PAYLOAD_BYTES_MAX <= u32::MAX - 8);
// An option must have room for any export name we can have, and the lengths around it.
const _: () = assert!(EXPORT_NAME_BYTES_MAX + 64 <= OPTION_BYTES_MAX as usize);
// The protocol allows 2^20 descriptors.
const _: () = assert!(EXTENTS_PER_REPLY_MAX <= 1 << 20);
// An option fits in the receive buffer.
const _: () = assert!(OPTION_BYTES_MAX as usize + 16 <= RECEIVE_BUFFER_BYTES);
// Payload of all connections together: at most 1 GiB.
const _: () = assert!(CONNECTIONS_MAX * PAYLOAD_BYTES_IN_FLIGHT_MAX as usize <= 1 << 30);
