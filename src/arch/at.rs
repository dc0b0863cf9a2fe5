//! Address translation through the stage 1 of the guest that this CPU holds (DDI 0487, AT instructions and PAR_EL1).

use super::asm::asm;
use super::barrier;
use super::sysreg::{PAR_EL1, Readable, SCTLR_EL1, Writeable};
use crate::ids::Ipa;

/// PAR_EL1.PA, bits 51:12; the crate's field ends at bit 47.
const PAR_PA: u64 = 0x000f_ffff_ffff_f000;

/// Translates `va` by the guest's stage 1, as for a read at EL0 or EL1; `None` if there is no translation.
///
/// The guest's PAR_EL1 is restored, because the guest may be between an AT instruction and reading its result. The
/// guest may have changed its mappings since it executed the instruction at `va`, so the caller must not trust what it
/// finds there.
#[must_use]
pub fn fetch_address(va: u64, el0: bool) -> Option<Ipa> {
    if !SCTLR_EL1.is_set(SCTLR_EL1::M) {
        return Some(Ipa(va));
    }
    let saved = PAR_EL1.get();
    if el0 {
        // SAFETY: AT only writes PAR_EL1, which is restored below.
        unsafe { asm!("at s1e0r, {v}", v = in(reg) va, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: as above.
        unsafe { asm!("at s1e1r, {v}", v = in(reg) va, options(nostack, preserves_flags)) };
    }
    barrier::isb();
    let par = PAR_EL1.get();
    PAR_EL1.set(saved);
    (!PAR_EL1::F.is_set(par)).then_some(Ipa(par & PAR_PA | va & 0xfff))
}
