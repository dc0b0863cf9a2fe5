//! The registers of the distributor and the redistributors (IHI 0069, 12.9 to 12.12).
//!
//! Offsets and fields only. No other file contains a mask, a shift or an offset.

use crate::ids::Pa;
use crate::mmio::layout::{fits, layout};
use tock_registers::register_bitfields;

/// Peripheral ID register 2, at the same offset in every GIC frame.
pub const PIDR2: u64 = 0xffe8;

/// Distributor offsets. Those of the registers per interrupt are the same in a redistributor's SGI frame.
pub mod gicd {
    pub const CTLR: u64 = 0x0000;
    pub const TYPER: u64 = 0x0004;
    pub const IIDR: u64 = 0x0008;
    pub const TYPER2: u64 = 0x000c;
    pub const IGROUPR: u64 = 0x0080;
    pub const ISENABLER: u64 = 0x0100;
    pub const ICENABLER: u64 = 0x0180;
    pub const ISPENDR: u64 = 0x0200;
    pub const ICPENDR: u64 = 0x0280;
    pub const ISACTIVER: u64 = 0x0300;
    pub const ICACTIVER: u64 = 0x0380;
    pub const IPRIORITYR: u64 = 0x0400;
    pub const ICFGR: u64 = 0x0c00;
    pub const IROUTER: u64 = 0x6000;
}

/// Redistributor offsets from RD_base.
pub mod gicr {
    pub const CTLR: u64 = 0x0000;
    pub const TYPER: u64 = 0x0008;
    pub const WAKER: u64 = 0x0014;
    pub const CLRLPIR: u64 = 0x0048;
    pub const PROPBASER: u64 = 0x0070;
    pub const PENDBASER: u64 = 0x0078;
    pub const INVLPIR: u64 = 0x00a0;
    pub const INVALLR: u64 = 0x00b0;
    pub const SYNCR: u64 = 0x00c0;

    /// Bytes of a frame. A redistributor has two of them, or four with virtual LPIs.
    pub const FRAME: u64 = 0x1_0000;
    pub const SGI_BASE: u64 = FRAME;
    pub const VLPI_BASE: u64 = 2 * FRAME;

    pub const VPROPBASER: u64 = VLPI_BASE + 0x0070;
    pub const VPENDBASER: u64 = VLPI_BASE + 0x0078;
    pub const VSGIR: u64 = VLPI_BASE + 0x0080;
    pub const VSGIPENDR: u64 = VLPI_BASE + 0x0088;
}

register_bitfields! [u32,
    pub GICD_CTLR [
        ENABLE_GRP1 OFFSET(1) NUMBITS(1) [],
        ARE OFFSET(4) NUMBITS(1) [],
        RWP OFFSET(31) NUMBITS(1) []
    ],
    pub GICD_TYPER [
        IT_LINES OFFSET(0) NUMBITS(5) [],
        NUM_LPIS OFFSET(11) NUMBITS(5) [],
        LPIS OFFSET(17) NUMBITS(1) [],
        ID_BITS OFFSET(19) NUMBITS(5) []
    ],
    pub GICD_TYPER2 [
        VID OFFSET(0) NUMBITS(5) [],
        VIL OFFSET(7) NUMBITS(1) []
    ],
    pub PIDR2_FIELDS [
        ARCH_REV OFFSET(4) NUMBITS(4) []
    ],
    pub GICR_CTLR [
        ENABLE_LPIS OFFSET(0) NUMBITS(1) [],
        IR OFFSET(2) NUMBITS(1) [],
        RWP OFFSET(3) NUMBITS(1) []
    ],
    pub GICR_WAKER [
        PROCESSOR_SLEEP OFFSET(1) NUMBITS(1) [],
        CHILDREN_ASLEEP OFFSET(2) NUMBITS(1) []
    ],
    pub GICR_SYNCR [
        BUSY OFFSET(0) NUMBITS(1) []
    ],
    pub GICR_VSGIPENDR [
        PENDING OFFSET(0) NUMBITS(16) [],
        BUSY OFFSET(31) NUMBITS(1) []
    ]
];

register_bitfields! [u64,
    pub GICR_TYPER [
        PLPIS OFFSET(0) NUMBITS(1) [],
        VLPIS OFFSET(1) NUMBITS(1) [],
        DIRTY OFFSET(2) NUMBITS(1) [],
        DIRECT_LPI OFFSET(3) NUMBITS(1) [],
        LAST OFFSET(4) NUMBITS(1) [],
        RVPEID OFFSET(7) NUMBITS(1) [],
        PROCESSOR_NUMBER OFFSET(8) NUMBITS(16) [],
        COMMON_LPI_AFF OFFSET(24) NUMBITS(2) [],
        VSGI OFFSET(26) NUMBITS(1) [],
        AFFINITY OFFSET(32) NUMBITS(32) []
    ],
    pub GICR_PROPBASER [
        ID_BITS OFFSET(0) NUMBITS(5) [],
        INNER_CACHE OFFSET(7) NUMBITS(3) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        PA_4K OFFSET(12) NUMBITS(40) [],
        OUTER_CACHE OFFSET(56) NUMBITS(3) []
    ],
    pub GICR_PENDBASER [
        INNER_CACHE OFFSET(7) NUMBITS(3) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        PA_64K OFFSET(16) NUMBITS(36) [],
        OUTER_CACHE OFFSET(56) NUMBITS(3) [],
        PTZ OFFSET(62) NUMBITS(1) []
    ],
    pub GICR_INVLPIR [
        INTID OFFSET(0) NUMBITS(32) [],
        VPEID OFFSET(32) NUMBITS(16) [],
        V OFFSET(63) NUMBITS(1) []
    ],
    /// GICv4.0.
    pub GICR_VPROPBASER [
        ID_BITS OFFSET(0) NUMBITS(5) [],
        INNER_CACHE OFFSET(7) NUMBITS(3) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        PA_4K OFFSET(12) NUMBITS(40) [],
        OUTER_CACHE OFFSET(56) NUMBITS(3) []
    ],
    /// GICv4.0.
    pub GICR_VPENDBASER [
        INNER_CACHE OFFSET(7) NUMBITS(3) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        PA_64K OFFSET(16) NUMBITS(36) [],
        OUTER_CACHE OFFSET(56) NUMBITS(3) [],
        DIRTY OFFSET(60) NUMBITS(1) [],
        PENDING_LAST OFFSET(61) NUMBITS(1) [],
        IDAI OFFSET(62) NUMBITS(1) [],
        VALID OFFSET(63) NUMBITS(1) []
    ],
    /// GICv4.1: the table of vPEs.
    pub GICR_VPROPBASER_4_1 [
        SIZE OFFSET(0) NUMBITS(7) [],
        INNER_CACHE OFFSET(7) NUMBITS(3) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        PA_4K OFFSET(12) NUMBITS(40) [],
        Z OFFSET(52) NUMBITS(1) [],
        PAGE_SIZE OFFSET(53) NUMBITS(2) [],
        INDIRECT OFFSET(55) NUMBITS(1) [],
        OUTER_CACHE OFFSET(56) NUMBITS(3) [],
        ENTRY_SIZE OFFSET(59) NUMBITS(3) [],
        VALID OFFSET(63) NUMBITS(1) []
    ],
    /// GICv4.1.
    pub GICR_VPENDBASER_4_1 [
        VPEID OFFSET(0) NUMBITS(16) [],
        VGRP1EN OFFSET(58) NUMBITS(1) [],
        VGRP0EN OFFSET(59) NUMBITS(1) [],
        DIRTY OFFSET(60) NUMBITS(1) [],
        PENDING_LAST OFFSET(61) NUMBITS(1) [],
        DOORBELL OFFSET(62) NUMBITS(1) [],
        VALID OFFSET(63) NUMBITS(1) []
    ],
    /// A first-level table entry in memory (IHI 0069, 5.2.1): not a register, but encoded like one.
    pub LEVEL1 [
        /// PA[51:12]; the bits below the page size are zero.
        PA OFFSET(12) NUMBITS(40) [],
        VALID OFFSET(63) NUMBITS(1) []
    ]
];

layout! { 32:
    GICD_CTLR { RWP [31:31] ARE [4:4] ENABLE_GRP1 [1:1] }
    GICD_TYPER { ID_BITS [23:19] LPIS [17:17] NUM_LPIS [15:11] IT_LINES [4:0] }
    GICD_TYPER2 { VIL [7:7] VID [4:0] }
    PIDR2_FIELDS { ARCH_REV [7:4] }
    GICR_CTLR { RWP [3:3] IR [2:2] ENABLE_LPIS [0:0] }
    GICR_WAKER { CHILDREN_ASLEEP [2:2] PROCESSOR_SLEEP [1:1] }
    GICR_SYNCR { BUSY [0:0] }
    GICR_VSGIPENDR { BUSY [31:31] PENDING [15:0] }
}

layout! { 64:
    GICR_TYPER {
        AFFINITY [63:32] VSGI [26:26] COMMON_LPI_AFF [25:24] PROCESSOR_NUMBER [23:8] RVPEID [7:7] LAST [4:4]
        DIRECT_LPI [3:3] DIRTY [2:2] VLPIS [1:1] PLPIS [0:0]
    }
    GICR_PROPBASER { OUTER_CACHE [58:56] PA_4K [51:12] SHAREABILITY [11:10] INNER_CACHE [9:7] ID_BITS [4:0] }
    GICR_PENDBASER { PTZ [62:62] OUTER_CACHE [58:56] PA_64K [51:16] SHAREABILITY [11:10] INNER_CACHE [9:7] }
    GICR_INVLPIR { V [63:63] VPEID [47:32] INTID [31:0] }
    GICR_VPROPBASER { OUTER_CACHE [58:56] PA_4K [51:12] SHAREABILITY [11:10] INNER_CACHE [9:7] ID_BITS [4:0] }
    GICR_VPENDBASER {
        VALID [63:63] IDAI [62:62] PENDING_LAST [61:61] DIRTY [60:60] OUTER_CACHE [58:56] PA_64K [51:16]
        SHAREABILITY [11:10] INNER_CACHE [9:7]
    }
    GICR_VPROPBASER_4_1 {
        VALID [63:63] ENTRY_SIZE [61:59] OUTER_CACHE [58:56] INDIRECT [55:55] PAGE_SIZE [54:53] Z [52:52] PA_4K [51:12]
        SHAREABILITY [11:10] INNER_CACHE [9:7] SIZE [6:0]
    }
    GICR_VPENDBASER_4_1 {
        VALID [63:63] DOORBELL [62:62] PENDING_LAST [61:61] DIRTY [60:60] VGRP0EN [59:59] VGRP1EN [58:58] VPEID [15:0]
    }
    LEVEL1 { VALID [63:63] PA [51:12] }
}

/// Bytes of a block of registers with one bit, a byte, two bits, or eight bytes for each of 1024 INTIDs.
const BITS: u64 = 1024 / 8;
const BYTES: u64 = 1024;
const PAIRS: u64 = 1024 / 4;
const ROUTES: u64 = 1024 * 8;

const _: () = assert!(fits(
    &[
        (gicd::CTLR, 4),
        (gicd::TYPER, 4),
        (gicd::IIDR, 4),
        (gicd::TYPER2, 4),
        (gicd::IGROUPR, BITS),
        (gicd::ISENABLER, BITS),
        (gicd::ICENABLER, BITS),
        (gicd::ISPENDR, BITS),
        (gicd::ICPENDR, BITS),
        (gicd::ISACTIVER, BITS),
        (gicd::ICACTIVER, BITS),
        (gicd::IPRIORITYR, BYTES),
        (gicd::ICFGR, PAIRS),
        (gicd::IROUTER, ROUTES),
        (PIDR2, 4),
    ],
    gicr::FRAME
));

const _: () = assert!(fits(
    &[
        (gicr::CTLR, 4),
        (gicr::TYPER, 8),
        (gicr::WAKER, 4),
        (gicr::CLRLPIR, 8),
        (gicr::PROPBASER, 8),
        (gicr::PENDBASER, 8),
        (gicr::INVLPIR, 8),
        (gicr::INVALLR, 8),
        (gicr::SYNCR, 4),
        (PIDR2, 4),
        (gicr::SGI_BASE, gicr::FRAME),
        (gicr::VPROPBASER, 8),
        (gicr::VPENDBASER, 8),
        (gicr::VSGIR, 4),
        (gicr::VSGIPENDR, 4),
    ],
    4 * gicr::FRAME
));

/// The configuration byte of an LPI or a vLPI (IHI 0069, 5.1.1).
pub mod config {
    const ENABLE: u8 = 1 << 0;
    const RES1: u8 = 1 << 1;
    const PRIORITY: u8 = 0xfc;

    /// Disabled, at priority 0xa0: the initial value of every LPI.
    pub const DEFAULT: u8 = 0xa0 | RES1;

    /// The byte for a priority (bits [1:0] are ignored) and an enable bit.
    #[must_use]
    pub const fn byte(priority: u8, enabled: bool) -> u8 {
        (priority & PRIORITY) | RES1 | if enabled { ENABLE } else { 0 }
    }

    /// A guest's byte with the RES1 bit set.
    #[must_use]
    pub const fn sanitised(byte: u8) -> u8 {
        byte | RES1
    }
}

/// Memory attributes of tables. PROPBASER, PENDBASER, VPROPBASER, VPENDBASER, BASER and CBASER encode them in the same
/// way (IHI 0069, 12.11).
pub mod attributes {
    /// Inner-shareable.
    pub const INNER_SHAREABLE: u64 = 1;
    /// Normal, non-cacheable.
    pub const NON_CACHEABLE: u64 = 1;
    /// Read-allocate, write-back.
    pub const READ_ALLOCATE: u64 = 3;
    /// Read- and write-allocate, write-back.
    pub const WRITE_ALLOCATE: u64 = 7;
    /// OuterCache: the same as InnerCache.
    pub const SAME_AS_INNER: u64 = 0;
}

/// A 64 KiB-aligned address as the PA field of a register encodes it.
#[must_use]
pub const fn pa_64k(pa: Pa) -> u64 {
    pa.0 >> 16
}

/// A 4 KiB-aligned address as the PA field of a register encodes it.
#[must_use]
pub const fn pa_4k(pa: Pa) -> u64 {
    pa.0 >> 12
}

/// The address that [`pa_64k`] has encoded.
#[must_use]
pub const fn from_pa_64k(field: u64) -> Pa {
    Pa(field << 16)
}

/// The address that [`pa_4k`] has encoded.
#[must_use]
pub const fn from_pa_4k(field: u64) -> Pa {
    Pa(field << 12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tock_registers::LocalRegisterCopy;

    #[test]
    fn a_configuration_byte_keeps_bit_1_set_and_priority_above_it() {
        assert_eq!(config::DEFAULT, 0xa2);
        assert_eq!(config::byte(0xa0, true), 0xa3);
        assert_eq!(config::byte(0xff, false), 0xfe);
        assert_eq!(config::sanitised(0x41), 0x43);
    }

    #[test]
    fn gicr_typer_of_qemus_second_cpu_decodes_as_documented() {
        let t = LocalRegisterCopy::<u64, GICR_TYPER::Register>::new(0x0000_0001_0100_0113);
        assert!(t.is_set(GICR_TYPER::PLPIS) && t.is_set(GICR_TYPER::VLPIS) && t.is_set(GICR_TYPER::LAST));
        assert!(!t.is_set(GICR_TYPER::DIRTY) && !t.is_set(GICR_TYPER::DIRECT_LPI) && !t.is_set(GICR_TYPER::RVPEID));
        assert_eq!(t.read(GICR_TYPER::PROCESSOR_NUMBER), 1);
        assert_eq!(t.read(GICR_TYPER::COMMON_LPI_AFF), 1);
        assert_eq!(t.read(GICR_TYPER::AFFINITY), 1);
    }

    #[test]
    fn each_field_has_the_position_that_the_manual_gives() {
        assert_eq!(GICR_VPENDBASER::VALID::SET.value, 1 << 63);
        assert_eq!(GICR_VPENDBASER::IDAI::SET.value, 1 << 62);
        assert_eq!(GICR_VPENDBASER::PENDING_LAST::SET.value, 1 << 61);
        assert_eq!(GICR_VPENDBASER::DIRTY::SET.value, 1 << 60);
        assert_eq!(GICR_VPENDBASER::PA_64K.val(pa_64k(Pa(0xf_ffff_ffff_0000))).value, 0xf_ffff_ffff_0000);
        assert_eq!(GICR_VPENDBASER_4_1::DOORBELL::SET.value, 1 << 62);
        assert_eq!(GICR_VPENDBASER_4_1::VGRP0EN::SET.value, 1 << 59);
        assert_eq!(GICR_VPENDBASER_4_1::VGRP1EN::SET.value, 1 << 58);
        assert_eq!(GICR_VPROPBASER_4_1::INDIRECT::SET.value, 1 << 55);
        assert_eq!(GICR_VPROPBASER_4_1::Z::SET.value, 1 << 52);
        assert_eq!(GICR_PENDBASER::PTZ::SET.value, 1 << 62);
        assert_eq!(GICR_PROPBASER::PA_4K.val(pa_4k(Pa(0xf_ffff_ffff_f000))).value, 0xf_ffff_ffff_f000);
        assert_eq!(GICR_INVLPIR::V::SET.value, 1 << 63);
        assert_eq!(GICR_INVLPIR::VPEID.val(0xffff).value, 0xffff << 32);
        assert_eq!(GICD_CTLR::ARE::SET.value | GICD_CTLR::ENABLE_GRP1::SET.value, 0x12);
        assert_eq!(GICR_WAKER::PROCESSOR_SLEEP::SET.value | GICR_WAKER::CHILDREN_ASLEEP::SET.value, 6);
    }

    #[test]
    fn gicd_typer_of_qemu_decodes_as_documented() {
        let t = LocalRegisterCopy::<u32, GICD_TYPER::Register>::new(0x037e_0208 & !(1 << 9));
        assert_eq!((t.read(GICD_TYPER::IT_LINES) + 1) * 32, 288);
        assert_eq!(t.read(GICD_TYPER::ID_BITS) + 1, 16);
        assert!(t.is_set(GICD_TYPER::LPIS));
        assert_eq!(t.read(GICD_TYPER::NUM_LPIS), 0);
    }
}
