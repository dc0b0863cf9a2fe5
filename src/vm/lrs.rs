//! The virtual CPU interface's registers, between the image that `vgic` computes and the CPU.

use crate::arch::{barrier, ich, sysreg};
use crate::vgic::LrImage;

/// ICH_HCR_EL2.LRENPIE: EOIcount is in use.
const LRENPIE: u64 = 1 << 2;

/// Puts the image into the CPU. An ERET follows, which synchronises it.
pub fn load(image: &LrImage) {
    for (index, &value) in image.lr.iter().enumerate().take(usize::from(image.write)) {
        ich::write_lr(index, value);
    }
    sysreg::ICH_HCR_EL2.set(image.hcr);
}

/// Takes it back, and makes the maintenance interrupt, which is level-sensitive, drop.
pub fn store(image: &mut LrImage) {
    for (index, value) in image.lr.iter_mut().enumerate().take(usize::from(image.used)) {
        *value = ich::read_lr(index);
    }
    if image.hcr & LRENPIE != 0 {
        image.hcr = sysreg::ICH_HCR_EL2.get();
    }
    sysreg::ICH_HCR_EL2.set(0);
    barrier::isb();
}
