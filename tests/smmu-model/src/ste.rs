//! Stream table entries: their fields and what makes them ILLEGAL (IHI 0070, 5.2).

use crate::config::Config;
use crate::walk;

/// An STE as it is in memory.
pub(crate) type Ste = [u64; 8];

/// Whether an STE is valid (V).
pub(crate) fn valid(ste: &Ste) -> bool {
    ste[0] & 1 != 0
}

fn config(ste: &Ste) -> u64 {
    (ste[0] >> 1) & 7
}

/// The words of an STE that the SMMU does not ignore, as a bit mask.
pub(crate) fn used_words(ste: &Ste) -> u8 {
    match (valid(ste), config(ste)) {
        (false, _) | (_, 0..=3) => 1,
        (_, 4) => 0b11,
        _ => 0xff,
    }
}

/// Stage 2 of an STE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage2 {
    pub(crate) vmid: u16,
    /// S2TTB, aligned to the table.
    pub(crate) table: u64,
    /// Level at which walks start.
    pub(crate) level: u8,
    /// Number of bits of the input address.
    pub(crate) input_bits: u32,
    /// Number of bits of the output address: that of S2PS or of the SMMU, whichever is less.
    pub(crate) output_bits: u32,
    /// S2AFFD: the access flag is ignored.
    pub(crate) no_access_faults: bool,
    /// S2R: faults are recorded.
    pub(crate) record: bool,
    /// S2IR0, S2OR0 and S2SH0.
    pub(crate) attributes: (u32, u32, u32),
    /// The fields that may be cached in a TLB.
    pub(crate) cached: [u64; 3],
}

impl Stage2 {
    /// Number of entries of the table at which walks start.
    pub(crate) fn entries(&self) -> u64 {
        1 << (self.input_bits - walk::shift(self.level))
    }

    /// Whether translations of both may be cached under one VMID.
    pub(crate) fn equivalent(&self, other: &Stage2) -> bool {
        (self.vmid, self.cached) == (other.vmid, other.cached)
    }
}

/// What an STE says is to be done with a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// C_BAD_STE: not valid, or ILLEGAL.
    Bad,
    /// Abort, without an event.
    Abort,
    /// Pass on unchanged.
    Bypass,
    /// Translate.
    Translate(Stage2),
}

/// Decodes an STE.
pub(crate) fn decode(c: &Config, ste: &Ste) -> Action {
    if !valid(ste) {
        return Action::Bad;
    }
    match (config(ste), stage2(c, ste)) {
        (0..=3, _) => Action::Abort,
        (4, _) => Action::Bypass,
        (6, Ok(stage2)) => Action::Translate(stage2),
        _ => Action::Bad,
    }
}

fn stage2(c: &Config, ste: &Ste) -> Result<Stage2, String> {
    let field = |at: u32, width: u32| ((ste[2] >> at) & ((1 << width) - 1)) as u32;
    let flag = |at: u32| field(at, 1) != 0;
    let illegal = |bad: bool, what: &str| if bad { Err(what.to_owned()) } else { Ok(()) };
    illegal(!c.stage2, "stage 2 is not implemented")?;
    let (vmid, t0sz, sl0, granule, ps) = (field(0, 16), field(32, 6), field(38, 2), field(46, 2), field(48, 3));
    illegal(!c.vmid16 && vmid > 0xff, "S2VMID has more than 8 bits")?;
    illegal(!flag(51), "S2AA64 is 0, and AArch32 tables are not implemented")?;
    illegal(flag(52), "S2ENDI is big-endian, which is not implemented")?;
    illegal(flag(55) || flag(56), "S2HA or S2HD is set without HTTU")?;
    illegal(flag(57) && c.stall_model == 1, "S2S is set without the stall model")?;
    illegal(granule == 3 || (granule != 0 && !c.large_granules), "S2TG is a granule that is not implemented")?;
    illegal(granule != 0 || flag(57), "(not modelled: a granule other than 4 KiB, or S2S)")?;
    illegal(t0sz > 39 || t0sz < 64 - c.output_bits.min(48), "S2T0SZ is out of range")?;
    illegal(sl0 == 3 || (sl0 == 2 && c.output_bits < 44), "S2SL0 is reserved")?;
    let (input_bits, level) = (64 - t0sz, 2 - sl0 as u8);
    let covered = walk::shift(level);
    let consistent = input_bits > covered && input_bits <= covered + 13;
    illegal(!consistent, "S2T0SZ and S2SL0 are inconsistent")?;
    let output_bits = [32, 36, 40, 42, 44, 48, 52, 52][ps as usize].min(c.output_bits);
    let table = ste[3] & 0x00ff_ffff_ffff_fff0;
    illegal(table >> output_bits.min(48) != 0, "S2TTB is out of the range of S2PS")?;
    let size = (8u64 << (input_bits - covered)).max(64);
    let fwb = if c.fwb { ste[1] & 1 << 25 } else { 0 };
    Ok(Stage2 {
        vmid: vmid as u16,
        table: table & !(size - 1),
        level,
        input_bits,
        output_bits,
        no_access_faults: flag(53),
        record: flag(58),
        attributes: (field(40, 2), field(42, 2), field(44, 2)),
        cached: [fwb, ste[2] & 0x01ff_ffff_0000_0000, ste[3]],
    })
}

/// Returns what is wrong with a valid STE: why it is ILLEGAL, reserved fields and values, lost address bits.
pub(crate) fn faults(c: &Config, ste: &Ste) -> Option<String> {
    let config = config(ste);
    if (1..=3).contains(&config) {
        return Some(format!("Config is the reserved value {config}"));
    }
    if config & 5 == 5 {
        let why = if c.stage1 { "stage 1 is not modelled" } else { "stage 1 is not implemented" };
        return Some(format!("Config is {config}: {why}"));
    }
    let reserved = [7 << 56, 0, 0x1f << 59, 0xff << 56 | 0xf, !0xffff, !0, !0, !0];
    if let Some(n) = (0..8).find(|&n| ste[n] & reserved[n] & if used_words(ste) >> n & 1 != 0 { !0 } else { 0 } != 0) {
        return Some(format!("reserved fields of word {n} are set: {:#x}", ste[n] & reserved[n]));
    }
    if config != 6 {
        return None;
    }
    match stage2(c, ste) {
        Err(why) => Some(format!("ILLEGAL: {why}")),
        Ok(s) if s.table != ste[3] & 0x00ff_ffff_ffff_fff0 => Some("S2TTB is not aligned to the table".into()),
        Ok(s) if s.attributes.2 == 1 => Some("S2SH0 is the reserved value 1".into()),
        Ok(_) if (ste[2] >> 48) & 7 == 7 => Some("S2PS is the reserved value 7".into()),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ste_has_the_encoding_of_the_manual() {
        // S2VMID 7, S2T0SZ 24, S2SL0 1, S2IR0 = S2OR0 = 1, S2SH0 = 3, S2TG 0, S2PS 2, S2AA64, S2AFFD, S2R.
        let ste =
            [0xd, 0, 7 | 24 << 32 | 1 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 2 << 48 | 1 << 51 | 1 << 53 | 1 << 58];
        assert_eq!(ste[2], 0x042a_3558_0000_0007);
        let ste = [ste[0], ste[1], ste[2], 0x4000_0000, 0, 0, 0, 0];
        let Action::Translate(s) = decode(&Config::server(), &ste) else { panic!("valid") };
        assert_eq!((s.vmid, s.table, s.level, s.input_bits, s.output_bits), (7, 0x4000_0000, 1, 40, 40));
        assert_eq!((s.no_access_faults, s.record, s.attributes, s.entries()), (true, true, (1, 1, 3), 1024));
        assert_eq!(faults(&Config::server(), &ste), None);
        assert_eq!(decode(&Config::server(), &[9, 0, 0, 0, 0, 0, 0, 0]), Action::Bypass);
        assert_eq!(decode(&Config::server(), &[1, 0, 0, 0, 0, 0, 0, 0]), Action::Abort);
        assert_eq!(decode(&Config::server(), &[0; 8]), Action::Bad);
    }

    #[test]
    fn each_illegal_setting_is_found() {
        let good: Ste = [0xd, 0, 0x042a_3558_0000_0007, 0x4000_0000, 0, 0, 0, 0];
        let c = Config::server();
        let set = |clear: u64, set: u64| [0xd, 0, (good[2] & !clear) | set, good[3], 0, 0, 0, 0];
        for (what, ste) in [
            ("S2AA64", set(1 << 51, 0)),
            ("S2ENDI", set(0, 1 << 52)),
            ("S2HD", set(0, 1 << 55)),
            ("S2HA", set(0, 1 << 56)),
            ("S2TG 3", set(0, 3 << 46)),
            ("S2TG 64K", set(0, 1 << 46)),
            ("S2T0SZ 40", set(0x3f << 32, 40 << 32)),
            ("S2T0SZ 15", set(0x3f << 32, 15 << 32)),
            ("S2SL0 3", set(0, 3 << 38)),
            ("S2SL0 0 with 40 bits", set(3 << 38, 0)),
            ("S2SL0 2 with 39 bits", set(0x3f << 32 | 3 << 38, 25 << 32 | 2 << 38)),
            ("S2TTB", [0xd, 0, good[2], 1 << 40, 0, 0, 0, 0]),
        ] {
            assert_eq!(decode(&c, &ste), Action::Bad, "{what}");
            assert!(faults(&c, &ste).is_some_and(|f| f.contains("ILLEGAL")), "{what}");
        }
        let small = Config::small();
        assert_eq!(decode(&small, &set(0, 0x100)), Action::Bad, "S2VMID of 9 bits");
        assert_eq!(decode(&small, &set(0, 1 << 57)), Action::Bad, "S2S");
        assert!(matches!(decode(&small, &good), Action::Translate(_)));
        let none = Config { stage2: false, ..Config::server() };
        assert_eq!(decode(&none, &good), Action::Bad, "no stage 2");
    }

    #[test]
    fn reserved_fields_of_words_that_count_are_found() {
        let c = Config::server();
        let good: Ste = [0xd, 0, 0x042a_3558_0000_0007, 0x4000_0000, 0, 0, 0, 0];
        for (n, bits) in [(0, 1 << 56), (2, 1 << 59), (3, 1 << 56), (3, 1), (4, 1 << 16), (7, 1)] {
            let mut ste = good;
            ste[n] |= bits;
            assert!(faults(&c, &ste).is_some(), "word {n}");
        }
        assert!(faults(&c, &[3, 0, 0, 0, 0, 0, 0, 0]).is_some(), "Config 1");
        assert!(faults(&c, &[0xb, 0, 0, 0, 0, 0, 0, 0]).is_some(), "stage 1");
        assert!(faults(&c, &[0xd, 0, good[2], 0x4000_1000, 0, 0, 0, 0]).is_some(), "alignment");
        assert_eq!(faults(&c, &[9, 0, 0, 0, 1 << 20, 0, 0, 0]), None, "ignored by bypass");
    }
}
