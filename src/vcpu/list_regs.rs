//! The virtual CPU interface's registers, between the image that `vgic` computes and the CPU.

use crate::arch::sysreg::{self, Readable, Writeable};
use crate::arch::{barrier, ich};
use crate::vgic::LrImage;

/// ICH_HCR_EL2.LRENPIE: EOIcount is in use.
const LRENPIE: u64 = 1 << 2;

/// ICH_HCR_EL2[7:1], UIE to VGrp1DIE: what may raise the maintenance interrupt, besides list registers.
const CAUSES: u64 = 0xfe;

/// Puts the image into the CPU. An ERET follows, which synchronises it.
pub fn load(image: &LrImage) {
    for (index, &value) in image.lr.iter().enumerate().take(usize::from(image.write)) {
        ich::write_lr(index, value);
    }
    sysreg::ICH_HCR_EL2.set(image.hcr);
}

/// Takes it back. The maintenance interrupt, which is level-sensitive, drops if it could have been raised at all; mostly
/// nothing is listed, and then the interface stays as it is: a virtual interrupt does nothing to EL2.
pub fn store(image: &mut LrImage) {
    for (index, value) in image.lr.iter_mut().enumerate().take(usize::from(image.used)) {
        *value = ich::read_lr(index);
    }
    if image.hcr & LRENPIE != 0 {
        image.hcr = sysreg::ICH_HCR_EL2.get();
    }
    if image.used != 0 || image.hcr & CAUSES != 0 {
        sysreg::ICH_HCR_EL2.set(0);
        barrier::isb();
    }
}

/// The vCPU leaves this CPU: its list registers hold nothing then, which is how the next one expects them.
pub fn give_up(image: &mut LrImage) {
    ich::clear_lrs(image.give_up());
}

/// Whether this CPU's list registers hold nothing.
pub fn hold_nothing() -> bool {
    (0..ich::count()).all(|index| ich::read_lr(index) == 0)
}
