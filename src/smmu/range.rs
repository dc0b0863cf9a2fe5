//! Ranges of streams and of addresses as commands (IHI 0070, 4.3.2 and 4.4.1.1).

use super::command::Command;
use crate::ids::{Ipa, StreamId, VmId};
use crate::util::PAGE;
use core::ops::RangeInclusive;

/// The largest number of commands by page that is cheaper than the invalidation of the whole VMID.
const FEW_PAGES: u64 = 64;
/// The largest number of pages that a range has: beyond it, commands invalidate the whole VMID.
const MOST_PAGES: u64 = 1 << 31;

/// The commands that invalidate the cached configuration of streams: one for each block of the range that is aligned to
/// its size, 62 at most.
pub fn configuration_commands(streams: &RangeInclusive<StreamId>) -> impl Iterator<Item = Command> + use<> {
    let mut at = u64::from(streams.start().0);
    let end = u64::from(streams.end().0).saturating_add(1);
    core::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|&left| left > 0)?;
        let bits = at.trailing_zeros().min(left.ilog2()).min(32);
        let stream = StreamId(at as u32);
        at = at.saturating_add(1 << bits);
        Some(if bits == 0 { Command::cfgi_ste(stream) } else { Command::cfgi_ste_range(stream, bits as u8) })
    })
}

/// The commands that invalidate the translations of `size` bytes from `ipa` on, extended to whole pages: with `ranges`
/// eight at most, otherwise one for each page, or one for all if there are many.
pub fn tlb_commands(vmid: VmId, ipa: Ipa, size: u64, ranges: bool) -> impl Iterator<Item = Command> {
    let mut page = ipa.0 / PAGE;
    let pages = ipa.0.checked_add(size).map(|end| end.div_ceil(PAGE).saturating_sub(page));
    let limit = if ranges { MOST_PAGES } else { FEW_PAGES };
    let mut left = pages.filter(|&pages| pages <= limit);
    let all = left.is_none().then(|| Command::tlbi_s12_vmall(vmid));
    let by_address = core::iter::from_fn(move || {
        let remaining = left.filter(|&left| left > 0)?;
        // The lowest bits that are set, and the four above them.
        let scale = if ranges { remaining.trailing_zeros() } else { 0 };
        let multiple = if ranges { remaining >> scale & 0x1f } else { 1 };
        let count = multiple << scale;
        let at = Ipa(page.saturating_mul(PAGE));
        page = page.saturating_add(count);
        left = remaining.checked_sub(count);
        Some(if count == 1 {
            Command::tlbi_s2_ipa(vmid, at)
        } else {
            Command::tlbi_s2_range(vmid, at, multiple as u8, scale as u8)
        })
    });
    all.into_iter().chain(by_address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn streams(first: u32, last: u32) -> Vec<Command> {
        configuration_commands(&(StreamId(first)..=StreamId(last))).collect()
    }

    #[test]
    fn the_streams_of_a_range_are_invalidated_by_aligned_blocks() {
        assert_eq!(streams(7, 7), [Command::cfgi_ste(StreamId(7))]);
        assert_eq!(streams(0, 0xffff), [Command::cfgi_ste_range(StreamId(0), 16)]);
        assert_eq!(streams(0, u32::MAX), [Command::cfgi_all()]);
        let blocks = [Command::cfgi_ste(StreamId(3)), Command::cfgi_ste_range(StreamId(4), 1)];
        assert_eq!(streams(3, 5), blocks);
        assert_eq!(streams(1, u32::MAX - 1).len(), 62);
        assert_eq!(streams(u32::MAX, u32::MAX), [Command::cfgi_ste(StreamId(u32::MAX))]);
    }

    const VMID: VmId = VmId(3);

    fn by_range(ipa: u64, size: u64) -> Vec<Command> {
        tlb_commands(VMID, Ipa(ipa), size, true).collect()
    }

    #[test]
    fn addresses_are_invalidated_by_ranges_without_a_gap() {
        assert_eq!(by_range(0x1000, 0x1000), [Command::tlbi_s2_ipa(VMID, Ipa(0x1000))]);
        assert_eq!(by_range(0x1fff, 2), [Command::tlbi_s2_range(VMID, Ipa(0x1000), 1, 1)]);
        // 0x421 pages: 1, and 0x21 times 2^5, of which one command covers 0x1 and another 0x20.
        let expected = [
            Command::tlbi_s2_ipa(VMID, Ipa(0x8000_0000)),
            Command::tlbi_s2_range(VMID, Ipa(0x8000_1000), 1, 5),
            Command::tlbi_s2_range(VMID, Ipa(0x8002_1000), 1, 10),
        ];
        assert_eq!(by_range(0x8000_0000, 0x42_1000), expected);
        assert_eq!(by_range(0, 1 << 43), [Command::tlbi_s2_range(VMID, Ipa(0), 1, 31)]);
        assert!(by_range(0, (1 << 43) - 0x1000).len() <= 8);
        assert_eq!(by_range(0x1000, 0), []);
    }

    #[test]
    fn what_no_range_can_have_invalidates_the_whole_vmid() {
        assert_eq!(by_range(0, (1 << 43) + 1), [Command::tlbi_s12_vmall(VMID)]);
        assert_eq!(by_range(u64::MAX, 2), [Command::tlbi_s12_vmall(VMID)]);
    }

    #[test]
    fn without_ranges_few_pages_are_invalidated_each() {
        let few: Vec<_> = tlb_commands(VMID, Ipa(0x5000), 64 << 12, false).collect();
        assert_eq!(few.len(), 64);
        assert_eq!(few[63], Command::tlbi_s2_ipa(VMID, Ipa(0x4_4000)));
        let many: Vec<_> = tlb_commands(VMID, Ipa(0x5000), 65 << 12, false).collect();
        assert_eq!(many, [Command::tlbi_s12_vmall(VMID)]);
    }
}
