//! GITS_CTLR: an ITS is enabled, or disabled and quiescent (IHI 0069, 12.19).

use super::regs::{GITS_CTLR, gits};
use crate::ids::Pa;
use crate::mmio::Hw;
use tock_registers::LocalRegisterCopy;

type Ctlr = LocalRegisterCopy<u32, GITS_CTLR::Register>;

fn read<H: Hw>(hw: &H, its: Pa) -> Ctlr {
    Ctlr::new(hw.read32(its.add(gits::CTLR)))
}

/// Enables an ITS. ImDe, whose meaning is IMPLEMENTATION DEFINED, is set where virtual LPIs are used, as Linux does.
/// `false`: Enabled did not stay set.
pub fn start<H: Hw>(hw: &H, its: Pa, virtual_lpis: bool) -> bool {
    let mut ctlr = read(hw, its);
    ctlr.modify(GITS_CTLR::ENABLED::SET + GITS_CTLR::IMDE.val(u32::from(virtual_lpis)));
    hw.write32(its.add(gits::CTLR), ctlr.get());
    read(hw, its).is_set(GITS_CTLR::ENABLED)
}

/// Disables an ITS and waits for it to become quiescent, which it need not while ImDe is set. `false`: it is not
/// quiescent after `limit_us` microseconds.
pub fn stop<H: Hw>(hw: &H, its: Pa, limit_us: u64) -> bool {
    let mut ctlr = read(hw, its);
    if ctlr.is_set(GITS_CTLR::ENABLED) || ctlr.is_set(GITS_CTLR::IMDE) {
        ctlr.modify(GITS_CTLR::ENABLED::CLEAR + GITS_CTLR::IMDE::CLEAR);
        hw.write32(its.add(gits::CTLR), ctlr.get());
    }
    hw.wait(limit_us, || read(hw, its).is_set(GITS_CTLR::QUIESCENT))
}
