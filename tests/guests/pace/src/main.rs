//! An EL1 guest that makes the hypervisor wake and switch vCPUs: one vCPU wakes the others with LPIs, or has them spin.
//!
//! vCPU 0 reads commands of one letter from the console and prints `GUEST DONE` after each:
//!
//! * `w`: wakes the other vCPUs in turn, at least `WAKES` times in all. Event `e` of device 0 goes to vCPU `e` and is raised by
//!   an INT command. Then vCPU 0 sleeps until its timer fires, so that all others sleep again before the next wake.
//! * `s`: all vCPUs but vCPU 0 spin for `SPIN_MS`.
//! * `q`: SYSTEM_OFF.
//!
//! vCPU 0 always waits in WFI, never in a loop: where QEMU runs its CPUs in turn, a loop keeps the others from running.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
    use guest_rt::gic::{self, Redistributor};
    use guest_rt::its::{Its, Table};
    use guest_rt::{console, cpu, exception, mrs, msr, off, say};

    const WAKES: usize = 32;
    const SPIN_MS: u64 = 200;
    /// Long enough for a sleeping vCPU to wake up, count the interrupt and sleep again.
    const PAUSE_US: u64 = 200;

    const FIRST_LPI: u32 = 8192;
    const DEVICE: u32 = 0;
    const EVENT_BITS: u32 = cpu::MAX.next_power_of_two().trailing_zeros();
    /// PPI of CNTV.
    const TIMER: u32 = 27;
    /// ICC_SGI1R_EL1.IRM: SGI 0 to all but the sender.
    const TO_ALL_OTHERS: u64 = 1 << 40;

    static STARTED: AtomicU32 = AtomicU32::new(0);
    static WOKEN: [AtomicU32; cpu::MAX] = [const { AtomicU32::new(0) }; cpu::MAX];
    static SPIN_UNTIL: AtomicU64 = AtomicU64::new(0);

    const TABLE: usize = 0x1_0000;
    static PROPERTIES: Table<TABLE> = Table::new();
    static PENDING: [Table<TABLE>; cpu::MAX] = [const { Table::new() }; cpu::MAX];
    static EVENTS: Table<TABLE> = Table::new();

    fn interrupt(intid: u32) {
        if intid == TIMER {
            msr!("cntv_ctl_el0", 0);
        } else if let Some(woken) = WOKEN.get(intid.wrapping_sub(FIRST_LPI) as usize) {
            woken.fetch_add(1, SeqCst);
        }
    }

    fn other() -> ! {
        gic::cpu_on(0);
        STARTED.fetch_add(1, SeqCst);
        cpu::unmask();
        loop {
            cpu::wfi();
            while cpu::now() < SPIN_UNTIL.load(SeqCst) {}
        }
    }

    fn pause(microseconds: u64) {
        msr!("cntv_cval_el0", cpu::now() + mrs!("cntfrq_el0") / 1_000_000 * microseconds);
        msr!("cntv_ctl_el0", 1);
        cpu::isb();
        while mrs!("cntv_ctl_el0") & 1 != 0 {
            cpu::sleep();
        }
    }

    fn set_up(redistributors: &[Redistributor]) -> Its {
        let id_bits = gic::id_bits().min(14);
        for lpi in 0..cpu::MAX as u64 {
            let at = (PROPERTIES.address() + lpi) as *mut u8;
            // SAFETY: inside the table, before the redistributors read it.
            unsafe { at.write_volatile(0xa0 | 1) };
        }
        for (n, r) in redistributors.iter().enumerate() {
            gic::lpis_on(*r, PROPERTIES.address(), id_bits, PENDING[n].address());
        }
        let mut its = Its::on();
        its.map_device(DEVICE, EVENT_BITS, EVENTS.address());
        for (n, r) in redistributors.iter().enumerate() {
            let target = its.target(*r);
            its.map_collection(n as u16, target);
            its.map_event(DEVICE, n as u32, FIRST_LPI + n as u32, n as u16);
            its.invalidate(DEVICE, n as u32);
            its.sync(target);
        }
        its
    }

    fn wake_others(its: &mut Its, others: usize) {
        for round in 0..WAKES.max(others) {
            let vcpu = 1 + round % others;
            let before = WOKEN[vcpu].load(SeqCst);
            its.raise(DEVICE, vcpu as u32);
            pause(PAUSE_US);
            if WOKEN[vcpu].load(SeqCst) != before + 1 {
                say!("GUEST FAIL pace: vCPU{vcpu} was not woken");
                off()
            }
        }
    }

    fn spin() {
        SPIN_UNTIL.store(cpu::now() + mrs!("cntfrq_el0") / 1000 * SPIN_MS, SeqCst);
        gic::sgi1r(TO_ALL_OTHERS);
        pause(SPIN_MS * 1000);
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        exception::on_interrupt(interrupt);
        gic::distributor_on();
        let mut all = [Redistributor { base: 0, typer: 0 }; cpu::MAX];
        let mut count = 0;
        for (slot, r) in all.iter_mut().zip(gic::redistributors()) {
            *slot = r;
            count += 1;
        }
        gic::cpu_on(1 << TIMER);
        for index in 1..count {
            let answer = cpu::start(index, other);
            while answer == 0 && (STARTED.load(SeqCst) as usize) < index {
                pause(PAUSE_US);
            }
            if answer != 0 {
                say!("GUEST FAIL pace: CPU_ON of vCPU{index} returned {answer}");
                off()
            }
        }
        let mut its = set_up(&all[..count]);
        say!("GUEST READY pace cpus={count}");
        loop {
            match console::read() {
                Some(b'w') => wake_others(&mut its, count - 1),
                Some(b's') => spin(),
                Some(b'q') => off(),
                _ => {
                    pause(PAUSE_US);
                    continue;
                }
            }
            // Count how the others go back to sleep, too.
            pause(PAUSE_US);
            say!("GUEST DONE");
        }
    }
}
