//! The physical CPU interface, by system registers (IHI 0069, 4.6 and 12.2).
//!
//! EOImode is 1: end of interrupt only drops the running priority, and deactivation is separate. So a guest can
//! deactivate a physical interrupt by itself, through a list register that is linked to it.

use crate::arch::barrier;
use crate::arch::sysreg::{
    ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_SGI1R_EL1,
    ICC_SRE_EL2, ReadWriteable, Readable, Writeable,
};
use crate::ids::{Intid, Mpidr};
use core::sync::atomic::{AtomicBool, Ordering};

/// The SGI by which a CPU that panics stops the others.
pub const STOP_SGI: u8 = 15;

/// Set once a CPU interface is up, so that SGIs can be sent.
static UP: AtomicBool = AtomicBool::new(false);

/// The error of a CPU whose interface has no system registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSystemRegisters;

/// Brings up this CPU's interface: no priority is masked, and group 1 is enabled.
pub fn init() -> Result<(), NoSystemRegisters> {
    ICC_SRE_EL2.write(ICC_SRE_EL2::SRE::SET + ICC_SRE_EL2::DFB::SET + ICC_SRE_EL2::DIB::SET + ICC_SRE_EL2::ENABLE::SET);
    barrier::isb();
    if !ICC_SRE_EL2.is_set(ICC_SRE_EL2::SRE) {
        return Err(NoSystemRegisters);
    }
    ICC_PMR_EL1.set(0xff);
    ICC_BPR1_EL1.set(0);
    ICC_CTLR_EL1.modify(ICC_CTLR_EL1::EOImode::SET);
    ICC_IGRPEN1_EL1.set(1);
    barrier::isb();
    UP.store(true, Ordering::Relaxed);
    Ok(())
}

/// Disables this CPU's interface: no interrupt is signalled or wakes the CPU any more. [`init`] brings it up again.
pub fn shut() {
    ICC_IGRPEN1_EL1.set(0);
    barrier::isb();
}

/// Acknowledges the pending interrupt of the highest priority; `None` if none is pending any more. It does not return
/// for [`STOP_SGI`].
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "INTIDs have 24 bits")]
pub fn ack() -> Option<Intid> {
    let intid = ICC_IAR1_EL1.get() as u32 & 0xff_ffff;
    // The accesses that follow observe what the device wrote before it raised the interrupt (IHI 0069, 4.1.1).
    barrier::dsb_sy();
    match intid {
        1020..=1023 => None,
        _ if intid == u32::from(STOP_SGI) => barrier::park(),
        _ => Some(Intid(intid)),
    }
}

/// Drops the running priority, so that this CPU can take other interrupts. The interrupt stays active.
#[inline]
pub fn eoi(intid: Intid) {
    // The accesses that handled the interrupt complete before it can be taken again.
    barrier::dsb_sy();
    ICC_EOIR1_EL1.set(intid.0.into());
    barrier::isb();
}

/// Deactivates an interrupt, so that any CPU can take it again. LPIs have no active state and are not deactivated.
#[inline]
pub fn deactivate(intid: Intid) {
    ICC_DIR_EL1.set(intid.0.into());
    barrier::isb();
}

/// The value of ICC_SGI1R_EL1 that sends SGI `sgi` to the CPU with affinity `target`. Aff0 is a bit of the target list,
/// within the range of sixteen that RS selects.
#[must_use]
const fn sgi1r(sgi: u8, target: Mpidr) -> u64 {
    let aff0 = target.aff(0) as u64;
    ICC_SGI1R_EL1::Aff3.val(target.aff(3) as u64).value
        | ICC_SGI1R_EL1::RS.val(aff0 >> 4).value
        | ICC_SGI1R_EL1::Aff2.val(target.aff(2) as u64).value
        | ICC_SGI1R_EL1::INTID.val(sgi as u64).value
        | ICC_SGI1R_EL1::Aff1.val(target.aff(1) as u64).value
        | ICC_SGI1R_EL1::TargetList.val(1 << (aff0 & 0xf)).value
}

const _: () = assert!(sgi1r(5, Mpidr(0x04_0003_0221)) == 0x0004_2003_0502_0002);

/// Sends SGI `sgi` (0 to 15) to one CPU, which observes all earlier stores when it takes it.
///
/// Affinities with Aff0 above 15 need the range selector (ICC_CTLR_EL1.RSS and GICD_TYPER.RSS), which machines with
/// such affinities implement.
#[inline]
pub fn send_sgi(sgi: u8, target: Mpidr) {
    barrier::dsb_ishst();
    ICC_SGI1R_EL1.set(sgi1r(sgi, target));
    barrier::isb();
}

/// Sends SGI `sgi` (0 to 15) to all CPUs except this one.
pub fn send_sgi_others(sgi: u8) {
    barrier::dsb_ishst();
    ICC_SGI1R_EL1.write(ICC_SGI1R_EL1::IRM::SET + ICC_SGI1R_EL1::INTID.val(sgi.into()));
    barrier::isb();
}

/// Asks all other CPUs to stop, if SGIs can be sent. A CPU that is in EL2 stops when it next acknowledges an interrupt.
pub fn stop_others() {
    if UP.load(Ordering::Relaxed) {
        send_sgi_others(STOP_SGI);
    }
}
