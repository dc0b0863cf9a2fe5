//! The lines, and the registers of the GIC for them.

use guest_rt::mmio::{read32, write8, write32, write64};
use guest_rt::{cpu, gic, mrs, msr};

/// The PL031 on this board, and its interrupt.
const RTC: u64 = 0x0901_0000;
const RTC_INTID: u32 = 34;
/// PL031 (DDI 0224): data, match, mask, raw status, clear.
const RTCDR: u64 = 0;
const RTCMR: u64 = 4;
const RTCIMSC: u64 = 0x10;
const RTCRIS: u64 = 0x14;
const RTCICR: u64 = 0x1c;

/// Offsets in the distributor, and in the second frame of a redistributor.
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const IGROUPR: u64 = 0x80;
const IPRIORITYR: u64 = 0x400;
const IROUTER: u64 = 0x6000;
const SGI_FRAME: u64 = 0x1_0000;

/// A level-sensitive line.
pub struct Line {
    pub name: &'static str,
    pub intid: u32,
    high: fn(),
    low: fn(),
}

/// All lines. They are low.
pub fn all() -> [Line; 3] {
    let lines = [
        Line { name: "cntv", intid: 27, high: || cntv(true), low: || cntv(false) },
        Line { name: "cntp", intid: 30, high: || cntp(true), low: || cntp(false) },
        Line { name: "rtc", intid: RTC_INTID, high: rtc_high, low: rtc_low },
    ];
    lines.iter().for_each(Line::lower);
    lines
}

fn cntv(on: bool) {
    msr!("cntv_cval_el0", 0);
    msr!("cntv_ctl_el0", u64::from(on));
    cpu::isb();
}

fn cntp(on: bool) {
    msr!("cntp_cval_el0", 0);
    msr!("cntp_ctl_el0", u64::from(on));
    cpu::isb();
}

/// The line rises when the clock is at the match value. A second may begin between the two accesses.
fn rtc_high() {
    write32(RTC + RTCIMSC, 1);
    while read32(RTC + RTCRIS) & 1 == 0 {
        write32(RTC + RTCMR, read32(RTC + RTCDR));
    }
}

fn rtc_low() {
    write32(RTC + RTCIMSC, 0);
    write32(RTC + RTCICR, 1);
}

impl Line {
    /// Raises the line.
    pub fn raise(&self) {
        (self.high)();
        settle();
    }

    /// Lowers the line.
    pub fn lower(&self) {
        (self.low)();
        settle();
    }

    /// The registers with a bit for this interrupt, from the frame that has them.
    fn bits(&self, register: u64) -> (u64, u32) {
        let frame = if self.intid < 32 { gic::mine().base + SGI_FRAME } else { gic::GICD };
        (frame + register + u64::from(self.intid / 32) * 4, 1 << (self.intid % 32))
    }

    /// Sets group 1, a priority, and for an SPI the route to this vCPU. Level-sensitive is the reset value.
    pub fn configure(&self) {
        if self.intid >= 32 {
            let (group, bit) = self.bits(IGROUPR);
            write32(group, read32(group) | bit);
            write8(gic::GICD + IPRIORITYR + u64::from(self.intid), 0xa0);
            write64(gic::GICD + IROUTER + u64::from(self.intid) * 8, mrs!("mpidr_el1") & 0xff_00ff_ffff);
        }
        self.enable(true);
    }

    /// Enables or disables the interrupt.
    pub fn enable(&self, on: bool) {
        let (register, bit) = self.bits(if on { ISENABLER } else { ICENABLER });
        write32(register, bit);
        if !on {
            // Until the effect is complete, the interrupt may come.
            wait_rwp();
        }
    }

    /// Whether the interrupt is pending.
    pub fn is_pending(&self) -> bool {
        let (register, bit) = self.bits(ISPENDR);
        read32(register) & bit != 0
    }

    /// Makes the interrupt pending by a write.
    pub fn set_pending(&self) {
        let (register, bit) = self.bits(ISPENDR);
        write32(register, bit);
    }
}

fn wait_rwp() {
    const RWP: u32 = 1 << 31;
    const REDIST_RWP: u32 = 1 << 3;
    while read32(gic::GICD) & RWP != 0 {}
    while read32(gic::mine().base) & REDIST_RWP != 0 {}
}

/// Gives a line time to reach the GIC, and a hypervisor, which takes physical interrupts, time to notice it.
fn settle() {
    let _ = cpu::wait(1, || false);
}

/// The distributor forwards interrupts of group 1, or does not.
pub fn group1(on: bool) {
    const ARE_NS: u32 = 1 << 4;
    const ENABLE_GRP1: u32 = 1 << 1;
    write32(gic::GICD, ARE_NS | if on { ENABLE_GRP1 } else { 0 });
    if !on {
        wait_rwp();
    }
}

/// The CPU interface masks all priorities, or none.
pub fn mask(on: bool) {
    msr!("s3_0_c4_c6_0", if on { 0 } else { 0xf0 }); // ICC_PMR_EL1
    cpu::isb();
}

/// Acknowledges the interrupt that comes.
pub fn soon() -> Option<u32> {
    let mut taken = None;
    let _ = cpu::wait(cpu::LONG, || {
        taken = gic::acknowledge();
        taken.is_some()
    });
    taken
}

/// Acknowledges an interrupt that should not come.
pub fn never() -> Option<u32> {
    let mut taken = None;
    let _ = cpu::wait(5, || {
        taken = gic::acknowledge();
        taken.is_some()
    });
    taken
}
