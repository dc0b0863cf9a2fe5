//! An EL1 guest without a timer: every vCPU sleeps in WFI until an LPI comes, and counts it.
//!
//! Device 0 (a store to GITS_TRANSLATER by the harness or a CPU) has four events for each vCPU. Event `e` goes to vCPU
//! `e % vcpus` as LPI `8192 + e`. A lost wake-up shows as a counter that is too small.
//!
//! The guest prints `GUEST COUNTERS 0xADDRESS events=E cpus=N`, then `GUEST READY`. At that physical address is a page of
//! 64-bit words: word `e` counts event `e`, word 508 counts interrupts with any other INTID, word 510 is 1 once all vCPUs
//! sleep. After the harness has set word 511, the next event makes the guest print `GUEST PASS wake` and power off.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU64, Ordering};
    use guest_rt::gic::{self, Redistributor};
    use guest_rt::its::{Its, Table};
    use guest_rt::{cpu, exception, off, say};

    const EVENTS_EACH: usize = 4;
    const EVENT_BITS: u32 = (EVENTS_EACH * cpu::MAX).next_power_of_two().trailing_zeros();
    const FIRST_LPI: u32 = 8192;
    const DEVICE: u32 = 0;
    const UNEXPECTED: usize = 508;
    const READY: usize = 510;
    const STOP: usize = 511;

    #[repr(C, align(4096))]
    struct Page([AtomicU64; 512]);
    static COUNTERS: Page = Page([const { AtomicU64::new(0) }; 512]);
    static STARTED: AtomicU64 = AtomicU64::new(0);

    const TABLE: usize = 0x1_0000;
    static PROPERTIES: Table<TABLE> = Table::new();
    static PENDING: [Table<TABLE>; cpu::MAX] = [const { Table::new() }; cpu::MAX];
    static EVENTS: Table<TABLE> = Table::new();

    fn interrupt(intid: u32) {
        let event = intid.wrapping_sub(FIRST_LPI) as usize;
        let slot = if event < EVENTS_EACH * cpu::MAX { event } else { UNEXPECTED };
        // Each event goes to one vCPU, so no other vCPU writes this word.
        COUNTERS.0[slot].store(COUNTERS.0[slot].load(Ordering::Relaxed) + 1, Ordering::Release);
        if COUNTERS.0[STOP].load(Ordering::Acquire) != 0 {
            say!("GUEST PASS wake");
            off()
        }
    }

    fn sleep() -> ! {
        gic::cpu_on(0);
        STARTED.fetch_add(1, Ordering::AcqRel);
        cpu::unmask();
        loop {
            cpu::wfi();
        }
    }

    fn set_up(redistributors: &[Redistributor]) {
        let id_bits = gic::id_bits().min(14);
        for lpi in 0..EVENTS_EACH * cpu::MAX {
            let at = (PROPERTIES.address() + lpi as u64) as *mut u8;
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
        }
        for event in 0..EVENTS_EACH * redistributors.len() {
            its.map_event(DEVICE, event as u32, FIRST_LPI + event as u32, (event % redistributors.len()) as u16);
            its.invalidate(DEVICE, event as u32);
        }
        for r in redistributors {
            let target = its.target(*r);
            its.sync(target);
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        say!("GUEST START wake");
        exception::on_interrupt(interrupt);
        gic::distributor_on();
        let mut all = [Redistributor { base: 0, typer: 0 }; cpu::MAX];
        let mut count = 0;
        for (slot, r) in all.iter_mut().zip(gic::redistributors()) {
            *slot = r;
            count += 1;
        }
        for index in 1..count {
            let answer = cpu::start(index, sleep);
            if answer != 0 {
                say!("GUEST FAIL wake: CPU_ON of vCPU{index} returned {answer}");
                off()
            }
        }
        if !cpu::wait(cpu::LONG, || STARTED.load(Ordering::Acquire) as usize == count - 1) {
            say!("GUEST FAIL wake: only {} of {} other vCPUs came up", STARTED.load(Ordering::Relaxed), count - 1);
            off()
        }
        set_up(&all[..count]);
        say!("GUEST COUNTERS {:#x} events={} cpus={count}", COUNTERS.0.as_ptr() as u64, EVENTS_EACH * count);
        say!("GUEST READY");
        COUNTERS.0[READY].store(1, Ordering::Release);
        sleep()
    }
}
