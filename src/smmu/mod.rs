//! SMMUv3: only bypass is implemented.
//!
//! Firmware may leave an SMMU translating (with tables in memory that dom0 gets) or aborting all transactions, and its
//! reset state is not guaranteed. Until there is stage 2 translation for devices, the SMMU is explicitly set to pass
//! every transaction unchanged, and the setting is read back (IHI 0070: SMMU_CR0, SMMU_GBPA). dom0 does not see the
//! SMMU, because both EL2 and dom0 controlling it would end in translation faults.

use crate::ids::Pa;
use crate::mmio::Hw;
use core::fmt;

/// SMMU_CR0.
const CR0: u64 = 0x20;
/// SMMU_CR0ACK: the fields of CR0 that have taken effect.
const CR0ACK: u64 = 0x24;
/// SMMU_GBPA: the treatment of transactions while SMMUEN is 0.
const GBPA: u64 = 0x44;

const CR0_SMMUEN: u32 = 1 << 0;
const GBPA_UPDATE: u32 = 1 << 31;
const GBPA_ABORT: u32 = 1 << 20;
/// Fields that override attributes of the incoming transaction: MTCFG, MemAttr, SHCFG, ALLOCCFG, INSTCFG, PRIVCFG.
const GBPA_OVERRIDES: u32 = 0x000f_3f1f;
/// SHCFG = 1: use the incoming shareability.
const GBPA_SHCFG_INCOMING: u32 = 1 << 12;

/// The time limit of a register update. Hardware takes microseconds, emulation by firmware milliseconds.
const LIMIT_US: u64 = 100_000;

/// Why an SMMU could not be set to bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmmuError {
    /// SMMU_CR0ACK did not follow SMMU_CR0.
    DisableTimeout,
    /// SMMU_GBPA.Update did not clear.
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

/// Disables translation and makes all transactions pass with their own attributes.
///
/// GBPA is set before SMMUEN is cleared, so that no transaction is aborted in between.
///
/// # Errors
///
/// [`SmmuError`], if a register does not take its value.
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

    /// A model of the three registers; if `stuck`, it does not acknowledge updates.
    struct Registers {
        cr0: Cell<u32>,
        cr0ack: Cell<u32>,
        gbpa: Cell<u32>,
        stuck: bool,
        now: Cell<u64>,
        aborted_while_off: Cell<bool>,
    }

    fn registers(cr0: u32, gbpa: u32) -> Registers {
        Registers {
            cr0: Cell::new(cr0),
            cr0ack: Cell::new(cr0),
            gbpa: Cell::new(gbpa),
            stuck: false,
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
                    if !self.stuck {
                        self.cr0ack.set(value);
                    }
                    if value & CR0_SMMUEN == 0 && self.gbpa.get() & GBPA_ABORT != 0 {
                        self.aborted_while_off.set(true);
                    }
                }
                GBPA => self.gbpa.set(if self.stuck { value } else { value & !GBPA_UPDATE }),
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
    fn a_translating_smmu_is_set_to_bypass_without_aborting_any_transaction() {
        let r = registers(0xd, GBPA_ABORT | 0x7);
        assert_eq!(bypass(&r, Pa(0x905_0000)), Ok(()));
        assert_eq!(r.cr0.get() & CR0_SMMUEN, 0);
        assert_eq!(r.gbpa.get(), GBPA_SHCFG_INCOMING);
        assert!(!r.aborted_while_off.get());
    }

    #[test]
    fn an_smmu_that_does_not_respond_is_reported_in_bounded_time() {
        let r = Registers { stuck: true, ..registers(1, 0) };
        assert_eq!(bypass(&r, Pa(0x905_0000)), Err(SmmuError::BypassTimeout));
        assert!(r.now.get() < 3 * LIMIT_US);
    }
}
