//! Copies list registers between the image that `vgic` computes and the virtual CPU interface.

use crate::arch::sysreg::{self, Readable, Writeable};
use crate::arch::{barrier, ich};
use crate::vgic::LrImage;

/// ICH_HCR_EL2.LRENPIE: EOIcount is in use.
const LRENPIE: u64 = 1 << 2;

/// ICH_HCR_EL2[7:1], UIE to VGrp1DIE: the bits that can raise the maintenance interrupt, apart from list registers.
const MAINTENANCE_SOURCES: u64 = 0xfe;

/// Writes the image to the CPU. The ERET that follows synchronises the writes.
pub fn load(image: &LrImage) {
    for (index, &value) in image.lr.iter().enumerate().take(usize::from(image.write)) {
        ich::write_lr(index, value);
    }
    sysreg::ICH_HCR_EL2.set(image.hcr);
}

/// Reads the image back after the guest has exited.
///
/// ICH_HCR_EL2 is cleared only if the maintenance interrupt could have been raised: the interrupt is level-sensitive
/// and has to be deasserted. In the common case no list register is in use, and the interface stays on, because a
/// virtual interrupt does not affect EL2.
pub fn store(image: &mut LrImage) {
    for (index, value) in image.lr.iter_mut().enumerate().take(usize::from(image.used)) {
        *value = ich::read_lr(index);
    }
    if image.hcr & LRENPIE != 0 {
        image.hcr = sysreg::ICH_HCR_EL2.get();
    }
    if image.used != 0 || image.hcr & MAINTENANCE_SOURCES != 0 {
        sysreg::ICH_HCR_EL2.set(0);
        barrier::isb();
    }
}

/// Clears the list registers that the vCPU has used. The vCPU leaves this CPU, and the next one expects them to be
/// zero.
pub fn clear_used(image: &mut LrImage) {
    ich::clear_lrs(image.give_up());
}

/// Whether all list registers of this CPU are zero.
pub fn are_clear() -> bool {
    (0..ich::count()).all(|index| ich::read_lr(index) == 0)
}
