//! The physical CPU interface, by system registers (IHI 0069, 4.6 and 12.2).
//!
//! EOImode is 1: the end of an interrupt drops its priority, and deactivation is separate. That is what lets a guest
//! deactivate a physical interrupt by itself, through a list register that is linked to it.

use crate::arch::barrier;
use crate::arch::sysreg::{
    ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_SGI1R_EL1,
    ICC_SRE_EL2, ReadWriteable, Readable, Writeable,
};
use crate::ids::{Intid, Mpidr};
use core::sync::atomic::{AtomicBool, Ordering};

/// The SGI with which a CPU that panics stops the others.
pub const STOP_SGI: u8 = 15;

/// Some CPU's interface is up, so SGIs can be sent.
static UP: AtomicBool = AtomicBool::new(false);

/// This CPU's interface has no system registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSystemRegisters;

/// Brings this CPU's interface up: every priority is signalled, group 1 is on.
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

/// This CPU's interface takes no more interrupts, and none wakes the CPU. [`init`] brings it up again.
pub fn shut() {
    ICC_IGRPEN1_EL1.set(0);
    barrier::isb();
}

/// Acknowledges the most urgent pending interrupt; `None` when there is none (any more). A CPU that is told to stop by
/// one that panics does not come back.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "INTIDs have 24 bits")]
pub fn ack() -> Option<Intid> {
    let intid = ICC_IAR1_EL1.get() as u32 & 0xff_ffff;
    // What the device has done before it interrupted is seen by what follows (IHI 0069, 4.1.1).
    barrier::dsb_sy();
    match intid {
        1020..=1023 => None,
        _ if intid == u32::from(STOP_SGI) => barrier::park(),
        _ => Some(Intid(intid)),
    }
}

/// Drops the running priority: this CPU can take others again. The interrupt stays active.
#[inline]
pub fn eoi(intid: Intid) {
    // What was done for the interrupt is complete before it can come again.
    barrier::dsb_sy();
    ICC_EOIR1_EL1.set(intid.0.into());
    barrier::isb();
}

/// Deactivates an interrupt, so that it can become pending on any CPU again. Not for LPIs, which have no active state.
#[inline]
pub fn deactivate(intid: Intid) {
    ICC_DIR_EL1.set(intid.0.into());
    barrier::isb();
}

/// ICC_SGI1R_EL1 for SGI `sgi` to the CPU at `target`: its Aff0 is a bit of the target list within the range of
/// sixteen that RS selects.
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

/// Sends SGI `sgi` (0 to 15) to one CPU. What was stored before it is seen by who takes it.
///
/// Affinities with Aff0 above 15 need the CPU interface's range selector (ICC_CTLR_EL1.RSS and GICD_TYPER.RSS), which
/// is there on the machines that have them.
#[inline]
pub fn send_sgi(sgi: u8, target: Mpidr) {
    barrier::dsb_ishst();
    ICC_SGI1R_EL1.set(sgi1r(sgi, target));
    barrier::isb();
}

/// Sends SGI `sgi` (0 to 15) to all CPUs but this one.
pub fn send_sgi_others(sgi: u8) {
    barrier::dsb_ishst();
    ICC_SGI1R_EL1.write(ICC_SGI1R_EL1::IRM::SET + ICC_SGI1R_EL1::INTID.val(sgi.into()));
    barrier::isb();
}

/// Asks all other CPUs to stop, if there is a way to. One that is in EL2 stops when it next looks for an interrupt.
pub fn stop_others() {
    if UP.load(Ordering::Relaxed) {
        send_sgi_others(STOP_SGI);
    }
}
