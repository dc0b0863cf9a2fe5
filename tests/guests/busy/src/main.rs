//! An EL1 guest that computes on all its vCPUs, and says how much it got done between two moments that are the same for all
//! domains: `GUEST SHARE vcpus=N turns=T end`, twice. A turn is always the same few instructions, so turns are time on a CPU as the
//! guest itself sees it.
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

    #[repr(align(64))]
    struct Line(AtomicU64);
    static TURNS: [Line; cpu::MAX] = [const { Line(AtomicU64::new(0)) }; cpu::MAX];

    /// Some turns, the same on every vCPU.
    #[inline(never)]
    fn compute() {
        let turns = &TURNS[cpu::this().index()].0;
        for _ in 0..1024 {
            // Nobody else writes it.
            turns.store(turns.load(Relaxed) + 1, Relaxed);
        }
    }

    fn other() -> ! {
        loop {
            compute();
        }
    }

    /// Computes until `second`; how much all have done by then.
    fn until(second: u64) -> u64 {
        let end = mrs!("cntfrq_el0") * second;
        while cpu::now() < end {
            compute();
        }
        TURNS.iter().map(|turns| turns.0.load(Relaxed)).sum()
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
        let turns = until(TO) - before;
        // Domains that spoke at once would speak into each other's lines; the second time is for those that did.
        for (round, spread) in [(1, 997), (2, 1009)] {
            let milliseconds = TO * 1000 + round * 1000 + turns % spread;
            while cpu::now() < mrs!("cntfrq_el0") / 1000 * milliseconds {
                compute();
            }
            say!("GUEST SHARE vcpus={count} turns={turns} end");
        }
        // The others have to be held up for as long.
        other()
    }
}
