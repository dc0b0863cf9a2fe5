//! The parts of a GICv3 that the guests need.

use crate::mmio::{read32, read64, write32, write64};
use crate::{cpu, mrs, msr};
use core::arch::asm;

/// The distributor on this board.
pub const GICD: u64 = 0x0800_0000;
/// The first redistributor on this board.
pub const GICR: u64 = 0x080a_0000;

const GICD_CTLR: u64 = 0x0;
const GICD_TYPER: u64 = 0x4;
const RWP: u32 = 1 << 31;
const ARE_NS: u32 = 1 << 4;
const ENABLE_GRP1: u32 = 1 << 1;

const GICR_CTLR: u64 = 0x0;
const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
const SGI: u64 = 0x1_0000;
const IGROUPR0: u64 = SGI + 0x80;
const ISENABLER0: u64 = SGI + 0x100;
const ICENABLER0: u64 = SGI + 0x180;
const IPRIORITYR: u64 = SGI + 0x400;

const TYPER_VLPIS: u64 = 1 << 1;
const TYPER_LAST: u64 = 1 << 4;
const ENABLE_LPIS: u32 = 1;

/// A redistributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redistributor {
    /// Its address.
    pub base: u64,
    /// GICR_TYPER.
    pub typer: u64,
}

/// All redistributors, in order of address.
pub fn redistributors() -> impl Iterator<Item = Redistributor> {
    let mut next = Some(GICR);
    core::iter::from_fn(move || {
        let base = next?;
        let typer = read64(base + GICR_TYPER);
        let frames = if typer & TYPER_VLPIS != 0 { 4 } else { 2 };
        next = (typer & TYPER_LAST == 0).then_some(base + frames * 0x1_0000);
        Some(Redistributor { base, typer })
    })
}

/// The number of vCPUs.
#[must_use]
pub fn count() -> usize {
    redistributors().count()
}

/// The redistributor of the vCPU that runs this.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn mine() -> Redistributor {
    let mpidr = mrs!("mpidr_el1");
    let affinity = (mpidr >> 8 & 0xff00_0000) | (mpidr & 0xff_ffff);
    redistributors().find(|r| r.typer >> 32 == affinity).expect("a redistributor with this vCPU's affinity")
}

/// Switches the distributor on: affinity routing, group 1.
pub fn distributor_on() {
    write32(GICD + GICD_CTLR, ARE_NS | ENABLE_GRP1);
    while read32(GICD + GICD_CTLR) & RWP != 0 {}
}

/// Whether this GIC has LPIs.
#[must_use]
pub fn has_lpis() -> bool {
    const LPIS: u32 = 1 << 17;
    read32(GICD + GICD_TYPER) & LPIS != 0
}

/// The number of INTID bits.
#[must_use]
pub fn id_bits() -> u32 {
    (read32(GICD + GICD_TYPER) >> 19 & 0x1f) + 1
}

/// Wakes this vCPU's redistributor and enables group 1 at its CPU interface, all SGIs, and the PPIs in `enabled`.
pub fn cpu_on(enabled: u32) {
    const PROCESSOR_SLEEP: u32 = 1 << 1;
    const CHILDREN_ASLEEP: u32 = 1 << 2;
    let base = mine().base;
    write32(base + GICR_WAKER, read32(base + GICR_WAKER) & !PROCESSOR_SLEEP);
    while read32(base + GICR_WAKER) & CHILDREN_ASLEEP != 0 {}
    write32(base + ICENABLER0, u32::MAX);
    write32(base + IGROUPR0, u32::MAX);
    for word in 0..8 {
        write32(base + IPRIORITYR + 4 * word, 0xa0a0_a0a0);
    }
    write32(base + ISENABLER0, enabled | 0xffff);
    while read32(base + GICR_CTLR) & (1 << 3) != 0 {}
    msr!("s3_0_c12_c12_5", mrs!("s3_0_c12_c12_5") | 1); // ICC_SRE_EL1
    cpu::isb();
    msr!("s3_0_c4_c6_0", 0xf0); // ICC_PMR_EL1
    msr!("s3_0_c12_c12_3", 0); // ICC_BPR1_EL1
    msr!("s3_0_c12_c12_4", 0); // ICC_CTLR_EL1: EOImode 0
    msr!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
    cpu::isb();
}

/// Enables or disables a PPI of this vCPU.
pub fn ppi(intid: u32, on: bool) {
    let register = if on { ISENABLER0 } else { ICENABLER0 };
    write32(mine().base + register, 1 << intid);
}

/// Acknowledges the pending interrupt with the highest priority, if there is one.
#[must_use]
pub fn acknowledge() -> Option<u32> {
    let intid = mrs!("s3_0_c12_c12_0") as u32; // ICC_IAR1_EL1
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", "isb", options(nostack)) };
    (!(1020..8192).contains(&intid)).then_some(intid)
}

/// Ends an interrupt: drops its priority and deactivates it.
pub fn end(intid: u32) {
    msr!("s3_0_c12_c12_1", u64::from(intid)); // ICC_EOIR1_EL1
    cpu::isb();
}

/// Writes ICC_SGI1R_EL1.
pub fn sgi1r(value: u64) {
    // SAFETY: a barrier, so that the receiver sees earlier stores.
    unsafe { asm!("dsb ishst", options(nostack)) };
    msr!("s3_0_c12_c11_5", value);
    cpu::isb();
}

/// Sets a redistributor's LPI tables and enables LPIs. The pending table is all zero.
pub fn lpis_on(r: Redistributor, properties: u64, id_bits: u32, pending: u64) {
    const PTZ: u64 = 1 << 62;
    lpis_on_with_pending(r, properties, id_bits, pending | PTZ);
}

/// Sets a redistributor's LPI tables and enables LPIs. LPIs whose bits are set in the pending table are pending.
pub fn lpis_on_with_pending(r: Redistributor, properties: u64, id_bits: u32, pending: u64) {
    const INNER_WB: u64 = 7 << 7;
    const INNER_SHAREABLE: u64 = 1 << 10;
    write64(r.base + GICR_PROPBASER, properties | INNER_WB | INNER_SHAREABLE | u64::from(id_bits - 1));
    write64(r.base + GICR_PENDBASER, pending | INNER_WB | INNER_SHAREABLE);
    write32(r.base + GICR_CTLR, read32(r.base + GICR_CTLR) | ENABLE_LPIS);
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
