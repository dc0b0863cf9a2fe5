//! The registers of an ITS (IHI 0069, 12.18 and 12.19).

use crate::ids::Pa;
use crate::mmio::layout::{fits, layout};
use tock_registers::register_bitfields;

/// Offsets from the control frame.
pub mod gits {
    pub const CTLR: u64 = 0x0000;
    pub const IIDR: u64 = 0x0004;
    pub const TYPER: u64 = 0x0008;
    pub const MPIDR: u64 = 0x0018;
    pub const CBASER: u64 = 0x0080;
    pub const CWRITER: u64 = 0x0088;
    pub const CREADR: u64 = 0x0090;
    /// Bytes of a frame. Behind those of control and translation, GICv4.1 has one for virtual SGIs.
    pub const FRAME: u64 = 0x1_0000;
    pub const SGI_FRAME: u64 = 2 * FRAME;
    pub const SGIR: u64 = SGI_FRAME + 0x0020;
    /// Bytes of the frames of an ITS with GICv4.1: control, translation, and virtual SGIs (IHI 0069, 12.18).
    pub const BYTES_V41: u64 = SGI_FRAME + FRAME;

    const BASER: u64 = 0x0100;
    /// Number of GITS_BASER registers.
    pub const BASERS: u64 = 8;

    /// GITS_BASER`n`.
    #[must_use]
    pub const fn baser(n: u64) -> u64 {
        BASER + 8 * n
    }
}

register_bitfields! [u32,
    pub GITS_CTLR [
        ENABLED OFFSET(0) NUMBITS(1) [],
        IMDE OFFSET(1) NUMBITS(1) [],
        ITS_NUMBER OFFSET(4) NUMBITS(4) [],
        QUIESCENT OFFSET(31) NUMBITS(1) []
    ]
];

register_bitfields! [u64,
    pub GITS_TYPER [
        PHYSICAL OFFSET(0) NUMBITS(1) [],
        VIRTUAL OFFSET(1) NUMBITS(1) [],
        ITT_ENTRY_SIZE OFFSET(4) NUMBITS(4) [],
        ID_BITS OFFSET(8) NUMBITS(5) [],
        DEV_BITS OFFSET(13) NUMBITS(5) [],
        PTA OFFSET(19) NUMBITS(1) [],
        HCC OFFSET(24) NUMBITS(8) [],
        CID_BITS OFFSET(32) NUMBITS(4) [],
        CIL OFFSET(36) NUMBITS(1) [],
        VMOVP OFFSET(37) NUMBITS(1) [],
        VSGI OFFSET(39) NUMBITS(1) [],
        VMAPP OFFSET(40) NUMBITS(1) [],
        SVPET OFFSET(41) NUMBITS(2) []
    ],
    pub GITS_CBASER [
        SIZE OFFSET(0) NUMBITS(8) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        PA_4K OFFSET(12) NUMBITS(40) [],
        OUTER_CACHE OFFSET(53) NUMBITS(3) [],
        INNER_CACHE OFFSET(59) NUMBITS(3) [],
        VALID OFFSET(63) NUMBITS(1) []
    ],
    pub GITS_CWRITER [
        RETRY OFFSET(0) NUMBITS(1) [],
        SLOT OFFSET(5) NUMBITS(15) []
    ],
    pub GITS_CREADR [
        STALLED OFFSET(0) NUMBITS(1) [],
        SLOT OFFSET(5) NUMBITS(15) []
    ],
    pub GITS_BASER [
        SIZE OFFSET(0) NUMBITS(8) [],
        PAGE_SIZE OFFSET(8) NUMBITS(2) [
            Size4K = 0,
            Size16K = 1,
            Size64K = 2
        ],
        SHAREABILITY OFFSET(10) NUMBITS(2) [],
        /// PA[47:12]; with 64 KiB pages, its low four bits are PA[51:48].
        PA OFFSET(12) NUMBITS(36) [],
        ENTRY_SIZE OFFSET(48) NUMBITS(5) [],
        OUTER_CACHE OFFSET(53) NUMBITS(3) [],
        TYPE OFFSET(56) NUMBITS(3) [
            None = 0,
            Devices = 1,
            Vpes = 2,
            Collections = 4
        ],
        INNER_CACHE OFFSET(59) NUMBITS(3) [],
        INDIRECT OFFSET(62) NUMBITS(1) [],
        VALID OFFSET(63) NUMBITS(1) []
    ],
    /// GICv4.1.
    pub GITS_SGIR [
        VINTID OFFSET(0) NUMBITS(4) [],
        VPEID OFFSET(32) NUMBITS(16) []
    ]
];

layout! { 32:
    GITS_CTLR { QUIESCENT [31:31] ITS_NUMBER [7:4] IMDE [1:1] ENABLED [0:0] }
}

layout! { 64:
    GITS_TYPER {
        SVPET [42:41] VMAPP [40:40] VSGI [39:39] VMOVP [37:37] CIL [36:36] CID_BITS [35:32] HCC [31:24]
        PTA [19:19] DEV_BITS [17:13] ID_BITS [12:8] ITT_ENTRY_SIZE [7:4] VIRTUAL [1:1] PHYSICAL [0:0]
    }
    GITS_CBASER {
        VALID [63:63] INNER_CACHE [61:59] OUTER_CACHE [55:53] PA_4K [51:12] SHAREABILITY [11:10] SIZE [7:0]
    }
    GITS_CWRITER { SLOT [19:5] RETRY [0:0] }
    GITS_CREADR { SLOT [19:5] STALLED [0:0] }
    GITS_BASER {
        VALID [63:63] INDIRECT [62:62] INNER_CACHE [61:59] TYPE [58:56] OUTER_CACHE [55:53] ENTRY_SIZE [52:48] PA [47:12]
        SHAREABILITY [11:10] PAGE_SIZE [9:8] SIZE [7:0]
    }
    GITS_SGIR { VPEID [47:32] VINTID [3:0] }
}

const _: () = assert!(fits(
    &[
        (gits::CTLR, 4),
        (gits::IIDR, 4),
        (gits::TYPER, 8),
        (gits::MPIDR, 4),
        (gits::CBASER, 8),
        (gits::CWRITER, 8),
        (gits::CREADR, 8),
        (gits::baser(0), 8 * gits::BASERS),
        (gits::SGIR, 8),
    ],
    0x3_0000
));

/// A table's address as GITS_BASER.PA encodes it: with 64 KiB pages PA[51:48] are in the four bits that would be zero.
#[must_use]
pub const fn baser_pa(pa: Pa, page: u64) -> u64 {
    if page == 0x1_0000 { ((pa.0 & 0xffff_ffff_0000) | (pa.0 >> 48 & 0xf) << 12) >> 12 } else { pa.0 >> 12 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tock_registers::LocalRegisterCopy;

    fn typer(v: u64) -> LocalRegisterCopy<u64, GITS_TYPER::Register> {
        LocalRegisterCopy::new(v)
    }

    #[test]
    fn gits_typer_of_qemu_decodes_as_documented() {
        let t = typer(0x3f_0001_efb3);
        assert!(t.is_set(GITS_TYPER::PHYSICAL) && t.is_set(GITS_TYPER::VIRTUAL) && t.is_set(GITS_TYPER::VMOVP));
        assert!(!t.is_set(GITS_TYPER::PTA) && !t.is_set(GITS_TYPER::VMAPP) && !t.is_set(GITS_TYPER::VSGI));
        assert_eq!(t.read(GITS_TYPER::ITT_ENTRY_SIZE) + 1, 12);
        assert_eq!(t.read(GITS_TYPER::ID_BITS) + 1, 16);
        assert_eq!(t.read(GITS_TYPER::DEV_BITS) + 1, 16);
        assert_eq!(t.read(GITS_TYPER::HCC), 0);
        assert!(t.is_set(GITS_TYPER::CIL));
        assert_eq!(t.read(GITS_TYPER::CID_BITS) + 1, 16);
    }

    #[test]
    fn gits_typer_of_a_graviton3_decodes_as_documented() {
        let t = typer(0x0bf7_0002_2f33);
        assert!(t.is_set(GITS_TYPER::VMOVP) && t.is_set(GITS_TYPER::VMAPP) && t.is_set(GITS_TYPER::VSGI));
        assert_eq!(t.read(GITS_TYPER::SVPET), 1);
        assert_eq!(t.read(GITS_TYPER::ITT_ENTRY_SIZE) + 1, 4);
        assert_eq!(t.read(GITS_TYPER::ID_BITS) + 1, 16);
        assert_eq!(t.read(GITS_TYPER::DEV_BITS) + 1, 18);
        assert_eq!(t.read(GITS_TYPER::CID_BITS) + 1, 8);
        assert!(t.is_set(GITS_TYPER::CIL));
    }

    #[test]
    fn an_its_with_gicv4_1_ends_behind_its_frame_for_virtual_sgis() {
        assert_eq!((gits::SGI_FRAME, gits::SGIR, gits::BYTES_V41), (0x2_0000, 0x2_0020, 0x3_0000));
    }

    #[test]
    fn with_64k_pages_the_low_field_bits_hold_address_bits_51_to_48() {
        let pa = Pa(0x000a_1234_5678_0000);
        let field = baser_pa(pa, 0x1_0000);
        assert_eq!(field << 12, 0x1234_5678_a000);
        assert_eq!(baser_pa(Pa(0xabcd_1234_5000), 0x1000) << 12, 0xabcd_1234_5000);
        assert_eq!(baser_pa(Pa(0xabcd_1234_4000), 0x4000) << 12, 0xabcd_1234_4000);
    }

    #[test]
    fn each_field_has_the_position_that_the_manual_gives() {
        assert_eq!(GITS_CBASER::VALID::SET.value, 1 << 63);
        assert_eq!(GITS_CBASER::INNER_CACHE.val(7).value, 7 << 59);
        assert_eq!(GITS_CBASER::OUTER_CACHE.val(7).value, 7 << 53);
        assert_eq!(GITS_BASER::TYPE.val(7).value, 7 << 56);
        assert_eq!(GITS_BASER::ENTRY_SIZE.val(0x1f).value, 0x1f << 48);
        assert_eq!(GITS_BASER::PAGE_SIZE.val(3).value, 3 << 8);
        assert_eq!(GITS_BASER::INDIRECT::SET.value, 1 << 62);
        assert_eq!(GITS_CREADR::SLOT.val(1).value, 32);
        assert_eq!(GITS_CTLR::ITS_NUMBER.val(0xf).value, 0xf0);
        assert_eq!(GITS_CTLR::QUIESCENT::SET.value, 1 << 31);
        assert_eq!(GITS_SGIR::VPEID.val(0xffff).value, 0xffff << 32);
    }

    #[test]
    fn gits_baser_of_qemus_vpe_table_decodes_as_documented() {
        let b = LocalRegisterCopy::<u64, GITS_BASER::Register>::new(0x0207_0000_0000_0200);
        assert_eq!(b.read(GITS_BASER::TYPE), GITS_BASER::TYPE::Vpes.value >> 56);
        assert_eq!(b.read(GITS_BASER::ENTRY_SIZE) + 1, 8);
        assert_eq!(b.read(GITS_BASER::PAGE_SIZE), 2);
    }
}
