//! Registers that acknowledge an update: GBPA, CR0 and IRQ_CTRL (IHI 0070, 6.3.9, 6.3.14, 6.3.16).

use super::LIMIT_US;
use super::error::SmmuError;
use super::regs::{CR0, GBPA, IRQ_CTRL, smmu};
use crate::ids::Pa;
use crate::mmio::Hw;
use tock_registers::LocalRegisterCopy;
use tock_registers::fields::FieldValue;

/// Changes fields of GBPA, waits until they have taken effect, and checks ABORT.
pub fn set_gbpa(hw: &impl Hw, base: Pa, fields: FieldValue<u32, GBPA::Register>) -> Result<(), SmmuError> {
    let read = || LocalRegisterCopy::<u32, GBPA::Register>::new(hw.read32(base.add(smmu::GBPA)));
    // A write during an update may be lost (6.3.14.1).
    if !hw.wait(LIMIT_US, || !read().is_set(GBPA::UPDATE)) {
        return Err(SmmuError::GbpaTimeout);
    }
    let mut gbpa = read();
    gbpa.modify(fields);
    let abort = gbpa.is_set(GBPA::ABORT);
    gbpa.modify(GBPA::UPDATE::SET);
    hw.write32(base.add(smmu::GBPA), gbpa.get());
    if !hw.wait(LIMIT_US, || !read().is_set(GBPA::UPDATE)) {
        return Err(SmmuError::GbpaTimeout);
    }
    if read().is_set(GBPA::ABORT) == abort { Ok(()) } else { Err(SmmuError::AbortStuck) }
}

/// Writes CR0 and waits until all fields have taken effect. `false`: they have not within the limit.
#[must_use]
pub fn set_cr0(hw: &impl Hw, base: Pa, fields: FieldValue<u32, CR0::Register>) -> bool {
    hw.write32(base.add(smmu::CR0), fields.value);
    hw.wait(LIMIT_US, || hw.read32(base.add(smmu::CR0ACK)) == fields.value)
}

/// Writes IRQ_CTRL and waits until all fields have taken effect.
pub fn set_irq_ctrl(hw: &impl Hw, base: Pa, fields: FieldValue<u32, IRQ_CTRL::Register>) -> Result<(), SmmuError> {
    hw.write32(base.add(smmu::IRQ_CTRL), fields.value);
    let done = || hw.read32(base.add(smmu::IRQ_CTRLACK)) == fields.value;
    if hw.wait(LIMIT_US, done) { Ok(()) } else { Err(SmmuError::IrqTimeout) }
}

/// Disables translation, then all queues and interrupts. When it succeeds, the SMMU uses no memory, and transactions
/// are treated as GBPA says.
pub fn disable(hw: &impl Hw, base: Pa) -> Result<(), SmmuError> {
    let mut cr0 = LocalRegisterCopy::<u32, CR0::Register>::new(hw.read32(base.add(smmu::CR0)));
    // First translation alone: without ATSCHK, addresses that devices have translated pass unchecked while it is on.
    cr0.modify(CR0::SMMUEN::CLEAR);
    hw.write32(base.add(smmu::CR0), cr0.get());
    let disabled = || hw.read32(base.add(smmu::CR0ACK)) & CR0::SMMUEN::SET.value == 0;
    if !hw.wait(LIMIT_US, disabled) || !set_cr0(hw, base, CR0::SMMUEN::CLEAR) {
        return Err(SmmuError::DisableTimeout);
    }
    set_irq_ctrl(hw, base, IRQ_CTRL::EVENTQ_IRQEN::CLEAR)
}
