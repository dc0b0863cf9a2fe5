//! Injection of synchronous exceptions: the register values that the CPU would have set on taking the exception to EL1.
//!
//! Arm ARM (DDI 0487), D1.3 "Exceptions"; for PSTATE, the pseudocode of AArch64.TakeException().

use crate::arch::esr::{DataAbort, Esr, Fault, InstrAbort};

const M: u64 = 0x1f;
const AARCH32: u64 = 1 << 4;
const EL1T: u64 = 0x4;
const EL1H: u64 = 0x5;
const DAIF: u64 = 0xf << 6;
const SSBS: u64 = 1 << 12;
const PAN: u64 = 1 << 22;
const DIT: u64 = 1 << 24;
const DIT_32: u64 = 1 << 21;
const NZCV: u64 = 0xf << 28;

const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;

const IL: u64 = 1 << 25;
const EXTERNAL: u64 = 0x10;
const EXTERNAL_ON_WALK: u64 = 0x14;
const ALIGNMENT: u64 = 0x21;

/// The state of a guest at its exit, and the registers that control how its EL1 takes exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// ELR_EL2: the address of the instruction that trapped or aborted.
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// VBAR_EL1.
    pub vbar_el1: u64,
    /// SCTLR_EL1.
    pub sctlr_el1: u64,
}

/// The guest's state at the first instruction of its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Value for ELR_EL2.
    pub pc: u64,
    /// Value for SPSR_EL2.
    pub pstate: u64,
    /// Value for ELR_EL1.
    pub elr_el1: u64,
    /// Value for SPSR_EL1.
    pub spsr_el1: u64,
    /// Value for ESR_EL1.
    pub esr_el1: u64,
    /// Value for FAR_EL1, or `None` if it keeps its value.
    pub far_el1: Option<u64>,
}

impl Entry {
    /// Whether this exception comes from its own handler, so that EL1 would take it for ever. That is so if EL1's
    /// current ELR_EL1 and SPSR_EL1 already say that it handles an exception from the same instruction, with all
    /// exceptions masked.
    ///
    /// Code at EL0 cannot cause this, and neither can an EL1 that has interrupts unmasked.
    #[must_use]
    pub fn recurs(&self, elr_el1: u64, spsr_el1: u64) -> bool {
        let masked = !from_el0(self.spsr_el1) && self.spsr_el1 & DAIF == DAIF;
        masked && (elr_el1, spsr_el1) == (self.elr_el1, self.spsr_el1)
    }
}

const fn from_el0(pstate: u64) -> bool {
    pstate & AARCH32 != 0 || pstate & 0xc == 0
}

/// Takes an exception to EL1 at `offset` in its quarter of the vector table.
fn enter(at: &At, offset: u64, esr_el1: u64, far_el1: Option<u64>) -> Entry {
    let old = at.pstate;
    let vector = if old & AARCH32 != 0 {
        0x600
    } else if from_el0(old) {
        0x400
    } else if old & M == EL1T {
        0x000
    } else {
        0x200
    };
    // The flags, DIT and PAN are kept, DAIF is set, SCTLR_EL1 controls SSBS and can set PAN, and SS, IL, UAO, TCO and
    // BTYPE are cleared.
    let aarch32 = old & AARCH32 != 0;
    let mut new = EL1H | DAIF | old & (NZCV | PAN);
    if old & (if aarch32 { DIT_32 } else { DIT }) != 0 {
        new |= DIT;
    }
    if at.sctlr_el1 & SCTLR_SPAN == 0 {
        new |= PAN;
    }
    if at.sctlr_el1 & SCTLR_DSSBS != 0 {
        new |= SSBS;
    }
    Entry {
        // VBAR_EL1[10:0] are RES0, so OR is addition.
        pc: (at.vbar_el1 & !0x7ff) | vector | offset,
        pstate: new,
        elr_el1: at.pc,
        spsr_el1: old,
        esr_el1,
        far_el1,
    }
}

/// Offset of the synchronous exception's vector.
const SYNC: u64 = 0x000;

/// Returns the exception for an UNDEFINED instruction. `esr` is the trap's syndrome, which has the instruction's
/// length.
#[must_use]
pub fn undef(at: &At, esr: Esr) -> Entry {
    enter(at, SYNC, esr.0 & IL, None)
}

/// Returns a synchronous external abort for a load or store to an address without memory or device, or with a device
/// that does not support the access. An unaligned access to what stage 2 alone maps as Device is an alignment fault, as
/// if the guest's own mapping were. `far` is FAR_EL2.
#[must_use]
pub fn data_abort(at: &At, far: u64, abort: &DataAbort) -> Entry {
    const FNV: u64 = 1 << 10;
    const CM: u64 = 1 << 8;
    const S1PTW: u64 = 1 << 7;
    const WNR: u64 = 1 << 6;
    let class = if from_el0(at.pstate) { 0x24u64 } else { 0x25 };
    let mut iss = status(abort.s1ptw, abort.fault);
    for (flag, bit) in [(abort.fnv, FNV), (abort.cm, CM), (abort.wnr, WNR)] {
        if flag {
            iss |= bit;
        }
    }
    // S1PTW is for stage 2 only. The guest sees a fault of its own stage 1 walk.
    iss &= !S1PTW;
    enter(at, SYNC, class << 26 | IL | iss, Some(far))
}

/// Returns a synchronous external abort for an instruction fetch from an address without memory. `far` is FAR_EL2.
#[must_use]
pub fn instr_abort(at: &At, far: u64, abort: &InstrAbort) -> Entry {
    let class = if from_el0(at.pstate) { 0x20u64 } else { 0x21 };
    let fnv = if abort.fnv { 1 << 10 } else { 0 };
    enter(at, SYNC, class << 26 | IL | fnv | status(abort.s1ptw, abort.fault), Some(far))
}

/// Returns the fault status code of an external abort, on a stage 1 walk if the fault was on one.
const fn status(s1ptw: bool, fault: Fault) -> u64 {
    match fault {
        // No register has the level of the stage 1 walk, so that of stage 2 is used.
        Fault::Translation(level) | Fault::Permission(level) | Fault::AccessFlag(level) | Fault::AddressSize(level)
            if s1ptw =>
        {
            EXTERNAL_ON_WALK | (level & 3) as u64
        }
        Fault::ExternalOnWalk(level) => EXTERNAL_ON_WALK | (level & 3) as u64,
        Fault::Alignment => ALIGNMENT,
        _ => EXTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u64 = SCTLR_SPAN;

    fn at(pstate: u64) -> At {
        At { pc: 0xffff_8000_0800_1234, pstate, vbar_el1: 0xffff_8000_0801_0800, sctlr_el1: SPAN }
    }

    #[test]
    fn the_vector_depends_on_the_exception_level_stack_and_state() {
        let esr = Esr(0x6230_0001);
        let offset = |pstate| undef(&at(pstate), esr).pc - 0xffff_8000_0801_0800;
        assert_eq!(offset(0x3c5), 0x200, "EL1h");
        assert_eq!(offset(0x3c4), 0x000, "EL1t");
        assert_eq!(offset(0x000), 0x400, "EL0");
        assert_eq!(offset(0x010), 0x600, "AArch32 at EL0");
    }

    #[test]
    fn an_undefined_instruction_has_class_unknown_and_its_length() {
        let entry = undef(&at(0x6000_0005), Esr(0x6230_0001));
        assert_eq!(entry.esr_el1, 0x0200_0000);
        assert_eq!((entry.elr_el1, entry.spsr_el1), (0xffff_8000_0800_1234, 0x6000_0005));
        assert_eq!(entry.pstate, 0x6000_03c5, "flags kept, DAIF set, EL1h");
        assert_eq!(entry.far_el1, None);
        assert_eq!(undef(&at(0x10), Esr(0)).esr_el1, 0, "a T32 instruction");
    }

    #[test]
    fn pan_and_ssbs_follow_sctlr_and_dit_is_kept() {
        let mut from = at(0x5);
        from.sctlr_el1 = SCTLR_DSSBS;
        assert_eq!(undef(&from, Esr(0)).pstate, 0x3c5 | PAN | SSBS);
        // UAO, IL, SS and BTYPE are cleared. PAN and DIT are kept.
        let busy = at(0x5 | 1 << 23 | 1 << 20 | 1 << 21 | 3 << 10 | PAN | DIT);
        assert_eq!(undef(&busy, Esr(0)).pstate, 0x3c5 | PAN | DIT);
        // In an AArch32 PSTATE DIT is bit 21, and Q, IT, GE and T do not exist at EL1.
        let thumb = at(0x10 | 1 << 27 | 1 << 5 | 0xf << 16 | DIT_32 | NZCV);
        assert_eq!(undef(&thumb, Esr(0)).pstate, 0x3c5 | DIT | NZCV);
    }

    #[test]
    fn a_store_to_an_unused_address_is_an_external_abort_with_that_address() {
        // ISV = 0, write, translation fault level 3.
        let abort = Esr(0x9200_0047).data_abort();
        let kernel = data_abort(&at(0x5), 0xdead_beef, &abort);
        assert_eq!((kernel.esr_el1, kernel.far_el1), (0x9600_0050, Some(0xdead_beef)));
        let program = data_abort(&at(0x0), 0xdead_beef, &abort);
        assert_eq!(program.esr_el1, 0x9200_0050);
    }

    #[test]
    fn an_unaligned_access_to_a_device_is_an_alignment_fault() {
        let abort = Esr(0x9200_0061).data_abort();
        assert_eq!(data_abort(&at(0x5), 0x1001, &abort).esr_el1, 0x9600_0061);
    }

    #[test]
    fn a_walk_outside_the_guests_memory_is_an_external_abort_on_a_walk() {
        let abort = Esr(0x9200_0086).data_abort();
        assert!(abort.s1ptw);
        assert_eq!(data_abort(&at(0x5), 1, &abort).esr_el1, 0x9600_0016);
        let fetch = Esr(0x8200_0086).instr_abort();
        assert_eq!(instr_abort(&at(0x0), 1, &fetch).esr_el1, 0x8200_0016);
        let plain = Esr(0x8200_0007).instr_abort();
        assert_eq!(instr_abort(&at(0x5), 1, &plain).esr_el1, 0x8600_0010);
    }

    #[test]
    fn an_exception_recurs_only_if_its_own_handler_raises_it_with_all_masked() {
        let first = undef(&at(0x3c5), Esr(0));
        assert!(!first.recurs(0x1000, 0x3c5), "an earlier exception came from another instruction");
        assert!(!first.recurs(first.elr_el1, 0x5), "the same instruction, in another state");
        assert!(first.recurs(first.elr_el1, first.spsr_el1));
        // A program may fault at one instruction for ever, and a kernel may retry with interrupts unmasked.
        for pstate in [0x0, 0x3c0, 0x10, 0x5, 0x345] {
            let entry = undef(&at(pstate), Esr(0));
            assert!(!entry.recurs(entry.elr_el1, entry.spsr_el1), "{pstate:#x}");
        }
    }
}
