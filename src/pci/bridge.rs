//! A bridge above a function that a domain does not see.
//!
//! Such a function is hidden by its place in configuration space. That is enough only while the function stays there:
//! with another bus number in a bridge above it, it would answer at another place, and with another window its registers
//! would be where the domain can reach them. So the registers of these bridges that decide what is forwarded keep the
//! values that the firmware gave them, and so do those that reset what is behind the bridge, and those that keep it apart
//! (Access Control Services). A domain may read everything, and write the rest: errors, interrupts, power and link
//! management below the level of a reset.
//!
//! A write that touches both is carried out with the kept bits as they are. Kept bits never change, so reading them
//! first is no race with the domain's other vCPUs.
//!
//! Not kept: the bridge's own BARs. Memory of another device over that of a hidden function makes the function's
//! registers answer wrongly, but does not make them reachable.

use super::regs::{self, *};
use super::topology::{capabilities, extended_capabilities};
use super::{ConfigSpace, topology};
use crate::ids::Pa;
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// The largest number of words with bits that are kept.
const WORDS: usize = 32;

/// A bridge whose routing a domain cannot change.
pub struct Bridge {
    page: Range,
    /// The bits that are kept, by the offset of their word.
    kept: ArrayVec<(u64, u32), WORDS>,
}

impl Bridge {
    /// The bridge at `page`. Reads which of the registers it has.
    #[must_use]
    pub fn new(page: Pa, config: &impl ConfigSpace) -> Bridge {
        let mut kept = ArrayVec::new();
        let mut keep = |at: u64, bits: u32| {
            // There are fewer than `WORDS`, if each capability is there once. One that is there again is not used.
            let _ = kept.try_push((at, bits));
        };
        // What the firmware has enabled stays enabled; what it has not is the domain's to decide.
        keep(COMMAND, config.read32(page.add(COMMAND)) & DECODES);
        keep(BUSES, BUS_NUMBERS);
        keep(IO_WINDOW, IO_BASE_LIMIT);
        WINDOWS.iter().for_each(|&at| keep(at, u32::MAX));
        keep(BRIDGE_CONTROL, ROUTES_OR_RESETS);
        capabilities(page, config, |id, at| match id {
            POWER => keep(at.saturating_add(POWER_CONTROL), POWER_STATE),
            EXPRESS => {
                keep(at.saturating_add(DEVICE_CONTROL), FUNCTION_RESET);
                keep(at.saturating_add(LINK_CONTROL), LINK_DISABLE);
                keep(at.saturating_add(SLOT_CONTROL), SLOT_POWER);
                keep(at.saturating_add(DEVICE_CONTROL2), ARI_FORWARDING);
            }
            FLATTENING => {
                (0..FLATTENING_WORDS).for_each(|n| keep(at.saturating_add(n.saturating_mul(4)), u32::MAX));
            }
            _ => {}
        });
        extended_capabilities(page, config, |id, at| {
            match id {
                regs::CONTAINMENT => keep(at.saturating_add(CONTAINMENT_CONTROL), SOFTWARE_TRIGGER),
                // What has been kept apart stays so.
                regs::ACCESS_CONTROL => {
                    keep(at.saturating_add(ACS_REGISTERS), u32::from(ACS_ISOLATES) << 16);
                }
                _ => {}
            }
        });
        Bridge { page: Range::new(page, topology::FUNCTION), kept }
    }

    /// Its configuration space.
    #[must_use]
    pub fn page(&self) -> Range {
        self.page
    }

    /// Loads `bytes` bytes at `offset` for a domain. An access that configuration space does not have reads as ones.
    #[must_use]
    pub fn read(&self, config: &impl ConfigSpace, offset: u64, bytes: u8) -> u64 {
        let Some(at) = self.place(offset, bytes) else { return u64::MAX };
        match bytes {
            8 => u64::from(config.read32(at.add(4))) << 32 | u64::from(config.read32(at)),
            _ => config.read(at, bytes).into(),
        }
    }

    /// Stores `bytes` bytes at `offset` for a domain, without the bits that it cannot change.
    pub fn write(&self, config: &impl ConfigSpace, offset: u64, bytes: u8, value: u64) {
        let Some(at) = self.place(offset, bytes) else { return };
        if bytes == 8 {
            self.write_word(config, at, offset, 4, value as u32);
            self.write_word(config, at.add(4), offset.saturating_add(4), 4, (value >> 32) as u32);
        } else {
            self.write_word(config, at, offset, bytes, value as u32);
        }
    }

    /// Where an access goes; `None` if it is not aligned, or not within the page.
    fn place(&self, offset: u64, bytes: u8) -> Option<Pa> {
        let size = u64::from(bytes);
        let is_valid = matches!(bytes, 1 | 2 | 4 | 8) && offset & size.saturating_sub(1) == 0;
        (is_valid && offset < self.page.size).then(|| self.page.base.add(offset))
    }

    fn write_word(&self, config: &impl ConfigSpace, at: Pa, offset: u64, bytes: u8, value: u32) {
        let all = u32::MAX.checked_shr(32u32.saturating_sub(8u32.saturating_mul(bytes.into()))).unwrap_or(0);
        let kept = self.kept_at(offset) & all;
        if kept == 0 {
            config.write(at, bytes, value);
        } else if kept != all {
            config.write(at, bytes, value & !kept | config.read(at, bytes) & kept);
        }
    }

    /// The bits from `offset` on, to the end of their word, that are kept.
    fn kept_at(&self, offset: u64) -> u32 {
        let bits = self.kept.iter().filter(|&&(at, _)| at == offset & !3).fold(0, |all, &(_, bits)| all | bits);
        bits.checked_shr(8u32.saturating_mul((offset & 3) as u32)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    const PAGE: Pa = Pa(0x10_0000);
    /// Where the capabilities of the fake bridge are.
    const EXPRESS_AT: u64 = 0x40;
    const POWER_AT: u64 = 0x80;
    const FLATTENING_AT: u64 = 0x90;
    const DPC_AT: u64 = 0x140;
    const ACS_AT: u64 = 0x160;

    /// A bridge to bus 3, with a window, all capabilities, and the firmware's values.
    fn bridge() -> (Fake, Bridge) {
        let fake = Fake::default();
        fake.function(PAGE, &[(0x04, 0x0010_0006), (HEADER, BRIDGE), (CAPABILITIES, EXPRESS_AT as u32)]);
        fake.words(
            PAGE,
            &[
                (BUSES, 0x4003_0300),
                (IO_WINDOW, 0x0000_01f1),
                (0x20, 0x1010_1000),
                (0x24, 0x0001_fff1),
                (EXPRESS_AT, 0x0142_8010),
                (POWER_AT, 0x0003_9001),
                (FLATTENING_AT, 0x0000_0015),
                (EXTENDED, 0x1401_0001),
                (DPC_AT, 0x1601_001d),
                (ACS_AT, 0x0001_000d),
                (ACS_AT + ACS_REGISTERS, 0x0014_005f),
            ],
        );
        let bridge = Bridge::new(PAGE, &fake);
        (fake, bridge)
    }

    /// Every write of every size that a domain can make leaves these words as they are.
    fn stays(at: u64, bits: u32) {
        let (fake, bridge) = bridge();
        let word = || fake.read32(PAGE.add(at)) & bits;
        let before = word();
        for value in [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
            for bytes in [1u8, 2, 4, 8] {
                for offset in (at & !7..(at & !7) + 8).step_by(bytes.into()) {
                    bridge.write(&fake, offset, bytes, value);
                    assert_eq!(word(), before, "{bytes} bytes at {offset:#x}: {value:#x}");
                }
            }
        }
    }

    #[test]
    fn no_write_changes_what_a_bridge_forwards_or_resets_what_is_behind_it() {
        stays(BUSES, BUS_NUMBERS);
        stays(IO_WINDOW, IO_BASE_LIMIT);
        WINDOWS.iter().for_each(|&at| stays(at, u32::MAX));
        stays(BRIDGE_CONTROL, ROUTES_OR_RESETS);
        stays(COMMAND, 0b110);
        stays(EXPRESS_AT + DEVICE_CONTROL, FUNCTION_RESET);
        stays(EXPRESS_AT + LINK_CONTROL, LINK_DISABLE);
        stays(EXPRESS_AT + SLOT_CONTROL, SLOT_POWER);
        stays(EXPRESS_AT + DEVICE_CONTROL2, ARI_FORWARDING);
        stays(POWER_AT + POWER_CONTROL, POWER_STATE);
        (0..FLATTENING_WORDS).for_each(|n| stays(FLATTENING_AT + 4 * n, u32::MAX));
        stays(DPC_AT + CONTAINMENT_CONTROL, SOFTWARE_TRIGGER);
        stays(ACS_AT + ACS_REGISTERS, u32::from(ACS_ISOLATES) << 16);
    }

    #[test]
    fn everything_else_is_written_with_the_size_of_the_access() {
        let (fake, bridge) = bridge();
        fake.take_writes();
        // The Secondary Status beside I/O Base and Limit: its bits are cleared by writing ones.
        bridge.write(&fake, 0x1e, 2, 0xffff);
        bridge.write(&fake, 0x3c, 1, 0x2a);
        bridge.write(&fake, 0x44, 4, 0x1234_5678);
        // Bus numbers with the latency timer, bus numbers alone, Bridge Control with an interrupt line.
        bridge.write(&fake, 0x18, 4, 0x7709_0901);
        bridge.write(&fake, 0x19, 1, 9);
        bridge.write(&fake, 0x18, 2, 0x0909);
        bridge.write(&fake, 0x3c, 4, 0xffff_0107);
        assert_eq!(
            fake.take_writes(),
            [
                (0x1e, 2, 0xffff),
                (0x3c, 1, 0x2a),
                (0x44, 4, 0x1234_5678),
                (0x18, 4, 0x7703_0300),
                (0x3c, 4, 0xffa3_0107),
            ]
            .map(|(at, bytes, value)| (PAGE.0 + at, bytes, value))
        );
    }

    #[test]
    fn a_decoder_that_the_firmware_has_not_enabled_is_the_domains_to_enable() {
        let (fake, bridge) = bridge();
        bridge.write(&fake, COMMAND, 2, 0x0101);
        assert_eq!(fake.read(PAGE.add(COMMAND), 2), 0x0107);
        bridge.write(&fake, COMMAND, 2, 0);
        assert_eq!(fake.read(PAGE.add(COMMAND), 2), 0x0006);
    }

    #[test]
    fn reads_are_those_of_the_bridge_and_odd_ones_read_as_ones() {
        let (fake, bridge) = bridge();
        assert_eq!(bridge.read(&fake, 0x18, 4), 0x4003_0300);
        assert_eq!(bridge.read(&fake, 0x19, 1), 3);
        assert_eq!(bridge.read(&fake, 0x18, 8), 0x01f1_4003_0300);
        for (offset, bytes) in [(0x19, 2), (0x1c, 8), (0x1000, 4), (0x18, 3), (u64::MAX, 1)] {
            assert_eq!(bridge.read(&fake, offset, bytes), u64::MAX);
            fake.take_writes();
            bridge.write(&fake, offset, bytes, 0);
            assert!(fake.take_writes().is_empty());
        }
    }

    #[test]
    fn a_circle_of_capabilities_ends() {
        let fake = Fake::default();
        fake.function(PAGE, &[(0x04, 0x0010_0000), (HEADER, BRIDGE), (CAPABILITIES, 0x40), (0x40, 0x4001)]);
        fake.words(PAGE, &[(EXTENDED, 0x1001_0001)]);
        let bridge = Bridge::new(PAGE, &fake);
        bridge.write(&fake, 0x18, 4, 0);
        assert_eq!(bridge.read(&fake, 0x18, 4), 0);
    }
}
