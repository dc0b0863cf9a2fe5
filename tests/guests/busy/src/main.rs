//! An EL1 guest that computes on all its vCPUs, and says how long they had a CPU between two moments that are the same for all
//! domains: `GUEST SHARE vcpus=N ms=T end`, twice. It knows by looking at the counter all the time: where that leaps,
//! somebody else had the CPU.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as a kernel");
}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use guest_rt::{cpu, gic, mrs, off, say};

    /// Between these moments, in seconds since the machine was started.
    const FROM: u64 = 5;
    const TO: u64 = 65;

    /// A leap of the counter by so many milliseconds is time without a CPU. Others run for tens of milliseconds; a turn, even
    /// with those of QEMU's other CPUs in between, takes one or two.
    const LEAP: u64 = 5;

    /// What a vCPU has had. Nobody else writes it.
    #[repr(align(64))]
    struct Had {
        ticks: AtomicU64,
        until: AtomicU64,
    }
    static HAD: [Had; cpu::MAX] = [const { Had { ticks: AtomicU64::new(0), until: AtomicU64::new(0) } }; cpu::MAX];

    fn ticks(milliseconds: u64) -> u64 {
        mrs!("cntfrq_el0") / 1000 * milliseconds
    }

    /// A little work, and what it took.
    fn compute() {
        let had = &HAD[cpu::this().index()];
        for turn in 0..1024 {
            // Not a YIELD, at which QEMU would run its next CPU.
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

    /// Computes until `second`; how long all have had a CPU by then.
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
                say!("GUEST FAIL busy: CPU_ON of vCPU {index} says {answer}");
                off()
            }
        }
        let before = until(FROM);
        let had = (until(TO) - before) / ticks(1);
        // Domains that spoke at once would speak into each other's lines; the second time is for those that did.
        for (round, spread) in [(1, 997), (2, 1009)] {
            let milliseconds = TO * 1000 + round * 1000 + had % spread;
            while cpu::now() < ticks(milliseconds) {
                compute();
            }
            say!("GUEST SHARE vcpus={count} ms={had} end");
        }
        // The others have to be held up for as long.
        other()
    }
}
