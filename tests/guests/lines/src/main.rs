//! An EL1 guest that raises and lowers level-sensitive interrupt lines, and looks which interrupts it gets.
//!
//! The lines are those of its virtual timer (PPI 27), of its physical timer (PPI 30) and of a real-time clock, a PL031 (an SPI).
//! A level-sensitive interrupt is pending while its line is high (IHI 0069, 4.1.2), so one whose line has fallen before it was
//! acknowledged must not be delivered, whatever kept it from being delivered: its enable bit, its group, or its priority.
//!
//! It takes no exception for them, but reads ICC_IAR1_EL1. It prints `GUEST PASS name` or `GUEST FAIL name: why` for each check,
//! then `GUEST DONE lines pass=P fail=F`, and powers off.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "an entry point")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod line;

#[cfg(target_os = "none")]
mod guest {
    use crate::line::{self, Line};
    use core::fmt;
    use core::sync::atomic::{AtomicU32, Ordering};
    use guest_rt::{gic, off, say};

    static PASS: AtomicU32 = AtomicU32::new(0);
    static FAIL: AtomicU32 = AtomicU32::new(0);

    fn check(line: &Line, name: &str, good: bool, why: fmt::Arguments<'_>) {
        let count = if good { &PASS } else { &FAIL };
        count.fetch_add(1, Ordering::Relaxed);
        if good {
            say!("GUEST PASS {}-{name}", line.name);
        } else {
            say!("GUEST FAIL {}-{name}: {why}", line.name);
        }
    }

    /// Checks that the line's interrupt can be acknowledged, or that none can. It is not ended.
    fn expect(line: &Line, name: &str, comes: bool) {
        let wanted = comes.then_some(line.intid);
        let is = if comes { line::soon() } else { line::never() };
        check(line, name, is == wanted, format_args!("acknowledged {is:?}, not {wanted:?}"));
        if let (Some(intid), false) = (is, comes) {
            gic::end(intid);
        }
    }

    fn pending(line: &Line, name: &str, high: bool) {
        check(line, name, line.is_pending() == high, format_args!("GICD_ISPENDR or GICR_ISPENDR says {}", !high));
    }

    /// Ends the interrupt, which has been acknowledged.
    fn end(line: &Line) {
        gic::end(line.intid);
    }

    fn disabled(line: &Line) {
        line.enable(false);
        line.raise();
        pending(line, "disabled-high-is-pending", true);
        line.lower();
        pending(line, "disabled-low-is-not-pending", false);
        line.raise();
        line.lower();
        line.enable(true);
        expect(line, "that-fell-before-it-is-enabled-does-not-come", false);

        line.enable(false);
        line.raise();
        line.lower();
        line.raise();
        line.enable(true);
        expect(line, "that-is-high-when-it-is-enabled-comes", true);
        line.lower();
        end(line);
        expect(line, "that-fell-while-active-does-not-come-again", false);
    }

    fn group(line: &Line) {
        line::group1(false);
        line.raise();
        line.lower();
        line::group1(true);
        expect(line, "that-fell-before-its-group-is-enabled-does-not-come", false);
        line::group1(false);
        line.raise();
        line::group1(true);
        expect(line, "that-is-high-when-its-group-is-enabled-comes", true);
        line.lower();
        end(line);
    }

    fn priority(line: &Line) {
        line::mask(true);
        line.raise();
        // Under a hypervisor, this is an exit, after which the interrupt is in a list register; so is the next.
        pending(line, "masked-high-is-pending", true);
        line.lower();
        pending(line, "masked-low-is-not-pending", false);
        line::mask(false);
        expect(line, "that-fell-before-its-priority-is-unmasked-does-not-come", false);
    }

    fn active(line: &Line) {
        line.raise();
        expect(line, "that-rises-comes", true);
        end(line);
        expect(line, "that-is-still-high-after-its-end-comes-again", true);
        line.lower();
        line.raise();
        end(line);
        expect(line, "that-rose-again-while-active-comes-again", true);
        line.lower();
        end(line);
        expect(line, "that-is-low-after-its-end-does-not-come", false);
    }

    fn by_write(line: &Line) {
        line.enable(false);
        line.set_pending();
        pending(line, "made-pending-by-a-write-is-pending", true);
        line.enable(true);
        expect(line, "made-pending-by-a-write-comes", true);
        end(line);
        expect(line, "made-pending-by-a-write-comes-once", false);
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        say!("GUEST START lines");
        gic::distributor_on();
        gic::cpu_on(0);
        for line in line::all() {
            line.configure();
            for part in [disabled, group, priority, active, by_write] {
                part(&line);
            }
            line.enable(false);
        }
        say!("GUEST DONE lines pass={} fail={}", PASS.load(Ordering::Relaxed), FAIL.load(Ordering::Relaxed));
        off()
    }
}
