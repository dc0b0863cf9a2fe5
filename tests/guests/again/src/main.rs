//! An EL1 guest that is reset over and over: it checks that its memory is zero, dirties all of it, and asks for a reset while
//! its timer interrupt is active and its other vCPUs sleep or spin.
//!
//! State that survives a reset shows as a word that is not zero, a vCPU that does not start, or a timer interrupt that is still
//! active and does not come again. The guest assumes 16 MiB, of which the first four hold its image and its device tree.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name, and memory is read by address")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU32, Ordering};
    use guest_rt::{cpu, exception, gic, mrs, msr, off, say, smccc};

    const CLEAN: u64 = 0x4040_0000;
    const END: u64 = 0x4100_0000;
    /// PPI of CNTV.
    const TIMER: u32 = 27;
    const SYSTEM_RESET: u64 = 0x8400_0009;

    static STARTED: AtomicU32 = AtomicU32::new(0);

    fn interrupt(intid: u32) {
        if intid == TIMER {
            // The interrupt is active and its line is high: the reset must clear both.
            smccc::hvc(SYSTEM_RESET, 0, 0, 0);
            say!("GUEST FAIL again: SYSTEM_RESET returned");
            off()
        }
    }

    /// vCPUs with an odd index sleep, the others spin.
    fn other() -> ! {
        gic::cpu_on(0);
        STARTED.fetch_add(1, Ordering::AcqRel);
        loop {
            if cpu::this().index() % 2 == 1 {
                cpu::wfi();
            } else {
                core::hint::spin_loop();
            }
        }
    }

    fn check_and_dirty_memory() {
        for at in (CLEAN..END).step_by(8) {
            let word = at as *mut u64;
            // SAFETY: RAM behind the image, which nothing else uses.
            unsafe {
                if word.read_volatile() != 0 {
                    say!("GUEST FAIL again: memory is not zero: {:#x} at {at:#x}", word.read_volatile());
                    off()
                }
                word.write_volatile(at | 1);
            }
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        exception::on_interrupt(interrupt);
        gic::distributor_on();
        gic::cpu_on(1 << TIMER);
        check_and_dirty_memory();
        let count = gic::count().min(cpu::MAX);
        for index in 1..count {
            let answer = cpu::start(index, other);
            if answer != 0 {
                say!("GUEST FAIL again: CPU_ON of vCPU{index} returned {answer}");
                off()
            }
        }
        if !cpu::wait(cpu::LONG, || STARTED.load(Ordering::Acquire) as usize == count - 1) {
            say!("GUEST FAIL again: only {} of {} other vCPUs came up", STARTED.load(Ordering::Relaxed), count - 1);
            off()
        }
        say!("GUEST AGAIN cpus={count}");
        msr!("cntv_cval_el0", cpu::now() + mrs!("cntfrq_el0") / 1000);
        msr!("cntv_ctl_el0", 1);
        cpu::unmask();
        let _ = cpu::wait(cpu::LONG, || false);
        say!("GUEST FAIL again: no timer interrupt");
        off()
    }
}
