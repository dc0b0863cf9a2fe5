//! SPCR: the console (Microsoft, Serial Port Console Redirection Table, revision 4; interface types in the Debug
//! Port Table 2).
//!
//! The table has the width of a register and the width of an access. As in Linux, the distance between two registers is
//! the access width, or the register width if the access width is not given.

use super::{AcpiError, Fields};
use crate::ids::{Intid, Pa};
use crate::platform::{Uart, UartKind};
use crate::util::range::Range;

/// Offsets of fields in the table.
const INTERFACE: usize = 36;
const SPACE: usize = 40;
const BIT_WIDTH: usize = 41;
const ACCESS: usize = 43;
const ADDRESS: usize = 44;
const INTERRUPT_TYPE: usize = 52;
const GSIV: usize = 54;

/// Interrupt type: a GIC interrupt.
const BY_GIC: u8 = 1 << 3;
/// The size of a PL011's registers in bytes.
const PL011_SIZE: u64 = 0x1000;
/// The number of registers of a 16550.
const NS16550_REGISTERS: u64 = 8;

/// Reads the console; `None` if there is none, or none of a supported kind.
pub(super) fn read(spcr: Fields<'_>) -> Result<Option<Uart>, AcpiError> {
    let base = spcr.u64(ADDRESS)?;
    if base == 0 || spcr.u8(SPACE)? != 0 {
        return Ok(None);
    }
    let (kind, size) = match spcr.u8(INTERFACE)? {
        // The PL011 and its two SBSA subsets.
        0x03 | 0x0d | 0x0e => (UartKind::Pl011, PL011_SIZE),
        // A 16550: full, subset, and the one with its parameters in the address structure.
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
