//! Exceptions that EL2 gives to a guest: what the CPU itself would have done on taking one to EL1.
//!
//! Arm ARM (DDI 0487), D1.3 "Exceptions", and AArch64.TakeException() for what becomes of PSTATE.

use crate::arch::esr::{DataAbort, Esr, Fault, InstrAbort};

const M: u64 = 0x1f;
const AARCH32: u64 = 1 << 4;
const EL1T: u64 = 0x4;
const EL1H: u64 = 0x5;
const DAIF: u64 = 0xf << 6;
const A_MASK: u64 = 1 << 8;
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

/// Where a guest was when it left, and how its EL1 takes exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// ELR_EL2: for a trapped instruction or an abort, that instruction.
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
    /// To ELR_EL2.
    pub pc: u64,
    /// To SPSR_EL2.
    pub pstate: u64,
    /// To ELR_EL1.
    pub elr_el1: u64,
    /// To SPSR_EL1.
    pub spsr_el1: u64,
    /// To ESR_EL1.
    pub esr_el1: u64,
    /// To FAR_EL1, which otherwise stays as it is.
    pub far_el1: Option<u64>,
}

impl Entry {
    /// Whether EL1, as its ELR_EL1 and SPSR_EL1 stand, is in the handler of an exception from the very same instruction, all
    /// exceptions masked: it faults where it would handle the fault.
    ///
    /// What runs at EL0 cannot bring this about, nor can an EL1 that lets interrupts in.
    #[must_use]
    pub fn is_of_its_own_handler(&self, elr_el1: u64, spsr_el1: u64) -> bool {
        let masked = !from_el0(self.spsr_el1) && self.spsr_el1 & DAIF == DAIF;
        masked && (elr_el1, spsr_el1) == (self.elr_el1, self.spsr_el1)
    }
}

const fn from_el0(pstate: u64) -> bool {
    pstate & AARCH32 != 0 || pstate & 0xc == 0
}

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
    // Kept: the flags, DIT, PAN. Set: D, A, I, F. SSBS and PAN as SCTLR_EL1 says. Cleared: SS, IL, UAO, TCO, BTYPE.
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
        // VBAR_EL1 is 2 KiB aligned: [10:0] are RES0, so this is an OR.
        pc: (at.vbar_el1 & !0x7ff) | vector | offset,
        pstate: new,
        elr_el1: at.pc,
        spsr_el1: old,
        esr_el1,
        far_el1,
    }
}

const SYNC: u64 = 0x000;
const SERROR: u64 = 0x180;

/// UNDEFINED: a trapped instruction that the guest does not have. `esr` is the trap's, for its length.
#[must_use]
pub fn undef(at: &At, esr: Esr) -> Entry {
    enter(at, SYNC, esr.0 & IL, None)
}

/// A synchronous external abort for a load or a store that reached nothing, or nothing that could answer.
/// `far` is FAR_EL2.
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
    // The walk was the guest's own stage 1, so S1PTW (which speaks of stage 2) is not for it.
    iss &= !S1PTW;
    enter(at, SYNC, class << 26 | IL | iss, Some(far))
}

/// A synchronous external abort for an instruction fetch from nowhere. `far` is FAR_EL2.
#[must_use]
pub fn instr_abort(at: &At, far: u64, abort: &InstrAbort) -> Entry {
    let class = if from_el0(at.pstate) { 0x20u64 } else { 0x21 };
    let fnv = if abort.fnv { 1 << 10 } else { 0 };
    enter(at, SYNC, class << 26 | IL | fnv | status(abort.s1ptw, abort.fault), Some(far))
}

const fn status(s1ptw: bool, fault: Fault) -> u64 {
    match fault {
        // The stage-2 level stands for the stage-1 level, which no register holds.
        Fault::Translation(level) | Fault::Permission(level) | Fault::AccessFlag(level) | Fault::AddressSize(level)
            if s1ptw =>
        {
            EXTERNAL_ON_WALK | (level & 3) as u64
        }
        Fault::ExternalOnWalk(level) => EXTERNAL_ON_WALK | (level & 3) as u64,
        _ => EXTERNAL,
    }
}

/// An SError, if the guest can take it now. `None` while PSTATE.A masks it: then HCR_EL2.VSE keeps it for later
/// (and is right in either case, at the price of one more entry into the guest).
#[must_use]
pub fn serror(at: &At) -> Option<Entry> {
    if at.pstate & A_MASK != 0 {
        return None;
    }
    // ISS 0 with IDS clear: uncategorised.
    Some(enter(at, SERROR, 0x2f << 26 | IL, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u64 = SCTLR_SPAN;

    fn at(pstate: u64) -> At {
        At { pc: 0xffff_8000_0800_1234, pstate, vbar_el1: 0xffff_8000_0801_0800, sctlr_el1: SPAN }
    }

    #[test]
    fn each_source_has_its_vector() {
        let esr = Esr(0x6230_0001);
        let offset = |pstate| undef(&at(pstate), esr).pc - 0xffff_8000_0801_0800;
        assert_eq!(offset(0x3c5), 0x200, "EL1h");
        assert_eq!(offset(0x3c4), 0x000, "EL1t");
        assert_eq!(offset(0x000), 0x400, "EL0");
        assert_eq!(offset(0x010), 0x600, "AArch32 at EL0");
        assert_eq!(serror(&at(0x005)).unwrap().pc - 0xffff_8000_0801_0800, 0x380);
    }

    #[test]
    fn an_undefined_instruction_is_reported_as_unknown_with_its_length() {
        let entry = undef(&at(0x6000_0005), Esr(0x6230_0001));
        assert_eq!(entry.esr_el1, 0x0200_0000);
        assert_eq!((entry.elr_el1, entry.spsr_el1), (0xffff_8000_0800_1234, 0x6000_0005));
        assert_eq!(entry.pstate, 0x6000_03c5, "flags kept, DAIF set, EL1h");
        assert_eq!(entry.far_el1, None);
        assert_eq!(undef(&at(0x10), Esr(0)).esr_el1, 0, "a T32 instruction");
    }

    #[test]
    fn pan_and_ssbs_follow_sctlr_and_dit_stays() {
        let mut from = at(0x5);
        from.sctlr_el1 = SCTLR_DSSBS;
        assert_eq!(undef(&from, Esr(0)).pstate, 0x3c5 | PAN | SSBS);
        // UAO, IL, SS and BTYPE are cleared; PAN and DIT stay.
        let busy = at(0x5 | 1 << 23 | 1 << 20 | 1 << 21 | 3 << 10 | PAN | DIT);
        assert_eq!(undef(&busy, Esr(0)).pstate, 0x3c5 | PAN | DIT);
        // In an AArch32 PSTATE bit 21 is DIT, and Q, IT, GE and T mean nothing at EL1.
        let thumb = at(0x10 | 1 << 27 | 1 << 5 | 0xf << 16 | DIT_32 | NZCV);
        assert_eq!(undef(&thumb, Esr(0)).pstate, 0x3c5 | DIT | NZCV);
    }

    #[test]
    fn a_store_to_nowhere_is_an_external_abort_with_its_address() {
        // ISV = 0, write, translation fault level 3.
        let abort = Esr(0x9200_0047).data_abort();
        let kernel = data_abort(&at(0x5), 0xdead_beef, &abort);
        assert_eq!((kernel.esr_el1, kernel.far_el1), (0x9600_0050, Some(0xdead_beef)));
        let program = data_abort(&at(0x0), 0xdead_beef, &abort);
        assert_eq!(program.esr_el1, 0x9200_0050);
    }

    #[test]
    fn a_walk_that_left_the_guests_memory_is_an_external_abort_on_a_walk() {
        let abort = Esr(0x9200_0086).data_abort();
        assert!(abort.s1ptw);
        assert_eq!(data_abort(&at(0x5), 1, &abort).esr_el1, 0x9600_0016);
        let fetch = Esr(0x8200_0086).instr_abort();
        assert_eq!(instr_abort(&at(0x0), 1, &fetch).esr_el1, 0x8200_0016);
        let plain = Esr(0x8200_0007).instr_abort();
        assert_eq!(instr_abort(&at(0x5), 1, &plain).esr_el1, 0x8600_0010);
    }

    #[test]
    fn a_fault_of_the_handler_itself_is_told_from_others() {
        let first = undef(&at(0x3c5), Esr(0));
        assert!(!first.is_of_its_own_handler(0x1000, 0x3c5), "an earlier exception came from elsewhere");
        assert!(!first.is_of_its_own_handler(first.elr_el1, 0x5), "the same instruction, in another state");
        assert!(first.is_of_its_own_handler(first.elr_el1, first.spsr_el1));
        // A program may fault in one place for ever, and a kernel may try again with interrupts on.
        for pstate in [0x0, 0x3c0, 0x10, 0x5, 0x345] {
            let entry = undef(&at(pstate), Esr(0));
            assert!(!entry.is_of_its_own_handler(entry.elr_el1, entry.spsr_el1), "{pstate:#x}");
        }
    }

    #[test]
    fn a_masked_serror_waits() {
        assert_eq!(serror(&at(0x105)), None);
        assert_eq!(serror(&at(0x005)).unwrap().esr_el1, 0xbe00_0000);
    }
}
