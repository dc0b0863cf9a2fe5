//! An EL1 guest whose vCPUs map one virtual address to different pages: each in its own tables, all with the same ASID, as a
//! global mapping, and with local TLB maintenance only. That is legal on CPUs that share no TLB, as vCPUs must appear to be.
//!
//! Each vCPU writes and reads through that address and compares with what its page holds at another address. A word of another
//! vCPU means that the TLB still held that vCPU's translation. After `ROUNDS` rounds on each vCPU the guest prints
//! `GUEST PASS twins`. In each round a vCPU works for a while, then sleeps until its timer fires, so that the other vCPUs run
//! on this CPU in between.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "page tables, and an address that maps to a page of each vCPU")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::arch::asm;
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicU32, Ordering};
    use guest_rt::{cpu, gic, mrs, msr, off, say};

    const ROUNDS: u64 = 2_000;
    const WORDS: usize = 8;
    /// PPI of CNTV.
    const TIMER: u32 = 27;

    /// The address that each vCPU maps to its own page: the first page of the fourth GiB, which the common table maps as a
    /// block.
    const SHARED: u64 = 3 << 30;

    const TABLE: u64 = 0b11;
    /// Normal memory, accessed, inner shareable, global.
    const PAGE: u64 = 0x703;

    #[repr(C, align(4096))]
    struct Pages(UnsafeCell<[[[u64; 512]; 4]; cpu::MAX]>);
    // SAFETY: each vCPU has its own four pages.
    unsafe impl Sync for Pages {}
    static PAGES: Pages = Pages(UnsafeCell::new([[[0; 512]; 4]; cpu::MAX]));

    static DONE: AtomicU32 = AtomicU32::new(0);
    static READY: AtomicU32 = AtomicU32::new(0);

    /// This vCPU's pages: three levels of tables, and its page of data.
    fn mine(level: usize) -> *mut u64 {
        let pages = PAGES.0.get().cast::<u64>();
        pages.wrapping_add((cpu::this().index() * 4 + level) * 512)
    }

    /// Switches to tables that are the common ones except for one page.
    fn translate_alone() {
        let [top, middle, bottom, page] = [0, 1, 2, 3].map(mine);
        let common = mrs!("ttbr0_el1") as *const u64;
        // SAFETY: its own pages; the common table stays as it is.
        unsafe {
            for n in 0..512 {
                top.wrapping_add(n).write_volatile(common.wrapping_add(n).read_volatile());
            }
            top.wrapping_add((SHARED >> 30) as usize).write_volatile(middle as u64 | TABLE);
            middle.write_volatile(bottom as u64 | TABLE);
            bottom.write_volatile(page as u64 | PAGE);
            asm!("dsb ishst", "msr ttbr0_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) top);
        }
    }

    fn work() {
        let index = cpu::this().index() as u64;
        let (own, shared) = (mine(3), SHARED as *mut u64);
        for round in 0..ROUNDS {
            for n in 0..WORDS {
                let word = (index + 1) << 56 | round << 8 | n as u64;
                // SAFETY: both addresses are the vCPU's own page, or the test has failed.
                let (there, here) = unsafe {
                    shared.wrapping_add(n).write_volatile(word);
                    (own.wrapping_add(n).read_volatile(), shared.wrapping_add(n).read_volatile())
                };
                if (there, here) != (word, word) {
                    say!("GUEST FAIL twins: vCPU {index} round {round}: {word:#x}, own {there:#x}, shared {here:#x}");
                    off()
                }
            }
            // Now and then it sleeps, else it is another's turn when its slice is over.
            if round % 4 == index % 4 {
                msr!("cntv_tval_el0", mrs!("cntfrq_el0") / 10_000);
                msr!("cntv_ctl_el0", 1);
                cpu::sleep();
            }
        }
        DONE.fetch_add(1, Ordering::AcqRel);
    }

    fn interrupt(intid: u32) {
        if intid == TIMER {
            msr!("cntv_ctl_el0", 0);
        }
    }

    fn run() {
        gic::cpu_on(1 << TIMER);
        translate_alone();
        READY.fetch_add(1, Ordering::AcqRel);
        let count = gic::count().min(cpu::MAX) as u32;
        if !cpu::wait(cpu::LONG, || READY.load(Ordering::Acquire) == count) {
            say!("GUEST FAIL twins: only {} of {count} vCPUs came up", READY.load(Ordering::Relaxed));
            off()
        }
        work();
    }

    fn other() -> ! {
        run();
        loop {
            cpu::mask();
            cpu::wfi();
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        guest_rt::exception::on_interrupt(interrupt);
        gic::distributor_on();
        let count = gic::count().min(cpu::MAX);
        for index in 1..count {
            let answer = cpu::start(index, other);
            if answer != 0 {
                say!("GUEST FAIL twins: CPU_ON of vCPU{index} returned {answer}");
                off()
            }
        }
        run();
        if !cpu::wait(cpu::LONG, || DONE.load(Ordering::Acquire) as usize == count) {
            say!("GUEST FAIL twins: only {} of {count} vCPUs finished", DONE.load(Ordering::Relaxed));
            off()
        }
        say!("GUEST PASS twins vcpus={count} rounds={ROUNDS}");
        off()
    }
}
