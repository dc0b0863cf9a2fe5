//! An EL1 guest for two domains that share a CPU. It is the kernel of both and finds out by GICD_TYPER.LPIS which it is:
//!
//! * dom0 has an ITS. It computes, takes a timer interrupt in each millisecond, and measures how long it has a CPU and how
//!   long it is without one.
//! * A domU has none. It says `GUEST RESETS` and asks for a reset, in each of its lives.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as a kernel");
}

#[cfg(target_os = "none")]
mod guest {
    use guest_rt::{cpu, exception, gic, meter, mrs, msr, off, say, smccc};

    const SYSTEM_RESET: u64 = 0x8400_0009;

    /// Start and length of the measurement in milliseconds. By the start the domU has been reset several times.
    const FROM: u64 = 500;
    const WINDOW: u64 = 2_500;

    /// PPI of CNTV.
    const TIMER: u32 = 27;

    fn arm_timer() {
        msr!("cntv_cval_el0", cpu::now() + mrs!("cntfrq_el0") / 1000);
        msr!("cntv_ctl_el0", 1);
    }

    fn interrupt(intid: u32) {
        if intid == TIMER {
            arm_timer();
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        if gic::has_lpis() {
            exception::on_interrupt(interrupt);
            gic::distributor_on();
            gic::cpu_on(1 << TIMER);
            arm_timer();
            cpu::unmask();
            meter::run(FROM, WINDOW)
        }
        say!("GUEST RESETS");
        smccc::hvc(SYSTEM_RESET, 0, 0, 0);
        say!("GUEST FAIL resets: SYSTEM_RESET returned");
        off()
    }
}
