//! A domain that computes, and measures how long it has a CPU between two moments.
//!
//! It looks at the counter all the time: where the counter leaps, the vCPU was without a CPU. In the end it prints
//! `GUEST METER window_us=T had_us=T gap_us=T end`, again and again: the length of the measurement, the time with a
//! CPU, and the longest leap.

use crate::{cpu, mrs, say};

/// A leap of the counter by so many microseconds is time without a CPU. One turn of [`compute`] takes a few, an exit to
/// EL2 and back no more. Another vCPU runs for a slice, which is some milliseconds at least.
const LEAP_US: u64 = 500;

/// Time between two lines, in microseconds: enough for whatever another domain is saying.
const AGAIN_US: u64 = 50_000;

/// Ticks of the counter in `microseconds`.
fn ticks(microseconds: u64) -> u64 {
    mrs!("cntfrq_el0") / 1_000_000 * microseconds
}

/// Microseconds since the machine was started.
#[must_use]
pub fn now_us() -> u64 {
    cpu::now() / ticks(1)
}

fn compute() {
    for turn in 0..1024 {
        // No YIELD: QEMU would run its next CPU.
        core::hint::black_box(turn);
    }
}

/// Measures for `window` milliseconds, from `from` milliseconds after the machine was started on.
pub fn run(from: u64, window: u64) -> ! {
    while now_us() < from * 1000 {
        compute();
    }
    let leap = ticks(LEAP_US);
    let from = cpu::now();
    let (mut last, mut had, mut gap) = (from, 0, 0);
    while last - from < ticks(window * 1000) {
        compute();
        let now = cpu::now();
        let step = now - last;
        last = now;
        if step < leap {
            had += step;
        } else {
            gap = gap.max(step);
        }
    }
    let us = ticks(1);
    let (window, had, gap) = ((last - from) / us, had / us, gap / us);
    loop {
        say!("GUEST METER window_us={window} had_us={had} gap_us={gap} end");
        let again = now_us() + AGAIN_US;
        while now_us() < again {
            compute();
        }
    }
}
