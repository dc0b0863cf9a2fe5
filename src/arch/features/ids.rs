//! The ID registers of a CPU, and their fields as a guest sees them.
//!
//! The feature space is S3_0_C0_C1_0 to S3_0_C0_C7_7: AArch32 registers in CRm 1 to 3, AArch64 registers in CRm 4 to 7.
//! Unallocated registers in it read as zero. HCR_EL2.TID3 traps all of it.
//!
//! Arm ARM (DDI 0487), D24.2 (the ID_AA64* registers) and K1 "unallocated feature ID registers".

use crate::arch::asm::asm;

/// ID_AA64MMFR0_EL1.PARange for 48 bits, the most that stage 2 maps here.
pub(super) const PA_RANGE_48: u8 = 5;

/// Number of registers in the feature space: CRm 1 to 7, op2 0 to 7.
pub const COUNT: usize = 7 * 8;

/// A register of the feature space, S3_0_C0_C`crm`_`op2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg {
    /// CRm, 1 to 7.
    pub crm: u8,
    /// op2, 0 to 7.
    pub op2: u8,
}

impl Reg {
    /// Returns the register; `None` if it is not in the feature space.
    #[must_use]
    pub const fn new(crm: u8, op2: u8) -> Option<Reg> {
        if crm >= 1 && crm <= 7 && op2 <= 7 { Some(Reg { crm, op2 }) } else { None }
    }

    const fn at(crm: u8, op2: u8) -> Reg {
        Reg { crm, op2 }
    }

    pub(super) const fn index(self) -> usize {
        (self.crm as usize - 1) * 8 + self.op2 as usize
    }
}

/// The registers, named as in the manual without `ID_AA64` and `_EL1`.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod reg {
    use crate::arch::features::ids::Reg;
    pub const ID_PFR0: Reg = Reg::at(1, 0);
    pub const ID_PFR1: Reg = Reg::at(1, 1);
    pub const ID_DFR0: Reg = Reg::at(1, 2);
    pub const ID_MMFR0: Reg = Reg::at(1, 4);
    pub const ID_MMFR1: Reg = Reg::at(1, 5);
    pub const ID_MMFR2: Reg = Reg::at(1, 6);
    pub const ID_MMFR3: Reg = Reg::at(1, 7);
    pub const ID_ISAR0: Reg = Reg::at(2, 0);
    pub const ID_ISAR1: Reg = Reg::at(2, 1);
    pub const ID_ISAR2: Reg = Reg::at(2, 2);
    pub const ID_ISAR3: Reg = Reg::at(2, 3);
    pub const ID_ISAR4: Reg = Reg::at(2, 4);
    pub const ID_ISAR5: Reg = Reg::at(2, 5);
    pub const ID_MMFR4: Reg = Reg::at(2, 6);
    pub const ID_ISAR6: Reg = Reg::at(2, 7);
    pub const MVFR0: Reg = Reg::at(3, 0);
    pub const MVFR1: Reg = Reg::at(3, 1);
    pub const MVFR2: Reg = Reg::at(3, 2);
    pub const ID_PFR2: Reg = Reg::at(3, 4);
    pub const ID_MMFR5: Reg = Reg::at(3, 6);
    pub const PFR0: Reg = Reg::at(4, 0);
    pub const PFR1: Reg = Reg::at(4, 1);
    pub const PFR2: Reg = Reg::at(4, 2);
    pub const ZFR0: Reg = Reg::at(4, 4);
    pub const SMFR0: Reg = Reg::at(4, 5);
    pub const DFR0: Reg = Reg::at(5, 0);
    pub const DFR1: Reg = Reg::at(5, 1);
    pub const ISAR0: Reg = Reg::at(6, 0);
    pub const ISAR1: Reg = Reg::at(6, 1);
    pub const ISAR2: Reg = Reg::at(6, 2);
    pub const MMFR0: Reg = Reg::at(7, 0);
    pub const MMFR1: Reg = Reg::at(7, 1);
    pub const MMFR2: Reg = Reg::at(7, 2);
    pub const MMFR3: Reg = Reg::at(7, 3);
    pub const MMFR4: Reg = Reg::at(7, 4);
}

/// The ID registers of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRegs {
    /// MIDR_EL1.
    pub midr: u64,
    /// REVIDR_EL1.
    pub revidr: u64,
    /// AIDR_EL1.
    pub aidr: u64,
    /// PMCR_EL0.N, the number of event counters; 0 without a PMU.
    pub event_counters: u8,
    pub(super) space: [u64; COUNT],
}

impl IdRegs {
    /// Returns the ID registers of a CPU without features.
    #[must_use]
    pub const fn zero() -> IdRegs {
        IdRegs { midr: 0, revidr: 0, aidr: 0, event_counters: 0, space: [0; COUNT] }
    }

    /// Returns a register of the feature space.
    #[must_use]
    pub const fn get(&self, reg: Reg) -> u64 {
        self.space[reg.index()]
    }

    /// Returns the same ID registers with one of them changed.
    #[must_use]
    pub const fn with(mut self, reg: Reg, value: u64) -> IdRegs {
        self.space[reg.index()] = value;
        self
    }

    /// Returns the four-bit field of `reg` from bit `lsb`.
    #[must_use]
    pub const fn field(&self, reg: Reg, lsb: u8) -> u8 {
        (self.get(reg) >> lsb & 0xf) as u8
    }

    /// Returns what two CPUs have in common, field by field.
    #[must_use]
    pub fn common(&self, other: &IdRegs) -> IdRegs {
        let mut both = *self;
        for (index, (mine, theirs)) in self.space.iter().zip(&other.space).enumerate() {
            let mut value = 0;
            for lsb in (0..64).step_by(4) {
                let (a, b) = ((mine >> lsb & 0xf) as u8, (theirs >> lsb & 0xf) as u8);
                let least = if is_signed(index, lsb as u8) {
                    // 0xf means that the feature is absent, which is less than 0.
                    if signed(a) < signed(b) { a } else { b }
                } else {
                    a.min(b)
                };
                value |= u64::from(least) << lsb;
            }
            both.space[index] = value;
        }
        both.event_counters = self.event_counters.min(other.event_counters);
        both
    }
}

impl IdRegs {
    /// Reads the ID registers of this CPU.
    #[must_use]
    pub fn read() -> IdRegs {
        macro_rules! read {
            ($name:expr) => {{
                let value: u64;
                // SAFETY: an MRS of an ID register, or of PMCR_EL0 where there is a PMU, has no side effect.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
                value
            }};
        }
        let mut host = IdRegs::zero();
        host.midr = read!("midr_el1");
        host.revidr = read!("revidr_el1");
        host.aidr = read!("aidr_el1");
        let mut space = [0u64; COUNT];
        macro_rules! row {
            ($crm:literal) => {
                row!(@ $crm "0" "1" "2" "3" "4" "5" "6" "7")
            };
            (@ $crm:literal $($op2:literal)*) => {
                [$(read!(concat!("s3_0_c0_c", $crm, "_", $op2))),*]
            };
        }
        // All of the space may be read, since unallocated registers read as zero.
        let rows = [row!("1"), row!("2"), row!("3"), row!("4"), row!("5"), row!("6"), row!("7")];
        for (to, from) in space.iter_mut().zip(rows.iter().flatten()) {
            *to = *from;
        }
        host.space = space;
        // 0xf is an IMPLEMENTATION DEFINED PMU, without PMCR_EL0.
        if !matches!(host.field(reg::DFR0, 8), 0 | 0xf) {
            host.event_counters = (read!("pmcr_el0") >> 11 & 0x1f) as u8;
        }
        host
    }
}

const fn signed(field: u8) -> i8 {
    ((field << 4) as i8) >> 4
}

/// Returns whether the field is signed: the value 0xf, and not 0, says that the feature is absent.
pub(super) const fn is_signed(index: usize, lsb: u8) -> bool {
    const PFR0: usize = reg::PFR0.index();
    const DFR0: usize = reg::DFR0.index();
    const MMFR0: usize = reg::MMFR0.index();
    const MMFR4: usize = reg::MMFR4.index();
    matches!((index, lsb), (PFR0, 16 | 20) | (DFR0, 36 | 48) | (MMFR0, 24 | 28) | (MMFR4, 24 | 36))
}

/// How a field is shown to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Show {
    /// The value of the CPU.
    Same,
    /// The value of the CPU, but at most this one.
    AtMost(u8),
    /// This value on every CPU.
    Is(u8),
    /// The value of a CPU without the feature.
    Absent,
    /// The value of the CPU, for the whole register.
    Register,
}

/// A field of an ID register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// The register.
    pub reg: Reg,
    /// The lowest bit of the field, which is four bits wide.
    pub lsb: u8,
    /// How it is shown to a guest.
    pub show: Show,
}

impl Field {
    /// Returns the mask of the field in its register.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self.show {
            Show::Register => u64::MAX,
            _ => 0xf << self.lsb,
        }
    }

    /// Returns the value of the field on a CPU without the feature.
    #[must_use]
    pub const fn absent(self) -> u64 {
        if is_signed(self.reg.index(), self.lsb) { 0xf } else { 0 }
    }

    /// Returns what a guest reads in this field on the CPU `host`, not shifted.
    #[must_use]
    pub const fn shown(self, host: &IdRegs) -> u64 {
        let value = host.field(self.reg, self.lsb) as u64;
        match self.show {
            Show::Register => host.get(self.reg),
            Show::Same => value,
            Show::AtMost(limit) => {
                if value > limit as u64 && value != self.absent() {
                    limit as u64
                } else {
                    value
                }
            }
            Show::Is(value) => value as u64,
            Show::Absent => self.absent(),
        }
    }

    /// Returns whether a guest is shown less than `host` has.
    #[must_use]
    pub const fn withheld(self, host: &IdRegs) -> bool {
        match self.show {
            Show::Register | Show::Same => false,
            _ => self.shown(host) != host.field(self.reg, self.lsb) as u64,
        }
    }

    /// Returns whether a guest is shown the feature at all.
    #[must_use]
    pub const fn visible(self, host: &IdRegs) -> bool {
        self.shown(host) != self.absent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cpus_have_the_lesser_value_of_a_field_in_common_and_absent_is_the_least() {
        // FP absent (0xf) on one CPU; the timer field ECV 2 against 1.
        let big = IdRegs::zero().with(reg::PFR0, 0x0011_0011).with(reg::MMFR0, 0x2000_0000_0000_0000);
        let little = IdRegs::zero().with(reg::PFR0, 0x00ff_0012).with(reg::MMFR0, 0x1000_0000_0000_0000);
        let both = big.common(&little);
        assert_eq!(both.get(reg::PFR0), 0x00ff_0011);
        assert_eq!(both.get(reg::MMFR0), 0x1000_0000_0000_0000);
    }

    #[test]
    fn a_field_is_shown_by_its_rule() {
        let host = IdRegs::zero().with(reg::PFR0, 0x3 << 56 | 0xf << 16);
        let csv2 = |show| Field { reg: reg::PFR0, lsb: 56, show };
        assert_eq!(csv2(Show::Same).shown(&host), 3);
        assert_eq!(csv2(Show::AtMost(1)).shown(&host), 1);
        assert_eq!(csv2(Show::Is(2)).shown(&host), 2);
        assert_eq!(csv2(Show::Absent).shown(&host), 0);
        assert!(csv2(Show::AtMost(1)).withheld(&host) && !csv2(Show::Same).withheld(&host));
        let fp = |show| Field { reg: reg::PFR0, lsb: 16, show };
        assert_eq!(fp(Show::AtMost(1)).shown(&host), 0xf, "no FP is not more than FP");
        assert!(!fp(Show::Same).visible(&host));
    }

    #[test]
    fn registers_outside_the_feature_space_are_refused() {
        assert_eq!(Reg::new(0, 0), None);
        assert_eq!(Reg::new(8, 0), None);
        assert_eq!(Reg::new(7, 8), None);
        assert_eq!(Reg::new(7, 7).map(Reg::index), Some(COUNT - 1));
    }
}
