//! SMMUv3, as far as it is driven today: put into bypass, explicitly.
//!
//! Firmware may leave an SMMU translating (with tables in memory that is about to be dom0's) or aborting all
//! traffic, and a reset value is no promise. Until stage 2 for devices is driven, the one honest state is
//! "every transaction passes unchanged", set and read back (IHI 0070: SMMU_CR0, SMMU_GBPA). dom0 does not
//! see the SMMU: half of it in the hands of each would end in translation faults.

use crate::ids::Pa;
use crate::mmio::Hw;
use core::fmt;

/// SMMU_CR0.
const CR0: u64 = 0x20;
/// SMMU_CR0ACK: what of CR0 has taken effect.
const CR0ACK: u64 = 0x24;
/// SMMU_GBPA: what happens to transactions while SMMUEN is 0.
const GBPA: u64 = 0x44;

const CR0_SMMUEN: u32 = 1 << 0;
const GBPA_UPDATE: u32 = 1 << 31;
const GBPA_ABORT: u32 = 1 << 20;
/// Fields that override attributes of the incoming transaction: MTCFG, MemAttr, SHCFG, ALLOCCFG, INSTCFG, PRIVCFG.
const GBPA_OVERRIDES: u32 = 0x000f_3f1f;
/// SHCFG = 1: use the incoming shareability.
const GBPA_SHCFG_INCOMING: u32 = 1 << 12;

/// SMMU register updates are acknowledged within microseconds; firmware-emulated ones within milliseconds.
const LIMIT_US: u64 = 100_000;

/// Why an SMMU is not in bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmmuError {
    /// SMMU_CR0ACK never followed SMMU_CR0.
    DisableTimeout,
    /// SMMU_GBPA.Update never cleared.
    BypassTimeout,
    /// SMMU_GBPA.ABORT reads 1 after it was cleared.
    AbortStuck,
}

impl fmt::Display for SmmuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SmmuError::DisableTimeout => "CR0ACK did not follow CR0 within 100 ms",
            SmmuError::BypassTimeout => "GBPA.Update did not clear within 100 ms",
            SmmuError::AbortStuck => "GBPA.ABORT cannot be cleared",
        })
    }
}

/// Turns translation off and lets all traffic pass with its own attributes.
///
/// GBPA is set before SMMUEN is cleared, so that no transaction meets an abort in between.
pub fn bypass(hw: &impl Hw, registers: Pa) -> Result<(), SmmuError> {
    let idle = || hw.read32(registers.add(GBPA)) & GBPA_UPDATE == 0;
    if !hw.wait(LIMIT_US, idle) {
        return Err(SmmuError::BypassTimeout);
    }
    let gbpa = hw.read32(registers.add(GBPA)) & !(GBPA_ABORT | GBPA_OVERRIDES) | GBPA_SHCFG_INCOMING;
    hw.write32(registers.add(GBPA), gbpa | GBPA_UPDATE);
    if !hw.wait(LIMIT_US, idle) {
        return Err(SmmuError::BypassTimeout);
    }
    if hw.read32(registers.add(GBPA)) & GBPA_ABORT != 0 {
        return Err(SmmuError::AbortStuck);
    }
    let cr0 = hw.read32(registers.add(CR0)) & !CR0_SMMUEN;
    hw.write32(registers.add(CR0), cr0);
    if !hw.wait(LIMIT_US, || hw.read32(registers.add(CR0ACK)) & CR0_SMMUEN == 0) {
        return Err(SmmuError::DisableTimeout);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmio::Coherence;
    use core::cell::Cell;

    /// Three registers; `deaf` never acknowledges.
    struct Registers {
        cr0: Cell<u32>,
        cr0ack: Cell<u32>,
        gbpa: Cell<u32>,
        deaf: bool,
        now: Cell<u64>,
        aborted_while_off: Cell<bool>,
    }

    fn registers(cr0: u32, gbpa: u32) -> Registers {
        Registers {
            cr0: Cell::new(cr0),
            cr0ack: Cell::new(cr0),
            gbpa: Cell::new(gbpa),
            deaf: false,
            now: Cell::new(0),
            aborted_while_off: Cell::new(false),
        }
    }

    impl Hw for Registers {
        fn read32(&self, at: Pa) -> u32 {
            match at.0 & 0xffff {
                CR0 => self.cr0.get(),
                CR0ACK => self.cr0ack.get(),
                GBPA => self.gbpa.get(),
                other => panic!("read of {other:#x}"),
            }
        }
        fn write32(&self, at: Pa, value: u32) {
            match at.0 & 0xffff {
                CR0 => {
                    self.cr0.set(value);
                    if !self.deaf {
                        self.cr0ack.set(value);
                    }
                    if value & CR0_SMMUEN == 0 && self.gbpa.get() & GBPA_ABORT != 0 {
                        self.aborted_while_off.set(true);
                    }
                }
                GBPA => self.gbpa.set(if self.deaf { value } else { value & !GBPA_UPDATE }),
                other => panic!("write of {other:#x}"),
            }
        }
        fn read64(&self, _: Pa) -> u64 {
            unreachable!()
        }
        fn write64(&self, _: Pa, _: u64) {
            unreachable!()
        }
        fn alloc(&self, _: usize, _: usize) -> Option<Pa> {
            None
        }
        fn free(&self, _: Pa, _: usize, _: usize) {}
        fn load8(&self, _: Pa) -> u8 {
            unreachable!()
        }
        fn store8(&self, _: Pa, _: u8) {
            unreachable!()
        }
        fn load64(&self, _: Pa) -> u64 {
            unreachable!()
        }
        fn store64(&self, _: Pa, _: u64) {
            unreachable!()
        }
        fn publish(&self, _: Pa, _: usize, _: Coherence) {}
        fn acquire(&self, _: Pa, _: usize, _: Coherence) {}
        fn now_us(&self) -> u64 {
            self.now.set(self.now.get() + 100);
            self.now.get()
        }
        fn relax(&self) {}
    }

    #[test]
    fn a_translating_smmu_that_would_abort_is_put_into_bypass_without_a_gap() {
        let r = registers(0xd, GBPA_ABORT | 0x7);
        assert_eq!(bypass(&r, Pa(0x905_0000)), Ok(()));
        assert_eq!(r.cr0.get() & CR0_SMMUEN, 0);
        assert_eq!(r.gbpa.get(), GBPA_SHCFG_INCOMING);
        assert!(!r.aborted_while_off.get());
    }

    #[test]
    fn an_smmu_that_never_answers_is_reported_in_bounded_time() {
        let r = Registers { deaf: true, ..registers(1, 0) };
        assert_eq!(bypass(&r, Pa(0x905_0000)), Err(SmmuError::BypassTimeout));
        assert!(r.now.get() < 3 * LIMIT_US);
    }
}
