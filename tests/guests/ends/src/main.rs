//! An EL1 guest that starts its other vCPUs and ends in the way that its seed selects: it crashes, hangs, asks for a reset or
//! powers off. Without a seed, the counter selects one of the ways after which it may be restarted.
//!
//! It prints `GUEST ENDS how` before, and `GUEST FAIL` if it goes on running where it should not.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name, and this guest crashes on purpose")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::arch::asm;
    use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use guest_rt::{cpu, gic, mrs, off, say, smccc};

    const SYSTEM_RESET: u64 = 0x8400_0009;
    const CPU_OFF: u64 = 0x8400_0002;
    const SYSTEM_RESET2: u64 = 0xc400_0012;
    const CRASH: u64 = 0x8000_0001;

    /// An address without RAM or device.
    const NOWHERE: u64 = 0x30_0000_0000;

    static STARTED: AtomicU32 = AtomicU32::new(0);
    static ALL_OFF: AtomicBool = AtomicBool::new(false);

    /// A page of UNDEFINED instructions.
    #[repr(C, align(4096))]
    struct Page([u32; 1024]);
    static UNDEFINED: Page = Page([0; 1024]);

    /// The other vCPUs: about half of them sleep, the rest spin.
    fn other() -> ! {
        gic::cpu_on(0);
        let sleeps = cpu::now() & 0x400 != 0;
        STARTED.fetch_add(1, Ordering::AcqRel);
        loop {
            if ALL_OFF.load(Ordering::Acquire) {
                smccc::hvc(CPU_OFF, 0, 0, 0);
            }
            if sleeps && !ALL_OFF.load(Ordering::Acquire) {
                cpu::sleep();
            } else {
                core::hint::spin_loop();
            }
        }
    }

    /// Executes an UNDEFINED instruction with these vectors.
    fn undefined(vectors: u64) {
        // SAFETY: the exception affects this guest alone.
        unsafe { asm!("msr vbar_el1, {}", "isb", "udf #0", in(reg) vectors) };
    }

    /// Stores to an address without memory, with a stack at such an address for the handler.
    fn no_stack() {
        // SAFETY: as in `undefined`. It does not return.
        unsafe { asm!("mov sp, {0}", "str xzr, [{0}]", "b .", in(reg) NOWHERE, options(noreturn)) };
    }

    fn all_off() {
        ALL_OFF.store(true, Ordering::Release);
        // Wake those that sleep.
        gic::sgi1r(1 << 40);
        smccc::hvc(CPU_OFF, 0, 0, 0);
    }

    fn hang() {
        cpu::mask();
        loop {
            core::hint::spin_loop();
        }
    }

    /// Sends SGIs to all others for ever; each wakes those that sleep.
    fn flood() {
        loop {
            gic::sgi1r(1 << 40);
        }
    }

    const WAYS: [(&str, fn()); 9] = [
        ("without vectors", || undefined(NOWHERE)),
        ("without a stack", no_stack),
        ("with all vCPUs off", all_off),
        ("by saying that it crashed", || _ = smccc::hvc(SYSTEM_RESET2, CRASH, 0x1234, 0)),
        ("by a reset", || _ = smccc::hvc(SYSTEM_RESET, 0, 0, 0)),
        ("by power off", || off()),
        ("never", hang),
        ("never, in its own vectors", || undefined(UNDEFINED.0.as_ptr() as u64)),
        ("never, flooding", flood),
    ];

    /// After the first so many ways the guest may be restarted.
    const RESTARTING: u64 = 5;

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        gic::distributor_on();
        gic::cpu_on(0);
        let count = gic::count().min(cpu::MAX);
        for index in 1..count {
            let answer = cpu::start(index, other);
            if answer != 0 {
                say!("GUEST FAIL ends: CPU_ON of vCPU{index} returned {answer}");
                off()
            }
        }
        if !cpu::wait(cpu::LONG, || STARTED.load(Ordering::Acquire) as usize == count - 1) {
            say!("GUEST FAIL ends: only {} of {} other vCPUs came up", STARTED.load(Ordering::Relaxed), count - 1);
            off()
        }
        let way = match cpu::seed() {
            0 => (cpu::now() / (mrs!("cntfrq_el0") / 1_000_000)) % RESTARTING,
            seed => (seed - 1) % WAYS.len() as u64,
        };
        let (how, end) = WAYS[way as usize];
        say!("GUEST ENDS {how}");
        end();
        say!("GUEST FAIL ends: still running");
        off()
    }
}
