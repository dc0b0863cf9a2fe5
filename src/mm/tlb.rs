//! Stage 2's TLB maintenance, on the running image.

use super::frames;
use super::stage2::Tlb;
use crate::arch::tlb;
use crate::ids::{Ipa, Pa, VmId};

/// The TLBs of all CPUs.
#[derive(Debug)]
pub struct Tlbs {
    empty: Pa,
}

/// The largest root: sixteen tables side by side.
const ROOT: usize = 16 * frames::PAGE;

impl Tlbs {
    /// `None` when there is no memory for an empty root. One is enough for all domains.
    #[must_use]
    pub fn new() -> Option<Tlbs> {
        frames::alloc(ROOT, ROOT).map(|empty| Tlbs { empty })
    }
}

impl Tlbs {
    /// VTTBR_EL2 for nobody: tables that map nothing, and VMID 0.
    #[must_use]
    pub fn nobody(&self) -> u64 {
        self.empty.0
    }
}

impl Tlb for Tlbs {
    fn invalidate_ipa(&self, vmid: VmId, ipa: Ipa) {
        tlb::forget_ipa(vmid, ipa, self.empty);
    }

    fn invalidate_all(&self, vmid: VmId) {
        tlb::forget_all(vmid, self.empty);
    }
}
