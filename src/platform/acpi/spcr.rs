//! SPCR: the console (Microsoft, Serial Port Console Redirection Table, revision 4; interface types in the Debug
//! Port Table 2).
//!
//! The table gives one register's width and the width it is accessed with. Linux and firmware agree that registers
//! are as far apart as an access is wide; where the access is not given, the register's own width says it.

use super::{AcpiError, Fields};
use crate::ids::{Intid, Pa};
use crate::platform::{Uart, UartKind};
use crate::util::range::Range;

/// Offsets in the table.
const INTERFACE: usize = 36;
const SPACE: usize = 40;
const BIT_WIDTH: usize = 41;
const ACCESS: usize = 43;
const ADDRESS: usize = 44;
const INTERRUPT_TYPE: usize = 52;
const GSIV: usize = 54;

/// Interrupt type: a GIC's.
const BY_GIC: u8 = 1 << 3;
/// A PL011's registers.
const PL011_SIZE: u64 = 0x1000;
/// A 16550 has eight.
const NS16550_REGISTERS: u64 = 8;

/// The console; `None` where there is none, or none that is known here.
pub(super) fn read(spcr: Fields<'_>) -> Result<Option<Uart>, AcpiError> {
    let base = spcr.u64(ADDRESS)?;
    if base == 0 || spcr.u8(SPACE)? != 0 {
        return Ok(None);
    }
    let (kind, size) = match spcr.u8(INTERFACE)? {
        // PL011, and the two SBSA subsets of it.
        0x03 | 0x0d | 0x0e => (UartKind::Pl011, PL011_SIZE),
        // 16550s: full, subset, and the one whose parameters are in the address structure.
        0x00 | 0x01 | 0x12 => {
            let width = match (spcr.u8(ACCESS)?, spcr.u8(BIT_WIDTH)?) {
                (1, _) | (0, 0..=8) => 1u32,
                (2, _) | (0, 9..=16) => 2,
                (3, _) | (0, 17..=32) => 4,
                _ => return Ok(None),
            };
            let reg_shift = width.trailing_zeros();
            (UartKind::Ns16550 { reg_shift, io_width: width }, NS16550_REGISTERS << reg_shift)
        }
        _ => return Ok(None),
    };
    let gsiv = spcr.u32(GSIV)?;
    let irq = (spcr.u8(INTERRUPT_TYPE)? & BY_GIC != 0 && gsiv != 0).then_some(Intid(gsiv));
    Ok(Some(Uart { kind, regs: Range::new(Pa(base), size), irq }))
}
