//! System registers, named as in the manual (DDI 0487, D24; ICC and ICH registers: IHI 0069, 12).
//!
//! `NAME.get()` and `NAME.set(value)`, as in the crate `aarch64-cpu`, which lacks most of those a hypervisor needs.
//! Registers that an assembler knows only with an extension switched on are named by their encoding.
//!
//! The accesses are ordered against memory by the compiler (no `nomem`); the CPU wants an ISB where the manual says so.
#![allow(non_camel_case_types, reason = "these are the manual's names")]

use super::asm::asm;

macro_rules! registers {
    ($($mode:ident $name:ident = $asm:literal, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        registers!(@$mode $name $asm);
    )*};
    (@rw $name:ident $asm:literal) => { registers!(@ro $name $asm); registers!(@wo $name $asm); };
    (@ro $name:ident $asm:literal) => {
        impl $name {
            /// Reads it.
            #[inline(always)]
            #[must_use]
            pub fn get(self) -> u64 {
                let value: u64;
                // SAFETY: reading this register has no effect on memory.
                unsafe { asm!(concat!("mrs {v}, ", $asm), v = out(reg) value, options(nostack, preserves_flags)) };
                value
            }
        }
    };
    (@wo $name:ident $asm:literal) => {
        impl $name {
            /// Writes it.
            #[inline(always)]
            pub fn set(self, value: u64) {
                // SAFETY: the caller is EL2 code that owns this register; registers that change EL2's own view of
                // memory are written by `arch::mmu` alone.
                unsafe { asm!(concat!("msr ", $asm, ", {v}"), v = in(reg) value, options(nostack, preserves_flags)) };
            }
        }
    };
}

registers! {
    // What CPU this is.
    ro MIDR_EL1 = "MIDR_EL1", "Which CPU model.";
    ro MPIDR_EL1 = "MPIDR_EL1", "Which CPU: its affinity.";
    ro REVIDR_EL1 = "REVIDR_EL1", "Minor revision of the model.";
    ro CTR_EL0 = "CTR_EL0", "Cache line sizes and coherence of the instruction side.";
    ro CLIDR_EL1 = "CLIDR_EL1", "Levels of cache.";
    ro ID_AA64PFR0_EL1 = "ID_AA64PFR0_EL1", "Processor features 0.";
    ro ID_AA64PFR1_EL1 = "ID_AA64PFR1_EL1", "Processor features 1.";
    ro ID_AA64DFR0_EL1 = "ID_AA64DFR0_EL1", "Debug features 0.";
    ro ID_AA64DFR1_EL1 = "ID_AA64DFR1_EL1", "Debug features 1.";
    ro ID_AA64ISAR0_EL1 = "ID_AA64ISAR0_EL1", "Instruction set 0.";
    ro ID_AA64ISAR1_EL1 = "ID_AA64ISAR1_EL1", "Instruction set 1.";
    ro ID_AA64ISAR2_EL1 = "S3_0_C0_C6_2", "Instruction set 2.";
    ro ID_AA64ISAR3_EL1 = "S3_0_C0_C6_3", "Instruction set 3.";
    ro ID_AA64MMFR0_EL1 = "ID_AA64MMFR0_EL1", "Memory model 0.";
    ro ID_AA64MMFR1_EL1 = "ID_AA64MMFR1_EL1", "Memory model 1.";
    ro ID_AA64MMFR2_EL1 = "S3_0_C0_C7_2", "Memory model 2.";
    ro ID_AA64MMFR3_EL1 = "S3_0_C0_C7_3", "Memory model 3.";
    ro ID_AA64MMFR4_EL1 = "S3_0_C0_C7_4", "Memory model 4.";
    ro ID_AA64PFR2_EL1 = "S3_0_C0_C4_2", "Processor features 2.";
    ro ID_AA64ZFR0_EL1 = "S3_0_C0_C4_4", "SVE features.";
    ro ID_AA64SMFR0_EL1 = "S3_0_C0_C4_5", "SME features.";
    ro ID_AA64FPFR0_EL1 = "S3_0_C0_C4_7", "FP8 features.";
    ro ID_AA64AFR0_EL1 = "S3_0_C0_C5_4", "Auxiliary features 0.";
    ro ID_AA64AFR1_EL1 = "S3_0_C0_C5_5", "Auxiliary features 1.";

    // EL2 itself.
    rw SCTLR_EL2 = "SCTLR_EL2", "System control of EL2.";
    rw ACTLR_EL2 = "ACTLR_EL2", "Auxiliary control of EL2.";
    rw TTBR0_EL2 = "TTBR0_EL2", "Root of EL2's stage 1.";
    rw TCR_EL2 = "TCR_EL2", "Geometry of EL2's stage 1.";
    rw MAIR_EL2 = "MAIR_EL2", "Memory types of EL2's stage 1.";
    rw VBAR_EL2 = "VBAR_EL2", "Where EL2's vectors are.";
    rw ESR_EL2 = "ESR_EL2", "Why EL2 was entered.";
    rw FAR_EL2 = "FAR_EL2", "The address that faulted.";
    rw HPFAR_EL2 = "HPFAR_EL2", "The IPA of a stage 2 fault, shifted right by 8.";
    rw ELR_EL2 = "ELR_EL2", "Where an ERET goes.";
    rw SPSR_EL2 = "SPSR_EL2", "The state an ERET restores.";
    rw TPIDR_EL2 = "TPIDR_EL2", "EL2's per-CPU pointer.";
    rw AFSR0_EL2 = "AFSR0_EL2", "Auxiliary fault status 0 of EL2.";
    rw AFSR1_EL2 = "AFSR1_EL2", "Auxiliary fault status 1 of EL2.";

    // What a guest may do.
    rw HCR_EL2 = "HCR_EL2", "Hypervisor configuration: what traps, what is virtual.";
    rw HCRX_EL2 = "S3_4_C1_C2_2", "Hypervisor configuration, extended (FEAT_HCX).";
    rw HACR_EL2 = "HACR_EL2", "Auxiliary hypervisor configuration.";
    rw HSTR_EL2 = "HSTR_EL2", "Traps of AArch32 system registers.";
    rw CPTR_EL2 = "CPTR_EL2", "Traps of FP, SVE, SME, trace.";
    rw MDCR_EL2 = "MDCR_EL2", "Traps of debug and performance monitors.";
    rw CNTHCTL_EL2 = "CNTHCTL_EL2", "Traps of timers; EL2's event stream.";
    rw CNTVOFF_EL2 = "CNTVOFF_EL2", "What the virtual count is behind the physical one.";
    rw VTTBR_EL2 = "VTTBR_EL2", "Root of stage 2, and the VMID.";
    rw VTCR_EL2 = "VTCR_EL2", "Geometry of stage 2.";
    rw VPIDR_EL2 = "VPIDR_EL2", "What a guest reads as MIDR_EL1.";
    rw VMPIDR_EL2 = "VMPIDR_EL2", "What a guest reads as MPIDR_EL1.";
    rw VSESR_EL2 = "S3_4_C5_C2_3", "Syndrome of a virtual SError (FEAT_RAS).";
    rw VDISR_EL2 = "S3_4_C12_C1_1", "What a guest's ESB deferred (FEAT_RAS).";
    rw HFGRTR_EL2 = "S3_4_C1_C1_4", "Fine-grained traps of reads (FEAT_FGT).";
    rw HFGWTR_EL2 = "S3_4_C1_C1_5", "Fine-grained traps of writes (FEAT_FGT).";
    rw HFGITR_EL2 = "S3_4_C1_C1_6", "Fine-grained traps of instructions (FEAT_FGT).";
    rw HDFGRTR_EL2 = "S3_4_C3_C1_4", "Fine-grained traps of debug reads (FEAT_FGT).";
    rw HDFGWTR_EL2 = "S3_4_C3_C1_5", "Fine-grained traps of debug writes (FEAT_FGT).";
    rw HAFGRTR_EL2 = "S3_4_C3_C1_6", "Fine-grained traps of activity monitors (FEAT_FGT and AMU).";
    rw HFGRTR2_EL2 = "S3_4_C3_C1_2", "Fine-grained traps of reads, continued (FEAT_FGT2).";
    rw HFGWTR2_EL2 = "S3_4_C3_C1_3", "Fine-grained traps of writes, continued (FEAT_FGT2).";
    rw HFGITR2_EL2 = "S3_4_C3_C1_7", "Fine-grained traps of instructions, continued (FEAT_FGT2).";
    rw HDFGRTR2_EL2 = "S3_4_C3_C1_0", "Fine-grained traps of debug reads, continued (FEAT_FGT2).";
    rw HDFGWTR2_EL2 = "S3_4_C3_C1_1", "Fine-grained traps of debug writes, continued (FEAT_FGT2).";
    rw ZCR_EL2 = "S3_4_C1_C2_0", "SVE vector length below EL2 (FEAT_SVE).";
    rw SMCR_EL2 = "S3_4_C1_C2_6", "SME vector length below EL2 (FEAT_SME).";
    rw MPAM2_EL2 = "S3_4_C10_C5_0", "MPAM partition and traps (FEAT_MPAM).";
    rw MPAMHCR_EL2 = "S3_4_C10_C4_0", "MPAM virtualization (FEAT_MPAM).";
    ro MPAMIDR_EL1 = "S3_0_C10_C4_4", "What MPAM has: whether MPAMHCR_EL2 exists (FEAT_MPAM).";
    rw TRFCR_EL2 = "S3_4_C1_C2_1", "Trace filter of EL2 (FEAT_TRF).";
    rw CNTPOFF_EL2 = "S3_4_C14_C0_6", "What EL1's physical count is behind the physical one (FEAT_ECV).";
    wo OSLAR_EL1 = "OSLAR_EL1", "The OS lock of the debug registers.";

    // Timers.
    ro CNTFRQ_EL0 = "CNTFRQ_EL0", "Ticks of the counters per second.";
    ro CNTPCT_EL0 = "CNTPCT_EL0", "The physical count.";
    ro CNTVCT_EL0 = "CNTVCT_EL0", "The virtual count.";
    rw CNTHP_CTL_EL2 = "CNTHP_CTL_EL2", "EL2's physical timer: enable, mask, condition.";
    rw CNTHP_CVAL_EL2 = "CNTHP_CVAL_EL2", "EL2's physical timer: when.";
    rw CNTV_CTL_EL0 = "CNTV_CTL_EL0", "The virtual timer: enable, mask, condition.";
    rw CNTV_CVAL_EL0 = "CNTV_CVAL_EL0", "The virtual timer: when.";
    rw CNTP_CTL_EL0 = "CNTP_CTL_EL0", "EL1's physical timer: enable, mask, condition.";
    rw CNTP_CVAL_EL0 = "CNTP_CVAL_EL0", "EL1's physical timer: when.";
    rw CNTKCTL_EL1 = "CNTKCTL_EL1", "EL0's access to timers; EL1's event stream.";

    // EL1 and EL0, as a guest left them.
    rw SCTLR_EL1 = "SCTLR_EL1", "System control of EL1.";
    rw ACTLR_EL1 = "ACTLR_EL1", "Auxiliary control of EL1.";
    rw CPACR_EL1 = "CPACR_EL1", "EL1's traps of FP, SVE, SME.";
    rw TTBR0_EL1 = "TTBR0_EL1", "Lower root of EL1's stage 1.";
    rw TTBR1_EL1 = "TTBR1_EL1", "Upper root of EL1's stage 1.";
    rw TCR_EL1 = "TCR_EL1", "Geometry of EL1's stage 1.";
    rw MAIR_EL1 = "MAIR_EL1", "Memory types of EL1's stage 1.";
    rw AMAIR_EL1 = "AMAIR_EL1", "Auxiliary memory types of EL1's stage 1.";
    rw VBAR_EL1 = "VBAR_EL1", "Where EL1's vectors are.";
    rw ESR_EL1 = "ESR_EL1", "Why EL1 was entered.";
    rw FAR_EL1 = "FAR_EL1", "The address that faulted, at EL1.";
    rw AFSR0_EL1 = "AFSR0_EL1", "Auxiliary fault status 0 of EL1.";
    rw AFSR1_EL1 = "AFSR1_EL1", "Auxiliary fault status 1 of EL1.";
    rw ELR_EL1 = "ELR_EL1", "Where EL1's ERET goes.";
    rw SPSR_EL1 = "SPSR_EL1", "The state EL1's ERET restores.";
    rw SP_EL0 = "SP_EL0", "EL0's stack pointer.";
    rw SP_EL1 = "SP_EL1", "EL1's stack pointer.";
    rw TPIDR_EL0 = "TPIDR_EL0", "EL0's thread pointer.";
    rw TPIDRRO_EL0 = "TPIDRRO_EL0", "EL0's read-only thread pointer.";
    rw TPIDR_EL1 = "TPIDR_EL1", "EL1's per-CPU pointer.";
    rw CONTEXTIDR_EL1 = "CONTEXTIDR_EL1", "EL1's context number.";
    rw CSSELR_EL1 = "CSSELR_EL1", "Which cache CCSIDR_EL1 describes.";
    rw PAR_EL1 = "PAR_EL1", "What an address translation instruction answered.";
    rw MDSCR_EL1 = "MDSCR_EL1", "Monitor debug control.";
    rw DISR_EL1 = "S3_0_C12_C1_1", "What an ESB deferred (FEAT_RAS).";
    rw SCXTNUM_EL0 = "S3_3_C13_C0_7", "EL0's software context number (FEAT_CSV2_2).";
    rw SCXTNUM_EL1 = "S3_0_C13_C0_7", "EL1's software context number (FEAT_CSV2_2).";
    rw TCR2_EL1 = "S3_0_C2_C0_3", "Geometry of EL1's stage 1, continued (FEAT_TCR2).";
    rw SCTLR2_EL1 = "S3_0_C1_C0_3", "System control of EL1, continued (FEAT_SCTLR2).";
    rw PIR_EL1 = "S3_0_C10_C2_3", "Permissions by index, EL1 (FEAT_S1PIE).";
    rw PIRE0_EL1 = "S3_0_C10_C2_2", "Permissions by index, EL0 (FEAT_S1PIE).";
    rw POR_EL1 = "S3_0_C10_C2_4", "Permission overlay, EL1 (FEAT_S1POE).";
    rw POR_EL0 = "S3_3_C10_C2_4", "Permission overlay, EL0 (FEAT_S1POE).";
    rw APIAKEYLO_EL1 = "S3_0_C2_C1_0", "Pointer authentication key A for instructions, low (FEAT_PAuth).";
    rw APIAKEYHI_EL1 = "S3_0_C2_C1_1", "Pointer authentication key A for instructions, high.";
    rw APIBKEYLO_EL1 = "S3_0_C2_C1_2", "Pointer authentication key B for instructions, low.";
    rw APIBKEYHI_EL1 = "S3_0_C2_C1_3", "Pointer authentication key B for instructions, high.";
    rw APDAKEYLO_EL1 = "S3_0_C2_C2_0", "Pointer authentication key A for data, low.";
    rw APDAKEYHI_EL1 = "S3_0_C2_C2_1", "Pointer authentication key A for data, high.";
    rw APDBKEYLO_EL1 = "S3_0_C2_C2_2", "Pointer authentication key B for data, low.";
    rw APDBKEYHI_EL1 = "S3_0_C2_C2_3", "Pointer authentication key B for data, high.";
    rw APGAKEYLO_EL1 = "S3_0_C2_C3_0", "Pointer authentication key for generic use, low.";
    rw APGAKEYHI_EL1 = "S3_0_C2_C3_1", "Pointer authentication key for generic use, high.";

    // The GIC's CPU interface.
    ro ICC_IAR1_EL1 = "S3_0_C12_C12_0", "Acknowledges a group 1 interrupt.";
    wo ICC_EOIR1_EL1 = "S3_0_C12_C12_1", "Ends a group 1 interrupt (with EOImode 1: drops the running priority).";
    wo ICC_DIR_EL1 = "S3_0_C12_C11_1", "Deactivates an interrupt.";
    ro ICC_HPPIR1_EL1 = "S3_0_C12_C12_2", "The most urgent pending group 1 interrupt.";
    rw ICC_BPR1_EL1 = "S3_0_C12_C12_3", "Group 1: where priority splits into group and subpriority.";
    rw ICC_PMR_EL1 = "S3_0_C4_C6_0", "Only interrupts more urgent than this are signalled.";
    ro ICC_RPR_EL1 = "S3_0_C12_C11_3", "The running priority.";
    rw ICC_CTLR_EL1 = "S3_0_C12_C12_4", "Control of the CPU interface (EOImode).";
    rw ICC_SRE_EL1 = "S3_0_C12_C12_5", "System register access at EL1.";
    rw ICC_SRE_EL2 = "S3_4_C12_C9_5", "System register access at EL2; whether EL1 may use its own.";
    rw ICC_IGRPEN1_EL1 = "S3_0_C12_C12_7", "Group 1 enable.";
    wo ICC_SGI1R_EL1 = "S3_0_C12_C11_5", "Sends a group 1 SGI.";
    rw ICC_AP1R0_EL1 = "S3_0_C12_C9_0", "Active group 1 priorities.";

    // The virtual CPU interface's controls.
    rw ICH_HCR_EL2 = "S3_4_C12_C11_0", "Virtual CPU interface control.";
    ro ICH_VTR_EL2 = "S3_4_C12_C11_1", "What the virtual CPU interface can do.";
    ro ICH_MISR_EL2 = "S3_4_C12_C11_2", "Why the maintenance interrupt is raised.";
    ro ICH_EISR_EL2 = "S3_4_C12_C11_3", "List registers whose EOI wants attention.";
    ro ICH_ELRSR_EL2 = "S3_4_C12_C11_5", "List registers that are free.";
    rw ICH_VMCR_EL2 = "S3_4_C12_C11_7", "The guest's view of the CPU interface's controls.";
    rw ICH_AP0R0_EL2 = "S3_4_C12_C8_0", "Active virtual group 0 priorities.";
    rw ICH_AP0R1_EL2 = "S3_4_C12_C8_1", "Active virtual group 0 priorities, continued.";
    rw ICH_AP0R2_EL2 = "S3_4_C12_C8_2", "Active virtual group 0 priorities, continued.";
    rw ICH_AP0R3_EL2 = "S3_4_C12_C8_3", "Active virtual group 0 priorities, continued.";
    rw ICH_AP1R0_EL2 = "S3_4_C12_C9_0", "Active virtual group 1 priorities.";
    rw ICH_AP1R1_EL2 = "S3_4_C12_C9_1", "Active virtual group 1 priorities, continued.";
    rw ICH_AP1R2_EL2 = "S3_4_C12_C9_2", "Active virtual group 1 priorities, continued.";
    rw ICH_AP1R3_EL2 = "S3_4_C12_C9_3", "Active virtual group 1 priorities, continued.";
    rw ICH_LR0_EL2 = "S3_4_C12_C12_0", "List register 0.";
    rw ICH_LR1_EL2 = "S3_4_C12_C12_1", "List register 1.";
    rw ICH_LR2_EL2 = "S3_4_C12_C12_2", "List register 2.";
    rw ICH_LR3_EL2 = "S3_4_C12_C12_3", "List register 3.";
    rw ICH_LR4_EL2 = "S3_4_C12_C12_4", "List register 4.";
    rw ICH_LR5_EL2 = "S3_4_C12_C12_5", "List register 5.";
    rw ICH_LR6_EL2 = "S3_4_C12_C12_6", "List register 6.";
    rw ICH_LR7_EL2 = "S3_4_C12_C12_7", "List register 7.";
    rw ICH_LR8_EL2 = "S3_4_C12_C13_0", "List register 8.";
    rw ICH_LR9_EL2 = "S3_4_C12_C13_1", "List register 9.";
    rw ICH_LR10_EL2 = "S3_4_C12_C13_2", "List register 10.";
    rw ICH_LR11_EL2 = "S3_4_C12_C13_3", "List register 11.";
    rw ICH_LR12_EL2 = "S3_4_C12_C13_4", "List register 12.";
    rw ICH_LR13_EL2 = "S3_4_C12_C13_5", "List register 13.";
    rw ICH_LR14_EL2 = "S3_4_C12_C13_6", "List register 14.";
    rw ICH_LR15_EL2 = "S3_4_C12_C13_7", "List register 15.";
}
