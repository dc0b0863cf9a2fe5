//! Commands of an SMMUv3, one named constructor each (IHI 0070, chapter 4).
//!
//! A command is two 64-bit little-endian words. The golden encodings of the tests are written out by hand.

use crate::ids::{Ipa, StreamId, VmId};
use core::fmt;

const CFGI_STE_RANGE: u64 = 0x04;
const TLBI_EL2_ALL: u64 = 0x20;
const TLBI_S12_VMALL: u64 = 0x28;
const TLBI_S2_IPA: u64 = 0x2a;
const TLBI_NSNH_ALL: u64 = 0x30;
const SYNC: u64 = 0x46;
const CFGI_STE: u64 = 0x03;

/// CMD_CFGI_STE_RANGE.Range that stands for all StreamIDs.
const ALL_STREAMS: u64 = 31;
/// Bits 63:12 of word 1: an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// CMD_TLBI_S2_IPA.TG: 4 KiB, and with it a range.
const TG_4K: u64 = 1 << 10;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command([u64; 2]);

const fn vmid_of(vmid: VmId) -> u64 {
    (vmid.0 as u64) << 32
}

impl Command {
    /// Bytes of a command.
    pub const SIZE: u64 = 16;

    /// The words, which are stored little-endian in this order.
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        self.0
    }

    /// The command with these words.
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Command {
        Command(words)
    }

    /// Invalidates the cached entry of one stream, and the cached first-level descriptor through which it was reached
    /// (4.3.1, with Leaf = 0).
    #[must_use]
    pub const fn cfgi_ste(stream: StreamId) -> Command {
        Command([CFGI_STE | (stream.0 as u64) << 32, 0])
    }

    /// Invalidates the cached entries of 2^`bits` streams (1 to 32 bits), aligned to their number, and first-level
    /// descriptors (4.3.2).
    #[must_use]
    pub const fn cfgi_ste_range(stream: StreamId, bits: u8) -> Command {
        Command([CFGI_STE_RANGE | (stream.0 as u64) << 32, bits.saturating_sub(1) as u64 & ALL_STREAMS])
    }

    /// Invalidates all cached configuration (4.3.6).
    #[must_use]
    pub const fn cfgi_all() -> Command {
        Command([CFGI_STE_RANGE, ALL_STREAMS])
    }

    /// Invalidates the TLB entries of a VMID, of both stages (4.4.3.2).
    #[must_use]
    pub const fn tlbi_s12_vmall(vmid: VmId) -> Command {
        Command([TLBI_S12_VMALL | vmid_of(vmid), 0])
    }

    /// Invalidates the TLB entries that translate `ipa`, including those of tables (4.4.3.1, with Leaf = 0).
    #[must_use]
    pub const fn tlbi_s2_ipa(vmid: VmId, ipa: Ipa) -> Command {
        Command([TLBI_S2_IPA | vmid_of(vmid), ipa.0 & ADDRESS])
    }

    /// The same for `multiple` (1 to 32) times 2^`scale` (up to 31) pages of 4 KiB from `ipa` on (4.4.1.1). Only with
    /// IDR3.RIL. A single page is [`tlbi_s2_ipa`](Self::tlbi_s2_ipa): as a range it would be illegal.
    #[must_use]
    pub const fn tlbi_s2_range(vmid: VmId, ipa: Ipa, multiple: u8, scale: u8) -> Command {
        let num = multiple.saturating_sub(1) as u64 & 0x1f;
        let range = num << 12 | (scale as u64 & 0x1f) << 20;
        Command([TLBI_S2_IPA | range | vmid_of(vmid), TG_4K | ipa.0 & ADDRESS])
    }

    /// Invalidates all Non-secure TLB entries but those of EL2 (4.4.4.1).
    #[must_use]
    pub const fn tlbi_nsnh_all() -> Command {
        Command([TLBI_NSNH_ALL, 0])
    }

    /// Invalidates the TLB entries of EL2's stage 1. Only with IDR0.Hyp (4.4.2.7).
    #[must_use]
    pub const fn tlbi_el2_all() -> Command {
        Command([TLBI_EL2_ALL, 0])
    }

    /// Is consumed when all commands before it are complete, and signals nothing (4.7.3, with CS = 0).
    #[must_use]
    pub const fn sync() -> Command {
        Command([SYNC, 0])
    }

    /// The manual's name, without `CMD_`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        let [word, _] = self.0;
        match word & 0xff {
            CFGI_STE => "CFGI_STE",
            CFGI_STE_RANGE => "CFGI_STE_RANGE",
            TLBI_EL2_ALL => "TLBI_EL2_ALL",
            TLBI_S12_VMALL => "TLBI_S12_VMALL",
            TLBI_S2_IPA => "TLBI_S2_IPA",
            TLBI_NSNH_ALL => "TLBI_NSNH_ALL",
            SYNC => "SYNC",
            _ => "unknown command",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.0;
        write!(f, "{} ({first:#x}, {second:#x})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_encodings_of_the_manual() {
        let cases = [
            (Command::cfgi_ste(StreamId(0x12345)), [0x0001_2345_0000_0003, 0]),
            (Command::cfgi_ste_range(StreamId(0x40), 1), [0x0000_0040_0000_0004, 0]),
            (Command::cfgi_ste_range(StreamId(0xffff_0000), 16), [0xffff_0000_0000_0004, 15]),
            (Command::cfgi_ste_range(StreamId(0), 32), [0x0000_0000_0000_0004, 31]),
            (Command::cfgi_all(), [0x0000_0000_0000_0004, 31]),
            (Command::tlbi_s12_vmall(VmId(0xabcd)), [0x0000_abcd_0000_0028, 0]),
            (Command::tlbi_s2_ipa(VmId(7), Ipa(0x12_3456_7fff)), [0x0000_0007_0000_002a, 0x12_3456_7000]),
            (Command::tlbi_s2_range(VmId(7), Ipa(0x4000_0000), 1, 9), [0x0000_0007_0090_002a, 0x4000_0400]),
            (Command::tlbi_s2_range(VmId(0xff), Ipa(0x1000), 32, 31), [0x0000_00ff_01f1_f02a, 0x1400]),
            (Command::tlbi_nsnh_all(), [0x30, 0]),
            (Command::tlbi_el2_all(), [0x20, 0]),
            (Command::sync(), [0x46, 0]),
        ];
        for (command, words) in cases {
            assert_eq!(command.words(), words, "{command}");
        }
    }

    #[test]
    fn a_command_is_displayed_by_its_name_and_words() {
        let sync = std::string::ToString::to_string(&Command::sync());
        assert_eq!(sync, "SYNC (0x46, 0x0)");
        let names = [
            (Command::cfgi_ste(StreamId(0)), "CFGI_STE"),
            (Command::cfgi_ste_range(StreamId(0), 1), "CFGI_STE_RANGE"),
            (Command::tlbi_s12_vmall(VmId(0)), "TLBI_S12_VMALL"),
            (Command::tlbi_s2_ipa(VmId(0), Ipa(0)), "TLBI_S2_IPA"),
            (Command::tlbi_nsnh_all(), "TLBI_NSNH_ALL"),
            (Command::tlbi_el2_all(), "TLBI_EL2_ALL"),
            (Command::from_words([0xff, 0]), "unknown command"),
        ];
        names.iter().for_each(|(command, name)| assert_eq!(command.name(), *name));
    }
}
