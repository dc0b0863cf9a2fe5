//! The layout of the frames that a guest sees: decodes an offset and a size into a register.
//!
//! IHI 0069, 12.9 (distributor) and 12.11 (redistributor). Every offset and size is decoded. What the architecture does
//! not define, or does not allow with that size, is [`DistReg::None`] or [`RedistReg::None`]: it reads as zero and
//! writes are ignored.

use crate::arch::nospec;

/// A kind of register with one bit for each interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitReg {
    /// IGROUPR.
    Group,
    /// ISENABLER.
    SetEnable,
    /// ICENABLER.
    ClearEnable,
    /// ISPENDR.
    SetPending,
    /// ICPENDR.
    ClearPending,
    /// ISACTIVER.
    SetActive,
    /// ICACTIVER.
    ClearActive,
}

/// The part of a 64-bit register that an access affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Bits 31 to 0.
    Low,
    /// Bits 63 to 32.
    High,
}

impl Part {
    /// The result of a read of this part of `value`.
    pub const fn read(self, value: u64) -> u64 {
        match self {
            Part::Whole => value,
            Part::Low => value & 0xffff_ffff,
            Part::High => value >> 32,
        }
    }

    /// The value of a register that was `old` after `value` is written to this part.
    pub const fn write(self, old: u64, value: u64) -> u64 {
        match self {
            Part::Whole => value,
            Part::Low => old & !0xffff_ffff | value & 0xffff_ffff,
            Part::High => old & 0xffff_ffff | value << 32,
        }
    }

    /// The part of a 64-bit register that an access of `size` bytes at `offset` affects; `None` if it is not allowed.
    const fn of(offset: u64, size: u8) -> Option<Part> {
        match (offset & 7, size) {
            (0, 8) => Some(Part::Whole),
            (0, 4) => Some(Part::Low),
            (4, 4) => Some(Part::High),
            _ => None,
        }
    }
}

/// A register of the distributor or of a redistributor's SGI frame that configures interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqReg {
    /// One bit for each of 32 interrupts from this INTID.
    Bits(BitReg, u32),
    /// IPRIORITYR: `count` bytes from this INTID.
    Priority(u32, u32),
    /// ICFGR: two bits for each of 16 interrupts from this INTID.
    Config(u32),
}

/// A register in the distributor's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistReg {
    /// GICD_CTLR.
    Ctlr,
    /// GICD_TYPER.
    Typer,
    /// GICD_IIDR.
    Iidr,
    /// GICD_TYPER2.
    Typer2,
    /// GICD_PIDR2.
    Pidr2,
    /// A register of SPIs.
    Irq(IrqReg),
    /// GICD_IROUTER of this INTID.
    Route(u32, Part),
    /// No register: RAZ/WI.
    None,
}

/// A register in a redistributor's two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedistReg {
    /// GICR_CTLR.
    Ctlr,
    /// GICR_IIDR.
    Iidr,
    /// GICR_TYPER.
    Typer(Part),
    /// GICR_WAKER.
    Waker,
    /// GICR_PROPBASER.
    Propbaser(Part),
    /// GICR_PENDBASER.
    Pendbaser(Part),
    /// GICR_PIDR2.
    Pidr2,
    /// A register of SGIs and PPIs.
    Irq(IrqReg),
    /// No register: RAZ/WI.
    None,
}

/// Size of a frame, in bytes.
pub const FRAME: u64 = 0x1_0000;
/// Size of one redistributor of a guest, in bytes: its RD frame and its SGI frame.
pub const VGICR_SIZE: u64 = 2 * FRAME;
/// GICD_CTLR.EnableGrp0 with DS = 1.
pub(super) const ENABLE_GROUP0: u32 = 1 << 0;
/// GICD_CTLR.EnableGrp1 with DS = 1.
pub(super) const ENABLE_GROUP1: u32 = 1 << 1;
/// GICD_CTLR.nASSGIreq: SGIs have no active state.
pub(super) const NASSGI_REQ: u32 = 1 << 8;
/// GICR_PENDBASER.PTZ: the guest's table contains zeros only. Reads as zero.
pub(super) const PENDBASER_PTZ: u64 = 1 << 62;
/// First INTID above the SPIs.
pub const SPI_END: u32 = 1020;
/// INTID of the first SPI.
pub const SPI_FIRST: u32 = 32;

/// Decodes the registers that have the same offsets in the distributor's frame and in an SGI frame.
fn decode_irq(offset: u64, size: u8) -> Option<IrqReg> {
    let at = u32::try_from(offset).ok()?;
    let word = at & 0x7f;
    if (0x400..0x800).contains(&at) {
        let count = match size {
            1 => 1,
            4 if at & 3 == 0 => 4,
            _ => return None,
        };
        return Some(IrqReg::Priority(at & 0x3ff, count));
    }
    if size != 4 || at & 3 != 0 {
        return None;
    }
    // 4 bytes hold 32 interrupts in a bit register, 16 in a configuration register.
    let first = word.wrapping_mul(8);
    let bits = match at & !0x7f {
        0x080 => BitReg::Group,
        0x100 => BitReg::SetEnable,
        0x180 => BitReg::ClearEnable,
        0x200 => BitReg::SetPending,
        0x280 => BitReg::ClearPending,
        0x300 => BitReg::SetActive,
        0x380 => BitReg::ClearActive,
        0xc00 | 0xc80 => return Some(IrqReg::Config((at & 0xff).wrapping_mul(4))),
        _ => return None,
    };
    Some(IrqReg::Bits(bits, first))
}

/// Decodes an access to the distributor's frame.
pub fn decode_dist(offset: u64, size: u8) -> DistReg {
    match (offset, size) {
        (0x0000, 4) => return DistReg::Ctlr,
        (0x0004, 4) => return DistReg::Typer,
        (0x0008, 4) => return DistReg::Iidr,
        (0x000c, 4) => return DistReg::Typer2,
        (0xffe8, 4) => return DistReg::Pidr2,
        _ => {}
    }
    if (0x6100..0x7fe0).contains(&offset) {
        let intid = ((offset & 0x1fff) >> 3) as u32;
        return match Part::of(offset, size) {
            Some(part) => DistReg::Route(intid, part),
            None => DistReg::None,
        };
    }
    match decode_irq(offset, size) {
        Some(register) => DistReg::Irq(register),
        None => DistReg::None,
    }
}

/// Decodes an access to a redistributor: its RD frame and, from [`FRAME`] on, its SGI frame.
pub fn decode_redist(offset: u64, size: u8) -> RedistReg {
    match (offset, size) {
        (0x0000, 4) => return RedistReg::Ctlr,
        (0x0004, 4) => return RedistReg::Iidr,
        (0x0014, 4) => return RedistReg::Waker,
        (0xffe8, 4) => return RedistReg::Pidr2,
        _ => {}
    }
    if let Some(part) = Part::of(offset, size) {
        match offset & !7 {
            0x08 => return RedistReg::Typer(part),
            0x70 => return RedistReg::Propbaser(part),
            0x78 => return RedistReg::Pendbaser(part),
            _ => {}
        }
    }
    let Some(sgi) = offset.checked_sub(FRAME) else { return RedistReg::None };
    match decode_irq(sgi, size) {
        Some(IrqReg::Bits(register, 0)) => RedistReg::Irq(IrqReg::Bits(register, 0)),
        Some(IrqReg::Priority(first, count)) => {
            private(first).map_or(RedistReg::None, |first| RedistReg::Irq(IrqReg::Priority(first, count)))
        }
        Some(IrqReg::Config(first)) => {
            private(first).map_or(RedistReg::None, |first| RedistReg::Irq(IrqReg::Config(first)))
        }
        _ => RedistReg::None,
    }
}

/// An INTID that a guest chose, if it is an SGI or PPI.
pub fn private(intid: u32) -> Option<u32> {
    nospec::below(intid.into(), SPI_FIRST.into()).map(|intid| intid as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributor_registers_have_the_offsets_of_the_manual() {
        assert_eq!(decode_dist(0x0, 4), DistReg::Ctlr);
        assert_eq!(decode_dist(0xc, 4), DistReg::Typer2);
        assert_eq!(decode_dist(0x84, 4), DistReg::Irq(IrqReg::Bits(BitReg::Group, 32)));
        assert_eq!(decode_dist(0x104, 4), DistReg::Irq(IrqReg::Bits(BitReg::SetEnable, 32)));
        assert_eq!(decode_dist(0x1fc, 4), DistReg::Irq(IrqReg::Bits(BitReg::ClearEnable, 992)));
        assert_eq!(decode_dist(0x208, 4), DistReg::Irq(IrqReg::Bits(BitReg::SetPending, 64)));
        assert_eq!(decode_dist(0x2fc, 4), DistReg::Irq(IrqReg::Bits(BitReg::ClearPending, 992)));
        assert_eq!(decode_dist(0x304, 4), DistReg::Irq(IrqReg::Bits(BitReg::SetActive, 32)));
        assert_eq!(decode_dist(0x388, 4), DistReg::Irq(IrqReg::Bits(BitReg::ClearActive, 64)));
        assert_eq!(decode_dist(0x421, 1), DistReg::Irq(IrqReg::Priority(33, 1)));
        assert_eq!(decode_dist(0x7fb, 1), DistReg::Irq(IrqReg::Priority(1019, 1)));
        assert_eq!(decode_dist(0xc08, 4), DistReg::Irq(IrqReg::Config(32)));
        assert_eq!(decode_dist(0xcfc, 4), DistReg::Irq(IrqReg::Config(1008)));
        assert_eq!(decode_dist(0x6100, 8), DistReg::Route(32, Part::Whole));
        assert_eq!(decode_dist(0x610c, 4), DistReg::Route(33, Part::High));
        assert_eq!(decode_dist(0x7fd8, 8), DistReg::Route(1019, Part::Whole));
        assert_eq!(decode_dist(0xffe8, 4), DistReg::Pidr2);
    }

    #[test]
    fn redistributor_registers_have_the_offsets_of_the_manual() {
        assert_eq!(decode_redist(0x8, 8), RedistReg::Typer(Part::Whole));
        assert_eq!(decode_redist(0xc, 4), RedistReg::Typer(Part::High));
        assert_eq!(decode_redist(0x14, 4), RedistReg::Waker);
        assert_eq!(decode_redist(0x70, 8), RedistReg::Propbaser(Part::Whole));
        assert_eq!(decode_redist(0x7c, 4), RedistReg::Pendbaser(Part::High));
        assert_eq!(decode_redist(0x1_0100, 4), RedistReg::Irq(IrqReg::Bits(BitReg::SetEnable, 0)));
        assert_eq!(decode_redist(0x1_041f, 1), RedistReg::Irq(IrqReg::Priority(31, 1)));
        assert_eq!(decode_redist(0x1_0c04, 4), RedistReg::Irq(IrqReg::Config(16)));
    }

    #[test]
    fn a_redistributor_has_registers_for_32_interrupts() {
        assert_eq!(decode_redist(0x1_0104, 4), RedistReg::None);
        assert_eq!(decode_redist(0x1_0420, 1), RedistReg::None);
        assert_eq!(decode_redist(0x1_0c08, 4), RedistReg::None);
    }

    #[test]
    fn accesses_of_wrong_size_or_alignment_are_no_register() {
        for size in [1, 2, 8] {
            assert_eq!(decode_dist(0x104, size), DistReg::None);
            assert_eq!(decode_dist(0x0, size), DistReg::None);
        }
        assert_eq!(decode_dist(0x400, 2), DistReg::None);
        assert_eq!(decode_dist(0x402, 4), DistReg::None);
        assert_eq!(decode_dist(0x6104, 8), DistReg::None);
        assert_eq!(decode_redist(0x70, 1), RedistReg::None);
    }

    #[test]
    fn registers_of_features_that_are_not_advertised_do_not_exist() {
        // SETSPI_NSR, SGIR, ITARGETSR of PPIs as words, IGRPMODR, IROUTER below 32.
        for offset in [0x40, 0xf00, 0x800, 0xd00, 0x6000, 0x60f8] {
            assert_eq!(decode_dist(offset, 4), DistReg::None, "{offset:#x}");
        }
        // SETLPIR, CLRLPIR, INVLPIR, INVALLR, SYNCR, and the VLPI frame of GICv4.
        for offset in [0x40, 0x48, 0xa0, 0xb0, 0xc0, 0x2_0070, 0x2_0078] {
            assert_eq!(decode_redist(offset, 4), RedistReg::None, "{offset:#x}");
            assert_eq!(decode_redist(offset, 8), RedistReg::None, "{offset:#x}");
        }
    }

    #[test]
    fn each_half_of_a_register_can_be_read_and_written() {
        let value = 0x1122_3344_5566_7788;
        assert_eq!((Part::Low.read(value), Part::High.read(value)), (0x5566_7788, 0x1122_3344));
        assert_eq!(Part::Low.write(value, 0xaaaa_aaaa), 0x1122_3344_aaaa_aaaa);
        assert_eq!(Part::High.write(value, 0xaaaa_aaaa), 0xaaaa_aaaa_5566_7788);
    }
}
