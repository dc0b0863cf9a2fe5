//! System registers, named as in the manual (DDI 0487, D24; ICC and ICH registers: IHI 0069, 12).
//!
//! Registers and their fields come from [`aarch64_cpu`]: `HCR_EL2.is_set(HCR_EL2::E2H)`,
//! `CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET)`. All rooms import them from this module and not from the crate,
//! because the table below adds registers and replaces some of the crate's, under the same names and with the same
//! traits:
//!
//! * Registers that the crate lacks.
//! * Registers whose accesses have to stay in order with loads and stores. The crate's accessors are `nomem`, so the
//!   compiler may move memory accesses across them, though not barriers ([`super::barrier`]) or other register
//!   accesses. That is right for registers that have no effect on EL2's own memory accesses. It is wrong for the GIC's
//!   CPU interface (ICC, ICH), where an access acknowledges, ends or injects an interrupt, and for VTTBR_EL2 around TLB
//!   maintenance. Of the registers of EL2's own stage 1, [`super::mmu`] writes SCTLR_EL2 and TTBR0_EL2 in assembly, and
//!   says why the order does not matter for the others.
//! * Registers that the crate names in a way that the assembler rejects unless an extension is enabled for the whole
//!   image (the keys of pointer authentication, CNTPOFF_EL2). They are named by their encoding here.
//!
//! A write takes effect after an ISB, unless the manual says otherwise.
#![allow(missing_docs, reason = "register_bitfields! defines more than it lets one document")]
#![allow(non_camel_case_types, reason = "these are the manual's names")]

use super::asm::asm;
pub use aarch64_cpu::registers::*;
use tock_registers::fields::Field;
use tock_registers::register_bitfields;

macro_rules! registers {
    ($($mode:ident $name:ident $(: $fields:ident)? = $asm:literal, $doc:literal;)*) => {
        /// The types of the registers that are defined here.
        pub mod defined {
            $(
                #[doc = concat!("The type of `", stringify!($name), "`.")]
                #[derive(Clone, Copy, Debug)]
                pub struct $name;
            )*
        }
        $(
            #[doc = $doc]
            pub const $name: defined::$name = defined::$name;
            registers!(@$mode $name $asm $($fields)?);
        )*
    };
    (@rw $name:ident $asm:literal $($fields:ident)?) => {
        registers!(@ro $name $asm $($fields)?);
        registers!(@wo $name $asm $($fields)?);
    };
    (@ro $name:ident $asm:literal $($fields:ident)?) => {
        impl Readable for defined::$name {
            type T = u64;
            type R = registers!(@fields $($fields)?);

            #[inline(always)]
            fn get(&self) -> u64 {
                let value: u64;
                // SAFETY: reading this register has no effect on memory.
                unsafe { asm!(concat!("mrs {v}, ", $asm), v = out(reg) value, options(nostack, preserves_flags)) };
                value
            }
        }
    };
    (@wo $name:ident $asm:literal $($fields:ident)?) => {
        impl Writeable for defined::$name {
            type T = u64;
            type R = registers!(@fields $($fields)?);

            #[inline(always)]
            fn set(&self, value: u64) {
                // SAFETY: EL2 owns this register, and none in the table changes what memory EL2 sees.
                unsafe { asm!(concat!("msr ", $asm, ", {v}"), v = in(reg) value, options(nostack, preserves_flags)) };
            }
        }
    };
    (@fields) => { () };
    (@fields $fields:ident) => { $fields::Register };
}

registers! {
    // Properties of this CPU.
    ro CTR_EL0: CTR_EL0 = "CTR_EL0", "Cache line sizes, and coherence of the instruction caches.";
    ro MPAMIDR_EL1: MPAMIDR_EL1 = "S3_0_C10_C4_4", "Properties of MPAM (FEAT_MPAM).";

    // Traps, and what a guest sees.
    rw HCRX_EL2: HCRX_EL2 = "S3_4_C1_C2_2", "Hypervisor configuration, extended (FEAT_HCX).";
    rw HSTR_EL2 = "HSTR_EL2", "Traps of AArch32 system registers.";
    rw VTTBR_EL2: VTTBR_EL2 = "VTTBR_EL2", "Root table of stage 2, and the VMID.";
    rw VPIDR_EL2 = "VPIDR_EL2", "The value that a guest reads as MIDR_EL1.";
    rw VSESR_EL2 = "S3_4_C5_C2_3", "Syndrome of a virtual SError (FEAT_RAS).";
    rw VDISR_EL2 = "S3_4_C12_C1_1", "An SError that an ESB of a guest deferred (FEAT_RAS).";
    rw HFGRTR2_EL2 = "S3_4_C3_C1_2", "Fine-grained traps of reads, continued (FEAT_FGT2).";
    rw HFGWTR2_EL2 = "S3_4_C3_C1_3", "Fine-grained traps of writes, continued (FEAT_FGT2).";
    rw HFGITR2_EL2 = "S3_4_C3_C1_7", "Fine-grained traps of instructions, continued (FEAT_FGT2).";
    rw HDFGRTR2_EL2 = "S3_4_C3_C1_0", "Fine-grained traps of debug reads, continued (FEAT_FGT2).";
    rw HDFGWTR2_EL2 = "S3_4_C3_C1_1", "Fine-grained traps of debug writes, continued (FEAT_FGT2).";
    rw TRFCR_EL2 = "S3_4_C1_C2_1", "Trace filter of EL2 (FEAT_TRF).";
    rw MPAM2_EL2: MPAM2_EL2 = "S3_4_C10_C5_0", "MPAM partition and traps (FEAT_MPAM).";
    rw MPAMHCR_EL2: MPAMHCR_EL2 = "S3_4_C10_C4_0", "MPAM virtualization (FEAT_MPAM).";

    // Timers.
    rw CNTPOFF_EL2 = "S3_4_C14_C0_6", "Offset of EL1's physical count to the physical count (FEAT_ECV).";
    rw CNTHP_CVAL_EL2 = "CNTHP_CVAL_EL2", "Physical timer of EL2: compare value.";

    // EL1 and EL0.
    rw SCXTNUM_EL0 = "S3_3_C13_C0_7", "EL0's software context number (FEAT_CSV2_2).";
    rw SCXTNUM_EL1 = "S3_0_C13_C0_7", "EL1's software context number (FEAT_CSV2_2).";
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
    wo ICC_EOIR1_EL1 = "S3_0_C12_C12_1", "Ends a group 1 interrupt; with EOImode 1, drops the running priority.";
    wo ICC_DIR_EL1 = "S3_0_C12_C11_1", "Deactivates an interrupt.";
    rw ICC_BPR1_EL1 = "S3_0_C12_C12_3", "Group 1 binary point: the split of a priority into group and subpriority.";
    rw ICC_PMR_EL1 = "S3_0_C4_C6_0", "Priority mask: only interrupts of a higher priority are signalled.";
    rw ICC_CTLR_EL1: ICC_CTLR_EL1 = "S3_0_C12_C12_4", "Control of the CPU interface (EOImode).";
    rw ICC_SRE_EL2: ICC_SRE_EL2 = "S3_4_C12_C9_5", "System register access at EL2, and at EL1.";
    rw ICC_IGRPEN1_EL1 = "S3_0_C12_C12_7", "Group 1 enable.";
    wo ICC_SGI1R_EL1: ICC_SGI1R_EL1 = "S3_0_C12_C11_5", "Sends a group 1 SGI.";

    // The controls of the virtual CPU interface.
    rw ICH_HCR_EL2: ICH_HCR_EL2 = "S3_4_C12_C11_0", "Virtual CPU interface control.";
    ro ICH_VTR_EL2: ICH_VTR_EL2 = "S3_4_C12_C11_1", "Properties of the virtual CPU interface.";
    rw ICH_VMCR_EL2 = "S3_4_C12_C11_7", "The controls of the CPU interface as the guest has set them.";
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

// Fields of the registers above that are used and that the crate does not define.
register_bitfields! {u64,
    /// Cache type.
    pub CTR_EL0 [
        /// log2 of the words in the smallest data cache line.
        DminLine OFFSET(16) NUMBITS(4) []
    ],
    /// Hypervisor configuration, extended.
    pub HCRX_EL2 [
        /// The instructions of FEAT_MOPS are not UNDEFINED below EL2.
        MSCEn OFFSET(11) NUMBITS(1) [],
        /// EL1's writes of ALLINT trap (FEAT_NMI).
        TALLINT OFFSET(6) NUMBITS(1) []
    ],
    /// MPAM partition and traps.
    pub MPAM2_EL2 [
        /// EL1's accesses to MPAM0_EL1 trap.
        TRAPMPAM0EL1 OFFSET(49) NUMBITS(1) [],
        /// EL1's accesses to MPAM1_EL1 trap.
        TRAPMPAM1EL1 OFFSET(48) NUMBITS(1) []
    ],
    /// MPAM virtualization.
    pub MPAMHCR_EL2 [
        /// EL1's accesses to MPAMIDR_EL1 trap.
        TRAP_MPAMIDR_EL1 OFFSET(31) NUMBITS(1) []
    ],
    /// Properties of MPAM.
    pub MPAMIDR_EL1 [
        /// MPAMHCR_EL2 exists.
        HAS_HCR OFFSET(17) NUMBITS(1) []
    ],
    /// Control of the CPU interface.
    pub ICC_CTLR_EL1 [
        /// The end of an interrupt drops the priority only; deactivation is separate.
        EOImode OFFSET(1) NUMBITS(1) []
    ],
    /// A group 1 SGI to send.
    pub ICC_SGI1R_EL1 [
        /// Affinity 3 of the targets.
        Aff3 OFFSET(48) NUMBITS(8) [],
        /// Which sixteen values of affinity 0 the target list covers.
        RS OFFSET(44) NUMBITS(4) [],
        /// The SGI goes to all CPUs but this one; the fields that name targets are ignored.
        IRM OFFSET(40) NUMBITS(1) [],
        /// Affinity 2 of the targets.
        Aff2 OFFSET(32) NUMBITS(8) [],
        /// The number of the SGI.
        INTID OFFSET(24) NUMBITS(4) [],
        /// Affinity 1 of the targets.
        Aff1 OFFSET(16) NUMBITS(8) [],
        /// One bit for each value of affinity 0.
        TargetList OFFSET(0) NUMBITS(16) []
    ]
}

/// ICH_VTR_EL2.nV4: virtual interrupts are not injected directly. The crate does not define it.
pub const ICH_VTR_EL2_NV4: Field<u64, ICH_VTR_EL2::Register> = Field::new(1, 20);
