//! An EL1 guest that starts its other vCPUs and ends, in the way that its seed says: as one that crashes, that hangs, that
//! asks for a reset or switches itself off. Without a seed the time of day chooses among those after which it may be
//! started again.
//!
//! It says `GUEST ENDS how` before. What comes after, if the hypervisor lets it go on where it should not, is a
//! `GUEST FAIL`.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name, and this guest breaks itself")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as a domain's kernel");
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

    /// No RAM, no device.
    const NOWHERE: u64 = 0x30_0000_0000;

    static STARTED: AtomicU32 = AtomicU32::new(0);
    static ALL_OFF: AtomicBool = AtomicBool::new(false);

    /// A page of instructions that nobody has.
    #[repr(C, align(4096))]
    struct Page([u32; 1024]);
    static UNDEFINED: Page = Page([0; 1024]);

    /// Half of the guests' others sleep, half spin.
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

    /// An instruction that nobody has, with these vectors.
    fn undefined(vectors: u64) {
        // SAFETY: whatever comes of it comes to this guest alone.
        unsafe { asm!("msr vbar_el1, {}", "isb", "udf #0", in(reg) vectors) };
    }

    /// A store to nowhere, whose handler has a stack that is nowhere, too.
    fn no_stack() {
        // SAFETY: as `undefined`. There is no way back.
        unsafe { asm!("mov sp, {0}", "str xzr, [{0}]", "b .", in(reg) NOWHERE, options(noreturn)) };
    }

    fn all_off() {
        ALL_OFF.store(true, Ordering::Release);
        // Those that sleep look.
        gic::sgi1r(1 << 40);
        smccc::hvc(CPU_OFF, 0, 0, 0);
    }

    fn hang() {
        cpu::mask();
        loop {
            core::hint::spin_loop();
        }
    }

    /// SGIs to all others without end; one that sleeps is woken by each.
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

    /// After so many it may be started again.
    const RESTARTING: u64 = 5;

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        gic::distributor_on();
        gic::cpu_on(0);
        let count = gic::count().min(cpu::MAX);
        for index in 1..count {
            let answer = cpu::start(index, other);
            if answer != 0 {
                say!("GUEST FAIL ends: CPU_ON of vCPU {index} says {answer}");
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
        say!("GUEST FAIL ends: it went on");
        off()
    }
}
