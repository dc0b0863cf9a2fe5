//! An EL1 guest that computes on all its vCPUs and measures for how long they had a CPU between two points in time that are the
//! same for all domains. It prints `GUEST SHARE vcpus=N ms=T end`. Each vCPU reads the counter all the time: when the value
//! leaps, another vCPU had the CPU meanwhile.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use guest_rt::{cpu, gic, mrs, off, say};

    /// The measurement begins and ends at these times, in seconds since the machine was started.
    const FROM: u64 = 5;
    const TO: u64 = 65;

    /// A leap of the counter by at least so many milliseconds is time without a CPU. Another vCPU runs for tens of
    /// milliseconds; one iteration takes one or two, even when QEMU runs its other CPUs in between.
    const LEAP: u64 = 5;

    /// The CPU time of a vCPU. Only that vCPU writes it.
    #[repr(align(64))]
    struct Had {
        ticks: AtomicU64,
        until: AtomicU64,
    }
    static HAD: [Had; cpu::MAX] = [const { Had { ticks: AtomicU64::new(0), until: AtomicU64::new(0) } }; cpu::MAX];

    fn ticks(milliseconds: u64) -> u64 {
        mrs!("cntfrq_el0") / 1000 * milliseconds
    }

    /// Computes for a short while and adds the time that it took, unless the counter leapt.
    fn compute() {
        let had = &HAD[cpu::this().index()];
        for turn in 0..1024 {
            // No YIELD: QEMU would run its next CPU.
            core::hint::black_box(turn);
        }
        let now = cpu::now();
        let took = now - had.until.load(Relaxed);
        if took < ticks(LEAP) {
            had.ticks.store(had.ticks.load(Relaxed) + took, Relaxed);
        }
        had.until.store(now, Relaxed);
    }

    fn other() -> ! {
        loop {
            compute();
        }
    }

    /// Computes until `second`; returns the CPU time of all vCPUs by then, in ticks.
    fn until(second: u64) -> u64 {
        while cpu::now() < ticks(1000 * second) {
            compute();
        }
        HAD.iter().map(|had| had.ticks.load(Relaxed)).sum()
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        let count = gic::count().min(cpu::MAX);
        for index in 1..count {
            let answer = cpu::start(index, other);
            if answer != 0 {
                say!("GUEST FAIL busy: CPU_ON of vCPU{index} returned {answer}");
                off()
            }
        }
        let before = until(FROM);
        let had = (until(TO) - before) / ticks(1);
        // Printed twice, at times that differ between domains.
        for (round, spread) in [(1, 997), (2, 1009)] {
            let milliseconds = TO * 1000 + round * 1000 + had % spread;
            while cpu::now() < ticks(milliseconds) {
                compute();
            }
            say!("GUEST SHARE vcpus={count} ms={had} end");
        }
        // Compete for the CPUs until all other domains have measured, too.
        other()
    }
}
