//! TLB maintenance for stage 2, on hardware.

use super::frames;
use super::stage2::Tlb;
use crate::arch::tlb;
use crate::ids::{Ipa, Pa, VmId};
use crate::util::PAGE;

/// The TLBs of all CPUs, and an empty root table.
#[derive(Debug)]
pub struct Tlbs {
    empty: Pa,
}

/// The size of the largest root: sixteen concatenated tables.
const ROOT: usize = 16 * PAGE as usize;

impl Tlbs {
    /// Allocates the empty root, which serves all domains. Returns `None` if there is no memory for it.
    #[must_use]
    pub fn new() -> Option<Tlbs> {
        frames::alloc(ROOT, ROOT).map(|empty| Tlbs { empty })
    }

    /// Returns the VTTBR_EL2 of a CPU without a guest: tables that map nothing, and VMID 0.
    #[must_use]
    pub fn empty_vttbr(&self) -> u64 {
        self.empty.0
    }
}

impl Tlb for Tlbs {
    fn invalidate_ipa(&self, vmid: VmId, ipa: Ipa) {
        tlb::invalidate_ipa(vmid, ipa, self.empty);
    }

    fn invalidate_all(&self, vmid: VmId) {
        tlb::invalidate_vmid(vmid, self.empty);
    }
}
