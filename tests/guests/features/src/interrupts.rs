//! Timers and SGIs.

use crate::guest::{check, equal};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guest_rt::{cpu, exception, gic, mrs, msr};

const CNTV_PPI: u32 = 27;
const CNTP_PPI: u32 = 30;

static TAKEN: [[AtomicU32; 32]; cpu::MAX] = [const { [const { AtomicU32::new(0) }; 32] }; cpu::MAX];
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicU32 = AtomicU32::new(0);

fn interrupt(intid: u32) {
    match TAKEN[cpu::this().index()].get(intid as usize) {
        Some(count) => {
            count.fetch_add(1, Ordering::AcqRel);
        }
        None => {
            UNEXPECTED.fetch_add(1, Ordering::AcqRel);
        }
    }
    // The lines are level-sensitive: unless it is masked, the interrupt comes again.
    match intid {
        CNTP_PPI => msr!("cntp_ctl_el0", 3),
        CNTV_PPI => msr!("cntv_ctl_el0", 3),
        _ => {}
    }
    cpu::isb();
}

fn taken(cpu: usize, intid: u32) -> u32 {
    TAKEN[cpu][intid as usize].load(Ordering::Acquire)
}

fn other() -> ! {
    gic::cpu_on(0);
    cpu::unmask();
    STARTED.fetch_add(1, Ordering::AcqRel);
    loop {
        cpu::wfi();
    }
}

pub fn run() {
    exception::on_interrupt(interrupt);
    gic::distributor_on();
    gic::cpu_on(1 << CNTV_PPI | 1 << CNTP_PPI);
    cpu::unmask();
    physical_timer();
    virtual_timer();
    sgis();
    equal("no-unexpected-interrupt", UNEXPECTED.load(Ordering::Relaxed), 0);
    cpu::mask();
}

fn physical_timer() {
    let frequency = mrs!("cntfrq_el0");
    // Read the counter before and after, to notice an interrupt that comes before the deadline.
    let start = mrs!("cntpct_el0");
    msr!("cntp_cval_el0", start + frequency / 50);
    msr!("cntp_ctl_el0", 1);
    cpu::isb();
    equal("cntp-CVAL-reads-back", mrs!("cntp_cval_el0"), start + frequency / 50);
    let left = mrs!("cntp_tval_el0");
    check("cntp-TVAL-counts-down", left as u32 as i32 as i64 <= (frequency / 50) as i64, format_args!("{left:#x}"));
    let came = cpu::wait(cpu::LONG, || taken(0, CNTP_PPI) == 1);
    let end = mrs!("cntpct_el0");
    check("cntp-comes-as-PPI-30", came, format_args!("{} taken, CTL {:#x}", taken(0, CNTP_PPI), mrs!("cntp_ctl_el0")));
    check("cntp-is-not-early", end - start >= frequency / 50, format_args!("after {} ticks", end - start));
    equal("cntp-CTL-shows-status", mrs!("cntp_ctl_el0"), 7);
    // By TVAL, waking from WFI, until a hundred interrupts have been taken.
    for n in 2..=100 {
        cpu::mask();
        msr!("cntp_tval_el0", frequency / 5000);
        msr!("cntp_ctl_el0", 1);
        cpu::isb();
        if !cpu::wait(cpu::LONG, || {
            cpu::sleep();
            taken(0, CNTP_PPI) == n
        }) {
            break;
        }
    }
    equal("cntp-wakes-WFI-again-and-again", taken(0, CNTP_PPI), 100);
    // Masked at the timer, then unmasked: the line is level-sensitive.
    cpu::unmask();
    msr!("cntp_ctl_el0", 3);
    msr!("cntp_tval_el0", 0);
    cpu::isb();
    let _ = cpu::wait(5, || false);
    equal("cntp-masked-is-quiet", taken(0, CNTP_PPI), 100);
    msr!("cntp_ctl_el0", 1);
    cpu::isb();
    check("cntp-unmasked-comes-at-once", cpu::wait(cpu::LONG, || taken(0, CNTP_PPI) == 101), format_args!("not taken"));
    msr!("cntp_ctl_el0", 0);
    cpu::isb();
}

fn virtual_timer() {
    let frequency = mrs!("cntfrq_el0");
    for n in 1..=100 {
        cpu::mask();
        msr!("cntv_tval_el0", frequency / 5000);
        msr!("cntv_ctl_el0", 1);
        cpu::isb();
        if !cpu::wait(cpu::LONG, || {
            cpu::sleep();
            taken(0, CNTV_PPI) == n
        }) {
            break;
        }
    }
    cpu::unmask();
    equal("cntv-wakes-WFI-again-and-again", taken(0, CNTV_PPI), 100);
    msr!("cntv_ctl_el0", 0);
    cpu::isb();
}

/// ICC_SGI1R_EL1: Aff3 [55:48], RS [47:44], IRM 40, Aff2 [39:32], INTID [27:24], Aff1 [23:16], target list [15:0].
fn sgi(range: u64, irm: u64, intid: u64, list: u64) {
    gic::sgi1r(range << 44 | irm << 40 | intid << 24 | list);
}

fn sgis() {
    for intid in 0..16 {
        sgi(0, 0, intid, 1);
    }
    let all = || (0..16).all(|intid| taken(0, intid) == 1);
    check("sgi-to-self-all-sixteen", cpu::wait(cpu::LONG, all), format_args!("some were not taken"));

    // Aff0 16 and 32, Aff1 1, Aff2 1, Aff3 1: there is no such vCPU.
    sgi(1, 0, 1, 1);
    sgi(2, 0, 1, 1);
    gic::sgi1r(1 << 24 | 1 << 16 | 1);
    gic::sgi1r(1 << 24 | 1 << 32 | 1);
    gic::sgi1r(1 << 24 | 1 << 48 | 1);
    let _ = cpu::wait(20, || false);
    equal("sgi-to-no-vCPU-is-dropped", taken(0, 1), 1);

    let vcpus = gic::count().min(cpu::MAX);
    for index in 1..vcpus {
        equal("psci-CPU_ON", cpu::start(index, other), 0);
    }
    let started = || STARTED.load(Ordering::Acquire) as usize == vcpus - 1;
    check(
        "psci-all-come-up",
        cpu::wait(cpu::LONG, started),
        format_args!("{} came up", STARTED.load(Ordering::Relaxed)),
    );
    for index in 1..vcpus {
        equal("psci-CPU_ON-twice", cpu::start(index, other), -4);
        sgi(0, 0, 2, 1 << index);
        check("sgi-to-one-other", cpu::wait(cpu::LONG, || taken(index, 2) == 1), format_args!("vCPU{index} took none"));
    }
    equal("sgi-to-others-not-to-self", taken(0, 2), 1);

    sgi(0, 1, 3, 0);
    let all = || (1..vcpus).all(|index| taken(index, 3) == 1);
    check("sgi-to-all-but-self", cpu::wait(cpu::LONG, all), format_args!("not all took it"));
    let _ = cpu::wait(5, || false);
    equal("sgi-to-all-but-self-not-to-self", taken(0, 3), 1);

    if vcpus > 1 {
        let mut good = 0;
        for n in 1..=200 {
            sgi(0, 0, 4, 2);
            if cpu::wait(cpu::LONG, || taken(1, 4) == n) {
                good += 1;
            }
        }
        equal("sgi-each-of-many-comes", good, 200);
    }
}
