//! What each CPU does against attacks on its speculation.
//!
//! EL2 runs on the branch predictors that a guest has trained, so it must not execute an indirect branch before it has
//! made the training useless. What that takes depends on the CPU: [`Mitigations::decide`] derives it from `TABLE`, the
//! ID registers and the firmware's answers, and [`super::protect`] makes the CPU do it. CPUs of one machine may differ.
//!
//! | attack | name | mitigated by |
//! |---|---|---|
//! | CVE-2017-5715 | Spectre v2 | the CPU (CSV2); or the firmware's SMCCC_ARCH_WORKAROUND_1 at each entry from a guest |
//! | CVE-2022-23960 | Spectre-BHB | the CPU (CSV2_3, ECBHB); or, at each entry, CLRBHB, a loop of branches that replaces the history, or the firmware's SMCCC_ARCH_WORKAROUND_3 |
//! | CVE-2018-3639 | speculative store bypass | the CPU; or PSTATE.SSBS, which is 0 at EL2; or the firmware's SMCCC_ARCH_WORKAROUND_2, switched on for good |
//! | CVE-2017-5753 | Spectre v1 | [`super::nospec`] |
//!
//! Sources: DDI 0487 (ID registers, CLRBHB), DEN 0028 (the calls), and Arm's documents "Cache Speculation Side-channels"
//! and "Spectre-BHB: Speculative Target Reuse Attacks", which has the numbers of branches for Arm's own cores. Those of
//! other vendors' cores are what the vendors gave to Linux.

use super::features::ids::{IdRegs, reg};
use core::fmt;
use smccc::arch::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3};

/// How a kind of CPU is affected by Spectre-BHB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum History {
    /// It has no branch history that a guest could use: its pipeline is in order.
    None,
    /// This many branches replace the history.
    Loop(u8),
    /// Only the firmware can clear it.
    Firmware,
}

/// What is known about a kind of CPU.
struct Row {
    name: &'static str,
    /// MIDR_EL1.Implementer and PartNum.
    model: (u8, u16),
    /// It is not affected by Spectre v2, though it need not say so by CSV2.
    v2_safe: bool,
    /// It is not affected by speculative store bypass.
    store_bypass_safe: bool,
    history: History,
}

const ARM: u8 = 0x41;
const BROADCOM: u8 = 0x42;
const HISILICON: u8 = 0x48;
const QUALCOMM: u8 = 0x51;
const AMPERE: u8 = 0xc0;

/// A CPU whose pipeline is in order.
const fn in_order(name: &'static str, implementer: u8, part: u16) -> Row {
    Row { name, model: (implementer, part), v2_safe: true, store_bypass_safe: true, history: History::None }
}

const fn affected(name: &'static str, implementer: u8, part: u16, history: History) -> Row {
    Row { name, model: (implementer, part), v2_safe: false, store_bypass_safe: false, history }
}

/// The kinds of CPU that the ID registers alone do not describe. Later ones have CSV2_3, ECBHB or CLRBHB.
#[rustfmt::skip]
static TABLE: [Row; 35] = [
    in_order("Cortex-A35", ARM, 0xd04),
    in_order("Cortex-A53", ARM, 0xd03),
    in_order("Cortex-A55", ARM, 0xd05),
    in_order("Brahma-B53", BROADCOM, 0x100),
    in_order("Kryo 3xx Silver", QUALCOMM, 0x803),
    in_order("Kryo 4xx Silver", QUALCOMM, 0x805),
    Row { store_bypass_safe: false, ..in_order("Kryo 2xx Silver", QUALCOMM, 0x801) },
    Row { store_bypass_safe: false, ..in_order("Cortex-A510", ARM, 0xd46) },
    Row { store_bypass_safe: false, ..in_order("Cortex-A520", ARM, 0xd80) },
    affected("Cortex-A57", ARM, 0xd07, History::Loop(8)),
    affected("Cortex-A72", ARM, 0xd08, History::Loop(8)),
    affected("Cortex-A73", ARM, 0xd09, History::Firmware),
    affected("Cortex-A75", ARM, 0xd0a, History::Firmware),
    affected("Cortex-A76", ARM, 0xd0b, History::Loop(24)),
    affected("Cortex-A76AE", ARM, 0xd0e, History::Loop(24)),
    affected("Cortex-A77", ARM, 0xd0d, History::Loop(24)),
    affected("Neoverse N1", ARM, 0xd0c, History::Loop(24)),
    affected("Cortex-A78", ARM, 0xd41, History::Loop(32)),
    affected("Cortex-A78AE", ARM, 0xd42, History::Loop(32)),
    affected("Cortex-A78C", ARM, 0xd4b, History::Loop(32)),
    affected("Cortex-X1", ARM, 0xd44, History::Loop(32)),
    affected("Cortex-X1C", ARM, 0xd4c, History::Loop(32)),
    affected("Cortex-A710", ARM, 0xd47, History::Loop(32)),
    affected("Cortex-X2", ARM, 0xd48, History::Loop(32)),
    affected("Neoverse N2", ARM, 0xd49, History::Loop(32)),
    affected("Neoverse V1", ARM, 0xd40, History::Loop(32)),
    affected("Cortex-A715", ARM, 0xd4d, History::Loop(38)),
    affected("Cortex-A720", ARM, 0xd81, History::Loop(38)),
    affected("Cortex-A720AE", ARM, 0xd89, History::Loop(38)),
    affected("Cortex-X3", ARM, 0xd4e, History::Loop(132)),
    affected("Neoverse V2", ARM, 0xd4f, History::Loop(132)),
    affected("Kryo 4xx Gold", QUALCOMM, 0x804, History::Loop(24)),
    affected("Kunpeng HIP09", HISILICON, 0xd02, History::Loop(24)),
    Row { v2_safe: true, ..affected("Kunpeng TSV110", HISILICON, 0xd01, History::Loop(32)) },
    affected("AmpereOne", AMPERE, 0xac3, History::Loop(11)),
];

/// The row of the CPU with this MIDR_EL1.
fn row(midr: u64) -> Option<&'static Row> {
    let model = ((midr >> 24) as u8, (midr >> 4 & 0xfff) as u16);
    TABLE.iter().find(|row| row.model == model)
}

/// The firmware's answer when it is asked for a workaround (DEN 0028, SMCCC_ARCH_FEATURES), on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// The CPU needs the workaround, and the firmware offers it.
    Offered,
    /// The CPU does not need it, or has it at all times.
    NotNeeded,
    /// The firmware does not know.
    #[default]
    Unknown,
}

/// The firmware's answers on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// SMCCC_ARCH_WORKAROUND_1.
    pub workaround_1: Offer,
    /// SMCCC_ARCH_WORKAROUND_2.
    pub workaround_2: Offer,
    /// SMCCC_ARCH_WORKAROUND_3.
    pub workaround_3: Offer,
}

/// What to do against speculative store bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ssbd {
    /// Nothing.
    ForceDisable,
    /// EL2 is protected. Guests decide for themselves where the CPU has PSTATE.SSBS.
    Runtime,
    /// EL2 and guests are protected: PSTATE.SSBS, which is 0 when a guest starts, is hidden from guests.
    ForceEnable,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Branch prediction is made useless to guests by the firmware, where that takes a call.
    pub predictors: bool,
    /// The branch history is cleared.
    pub history: bool,
    /// Speculative store bypass.
    pub ssbd: Ssbd,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { predictors: true, history: true, ssbd: Ssbd::Runtime }
    }
}

impl Wanted {
    /// The ID registers of a CPU without what guests shall not use.
    #[must_use]
    pub fn visible(&self, host: IdRegs) -> IdRegs {
        match self.ssbd {
            Ssbd::ForceEnable => host.with(reg::PFR1, host.get(reg::PFR1) & !(0xf << SSBS)),
            Ssbd::ForceDisable | Ssbd::Runtime => host,
        }
    }
}

/// Why a CPU is vulnerable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The firmware does not offer the workaround with this number.
    NotOffered(u8),
    /// The user has switched the mitigation off.
    Off,
    /// Without a mitigation of Spectre v2 a cleared history protects nothing.
    NotAlone,
}

/// What a CPU does against one attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The CPU is not affected.
    NotAffected,
    /// The CPU says so, by ID_AA64PFR0_EL1.CSV2.
    Csv2,
    /// ID_AA64MMFR1_EL1.ECBHB: the history from before an exception is not used after it.
    Ecbhb,
    /// The instruction CLRBHB at each entry.
    ClearBhb,
    /// This many branches at each entry.
    Loop(u8),
    /// A call of the firmware at each entry, of SMCCC_ARCH_WORKAROUND_1 or 3.
    Call(u8),
    /// PSTATE.SSBS is 0 at EL2.
    Ssbs,
    /// The firmware's SMCCC_ARCH_WORKAROUND_2, switched on when the CPU comes up.
    AlwaysOn,
    /// Nothing.
    Vulnerable(Why),
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::NotAffected => f.write_str("not affected"),
            Measure::Csv2 => f.write_str("CSV2"),
            Measure::Ecbhb => f.write_str("ECBHB"),
            Measure::ClearBhb => f.write_str("CLRBHB"),
            Measure::Loop(count) => write!(f, "loop of {count} branches"),
            Measure::Call(number) => write!(f, "SMCCC_ARCH_WORKAROUND_{number}"),
            Measure::Ssbs => f.write_str("SSBS"),
            Measure::AlwaysOn => f.write_str("SMCCC_ARCH_WORKAROUND_2, always on"),
            Measure::Vulnerable(Why::NotOffered(number)) => {
                write!(f, "vulnerable (the firmware has no SMCCC_ARCH_WORKAROUND_{number})")
            }
            Measure::Vulnerable(Why::Off) => f.write_str("vulnerable (switched off)"),
            Measure::Vulnerable(Why::NotAlone) => f.write_str("vulnerable (no mitigation of Spectre v2)"),
        }
    }
}

/// How well CPUs are protected from an attack, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// They are not affected.
    NotAffected,
    /// They are affected, and protected.
    Mitigated,
    /// They are affected.
    Vulnerable,
}

impl Measure {
    const fn protection(self) -> Protection {
        match self {
            // ECBHB: an entry to EL2 (or to a guest's EL1) is not affected by what ran before it.
            Measure::NotAffected | Measure::Csv2 | Measure::Ecbhb => Protection::NotAffected,
            Measure::ClearBhb | Measure::Loop(_) | Measure::Call(_) | Measure::Ssbs | Measure::AlwaysOn => {
                Protection::Mitigated
            }
            Measure::Vulnerable(_) => Protection::Vulnerable,
        }
    }
}

/// How well all CPUs on which a guest may run are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protections {
    /// From Spectre v2.
    pub v2: Protection,
    /// From Spectre-BHB.
    pub history: Protection,
    /// From speculative store bypass.
    pub store_bypass: Protection,
}

impl Protections {
    /// Those of no CPU.
    pub const BEST: Protections = Protections {
        v2: Protection::NotAffected,
        history: Protection::NotAffected,
        store_bypass: Protection::NotAffected,
    };

    /// What is assumed of CPUs of which nothing is known.
    pub const WORST: Protections = Protections {
        v2: Protection::Vulnerable,
        history: Protection::Vulnerable,
        store_bypass: Protection::Vulnerable,
    };

    /// The worst of two.
    #[must_use]
    pub fn worst(self, other: Protections) -> Protections {
        Protections {
            v2: self.v2.max(other.v2),
            history: self.history.max(other.history),
            store_bypass: self.store_bypass.max(other.store_bypass),
        }
    }
}

/// How the branch history is cleared at an entry from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Not at all.
    No,
    /// By the instruction CLRBHB.
    Instruction,
    /// By this many branches.
    Branches(u8),
}

/// What the vectors do at each entry from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The function of the firmware that they call; `None` for no call.
    pub call: Option<u32>,
    /// How they clear the branch history.
    pub clear: Clear,
}

/// What a CPU does against each attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mitigations {
    /// The kind of CPU, if it is in the table.
    kind: Option<&'static str>,
    /// Spectre v2.
    pub v2: Measure,
    /// Spectre-BHB.
    pub history: Measure,
    /// Speculative store bypass.
    pub store_bypass: Measure,
    /// The CPU has PSTATE.SSBS.
    pub ssbs: bool,
}

/// ID_AA64PFR0_EL1.CSV2.
const CSV2: u8 = 56;
/// ID_AA64PFR1_EL1.SSBS.
const SSBS: u8 = 4;
/// ID_AA64MMFR1_EL1.ECBHB.
const ECBHB: u8 = 60;
/// ID_AA64ISAR2_EL1.CLRBHB.
const CLRBHB: u8 = 28;

impl Mitigations {
    /// Decides for a CPU.
    #[must_use]
    pub fn decide(cpu: &IdRegs, firmware: Offers, wanted: Wanted) -> Mitigations {
        let row = row(cpu.midr);
        let v2 = v2(cpu, row, firmware, wanted);
        Mitigations {
            kind: row.map(|row| row.name),
            v2,
            history: history(cpu, row, firmware, wanted, v2),
            store_bypass: store_bypass(cpu, row, firmware, wanted),
            ssbs: cpu.field(reg::PFR1, SSBS) != 0,
        }
    }

    /// What the vectors have to do.
    #[must_use]
    pub const fn entry(&self) -> Entry {
        // SMCCC_ARCH_WORKAROUND_3 includes SMCCC_ARCH_WORKAROUND_1 (DEN 0028, 7.6).
        let call = match (self.v2, self.history) {
            (_, Measure::Call(_)) => Some(SMCCC_ARCH_WORKAROUND_3),
            (Measure::Call(_), _) => Some(SMCCC_ARCH_WORKAROUND_1),
            _ => None,
        };
        let clear = match self.history {
            Measure::ClearBhb => Clear::Instruction,
            Measure::Loop(count) => Clear::Branches(count),
            _ => Clear::No,
        };
        Entry { call, clear }
    }

    /// How well the CPU is protected.
    #[must_use]
    pub const fn protections(&self) -> Protections {
        Protections {
            v2: self.v2.protection(),
            history: self.history.protection(),
            store_bypass: self.store_bypass.protection(),
        }
    }

    /// Whether the CPU is vulnerable although the user has not asked for it.
    #[must_use]
    pub fn is_lacking(&self) -> bool {
        [self.v2, self.history, self.store_bypass].iter().any(|m| matches!(m, Measure::Vulnerable(Why::NotOffered(_))))
    }
}

impl fmt::Display for Mitigations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mitigations { v2, history, store_bypass, .. } = self;
        if let Some(kind) = self.kind {
            write!(f, "{kind}; ")?;
        }
        write!(f, "Spectre v2: {v2}; Spectre-BHB: {history}; speculative store bypass: {store_bypass}")
    }
}

fn v2(cpu: &IdRegs, row: Option<&Row>, firmware: Offers, wanted: Wanted) -> Measure {
    if cpu.field(reg::PFR0, CSV2) != 0 {
        return Measure::Csv2;
    }
    if row.is_some_and(|row| row.v2_safe) {
        return Measure::NotAffected;
    }
    match firmware.workaround_1 {
        Offer::NotNeeded => Measure::NotAffected,
        _ if !wanted.predictors => Measure::Vulnerable(Why::Off),
        Offer::Offered => Measure::Call(1),
        Offer::Unknown => Measure::Vulnerable(Why::NotOffered(1)),
    }
}

fn history(cpu: &IdRegs, row: Option<&Row>, firmware: Offers, wanted: Wanted, v2: Measure) -> Measure {
    if cpu.field(reg::PFR0, CSV2) >= 3 {
        return Measure::Csv2;
    }
    let known = row.map(|row| row.history);
    if known == Some(History::None) {
        return Measure::NotAffected;
    }
    if cpu.field(reg::MMFR1, ECBHB) != 0 {
        return Measure::Ecbhb;
    }
    // A kind of CPU that is in no table counts as affected unless the firmware says that it is not.
    let unaffected = firmware.workaround_3 == Offer::NotNeeded && !matches!(known, Some(History::Loop(_)));
    if unaffected && cpu.field(reg::ISAR2, CLRBHB) == 0 {
        return Measure::NotAffected;
    }
    if !wanted.history {
        return Measure::Vulnerable(Why::Off);
    }
    if matches!(v2, Measure::Vulnerable(_)) {
        return Measure::Vulnerable(Why::NotAlone);
    }
    if cpu.field(reg::ISAR2, CLRBHB) != 0 {
        return Measure::ClearBhb;
    }
    match (known, firmware.workaround_3) {
        (Some(History::Loop(count)), _) => Measure::Loop(count),
        (_, Offer::Offered) => Measure::Call(3),
        _ => Measure::Vulnerable(Why::NotOffered(3)),
    }
}

fn store_bypass(cpu: &IdRegs, row: Option<&Row>, firmware: Offers, wanted: Wanted) -> Measure {
    if row.is_some_and(|row| row.store_bypass_safe) {
        return Measure::NotAffected;
    }
    let off = wanted.ssbd == Ssbd::ForceDisable;
    if cpu.field(reg::PFR1, SSBS) != 0 {
        return if off { Measure::Vulnerable(Why::Off) } else { Measure::Ssbs };
    }
    match firmware.workaround_2 {
        Offer::NotNeeded => Measure::NotAffected,
        _ if off => Measure::Vulnerable(Why::Off),
        Offer::Offered => Measure::AlwaysOn,
        Offer::Unknown => Measure::Vulnerable(Why::NotOffered(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: Offers =
        Offers { workaround_1: Offer::Offered, workaround_2: Offer::Offered, workaround_3: Offer::Offered };
    const NOT_NEEDED: Offers =
        Offers { workaround_1: Offer::NotNeeded, workaround_2: Offer::NotNeeded, workaround_3: Offer::NotNeeded };
    const UNKNOWN: Offers =
        Offers { workaround_1: Offer::Unknown, workaround_2: Offer::Unknown, workaround_3: Offer::Unknown };

    /// A CPU with this implementer, part and CSV2; variant and revision are not 0.
    fn cpu((implementer, part): (u8, u16), csv2: u64) -> IdRegs {
        let mut cpu = IdRegs::zero().with(reg::PFR0, csv2 << CSV2);
        cpu.midr = u64::from(implementer) << 24 | 3 << 20 | 0xf << 16 | u64::from(part) << 4 | 1;
        cpu
    }

    fn named(name: &str) -> (u8, u16) {
        TABLE.iter().find(|row| row.name == name).unwrap().model
    }

    fn decide(cpu: &IdRegs, firmware: Offers) -> Mitigations {
        Mitigations::decide(cpu, firmware, Wanted::default())
    }

    #[test]
    fn no_kind_of_cpu_is_in_two_rows() {
        for (i, a) in TABLE.iter().enumerate() {
            assert!(TABLE[i + 1..].iter().all(|b| a.model != b.model && a.name != b.name), "{}", a.name);
        }
    }

    #[test]
    fn each_kind_of_cpu_clears_its_history_by_the_documented_number_of_branches() {
        let documented = [
            ("Cortex-A57", 8),
            ("Cortex-A72", 8),
            ("AmpereOne", 11),
            ("Cortex-A76", 24),
            ("Cortex-A76AE", 24),
            ("Cortex-A77", 24),
            ("Neoverse N1", 24),
            ("Kryo 4xx Gold", 24),
            ("Kunpeng HIP09", 24),
            ("Cortex-A78", 32),
            ("Cortex-A78AE", 32),
            ("Cortex-A78C", 32),
            ("Cortex-A710", 32),
            ("Cortex-X1", 32),
            ("Cortex-X1C", 32),
            ("Cortex-X2", 32),
            ("Neoverse N2", 32),
            ("Neoverse V1", 32),
            ("Kunpeng TSV110", 32),
            ("Cortex-A715", 38),
            ("Cortex-A720", 38),
            ("Cortex-A720AE", 38),
            ("Cortex-X3", 132),
            ("Neoverse V2", 132),
        ];
        let loops = TABLE.iter().filter(|row| matches!(row.history, History::Loop(_)));
        assert_eq!(loops.count(), documented.len());
        for (name, count) in documented {
            let plan = decide(&cpu(named(name), 1), UNKNOWN);
            assert_eq!((plan.v2, plan.history), (Measure::Csv2, Measure::Loop(count)), "{name}");
            assert_eq!(plan.entry(), Entry { call: None, clear: Clear::Branches(count) }, "{name}");
        }
    }

    #[test]
    fn a_core_in_order_does_nothing_whatever_the_firmware_says() {
        for row in TABLE.iter().filter(|row| row.history == History::None) {
            for firmware in [OFFERED, NOT_NEEDED, UNKNOWN] {
                let plan = decide(&cpu(row.model, 0), firmware);
                assert_eq!((plan.v2, plan.history), (Measure::NotAffected, Measure::NotAffected), "{}", row.name);
                assert_eq!(plan.entry(), Entry { call: None, clear: Clear::No }, "{}", row.name);
            }
        }
        assert_eq!(decide(&cpu(named("Cortex-A53"), 0), UNKNOWN).store_bypass, Measure::NotAffected);
        assert_eq!(decide(&cpu(named("Cortex-A53"), 0), UNKNOWN).protections(), Protections::BEST);
    }

    #[test]
    fn a_core_without_csv2_calls_the_firmware_and_clears_its_history_too() {
        let a72 = cpu(named("Cortex-A72"), 0);
        let plan = decide(&a72, OFFERED);
        assert_eq!((plan.v2, plan.history), (Measure::Call(1), Measure::Loop(8)));
        assert_eq!(plan.entry(), Entry { call: Some(0x8000_8000), clear: Clear::Branches(8) });
        // Firmware says so of a revision with the hardware fix.
        let plan = decide(&a72, NOT_NEEDED);
        assert_eq!((plan.v2, plan.history), (Measure::NotAffected, Measure::Loop(8)));
        // Clearing the history alone protects nothing.
        let plan = decide(&a72, UNKNOWN);
        assert_eq!(plan.v2, Measure::Vulnerable(Why::NotOffered(1)));
        assert_eq!(plan.history, Measure::Vulnerable(Why::NotAlone));
        assert_eq!(plan.entry(), Entry { call: None, clear: Clear::No });
        assert!(plan.is_lacking());
    }

    #[test]
    fn workaround_3_takes_the_place_of_workaround_1() {
        for name in ["Cortex-A73", "Cortex-A75"] {
            let plan = decide(&cpu(named(name), 0), OFFERED);
            assert_eq!((plan.v2, plan.history), (Measure::Call(1), Measure::Call(3)), "{name}");
            assert_eq!(plan.entry(), Entry { call: Some(0x8000_3fff), clear: Clear::No }, "{name}");
        }
        let plan = decide(&cpu(named("Cortex-A75"), 0), Offers { workaround_3: Offer::Unknown, ..OFFERED });
        assert_eq!(plan.entry(), Entry { call: Some(0x8000_8000), clear: Clear::No });
        assert_eq!(plan.protections().v2, Protection::Mitigated);
        assert_eq!(plan.protections().history, Protection::Vulnerable);
    }

    #[test]
    fn what_the_cpu_has_is_preferred_to_the_table() {
        let v2 = cpu(named("Neoverse V2"), 2);
        let ecbhb = v2.with(reg::MMFR1, 1 << ECBHB);
        let clrbhb = v2.with(reg::ISAR2, 1 << CLRBHB);
        assert_eq!(decide(&ecbhb, OFFERED).history, Measure::Ecbhb);
        assert_eq!(decide(&ecbhb, OFFERED).protections().history, Protection::NotAffected);
        assert_eq!(decide(&ecbhb.with(reg::ISAR2, 1 << CLRBHB), OFFERED).history, Measure::Ecbhb);
        assert_eq!(decide(&clrbhb, OFFERED).history, Measure::ClearBhb);
        assert_eq!(decide(&clrbhb, NOT_NEEDED).history, Measure::ClearBhb);
        assert_eq!(decide(&clrbhb, OFFERED).entry(), Entry { call: None, clear: Clear::Instruction });
        assert_eq!(decide(&cpu(named("Neoverse V2"), 3), UNKNOWN).history, Measure::Csv2);
        assert_eq!(decide(&cpu(named("Neoverse V2"), 3).with(reg::ISAR2, 1 << CLRBHB), UNKNOWN).history, Measure::Csv2);
    }

    #[test]
    fn an_unknown_kind_of_cpu_counts_as_affected() {
        let unknown = |csv2| cpu((0x7f, 0x123), csv2);
        assert_eq!(decide(&unknown(0), UNKNOWN).v2, Measure::Vulnerable(Why::NotOffered(1)));
        let plan = decide(&unknown(1), UNKNOWN);
        assert_eq!((plan.v2, plan.history), (Measure::Csv2, Measure::Vulnerable(Why::NotOffered(3))));
        assert_eq!(decide(&unknown(1), OFFERED).history, Measure::Call(3));
        assert_eq!(decide(&unknown(1), NOT_NEEDED).history, Measure::NotAffected);
        assert_eq!(decide(&unknown(3), UNKNOWN).history, Measure::Csv2);
    }

    #[test]
    fn store_bypass_is_off_at_el2_by_the_cpu_or_by_the_firmware() {
        let a72 = cpu(named("Cortex-A72"), 0);
        let ssbs = cpu(named("Neoverse N1"), 1).with(reg::PFR1, 2 << SSBS);
        assert_eq!(decide(&a72, OFFERED).store_bypass, Measure::AlwaysOn);
        assert_eq!(decide(&a72, NOT_NEEDED).store_bypass, Measure::NotAffected);
        assert_eq!(decide(&a72, UNKNOWN).store_bypass, Measure::Vulnerable(Why::NotOffered(2)));
        for firmware in [OFFERED, NOT_NEEDED, UNKNOWN] {
            assert_eq!(decide(&ssbs, firmware).store_bypass, Measure::Ssbs);
        }
        let off = Wanted { ssbd: Ssbd::ForceDisable, ..Wanted::default() };
        for cpu in [&a72, &ssbs] {
            assert_eq!(Mitigations::decide(cpu, OFFERED, off).store_bypass, Measure::Vulnerable(Why::Off));
        }
        assert_eq!(Mitigations::decide(&cpu(named("Cortex-A53"), 0), OFFERED, off).store_bypass, Measure::NotAffected);
    }

    #[test]
    fn what_is_switched_off_is_not_done_and_counts_as_vulnerable() {
        let off = Wanted { predictors: false, history: false, ssbd: Ssbd::ForceDisable };
        for row in TABLE.iter().filter(|row| row.history != History::None) {
            for csv2 in [0, 1] {
                let plan = Mitigations::decide(&cpu(row.model, csv2), OFFERED, off);
                assert_eq!(plan.entry(), Entry { call: None, clear: Clear::No }, "{}", row.name);
                assert_eq!(plan.protections().history, Protection::Vulnerable, "{}", row.name);
                assert!(!plan.is_lacking(), "{}", row.name);
            }
        }
        let no_history = Wanted { history: false, ..Wanted::default() };
        let plan = Mitigations::decide(&cpu(named("Cortex-A75"), 0), OFFERED, no_history);
        assert_eq!(plan.entry(), Entry { call: Some(0x8000_8000), clear: Clear::No });
    }

    #[test]
    fn guests_that_may_not_decide_do_not_see_ssbs() {
        let host = IdRegs::zero().with(reg::PFR1, 0x1021);
        let seen = |ssbd| Wanted { ssbd, ..Wanted::default() }.visible(host).get(reg::PFR1);
        assert_eq!((seen(Ssbd::Runtime), seen(Ssbd::ForceDisable)), (0x1021, 0x1021));
        assert_eq!(seen(Ssbd::ForceEnable), 0x1001);
    }

    #[test]
    fn the_worst_cpu_decides_for_the_machine() {
        let [big, little] = [("Cortex-A72", 0), ("Cortex-A53", 0)].map(|(name, csv2)| cpu(named(name), csv2));
        let on = |firmware| {
            Protections::BEST.worst(decide(&little, firmware).protections()).worst(decide(&big, firmware).protections())
        };
        assert_eq!((on(OFFERED).v2, on(OFFERED).history), (Protection::Mitigated, Protection::Mitigated));
        assert_eq!(on(UNKNOWN).v2, Protection::Vulnerable);
    }

    #[test]
    fn a_line_says_what_a_cpu_does() {
        let v1 = cpu(named("Neoverse V1"), 1).with(reg::PFR1, 2 << SSBS);
        assert_eq!(
            std::format!("{}", decide(&v1, UNKNOWN)),
            "Neoverse V1; Spectre v2: CSV2; Spectre-BHB: loop of 32 branches; speculative store bypass: SSBS"
        );
        assert_eq!(
            std::format!("{}", decide(&cpu(named("Cortex-A57"), 0), UNKNOWN)),
            "Cortex-A57; Spectre v2: vulnerable (the firmware has no SMCCC_ARCH_WORKAROUND_1); Spectre-BHB: vulnerable \
             (no mitigation of Spectre v2); speculative store bypass: vulnerable (the firmware has no SMCCC_ARCH_WORKAROUND_2)"
        );
    }
}
