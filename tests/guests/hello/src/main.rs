//! An EL1 guest that says hello, and then a word with each line that is typed on its console, while its timer interrupts it.
//!
//! It is small, so that many can be created at run time. `k` makes it crash, `r` asks for a reset, `o` powers it off. With
//! any other key it says how many timer interrupts it has taken.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU64, Ordering};
    use guest_rt::{console, cpu, exception, gic, mrs, msr, off, say, smccc};

    /// PPI of CNTV.
    const TIMER: u32 = 27;
    const SYSTEM_RESET: u64 = 0x8400_0009;
    const SYSTEM_RESET2: u64 = 0x8400_0012;
    /// A reset_type of the hypervisor's: the domain says that it has crashed.
    const CRASHED: u64 = 0x8000_0001;

    static TICKS: AtomicU64 = AtomicU64::new(0);

    /// Ten times a second.
    fn arm() {
        msr!("cntv_cval_el0", cpu::now() + mrs!("cntfrq_el0") / 10);
        msr!("cntv_ctl_el0", 1);
    }

    fn interrupt(intid: u32) {
        if intid == TIMER {
            TICKS.fetch_add(1, Ordering::Relaxed);
            arm();
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        exception::on_interrupt(interrupt);
        gic::distributor_on();
        gic::cpu_on(1 << TIMER);
        say!("GUEST HELLO");
        arm();
        cpu::unmask();
        loop {
            cpu::wfi();
            match console::read() {
                None => {}
                Some(b'k') => _ = smccc::hvc(SYSTEM_RESET2, CRASHED, 0, 0),
                Some(b'r') => _ = smccc::hvc(SYSTEM_RESET, 0, 0, 0),
                Some(b'o') => off(),
                Some(_) => say!("GUEST TICKS {}", TICKS.load(Ordering::Relaxed)),
            }
        }
    }
}
