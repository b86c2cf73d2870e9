//! A request: decoding its header, and deciding whether it may be carried out.

use bytes::Buf;

use crate::counters::Refusal;
use crate::limits::{PAYLOAD_BYTES_MAX, block_bytes_min};
use crate::negotiate::{Agreed, Export};
use crate::wire::{Errno, REQUEST_BYTES, REQUEST_MAGIC, command, flag};

/// A request as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// The client's name for the request, returned with the reply.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// A request that may be carried out: its range is inside the export and on the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// With `whole`, the client wants it in one piece.
    Read {
        whole: bool,
    },
    Write {
        fua: bool,
    },
    WriteZeroes {
        may_trim: bool,
        fua: bool,
    },
    Trim {
        fua: bool,
    },
    Flush,
    Cache,
    Status {
        one: bool,
    },
    /// A range of no bytes: succeeds.
    Nothing,
}

impl Request {
    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Refusal> {
        let mut bytes = bytes.as_slice();
        if bytes.get_u32() != REQUEST_MAGIC {
            return Err(Refusal::RequestMagicWrong);
        }
        Ok(Self {
            flags: bytes.get_u16(),
            command: bytes.get_u16(),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            length: bytes.get_u32(),
        })
    }

    /// Bytes that follow the header, whether or not the request is refused.
    pub(crate) const fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }

    /// Bytes of memory that carrying it out takes.
    pub(crate) const fn memory_bytes(&self) -> u32 {
        match self.command {
            command::READ | command::WRITE => self.length,
            _ => 0,
        }
    }

    pub(crate) const fn command_name(&self) -> &'static str {
        match self.command {
            command::READ => "read",
            command::WRITE => "write",
            command::FLUSH => "flush",
            command::TRIM => "trim",
            command::CACHE => "cache",
            command::WRITE_ZEROES => "write_zeroes",
            command::BLOCK_STATUS => "block_status",
            _ => "unknown",
        }
    }

    /// Decides whether the request may be carried out, and as what.
    pub(crate) fn check(&self, export: &Export, agreed: Agreed) -> Result<Work, Refusal> {
        // Over the limit the payload cannot be taken in, so this comes before all else.
        if self.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Err(Refusal::WriteTooLong);
        }
        let work = self.work()?;
        self.check_flags(agreed)?;
        if export.is_read_only && self.is_change() {
            return Err(Refusal::ReadOnly);
        }
        if work == Work::Flush {
            let bare = self.offset == 0 && self.length == 0;
            return if bare { Ok(work) } else { Err(Refusal::FlushNotBare) };
        }
        if matches!(work, Work::Read { .. }) && self.length > PAYLOAD_BYTES_MAX {
            return Err(Refusal::ReadTooLong);
        }
        if matches!(work, Work::Status { .. }) && (!agreed.allocation || self.length == 0) {
            return Err(Refusal::StatusNotAgreed);
        }
        self.check_range(export)?;
        if self.length == 0 && !matches!(work, Work::Read { .. }) {
            return Ok(Work::Nothing);
        }
        let insists_on_fast = self.has(flag::FAST_ZERO) && !export.is_zeroing_fast;
        if insists_on_fast { Err(Refusal::ZeroingNotFast) } else { Ok(work) }
    }

    fn work(&self) -> Result<Work, Refusal> {
        let fua = self.has(flag::FUA);
        Ok(match self.command {
            command::READ => Work::Read { whole: self.has(flag::DF) },
            command::WRITE => Work::Write { fua },
            command::FLUSH => Work::Flush,
            command::TRIM => Work::Trim { fua },
            command::CACHE => Work::Cache,
            command::WRITE_ZEROES => Work::WriteZeroes { may_trim: !self.has(flag::NO_HOLE), fua },
            command::BLOCK_STATUS => Work::Status { one: self.has(flag::REQ_ONE) },
            _ => return Err(Refusal::CommandUnknown),
        })
    }

    fn check_flags(&self, agreed: Agreed) -> Result<(), Refusal> {
        // FUA is to be accepted on every command: some clients set it on all of them.
        let known = flag::FUA
            | match self.command {
                command::READ if agreed.structured => flag::DF,
                command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
                command::BLOCK_STATUS => flag::REQ_ONE,
                _ => 0,
            };
        if self.flags & !known == 0 { Ok(()) } else { Err(Refusal::FlagUnknown) }
    }

    fn check_range(&self, export: &Export) -> Result<(), Refusal> {
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_none_or(|end| end > export.size_bytes) {
            // A trim asks for no space, so the protocol counts it with the reads.
            let takes_space = matches!(self.command, command::WRITE | command::WRITE_ZEROES);
            return Err(if takes_space { Refusal::WritePastEnd } else { Refusal::ReadPastEnd });
        }
        let grid = u64::from(block_bytes_min(export.size_bytes));
        let aligned =
            self.offset.is_multiple_of(grid) && u64::from(self.length).is_multiple_of(grid);
        if aligned { Ok(()) } else { Err(Refusal::Misaligned) }
    }

    const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    const fn is_change(&self) -> bool {
        matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
    }
}

/// The error number that a refused request is answered with; none means that the connection ends.
pub(crate) const fn errno_of(refusal: Refusal) -> Option<Errno> {
    match refusal {
        Refusal::CommandUnknown
        | Refusal::FlagUnknown
        | Refusal::Misaligned
        | Refusal::ReadPastEnd
        | Refusal::FlushNotBare
        | Refusal::StatusNotAgreed => Some(Errno::Invalid),
        Refusal::ReadTooLong => Some(Errno::Overflow),
        Refusal::WritePastEnd => Some(Errno::NoSpace),
        Refusal::ReadOnly => Some(Errno::Perm),
        Refusal::ZeroingNotFast => Some(Errno::NotSupported),
        _ => None,
    }
}

/// What a person is told with the error number.
pub(crate) const fn advice_on(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::CommandUnknown => "unknown command",
        Refusal::FlagUnknown => "unknown flag for this command",
        Refusal::Misaligned => "offset and length must be multiples of 512",
        Refusal::ReadPastEnd => "the range goes past the end of the disk",
        Refusal::WritePastEnd => "the range goes past the end of the disk",
        Refusal::ReadTooLong => "a read may be at most 32 MiB long",
        Refusal::ReadOnly => "the disk is read-only",
        Refusal::FlushNotBare => "a flush has no offset or length",
        Refusal::StatusNotAgreed => "block status needs base:allocation and a length",
        Refusal::ZeroingNotFast => "zeroing is not faster than writing",
        _ => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    fn export(is_read_only: bool) -> Export {
        Export {
            name: "disk".to_owned(),
            size_bytes: SIZE,
            is_read_only,
            can_multi_conn: true,
            is_zeroing_fast: false,
        }
    }

    fn check(command: u16, flags: u16, offset: u64, length: u32) -> Result<Work, Refusal> {
        let agreed = Agreed { structured: true, allocation: true };
        Request { flags, command, cookie: 7, offset, length }.check(&export(false), agreed)
    }

    #[test]
    fn decodes_the_documented_bytes() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0,
            0, 0x10, 0,
        ];
        let request = Request {
            flags: 1,
            command: 6,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0200,
            length: 0x1000,
        };
        assert_eq!(Request::decode(&bytes), Ok(request));
        for index in 0..4 {
            let mut wrong = bytes;
            wrong[index] ^= 1;
            assert_eq!(Request::decode(&wrong), Err(Refusal::RequestMagicWrong));
        }
    }

    #[test]
    fn takes_ranges_up_to_the_end_and_no_further() {
        assert_eq!(check(command::READ, 0, SIZE - 512, 512), Ok(Work::Read { whole: false }));
        assert_eq!(check(command::READ, 0, SIZE, 512), Err(Refusal::ReadPastEnd));
        assert_eq!(check(command::READ, 0, u64::MAX - 511, 512), Err(Refusal::ReadPastEnd));
        assert_eq!(check(command::WRITE, 0, SIZE - 512, 1024), Err(Refusal::WritePastEnd));
        assert_eq!(check(command::TRIM, 0, u64::MAX, u32::MAX), Err(Refusal::ReadPastEnd));
        assert_eq!(check(command::WRITE_ZEROES, 0, SIZE, 512), Err(Refusal::WritePastEnd));
        assert_eq!(check(command::BLOCK_STATUS, 0, SIZE, 512), Err(Refusal::ReadPastEnd));
        assert_eq!(check(command::TRIM, 0, 0, 1 << 30), Ok(Work::Trim { fua: false }));
    }

    #[test]
    fn no_bytes_succeed_where_the_offset_is_good() {
        assert_eq!(check(command::READ, 0, SIZE, 0), Ok(Work::Read { whole: false }));
        assert_eq!(check(command::WRITE, flag::FUA, 0, 0), Ok(Work::Nothing));
        assert_eq!(check(command::TRIM, 0, SIZE, 0), Ok(Work::Nothing));
        assert_eq!(check(command::WRITE_ZEROES, 0, SIZE + 512, 0), Err(Refusal::WritePastEnd));
        assert_eq!(check(command::BLOCK_STATUS, 0, 0, 0), Err(Refusal::StatusNotAgreed));
    }

    #[test]
    fn refuses_what_is_too_long() {
        let max = PAYLOAD_BYTES_MAX;
        assert_eq!(check(command::READ, 0, 0, max), Ok(Work::Read { whole: false }));
        assert_eq!(check(command::READ, 0, 0, max + 512), Err(Refusal::ReadTooLong));
        assert_eq!(check(command::WRITE, 0, 0, max), Ok(Work::Write { fua: false }));
        assert_eq!(check(command::WRITE, 0, 0, max + 512), Err(Refusal::WriteTooLong));
        assert_eq!(check(command::WRITE, !0, SIZE, u32::MAX), Err(Refusal::WriteTooLong));
    }

    #[test]
    fn works_on_whole_sectors_only() {
        assert_eq!(check(command::READ, 0, 1, 512), Err(Refusal::Misaligned));
        assert_eq!(check(command::WRITE, 0, 512, 511), Err(Refusal::Misaligned));
        assert_eq!(check(command::WRITE, 0, 512, 512), Ok(Work::Write { fua: false }));
    }

    #[test]
    fn a_disk_that_ends_within_a_sector_is_worked_on_by_the_byte() {
        let agreed = Agreed { structured: true, allocation: true };
        let export = Export { size_bytes: 1025, ..export(false) };
        let check = |command, offset, length| {
            Request { flags: 0, command, cookie: 7, offset, length }.check(&export, agreed)
        };
        assert_eq!(check(command::READ, 1024, 1), Ok(Work::Read { whole: false }));
        assert_eq!(check(command::WRITE, 1, 1024), Ok(Work::Write { fua: false }));
        assert_eq!(check(command::READ, 1024, 2), Err(Refusal::ReadPastEnd));
        assert_eq!(check(command::WRITE, 1025, 1), Err(Refusal::WritePastEnd));
    }

    #[test]
    fn knows_each_commands_flags() {
        assert_eq!(check(command::READ, flag::DF, 0, 512), Ok(Work::Read { whole: true }));
        assert_eq!(check(command::READ, flag::FUA, 0, 512), Ok(Work::Read { whole: false }));
        assert_eq!(check(command::WRITE, flag::DF, 0, 512), Err(Refusal::FlagUnknown));
        assert_eq!(check(command::WRITE, flag::NO_HOLE, 0, 512), Err(Refusal::FlagUnknown));
        assert_eq!(check(command::WRITE, 1 << 5, 0, 512), Err(Refusal::FlagUnknown));
        assert_eq!(
            check(command::WRITE_ZEROES, flag::NO_HOLE | flag::FUA, 0, 512),
            Ok(Work::WriteZeroes { may_trim: false, fua: true })
        );
        assert_eq!(
            check(command::WRITE_ZEROES, flag::FAST_ZERO, 0, 512),
            Err(Refusal::ZeroingNotFast)
        );
        assert_eq!(
            check(command::BLOCK_STATUS, flag::REQ_ONE, 0, 512),
            Ok(Work::Status { one: true })
        );
        assert_eq!(check(8, 0, 0, 0), Err(Refusal::CommandUnknown));
        let simple = Agreed { structured: false, allocation: false };
        let request =
            Request { flags: flag::DF, command: command::READ, cookie: 0, offset: 0, length: 512 };
        assert_eq!(request.check(&export(false), simple), Err(Refusal::FlagUnknown));
    }

    #[test]
    fn refuses_changes_to_a_read_only_export() {
        let agreed = Agreed { structured: true, allocation: true };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            let request = Request { flags: 0, command, cookie: 0, offset: 0, length: 512 };
            assert_eq!(request.check(&export(true), agreed), Err(Refusal::ReadOnly));
        }
        let flush = Request { flags: 0, command: command::FLUSH, cookie: 0, offset: 0, length: 0 };
        assert_eq!(flush.check(&export(true), agreed), Ok(Work::Flush));
        assert_eq!(check(command::FLUSH, 0, 0, 512), Err(Refusal::FlushNotBare));
    }

    #[test]
    fn block_status_needs_its_context() {
        let agreed = Agreed { structured: true, allocation: false };
        let request =
            Request { flags: 0, command: command::BLOCK_STATUS, cookie: 0, offset: 0, length: 512 };
        assert_eq!(request.check(&export(false), agreed), Err(Refusal::StatusNotAgreed));
    }
}
