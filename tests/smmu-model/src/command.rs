//! Commands and their encoding (IHI 0070, chapter 4).

/// How a SYNC signals its completion (CS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Only in SMMU_CMDQ_CONS.
    None,
    /// By an interrupt: a message to this address with this data, or the line if the address is 0.
    Irq {
        /// MSIAddress.
        address: u64,
        /// MSIData.
        data: u32,
    },
    /// By an event for WFE.
    Sev,
}

/// The range of an invalidation by address: fields that exist with SMMU_IDR3.RIL only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// NUM.
    pub num: u32,
    /// SCALE.
    pub scale: u32,
    /// TG: 0 if there is no range, 1 for 4 KiB, 2 for 16 KiB, 3 for 64 KiB.
    pub granule: u32,
    /// TTL: 0, or the level of the leaf.
    pub level: u32,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// CMD_PREFETCH_CONFIG.
    PrefetchConfig {
        /// StreamID.
        stream: u32,
    },
    /// CMD_PREFETCH_ADDR.
    PrefetchAddr {
        /// StreamID.
        stream: u32,
    },
    /// CMD_CFGI_STE.
    CfgiSte {
        /// StreamID.
        stream: u32,
        /// Leaf: descriptors of the first level are not invalidated.
        leaf: bool,
    },
    /// CMD_CFGI_STE_RANGE, and CMD_CFGI_ALL if `range` is 31.
    CfgiSteRange {
        /// StreamID.
        stream: u32,
        /// log2 of the number of streams, minus 1.
        range: u32,
    },
    /// CMD_CFGI_CD.
    CfgiCd {
        /// StreamID.
        stream: u32,
    },
    /// CMD_CFGI_CD_ALL.
    CfgiCdAll {
        /// StreamID.
        stream: u32,
    },
    /// CMD_TLBI_NH_ALL, CMD_TLBI_NH_ASID, CMD_TLBI_NH_VA and CMD_TLBI_NH_VAA: stage 1 of a VMID.
    TlbiNh {
        /// The opcode.
        opcode: u8,
        /// VMID.
        vmid: u16,
    },
    /// CMD_TLBI_EL2_ALL, CMD_TLBI_EL2_ASID, CMD_TLBI_EL2_VA and CMD_TLBI_EL2_VAA.
    TlbiEl2 {
        /// The opcode.
        opcode: u8,
    },
    /// CMD_TLBI_S12_VMALL.
    TlbiS12Vmall {
        /// VMID.
        vmid: u16,
    },
    /// CMD_TLBI_S2_IPA.
    TlbiS2Ipa {
        /// VMID.
        vmid: u16,
        /// Address.
        address: u64,
        /// Leaf: walk caches are not invalidated.
        leaf: bool,
        /// The range.
        extent: Extent,
    },
    /// CMD_TLBI_NSNH_ALL.
    TlbiNsnhAll,
    /// CMD_SYNC.
    Sync {
        /// CS, and the message.
        signal: Signal,
    },
}

/// What of an SMMU decides which commands it has.
#[derive(Clone, Copy)]
pub(crate) struct Features {
    pub(crate) stage1: bool,
    pub(crate) stage2: bool,
    pub(crate) hyp: bool,
    pub(crate) ranges: bool,
}

const SSEC: u64 = 1 << 10;
const SSV: u64 = 1 << 11;
const SUBSTREAM: u64 = 0xffff_f000;
const STREAM: u64 = 0xffff_ffff_0000_0000;
const VMID: u64 = 0xffff_0000_0000;
const ASID: u64 = 0xffff_0000_0000_0000;
const PAGES: u64 = 0x00ff_ffff_ffff_f000;

impl Command {
    /// Decodes a command. The error says why the SMMU rejects it with CERROR_ILL.
    pub(crate) fn decode(words: [u64; 2], features: Features) -> Result<Command, String> {
        let [low, high] = words;
        let opcode = low as u8;
        let stream = (low >> 32) as u32;
        let vmid = (low >> 32) as u16;
        let need = |feature: bool, what: &str| {
            if feature {
                Ok(())
            } else {
                Err(format!("opcode {opcode:#x}, which an SMMU without {what} does not have"))
            }
        };
        let ranged = if features.ranges { 0x1f << 12 | 0x1f << 20 } else { 0 };
        let ranged_high = if features.ranges { 0xf << 8 } else { 0 };
        let known = match opcode {
            0x01 => [SSV | SUBSTREAM | STREAM, 0],
            0x02 => [SSV | SUBSTREAM | STREAM, !0],
            0x03 => [STREAM, 1],
            0x04 => [STREAM, 0x1f],
            0x05 => [SUBSTREAM | STREAM, 1],
            0x06 => [STREAM, 0],
            0x10 | 0x28 => [VMID, 0],
            0x11 => [VMID | ASID, 0],
            0x12 => [VMID | ASID | ranged, 1 | ranged_high | !0xfff],
            0x13 => [VMID | ranged, 1 | ranged_high | !0xfff],
            0x20 | 0x30 => [0, 0],
            0x21 => [ASID, 0],
            0x22 => [ASID | ranged, 1 | ranged_high | !0xfff],
            0x23 => [ranged, 1 | ranged_high | !0xfff],
            0x2a => [VMID | ranged, 1 | ranged_high | PAGES],
            0x46 => [3 << 12 | 3 << 22 | 0xf << 24 | STREAM, 0x00ff_ffff_ffff_fffc],
            _ => return Err(format!("opcode {opcode:#x}, which is reserved or not implemented")),
        };
        match opcode {
            0x05 | 0x06 | 0x10..=0x13 => need(features.stage1, "stage 1")?,
            0x28 | 0x2a => need(features.stage2, "stage 2")?,
            0x20..=0x23 => need(features.hyp, "HYP")?,
            _ => {}
        }
        if opcode < 0x10 && low & SSEC != 0 {
            return Err("SSec on the Non-secure queue".into());
        }
        let reserved = [low & !known[0] & !0xff, high & !known[1]];
        if reserved != [0, 0] {
            return Err(format!(
                "opcode {opcode:#x} with reserved fields set ({:#x}, {:#x})",
                reserved[0], reserved[1]
            ));
        }
        let extent = Extent {
            num: (low >> 12) as u32 & 0x1f,
            scale: (low >> 20) as u32 & 0x1f,
            granule: (high >> 10) as u32 & 3,
            level: (high >> 8) as u32 & 3,
        };
        if matches!(opcode, 0x12 | 0x13 | 0x22 | 0x23 | 0x2a) && features.ranges {
            let nothing = (extent.num, extent.scale, extent.level) == (0, 0, 0);
            if extent.granule == 0 && !nothing {
                return Err("NUM, SCALE or TTL without TG".into());
            }
            if extent.granule != 0 && nothing {
                return Err("TG with NUM, SCALE and TTL 0".into());
            }
        }
        Ok(match opcode {
            0x01 => Command::PrefetchConfig { stream },
            0x02 => Command::PrefetchAddr { stream },
            0x03 => Command::CfgiSte { stream, leaf: high & 1 != 0 },
            0x04 => Command::CfgiSteRange { stream, range: high as u32 & 0x1f },
            0x05 => Command::CfgiCd { stream },
            0x06 => Command::CfgiCdAll { stream },
            0x10..=0x13 => Command::TlbiNh { opcode, vmid },
            0x20..=0x23 => Command::TlbiEl2 { opcode },
            0x28 => Command::TlbiS12Vmall { vmid },
            0x2a => Command::TlbiS2Ipa { vmid, address: high & PAGES, leaf: high & 1 != 0, extent },
            0x30 => Command::TlbiNsnhAll,
            _ => Command::Sync {
                signal: match (low >> 12) & 3 {
                    0 => Signal::None,
                    1 => Signal::Irq { address: high & 0x00ff_ffff_ffff_fffc, data: (low >> 32) as u32 },
                    2 => Signal::Sev,
                    _ => return Err("SYNC with CS 3".into()),
                },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features { stage1: true, stage2: true, hyp: true, ranges: true };

    fn illegal(words: [u64; 2], features: Features) {
        assert!(Command::decode(words, features).is_err(), "{words:#x?}");
    }

    #[test]
    fn commands_have_the_encodings_of_the_manual() {
        for (words, command) in [
            ([0x1234_0000_0001, 0], Command::PrefetchConfig { stream: 0x1234 }),
            ([0x1234_0000_0003, 0], Command::CfgiSte { stream: 0x1234, leaf: false }),
            ([0x1234_0000_0003, 1], Command::CfgiSte { stream: 0x1234, leaf: true }),
            ([0x0100_0000_0004, 7], Command::CfgiSteRange { stream: 0x100, range: 7 }),
            ([4, 31], Command::CfgiSteRange { stream: 0, range: 31 }),
            ([0x1234_0000_0006, 0], Command::CfgiCdAll { stream: 0x1234 }),
            ([0x0042_0000_0010, 0], Command::TlbiNh { opcode: 0x10, vmid: 0x42 }),
            ([0x20, 0], Command::TlbiEl2 { opcode: 0x20 }),
            ([0xabcd_0000_0028, 0], Command::TlbiS12Vmall { vmid: 0xabcd }),
            ([0x30, 0], Command::TlbiNsnhAll),
            ([0x46, 0], Command::Sync { signal: Signal::None }),
            ([0x2046, 0], Command::Sync { signal: Signal::Sev }),
            ([0x77_0000_1046, 0x808_0040], Command::Sync { signal: Signal::Irq { address: 0x808_0040, data: 0x77 } }),
        ] {
            assert_eq!(Command::decode(words, ALL), Ok(command));
        }
        let ipa = |low, high| Command::decode([low, high], ALL);
        let plain = Command::TlbiS2Ipa { vmid: 7, address: 0x4020_1000, leaf: true, extent: Extent::default() };
        assert_eq!(ipa(0x7_0000_002a, 0x4020_1001), Ok(plain));
        let extent = Extent { num: 3, scale: 9, granule: 1, level: 2 };
        let ranged = Command::TlbiS2Ipa { vmid: 7, address: 0x4020_0000, leaf: false, extent };
        assert_eq!(ipa(0x7_0090_302a, 0x4020_0600), Ok(ranged));
    }

    #[test]
    fn opcodes_of_features_that_are_missing_are_illegal() {
        illegal([0x10, 0], Features { stage1: false, ..ALL });
        illegal([0x28, 0], Features { stage2: false, ..ALL });
        illegal([0x2a, 0], Features { stage2: false, ..ALL });
        illegal([0x20, 0], Features { hyp: false, ..ALL });
        for opcode in [0, 0x07, 0x18, 0x40, 0x41, 0x44, 0x50, 0x60, 0x80, 0xff] {
            illegal([opcode, 0], ALL);
        }
    }

    #[test]
    fn reserved_fields_and_values_are_illegal() {
        for words in [
            [0x403, 0],
            [0x103, 0],
            [0x03, 2],
            [0x04, 0x20],
            [0x28, 1],
            [0x1_0028, 0],
            [0x30, 1],
            [0x3046, 0],
            [0x46, 1],
            [0x2a, 2],
        ] {
            illegal(words, ALL);
        }
        // NUM, SCALE and TTL need TG, and TG needs one of them.
        illegal([0x102a, 0], ALL);
        illegal([0x10_002a, 0], ALL);
        illegal([0x2a, 0x100], ALL);
        illegal([0x2a, 0x400], ALL);
        // Without RIL all four are reserved.
        let old = Features { ranges: false, ..ALL };
        illegal([0x102a, 0x400], old);
        illegal([0x2a, 0x700], old);
        assert!(Command::decode([0x102a, 0x400], ALL).is_ok());
        assert!(Command::decode([0x2a, 0x700], ALL).is_ok());
    }
}
