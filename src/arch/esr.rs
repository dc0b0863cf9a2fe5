//! The exception syndrome, decoded.
//!
//! [`Esr`] is ESR_EL2 as read. [`Esr::class`] returns the exception class; the other accessors return the fields that
//! belong to a class.
//!
//! Arm ARM (DDI 0487), D24.2.40 "ESR_EL2".

use crate::ids::Ipa;

/// ESR_EL2, as read at an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Esr(pub u64);

/// The exception class (ESR_EL2.EC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// 0x00: an exception without a class of its own, such as an UNDEFINED instruction.
    Unknown,
    /// 0x01: WFI, WFE, WFIT or WFET.
    Wfx,
    /// 0x03 to 0x06 and 0x08: an AArch32 coprocessor access.
    Coprocessor,
    /// 0x07: FP, Advanced SIMD or SVE, trapped by CPTR_EL2.TFP.
    Fp,
    /// 0x09: a pointer authentication instruction or key register.
    PAuth,
    /// 0x0a: LD64B, ST64B, ST64BV, ST64BV0, and other instructions that share the class.
    Ls64,
    /// 0x0d: a branch to an instruction that is not a BTI landing pad.
    BranchTarget,
    /// 0x0e: illegal execution state.
    Illegal,
    /// 0x12: HVC from AArch32.
    Hvc32,
    /// 0x13: SMC from AArch32.
    Smc32,
    /// 0x14: a 128-bit system register access.
    SysReg128,
    /// 0x15: SVC from AArch64 (HCR_EL2.TGE only).
    Svc64,
    /// 0x16: HVC from AArch64.
    Hvc64,
    /// 0x17: SMC from AArch64, trapped by HCR_EL2.TSC.
    Smc64,
    /// 0x18: MSR, MRS or a system instruction.
    SysReg,
    /// 0x19: SVE, trapped by CPTR_EL2.TZ.
    Sve,
    /// 0x1a: ERET.
    Eret,
    /// 0x1d: SME, trapped by CPTR_EL2.TSM.
    Sme,
    /// 0x20: instruction abort from a lower exception level.
    InstrAbortLower,
    /// 0x21: instruction abort at EL2 itself.
    InstrAbortSame,
    /// 0x22: PC alignment.
    PcAlign,
    /// 0x24: data abort from a lower exception level.
    DataAbortLower,
    /// 0x25: data abort at EL2 itself.
    DataAbortSame,
    /// 0x26: SP alignment.
    SpAlign,
    /// 0x27: a memory copy or set instruction in the wrong state.
    Mops,
    /// 0x2c: a trapped floating-point exception.
    FpException,
    /// 0x2f: SError.
    SError,
    /// 0x30: breakpoint from a lower exception level.
    BreakpointLower,
    /// 0x32: software step from a lower exception level.
    StepLower,
    /// 0x34: watchpoint from a lower exception level.
    WatchpointLower,
    /// 0x3c: BRK.
    Brk,
    /// Any other class, by number.
    Other(u8),
}

/// The waiting instruction that was trapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wfx {
    /// Wait for interrupt.
    Wfi,
    /// Wait for event.
    Wfe,
    /// Wait for interrupt with a time limit. QEMU before 10.1 reports it as [`Wfx::Wfi`].
    Wfit,
    /// Wait for event with a time limit.
    Wfet,
}

/// A trapped access to a system register, or a system instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysRegAccess {
    /// 2 or 3 for registers, 1 for instructions.
    pub op0: u8,
    /// 0 to 7.
    pub op1: u8,
    /// 0 to 15.
    pub crn: u8,
    /// 0 to 15.
    pub crm: u8,
    /// 0 to 7.
    pub op2: u8,
    /// The general-purpose register; 31 is XZR.
    pub rt: u8,
    /// MRS or SYSL rather than MSR or SYS.
    pub is_read: bool,
}

/// The fault status code of an abort, bits 5:0 of the syndrome, with its translation table level where it has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Address size fault.
    AddressSize(u8),
    /// Translation fault: at stage 2, nothing is mapped there.
    Translation(u8),
    /// Access flag fault.
    AccessFlag(u8),
    /// Permission fault.
    Permission(u8),
    /// Synchronous external abort, not on a table walk.
    External,
    /// Synchronous external abort on a walk of this level.
    ExternalOnWalk(u8),
    /// Alignment fault.
    Alignment,
    /// Any other fault, by its status code.
    Other(u8),
}

/// A data abort's syndrome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataAbort {
    /// The fields from `sas` to `ar` are valid. Clear for pairs, writeback, exclusives, atomics and SIMD.
    pub isv: bool,
    /// Access size: log2 of the number of bytes, 0 to 3.
    pub sas: u8,
    /// The loaded value is sign-extended.
    pub sse: bool,
    /// The general-purpose register that is stored or loaded; 31 is XZR.
    pub srt: u8,
    /// The register is 64 bits wide.
    pub sf: bool,
    /// The access has acquire or release semantics.
    pub ar: bool,
    /// FAR_EL2 does not hold the address.
    pub fnv: bool,
    /// The type of an external abort, IMPLEMENTATION DEFINED.
    pub ea: bool,
    /// The abort is from a cache maintenance or address translation instruction.
    pub cm: bool,
    /// The abort is from a stage 1 table walk.
    pub s1ptw: bool,
    /// The access is a write.
    pub wnr: bool,
    /// The fault.
    pub fault: Fault,
}

/// An instruction abort's syndrome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InstrAbort {
    /// FAR_EL2 does not hold the address.
    pub fnv: bool,
    /// The abort is from a stage 1 table walk.
    pub s1ptw: bool,
    /// The fault.
    pub fault: Fault,
}

impl Fault {
    /// Decodes the fault status code.
    #[must_use]
    pub const fn from_fsc(fsc: u8) -> Fault {
        let level = fsc & 3;
        match fsc & 0x3f {
            0x00..=0x03 => Fault::AddressSize(level),
            0x04..=0x07 => Fault::Translation(level),
            0x08..=0x0b => Fault::AccessFlag(level),
            0x0c..=0x0f => Fault::Permission(level),
            0x10 => Fault::External,
            0x14..=0x17 => Fault::ExternalOnWalk(level),
            0x21 => Fault::Alignment,
            other => Fault::Other(other),
        }
    }
}

impl Esr {
    const fn field(self, lsb: u32, bits: u32) -> u8 {
        ((self.0 >> lsb) & ((1 << bits) - 1)) as u8
    }

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Returns EC, bits 31:26, as a number for counters and logs.
    #[must_use]
    pub const fn ec(self) -> u8 {
        self.field(26, 6)
    }

    /// Returns the exception class.
    #[must_use]
    pub const fn class(self) -> Class {
        match self.ec() {
            0x00 => Class::Unknown,
            0x01 => Class::Wfx,
            0x03..=0x06 | 0x08 => Class::Coprocessor,
            0x07 => Class::Fp,
            0x09 => Class::PAuth,
            0x0a => Class::Ls64,
            0x0d => Class::BranchTarget,
            0x0e => Class::Illegal,
            0x12 => Class::Hvc32,
            0x13 => Class::Smc32,
            0x14 => Class::SysReg128,
            0x15 => Class::Svc64,
            0x16 => Class::Hvc64,
            0x17 => Class::Smc64,
            0x18 => Class::SysReg,
            0x19 => Class::Sve,
            0x1a => Class::Eret,
            0x1d => Class::Sme,
            0x20 => Class::InstrAbortLower,
            0x21 => Class::InstrAbortSame,
            0x22 => Class::PcAlign,
            0x24 => Class::DataAbortLower,
            0x25 => Class::DataAbortSame,
            0x26 => Class::SpAlign,
            0x27 => Class::Mops,
            0x2c => Class::FpException,
            0x2f => Class::SError,
            0x30 => Class::BreakpointLower,
            0x32 => Class::StepLower,
            0x34 => Class::WatchpointLower,
            0x3c => Class::Brk,
            other => Class::Other(other),
        }
    }

    /// Returns ISS, bits 24:0.
    #[must_use]
    pub const fn iss(self) -> u32 {
        (self.0 & 0x01ff_ffff) as u32
    }

    /// Returns the length of the instruction in bytes: 4, or 2 for a 16-bit T32 one. Adding it to ELR_EL2 skips the
    /// instruction.
    #[must_use]
    pub const fn length(self) -> u64 {
        if self.bit(25) { 4 } else { 2 }
    }

    /// Returns the immediate of HVC, SMC, SVC or BRK.
    #[must_use]
    pub const fn imm16(self) -> u16 {
        self.0 as u16
    }

    /// Returns the waiting instruction, for [`Class::Wfx`].
    #[must_use]
    pub const fn wfx(self) -> Wfx {
        match self.field(0, 2) {
            0 => Wfx::Wfi,
            1 => Wfx::Wfe,
            2 => Wfx::Wfit,
            _ => Wfx::Wfet,
        }
    }

    /// Returns the access, for [`Class::SysReg`].
    #[must_use]
    pub const fn sys_reg(self) -> SysRegAccess {
        SysRegAccess {
            op0: self.field(20, 2),
            op1: self.field(14, 3),
            crn: self.field(10, 4),
            crm: self.field(1, 4),
            op2: self.field(17, 3),
            rt: self.field(5, 5),
            is_read: self.bit(0),
        }
    }

    /// Returns the fields of [`Class::DataAbortLower`] and [`Class::DataAbortSame`].
    #[must_use]
    pub const fn data_abort(self) -> DataAbort {
        DataAbort {
            isv: self.bit(24),
            sas: self.field(22, 2),
            sse: self.bit(21),
            srt: self.field(16, 5),
            sf: self.bit(15),
            ar: self.bit(14),
            fnv: self.bit(10),
            ea: self.bit(9),
            cm: self.bit(8),
            s1ptw: self.bit(7),
            wnr: self.bit(6),
            fault: Fault::from_fsc(self.field(0, 6)),
        }
    }

    /// Returns the fields of [`Class::InstrAbortLower`] and [`Class::InstrAbortSame`].
    #[must_use]
    pub const fn instr_abort(self) -> InstrAbort {
        InstrAbort { fnv: self.bit(10), s1ptw: self.bit(7), fault: Fault::from_fsc(self.field(0, 6)) }
    }
}

/// Returns the address of a stage 2 fault: the page from HPFAR_EL2, the offset in the page from FAR_EL2.
///
/// HPFAR_EL2 is valid for translation, access flag and address size faults, and for any fault on a stage 1 walk. It is
/// UNKNOWN for a permission fault.
#[must_use]
pub const fn ipa(hpfar_el2: u64, far_el2: u64) -> Ipa {
    // FIPA is [47:4], and holds IPA [55:12].
    Ipa(((hpfar_el2 & 0x0000_ffff_ffff_fff0) << 8) | (far_el2 & 0xfff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_load_from_a_device_is_decoded() {
        // `ldr w1` from 0x0a000e10, nothing mapped: ESR, HPFAR and FAR as QEMU reports them.
        let esr = Esr(0x9381_0005);
        assert_eq!(esr.class(), Class::DataAbortLower);
        assert_eq!(esr.length(), 4);
        let abort = esr.data_abort();
        assert!(abort.isv && !abort.wnr && !abort.sse && !abort.sf && !abort.cm && !abort.s1ptw);
        assert_eq!((abort.sas, abort.srt), (2, 1));
        assert_eq!(abort.fault, Fault::Translation(1));
        assert_eq!(ipa(0xa_0000, 0x0a00_0e10), Ipa(0x0a00_0e10));
    }

    #[test]
    fn a_write_of_icc_sgi1r_gives_its_encoding() {
        // msr icc_sgi1r_el1, x1: S3_0_C12_C11_5.
        let esr = Esr(0x623a_3036);
        assert_eq!(esr.class(), Class::SysReg);
        let expected = SysRegAccess { op0: 3, op1: 0, crn: 12, crm: 11, op2: 5, rt: 1, is_read: false };
        assert_eq!(esr.sys_reg(), expected);
    }

    #[test]
    fn an_hvc_gives_its_immediate() {
        let esr = Esr(0x5a00_0001);
        assert_eq!(esr.class(), Class::Hvc64);
        assert_eq!(esr.imm16(), 1);
    }

    #[test]
    fn the_four_waiting_instructions_are_distinguished() {
        let base = 0x07e0_0000;
        assert_eq!(Esr(base).class(), Class::Wfx);
        assert_eq!([0, 1, 2, 3].map(|ti| Esr(base | ti).wfx()), [Wfx::Wfi, Wfx::Wfe, Wfx::Wfit, Wfx::Wfet]);
    }

    #[test]
    fn an_unknown_class_keeps_its_number() {
        for ec in 0..64u64 {
            if let Class::Other(n) = Esr(ec << 26).class() {
                assert_eq!(u64::from(n), ec);
            }
        }
    }

    #[test]
    fn fault_status_codes_are_decoded_with_their_level() {
        assert_eq!(Fault::from_fsc(0x06), Fault::Translation(2));
        assert_eq!(Fault::from_fsc(0x0f), Fault::Permission(3));
        assert_eq!(Fault::from_fsc(0x0b), Fault::AccessFlag(3));
        assert_eq!(Fault::from_fsc(0x01), Fault::AddressSize(1));
        assert_eq!(Fault::from_fsc(0x10), Fault::External);
        assert_eq!(Fault::from_fsc(0x17), Fault::ExternalOnWalk(3));
        assert_eq!(Fault::from_fsc(0x21), Fault::Alignment);
        assert_eq!(Fault::from_fsc(0x35), Fault::Other(0x35));
    }

    #[test]
    fn an_ipa_above_4_gib_is_put_together_from_hpfar_and_far() {
        // The ECAM of QEMU virt, above 256 GiB.
        assert_eq!(ipa(0x40_1000_0000 >> 8, 0xffff_8000_1234_5abc), Ipa(0x40_1000_0abc));
    }
}
