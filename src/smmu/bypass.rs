//! Bypass: an SMMU passes each transaction as it is.
//!
//! Firmware may leave an SMMU translating (with tables in memory that dom0 gets) or aborting all transactions, and its
//! reset state is not guaranteed. Where EL2 does not use the SMMU (`iommu=off`), it is explicitly set to pass every
//! transaction unchanged, and the setting is read back (IHI 0070: SMMU_CR0, SMMU_GBPA). dom0 does not see the SMMU,
//! because both EL2 and dom0 controlling it would end in translation faults.
#![allow(clippy::arithmetic_side_effects, reason = "what is added are fields of registers, not integers")]

use super::LIMIT_US;
use super::control;
use super::error::SmmuError;
use super::regs::{CR0, GBPA, smmu};
use crate::ids::Pa;
use crate::mmio::Hw;
use tock_registers::LocalRegisterCopy;

/// Disables translation and makes all transactions pass with their own attributes.
///
/// GBPA is set before SMMUEN is cleared, so that no transaction is aborted in between.
///
/// # Errors
///
/// [`SmmuError`], if a register does not take its value.
pub fn bypass(hw: &impl Hw, registers: Pa) -> Result<(), SmmuError> {
    let overrides = GBPA::MTCFG::CLEAR
        + GBPA::MEM_ATTR.val(0)
        + GBPA::ALLOCCFG.val(0)
        + GBPA::SHCFG::UseIncoming
        + GBPA::PRIVCFG.val(0)
        + GBPA::INSTCFG.val(0);
    control::set_gbpa(hw, registers, GBPA::ABORT::CLEAR + overrides)?;
    let mut cr0 = LocalRegisterCopy::<u32, CR0::Register>::new(hw.read32(registers.add(smmu::CR0)));
    cr0.modify(CR0::SMMUEN::CLEAR);
    hw.write32(registers.add(smmu::CR0), cr0.get());
    let disabled = || hw.read32(registers.add(smmu::CR0ACK)) & CR0::SMMUEN::SET.value == 0;
    if hw.wait(LIMIT_US, disabled) { Ok(()) } else { Err(SmmuError::DisableTimeout) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmio::Coherence;
    use core::cell::Cell;

    const SMMUEN: u32 = 1 << 0;
    const UPDATE: u32 = 1 << 31;
    const ABORT: u32 = 1 << 20;
    const SHCFG_INCOMING: u32 = 1 << 12;

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
                smmu::CR0 => self.cr0.get(),
                smmu::CR0ACK => self.cr0ack.get(),
                smmu::GBPA => self.gbpa.get(),
                other => panic!("read of {other:#x}"),
            }
        }
        fn write32(&self, at: Pa, value: u32) {
            match at.0 & 0xffff {
                smmu::CR0 => {
                    self.cr0.set(value);
                    if !self.stuck {
                        self.cr0ack.set(value);
                    }
                    if value & SMMUEN == 0 && self.gbpa.get() & ABORT != 0 {
                        self.aborted_while_off.set(true);
                    }
                }
                smmu::GBPA => self.gbpa.set(if self.stuck { value } else { value & !UPDATE }),
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
        let r = registers(0xd, ABORT | 0x7);
        assert_eq!(bypass(&r, Pa(0x905_0000)), Ok(()));
        assert_eq!(r.cr0.get() & SMMUEN, 0);
        assert_eq!(r.gbpa.get(), SHCFG_INCOMING);
        assert!(!r.aborted_while_off.get());
    }

    #[test]
    fn an_smmu_that_does_not_respond_is_reported_in_bounded_time() {
        let r = Registers { stuck: true, ..registers(1, 0) };
        assert_eq!(bypass(&r, Pa(0x905_0000)), Err(SmmuError::GbpaTimeout));
        assert!(r.now.get() < 3 * LIMIT_US);
    }
}
