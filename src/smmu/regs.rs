//! Registers of an SMMUv3, Non-secure (IHI 0070, 6.2 and 6.3): offsets and fields.

use crate::mmio::layout::{fits, layout};
use tock_registers::register_bitfields;

/// Offsets from the start of page 0.
pub mod smmu {
    pub const IDR0: u64 = 0x00;
    pub const IDR1: u64 = 0x04;
    pub const IDR3: u64 = 0x0c;
    pub const IDR5: u64 = 0x14;
    pub const AIDR: u64 = 0x1c;
    pub const CR0: u64 = 0x20;
    /// The fields of CR0 that have taken effect.
    pub const CR0ACK: u64 = 0x24;
    pub const CR1: u64 = 0x28;
    pub const CR2: u64 = 0x2c;
    /// The treatment of transactions while SMMUEN is 0.
    pub const GBPA: u64 = 0x44;
    pub const IRQ_CTRL: u64 = 0x50;
    pub const IRQ_CTRLACK: u64 = 0x54;
    /// A bit that differs from that of GERRORN is an active error.
    pub const GERROR: u64 = 0x60;
    pub const GERRORN: u64 = 0x64;
    pub const GERROR_IRQ_CFG0: u64 = 0x68;
    pub const STRTAB_BASE: u64 = 0x80;
    pub const STRTAB_BASE_CFG: u64 = 0x88;
    pub const CMDQ_BASE: u64 = 0x90;
    pub const CMDQ_PROD: u64 = 0x98;
    pub const CMDQ_CONS: u64 = 0x9c;
    pub const EVENTQ_BASE: u64 = 0xa0;
    pub const EVENTQ_IRQ_CFG0: u64 = 0xb0;
    /// In page 1, as the next one.
    pub const EVENTQ_PROD: u64 = PAGE1 + 0xa8;
    pub const EVENTQ_CONS: u64 = PAGE1 + 0xac;
    /// Page 1 follows page 0 (6.1).
    const PAGE1: u64 = 0x1_0000;
    /// Bytes of both pages.
    pub const SIZE: u64 = 0x2_0000;
}

register_bitfields! [u32,
    pub IDR0 [
        S2P OFFSET(0) NUMBITS(1) [],
        S1P OFFSET(1) NUMBITS(1) [],
        /// Bit 0: VMSAv8-32; bit 1: VMSAv8-64.
        TTF OFFSET(2) NUMBITS(2) [],
        COHACC OFFSET(4) NUMBITS(1) [],
        BTM OFFSET(5) NUMBITS(1) [],
        HYP OFFSET(9) NUMBITS(1) [],
        ATS OFFSET(10) NUMBITS(1) [],
        MSI OFFSET(13) NUMBITS(1) [],
        VMID16 OFFSET(18) NUMBITS(1) [],
        TTENDIAN OFFSET(21) NUMBITS(2) [
            Mixed = 0,
            Little = 2,
            Big = 3
        ],
        STALL_MODEL OFFSET(24) NUMBITS(2) [
            Either = 0,
            Terminate = 1,
            Stall = 2
        ],
        ST_LEVEL OFFSET(27) NUMBITS(2) [
            Linear = 0,
            TwoLevels = 1
        ]
    ],
    pub IDR1 [
        SIDSIZE OFFSET(0) NUMBITS(6) [],
        EVENTQS OFFSET(16) NUMBITS(5) [],
        CMDQS OFFSET(21) NUMBITS(5) [],
        ATTR_TYPES_OVR OFFSET(27) NUMBITS(1) [],
        QUEUES_PRESET OFFSET(29) NUMBITS(1) [],
        TABLES_PRESET OFFSET(30) NUMBITS(1) []
    ],
    pub IDR3 [
        FWB OFFSET(8) NUMBITS(1) [],
        RIL OFFSET(10) NUMBITS(1) []
    ],
    pub IDR5 [
        OAS OFFSET(0) NUMBITS(3) [],
        GRAN4K OFFSET(4) NUMBITS(1) []
    ],
    pub AIDR [
        MINOR OFFSET(0) NUMBITS(4) [],
        MAJOR OFFSET(4) NUMBITS(4) []
    ],
    /// CR0 and CR0ACK.
    pub CR0 [
        SMMUEN OFFSET(0) NUMBITS(1) [],
        PRIQEN OFFSET(1) NUMBITS(1) [],
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        CMDQEN OFFSET(3) NUMBITS(1) [],
        ATSCHK OFFSET(4) NUMBITS(1) []
    ],
    pub CR1 [
        QUEUE_IC OFFSET(0) NUMBITS(2) [],
        QUEUE_OC OFFSET(2) NUMBITS(2) [],
        QUEUE_SH OFFSET(4) NUMBITS(2) [],
        TABLE_IC OFFSET(6) NUMBITS(2) [],
        TABLE_OC OFFSET(8) NUMBITS(2) [],
        TABLE_SH OFFSET(10) NUMBITS(2) []
    ],
    pub CR2 [
        E2H OFFSET(0) NUMBITS(1) [],
        RECINVSID OFFSET(1) NUMBITS(1) [],
        PTM OFFSET(2) NUMBITS(1) []
    ],
    pub GBPA [
        MEM_ATTR OFFSET(0) NUMBITS(4) [],
        MTCFG OFFSET(4) NUMBITS(1) [],
        ALLOCCFG OFFSET(8) NUMBITS(4) [],
        SHCFG OFFSET(12) NUMBITS(2) [
            UseIncoming = 1
        ],
        PRIVCFG OFFSET(16) NUMBITS(2) [],
        INSTCFG OFFSET(18) NUMBITS(2) [],
        ABORT OFFSET(20) NUMBITS(1) [],
        UPDATE OFFSET(31) NUMBITS(1) []
    ],
    /// IRQ_CTRL and IRQ_CTRLACK.
    pub IRQ_CTRL [
        GERROR_IRQEN OFFSET(0) NUMBITS(1) [],
        PRIQ_IRQEN OFFSET(1) NUMBITS(1) [],
        EVENTQ_IRQEN OFFSET(2) NUMBITS(1) []
    ],
    /// GERROR and GERRORN.
    pub GERROR [
        CMDQ_ERR OFFSET(0) NUMBITS(1) [],
        EVENTQ_ABT_ERR OFFSET(2) NUMBITS(1) [],
        PRIQ_ABT_ERR OFFSET(3) NUMBITS(1) [],
        MSI_CMDQ_ABT_ERR OFFSET(4) NUMBITS(1) [],
        MSI_EVENTQ_ABT_ERR OFFSET(5) NUMBITS(1) [],
        MSI_PRIQ_ABT_ERR OFFSET(6) NUMBITS(1) [],
        MSI_GERROR_ABT_ERR OFFSET(7) NUMBITS(1) [],
        SFM_ERR OFFSET(8) NUMBITS(1) [],
        CMDQP_ERR OFFSET(9) NUMBITS(1) [],
        DPT_ERR OFFSET(10) NUMBITS(1) []
    ],
    pub STRTAB_BASE_CFG [
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
        SPLIT OFFSET(6) NUMBITS(5) [],
        FMT OFFSET(16) NUMBITS(2) [
            Linear = 0,
            TwoLevels = 1
        ]
    ],
    pub CMDQ_CONS [
        /// The index and, above it, the wrap bit.
        RD OFFSET(0) NUMBITS(20) [],
        ERR OFFSET(24) NUMBITS(7) []
    ],
    /// EVENTQ_PROD and EVENTQ_CONS.
    pub EVENTQ_INDEX [
        /// The index and, above it, the wrap bit.
        INDEX OFFSET(0) NUMBITS(20) [],
        /// OVFLG, and OVACKFLG in EVENTQ_CONS.
        OVERFLOW OFFSET(31) NUMBITS(1) []
    ]
];

register_bitfields! [u64,
    pub STRTAB_BASE [
        /// `PA[55:6]`.
        PA_64 OFFSET(6) NUMBITS(50) [],
        RA OFFSET(62) NUMBITS(1) []
    ],
    /// CMDQ_BASE and EVENTQ_BASE.
    pub QUEUE_BASE [
        LOG2SIZE OFFSET(0) NUMBITS(5) [],
        /// `PA[55:5]`.
        PA_32 OFFSET(5) NUMBITS(51) [],
        /// CMDQ_BASE.RA, EVENTQ_BASE.WA.
        ALLOCATE OFFSET(62) NUMBITS(1) []
    ]
];

layout! { 32:
    IDR0 {
        ST_LEVEL [28:27] STALL_MODEL [25:24] TTENDIAN [22:21] VMID16 [18:18] MSI [13:13] ATS [10:10] HYP [9:9] BTM [5:5]
        COHACC [4:4] TTF [3:2] S1P [1:1] S2P [0:0]
    }
    IDR1 {
        TABLES_PRESET [30:30] QUEUES_PRESET [29:29] ATTR_TYPES_OVR [27:27] CMDQS [25:21] EVENTQS [20:16] SIDSIZE [5:0]
    }
    IDR3 { RIL [10:10] FWB [8:8] }
    IDR5 { GRAN4K [4:4] OAS [2:0] }
    AIDR { MAJOR [7:4] MINOR [3:0] }
    CR0 { ATSCHK [4:4] CMDQEN [3:3] EVENTQEN [2:2] PRIQEN [1:1] SMMUEN [0:0] }
    CR1 { TABLE_SH [11:10] TABLE_OC [9:8] TABLE_IC [7:6] QUEUE_SH [5:4] QUEUE_OC [3:2] QUEUE_IC [1:0] }
    CR2 { PTM [2:2] RECINVSID [1:1] E2H [0:0] }
    GBPA {
        UPDATE [31:31] ABORT [20:20] INSTCFG [19:18] PRIVCFG [17:16] SHCFG [13:12] ALLOCCFG [11:8] MTCFG [4:4]
        MEM_ATTR [3:0]
    }
    IRQ_CTRL { EVENTQ_IRQEN [2:2] PRIQ_IRQEN [1:1] GERROR_IRQEN [0:0] }
    GERROR {
        DPT_ERR [10:10] CMDQP_ERR [9:9] SFM_ERR [8:8] MSI_GERROR_ABT_ERR [7:7] MSI_PRIQ_ABT_ERR [6:6]
        MSI_EVENTQ_ABT_ERR [5:5] MSI_CMDQ_ABT_ERR [4:4] PRIQ_ABT_ERR [3:3] EVENTQ_ABT_ERR [2:2] CMDQ_ERR [0:0]
    }
    STRTAB_BASE_CFG { FMT [17:16] SPLIT [10:6] LOG2SIZE [5:0] }
    CMDQ_CONS { ERR [30:24] RD [19:0] }
    EVENTQ_INDEX { OVERFLOW [31:31] INDEX [19:0] }
}

layout! { 64:
    STRTAB_BASE { RA [62:62] PA_64 [55:6] }
    QUEUE_BASE { ALLOCATE [62:62] PA_32 [55:5] LOG2SIZE [4:0] }
}

const _: () = assert!(fits(
    &[
        (smmu::IDR0, 4),
        (smmu::IDR1, 4),
        (smmu::IDR3, 4),
        (smmu::IDR5, 4),
        (smmu::AIDR, 4),
        (smmu::CR0, 4),
        (smmu::CR0ACK, 4),
        (smmu::CR1, 4),
        (smmu::CR2, 4),
        (smmu::GBPA, 4),
        (smmu::IRQ_CTRL, 4),
        (smmu::IRQ_CTRLACK, 4),
        (smmu::GERROR, 4),
        (smmu::GERRORN, 4),
        (smmu::GERROR_IRQ_CFG0, 8),
        (smmu::STRTAB_BASE, 8),
        (smmu::STRTAB_BASE_CFG, 4),
        (smmu::CMDQ_BASE, 8),
        (smmu::CMDQ_PROD, 4),
        (smmu::CMDQ_CONS, 4),
        (smmu::EVENTQ_BASE, 8),
        (smmu::EVENTQ_IRQ_CFG0, 8),
        (smmu::EVENTQ_PROD, 4),
        (smmu::EVENTQ_CONS, 4),
    ],
    smmu::SIZE
));
